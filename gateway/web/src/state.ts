/** What the wall and the desk know: fetched once, kept current by the event channel. Signals, no framework of our own. */
import { computed, signal } from "@preact/signals";
import { ApiError, get, post, seg, toLogin } from "./api.ts";
import { urgencyOf } from "./arrival.ts";
import { Channel, serverNow, type Frame } from "./events.ts";
import type { Alarm, Area, Call, Camera, District, Session, Volunteer, Worker } from "./model.ts";
import { t } from "./text.ts";

export const session = signal<Session | null>(null);
export const district = signal<District | null>(null);
export const cameras = signal<ReadonlyMap<string, Camera>>(new Map());
export const workers = signal<ReadonlyMap<string, Worker>>(new Map());
export const alarms = signal<ReadonlyMap<string, Alarm>>(new Map());
export const calls = signal<ReadonlyMap<string, Call>>(new Map());
/** Alarms in full, as far as they were opened. */
export const details = signal<ReadonlyMap<string, Alarm>>(new Map());
export const selectedId = signal<string | null>(null);
export const notice = signal<{ text: string; bad: boolean; at: number } | null>(null);
export const loadError = signal("");
export const loaded = signal(false);
/** What stands in the middle: the pictures, or a page of figures or of the cameras' health. */
export const view = signal<"tiles" | "statistics" | "health">("tiles");
export const volunteers = signal<ReadonlyMap<string, Volunteer>>(new Map());
/** Ticks once a second, for countdowns and ages. */
export const tick = signal(serverNow());
export let channel: Channel | null = null;

export const areas = computed<ReadonlyMap<string, Area>>(
  () => new Map((district.value?.areas ?? []).map((area) => [area.code, area])),
);
export const areaName = (code: string | null): string => (code === null ? "" : (areas.value.get(code)?.name ?? code));

/** Everybody whom this page has heard of by name. */
const people = computed<ReadonlyMap<string, string>>(() => {
  const found = new Map<string, string>();
  for (const alarm of [...alarms.value.values(), ...details.value.values()])
    for (const who of [alarm.acknowledged_by, alarm.call_back?.by]) if (who) found.set(who.sub, who.name);
  for (const call of calls.value.values()) if (call.answered_by) found.set(call.answered_by.id, call.answered_by.name);
  for (const who of [...volunteers.value.values(), ...workers.value.values()]) found.set(who.id, who.name);
  if (session.value) found.set(session.value.sub, session.value.name);
  return found;
});
export const nameOf = (id: string): string | undefined => people.value.get(id) || undefined;

/** The queue: what nobody has taken first, oldest first within that. */
export const queue = computed<Alarm[]>(() =>
  [...alarms.value.values()]
    .filter((a) => a.handling !== "CLOSED")
    .sort((a, b) => urgencyOf(a) - urgencyOf(b) || a.received_at - b.received_at),
);
/** One row a group: what leads, and who pressed beside it. An alarm whose leader is gone leads itself. */
export const rows = computed<{ lead: Alarm; members: Alarm[] }[]>(() => {
  const open = new Map(queue.value.map((a) => [a.id, a]));
  const found = new Map<string, { lead: Alarm; members: Alarm[] }>();
  const leads = (a: Alarm): boolean => !a.group_id || !open.has(a.group_id);
  for (const lead of queue.value) if (leads(lead)) found.set(lead.id, { lead, members: [] });
  for (const member of queue.value) if (!leads(member)) found.get(member.group_id ?? "")?.members.push(member);
  const urgency = (row: { lead: Alarm; members: Alarm[] }): number =>
    Math.min(...[row.lead, ...row.members].map(urgencyOf));
  return [...found.values()].sort((a, b) => urgency(a) - urgency(b) || a.lead.received_at - b.lead.received_at);
});
export const closedRecently = computed(() =>
  [...alarms.value.values()]
    .filter((a) => a.handling === "CLOSED")
    .sort((a, b) => b.received_at - a.received_at)
    .slice(0, 5),
);
export const selected = computed<Alarm | null>(() => {
  const id = selectedId.value;
  if (id === null) return null;
  const listed = alarms.value.get(id);
  const full = details.value.get(id);
  return listed ? { ...full, ...listed } : (full ?? null);
});
/** Leaders see, talk and acknowledge; judging and sending is for those who sit at a desk (access.py). */
export const decides = computed(() => session.value?.role === "operator" || session.value?.role === "desk");
export const openCalls = computed(() => [...calls.value.values()].filter((c) => c.state !== "ENDED"));
export const needsSound = computed(() =>
  queue.value.some((a) => a.verified && a.condition === "ACTIVE" && (a.handling === "NEW" || a.handling === "SHOWN")),
);

