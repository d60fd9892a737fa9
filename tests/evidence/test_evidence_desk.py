"""The evidence desk on a real database, a clock that the test moves, a media plane that keeps its orders and says what the
test wants it to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway.errors import Unavailable
from gateway.evidence.desk import (
    RETRY_FIRST_S,
    RETRY_MOST_S,
    AlarmScene,
    EvidenceDesk,
    EvidencePolicy,
    LegScene,
)
from gateway.evidence.keeping import KeepingPolicy
from gateway.evidence.order import DISK_FULL, Finished, News, RecordingOrder
from gateway.evidence.recording import Begun, Segment
from gateway.store import Store

START = 1_790_000_000_000
LEG = "call/c1/leg1"
ROOM, NO_ROOM = 1, 1 << 60
LEFT = {"id": "c1", "legs": [{"id": "leg1", "left_at": START}]}


@dataclass
class World:
    """What surrounds the desk. broken: what the media plane answers to the next order."""

    now_ms: int = START
    orders: list[RecordingOrder] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    recorded: list[bool] = field(default_factory=list)
    broken: str | None = None
    desk: EvidenceDesk = field(init=False)

    async def record(self, order: RecordingOrder) -> None:
        self.orders.append(order)
        if self.broken is not None:
            raise Unavailable(self.broken)

    async def stop(self, recording_id: str) -> None:
        self.stopped.append(recording_id)

    async def scene(self, source_id: str) -> LegScene | None:
        return LegScene(call_id="c1", alarm_id="a1", incident_id=None, lineage=(), name="王网格")

    async def floor(self, octets: int) -> None:
        """So much must be free."""
        keeping = self.desk.keeping
        keeping._policy = replace(keeping._policy, floor_octets=octets)
        await keeping.look()
        await self.settled()

    async def later(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        self.desk._wake.set()
        await self.settled()

    async def settled(self) -> None:
        """Everything that was asked for by now is done."""
        for _ in range(2):  # what wakes may ask for more
            done = asyncio.Event()

            async def last(done: asyncio.Event = done) -> None:
                done.set()

            await asyncio.sleep(0)
            self.desk.soon(last)
            await done.wait()

    async def say(self, **news: Any) -> None:
        self.desk.on_news(News(recording_id=self.orders[-1].id, **news))
        await self.settled()

    async def begun(self) -> None:
        number, file = self.orders[-1].first_number, self.orders[-1].file
        name = file if number == 1 else f"{file}-{number}"
        await self.say(
            begun=Begun(number=number, file=f"{name}.mp4", media_type="video/mp4", started_at=self.now_ms)
        )

    async def segment(self) -> None:
        number = self.orders[-1].first_number
        await self.say(
            segment=Segment(
                number=number, file=f"{self.orders[-1].file}.mp4", media_type="video/mp4", sha256="00", size=1,
                started_at=self.now_ms - 1, ended_at=self.now_ms, video="H264", audio=None, pictures=1, packets=1,
            )
        )  # fmt: skip

    async def clips(self) -> list[tuple[str, str]]:
        return [(row["state"], row["reason"]) for row in reversed(await self.desk.clips())]


@asynccontextmanager
async def evidence(tmp_path: Path, *, floor: int = ROOM) -> AsyncIterator[World]:
    world = World()
    numbers = iter(range(1, 1_000))
    new_id: Callable[[int], str] = lambda at: f"clip{next(numbers)}"  # noqa: E731
    store = await Store.open(tmp_path / "gateway.db")
    try:
        world.desk = EvidenceDesk(
            store,
            tmp_path / "evidence",
            EvidencePolicy(keeping=KeepingPolicy(floor_octets=floor, interval_s=3_600)),
            record=world.record,
            stop=world.stop,
            recorded=lambda source_id, yes: world.recorded.append(yes),
            leg_scene=world.scene,
            clock=lambda: world.now_ms,
            new_id=new_id,
        )
        await world.desk.start()
        running = asyncio.create_task(world.desk.run())
        try:
            yield world
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    finally:
        await store.close()


async def tracks_come(world: World) -> None:
    """As a leg's tracks do: one after the other."""
    world.desk.on_tracks(LEG, ["audio"])
    world.desk.on_tracks(LEG, ["audio", "video"])
    await world.settled()


