/** What becomes of the event that a gridworker took by telephone, as more is heard of it. Pure, so that node can test it. */

/** The event taken last, until it is reported done. `incident`: null until the center has opened one. */
export interface Taken {
  call: string;
  incident: string | null;
  alarm: string | null;
  label: string;
  arrived: boolean;
}
interface OfIncident {
  id: string;
  state: string;
  alarm_id?: string | null;
}

/** States in which there is nothing left to report from the scene. */
const DONE = ["VERIFYING", "RATED", "ARCHIVED", "TRANSFERRED", "MERGED", "CANCELLED"];

const about = (taken: Taken, incident: OfIncident): boolean =>
  incident.id === taken.incident || (!!incident.alarm_id && incident.alarm_id === taken.alarm);

/** The center has sent a task for the same event: from then on that one is worked on, and once it is over so is the event. */
export const afterTask = (taken: Taken | null, task: { incident: OfIncident }): Taken | null =>
  taken && about(taken, task.incident) ? null : taken;

export function afterIncident(taken: Taken | null, incident: OfIncident): Taken | null {
  if (!taken || !about(taken, incident)) return taken;
  if (DONE.includes(incident.state)) return null;
  const arrived = taken.arrived || incident.state === "HANDLING"; // somebody at a desk may have said so
  return { ...taken, incident: incident.id, arrived };
}

export function afterAlarm(
  taken: Taken | null,
  alarm: { id: string; handling: string; incident_id: string | null },
): Taken | null {
  if (!taken || alarm.id !== taken.alarm) return taken;
  if (alarm.handling === "CLOSED") return null;
  const incident = alarm.incident_id ?? taken.incident;
  return incident === taken.incident ? taken : { ...taken, incident };
}

/** The gateway says that it is not, or no longer, one's own. A 409 says less: it may be too early as well as over. */
export const notOwn = (status: number): boolean => status === 403 || status === 404;
