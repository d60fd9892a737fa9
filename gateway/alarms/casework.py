"""Incidents in the store: opening one in the transaction of a triage, and CaseDesk, the service of the closed
loop.

The loop's rules are the table in `incident`; here they become rows, audit lines and events. Whoever handled
an incident (was dispatched, handled or submitted it) doesn't verify it. An end (ARCHIVED, MERGED, CANCELLED)
closes the alarm that it came from.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import Connection, func, select, update

from gateway import outbox
from gateway.alarms import records
from gateway.alarms.alarm import Event, Handling, change_handling
from gateway.alarms.announce import KIND_EVENT, Json, Stage, announce_alarm, announce_stage
from gateway.alarms.incident import ENDS, IncidentState, Transition, change_incident, check_verifier
from gateway.alarms.records import Row, alarm_table, incident_table
from gateway.audit import audit, audit_table
from gateway.errors import NotFound
from gateway.geo import Position
from gateway.store import Store, flush

__all__ = ["CaseDesk", "announce_incident", "incident_view", "open_incident"]

CHINA = datetime.timezone(datetime.timedelta(hours=8))
_HANDLING_STEPS = ("incident.dispatch", "incident.handle", "incident.submit")


class _Actor(Protocol):
    @property
    def sub(self) -> str: ...

    @property
    def name(self) -> str: ...


def open_incident(
    connection: Connection,
    incident_id: str,
    by: _Actor,
    *,
    now_ms: int,
    type: str,
    severity: int,
    police: str,
    place_label: str,
    position: Position | None,
    district: str | None,
    street: str | None,
    community: str | None,
    grid: str | None,
    alarm_id: str | None = None,
    note: str = "",
) -> Row:
    """A new incident in the caller's transaction, audited and announced. Returns its row."""
    row: Row = {
        "id": incident_id,
        "number": _number(connection, now_ms),
        "type": type,
        "severity": severity,
        "police": police,
        "state": IncidentState.REPORTED,
        "came_from": None,
        "alarm_id": alarm_id,
        "place_label": place_label,
        "lat": None if position is None else position.lat,
        "lon": None if position is None else position.lon,
        "district": district,
        "street": street,
        "community": community,
        "grid": grid,
        "reported_by": str(by),
        "reported_at": now_ms,
        "changed_at": now_ms,
        "reopened": 0,
        "note": note,
    }
    connection.execute(incident_table.insert(), row)
    detail = {"alarm": alarm_id, "type": type, "severity": severity, "police": police}
    audit(
        connection,
        who=str(by),
        action="incident.open",
        subject=f"incident/{incident_id}",
        detail={**detail, "name": by.name},
        now_ms=now_ms,
    )
    announce_incident(connection, row)
    return row


def announce_incident(connection: Connection, row: Row) -> None:
    event = {"type": "incident", "data": incident_view(row), "lineage": records.lineage_of(row)}
    outbox.add(connection, KIND_EVENT, f"incident/{row['id']}", event)


def incident_view(row: Row) -> Json:
    """JSON of an incident, list form."""
    position = None if row["lat"] is None else {"lat": row["lat"], "lon": row["lon"]}
    hidden = ("lat", "lon")
    return {**{key: value for key, value in row.items() if key not in hidden}, "position": position}


