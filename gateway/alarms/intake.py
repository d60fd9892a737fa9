"""The transactions behind a press, a cancel and a correction. They run on the store's writer thread and touch
nothing but the database.

A press is named by (source, press_id) for ever: known ones give the same answer and change nothing. A new
press of a box whose alarm is still open is committed and answered with that alarm's id; it raises `repeats`
and alerts again. (A test doesn't swallow a real call: an alarm of kind `test` takes repeats of its own kind
only.) Everything else is a new alarm, which joins the group of alarms of other boxes near by; only the first
of a group rings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from gateway.alarms import records
from gateway.alarms.alarm import Condition, Event, Handling, change_condition, change_handling
from gateway.alarms.announce import (
    Json,
    Stage,
    ack,
    announce_ack,
    announce_alarm,
    announce_ring,
    announce_stage,
    refusal,
    stage_of,
)
from gateway.alarms.audiences import note_first
from gateway.alarms.escalation import EscalationSettings, Level, first
from gateway.alarms.press import Kind, PlaceKind, Press, Refusal
from gateway.alarms.records import Row, alarm_table, press_table
from gateway.alarms.world import Area, World
from gateway.audit import audit
from gateway.geo import Position, distance_m
from gateway.store import Prepared

__all__ = [
    "Admitted",
    "Place",
    "place_of",
    "record_cancel",
    "record_correction",
    "record_presses",
    "record_unverified",
]

_KNOWN = Prepared(
    select(press_table.c.alarm_id, press_table.c.received_at).where(
        press_table.c.source == bindparam("of_source"), press_table.c.press_id == bindparam("of_press")
    )
)
_OPEN = Prepared(
    select(alarm_table).where(
        alarm_table.c.source == bindparam("of_source"),
        alarm_table.c.verified == bindparam("is_verified"),
        alarm_table.c.closed_at.is_(None),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an alarm is: the camera watched full screen at the press, else the household."""

    kind: PlaceKind
    ref: str | None
    label: str
    position: Position | None
    area: Area
    camera: str | None
    household: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A press ready to be recorded. alarm_id: the id it gets should it be a new alarm. origin: `stb`, or `worker` for a
    gridworker's call for help, whose id is `press.sid` then."""

    press: Press
    place: Place
    alarm_id: str
    now_ms: int
    via: str
    origin: str = "stb"

    @property
    def source(self) -> str:
        return f"{self.origin}/{self.press.sid}"


def place_of(world: World, sid: str, camera_id: str | None, *, prefer: PlaceKind = PlaceKind.CAMERA) -> Place:
    """A camera that isn't configured (any more) falls back to the household, a box without one to itself."""
    home = world.home_of(sid)
    camera = world.camera(camera_id) if camera_id else None
    household = None if home is None else home.id
    if camera is not None and (prefer is PlaceKind.CAMERA or home is None):
        return Place(
            kind=PlaceKind.CAMERA,
            ref=camera.id,
            label=camera.name,
            position=camera.position,
            area=camera.area,
            camera=camera.id,
            household=household,
        )
    return Place(
        kind=PlaceKind.HOUSEHOLD,
        ref=household,
        label=f"机顶盒 {sid}" if home is None else home.address,
        position=None if home is None else home.position,
        area=Area() if home is None else home.area,
        camera=None if camera is None else camera.id,
        household=household,
    )


def record_presses(
    connection: Connection,
    presses: Sequence[Admitted],
    settings: EscalationSettings,
    *,
    group_radius_m: float,
    group_ms: int,
) -> list[tuple[Json, bool]]:
    """Presses of one box in their order: for each the ack and whether the press was known already."""
    answers: list[tuple[Json, bool]] = []
    repeats: dict[str, list[Admitted]] = {}
    rows: dict[str, Row] = {}
    seen: dict[str, Json] = {}
    for admitted in presses:
        press = admitted.press
        known = _KNOWN.first(connection, {"of_source": admitted.source, "of_press": press.pid})
        if known is not None or press.pid in seen:
            answer = seen.get(press.pid) or ack(press.pid, known[0], Stage.PERSISTED, known[1])
            answers.append((answer, True))
            continue
        row = _open_alarm(connection, admitted, rows)
        if row is None:
            row = _new_alarm(connection, admitted, settings, group_radius_m, group_ms)
            rows[row["id"]] = row
        else:
            rows[row["id"]] = row
            repeats.setdefault(row["id"], []).append(admitted)
        seen[press.pid] = ack(press.pid, row["id"], Stage.PERSISTED, admitted.now_ms)
        answers.append((seen[press.pid], False))
    for alarm_id, again in repeats.items():
        _repeat(connection, rows[alarm_id], again)
    return answers


