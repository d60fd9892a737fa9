/** What belongs to an incident beside its own steps: who was sent and what they brought back, photos, and what may be the same. */
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { get, pageQuery, post, seg } from "./api.ts";
import { metres } from "./geo.ts";
import { applyIncident, moveIncident, note } from "./incident-state.ts";
import type { HelperTask, Incident, Photo, Volunteer } from "./model.ts";
import { areaName, attempt, decides, onCase, say, session, volunteers } from "./state.ts";
import { distance, t, tv } from "./text.ts";
import { Watermark } from "./watermark.tsx";

/** The newest news of a task, by which the open incident fetches its own anew. */
const taskNews = signal(0);
onCase((type) => {
  if (type === "task") taskNews.value++;
});

function Thumbs({ photos, path }: { photos: Photo[]; path: string }) {
  const [open, setOpen] = useState<string | null>(null);
  if (photos.length === 0) return null;
  const src = (photo: string): string => `${path}/${photo}${pageQuery("?")}`;
  return (
    <>
      <div class="thumbs">
        {photos.map((photo, i) => (
          <button
            type="button"
            key={photo.sha256}
            data-photo={photo.sha256}
            aria-pressed={open === photo.sha256}
            onClick={() => setOpen(open === photo.sha256 ? null : photo.sha256)}
          >
            <img loading="lazy" src={src(photo.sha256)} alt={t("photoN", { n: i + 1 })} />
          </button>
        ))}
      </div>
      {open && (
        <div class="photo">
          <img src={src(open)} alt={t("photo")} />
          <Watermark who={session.value?.name || session.value?.sub || ""} />
        </div>
      )}
    </>
  );
}

/** What a desk may do with a task in each state. */
const STEPS: Record<string, readonly string[]> = {
  OFFERED: ["revoke"],
  ACCEPTED: ["revoke"],
  EN_ROUTE: ["revoke"],
  ON_SCENE: ["revoke"],
  DONE: ["verify", "redo"],
};

function Task({ of, onChange }: { of: HelperTask; onChange: () => void }) {
  const act = (step: string): void => {
    void attempt(async () => {
      await post(`/api/v1/tasks/${seg(of.id)}/${step}`, {});
      say(t("done", { what: tv("act", step) }));
      onChange();
    });
  };
  return (
    <li data-task={of.id} data-task-state={of.state}>
      <span class="what">
        <b>{of.assignee.name}</b>
        {of.assignee.role === "volunteer" && <em class="tag">{t("volunteer")}</em>}
        <em class={`tag k-${of.state}`}>{tv("task", of.state)}</em>
      </span>
      {of.feedback && <p>{of.feedback}</p>}
      <Thumbs photos={of.photos} path={`/api/v1/tasks/${seg(of.id)}/photos`} />
      {decides.value && (STEPS[of.state]?.length ?? 0) > 0 && (
        <span class="buttons">
          {STEPS[of.state]?.map((step) => (
            <button type="button" key={step} data-act={`task-${step}`} onClick={() => act(step)}>
              {tv("act", step)}
            </button>
          ))}
        </span>
      )}
    </li>
  );
}

/** Tasks and photos of an incident. */
export function Work({ of }: { of: Incident }) {
  const [tasks, setTasks] = useState<HelperTask[] | null>(null);
  const [photos, setPhotos] = useState<Photo[]>([]);
  const [round, setRound] = useState(0);
  const news = taskNews.value;
  useEffect(() => {
    let current = true;
    void get<{ tasks: HelperTask[] }>(`/api/v1/tasks?incident=${seg(of.id)}`).then(
      (found) => current && setTasks(found.tasks),
      () => current && setTasks([]),
    );
    void get<{ photos: Photo[] }>(`/api/v1/incidents/${seg(of.id)}/photos`).then(
      (found) => current && setPhotos(found.photos),
      () => undefined,
    );
    return () => {
      current = false;
    };
  }, [of.id, of.state, news, round]);
  return (
    <>
      {photos.length > 0 && (
        <>
          <h3>{t("reportPhotos")}</h3>
          <Thumbs photos={photos} path={`/api/v1/incidents/${seg(of.id)}/photos`} />
        </>
      )}
      <h3>{t("tasks")}</h3>
      {tasks === null ? (
        <p class="quiet">{t("boot")}</p>
      ) : tasks.length === 0 ? (
        <p class="quiet">{t("noTasks")}</p>
      ) : (
        <ul class="tasks">
          {tasks.map((task) => (
            <Task key={task.id} of={task} onChange={() => setRound(round + 1)} />
          ))}
        </ul>
      )}
    </>
  );
}

