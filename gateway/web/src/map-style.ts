/** What the map is drawn with: layers, colours, icons (shapes differ as well as colours), and the small geometry of GeoJSON. */
import type * as maplibre from "maplibre-gl";
import type { Position } from "./model.ts";

export interface Base {
  urls: string[];
  gcj02: boolean;
}
export type Feature = {
  type: "Feature";
  geometry: { type: string; coordinates: unknown };
  properties: Record<string, unknown>;
};
export type Collection = { type: "FeatureCollection"; features: Feature[] };
export const collection = (features: Feature[]): Collection => ({ type: "FeatureCollection", features });

/** Draws an icon by a 2D canvas; the shapes differ as well as the colours. */
export function icon(size: number, draw: (c: CanvasRenderingContext2D, s: number) => void): ImageData | null {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const c = canvas.getContext("2d");
  if (!c) return null;
  draw(c, size);
  return c.getImageData(0, 0, size, size);
}
export function cameraIcon(fill: string) {
  return (c: CanvasRenderingContext2D, s: number): void => {
    // points up: rotated by the heading
    c.fillStyle = fill;
    c.strokeStyle = "#06101c";
    c.lineWidth = s / 14;
    c.lineJoin = "round";
    c.beginPath();
    c.moveTo(s * 0.5, s * 0.08);
    c.lineTo(s * 0.84, s * 0.86);
    c.lineTo(s * 0.5, s * 0.68);
    c.lineTo(s * 0.16, s * 0.86);
    c.closePath();
    c.stroke();
    c.fill();
  };
}
/** A red armband: smaller than a gridworker, and not round. */
export function volunteerIcon(c: CanvasRenderingContext2D, s: number): void {
  c.fillStyle = "#ff8fa3";
  c.strokeStyle = "#06101c";
  c.lineWidth = s / 14;
  c.beginPath();
  c.moveTo(s * 0.5, s * 0.2);
  c.lineTo(s * 0.8, s * 0.5);
  c.lineTo(s * 0.5, s * 0.8);
  c.lineTo(s * 0.2, s * 0.5);
  c.closePath();
  c.stroke();
  c.fill();
}
export function workerIcon(fill: string) {
  return (c: CanvasRenderingContext2D, s: number): void => {
    c.fillStyle = fill;
    c.strokeStyle = "#06101c";
    c.lineWidth = s / 16;
    c.beginPath();
    c.arc(s / 2, s / 2, s * 0.44, 0, 7);
    c.fill();
    c.stroke();
    c.fillStyle = "#06101c";
    c.beginPath();
    c.arc(s / 2, s * 0.37, s * 0.13, 0, 7);
    c.fill();
    c.beginPath();
    c.arc(s / 2, s * 0.76, s * 0.24, Math.PI, 0);
    c.fill();
  };
}
export function alarmIcon(c: CanvasRenderingContext2D, s: number): void {
  c.fillStyle = "#ff4d4f";
  c.strokeStyle = "#fff";
  c.lineWidth = s / 14;
  c.lineJoin = "round";
  c.beginPath();
  c.moveTo(s / 2, s * 0.06);
  c.lineTo(s * 0.94, s / 2);
  c.lineTo(s / 2, s * 0.94);
  c.lineTo(s * 0.06, s / 2);
  c.closePath();
  c.fill();
  c.stroke();
  c.fillStyle = "#fff";
  c.fillRect(s * 0.46, s * 0.26, s * 0.08, s * 0.3);
  c.beginPath();
  c.arc(s / 2, s * 0.68, s * 0.055, 0, 7);
  c.fill();
}

export function incidentIcon(c: CanvasRenderingContext2D, s: number): void {
  c.fillStyle = "#ffb020";
  c.strokeStyle = "#06101c";
  c.lineWidth = s / 14;
  c.fillRect(s * 0.16, s * 0.16, s * 0.68, s * 0.68);
  c.strokeRect(s * 0.16, s * 0.16, s * 0.68, s * 0.68);
  c.fillStyle = "#06101c";
  for (const y of [0.34, 0.48, 0.62]) c.fillRect(s * 0.3, s * y, s * 0.4, s * 0.06);
}

