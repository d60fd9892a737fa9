"""The alarm path's tables, its hot statements and the JSON form of an alarm (contract section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.sql import Executable

from gateway.alarms.escalation import DeadlineKind, Level, Progress
from gateway.alarms.press import Kind, PlaceKind
from gateway.errors import NotFound
from gateway.geo import Position
from gateway.store import Prepared, defer, insert_rows, metadata

__all__ = [
    "ALONE",
    "NOT_ACKNOWLEDGED",
    "Deadlines",
    "Neighbour",
    "Row",
    "add_deadlines",
    "add_timeline",
    "alarm_row",
    "alarm_table",
    "alarm_view",
    "blank_alarm",
    "cell_of",
    "cells_around",
    "deadline_table",
    "deadlines_of",
    "decode",
    "incident_table",
    "known_presses",
    "lineage_of",
    "load",
    "load_deadlines",
    "load_incident",
    "load_many",
    "neighbours",
    "open_alarms",
    "press_table",
    "progress_of",
    "replace_deadlines",
    "report_table",
    "stamp_incident",
    "store_deadlines",
    "timeline_of",
    "timeline_table",
    "update_alarm",
]

Row = dict[str, Any]
"""One row of `alarm_table` by column name."""
Neighbour = tuple[str, str | None, str, float, float, int]
"""(alarm id, group id, source, lat, lon, received at)."""
Deadlines = dict[DeadlineKind, int]
"""UTC ms by kind."""

alarm_table = Table(
    "alarm",
    metadata,
    Column("id", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("press_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("silent", Boolean, nullable=False),
    Column("handling", Text, nullable=False),
    Column("condition", Text, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("place_kind", Text, nullable=False),
    Column("place_ref", Text),
    Column("place_label", Text, nullable=False),
    Column("camera", Text),  # watched at the press, also when the place was corrected to the household
    Column("household", Text),
    Column("lat", Float),
    Column("lon", Float),
    Column("cell", BigInteger),
    Column("district", Text),
    Column("street", Text),
    Column("community", Text),
    Column("grid", Text),
    Column("received_at", BigInteger, nullable=False),
    Column("device_time", BigInteger, nullable=False),
    Column("repeats", Integer, nullable=False),
    Column("alerted_at", BigInteger, nullable=False),
    Column("shown_at", BigInteger),
    Column("acknowledged_at", BigInteger),
    Column("acknowledged_sub", Text),
    Column("acknowledged_name", Text),
    Column("outcome", Text),
    Column("type", Text),
    Column("severity", Integer),
    Column("police", Text),
    Column("merged_into", Text),
    Column("incident_id", Text),
    Column("call_id", Text),
    Column("worker_id", Text),
    Column("worker_name", Text),
    Column("eta_s", Integer),
    Column("level", Text, nullable=False),
    Column("base_ms", BigInteger, nullable=False),
    Column("group_id", Text),
    Column("cleared_at", BigInteger),
    Column("closed_at", BigInteger),
    Column("call_back", Text),  # JSON {at, sub, name, outcome, note} since the last cancel
)
Index(
    "uq_alarm_press",
    alarm_table.c.source,
    alarm_table.c.press_id,
    unique=True,
    sqlite_where=alarm_table.c.verified,
)
Index("ix_alarm_open", alarm_table.c.source, sqlite_where=alarm_table.c.closed_at.is_(None))
Index("ix_alarm_cell", alarm_table.c.cell, alarm_table.c.received_at)
Index("ix_alarm_received_at", alarm_table.c.received_at)

press_table = Table(
    "press",
    metadata,
    Column("source", Text, primary_key=True),
    Column("press_id", Text, primary_key=True),
    Column("alarm_id", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("via", Text, nullable=False),
    sqlite_with_rowid=False,
)
deadline_table = Table(
    "alarm_deadline",
    metadata,
    Column("alarm_id", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_alarm_deadline_at", deadline_table.c.at)
timeline_table = Table(
    "alarm_timeline",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("alarm_id", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("event", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("detail", Text, nullable=False),
)
Index("ix_alarm_timeline_alarm_id", timeline_table.c.alarm_id, timeline_table.c.id)
incident_table = Table(
    "incident",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("police", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("came_from", Text),
    Column("alarm_id", Text),
    Column("place_label", Text, nullable=False),
    Column("lat", Float),
    Column("lon", Float),
    Column("district", Text),
    Column("street", Text),
    Column("community", Text),
    Column("grid", Text),
    Column("reported_by", Text, nullable=False),
    Column("reported_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("reopened", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("dispatched_at", BigInteger),
    Column("on_scene_at", BigInteger),
    Column("submitted_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("action_by", BigInteger),
    Column("follow_up_at", BigInteger),
    Column("satisfied", Boolean),
    Column("score", Integer),
    Column("transferred_to", Text),
)
Index("ix_incident_action_by", incident_table.c.action_by)
Index("ix_incident_reported_at", incident_table.c.reported_at)
Index("ix_incident_state", incident_table.c.state, incident_table.c.reported_at)
Index("ix_incident_alarm_id", incident_table.c.alarm_id)
report_table = Table(
    "incident_report",
    metadata,
    Column("source", Text, primary_key=True),
    Column("report_id", Text, primary_key=True),
    Column("incident_id", Text, nullable=False),
    Column("answer", Text, nullable=False),  # JSON, as it was given the first time
    sqlite_with_rowid=False,
)

ALONE = (Kind.TEST, Kind.SOS)
"""Kinds that neither join a group nor lead one: no gridworker is rung for them, and a press near by must ring."""
CELL_DEGREES = 0.002
"""Side of a cell of the grouping index, over 150 m everywhere south of 47 degrees north, so that 3 x 3
cells cover the radius.
"""
CELLS_A_ROW = 1_000_000

_INSERT_DEADLINE = Prepared(insert(deadline_table))
_DELETE_DEADLINES = Prepared(delete(deadline_table).where(deadline_table.c.alarm_id == bindparam("of_alarm")))
_DEADLINES = Prepared(
    select(deadline_table.c.kind, deadline_table.c.at).where(
        deadline_table.c.alarm_id == bindparam("of_alarm")
    )
)
_LOAD = Prepared(select(alarm_table).where(alarm_table.c.id == bindparam("of_alarm")))
_MANY: dict[tuple[str, int], Prepared] = {}
NOT_ACKNOWLEDGED: Row = {"acknowledged_at": None, "acknowledged_sub": None, "acknowledged_name": None}
_UPDATES: dict[tuple[str, ...], Prepared] = {}
_COLUMNS = tuple(column.name for column in alarm_table.columns)
_BLANK: Row = {column.name: None for column in alarm_table.columns}


def blank_alarm(**values: object) -> Row:
    """A whole new row; columns not named are NULL."""
    return {**_BLANK, **values}


def alarm_row(values: Any) -> Row:
    """A row of the driver, in the order of the columns, by name."""
    return dict(zip(_COLUMNS, values, strict=True))


def update_alarm(connection: Connection, row: Row, **values: object) -> Row:
    """Changes columns of the alarm; returns the row as it is now."""
    names = tuple(values)
    prepared = _UPDATES.get(names)
    if prepared is None:
        changed = update(alarm_table).where(alarm_table.c.id == bindparam("of_alarm"))
        prepared = _UPDATES[names] = Prepared(changed.values({name: bindparam(name) for name in names}))
    prepared.run(connection, {**values, "of_alarm": row["id"]})
    return {**row, **values}


def load(connection: Connection, alarm_id: str) -> Row:
    """Raises NotFound."""
    row = _LOAD.first(connection, {"of_alarm": alarm_id})
    if row is None:
        raise NotFound(f"no alarm {alarm_id}")
    return alarm_row(row)


def known_presses(
    connection: Connection, presses: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[str, int]]:
    """(alarm id, receive time) of those that are known, by (source, press id)."""
    found: dict[tuple[str, str], tuple[str, int]] = {}
    p = press_table.c
    for some in _slices(presses):
        prepared = _of_many(
            "known",
            len(some),
            lambda size: select(p.source, p.press_id, p.alarm_id, p.received_at).where(
                or_(
                    *(
                        and_(p.source == bindparam(f"a{i}"), p.press_id == bindparam(f"b{i}"))
                        for i in range(size)
                    )
                )
            ),
        )
        values = {f"a{i}": one[0] for i, one in enumerate(some)} | {
            f"b{i}": one[1] for i, one in enumerate(some)
        }
        for source, press_id, alarm_id, at in prepared.run(connection, values).fetchall():
            found[source, press_id] = alarm_id, at
    return found


def open_alarms(connection: Connection, sources: Sequence[str]) -> list[Row]:
    """The verified alarms of these sources that are not closed."""
    found: list[Row] = []
    for some in _slices(sources):
        prepared = _of_many(
            "open",
            len(some),
            lambda size: select(alarm_table).where(
                alarm_table.c.source.in_([bindparam(f"a{i}") for i in range(size)]),
                alarm_table.c.verified,
                alarm_table.c.closed_at.is_(None),
            ),
        )
        rows = prepared.run(connection, {f"a{i}": one for i, one in enumerate(some)})
        found += [alarm_row(values) for values in rows.fetchall()]
    return found


def load_many(connection: Connection, alarm_ids: Sequence[str]) -> dict[str, tuple[Row, Deadlines]]:
    """Alarms with their deadlines, by id; those that are not there are left out."""
    found: dict[str, tuple[Row, Deadlines]] = {}
    for some in _slices(alarm_ids):
        values = {f"a{i}": one for i, one in enumerate(some)}
        rows = _of_many(
            "rows",
            len(some),
            lambda size: select(alarm_table).where(
                alarm_table.c.id.in_([bindparam(f"a{i}") for i in range(size)])
            ),
        ).run(connection, values)
        for row in map(alarm_row, rows.fetchall()):
            found[row["id"]] = row, {}
    for alarm_id, deadlines in deadlines_of(connection, tuple(found)).items():
        found[alarm_id][1].update(deadlines)
    return found


def deadlines_of(connection: Connection, alarm_ids: Sequence[str]) -> dict[str, Deadlines]:
    """By alarm; those without any are left out."""
    found: dict[str, Deadlines] = {}
    d = deadline_table.c
    for some in _slices(alarm_ids):
        rows = _of_many(
            "deadlines",
            len(some),
            lambda size: select(d.alarm_id, d.kind, d.at).where(
                d.alarm_id.in_([bindparam(f"a{i}") for i in range(size)])
            ),
        ).run(connection, {f"a{i}": one for i, one in enumerate(some)})
        for alarm_id, kind, at in rows.fetchall():
            found.setdefault(alarm_id, {})[DeadlineKind(kind)] = at
    return found


def replace_deadlines(connection: Connection, progress: Mapping[str, Mapping[DeadlineKind, int]]) -> None:
    """As store_deadlines, for many alarms."""
    for some in _slices(tuple(progress)):
        _of_many(
            "forget",
            len(some),
            lambda size: delete(deadline_table).where(
                deadline_table.c.alarm_id.in_([bindparam(f"a{i}") for i in range(size)])
            ),
        ).run(connection, {f"a{i}": one for i, one in enumerate(some)})
    add_deadlines(connection, progress)


def add_deadlines(connection: Connection, progress: Mapping[str, Mapping[DeadlineKind, int]]) -> None:
    rows = [
        {"alarm_id": alarm_id, "kind": kind, "at": at}
        for alarm_id, deadlines in progress.items()
        for kind, at in deadlines.items()
    ]
    if rows:
        insert_rows(connection, deadline_table, rows)


AT_ONCE = 64


def _slices(values: Sequence[Any]) -> Iterator[list[Any]]:
    """Of AT_ONCE, the last filled up to a power of two by its last value: few different statements, each prepared once."""
    for start in range(0, len(values), AT_ONCE):
        some = list(values[start : start + AT_ONCE])
        yield some + some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))


def _of_many(name: str, size: int, statement: Callable[[int], Executable]) -> Prepared:
    prepared = _MANY.get((name, size))
    if prepared is None:
        prepared = _MANY[name, size] = Prepared(statement(size))
    return prepared


def add_timeline(
    connection: Connection, alarm_id: str, *, at: int, event: str, by: str, **detail: object
) -> None:
    """by: `stb/000123`, `operator/zhang`, `system`."""
    text = msgspec.json.encode(detail).decode()
    defer(
        connection,
        timeline_table,
        {"alarm_id": alarm_id, "at": at, "event": event, "by": by, "detail": text},
    )


def decode(text: str) -> dict[str, Any]:
    """A stored detail."""
    detail: dict[str, Any] = msgspec.json.decode(text)
    return detail


def timeline_of(connection: Connection, alarm_id: str) -> list[Row]:
    c = timeline_table.c
    rows = connection.execute(
        select(c.at, c.event, c.by, c.detail).where(c.alarm_id == alarm_id).order_by(c.id)
    )
    return [{"at": at, "event": event, "by": by, "detail": decode(text)} for at, event, by, text in rows]


def load_deadlines(connection: Connection, alarm_id: str) -> dict[DeadlineKind, int]:
    return {DeadlineKind(kind): at for kind, at in _DEADLINES.run(connection, {"of_alarm": alarm_id})}


def progress_of(connection: Connection, row: Row) -> Progress:
    return Progress(
        level=Level(row["level"]), base_ms=row["base_ms"], deadlines=load_deadlines(connection, row["id"])
    )


def store_deadlines(connection: Connection, alarm_id: str, deadlines: Mapping[DeadlineKind, int]) -> None:
    """Replaces the alarm's deadlines."""
    _DELETE_DEADLINES.run(connection, {"of_alarm": alarm_id})
    for kind, at in deadlines.items():
        _INSERT_DEADLINE.run(connection, {"alarm_id": alarm_id, "kind": kind, "at": at})


