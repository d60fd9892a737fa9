/** The video wall: tiles on sub-streams, the focused one on main, dragging, layouts, and the cameras that an alarm brings. */
import { computed, effect, signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { seg } from "./api.ts";
import { Player, type PlayState } from "./media.ts";
import { layouts, LayoutSheet, loadLayouts, type Layout as Saved, type Tour } from "./layouts.tsx";
import { badPicture, type Camera, type CameraChoice } from "./model.ts";
import { areaName, cameras, session, tick } from "./state.ts";
import { clock, distance, t, tv, why } from "./text.ts";
import { Watermark } from "./watermark.tsx";

export const LAYOUTS = [1, 4, 9, 16, 25] as const;
export type Layout = (typeof LAYOUTS)[number];
/** What this screen shows now stays with this screen; what has a name is kept by the gateway (layouts.tsx). */
interface Kept {
  layout: Layout;
  tiles: (string | null)[] | null;
  saved?: Saved[];
}
const PAGE_DWELL_S = 15;

const store = (): string => `wall/${session.value?.sub ?? ""}`;
function restore(): Kept {
  try {
    const kept = JSON.parse(localStorage.getItem(store()) ?? "null") as Kept | null;
    if (kept && LAYOUTS.includes(kept.layout)) return kept;
  } catch {
    /* unreadable: start anew */
  }
  return { layout: innerWidth < 700 ? 4 : 16, tiles: null };
}

export const layout = signal<Layout>(16);
export const page = signal(0);
/** The chosen order over all pages; null means every camera in its natural order. */
const chosen = signal<(string | null)[] | null>(null);
/** What the current alarm put over the page, by tile. */
export const linked = signal<ReadonlyMap<number, CameraChoice>>(new Map());
export const focused = signal<number | null>(null);
export const current = signal(0);
/** What turns by itself: the pages one after the other, or the layouts of a tour. */
export const touring = signal<"pages" | Tour | null>(null);
let stop = 0;
let turnedAt = 0;
export const order = computed<(string | null)[]>(() => chosen.value ?? [...cameras.value.keys()]);
export const pages = computed(() => Math.max(1, Math.ceil(order.value.length / layout.value)));
export const onPage = computed<(string | null)[]>(() =>
  Array.from(
    { length: layout.value },
    (_, i) => linked.value.get(i)?.id ?? order.value[page.value * layout.value + i] ?? null,
  ),
);

export function startTiles(): void {
  const kept = restore();
  layout.value = kept.layout;
  chosen.value = kept.tiles;
  void loadLayouts(kept.saved ?? []);
  effect(() => {
    localStorage.setItem(store(), JSON.stringify({ layout: layout.value, tiles: chosen.value }));
  });
  setInterval(() => {
    const what = touring.value;
    // An alarm's cameras, and a picture that somebody looks at, stay.
    if (!what || focused.value !== null || linked.value.size > 0) return;
    const dwell_s = what === "pages" ? PAGE_DWELL_S : what.dwell_s;
    if (Date.now() - turnedAt < dwell_s * 1000) return;
    turnedAt = Date.now();
    if (what === "pages") turn(1);
    else step(what);
  }, 1000);
}
function step(tour: Tour): void {
  stop = (stop + 1) % tour.stops.length;
  const next = layouts.value.find((one) => one.name === tour.stops[stop]);
  if (next) useLayout(next);
}
export function startTour(what: "pages" | Tour): void {
  turnedAt = Date.now();
  stop = -1;
  if (what !== "pages") step(what);
  touring.value = what;
}

export function setLayout(next: Layout): void {
  const first = page.value * layout.value;
  layout.value = next;
  page.value = Math.min(Math.floor(first / next), Math.max(0, Math.ceil(order.value.length / next) - 1));
  focused.value = null;
  current.value = Math.min(current.value, next - 1);
}
export function turn(by: number): void {
  page.value = (page.value + by + pages.value) % pages.value;
  focused.value = null;
}
export function assign(tile: number, camera: string | null): void {
  const next = [...order.value];
  const at = page.value * layout.value + tile;
  while (next.length <= at) next.push(null);
  if (linked.value.has(tile)) {
    const map = new Map(linked.value);
    map.delete(tile);
    linked.value = map;
  }
  next[at] = camera;
  chosen.value = next;
}
/** Puts a camera into the current tile (a double click in the tree, a click on the map). */
export function place(camera: string): void {
  const there = onPage.value.indexOf(camera);
  if (there >= 0) current.value = there;
  else assign(current.value, camera);
}
export function useLayout(saved: Saved | null): void {
  linked.value = new Map();
  focused.value = null;
  page.value = 0;
  const size = LAYOUTS.find((n) => n === saved?.layout);
  if (size) layout.value = size;
  chosen.value = saved ? saved.tiles.slice() : null;
}
/** The cameras of an alarm take tiles by themselves: the best in the first tile, at most as many as fit. */
export function link(choices: CameraChoice[]): void {
  if (!choices.length) return;
  if (layout.value === 1 && choices.length > 1) setLayout(4);
  focused.value = null;
  linked.value = new Map(choices.slice(0, layout.value).map((choice, i) => [i, choice]));
}
export const unlink = (): void => {
  linked.value = new Map();
};

// ---- dragging a camera from the tree or the map; by pointer events, so that it works by touch and over the map's canvas ----

export const dragging = signal<{ camera: string; name: string; x: number; y: number } | null>(null);
export function startDrag(event: { clientX: number; clientY: number }, camera: Camera): void {
  const from = { x: event.clientX, y: event.clientY };
  const move = (e: PointerEvent): void => {
    if (!dragging.value && Math.hypot(e.clientX - from.x, e.clientY - from.y) < 6) return;
    e.preventDefault();
    dragging.value = { camera: camera.id, name: camera.name, x: e.clientX, y: e.clientY };
  };
  const up = (e: PointerEvent): void => {
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", up);
    removeEventListener("pointercancel", up);
    const held = dragging.value;
    dragging.value = null;
    const tile = document.elementFromPoint(e.clientX, e.clientY)?.closest<HTMLElement>("[data-tile]")?.dataset.tile;
    if (held && e.type === "pointerup" && tile !== undefined) {
      assign(Number(tile), held.camera);
      current.value = Number(tile);
    }
  };
  addEventListener("pointermove", move, { passive: false });
  addEventListener("pointerup", up);
  addEventListener("pointercancel", up);
}

const SHAPE: Record<PlayState, string> = {
  live: "●",
  connecting: "◌",
  stale: "▲",
  waiting: "◇",
  failed: "✕",
  paused: "Ⅱ",
};

function Tile({ index, id, big }: { index: number; id: string | null; big: boolean }) {
  const video = useRef<HTMLVideoElement>(null);
  const [player, setPlayer] = useState<Player | null>(null);
  const camera = id === null ? undefined : cameras.value.get(id);
  const alarmChoice = linked.value.get(index);
  const stream = big ? "main" : "sub";
  const known = camera !== undefined;
  const cameraState = camera?.state;
  const bad = badPicture(camera);
  useEffect(() => {
    if (id === null || !known || !video.current) return;
    const made = new Player(`/whep/${seg(id)}?stream=${stream}`, video.current, false);
    setPlayer(made);
    return () => {
      made.close();
      setPlayer(null);
    };
  }, [id, stream, known]);
  useEffect(() => {
    if (cameraState === "live") player?.again();
  }, [cameraState, player]);

  const state: PlayState | "idle" = player?.state.value ?? "idle";
  const frames = player?.frames.value ?? 0;
  const cause =
    (player?.reason.value && why(player.reason.value)) ||
    (state === "waiting" || state === "failed" ? why(camera?.reason) : "");
  const toggle = (): void => {
    if (id !== null) focused.value = focused.value === index ? null : index;
  };
  return (
    <div
      class={`tile s-${state}${big ? " big" : ""}${current.value === index ? " current" : ""}${alarmChoice ? " linked" : ""}${id === null ? " empty" : ""}`}
      data-tile={index}
      data-camera={id ?? ""}
      data-state={state}
      data-frames={frames}
      tabIndex={0}
      role="group"
      aria-label={camera?.name ?? t("emptyTile")}
      onClick={() => {
        current.value = index;
      }}
      onFocus={() => {
        current.value = index;
      }}
      onDblClick={toggle}
    >
      <video ref={video} muted autoplay playsInline disablePictureInPicture />
      {id === null ? (
        <p class="tile-note quiet">{t("emptyTile")}</p>
      ) : (
        <>
          {known && <Watermark who={session.value?.name || session.value?.sub || ""} />}
          {!known && <p class="tile-note">{t("noSuchCamera")}</p>}
          {known && state !== "live" && (
            <div class="tile-note">
              <b>{state === "stale" ? t("tile.stale") : state === "idle" ? t("tile.connecting") : tv("tile", state)}</b>
              <span>{state === "stale" ? t("staleWhy", { s: 3 }) : cause}</span>
            </div>
          )}
          <div class="tile-top">
            {alarmChoice && (
              <span class="tag linktag">
                ⚠ {t("linked")} · {distance(alarmChoice.distance_m)}
              </span>
            )}
            <span class="tile-actions">
              <button
                type="button"
                title={big ? t("close") : t("enlarge")}
                aria-label={big ? t("close") : t("enlarge")}
                onClick={(e) => {
                  e.stopPropagation();
                  toggle();
                }}
              >
                {big ? "✕" : "⤢"}
              </button>
              {!big && (
                <button
                  type="button"
                  title={t("clearTile")}
                  aria-label={t("clearTile")}
                  onClick={(e) => {
                    e.stopPropagation();
                    assign(index, null);
                  }}
                >
                  ✕
                </button>
              )}
            </span>
          </div>
          <div class="tile-bar">
            <span class={`state s-${state}`} title={cause}>
              <i aria-hidden="true">{state === "idle" ? "○" : SHAPE[state]}</i>
              {tv("tile", state)}
            </span>
            {bad && (
              <span class="state picture s-stale" title={bad.reason}>
                <i aria-hidden="true">⚠</i>
                {tv("picture", bad.verdict)}
              </span>
            )}
            <span class="name">{camera?.name ?? id}</span>
            {big && (
              <span class="extra">
                {t("main")} · {areaName(camera?.community ?? null)} · {clock(tick.value)}
              </span>
            )}
          </div>
        </>
      )}
    </div>
  );
}

export function Tiles() {
  const ids = onPage.value;
  const side = Math.sqrt(layout.value);
  return (
    <div class={`tiles n${layout.value}`} style={{ "--side": String(side) }}>
      {ids.map((id, i) => (
        <Tile key={i} index={i} id={id} big={focused.value === i} />
      ))}
    </div>
  );
}

export function TileBar() {
  const [open, setOpen] = useState(false);
  const what = touring.value;
  return (
    <div class="tilebar">
      <div class="seg" role="group" aria-label={t("layout")}>
        {LAYOUTS.map((n) => (
          <button type="button" key={n} aria-pressed={layout.value === n} data-layout={n} onClick={() => setLayout(n)}>
            {n}
          </button>
        ))}
      </div>
      <div class="pager">
        <button
          type="button"
          aria-label={t("prev")}
          title={t("prev")}
          onClick={() => turn(-1)}
          disabled={pages.value < 2}
        >
          ‹
        </button>
        <span>{t("page", { p: page.value + 1, n: pages.value })}</span>
        <button
          type="button"
          aria-label={t("next")}
          title={t("next")}
          onClick={() => turn(1)}
          disabled={pages.value < 2}
        >
          ›
        </button>
        <button
          type="button"
          class="tour"
          aria-pressed={what !== null}
          onClick={() => (what ? (touring.value = null) : startTour("pages"))}
        >
          {what === null ? t("tour") : what === "pages" ? t("tourOn") : `${t("tourOn")} · ${what.name}`}
        </button>
      </div>
      <span class="grow" />
      {linked.value.size > 0 && (
        <button type="button" class="warn" onClick={unlink}>
          ⚠ {t("linked")} ✕
        </button>
      )}
      <div class="layouts">
        <button type="button" data-act="layouts" aria-expanded={open} onClick={() => setOpen(!open)}>
          ▤ {t("saved")}
        </button>
        {open && (
          <LayoutSheet
            current={() => ({ layout: layout.value, tiles: onPage.value.slice() })}
            onUse={(one) => {
              touring.value = null;
              useLayout(one);
            }}
            onTour={startTour}
            onClose={() => setOpen(false)}
          />
        )}
      </div>
    </div>
  );
}
