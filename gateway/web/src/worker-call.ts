/** Ringing phones and calls: one claim wins, and the phone publishes first. */
import { signal } from "@preact/signals";
import { ApiError, get, post, seg } from "./api.ts";
import { nearest } from "./geo.ts";
import { capture, Publisher, type CaptureFault } from "./media.ts";
import type { Alarm, Call, Camera, CameraChoice, Rung } from "./model.ts";
import { t } from "./text.ts";
import { here } from "./worker-position.ts";
import {
  busy,
  call,
  fail,
  keepHelp,
  me,
  miss,
  remember,
  ring,
  say,
  scene,
  session,
  task,
  unansweredHelp,
} from "./worker-state.ts";
import { checkTaken } from "./worker-taken.ts";

export interface InCall {
  leg: string;
  stream: MediaStream | null;
  publisher: Publisher | null;
  fault: CaptureFault | null;
  front: boolean;
}
export const own = signal<InCall | null>(null);
/** The camera whose still the ringing screen shows. */
export const still = signal<CameraChoice | null>(null);

export const myRung = (of: Call): Rung | undefined => of.rung.find((r) => r.worker_id === session.value?.sub);
export function onRing(of: Call): void {
  // The phone rings or says that it waits: without this word the gateway tries by SMS or push after some seconds.
  post(`/api/v1/calls/${seg(of.id)}/received`).catch(() => undefined);
  if (call.value && call.value.state !== "ENDED") {
    miss(of, t("tile.waiting"));
    return;
  }
  if (ring.value?.id === of.id) {
    ring.value = of;
    return;
  }
  ring.value = of;
  scene.value = null;
  still.value = null;
  // Only the claimant may read the alarm; until then the ring itself tells, and a camera that one may see anyway shows.
  if (of.position)
    get<{ cameras: Camera[] }>("/api/v1/cameras").then(
      (all) => {
        if (ring.value?.id === of.id && of.position) still.value = nearest(of.position, all.cameras, 150)[0] ?? null;
      },
      () => undefined,
    );
}
export function stopRing(id: string, why: string): void {
  const of = ring.value;
  if (of?.id !== id) return;
  ring.value = null;
  miss(of, why);
  say(why);
}
export function onCall(of: Call): void {
  if (ring.value?.id === of.id && of.state !== "RINGING") {
    const mine = of.answered_by?.id === session.value?.sub;
    if (!mine && busy.value !== of.id)
      stopRing(of.id, of.answered_by ? t("takenBy", { name: of.answered_by.name }) : t("ringGone"));
  }
  if (call.value?.id !== of.id) return;
  const leg = call.value.leg;
  call.value = { ...of, ...(leg ? { leg } : {}) };
  if (task.value?.call === of.id && of.incident_id) {
    task.value = { ...task.value, incident: of.incident_id };
    remember();
  }
  if (of.state === "ENDED") {
    endCall();
    say(t("callEnded"));
  }
}
export function endCall(): void {
  const mine = own.value;
  own.value = null;
  call.value = null;
  mine?.publisher?.close(true);
  mine?.stream?.getTracks().forEach((track) => track.stop());
}

