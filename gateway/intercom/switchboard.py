"""The switchboard: calls as a service on the store.

Each step is one transaction: the call is read, moved by `call.step`, written back by compare-and-set, its
audit lines and its announcements (outbox) with it. What the world hears leaves through the outbox after the
commit: rings over MQTT and the event channel, the call itself to the pages, "accepted" and "nobody answers"
to the alarm desk. Media sessions live in this process only and are closed right after the commit.

The root wires it with callables; `deliveries()` gives the outbox kinds that the courier hands back to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection
from ulid import ULID

from gateway import outbox
from gateway.errors import Conflict, NotFound, Unavailable
from gateway.intercom import ledger, tables
from gateway.intercom.model import (
    AlarmBrief,
    Busy,
    Call,
    CallKind,
    CallSettings,
    CallState,
    Cancel,
    Claim,
    CloseMedia,
    Decline,
    Delivered,
    Effect,
    Hangup,
    IncidentBrief,
    Input,
    Join,
    Leg,
    MediaChanged,
    MediaLost,
    Participant,
    RankedWorker,
    RecordingChanged,
    RingWorkers,
    Side,
    Supersede,
    WatchChanged,
)
from gateway.intercom.outgoing import Audience, Outgoing, Receipts
from gateway.intercom.plan import ring_request, ring_until
from gateway.intercom.reader import CallReader
from gateway.intercom.steps import Moved, Steps, load
from gateway.intercom.timers import Timers
from gateway.intercom.view import leg_of_source, media_owner
from gateway.store import Store

__all__ = ["AlarmBrief", "Audience", "IncidentBrief", "Switchboard"]

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Position = tuple[float, float]
Rankings = dict[tuple[Position | None, str | None, frozenset[str]], Sequence[RankedWorker]]
"""By what `rank` was asked."""

RETRY_S = 1.0
"""How long the timers rest when the database can't be written."""
DUE_AT_ONCE = 64
"""Calls whose deadlines one tick takes up. In a storm the next tick, right behind it, takes up the next ones."""
DUE_TOGETHER = 8
"""Of these in one write: some milliseconds of the writer, for which a press may have to wait."""


