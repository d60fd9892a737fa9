/** The alarm queue and the alarm that is being worked: what, where, who lives there, who is near, and the keys to act. */
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { callAbout, callOf } from "./callpanel.tsx";
import { goTo } from "./map-target.ts";
import type { Alarm } from "./model.ts";
import {
  acknowledge,
  areaName,
  closeAlarm,
  closedRecently,
  loaded,
  openDetail,
  queue,
  reportShown,
  say,
  selected,
  selectedId,
  session,
  tick,
  triage,
  unacknowledge,
} from "./state.ts";
import { clock, distance, span, t, tv } from "./text.ts";
import { link, linked, place } from "./tiles.tsx";

/** What the operator has set for the selected alarm before dispatching. */
export const severity = signal(2);
export const police = signal<"yes" | "no" | "undetermined">("undetermined");
export const merging = signal(false);

const KIND_SHAPE: Record<string, string> = { help: "✚", theft: "◈", fire: "▲", medical: "♥", test: "◇" };

export async function select(alarm: Alarm, show: boolean): Promise<void> {
  if (selectedId.value !== alarm.id) {
    severity.value = alarm.kind === "fire" ? 3 : 2;
    police.value = alarm.kind === "theft" ? "yes" : "undetermined";
    merging.value = false;
  }
  selectedId.value = alarm.id;
  goTo(alarm.place.position);
  const full = await openDetail(alarm.id);
  if (show && full?.cameras && selectedId.value === alarm.id) link(full.cameras);
}

export const unhandled = (a: Alarm): boolean => a.handling === "NEW" || a.handling === "SHOWN";
const mine = (a: Alarm): boolean => a.acknowledged_by?.sub === session.value?.sub;

/** A new alarm takes the screen, unless the operator is in the middle of another one. */
export function onNewAlarm(alarm: Alarm): void {
  if (!unhandled(alarm) || !alarm.verified) return;
  const now = selected.value;
  if (now && now.id !== alarm.id && now.handling === "ACKNOWLEDGED" && mine(now)) return;
  void select(alarm, true);
}

export const dispatchIncident = async (alarm: Alarm): Promise<void> => {
  const done = await triage(alarm, {
    outcome: "incident",
    type: alarm.kind,
    severity: severity.value,
    police: police.value,
  });
  if (done) say(t("done", { what: t("dispatch") }));
};
export const markFalse = async (alarm: Alarm): Promise<void> => {
  const done = await triage(alarm, { outcome: alarm.kind === "test" ? "test" : "false" });
  if (done) say(t("done", { what: alarm.kind === "test" ? t("outcome.test") : t("falseAlarm") }));
};
export const mergeTargets = (alarm: Alarm): Alarm[] => queue.value.filter((a) => a.id !== alarm.id).slice(0, 9);
export const mergeInto = async (alarm: Alarm, into: Alarm): Promise<void> => {
  merging.value = false;
  const done = await triage(alarm, { outcome: "merged", merged_into: into.id });
  if (done) say(t("done", { what: t("merge") }));
};

function Countdown({ alarm }: { alarm: Alarm }) {
  const next = [...alarm.deadlines].sort((a, b) => a.at - b.at).find((d) => d.at > tick.value - 3000);
  if (!next || alarm.handling === "CLOSED") return null;
  const left = Math.ceil((next.at - tick.value) / 1000);
  const key = `deadline.${next.kind}`;
  const what = tv("deadline", next.kind);
  return (
    <span class={`countdown${left <= 5 ? " hot" : ""}`}>
      <b>{left > 0 ? (left >= 120 ? span(left * 1000) : `${left}s`) : "0s"}</b>
      {what === next.kind || what === key ? t("deadlineOther") : what}
    </span>
  );
}

function AlarmRow({ alarm }: { alarm: Alarm }) {
  const row = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    const report = (): void => {
      if (row.current) reportShown(alarm, row.current);
    };
    report();
    document.addEventListener("visibilitychange", report);
    const again = setInterval(report, 2000); // the row may stand in a tab of the narrow layout that is opened later
    return () => {
      document.removeEventListener("visibilitychange", report);
      clearInterval(again);
    };
  }, [alarm]);
  return (
    <button
      ref={row}
      type="button"
      class={`alarm h-${alarm.handling} k-${alarm.kind}${selectedId.value === alarm.id ? " chosen" : ""}${alarm.verified ? "" : " unverified"}`}
      data-alarm={alarm.id}
      data-handling={alarm.handling}
      aria-current={selectedId.value === alarm.id}
      onClick={() => void select(alarm, false)}
    >
      <i class="kind" aria-hidden="true">
        {KIND_SHAPE[alarm.kind] ?? "!"}
      </i>
      <span class="what">
        <b>{tv("kind", alarm.kind)}</b>
        {alarm.silent && <em class="tag quiet-alarm">⊘ {t("silent")}</em>}
        {!alarm.verified && <em class="tag">? {t("unverified")}</em>}
        {alarm.repeats > 0 && <em class="tag">×{alarm.repeats + 1}</em>}
        {alarm.condition === "CLEARED" && <em class="tag">{t("cleared")}</em>}
      </span>
      <span class="where">{alarm.place.label}</span>
      <span class="meta">
        {clock(alarm.received_at)} · {areaName(alarm.community)}
        {alarm.acknowledged_by && ` · ${mine(alarm) ? t("me") : alarm.acknowledged_by.name}`}
      </span>
      <span class="right">
        <em class={`handling h-${alarm.handling}`}>{tv("handling", alarm.handling)}</em>
        <Countdown alarm={alarm} />
      </span>
    </button>
  );
}

