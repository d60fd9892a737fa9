/** The alarm queue, and what an operator does with an alarm: take, judge, dispatch, merge, dismiss. */
import { signal } from "@preact/signals";
import type { RefObject } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { STILL_MS } from "./arrival.ts";
import { incident, incidentId, moveIncident, openIncident } from "./incident-state.ts";
import { goTo } from "./map-target.ts";
import type { Alarm } from "./model.ts";
import {
  areaName,
  closedRecently,
  loaded,
  openDetail,
  queue,
  reportShown,
  rows,
  say,
  selectedId,
  session,
  tick,
  triage,
} from "./state.ts";
import { clock, span, t, tv } from "./text.ts";
import { link } from "./tiles.tsx";

/** What the operator has set for the selected alarm before dispatching. */
export const severity = signal(2);
export const police = signal<"yes" | "no" | "undetermined">("undetermined");
export const merging = signal(false);

export const KIND_SHAPE: Record<string, string> = {
  help: "✚",
  theft: "◈",
  fire: "▲",
  medical: "♥",
  test: "◇",
  sos: "⚠",
};

export async function select(alarm: Alarm, show: boolean): Promise<void> {
  if (selectedId.value !== alarm.id) {
    severity.value = alarm.kind === "fire" ? 3 : 2;
    police.value = alarm.kind === "theft" ? "yes" : "undetermined";
    merging.value = false;
  }
  selectedId.value = alarm.id;
  incidentId.value = null;
  goTo(alarm.place.position);
  const full = await openDetail(alarm.id);
  if (show && full?.cameras && selectedId.value === alarm.id) link(full.cameras);
}

export const unhandled = (a: Alarm): boolean => a.handling === "NEW" || a.handling === "SHOWN";
export const mine = (a: Alarm): boolean => a.acknowledged_by?.sub === session.value?.sub;

export const dispatchIncident = async (alarm: Alarm): Promise<void> => {
  const done = await triage(alarm, {
    outcome: "incident",
    type: alarm.kind,
    severity: severity.value,
    police: police.value,
  });
  if (!done) return;
  say(t("done", { what: t("dispatch") }));
  const made = done.incident_id;
  if (!made) return;
  await openIncident(made, false);
  // Who has answered the call is on the way already: the loop's second step says so.
  const sent = done.dispatched ?? alarm.dispatched;
  const opened = incident.value;
  if (sent && opened?.id === made && opened.state === "REPORTED")
    await moveIncident(opened, "dispatch", { worker: sent.id, name: sent.name });
};
export const markFalse = async (alarm: Alarm): Promise<void> => {
  const done = await triage(alarm, { outcome: alarm.kind === "test" ? "test" : "false" });
  if (done) say(t("done", { what: alarm.kind === "test" ? t("outcome.test") : t("falseAlarm") }));
};
/** Whether two alarms were pressed near each other in place and time: merging is suggested, never done by itself. */
export const together = (a: Alarm, b: Alarm): boolean =>
  a.group_id === b.id || b.group_id === a.id || (!!a.group_id && a.group_id === b.group_id);
export const mergeTargets = (alarm: Alarm): Alarm[] =>
  queue.value
    .filter((a) => a.id !== alarm.id)
    .sort((a, b) => Number(together(b, alarm)) - Number(together(a, alarm)))
    .slice(0, 9);
export const mergeInto = async (alarm: Alarm, into: Alarm): Promise<void> => {
  merging.value = false;
  const done = await triage(alarm, { outcome: "merged", merged_into: into.id });
  if (done) say(t("done", { what: t("merge") }));
};

export function Countdown({ alarm }: { alarm: Alarm }) {
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

/** `folded`: those of its group that this row stands for. */
function AlarmRow({ alarm, folded = [], inGroup = false }: { alarm: Alarm; folded?: Alarm[]; inGroup?: boolean }) {
  const row = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    const report = (): void => {
      if (row.current) for (const one of [alarm, ...folded]) reportShown(one, row.current);
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
      class={`alarm h-${alarm.handling} k-${alarm.kind}${selectedId.value === alarm.id ? " chosen" : ""}${alarm.verified ? "" : " unverified"}${inGroup ? " member" : ""}`}
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

const unfolded = signal<ReadonlySet<string>>(new Set());

/** One row a group, which unfolds: alarms of several boxes near by are one thing that has happened, until somebody says otherwise. */
function Group({ lead, members }: { lead: Alarm; members: Alarm[] }) {
  if (members.length === 0) return <AlarmRow alarm={lead} />;
  // What still waits must not be hidden behind a row that was taken.
  const hidden = !unhandled(lead) && members.some(unhandled);
  const open = hidden || unfolded.value.has(lead.id) || members.some((m) => m.id === selectedId.value);
  const toggle = (): void => {
    const next = new Set(unfolded.value);
    if (!next.delete(lead.id)) next.add(lead.id);
    unfolded.value = next;
  };
  return (
    <div class="group" data-group={lead.id}>
      <AlarmRow alarm={lead} folded={open ? [] : members} />
      <button type="button" class="unfold" aria-expanded={open} disabled={hidden} onClick={toggle}>
        {open ? "▾" : "▸"} {t("grouped", { n: members.length })}
      </button>
      {open && members.map((m) => <AlarmRow key={m.id} alarm={m} inGroup />)}
    </div>
  );
}

/** Scrolls the queue to its head when somebody has to take an alarm that it did not have, once no hand is in it any more. */
function useNewestInView(): RefObject<HTMLDivElement | null> {
  const box = useRef<HTMLDivElement>(null);
  const known = useRef(new Set<string>());
  const timer = useRef(0);
  const pointedAt = useRef(-Infinity);
  const waiting = queue.value.filter(unhandled).map((a) => a.id);
  useEffect(() => {
    const list = box.current;
    if (!list) return undefined;
    const pointed = (): void => {
      pointedAt.current = performance.now();
    };
    const ways = ["pointermove", "pointerdown", "wheel"] as const;
    for (const way of ways) list.addEventListener(way, pointed, { passive: true });
    return () => {
      for (const way of ways) list.removeEventListener(way, pointed);
      clearTimeout(timer.current);
    };
  }, []);
  useEffect(() => {
    const come = waiting.some((id) => !known.current.has(id));
    known.current = new Set(waiting);
    if (!come) return;
    const up = (): void => {
      const left = STILL_MS - (performance.now() - pointedAt.current);
      clearTimeout(timer.current);
      if (left > 0) timer.current = window.setTimeout(up, left);
      else if (box.current) box.current.scrollTop = 0;
    };
    up();
  }, [waiting.join()]);
  return box;
}

export function AlarmList() {
  const list = rows.value;
  const box = useNewestInView();
  return (
    <div class="scroll" aria-live="polite" ref={box}>
      {loaded.value && list.length === 0 && <p class="quiet pad ok">✓ {t("noAlarms")}</p>}
      {!loaded.value && <p class="quiet pad">{t("boot")}</p>}
      {list.map((row) => (
        <Group key={row.lead.id} {...row} />
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
  );
}
