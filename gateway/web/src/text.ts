/** The words of the pages: two tables, one switch. The page is drawn anew when the language changes, so `t` may be a plain function. */
import { en } from "./text-en.ts";
import { reasonIn } from "./reasons.ts";
import { zh } from "./text-zh.ts";

export type Key = keyof typeof zh;
export type Language = "zh" | "en";

function chosen(): Language {
  // A link may ask for a language: in the fragment, which outlives the way over the log-in page.
  const asked =
    new URLSearchParams(location.search).get("lang") ?? new URLSearchParams(location.hash.slice(1)).get("lang");
  if (asked) localStorage.setItem("lang", asked);
  return (asked ?? globalThis.localStorage?.getItem("lang")) === "en" ? "en" : "zh";
}
export const language: Language = chosen();
const table: Record<Key, string> = language === "en" ? en : zh;

export function setLanguage(next: Language): void {
  localStorage.setItem("lang", next);
  const url = new URL(location.href);
  url.searchParams.delete("lang");
  if (url.href === location.href) location.reload();
  else location.replace(url.href);
}

/** Says to the browser, and so to screen readers, which language the page speaks and what it is called. */
export function announceLanguage(title: Key): void {
  document.documentElement.lang = language === "en" ? "en" : "zh-CN";
  document.title = `${t(title)} · ${t("app")}`;
}

/** The text for `key`, with {name} replaced by `values.name`. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return table[key].replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** The text for a value out of a closed set (`kind.help`); a value that this table doesn't know yet is shown as it came. */
export function tv(group: string, value: string): string {
  const key = `${group}.${value}`;
  return key in table ? table[key as Key] : value;
}

const NAMED = ["handling", "step", "task", "call", "move", "act", "mode"];
/** A value within a reason: a state or a step, by whichever table knows it. */
function named(value: string): string {
  for (const group of NAMED) if (`${group}.${value}` in table) return table[`${group}.${value}` as Key];
  return value;
}
/** Why something is refused or out of order, as the gateway says it, in the reader's language. */
export const why = (said: string | null | undefined): string => (said ? reasonIn(language, said, named) : "");

/** How long ago or how long still, in the largest unit that fits. `ms` is clamped at zero. */
export function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return t("second", { n: s });
  if (s < 3600) return t("minute", { n: Math.floor(s / 60) });
  if (s < 86400) return t("hour", { n: Math.floor(s / 3600) });
  return t("day", { n: Math.floor(s / 86400) });
}

/** How far the time that a device wrote on its press is from the time it came in, as `skew_ms` (device less gateway) says it. */
export const skew = (ms: number): string => t(ms < 0 ? "skewBefore" : "skewAfter", { t: span(Math.abs(ms)) });

export function distance(metres: number): string {
  return metres < 1000 ? t("metre", { n: Math.round(metres) }) : t("km", { n: (metres / 1000).toFixed(1) });
}

export function clock(ms: number, seconds = true): string {
  const two = (n: number): string => String(n).padStart(2, "0");
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}${seconds ? `:${two(d.getSeconds())}` : ""}`;
}

/** Month and day, and the year where it is another one. */
export function day(ms: number): string {
  const d = new Date(ms);
  const md = `${d.getMonth() + 1}-${String(d.getDate()).padStart(2, "0")}`;
  return d.getFullYear() === new Date().getFullYear() ? md : `${d.getFullYear()}-${md}`;
}

/** The month that the gateway counts an event in, `YYYY-MM`: by the district's clock (UTC+8), wherever the reader sits. */
export const monthOf = (ms: number): string => new Date(ms + 8 * 3_600_000).toISOString().slice(0, 7);

export const octets = (n: number): string => (n < 1e6 ? `${Math.ceil(n / 1e3)} kB` : `${(n / 1e6).toFixed(1)} MB`);
