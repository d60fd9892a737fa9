"""The switchboard on a real database, a clock that the test moves, callables that keep what they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.intercom.model import CallSettings, CallState, EndReason, Participant
from gateway.intercom.switchboard import AlarmBrief, Audience, Switchboard
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
    now_ms: int = START
    rings: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any], Audience]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    news: list[tuple[Any, ...]] = field(default_factory=list)

    def rank(
        self, position: tuple[float, float] | None, grid: str | None, exclude: frozenset[str]
    ) -> Sequence[Choice]:
        return [one for one in self.roster if one.id not in exclude]

    def pick(self, worker_id: str, position: tuple[float, float] | None) -> Choice | None:
        return next((one for one in self.roster if one.id == worker_id), None)

    async def ring(self, worker_id: str, message: dict[str, Any]) -> None:
        self.rings.append((worker_id, message))

    async def publish_event(self, kind: str, data: dict[str, Any], audience: Audience) -> None:
        self.events.append((kind, data, audience))

    async def on_accepted(self, alarm_id: str, worker_id: str, name: str, eta_s: float | None) -> None:
        self.news.append(("accepted", alarm_id, worker_id, name, eta_s))

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
        courier = Courier(self.store, self.board.deliveries())
        committed = asyncio.Event()
        self.store.on_commit(committed.set)
        task = asyncio.create_task(courier.run())
        try:
            while await self.store.read(_undelivered):
                await committed.wait()
                committed.clear()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _undelivered(connection: Any) -> int:
    query = "SELECT count(*) FROM outbox WHERE delivered_at IS NULL"
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
