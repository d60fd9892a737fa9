"""Calls in the database: three tables, and the way between their rows and a `Call`.

A call is written by compare-and-set on its version, so of two that read the same state one loses, whatever
process or thread they run in. Legs and rings are only ever appended or changed, never removed: they are the
record of who was rung, why, and who spoke.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    bindparam,
    false,
    insert,
    select,
    update,
)

from gateway.errors import Conflict
from gateway.intercom.model import (
    Call,
    CallKind,
    CallState,
    Delivery,
    EndReason,
    Leg,
    Outcome,
    Participant,
    Rung,
    Side,
)
from gateway.store import Prepared, insert_rows, metadata

__all__ = [
    "about",
    "asked_at",
    "busy_workers",
    "insert_call",
    "insert_calls",
    "involving",
    "load",
    "missed",
    "open_for",
    "opened",
    "opened_for",
    "recent",
    "save",
]

calls = Table(
    "calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    # The alarm whose commit opened it: a ring plan that is delivered twice opens one call.
    Column("opened_for", Text, unique=True),
    Column("alarm_id", Text, index=True),
    Column("incident_id", Text, index=True),
    Column("place_label", Text, nullable=False),
    Column("lat", Float),
    Column("lon", Float),
    Column("lineage", Text, nullable=False),
    Column("grid", Text),
    Column("opened_by", Text),
    Column("rings", Text, nullable=False),
    Column("picked", Text, nullable=False),
    Column("cycle", Integer, nullable=False),
    Column("redial", Boolean, nullable=False),
    Column("ring_started_at", BigInteger, nullable=False),
    Column("ranked_at", BigInteger),
    Column("told_nobody", Boolean, nullable=False),
    Column("answered_by", Text),
    Column("answered_at", BigInteger),
    Column("active_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("end_reason", Text),
    Column("sos", Boolean, nullable=False, server_default=false()),
)
_open = calls.c.ended_at.is_(None)
Index("ix_calls_open", calls.c.opened_at, sqlite_where=_open, postgresql_where=_open)

call_legs = Table(
    "call_legs",
    metadata,
    Column("call_id", Text, ForeignKey("calls.id"), primary_key=True),
    Column("id", Text, primary_key=True),
    Column("participant_id", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("joined_at", BigInteger, nullable=False),
    Column("tracks", Text, nullable=False),
    Column("published_at", BigInteger),
    Column("lost_at", BigInteger),
    Column("restarts", Integer, nullable=False),
    Column("left_at", BigInteger),
    Column("recording", Boolean, nullable=False, server_default=false()),
    Column("watching", Boolean, nullable=False, server_default=false()),
    Column("unwatched_at", BigInteger),
)

call_rings = Table(
    "call_rings",
    metadata,
    Column("call_id", Text, ForeignKey("calls.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("distance_m", Float),
    Column("eta_s", Float),
    Column("reason", Text, nullable=False),
    Column("rung_at", BigInteger, nullable=False),
    Column("cycle", Integer, nullable=False),
    Column("own_grid", Boolean, nullable=False),
    Column("waiting", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("outcome_at", BigInteger),
    Column("deliveries", Text, nullable=False, server_default="[]"),
)
Index("ix_call_rings_worker", call_rings.c.worker_id, call_rings.c.rung_at)


# A storm of alarms opens as many calls: these statements run for each.
_CALL_COLUMNS = [column.name for column in calls.c if column.name not in ("id", "opened_for")]
_UPDATE_CALL = Prepared(
    update(calls)
    .where(calls.c.id == bindparam("of_call"), calls.c.version == bindparam("of_version"))
    .values({name: bindparam(name) for name in _CALL_COLUMNS})
)
_RING_COLUMNS = [column.name for column in call_rings.c if column.name not in ("call_id", "number")]
_UPDATE_RING = Prepared(
    update(call_rings)
    .where(call_rings.c.call_id == bindparam("of_call"), call_rings.c.number == bindparam("of_number"))
    .values({name: bindparam(name) for name in _RING_COLUMNS})
)
_CALL = Prepared(select(calls).where(calls.c.id == bindparam("of_call")))
_LEGS = Prepared(select(call_legs).where(call_legs.c.call_id == bindparam("of_call")))
_RINGS = Prepared(
    select(call_rings).where(call_rings.c.call_id == bindparam("of_call")).order_by(call_rings.c.number)
)
_OPENED_FOR = Prepared(select(calls.c.id).where(calls.c.opened_for == bindparam("of_alarm")))
_BUSY_WORKERS = Prepared(
    select(call_legs.c.participant_id)
    .join(calls, calls.c.id == call_legs.c.call_id)
    .where(_open, call_legs.c.left_at.is_(None), call_legs.c.role == "worker")
)


def load(connection: Connection, call_id: str) -> Call | None:
    found = _named(calls, _CALL, connection, call_id)
    if not found:
        return None
    row = found[0]
    legs = _named(call_legs, _LEGS, connection, call_id)
    rings = _named(call_rings, _RINGS, connection, call_id)
    return Call(
        id=row["id"],
        version=row["version"],
        kind=CallKind(row["kind"]),
        state=CallState(row["state"]),
        opened_at=row["opened_at"],
        alarm_id=row["alarm_id"],
        incident_id=row["incident_id"],
        place_label=row["place_label"],
        position=None if row["lat"] is None else (row["lat"], row["lon"]),
        lineage=msgspec.json.decode(row["lineage"], type=tuple[str, ...]),
        grid=row["grid"],
        opened_by=_participant(row["opened_by"]),
        rings=Side(row["rings"]),
        picked=msgspec.json.decode(row["picked"], type=tuple[str, ...]),
        cycle=row["cycle"],
        redial=bool(row["redial"]),
        ring_started_at=row["ring_started_at"],
        ranked_at=row["ranked_at"],
        told_nobody=bool(row["told_nobody"]),
        answered_by=_participant(row["answered_by"]),
        answered_at=row["answered_at"],
        active_at=row["active_at"],
        ended_at=row["ended_at"],
        end_reason=EndReason(row["end_reason"]) if row["end_reason"] else None,
        sos=bool(row["sos"]),
        legs=tuple(sorted(map(_leg, legs), key=lambda leg: int(leg.id.removeprefix("leg")))),
        rung=tuple(map(_rung, rings)),
    )


def insert_call(connection: Connection, call: Call, *, opened_for: str | None) -> None:
    """As insert_calls(), of one."""
    insert_calls(connection, [(call, opened_for)])


def insert_calls(connection: Connection, new: Sequence[tuple[Call, str | None]]) -> None:
    """Writes new calls (call, `opened_for`), in a few statements for all.

    `opened_for` must be new: look with `opened_for()` or `opened()` first, in the same transaction.
    """
    if not new:
        return
    rows = [{**_call_row(call), "id": call.id, "opened_for": opened_for} for call, opened_for in new]
    insert_rows(connection, calls, rows)
    rings = [
        {**_rung_row(ring), "call_id": call.id, "number": number}
        for call, _ in new
        for number, ring in enumerate(call.rung)
    ]
    if rings:
        insert_rows(connection, call_rings, rings)
    for call, _ in new:
        _write_parts(connection, call, legs=(), rung=call.rung)


def save(connection: Connection, before: Call, after: Call) -> None:
    """Writes what changed. Raises Conflict if the call is no longer at `before.version`."""
    if after.version == before.version:
        return
    values = {**_call_row(after), "of_call": before.id, "of_version": before.version}
    changed = _UPDATE_CALL.run(connection, values).rowcount
    if changed != 1:
        raise Conflict("the call changed meanwhile", state=before.state.value)
    _write_parts(connection, after, legs=before.legs, rung=before.rung)


def opened_for(connection: Connection, name: str) -> str | None:
    """The call that this alarm's commit (or a gridworker's call for help, `worker/{id}/{press}`) opened, ended or not."""
    row = _OPENED_FOR.first(connection, {"of_alarm": name})
    return None if row is None else row[0]


def opened(connection: Connection, names: Sequence[str]) -> set[str]:
    """Those of the names, of which `opened_for` knows one, that have a call."""
    found = connection.execute(select(calls.c.opened_for).where(calls.c.opened_for.in_(names)))
    return {str(name) for name in found.scalars()}


def asked_at(connection: Connection, call: Call) -> int:
    """When this call about an alarm was asked for, UTC milliseconds: by a desk, or by a press after a cancel
    (`AlarmBrief.opens`); 0 for that of the alarm's commit, which is before any cancel."""
    if call.opened_by is not None:
        return call.opened_at
    name = connection.execute(select(calls.c.opened_for).where(calls.c.id == call.id)).scalar()
    _, _, pressed_at = (name or "").rpartition("/")
    return int(pressed_at) if name and "/" in name and pressed_at.isdigit() else 0


