"""The transactions behind a press, a cancel and a correction. They run on the store's writer thread and touch
nothing but the database.

A press is named by (source, press_id) for ever: known ones give the same answer and change nothing. A new
press of a box whose alarm is still open is committed and answered with that alarm's id; it raises `repeats`
and alerts again. (A test doesn't swallow a real call: an alarm of kind `test` takes repeats of its own kind
only.) Everything else is a new alarm, which joins the group of alarms of other boxes near by; only the first
of a group rings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from gateway.store import Prepared, insert_rows

__all__ = [
    "Admitted",
    "Grouping",
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


def place_of(
    world: World,
    sid: str,
    camera_id: str | None,
    may_watch: Callable[[str, str], bool],
    *,
    prefer: PlaceKind = PlaceKind.CAMERA,
) -> Place:
    """A camera that isn't configured (any more) falls back to the household, a box without one to itself.

    So does a camera of another community that the box may not even watch, by may_watch(sid, camera id): a box that is
    wrong, or not honest, about what it shows must not send the help of another street.
    """
    home = world.home_of(sid)
    camera = world.camera(camera_id) if camera_id else None
    if camera is not None and home is not None and None not in (home.area.community, camera.area.community):
        near = camera.area.community == home.area.community
        camera = camera if near or may_watch(sid, camera.id) else None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """Alarms of other boxes within radius_m and window_ms form a group."""

    radius_m: float
    window_ms: int


def record_presses(
    connection: Connection,
    boxes: Sequence[Sequence[Admitted]],
    settings: EscalationSettings,
    grouping: Grouping,
) -> list[list[tuple[Json, bool]]]:
    """Presses, those of one box in their order: for each the ack and whether it was known already.

    A storm's presses come together: all is asked in a few statements and written in a few.
    """
    known = records.known_presses(
        connection, [(one.source, one.press.pid) for presses in boxes for one in presses]
    )
    asked = {
        one.source: None for presses in boxes for one in presses if (one.source, one.press.pid) not in known
    }
    rows: dict[tuple[str, bool], Row] = {}  # the open alarm of a box, tests apart
    for row in records.open_alarms(connection, tuple(asked)):
        rows.setdefault((row["source"], row["kind"] == Kind.TEST), row)
    fresh: list[Admitted] = []
    repeats: dict[str, list[Admitted]] = {}
    answers: list[list[tuple[Json, bool]]] = []
    seen: dict[tuple[str, str], Json] = {}
    for presses in boxes:
        said: list[tuple[Json, bool]] = []
        answers.append(said)
        for admitted in presses:
            name = admitted.source, admitted.press.pid
            if name in known or name in seen:
                said.append(
                    (seen.get(name) or ack(name[1], known[name][0], Stage.PERSISTED, known[name][1]), True)
                )
                continue
            place = admitted.source, admitted.press.kind is Kind.TEST
            row_ = rows.get(place)
            if row_ is None:
                row_ = rows[place] = _row_of(admitted, verified=True)
                fresh.append(admitted)
            else:
                repeats.setdefault(row_["id"], []).append(admitted)
            seen[name] = ack(name[1], row_["id"], Stage.PERSISTED, admitted.now_ms)
            said.append((seen[name], False))
    news = [(one, rows[one.source, one.press.kind is Kind.TEST]) for one in fresh]
    if news:
        _new_alarms(connection, news, settings, grouping)
    if repeats:
        _repeat_alarms(connection, {row["id"]: row for row in rows.values()}, repeats)
    return answers


def _new_alarms(
    connection: Connection,
    news: Sequence[tuple[Admitted, Row]],
    settings: EscalationSettings,
    grouping: Grouping,
) -> None:
    _group(connection, news, grouping)
    insert_rows(connection, alarm_table, [row for _, row in news])
    insert_rows(connection, press_table, [_press_row(one, row["id"]) for one, row in news])
    started = {
        row["id"]: first(
            settings, level=row["level"], severity=None, kind=one.press.kind, now_ms=one.now_ms
        ).deadlines
        for one, row in news
    }
    records.add_deadlines(connection, started)
    for one, row in news:
        press, now_ms, by, via = one.press, one.now_ms, one.source, one.via
        records.add_timeline(
            connection, row["id"], at=now_ms, event="raised", by=by, kind=press.kind, via=via
        )
        audit(
            connection,
            who=by,
            action="alarm.raise",
            subject=f"alarm/{row['id']}",
            detail={"pid": press.pid, "kind": press.kind, "via": via},
            now_ms=now_ms,
        )
        note_first(connection, row["id"], row["level"], now_ms)
        announce_stage(connection, row, Stage.PERSISTED, now_ms)
        announce_alarm(connection, row, started[row["id"]])
        if row["group_id"] is None and press.kind is not Kind.TEST:
            announce_ring(connection, row)


def _row_of(admitted: Admitted, *, verified: bool) -> Row:
    press, place, now_ms = admitted.press, admitted.place, admitted.now_ms
    position = place.position
    return records.blank_alarm(
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
        level=Level.COMMUNITY
        if place.area.community
        else Level.STREET
        if place.area.street
        else Level.DISTRICT,
        base_ms=now_ms,
    )


def _press_row(admitted: Admitted, alarm_id: str) -> Row:
    return {
        "source": admitted.source,
        "press_id": admitted.press.pid,
        "alarm_id": alarm_id,
        "received_at": admitted.now_ms,
        "via": admitted.via,
    }


def _group(connection: Connection, news: Sequence[tuple[Admitted, Row]], grouping: Grouping) -> None:
    """Names the alarm that leads its group in each row: the nearest neighbour's leader, or that neighbour itself."""
    if grouping.radius_m <= 0:
        return
    sited = [
        (one, row) for one, row in news if row["cell"] is not None and one.press.kind not in records.ALONE
    ]
    if not sited:
        return
    points = [one.place.position for one, _ in sited if one.place.position is not None]
    since = min(one.now_ms for one, _ in sited) - grouping.window_ms
    near = records.neighbours(connection, points, since_ms=since)
    for (one, row), point in zip(sited, points, strict=True):
        nearest: tuple[float, str] | None = None
        for cell in records.cells_around(point):
            for alarm_id, group_id, other, lat, lon, at in near.get(cell, ()):
                if other == one.source or at < one.now_ms - grouping.window_ms:
                    continue
                metres = distance_m(point, Position(lat=lat, lon=lon))
                if metres <= grouping.radius_m and (nearest is None or metres < nearest[0]):
                    nearest = metres, group_id or alarm_id
        row["group_id"] = None if nearest is None else nearest[1]
        own = row["id"], row["group_id"], one.source, point.lat, point.lon, one.now_ms
        near.setdefault(row["cell"], []).append(own)


