/** The closed loop on the wall: the list of incidents, the one that is open, and one opened by hand from the map. */
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { post } from "./api.ts";
import { adopt } from "./callpanel.tsx";
import { NearCameras, NearWorkers, Timeline, Told } from "./cards.tsx";
import { Evidence } from "./evidence.tsx";
import {
  ASIDE,
  camerasNear,
  draft,
  ENDS,
  incident,
  incidentId,
  incidentList,
  incidentWorkers,
  moveIncident,
  NEXT,
  note,
  openIncident,
  openIncidents,
  reportIncident,
  score,
  STEPS,
} from "./incident-state.ts";
import { followsUp, FollowUp, followUp, MergeSuggestions, NearVolunteers, Work } from "./incident-work.tsx";
import type { Call, Incident, WorkerChoice } from "./model.ts";
import { areaName, attempt, decides, selectedId, tick } from "./state.ts";
import { clock, distance, span, t, tv } from "./text.ts";
import { link } from "./tiles.tsx";

/** Which list stands above: the queue of alarms or the incidents. */
export const listing = signal<"alarms" | "incidents">("alarms");

export const INCIDENT_TYPES = [
  "help",
  "theft",
  "fire",
  "medical",
  "dispute",
  "traffic",
  "public_order",
  "environment",
  "facility",
  "safety",
  "other",
] as const;

function IncidentRow({ of }: { of: Incident }) {
  return (
    <button
      type="button"
      class={`incident i-${of.state} sv${of.severity}${incidentId.value === of.id ? " chosen" : ""}`}
      data-incident={of.id}
      data-incident-state={of.state}
      aria-current={incidentId.value === of.id}
      onClick={() => void openIncident(of.id, false)}
    >
      <i class="sev" aria-label={t("severity")}>
        {of.severity}
      </i>
      <span class="what">
        <b>{tv("kind", of.type)}</b>
        {of.police === "yes" && <em class="tag">{t("policeYes")}</em>}
        {of.reopened > 0 && <em class="tag">{t("reopened", { n: of.reopened })}</em>}
      </span>
      <span class="where">{of.place_label || areaName(of.grid ?? of.community)}</span>
      <span class="meta">
        {of.number} · {areaName(of.community)} · {clock(of.reported_at, false)}
      </span>
      <em class={`step i-${of.state}`}>{tv("step", of.state)}</em>
    </button>
  );
}

export function IncidentList() {
  const list = incidentList.value;
  const over = list.filter((i) => ENDS.includes(i.state)).slice(0, 10);
  return (
    <div class="scroll" aria-live="polite">
      {openIncidents.value.length === 0 && <p class="quiet pad ok">✓ {t("noIncidents")}</p>}
      {openIncidents.value.map((i) => (
        <IncidentRow key={i.id} of={i} />
      ))}
      {over.length > 0 && <h3>{t("incidentsOver")}</h3>}
      {over.map((i) => (
        <IncidentRow key={i.id} of={i} />
      ))}
    </div>
  );
}

/** Six steps in a row: passed, current, to come; a state beside the loop stands as a word of its own. */
function Loop({ of }: { of: Incident }) {
  const at = STEPS.indexOf(of.state);
  return (
    <>
      <ol class="loop" aria-label={t("loop")}>
        {STEPS.map((step, i) => (
          <li
            key={step}
            class={at < 0 ? "" : i < at ? "passed" : i === at ? "now" : ""}
            aria-current={i === at && "step"}
          >
            <i aria-hidden="true">{at >= 0 && i < at ? "✓" : i + 1}</i>
            {tv("step", step)}
          </li>
        ))}
      </ol>
      {at < 0 && <p class="warn">◈ {tv("step", of.state)}</p>}
    </>
  );
}

/** The gridworker that the operator sends: recorded with the step, so that the handler is known and cannot verify himself. */
export async function dispatchTo(of: Incident, worker: WorkerChoice): Promise<void> {
  await moveIncident(of, "dispatch", { worker: worker.id, name: worker.name });
}
async function ringWorker(of: Incident, worker: WorkerChoice): Promise<void> {
  const made = await attempt(() => post<Call>("/api/v1/calls", { worker_id: worker.id, incident_id: of.id }));
  if (made) await adopt(made);
}

/** Where people are still being sent. */
const WORKING: readonly Incident["state"][] = ["REPORTED", "DISPATCHED", "HANDLING"];

/** Keys of the incident view; true if the key was one of them. */
export function incidentKey(key: string): boolean {
  const of = incident.value;
  if (!of) return false;
  const may = decides.value && WORKING.includes(of.state);
  if (/^[1-6]$/.test(key) && may) {
    const worker = incidentWorkers.value?.[Number(key) - 1];
    if (worker) void dispatchTo(of, worker);
    return worker !== undefined;
  }
  if (/^[1-5]$/.test(key) && of.state === "VERIFYING") {
    score.value = Number(key);
    return true;
  }
  if (key === "w") {
    document.getElementById("incident-note")?.focus();
    return true;
  }
  if ((key === "y" || key === "u") && followsUp(of)) {
    void followUp(of, key === "y");
    return true;
  }
  if (key === "g") {
    if (decides.value || of.state === "VERIFYING") advance(of);
    return true;
  }
  if (key === "r" && decides.value && of.state === "VERIFYING") {
    void moveIncident(of, "reopen", {}, note.value.trim());
    return true;
  }
  if (key === "c") {
    const worker = incidentWorkers.value?.[0];
    if (worker) void ringWorker(of, worker);
    return true;
  }
  if (key === "v") {
    if (of.position) link(camerasNear(of.position));
    return true;
  }
  if (key === "t" && may) {
    void moveIncident(of, "transfer", { to: of.police === "yes" ? "110" : "12345" }, note.value.trim());
    return true;
  }
  return false;
}

