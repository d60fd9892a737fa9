/** Figures of a month by gridworker, community or street: the ranking that the district publishes, with plots, and as CSV. */
import { useEffect, useState } from "preact/hooks";
import { get, pageQuery } from "./api.ts";
import { serverNow } from "./events.ts";
import type { Figures, Quantiles } from "./model.ts";
import { view } from "./state.ts";
import { monthOf, t } from "./text.ts";

type By = "community" | "street" | "worker";
const BARS = 12;
const WIDTH = 600;

const thisMonth = (): string => monthOf(serverNow());
const percent = (rate: number | null): string => (rate === null ? "—" : `${Math.round(rate * 100)}%`);
const seconds = (s: number | undefined): string =>
  s === undefined ? "—" : s < 120 ? t("second", { n: Math.round(s) }) : t("minute", { n: Math.round(s / 60) });

/** Reported, and how much of it is closed, one bar each. */
function Counts({ rows }: { rows: Figures[] }) {
  const most = Math.max(1, ...rows.map((r) => r.reported));
  const line = 26;
  const left = 150;
  const wide = (n: number): number => ((WIDTH - left - 70) * n) / most;
  return (
    <svg
      class="plot"
      viewBox={`0 0 ${WIDTH} ${rows.length * line + 6}`}
      role="img"
      aria-label={t("plotCounts")}
      data-plot="counts"
    >
      {rows.map((r, i) => (
        <g key={r.code} transform={`translate(0 ${i * line + 4})`}>
          <text x={left - 8} y={15} class="label" text-anchor="end">
            {r.name}
          </text>
          <rect x={left} y={3} width={Math.max(1, wide(r.reported))} height={16} rx={3} class="reported" />
          <rect x={left} y={7} width={wide(r.closed)} height={8} rx={2} class="closed" />
          <text x={left + wide(r.reported) + 6} y={15} class="value">
            {r.closed}/{r.reported}
          </text>
        </g>
      ))}
    </svg>
  );
}

/** Median to 90 % of a time, against the standard it is measured by. `goal_s`: product.md section 5. */
function Times({ rows, of, goal_s, label }: { rows: Figures[]; of: keyof Figures; goal_s: number; label: string }) {
  const with_ = rows.filter((r) => (r[of] as Quantiles).p50 !== undefined);
  if (with_.length === 0) return null;
  const most = Math.max(goal_s * 1.5, ...with_.map((r) => (r[of] as Quantiles).p90 ?? 0));
  const line = 22;
  const left = 150;
  const x = (s: number): number => left + ((WIDTH - left - 70) * Math.min(s, most)) / most;
  const high = with_.length * line + 24;
  return (
    <figure>
      <figcaption>{label}</figcaption>
      <svg class="plot" viewBox={`0 0 ${WIDTH} ${high}`} role="img" aria-label={label} data-plot={of}>
        <line x1={x(goal_s)} x2={x(goal_s)} y1={0} y2={high - 16} class="goal" />
        <text x={x(goal_s)} y={high - 4} class="label" text-anchor="middle">
          {t("goal", { s: seconds(goal_s) })}
        </text>
        {with_.map((r, i) => {
          const q = r[of] as Quantiles;
          const late = (q.p90 ?? 0) > goal_s;
          return (
            <g key={r.code} transform={`translate(0 ${i * line})`}>
              <text x={left - 8} y={14} class="label" text-anchor="end">
                {r.name}
              </text>
              <line x1={x(q.p50 ?? 0)} x2={x(q.p90 ?? 0)} y1={10} y2={10} class={late ? "span late" : "span"} />
              <circle cx={x(q.p50 ?? 0)} cy={10} r={4} class="median" />
              <text x={x(q.p90 ?? 0) + 8} y={14} class="value">
                {late ? "▲ " : ""}
                {seconds(q.p90)}
              </text>
            </g>
          );
        })}
      </svg>
    </figure>
  );
}