def cell_of(point: Position | None) -> int | None:
    if point is None:
        return None
    return math.floor((point.lat + 90) / CELL_DEGREES) * CELLS_A_ROW + math.floor(
        (point.lon + 180) / CELL_DEGREES
    )


def neighbours(
    connection: Connection, points: Sequence[Position], *, since_ms: int
) -> dict[int, list[Neighbour]]:
    """Open verified alarms since then in the cells around these points, by cell, to be measured exactly."""
    cells = sorted({cell for point in points for cell in cells_around(point)})
    found: dict[int, list[Neighbour]] = {}
    a = alarm_table.c
    for some in _slices(cells):
        prepared = _of_many(
            "near",
            len(some),
            lambda size: select(a.cell, a.id, a.group_id, a.source, a.lat, a.lon, a.received_at).where(
                a.cell.in_([bindparam(f"a{i}") for i in range(size)]),
                a.received_at >= bindparam("since"),
                a.closed_at.is_(None),
                a.verified,
                *(a.kind != kind.value for kind in ALONE),
            ),
        )
        values: dict[str, Any] = {f"a{i}": one for i, one in enumerate(some)}
        for cell, *rest in prepared.run(connection, {**values, "since": since_ms}).fetchall():
            found.setdefault(cell, []).append((*rest,))
    return found