interface Suggestion {
  id: string;
  number: string;
  type: string;
  place_label: string;
  state: string;
  distance_m: number;
}
/** Incidents near by in place and time: merging is suggested, never done by itself. */
export function MergeSuggestions({ of }: { of: Incident }) {
  const [found, setFound] = useState<Suggestion[]>([]);
  const may = decides.value && ["REPORTED", "DISPATCHED", "HANDLING"].includes(of.state);
  useEffect(() => {
    setFound([]);
    if (!may) return;
    let current = true;
    void get<{ incidents: Suggestion[] }>(`/api/v1/incidents/${seg(of.id)}/merge_suggestions`).then(
      (said) => current && setFound(said.incidents),
      () => undefined,
    );
    return () => {
      current = false;
    };
  }, [of.id, may]);
  if (!may || found.length === 0) return null;
  return (
    <section class="suggestions">
      <h3>{t("maybeSame")}</h3>
      <ul class="near">
        {found.slice(0, 5).map((one) => (
          <li key={one.id} data-suggestion={one.id}>
            <span>
              <b>{tv("kind", one.type)}</b> {one.place_label} <em class="tag">{tv("step", one.state)}</em>
            </span>
            <span class="num">
              {distance(one.distance_m)}
              <button
                type="button"
                class="pick"
                data-act="merge-into"
                onClick={() => void moveIncident(of, "merge", { into: one.id })}
              >
                {t("mergeIntoThis")}
              </button>
            </span>
            <small class="reason">{one.number}</small>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** 回访: what the resident says, by telephone; on the box he answers himself. */
export async function followUp(of: Incident, satisfied: boolean): Promise<void> {
  const said = note.value.trim();
  await attempt(async () => {
    const next = await post<Partial<Incident>>(`/api/v1/incidents/${seg(of.id)}/follow_up`, {
      satisfied,
      ...(said ? { note: said } : {}),
    });
    note.value = "";
    applyIncident({ ...of, ...next, satisfied });
    say(t("done", { what: t("followUp") }));
  });
}
/** May the desk say what the resident has told by telephone? */
export const followsUp = (of: Incident): boolean =>
  decides.value &&
  (of.state === "VERIFYING" || of.state === "RATED") &&
  of.satisfied !== true &&
  of.satisfied !== false;

export function FollowUp({ of }: { of: Incident }) {
  if (of.satisfied !== null && of.satisfied !== undefined)
    return (
      <p class={of.satisfied ? "ok" : "warn"} data-satisfied={String(of.satisfied)}>
        {of.satisfied ? "☺" : "☹"} {t(of.satisfied ? "residentGood" : "residentBad")}
      </p>
    );
  if (!followsUp(of)) return null;
  return (
    <div class="seg two wide" role="group" aria-label={t("followUp")}>
      {[true, false].map((satisfied) => (
        <button
          type="button"
          key={String(satisfied)}
          data-act={satisfied ? "follow-good" : "follow-bad"}
          onClick={() => void followUp(of, satisfied)}
        >
          {t("followUp")}: {t(satisfied ? "good" : "bad")}
          <kbd>{satisfied ? "Y" : "U"}</kbd>
        </button>
      ))}
    </div>
  );
}

const REACH_M = 500;
/** Red armbands near by who may be asked at this hour: they are offered the task, and need not take it. */
export function NearVolunteers({ of }: { of: Incident }) {
  const at = of.position;
  if (!at) return null;
  const far = (v: Volunteer): number => (v.position ? metres(at, v.position) : Infinity);
  const near = [...volunteers.value.values()]
    .filter((v) => v.available && far(v) <= REACH_M)
    .sort((a, b) => far(a) - far(b))
    .slice(0, 4);
  const may = decides.value && ["REPORTED", "DISPATCHED", "HANDLING"].includes(of.state);
  return (
    <>
      <h3>{t("nearVolunteers")}</h3>
      {near.length === 0 ? (
        <p class="quiet">{t("noVolunteers")}</p>
      ) : (
        <ol class="near">
          {near.map((v) => (
            <li key={v.id} data-near-volunteer={v.id}>
              <span>
                <b>{v.name}</b>
              </span>
              <span class="num">
                {distance(far(v))}
                {may && (
                  <button
                    type="button"
                    class="pick"
                    onClick={() => void moveIncident(of, "dispatch", { volunteer: v.id, name: v.name })}
                  >
                    {t("ask")}
                  </button>
                )}
              </span>
              <small class="reason">{areaName(v.community)}</small>
            </li>
          ))}
        </ol>
      )}
    </>
  );
}
