"""The supervisor against real sockets: viewers, failures that stay with one camera, reloads, a reboot of everything."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.errors import NotFound, Unavailable
from gateway.streams.cameras import CameraState, CameraSupervisor, DialGate, DialLimits, State
from gateway.streams.media import AccessUnit, AudioFrame, StreamName, Undecodable

sys.path.insert(0, str(Path(__file__).parent))
from rtsp_farm import Farm

QUICK = DialLimits(
    backoff_first_s=0.05, backoff_most_s=0.2, grace_s=0.2, data_timeout_s=1.0, first_keyframe_timeout_s=5.0
)
MAIN, SUB = StreamName.MAIN, StreamName.SUB


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    id: str
    main: str
    sub: str | None = None
    credentials: str | None = None
    pull: str = "on_demand"
    pull_main: str = "on_demand"
    transport: str = "tcp"


class Sink:
    def __init__(self) -> None:
        self.units = 0
        self.resets = 0

    def on_access_unit(self, access_unit: AccessUnit) -> None:
        self.units += 1

    def on_audio(self, frame: AudioFrame) -> None:
        pass

    @property
    def listening(self) -> bool:
        return False

    def on_skip(self) -> None:
        pass

    def on_reset(self) -> None:
        self.resets += 1


class Bad(Sink):
    def on_access_unit(self, access_unit: AccessUnit) -> None:
        raise RuntimeError("a sink that breaks its promise")


class House:
    """A running supervisor, its sinks and everything it said."""

    def __init__(self, cameras: list[Camera], limits: DialLimits, sink: Callable[[], Sink]) -> None:
        self.sinks: dict[tuple[str, StreamName], Sink] = {}
        self.said: list[CameraState] = []
        self.also: Callable[[CameraState], None] = lambda state: None
        self._changed = asyncio.Event()
        self.supervisor = CameraSupervisor(
            cameras,
            {"NVR": ("u", "p")},
            lambda camera_id, name: self.sinks.setdefault((camera_id, name), sink()),
            limits=limits,
            on_state=self._on_state,
        )

    def _on_state(self, state: CameraState) -> None:
        self.said.append(state)
        self.also(state)
        self._changed.set()

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    def state(self, camera_id: str = "a") -> State:
        return self.supervisor.state(camera_id).state


@contextlib.asynccontextmanager
async def house(
    *cameras: Camera, limits: DialLimits = QUICK, sink: Callable[[], Sink] = Sink
) -> AsyncIterator[House]:
    one = House(list(cameras), limits, sink)
    task = asyncio.create_task(one.supervisor.run())
    await asyncio.sleep(0)
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_first_viewer_gets_a_picture_and_the_last_ends_the_pull() -> None:
    """Complaints about the peers, item 5: the first viewer of an on-demand camera gets a picture, not an error."""
    async with Farm(algorithm="MD5") as farm, house(Camera(id="a", main=farm.url, credentials="NVR")) as one:
        assert one.state() is State.IDLE
        await asyncio.gather(*(one.supervisor.acquire("a", MAIN) for _ in range(3)))
        state = one.supervisor.state("a")
        assert state.state is State.LIVE
        assert state.last_frame_at_ms is not None
        stream = state.streams[MAIN]
        assert (stream.viewers, stream.width, stream.height, stream.codec) == (3, 320, 240, "H264")
        assert one.sinks["a", MAIN].units >= 1
        assert farm.methods.count("PLAY") == 1
        for _ in range(3):
            one.supervisor.release("a", MAIN)
        await one.until(lambda: one.state() is State.IDLE)
        await farm.saw("TEARDOWN")
        assert one.sinks["a", MAIN].resets == 1
        await one.supervisor.acquire("a", MAIN)


async def test_a_camera_that_reads_late_still_hears_that_we_leave() -> None:
    """A session that is only cut stays open at some cameras until it times out, and they have few."""
    async with Farm(fault="late_reader") as farm, house(Camera(id="a", main=farm.url)) as one:
        await one.supervisor.acquire("a", MAIN)
        one.supervisor.release("a", MAIN)
        await one.until(lambda: one.state() is State.IDLE)
        await farm.saw("TEARDOWN")


async def test_a_viewer_within_the_grace_time_finds_the_pull_running() -> None:
    async with Farm() as farm, house(Camera(id="a", main=farm.url)) as one:
        await one.supervisor.acquire("a", MAIN)
        one.supervisor.release("a", MAIN)
        await one.supervisor.acquire("a", MAIN)
        assert farm.methods.count("PLAY") == 1


async def test_always_pulls_sub_and_leaves_main_to_viewers() -> None:
    async with (
        Farm() as main,
        Farm() as sub,
        house(Camera(id="a", main=main.url, sub=sub.url, pull="always")) as one,
    ):
        await one.until(lambda: one.state() is State.LIVE)
        streams = one.supervisor.state("a").streams
        assert (streams[SUB].state, streams[MAIN].state) == (State.LIVE, State.IDLE)
        assert main.methods == []


async def test_one_bad_camera_hurts_no_other() -> None:
    """Complaints about the peers, items 1 and 3: silent freezes, refusals and rubbish stay with their camera."""
    faults = ("401", "404", "garbage", "stall", "drop", "h265", "b_frames", "mute")
    async with contextlib.AsyncExitStack() as stack:
        cameras = []
        for fault in faults:
            farm = await stack.enter_async_context(Farm(fault=fault, algorithm="MD5"))
            cameras.append(Camera(id=fault, main=farm.url, pull="always", credentials="NVR"))
        good = await stack.enter_async_context(Farm())
        one = await stack.enter_async_context(
            house(
                *cameras,
                Camera(id="refused", main="rtsp://127.0.0.1:1/", pull="always"),
                Camera(id="good", main=good.url, pull="always"),
                # The farm shares this process: what holds it up holds the cameras up, and must not look like a stall.
                limits=dataclasses.replace(QUICK, data_timeout_s=4.0),
            )
        )
        expected = {
            "401": "401 unauthorised",
            "404": "404 not found",
            "garbage": "garbage instead of RTSP",
            "stall": "no data for 4 s",
            "drop": "connection closed by camera",
            "h265": "codec H265 not supported",
            "b_frames": "B-frames not supported",
            "mute": "no answer to OPTIONS",
            "refused": "connection refused",
        }

        def reasons() -> dict[str, set[str]]:
            found: dict[str, set[str]] = {}
            for state in one.said:
                if state.state is State.DOWN:
                    found.setdefault(state.camera_id, set()).add(state.reason)
            return found

        await one.until(lambda: len(reasons()) == len(expected))
        assert reasons() == {camera_id: {reason} for camera_id, reason in expected.items()}
        assert one.supervisor.state("good").state is State.LIVE
        counted = one.supervisor.counters().failures
        assert set(counted) == set(expected.values())


async def test_viewers_of_a_broken_camera_hear_why() -> None:
    async with (
        Farm(fault="401", algorithm="MD5") as farm,
        house(Camera(id="a", main=farm.url, credentials="NVR")) as one,
    ):
        with pytest.raises(Unavailable, match="401 unauthorised") as caught:
            await one.supervisor.acquire("a", MAIN)
        assert caught.value.retry_after_s > 10
        assert one.supervisor.state("a").streams[MAIN].viewers == 0
        with pytest.raises(NotFound):
            await one.supervisor.acquire("a", SUB)
        with pytest.raises(NotFound):
            one.supervisor.state("b")


@pytest.mark.parametrize(
    ("fault", "reason"), [("h265", "codec H265 not supported"), ("b_frames", "B-frames not supported")]
)
async def test_what_no_browser_decodes_is_named_and_stays_named(fault: str, reason: str) -> None:
    """Complaints about the peers, item 6: the viewer of main is told that the sub-stream may do; asking again costs no dial."""
    async with (
        Farm(fault=fault) as main,
        Farm() as sub,
        house(Camera(id="a", main=main.url, sub=sub.url, pull="always")) as one,
    ):
        await one.until(lambda: one.state() is State.LIVE)
        for _ in range(3):
            with pytest.raises(Undecodable, match=reason):
                await one.supervisor.acquire("a", MAIN)
        await asyncio.sleep(QUICK.grace_s * 2)
        state = one.supervisor.state("a")
        assert (state.state, state.streams[MAIN].state) == (State.LIVE, State.DOWN)
        assert (state.streams[MAIN].reason, state.streams[MAIN].viewers) == (reason, 0)
        assert main.methods.count("DESCRIBE") == 1
        await one.supervisor.acquire("a", SUB)


async def test_who_proved_to_send_no_b_frames_shows_its_first_picture_the_next_time() -> None:
    """Complaints about the peers, item 5: High profile without a word on reordering is what most cameras send."""
    async with Farm(fault="b_frames_allowed") as farm, house(Camera(id="a", main=farm.url)) as one:
        before: list[int] = []

        async def start() -> None:
            await one.supervisor.acquire("a", MAIN)
            while one.sinks["a", MAIN].units < sum(at_end) + 4:
                await asyncio.sleep(0.01)
            one.supervisor.release("a", MAIN)
            await one.until(lambda: one.state() is State.IDLE)

        def note(state: CameraState) -> None:  # a picture is given on after the state that it changes
            if state.state is State.LIVE:
                before.append(one.sinks["a", MAIN].units - sum(at_end))

        at_end: list[int] = []
        one.also = note
        await start()
        at_end.append(one.sinks["a", MAIN].units)
        await start()
        assert before == [2, 0]


async def test_a_mute_camera_gives_up_its_place_to_those_who_wait() -> None:
    """Complaints about the peers, item 1: one dial at a time, half of the hosts accept and say nothing."""
    limits = DialLimits(dials=1, backoff_first_s=4.0, backoff_most_s=8.0)
    async with Farm(fault="mute") as mute, Farm() as good:
        cameras = [Camera(id=f"mute{number}", main=mute.url, pull="always") for number in range(4)]
        cameras += [Camera(id=f"good{number}", main=good.url, pull="always") for number in range(4)]
        async with house(*cameras, limits=limits) as one:
            # until() waits 15 s at most: less than four times the time limit of an answer.
            await one.until(lambda: all(one.state(f"good{number}") is State.LIVE for number in range(4)))
            assert one.supervisor.gate.peak == 1
            assert one.supervisor.counters().failures["no answer to OPTIONS"] >= 4


async def test_a_sink_that_raises_is_contained() -> None:
    async with Farm() as farm, house(Camera(id="a", main=farm.url, pull="always"), sink=Bad) as one:
        await one.until(lambda: one.state() is State.LIVE)
        assert one.supervisor.counters().sink_errors >= 1


async def test_connections_to_one_recorder_are_capped() -> None:
    """Complaints about the peers, item 4."""
    limits = DialLimits(connections_per_host=1, backoff_first_s=0.05, backoff_most_s=0.2)
    async with Farm() as farm:
        cameras = [Camera(id=name, main=farm.url, pull="always") for name in "ab"]
        async with house(*cameras, limits=limits) as one:
            await one.until(lambda: {one.state("a"), one.state("b")} == {State.LIVE, State.DOWN})
            down = "a" if one.state("a") is State.DOWN else "b"
            assert one.supervisor.state(down).reason == "connection limit of the recorder reached"
        assert farm.most_sessions == 1


async def test_reload_touches_only_what_changed() -> None:
    """Complaints about the peers, item 12."""
    async with Farm() as kept, Farm() as changed, Farm() as other:
        cameras = [
            Camera(id="kept", main=kept.url, pull="always"),
            Camera(id="changed", main=changed.url, pull="always"),
            Camera(id="removed", main=other.url, pull="always"),
        ]
        async with house(*cameras) as one:
            await one.until(lambda: all(one.state(camera.id) is State.LIVE for camera in cameras))
            await one.supervisor.apply(
                [
                    Camera(id="kept", main=kept.url, pull="always"),
                    Camera(id="changed", main=other.url, pull="always"),
                    Camera(id="added", main=other.url, pull="always"),
                ]
            )
            await one.until(lambda: one.state("added") is State.LIVE)
            await changed.saw("TEARDOWN")
            await other.saw("TEARDOWN")
            await other.saw("PLAY", 3)
            assert kept.methods.count("PLAY") == 1
            assert "TEARDOWN" not in kept.methods
            assert {state.camera_id for state in one.supervisor.states()} == {"kept", "changed", "added"}


async def test_all_come_back_after_a_reboot_within_the_dial_cap() -> None:
    """Complaints about the peers, items 1 and 2: always comes back by itself."""
    limits = DialLimits(dials=5, dials_per_host=5, backoff_first_s=0.05, backoff_most_s=0.3)
    farm = Farm()
    await farm.__aenter__()
    cameras = [Camera(id=f"c{number}", main=farm.url, pull="always") for number in range(40)]
    async with house(*cameras, limits=limits) as one:

        def live() -> int:
            return sum(state.state is State.LIVE for state in one.supervisor.states())

        await one.until(lambda: live() == 40)
        await farm.__aexit__(None, None, None)
        await one.until(lambda: live() == 0)
        await one.until(
            lambda: any(state.reason == "connection refused" for state in one.supervisor.states())
        )
        async with Farm(port=farm.port):
            await one.until(lambda: live() == 40)
            assert one.supervisor.gate.peak == 5
            assert one.supervisor.counters().dials >= 80


async def test_a_camera_that_stays_away_is_no_flood_of_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Complaints about the peers, item 2: one line for a state, however often it is dialled."""
    caplog.set_level("INFO", logger="gateway.streams.cameras")
    limits = DialLimits(backoff_first_s=0.01, backoff_most_s=0.02)
    async with house(Camera(id="a", main="rtsp://127.0.0.1:1/", pull="always"), limits=limits) as one:
        async with asyncio.timeout(15):  # nothing changes, so nothing is said: look again and again
            while one.supervisor.counters().failures["connection refused"] < 10:
                await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == ["camera a main: down (connection refused)"]


