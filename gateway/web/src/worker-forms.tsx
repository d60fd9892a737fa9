/** What a gridworker tells: his position by hand, arrival and end of a task, and events of his own (上报). */
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, seg } from "./api.ts";
import { serverNow } from "./events.ts";
import type { Alarm, Incident } from "./model.ts";
import { Swipe } from "./swipe.tsx";
import { t, tv } from "./text.ts";
import { scaled } from "./worker-photo.ts";
import { fix, here, sendFix, type Datum } from "./worker-position.ts";
import { fail, newReportId, postOrKeep, remember, say, sendReport, task } from "./worker-state.ts";
import { refusedTaken } from "./worker-taken.ts";

const MOST_PHOTOS = 3;

async function report(what: "handle" | "submit", note: string): Promise<void> {
  const of = task.value;
  if (!of) return;
  try {
    if (!of.incident && of.alarm) of.incident = (await get<Alarm>(`/api/v1/alarms/${seg(of.alarm)}`)).incident_id;
    if (!of.incident) throw new ApiError(0, t("notYet"), {}, null);
    const done = await postOrKeep("feedback", `/api/v1/incidents/${seg(of.incident)}/${what}`, note ? { note } : {});
    // Word that it is over may have come meanwhile.
    if (task.value?.call === of.call) {
      task.value = what === "submit" ? null : { ...of, arrived: true };
      remember();
    }
    if (done) say(what === "submit" ? t("finishedDone") : t("onSceneDone"));
  } catch (error) {
    fail(error);
    await refusedTaken(error);
  }
}
export function ManualFix() {
  const [open, setOpen] = useState(false);
  const [lat, setLat] = useState("");
  const [lon, setLon] = useState("");
  const [datum, setDatum] = useState<Datum>("gcj02");
  if (!open)
    return (
      <button type="button" class="link" onClick={() => setOpen(true)}>
        {t("manualFix")}
      </button>
    );
  const submit = (event: Event): void => {
    event.preventDefault();
    const y = Number(lat),
      x = Number(lon);
    if (!lat || !lon || !(Math.abs(y) <= 90 && Math.abs(x) <= 180)) {
      say(t("badFix"));
      return;
    }
    sendFix(y, x, datum, 50, null, serverNow()).then(() => setOpen(false), fail);
  };
  return (
    <form class="manual" onSubmit={submit}>
      <label>
        {t("lat")}
        <input inputMode="decimal" value={lat} placeholder="30.81" onInput={(e) => setLat(e.currentTarget.value)} />
      </label>
      <label>
        {t("lon")}
        <input inputMode="decimal" value={lon} placeholder="103.89" onInput={(e) => setLon(e.currentTarget.value)} />
      </label>
      <label class="span">
        {t("datum")}
        <select value={datum} onChange={(e) => setDatum(e.currentTarget.value as Datum)}>
          <option value="gcj02">{t("datum.gcj02")}</option>
          <option value="wgs84">{t("datum.wgs84")}</option>
        </select>
      </label>
      <button type="submit" class="span primary">
        {t("sendFix")}
      </button>
    </form>
  );
}
export function Task() {
  const of = task.value;
  const [note, setNote] = useState("");
  return (
    <div class="box">
      <h2>{t("myTask")}</h2>
      {of ? (
        <>
          <b>{of.label}</b>
          <div class="task">
            {of.arrived && (
              <input
                placeholder={t("feedback")}
                maxLength={200}
                value={note}
                onInput={(e) => setNote(e.currentTarget.value)}
              />
            )}
            {of.arrived ? (
              <Swipe act="done" label={t("finished")} onDone={() => void report("submit", note.trim())} />
            ) : (
              <Swipe act="on_scene" label={t("onScene")} onDone={() => void report("handle", "")} />
            )}
          </div>
        </>
      ) : (
        <p class="quiet">{t("noTask")}</p>
      )}
    </div>
  );
}

/** What a gridworker may report, as configured; kept on the phone for when there is no network. */
const duties = signal<readonly string[]>(JSON.parse(localStorage.getItem("duties") ?? "[]") as string[]);
export async function loadDuties(): Promise<void> {
  duties.value = (await get<{ duties: string[] }>("/api/v1/duties")).duties;
  localStorage.setItem("duties", JSON.stringify(duties.value));
}

