/** Saved layouts and tours: kept by the gateway for each user, so that they follow the operator from desk to desk. */
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { api, get } from "./api.ts";
import { attempt, say } from "./state.ts";
import { t } from "./text.ts";

export interface Layout {
  name: string;
  layout: number;
  tiles: (string | null)[];
}
export interface Tour {
  name: string;
  stops: string[];
  dwell_s: number;
}
interface Kept {
  layouts: Layout[];
  tours: Tour[];
}
const PATH = "/api/v1/me/layouts";
const DWELLS = [10, 15, 30, 60, 120];

export const layouts = signal<Layout[]>([]);
export const tours = signal<Tour[]>([]);

/** `old`: what an earlier version of this page kept in the browser; it moves to the gateway once. */
export async function loadLayouts(old: Layout[]): Promise<void> {
  const kept = await attempt(() => get<Kept>(PATH));
  if (!kept) return;
  layouts.value = kept.layouts;
  tours.value = kept.tours;
  if (kept.layouts.length === 0 && old.length > 0) await keep(old, []);
}

async function keep(next: Layout[], nextTours: Tour[]): Promise<boolean> {
  const names = new Set(next.map((one) => one.name));
  // A tour without one of its layouts goes on with the others; without any it ends.
  const left = nextTours
    .map((tour) => ({ ...tour, stops: tour.stops.filter((stop) => names.has(stop)) }))
    .filter((tour) => tour.stops.length > 0);
  const kept = await attempt(() => api<Kept>("PUT", PATH, { layouts: next, tours: left }));
  if (!kept) return false;
  layouts.value = kept.layouts;
  tours.value = kept.tours;
  return true;
}

export const saveLayout = async (one: Layout): Promise<void> => {
  if (await keep([...layouts.value.filter((other) => other.name !== one.name), one], tours.value))
    say(t("layoutSaved"));
};

/** The sheet that opens from the bar above the tiles. */
export function LayoutSheet({
  current,
  onUse,
  onTour,
  onClose,
}: {
  current: () => Omit<Layout, "name">;
  onUse: (one: Layout | null) => void;
  onTour: (tour: Tour) => void;
  onClose: () => void;
}) {
  const [name, setName] = useState("");
  const [ticked, setTicked] = useState<string[]>([]);
  const [tourName, setTourName] = useState("");
  const [dwell, setDwell] = useState(15);
  useEffect(() => {
    // Wherever the focus is: Escape means this sheet as long as it is open.
    const escape = (e: KeyboardEvent): void => {
      if (e.key !== "Escape") return;
      e.stopPropagation();
      onClose();
    };
    addEventListener("keydown", escape, true);
    return () => removeEventListener("keydown", escape, true);
  }, [onClose]);
  const use = (one: Layout | null): void => {
    onUse(one);
    onClose();
  };
  return (
    <section class="layoutsheet" role="dialog" aria-label={t("layoutsAndTours")}>
      <header>
        <h2>{t("layoutsAndTours")}</h2>
        <button type="button" class="x" aria-label={t("close")} onClick={onClose}>
          ✕
        </button>
      </header>
      <form
        onSubmit={(e) => {
          e.preventDefault();
          const said = name.trim();
          if (said) void saveLayout({ name: said, ...current() });
          setName("");
        }}
      >
        <input
          autofocus
          maxLength={20}
          placeholder={t("saveName")}
          aria-label={t("saveName")}
          value={name}
          onInput={(e) => setName(e.currentTarget.value)}
        />
        <button type="submit" class="primary" data-act="save-layout" disabled={!name.trim()}>
          {t("save")}
        </button>
      </form>
      <ul>
        <li>
          <button type="button" class="link grow" onClick={() => use(null)}>
            {t("defaultLayout")}
          </button>
        </li>
        {layouts.value.map((one) => (
          <li key={one.name} data-layout-name={one.name}>
            <input
              type="checkbox"
              aria-label={t("inTour", { name: one.name })}
              checked={ticked.includes(one.name)}
              onChange={(e) =>
                setTicked(e.currentTarget.checked ? [...ticked, one.name] : ticked.filter((n) => n !== one.name))
              }
            />
            <button type="button" class="link grow" onClick={() => use(one)}>
              {one.name}（{one.layout}）
            </button>
            <button
              type="button"
              aria-label={`${t("remove")} ${one.name}`}
              onClick={() =>
                void keep(
                  layouts.value.filter((other) => other.name !== one.name),
                  tours.value,
                )
              }
            >
              ✕
            </button>
          </li>
        ))}
      </ul>
      {layouts.value.length === 0 && <p class="quiet">{t("noLayouts")}</p>}
      {layouts.value.length > 1 && (
        <form
          class="maketour"
          onSubmit={(e) => {
            e.preventDefault();
            const said = tourName.trim();
            if (!said || ticked.length < 1) return;
            const tour = { name: said, stops: ticked, dwell_s: dwell };
            void keep(layouts.value, [...tours.value.filter((other) => other.name !== said), tour]);
            setTourName("");
            setTicked([]);
          }}
        >
          <input
            maxLength={20}
            placeholder={t("tourName")}
            aria-label={t("tourName")}
            value={tourName}
            onInput={(e) => setTourName(e.currentTarget.value)}
          />
          <select aria-label={t("dwell")} value={dwell} onChange={(e) => setDwell(Number(e.currentTarget.value))}>
            {DWELLS.map((s) => (
              <option key={s} value={s}>
                {t("second", { n: s })}
              </option>
            ))}
          </select>
          <button type="submit" data-act="save-tour" disabled={!tourName.trim() || ticked.length === 0}>
            {t("makeTour", { n: ticked.length })}
          </button>
        </form>
      )}
      {tours.value.length > 0 && (
        <ul>
          {tours.value.map((tour) => (
            <li key={tour.name} data-tour={tour.name}>
              <button
                type="button"
                class="link grow"
                onClick={() => {
                  onTour(tour);
                  onClose();
                }}
              >
                ▶ {tour.name}（{tour.stops.length} × {t("second", { n: tour.dwell_s })}）
              </button>
              <button
                type="button"
                aria-label={`${t("remove")} ${tour.name}`}
                onClick={() =>
                  void keep(
                    layouts.value,
                    tours.value.filter((other) => other.name !== tour.name),
                  )
                }
              >
                ✕
              </button>
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}