async def test_viewers_who_come_and_go_leave_nothing_behind() -> None:
    """Complaints about the peers, item 8."""
    limits = DialLimits(grace_s=0.0)
    async with Farm() as farm, house(Camera(id="a", main=farm.url), limits=limits) as one:
        for _ in range(10):
            await one.supervisor.acquire("a", MAIN)
            one.supervisor.release("a", MAIN)
            await one.until(lambda: one.state() is State.IDLE)
        await farm.saw("TEARDOWN", 10)
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("pull")] == []
        assert one.supervisor.gate.dialling == 0


async def test_gate_lets_the_living_go_before_the_silent() -> None:
    gate = DialGate(1, 1)
    order: list[str] = []

    async def dial(name: str, host: str, suspect: bool) -> None:
        await gate.enter(host, suspect=suspect)
        order.append(name)
        await asyncio.sleep(0)
        gate.leave(host)

    async with asyncio.TaskGroup() as group:
        for name, suspect in (("first", False), ("dead", True), ("dead2", True), ("alive", False)):
            group.create_task(dial(name, name, suspect))
    assert order == ["first", "alive", "dead", "dead2"]
    assert (gate.dialling, gate.peak) == (0, 1)


async def test_gate_survives_cancelled_waiters() -> None:
    gate = DialGate(2, 1)
    await gate.enter("h", suspect=False)
    waiting = asyncio.create_task(gate.enter("h", suspect=False))
    await asyncio.sleep(0)
    await gate.enter("other", suspect=False)  # the full host does not block others
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gate.leave("h")
    gate.leave("other")
    await gate.enter("h", suspect=False)
    assert gate.dialling == 1