/** Photos that go along with a report, as small pictures that can be taken out again. */
function Photos({ photos, onChange }: { photos: Blob[]; onChange: (next: Blob[]) => void }) {
  const input = useRef<HTMLInputElement>(null);
  const [urls, setUrls] = useState<string[]>([]);
  useEffect(() => {
    const made = photos.map((photo) => URL.createObjectURL(photo));
    setUrls(made);
    return () => made.forEach((url) => URL.revokeObjectURL(url));
  }, [photos]);
  return (
    <div class="shots">
      {urls.map((url, i) => (
        <button
          type="button"
          key={url}
          aria-label={`${t("remove")} ${t("photoN", { n: i + 1 })}`}
          onClick={() => onChange(photos.filter((_, n) => n !== i))}
        >
          <img src={url} alt={t("photoN", { n: i + 1 })} />
          <i aria-hidden="true">✕</i>
        </button>
      ))}
      <input
        ref={input}
        hidden
        type="file"
        accept="image/*"
        capture="environment"
        onChange={(e) => {
          const file = e.currentTarget.files?.[0];
          e.currentTarget.value = "";
          if (file) scaled(file).then((photo) => onChange([...photos, photo]), fail);
        }}
      />
      {photos.length < MOST_PHOTOS && (
        <button type="button" class="add" data-act="report-photo" onClick={() => input.current?.click()}>
          ◉ {t("addPhoto")}
        </button>
      )}
    </div>
  );
}

/** 上报: type, words, photo, place. Kept and sent later if there is no network. */
export function ReportForm({ onDone }: { onDone: () => void }) {
  const [type, setType] = useState(duties.value[0] ?? "");
  const [note, setNote] = useState("");
  const [label, setLabel] = useState("");
  const [sending, setSending] = useState(false);
  const [photos, setPhotos] = useState<Blob[]>([]);
  // One name for what this form says, however often it is sent: whoever missed the answer makes no second incident.
  const [reportId] = useState(newReportId);
  const at = here.value;
  const submit = (event: Event): void => {
    event.preventDefault();
    if (!at) {
      say(t("reportNoFix"));
      return;
    }
    setSending(true);
    const body = { type, note: note.trim(), place_label: label.trim(), report_id: reportId, ...at };
    sendReport<Incident>(body, photos)
      .then((made) => {
        if (made) say(t("reportDone", { n: made.number }));
        onDone();
      }, fail)
      .finally(() => setSending(false));
  };
  return (
    <section class="sheet" role="dialog" aria-label={t("reportEvent")} data-report="1">
      <header>
        <h2>{t("reportEvent")}</h2>
        <button type="button" class="x" aria-label={t("close")} onClick={onDone}>
          ✕
        </button>
      </header>
      <form onSubmit={submit}>
        <p class="quiet">{t("reportLead")}</p>
        <div class="types" role="radiogroup" aria-label={t("type")}>
          {duties.value.length === 0 && <p class="quiet">{t("dutiesNone")}</p>}
          {duties.value.map((name) => (
            <button
              type="button"
              key={name}
              role="radio"
              aria-checked={type === name}
              data-type={name}
              onClick={() => setType(name)}
            >
              {tv("kind", name)}
            </button>
          ))}
        </div>
        <label>
          {t("reportWhat")}
          <textarea rows={3} maxLength={200} value={note} onInput={(e) => setNote(e.currentTarget.value)} />
        </label>
        <label>
          {t("reportWhere")}
          <input maxLength={80} value={label} onInput={(e) => setLabel(e.currentTarget.value)} />
        </label>
        <Photos photos={photos} onChange={setPhotos} />
        <p class={`fix ${at ? "ok" : "bad"}`}>
          {at ? `● ${at.lat.toFixed(5)}, ${at.lon.toFixed(5)} · ${t(`datum.${at.datum}`)}` : `▲ ${t("reportNoFix")}`}
        </p>
        {!at && fix.value.state !== "ok" && <ManualFix />}
        <button type="submit" class="primary" data-act="report" disabled={sending || !at || !type}>
          {t("reportSend")}
        </button>
      </form>
    </section>
  );
}