def open_for(connection: Connection, alarm_id: str) -> list[str]:
    """The calls about this alarm that have not ended, oldest first."""
    found = select(calls.c.id).where(calls.c.alarm_id == alarm_id, _open).order_by(calls.c.opened_at)
    return list(connection.execute(found).scalars())


def about(connection: Connection, alarm_id: str) -> list[str]:
    """All calls about this alarm, oldest first."""
    found = select(calls.c.id).where(calls.c.alarm_id == alarm_id).order_by(calls.c.opened_at)
    return list(connection.execute(found).scalars())


def recent(connection: Connection, *, only_open: bool, limit: int) -> list[str]:
    """Ids of calls, newest first."""
    found = select(calls.c.id).order_by(calls.c.opened_at.desc(), calls.c.id.desc()).limit(limit)
    return list(connection.execute(found.where(_open) if only_open else found).scalars())


def involving(connection: Connection, worker_id: str) -> list[str]:
    """Open calls in which this gridworker has a place or whose ring reaches it."""
    seated = select(call_legs.c.call_id).where(
        call_legs.c.participant_id == worker_id, call_legs.c.left_at.is_(None)
    )
    rung = select(call_rings.c.call_id).where(
        call_rings.c.worker_id == worker_id, call_rings.c.outcome == Outcome.RINGING.value
    )
    found = select(calls.c.id).where(_open, calls.c.id.in_(seated.union(rung))).order_by(calls.c.opened_at)
    return list(connection.execute(found).scalars())


