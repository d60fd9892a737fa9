/** The gridworker's position: from the phone, or by hand with its datum. */
import { signal } from "@preact/signals";
import { ApiError, post } from "./api.ts";
import { me, outbox } from "./worker-state.ts";
import { t } from "./text.ts";

export interface Fix {
  state: "ok" | "wait" | "bad";
  text: string;
  at: number;
}
export const fix = signal<Fix>({ state: "wait", text: t("fixWait"), at: 0 });
export type Datum = "wgs84" | "gcj02";
/** The last place that was sent or found, for a report. */
export const here = signal<{ lat: number; lon: number; datum: Datum } | null>(null);

let sequence = Math.floor(Date.now() / 1000);
let lastSent = 0;
export async function sendFix(
  lat: number,
  lon: number,
  datum: Datum,
  acc: number,
  spd: number | null,
  at: number,
): Promise<void> {
  here.value = { lat, lon, datum };
  const body = {
    lat,
    lon,
    datum,
    acc: Math.min(100000, Math.max(0, acc)),
    spd: Math.min(100, Math.max(0, spd ?? 0)),
    fix: Math.round(at),
    seq: ++sequence,
  };
  try {
    await post("/api/v1/workers/me/location", body);
  } catch (error) {
    if (error instanceof ApiError && error.status === 0)
      outbox.add({ kind: "position", path: "/api/v1/workers/me/location", body });
    throw error;
  }
  lastSent = Date.now();
  fix.value = { state: "ok", text: t("fixOk", { n: Math.round(acc) }), at: Date.now() };
}
let watch: number | null = null;
let latest: GeolocationPosition | null = null;
/** A phone that stands still may not be told anew: older than this, it is asked where it is before that is said again. */
const ASK_AGAIN_MS = 15000;
/** Browsers give WGS-84 (W3C Geolocation section 5.3). Sent at most every 10 s, and at least every 25 s while on duty. */
export function locate(on: boolean): void {
  if (!on) {
    if (watch !== null) navigator.geolocation.clearWatch(watch);
    watch = null;
    return;
  }
  if (watch !== null) return;
  if (!window.isSecureContext || !("geolocation" in navigator)) {
    fix.value = { state: "bad", text: t("fixInsecure"), at: 0 };
    return;
  }
  fix.value = { state: "wait", text: t("fixWait"), at: 0 };
  watch = navigator.geolocation.watchPosition(
    (position) => {
      latest = position;
      here.value = { lat: position.coords.latitude, lon: position.coords.longitude, datum: "wgs84" };
      pump(10000);
    },
    (error) => {
      fix.value = { state: "bad", text: error.code === error.PERMISSION_DENIED ? t("fixDenied") : t("fixFail"), at: 0 };
    },
    { enableHighAccuracy: true, maximumAge: 5000, timeout: 20000 },
  );
}
export function pump(everyMs: number): void {
  if (!latest || Date.now() - lastSent < everyMs || me.value?.duty === "off") return;
  lastSent = Date.now();
  const soon = (): void => {
    lastSent = Date.now() - everyMs + 3000;
  };
  const send = (found: GeolocationPosition): void => {
    latest = found;
    const { latitude, longitude, accuracy, speed } = found.coords;
    sendFix(latitude, longitude, "wgs84", accuracy, speed, found.timestamp).catch(soon);
  };
  if (Date.now() - latest.timestamp < ASK_AGAIN_MS) send(latest);
  else
    navigator.geolocation.getCurrentPosition(send, soon, {
      enableHighAccuracy: true,
      maximumAge: 5000,
      timeout: 10000,
    });
}
