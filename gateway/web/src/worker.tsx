/** /worker: duty, position, the ring, the call, the task; one thumb. */
import { effect, signal } from "@preact/signals";
import { render } from "preact";
import { useRef, useState } from "preact/hooks";
import { ApiError, get, openSession, toLogin } from "./api.ts";
import { Channel, type Frame } from "./events.ts";
import type { Alarm, Call, HelperTask, Incident, Session, Worker } from "./model.ts";
import { sounding, unlocked, unlockOnGesture } from "./sound.ts";
import { announceLanguage, clock, language, setLanguage, span, t } from "./text.ts";
import { endCall, myRung, onCall, onRing, resume, resumeHelp, sos, stopRing } from "./worker-call.ts";
import { loadDuties, ManualFix, ReportForm, Task } from "./worker-forms.tsx";
import { loadTasks, onTask, recallTasks, Tasks, tasks } from "./worker-tasks.tsx";
import { fix, locate, pump } from "./worker-position.ts";
import { Calling, Ringing } from "./worker-screens.tsx";
import {
  busy,
  call,
  forgetSession,
  lastSession,
  me,
  missed,
  outbox,
  recall,
  remember,
  rememberSession,
  ring,
  say,
  session,
  setDuty,
  tick,
  toast,
} from "./worker-state.ts";
import { checkTaken, hearAlarm, hearIncident } from "./worker-taken.ts";

const loadError = signal("");
let channel: Channel | null = null;
const secure = window.isSecureContext && Boolean(navigator.mediaDevices as MediaDevices | undefined);

function onFrame(frame: Frame): void {
  if (frame.type === "ring") onRing(frame.data as Call);
  else if (frame.type === "ring_end") {
    const end = frame.data as { call_id: string; reason: string; taken_by?: { name?: string } | string | null };
    const name = typeof end.taken_by === "string" ? end.taken_by : end.taken_by?.name;
    if (busy.value !== end.call_id && call.value?.id !== end.call_id)
      stopRing(
        end.call_id,
        name ? t("takenBy", { name }) : end.reason === "cancelled" ? t("ringCancelled") : t("ringGone"),
      );
  } else if (frame.type === "call") onCall(frame.data as Call);
  else if (frame.type === "task") onTask(frame.data as HelperTask);
  else if (frame.type === "alarm") hearAlarm(frame.data as Alarm);
  else if (frame.type === "incident") hearIncident(frame.data as Incident);
  else if (frame.type === "worker" && (frame.data as Worker).id === session.value?.sub) me.value = frame.data as Worker;
}

async function load(): Promise<void> {
  void outbox.flush();
  try {
    const mine = await get<Worker>("/api/v1/workers/me");
    me.value = mine;
    remember();
    loadError.value = "";
    await loadTasks();
    void checkTaken();
    if (mine.role === "volunteer") return; // takes no calls
    await loadDuties();
    const open = await get<{ calls: Call[] }>("/api/v1/calls?open=1");
    const ringing = open.calls.find((c) => c.state === "RINGING" && myRung(c)?.outcome === "ringing");
    if (ringing) onRing(ringing);
    else if (ring.value) stopRing(ring.value.id, t("ringGone"));
    const mineNow = open.calls.find((c) => c.answered_by?.id === session.value?.sub && c.state !== "RINGING");
    if (mineNow && !call.value) void resume(mineNow);
    else void resumeHelp();
    if (call.value && !open.calls.some((c) => c.id === call.value?.id)) {
      endCall();
      say(t("callEnded"));
    }
  } catch (error) {
    // Without a network the banner says so already, and what was held goes on working.
    const held = error instanceof ApiError && error.status === 0 && me.value !== null;
    loadError.value = held ? "" : error instanceof Error ? error.message : String(error);
    setTimeout(() => void load(), 5000);
  }
}

/** "Add to home screen", when the browser offers it (Chromium's beforeinstallprompt). */
interface InstallPrompt extends Event {
  prompt(): Promise<unknown>;
}
const installable = signal<InstallPrompt | null>(null);
addEventListener("beforeinstallprompt", (event) => {
  event.preventDefault();
  installable.value = event as InstallPrompt;
});
addEventListener("appinstalled", () => {
  installable.value = null;
});

