"""Worker processes: real children, real cameras and viewers; what a death, a stop and a hang of one of them does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rtsp_farm import Farm
from still_encoder import encode
from webrtc_clients import WhepClient, WhipClient
from webrtc_clients import eventually as soon

from gateway.errors import GatewayError, NotFound, ProtocolError, TooMany, Unavailable
from gateway.streams import sdp
from gateway.streams.cameras import CameraState, DialLimits, State
from gateway.streams.media import StreamName
from gateway.streams.media_service import LocalMedia, MediaCallbacks, MediaSpec, PictureSpec
from gateway.streams.placement import worker_of_call
from gateway.streams.plane import NotAcceptable, PlaneLimits
from gateway.streams.session import SessionAnswer, SessionState
from gateway.streams.shards import Shards, ShardTimes
from gateway.streams.verdict import Verdict

TIMES = ShardTimes(beat_s=0.1, dead_s=3, stop_s=10)
EVERYWHERE = pytest.mark.parametrize("workers", [0, 2], ids=["in-process", "workers"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    id: str
    main: str
    sub: str | None = None
    credentials: str | None = None
    pull: str = "always"
    pull_main: str = "on_demand"
    transport: str = "tcp"


@dataclass(slots=True)
class News:
    """What the shards told the rest of the gateway."""

    states: list[CameraState] = field(default_factory=list)
    sources: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    @property
    def callbacks(self) -> MediaCallbacks:
        return MediaCallbacks(
            state=self.states.append,
            source_change=lambda source, tracks: self.sources.append((source, tracks)),
            session_closed=lambda session, reason: self.closed.append((session, reason)),
            picture=self.pictures.append,
        )

    def of(self, camera_id: str) -> list[tuple[State, str]]:
        return [(one.state, one.reason) for one in self.states if one.camera_id == camera_id]


def spec(**options) -> MediaSpec:
    return MediaSpec(
        binds=(("127.0.0.1", 0),),
        tcp=False,
        dial=DialLimits(backoff_first_s=0.1, backoff_most_s=0.5, suspect_connect_timeout_s=5),
        **options,
    )


@asynccontextmanager
async def running(
    farm: Farm, count: int = 4, *, workers: int = 2, how: MediaSpec | None = None
) -> AsyncIterator[tuple[Any, News]]:
    """`count` cameras over the workers; cam0, cam2 ... in worker 0, cam1, cam3 ... in worker 1. No workers: in this
    process, with the same face."""
    news = News()
    cameras = [Camera(id=f"cam{number}", main=farm.url) for number in range(count)]
    how = how or spec()
    shards = (
        Shards(how, news.callbacks, cameras, workers=workers, times=TIMES)
        if workers
        else LocalMedia(how, news.callbacks, cameras)
    )
    await shards.open()
    task = asyncio.create_task(shards.run())
    pids = [one.pid for one in shards.workers()]
    try:
        yield shards, news
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await shards.close()
        for pid in pids:
            assert pid is not None
            assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def shown(pid: int, name: str) -> str:
    """What any other process of this user can read of it."""
    return Path(f"/proc/{pid}/{name}").read_text()


def live(shards: Shards) -> bool:
    return all(one.state is State.LIVE for one in shards.states())


async def eventually(condition: Callable[[], object]) -> None:
    """The time only bounds a failure: processes start slowly on a machine that has other things to do."""
    await soon(condition, 40)


class Viewer(WhepClient):
    """Counts video packets: the farm's pictures don't decode."""

    def __init__(self) -> None:
        super().__init__()
        self.packets = 0

    async def accept(self, answer) -> None:
        await super().accept(answer)

        def count(*_: int) -> bool:
            self.packets += 1
            return False

        self.drop_incoming(count)

    async def sees_more(self, packets: int = 20) -> None:
        wanted = self.packets + packets
        await eventually(lambda: self.packets >= wanted)


@asynccontextmanager
async def viewers(shards: Shards, *cameras: str) -> AsyncIterator[list[Viewer]]:
    everyone = [Viewer() for _ in cameras]
    try:
        for viewer, camera in zip(everyone, cameras, strict=True):
            await viewer.watch(shards, f"camera/{camera}")
        yield everyone
    finally:
        await asyncio.gather(*(viewer.close() for viewer in everyone))


async def test_a_killed_worker_takes_only_its_own_along_and_comes_back():
    async with Farm() as farm, running(farm) as (shards, news):
        await eventually(lambda: live(shards))
        async with viewers(shards, "cam0", "cam1") as (first, second):
            await asyncio.gather(first.sees_more(), second.sees_more())
            await eventually(lambda: all(one.state is SessionState.CONNECTED for one in shards.sessions()))
            one, two = shards.workers()
            assert f" {one.port} typ host" in first.answer.sdp
            assert f" {two.port} typ host" in second.answer.sdp
            assert one.port != two.port

            os.kill(one.pid, signal.SIGKILL)
            await eventually(lambda: news.closed)
            assert news.closed == [(first.answer.session_id, "worker_lost")]
            with pytest.raises(NotFound):
                shards.session(first.answer.session_id)
            assert shards.sessions(closed=True)[-1].reason == "worker_lost"
            assert (State.DOWN, "media worker is restarting") in news.of("cam0")
            assert news.of("cam1")[-1] == (State.LIVE, "")
            await second.sees_more()

            await eventually(lambda: live(shards))
            assert news.of("cam2")[-1] == (State.LIVE, "")
            assert shards.workers()[0].restarts == 1
            assert shards.workers()[0].pid != one.pid
            async with viewers(shards, "cam0") as (again,):
                await again.sees_more()
            assert shards.counts().closed["worker_lost"] == 1
            assert (State.DOWN, "media worker is restarting") not in news.of("cam1")


async def test_a_hanging_worker_is_noticed_and_replaced():
    async with Farm() as farm, running(farm, 2) as (shards, _news):
        await eventually(lambda: live(shards))
        hung = shards.workers()[1].pid
        os.kill(hung, signal.SIGSTOP)
        waiting = asyncio.create_task(shards.watch("camera/cam1", "v=0", owner="nobody"))
        with pytest.raises(Unavailable) as refused:
            await waiting  # not for ever
        assert refused.value.retry_after_s == 1.0
        assert not alive(hung)
        await eventually(lambda: live(shards))
        assert [one.restarts for one in shards.workers()] == [0, 1]


async def test_cameras_are_spread_and_reload_moves_nobody():
    async with Farm() as farm, running(farm, 3) as (shards, news):
        await eventually(lambda: live(shards))
        assert [one.cameras for one in shards.workers()] == [2, 1]
        async with viewers(shards, "cam0", "cam1") as (gone, kept):
            await asyncio.gather(gone.sees_more(), kept.sees_more())
            cameras = [Camera(id=name, main=farm.url) for name in ("cam1", "cam2", "new1", "new2")]
            await shards.apply(cameras)
            await eventually(lambda: news.closed)
            assert news.closed == [(gone.answer.session_id, "camera_removed")]
            assert [one.cameras for one in shards.workers()] == [2, 2]
            await kept.sees_more()
            await eventually(lambda: live(shards))
            with pytest.raises(NotFound):
                shards.state("cam0")
            with pytest.raises(NotFound):
                await shards.watch("camera/cam0", "v=0", owner="nobody")


@EVERYWHERE
async def test_a_call_leg_is_published_watched_and_closed_by_its_owner(workers: int):
    async with Farm() as farm, running(farm, 0, workers=workers) as (shards, news):
        for leg in ("call/c1/alice", "call/c1/bob", "call/c1/carol"):  # falls into both workers
            publisher, viewer = WhipClient(audio=False), WhepClient()
            try:
                await viewer.watch(shards, leg, owner="viewer")
                await publisher.publish(shards, leg, owner="call/c1")
                await eventually(lambda viewer=viewer: len(viewer.frames) >= 3)
                await eventually(lambda leg=leg: shards.source_tracks(leg) == ("video",))
                assert (leg, ("video",)) in news.sources
                assert len(shards) == 2
                assert await shards.close_owned_by("call/c1", reason="call_ended") == 1
                await eventually(lambda leg=leg: news.sources[-1] == (leg, ()))
                assert news.closed[-1] == (publisher.answer.session_id, "call_ended")
                await shards.close_session(viewer.answer.session_id)
                await eventually(lambda: not len(shards))
            finally:
                await viewer.close()
                await publisher.close()
        assert {worker_of_call(f"call/c1/{name}", 2) for name in ("alice", "bob", "carol")} == {0, 1}
        await eventually(lambda: shards.counts().answered == {"watch": 3, "publish": 3})


@EVERYWHERE
async def test_errors_and_restarts_pass_through(workers: int):
    async with (
        Farm() as farm,
        running(farm, 2, workers=workers, how=spec(plane=PlaneLimits(sessions=1))) as (shards, news),
    ):
        await eventually(lambda: live(shards))
        client = Viewer()
        offer = await client.offer()
        try:
            with pytest.raises(ProtocolError) as bad:
                await shards.watch("camera/cam0", "nonsense", owner="one")
            assert bad.value.reason
            with pytest.raises(NotAcceptable) as unfit:
                await shards.watch("camera/cam0", offer.replace("H264", "VP7"), owner="one")
            assert unfit.value.codecs == ("H264",)
            await client.watch(shards, "camera/cam1", owner="one")
            session_id = client.answer.session_id
            with pytest.raises(TooMany):
                await shards.watch("camera/cam0", offer, owner="one")
            fragment = sdp.Fragment(ice_ufrag="abcdefgh", ice_pwd="p" * 24)
            answer = await shards.restart_session(session_id, fragment)
            assert answer.etag != client.answer.etag
            assert shards.session(session_id).etag == answer.etag
            assert shards.session(session_id).remote_ufrag == "abcdefgh"
            await shards.close_session(session_id)
            with pytest.raises(NotFound):
                await shards.close_session(session_id)
            assert news.closed == [(session_id, "closed")]
        finally:
            await client.close()


async def test_who_hangs_up_while_a_cold_camera_starts_leaves_no_session():
    async with Farm(fault="mute") as farm, running(farm, 2) as (shards, news):
        client = Viewer()
        try:
            offer = await client.offer()
            joining = asyncio.create_task(shards.watch("camera/cam0", offer, owner="one"))
            await eventually(lambda: shards.watchers("cam0", StreamName.MAIN) == 1)
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            await eventually(lambda: shards.watchers("cam0", StreamName.MAIN) == 0)
            farm.fault = ""
            await farm.cut()
            await eventually(lambda: live(shards))
            # At any moment: before the worker has begun, while it answers, after its answer is on the way.
            for turns in range(24):
                joining = asyncio.create_task(shards.watch("camera/cam0", offer, owner="one"))
                await asyncio.sleep(turns * 0.0005)
                joining.cancel()
                (answer,) = await asyncio.gather(joining, return_exceptions=True)
                if isinstance(answer, SessionAnswer):  # it was quicker than we
                    await shards.close_session(answer.session_id)
            await eventually(lambda: not len(shards) and shards.watchers("cam0", StreamName.MAIN) == 0)
            await eventually(lambda: len(news.closed) == shards.counts().answered.get("watch", 0))
            assert {reason for _, reason in news.closed} <= {"closed", "abandoned"}
        finally:
            await client.close()


@EVERYWHERE
async def test_the_keyframe_is_fetched_once(workers: int):
    async with Farm() as farm, running(farm, 1, workers=workers) as (shards, _news):
        await eventually(lambda: live(shards))
        keyframe = await shards.fetch_keyframe("cam0")
        assert keyframe is not None
        assert [unit[0] & 31 for unit in keyframe] == [7, 8, 5]
        assert shards.keyframe("cam0") is keyframe
        farm.fault = "stall"
        await farm.cut()
        await eventually(lambda: shards.counters().keyframes >= 2)
        newest = await shards.fetch_keyframe("cam0")
        assert await shards.fetch_keyframe("cam0") is newest


@EVERYWHERE
async def test_a_black_picture_is_told_wherever_it_is_judged(workers: int):
    black = encode(np.zeros((360, 640, 3), np.uint8))
    how = spec(pictures=PictureSpec(interval_s=0.2, cpu_share=1.0))
    async with Farm(still=black) as farm, running(farm, 2, workers=workers, how=how) as (shards, news):
        assert shards.picture("cam0") is None
        await eventually(lambda: {"cam0", "cam1"} <= set(news.pictures))
        picture, neighbour = shards.picture("cam0"), shards.picture("cam1")
        assert picture.verdict is Verdict.BLACK
        assert picture.reason
        assert picture.since_ms <= picture.checked_at_ms
        await eventually(lambda: shards.picture_counters().judged >= 6)
        await eventually(lambda: shards.picture("cam0").checked_at_ms > picture.checked_at_ms)
        cameras = [Camera(id="cam0", main=farm.url + "?other"), Camera(id="cam1", main=farm.url)]
        await shards.apply(cameras)  # another source: what was seen of the old one says nothing of it

        def judged_anew() -> bool:
            seen = shards.picture("cam0")
            return seen is not None and seen.since_ms > picture.checked_at_ms

        await eventually(judged_anew)
        assert shards.picture("cam1").verdict is Verdict.BLACK
        assert shards.picture("cam1").since_ms == neighbour.since_ms


PARENT = """
import asyncio, json, sys
from gateway.streams.media_service import MediaCallbacks, MediaSpec
from gateway.streams.shards import Shards

