/** /wall and /desk: one application; the server limits what each may see, the desk's layout is narrower. */
import { effect } from "@preact/signals";
import { render, type ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import {
  AlarmList,
  dispatchIncident,
  markFalse,
  mergeInto,
  mergeTargets,
  merging,
  police,
  select,
  severity,
  unhandled,
} from "./alarms.tsx";
import { AlarmDetail } from "./alarm-detail.tsx";
import { ArrivalBar, onNewAlarm, tab, watchTouches } from "./arrival-bar.tsx";
import { api, openSession } from "./api.ts";
import { callAbout, CallPanel, hangUp, inCall, inboundCalls, joinCall, ringingCall } from "./callpanel.tsx";
import {
  applyIncident,
  draft,
  drawing,
  incident,
  incidentId,
  loadIncidents,
  openIncident,
  openIncidents,
} from "./incident-state.ts";
import { DraftForm, IncidentDetail, incidentKey, IncidentList, listing } from "./incidents.tsx";
import type { Incident } from "./model.ts";
import {
  acknowledge,
  areaName,
  channel,
  decides,
  district,
  loadAll,
  loadError,
  loaded,
  needsSound,
  notice,
  onArrival,
  onCase,
  onLoaded,
  queue,
  selected,
  selectedId,
  session,
  startState,
  tick,
  view,
} from "./state.ts";
import { sounding, unlock, unlocked, unlockOnGesture } from "./sound.ts";
import { announceLanguage, clock, language, setLanguage, t } from "./text.ts";
import {
  current,
  dragging,
  focused,
  layout,
  linked,
  onPage,
  startTiles,
  TileBar,
  Tiles,
  turn,
  unlink,
} from "./tiles.tsx";
import { searchText, Tree } from "./tree.tsx";

const pageName = document.body.dataset.page === "desk" ? ("desk" as const) : ("wall" as const);

/** A part that is fetched when it is wanted. */
function Lazy({ load, failed, cls }: { load: () => Promise<{ default: ComponentType }>; failed: string; cls: string }) {
  const [Inner, setInner] = useState<ComponentType | null>(null);
  const [bad, setBad] = useState(false);
  useEffect(() => {
    load().then(
      (m) => setInner(() => m.default),
      () => setBad(true),
    );
  }, []);
  return Inner ? (
    <Inner />
  ) : (
    <section class={cls}>
      <p class="tile-note quiet">{bad ? failed : t("boot")}</p>
    </section>
  );
}
const Map = () => <Lazy cls="map" failed={t("mapFailed")} load={() => import("./map.tsx")} />;
const Statistics = () => <Lazy cls="sheetpage" failed={t("netDown")} load={() => import("./statistics.tsx")} />;
const HealthPage = () => <Lazy cls="sheetpage" failed={t("netDown")} load={() => import("./health.tsx")} />;

/** In the middle: pictures, figures or the cameras' health; the queue and the map stay where they are. */
function show(what: typeof view.value): void {
  view.value = what;
  tab.value = "tiles";
}

function Banner() {
  const ch = channel;
  const text =
    ch?.stale.value || (ch && !ch.connected.value && tick.value && Date.now() - ch.since.value > 3000)
      ? t("stale", { s: Math.max(0, Math.round((Date.now() - (ch?.since.value ?? 0)) / 1000)) })
      : (ch?.lagMs.value ?? 0) > 1000
        ? t("lag")
        : "";
  return text ? (
    <div class="banner" role="alert" data-stale="1">
      ⚠ {text}
    </div>
  ) : null;
}

function Notice() {
  const n = notice.value;
  return n && tick.value && Date.now() - n.at < 5000 ? (
    <div class={`notice${n.bad ? " bad" : ""}`} role="status">
      {n.bad ? "⚠ " : "✓ "}
      {n.text}
    </div>
  ) : null;
}

function Top() {
  const who = session.value;
  return (
    <header class="top">
      <svg class="logo" viewBox="0 0 48 48" aria-hidden="true">
        <path d="M24 4 40 10v13c0 10-7 17-16 21C15 40 8 33 8 23V10z" />
        <circle cx="24" cy="22" r="7" />
        <circle class="dot" cx="24" cy="22" r="2.6" />
      </svg>
      <h1>
        {district.value?.name ?? ""}
        {language === "en" ? ` ${t(pageName)}` : t(pageName)}
      </h1>
      <span class="area">{who?.area ? areaName(who.area) : t("district")}</span>
      <span class="grow" />
      {(["statistics", "health"] as const).map((name) => (
        <button
          type="button"
          key={name}
          class="page"
          data-view={name}
          aria-label={t(name)}
          title={t(name)}
          aria-pressed={view.value === name}
          onClick={() => show(view.value === name ? "tiles" : name)}
        >
          <i aria-hidden="true">{{ statistics: "▥", health: "♥" }[name]}</i>
          <span>{t(name)}</span>
        </button>
      ))}
      <span class={`conn ${channel?.connected.value && !channel.stale.value ? "ok" : "bad"}`}>
        <i aria-hidden="true">{channel?.connected.value ? "●" : "▲"}</i>
        {channel?.connected.value && !channel.stale.value ? t("online") : t("reconnecting")}
      </span>
      <button
        type="button"
        class={`sound${unlocked.value ? "" : " off"}`}
        aria-label={t(unlocked.value ? "soundOn" : "soundOff")}
        onClick={() => void unlock()}
      >
        {unlocked.value ? "♪ " : "⚠ "}
        <span>{t(unlocked.value ? "soundOn" : "soundOff")}</span>
      </button>
      <time class="clock">{clock(tick.value)}</time>
      <span class="who">{who?.name || who?.sub}</span>
      <button
        type="button"
        class="link"
        onClick={() => setLanguage(language === "zh" ? "en" : "zh")}
        lang={t("otherLang")}
      >
        {t("otherLanguage")}
      </button>
      <button
        type="button"
        class="link"
        onClick={() =>
          void api("DELETE", "/api/v1/session")
            .catch(() => undefined)
            .then(() => location.replace("/login"))
        }
      >
        {t("logout")}
      </button>
    </header>
  );
}

/** The queue of alarms and the list of incidents share a place. */
function Lists() {
  const hot = queue.value.some(unhandled);
  return (
    <section class="queue" aria-label={listing.value === "alarms" ? t("queue") : t("incidents")}>
      <div class="lists" role="tablist">
        {(["alarms", "incidents"] as const).map((name) => (
          <button
            type="button"
            role="tab"
            key={name}
            aria-selected={listing.value === name}
            data-list={name}
            onClick={() => {
              listing.value = name;
            }}
          >
            {t(name === "alarms" ? "queue" : "incidents")}
            <b class={name === "alarms" && hot ? "hot" : ""}>
              {name === "alarms" ? queue.value.length : openIncidents.value.length}
            </b>
          </button>
        ))}
      </div>
      {listing.value === "alarms" ? <AlarmList /> : <IncidentList />}
    </section>
  );
}

function onKey(event: KeyboardEvent): void {
  const element = event.target as HTMLElement;
  const typing = element.closest("input, textarea, select") !== null;
  if (event.key === "Escape") {
    if (typing) {
      element.blur();
      searchText.value = "";
    } else if (drawing.value) drawing.value = false;
    else if (draft.value) draft.value = null;
    else if (merging.value) merging.value = false;
    else if (view.value !== "tiles") view.value = "tiles";
    else if (focused.value !== null) focused.value = null;
    else if (linked.value.size > 0) unlink();
    else if (incidentId.value !== null) incidentId.value = null;
    else selectedId.value = null;
    return;
  }
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  const alarm = incident.value ? null : selected.value;
  const key = event.key.toLowerCase();
  const act = (work: () => void): void => {
    event.preventDefault();
    work();
  };
  if (key === "/")
    return act(() => {
      tab.value = "tiles";
      document.getElementById("search")?.focus();
    });
  if (key === "enter" && !element.closest("button, a"))
    return act(() => {
      focused.value = focused.value === current.value || onPage.value[current.value] === null ? null : current.value;
    });
  if (key === "pagedown") return act(() => turn(1));
  if (key === "pageup") return act(() => turn(-1));
  const side = Math.sqrt(layout.value);
  const move = { arrowleft: -1, arrowright: 1, arrowup: -side, arrowdown: side }[key];
  if (move !== undefined && !element.closest(".canvas, .scroll"))
    return act(() => {
      const next = current.value + move;
      if (next >= 0 && next < layout.value) {
        current.value = next;
        document.querySelector<HTMLElement>(`[data-tile="${next}"]`)?.focus();
      }
    });
  if (key === " ")
    return act(() => {
      const wanted = alarm && unhandled(alarm) ? alarm : queue.value.find(unhandled);
      if (wanted) {
        void acknowledge(wanted);
        if (wanted.id !== alarm?.id) void select(wanted, true);
      }
    });
  if (key === "s" || key === "h")
    return act(() => {
      const what = key === "s" ? "statistics" : "health";
      show(view.value === what ? "tiles" : what);
    });
  if (key === "l")
    return act(() => {
      listing.value = listing.value === "alarms" ? "incidents" : "alarms";
    });
  if (key === "x" && inCall.value) return act(() => void hangUp());
  if (key === "j" || key === "k")
    return act(() => {
      const rows = [...document.querySelectorAll<HTMLElement>(".queue [data-alarm], .queue [data-incident]")];
      const at = rows.findIndex((row) => row.getAttribute("aria-current") === "true");
      const next = rows[at < 0 ? 0 : at + (key === "j" ? 1 : -1)];
      next?.scrollIntoView({ block: "nearest" });
      next?.click();
    });
  if (decides.value && (key === "+" || key === "e"))
    return act(() => {
      drawing.value = !drawing.value;
      tab.value = "map";
    });
  if (incident.value) {
    if (incidentKey(key)) event.preventDefault();
    return;
  }
  if (!alarm) {
    const ringing = key === "c" ? ringingCall() : undefined;
    if (ringing) act(() => void joinCall(ringing));
    return;
  }
  if (key === "i" && alarm.incident_id) return act(() => void openIncident(alarm.incident_id ?? ""));
  if (/^[1-9]$/.test(key) && merging.value) {
    const into = mergeTargets(alarm)[Number(key) - 1];
    if (into) act(() => void mergeInto(alarm, into));
    return;
  }
  if (/^[1-4]$/.test(key))
    return act(() => {
      severity.value = Number(key);
    });
  if (key === "c") return act(() => void callAbout(alarm.id));
  if (key === "v") return act(() => void select(alarm, true));
  if (!decides.value || alarm.handling === "CLOSED" || alarm.handling === "TRIAGED") return;
  if (key === "p")
    return act(() => {
      police.value = "yes";
    });
  if (key === "n")
    return act(() => {
      police.value = "no";
    });
  if (key === "d") return act(() => void dispatchIncident(alarm));
  if (key === "f") return act(() => void markFalse(alarm));
  if (key === "m")
    return act(() => {
      merging.value = !merging.value;
    });
}

function App() {
  useEffect(() => {
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  if (loadError.value && !loaded.value)
    return (
      <div class="boot">
        <p>{t("loadFailed", { why: loadError.value })}</p>
        <button type="button" class="primary" onClick={() => void loadAll()}>
          {t("retry")}
        </button>
      </div>
    );
  const waiting = queue.value.filter(unhandled).length;
  const drag = dragging.value;
  return (
    <div class={`app ${pageName} tab-${tab.value}${selected.value || incident.value || draft.value ? " working" : ""}`}>
      <Top />
      <div class="banners">
        <Banner />
        <ArrivalBar />
      </div>
      <Tree />
      <main class="stage">
        {view.value === "statistics" ? (
          <Statistics />
        ) : view.value === "health" ? (
          <HealthPage />
        ) : (
          <>
            <TileBar />
            <Tiles />
          </>
        )}
        <p class="keys">{incident.value ? t("keysIncident") : t("keys")}</p>
      </main>
      <aside class="side">
        <Map />
        <div class="work">
          <Lists />
          {draft.value ? <DraftForm /> : incident.value ? <IncidentDetail /> : <AlarmDetail />}
        </div>
      </aside>
      <CallPanel />
      <nav class="tabs">
        {(["alarms", "tiles", "map"] as const).map((name) => (
          <button
            type="button"
            key={name}
            aria-pressed={tab.value === name}
            onClick={() => {
              tab.value = name;
            }}
          >
            <i aria-hidden="true">{{ alarms: "⚠", tiles: "▦", map: "◎" }[name]}</i>
            {t(({ alarms: "tabAlarms", tiles: "tabTiles", map: "tabMap" } as const)[name])}
            {name === "alarms" && waiting > 0 && <b>{waiting}</b>}
          </button>
        ))}
      </nav>
      <Notice />
      {drag && (
        <div class="ghost" style={{ left: `${drag.x}px`, top: `${drag.y}px` }}>
          {drag.name}
        </div>
      )}
    </div>
  );
}

async function start(): Promise<void> {
  const root = document.getElementById("app");
  if (!root) return;
  let who;
  try {
    who = await openSession();
  } catch (error) {
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
    return;
  }
  if (!who) return;
  announceLanguage(pageName);
  unlockOnGesture();
  session.value = who;
  startTiles();
  onCase((type, data) => {
    if (type === "incident") applyIncident(data as Incident);
  });
  onLoaded(loadIncidents);
  watchTouches();
  onArrival(onNewAlarm);
  effect(() => sounding((needsSound.value || inboundCalls.value.length > 0) && unlocked.value, "alarm"));
  const begun = startState(who);
  root.textContent = "";
  render(<App />, root);
  await begun;
}
void start();
