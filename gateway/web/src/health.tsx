/** Which cameras need somebody: no picture and why, or a picture that shows nothing. */
import { useEffect, useState } from "preact/hooks";
import { get } from "./api.ts";
import { badPicture, type Camera } from "./model.ts";
import { areaName, cameras, tick, view } from "./state.ts";
import { language, span, t, tv, why } from "./text.ts";
import { place } from "./tiles.tsx";

const FILTERS = ["trouble", "down", "picture", "all"] as const;
type Filter = (typeof FILTERS)[number];
const MOST = 200;
const AGAIN_MS = 10000; // figures change all the time and are no news of their own

const matches = (c: Camera, filter: Filter): boolean =>
  filter === "all" || (filter !== "picture" && c.state === "down") || (filter !== "down" && badPicture(c) !== null);

/** What is wrong, and since when (UTC ms). */
function trouble(c: Camera): { text: string; since: number | null } {
  if (c.state === "down") return { text: why(c.reason) || tv("cam", "down"), since: c.since };
  const picture = c.picture;
  if (picture && picture.verdict !== "ok") {
    const word = tv("picture", picture.verdict);
    const more = language === "zh" && picture.reason && picture.reason !== word ? `：${picture.reason}` : "";
    return { text: `${word}${more}`, since: picture.since };
  }
  return { text: "", since: null };
}

export default function HealthPage() {
  const [filter, setFilter] = useState<Filter>("trouble");
  const [words, setWords] = useState("");
  useEffect(() => {
    const load = (): void =>
      void get<{ cameras: Camera[] }>("/api/v1/cameras").then(
        (said) => {
          cameras.value = new Map(said.cameras.map((c) => [c.id, c]));
        },
        () => undefined, // the banner tells of a lost gateway
      );
    load();
    const timer = setInterval(load, AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  const all = [...cameras.value.values()];
  const count = (name: Filter): number => all.filter((c) => matches(c, name)).length;
  const asked = words.trim().toLowerCase();
  const found = all
    .filter((c) => matches(c, filter))
    .filter((c) => !asked || `${c.name} ${c.id} ${areaName(c.community)}`.toLowerCase().includes(asked))
    .sort(
      (a, b) =>
        Number(b.state === "down") - Number(a.state === "down") || (trouble(b).since ?? 0) - (trouble(a).since ?? 0),
    );
  return (
    <section class="sheetpage" data-page-view="health" aria-label={t("health")}>
      <header>
        <h2>{t("health")}</h2>
        <div class="seg" role="group" aria-label={t("filter")}>
          {FILTERS.map((name) => (
            <button
              type="button"
              key={name}
              aria-pressed={filter === name}
              data-filter={name}
              onClick={() => setFilter(name)}
            >
              {t(
                ({ trouble: "filterTrouble", down: "cam.down", picture: "filterPicture", all: "filterAll" } as const)[
                  name
                ],
              )}{" "}
              <b>{count(name)}</b>
            </button>
          ))}
        </div>
        <input
          type="search"
          placeholder={t("filterWords")}
          aria-label={t("filterWords")}
          value={words}
          onInput={(e) => setWords(e.currentTarget.value)}
        />
        <span class="grow" />
        <button
          type="button"
          class="x"
          aria-label={t("close")}
          onClick={() => {
            view.value = "tiles";
          }}
        >
          ✕
        </button>
      </header>
      <div class="scroll">
        {found.length === 0 && (
          <p class={`pad ${filter === "all" || asked ? "quiet" : "ok"}`}>
            {asked ? t("searchNone", { q: words }) : filter === "all" ? t("noCameras") : `✓ ${t("allWell")}`}
          </p>
        )}
        {found.length > 0 && (
          <div class="wide-table">
            <table>
              <thead>
                <tr>
                  <th scope="col">{t("camera")}</th>
                  <th scope="col">{t("level.community")}</th>
                  <th scope="col">{t("stateColumn")}</th>
                  <th scope="col">{t("trouble")}</th>
                  <th scope="col">{t("sinceColumn")}</th>
                  <th scope="col">{t("streamColumn")}</th>
                  <th scope="col">{t("watching")}</th>
                </tr>
              </thead>
              <tbody>
                {found.slice(0, MOST).map((c) => {
                  const what = trouble(c);
                  const shown = c.streams.main.width ? c.streams.main : (c.streams.sub ?? c.streams.main);
                  return (
                    <tr
                      key={c.id}
                      data-health-camera={c.id}
                      class={c.state === "down" ? "down" : what.text ? "odd" : ""}
                    >
                      <th scope="row">
                        <button
                          type="button"
                          class="link"
                          title={t("toTile")}
                          onClick={() => {
                            place(c.id);
                            view.value = "tiles";
                          }}
                        >
                          {c.name}
                        </button>
                      </th>
                      <td>{areaName(c.community)}</td>
                      <td>
                        {{ live: "●", connecting: "◐", idle: "○", down: "✕" }[c.state]} {tv("cam", c.state)}
                      </td>
                      <td>{what.text || "—"}</td>
                      <td>{what.since ? t("ago", { t: span(tick.value - what.since) }) : "—"}</td>
                      <td>
                        {shown.width ? `${shown.codec ?? ""} ${shown.width}×${shown.height}` : "—"}
                        {shown.fps ? ` · ${Math.round(shown.fps)} fps` : ""}
                        {shown.kbps ? ` · ${Math.round(shown.kbps)} kbps` : ""}
                      </td>
                      <td>{c.streams.main.viewers + (c.streams.sub?.viewers ?? 0)}</td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        )}
        {found.length > MOST && <p class="quiet pad">{t("more", { n: found.length - MOST })}</p>}
      </div>
    </section>
  );
}
