/** Tasks of a gridworker or a volunteer: offered, accepted, on the way, on the scene, done; with words and photos. */
import { signal } from "@preact/signals";
import { useRef, useState } from "preact/hooks";
import { errorOf, get, seg, unsafeHeaders } from "./api.ts";
import { clock, t, tv } from "./text.ts";
import { fail, postOrKeep, say, session } from "./worker-state.ts";

export interface HelperTask {
  id: string;
  state: string;
  assignee: { id: string; name: string; role: string };
  incident: { id: string; number: string; type: string; severity: number; place_label: string; state: string };
  offered_at?: number;
  photos: { sha256: string }[];
}
export const tasks = signal<ReadonlyMap<string, HelperTask>>(new Map());
const OPEN = ["OFFERED", "ACCEPTED", "EN_ROUTE", "ON_SCENE"];
/** What may be done next, in the order of the thumb: the first is the big button. */
const STEPS: Record<string, readonly string[]> = {
  OFFERED: ["accept", "decline"],
  ACCEPTED: ["on_scene", "en_route"],
  EN_ROUTE: ["on_scene"],
  ON_SCENE: ["done"],
};
const PHOTO_EDGE = 1600; // pixels: enough to read a sign, small enough for a bad network

export async function loadTasks(): Promise<void> {
  const found = await get<{ tasks: HelperTask[] }>("/api/v1/tasks?mine=1&open=1");
  tasks.value = new Map(found.tasks.map((task) => [task.id, task]));
}
export function onTask(next: HelperTask): void {
  if (next.assignee.id !== session.value?.sub) return;
  const map = new Map(tasks.value);
  if (OPEN.includes(next.state)) map.set(next.id, next);
  else map.delete(next.id);
  tasks.value = map;
}

/** Scaled down on the phone, so that a photo goes out over a bad network. */
async function scaled(file: File): Promise<Blob> {
  const picture = await createImageBitmap(file);
  const ratio = Math.min(1, PHOTO_EDGE / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(picture.width * ratio);
  canvas.height = Math.round(picture.height * ratio);
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error(t("photoBad")))), "image/jpeg", 0.82),
  );
}
async function addPhoto(task: HelperTask, file: File): Promise<void> {
  const response = await fetch(`/api/v1/tasks/${seg(task.id)}/photos`, {
    method: "POST",
    credentials: "same-origin",
    headers: { ...unsafeHeaders, "Content-Type": "image/jpeg" },
    body: await scaled(file),
    signal: AbortSignal.timeout(60000),
  });
  if (!response.ok) throw await errorOf(response);
  const photo = (await response.json()) as { sha256: string };
  tasks.value = new Map(tasks.value).set(task.id, { ...task, photos: [...task.photos, photo] });
  say(t("photoSent"));
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
      <b>{of.incident.place_label}</b>
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
      <div class="task">
        {(STEPS[of.state] ?? []).map((step, i) => (
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
        ))}
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
