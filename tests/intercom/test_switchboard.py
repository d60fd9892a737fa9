"""The switchboard on a real database, a clock that the test moves, callables that keep what they get."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.audit import verify_audit
from gateway.errors import Conflict, NotFound
from gateway.intercom import ledger
from gateway.intercom.model import CallKind, CallSettings, CallState, EndReason, Outcome, Participant
from gateway.intercom.switchboard import AlarmBrief, Audience, Switchboard
from gateway.intercom.view import call_view
from gateway.outbox import Courier
from gateway.store import Store

START = 1_790_000_000_000
DESK = Participant(id="op1", name="值班员甲", role="operator")
DESK2 = Participant(id="op2", name="值班员乙", role="desk")
BRIEF = AlarmBrief(
    alarm_id="alarm-1",
    place_label="郫筒街道望丛中路",
    position=(30.81, 103.89),
    lineage=("510117", "510117001", "510117001001", "510117001001001"),
    grid="510117001001001",
)


@dataclass(frozen=True)
class Choice:
    id: str
    name: str
    grid: str | None
    distance_m: float | None
    eta_s: float | None
    freshness: str
    reason: str


def choice(number: int, *, grid: str | None = None, freshness: str = "fresh") -> Choice:
    distance = 100.0 * number
    return Choice(
        id=f"w{number}",
        name=f"网格员{number}",
        grid=grid,
        distance_m=distance,
        eta_s=distance,
        freshness=freshness,
        reason=f"{distance:.0f} m, {freshness}",
    )


def worker(number: int) -> Participant:
    return Participant(id=f"w{number}", name=f"网格员{number}", role="worker")


@dataclass
class World:
    """What surrounds the switchboard: a roster to rank from, and a list of everything it was told."""

    roster: list[Choice] = field(default_factory=lambda: [choice(number) for number in range(1, 10)])
    rosters: dict[str, list[Choice]] = field(default_factory=dict)
    now_ms: int = START
    rings: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any], Audience]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    news: list[tuple[Any, ...]] = field(default_factory=list)

    def rank(
        self, position: tuple[float, float] | None, grid: str | None, exclude: frozenset[str]
    ) -> Sequence[Choice]:
        roster = self.rosters.get(grid, self.roster) if grid else self.roster
        return [one for one in roster if one.id not in exclude]

    def pick(self, worker_id: str, position: tuple[float, float] | None) -> Choice | None:
        return next((one for one in self.roster if one.id == worker_id), None)

    async def ring(self, worker_id: str, message: dict[str, Any]) -> None:
        self.rings.append((worker_id, message))

    async def publish_event(self, kind: str, data: dict[str, Any], audience: Audience) -> None:
        self.events.append((kind, data, audience))

    async def on_accepted(self, alarm_id: str, worker_id: str, name: str, eta_s: float | None) -> None:
        self.news.append(("accepted", alarm_id, worker_id, name, eta_s))

    async def on_released(self, alarm_id: str, worker_id: str) -> None:
        self.news.append(("released", alarm_id, worker_id))

    async def on_no_answer(self, alarm_id: str, reason: str) -> None:
        self.news.append(("no_answer", alarm_id, reason))

    async def on_opened(self, alarm_id: str, call_id: str) -> None:
        self.news.append(("opened", alarm_id, call_id))

    async def on_missed(self, call_id: str, worker_id: str | None, alarm_id: str | None) -> None:
        self.news.append(("missed", call_id, worker_id, alarm_id))

    def rung(self, act: str) -> list[str]:
        """Whose phones got this act, in order."""
        return [worker_id for worker_id, message in self.rings if message["act"] == act]


@dataclass
class Bench:
    store: Store
    board: Switchboard
    world: World

    async def pass_s(self, seconds: float) -> None:
        """Lets time pass in steps of the timers, as a running gateway would."""
        end = self.world.now_ms + round(seconds * 1000)
        while self.world.now_ms < end:
            self.world.now_ms = min(end, self.world.now_ms + 500)
            await self.board.tick()

    async def publish(self, call_id: str, leg_id: str, *tracks: str) -> None:
        self.board.media_changed(f"call/{call_id}/{leg_id}", tracks)
        await self.board.tick()

    async def lose(self, call_id: str, leg_id: str) -> None:
        self.board.media_lost(f"call/{call_id}/{leg_id}", "no packets")
        await self.board.tick()

    async def deliver(self) -> None:
        """Runs the courier until nothing is left in the outbox."""
        courier = Courier(self.store, self.board.deliveries(), batched=self.board.batches())
        task = asyncio.create_task(courier.run())
        try:
            while await self.store.read(_undelivered):
                await asyncio.sleep(0.002)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _undelivered(connection: Any) -> int:
    query = "SELECT count(*) FROM outbox"
    return int(connection.exec_driver_sql(query).scalar())


@asynccontextmanager
async def bench_on(path: Path, world: World) -> AsyncIterator[Bench]:
    store = await Store.open(path)
    board = Switchboard(
        store,
        CallSettings(),
        rank=world.rank,
        pick=world.pick,
        ring=world.ring,
        publish_event=world.publish_event,
        close_media=world.closed.append,
        on_accepted=world.on_accepted,
        on_released=world.on_released,
        on_no_answer=world.on_no_answer,
        on_opened=world.on_opened,
        on_missed=world.on_missed,
        clock=lambda: world.now_ms,
    )
    await board.start()
    try:
        yield Bench(store=store, board=board, world=world)
    finally:
        await store.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_on(tmp_path / "gateway.db", World()) as bench:
        yield bench


async def active_call(bench: Bench, *, by: Participant = DESK) -> tuple[str, str, str]:
    """(call id, worker's leg, desk's leg) of a call in which both sides publish."""
    call = await bench.board.open_for_alarm(BRIEF)
    await bench.board.claim(call.id, worker(1), device="phone-a")
    call = await bench.board.join(call.id, by)
    mine, theirs = call.leg_of("w1"), call.leg_of(by.id)
    assert mine is not None
    assert theirs is not None
    await bench.publish(call.id, mine.id, "audio", "video")
    await bench.publish(call.id, theirs.id, "audio", "video")
    assert (await bench.board.get(call.id)).state is CallState.ACTIVE
    return call.id, mine.id, theirs.id


async def test_an_alarm_rings_three_then_three_more_then_tells_the_desk(bench: Bench) -> None:
    call = await bench.board.open_for_alarm(BRIEF)
    await bench.deliver()
    assert bench.world.rung("ring") == ["w1", "w2", "w3"]
    await bench.pass_s(9.5)
    assert len((await bench.board.get(call.id)).ringing) == 3
    await bench.pass_s(0.5)
    await bench.deliver()
    assert bench.world.rung("ring") == ["w1", "w2", "w3", "w4", "w5", "w6"]
    await bench.pass_s(29.5)
    assert (await bench.board.get(call.id)).state is CallState.RINGING
    await bench.pass_s(0.5)
    ended = await bench.board.get(call.id)
    assert (ended.state, ended.end_reason) == (CallState.ENDED, EndReason.NO_ANSWER)
    await bench.deliver()
    assert bench.world.rung("cancel") == ["w1", "w2", "w3", "w4", "w5", "w6"]
    assert ("no_answer", "alarm-1", "no_answer") in bench.world.news
    assert [news[2] for news in bench.world.news if news[0] == "missed"] == [f"w{n}" for n in range(1, 7)]
    assert [one.id for one in await bench.board.missed("w1", since_ms=0)] == [call.id]


async def test_the_same_alarm_twice_is_one_call_even_when_it_is_over(bench: Bench) -> None:
    first = await bench.board.open_for_alarm(BRIEF)
    second = await bench.board.open_for_alarm(BRIEF)
    assert first.id == second.id
    await bench.board.hangup(first.id, DESK)
    assert (await bench.board.open_for_alarm(BRIEF)).id == first.id
    await bench.deliver()
    assert bench.world.rung("ring") == ["w1", "w2", "w3"]


async def test_a_corrected_place_rings_who_is_near_it(bench: Bench) -> None:
    bench.world.rosters["g2"] = [choice(8), choice(9)]
    payload = {
        "alarm_id": "alarm-1",
        "kind": "help",
        "silent": False,
        "place_label": "我家里",
        "position": {"lat": 30.8, "lon": 103.9},
        "lineage": ["510117"],
        "grid": "g2",
        "incident_id": None,
        "received_at": START,
    }
    first = await bench.board.open_for_alarm(BRIEF)
    moved = await bench.board.open_for_alarm(AlarmBrief.from_payload(payload))
    assert moved.id == first.id
    assert [rung.worker_id for rung in moved.ringing] == ["w1", "w2", "w3", "w8", "w9"]
    assert (moved.position, moved.place_label) == ((30.8, 103.9), "我家里")


# ---------------------------------------------------------------------------------------------- claims


async def test_the_winner_is_announced_to_all_other_phones_and_to_the_box(bench: Bench) -> None:
    call = await bench.board.open_for_alarm(BRIEF)
    won = await bench.board.claim(call.id, worker(2), device="phone-a")
    assert won.leg_of("w2") is not None
    with pytest.raises(Conflict) as caught:
        await bench.board.claim(call.id, worker(1))
    assert caught.value.detail["taken_by"] == {"id": "w2", "name": "网格员2"}
    with pytest.raises(Conflict) as caught:
        await bench.board.claim(call.id, worker(2), device="phone-b")
    assert caught.value.detail["taken_by"] == {"id": "w2", "name": "网格员2"}
    assert (await bench.board.claim(call.id, worker(2), device="phone-a")).version == won.version
    await bench.deliver()
    assert bench.world.rung("taken") == ["w1", "w2", "w3"]
    ends = [(data, audience.only) for kind, data, audience in bench.world.events if kind == "ring_end"]
    assert (
        {"call_id": call.id, "reason": "taken", "taken_by": {"id": "w2", "name": "网格员2"}},
        "w1",
    ) in ends
    assert ("accepted", "alarm-1", "w2", "网格员2", 200.0) in bench.world.news
    assert ("opened", "alarm-1", call.id) in bench.world.news


async def test_a_thousand_races_of_two_phones_have_one_winner_each(bench: Bench) -> None:
    """Both phones claim at the same instant; the loser hears who won; nobody rings on."""
    roster = {f"g{number}": [choice(2 * number), choice(2 * number + 1)] for number in range(1_000)}
    bench.world.rosters = roster

    async def race(number: int) -> None:
        grid = f"g{number}"
        brief = AlarmBrief(alarm_id=f"alarm-{number}", place_label="", position=None, lineage=(), grid=grid)
        call = await bench.board.open_for_alarm(brief)
        people = [Participant(id=rung.worker_id, name=rung.name, role="worker") for rung in call.ringing]
        assert len(people) == 2
        results = await asyncio.gather(
            *(bench.board.claim(call.id, person) for person in people), return_exceptions=True
        )
        lost = [result for result in results if isinstance(result, Conflict)]
        won = [who for who, result in zip(people, results, strict=True) if not isinstance(result, Exception)]
        assert (len(won), len(lost)) == (1, 1), results
        assert lost[0].detail["taken_by"] == {"id": won[0].id, "name": won[0].name}
        after = await bench.board.get(call.id)
        assert after.ringing == ()
        assert after.answered_by == won[0]

    for first in range(0, 1_000, 50):
        await asyncio.gather(*(race(number) for number in range(first, first + 50)))
    calls = await bench.board.calls(only_open=True, limit=2_000)
    assert len(calls) == 1_000
    assert {call.state for call in calls} == {CallState.CLAIMED}


async def test_a_reply_over_mqtt_accepts_or_declines(bench: Bench) -> None:
    call = await bench.board.open_for_alarm(BRIEF)
    await bench.board.reply("w1", {"mid": "m", "call": call.id, "act": "decline", "ts": START})
    await bench.board.reply("w2", {"mid": "m", "call": call.id, "act": "accept", "ts": START})
    await bench.board.reply("w3", {"mid": "m", "call": call.id, "act": "accept", "ts": START})
    await bench.board.reply("w3", {"mid": "m", "call": "no-such-call", "act": "accept"})
    await bench.board.reply("w3", {"mid": "m", "call": 7})
    after = await bench.board.get(call.id)
    assert after.answered_by == worker(2)
    assert [rung.outcome for rung in after.rung] == [Outcome.DECLINED, Outcome.CLAIMED, Outcome.TAKEN]


async def test_a_decline_rings_the_next_at_once(bench: Bench) -> None:
    call = await bench.board.open_for_alarm(BRIEF)
    await bench.pass_s(1)
    await bench.board.decline(call.id, "w1")
    await bench.board.tick()
    assert [rung.worker_id for rung in (await bench.board.get(call.id)).ringing] == ["w2", "w3", "w4"]


async def test_nobody_on_duty_is_told_at_once_and_a_late_comer_rings(bench: Bench) -> None:
    roster, bench.world.roster = bench.world.roster, []
    call = await bench.board.open_for_alarm(BRIEF)
    await bench.deliver()
    assert ("no_answer", "alarm-1", "nobody_on_duty") in bench.world.news
    bench.world.roster = roster[:1]
    await bench.pass_s(2)
    assert [rung.worker_id for rung in (await bench.board.get(call.id)).ringing] == ["w1"]


async def test_a_claimant_without_media_is_released_and_all_ring_again(bench: Bench) -> None:
    call = await bench.board.open_for_alarm(BRIEF)
    await bench.board.claim(call.id, worker(1))
    await bench.pass_s(8)
    after = await bench.board.get(call.id)
    assert after.state is CallState.RINGING
    await bench.board.tick()
    assert [rung.worker_id for rung in (await bench.board.get(call.id)).ringing] == ["w1", "w2", "w3"]
    assert bench.world.closed == [f"call/{call.id}/leg1"]
    await bench.deliver()
    mids = [message["mid"] for _, message in bench.world.rings if message["act"] == "ring"]
    assert len(set(mids)) == 6, "a new ring is no repeat of the old one"
    assert bench.world.news[-1] == ("released", "alarm-1", "w1"), "nobody is on the way any more"


# ----------------------------------------------------------------------------------------- busy people


async def test_a_worker_in_a_call_is_passed_over_and_its_other_rings_move_on(bench: Bench) -> None:
    first = await bench.board.open_for_alarm(BRIEF)
    second = await bench.board.open_for_alarm(replace(BRIEF, alarm_id="alarm-2"))
    await bench.board.claim(first.id, worker(1))
    await bench.board.tick()
    rung = {one.worker_id: one.outcome for one in (await bench.board.get(second.id)).rung}
    assert rung == {
        "w1": Outcome.EXPIRED,
        "w2": Outcome.RINGING,
        "w3": Outcome.RINGING,
        "w4": Outcome.RINGING,
    }
    third = await bench.board.open_for_alarm(replace(BRIEF, alarm_id="alarm-3"))
    assert [one.worker_id for one in third.ringing] == ["w2", "w3", "w4"]


async def test_a_dispatch_to_a_busy_worker_waits_and_its_answer_ends_the_first_call(bench: Bench) -> None:
    first, mine, theirs = await active_call(bench)
    waiting = await bench.board.dispatch("w1", DESK2)
    await bench.deliver()
    message = next(m for w, m in bench.world.rings if m["call"] == waiting.id)
    assert (message["act"], message["waiting"], message["from"]) == ("ring", True, "值班员乙")
    await bench.board.claim(waiting.id, worker(1))
    ended = await bench.board.get(first)
    assert (ended.state, ended.end_reason) == (CallState.ENDED, EndReason.SUPERSEDED)
    assert set(bench.world.closed) == {f"call/{first}/{mine}", f"call/{first}/{theirs}", f"call/{first}"}


async def test_going_off_duty_silences_the_phone(bench: Bench) -> None:
    call = await bench.board.open_for_alarm(BRIEF)
    bench.world.roster = bench.world.roster[1:]
    await bench.pass_s(0.5)
    await bench.board.worker_off_duty("w1")
    await bench.board.tick()
    assert [rung.worker_id for rung in (await bench.board.get(call.id)).ringing] == ["w2", "w3", "w4"]


# --------------------------------------------------------------------------- operators and gridworkers


async def test_an_operators_choice_takes_the_place_of_the_ringing_alarm_call(bench: Bench) -> None:
    automatic = await bench.board.open_for_alarm(BRIEF)
    chosen = await bench.board.dispatch("w9", DESK, brief=BRIEF)
    assert (chosen.kind, chosen.alarm_id) == (CallKind.DISPATCH, "alarm-1")
    assert [rung.worker_id for rung in chosen.ringing] == ["w9"]
    assert chosen.leg_of("op1") is not None
    assert (await bench.board.get(automatic.id)).end_reason is EndReason.SUPERSEDED
    with pytest.raises(Conflict):
        await bench.board.dispatch("nobody", DESK)


async def test_an_operator_asking_for_a_call_joins_the_one_there_is(bench: Bench) -> None:
    automatic = await bench.board.open_for_alarm(BRIEF)
    assert (await bench.board.ring_for_alarm(BRIEF, DESK)).id == automatic.id
    await bench.board.hangup(automatic.id, DESK)
    again = await bench.board.ring_for_alarm(BRIEF, DESK)
    assert again.id != automatic.id
    assert [rung.worker_id for rung in again.ringing] == ["w1", "w2", "w3"]
    assert again.leg_of("op1") is not None


async def test_a_gridworker_calls_the_center(bench: Bench) -> None:
    lineage = ("510117", "510117001")
    call = await bench.board.call_center(worker(1), lineage=lineage, position=None, place_label="菜市场")
    again = await bench.board.call_center(worker(1), lineage=lineage, position=None, place_label="菜市场")
    assert again.id == call.id
    answered = await bench.board.join(call.id, DESK)
    assert answered.answered_by == DESK
    for leg in answered.present:
        await bench.publish(call.id, leg.id, "audio", "video")
    assert (await bench.board.get(call.id)).state is CallState.ACTIVE
    await bench.board.hangup(call.id, worker(1))
    ended = await bench.board.get(call.id)
    assert (ended.state, ended.end_reason) == (CallState.ENDED, EndReason.HANGUP)


async def test_the_caller_hangs_up_as_the_worker_answers(bench: Bench) -> None:
    """Whatever the order on the wire: ENDED cancelled, a missed call, nobody rings on."""
    call = await bench.board.dispatch("w1", DESK, brief=BRIEF)
    await asyncio.gather(
        bench.board.claim(call.id, worker(1)), bench.board.hangup(call.id, DESK), return_exceptions=True
    )
    ended = await bench.board.get(call.id)
    assert (ended.state, ended.end_reason, ended.ringing) == (CallState.ENDED, EndReason.CANCELLED, ())
    await bench.deliver()
    assert ("missed", call.id, "w1", "alarm-1") in bench.world.news
    with pytest.raises(Conflict):
        await bench.board.claim(call.id, worker(1))


async def test_a_cancelled_alarm_silences_phones_but_leaves_an_answered_call(bench: Bench) -> None:
    call = await bench.board.open_for_alarm(BRIEF)
    await bench.board.cancel_alarm("alarm-1")
    assert (await bench.board.get(call.id)).end_reason is EndReason.CANCELLED
    other = await bench.board.open_for_alarm(replace(BRIEF, alarm_id="alarm-2"))
    await bench.board.claim(other.id, worker(1))
    await bench.board.cancel_alarm("alarm-2")  # the desk has closed it
    assert (await bench.board.get(other.id)).state is CallState.CLAIMED
    # a desk's own call about an alarm that was over already goes on; an older one falls silent
    operator = Participant(id="op1", name="指挥", role="operator")
    late = await bench.board.dispatch("w2", operator, brief=replace(BRIEF, alarm_id="alarm-3"))
    await bench.board.cancel_alarm("alarm-3", at_ms=late.opened_at - 1, hung_up=True)
    assert (await bench.board.get(late.id)).state is CallState.RINGING
    await bench.board.cancel_alarm("alarm-3", at_ms=late.opened_at, hung_up=True)
    assert (await bench.board.get(late.id)).end_reason is EndReason.CANCELLED


# ----------------------------------------------------------------------------------------------- media


async def test_lost_media_asks_for_restarts_then_redials_and_keeps_the_desk(bench: Bench) -> None:
    call_id, mine, theirs = await active_call(bench)
    await bench.lose(call_id, mine)
    for restarts, seconds in ((0, 2.5), (1, 0.5), (2, 5), (3, 7)):
        await bench.pass_s(seconds)
        call = await bench.board.get(call_id)
        leg = call.leg(mine)
        assert leg is not None
        assert (call.state, leg.restarts) == (CallState.RECONNECTING, restarts)
    await bench.pass_s(15)
    call = await bench.board.get(call_id)
    assert (call.state, [rung.worker_id for rung in call.ringing]) == (CallState.RINGING, ["w1"])
    assert bench.world.closed == [f"call/{call_id}/{mine}"]
    back = await bench.board.claim(call_id, worker(1), device="phone-a")
    leg = back.leg_of("w1")
    assert leg is not None
    assert leg.id not in (mine, theirs)
    await bench.publish(call_id, leg.id, "audio", "video")
    assert (await bench.board.get(call_id)).state is CallState.ACTIVE


async def test_only_the_newest_word_of_the_plane_counts(bench: Bench) -> None:
    call_id, mine, _ = await active_call(bench)
    bench.board.media_lost(f"call/{call_id}/{mine}", "ICE consent expired")
    await bench.publish(call_id, mine, "audio")
    call = await bench.board.get(call_id)
    leg = call.leg(mine)
    assert leg is not None
    assert (call.state, leg.tracks) == (CallState.ACTIVE, frozenset({"audio"}))
    for stranger in ("camera/cam001", "call/no-such-call/leg1", "call/x", f"call/{call_id}/leg9"):
        await bench.board.tick()
        bench.board.media_lost(stranger, "gone")
    await bench.board.tick()
    assert (await bench.board.get(call_id)).state is CallState.ACTIVE


async def test_a_leg_belongs_to_its_participant(bench: Bench) -> None:
    call_id, mine, theirs = await active_call(bench)
    assert await bench.board.own_leg(call_id, mine, "w1") == (f"call/{call_id}/{mine}",) * 2
    for leg, who in ((mine, "op1"), (theirs, "w1"), ("leg9", "w1")):
        with pytest.raises(NotFound):
            await bench.board.own_leg(call_id, leg, who)
    assert await bench.board.watchable_leg(call_id, mine, "op1") == (
        f"call/{call_id}/{mine}",
        f"call/{call_id}/{theirs}",
    )
    assert (await bench.board.watchable_leg(call_id, mine, "op2"))[1] == f"call/{call_id}"
    await bench.board.hangup(call_id, DESK)
    with pytest.raises(NotFound):
        await bench.board.own_leg(call_id, mine, "w1")
    assert (await bench.board.hangup(call_id, DESK)).ended, "hanging up twice is no error"


# --------------------------------------------------------------------------------------------- restart


async def test_a_restart_resumes_timers_and_goes_on_ringing(tmp_path: Path) -> None:
    path, world = tmp_path / "gateway.db", World()
    async with bench_on(path, world) as bench:
        call = await bench.board.open_for_alarm(BRIEF)
        await bench.deliver()
    world.now_ms += 6_000
    async with bench_on(path, world) as bench:
        await bench.deliver()
        assert world.rung("ring") == ["w1", "w2", "w3"] * 2
        mids = [message["mid"] for _, message in world.rings]
        assert mids[:3] == mids[3:], "the phones take it for the repeat it is"
        await bench.pass_s(4)
        assert len((await bench.board.get(call.id)).ringing) == 6
        await bench.pass_s(30)
        assert (await bench.board.get(call.id)).end_reason is EndReason.NO_ANSWER


async def test_after_a_long_sleep_no_phone_rings_for_what_is_over(tmp_path: Path) -> None:
    path, world = tmp_path / "gateway.db", World()
    async with bench_on(path, world) as bench:
        call = await bench.board.open_for_alarm(BRIEF)
    world.now_ms += 60_000
    async with bench_on(path, world) as bench:
        await bench.board.tick()
        await bench.deliver()
        assert world.rung("ring") == []
        assert world.rung("cancel") == ["w1", "w2", "w3"]
        assert (await bench.board.get(call.id)).end_reason is EndReason.NO_ANSWER


async def test_after_a_restart_all_media_counts_as_lost_until_it_is_back(tmp_path: Path) -> None:
    path, world = tmp_path / "gateway.db", World()
    async with bench_on(path, world) as bench:
        call_id, mine, theirs = await active_call(bench)
    async with bench_on(path, world) as bench:
        assert (await bench.board.get(call_id)).state is CallState.RECONNECTING
        for leg in (mine, theirs):
            await bench.publish(call_id, leg, "audio", "video")
        assert (await bench.board.get(call_id)).state is CallState.ACTIVE


async def test_an_alarm_is_at_a_desk_only_while_the_desk_speaks_or_watches(bench: Bench) -> None:
    """A place that nobody fills (a closed tab's) must not keep an alarm from being given back."""
    call = await bench.board.open_for_alarm(BRIEF)
    joined = await bench.board.join(call.id, DESK)
    assert bench.board.alarms_at_a_desk() == frozenset()
    source = f"call/{call.id}/{joined.legs[0].id}"
    bench.board.media_changed(source, ["audio"])
    await bench.board.tick()
    assert bench.board.alarms_at_a_desk() == {BRIEF.alarm_id}
    bench.board.media_lost(source, "closed")
    await bench.board.tick()
    assert bench.board.alarms_at_a_desk() == frozenset()


async def test_running_it_serves_timers_and_media_by_itself(bench: Bench) -> None:
    """The task of the gateway: wakes up for the plane's news and for deadlines, without being polled."""
    call = await bench.board.open_for_alarm(BRIEF)
    task = asyncio.create_task(bench.board.run())
    try:
        claimed = await bench.board.claim(call.id, worker(1))
        bench.board.media_changed(f"call/{call.id}/{claimed.legs[0].id}", ["audio", "video"])
        async with asyncio.timeout(10):
            while (await bench.board.get(call.id)).state is not CallState.CONNECTING:
                await asyncio.sleep(0.002)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --------------------------------------------------------------------------------- what is left behind


async def storm(bench: Bench, count: int) -> list[str]:
    """Ids of so many calls that ring, each for an alarm of its own."""
    briefs = [replace(BRIEF, alarm_id=f"alarm-{number}") for number in range(count)]
    return [call.id for call in await bench.board.open_for_alarms(briefs)]


async def ringing(bench: Bench, ids: Sequence[str]) -> list[int]:
    """How many phones ring for each."""
    return [len((await bench.board.get(call_id)).ringing) for call_id in ids]


async def test_a_batch_opens_what_is_new_and_knows_what_came_before_even_within_itself(bench: Bench) -> None:
    elsewhere = [choice(20, grid="elsewhere"), *bench.world.roster]
    bench.world.rosters["elsewhere"] = elsewhere
    known = await bench.board.open_for_alarm(replace(BRIEF, alarm_id="known"))
    over = await bench.board.open_for_alarm(replace(BRIEF, alarm_id="over"))
    await bench.board.hangup(over.id, DESK)
    names = ["a", "b", "a", "known", "over", "c"]
    briefs = [replace(BRIEF, alarm_id=name) for name in names]
    briefs[3] = replace(briefs[3], grid="elsewhere", place_label="there")
    again = replace(BRIEF, alarm_id="c", again_at=START)  # its resident, who had cancelled, presses once more
    calls = await bench.board.open_for_alarms([*briefs, again])
    assert [call.alarm_id for call in calls] == [*names, "c"]
    assert calls[0].id == calls[2].id
    assert (calls[3].id, calls[3].place_label) == (known.id, "there")
    assert [rung.worker_id for rung in calls[3].ringing] == ["w1", "w2", "w3", "w20"]
    assert (calls[4].id, calls[4].ended) == (over.id, True)
    assert calls[6].id == calls[5].id  # it rings already
    for call in calls:
        assert await bench.board.get(call.id) == call
    assert len(bench.board.open_calls()) == 4


async def test_deadlines_of_a_storm_are_taken_up_some_at_a_time_and_share_writes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await storm(bench, 70)
    asked: list[frozenset[str]] = []
    rank = bench.world.rank
    monkeypatch.setattr(
        bench.board, "_rank", lambda at, grid, exclude: asked.append(exclude) or rank(at, grid, exclude)
    )
    bench.world.now_ms += 10_000
    before = bench.store.health().writes
    await bench.board.tick()
    assert await ringing(bench, ids) == [6] * 64 + [3] * 6
    assert bench.store.health().writes - before == 8
    assert asked == [frozenset({"w1", "w2", "w3"})]  # all about one place
    await bench.board.tick()
    assert await ringing(bench, ids) == [6] * 70
    bench.world.now_ms += 30_000
    await bench.board.tick()
    await bench.board.tick()
    assert not bench.board.open_calls()


async def test_a_call_in_trouble_does_not_hold_up_those_whose_deadlines_share_its_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await storm(bench, 12)
    record, broken = ledger.record_step, {ids[3]}

    def record_or_fail(connection: Any, before: Any, *rest: Any) -> None:
        if before.id in broken:
            raise ValueError("its row can't be written")
        record(connection, before, *rest)

    monkeypatch.setattr(ledger, "record_step", record_or_fail)
    bench.world.now_ms += 10_000
    await bench.board.tick()
    assert await ringing(bench, ids) == [6 if call_id != ids[3] else 3 for call_id in ids]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"a step of call {ids[3]} failed"
    ]
    broken.clear()
    await bench.pass_s(0.5)
    assert (await ringing(bench, ids))[3] == 3  # it rests for a second
    await bench.pass_s(0.5)
    assert await ringing(bench, ids) == [6] * 12


