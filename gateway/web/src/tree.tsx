/** Cameras by street and community, with a search over names. */
import { signal } from "@preact/signals";
import { useMemo, useState } from "preact/hooks";
import { badPicture, type Camera } from "./model.ts";
import { areaName, areas, cameras, workers } from "./state.ts";
import { t, tv, why } from "./text.ts";
import { onPage, place, startDrag } from "./tiles.tsx";

export const searchText = signal("");
const SHAPE: Record<string, string> = { live: "●", connecting: "◐", idle: "○", down: "✕" };
const LIMIT = 80;

function Row({ camera }: { camera: Camera }) {
  const bad = badPicture(camera);
  return (
    <button
      type="button"
      class={`cam c-${camera.state}${onPage.value.includes(camera.id) ? " on" : ""}`}
      data-tree-camera={camera.id}
      title={`${camera.name} · ${tv("cam", camera.state)}${camera.reason ? ` · ${why(camera.reason)}` : ""}${bad ? ` · ${bad.reason}` : ""}`}
      onPointerDown={(e) => {
        if (e.button === 0 && e.pointerType === "mouse") startDrag(e, camera);
      }}
      onDblClick={() => place(camera.id)}
      onKeyDown={(e) => {
        if (e.key === "Enter") {
          e.stopPropagation();
          place(camera.id);
        }
      }}
    >
      <i aria-hidden="true">{SHAPE[camera.state] ?? "○"}</i>
      <span>{camera.name}</span>
      <small class={bad ? "bad" : undefined}>{bad ? `⚠ ${tv("picture", bad.verdict)}` : tv("cam", camera.state)}</small>
    </button>
  );
}

/** How many there are, and how many are out of order: an idle camera is not broken, it is only not being watched. */
function Health({ list }: { list: Camera[] }) {
  const down = list.filter((c) => c.state === "down").length;
  return (
    <small>
      {down > 0 && <em class="bad">✕{down} </em>}
      {list.length}
    </small>
  );
}

export function Tree() {
  const [open, setOpen] = useState<ReadonlySet<string> | null>(null);
  const all = cameras.value;
  const grouped = useMemo(() => {
    const streets = new Map<string, Map<string, Camera[]>>();
    for (const camera of all.values()) {
      const community = camera.community ?? "";
      const street = areas.value.get(community)?.parent ?? "";
      const inside = streets.get(street) ?? new Map<string, Camera[]>();
      streets.set(street, inside.set(community, [...(inside.get(community) ?? []), camera]));
    }
    return streets;
  }, [all, areas.value]);
  const query = searchText.value.trim().toLowerCase();
  const found = query
    ? [...all.values()].filter((c) => `${c.name} ${c.id} ${areaName(c.community)}`.toLowerCase().includes(query))
    : [];
  /** Until the user folds anything, the first street stands open. */
  const unfolded = open ?? new Set([...grouped.keys()].slice(0, 1));
  const toggle = (key: string): void => {
    const next = new Set(unfolded);
    if (!next.delete(key)) next.add(key);
    setOpen(next);
  };
  const count = (list: Camera[], state: string): number => list.filter((c) => c.state === state).length;
  return (
    <nav class="tree" aria-label={t("cameras")}>
      <input
        id="search"
        type="search"
        placeholder={t("search")}
        aria-label={t("search")}
        value={searchText.value}
        onInput={(e) => {
          searchText.value = e.currentTarget.value;
        }}
      />
      <div class="scroll">
        {all.size === 0 && <p class="quiet pad">{t("noCameras")}</p>}
        {query && found.length === 0 && <p class="quiet pad">{t("searchNone", { q: searchText.value })}</p>}
        {query ? (
          <>
            {found.slice(0, LIMIT).map((c) => (
              <Row key={c.id} camera={c} />
            ))}
            {found.length > LIMIT && <p class="quiet pad">{t("more", { n: found.length - LIMIT })}</p>}
          </>
        ) : (
          [...grouped].map(([street, communities]) => {
            const list = [...communities.values()].flat();
            const wide = unfolded.has(street) || grouped.size === 1;
            return (
              <div key={street} class="branch">
                <button type="button" class="street" aria-expanded={wide} onClick={() => toggle(street)}>
                  <i aria-hidden="true">{wide ? "▾" : "▸"}</i>
                  <span>{areaName(street || null) || t("other")}</span>
                  <Health list={list} />
                </button>
                {wide &&
                  [...communities].map(([code, members]) => {
                    const key = `${street}/${code}`;
                    const shown = unfolded.has(key) || communities.size === 1;
                    return (
                      <div key={key} class="branch in">
                        <button type="button" class="community" aria-expanded={shown} onClick={() => toggle(key)}>
                          <i aria-hidden="true">{shown ? "▾" : "▸"}</i>
                          <span>{areaName(code || null) || t("other")}</span>
                          <Health list={members} />
                        </button>
                        {shown && members.map((c) => <Row key={c.id} camera={c} />)}
                      </div>
                    );
                  })}
              </div>
            );
          })
        )}
      </div>
      <footer class="counts">
        <span class="health">
          <b class="ok">● {count([...all.values()], "live")}</b> {t("cam.live")}
          <b>○ {count([...all.values()], "idle") + count([...all.values()], "connecting")}</b> {t("cam.idle")}
          <b class={count([...all.values()], "down") ? "bad" : ""}>✕ {count([...all.values()], "down")}</b>{" "}
          {t("cam.down")}
        </span>
        <span>
          {t("workersOn")} <b>{[...workers.value.values()].filter((w) => w.duty !== "off").length}</b>/
          {workers.value.size}
        </span>
      </footer>
    </nav>
  );
}
