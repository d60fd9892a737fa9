/** Tasks of a gridworker or a volunteer: offered, accepted, on the way, on the scene, done; with words and photos. */
import { effect, signal } from "@preact/signals";
import { useRef, useState } from "preact/hooks";
import { get, seg } from "./api.ts";
import { metres, nearest } from "./geo.ts";
import type { Camera, CameraChoice, HelperTask, Position } from "./model.ts";
import { Swipe } from "./swipe.tsx";
import { clock, distance, t, tv } from "./text.ts";
import { scaled } from "./worker-photo.ts";
import { here } from "./worker-position.ts";
import { SceneCamera } from "./worker-screens.tsx";
import { fail, postOrKeep, say, sendPhoto, session } from "./worker-state.ts";
import { hearTask } from "./worker-taken.ts";

export const tasks = signal<ReadonlyMap<string, HelperTask>>(new Map());
const OPEN = ["OFFERED", "ACCEPTED", "EN_ROUTE", "ON_SCENE"];
/** What may be done next, in the order of the thumb: the first is the big button. */
const STEPS: Record<string, readonly string[]> = {
  OFFERED: ["accept", "decline"],
  ACCEPTED: ["on_scene", "en_route"],
  EN_ROUTE: ["on_scene"],
  ON_SCENE: ["done"],
};

export async function loadTasks(): Promise<void> {
  const found = await get<{ tasks: HelperTask[] }>("/api/v1/tasks?mine=1&open=1");
  tasks.value = new Map(found.tasks.map((task) => [task.id, task]));
  found.tasks.forEach(hearTask);
}
const shelf = (): string => `worker/${session.value?.sub ?? ""}/tasks`;
/** Tasks as they were last known, for a start without a network; from then on what changes is kept. */
export function recallTasks(): void {
  try {
    const held = JSON.parse(localStorage.getItem(shelf()) ?? "[]") as HelperTask[];
    tasks.value = new Map(held.map((task) => [task.id, task]));
  } catch {
    /* unreadable: they come with the network */
  }
  effect(() => localStorage.setItem(shelf(), JSON.stringify([...tasks.value.values()])));
}
export function onTask(next: HelperTask): void {
  if (next.assignee.id !== session.value?.sub) return;
  hearTask(next);
  const map = new Map(tasks.value);
  if (OPEN.includes(next.state)) map.set(next.id, next);
  else map.delete(next.id);
  tasks.value = map;
}

async function addPhoto(task: HelperTask, file: File): Promise<void> {
  const sent = await sendPhoto(`/api/v1/tasks/${seg(task.id)}/photos`, await scaled(file));
  const now = tasks.value.get(task.id);
  if (now) tasks.value = new Map(tasks.value).set(task.id, { ...now, photos: [...now.photos, sent ?? { sha256: "" }] });
  if (sent) say(t("photoSent"));
}

/** What happens at the place now, for whoever is on the way there: the best cameras around it, opened by a touch. */
function SceneCameras({ of }: { of: HelperTask }) {
  const [found, setFound] = useState<CameraChoice[] | null>(null);
  if (!of.position || session.value?.role === "volunteer") return null;
  if (found === null)
    return (
      <button
        type="button"
        data-act="scene-cameras"
        onClick={() =>
          void get<{ cameras: Camera[] }>("/api/v1/cameras").then(
            (all) => setFound(of.position ? nearest(of.position, all.cameras, 300).slice(0, 2) : []),
            fail,
          )
        }
      >
        ▣ {t("sceneCameras")}
      </button>
    );
  if (found.length === 0) return <p class="quiet">{t("noneNear")}</p>;
  return (
    <div class="strip" aria-label={t("sceneCameras")}>
      {found.map((choice) => (
        <SceneCamera key={choice.id} choice={choice} />
      ))}
    </div>
  );
}

/** How far and which way from here, where that is known; and the place itself with its datum, for any map. */
function Where({ at }: { at: Position }) {
  const own = here.value?.datum === "wgs84" ? here.value : null;
  return (
    <p class="quiet">
      {own && `➤ ${t("ringFrom", { d: distance(metres(own, at)) })} · `}
      {at.lat.toFixed(5)}, {at.lon.toFixed(5)} (WGS-84)
    </p>
  );
}

function TaskCard({ of }: { of: HelperTask }) {
  const [words, setWords] = useState("");
  const [busy, setBusy] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  const act = (step: string): void => {
    setBusy(true);
    postOrKeep<HelperTask>("feedback", `/api/v1/tasks/${seg(of.id)}/${step}`, { feedback: words.trim() })
      .then((next) => {
        if (next) onTask({ ...of, ...next });
      }, fail)
      .finally(() => setBusy(false));
  };
  const photo = (file: File | undefined): void => {
    if (!file) return;
    setBusy(true);
    addPhoto(of, file)
      .catch(fail)
      .finally(() => setBusy(false));
  };
  return (
    <div class="box" data-task={of.id} data-task-state={of.state}>
      <h2>
        {tv("kind", of.incident.type)} · {tv("task", of.state)}
      </h2>
      {of.incident.place_label && <b>{of.incident.place_label}</b>}
      {of.note && <p>{of.note}</p>}
      {of.position && <Where at={of.position} />}
      <p class="quiet">
        {of.incident.number}
        {of.offered_at ? ` · ${clock(of.offered_at, false)}` : ""}
      </p>
      {of.state === "ON_SCENE" && (
        <>
          <input
            placeholder={t("feedback")}
            aria-label={t("feedback")}
            maxLength={200}
            value={words}
            onInput={(e) => setWords(e.currentTarget.value)}
          />
          <input
            ref={input}
            hidden
            type="file"
            accept="image/*"
            capture="environment"
            onChange={(e) => photo(e.currentTarget.files?.[0])}
          />
          <button type="button" data-act="photo" disabled={busy} onClick={() => input.current?.click()}>
            ◉ {t("addPhoto")}
            {of.photos.length > 0 && ` (${of.photos.length})`}
          </button>
        </>
      )}
      {of.state !== "OFFERED" && <SceneCameras of={of} />}
      <div class="task">
        {(STEPS[of.state] ?? []).map((step, i) =>
          step === "on_scene" || step === "done" ? (
            <Swipe key={step} act={`task-${step}`} disabled={busy} label={tv("act", step)} onDone={() => act(step)} />
          ) : (
            <button
              type="button"
              key={step}
              class={i === 0 ? "go" : ""}
              data-act={`task-${step}`}
              disabled={busy}
              onClick={() => act(step)}
            >
              {tv("act", step)}
            </button>
          ),
        )}
      </div>
    </div>
  );
}

export function Tasks({ empty }: { empty: string }) {
  const list = [...tasks.value.values()];
  return (
    <>
      {list.map((task) => (
        <TaskCard key={task.id} of={task} />
      ))}
      {list.length === 0 && empty && <p class="quiet">{empty}</p>}
    </>
  );
}