/** What a gridworker on (or off) duty sees: how it stands, the task, the calls that were missed. */
function Duty({ on }: { on: boolean }) {
  const httpsUrl = `https://${location.hostname}${location.port ? `:${location.port}` : ""}/worker`;
  return (
    <>
      {!secure && (
        <div class="box bad" data-insecure="1">
          <h2>⚠ {t("insecureTitle")}</h2>
          <p>{t("insecureWhy")}</p>
          <p>{t("insecureDo")}</p>
          <code>{httpsUrl}</code>
        </div>
      )}
      <div class="box">
        <h2>{on ? t("standby") : t("dutyOff")}</h2>
        <p class="quiet">{on ? t("standbyLead") : t("offHint")}</p>
        {on && (
          <p class={`fix ${fix.value.state}`}>
            {fix.value.state === "ok" ? "● " : fix.value.state === "bad" ? "▲ " : "◌ "}
            {fix.value.text}
            {fix.value.at > 0 && ` · ${t("fixSent", { t: span(tick.value - fix.value.at) })}`}
          </p>
        )}
        {on && fix.value.state !== "ok" && <ManualFix />}
        {!unlocked.value && <p class="fix bad">♪ {t("enableRing")}</p>}
      </div>
      {installable.value && (
        <button
          type="button"
          class="install"
          data-act="install"
          onClick={() => {
            const prompt = installable.value;
            installable.value = null;
            void prompt?.prompt();
          }}
        >
          ⤓ {t("installNow")}
          <small>{t("install")}</small>
        </button>
      )}
      <Tasks empty="" />
      {tasks.value.size === 0 && <Task />}
      <div class="box">
        <h2>{t("missed")}</h2>
        {missed.value.length === 0 ? (
          <p class="quiet">{t("noMissed")}</p>
        ) : (
          <ul class="list">
            {missed.value.slice(0, 4).map((m) => (
              <li key={m.id}>
                <time>{clock(m.at, false)}</time>
                <span>{m.label}</span>
                <em>{m.why}</em>
              </li>
            ))}
          </ul>
        )}
      </div>
    </>
  );
}

/** Held for a second, so that a pocket calls nobody. */
function SosButton() {
  const [held, setHeld] = useState(false);
  const timer = useRef(0);
  const start = (): void => {
    setHeld(true);
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => {
      setHeld(false);
      void sos();
    }, 1000);
  };
  const stop = (): void => {
    clearTimeout(timer.current);
    setHeld(false);
  };
  return (
    <button
      type="button"
      class={`sos${held ? " held" : ""}`}
      data-act="sos"
      disabled={busy.value !== ""}
      onPointerDown={start}
      onPointerUp={stop}
      onPointerLeave={stop}
      onPointerCancel={stop}
      onKeyDown={(e) => {
        if ((e.key === "Enter" || e.key === " ") && !e.repeat) start();
      }}
      onKeyUp={stop}
      onContextMenu={(e) => e.preventDefault()}
    >
      <b>⚠ {t("sos")}</b>
      <small>{t("sosHint")}</small>
    </button>
  );
}

