/** /worker: duty, position, the ring, the call, the task; one thumb. */
import { effect, signal } from "@preact/signals";
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, openSession, pageQuery, post, seg, toLogin } from "./api.ts";
import { Channel, serverNow, type Frame } from "./events.ts";
import { capture, Player, Publisher, type CaptureFault } from "./media.ts";
import type { Alarm, Call, CameraChoice, Duty, Leg, Rung, Session, Worker } from "./model.ts";
import { sounding, unlocked, unlockOnGesture } from "./sound.ts";
import { clock, distance, span, t, tv } from "./text.ts";
import { Watermark } from "./watermark.tsx";

interface Missed { id: string; at: number; label: string; why: string }
interface InCall { leg: string; stream: MediaStream | null; publisher: Publisher | null; fault: CaptureFault | null; front: boolean }
interface Fix { state: "ok" | "wait" | "bad"; text: string; at: number }

const session = signal<Session | null>(null);
const me = signal<Worker | null>(null);
const ring = signal<Call | null>(null);
const call = signal<Call | null>(null);
const own = signal<InCall | null>(null);
const busy = signal("");
const toast = signal<{ text: string; at: number } | null>(null);
const missed = signal<Missed[]>([]);
/** The incident taken last, until it is reported done. */
const task = signal<{ call: string; incident: string | null; alarm: string | null; label: string; arrived: boolean } | null>(null);
const scene = signal<Alarm | null>(null);
const fix = signal<Fix>({ state: "wait", text: t("fixWait"), at: 0 });
const tick = signal(Date.now());
const loadError = signal("");
let channel: Channel | null = null;

const secure = window.isSecureContext && Boolean(navigator.mediaDevices as MediaDevices | undefined);
const say = (text: string): void => { toast.value = { text, at: Date.now() }; };
const fail = (error: unknown): void => say(error instanceof Error ? error.message : String(error));
const kept = (): string => `worker/${session.value?.sub ?? ""}`;

function remember(): void {
  localStorage.setItem(kept(), JSON.stringify({ missed: missed.value, task: task.value }));
}
function miss(of: Call, why: string): void {
  missed.value = [{ id: of.id, at: of.opened_at, label: of.place_label, why }, ...missed.value.filter((m) => m.id !== of.id)].slice(0, 20);
  remember();
}

// ---- position ----
let sequence = Math.floor(Date.now() / 1000);
let lastSent = 0;
async function sendFix(lat: number, lon: number, datum: "wgs84" | "gcj02", acc: number, spd: number | null, at: number): Promise<void> {
  await post("/api/v1/workers/me/location", { lat, lon, datum, acc: Math.min(100000, Math.max(0, acc)), spd: Math.min(100, Math.max(0, spd ?? 0)), fix: Math.round(at), seq: ++sequence });
  lastSent = Date.now();
  fix.value = { state: "ok", text: t("fixOk", { n: Math.round(acc) }), at: Date.now() };
}
let watch: number | null = null;
let latest: GeolocationPosition | null = null;
/** Browsers give WGS-84 (W3C Geolocation section 5.3). Sent at most every 10 s, and at least every 25 s while on duty. */
function locate(on: boolean): void {
  if (!on) { if (watch !== null) navigator.geolocation.clearWatch(watch); watch = null; return; }
  if (watch !== null) return;
  if (!window.isSecureContext || !("geolocation" in navigator)) { fix.value = { state: "bad", text: t("fixInsecure"), at: 0 }; return; }
  fix.value = { state: "wait", text: t("fixWait"), at: 0 };
  watch = navigator.geolocation.watchPosition((position) => { latest = position; pump(10000); }, (error) => {
    fix.value = { state: "bad", text: error.code === error.PERMISSION_DENIED ? t("fixDenied") : t("fixFail"), at: 0 };
  }, { enableHighAccuracy: true, maximumAge: 5000, timeout: 20000 });
}
function pump(everyMs: number): void {
  if (!latest || Date.now() - lastSent < everyMs || me.value?.duty === "off") return;
  lastSent = Date.now();
  const { latitude, longitude, accuracy, speed } = latest.coords;
  sendFix(latitude, longitude, "wgs84", accuracy, speed, latest.timestamp).catch(() => { lastSent = Date.now() - everyMs + 3000; });
}