async def test_a_refused_recording_is_one_row_and_is_written_once_there_is_room(tmp_path: Path) -> None:
    async with evidence(tmp_path, floor=NO_ROOM) as world:
        for _ in range(3):
            await tracks_come(world)
        ((state, reason),) = await world.clips()
        assert (state, reason.split(":")[0], world.orders) == ("failed", DISK_FULL, [])
        assert (world.recorded[-1], world.desk.counters["refused"]) == (False, 1)
        await world.later(300)
        assert world.orders == [], "not tried while there is no room"
        await world.floor(ROOM)
        await world.begun()
        assert world.recorded[-1] is True
        ((state, reason),) = await world.clips()
        assert state == "recording"
        assert reason.startswith("begun_late: 300.0 s: disk_full: ")
        world.desk.on_call(LEFT)
        await world.settled()
        assert world.stopped == ["clip1"]


async def test_a_writer_that_fails_is_tried_again_ever_more_rarely_in_one_row(tmp_path: Path) -> None:
    async with evidence(tmp_path) as world:
        await tracks_come(world)
        pause_s, tries = RETRY_FIRST_S, 1
        while pause_s < RETRY_MOST_S * 2:
            await world.say(finished=Finished(reason="failed: no such encoder"))
            assert await world.clips() == [("failed", "failed: no such encoder")]
            assert world.recorded[-1] is False
            wait_s = min(pause_s, RETRY_MOST_S)
            await world.later(wait_s - 0.1)
            assert len(world.orders) == tries, "too early"
            await world.later(0.1)
            tries, pause_s = tries + 1, pause_s * 2
            assert len(world.orders) == tries
            assert world.orders[-1].file == world.orders[0].file
        world.broken = "recordings are not possible yet"
        await world.say(finished=Finished(reason="failed: no such encoder"))
        await world.later(RETRY_MOST_S)
        assert await world.clips() == [("failed", "recordings are not possible yet")]
        world.broken = None
        await world.later(RETRY_MOST_S)
        await world.begun()
        ((state, reason),) = await world.clips()
        assert (state, reason.split(":")[0], world.recorded[-1]) == ("recording", "begun_late", True)
        await world.segment()
        await world.say(finished=Finished(reason="failed: again"))
        await world.later(RETRY_FIRST_S)
        assert world.orders[-1].first_number == 2, "what was written stays, the next file is another"


async def test_a_disk_that_fills_during_a_call_ends_the_file_and_begins_another(tmp_path: Path) -> None:
    async with evidence(tmp_path) as world:
        await tracks_come(world)
        await world.begun()
        await world.floor(NO_ROOM)
        await world.segment()
        await world.say(finished=Finished(reason=DISK_FULL))
        assert await world.clips() == [("complete", DISK_FULL)]
        assert world.recorded[-1] is False
        await world.later(30)
        assert len(world.orders) == 1
        await world.floor(ROOM)
        assert [order.first_number for order in world.orders] == [1, 2]
        await world.begun()
        states = [state for state, _ in await world.clips()]
        assert (sorted(states), world.recorded[-1]) == (["complete", "recording"], True)


async def test_who_has_left_is_waited_for_no_longer(tmp_path: Path) -> None:
    async with evidence(tmp_path, floor=NO_ROOM) as world:
        await tracks_come(world)
        world.desk.on_call(LEFT)
        await world.floor(ROOM)
        await world.later(RETRY_MOST_S)
        assert world.orders == []


async def test_an_alarms_cameras_are_recorded_late_but_not_after_their_time(tmp_path: Path) -> None:
    async with evidence(tmp_path, floor=NO_ROOM) as world:
        scene = AlarmScene(
            alarm_id="a1", incident_id=None, lineage=(), pressed_at=START, cameras=(("k1", "路口"),)
        )
        await world.desk.record_cameras(scene)
        await world.later(10)
        await world.floor(ROOM)
        (order,) = world.orders
        assert (order.source_id, order.until_ms) == ("camera/k1", START + 120_000)
        await world.say(finished=Finished(reason=DISK_FULL))
        await world.later(120)
        assert len(world.orders) == 1
        assert await world.clips() == [("failed", DISK_FULL)]
