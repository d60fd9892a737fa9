/** Incidents as the wall knows them: the closed loop, and what may be done next. The gateway decides; this only offers. */
import { computed, signal } from "@preact/signals";
import { get, post, seg } from "./api.ts";
import { nearest } from "./geo.ts";
import { goTo } from "./map-target.ts";
import type { CameraChoice, Incident, IncidentState, Position, WorkerChoice } from "./model.ts";
import { attempt, cameras, put, say, selectedId } from "./state.ts";
import { t, tv } from "./text.ts";
import { link } from "./tiles.tsx";

export const incidents = signal<ReadonlyMap<string, Incident>>(new Map());
const details = signal<ReadonlyMap<string, Incident>>(new Map());
export const incidentId = signal<string | null>(null);
/** People near the incident that is open. */
export const incidentWorkers = signal<WorkerChoice[] | undefined>(undefined);

/** What is being said with the next step of the open incident, and the mark it is to get. */
export const note = signal("");
export const score = signal(5);

/** The six steps of the loop (发现上报 to 结案存档), in order. */
export const STEPS: readonly IncidentState[] = ["REPORTED", "DISPATCHED", "HANDLING", "VERIFYING", "RATED", "ARCHIVED"];
export const ENDS: readonly IncidentState[] = ["ARCHIVED", "MERGED", "CANCELLED"];
/** What leads one step on from each state. */
export const NEXT: Partial<Record<IncidentState, string>> = {
  REPORTED: "dispatch",
  DISPATCHED: "handle",
  HANDLING: "submit",
  VERIFYING: "rate",
  RATED: "archive",
  TRANSFERRED: "take_back",
  SUSPENDED: "resume",
};
/** What else may be done in each state. */
export const ASIDE: Partial<Record<IncidentState, readonly string[]>> = {
  REPORTED: ["transfer", "suspend", "cancel"],
  DISPATCHED: ["transfer", "suspend", "cancel"],
  HANDLING: ["transfer", "suspend", "cancel"],
  VERIFYING: ["reopen"],
  TRANSFERRED: ["submit", "cancel"],
  SUSPENDED: ["cancel"],
};

export const incidentList = computed(() =>
  [...incidents.value.values()].sort(
    (a, b) =>
      Number(ENDS.includes(a.state)) - Number(ENDS.includes(b.state)) ||
      b.severity - a.severity ||
      b.reported_at - a.reported_at,
  ),
);
export const openIncidents = computed(() => incidentList.value.filter((i) => !ENDS.includes(i.state)));
export const incident = computed<Incident | null>(() => {
  const id = incidentId.value;
  if (id === null) return null;
  const listed = incidents.value.get(id);
  const full = details.value.get(id);
  return listed ? { ...full, ...listed } : (full ?? null);
});
/** The cameras that may show a place: ranked like the gateway's choice, by distance and whether it lies in view. */
export const camerasNear = (at: Position): CameraChoice[] => nearest(at, [...cameras.value.values()], 300).slice(0, 8);

export async function loadIncidents(): Promise<void> {
  const found = await get<{ incidents: Incident[] }>("/api/v1/incidents?limit=100");
  incidents.value = new Map(found.incidents.map((i) => [i.id, i]));
}

export function applyIncident(next: Incident): void {
  const map = put(incidents.value, next);
  const ended = [...map.values()].filter((i) => ENDS.includes(i.state)).sort((a, b) => b.changed_at - a.changed_at);
  for (const old of ended.slice(60)) map.delete(old.id); // flat in memory for weeks
  incidents.value = map;
  if (incidentId.value === next.id && !next.timeline) void refresh(next.id);
}

async function refresh(id: string): Promise<Incident | null> {
  return attempt(async () => {
    const full = await get<Incident>(`/api/v1/incidents/${seg(id)}`);
    details.value = new Map([[id, full]]);
    return full;
  });
}

/** Shows an incident: the map goes there, its cameras take tiles, the nearest people are asked for. */
export async function openIncident(id: string, show = true): Promise<void> {
  selectedId.value = null;
  incidentId.value = id;
  incidentWorkers.value = undefined;
  const full = await refresh(id);
  if (!full || incidentId.value !== id) return;
  goTo(full.position);
  if (!full.position) {
    incidentWorkers.value = [];
    return;
  }
  if (show) link(camerasNear(full.position));
  const near = await attempt(() => workersNear(full.position as Position));
  if (incidentId.value === id) incidentWorkers.value = near ?? [];
}

export async function workersNear(at: Position): Promise<WorkerChoice[]> {
  const found = await get<{ workers: WorkerChoice[] }>(
    `/api/v1/workers?near=${at.lat.toFixed(6)},${at.lon.toFixed(6)}&datum=wgs84&limit=6`,
  );
  return found.workers;
}

export async function moveIncident(
  of: Incident,
  transition: string,
  detail: Record<string, unknown> = {},
  note = "",
): Promise<Incident | null> {
  const next = await attempt(() =>
    post<Incident>(`/api/v1/incidents/${seg(of.id)}/${transition}`, { detail, ...(note ? { note } : {}) }),
  );
  if (next) {
    applyIncident(next);
    say(t("done", { what: tv("move", transition) }));
  }
  return next;
}

/** An incident by hand: where the operator has clicked or drawn a circle on the map. */
export interface Draft {
  position: Position;
  radius_m: number;
}
export const drawing = signal(false);
export const draft = signal<Draft | null>(null);

export async function reportIncident(
  at: Draft,
  body: { type: string; severity: number; police: string; place_label: string; note: string },
): Promise<void> {
  const made = await attempt(() =>
    post<Incident>("/api/v1/incidents", { ...body, lat: at.position.lat, lon: at.position.lon, datum: "wgs84" }),
  );
  if (!made) return;
  draft.value = null;
  applyIncident(made);
  say(t("incidentMade", { n: made.number }));
  await openIncident(made.id);
}
