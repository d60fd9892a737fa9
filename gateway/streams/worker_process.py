"""One worker process as the front door sees it: its life from start to end, requests to it, and the mirror of what is in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from gateway.errors import TooMany, Unavailable
from gateway.streams.cameras import CameraState
from gateway.streams.channel import Channel
from gateway.streams.media_service import MediaCallbacks, MediaSpec
from gateway.streams.messages import (
    Answered,
    ApplyCameras,
    Beat,
    Cancel,
    Closed,
    Done,
    FromWorker,
    HlsAnswer,
    Keyframe,
    PictureChange,
    Publish,
    Ready,
    Recorded,
    Refused,
    Setup,
    States,
    Stop,
    SupervisorCounts,
    ToWorker,
    Tracks,
    Watch,
    WireCamera,
)
from gateway.streams.placement import Heartbeat
from gateway.streams.session import SessionInfo
from gateway.streams.verdict import PictureState

__all__ = ["RESTARTING", "ShardTimes", "WorkerProcess"]

log = logging.getLogger(__name__)

MAX_REQUESTS = 1024
"""Under way to one worker; more are refused."""
MAX_WAITING_OCTETS = 4 << 20
"""Not taken by a worker yet; beyond it joins are refused."""
RESTARTING = "media worker is restarting"
_T = TypeVar("_T", Answered, Done, Keyframe, HlsAnswer)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTimes:
    """Seconds. beat_s: between signs of life. dead_s: of silence, then the worker is killed. start_s: from the start of a
    process until its sockets are bound. stop_s: for a worker to end its sessions and leave its cameras."""

    beat_s: float = 0.25
    dead_s: float = 10.0
    start_s: float = 30.0
    stop_s: float = 5.0


class WorkerOwner(Protocol):
    """Who is told a worker's news, by call_soon (`Shards`)."""

    times: ShardTimes
    callbacks: MediaCallbacks

    def states_changed(self, states: Sequence[CameraState]) -> None: ...

    def picture_changed(self, camera_id: str) -> None: ...

    def session_ended(self, info: SessionInfo, reason: str) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> None: ...

    async def close_session(self, session_id: str, *, reason: str = "closed") -> None: ...