async def test_a_call_that_moves_on_while_deadlines_wait_for_the_writer_is_left_as_it_is(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "gateway.intercom.switchboard")
    ids = await storm(bench, 5)
    bench.world.now_ms += 10_000
    _, claimed = await asyncio.gather(bench.board.tick(), bench.board.claim(ids[2], worker(1)))
    assert (claimed.state, claimed.ringing) == (CallState.CLAIMED, ())
    assert "one by one" in caplog.text  # what memory knew of it was no longer true
    # The same worker's other calls ring on without it, with the three of the second round and one in its place.
    others = [call_id for call_id in ids if call_id != ids[2]]
    await bench.board.tick()
    assert await ringing(bench, others) == [6] * 4
    assert (await bench.board.get(ids[2])).version == claimed.version


async def test_every_choice_leaves_an_audit_line_with_its_reason(bench: Bench, tmp_path: Path) -> None:
    call_id, _, _ = await active_call(bench)
    await bench.board.hangup(call_id, DESK)
    await bench.store.close()
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as raw:
        lines = raw.execute("SELECT who, action, detail FROM audit WHERE subject = ?", (f"call/{call_id}",))
        trail = [(who, action, json.loads(detail)) for who, action, detail in lines]
    assert [(who, action) for who, action, _ in trail] == [
        ("system", "call.open"),
        ("system", "call.ring"),
        ("system", "call.ring"),
        ("system", "call.ring"),
        ("worker/w1", "call.claim"),
        ("operator/op1", "call.join"),
        ("operator/op1", "call.hangup"),
        ("system", "call.end"),
    ]
    assert trail[1][2]["reason"] == "100 m, fresh"
    assert trail[-1][2] == {"reason": "hangup", "was": "ACTIVE"}
    assert verify_audit(tmp_path / "gateway.db").broken_at is None