async function setDuty(duty: Duty): Promise<void> {
  try {
    const answer = await post<Partial<Worker> | undefined>("/api/v1/workers/me/duty", { duty });
    if (me.value) me.value = { ...me.value, ...answer, duty: answer?.duty ?? duty };
  } catch (error) { fail(error); }
}

// ---- ring and call ----
const myRung = (of: Call): Rung | undefined => of.rung.find((r) => r.worker_id === session.value?.sub);
function onRing(of: Call): void {
  if (call.value && call.value.state !== "ENDED") { miss(of, t("tile.waiting")); return; }
  if (ring.value?.id === of.id) { ring.value = of; return; }
  ring.value = of;
  scene.value = null;
  if (of.alarm_id) get<Alarm>(`/api/v1/alarms/${seg(of.alarm_id)}`).then((a) => { if ((ring.value ?? call.value)?.alarm_id === a.id) scene.value = a; }, () => undefined);
}
function stopRing(id: string, why: string): void {
  const of = ring.value;
  if (of?.id !== id) return;
  ring.value = null;
  miss(of, why);
  say(why);
}
function onCall(of: Call): void {
  if (ring.value?.id === of.id && of.state !== "RINGING") {
    const mine = of.answered_by?.id === session.value?.sub;
    if (!mine && busy.value !== of.id) stopRing(of.id, of.answered_by ? t("takenBy", { name: of.answered_by.name }) : t("ringGone"));
  }
  if (call.value?.id !== of.id) return;
  const leg = call.value.leg;
  call.value = { ...of, ...(leg ? { leg } : {}) };
  if (task.value?.call === of.id && of.incident_id) { task.value = { ...task.value, incident: of.incident_id }; remember(); }
  if (of.state === "ENDED") { endCall(); say(t("callEnded")); }
}
function endCall(): void {
  const mine = own.value;
  own.value = null;
  call.value = null;
  mine?.publisher?.close();
  mine?.stream?.getTracks().forEach((track) => track.stop());
}