class Switchboard(CallReader):
    """All calls of this gateway. `await start()` once, then `await run()` in a task; every method is for the
    loop's thread.

    rank(position, grid, exclude): the ranking, best first, without off-duty workers. pick(worker_id,
    position): one worker as the ranking sees it, None if it is unknown or off duty. ring(worker_id, message):
    MQTT `w/{wid}/call` (ring_all: many at once). notify(notice): the provider that reaches phones (None: there is none). publish_event(type, data, audience): the event channel. close_media(owner): ends
    media sessions of that owner. on_accepted(alarm_id, worker_id, name, eta_s), on_released(alarm_id, worker_id: no media of it came), on_no_answer(alarm_id,
    reason), on_opened(alarm_id, call_id), on_missed(call_id, worker_id, alarm_id), on_hung_up(alarm_id, worker_id, call_id: the caller
    hung up as this worker answered) tell the alarm desk; they may be repeated after a crash and raise to be tried again. clock: UTC milliseconds.
    """

    def __init__(
        self,
        store: Store,
        settings: CallSettings,
        *,
        rank: Callable[[Position | None, str | None, frozenset[str]], Sequence[RankedWorker]],
        pick: Callable[[str, Position | None], RankedWorker | None],
        ring: Callable[[str, Json], Awaitable[None]],
        publish_event: Callable[[str, Json, Audience], Awaitable[None]],
        close_media: Callable[[str], None],
        on_accepted: Callable[[str, str, str, float | None], Awaitable[None]],
        on_released: Callable[[str, str], Awaitable[None]],
        on_no_answer: Callable[[str, str], Awaitable[None]],
        on_opened: Callable[[str, str], Awaitable[None]],
        on_missed: Callable[[str, str | None, str | None], Awaitable[None]],
        on_hung_up: Callable[[str, str, str], Awaitable[None]] | None = None,
        ring_all: Callable[[Sequence[tuple[str, Json]]], Awaitable[None]] | None = None,
        notify: Callable[[Json], Awaitable[None]] | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        new_id: Callable[[], str] = lambda: str(ULID()),
    ) -> None:
        super().__init__(store)
        self._settings = settings
        self._steps = Steps(settings)
        self._rank = rank
        self._pick = pick
        self._outgoing = Outgoing(
            ring=ring,
            ring_all=ring_all,
            notify=notify,
            publish_event=publish_event,
            on_accepted=on_accepted,
            on_released=on_released,
            on_no_answer=on_no_answer,
            on_opened=on_opened,
            on_missed=on_missed,
            on_hung_up=on_hung_up,
            clock=clock,
        )
        self.receipts = Receipts()
        self._close_media = close_media
        self._clock = clock
        self._new_id = new_id
        self._open: dict[str, Call] = {}
        self._timers = Timers(settings)
        # Bounded by the legs there are: of each only the newest word of the media plane counts.
        self._media: dict[tuple[str, str], frozenset[str]] = {}
        self._flags: dict[tuple[str, str, type[RecordingChanged | WatchChanged]], bool] = {}
        self._wake = asyncio.Event()
        self._paused_until = 0
        self._resting: dict[str, int] = {}

    # -------------------------------------------------------------------------------------------- opening

    async def open_for_alarm(self, brief: AlarmBrief) -> Call:
        """As open_for_alarms()."""
        return (await self.open_for_alarms([brief]))[0]

    async def open_for_alarms(self, briefs: Sequence[AlarmBrief]) -> list[Call]:
        """Opens the alarms' calls and rings by itself, in one transaction that goes before what waits.

        The same alarm again gives the same call, whatever became of it.
        """
        now_ms = self._clock()
        new = [self._new_call(CallKind.ALARM, brief, now_ms) for brief in briefs]
        ranked = [self._rank(call.position, call.grid, frozenset()) for call in new]

        plans = list(zip(briefs, new, ranked, strict=True))
        opened = await self._store.write(
            lambda connection: self._steps.open_all(connection, plans, now_ms), urgent=True
        )
        self._apply(opened)
        return [moved.call for moved in opened]

    async def ring_for_alarm(self, brief: AlarmBrief, by: Participant) -> Call:
        """An operator asks for a call about an alarm: joins the one that is open, else rings as its commit does."""
        now_ms = self._clock()
        call = replace(self._new_call(CallKind.ALARM, brief, now_ms), opened_by=by)
        ranked = self._rank(call.position, call.grid, frozenset())

        def open_or_join(connection: Connection) -> list[Moved]:
            for known in tables.open_for(connection, brief.alarm_id):
                return [self._steps.move(connection, load(connection, known), Join(participant=by), now_ms)]
            begun = self._steps.begin(connection, call, ranked, now_ms, ledger.who(by), opened_for=None)
            joined = self._steps.move(connection, begun.call, Join(participant=by), now_ms)
            return [joined.following(begun)]

        return (await self._write(open_or_join)).call

    async def dispatch(
        self, worker_id: str, by: Participant, *, brief: AlarmBrief | IncidentBrief | None = None
    ) -> Call:
        """An operator calls a worker of its choice; a worker in another call hears it waiting.

        It takes the place of the alarm's own call while that only rings (superseded). Raises Conflict if the
        worker is not on duty.
        """
        now_ms = self._clock()
        chosen = self._pick(worker_id, brief.position if brief else None)
        if chosen is None:
            raise Conflict("this gridworker is not on duty", worker_id=worker_id)
        call = replace(self._new_call(CallKind.DISPATCH, brief, now_ms), opened_by=by, picked=(worker_id,))

        def open_it(connection: Connection) -> list[Moved]:
            moved = []
            for known in tables.open_for(connection, brief.alarm_id) if isinstance(brief, AlarmBrief) else ():
                other = load(connection, known)
                if other.state is CallState.RINGING and other.kind is CallKind.ALARM:
                    moved.append(self._steps.move(connection, other, Supersede(), now_ms))
            tables.insert_call(connection, call, opened_for=None)
            ledger.record_opening(connection, call, ledger.who(by), now_ms)
            waiting = frozenset({worker_id}) & tables.busy_workers(connection)
            first = self._steps.move(connection, call, Join(participant=by), now_ms)
            rung = self._steps.move(
                connection, first.call, RingWorkers(choices=(chosen,), waiting=waiting), now_ms
            )
            return [rung.following(first), *moved]

        return (await self._write(open_it)).call

    async def call_center(
        self,
        by: Participant,
        *,
        lineage: tuple[str, ...],
        position: Position | None,
        place_label: str,
        sos: bool = False,
        alarm_id: str | None = None,
        press_id: str | None = None,
    ) -> Call:
        """A gridworker calls the command center: its desks ring.

        The same worker again gets the call that is open. sos: for help; it ends whatever call the worker is in. alarm_id:
        the alarm that it raised; press_id: its name for this one, by which it gets the same call again, ended or not.
        """
        now_ms = self._clock()
        call = replace(
            self._new_call(CallKind.INBOUND, None, now_ms),
            opened_by=by,
            rings=Side.CENTER,
            sos=sos,
            lineage=lineage,
            position=position,
            place_label=place_label,
            grid=lineage[-1] if lineage else None,
            alarm_id=alarm_id,
        )
        opened_for = None if press_id is None else f"worker/{by.id}/{press_id}"

        def open_it(connection: Connection) -> list[Moved]:
            before = None if opened_for is None else tables.opened_for(connection, opened_for)
            if before is not None:
                return [Moved(load(connection, before), ())]
            moved = []
            for known in tables.involving(connection, by.id):
                other = load(connection, known)
                if other.leg_of(by.id) is not None:
                    if other.kind is CallKind.INBOUND and (other.sos or not sos):
                        return [Moved(other, ())]
                    if not sos:
                        raise Conflict("you are in another call", call_id=other.id)
                    moved.append(self._steps.move(connection, other, Supersede(), now_ms))
            tables.insert_call(connection, call, opened_for=opened_for)
            ledger.record_opening(connection, call, ledger.who(by), now_ms)
            return [self._steps.move(connection, call, Join(participant=by), now_ms), *moved]

        return (await self._write(open_it)).call

    # ------------------------------------------------------------------------------------------- answering

    async def claim(self, call_id: str, by: Participant, *, device: str = "") -> Call:
        """Answers. One wins; everybody else, and the winner's other phone, gets Conflict(taken_by={id,
        name}).

        What the winner was in before is ended (superseded) and its other rings move on: it is busy now.
        """
        now_ms = self._clock()

        def claim_it(connection: Connection) -> list[Moved]:
            before = load(connection, call_id)
            if ledger.answered_too_late(connection, before, by, now_ms):
                return [Moved(before, ())]
            won = self._steps.move(connection, before, Claim(participant=by, device=device), now_ms)
            if by.side is not Side.WORKER or won.call.answered_at == before.answered_at:
                return [won]
            moved = [won]
            for other_id in tables.involving(connection, by.id):
                other = load(connection, other_id)
                if other_id == call_id:
                    continue
                if other.leg_of(by.id) is not None:
                    moved.append(self._steps.move(connection, other, Supersede(), now_ms))
                elif not other.picked:
                    moved.append(
                        self._steps.move(connection, other, Busy(worker_id=by.id, reason="busy"), now_ms)
                    )
            return moved

        claimed = (await self._write(claim_it)).call
        if claimed.ended:
            raise Conflict("the caller has hung up", state=claimed.state.value, end_reason="cancelled")
        return claimed

    async def decline(self, call_id: str, worker_id: str) -> Call:
        """This worker won't come; the next one rings at once."""
        return await self._step(call_id, Decline(worker_id=worker_id), f"worker/{worker_id}")

    async def join(self, call_id: str, by: Participant, *, device: str = "") -> Call:
        """Takes a place in the room. The first desk to join an inbound call that rings has answered it."""
        return await self._step(call_id, Join(participant=by, device=device), ledger.who(by))

    async def hangup(self, call_id: str, by: Participant) -> Call:
        """Ends it for everybody, or leaves, if others of the command center stay. An ended call stays as it is."""
        now_ms = self._clock()

        def hang_up(connection: Connection) -> list[Moved]:
            call = load(connection, call_id)
            if call.ended:
                return [Moved(call, ())]
            return [self._steps.move(connection, call, Hangup(participant=by), now_ms)]

        return (await self._write(hang_up)).call

    async def reply(self, worker_id: str, payload: Mapping[str, object]) -> None:
        """`w/{wid}/reply`: accept or decline over MQTT.

        What comes too late is answered by the `ring_end` already sent.
        """
        call_id, act = payload.get("call"), payload.get("act")
        if not isinstance(call_id, str):
            return
        with contextlib.suppress(Conflict, NotFound):
            if act == "accept":
                call = await self.get(call_id)
                rung = next((r for r in call.rung if r.worker_id == worker_id), None)
                name = rung.name if rung else worker_id
                await self.claim(call_id, Participant(id=worker_id, name=name, role="worker"))
            elif act == "decline":
                await self.decline(call_id, worker_id)
            elif act == "received":
                await self.delivered(call_id, worker_id, "mqtt")

    async def delivered(self, call_id: str, worker_id: str, channel: str, *, error: str = "") -> Call:
        """A phone (or the provider for it) says that it rings, or why it can't. Raises Conflict, NotFound."""
        given = Delivered(worker_id=worker_id, channel=channel, error=error)
        before = self._open.get(call_id)
        call = await self._step(call_id, given, f"worker/{worker_id}")
        self.receipts.count(before, call, worker_id, channel)
        return call

    async def cancel_alarm(self, alarm_id: str, *, at_ms: int | None = None, hung_up: bool = False) -> None:
        """The alarm is over: what still rings for it falls silent. A call that was answered goes on, unless the caller
        hung up (`hung_up`: the resident cancelled) before anybody could speak. A desk's own call after `at_ms` goes on, and so
        does that of a press after it."""
        ends = (
            (CallState.RINGING, CallState.CLAIMED, CallState.CONNECTING) if hung_up else (CallState.RINGING,)
        )

        def cancel(connection: Connection) -> list[Moved]:
            moved = []
            for call_id in tables.open_for(connection, alarm_id):
                call = load(connection, call_id)
                if call.state in ends and not (
                    at_ms is not None and tables.asked_at(connection, call) > at_ms
                ):
                    moved.append(self._steps.move(connection, call, Cancel(), self._clock()))
            return moved

        self._apply(await self._store.write(cancel))

    async def worker_off_duty(self, worker_id: str) -> None:
        """Its phone falls silent and the next one rings; a call it is in goes on."""

        def fall_out(connection: Connection) -> list[Moved]:
            moved = []
            for call_id in tables.involving(connection, worker_id):
                call = load(connection, call_id)
                if any(rung.worker_id == worker_id for rung in call.ringing):
                    given = Busy(worker_id=worker_id, reason="off_duty")
                    moved.append(self._steps.move(connection, call, given, self._clock()))
            return moved

        self._apply(await self._store.write(fall_out))

    # --------------------------------------------------------------------------------------------- reading

    def open_calls(self) -> Collection[Call]:
        """Those going on, from memory, as they are on disk."""
        return self._open.values()

    def alarms_at_a_desk(self) -> frozenset[str]:
        """Alarms in whose call somebody of the command center speaks or watches now: a place in it alone is a closed tab's, too."""
        return frozenset(
            call.alarm_id
            for call in self._open.values()
            if call.alarm_id is not None
            for leg in call.present
            if leg.participant.side is Side.CENTER and (leg.publishing or leg.watching)
        )

    # ----------------------------------------------------------------------------------------------- media

    def media_changed(self, source: str, tracks: Iterable[str]) -> None:
        """The plane: this source publishes these kinds now ("audio", "video"). Cheap."""
        key = leg_of_source(source)
        if key is not None:
            self._media[key] = frozenset(tracks)
            self._wake.set()

    def recording_changed(self, source: str, recording: bool) -> None:
        """The evidence desk: this leg is being written down, or no more. Cheap."""
        self._flag(source, RecordingChanged, recording)

    def watching_changed(self, owner: str, watching: bool) -> None:
        """The media edge: the leg that owns this media watches somebody, or nobody any more. Cheap."""
        self._flag(owner, WatchChanged, watching)

    def _flag(self, leg: str, what: type[RecordingChanged | WatchChanged], on: bool) -> None:
        key = leg_of_source(leg)
        if key is not None:
            self._flags[*key, what] = on
            self._wake.set()

    def media_lost(self, source: str, reason: str) -> None:
        """The plane: nothing comes from this source any more."""
        logger.info("media of %s lost: %s", source, reason)
        self.media_changed(source, ())

    # ---------------------------------------------------------------------------------------------- running

    async def start(self) -> None:
        """Takes up what an earlier process left: timers go on, phones ring on, all media counts as
        lost until it returns.
        """
        now_ms = self._clock()

        def resume(connection: Connection) -> list[Moved]:
            moved = []
            for call_id in tables.recent(connection, only_open=True, limit=100_000):
                call = load(connection, call_id)
                effects: list[Effect] = []
                for leg in call.present:
                    gone: list[Input] = [MediaLost(leg_id=leg.id)] if leg.publishing else []
                    gone += [RecordingChanged(leg_id=leg.id, recording=False)] if leg.recording else []
                    gone += [WatchChanged(leg_id=leg.id, watching=False)] if leg.watching else []
                    for given in gone:
                        result = self._steps.move(connection, call, given, now_ms)
                        call = result.call
                        effects += result.effects
                until = ring_until(call, self._settings)
                for rung in call.ringing:
                    # The same mid as before: a phone that rings already takes it for the repeat it is.
                    ledger.announce_ring(connection, call, rung, until)
                moved.append(Moved(call, tuple(effects)))
            return moved

        self._apply(await self._store.write(resume))

    async def run(self) -> None:
        """Until cancelled: timers, ring rounds and the media plane's news."""
        while True:
            self._wake.clear()
            await self.tick()
            wait_s = self._wait_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def tick(self) -> None:
        """Does what is due by the clock, of many deadlines the first DUE_AT_ONCE. The steps of different calls share a commit."""
        now_ms = self._clock()
        if now_ms < self._paused_until:
            return
        media, self._media = self._media, {}
        flags, self._flags = self._flags, {}
        due = self._timers.due(now_ms, DUE_AT_ONCE)
        rankings: Rankings = {}
        async with asyncio.TaskGroup() as group:
            for (call_id, leg_id), tracks in media.items():
                group.create_task(self._tell_media(call_id, leg_id, tracks), name=f"call-media-{call_id}")
            for (call_id, leg_id, what), on in flags.items():
                group.create_task(self._tell_flag(call_id, leg_id, what, on), name=f"call-flag-{call_id}")
            for start in range(0, len(due), DUE_TOGETHER):
                some = due[start : start + DUE_TOGETHER]
                group.create_task(self._elapse(some, rankings), name="call-timers")
                await asyncio.sleep(0)  # each ranks, which keeps the loop

    def _wait_s(self) -> float | None:
        at = self._timers.next_deadline()
        if self._media or self._flags or (at is not None and at < self._paused_until):
            at = self._paused_until
        return None if at is None else max(0.0, (at - self._clock()) / 1000)

    async def _elapse(self, call_ids: Sequence[str], rankings: Rankings) -> None:
        """The deadlines of these calls in one write, as memory knows them. If it fails, because one of them has moved
        on or is in trouble, each is read anew and has a write of its own."""
        now_ms = self._clock()
        found = (self._open.get(call_id) for call_id in call_ids)
        plans = [(known, self._ranking(known, now_ms, rankings)) for known in found if known is not None]
        try:
            self._apply(
                await self._store.write(
                    lambda connection: [self._steps.elapsed(connection, *plan, now_ms) for plan in plans]
                )
            )
        except Unavailable as exc:
            self._pause(exc)
        except Exception as exc:
            logger.debug("the deadlines of %d calls one by one: %s", len(plans), exc)
            for plan in plans:
                await self._elapse_alone(*plan, now_ms)
        for known, _ in plans:
            still = self._open.get(known.id)
            if still is not None and still.version == known.version:
                # Nothing has come of it: again, after a pause if there was trouble.
                self._timers.set(still, not_before=self._resting.pop(known.id, 0))

    async def _elapse_alone(self, known: Call, ranked: Sequence[RankedWorker] | None, now_ms: int) -> None:
        await self._supervised(
            known.id, lambda c: [self._steps.elapsed(c, load(c, known.id), ranked, now_ms)]
        )

    def _ranking(self, call: Call, now_ms: int, rankings: Rankings) -> Sequence[RankedWorker] | None:
        """Who may ring for it now, the best first; None if the plan lacks nobody. Calls about one place share it."""
        request = ring_request(call, now_ms, self._settings)
        if request is None:
            return None
        asked = call.position, call.grid, request.exclude
        if asked not in rankings:
            try:
                rankings[asked] = self._rank(*asked)
            except Exception:
                logger.exception("ranking for call %s failed", call.id)
                rankings[asked] = ()  # nobody new rings, the timers go on
        return rankings[asked]

    async def _tell_media(self, call_id: str, leg_id: str, tracks: frozenset[str]) -> None:
        given = MediaChanged(leg_id=leg_id, tracks=tracks) if tracks else MediaLost(leg_id=leg_id)
        if not await self._tell(call_id, leg_id, given, lambda leg: leg.tracks != tracks):
            self._media.setdefault((call_id, leg_id), tracks)

    async def _tell_flag(
        self, call_id: str, leg_id: str, what: type[RecordingChanged | WatchChanged], on: bool
    ) -> None:
        given: Input
        if what is WatchChanged:
            given, name = WatchChanged(leg_id=leg_id, watching=on), "watching"
        else:
            given, name = RecordingChanged(leg_id=leg_id, recording=on), "recording"
        if not await self._tell(call_id, leg_id, given, lambda leg: getattr(leg, name) != on):
            self._flags.setdefault((call_id, leg_id, what), on)

    async def _tell(self, call_id: str, leg_id: str, given: Input, new: Callable[[Leg], bool]) -> bool:
        """What concerns one leg, if it is there and that is new. False when it shall be tried again."""

        def tell(connection: Connection) -> list[Moved]:
            call = load(connection, call_id)
            leg = call.leg(leg_id)
            if call.ended or leg is None or leg.left_at is not None or not new(leg):
                return [Moved(call, ())]
            return [self._steps.move(connection, call, given, self._clock())]

        return await self._supervised(call_id, tell)

    async def _supervised(self, call_id: str, fn: Callable[[Connection], list[Moved]]) -> bool:
        """One call's trouble is not the others'. False when it shall be tried again."""
        try:
            self._apply(await self._store.write(fn))
        except Unavailable as exc:
            self._pause(exc)
            return False
        except NotFound:
            self._open.pop(call_id, None)
        except Exception:
            # Supervision of one call: whatever is wrong with it must not stop the timers of the others.
            logger.exception("a step of call %s failed", call_id)
            self._resting[call_id] = self._clock() + round(RETRY_S * 1000)
        return True

    def _pause(self, exc: Unavailable) -> None:
        logger.warning("calls wait for the database: %s", exc)
        self._paused_until = self._clock() + round(RETRY_S * 1000)

    def _new_call(self, kind: CallKind, brief: AlarmBrief | IncidentBrief | None, now_ms: int) -> Call:
        call = Call(id=self._new_id(), kind=kind, opened_at=now_ms, ring_started_at=now_ms)
        if brief is None:
            return call
        return replace(
            call,
            alarm_id=brief.alarm_id if isinstance(brief, AlarmBrief) else None,
            incident_id=brief.incident_id,
            place_label=brief.place_label,
            position=brief.position,
            lineage=brief.lineage,
            grid=brief.grid,
        )

    # ------------------------------------------------------------------------------------- after the commit

    async def _step(self, call_id: str, given: Input, who: str) -> Call:
        now_ms = self._clock()
        logger.debug("call %s: %s by %s", call_id, type(given).__name__, who)
        moved = await self._write(
            lambda connection: [self._steps.move(connection, load(connection, call_id), given, now_ms)]
        )
        return moved.call

    async def _write(self, fn: Callable[[Connection], list[Moved]]) -> Moved:
        moved = await self._store.write(fn)
        self._apply(moved)
        return moved[0]

    def _apply(self, moved: Iterable[Moved]) -> None:
        """Takes over what is on disk now and does what the process itself has to do."""
        for one in moved:
            call = one.call
            known = self._open.get(call.id)
            if call.ended:
                self._open.pop(call.id, None)
                self._resting.pop(call.id, None)
            elif known is None or known.version <= call.version:
                self._open[call.id] = call
            if known is None or known.version < call.version:
                self._timers.set(call)
            for effect in one.effects:
                if isinstance(effect, CloseMedia):
                    self._close_media(media_owner(call.id, effect.leg_id))
            if call.ended and one.effects:
                self._close_media(media_owner(call.id, None))
            if known is None or known.state is not call.state:
                logger.info("call %s is %s", call.id, call.state.value, extra={"call_id": call.id})
        self._wake.set()

    def deliveries(self) -> dict[str, Callable[[outbox.Message], Awaitable[None]]]:
        """The outbox kinds of calls, for the courier; `batches()` those that it hands over many at a time."""
        return self._outgoing.kinds()

    def batches(self) -> dict[str, Callable[[Sequence[outbox.Message]], Awaitable[None]]]:
        return self._outgoing.batches()