function advance(of: Incident): void {
  const next = NEXT[of.state];
  if (!next) return;
  if (next === "dispatch") {
    const worker = incidentWorkers.value?.[0];
    if (worker) {
      void dispatchTo(of, worker);
      return;
    }
  }
  void moveIncident(of, next, next === "rate" ? rating(of, true) : {}, note.value.trim());
}
/** What the resident has said himself stands; else the desk says it, having asked by telephone. */
const answered = (of: Incident): boolean => of.satisfied !== null && of.satisfied !== undefined;
const rating = (of: Incident, satisfied: boolean): Record<string, unknown> => ({
  score: score.value,
  ...(answered(of) ? {} : { satisfied }),
});

export function IncidentDetail() {
  const of = incident.value;
  const id = of?.id;
  useEffect(() => {
    note.value = "";
    score.value = 5;
  }, [id, of?.state]);
  if (!of) return null;
  const next = NEXT[of.state];
  const said = note.value.trim();
  const may = decides.value && WORKING.includes(of.state);
  const steps = decides.value || (next === "rate" && of.state === "VERIFYING"); // a leader may rate, and no more
  return (
    <section class="detail" data-incident-detail={of.id} data-incident-state={of.state} aria-label={t("incident")}>
      <header class={`i-${of.state}`}>
        <h2>
          {tv("kind", of.type)}
          <em class={`tag sv${of.severity}`}>{tv("sev", String(of.severity))}</em>
        </h2>
        <em class={`step i-${of.state}`}>{tv("step", of.state)}</em>
        <button
          type="button"
          class="x"
          aria-label={t("close")}
          onClick={() => {
            incidentId.value = null;
          }}
        >
          ✕
        </button>
      </header>
      <div class="scroll">
        <Loop of={of} />
        <dl class="facts">
          <dt>{t("number")}</dt>
          <dd>{of.number}</dd>
          <dt>{t("place")}</dt>
          <dd>
            <b>{of.place_label || t("place.point")}</b>
            <small>
              {[areaName(of.street), areaName(of.community), areaName(of.grid)].filter(Boolean).join(" / ")}
            </small>
          </dd>
          <dt>{t("policeAsk")}</dt>
          <dd>{tv("police", of.police)}</dd>
          <dt>{t("received")}</dt>
          <dd>
            {clock(of.reported_at)} <small>{t("ago", { t: span(tick.value - of.reported_at) })}</small>
          </dd>
          {of.note && (
            <>
              <dt>{t("notes")}</dt>
              <dd>{of.note}</dd>
            </>
          )}
        </dl>
        <div class="actions">
          {of.state === "VERIFYING" && steps && (
            <div class="seg five wide" role="group" aria-label={t("score")}>
              <span>{t("score")}</span>
              {[1, 2, 3, 4, 5].map((n) => (
                <button
                  type="button"
                  key={n}
                  data-score={n}
                  aria-pressed={score.value === n}
                  onClick={() => {
                    score.value = n;
                  }}
                >
                  {n}
                </button>
              ))}
            </div>
          )}
          {next && steps && (
            <button type="button" class="primary wide" data-act={next} onClick={() => advance(of)}>
              {next === "rate" ? t(answered(of) ? "ratePassed" : "rateGood") : tv("move", next)}
              <kbd>G</kbd>
            </button>
          )}
          {of.state === "VERIFYING" && !answered(of) && (
            <>
              <button
                type="button"
                data-act="rate-bad"
                onClick={() => void moveIncident(of, "rate", { score: score.value, satisfied: false }, said)}
              >
                {t("rateBad")}
              </button>
              <button
                type="button"
                data-act="rate-unasked"
                disabled={!said}
                title={said ? "" : t("reasonFirst")}
                onClick={() => void moveIncident(of, "rate", { score: score.value, no_follow_up: said }, said)}
              >
                {t("rateUnasked")}
              </button>
            </>
          )}
          {may && (
            <div class="seg two wide">
              {["110", "12345"].map((to) => (
                <button
                  type="button"
                  key={to}
                  data-act={`transfer-${to}`}
                  onClick={() => void moveIncident(of, "transfer", { to }, said)}
                >
                  {t("transferTo", { to })}
                </button>
              ))}
            </div>
          )}
          {(decides.value ? (ASIDE[of.state] ?? []) : [])
            .filter((what) => what !== "transfer")
            .map((what) => (
              <button
                type="button"
                key={what}
                data-act={what}
                disabled={what === "cancel" && !said}
                title={what === "cancel" && !said ? t("reasonFirst") : ""}
                onClick={() => void moveIncident(of, what, {}, said)}
              >
                {tv("move", what)}
                {what === "reopen" && <kbd>R</kbd>}
              </button>
            ))}
          <FollowUp of={of} />
          {steps && !ENDS.includes(of.state) && (
            <input
              id="incident-note"
              class="wide"
              maxLength={200}
              placeholder={t("noteStep")}
              aria-label={t("noteStep")}
              value={note.value}
              onInput={(e) => {
                note.value = e.currentTarget.value;
              }}
              onKeyDown={(e) => {
                if (e.key === "Enter") e.currentTarget.blur(); // back to the keys
              }}
            />
          )}
          {of.alarm_id && (
            <button
              type="button"
              class="link wide"
              onClick={() => {
                selectedId.value = of.alarm_id;
                incidentId.value = null;
              }}
            >
              {t("toAlarm")}
            </button>
          )}
        </div>
        <MergeSuggestions of={of} />
        <Work of={of} />
        <h3>{may ? t("nearWorkersSend") : t("nearWorkers")}</h3>
        {may ? (
          <NearWorkers
            workers={incidentWorkers.value}
            onPick={(worker) => void dispatchTo(of, worker)}
            pick={t("dispatch")}
          />
        ) : (
          <NearWorkers workers={incidentWorkers.value} />
        )}
        {(incidentWorkers.value?.length ?? 0) > 0 && (
          <button
            type="button"
            data-act="ring"
            onClick={() => incidentWorkers.value?.[0] && void ringWorker(of, incidentWorkers.value[0])}
          >
            ☎ {t("ringNearest", { name: incidentWorkers.value?.[0]?.name ?? "" })}
            <kbd>C</kbd>
          </button>
        )}
        <NearVolunteers of={of} />
        <h3>{t("nearCameras")}</h3>
        <NearCameras cameras={of.position ? camerasNear(of.position) : []} />
        <Evidence of="incident_id" id={of.id} />
        <Told deliveries={of.deliveries} />
        <h3>{t("timeline")}</h3>
        <Timeline entries={of.timeline} />
      </div>
    </section>
  );
}

