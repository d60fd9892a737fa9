/** The 2D map: the district's own polygons without any outside server; a tile URL may be laid under them. */
import { computed, effect } from "@preact/signals";
import * as maplibre from "maplibre-gl";
import { useEffect, useRef, useState } from "preact/hooks";
import { get } from "./api.ts";
import { offset, toGcj02 } from "./geo.ts";
import { target } from "./map-target.ts";
import type { Position } from "./model.ts";
import { alarms, areas, cameras, district, loaded, selectedId, tick, workers } from "./state.ts";
import { span, t } from "./text.ts";
import { linked, onPage, place, startDrag } from "./tiles.tsx";

declare const MAP_WORKER_URL: string;

type Feature = {
  type: "Feature";
  geometry: { type: string; coordinates: unknown };
  properties: Record<string, unknown>;
};
type Collection = { type: "FeatureCollection"; features: Feature[] };
const collection = (features: Feature[]): Collection => ({ type: "FeatureCollection", features });

interface Base {
  url: string;
  gcj02: boolean;
}
function base(): Base {
  const own = district.value?.map;
  return {
    url: localStorage.getItem("tile_url") ?? own?.tile_url ?? "",
    gcj02: (localStorage.getItem("tile_datum") ?? own?.datum) === "gcj02",
  };
}