class CaseDesk:
    """The closed loop. `on_transition(incident view)` hooks are not needed: everything leaves through the
    outbox.
    """

    def __init__(self, store: Store, *, clock: Callable[[], int], new_id: Callable[[int], str]) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    async def report(
        self,
        by: _Actor,
        *,
        type: str,
        severity: int,
        place_label: str,
        position: Position | None,
        district: str | None,
        street: str | None,
        community: str | None,
        grid: str | None,
        police: str = "undetermined",
        note: str = "",
    ) -> Json:
        """An incident without an alarm: a gridworker's 上报 or a click on the operator's map."""
        now_ms = self._clock()
        incident_id = self._new_id(now_ms)
        row = await self._store.write(
            lambda c: open_incident(
                c,
                incident_id,
                by,
                now_ms=now_ms,
                type=type,
                severity=severity,
                police=police,
                place_label=place_label,
                position=position,
                district=district,
                street=street,
                community=community,
                grid=grid,
                note=note,
            )
        )
        return incident_view(row)

    async def list(
        self,
        *,
        state: IncidentState | None = None,
        limit: int = 100,
        visible: Callable[[tuple[str, ...]], bool] = lambda lineage: True,
    ) -> list[Json]:
        """Newest first."""

        def query(c: Connection) -> list[Json]:
            statement = select(incident_table).order_by(
                incident_table.c.reported_at.desc(), incident_table.c.id.desc()
            )
            if state is not None:
                statement = statement.where(incident_table.c.state == state)
            found: list[Json] = []
            for row in c.execute(statement).mappings():
                if visible(records.lineage_of(dict(row))):
                    found.append(incident_view(dict(row)))
                    if len(found) >= limit:
                        break
            return found

        return await self._store.read(query)

    async def lineage(self, incident_id: str) -> tuple[str, ...]:
        """For authorize(). Raises NotFound."""
        return records.lineage_of(await self._store.read(lambda c: _load(c, incident_id)))

    async def get(self, incident_id: str) -> Json:
        """With `timeline` from the audit trail. Raises NotFound."""

        def query(c: Connection) -> Json:
            view = incident_view(_load(c, incident_id))
            a = audit_table.c
            rows = c.execute(
                select(a.at, a.action, a.who, a.detail)
                .where(a.subject == f"incident/{incident_id}")
                .order_by(a.id)
            )
            view["timeline"] = [
                {"at": at, "event": action.partition(".")[2], "by": who, "detail": records.decode(detail)}
                for at, action, who, detail in rows
            ]
            return view

        return await self._store.read(query)

    async def move(
        self,
        incident_id: str,
        transition: Transition,
        by: _Actor,
        *,
        note: str = "",
        detail: dict[str, Any] | None = None,
    ) -> Json:
        """One transition. detail: what belongs to it (worker, satisfied, score, to: 110|12345, into).
        Raises Conflict, NotAllowed.
        """
        now_ms = self._clock()

        def step(c: Connection) -> Json:
            row = _load(c, incident_id)
            before = IncidentState(row["state"])
            came_from = None if row["came_from"] is None else IncidentState(row["came_from"])
            after = change_incident(before, transition, came_from=came_from)
            if transition in (Transition.RATE, Transition.REOPEN):
                check_verifier(_handlers(c, incident_id), str(by))
            values: Row = {"state": after, "changed_at": now_ms}
            if after in (IncidentState.TRANSFERRED, IncidentState.SUSPENDED):
                values["came_from"] = before
            if transition is Transition.REOPEN:
                values["reopened"] = row["reopened"] + 1
            c.execute(update(incident_table).where(incident_table.c.id == incident_id).values(**values))
            row = {**row, **values}
            audit(
                c,
                who=str(by),
                action=f"incident.{transition}",
                subject=f"incident/{incident_id}",
                detail={"name": by.name, "note": note, **(detail or {})},
                now_ms=now_ms,
            )
            announce_incident(c, row)
            if after in ENDS:
                _close_alarms(c, incident_id, now_ms)
            return incident_view(row)

        return await self._store.write(step)


def _load(connection: Connection, incident_id: str) -> Row:
    row = (
        connection.execute(select(incident_table).where(incident_table.c.id == incident_id))
        .mappings()
        .first()
    )
    if row is None:
        raise NotFound(f"no incident {incident_id}")
    return dict(row)


def _handlers(connection: Connection, incident_id: str) -> frozenset[str]:
    """Who handled it, by the audit trail, which nobody can change."""
    flush(connection)
    a = audit_table.c
    rows = connection.execute(
        select(a.who, a.action, a.detail).where(
            a.subject == f"incident/{incident_id}", a.action.in_(_HANDLING_STEPS)
        )
    )
    found: set[str] = set()
    for who, action, detail in rows:
        if action == "incident.dispatch":
            worker = records.decode(detail).get("worker")
            if worker:
                found.add(f"worker/{worker}")
        else:
            found.add(who)
    return frozenset(found)


def _close_alarms(connection: Connection, incident_id: str, now_ms: int) -> None:
    """An alarm with an incident closes when that has ended, and so do those that were merged into it."""
    query = select(alarm_table).where(
        alarm_table.c.incident_id == incident_id, alarm_table.c.closed_at.is_(None)
    )
    for mapping in connection.execute(query).mappings().all():
        row = dict(mapping)
        handling = change_handling(Handling(row["handling"]), Event.CLOSE)
        row = records.update_alarm(connection, row, handling=handling, closed_at=now_ms)
        records.store_deadlines(connection, row["id"], {})
        records.add_timeline(
            connection, row["id"], at=now_ms, event="closed", by="system", incident=incident_id
        )
        audit(
            connection,
            who="system",
            action="alarm.closed",
            subject=f"alarm/{row['id']}",
            detail={"incident": incident_id},
            now_ms=now_ms,
        )
        announce_stage(connection, row, Stage.CLOSED, now_ms)
        announce_alarm(connection, row, {})


def _number(connection: Connection, now_ms: int) -> str:
    """What people call it: the day in China and a running number, 20260131-0007."""
    day = datetime.datetime.fromtimestamp(now_ms / 1000, CHINA).strftime("%Y%m%d")
    last = connection.execute(
        select(func.max(incident_table.c.number)).where(incident_table.c.number.like(f"{day}-%"))
    ).scalar()
    number = 1 if last is None else int(last.partition("-")[2]) + 1
    return f"{day}-{number:04d}"