export function say(text: string, bad = false): void {
  notice.value = { text, bad, at: Date.now() };
}

/** Runs a user's action; what goes wrong is said in a notice, never swallowed. */
export async function attempt<T>(action: () => Promise<T>): Promise<T | null> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof ApiError && error.status === 409) {
      const by = error.problem.by as { name?: string } | string | undefined;
      const name = typeof by === "string" ? by : by?.name;
      if (name) {
        say(t("ackTaken", { name }), true);
        return null;
      }
    }
    say(error instanceof Error ? error.message : String(error), true);
    return null;
  }
}

export const put = <T extends { id: string }>(map: ReadonlyMap<string, T>, item: T): Map<string, T> =>
  new Map(map).set(item.id, item);
const index = <T extends { id: string }>(items: T[]): Map<string, T> => new Map(items.map((item) => [item.id, item]));
const KEEP_CLOSED = 50;

/** Forgets the oldest closed alarms and ended calls: the page stays flat in memory for weeks. */
function prune(): void {
  const closed = [...alarms.value.values()]
    .filter((a) => a.handling === "CLOSED")
    .sort((a, b) => b.received_at - a.received_at);
  if (closed.length > KEEP_CLOSED) {
    const gone = new Set(closed.slice(KEEP_CLOSED / 2).map((a) => a.id));
    const alive = <T>(map: ReadonlyMap<string, T>): Map<string, T> =>
      new Map([...map].filter(([id]) => !gone.has(id) || id === selectedId.value));
    alarms.value = alive(alarms.value);
    details.value = alive(details.value);
  }
  if (calls.value.size > 40)
    calls.value = new Map(
      [...calls.value].filter(([, c]) => c.state !== "ENDED" || serverNow() - c.opened_at < 600000),
    );
}

const arrivals: ((alarm: Alarm) => void)[] = [];
/** Calls back once for every alarm that comes in, or rings again, while the page is open. */
export const onArrival = (listener: (alarm: Alarm) => void): void => {
  arrivals.push(listener);
};

export async function openDetail(id: string): Promise<Alarm | null> {
  return attempt(async () => {
    const full = await get<Alarm>(`/api/v1/alarms/${seg(id)}`);
    details.value = put(details.value, full);
    return full;
  });
}

export function applyAlarm(alarm: Alarm): void {
  const before = alarms.value.get(alarm.id);
  alarms.value = put(alarms.value, alarm);
  if (alarm.timeline) details.value = put(details.value, alarm);
  if (alarm.handling !== "CLOSED" && (!before || alarm.repeats > before.repeats))
    for (const listener of arrivals) listener(alarm);
  if (selectedId.value === alarm.id && !alarm.timeline) void openDetail(alarm.id);
  prune();
}

const caseListeners: ((type: "incident" | "task", data: unknown) => void)[] = [];
/** Incidents and tasks are kept by modules of their own, which build on this one. */
export const onCase = (listener: (type: "incident" | "task", data: unknown) => void): void => {
  caseListeners.push(listener);
};

function onFrame(frame: Frame): void {
  switch (frame.type) {
    case "alarm":
      applyAlarm(frame.data as Alarm);
      break;
    case "call":
      calls.value = put(calls.value, frame.data as Call);
      prune();
      break;
    case "incident":
    case "task":
      for (const listener of caseListeners) listener(frame.type, frame.data);
      break;
    case "camera":
      cameraBuffer.push(frame.data as Camera);
      break;
    case "worker":
      workerBuffer.push(frame.data as Worker);
      break;
    default:
      break;
  }
}

// Hundreds of cameras may change at once (a power cut): their frames are gathered and applied four times a second.
const cameraBuffer: Camera[] = [];
const workerBuffer: Worker[] = [];
function flush(): void {
  if (cameraBuffer.length) {
    const next = new Map(cameras.value);
    for (const c of cameraBuffer.splice(0)) next.set(c.id, c);
    cameras.value = next;
  }
  if (workerBuffer.length) {
    const next = new Map(workers.value);
    for (const w of workerBuffer.splice(0)) next.set(w.id, w);
    workers.value = next;
  }
}

let more: (() => Promise<void>) | null = null;
/** What else is fetched with everything: at the start and after a gap. */
export const onLoaded = (load: () => Promise<void>): void => {
  more = load;
};

