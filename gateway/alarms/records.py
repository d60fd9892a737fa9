"""The alarm path's tables, its hot statements and the JSON form of an alarm (contract section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    bindparam,
    delete,
    insert,
    select,
    update,
)

from gateway.alarms.escalation import DeadlineKind, Level, Progress
from gateway.alarms.press import Kind, PlaceKind
from gateway.errors import NotFound
from gateway.geo import Position
from gateway.store import Prepared, defer, metadata

__all__ = [
    "ALONE",
    "Row",
    "add_press",
    "add_timeline",
    "alarm_row",
    "alarm_table",
    "alarm_view",
    "cell_of",
    "deadline_table",
    "decode",
    "incident_table",
    "insert_alarm",
    "lineage_of",
    "load",
    "load_deadlines",
    "load_incident",
    "neighbours",
    "press_table",
    "progress_of",
    "stamp_incident",
    "store_deadlines",
    "timeline_of",
    "timeline_table",
    "update_alarm",
]

Row = dict[str, Any]
"""One row of `alarm_table` by column name."""

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

ALONE = (Kind.TEST, Kind.SOS)
"""Kinds that neither join a group nor lead one: no gridworker is rung for them, and a press near by must ring."""
CELL_DEGREES = 0.002
"""Side of a cell of the grouping index, over 150 m everywhere south of 47 degrees north, so that 3 x 3
cells cover the radius.
"""
CELLS_A_ROW = 1_000_000

_INSERT_ALARM = Prepared(insert(alarm_table))
_INSERT_DEADLINE = Prepared(insert(deadline_table))
_INSERT_PRESS = Prepared(insert(press_table))
_DELETE_DEADLINES = Prepared(delete(deadline_table).where(deadline_table.c.alarm_id == bindparam("of_alarm")))
_DEADLINES = Prepared(
    select(deadline_table.c.kind, deadline_table.c.at).where(
        deadline_table.c.alarm_id == bindparam("of_alarm")
    )
)
_LOAD = Prepared(select(alarm_table).where(alarm_table.c.id == bindparam("of_alarm")))
_NEIGHBOURS = Prepared(
    select(
        alarm_table.c.id,
        alarm_table.c.group_id,
        alarm_table.c.source,
        alarm_table.c.lat,
        alarm_table.c.lon,
    ).where(
        alarm_table.c.cell.in_([bindparam(f"cell{i}") for i in range(9)]),
        alarm_table.c.received_at >= bindparam("since"),
        alarm_table.c.closed_at.is_(None),
        alarm_table.c.verified,
        *(alarm_table.c.kind != kind.value for kind in ALONE),
    )
)
_UPDATES: dict[tuple[str, ...], Prepared] = {}
_COLUMNS = tuple(column.name for column in alarm_table.columns)
_BLANK: Row = {column.name: None for column in alarm_table.columns}


def insert_alarm(connection: Connection, **values: object) -> Row:
    """Writes a new alarm; columns not named are NULL. Returns the whole row."""
    row = {**_BLANK, **values}
    _INSERT_ALARM.run(connection, row)
    return row


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


def add_press(
    connection: Connection, *, source: str, press_ids: list[str], alarm_id: str, now_ms: int, via: str
) -> None:
    row = {"source": source, "alarm_id": alarm_id, "received_at": now_ms, "via": via}
    for press_id in press_ids:
        _INSERT_PRESS.run(connection, {**row, "press_id": press_id})


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


def store_deadlines(
    connection: Connection, alarm_id: str, deadlines: Mapping[DeadlineKind, int], *, new: bool = False
) -> None:
    """Replaces the alarm's deadlines. `new`: there are none yet."""
    if not new:
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
    connection: Connection, point: Position, *, since_ms: int
) -> list[tuple[str, str | None, str, Position]]:
    """Open verified alarms since then in the cells around: (id, group_id, source, position), to be
    measured exactly.
    """
    middle = cell_of(point) or 0
    cells = {f"cell{i}": middle + (i // 3 - 1) * CELLS_A_ROW + (i % 3 - 1) for i in range(9)}
    rows = _NEIGHBOURS.run(connection, {**cells, "since": since_ms})
    return [(row[0], row[1], row[2], Position(lat=row[3], lon=row[4])) for row in rows]


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
        "deadlines": [
            {"kind": kind, "at": at} for kind, at in sorted(deadlines.items(), key=lambda item: item[1])
        ],
    }
