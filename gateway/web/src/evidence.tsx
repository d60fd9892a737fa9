/** What was recorded of an alarm or an incident: play, keep from being pruned, hand out as a bundle. */
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { ApiError, errorOf, get, pageQuery, post, seg, unsafeHeaders } from "./api.ts";
import type { Clip } from "./model.ts";
import { attempt, decides, say, session } from "./state.ts";
import { clock, day, octets, t, tv, why } from "./text.ts";
import { Watermark } from "./watermark.tsx";

type Of = "alarm_id" | "incident_id" | "call_id";
/** The clip that plays; one at a time. */
const playing = signal<string | null>(null);
const AGAIN_MS = 10000; // while something is still being recorded

/** A reason is asked for whatever leaves the system or stays longer than the rule says. */
function Reason({ label, onSay, onBack }: { label: string; onSay: (reason: string) => void; onBack: () => void }) {
  const [reason, setReason] = useState("");
  return (
    <form
      class="reasonform"
      onSubmit={(e) => {
        e.preventDefault();
        if (reason.trim()) onSay(reason.trim());
      }}
    >
      <input
        autofocus
        required
        maxLength={200}
        placeholder={t("reasonFirst")}
        aria-label={t("reasonFirst")}
        value={reason}
        onInput={(e) => setReason(e.currentTarget.value)}
        onKeyDown={(e) => {
          if (e.key === "Escape") onBack();
        }}
      />
      <button type="submit" class="primary" disabled={!reason.trim()}>
        {label}
      </button>
    </form>
  );
}

function Row({ clip, onChange }: { clip: Clip; onChange: (next: Clip) => void }) {
  const [asking, setAsking] = useState(false);
  const [bad, setBad] = useState(false);
  const on = playing.value === clip.id;
  const held = clip.hold !== null;
  const hold = (reason: string): void => {
    setAsking(false);
    void attempt(async () => {
      onChange(await post<Clip>(`/api/v1/evidence/${seg(clip.id)}/${held ? "release" : "hold"}`, { reason }));
      say(t(held ? "released" : "heldNow"));
    });
  };
  return (
    <li class={`clip c-${clip.state}`} data-clip={clip.id} data-clip-state={clip.state}>
      <span class="what">
        <i aria-hidden="true">{clip.kind === "call" ? "☎" : "▣"}</i>
        <b>{clip.name}</b>
        <em class={`tag${clip.state === "failed" ? " bad" : ""}`}>{tv("clip", clip.state)}</em>
        {held && (
          <em class="tag hold" title={clip.hold?.reason}>
            ⚿ {t("heldTag")}
          </em>
        )}
      </span>
      <small>
        {day(clip.from_at)} {clock(clip.from_at)}–{clip.to_at === null ? "…" : clock(clip.to_at)}
        {clip.size ? ` · ${octets(clip.size)}` : ""}
        {clip.kind === "camera" && clip.preroll_s ? ` · ${t("preroll", { n: clip.preroll_s })}` : ""}
        {!held && clip.expires_at ? ` · ${t("expires", { d: day(clip.expires_at) })}` : ""}
        {clip.reason ? ` · ${why(clip.reason)}` : ""}
      </small>
      {on && (
        <div class="playback">
          <video
            controls
            autoplay
            playsInline
            src={`/api/v1/evidence/${seg(clip.id)}/media${pageQuery("?")}`}
            onError={() => setBad(true)}
          />
          <Watermark who={session.value?.name || session.value?.sub || ""} />
          {bad && <p class="tile-note">{t("clipBad")}</p>}
        </div>
      )}
      <span class="buttons">
        {clip.state === "complete" && (
          <button
            type="button"
            data-act="play"
            aria-pressed={on}
            onClick={() => {
              setBad(false);
              playing.value = on ? null : clip.id;
            }}
          >
            {on ? t("close") : `▶ ${t("play")}`}
          </button>
        )}
        {decides.value && clip.state !== "pruned" && (
          <button type="button" data-act={held ? "release" : "hold"} onClick={() => setAsking(!asking)}>
            {t(held ? "release" : "hold")}
          </button>
        )}
      </span>
      {asking && <Reason label={t(held ? "release" : "hold")} onSay={hold} onBack={() => setAsking(false)} />}
    </li>
  );
}

/** Fetches the bundle and hands it to the browser as a download. */
async function exportBundle(of: Of, id: string, reason: string): Promise<void> {
  const response = await fetch("/api/v1/evidence/export", {
    method: "POST",
    credentials: "same-origin",
    headers: { ...unsafeHeaders, "Content-Type": "application/json" },
    body: JSON.stringify({ [of]: id, reason }),
  });
  if (!response.ok) throw await errorOf(response);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = `evidence-${id}.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(t("exported"));
}

export function Evidence({ of, id }: { of: Of; id: string }) {
  /** null: on the way; a string: why there is nothing to show. */
  const [found, setFound] = useState<Clip[] | string | null>(null);
  const [asking, setAsking] = useState(false);
  const [busy, setBusy] = useState(false);
  const recording = Array.isArray(found) && found.some((clip) => clip.state === "recording");
  useEffect(() => {
    let current = true;
    const load = (): void => {
      get<{ evidence: Clip[] }>(`/api/v1/evidence?${of}=${seg(id)}&limit=100`).then(
        (said) => current && setFound(said.evidence),
        (error: unknown) => {
          if (!current) return;
          const none = error instanceof ApiError && error.status === 404;
          setFound(none ? t("noEvidenceHere") : error instanceof Error ? error.message : String(error));
        },
      );
    };
    load();
    const timer = recording ? setInterval(load, AGAIN_MS) : 0;
    return () => {
      current = false;
      clearInterval(timer);
    };
  }, [of, id, recording]);
  useEffect(
    () => () => {
      playing.value = null;
    },
    [id],
  );
  const change = (next: Clip): void => {
    if (Array.isArray(found)) setFound(found.map((clip) => (clip.id === next.id ? next : clip)));
  };
  return (
    <section class="evidence" data-evidence={Array.isArray(found) ? found.length : ""}>
      <h3>{t("evidence")}</h3>
      {found === null && <p class="quiet">{t("boot")}</p>}
      {typeof found === "string" && <p class="quiet">{found}</p>}
      {Array.isArray(found) && found.length === 0 && <p class="quiet">{t("noEvidence")}</p>}
      {Array.isArray(found) && found.length > 0 && (
        <>
          <ul class="clips">
            {found.map((clip) => (
              <Row key={clip.id} clip={clip} onChange={change} />
            ))}
          </ul>
          {decides.value && (
            <button type="button" data-act="export" disabled={busy} onClick={() => setAsking(!asking)}>
              ⤓ {busy ? t("exporting") : t("export")}
            </button>
          )}
          {asking && (
            <Reason
              label={t("export")}
              onBack={() => setAsking(false)}
              onSay={(reason) => {
                setAsking(false);
                setBusy(true);
                void attempt(() => exportBundle(of, id, reason)).finally(() => setBusy(false));
              }}
            />
          )}
        </>
      )}
    </section>
  );
}