def _repeat_alarms(
    connection: Connection, rows: Mapping[str, Row], repeats: Mapping[str, Sequence[Admitted]]
) -> None:
    """All repeats of an alarm in one transaction at once: one row of its timeline, one event."""
    insert_rows(
        connection,
        press_table,
        [_press_row(one, alarm_id) for alarm_id, again in repeats.items() for one in again],
    )
    deadlines = records.deadlines_of(connection, tuple(repeats))
    for alarm_id, again in repeats.items():
        row, last = rows[alarm_id], again[-1]
        now_ms = last.now_ms
        cancelled = row["condition"] == Condition.CLEARED
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
            alarm_id,
            at=now_ms,
            event="repeated",
            by=last.source,
            count=len(again),
            kind=last.press.kind,
        )
        for admitted in again if last.origin == "stb" else ():
            answer = ack(admitted.press.pid, alarm_id, Stage.PERSISTED, admitted.now_ms)
            announce_ack(connection, last.press.sid, answer)
        if last.press.kind is Kind.SOS:  # its call may be over by now
            announce_ring(connection, {**row, "press_id": last.press.pid})
        elif cancelled and last.press.kind is not Kind.TEST:  # its call ended with the cancel
            announce_ring(connection, row, again_at=now_ms)
        announce_alarm(connection, row, deadlines.get(alarm_id, {}))


def record_unverified(connection: Connection, admitted: Admitted) -> Json:
    """A known box, a wrong signature: audited, one unverified row for the desk (repeats are counted), no
    ring, no escalation.
    """
    press, now_ms = admitted.press, admitted.now_ms
    values = _OPEN.first(connection, {"of_source": admitted.source, "is_verified": False})
    if values is None:
        row = _row_of(admitted, verified=False)
        insert_rows(connection, alarm_table, [row])
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
        call_back=None,
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
