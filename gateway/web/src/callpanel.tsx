/** The call with the people on the spot: who rings, who took it, both pictures, hang up. */
import { computed, signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { post, seg } from "./api.ts";
import { OwnCamera, RemoteLeg } from "./leg-video.tsx";
import { capture, Publisher, type CaptureFault } from "./media.ts";
import type { Call } from "./model.ts";
import { attempt, calls, openCalls, selectedId, session, tick } from "./state.ts";
import { clock, distance, span, t, tv } from "./text.ts";

interface Joined {
  call: string;
  leg: string;
  stream: MediaStream | null;
  publisher: Publisher | null;
  fault: CaptureFault | null;
}
const joined = signal<Joined | null>(null);
const joining = signal(false);
const muted = signal(false);
const dark = signal(false);
const dismissed = signal<ReadonlySet<string>>(new Set());

/** The call the key C takes when no alarm or incident is open. */
export const ringingCall = (): Call | undefined => openCalls.value.find((c) => c.state !== "ENDED");

/** Whether this page takes part in a call about the alarm. */
export const isJoined = (call: Call | undefined): boolean => call !== undefined && joined.value?.call === call.id;

export const inCall = computed(() => joined.value !== null);

/** The newest call about an alarm. */
export const callOf = (alarm: string): Call | undefined =>
  [...calls.value.values()].filter((c) => c.alarm_id === alarm).sort((a, b) => b.opened_at - a.opened_at)[0];

/** What the panel shows: the call one is in, else that of the selected alarm, else any open one. */
const shownCall = computed<Call | null>(() => {
  const own = joined.value && calls.value.get(joined.value.call);
  if (own) return own;
  const recent = (c: Call | undefined): c is Call =>
    c !== undefined &&
    !dismissed.value.has(c.id) &&
    (c.state !== "ENDED" || c.end_reason === "no_answer" || c.end_reason === "media_failed");
  const about = selectedId.value === null ? undefined : callOf(selectedId.value);
  if (recent(about)) return about;
  return openCalls.value.filter((c) => !dismissed.value.has(c.id)).sort((a, b) => b.opened_at - a.opened_at)[0] ?? null;
});

function keep(call: Call): void {
  calls.value = new Map(calls.value).set(call.id, call);
}

/** A gridworker rings the desks, and nobody has answered yet. */
export const isInbound = (call: Call): boolean => call.kind === "inbound" && call.state === "RINGING";
const caller = (call: Call): string => call.legs.find((leg) => leg.role === "worker")?.name ?? "";
/** Desks are rung by sound as phones are. */
export const inboundCalls = computed(() => openCalls.value.filter(isInbound));

export async function joinCall(call: Call): Promise<void> {
  if (joining.value || joined.value?.call === call.id) return;
  joining.value = true;
  try {
    const [media, mine] = await Promise.all([
      capture(),
      attempt(() => post<Call>(`/api/v1/calls/${seg(call.id)}/${isInbound(call) ? "claim" : "join"}`)),
    ]);
    const stream = "stream" in media ? media.stream : null;
    if (!mine?.leg) {
      stream?.getTracks().forEach((track) => track.stop());
      return;
    }
    leave();
    muted.value = false;
    dark.value = false;
    keep(mine);
    joined.value = {
      call: call.id,
      leg: mine.leg,
      stream,
      fault: "fault" in media ? media.fault : null,
      publisher: stream && new Publisher(`/api/v1/calls/${seg(call.id)}/legs/${seg(mine.leg)}/whip`, stream),
    };
  } finally {
    joining.value = false;
  }
}

/** The gateway gives a place away when nothing comes in time (a machine under load, a network that stalls): whoever is still here
 * takes it again. One that was live was given up elsewhere, by the same user. */
async function rejoin(own: Joined): Promise<void> {
  if (joining.value) return;
  if (own.publisher?.state.value === "live") {
    leave();
    return;
  }
  joining.value = true;
  try {
    const mine = await attempt(() => post<Call>(`/api/v1/calls/${seg(own.call)}/join`));
    if (joined.value !== own) return;
    if (!mine?.leg) {
      leave();
      return;
    }
    own.publisher?.close(true);
    keep(mine);
    joined.value = {
      ...own,
      leg: mine.leg,
      publisher: own.stream && new Publisher(`/api/v1/calls/${seg(own.call)}/legs/${seg(mine.leg)}/whip`, own.stream),
    };
  } finally {
    joining.value = false;
  }
}

/** Joins the alarm's open call, or opens one and joins that. */
export async function callAbout(alarm: string): Promise<void> {
  const open = callOf(alarm);
  if (open && open.state !== "ENDED") return joinCall(open);
  const made = await attempt(() => post<Call>("/api/v1/calls", { alarm_id: alarm }));
  if (made) await adopt(made);
}

/** Takes a call in that this page has opened, and joins it. */
export async function adopt(made: Call): Promise<void> {
  keep(made);
  await joinCall(made);
}

function leave(): void {
  const own = joined.value;
  joined.value = null;
  own?.publisher?.close((calls.value.get(own.call)?.state ?? "ENDED") === "ENDED");
  own?.stream?.getTracks().forEach((track) => track.stop());
}
export async function hangUp(): Promise<void> {
  const call = shownCall.value;
  leave();
  if (call && call.state !== "ENDED") {
    const ended = await attempt(() => post<Call>(`/api/v1/calls/${seg(call.id)}/hangup`));
    if (ended) keep(ended);
  }
}

export function CallPanel() {
  const call = shownCall.value;
  const own = joined.value;
  const ended = call?.state === "ENDED";
  useEffect(() => {
    if (ended && own && call?.id === own.call) leave();
  }, [ended, own, call]);
  const gone = !ended && (call?.legs.some((leg) => leg.id === own?.leg && leg.left_at !== null) ?? false);
  useEffect(() => {
    if (gone && own) void rejoin(own);
  }, [gone, own]);
  if (!call) return null;
  const inIt = own?.call === call.id;
  const others = call.legs.filter((leg) => leg.publishing && leg.left_at === null && leg.id !== own?.leg);
  const toggle = (kind: "audio" | "video", off: boolean): void =>
    own?.stream
      ?.getTracks()
      .filter((track) => track.kind === kind)
      .forEach((track) => {
        track.enabled = !off;
      });
  return (
    <section class={`call c-${call.state}`} data-call={call.id} data-state={call.state} aria-label={t("call")}>
      <header>
        <h2>
          ☎ {isInbound(call) ? `${t("inbound", { name: caller(call) })} · ` : ""}
          {call.place_label || t("callFor")}
        </h2>
        <em class={`callstate c-${call.state}`}>{tv("call", call.state)}</em>
        {call.recording && <em class="rec">● {t("recording")}</em>}
        <time>{span(tick.value - call.opened_at)}</time>
        {!inIt && (
          <button
            type="button"
            class="x"
            aria-label={t("close")}
            onClick={() => {
              dismissed.value = new Set([...dismissed.value].slice(-50)).add(call.id);
            }}
          >
            ✕
          </button>
        )}
      </header>
      {call.answered_by && <p class="answered">✓ {t("answeredBy", { name: call.answered_by.name })}</p>}
      {ended && <p class="ended">{tv("end", call.end_reason ?? "hangup")}</p>}
      {inIt && !ended && (
        <div class={`videos v${Math.min(4, others.length)}`}>
          {others.length === 0 && (
            <div class="remote">
              <p class="tile-note">
                <b>{t("remoteWaiting")}</b>
                <span>{tv("call", call.state)}</span>
              </p>
            </div>
          )}
          {others.map((leg) => (
            <RemoteLeg
              key={leg.id}
              call={call.id}
              leg={leg}
              viewer={session.value}
              ended={() => (calls.value.get(call.id)?.state ?? "ENDED") === "ENDED"}
            />
          ))}
          {own.stream && <OwnCamera stream={own.stream} name={t("you")} />}
        </div>
      )}
      {inIt && own.fault && <p class="warn pad">{t(own.fault)}</p>}
      {inIt && own.publisher && own.publisher.state.value !== "live" && own.publisher.reason.value && (
        <p class="warn pad">{t("publishFailed", { why: own.publisher.reason.value })}</p>
      )}
      {!(inIt && others.length > 0) && (
        <ul class="rung">
          {call.rung.length === 0 && !isInbound(call) && <li class="quiet">{t("noRung")}</li>}
          {call.rung.map((r) => (
            <li key={r.worker_id} class={`r-${r.outcome}`}>
              <b>{r.name}</b>
              <span>{r.distance_m !== null ? distance(r.distance_m) : ""}</span>
              <em>{tv("rung", r.outcome)}</em>
              <small>
                {r.reason} · {clock(r.rung_at)}
              </small>
            </li>
          ))}
        </ul>
      )}
      {!ended && (
        <footer>
          {!inIt && (
            <button
              type="button"
              class="primary"
              data-act="join"
              disabled={joining.value}
              onClick={() => void joinCall(call)}
            >
              {joining.value ? t("joining") : isInbound(call) ? t("answer") : t("joinCall")}
              <kbd>C</kbd>
            </button>
          )}
          {inIt && own.stream && (
            <button
              type="button"
              aria-pressed={muted.value}
              onClick={() => {
                muted.value = !muted.value;
                toggle("audio", muted.value);
              }}
            >
              {muted.value ? t("unmute") : t("mute")}
            </button>
          )}
          {inIt && own.stream && (
            <button
              type="button"
              aria-pressed={dark.value}
              onClick={() => {
                dark.value = !dark.value;
                toggle("video", dark.value);
              }}
            >
              {dark.value ? t("camOn") : t("camOff")}
            </button>
          )}
          {inIt && (
            <button type="button" class="danger" data-act="hangup" onClick={() => void hangUp()}>
              {t("hangup")}
              <kbd>X</kbd>
            </button>
          )}
        </footer>
      )}
    </section>
  );
}
