/** What a page does with an alarm that comes in: bring it up, wait for a still moment, or only say so. Pure, so that node can test it. */

/** A screen that was touched so lately is not changed under the finger. */
export const STILL_MS = 3000;

export interface Moment {
  /** Somebody still has to take it, and its signature was good. */
  waiting: boolean;
  /** A press that tries the way out, of a drill or an installer: it stays in the queue, whatever the screen shows. */
  test: boolean;
  /** It was brought up on this page before, or the user left it there: a repeat or an escalation does not take the screen again. */
  seen: boolean;
  /** In the middle of other work: an own alarm, an incident, a call, a form. */
  occupied: boolean;
  sinceTouchMs: number;
}

/** `later`: ask again when the screen has been still; `say`: the bar with one tap is all. */
export function wayOf(moment: Moment): "nothing" | "bring" | "later" | "say" {
  if (!moment.waiting) return "nothing";
  if (moment.test || moment.seen || moment.occupied) return "say";
  return moment.sinceTouchMs < STILL_MS ? "later" : "bring";
}

const URGENCY: Record<string, number> = { NEW: 0, SHOWN: 1, ACKNOWLEDGED: 3, TRIAGED: 4, CLOSED: 5 };
const WAITING_TEST = 2;

/** Less comes first: what nobody has taken, and who needs help before who only tries the way out. */
export function urgencyOf(alarm: { handling: string; kind: string }): number {
  const urgency = URGENCY[alarm.handling] ?? 9;
  return alarm.kind === "test" ? Math.max(urgency, WAITING_TEST) : urgency;
}
