/** Where the map is asked to go; apart from the map itself, so that the page can start without loading MapLibre. */
import { signal } from "@preact/signals";
import type { Position } from "./model.ts";

export const target = signal<{ position: Position; zoom: number } | null>(null);
export const goTo = (position: Position | null, zoom = 15): void => {
  if (position) target.value = { position, zoom };
};
