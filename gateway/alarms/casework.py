"""Incidents in the store: opening one in the transaction of a triage, and CaseDesk, the service of the closed
loop.

The loop's rules are the table in `incident`; here they become rows, audit lines and events. Whoever handled
an incident (was dispatched, handled or submitted it) doesn't verify it. An end (ARCHIVED, MERGED, CANCELLED)
closes the alarm that it came from.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, func, insert, select, update

from gateway.alarms import follow_up, records
from gateway.alarms.alarm import Event, Handling, change_handling
from gateway.alarms.announce import Json, Stage, announce_alarm, announce_event, announce_stage
from gateway.alarms.audiences import Audience, call_on, call_on_everybody, deliveries_of
from gateway.alarms.call_back import check_called_back
from gateway.alarms.incident import (
    ENDS,
    TRANSITIONS,
    IncidentState,
    Transition,
    change_incident,
    check_verifier,
)
from gateway.alarms.policy import Actor
from gateway.alarms.records import Row, alarm_table, incident_table, report_table
from gateway.alarms.task import TaskEvent, TaskState
from gateway.alarms.tasks import has_task_by, offer_task, settle_tasks
from gateway.audit import audit, audit_table
from gateway.errors import Conflict, NotAllowed, NotFound, ProtocolError, Unavailable
from gateway.geo import Position, distance_m
from gateway.store import Store, flush

__all__ = ["CaseDesk", "announce_incident", "incident_view", "open_incident"]

HUNG_UP = "居民在网格员接听时挂断，请联系或上门核实"
CHINA = datetime.timezone(datetime.timedelta(hours=8))
HAND_OVER = ("110", "12345")
NUMBER_LIMIT = 64
MERGE_M, MERGE_MS = 150.0, 7_200_000
_AT_WORK = (IncidentState.REPORTED, IncidentState.DISPATCHED, IncidentState.HANDLING)
_OPEN_TASKS = frozenset({TaskState.OFFERED, TaskState.ACCEPTED, TaskState.EN_ROUTE, TaskState.ON_SCENE})
_COMES_BACK = (Transition.TAKE_BACK, Transition.SUBMIT, Transition.CANCEL)
_REPEATED = {Transition.HANDLE: IncidentState.HANDLING, Transition.SUBMIT: IncidentState.VERIFYING}
"""What a gridworker's phone sends out of its queue, and where that leads."""
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
    action_ms: int = 600_000,
) -> Row:
    """A new incident in the caller's transaction, audited and announced. Returns its row.

    One that the alarm has already (of a call whose caller hung up) is taken over, with what is known of it now.
    """
    known = None if alarm_id is None else _incident_of(connection, alarm_id)
    if known is not None:
        values = {"type": type, "severity": severity, "police": police, "changed_at": now_ms}
        connection.execute(update(incident_table).where(incident_table.c.id == known["id"]).values(**values))
        row = {**known, **values}
        said = {"type": type, "severity": severity, "police": police, "note": note, "name": by.name}
        subject = f"incident/{known['id']}"
        audit(connection, who=str(by), action="incident.triaged", subject=subject, detail=said, now_ms=now_ms)
        announce_incident(connection, row)
        return row
    row = {
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
        "dispatched_at": None,
        "on_scene_at": None,
        "submitted_at": None,
        "ended_at": None,
        "action_by": now_ms + action_ms,
        "follow_up_at": None,
        "satisfied": None,
        "score": None,
        "transferred_to": None,
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
    announce_event(connection, "incident", incident_view(row), records.lineage_of(row))


def _brief(row: Row) -> Json:
    """What an audience is told at once; its pages fetch the rest."""
    named = {key: row[key] for key in ("number", "place_label")}
    return {"incident_id": row["id"], **named, "lineage": records.lineage_of(row)}


def incident_view(row: Row) -> Json:
    """JSON of an incident, list form."""
    position = None if row["lat"] is None else {"lat": row["lat"], "lon": row["lon"]}
    hidden = ("lat", "lon")
    return {**{key: value for key, value in row.items() if key not in hidden}, "position": position}


Suggestions = list[Json]  # CaseDesk has a method `list`


class CaseDesk:
    """The closed loop. Everything it tells leaves through the outbox; run `run()` for its deadlines."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], int],
        new_id: Callable[[int], str],
        name_of: Callable[[str], str | None] = lambda worker_id: worker_id,
        action_ms: int = 600_000,
        task_offer_ms: int = 120_000,
    ) -> None:
        """name_of: of a gridworker or volunteer by id, None if there is none. The other two: policy.AlarmSettings."""
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._name_of = name_of
        self._action_ms = action_ms
        self._task_offer_ms = task_offer_ms

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
        report_id: str | None = None,
    ) -> Json:
        """An incident without an alarm: a gridworker's 上报 or a click on the operator's map.

        report_id: the reporter's own name for it. Like a press it is known for ever by (source, report_id): whoever
        missed the answer asks again and gets the same, and there is no second incident.
        """
        now_ms = self._clock()
        incident_id = self._new_id(now_ms)

        def step(c: Connection) -> Json:
            known = _reported(c, str(by), report_id)
            if known is not None:
                return known
            row = open_incident(
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
                action_ms=self._action_ms,
            )
            if severity == 4:
                brief = {**_brief(row), "position": incident_view(row)["position"]}
                call_on_everybody(c, f"incident/{incident_id}", brief, now_ms, told=None, peaceful=True)
            view = incident_view(row)
            if report_id is not None:
                kept = {"source": str(by), "report_id": report_id, "incident_id": incident_id}
                c.execute(insert(report_table), {**kept, "answer": msgspec.json.encode(view).decode()})
            return view

        return await self._store.write(step)

    async def list(
        self,
        *,
        state: IncidentState | None = None,
        limit: int = 100,
        visible: Callable[[tuple[str, ...], str], bool] = lambda lineage, incident_id: True,
    ) -> list[Json]:
        """Newest first. `visible(lineage, incident_id)` says whether the caller may see it."""

        def query(c: Connection) -> list[Json]:
            statement = select(incident_table).order_by(
                incident_table.c.reported_at.desc(), incident_table.c.id.desc()
            )
            if state is not None:
                statement = statement.where(incident_table.c.state == state)
            found: list[Json] = []
            for row in c.execute(statement).mappings():
                if visible(records.lineage_of(dict(row)), row["id"]):
                    found.append(incident_view(dict(row)))
                    if len(found) >= limit:
                        break
            return found

        return await self._store.read(query)

    async def lineage(self, incident_id: str) -> tuple[str, ...]:
        """For authorize(). Raises NotFound."""
        return records.lineage_of(await self._store.read(lambda c: records.load_incident(c, incident_id)))

    async def alarm_of(self, incident_id: str) -> str | None:
        """The alarm it came from. Raises NotFound."""
        row = await self._store.read(lambda c: records.load_incident(c, incident_id))
        alarm_id: str | None = row["alarm_id"]
        return alarm_id

    async def get(self, incident_id: str) -> Json:
        """With `timeline` and `hand_overs` from the audit trail, and `deliveries`. Raises NotFound."""

        def query(c: Connection) -> Json:
            view = incident_view(records.load_incident(c, incident_id))
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
            view["hand_overs"] = _hand_overs(view["timeline"])
            view["deliveries"] = deliveries_of(c, f"incident/{incident_id}")
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
        """One transition. detail: what belongs to it (worker, satisfied, score, to: 110|12345, into). A handler's same
        step again changes nothing. Raises Conflict, NotAllowed.
        """
        now_ms = self._clock()
        task_id = self._new_id(now_ms)
        said = dict(detail or {})
        worker = said.get("worker") or said.get("volunteer")
        if worker is not None and (not isinstance(worker, str) or self._name_of(worker) is None):
            raise NotFound(f"no gridworker or volunteer {worker}")

        def step(c: Connection) -> Json:
            known = records.load_incident(c, incident_id)
            if _said_before(c, known, transition, by):
                return incident_view(known)
            row = self._move(c, incident_id, transition, by, now_ms, note, said)
            if transition is Transition.DISPATCH and worker is not None:
                offer_task(
                    c,
                    task_id,
                    row,
                    assignee=worker,
                    name=self._name_of(worker) or worker,
                    role="worker" if "worker" in said else "volunteer",
                    by=by,
                    note=note,
                    now_ms=now_ms,
                    expires_at=now_ms + self._task_offer_ms,
                )
            return incident_view(row)

        return await self._store.write(step)

    def move_if_legal(self, c: Connection, incident_id: str, what: str, by: _Actor) -> None:
        """What a task means for its incident: `handle` or `submit`, where the table allows it. In the caller's
        transaction."""
        row = records.load_incident(c, incident_id)
        if (IncidentState(row["state"]), Transition(what)) in TRANSITIONS:
            self._move(c, incident_id, Transition(what), by, self._clock(), "", {})

    async def on_hung_up(self, alarm_id: str, worker_id: str, call_id: str) -> None:
        """The caller hung up as this gridworker answered: nobody knows what it was about, so who answered looks in. A task
        within an incident of the alarm, which is opened if there is none. Again: nothing changes."""
        now_ms = self._clock()
        incident_id, task_id = self._new_id(now_ms), self._new_id(now_ms)
        by = Actor(sub=call_id, name="未接来电", role="call")

        def step(c: Connection) -> None:
            known = _incident_of(c, alarm_id) or _incident_for(
                c, incident_id, by, records.load(c, alarm_id), now_ms, note=HUNG_UP, action_ms=self._action_ms
            )
            if has_task_by(c, known["id"], str(by), worker_id):
                return
            if (IncidentState(known["state"]), Transition.DISPATCH) not in TRANSITIONS:
                return  # somebody has gone on with it already
            known = self._move(
                c, known["id"], Transition.DISPATCH, by, now_ms, HUNG_UP, {"worker": worker_id}
            )
            offer_task(
                c,
                task_id,
                known,
                assignee=worker_id,
                name=self._name_of(worker_id) or worker_id,
                role="worker",
                by=by,
                note=HUNG_UP,
                now_ms=now_ms,
                expires_at=now_ms + self._task_offer_ms,
            )

        await self._store.write(step)

    async def follow_up(
        self, incident_id: str, who: str, *, satisfied: bool, note: str = "", source: str | None = None
    ) -> Json:
        """回访: the resident's own answer (`source`: stb/sid, which must have raised the incident's alarm) or a phone
        note of a desk. Asked for while VERIFYING; a later answer replaces an earlier one. Raises Conflict, NotAllowed."""
        now_ms = self._clock()

        def step(c: Connection) -> Json:
            row = records.load_incident(c, incident_id)
            if row["state"] not in follow_up.ANSWERABLE:
                raise Conflict("只有待核查的事件可以回访", state=row["state"])
            asked = {alarm["source"] for alarm in follow_up.residents(c, incident_id)}
            if source is not None and source not in asked:
                raise NotAllowed("this box did not raise the incident's alarm")
            values = {"satisfied": satisfied, "follow_up_at": now_ms, "changed_at": now_ms}
            c.execute(update(incident_table).where(incident_table.c.id == incident_id).values(**values))
            audit(
                c,
                who=who,
                action="incident.follow_up",
                subject=f"incident/{incident_id}",
                detail={"satisfied": satisfied, "note": note},
                now_ms=now_ms,
            )
            row = {**row, **values}
            announce_incident(c, row)
            follow_up.settle(c, incident_id)
            return incident_view(row)

        return await self._store.write(step)

    async def merge_suggestions(self, incident_id: str) -> Suggestions:
        """Open incidents within 150 m that were reported within two hours of this one, nearest first."""

        def query(c: Connection) -> Suggestions:
            row = records.load_incident(c, incident_id)
            place = records.position_of(row)
            if place is None:
                return []
            around = select(incident_table).where(
                incident_table.c.id != incident_id,
                incident_table.c.state.not_in(list(ENDS)),
                incident_table.c.reported_at.between(
                    row["reported_at"] - MERGE_MS, row["reported_at"] + MERGE_MS
                ),
            )
            near: list[tuple[float, Json]] = []
            for mapping in c.execute(around).mappings():
                at = records.position_of(dict(mapping))
                if at is not None and (metres := distance_m(place, at)) <= MERGE_M:
                    view = {key: mapping[key] for key in ("id", "number", "type", "place_label", "state")}
                    near.append((metres, {**view, "distance_m": round(metres, 1)}))
            return [view for _, view in sorted(near, key=lambda item: item[0])]

        return await self._store.read(query)

    async def run(self) -> None:
        """Until cancelled: an incident without any action in `action_ms` goes to the supervisor, again and again."""
        while True:
            await asyncio.sleep(1.0)
            await self.fire_due()

    async def fire_due(self) -> int:
        """Tells the supervisor of what is overdue now; how many."""
        now_ms = self._clock()
        due = select(incident_table.c.id).where(incident_table.c.action_by <= now_ms).limit(50)

        def step(c: Connection) -> int:
            overdue = c.execute(due).scalars().all()
            for incident_id in overdue:
                row = records.load_incident(c, incident_id)
                subject = f"incident/{incident_id}"
                c.execute(
                    update(incident_table)
                    .where(incident_table.c.id == incident_id)
                    .values(action_by=now_ms + self._action_ms)
                )
                audit(c, who="system", action="incident.overdue", subject=subject, detail={}, now_ms=now_ms)
                call_on(c, subject, Audience.SUPERVISOR, now_ms, _brief(row))
            return len(overdue)

        try:
            if await self._store.read(lambda c: c.execute(due).first()) is None:
                return 0
            return await self._store.write(step)
        except Unavailable:
            return 0

    def _move(
        self,
        c: Connection,
        incident_id: str,
        transition: Transition,
        by: _Actor,
        now_ms: int,
        note: str,
        said: dict[str, Any],
    ) -> Row:
        row = records.load_incident(c, incident_id)
        before = IncidentState(row["state"])
        came_from = None if row["came_from"] is None else IncidentState(row["came_from"])
        after = change_incident(before, transition, came_from=came_from)
        if transition in (Transition.RATE, Transition.REOPEN):
            check_verifier(_handlers(c, incident_id), str(by))
        values: Row = {"state": after, "changed_at": now_ms}
        # The supervisor hears of it when nothing is done; waiting for others is not our doing nothing.
        values["action_by"] = now_ms + self._action_ms if after in _AT_WORK else None
        if after in (IncidentState.TRANSFERRED, IncidentState.SUSPENDED):
            values["came_from"] = before
        if transition is Transition.TRANSFER:
            if said.get("to") not in HAND_OVER:
                raise ProtocolError(f"detail.to must be one of {', '.join(HAND_OVER)}")
            number = said.get("number", "")
            if not isinstance(number, str) or len(number) > NUMBER_LIMIT:
                raise ProtocolError(f"detail.number is theirs of the case, at most {NUMBER_LIMIT} characters")
            values["transferred_to"] = said["to"]
        elif transition is Transition.DISPATCH and row["dispatched_at"] is None:
            values["dispatched_at"] = now_ms
        elif transition is Transition.SUBMIT:
            values["submitted_at"] = now_ms
        elif transition is Transition.REOPEN:
            # The answer was about the handling that was not good enough; the trail keeps it.
            values |= {"reopened": row["reopened"] + 1, "follow_up_at": None, "satisfied": None}
        elif transition is Transition.RATE:
            score = said.get("score")
            if score is not None and (not isinstance(score, int) or not 1 <= score <= 5):
                raise ProtocolError("detail.score must be 1..5")
            values["score"] = score
            answered, implied = follow_up.before_rating(c, row, said, now_ms)
            values |= answered
            said = {**said, **implied}
        elif transition is Transition.MERGE:
            into = records.load_incident(c, str(said.get("into")))
            if into["id"] == incident_id or IncidentState(into["state"]) in ENDS:
                raise Conflict("并入哪一个进行中的事件？", into=into["id"])
        if after in ENDS:
            values["ended_at"] = now_ms
        c.execute(update(incident_table).where(incident_table.c.id == incident_id).values(**values))
        row = {**row, **values}
        audit(
            c,
            who=str(by),
            action=f"incident.{transition}",
            subject=f"incident/{incident_id}",
            detail={"name": by.name, "note": note, **said},
            now_ms=now_ms,
        )
        announce_incident(c, row)
        if after is IncidentState.VERIFYING:
            follow_up.ask(c, row)
        elif before is IncidentState.VERIFYING:
            follow_up.settle(c, incident_id)
        if transition is Transition.RATE:
            settle_tasks(c, row, TaskEvent.VERIFY, by, now_ms, only=frozenset({TaskState.DONE}))
        elif transition is Transition.REOPEN:
            settle_tasks(c, row, TaskEvent.REDO, by, now_ms, only=frozenset({TaskState.DONE}))
        elif after in ENDS:
            settle_tasks(c, row, TaskEvent.REVOKE, "system", now_ms, only=_OPEN_TASKS)
        if after in ENDS:
            _close_alarms(c, row, now_ms)
        return row


def _incident_of(connection: Connection, alarm_id: str) -> Row | None:
    """The incident that was opened for this alarm and goes on."""
    query = select(incident_table).where(
        incident_table.c.alarm_id == alarm_id, incident_table.c.state.not_in(list(ENDS))
    )
    row = connection.execute(query.order_by(incident_table.c.reported_at)).mappings().first()
    return None if row is None else dict(row)


def _incident_for(
    connection: Connection,
    incident_id: str,
    by: _Actor,
    alarm: Row,
    now_ms: int,
    *,
    note: str,
    action_ms: int,
) -> Row:
    """An incident of an alarm that nobody has triaged yet; a triage takes it over."""
    return open_incident(
        connection,
        incident_id,
        by,
        now_ms=now_ms,
        type=alarm["kind"],
        severity=3,
        police="undetermined",
        place_label=alarm["place_label"],
        position=records.position_of(alarm),
        district=alarm["district"],
        street=alarm["street"],
        community=alarm["community"],
        grid=alarm["grid"],
        alarm_id=alarm["id"],
        note=note,
        action_ms=action_ms,
    )


def _reported(connection: Connection, source: str, report_id: str | None) -> Json | None:
    """What this report was answered the first time."""
    if report_id is None:
        return None
    r = report_table.c
    query = select(r.answer).where(r.source == source, r.report_id == report_id)
    answer = connection.execute(query).scalar()
    return None if answer is None else records.decode(answer)


def _said_before(connection: Connection, row: Row, transition: Transition, by: _Actor) -> bool:
    """Whether this person's very step brought the incident to where it is: a phone that missed the answer says it again."""
    if _REPEATED.get(transition) != row["state"]:
        return False
    flush(connection)
    a = audit_table.c
    last = connection.execute(
        select(a.who)
        .where(a.subject == f"incident/{row['id']}", a.action == f"incident.{transition}")
        .order_by(a.id.desc())
    ).scalar()
    return bool(last == str(by))


def _hand_overs(timeline: list[Json]) -> list[Json]:
    """To 110 and 12345, oldest first: when, by whom, their number of the case, and when it came back."""
    found: list[Json] = []
    for entry in timeline:
        detail = entry["detail"]
        if entry["event"] == Transition.TRANSFER:
            said = {key: detail.get(key, "") for key in ("to", "number", "name", "note")}
            found.append({"at": entry["at"], "by": entry["by"], **said, "back_at": None})
        elif found and found[-1]["back_at"] is None and entry["event"] in _COMES_BACK:
            found[-1]["back_at"] = entry["at"]
    return found


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


def _close_alarms(connection: Connection, incident: Row, now_ms: int) -> None:
    """An alarm with an incident closes when that has ended, and so do those that were merged into it.

    Raises Conflict while one of them owes a call-back: then the incident doesn't end either.
    """
    incident_id = incident["id"]
    query = select(alarm_table).where(
        alarm_table.c.incident_id == incident_id, alarm_table.c.closed_at.is_(None)
    )
    for mapping in connection.execute(query).mappings().all():
        row = dict(mapping)
        check_called_back(row, followed_up_at=incident["follow_up_at"])
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
