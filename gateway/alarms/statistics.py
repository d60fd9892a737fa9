"""Figures of the closed loop by gridworker, community or street, for a month of China's calendar, and the ranking.

An incident counts for the month in which it was reported. Times are seconds; percentiles are nearest-rank over the
incidents that have both ends of the span:

    acknowledge   receipt of the alarm -> an operator took it
    dispatch      report of the incident -> first dispatch
    on_scene      report -> the first helper arrived
    close         report -> end

The published ranking orders by what was closed of what was reported, then by the median time to the scene, then by code.
"""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select

from gateway.alarms.incident import IncidentState
from gateway.alarms.records import alarm_table, incident_table, lineage_of
from gateway.alarms.tasks import task_table
from gateway.errors import ProtocolError
from gateway.store import Store

__all__ = ["By", "Statistics", "month_of", "to_csv"]

CHINA = datetime.timezone(datetime.timedelta(hours=8))
SPANS = ("acknowledge", "dispatch", "on_scene", "close")
Json = dict[str, Any]


class By(StrEnum):
    WORKER = "worker"
    COMMUNITY = "community"
    STREET = "street"


def month_of(text: str) -> tuple[int, int]:
    """`YYYY-MM` as UTC ms [from, to). Raises ProtocolError."""
    try:
        first = datetime.datetime.strptime(text, "%Y-%m").replace(tzinfo=CHINA)
    except ValueError:
        raise ProtocolError("month must be YYYY-MM") from None
    after = (first.replace(day=28) + datetime.timedelta(days=4)).replace(day=1)
    return round(first.timestamp() * 1000), round(after.timestamp() * 1000)


class Statistics:
    def __init__(self, store: Store, *, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock

    def this_month(self) -> str:
        return datetime.datetime.fromtimestamp(self._clock() / 1000, CHINA).strftime("%Y-%m")

    async def figures(
        self,
        by: By,
        month: str,
        *,
        visible: Callable[[tuple[str, ...]], bool] = lambda lineage: True,
        name: Callable[[str], str] = lambda code: code,
    ) -> list[Json]:
        """One entry for each that had an incident, in the order of the ranking (`rank` from 1)."""
        low, high = month_of(month)
        rows = await self._store.read(lambda c: _incidents(c, low, high))
        groups: dict[str, list[Json]] = {}
        for row in rows:
            if visible(lineage_of(row)):
                for code in _keys(row, by):
                    groups.setdefault(code, []).append(row)
        entries = [
            {"code": code, "name": name(code), **_summary(members)} for code, members in groups.items()
        ]
        entries.sort(key=_rank)
        return [{"rank": number, **entry} for number, entry in enumerate(entries, 1)]


def to_csv(entries: Sequence[Json]) -> str:
    """With a byte order mark, so that spreadsheets read the Chinese names."""
    columns = [
        "rank",
        "code",
        "name",
        "reported",
        "closed",
        "closed_rate",
        "reopened",
        "reopen_rate",
        "satisfied_rate",
    ]
    spans = [(span, quantile) for span in SPANS for quantile in ("p50", "p90")]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*columns, *(f"{span}_{quantile}_s" for span, quantile in spans)])
    for entry in entries:
        times = [entry[f"{span}_s"].get(quantile, "") for span, quantile in spans]
        writer.writerow([*(_cell(entry[column]) for column in columns), *times])
    return "\ufeff" + out.getvalue()


def _cell(value: object) -> object:
    """A name that a spreadsheet would take for a formula is text (OWASP: CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@") else value


def _incidents(c: Connection, low: int, high: int) -> list[Json]:
    alarm = alarm_table.c
    query = (
        select(incident_table, alarm.received_at, alarm.acknowledged_at)
        .outerjoin(alarm_table, alarm.id == incident_table.c.alarm_id)
        .where(incident_table.c.reported_at >= low, incident_table.c.reported_at < high)
    )
    rows = [dict(row) for row in c.execute(query).mappings()]
    workers: dict[str, set[str]] = {}
    helped = (
        select(task_table.c.incident_id, task_table.c.assignee)
        .join(incident_table, incident_table.c.id == task_table.c.incident_id)
        .where(
            incident_table.c.reported_at >= low,
            incident_table.c.reported_at < high,
            task_table.c.role == "worker",
            task_table.c.accepted_at.is_not(None),
        )
    )
    for incident_id, assignee in c.execute(helped):
        workers.setdefault(incident_id, set()).add(assignee)
    return [{**row, "workers": workers.get(row["id"], set())} for row in rows]


def _keys(row: Json, by: By) -> Iterable[str]:
    """A gridworker's are those that were reported (上报) or handled by that worker."""
    if by is By.WORKER:
        role, _, sub = row["reported_by"].partition("/")
        return {*row["workers"], *([sub] if role == "worker" else [])}
    return [row[by]] if row[by] is not None else []


def _summary(rows: list[Json]) -> Json:
    counted = [row for row in rows if row["state"] not in (IncidentState.MERGED, IncidentState.CANCELLED)]
    closed = [row for row in counted if row["state"] == IncidentState.ARCHIVED]
    reopened = sum(1 for row in counted if row["reopened"])
    answers = [bool(row["satisfied"]) for row in counted if row["satisfied"] is not None]
    spans = {
        "acknowledge": [(row["received_at"], row["acknowledged_at"]) for row in counted],
        "dispatch": [(row["reported_at"], row["dispatched_at"]) for row in counted],
        "on_scene": [(row["reported_at"], row["on_scene_at"]) for row in counted],
        "close": [(row["reported_at"], row["ended_at"]) for row in closed],
    }
    return {
        "reported": len(counted),
        "closed": len(closed),
        "closed_rate": _share(len(closed), len(counted)),
        "reopened": reopened,
        "reopen_rate": _share(reopened, len(counted)),
        "satisfied_rate": _share(sum(answers), len(answers)),
        **{f"{span}_s": _percentiles(pairs) for span, pairs in spans.items()},
    }


def _rank(entry: Json) -> tuple[float, float, str]:
    return -(entry["closed_rate"] or 0.0), entry["on_scene_s"].get("p50", math.inf), entry["code"]


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _percentiles(pairs: Iterable[tuple[int | None, int | None]]) -> dict[str, float]:
    spans = sorted((b - a) / 1000 for a, b in pairs if a is not None and b is not None)
    if not spans:
        return {}
    return {
        f"p{share}": round(spans[max(0, math.ceil(share / 100 * len(spans)) - 1)], 1)
        for share in (50, 90, 95)
    }