export default function StatisticsPage() {
  const [by, setBy] = useState<By>("community");
  const [month, setMonth] = useState(thisMonth());
  const [found, setFound] = useState<Figures[] | null>(null);
  const [error, setError] = useState("");
  const [round, setRound] = useState(0);
  useEffect(() => {
    let current = true;
    setFound(null);
    setError("");
    get<{ entries: Figures[] }>(`/api/v1/statistics?by=${by}&month=${month}`).then(
      (said) => current && setFound(said.entries),
      (why: unknown) => current && setError(why instanceof Error ? why.message : String(why)),
    );
    return () => {
      current = false;
    };
  }, [by, month, round]);
  const busiest = [...(found ?? [])].sort((a, b) => b.reported - a.reported).slice(0, BARS);
  return (
    <section class="sheetpage" data-page-view="statistics" aria-label={t("statistics")}>
      <header>
        <h2>{t("statistics")}</h2>
        <div class="seg" role="group" aria-label={t("statisticsBy")}>
          {(["community", "street", "worker"] as const).map((name) => (
            <button type="button" key={name} aria-pressed={by === name} data-by={name} onClick={() => setBy(name)}>
              {t(({ community: "byCommunity", street: "byStreet", worker: "byWorker" } as const)[name])}
            </button>
          ))}
        </div>
        <input
          type="month"
          aria-label={t("month")}
          value={month}
          max={thisMonth()}
          onChange={(e) => {
            if (/^\d{4}-\d\d$/.test(e.currentTarget.value)) setMonth(e.currentTarget.value);
          }}
        />
        <a
          class="button"
          data-act="csv"
          href={`/api/v1/statistics?by=${by}&month=${month}&format=csv${pageQuery("&")}`}
          download={`statistics-${by}-${month}.csv`}
        >
          ⤓ CSV
        </a>
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
        {error && (
          <p class="warn pad">
            {t("loadFailed", { why: error })}{" "}
            <button type="button" onClick={() => setRound(round + 1)}>
              {t("retry")}
            </button>
          </p>
        )}
        {!error && found === null && <p class="quiet pad">{t("boot")}</p>}
        {found?.length === 0 && <p class="quiet pad">{t("noFigures", { m: month })}</p>}
        {found && found.length > 0 && (
          <>
            <div class="plots">
              <figure>
                <figcaption>
                  {t("plotCounts")} <em class="key reported">■ {t("reported")}</em>{" "}
                  <em class="key closed">■ {t("closedN")}</em>
                </figcaption>
                <Counts rows={busiest} />
              </figure>
              <Times rows={busiest} of="acknowledge_s" goal_s={10} label={t("plotAcknowledge")} />
              <Times rows={busiest} of="dispatch_s" goal_s={60} label={t("plotDispatch")} />
            </div>
            <div class="wide-table">
              <table>
                <thead>
                  <tr>
                    <th scope="col">{t("rank")}</th>
                    <th scope="col">{t("nameColumn")}</th>
                    <th scope="col">{t("reported")}</th>
                    <th scope="col">{t("closedN")}</th>
                    <th scope="col">{t("closedRate")}</th>
                    <th scope="col">{t("reopenRate")}</th>
                    <th scope="col">{t("satisfiedRate")}</th>
                    <th scope="col">{t("toAcknowledge")}</th>
                    <th scope="col">{t("toDispatch")}</th>
                    <th scope="col">{t("toScene")}</th>
                    <th scope="col">{t("toClose")}</th>
                  </tr>
                </thead>
                <tbody>
                  {found.map((r) => (
                    <tr key={r.code}>
                      <td>{r.rank}</td>
                      <th scope="row">{r.name}</th>
                      <td>{r.reported}</td>
                      <td>{r.closed}</td>
                      <td>{percent(r.closed_rate)}</td>
                      <td>{percent(r.reopen_rate)}</td>
                      <td>{percent(r.satisfied_rate)}</td>
                      <td>{seconds(r.acknowledge_s.p90)}</td>
                      <td>{seconds(r.dispatch_s.p90)}</td>
                      <td>{seconds(r.on_scene_s.p90)}</td>
                      <td>{seconds(r.close_s.p90)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
            <p class="quiet">{t("figuresNote")}</p>
          </>
        )}
      </div>
    </section>
  );
}