export function AlarmQueue() {
  const list = queue.value;
  return (
    <section class="queue" aria-label={t("queue")}>
      <h2>
        {t("queue")}
        <b class={list.some(unhandled) ? "hot" : ""}>{list.length}</b>
      </h2>
      <div class="scroll" aria-live="polite">
        {loaded.value && list.length === 0 && <p class="quiet pad ok">✓ {t("noAlarms")}</p>}
        {!loaded.value && <p class="quiet pad">{t("boot")}</p>}
        {list.map((a) => (
          <AlarmRow key={a.id} alarm={a} />
        ))}
        {closedRecently.value.length > 0 && (
          <>
            <h3>{t("history")}</h3>
            {closedRecently.value.map((a) => (
              <AlarmRow key={a.id} alarm={a} />
            ))}
          </>
        )}
      </div>
    </section>
  );
}

const EVENT: Record<string, string> = {
  raised: "收到报警",
  repeated: "再次按下",
  unverified: "签名未通过核实",
  shown: "已显示在值班台",
  acknowledged: "已接警",
  unacknowledged: "退回待接警",
  abandoned: "接警后无处置，退回",
  triaged: "已定性",
  closed: "已结束",
  cancelled: "居民取消",
  place: "更正位置",
  call: "开始呼叫网格员",
  police_prompt: "提示移交公安",
  escalated: "升级",
  claimed: "网格员接警",
  dispatched: "已派遣",
  ranked: "选出人员和摄像机",
};
const DETAIL: Record<string, string> = {
  via: "途径",
  label: "地点",
  level: "级别",
  outcome: "结果",
  note: "备注",
  severity: "等级",
  worker: "网格员",
  name: "姓名",
  reason: "原因",
  repeats: "次数",
};
/** What the timeline tells beside the event itself: only members that mean something to an operator. */
function describe(detail: unknown): string {
  if (detail === null || detail === undefined) return "";
  if (typeof detail === "string") return detail;
  if (typeof detail !== "object") return String(detail);
  return Object.entries(detail)
    .filter(([k, v]) => k in DETAIL && v !== null && v !== "" && typeof v !== "object")
    .map(([k, v]) => `${DETAIL[k]} ${k === "outcome" || k === "level" ? tv(k, String(v)) : String(v)}`)
    .join(" · ");
}

export function AlarmDetail() {
  const alarm = selected.value;
  const [note, setNote] = useState("");
  const id = alarm?.id;
  useEffect(() => setNote(""), [id]);
  if (!alarm) return null;
  const call = callOf(alarm.id);
  const open = alarm.handling !== "CLOSED";
  const canTriage = open && alarm.handling !== "TRIAGED";
  const by = (who: NonNullable<Alarm["timeline"]>[number]["by"]): string =>
    who === null
      ? ""
      : typeof who === "string"
        ? who
            .replace(/^system$/, "")
            .replace(/^stb\//, "机顶盒 ")
            .replace(/^(operator|desk|leader|worker)\//, "")
        : who.name;
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
              {alarm.skew_ms !== null && Math.abs(alarm.skew_ms) > 60000
                ? ` · ${t("skew", { s: Math.round(alarm.skew_ms / 1000) })}`
                : ""}
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
              <dd class="warn">{t("cleared")}</dd>
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
              <kbd>空格</kbd>
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
              {call && call.state !== "ENDED" ? t("joinCall") : t("startCall")}
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
                      {tv("kind", a.kind)} · {a.place.label}
                    </button>
                  ))}
                </div>
              )}
            </>
          )}
          {open && alarm.handling === "TRIAGED" && (
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
        {alarm.workers ? (
          alarm.workers.length === 0 ? (
            <p class="quiet">{t("noWorkers")}</p>
          ) : (
            <ol class="near">
              {alarm.workers.slice(0, 6).map((w) => (
                <li key={w.id}>
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
                  </span>
                  <small class="reason">
                    {areaName(w.grid)} · {w.reason}
                  </small>
                </li>
              ))}
            </ol>
          )
        ) : (
          <p class="quiet">{t("boot")}</p>
        )}
        <h3>{t("nearCameras")}</h3>
        {alarm.cameras ? (
          alarm.cameras.length === 0 ? (
            <p class="quiet">{t("noneNear")}</p>
          ) : (
            <ol class="near">
              {alarm.cameras.slice(0, 8).map((c) => (
                <li key={c.id}>
                  <button type="button" class="link" onClick={() => place(c.id)}>
                    {c.name}
                  </button>
                  {c.in_view && <em class="tag f-fresh">◉ {t("inView")}</em>}
                  <span class="num">{distance(c.distance_m)}</span>
                  <small class="reason">{c.reason}</small>
                </li>
              ))}
            </ol>
          )
        ) : (
          <p class="quiet">{t("boot")}</p>
        )}
        <h3>{t("timeline")}</h3>
        {alarm.timeline && alarm.timeline.length > 0 ? (
          <ol class="timeline">
            {[...alarm.timeline].reverse().map((e, i) => (
              <li key={i}>
                <time>{clock(e.at)}</time>
                <span>
                  {EVENT[e.event] ?? e.event}
                  {by(e.by) && ` · ${by(e.by)}`}
                  <small>{describe(e.detail)}</small>
                </span>
              </li>
            ))}
          </ol>
        ) : (
          <p class="quiet">{t("noTimeline")}</p>
        )}
      </div>
    </section>
  );
}
