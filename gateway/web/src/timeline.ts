/** What the timeline says of an entry, in words that an operator knows: no codes, and people by their names. Pure, so that node can test it. */
import type { TimelineEntry } from "./model.ts";
import { t, tv } from "./text.ts";

/** A person's name by the id, where the page knows it. */
export type NameOf = (id: string) => string | undefined;

/** Members of a detail that mean something to an operator. */
const TOLD = [
  "via",
  "label",
  "level",
  "outcome",
  "note",
  "severity",
  "worker",
  "name",
  "reason",
  "repeats",
  "to",
  "score",
];
/** Members with a code for a value -> the table that has its words. */
const CODED: Record<string, string> = { outcome: "outcome", level: "level", reason: "why", via: "via" };

const membersOf = (entry: TimelineEntry): Record<string, unknown> =>
  typeof entry.detail === "object" && entry.detail !== null ? (entry.detail as Record<string, unknown>) : {};
/** `name` beside a worker or a volunteer is theirs (who was sent); alone it is that of whoever did it. */
const sent = (members: Record<string, unknown>): boolean =>
  members.worker !== undefined || members.volunteer !== undefined;

/** Who did it; "" for the gateway itself. */
export function doneBy(entry: TimelineEntry, nameOf: NameOf): string {
  const by = entry.by;
  if (by === null || by === "system") return "";
  if (typeof by !== "string") return by.name;
  if (by.startsWith("stb/")) return by.replace("stb/", `${t("box")} `);
  const id = by.replace(/^(operator|desk|leader|worker|volunteer)\//, "");
  const members = membersOf(entry);
  const own = sent(members) ? undefined : members.name;
  return (typeof own === "string" && own) || nameOf(id) || id;
}

/** What is told beside the event itself. */
export function toldOf(entry: TimelineEntry, nameOf: NameOf): string {
  const detail = entry.detail;
  if (detail === null || detail === undefined) return "";
  if (typeof detail !== "object") return typeof detail === "string" ? detail : JSON.stringify(detail);
  const members = membersOf(entry);
  const person = sent(members) && typeof members.name === "string" && members.name;
  const who = doneBy(entry, nameOf);
  const said = (key: string, value: string): string => {
    if (key === "worker") return person || nameOf(value) || value;
    return key in CODED ? tv(CODED[key] as string, value) : value;
  };
  return Object.entries(members)
    .filter(([k, v]) => TOLD.includes(k) && v !== null && v !== "" && typeof v !== "object")
    .filter(([k, v]) => k !== "name" || (v !== who && members.worker === undefined)) // said already
    .map(([k, v]) => `${tv("detail", k)} ${said(k, String(v))}`)
    .join(" · ");
}
