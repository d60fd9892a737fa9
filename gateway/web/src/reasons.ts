/**
 * Why the gateway says no, in the reader's language. It says so in short, stable sentences (the `detail` of a problem document,
 * the `reason` of a camera); reasons.json has each of them, {} standing for what is put in. A test compares it with the source.
 */
import table from "./reasons.json";

export interface Reason {
  said: string;
  zh: string;
  en?: string;
}
interface Known {
  pattern: RegExp;
  reason: Reason;
}

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const known: Known[] = (table as Reason[])
  .map((reason) => ({
    reason,
    pattern: new RegExp(`^${reason.said.split("{}").map(escaped).join("(.*)")}$`, "s"),
  }))
  // The most particular first: "cannot process: too many ..." before "cannot process: {}".
  .sort((a, b) => b.reason.said.replaceAll("{}", "").length - a.reason.said.replaceAll("{}", "").length);

/** `name` turns a value that is put in (a state, a step) into a word. A sentence that nobody knows comes as it was said. */
export function reasonIn(language: "zh" | "en", said: string, name: (value: string) => string = (v) => v): string {
  for (const { pattern, reason } of known) {
    const found = pattern.exec(said);
    if (!found) continue;
    const template = language === "zh" ? reason.zh : (reason.en ?? "");
    if (!template) return said;
    return template.replace(/\{(\d)\}/g, (whole, n: string) => name(found[Number(n) + 1] ?? whole));
  }
  return said;
}
