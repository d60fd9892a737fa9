/** Keeps the event that was taken by telephone true to what the gateway says of it. */
import { ApiError, get, seg } from "./api.ts";
import type { Alarm, HelperTask, Incident } from "./model.ts";
import { afterAlarm, afterIncident, afterTask, notOwn, type Taken } from "./taken.ts";
import { remember, task } from "./worker-state.ts";

function becomes(next: Taken | null): void {
  if (next === task.value) return;
  task.value = next;
  remember();
}
export const hearTask = (heard: HelperTask): void => becomes(afterTask(task.value, heard));
export const hearIncident = (heard: Incident): void => becomes(afterIncident(task.value, heard));
export const hearAlarm = (heard: Alarm): void => becomes(afterAlarm(task.value, heard));

/** Asks the gateway how the event stands. Without an answer it stays as it is. */
export async function checkTaken(): Promise<void> {
  const asked = task.value;
  if (!asked) return;
  try {
    if (!asked.incident && asked.alarm) hearAlarm(await get<Alarm>(`/api/v1/alarms/${seg(asked.alarm)}`));
    const incident = task.value?.call === asked.call ? task.value.incident : null;
    if (incident) hearIncident(await get<Incident>(`/api/v1/incidents/${seg(incident)}`));
  } catch (error) {
    if (error instanceof ApiError && notOwn(error.status) && task.value?.call === asked.call) becomes(null);
  }
}

/** A report of it was refused: it goes if that is why. */
export async function refusedTaken(error: unknown): Promise<void> {
  if (!(error instanceof ApiError)) return;
  if (notOwn(error.status)) becomes(null);
  else if (error.status === 409) await checkTaken();
}