export function style(tiles: Base): maplibre.StyleSpecification {
  const font = ["sans-serif"];
  const label = (level: string, minzoom: number, size: number, color: string): maplibre.LayerSpecification => ({
    id: `label-${level}`,
    type: "symbol",
    source: "labels",
    minzoom,
    ...(level === "street" ? { maxzoom: 13.2 } : {}),
    filter: ["==", ["get", "level"], level],
    layout: {
      "text-field": ["get", "name"],
      "text-font": font,
      "text-size": size,
      "text-padding": 6,
      "text-optional": true,
    },
    paint: { "text-color": color, "text-halo-color": "#0a1320", "text-halo-width": 1.4 },
  });
  const under = tiles.urls.length > 0;
  return {
    version: 8,
    sources: {
      areas: { type: "geojson", data: collection([]) as never },
      labels: { type: "geojson", data: collection([]) as never },
      incidents: { type: "geojson", data: collection([]) as never },
      draft: { type: "geojson", data: collection([]) as never },
      reach: { type: "geojson", data: collection([]) as never },
      cameras: { type: "geojson", data: collection([]) as never },
      volunteers: { type: "geojson", data: collection([]) as never },
      workers: { type: "geojson", data: collection([]) as never },
      alarms: { type: "geojson", data: collection([]) as never },
      ...(under ? { base: { type: "raster" as const, tiles: tiles.urls, tileSize: 256, maxzoom: 18 } } : {}),
    },
    layers: [
      { id: "ground", type: "background", paint: { "background-color": "#0a1320" } },
      ...(under
        ? [
            {
              id: "base",
              type: "raster" as const,
              source: "base",
              paint: { "raster-saturation": -0.5, "raster-brightness-max": 0.6 },
            },
          ]
        : []),
      {
        id: "district",
        type: "fill",
        source: "areas",
        filter: ["==", ["get", "level"], "district"],
        paint: { "fill-color": "#10263d", "fill-opacity": under ? 0 : 1 },
      },
      {
        id: "streets",
        type: "fill",
        source: "areas",
        filter: ["==", ["get", "level"], "street"],
        paint: {
          "fill-color": ["match", ["%", ["get", "n"], 4], 0, "#12304d", 1, "#15374f", 2, "#132c48", "#17334a"],
          "fill-opacity": under ? 0.15 : 0.9,
        },
      },
      {
        id: "dedicated",
        type: "fill",
        source: "areas",
        minzoom: 12.5,
        filter: ["==", ["get", "kind"], "dedicated"],
        paint: { "fill-color": "#3a3f7a", "fill-opacity": 0.35 },
      },
      {
        id: "grid-line",
        type: "line",
        source: "areas",
        minzoom: 12.5,
        filter: ["==", ["get", "level"], "grid"],
        paint: { "line-color": "#29587e", "line-width": 0.8, "line-dasharray": [3, 2] },
      },
      {
        id: "community-line",
        type: "line",
        source: "areas",
        minzoom: 10.5,
        filter: ["==", ["get", "level"], "community"],
        paint: { "line-color": "#2f6d9b", "line-width": ["interpolate", ["linear"], ["zoom"], 10, 0.3, 14, 1.4] },
      },
      {
        id: "street-line",
        type: "line",
        source: "areas",
        filter: ["==", ["get", "level"], "street"],
        paint: { "line-color": "#4a95cd", "line-width": 1.4 },
      },
      {
        id: "district-line",
        type: "line",
        source: "areas",
        filter: ["==", ["get", "level"], "district"],
        paint: { "line-color": "#6fc1ff", "line-width": 2.2 },
      },
      {
        id: "reach",
        type: "fill",
        source: "reach",
        minzoom: 13.5,
        paint: { "fill-color": "#4db8ff", "fill-opacity": 0.16 },
      },
      label("street", 9, 12, "#bcdcf5"),
      label("community", 13.2, 12, "#9fc4e0"),
      label("grid", 14.8, 11, "#86aac6"),
      {
        id: "cameras",
        type: "symbol",
        source: "cameras",
        layout: {
          "icon-image": ["concat", "camera-", ["get", "look"]],
          "icon-rotate": ["get", "heading"],
          "icon-rotation-alignment": "map",
          "icon-allow-overlap": true,
          "icon-ignore-placement": true,
          "icon-size": ["interpolate", ["linear"], ["zoom"], 10, 0.2, 14, 0.42, 17, 0.62],
        },
      },
      {
        id: "camera-names",
        type: "symbol",
        source: "cameras",
        minzoom: 15.5,
        layout: {
          "text-field": ["get", "name"],
          "text-font": font,
          "text-size": 11,
          "text-offset": [0, 1.1],
          "text-anchor": "top",
          "text-optional": true,
        },
        paint: { "text-color": "#d5ecff", "text-halo-color": "#0a1320", "text-halo-width": 1.4 },
      },
      {
        id: "volunteers",
        type: "symbol",
        source: "volunteers",
        minzoom: 13,
        layout: {
          "icon-image": "volunteer",
          "icon-allow-overlap": true,
          "icon-ignore-placement": true,
          "icon-size": ["interpolate", ["linear"], ["zoom"], 13, 0.26, 17, 0.46],
        },
      },
      {
        id: "workers",
        type: "symbol",
        source: "workers",
        layout: {
          "icon-image": ["concat", "worker-", ["get", "look"]],
          "icon-allow-overlap": true,
          "icon-ignore-placement": true,
          "icon-size": ["interpolate", ["linear"], ["zoom"], 10, 0.24, 14, 0.42, 17, 0.58],
        },
      },
      {
        id: "worker-names",
        type: "symbol",
        source: "workers",
        minzoom: 14,
        layout: {
          "text-field": ["get", "label"],
          "text-font": font,
          "text-size": 11,
          "text-offset": [0, 1.2],
          "text-anchor": "top",
          "text-optional": true,
        },
        paint: { "text-color": "#b9f5cf", "text-halo-color": "#0a1320", "text-halo-width": 1.4 },
      },
      { id: "draft", type: "fill", source: "draft", paint: { "fill-color": "#ffe066", "fill-opacity": 0.22 } },
      {
        id: "draft-line",
        type: "line",
        source: "draft",
        paint: { "line-color": "#ffe066", "line-width": 2, "line-dasharray": [2, 1] },
      },
      {
        id: "incidents",
        type: "symbol",
        source: "incidents",
        layout: {
          "icon-image": "incident",
          "icon-allow-overlap": true,
          "icon-ignore-placement": true,
          "icon-size": ["case", ["get", "chosen"], 0.62, 0.46],
        },
      },
      {
        id: "alarm-halo",
        type: "circle",
        source: "alarms",
        paint: {
          "circle-radius": ["case", ["get", "chosen"], 26, 18],
          "circle-color": "#ff4d4f",
          "circle-opacity": 0.22,
          "circle-stroke-color": "#ff7875",
          "circle-stroke-width": ["case", ["get", "chosen"], 2, 1],
        },
      },
      {
        id: "alarms",
        type: "symbol",
        source: "alarms",
        layout: { "icon-image": "alarm", "icon-allow-overlap": true, "icon-ignore-placement": true, "icon-size": 0.55 },
      },
    ],
  };
}