def busy_workers(connection: Connection) -> frozenset[str]:
    """Gridworkers who have a place in an open call."""
    return frozenset(row[0] for row in _BUSY_WORKERS.run(connection, {}))


def missed(connection: Connection, worker_id: str, since_ms: int, limit: int) -> list[tuple[str, int]]:
    """(call id, when it rang) of a worker's missed calls, newest first."""
    found = (
        select(call_rings.c.call_id, call_rings.c.rung_at)
        .where(
            call_rings.c.worker_id == worker_id,
            call_rings.c.rung_at >= since_ms,
            call_rings.c.outcome.in_([Outcome.EXPIRED.value, Outcome.CANCELLED.value]),
        )
        .order_by(call_rings.c.rung_at.desc())
        .limit(limit)
    )
    return [(call_id, rung_at) for call_id, rung_at in connection.execute(found)]


# ------------------------------------------------------------------------------------------------------- rows


def _write_parts(
    connection: Connection, call: Call, *, legs: tuple[Leg, ...], rung: tuple[Rung, ...]
) -> None:
    for number, leg in enumerate(call.legs):
        if number >= len(legs):
            connection.execute(insert(call_legs), {**_leg_row(leg), "call_id": call.id, "id": leg.id})
        elif leg != legs[number]:
            connection.execute(
                update(call_legs)
                .where(call_legs.c.call_id == call.id, call_legs.c.id == leg.id)
                .values(**_leg_row(leg))
            )
    numbered = list(enumerate(call.rung))
    new = [
        {**_rung_row(ring), "call_id": call.id, "number": number} for number, ring in numbered[len(rung) :]
    ]
    if new:
        insert_rows(connection, call_rings, new)
    changed = [(number, ring) for (number, ring), was in zip(numbered, rung, strict=False) if ring != was]
    if changed:
        rows = [{**_rung_row(ring), "of_call": call.id, "of_number": number} for number, ring in changed]
        _UPDATE_RING.run_many(connection, rows)


