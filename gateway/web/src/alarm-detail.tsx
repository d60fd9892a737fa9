/** The alarm that is being worked: what, where, who lives there, who is near, and the keys to act. */
import { useEffect, useState } from "preact/hooks";
import {
  Countdown,
  dispatchIncident,
  KIND_SHAPE,
  markFalse,
  mergeInto,
  mergeTargets,
  merging,
  together,
  mine,
  police,
  select,
  severity,
  unhandled,
} from "./alarms.tsx";
import { callAbout, callOf, isJoined } from "./callpanel.tsx";
import { NearCameras, NearWorkers, Timeline, Told } from "./cards.tsx";
import { Evidence } from "./evidence.tsx";
import { openIncident } from "./incident-state.ts";
import type { Alarm } from "./model.ts";
import {
  acknowledge,
  areaName,
  callBack,
  closeAlarm,
  decides,
  selected,
  selectedId,
  tick,
  unacknowledge,
} from "./state.ts";
import { clock, skew, span, t, tv } from "./text.ts";
import { linked } from "./tiles.tsx";

export function AlarmDetail() {
  const alarm = selected.value;
  const [note, setNote] = useState("");
  const id = alarm?.id;
  useEffect(() => setNote(""), [id]);
  if (!alarm) return null;
  const call = callOf(alarm.id);
  const open = alarm.handling !== "CLOSED";
  const owed = open && alarm.condition === "CLEARED" && alarm.kind !== "test" && !alarm.call_back;
  const canTriage = decides.value && open && alarm.handling !== "TRIAGED";
  return (
    <section class="detail" data-detail={alarm.id} aria-label={t("alarms")}>
      <header class={`h-${alarm.handling}`}>
        <h2>
          <i aria-hidden="true">{KIND_SHAPE[alarm.kind] ?? "!"}</i>
          {tv("kind", alarm.kind)}
          {alarm.silent && <em class="tag quiet-alarm">⊘ {t("silent")}</em>}
          {!alarm.verified && <em class="tag">? {t("unverified")}</em>}
        </h2>
        <em class={`handling h-${alarm.handling}`}>{tv("handling", alarm.handling)}</em>
        <button
          type="button"
          class="x"
          aria-label={t("close")}
          onClick={() => {
            selectedId.value = null;
          }}
        >
          ✕
        </button>
      </header>
      <div class="scroll">
        <dl class="facts">
          <dt>{t("place")}</dt>
          <dd>
            <b>{alarm.place.label}</b>
            <small>
              {tv("place", alarm.place.kind)} ·{" "}
              {[areaName(alarm.street), areaName(alarm.community), areaName(alarm.grid)].filter(Boolean).join(" / ")}
            </small>
          </dd>
          <dt>{t("received")}</dt>
          <dd>
            {clock(alarm.received_at)}{" "}
            <small>
              {t("ago", { t: span(tick.value - alarm.received_at) })}
              {alarm.skew_ms !== null && Math.abs(alarm.skew_ms) > 60000 ? ` · ${skew(alarm.skew_ms)}` : ""}
            </small>
          </dd>
          {alarm.repeats > 0 && (
            <>
              <dt />
              <dd class="warn">{t("repeats", { n: alarm.repeats })}</dd>
            </>
          )}
          {alarm.condition === "CLEARED" && (
            <>
              <dt />
              <dd class="warn">{owed ? t("cleared") : t("clearedOnly")}</dd>
            </>
          )}
          {alarm.call_back && (
            <>
              <dt>{t("callBack")}</dt>
              <dd>
                {tv("outcome", alarm.call_back.outcome)} · {alarm.call_back.by.name}{" "}
                <small>
                  {clock(alarm.call_back.at)} {alarm.call_back.note}
                </small>
              </dd>
            </>
          )}
          {alarm.acknowledged_by && (
            <>
              <dt>{t("acknowledge")}</dt>
              <dd>
                {t("ackBy", { name: mine(alarm) ? t("me") : alarm.acknowledged_by.name })}{" "}
                {alarm.handling === "ACKNOWLEDGED" && mine(alarm) && (
                  <button type="button" class="link" onClick={() => void unacknowledge(alarm)}>
                    {t("unacknowledge")}
                  </button>
                )}
              </dd>
            </>
          )}
          {alarm.outcome && (
            <>
              <dt>{t("triagedAs")}</dt>
              <dd>{tv("outcome", alarm.outcome)}</dd>
            </>
          )}
        </dl>
        <div class="actions">
          {unhandled(alarm) && (
            <button type="button" class="primary wide" data-act="acknowledge" onClick={() => void acknowledge(alarm)}>
              {t("acknowledge")}
              <kbd>{t("space")}</kbd>
              <Countdown alarm={alarm} />
            </button>
          )}
          {open && (
            <button
              type="button"
              data-act="call"
              class={call && call.state !== "ENDED" ? "live" : ""}
              onClick={() => void callAbout(alarm.id)}
            >
              {isJoined(call) ? t("inCall") : call && call.state !== "ENDED" ? t("joinCall") : t("startCall")}
              <kbd>C</kbd>
            </button>
          )}
          <button
            type="button"
            data-act="cameras"
            aria-pressed={linked.value.size > 0}
            onClick={() => void select(alarm, true)}
          >
            {t("showCameras")}
            <kbd>V</kbd>
          </button>
          {canTriage && (
            <>
              <div class="seg four" role="group" aria-label={t("severity")}>
                {[1, 2, 3, 4].map((n) => (
                  <button
                    type="button"
                    key={n}
                    class={`sev${n}`}
                    aria-pressed={severity.value === n}
                    onClick={() => {
                      severity.value = n;
                    }}
                  >
                    <b>{n}</b>
                    {tv("sev", String(n))}
                  </button>
                ))}
              </div>
              <div class="seg two" role="group" aria-label={t("policeAsk")}>
                <button
                  type="button"
                  aria-pressed={police.value === "yes"}
                  onClick={() => {
                    police.value = "yes";
                  }}
                >
                  {t("policeYes")}
                  <kbd>P</kbd>
                </button>
                <button
                  type="button"
                  aria-pressed={police.value === "no"}
                  onClick={() => {
                    police.value = "no";
                  }}
                >
                  {t("policeNo")}
                  <kbd>N</kbd>
                </button>
              </div>
              <button type="button" class="primary" data-act="dispatch" onClick={() => void dispatchIncident(alarm)}>
                {t("dispatch")}
                <kbd>D</kbd>
              </button>
              <button type="button" data-act="false" onClick={() => void markFalse(alarm)}>
                {alarm.kind === "test" ? t("outcome.test") : t("falseAlarm")}
                <kbd>F</kbd>
              </button>
              <button
                type="button"
                class="wide"
                data-act="merge"
                aria-pressed={merging.value}
                onClick={() => {
                  merging.value = !merging.value;
                }}
              >
                {t("merge")}
                <kbd>M</kbd>
              </button>
              {merging.value && (
                <div class="wide merge">
                  {mergeTargets(alarm).length === 0 ? <p class="quiet">{t("mergeNone")}</p> : <p>{t("mergeInto")}</p>}
                  {mergeTargets(alarm).map((a, i) => (
                    <button type="button" key={a.id} onClick={() => void mergeInto(alarm, a)}>
                      <kbd>{i + 1}</kbd>
                      {together(a, alarm) && <em class="tag">{t("sameGroup")}</em>} {tv("kind", a.kind)} ·{" "}
                      {a.place.label}
                    </button>
                  ))}
                </div>
              )}
            </>
          )}
          {alarm.incident_id && (
            <button
              type="button"
              class="primary wide"
              data-act="incident"
              onClick={() => void openIncident(alarm.incident_id ?? "")}
            >
              {t("toIncident")}
              <kbd>I</kbd>
            </button>
          )}
          {decides.value && owed && <CallBackForm alarm={alarm} />}
          {decides.value && open && !owed && alarm.handling === "TRIAGED" && !alarm.incident_id && (
            <form
              class="wide endform"
              onSubmit={(e) => {
                e.preventDefault();
                void closeAlarm(alarm, note.trim());
              }}
            >
              <input
                maxLength={200}
                placeholder={t("note")}
                value={note}
                onInput={(e) => setNote(e.currentTarget.value)}
              />
              <button type="submit" class="primary" data-act="close">
                {t("end")}
              </button>
            </form>
          )}
        </div>
        <Told deliveries={alarm.deliveries} />
        {!unhandled(alarm) && open && mergeTargets(alarm).some((a) => together(a, alarm)) && !merging.value && (
          <p class="hint">
            ◈ {t("mergeSuggested", { n: mergeTargets(alarm).filter((a) => together(a, alarm)).length })} <kbd>M</kbd>
          </p>
        )}
        <h3>{t("household")}</h3>
        {alarm.household ? (
          <div class="card">
            <b>{alarm.household.address}</b>
            {alarm.household.contacts.map((c) => (
              <span key={c.phone}>
                {c.name} <a href={`tel:${c.phone}`}>{c.phone}</a>
              </span>
            ))}
            {alarm.household.notes && <p>{alarm.household.notes}</p>}
          </div>
        ) : (
          <p class="quiet">{t("householdHidden")}</p>
        )}
        <h3>{t("nearWorkers")}</h3>
        <NearWorkers workers={alarm.workers} />
        <h3>{t("nearCameras")}</h3>
        <NearCameras cameras={alarm.cameras} />
        <Evidence of="alarm_id" id={alarm.id} />
        <h3>{t("timeline")}</h3>
        <Timeline entries={alarm.timeline} />
      </div>
    </section>
  );
}

/** The resident cancelled: what the telephone call found. Without it the alarm can't be closed. */
function CallBackForm({ alarm }: { alarm: Alarm }) {
  const [note, setNote] = useState("");
  const said = note.trim();
  return (
    <div class="wide callback" role="group" aria-label={t("callBack")}>
      <p class="warn">{t("callBackLead")}</p>
      <input
        maxLength={200}
        placeholder={t("callBackNote")}
        aria-label={t("callBackNote")}
        value={note}
        onInput={(e) => setNote(e.currentTarget.value)}
      />
      {["safe", "help_needed", "unreachable"].map((outcome) => (
        <button
          type="button"
          key={outcome}
          data-act={`called-${outcome}`}
          disabled={outcome === "unreachable" && !said}
          onClick={() => void callBack(alarm, outcome, said)}
        >
          {tv("outcome", outcome)}
        </button>
      ))}
    </div>
  );
}