/** The form beside the map after a click or a circle: what has happened there. */
export function DraftForm() {
  const at = draft.value;
  const [type, setType] = useState<string>("help");
  const [severity, setSeverity] = useState(2);
  const [police, setPolice] = useState("undetermined");
  const [label, setLabel] = useState("");
  const [note, setNote] = useState("");
  const [busy, setBusy] = useState(false);
  if (!at) return null;
  const near = camerasNear(at.position);
  const submit = (event: Event): void => {
    event.preventDefault();
    setBusy(true);
    const place_label = label.trim() || (near[0] ? t("nearCamera", { name: near[0].name }) : "");
    void reportIncident(at, { type, severity, police, place_label, note: note.trim() }).finally(() => setBusy(false));
  };
  return (
    <section class="detail" data-draft="1" aria-label={t("byHand")}>
      <header>
        <h2>＋ {t("byHand")}</h2>
        <button
          type="button"
          class="x"
          aria-label={t("close")}
          onClick={() => {
            draft.value = null;
          }}
        >
          ✕
        </button>
      </header>
      <form class="scroll draft" onSubmit={submit}>
        <p class="quiet">
          {at.position.lat.toFixed(5)}, {at.position.lon.toFixed(5)}
          {at.radius_m > 0 && ` · ${t("radius", { d: distance(at.radius_m) })}`}
        </p>
        <label>
          {t("type")}
          <select name="type" value={type} onChange={(e) => setType(e.currentTarget.value)}>
            {INCIDENT_TYPES.map((name) => (
              <option key={name} value={name}>
                {tv("kind", name)}
              </option>
            ))}
          </select>
        </label>
        <div class="seg four" role="group" aria-label={t("severity")}>
          {[1, 2, 3, 4].map((n) => (
            <button
              type="button"
              key={n}
              class={`sev${n}`}
              aria-pressed={severity === n}
              onClick={() => setSeverity(n)}
            >
              <b>{n}</b>
              {tv("sev", String(n))}
            </button>
          ))}
        </div>
        <div class="seg two" role="group" aria-label={t("policeAsk")}>
          {["yes", "no"].map((value) => (
            <button type="button" key={value} aria-pressed={police === value} onClick={() => setPolice(value)}>
              {tv("police", value)}
            </button>
          ))}
        </div>
        <label>
          {t("placeLabel")}
          <input
            name="place"
            maxLength={80}
            placeholder={near[0] ? t("nearCamera", { name: near[0].name }) : ""}
            value={label}
            onInput={(e) => setLabel(e.currentTarget.value)}
          />
        </label>
        <label>
          {t("note")}
          <input name="note" maxLength={200} value={note} onInput={(e) => setNote(e.currentTarget.value)} />
        </label>
        <button type="submit" class="primary" data-act="report" disabled={busy}>
          {t("openCase")}
        </button>
        <h3>{t("nearCameras")}</h3>
        <NearCameras cameras={near} />
      </form>
    </section>
  );
}