async def main():
    ignore = lambda *_: None
    callbacks = MediaCallbacks(state=ignore, source_change=ignore, session_closed=ignore)
    class camera:
        id, main, sub, credentials = "cam0", "rtsp://127.0.0.1:9/", None, "one"
        pull = pull_main = "on_demand"
        transport = "tcp"
    shards = Shards(MediaSpec(binds=(("127.0.0.1", 0),)), callbacks, [camera], {"one": ("u", "s3cret")}, workers=2)
    await shards.open()
    print(json.dumps([one.pid for one in shards.workers()]), flush=True)
    await shards.run()

asyncio.run(main())
"""


@pytest.mark.parametrize("workers", [0, 2])
async def test_a_camera_is_warmed_before_anybody_watches(workers: int):
    async with Farm() as farm:
        news = News()
        cameras = [Camera(id=f"cam{number}", main=farm.url, pull="on_demand") for number in range(2)]
        made = (
            Shards(spec(), news.callbacks, cameras, workers=workers, times=TIMES)
            if workers
            else LocalMedia(spec(), news.callbacks, cameras)
        )
        await made.open()
        task = asyncio.create_task(made.run())
        try:

            async def warm() -> bool:
                try:
                    await made.warm("cam1")
                except (NotFound, Unavailable):  # it has only just begun
                    return False
                return True

            async with asyncio.timeout(40):
                while not await warm():
                    await asyncio.sleep(0.05)
            await eventually(lambda: made.state("cam1").state is State.LIVE)
            assert made.state("cam0").state is State.IDLE
            assert await made.fetch_keyframe("cam1")
            with pytest.raises(NotFound):
                await made.warm("none")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await made.close()


async def test_children_die_with_their_parent():
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert parent.stdout is not None
    children = json.loads(await parent.stdout.readline())
    assert all(map(alive, children))
    for pid in children:
        os.kill(pid, signal.SIGINT)  # what a terminal sends to all
        assert "gateway.streams.worker" in shown(pid, "cmdline")
        assert "s3cret" not in shown(pid, "cmdline") + shown(pid, "environ")
    parent.kill()
    await parent.wait()
    await eventually(lambda: not any(map(alive, children)))


async def test_a_taken_port_is_named_and_nothing_is_left():
    async with Farm() as farm:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        taken = transport.get_extra_info("sockname")[1]
        one = MediaSpec(binds=(("127.0.0.1", taken - 1),), tcp=False)
        shards = Shards(one, News().callbacks, [Camera(id="cam0", main=farm.url)], workers=2)
        try:
            with pytest.raises(GatewayError, match=str(taken)):
                await shards.open()
            assert [one.pid for one in shards.workers()] == [None, None]
        finally:
            transport.close()
            await asyncio.sleep(0)