export const point = (p: Position, properties: Record<string, unknown>, shift: (p: Position) => Position): Feature => {
  const { lat, lon } = shift(p);
  return { type: "Feature", geometry: { type: "Point", coordinates: [lon, lat] }, properties };
};

/** Walks any GeoJSON coordinates, mapping each [lon, lat]. */
export function mapCoordinates(value: unknown, shift: (p: Position) => Position): unknown {
  if (!Array.isArray(value)) return value;
  if (typeof value[0] === "number") {
    const p = shift({ lon: value[0], lat: Number(value[1]) });
    return [p.lon, p.lat];
  }
  return value.map((v) => mapCoordinates(v, shift));
}
export function bounds(features: Feature[]): [[number, number], [number, number]] | null {
  let box: [[number, number], [number, number]] | null = null;
  const walk = (v: unknown): void => {
    if (!Array.isArray(v)) return;
    if (typeof v[0] !== "number") {
      v.forEach(walk);
      return;
    }
    const x = Number(v[0]),
      y = Number(v[1]);
    box =
      box === null
        ? [
            [x, y],
            [x, y],
          ]
        : [
            [Math.min(box[0][0], x), Math.min(box[0][1], y)],
            [Math.max(box[1][0], x), Math.max(box[1][1], y)],
          ];
  };
  for (const f of features) walk(f.geometry.coordinates);
  return box;
}
export function centre(feature: Feature): [number, number] | null {
  const box = bounds([feature]);
  return box && [(box[0][0] + box[1][0]) / 2, (box[0][1] + box[1][1]) / 2];
}
