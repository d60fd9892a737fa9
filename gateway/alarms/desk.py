"""AlarmDesk: the service behind every step of an alarm. Each step is one transaction that writes the alarm,
its deadlines, timeline, audit line and what it announces; what it answers is true once it returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, select
from ulid import ULID

from gateway.alarms import announce, audiences, call_back, due, escalation, intake, records
from gateway.alarms.alarm import Event, Handling, Outcome, change_handling
from gateway.alarms.announce import (
    Json,
    Stage,
    ack_message,
    announce_alarm,
    announce_fall,
    announce_stage,
    refusal,
)
from gateway.alarms.casework import open_incident
from gateway.alarms.deliveries import Publication, PublishEvents, PublishMqtt, Ring, courier_of
from gateway.alarms.dispatch import CameraChoice, WorkerChoice, rank_cameras
from gateway.alarms.escalation import DeadlineKind, Level
from gateway.alarms.gate import Gate
from gateway.alarms.incident import ENDS, IncidentState
from gateway.alarms.policy import Actor, AlarmSettings
from gateway.alarms.press import (
    MAX_BYTES,
    Kind,
    PlaceKind,
    Refusal,
    parse_cancel,
    parse_correction,
    parse_press,
    verify,
)
from gateway.alarms.records import Row, alarm_table, incident_table
from gateway.alarms.roster import Roster
from gateway.alarms.world import World
from gateway.audit import audit
from gateway.errors import Conflict, NotFound, ProtocolError, Unavailable
from gateway.geo import Position
from gateway.store import Store

__all__ = ["AlarmDesk"]

logger = logging.getLogger(__name__)


# AlarmDesk has a method `list`, which hides the type within the class.
Alarms = list[Json]
Cameras = list[CameraChoice]
Workers = list[WorkerChoice]


class AlarmDesk:
    """Owned by the loop. `async with asyncio.TaskGroup() as g: g.create_task(desk.run())` delivers and
    fires deadlines.
    """

    def __init__(
        self,
        store: Store,
        world: World,
        settings: AlarmSettings,
        *,
        roster: Roster,
        camera_health: Callable[[str], bool],
        may_watch: Callable[[str, str], bool],
        talked_about: Callable[[], Collection[str]],
        publish_mqtt: PublishMqtt,
        publish_events: PublishEvents,
        ring: Ring,
        reach: audiences.Reach,
        clock: Callable[[], int],
    ) -> None:
        """may_watch(sid, camera id): whether that box may show the camera, asked where it says that it does; talked_about(): alarms whose
        call a desk is in."""
        self._store = store
        self._world = world
        self._settings = settings
        self._roster = roster
        self._camera_health = camera_health
        self._may_watch = may_watch
        self._talked_about = talked_about
        self._publish_mqtt = publish_mqtt
        self._clock = clock
        self._courier = courier_of(
            store,
            publish_mqtt=self._publish,
            publish_events=publish_events,
            ring=ring,
            reach=reach,
            clock=clock,
        )
        self._gate = Gate(store, settings)
        self._deadlines_changed = asyncio.Event()
        self._households_audited: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.counters = {"presses": 0, "known": 0, "refused": 0, "escalated": 0}

    def apply(self, world: World) -> None:
        """The district after a reload; the roster is loaded anew by its owner."""
        self._world = world

    @property
    def throttled(self) -> int:
        """Presses that had to wait because their box pressed too fast."""
        return self._gate.throttled

    # ---- boxes --------------------------------------------------------------------------------------------

    async def press(self, raw: bytes, via: str, sid: str | None = None) -> Json:
        """A press as it came, from MQTT (`sid` of the topic, which the broker's ACL has bound to the device)
        or HTTP (None).

        Returns the ack; over MQTT it is published as well. It is `persisted` only after the commit. Raises
        Unavailable if it can't even be refused (then don't acknowledge the PUBLISH), ProtocolError if it
        doesn't name a box and a press to answer.
        """
        now_ms = self._clock()
        self.counters["presses"] += 1
        try:
            press = parse_press(raw, sid=sid)
        except ProtocolError as exc:
            return await self._refuse(raw, sid, Refusal.MALFORMED, via, now_ms, exc)
        key = self._world.box_key(press.sid)
        if key is None:
            return await self._answer(press.sid, refusal(press.pid, Refusal.UNKNOWN_BOX, now_ms), via)
        genuine = verify(key, press)
        if genuine:
            known = self._gate.recent(f"stb/{press.sid}", press.pid)
            if known is not None:
                self.counters["known"] += 1
                return await self._answer(press.sid, known, via)
        admitted = intake.Admitted(
            press=press,
            place=intake.place_of(self._world, press.sid, press.cam, self._may_watch),
            alarm_id=str(ULID.from_timestamp(now_ms / 1000)),
            now_ms=now_ms,
            via=via,
        )
        try:
            if not genuine:
                return await self._unverified(admitted)
            answer, was_known = await self._gate.admit(admitted)
        except Unavailable as exc:
            logger.error("press %s of %s can't be processed: %s", press.pid, press.sid, exc)
            return await self._answer(press.sid, refusal(press.pid, Refusal.CANNOT_PROCESS, now_ms), via)
        if was_known:
            self.counters["known"] += 1
            return await self._answer(press.sid, answer, via)
        self._deadlines_changed.set()
        return answer

    async def raised(self, admitted: intake.Admitted) -> Json:
        """A press that is proven without a signature (a gridworker's, by its session): the ack. Raises Unavailable."""
        self.counters["presses"] += 1
        answer, was_known = await self._gate.admit(admitted)
        self.counters["known"] += was_known
        self._deadlines_changed.set()
        return answer

    async def cancel(self, raw: bytes, via: str, sid: str | None = None) -> Json:
        """As press()."""
        now_ms = self._clock()
        try:
            message = parse_cancel(raw, sid=sid)
        except ProtocolError as exc:
            return await self._refuse(raw, sid, Refusal.MALFORMED, via, now_ms, exc)
        key = self._world.box_key(message.sid)
        if key is None or not verify(key, message):
            reason = Refusal.UNKNOWN_BOX if key is None else Refusal.BAD_SIGNATURE
            return await self._answer(message.sid, refusal(message.pid, reason, now_ms), via)
        try:
            return await self._store.write(
                lambda c: intake.record_cancel(c, message.sid, message.pid, now_ms)
            )
        except Unavailable:
            return await self._answer(message.sid, refusal(message.pid, Refusal.CANNOT_PROCESS, now_ms), via)

    async def correct_place(self, raw: bytes) -> Json:
        """The resident's correction over HTTP."""
        now_ms = self._clock()
        message = parse_correction(raw)
        key = self._world.box_key(message.sid)
        if key is None or not verify(key, message):
            return refusal(message.pid, Refusal.UNKNOWN_BOX if key is None else Refusal.BAD_SIGNATURE, now_ms)
        camera = await self._store.read(lambda c: intake.pressed_camera(c, message.sid, message.pid))
        place = intake.place_of(
            self._world, message.sid, camera, self._may_watch, prefer=PlaceKind(message.place)
        )
        return await self._store.write(
            lambda c: intake.record_correction(c, message.sid, message.pid, place, now_ms)
        )

    # ---- people at a desk
    # -----------------------------------------------------------------------------------

    async def shown(self, alarm_id: str, console: str, by: Actor) -> Json:
        """A visible console has rendered it. Again, or by another: nothing changes."""

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            handling = self._move(row, Event.SHOW)
            if row["shown_at"] is not None:
                return row
            row = records.update_alarm(c, row, handling=handling, shown_at=now_ms)
            self._log(c, row, "shown", by, now_ms, console=console)
            announce_stage(c, row, Stage.SHOWN, now_ms)
            return self._progress(c, row, handling, now_ms)

        return await self._step(alarm_id, step)

    async def acknowledge(self, alarm_id: str, by: Actor) -> Json:
        """Takes the alarm. Raises Conflict with `by` when another operator was first; the same one again
        changes nothing.
        """

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            if row["handling"] == Handling.ACKNOWLEDGED:
                if row["acknowledged_sub"] == by.sub:
                    return row
                name = row["acknowledged_name"]
                raise Conflict(f"已由{name}受理", by={"sub": row["acknowledged_sub"], "name": name})
            handling = self._move(row, Event.ACKNOWLEDGE)
            row = records.update_alarm(
                c,
                row,
                handling=handling,
                shown_at=row["shown_at"] or now_ms,
                acknowledged_at=now_ms,
                acknowledged_sub=by.sub,
                acknowledged_name=by.name,
            )
            self._log(c, row, "acknowledged", by, now_ms)
            announce_stage(c, row, Stage.ANSWERED, now_ms)
            return self._progress(c, row, handling, now_ms)

        return await self._step(alarm_id, step)

    async def unacknowledge(self, alarm_id: str, by: Actor) -> Json:
        """Gives it back: to SHOWN, alerting anew."""

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            return self._give_back(c, row, Event.UNACKNOWLEDGE, "unacknowledged", by, now_ms)

        return await self._step(alarm_id, step)

    async def triage(
        self,
        alarm_id: str,
        by: Actor,
        *,
        outcome: Outcome,
        type: str | None = None,
        severity: int | None = None,
        police: str | None = None,
        merged_into: str | None = None,
        note: str = "",
    ) -> Json:
        """Decides what it is. outcome incident opens one (`incident_id`); merged needs `merged_into`.
        severity 1-4, police yes|no|undetermined."""
        incident_id = str(ULID.from_timestamp(self._clock() / 1000))

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            handling = self._move(row, Event.TRIAGE)
            values: dict[str, Any] = {
                "outcome": outcome,
                "type": type,
                "severity": severity,
                "police": police,
            }
            if outcome is Outcome.INCIDENT:
                if row["kind"] == Kind.TEST:
                    raise Conflict("测试或演练的报警不能立为事件", kind=row["kind"])
                opened = open_incident(
                    c,
                    incident_id,
                    by,
                    now_ms=now_ms,
                    type=type or row["kind"],
                    severity=severity or 3,
                    police=police or "undetermined",
                    place_label=row["place_label"],
                    position=records.position_of(row),
                    district=row["district"],
                    street=row["street"],
                    community=row["community"],
                    grid=row["grid"],
                    alarm_id=row["id"],
                    note=note,
                    action_ms=self._settings.action_ms,
                )
                values["incident_id"] = opened["id"]
            elif outcome is Outcome.MERGED:
                if merged_into is None or merged_into == row["id"]:
                    raise Conflict("并入哪一条报警？", merged_into=merged_into)
                values["merged_into"] = merged_into
                values["incident_id"] = records.load(c, merged_into)["incident_id"]
            row = records.update_alarm(c, row, handling=handling, **values)
            self._log(
                c, row, "triaged", by, now_ms, outcome=outcome, note=note, severity=severity, police=police
            )
            if outcome is Outcome.INCIDENT and severity == 4:
                peaceful = not row["silent"] and row["kind"] not in self._settings.escalation.violence
                brief, told = announce.audience_brief(row), Level(row["level"])
                audiences.call_on_everybody(
                    c, f"alarm/{row['id']}", brief, now_ms, told=told, peaceful=peaceful
                )
                row = records.update_alarm(c, row, level=Level.LEADER)
            return self._progress(c, row, handling, now_ms)

        return await self._step(alarm_id, step)

    async def close(self, alarm_id: str, by: Actor, *, note: str = "") -> Json:
        """Ends it. Raises Conflict while its incident is open or the resident, who cancelled, was not called back."""

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            handling = self._move(row, Event.CLOSE)
            call_back.check_called_back(row)
            if row["incident_id"] is not None and row["outcome"] == Outcome.INCIDENT:
                state = c.execute(
                    select(incident_table.c.state).where(incident_table.c.id == row["incident_id"])
                ).scalar()
                if state is not None and IncidentState(state) not in ENDS:
                    raise Conflict("事件尚未结案", incident_id=row["incident_id"], state=state)
            row = records.update_alarm(c, row, handling=handling, closed_at=now_ms)
            self._log(c, row, "closed", by, now_ms, note=note)
            announce_stage(c, row, Stage.CLOSED, now_ms)
            return self._progress(c, row, handling, now_ms)

        return await self._step(alarm_id, step)

    async def call_back(
        self, alarm_id: str, by: Actor, *, outcome: call_back.Outcome, note: str = ""
    ) -> Json:
        """The resident cancelled, and `by` has telephoned. Raises Conflict, ProtocolError."""

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            row, said = call_back.record_call_back(c, row, by, outcome, note, now_ms)
            self._log(c, row, "called_back", by, now_ms, **said)
            return row

        return await self._step(alarm_id, step)

    # ---- other parts of the gateway
    async def on_call(self, alarm_id: str, call_id: str) -> None:
        """The alarm's call is open. What a storm opens at a time is noted together."""
        await self._store.write_together(_note_calls, (alarm_id, call_id, self._clock()))

    async def on_dispatch_accepted(self, alarm_id: str, worker: Actor, eta_s: int) -> None:
        """A gridworker is on the way: the box hears the name. Doesn't stop the desks' escalation. Again:
        nothing changes.
        """

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            if row["worker_id"] == worker.sub or row["closed_at"] is not None:
                return row
            row = records.update_alarm(c, row, worker_id=worker.sub, worker_name=worker.name, eta_s=eta_s)
            self._log(c, row, "dispatched", worker, now_ms, eta_s=eta_s)
            announce_stage(c, row, Stage.DISPATCHED, now_ms)
            announce_alarm(c, row, records.load_deadlines(c, row["id"]))
            return row

        await self._step(alarm_id, step)

    async def on_dispatch_released(self, alarm_id: str, worker_id: str) -> None:
        """That gridworker took the call and was not heard: nobody is on the way, unless an incident sent it meanwhile."""

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            sent = row["worker_id"] == worker_id and row["incident_id"] is None
            if not sent or row["closed_at"] is not None:
                return row
            row = records.update_alarm(c, row, worker_id=None, worker_name=None, eta_s=None)
            self._log(c, row, "released", None, now_ms, worker=worker_id)
            announce_fall(c, row)
            announce_alarm(c, row, records.load_deadlines(c, row["id"]))
            return row

        await self._step(alarm_id, step)

    async def on_denied(self, client: str, topic: str) -> None:
        """The broker refused a PUBLISH, or nothing comes of a SUBSCRIBE: audited, as far as the client stays within the rate of a box."""
        now_ms = self._clock()
        if self._gate.spend(f"denied/{client}", now_ms):
            who, subject = f"device/{client}"[:80], f"topic/{topic}"[:200]
            await self._store.write(
                lambda c: audit(c, who=who, action="mqtt.denied", subject=subject, detail={}, now_ms=now_ms)
            )

    async def on_no_answer(self, alarm_id: str, reason: str) -> None:
        """No gridworker came so far. reason: why, as the call says it (nobody_on_duty, no_answer ...)."""

        def step(c: Connection, row: Row, now_ms: int) -> Row:
            if row["closed_at"] is not None:
                return row
            records.add_timeline(c, row["id"], at=now_ms, event="no_answer", by="system", reason=reason)
            announce_alarm(c, row, records.load_deadlines(c, row["id"]))
            return row

        await self._step(alarm_id, step)

    # ---- views ---------------------------------------------------------------------------------------------

    async def list(
        self,
        *,
        handling: Handling | None = None,
        open_only: bool = False,
        limit: int = 100,
        visible: Callable[[tuple[str, ...], str], bool] = lambda lineage, alarm_id: True,
    ) -> Alarms:
        """Newest first, in list form. `visible(lineage, alarm_id)` says whether the caller may see it."""

        def query(c: Connection) -> Alarms:
            statement = select(alarm_table).order_by(
                alarm_table.c.received_at.desc(), alarm_table.c.id.desc()
            )
            if handling is not None:
                statement = statement.where(alarm_table.c.handling == handling)
            if open_only:
                statement = statement.where(alarm_table.c.closed_at.is_(None))
            found: Alarms = []
            for mapping in c.execute(statement).mappings():
                row = dict(mapping)
                if visible(records.lineage_of(row), row["id"]):
                    found.append(records.alarm_view(row, records.load_deadlines(c, row["id"])))
                    if len(found) >= limit:
                        break
            return found

        return await self._store.read(query)

    async def lineage(self, alarm_id: str) -> tuple[str, ...]:
        """For authorize(), before anything else is told. Raises NotFound."""
        return records.lineage_of(await self._store.read(lambda c: records.load(c, alarm_id)))

    async def get(
        self, alarm_id: str, *, include_household: bool = False, viewer: Actor | None = None
    ) -> Json:
        """The whole Alarm. `include_household`: for the acknowledging operator and the claiming worker only;
        the view is audited and ends with the alarm. Raises NotFound."""

        def query(c: Connection) -> tuple[Row, dict[DeadlineKind, int], Alarms, Alarms]:
            row = records.load(c, alarm_id)
            told = audiences.deliveries_of(c, f"alarm/{alarm_id}")
            return row, records.load_deadlines(c, alarm_id), records.timeline_of(c, alarm_id), told

        row, deadlines, timeline, deliveries = await self._store.read(query)
        now_ms = self._clock()
        view = records.alarm_view(row, deadlines)
        position = records.position_of(row)
        view["cameras"] = [] if position is None else self.cameras_at(position, watched=row["camera"])
        view["workers"] = (
            [] if position is None else self.workers_at(position, grid=row["grid"], now_ms=now_ms)
        )
        view["timeline"] = timeline
        view["deliveries"] = deliveries
        view["household"] = None
        home = self._world.home(row["household"]) if row["household"] else None
        if include_household and home is not None and row["closed_at"] is None:
            await self._audit_household(row, viewer, now_ms)
            view["household"] = {
                "address": home.address,
                "contacts": list(home.contacts),
                "notes": home.notes,
            }
        return view

    def cameras_at(self, position: Position, *, watched: str | None = None) -> Cameras:
        return rank_cameras(
            self._settings.dispatch,
            self._world.cameras(),
            position,
            healthy=self._camera_health,
            watched=watched,
        )

    def cameras_of(self, alarm: Mapping[str, Any]) -> Sequence[str]:
        """Ids of the cameras around an alarm in its JSON form, best first."""
        place = alarm["place"]
        where, watched = place["position"], place["ref"] if place["kind"] == PlaceKind.CAMERA else None
        return [] if where is None else [c.id for c in self.cameras_at(Position(**where), watched=watched)]

    def workers_at(
        self,
        position: Position,
        *,
        grid: str | None = None,
        exclude: frozenset[str] = frozenset(),
        limit: int = 10,
        now_ms: int | None = None,
    ) -> Workers:
        """Best first. `grid` None: the grid that the position lies in."""
        return self._roster.crowd.rank(
            self._settings.dispatch,
            position,
            grid=grid or self._world.area_at(position).grid,
            now_ms=self._clock() if now_ms is None else now_ms,
            exclude=exclude,
            limit=limit,
        )

    # ---- the desk's own time -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: delivers the outbox, fires deadlines, records throttled presses, flushes the
        roster.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._courier.run(), name="alarms-outbox")
            group.create_task(self._run_deadlines(), name="alarms-deadlines")
            group.create_task(self._gate.run(), name="alarms-throttle")
            group.create_task(self._run_flush(), name="alarms-roster")

    async def fire_due(self) -> int | None:
        """Fires what is due now and returns when the next deadline is (UTC ms), None if there is none."""
        now_ms, settings = self._clock(), self._settings.escalation
        while (at := await self._store.read(due.next_due)) is not None and at <= now_ms:
            talked_about = self._talked_about()
            self.counters["escalated"] += await self._store.write(
                lambda c: due.fire_due(c, settings, now_ms, talked_about)  # noqa: B023 - it is awaited here
            )
        return at

    async def _run_deadlines(self) -> None:
        while True:
            self._deadlines_changed.clear()
            try:
                at = await self.fire_due()
            except Unavailable as exc:
                logger.error("deadlines wait for the database: %s", exc)
                at = self._clock() + int(exc.retry_after_s * 1000)
            wait_s = None if at is None else max(0.0, (at - self._clock()) / 1000)
            try:
                async with asyncio.timeout(wait_s):
                    await self._deadlines_changed.wait()
                    await asyncio.sleep(0.05)  # a storm of presses is one look, not one each
            except TimeoutError:
                continue

    async def _run_flush(self) -> None:
        while True:
            await asyncio.sleep(self._settings.flush_ms / 1000)
            try:
                await self._roster.flush(self._clock(), keep_track_ms=self._settings.keep_track_ms)
            except Unavailable as exc:
                logger.warning("positions wait for the database: %s", exc)

    # ---- steps ---------------------------------------------------------------------------------------------

    async def _step(self, alarm_id: str, step: Callable[[Connection, Row, int], Row]) -> Json:
        """One transition in one transaction; the alarm in list form as it is afterwards."""
        now_ms = self._clock()

        def run(c: Connection) -> Json:
            row = step(c, records.load(c, alarm_id), now_ms)
            return records.alarm_view(row, records.load_deadlines(c, alarm_id))

        view = await self._store.write(run)
        self._deadlines_changed.set()
        return view

    def _move(self, row: Row, event: Event) -> Handling:
        return change_handling(Handling(row["handling"]), event)

    def _progress(self, c: Connection, row: Row, handling: Handling, now_ms: int) -> Row:
        """Deadlines after a step by people, and the news of it."""
        progress = escalation.on(
            self._settings.escalation, records.progress_of(c, row), handling, now_ms=now_ms
        )
        row = records.update_alarm(c, row, level=progress.level, base_ms=progress.base_ms)
        records.store_deadlines(c, row["id"], progress.deadlines)
        announce_alarm(c, row, progress.deadlines)
        return row

    def _give_back(
        self, c: Connection, row: Row, event: Event, name: str, by: Actor | None, now_ms: int
    ) -> Row:
        handling = self._move(row, event)
        row = records.update_alarm(c, row, handling=handling, alerted_at=now_ms, **records.NOT_ACKNOWLEDGED)
        self._log(c, row, name, by, now_ms)
        announce_fall(c, row)
        return self._progress(c, row, handling, now_ms)

    def _log(
        self, c: Connection, row: Row, event: str, by: Actor | None, now_ms: int, **detail: object
    ) -> None:
        """Timeline and audit."""
        who = "system" if by is None else str(by)
        named = detail if by is None else {"name": by.name, **detail}
        records.add_timeline(c, row["id"], at=now_ms, event=event, by=who, **named)
        audit(c, who=who, action=f"alarm.{event}", subject=f"alarm/{row['id']}", detail=detail, now_ms=now_ms)

    async def _audit_household(self, row: Row, viewer: Actor | None, now_ms: int) -> None:
        if viewer is None:
            raise ValueError("who sees a household must be named")
        key = (str(viewer), row["id"])
        if key in self._households_audited:
            return
        subject = f"alarm/{row['id']}"
        detail = {"household": row["household"]}
        await self._store.write(
            lambda c: audit(
                c, who=str(viewer), action="household.view", subject=subject, detail=detail, now_ms=now_ms
            )
        )
        self._households_audited[key] = None
        while len(self._households_audited) > 10_000:
            self._households_audited.popitem(last=False)

    # ---- presses on their way ------------------------------------------------------------------------------

    async def _unverified(self, admitted: intake.Admitted) -> Json:
        """One row and audit line for each, as long as the box stays within its rate; beyond, the answer
        alone.
        """
        press, now_ms = admitted.press, admitted.now_ms
        self.counters["refused"] += 1
        # A bucket of its own: forged presses must not throttle the genuine ones.
        if not self._gate.spend(f"forged/{press.sid}", now_ms):
            return await self._answer(
                press.sid, refusal(press.pid, Refusal.BAD_SIGNATURE, now_ms), admitted.via
            )
        logger.warning(
            "press of %s with a wrong signature", press.sid, extra={"sid": press.sid, "pid": press.pid}
        )
        return await self._store.write(lambda c: intake.record_unverified(c, admitted))

    async def _refuse(
        self, raw: bytes, sid: str | None, reason: Refusal, via: str, now_ms: int, exc: ProtocolError
    ) -> Json:
        """Answers what can't be read, if it names its press and we know which box sent it."""
        self.counters["refused"] += 1
        try:
            named = msgspec.json.decode(raw, type=dict[str, object]) if len(raw) <= MAX_BYTES else {}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            named = {}
        pid = named.get("pid")
        if not isinstance(pid, str) or len(pid) > 64 or sid is None or self._world.box_key(sid) is None:
            raise exc
        return await self._answer(sid, refusal(pid, reason, now_ms), via)

    async def _answer(self, sid: str, payload: Json, via: str) -> Json:
        """An answer that changed nothing is not worth a transaction: it is published at once."""
        if via == "mqtt":
            message = ack_message(sid, payload)
            await self._publish_mqtt([(message["topic"], msgspec.json.encode(payload), 1, False)])
        return payload

    async def _publish(self, publications: Sequence[Publication]) -> None:
        await self._publish_mqtt(publications)


def _note_calls(c: Connection, opened: list[tuple[str, str, int]]) -> list[None]:
    """(alarm, its call, when). Raises NotFound."""
    found = records.load_many(c, tuple({alarm_id for alarm_id, _, _ in opened}))
    for alarm_id, call_id, now_ms in opened:
        if alarm_id not in found:
            raise NotFound(f"no alarm {alarm_id}")
        row, deadlines = found[alarm_id]
        if row["call_id"] == call_id:
            continue
        row = records.update_alarm(c, row, call_id=call_id)
        found[alarm_id] = row, deadlines
        records.add_timeline(c, alarm_id, at=now_ms, event="call", by="system", call_id=call_id)
        announce_alarm(c, row, deadlines)
    return [None] * len(opened)
