/** A new alarm takes the screen once, from a user who is not in the middle of something; after that a bar with one tap says that it waits. */
import { computed, signal } from "@preact/signals";
import { KIND_SHAPE, merging, mine, select, unhandled } from "./alarms.tsx";
import { STILL_MS, wayOf } from "./arrival.ts";
import { inCall } from "./callpanel.tsx";
import { draft, drawing, incidentId } from "./incident-state.ts";
import { listing } from "./incidents.tsx";
import type { Alarm } from "./model.ts";
import { alarms, queue, selected, view } from "./state.ts";
import { t, tv } from "./text.ts";

/** Which part the narrow layout shows. */
export const tab = signal<"alarms" | "tiles" | "map">("tiles");

/** Longer than this without a touch, and an incident that stands open is no work any more. */
const AT_WORK_MS = 60_000;
const SEEN = 500;
const seen = new Set<string>();
let touchedAt = -Infinity;

/** Watches hands: keys, pointer and wheel, wherever they go. */
export function watchTouches(): void {
  for (const name of ["pointerdown", "keydown", "wheel"] as const)
    addEventListener(
      name,
      () => {
        touchedAt = performance.now();
      },
      { capture: true, passive: true },
    );
}

function occupied(): boolean {
  const own = selected.value;
  if (own && own.handling === "ACKNOWLEDGED" && mine(own)) return true;
  if (draft.value || drawing.value || merging.value || inCall.value) return true;
  if (document.activeElement?.closest("input:not(#search), textarea, select")) return true;
  return incidentId.value !== null && performance.now() - touchedAt < AT_WORK_MS;
}

export function onNewAlarm(alarm: Alarm): void {
  const way = wayOf({
    waiting: alarm.verified && unhandled(alarm),
    test: alarm.kind === "test",
    seen: seen.has(alarm.id),
    occupied: occupied(),
    sinceTouchMs: performance.now() - touchedAt,
  });
  if (way === "later") {
    setTimeout(() => onNewAlarm(alarms.value.get(alarm.id) ?? alarm), STILL_MS);
    return;
  }
  if (way === "nothing") return;
  seen.add(alarm.id);
  if (seen.size > SEEN) seen.delete(seen.values().next().value as string);
  if (way !== "bring") return;
  batch.push(alarm);
  if (batch.length > 1) return;
  queueMicrotask(() => {
    // Those that a page finds when it opens come together: the longest wait is looked at first.
    const [first] = batch.splice(0).sort((a, b) => a.received_at - b.received_at);
    if (first) bring(first);
  });
}
const batch: Alarm[] = [];

function bring(alarm: Alarm): void {
  view.value = "tiles"; // its cameras are about to take tiles
  tab.value = "alarms";
  listing.value = "alarms";
  void select(alarm, true);
}

const waiting = computed(() => queue.value.filter((a) => a.verified && unhandled(a)));

/** Shown where the queue is not: what waits longest, and one tap to it. */
export function ArrivalBar() {
  const first = waiting.value[0];
  if (!first) return null;
  return (
    <button
      type="button"
      class={`arrival${listing.value === "alarms" ? " listed" : ""}`}
      data-act="arrival"
      onClick={() => bring(first)}
    >
      <i aria-hidden="true">{KIND_SHAPE[first.kind] ?? "!"}</i>
      <span>
        <b>{t("waitingAlarms", { n: waiting.value.length })}</b> {tv("kind", first.kind)}
        {first.silent ? ` · ⊘ ${t("silent")}` : ""} · {first.place.label}
      </span>
      <em>{t("look")}</em>
    </button>
  );
}