def _call_row(call: Call) -> dict[str, Any]:
    lat, lon = call.position or (None, None)
    return {
        "version": call.version,
        "kind": call.kind.value,
        "state": call.state.value,
        "opened_at": call.opened_at,
        "alarm_id": call.alarm_id,
        "incident_id": call.incident_id,
        "place_label": call.place_label,
        "lat": lat,
        "lon": lon,
        "lineage": _json(call.lineage),
        "grid": call.grid,
        "opened_by": _json(call.opened_by) if call.opened_by else None,
        "rings": call.rings.value,
        "picked": _json(call.picked),
        "cycle": call.cycle,
        "redial": call.redial,
        "ring_started_at": call.ring_started_at,
        "ranked_at": call.ranked_at,
        "told_nobody": call.told_nobody,
        "answered_by": _json(call.answered_by) if call.answered_by else None,
        "answered_at": call.answered_at,
        "active_at": call.active_at,
        "ended_at": call.ended_at,
        "end_reason": call.end_reason.value if call.end_reason else None,
        "sos": call.sos,
    }


def _leg_row(leg: Leg) -> dict[str, Any]:
    return {
        "participant_id": leg.participant.id,
        "name": leg.participant.name,
        "role": leg.participant.role,
        "device": leg.device,
        "joined_at": leg.joined_at,
        "tracks": ",".join(sorted(leg.tracks)),
        "published_at": leg.published_at,
        "lost_at": leg.lost_at,
        "restarts": leg.restarts,
        "left_at": leg.left_at,
        "recording": leg.recording,
        "watching": leg.watching,
        "unwatched_at": leg.unwatched_at,
    }


def _leg(row: Any) -> Leg:
    return Leg(
        id=row["id"],
        participant=Participant(id=row["participant_id"], name=row["name"], role=row["role"]),
        device=row["device"],
        joined_at=row["joined_at"],
        tracks=frozenset(row["tracks"].split(",")) if row["tracks"] else frozenset(),
        published_at=row["published_at"],
        lost_at=row["lost_at"],
        restarts=row["restarts"],
        left_at=row["left_at"],
        recording=bool(row["recording"]),
        watching=bool(row["watching"]),
        unwatched_at=row["unwatched_at"],
    )


def _rung_row(rung: Rung) -> dict[str, Any]:
    return {
        "worker_id": rung.worker_id,
        "name": rung.name,
        "distance_m": rung.distance_m,
        "eta_s": rung.eta_s,
        "reason": rung.reason,
        "rung_at": rung.rung_at,
        "cycle": rung.cycle,
        "own_grid": rung.own_grid,
        "waiting": rung.waiting,
        "outcome": rung.outcome.value,
        "outcome_at": rung.outcome_at,
        "deliveries": _json(rung.deliveries),
    }


def _rung(row: Any) -> Rung:
    return Rung(
        worker_id=row["worker_id"],
        name=row["name"],
        distance_m=row["distance_m"],
        eta_s=row["eta_s"],
        reason=row["reason"],
        rung_at=row["rung_at"],
        cycle=row["cycle"],
        own_grid=bool(row["own_grid"]),
        waiting=bool(row["waiting"]),
        outcome=Outcome(row["outcome"]),
        outcome_at=row["outcome_at"],
        deliveries=msgspec.json.decode(row["deliveries"], type=tuple[Delivery, ...]),
    )


def _named(table: Table, query: Prepared, connection: Connection, call_id: str) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in query.run(connection, {"of_call": call_id})]


def _participant(text: str | None) -> Participant | None:
    return None if text is None else msgspec.json.decode(text, type=Participant)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