async def test_the_call_as_json_is_the_contracts(bench: Bench) -> None:
    call_id, mine, theirs = await active_call(bench)
    view = call_view(await bench.board.get(call_id), leg=mine)
    assert view == {
        "id": call_id,
        "alarm_id": "alarm-1",
        "incident_id": None,
        "kind": "alarm",
        "state": "ACTIVE",
        "opened_at": START,
        "place_label": "郫筒街道望丛中路",
        "position": {"lat": 30.81, "lon": 103.89},
        "answered_by": {"id": "w1", "name": "网格员1"},
        "end_reason": None,
        "rung": [
            {
                "worker_id": f"w{number}",
                "name": f"网格员{number}",
                "distance_m": 100.0 * number,
                "reason": f"{100 * number} m, fresh",
                "rung_at": START,
                "outcome": "claimed" if number == 1 else "taken",
                "waiting": False,
                "deliveries": [],
            }
            for number in (1, 2, 3)
        ],
        "legs": [
            {
                "id": leg,
                "participant": who,
                "name": name,
                "role": role,
                "publishing": True,
                "tracks": ["audio", "video"],
                "joined_at": START,
                "left_at": None,
                "lost_at": None,
                "restarts": 0,
                "watching": False,
            }
            for leg, who, name, role in (
                (mine, "w1", "网格员1", "worker"),
                (theirs, "op1", "值班员甲", "operator"),
            )
        ],
        "recording": False,
        "sos": False,
        "leg": mine,
    }
    await bench.deliver()
    kinds = [kind for kind, _, _ in bench.world.events]
    assert kinds.count("ring") == 3
    assert all(audience.only for kind, _, audience in bench.world.events if kind in ("ring", "ring_end"))
    last = [(data, audience) for kind, data, audience in bench.world.events if kind == "call"][-1]
    assert last[0]["state"] == "ACTIVE"
    assert last[1] == Audience(lineage=BRIEF.lineage, participants=("w1", "w2", "w3", "op1"))


async def test_unknown_calls_are_not_found(bench: Bench) -> None:
    for attempt in (
        bench.board.get("x"),
        bench.board.claim("x", worker(1)),
        bench.board.join("x", DESK),
        bench.board.hangup("x", DESK),
    ):
        with pytest.raises(NotFound):
            await attempt
