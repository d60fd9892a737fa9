/** The 2D map: the district's own polygons without any outside server; a tile URL may be laid under them. */
import { computed, effect } from "@preact/signals";
import * as maplibre from "maplibre-gl";
import { useEffect, useRef, useState } from "preact/hooks";
import { get } from "./api.ts";
import { metres, offset, toGcj02 } from "./geo.ts";
import { draft, drawing, incidentId, openIncident, openIncidents } from "./incident-state.ts";
import {
  alarmIcon,
  type Base,
  bounds,
  cameraIcon,
  centre,
  type Collection,
  collection,
  type Feature,
  icon,
  incidentIcon,
  mapCoordinates,
  point,
  style,
  volunteerIcon,
  workerIcon,
} from "./map-style.ts";
import { target } from "./map-target.ts";
import type { Position } from "./model.ts";
import {
  alarms,
  areas,
  cameras,
  decides,
  district,
  loaded,
  selectedId,
  session,
  tick,
  volunteers,
  workers,
} from "./state.ts";
import { span, t } from "./text.ts";
import { linked, onPage, place, startDrag } from "./tiles.tsx";

declare const MAP_WORKER_URL: string;

const base = (): Base => ({
  urls: district.value?.map?.tile_urls ?? [],
  gcj02: district.value?.map?.datum === "gcj02",
});

const minuteTick = computed(() => Math.floor(tick.value / 10000));

/** A circle on the ground, as a polygon of 48 corners. */
function circle(at: Position, radius: number, shift: (p: Position) => Position): Feature {
  const ring = Array.from({ length: 49 }, (_, i) => {
    const p = shift(offset(at, (360 * i) / 48, radius));
    return [p.lon, p.lat];
  });
  return { type: "Feature", geometry: { type: "Polygon", coordinates: [ring] }, properties: {} };
}

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
      const own = ground.filter((f) => f.properties.code === session.value?.area);
      const level = (["district", "street", "community", "grid"] as const).find((l) =>
        ground.some((f) => f.properties.level === l),
      );
      const box =
        bounds(own) ??
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
      add("volunteer", volunteerIcon);
      add("alarm", alarmIcon);
      add("incident", incidentIcon);
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
            "volunteers",
            [...volunteers.value.values()]
              .filter((v) => v.position && v.available)
              .map((v) => point(v.position as Position, { id: v.id, label: `${t("volunteer")} ${v.name}` }, shift)),
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
          set(
            "incidents",
            openIncidents.value
              .filter((i) => i.position)
              .map((i) => point(i.position as Position, { id: i.id, chosen: i.id === incidentId.value }, shift)),
          );
        }),
      );
      disposers.push(
        effect(() => {
          const at = draft.value;
          set("draft", at ? [circle(at.position, Math.max(12, at.radius_m), shift)] : []);
        }),
      );
      disposers.push(
        effect(() => {
          map.getCanvas().style.cursor = drawing.value ? "crosshair" : "";
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
    /** Back from what is drawn to WGS-84; the shift changes by less than a millimetre over its own length. */
    const unshift = (lngLat: { lng: number; lat: number }): Position => {
      const p = { lat: lngLat.lat, lon: lngLat.lng };
      const s = shift(p);
      return { lat: 2 * p.lat - s.lat, lon: 2 * p.lon - s.lon };
    };
    const draw = (e: maplibre.MapMouseEvent | maplibre.MapTouchEvent): void => {
      if (!drawing.value) return;
      e.preventDefault(); // the map must not pan
      const from = unshift(e.lngLat);
      draft.value = { position: from, radius_m: 0 };
      const grow = (m: maplibre.MapMouseEvent | maplibre.MapTouchEvent): void => {
        const radius = metres(from, unshift(m.lngLat));
        draft.value = { position: from, radius_m: radius < 15 ? 0 : radius };
      };
      const done = (): void => {
        map.off("mousemove", grow);
        map.off("touchmove", grow);
        drawing.value = false;
      };
      map.on("mousemove", grow);
      map.on("touchmove", grow);
      map.once("mouseup", done);
      map.once("touchend", done);
    };
    map.on("mousedown", draw);
    map.on("touchstart", draw);
    map.on("click", "incidents", (e) => {
      const id = e.features?.[0]?.properties.id as string | undefined;
      if (id && !draft.value) void openIncident(id);
    });
    map.on("mousedown", "cameras", (e) => {
      if (drawing.value || draft.value) return;
      const camera = cameraAt(e.point);
      if (!camera || e.originalEvent.button !== 0) return;
      e.preventDefault(); // the map must not pan: the camera is being dragged
      startDrag(e.originalEvent, camera);
    });
    map.on("click", "cameras", (e) => {
      const camera = cameraAt(e.point);
      if (camera && !draft.value) place(camera.id);
    });
    map.on("click", "alarms", (e) => {
      const id = e.features?.[0]?.properties.id as string | undefined;
      if (!id || draft.value) return;
      incidentId.value = null;
      selectedId.value = id;
    });
    const tip = new maplibre.Popup({ closeButton: false, closeOnClick: false, offset: 14, className: "tip" });
    for (const layer of ["cameras", "workers", "volunteers"]) {
      map.on("mousemove", layer, (e) => {
        const p = e.features?.[0]?.properties;
        if (!drawing.value) map.getCanvas().style.cursor = "pointer";
        tip
          .setLngLat(e.lngLat)
          .setText(String(p?.name ?? p?.label ?? ""))
          .addTo(map);
      });
      map.on("mouseleave", layer, () => {
        map.getCanvas().style.cursor = drawing.value ? "crosshair" : "";
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
      {decides.value && (
        <button
          type="button"
          class="draw"
          data-act="draw"
          aria-pressed={drawing.value}
          onClick={() => {
            drawing.value = !drawing.value;
          }}
        >
          ＋ {t("byHand")}
          <kbd>E</kbd>
        </button>
      )}
      {drawing.value && <p class="drawhint">{t("drawHint")}</p>}
      <button type="button" class="fit" onClick={() => fitRef.current()}>
        {t("fit")}
      </button>
      <ul class="legend">
        <li class="l-camera">▲ {t("legendCamera")}</li>
        <li class="l-worker">● {t("legendWorker")}</li>
        <li class="l-volunteer">♦ {t("legendVolunteer")}</li>
        <li class="l-alarm">◆ {t("legendAlarm")}</li>
        <li class="l-incident">■ {t("incident")}</li>
      </ul>
    </section>
  );
}