/** Draws an icon by a 2D canvas; the shapes differ as well as the colours. */
function icon(size: number, draw: (c: CanvasRenderingContext2D, s: number) => void): ImageData | null {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const c = canvas.getContext("2d");
  if (!c) return null;
  draw(c, size);
  return c.getImageData(0, 0, size, size);
}
function cameraIcon(fill: string) {
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
function workerIcon(fill: string) {
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
function alarmIcon(c: CanvasRenderingContext2D, s: number): void {
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

function style(tiles: Base): maplibre.StyleSpecification {
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
  const under = tiles.url !== "";
  return {
    version: 8,
    sources: {
      areas: { type: "geojson", data: collection([]) as never },
      labels: { type: "geojson", data: collection([]) as never },
      reach: { type: "geojson", data: collection([]) as never },
      cameras: { type: "geojson", data: collection([]) as never },
      workers: { type: "geojson", data: collection([]) as never },
      alarms: { type: "geojson", data: collection([]) as never },
      ...(under ? { base: { type: "raster" as const, tiles: [tiles.url], tileSize: 256, maxzoom: 18 } } : {}),
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

const point = (p: Position, properties: Record<string, unknown>, shift: (p: Position) => Position): Feature => {
  const { lat, lon } = shift(p);
  return { type: "Feature", geometry: { type: "Point", coordinates: [lon, lat] }, properties };
};

/** Walks any GeoJSON coordinates, mapping each [lon, lat]. */
function mapCoordinates(value: unknown, shift: (p: Position) => Position): unknown {
  if (!Array.isArray(value)) return value;
  if (typeof value[0] === "number") {
    const p = shift({ lon: value[0], lat: Number(value[1]) });
    return [p.lon, p.lat];
  }
  return value.map((v) => mapCoordinates(v, shift));
}
function bounds(features: Feature[]): [[number, number], [number, number]] | null {
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
function centre(feature: Feature): [number, number] | null {
  const box = bounds([feature]);
  return box && [(box[0][0] + box[1][0]) / 2, (box[0][1] + box[1][1]) / 2];
}

const minuteTick = computed(() => Math.floor(tick.value / 10000));

export default function DistrictMap() {
  const ref = useRef<HTMLDivElement>(null);
  const [failed, setFailed] = useState("");
  const fitRef = useRef<() => void>(() => undefined);
  const isLoaded = loaded.value;
  useEffect(() => {
    if (!ref.current || !isLoaded) return;
    const tiles = base();
    const shift = tiles.gcj02 ? toGcj02 : (p: Position): Position => p;
    const at = shift(district.value?.center ?? { lat: 30.81, lon: 103.89 });
    let map: maplibre.Map;
    try {
      maplibre.setWorkerUrl(new URL(MAP_WORKER_URL, location.href).href);
      map = new maplibre.Map({
        container: ref.current,
        style: style(tiles),
        center: [at.lon, at.lat],
        zoom: 10.5,
        attributionControl: false,
        dragRotate: false,
        pitchWithRotate: false,
        fadeDuration: 0,
      });
    } catch {
      setFailed(t("mapFailed"));
      return;
    }
    map.touchZoomRotate.disableRotation();
    map.on("error", () => undefined); // a missing tile of an online base map is no fault of the page
    let ground: Feature[] = [];
    const disposers: (() => void)[] = [];
    const set = (source: string, features: Feature[]): void => {
      (map.getSource(source) as maplibre.GeoJSONSource | undefined)?.setData(collection(features) as never);
    };
    fitRef.current = () => {
      const level = (["district", "street", "community", "grid"] as const).find((l) =>
        ground.some((f) => f.properties.level === l),
      );
      const box =
        bounds(ground.filter((f) => f.properties.level === level)) ??
        bounds([...cameras.value.values()].flatMap((c) => (c.position ? [point(c.position, {}, shift)] : [])));
      if (box) map.fitBounds(box, { padding: 18, duration: 300, maxZoom: 16 });
    };
    map.on("load", () => {
      const add = (name: string, draw: (c: CanvasRenderingContext2D, s: number) => void): void => {
        const image = icon(64, draw);
        if (image) map.addImage(name, image, { pixelRatio: 1.4 });
      };
      add("camera-live", cameraIcon("#4db8ff"));
      add("camera-idle", cameraIcon("#8aa4bd"));
      add("camera-down", cameraIcon("#ff9f43"));
      add("camera-wall", cameraIcon("#ffe066"));
      add("worker-on", workerIcon("#4ade80"));
      add("worker-busy", workerIcon("#fbbf24"));
      add("worker-sos", workerIcon("#ff4d4f"));
      add("alarm", alarmIcon);
      disposers.push(
        effect(() => {
          const onWall = new Set(onPage.value);
          const alarming = new Set([...linked.value.values()].map((c) => c.id));
          const list = [...cameras.value.values()].filter((c) => c.position);
          set(
            "cameras",
            list.map((c) =>
              point(
                c.position as Position,
                {
                  id: c.id,
                  name: c.name,
                  heading: c.heading ?? 0,
                  look: alarming.has(c.id)
                    ? "wall"
                    : c.state === "down"
                      ? "down"
                      : onWall.has(c.id)
                        ? "live"
                        : c.state === "live"
                          ? "live"
                          : "idle",
                },
                shift,
              ),
            ),
          );
          set(
            "reach",
            list
              .filter((c) => c.heading !== null && (onWall.has(c.id) || alarming.has(c.id)))
              .map((c) => {
                const from = c.position as Position,
                  fov = c.fov ?? 90,
                  range = c.range_m ?? 60;
                const ring = [
                  from,
                  ...Array.from({ length: 9 }, (_, i) =>
                    offset(from, (c.heading ?? 0) - fov / 2 + (fov * i) / 8, range),
                  ),
                  from,
                ].map((p) => {
                  const s = shift(p);
                  return [s.lon, s.lat];
                });
                return { type: "Feature" as const, geometry: { type: "Polygon", coordinates: [ring] }, properties: {} };
              }),
          );
        }),
      );
      disposers.push(
        effect(() => {
          void minuteTick.value;
          const now = tick.peek();
          set(
            "workers",
            [...workers.value.values()]
              .filter((w) => w.position && w.duty !== "off")
              .map((w) =>
                point(
                  w.position as Position,
                  {
                    id: w.id,
                    look: w.duty === "on" ? "on" : w.duty === "sos" ? "sos" : "busy",
                    label: `${w.name} ${w.fix_at ? t("ago", { t: span(now - w.fix_at) }) : t("noFix")}`,
                  },
                  shift,
                ),
              ),
          );
        }),
      );
      disposers.push(
        effect(() => {
          set(
            "alarms",
            [...alarms.value.values()]
              .filter((a) => a.place.position && a.handling !== "CLOSED")
              .map((a) => point(a.place.position as Position, { id: a.id, chosen: a.id === selectedId.value }, shift)),
          );
        }),
      );
      disposers.push(
        effect(() => {
          const to = target.value;
          if (!to) return;
          const p = shift(to.position);
          map.easeTo({ center: [p.lon, p.lat], zoom: Math.max(map.getZoom(), to.zoom), duration: 600 });
        }),
      );
      get<Collection>("/api/v1/district/areas.geojson")
        .then((raw) => {
          ground = raw.features.map((f, n) => ({
            ...f,
            geometry: { ...f.geometry, coordinates: mapCoordinates(f.geometry.coordinates, shift) },
            properties: { ...f.properties, n },
          }));
          set("areas", ground);
          set(
            "labels",
            ground.flatMap((f) => {
              const c = centre(f);
              return c
                ? [
                    {
                      type: "Feature" as const,
                      geometry: { type: "Point", coordinates: c },
                      properties: {
                        level: f.properties.level,
                        name: f.properties.name ?? areas.value.get(String(f.properties.code))?.name,
                      },
                    },
                  ]
                : [];
            }),
          );
          if (!target.peek()) fitRef.current();
        })
        .catch(() => {
          fitRef.current();
        });
    });
    const cameraAt = (p: maplibre.PointLike) =>
      cameras.value.get(String(map.queryRenderedFeatures(p, { layers: ["cameras"] })[0]?.properties.id ?? ""));
    map.on("mousedown", "cameras", (e) => {
      const camera = cameraAt(e.point);
      if (!camera || e.originalEvent.button !== 0) return;
      e.preventDefault(); // the map must not pan: the camera is being dragged
      startDrag(e.originalEvent, camera);
    });
    map.on("click", "cameras", (e) => {
      const camera = cameraAt(e.point);
      if (camera) place(camera.id);
    });
    map.on("click", "alarms", (e) => {
      const id = e.features?.[0]?.properties.id as string | undefined;
      if (id) selectedId.value = id;
    });
    const tip = new maplibre.Popup({ closeButton: false, closeOnClick: false, offset: 14, className: "tip" });
    for (const layer of ["cameras", "workers"]) {
      map.on("mousemove", layer, (e) => {
        const p = e.features?.[0]?.properties;
        map.getCanvas().style.cursor = "pointer";
        tip
          .setLngLat(e.lngLat)
          .setText(String(p?.name ?? p?.label ?? ""))
          .addTo(map);
      });
      map.on("mouseleave", layer, () => {
        map.getCanvas().style.cursor = "";
        tip.remove();
      });
    }
    const observer = new ResizeObserver(() => map.resize());
    observer.observe(ref.current);
    return () => {
      observer.disconnect();
      for (const dispose of disposers) dispose();
      map.remove();
    };
  }, [isLoaded]);
  return (
    <section class="map" aria-label={t("map")}>
      <div ref={ref} class="canvas" />
      {failed && <p class="tile-note">{failed}</p>}
      <button type="button" class="fit" onClick={() => fitRef.current()}>
        {t("fit")}
      </button>
      <ul class="legend">
        <li class="l-camera">▲ {t("legendCamera")}</li>
        <li class="l-worker">● {t("legendWorker")}</li>
        <li class="l-alarm">◆ {t("legendAlarm")}</li>
      </ul>
    </section>
  );
}