def _open_alarm(connection: Connection, admitted: Admitted, rows: dict[str, Row]) -> Row | None:
    test = admitted.press.kind is Kind.TEST
    for row in rows.values():
        if (row["kind"] == Kind.TEST) == test:
            return row
    for values in _OPEN.run(connection, {"of_source": admitted.source, "is_verified": True}).fetchall():
        found = records.alarm_row(values)
        if (found["kind"] == Kind.TEST) == test:
            return found
    return None


def _new_alarm(
    connection: Connection,
    admitted: Admitted,
    settings: EscalationSettings,
    group_radius_m: float,
    group_ms: int,
) -> Row:
    press, now_ms = admitted.press, admitted.now_ms
    group = None
    if admitted.place.position is not None and press.kind not in records.ALONE:
        group = _group(
            connection, admitted.place.position, group_radius_m, now_ms - group_ms, admitted.source
        )
    row, level = _insert(connection, admitted, verified=True, group_id=group)
    progress = first(settings, level=level, severity=None, kind=press.kind, now_ms=now_ms)
    records.add_press(
        connection,
        source=admitted.source,
        press_ids=[press.pid],
        alarm_id=row["id"],
        now_ms=now_ms,
        via=admitted.via,
    )
    records.store_deadlines(connection, row["id"], progress.deadlines, new=True)
    records.add_timeline(
        connection,
        row["id"],
        at=now_ms,
        event="raised",
        by=admitted.source,
        kind=press.kind,
        via=admitted.via,
    )
    audit(
        connection,
        who=admitted.source,
        action="alarm.raise",
        subject=f"alarm/{row['id']}",
        detail={"pid": press.pid, "kind": press.kind, "via": admitted.via},
        now_ms=now_ms,
    )
    note_first(connection, row["id"], level, now_ms)
    announce_stage(connection, row, Stage.PERSISTED, now_ms)
    announce_alarm(connection, row, progress.deadlines)
    if group is None and press.kind is not Kind.TEST:
        announce_ring(connection, row)
    return row


def _insert(
    connection: Connection, admitted: Admitted, *, verified: bool, group_id: str | None
) -> tuple[Row, Level]:
    press, place, now_ms = admitted.press, admitted.place, admitted.now_ms
    level = Level.COMMUNITY if place.area.community else Level.STREET if place.area.street else Level.DISTRICT
    position = place.position
    row = records.insert_alarm(
        connection,
        id=admitted.alarm_id,
        source=admitted.source,
        press_id=press.pid,
        kind=press.kind,
        silent=bool(press.silent),
        handling=Handling.NEW,
        condition=Condition.ACTIVE,
        verified=verified,
        place_kind=place.kind,
        place_ref=place.ref,
        place_label=place.label,
        camera=place.camera,
        household=place.household,
        lat=None if position is None else position.lat,
        lon=None if position is None else position.lon,
        cell=records.cell_of(position),
        district=place.area.district,
        street=place.area.street,
        community=place.area.community,
        grid=place.area.grid,
        received_at=now_ms,
        device_time=press.ts,
        repeats=0,
        alerted_at=now_ms,
        level=level,
        base_ms=now_ms,
        group_id=group_id,
    )
    return row, level


def _group(
    connection: Connection, position: Position, radius_m: float, since_ms: int, source: str
) -> str | None:
    """The alarm that leads the group near `position`: the nearest neighbour's leader, or that neighbour
    itself.
    """
    nearest: tuple[float, str] | None = None
    for alarm_id, group_id, other, at in records.neighbours(connection, position, since_ms=since_ms):
        metres = distance_m(position, at)
        if other != source and metres <= radius_m and (nearest is None or metres < nearest[0]):
            nearest = metres, group_id or alarm_id
    return None if nearest is None else nearest[1]


def _repeat(connection: Connection, row: Row, again: list[Admitted]) -> None:
    """All repeats of one transaction at once: one row of the timeline, one event."""
    last = again[-1]
    now_ms = last.now_ms
    records.add_press(
        connection,
        source=last.source,
        press_ids=[a.press.pid for a in again],
        alarm_id=row["id"],
        now_ms=now_ms,
        via=last.via,
    )
    row = records.update_alarm(
        connection,
        row,
        handling=change_handling(Handling(row["handling"]), Event.PRESS),
        condition=change_condition(Condition(row["condition"]), Event.PRESS),
        cleared_at=None,
        repeats=row["repeats"] + len(again),
        alerted_at=now_ms,
    )
    records.add_timeline(
        connection,
        row["id"],
        at=now_ms,
        event="repeated",
        by=last.source,
        count=len(again),
        kind=last.press.kind,
    )
    for admitted in again if last.origin == "stb" else ():
        announce_ack(
            connection, last.press.sid, ack(admitted.press.pid, row["id"], Stage.PERSISTED, admitted.now_ms)
        )
    if last.press.kind is Kind.SOS:  # its call may be over by now
        announce_ring(connection, {**row, "press_id": last.press.pid})
    announce_alarm(connection, row, records.load_deadlines(connection, row["id"]))


