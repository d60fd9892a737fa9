/** What the gridworker's page holds, and how it says things. */
import { signal } from "@preact/signals";
import { ApiError, post } from "./api.ts";
import type { Alarm, Call, Duty, Session, Worker } from "./model.ts";
import { Outbox, type Kept } from "./outbox.ts";
import { t, tv } from "./text.ts";

export interface Missed {
  id: string;
  at: number;
  label: string;
  why: string;
}
/** The incident taken last, until it is reported done. */
export interface Taken {
  call: string;
  incident: string | null;
  alarm: string | null;
  label: string;
  arrived: boolean;
}

export const session = signal<Session | null>(null);
export const me = signal<Worker | null>(null);
export const ring = signal<Call | null>(null);
export const call = signal<Call | null>(null);
export const busy = signal("");
export const toast = signal<{ text: string; at: number } | null>(null);
export const missed = signal<Missed[]>([]);
export const task = signal<Taken | null>(null);
/** The alarm in full, once the claim has given the right to see it. */
export const scene = signal<Alarm | null>(null);
export const tick = signal(Date.now());

export const say = (text: string): void => {
  toast.value = { text, at: Date.now() };
};
export const fail = (error: unknown): void => say(error instanceof Error ? error.message : String(error));
const kept = (): string => `worker/${session.value?.sub ?? ""}`;

export function remember(): void {
  localStorage.setItem(kept(), JSON.stringify({ missed: missed.value, task: task.value, me: me.value }));
}

/** Who was logged in last on this phone, for a start without a network. What is sent later needs the real session. */
const LAST = "worker/last";
export function rememberSession(who: Session): void {
  localStorage.setItem(LAST, JSON.stringify(who));
}
export function lastSession(): Session | null {
  try {
    const who = JSON.parse(localStorage.getItem(LAST) ?? "null") as Session | null;
    return who && who.expires_at > Date.now() ? who : null;
  } catch {
    return null;
  }
}
export function recall(): void {
  try {
    const old = JSON.parse(localStorage.getItem(kept()) ?? "{}") as {
      missed?: Missed[];
      task?: Taken | null;
      me?: Worker | null;
    };
    missed.value = old.missed ?? [];
    task.value = old.task ?? null;
    me.value = old.me ?? null;
  } catch {
    /* unreadable: start anew */
  }
  outbox.open(`${kept()}/outbox`);
}
export function miss(of: Call, why: string): void {
  missed.value = [
    { id: of.id, at: of.opened_at, label: of.place_label, why },
    ...missed.value.filter((m) => m.id !== of.id),
  ].slice(0, 20);
  remember();
}

// ---- what is sent, now or when the network is back ----
export const outbox = new Outbox(
  async (item: Kept) => {
    try {
      await post(item.path, item.body);
      return "sent";
    } catch (error) {
      if (error instanceof ApiError && error.status !== 0 && error.status < 500 && error.status !== 429) {
        say(t("queueBad", { what: tv("queue", item.kind), why: error.message }));
        return "refused";
      }
      return "later";
    }
  },
  () => localStorage,
);

/** Posts at once; without a network it is kept. Null: kept for later. Raises what the gateway refuses. */
export async function postOrKeep<T>(kind: Kept["kind"], path: string, body: unknown): Promise<T | null> {
  try {
    return await post<T>(path, body);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 0) throw error;
    outbox.add({ kind, path, body });
    say(t("queued"));
    return null;
  }
}

export async function setDuty(duty: Duty): Promise<void> {
  try {
    const answer = await postOrKeep<Partial<Worker>>("duty", "/api/v1/workers/me/duty", { duty });
    if (me.value) me.value = { ...me.value, ...answer, duty: answer?.duty ?? duty };
  } catch (error) {
    fail(error);
  }
}