def cells_around(point: Position) -> list[int]:
    middle = cell_of(point) or 0
    return [middle + row * CELLS_A_ROW + column for row in (-1, 0, 1) for column in (-1, 0, 1)]


def load_incident(connection: Connection, incident_id: str) -> Row:
    """Raises NotFound."""
    query = select(incident_table).where(incident_table.c.id == incident_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFound(f"no incident {incident_id}")
    return dict(row)


def stamp_incident(connection: Connection, incident_id: str, column: str, now_ms: int) -> None:
    """Takes down when a step was first reached."""
    stamped = incident_table.c[column]
    connection.execute(
        update(incident_table)
        .where(incident_table.c.id == incident_id, stamped.is_(None))
        .values({column: now_ms})
    )


def lineage_of(row: Row) -> tuple[str, ...]:
    """Codes of district, street, community and grid as far as known, outermost first: what authorize()
    needs.
    """
    lineage: list[str] = []
    for level in ("district", "street", "community", "grid"):
        if row[level] is None:
            break
        lineage.append(row[level])
    return tuple(lineage)


def position_of(row: Row) -> Position | None:
    return None if row["lat"] is None else Position(lat=row["lat"], lon=row["lon"])


def _call_back(text: str) -> dict[str, object]:
    said = decode(text)
    by = {"sub": said.pop("sub"), "name": said.pop("name")}
    return {"at": said.pop("at"), "by": by, **said}


def alarm_view(row: Row, deadlines: Mapping[DeadlineKind, int]) -> dict[str, object]:
    """The contract's Alarm in its list form."""
    return {
        "id": row["id"],
        "source": row["source"],
        "press_id": row["press_id"],
        "kind": row["kind"],
        "silent": bool(row["silent"]),
        "handling": row["handling"],
        "condition": row["condition"],
        "verified": bool(row["verified"]),
        "place": {
            "kind": PlaceKind(row["place_kind"]),
            "ref": row["place_ref"],
            "label": row["place_label"],
            "position": None if row["lat"] is None else {"lat": row["lat"], "lon": row["lon"]},
        },
        "street": row["street"],
        "community": row["community"],
        "grid": row["grid"],
        "received_at": row["received_at"],
        "device_time": row["device_time"],
        "skew_ms": row["device_time"] - row["received_at"],
        "repeats": row["repeats"],
        "alerted_at": row["alerted_at"],
        "group_id": row["group_id"],
        "shown_at": row["shown_at"],
        "acknowledged_at": row["acknowledged_at"],
        "acknowledged_by": None
        if row["acknowledged_sub"] is None
        else {"sub": row["acknowledged_sub"], "name": row["acknowledged_name"]},
        "outcome": row["outcome"],
        "severity": row["severity"],
        "police": row["police"],
        "merged_into": row["merged_into"],
        "incident_id": row["incident_id"],
        "call_id": row["call_id"],
        "dispatched": None
        if row["worker_id"] is None
        else {"id": row["worker_id"], "name": row["worker_name"], "eta_s": row["eta_s"]},
        "level": row["level"],
        "cleared_at": row["cleared_at"],
        "closed_at": row["closed_at"],
        "call_back": None if row["call_back"] is None else _call_back(row["call_back"]),
        "deadlines": [
            {"kind": kind, "at": at} for kind, at in sorted(deadlines.items(), key=lambda item: item[1])
        ],
    }