export async function loadAll(): Promise<void> {
  try {
    const [d, c, a, w, k] = await Promise.all([
      get<District>("/api/v1/district"),
      get<{ cameras: Camera[] }>("/api/v1/cameras"),
      get<{ alarms: Alarm[] }>("/api/v1/alarms?open=1&limit=200"),
      get<{ workers: Worker[] }>("/api/v1/workers"),
      get<{ calls: Call[] }>("/api/v1/calls?open=1"),
    ]);
    if (more) await more();
    volunteers.value = index((await get<{ volunteers: Volunteer[] }>("/api/v1/volunteers")).volunteers);
    district.value = d;
    cameras.value = index(c.cameras);
    workers.value = index(w.workers);
    const seen = alarms.value;
    const closed = [...seen.values()].filter((x) => x.handling === "CLOSED");
    alarms.value = index([...closed, ...a.alarms]);
    const ended = [...calls.value.values()].filter((x) => x.state === "ENDED");
    calls.value = index([...ended, ...k.calls]);
    const fresh = a.alarms.filter((x) => !seen.has(x.id) && (x.handling === "NEW" || x.handling === "SHOWN"));
    for (const alarm of fresh.sort((x, y) => x.received_at - y.received_at))
      for (const listener of arrivals) listener(alarm);
    if (selectedId.value) void openDetail(selectedId.value);
    loadError.value = "";
    loaded.value = true;
  } catch (error) {
    loadError.value = error instanceof Error ? error.message : String(error);
    if (loaded.value) setTimeout(() => void loadAll(), 5000);
  }
}

export async function startState(who: Session): Promise<void> {
  session.value = who;
  setInterval(() => {
    tick.value = serverNow();
  }, 1000);
  setInterval(flush, 250);
  channel = new Channel(
    onFrame,
    () => void loadAll(),
    () => toLogin("revoked"),
  );
  await loadAll();
}

// ---- actions of an operator ----

const acknowledging = new Map<string, Promise<Alarm | null>>();
/** Once at a time: a fast operator presses Space and D within one round trip, and must not lose against himself. */
export function acknowledge(alarm: Alarm): Promise<Alarm | null> {
  const running = acknowledging.get(alarm.id);
  if (running) return running;
  const made = attempt(async () => {
    const next = await post<Alarm>(`/api/v1/alarms/${seg(alarm.id)}/acknowledge`);
    applyAlarm(next);
    return next;
  }).finally(() => acknowledging.delete(alarm.id));
  acknowledging.set(alarm.id, made);
  return made;
}

export interface Triage {
  outcome: "incident" | "merged" | "false" | "test";
  type?: string;
  severity?: number;
  police?: string;
  merged_into?: string;
  note?: string;
}

/** Triage needs the alarm acknowledged; the key for it may be the first one pressed. */
export async function triage(alarm: Alarm, body: Triage): Promise<Alarm | null> {
  let current: Alarm | null = alarm;
  const now = alarms.value.get(alarm.id) ?? alarm; // what the key meant may have moved on meanwhile
  if (now.handling === "NEW" || now.handling === "SHOWN") current = await acknowledge(now);
  if (!current) return null;
  return attempt(async () => {
    const next = await post<Alarm>(`/api/v1/alarms/${seg(alarm.id)}/triage`, body);
    applyAlarm(next);
    return next;
  });
}

export const closeAlarm = (alarm: Alarm, note: string): Promise<unknown> =>
  attempt(async () => {
    await post(`/api/v1/alarms/${seg(alarm.id)}/close`, note ? { note } : {});
    const full = await openDetail(alarm.id);
    if (full) applyAlarm(full);
  });

export const callBack = (alarm: Alarm, outcome: string, note: string): Promise<unknown> =>
  attempt(async () => {
    await post(`/api/v1/alarms/${seg(alarm.id)}/call_back`, note ? { outcome, note } : { outcome });
    const full = await openDetail(alarm.id);
    if (full) applyAlarm(full);
  });

export const unacknowledge = (alarm: Alarm): Promise<unknown> =>
  attempt(async () => {
    applyAlarm(await post<Alarm>(`/api/v1/alarms/${seg(alarm.id)}/unacknowledge`));
  });

const consoleId = ((): string => {
  const kept = sessionStorage.getItem("console");
  if (kept) return kept;
  const made = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("console", made);
  return made;
})();
const shown = new Set<string>();

/** Tells the server that `row` really stands on a visible screen: only after two frames were drawn, and not in a hidden tab. */
export function reportShown(alarm: Alarm, row: HTMLElement): void {
  if (alarm.handling !== "NEW" || shown.has(alarm.id)) return;
  requestAnimationFrame(() =>
    requestAnimationFrame(() => {
      if (shown.has(alarm.id) || document.visibilityState !== "visible" || row.getClientRects().length === 0) return;
      shown.add(alarm.id);
      if (shown.size > 500) shown.delete(shown.values().next().value as string);
      post(`/api/v1/alarms/${seg(alarm.id)}/shown`, { console: consoleId }).catch(() => {
        shown.delete(alarm.id);
      });
    }),
  );
}