function App() {
  const worker = me.value;
  const on = worker !== null && worker.duty !== "off";
  const volunteer = session.value?.role === "volunteer";
  const [reporting, setReporting] = useState(false);
  const state = call.value ? "call" : ring.value ? "ringing" : on ? "standby" : "off";
  const ch = channel;
  const offline =
    ch !== null && tick.value > 0 && (ch.stale.value || (!ch.connected.value && Date.now() - ch.since.value > 3000));
  return (
    <div class="phone" data-worker-state={state} data-duty={worker?.duty ?? ""} data-fix={fix.value.state}>
      <header class="head">
        <div>
          <h1>{worker?.name ?? session.value?.name ?? ""}</h1>
          <span class="sub">
            {t(volunteer ? "volunteer" : "worker")}
            {worker?.grid_name ? ` · ${worker.grid_name}` : ""}
          </span>
        </div>
        <button
          type="button"
          class="link"
          lang={t("otherLang")}
          onClick={() => setLanguage(language === "zh" ? "en" : "zh")}
        >
          {t("otherLanguage")}
        </button>
        <span class={`conn${offline ? " bad" : ""}`}>
          {offline ? `▲ ${t("reconnecting")}` : ch?.connected.value ? `● ${t("online")}` : t("boot")}
        </span>
      </header>
      {offline && (
        <div class="banner" role="alert">
          ⚠ {t("stale", { s: Math.round((Date.now() - (ch?.since.value ?? 0)) / 1000) })}
        </div>
      )}
      {outbox.size.value > 0 && (
        <p class="waiting" role="status">
          ◌ {t("queuedN", { n: outbox.size.value })}
        </p>
      )}
      {loadError.value && (
        <div class="box bad">
          <p>{t("loadFailed", { why: loadError.value })}</p>
        </div>
      )}
      {volunteer ? (
        <div class="box">
          <h2>{t("volunteer")}</h2>
          <Tasks empty={t("volunteerNone")} />
          <p class="quiet">{t("volunteerLead")}</p>
        </div>
      ) : (
        <Duty on={on} />
      )}
      {!volunteer && (
        <div class="thumb">
          <div class="pair">
            <SosButton />
            <button type="button" class="reportbutton" data-act="open-report" onClick={() => setReporting(true)}>
              ✎ {t("reportEvent")}
            </button>
          </div>
          <button
            type="button"
            class="duty"
            role="switch"
            aria-checked={on}
            disabled={!worker}
            data-act="duty"
            onClick={() => void setDuty(worker?.duty === "sos" ? "on" : on ? "off" : "on")}
          >
            <span>
              <b>{worker?.duty === "sos" ? `⚠ ${t("duty.sos")}` : on ? t("dutyOn") : t("dutyOff")}</b>
              <small>{on ? t("goOff") : t("goOn")}</small>
            </span>
            <i class="knob" aria-hidden="true" />
          </button>
        </div>
      )}
      {reporting && !ring.value && !call.value && <ReportForm onDone={() => setReporting(false)} />}
      {ring.value && !call.value && <Ringing of={ring.value} />}
      {call.value && <Calling of={call.value} />}
      {toast.value && tick.value - toast.value.at < 4000 && (
        <div class="toast" role="status">
          {toast.value.text}
        </div>
      )}
    </div>
  );
}

async function start(): Promise<void> {
  const root = document.getElementById("app");
  if (!root) return;
  let who: Session | null = null;
  try {
    who = await openSession();
    if (who) rememberSession(who);
    else forgetSession(); // on the way to the log-in
  } catch (error) {
    who = error instanceof ApiError && error.status === 0 ? lastSession() : null;
    if (!who) {
      root.textContent = "";
      render(
        <div class="boot">
          <p>{t("loadFailed", { why: error instanceof Error ? error.message : String(error) })}</p>
          <button type="button" class="primary" onClick={() => location.reload()}>
            {t("retry")}
          </button>
        </div>,
        root,
      );
    }
  }
  if (!who) return;
  session.value = who;
  announceLanguage("worker");
  if ("serviceWorker" in navigator)
    navigator.serviceWorker.register("/sw.js", { scope: "/worker" }).catch(() => undefined); // no HTTPS: no shell, no harm
  recall();
  recallTasks();
  unlockOnGesture();
  setInterval(() => {
    tick.value = Date.now();
    pump(25000);
  }, 1000);
  setInterval(() => void outbox.flush(), 5000);
  addEventListener("online", () => void outbox.flush());
  effect(() => sounding(ring.value !== null && call.value === null && busy.value === "", "ring"));
  effect(() => locate(me.value !== null && me.value.duty !== "off"));
  channel = new Channel(
    onFrame,
    () => void load(),
    () => {
      forgetSession();
      toLogin("revoked");
    },
  );
  root.textContent = "";
  render(<App />, root);
  await load();
}
void start();