def record_unverified(connection: Connection, admitted: Admitted) -> Json:
    """A known box, a wrong signature: audited, one unverified row for the desk (repeats are counted), no
    ring, no escalation.
    """
    press, now_ms = admitted.press, admitted.now_ms
    values = _OPEN.first(connection, {"of_source": admitted.source, "is_verified": False})
    if values is None:
        row, _ = _insert(connection, admitted, verified=False, group_id=None)
        records.add_timeline(
            connection, row["id"], at=now_ms, event="unverified", by=admitted.source, pid=press.pid
        )
    else:
        found = records.alarm_row(values)
        row = records.update_alarm(connection, found, repeats=found["repeats"] + 1)
    audit(
        connection,
        who=admitted.source,
        action="press.bad_signature",
        subject=f"alarm/{row['id']}",
        detail={"pid": press.pid, "via": admitted.via},
        now_ms=now_ms,
    )
    answer = refusal(press.pid, Refusal.BAD_SIGNATURE, now_ms)
    announce_ack(connection, press.sid, answer)
    announce_alarm(connection, row, records.load_deadlines(connection, row["id"]))
    return answer


def record_cancel(connection: Connection, sid: str, pid: str, now_ms: int) -> Json:
    """The resident takes it back. It never hides an alarm that nobody acknowledged, and the call-back is
    still owed.
    """
    row = _pressed(connection, sid, pid)
    if row is None:
        answer = refusal(pid, Refusal.UNKNOWN_PRESS, now_ms)
        announce_ack(connection, sid, answer)
        return answer
    if row["closed_at"] is not None or row["cleared_at"] is not None:
        answer = ack(pid, row["id"], stage_of(row), row["closed_at"] or row["cleared_at"])
        announce_ack(connection, sid, answer)
        return answer
    row = records.update_alarm(
        connection,
        row,
        handling=change_handling(Handling(row["handling"]), Event.CANCEL),
        condition=change_condition(Condition(row["condition"]), Event.CANCEL),
        cleared_at=now_ms,
    )
    by = f"stb/{sid}"
    records.add_timeline(connection, row["id"], at=now_ms, event="cancelled", by=by, pid=pid)
    audit(
        connection,
        who=by,
        action="alarm.cancel",
        subject=f"alarm/{row['id']}",
        detail={"pid": pid},
        now_ms=now_ms,
    )
    announce_stage(connection, row, Stage.CANCELLED, now_ms, pid=pid)
    announce_alarm(connection, row, records.load_deadlines(connection, row["id"]))
    return ack(pid, row["id"], Stage.CANCELLED, now_ms)


def record_correction(connection: Connection, sid: str, pid: str, place: Place, now_ms: int) -> Json:
    """The resident says where it is. Ranks anew; the call's plan is told the new place."""
    row = _pressed(connection, sid, pid)
    if row is None or row["closed_at"] is not None:
        return refusal(pid, Refusal.UNKNOWN_PRESS, now_ms)
    if place.kind != row["place_kind"]:
        position = place.position
        row = records.update_alarm(
            connection,
            row,
            place_kind=place.kind,
            place_ref=place.ref,
            place_label=place.label,
            lat=None if position is None else position.lat,
            lon=None if position is None else position.lon,
            cell=records.cell_of(position),
            district=place.area.district,
            street=place.area.street,
            community=place.area.community,
            grid=place.area.grid,
            alerted_at=now_ms,
        )
        by = f"stb/{sid}"
        records.add_timeline(
            connection, row["id"], at=now_ms, event="place", by=by, kind=place.kind, label=place.label
        )
        audit(
            connection,
            who=by,
            action="alarm.place",
            subject=f"alarm/{row['id']}",
            detail={"kind": place.kind, "ref": place.ref},
            now_ms=now_ms,
        )
        announce_alarm(connection, row, records.load_deadlines(connection, row["id"]))
        if row["group_id"] is None and row["kind"] != Kind.TEST:
            announce_ring(connection, row)
    return ack(pid, row["id"], stage_of(row), now_ms)


def pressed_camera(connection: Connection, sid: str, pid: str) -> str | None:
    """The camera that was watched at the press, or None."""
    row = _pressed(connection, sid, pid)
    return None if row is None else row["camera"]


def _pressed(connection: Connection, sid: str, pid: str) -> Row | None:
    known = _KNOWN.first(connection, {"of_source": f"stb/{sid}", "of_press": pid})
    return None if known is None else records.load(connection, known[0])
