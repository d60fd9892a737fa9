/** Positions on the map. The API speaks WGS-84; a Chinese online base map may be drawn in GCJ-02. */
import type { Camera, CameraChoice, Position } from "./model.ts";

const A = 6378245.0; // Krasovsky 1940, as GCJ-02 uses it
const EE = 0.00669342162296594323;

/** WGS-84 to GCJ-02 (the published approximation, good to a metre). Outside China it is the identity. */
export function toGcj02({ lat, lon }: Position): Position {
  if (lon < 72.004 || lon > 137.8347 || lat < 0.8293 || lat > 55.8271) return { lat, lon };
  const x = lon - 105,
    y = lat - 35,
    pi = Math.PI;
  const wave = ((20 * Math.sin(6 * x * pi) + 20 * Math.sin(2 * x * pi)) * 2) / 3;
  let dLat = -100 + 2 * x + 3 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * Math.sqrt(Math.abs(x)) + wave;
  dLat +=
    ((20 * Math.sin(y * pi) + 40 * Math.sin((y / 3) * pi)) * 2) / 3 +
    ((160 * Math.sin((y / 12) * pi) + 320 * Math.sin((y * pi) / 30)) * 2) / 3;
  let dLon = 300 + x + 2 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * Math.sqrt(Math.abs(x)) + wave;
  dLon +=
    ((20 * Math.sin(x * pi) + 40 * Math.sin((x / 3) * pi)) * 2) / 3 +
    ((150 * Math.sin((x / 12) * pi) + 300 * Math.sin((x / 30) * pi)) * 2) / 3;
  const rad = (lat / 180) * pi;
  const magic = 1 - EE * Math.sin(rad) ** 2;
  return {
    lat: lat + (dLat * 180) / (((A * (1 - EE)) / (magic * Math.sqrt(magic))) * pi),
    lon: lon + (dLon * 180) / ((A / Math.sqrt(magic)) * Math.cos(rad) * pi),
  };
}

/** The point `metres` away from `from` in direction `bearing` (degrees clockwise from north); flat earth, for a camera's reach. */
export function offset(from: Position, bearing: number, metres: number): Position {
  const rad = (bearing * Math.PI) / 180;
  return {
    lat: from.lat + (metres * Math.cos(rad)) / 111320,
    lon: from.lon + (metres * Math.sin(rad)) / (111320 * Math.cos((from.lat * Math.PI) / 180)),
  };
}

/** Metres between two near points; flat earth, good to a per mille within a district. */
export function metres(a: Position, b: Position): number {
  const x = (b.lon - a.lon) * 111320 * Math.cos((a.lat * Math.PI) / 180);
  const y = (b.lat - a.lat) * 111320;
  return Math.hypot(x, y);
}
/** Degrees clockwise from north, from `a` to `b`. */
export function bearing(a: Position, b: Position): number {
  const x = (b.lon - a.lon) * Math.cos((a.lat * Math.PI) / 180);
  return ((Math.atan2(x, b.lat - a.lat) * 180) / Math.PI + 360) % 360;
}

/** Cameras within `reach_m` of a place, those that look at it first, then by distance. */
export function nearest(at: Position, all: Camera[], reach_m: number): CameraChoice[] {
  return all
    .filter((c) => c.position !== null)
    .map((c) => {
      const from = c.position as Position;
      const distance_m = metres(from, at);
      const bearing_deg = bearing(from, at);
      const off = c.heading === null ? 180 : Math.abs(((bearing_deg - c.heading + 540) % 360) - 180);
      const in_view = distance_m <= (c.range_m ?? 60) && off <= (c.fov ?? 90) / 2;
      return { id: c.id, name: c.name, distance_m, bearing_deg, in_view, score: in_view ? 1 : 0, reason: "" };
    })
    .filter((c) => c.distance_m <= reach_m)
    .sort((a, b) => b.score - a.score || a.distance_m - b.distance_m);
}