/** In the call: publishes what `media` gives, and gathers what is known of the place. */
export async function enter(claimed: Call, media: ReturnType<typeof capture>, isTask = true): Promise<void> {
  ring.value = null;
  call.value = claimed;
  if (isTask && task.value?.call !== claimed.id)
    task.value = {
      call: claimed.id,
      incident: claimed.incident_id,
      alarm: claimed.alarm_id,
      label: claimed.place_label,
      arrived: false,
    };
  remember();
  if (claimed.alarm_id)
    get<Alarm>(`/api/v1/alarms/${seg(claimed.alarm_id)}`).then(
      (a) => {
        scene.value = a;
      },
      () => undefined,
    );
  const got = await media;
  const stream = "stream" in got ? got.stream : null;
  if ((call.value as Call | null)?.id !== claimed.id || !claimed.leg) {
    stream?.getTracks().forEach((track) => track.stop());
    return;
  }
  own.value = {
    leg: claimed.leg,
    stream,
    fault: "fault" in got ? got.fault : null,
    front: true,
    publisher: stream && new Publisher(`/api/v1/calls/${seg(claimed.id)}/legs/${seg(claimed.leg)}/whip`, stream),
  };
}
export async function take(of: Call): Promise<void> {
  if (busy.value) return;
  busy.value = of.id;
  const media = capture("user"); // asks for the camera while the claim is under way: the claim decides, not the permission
  try {
    await enter(await post<Call>(`/api/v1/calls/${seg(of.id)}/claim`), media);
  } catch (error) {
    void media.then((got) => {
      if ("stream" in got) got.stream.getTracks().forEach((track) => track.stop());
    });
    if (error instanceof ApiError && error.status === 409) {
      const by = error.problem.taken_by as { name?: string } | string | null | undefined;
      const name = typeof by === "string" ? by : by?.name;
      stopRing(of.id, name ? t("takenBy", { name }) : t("ringGone"));
    } else fail(error);
  } finally {
    busy.value = "";
  }
}
/** The page was opened anew in the middle of a call of one's own: back into it. */
export async function resume(of: Call): Promise<void> {
  if (busy.value) return;
  busy.value = of.id;
  try {
    await enter(await post<Call>(`/api/v1/calls/${seg(of.id)}/join`), capture("user"));
    void checkTaken(); // what it is about may be over, though the call goes on
  } catch (error) {
    fail(error);
  } finally {
    busy.value = "";
  }
}
export async function decline(of: Call): Promise<void> {
  ring.value = null;
  miss(of, t("rung.declined"));
  try {
    await post(`/api/v1/calls/${seg(of.id)}/decline`);
  } catch (error) {
    fail(error);
  }
}
export async function hangUp(): Promise<void> {
  const of = call.value;
  endCall();
  if (of)
    try {
      await post(`/api/v1/calls/${seg(of.id)}/hangup`);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 409)) fail(error);
    }
}
export async function flip(): Promise<void> {
  const mine = own.value;
  if (!mine?.stream || !mine.publisher) return;
  const old = mine.stream.getVideoTracks()[0];
  try {
    old?.stop(); // a phone opens only one of its cameras at a time
    const other = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: mine.front ? "environment" : "user", width: { ideal: 640 }, height: { ideal: 480 } },
    });
    const track = other.getVideoTracks()[0];
    if (!track) return;
    await mine.publisher.replaceVideo(track);
    const next = new MediaStream([...mine.stream.getAudioTracks(), track]);
    own.value = { ...mine, stream: next, front: !mine.front };
  } catch (error) {
    fail(error);
  }
}

const SOS_PATIENCE_MS = 60_000;
const SOS_PAUSE_MS = [1000, 2000, 4000, 8000];
/** So old a call for help is taken up again by itself when the page or the network comes back; an older one by hand only. */
const SOS_FRESH_MS = 10 * 60_000;

/** An alarm of one's own. Tried again until the gateway says that it has it, at most for a minute. */
async function callForHelp(pressed: number): Promise<Call> {
  const id =
    unansweredHelp()?.id ??
    Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const began = Date.now();
  keepHelp({ id, at: pressed }); // before the first try: the phone may lose its battery during it
  for (let tries = 0; ; tries++) {
    try {
      const made = await post<Call>("/api/v1/workers/me/sos", here.value ? { id, position: here.value } : { id });
      keepHelp(null);
      if (me.value) me.value = { ...me.value, duty: "sos" };
      return made;
    } catch (error) {
      const refused = error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429;
      if (refused || Date.now() - began > SOS_PATIENCE_MS) {
        if (refused) keepHelp(null);
        throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, SOS_PAUSE_MS[Math.min(tries, SOS_PAUSE_MS.length - 1)]));
    }
  }
}

/** The call for help that nobody has acknowledged is sent again, under its own name: it is one alarm, and one call. */
export async function resumeHelp(): Promise<void> {
  const help = unansweredHelp();
  if (help && Date.now() - help.at < SOS_FRESH_MS) await sos(help.at);
}

/** A call for help of one's own: the duty says it to everybody, and the command center is rung. */
export async function sos(pressed = Date.now()): Promise<void> {
  if (busy.value || call.value) return;
  busy.value = "sos";
  say(t("sosCalling"));
  const media = capture("user");
  try {
    const made = await callForHelp(pressed);
    if (made.state === "ENDED") throw new Error(t("callEnded")); // it had arrived, and is over by now
    say(t("sosSent"));
    await enter(made, media, false);
  } catch (error) {
    void media.then((got) => {
      if ("stream" in got) got.stream.getTracks().forEach((track) => track.stop());
    });
    fail(error);
  } finally {
    busy.value = "";
  }
}