/** In the call: publishes what `media` gives, and gathers what is known of the place. */
async function enter(claimed: Call, media: ReturnType<typeof capture>): Promise<void> {
  ring.value = null;
  call.value = claimed;
  if (task.value?.call !== claimed.id) task.value = { call: claimed.id, incident: claimed.incident_id, alarm: claimed.alarm_id, label: claimed.place_label, arrived: false };
  remember();
  if (claimed.alarm_id) get<Alarm>(`/api/v1/alarms/${seg(claimed.alarm_id)}`).then((a) => { scene.value = a; }, () => undefined);
  const got = await media;
  const stream = "stream" in got ? got.stream : null;
  if ((call.value as Call | null)?.id !== claimed.id || !claimed.leg) { stream?.getTracks().forEach((track) => track.stop()); return; }
  own.value = {
    leg: claimed.leg, stream, fault: "fault" in got ? got.fault : null, front: true,
    publisher: stream && new Publisher(`/api/v1/calls/${seg(claimed.id)}/legs/${seg(claimed.leg)}/whip`, stream),
  };
}
async function take(of: Call): Promise<void> {
  if (busy.value) return;
  busy.value = of.id;
  const media = capture("user"); // asks for the camera while the claim is under way: the claim decides, not the permission
  try {
    await enter(await post<Call>(`/api/v1/calls/${seg(of.id)}/claim`), media);
  } catch (error) {
    void media.then((got) => { if ("stream" in got) got.stream.getTracks().forEach((track) => track.stop()); });
    if (error instanceof ApiError && error.status === 409) {
      const by = error.problem.taken_by as { name?: string } | string | null | undefined;
      const name = typeof by === "string" ? by : by?.name;
      stopRing(of.id, name ? t("takenBy", { name }) : t("ringGone"));
    } else fail(error);
  } finally { busy.value = ""; }
}
/** The page was opened anew in the middle of a call of one's own: back into it. */
async function resume(of: Call): Promise<void> {
  if (busy.value) return;
  busy.value = of.id;
  try { await enter(await post<Call>(`/api/v1/calls/${seg(of.id)}/join`), capture("user")); } catch (error) { fail(error); } finally { busy.value = ""; }
}
async function decline(of: Call): Promise<void> {
  ring.value = null;
  miss(of, t("rung.declined"));
  try { await post(`/api/v1/calls/${seg(of.id)}/decline`); } catch (error) { fail(error); }
}
async function hangUp(): Promise<void> {
  const of = call.value;
  endCall();
  if (of) try { await post(`/api/v1/calls/${seg(of.id)}/hangup`); } catch (error) { if (!(error instanceof ApiError && error.status === 409)) fail(error); }
}
async function flip(): Promise<void> {
  const mine = own.value;
  if (!mine?.stream || !mine.publisher) return;
  const old = mine.stream.getVideoTracks()[0];
  try {
    old?.stop(); // a phone opens only one of its cameras at a time
    const other = await navigator.mediaDevices.getUserMedia({ video: { facingMode: mine.front ? "environment" : "user", width: { ideal: 640 }, height: { ideal: 480 } } });
    const track = other.getVideoTracks()[0];
    if (!track) return;
    await mine.publisher.replaceVideo(track);
    const next = new MediaStream([...mine.stream.getAudioTracks(), track]);
    own.value = { ...mine, stream: next, front: !mine.front };
  } catch (error) { fail(error); }
}
async function report(what: "handle" | "submit", note: string): Promise<void> {
  const of = task.value;
  if (!of) return;
  try {
    if (!of.incident && of.alarm) { const alarm = await get<Alarm>(`/api/v1/alarms/${seg(of.alarm)}`); of.incident = alarm.incident_id; }
    if (of.incident) await post(`/api/v1/incidents/${seg(of.incident)}/${what}`, note ? { note } : {});
    else throw new ApiError(0, t("notYet"), {}, null);
    task.value = what === "submit" ? null : { ...of, arrived: true };
    remember();
    say(what === "submit" ? t("finishedDone") : t("onSceneDone"));
  } catch (error) { fail(error); }
}

function onFrame(frame: Frame): void {
  if (frame.type === "ring") onRing(frame.data as Call);
  else if (frame.type === "ring_end") {
    const end = frame.data as { call_id: string; reason: string; taken_by?: { name?: string } | string | null };
    const name = typeof end.taken_by === "string" ? end.taken_by : end.taken_by?.name;
    if (busy.value !== end.call_id && call.value?.id !== end.call_id) stopRing(end.call_id, name ? t("takenBy", { name }) : end.reason === "cancelled" ? t("ringCancelled") : t("ringGone"));
  } else if (frame.type === "call") onCall(frame.data as Call);
  else if (frame.type === "worker" && (frame.data as Worker).id === session.value?.sub) me.value = frame.data as Worker;
}

async function load(): Promise<void> {
  try {
    const [mine, open] = await Promise.all([get<Worker>("/api/v1/workers/me"), get<{ calls: Call[] }>("/api/v1/calls?open=1")]);
    me.value = mine;
    loadError.value = "";
    const ringing = open.calls.find((c) => c.state === "RINGING" && myRung(c)?.outcome === "ringing");
    if (ringing) onRing(ringing);
    else if (ring.value) stopRing(ring.value.id, t("ringGone"));
    const mineNow = open.calls.find((c) => c.answered_by?.id === session.value?.sub && c.state !== "RINGING");
    if (mineNow && !call.value) void resume(mineNow);
    if (call.value && !open.calls.some((c) => c.id === call.value?.id)) { endCall(); say(t("callEnded")); }
  } catch (error) { loadError.value = error instanceof Error ? error.message : String(error); setTimeout(() => void load(), 5000); }
}