class WorkerProcess:
    """One worker over all its lives: the process of now, and the mirror of what is in it."""

    def __init__(self, number: int, owner: WorkerOwner) -> None:
        self.number = number
        self.cameras: list[WireCamera] = []
        self.credentials: dict[str, tuple[str, str]] = {}
        self.states: dict[str, CameraState] = {}
        self.pictures: dict[str, PictureState] = {}
        self.sessions: dict[str, SessionInfo] = {}
        self.tracks: dict[str, tuple[str, ...]] = {}
        self.counts = SupervisorCounts({}, {}, {}, {}, {}, {})
        self.recordings: set[str] = set()
        self.preroll_octets = 0
        self.port: int | None = None
        self.lag_ms = 0.0
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._owner = owner
        self._channel: Channel[FromWorker] | None = None
        self._gone = asyncio.Event()
        self._heartbeat = Heartbeat(timeout_s=owner.times.dead_s, look_s=owner.times.beat_s)
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._joins: set[int] = set()
        self._abandoned: set[int] = set()
        self._last_id = 0
        self._ready: asyncio.Future[int] | None = None

    @property
    def up(self) -> bool:
        return self.port is not None

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self, spec: MediaSpec, log_level: int) -> None:
        """Start the process and wait until its sockets are bound. Raises what kept it from that."""
        loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._ready = loop.create_future()
        self._heartbeat.heard()
        ours, theirs = socket.socketpair()
        try:
            root = str(Path(__file__).parents[2])
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.streams.worker", str(theirs.fileno()), str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), process_group=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        channel: Channel[FromWorker] = Channel(
            msgspec.msgpack.Decoder(FromWorker), self._on_message, lambda: self._on_channel_closed(channel)
        )
        try:
            await channel.open(ours)
            self._channel = channel
            channel.send(Setup(self.number, spec, log_level, self._owner.times.beat_s))
            async with asyncio.timeout(self._owner.times.start_s):
                port = await self._ready
        except TimeoutError:
            await self.kill()
            raise Unavailable(f"media worker {self.number} did not start in time") from None
        except BaseException:
            await self.kill()
            raise
        self.port = port
        log.info("media worker %d is up: pid %d, port %d", self.number, self.process.pid, port)

    async def serve(self) -> str:
        """Give it its cameras and watch it. Returns why it is no more."""
        self._owner.spawn(self.apply(), f"cameras-of-worker-{self.number}")
        while True:
            try:
                async with asyncio.timeout(self._owner.times.beat_s):
                    await self._gone.wait()
                    return "it ended"
            except TimeoutError:
                if self._heartbeat.expired(time.monotonic()):
                    return f"no sign of life for {self._owner.times.dead_s:g} s"

    async def stop(self) -> None:
        """Ask it to end its sessions and leave its cameras; kill it if it does not in time."""
        process = self.process
        if process is not None and self._channel is not None:
            self._channel.send(Stop())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._owner.times.stop_s):
                    await process.wait()
        await self.kill()

    async def kill(self) -> None:
        """Make sure that the process is gone and reaped, and the channel closed. Idempotent."""
        process, self.process = self.process, None
        channel, self._channel = self._channel, None
        self.port = None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
        if channel is not None:
            channel.close()
            await self._gone.wait()
        for future in self._requests.values():
            if not future.done():
                future.set_exception(Unavailable(RESTARTING, retry_after_s=1.0))
        self._requests.clear()
        self._abandoned.clear()

    # -- requests ---------------------------------------------------------------------------------------------------

    async def ask(self, make: Callable[[int], ToWorker], kind: type[_T]) -> _T:
        """Send a request and wait for its answer. Raises what the worker refused it with, Unavailable without a worker."""
        channel = self._channel
        if not self.up or channel is None:
            raise Unavailable(RESTARTING, retry_after_s=1.0)
        if len(self._requests) >= MAX_REQUESTS or channel.waiting > MAX_WAITING_OCTETS:
            raise TooMany("a media worker has too much to do", retry_after_s=2.0)
        self._last_id += 1
        number = self._last_id
        future = self._requests[number] = asyncio.get_running_loop().create_future()
        request = make(number)
        if isinstance(request, Watch | Publish):
            self._joins.add(number)
        try:
            channel.send(request)
            answer = await future
        except asyncio.CancelledError:
            if isinstance(request, Watch | Publish):
                # A session that comes of it is nobody's, also when its answer has come in this very step.
                if number in self._requests:
                    self._abandoned.add(number)
                elif not future.cancelled() and future.exception() is None:
                    self._abandon(future.result())
            channel.send(Cancel(number))
            raise
        finally:
            self._requests.pop(number, None)
            self._joins.discard(number)
        if not isinstance(answer, kind):
            raise Unavailable("a media worker answered something else")
        return answer

    async def apply(self) -> None:
        """Tell it its share of the cameras."""
        await self.ask(lambda number: ApplyCameras(number, self.cameras, self.credentials), Done)

    # -- what it says -----------------------------------------------------------------------------------------------

    def _on_message(self, message: FromWorker) -> None:
        self._heartbeat.heard()
        match message:
            case Beat():
                self.lag_ms = message.lag_ms
                self.preroll_octets = message.preroll_octets
                self._mirror(message.states)
                for camera_id, picture in message.pictures.items():
                    self._mirror_picture(camera_id, picture)
                self.sessions.update(
                    {info.session_id: info for info in message.sessions if info.session_id in self.sessions}
                )
                if message.counts is not None:
                    self.counts = message.counts
            case States():
                self._mirror(message.states)
            case PictureChange():
                self._mirror_picture(message.camera_id, message.picture)
                self._later(self._owner.picture_changed, message.camera_id)
            case Answered() | Done() | Keyframe() | HlsAnswer():
                if isinstance(message, Answered):
                    self.sessions[message.answer.session_id] = message.info
                self._resolve(message)
            case Closed():
                info = self.sessions.pop(message.session_id, None)
                if info is not None:
                    self._later(self._owner.session_ended, info, message.reason)
            case Recorded():
                if message.news.finished is not None:
                    self.recordings.discard(message.news.recording_id)
                self._later(self._owner.callbacks.recording, message.news)
            case Tracks():
                if message.tracks:
                    self.tracks[message.source_id] = message.tracks
                else:
                    self.tracks.pop(message.source_id, None)
                self._later(self._owner.callbacks.source_change, message.source_id, message.tracks)
            case Refused(id=0) if self._ready is not None and not self._ready.done():
                self._ready.set_exception(message.failure.error())
            case Refused():
                self._abandoned.discard(message.id)
                future = self._requests.pop(message.id, None)
                if future is not None and not future.done():
                    future.set_exception(message.failure.error())
            case Ready() if self._ready is not None and not self._ready.done():
                self._ready.set_result(message.port)

    def _later(self, call: Callable[..., None], *arguments: object) -> None:
        """Whoever waits for an answer that came before this news goes on first."""
        asyncio.get_running_loop().call_soon(call, *arguments)

    def _mirror(self, states: Sequence[CameraState]) -> None:
        news = []
        for state in states:
            before = self.states.get(state.camera_id)
            if before is None:
                continue  # a reload took the camera away meanwhile
            self.states[state.camera_id] = state
            if _essence(state) != _essence(before):
                news.append(state)
        if news:
            self._later(self._owner.states_changed, news)

    def _mirror_picture(self, camera_id: str, picture: PictureState | None) -> None:
        if picture is None or camera_id not in self.states:
            self.pictures.pop(camera_id, None)
        else:
            self.pictures[camera_id] = picture

    def _resolve(self, message: Answered | Done | Keyframe | HlsAnswer) -> None:
        future = self._requests.pop(message.id, None)
        if future is not None and not future.done():
            future.set_result(message)
        elif message.id in self._abandoned or (future is not None and message.id in self._joins):
            # Given up earlier, or cancelled a moment ago by somebody who has not run since.
            self._abandoned.discard(message.id)
            self._abandon(message)

    def _abandon(self, message: Answered | Done | Keyframe | HlsAnswer) -> None:
        """Answered, but whoever asked has gone."""
        if isinstance(message, Answered):
            session_id = message.answer.session_id
            self._owner.spawn(
                self._owner.close_session(session_id, reason="abandoned"), f"abandoned-{session_id[:6]}"
            )

    def _on_channel_closed(self, channel: Channel[FromWorker]) -> None:
        self._gone.set()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(Unavailable(f"media worker {self.number} ended while it started"))
        if channel is self._channel:
            self.port = None


def _essence(state: CameraState) -> object:
    """What of a state is news, beside figures that change all the time."""
    streams = [(name, stream.state, stream.reason) for name, stream in state.streams.items()]
    return state.state, state.reason, streams
