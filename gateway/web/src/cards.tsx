/** What an alarm and an incident both show: the nearest people and cameras, and what has happened so far. */
import { useState } from "preact/hooks";
import type { CameraChoice, Delivery, TimelineEntry, WorkerChoice } from "./model.ts";
import { areaName, nameOf } from "./state.ts";
import { clock, distance, language, span, t, tv } from "./text.ts";
import { place } from "./tiles.tsx";
import { doneBy, toldOf } from "./timeline.ts";

/** The gateway says why in Chinese, for the record; in English it is said from the same figures. */
const whyWorker = (w: WorkerChoice): string =>
  language === "zh"
    ? w.reason
    : [
        t("metresAway", { d: distance(w.distance_m) }),
        w.accuracy_m === null ? "" : t("within", { n: Math.round(w.accuracy_m) }),
      ]
        .filter(Boolean)
        .join(", ");
const COMPASS = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"];
const whyCamera = (c: CameraChoice): string =>
  language === "zh"
    ? c.reason
    : `${t("metresAway", { d: distance(c.distance_m) })}, ${
        c.in_view ? t("seesIt") : t("looksAway", { to: COMPASS[Math.round(c.bearing_deg / 45) % 8] ?? "" })
      }`;

/** Who was told, by which channel, and whether anybody was there. */
export function Told({ deliveries }: { deliveries: Delivery[] | undefined }) {
  if (!deliveries || deliveries.length === 0) return null;
  return (
    <ul class="told" aria-label={t("told")}>
      <li aria-hidden="true">{t("told")}:</li>
      {deliveries.map((d, i) => (
        <li key={i} class={d.reached === 0 ? "warn" : ""}>
          {tv("audience", d.audience)}{" "}
          {d.channel === "prompt"
            ? t("prompted")
            : d.reached === 0
              ? `✕ ${t("reachedNobody")}`
              : d.reached === null
                ? "✓"
                : `✓ ${t("reached", { n: d.reached })}`}
        </li>
      ))}
    </ul>
  );
}

/** `onPick` makes each row a button (dispatch, ring); its place in the list is its key, 1-9. */
export function NearWorkers({
  workers,
  onPick,
  pick,
}: {
  workers: WorkerChoice[] | undefined;
  onPick?: (worker: WorkerChoice) => void;
  pick?: string;
}) {
  if (!workers) return <p class="quiet">{t("boot")}</p>;
  if (workers.length === 0) return <p class="quiet">{t("noWorkers")}</p>;
  return (
    <ol class="near">
      {workers.slice(0, 6).map((w, i) => (
        <li key={w.id} data-near-worker={w.id}>
          <span>
            <b>{w.name}</b>{" "}
            <em class={`tag f-${w.freshness}`}>
              {tv("fresh", w.freshness)}
              {w.fix_age_s !== null && ` ${span(w.fix_age_s * 1000)}`}
            </em>
          </span>
          <span class="num">
            {distance(w.distance_m)}
            {w.eta_s !== null && <small>{t("eta", { n: Math.max(1, Math.round(w.eta_s / 60)) })}</small>}
            {onPick && (
              <button type="button" class="pick" onClick={() => onPick(w)}>
                {pick}
                <kbd>{i + 1}</kbd>
              </button>
            )}
          </span>
          <small class="reason">
            {areaName(w.grid)} · {whyWorker(w)}
          </small>
        </li>
      ))}
    </ol>
  );
}

export function NearCameras({ cameras }: { cameras: CameraChoice[] | undefined }) {
  if (!cameras) return <p class="quiet">{t("boot")}</p>;
  if (cameras.length === 0) return <p class="quiet">{t("noneNear")}</p>;
  return (
    <ol class="near">
      {cameras.slice(0, 8).map((c) => (
        <li key={c.id}>
          <button type="button" class="link" onClick={() => place(c.id)}>
            {c.name}
          </button>
          {c.in_view && <em class="tag f-fresh">◉ {t("inView")}</em>}
          <span class="num">{distance(c.distance_m)}</span>
          <small class="reason">{whyCamera(c)}</small>
        </li>
      ))}
    </ol>
  );
}

/** Newest first. */
export function Timeline({ entries }: { entries: TimelineEntry[] | undefined }) {
  const [all, setAll] = useState(false);
  if (!entries || entries.length === 0) return <p class="quiet">{t("noTimeline")}</p>;
  const newest = [...entries].reverse();
  return (
    <>
      <ol class="timeline">
        {(all ? newest : newest.slice(0, 12)).map((e, i) => (
          <li key={i}>
            <time>{clock(e.at)}</time>
            <span>
              {tv("event", e.event)}
              {doneBy(e, nameOf) && ` · ${doneBy(e, nameOf)}`}
              <small>{toldOf(e, nameOf)}</small>
            </span>
          </li>
        ))}
      </ol>
      {!all && newest.length > 12 && (
        <button type="button" class="link" onClick={() => setAll(true)}>
          {t("timelineAll", { n: newest.length })}
        </button>
      )}
    </>
  );
}