// ---- screens ----
function Still({ cameras }: { cameras: CameraChoice[] | undefined }) {
  const [bad, setBad] = useState(false);
  const best = cameras?.[0];
  useEffect(() => setBad(false), [best?.id]);
  return <div class="still">{best && !bad ? <><img alt={best.name} src={`/api/v1/cameras/${seg(best.id)}/snapshot.jpg${pageQuery("?")}`} onError={() => setBad(true)} /><Watermark who={session.value?.name || session.value?.sub || ""} /></> : <p class="quiet">{t("noStill")}</p>}</div>;
}
function Ringing({ of }: { of: Call }) {
  const rung = myRung(of);
  return (
    <section class="ringing" role="alertdialog" aria-label={t("incoming")} data-ring={of.id}>
      <Still cameras={scene.value?.cameras} />
      <div class="text">
        <h1>⚠ {scene.value ? tv("kind", scene.value.kind) : t("ringing")}{scene.value?.silent && <em class="tag">⊘ {t("silent")}</em>}</h1>
        <p class="where">{of.place_label}</p>
        {rung?.distance_m !== null && rung !== undefined && <p class="far">➤ {t("ringFrom", { d: distance(rung.distance_m) })}</p>}
        <p class="reason">{rung?.reason}</p>
      </div>
      <div class="buttons">
        <button type="button" class="take" data-act="claim" disabled={busy.value !== ""} onClick={() => void take(of)}>{busy.value ? t("taking") : t("take")}</button>
        <button type="button" class="decline" onClick={() => void decline(of)}>{t("decline")}</button>
      </div>
    </section>
  );
}
function Remote({ id, leg }: { id: string; leg: Leg }) {
  const video = useRef<HTMLVideoElement>(null);
  const [player, setPlayer] = useState<Player | null>(null);
  useEffect(() => { if (!video.current) return; const made = new Player(`/api/v1/calls/${seg(id)}/legs/${seg(leg.id)}/whep`, video.current, true); setPlayer(made); return () => made.close(); }, [id, leg.id]);
  const state = player?.state.value ?? "connecting";
  return (
    <div class={`remote s-${state}`} data-leg={leg.id} data-remote-frames={player?.frames.value ?? 0} data-remote-audio={player?.audioBytes.value ?? 0} data-remote-state={state}>
      <video ref={video} autoplay playsInline /><Watermark who={session.value?.name || session.value?.sub || ""} />
      {state !== "live" && <p class="note"><b>{state === "connecting" ? t("remoteWaiting") : tv("tile", state)}</b><span>{player?.reason.value}</span></p>}
      {state === "live" && player?.hasVideo.value === false && <p class="note"><b>{t("audioOnly")}</b></p>}
      <span class="name">{leg.name}</span>
    </div>
  );
}
function Local({ stream, front }: { stream: MediaStream; front: boolean }) {
  const video = useRef<HTMLVideoElement>(null);
  useEffect(() => { if (video.current) { video.current.srcObject = stream; void video.current.play().catch(() => undefined); } }, [stream]);
  return <div class={`local${front ? " front" : ""}`}><video ref={video} muted autoplay playsInline /></div>;
}
function SceneCamera({ choice }: { choice: CameraChoice }) {
  const video = useRef<HTMLVideoElement>(null);
  const [player, setPlayer] = useState<Player | null>(null);
  useEffect(() => { if (!video.current) return; const made = new Player(`/whep/${seg(choice.id)}?stream=sub`, video.current, false); setPlayer(made); return () => made.close(); }, [choice.id]);
  return <figure data-camera={choice.id} data-state={player?.state.value ?? ""} data-frames={player?.frames.value ?? 0}><video ref={video} muted autoplay playsInline /><Watermark who={session.value?.name || ""} /><figcaption>{player?.state.value === "live" ? "● " : ""}{choice.name}{player && player.state.value !== "live" ? ` · ${tv("tile", player.state.value)}` : ""}</figcaption></figure>;
}
function Calling({ of }: { of: Call }) {
  const [muted, setMuted] = useState(false);
  const mine = own.value;
  const others = of.legs.filter((leg) => leg.publishing && leg.left_at === null && leg.id !== (mine?.leg ?? of.leg));
  return (
    <section class={`calling c-${of.state}`} data-call={of.id} data-state={of.state} data-publish={mine?.publisher?.state.value ?? "none"}>
      <header><span>☎ {of.place_label}</span>{of.recording && <em class="rec">● {t("recording")}</em>}<em>{tv("call", of.state)}</em></header>
      {mine?.fault && <p class="warn pad">⚠ {t(mine.fault)}</p>}
      {mine?.publisher && mine.publisher.state.value !== "live" && mine.publisher.reason.value && <p class="warn pad">{t("publishFailed", { why: mine.publisher.reason.value })}</p>}
      <div class="videos">
        {others.length === 0 && <div class="remote"><p class="note"><b>{t("waitDesk")}</b>{mine?.publisher?.state.value === "live" && <span>✓ {t("publishing")}</span>}</p></div>}
        {others.map((leg) => <Remote key={leg.id} id={of.id} leg={leg} />)}
        {mine?.stream && <Local stream={mine.stream} front={mine.front} />}
      </div>
      {scene.value?.cameras && scene.value.cameras.length > 0 && <div class="strip" aria-label={t("sceneCameras")}>{scene.value.cameras.slice(0, 4).map((c) => <SceneCamera key={c.id} choice={c} />)}</div>}
      <div class="controls">
        <button type="button" aria-pressed={muted} disabled={!mine?.stream} onClick={() => { setMuted(!muted); mine?.stream?.getAudioTracks().forEach((track) => { track.enabled = muted; }); }}>{muted ? t("unmute") : t("mute")}</button>
        <button type="button" disabled={!mine?.stream?.getVideoTracks().length} onClick={() => void flip()}>{t("flip")}</button>
        <button type="button" class="danger" data-act="hangup" onClick={() => void hangUp()}>{t("hangup")}</button>
      </div>
    </section>
  );
}
function ManualFix() {
  const [open, setOpen] = useState(false);
  const [lat, setLat] = useState("");
  const [lon, setLon] = useState("");
  const [datum, setDatum] = useState<"wgs84" | "gcj02">("gcj02");
  if (!open) return <button type="button" class="link" onClick={() => setOpen(true)}>{t("manualFix")}</button>;
  const submit = (event: Event): void => {
    event.preventDefault();
    const y = Number(lat), x = Number(lon);
    if (!lat || !lon || !(Math.abs(y) <= 90 && Math.abs(x) <= 180)) { say(t("badFix")); return; }
    sendFix(y, x, datum, 50, null, serverNow()).then(() => setOpen(false), fail);
  };
  return (
    <form class="manual" onSubmit={submit}>
      <label>{t("lat")}<input inputMode="decimal" value={lat} placeholder="30.81" onInput={(e) => setLat(e.currentTarget.value)} /></label>
      <label>{t("lon")}<input inputMode="decimal" value={lon} placeholder="103.89" onInput={(e) => setLon(e.currentTarget.value)} /></label>
      <label class="span">{t("datum")}<select value={datum} onChange={(e) => setDatum(e.currentTarget.value as "wgs84" | "gcj02")}><option value="gcj02">{t("datum.gcj02")}</option><option value="wgs84">{t("datum.wgs84")}</option></select></label>
      <button type="submit" class="span primary">{t("sendFix")}</button>
    </form>
  );
}
function Task() {
  const of = task.value;
  const [note, setNote] = useState("");
  return (
    <div class="box"><h2>{t("myTask")}</h2>{of ? <>
      <b>{of.label}</b>
      <div class="task">
        {of.arrived && <input placeholder={t("feedback")} maxLength={200} value={note} onInput={(e) => setNote(e.currentTarget.value)} />}
        <button type="button" class="go" data-act="on_scene" disabled={of.arrived} onClick={() => void report("handle", "")}>{of.arrived ? `✓ ${t("onScene")}` : t("onScene")}</button>
        <button type="button" class="end" data-act="done" disabled={!of.arrived} onClick={() => void report("submit", note.trim())}>{t("finished")}</button>
      </div></> : <p class="quiet">{t("noTask")}</p>}
    </div>
  );
}
function App() {
  const worker = me.value;
  const on = worker !== null && worker.duty !== "off";
  const state = call.value ? "call" : ring.value ? "ringing" : on ? "standby" : "off";
  const ch = channel;
  const offline = ch !== null && tick.value > 0 && (ch.stale.value || (!ch.connected.value && Date.now() - ch.since.value > 3000));
  const httpsUrl = `https://${location.hostname}${location.port ? `:${location.port}` : ""}/worker`;
  return (
    <div class="phone" data-worker-state={state} data-duty={worker?.duty ?? ""} data-fix={fix.value.state}>
      <header class="head"><div><h1>{worker?.name ?? session.value?.name ?? ""}</h1><span class="sub">{t("worker")}{worker?.grid ? ` · ${t("grid")} ${worker.grid}` : ""}</span></div><span class={`conn${offline ? " bad" : ""}`}>{offline ? `▲ ${t("reconnecting")}` : ch?.connected.value ? `● ${t("online")}` : t("boot")}</span></header>
      {offline && <div class="banner" role="alert">⚠ {t("stale", { s: Math.round((Date.now() - (ch?.since.value ?? 0)) / 1000) })}</div>}
      {loadError.value && <div class="box bad"><p>{t("loadFailed", { why: loadError.value })}</p></div>}
      {!secure && <div class="box bad" data-insecure="1"><h2>⚠ {t("insecureTitle")}</h2><p>{t("insecureWhy")}</p><p>{t("insecureDo")}</p><code>{httpsUrl}</code></div>}
      <div class="box"><h2>{on ? t("standby") : t("dutyOff")}</h2><p class="quiet">{on ? t("standbyLead") : t("offHint")}</p>
        {on && <p class={`fix ${fix.value.state}`}>{fix.value.state === "ok" ? "● " : fix.value.state === "bad" ? "▲ " : "◌ "}{fix.value.text}{fix.value.at > 0 && ` · ${t("fixSent", { t: span(tick.value - fix.value.at) })}`}</p>}
        {on && fix.value.state !== "ok" && <ManualFix />}
        {!unlocked.value && <p class="fix bad">♪ {t("enableRing")}</p>}
      </div>
      <Task />
      <div class="box"><h2>{t("missed")}</h2>{missed.value.length === 0 ? <p class="quiet">{t("noMissed")}</p> : <ul class="list">{missed.value.slice(0, 4).map((m) => <li key={m.id}><time>{clock(m.at, false)}</time><span>{m.label}</span><em>{m.why}</em></li>)}</ul>}</div>
      <div class="thumb"><button type="button" class="duty" role="switch" aria-checked={on} disabled={!worker} data-act="duty" onClick={() => void setDuty(on ? "off" : "on")}><span><b>{on ? t("dutyOn") : t("dutyOff")}</b><small>{on ? t("goOff") : t("goOn")}</small></span><i class="knob" aria-hidden="true" /></button></div>
      {ring.value && !call.value && <Ringing of={ring.value} />}
      {call.value && <Calling of={call.value} />}
      {toast.value && tick.value - toast.value.at < 4000 && <div class="toast" role="status">{toast.value.text}</div>}
    </div>
  );
}

async function start(): Promise<void> {
  const root = document.getElementById("app");
  if (!root) return;
  let who: Session | null = null;
  try { who = await openSession(); } catch (error) {
    root.textContent = "";
    render(<div class="boot"><p>{t("loadFailed", { why: error instanceof Error ? error.message : String(error) })}</p><button type="button" class="primary" onClick={() => location.reload()}>{t("retry")}</button></div>, root);
    return;
  }
  if (!who) return;
  session.value = who;
  try { const old = JSON.parse(localStorage.getItem(kept()) ?? "{}") as { missed?: Missed[]; task?: typeof task.value }; missed.value = old.missed ?? []; task.value = old.task ?? null; } catch { /* unreadable: start anew */ }
  unlockOnGesture();
  setInterval(() => { tick.value = Date.now(); pump(25000); }, 1000);
  effect(() => sounding(ring.value !== null && call.value === null && busy.value === "", "ring"));
  effect(() => locate(me.value !== null && me.value.duty !== "off"));
  channel = new Channel(onFrame, () => void load(), () => toLogin("revoked"));
  root.textContent = "";
  render(<App />, root);
  await load();
}
void start();
