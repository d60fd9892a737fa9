/** What the gridworker's page holds, and how it says things. */
import { signal } from "@preact/signals";
import { ApiError, errorOf, post, seg, unsafeHeaders } from "./api.ts";
import type { Alarm, Call, Duty, Session, Worker } from "./model.ts";
import { Outbox, type Kept } from "./outbox.ts";
import { notOwn, type Taken } from "./taken.ts";
import { t, tv } from "./text.ts";
import { fromBase64, toBase64 } from "./worker-photo.ts";

export interface Missed {
  id: string;
  at: number;
  label: string;
  why: string;
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
/** The session has ended for good: without a network too. */
export const forgetSession = (): void => localStorage.removeItem(LAST);
export function lastSession(): Session | null {
  try {
    const who = JSON.parse(localStorage.getItem(LAST) ?? "null") as Session | null;
    return who && (who.expires_at ?? Infinity) > Date.now() ? who : null;
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
/** A call for help that no answer has come to yet: every try bears the same id, so it is one alarm. */
export interface Help {
  id: string;
  at: number;
}
const helpKey = (): string => `${kept()}/help`;
let help: Help | null = null; // also where the device keeps nothing
export function keepHelp(next: Help | null): void {
  help = next;
  try {
    if (next) localStorage.setItem(helpKey(), JSON.stringify(next));
    else localStorage.removeItem(helpKey());
  } catch {
    /* a full device: the page still has it */
  }
}
export function unansweredHelp(): Help | null {
  try {
    return help ?? (JSON.parse(localStorage.getItem(helpKey()) ?? "null") as Help | null);
  } catch {
    return help;
  }
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
      if (item.kind === "photo") await upload(item.path, fromBase64(String(item.body)));
      else {
        const made = await post<{ id?: string } | undefined>(item.path, item.body);
        // Behind what else waits, each a thing of its own: a photo that fails takes no report along.
        for (const photo of item.photos ?? [])
          if (made?.id) outbox.add({ kind: "photo", path: photosOf(made.id), body: photo });
      }
      return "sent";
    } catch (error) {
      // 408 and 429 are about this try (a slow network, a limit), not about what is sent: it must not be lost for them.
      if (error instanceof ApiError && error.status !== 0 && error.status < 500 && ![408, 429].includes(error.status)) {
        const of = task.value?.incident;
        if (item.kind === "feedback" && notOwn(error.status) && of && item.path.includes(`/incidents/${seg(of)}/`)) {
          task.value = null; // the event that was taken is not one's own any more
          remember();
        }
        say(t("queueBad", { what: tv("queue", item.kind), why: error.message }));
        return "refused";
      }
      return "later";
    }
  },
  () => localStorage,
);

const photosOf = (incident: string): string => `/api/v1/incidents/${seg(incident)}/photos`;
async function upload(path: string, photo: Blob): Promise<{ sha256: string }> {
  let response: Response;
  try {
    response = await fetch(path, {
      method: "POST",
      credentials: "same-origin",
      headers: { ...unsafeHeaders, "Content-Type": "image/jpeg" },
      body: photo,
      signal: AbortSignal.timeout(60000),
    });
  } catch {
    throw new ApiError(0, t("netDown"), {}, null);
  }
  if (!response.ok) throw await errorOf(response);
  return (await response.json()) as { sha256: string };
}
const keep = (item: Kept): void => {
  try {
    outbox.add(item);
    say(t("queued"));
  } catch {
    say(t("queueFull"));
  }
};

/** Uploads at once; without a network the photo is kept. Null: kept for later. */
export async function sendPhoto(path: string, photo: Blob): Promise<{ sha256: string } | null> {
  try {
    return await upload(path, photo);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 0) throw error;
    keep({ kind: "photo", path, body: await toBase64(photo) });
    return null;
  }
}

export const newReportId = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

/** An event of one's own with its photos; `body` has a `report_id`. Null: kept for later. */
export async function sendReport<T extends { id: string }>(body: unknown, photos: Blob[]): Promise<T | null> {
  const path = "/api/v1/incidents";
  let made: T;
  try {
    made = await post<T>(path, body);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 0) throw error;
    keep({ kind: "report", path, body, photos: await Promise.all(photos.map(toBase64)) });
    return null;
  }
  // Kept before they are sent: a page that is closed or reloaded now, or a gateway that says "later", loses none of them.
  const to = photosOf(made.id);
  for (const photo of photos)
    try {
      outbox.add({ kind: "photo", path: to, body: await toBase64(photo) });
    } catch {
      await sendPhoto(to, photo); // no room left on the phone
    }
  void outbox.flush();
  return made;
}

/** Posts at once; without a network it is kept. Null: kept for later. Raises what the gateway refuses. */
export async function postOrKeep<T>(kind: Kept["kind"], path: string, body: unknown): Promise<T | null> {
  try {
    return await post<T>(path, body);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 0) throw error;
    keep({ kind, path, body });
    return null;
  }
}

export async function setDuty(duty: Duty): Promise<void> {
  try {
    const answer = await postOrKeep<Partial<Worker>>("duty", "/api/v1/workers/me/duty", { duty });
    if (me.value) me.value = { ...me.value, ...answer, duty: answer?.duty ?? duty };
    remember();
  } catch (error) {
    fail(error);
  }
}
