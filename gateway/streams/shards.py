"""The media plane over several processes: one front door, N workers, each with its own share of the cameras.

A camera lives in one worker, whose own UDP and TCP port (the configured one plus the worker's number) stands in the
answers; media never passes the front door. Requests are proxied over a socket pair; what pages ask often is answered from a
mirror that the workers' events keep: states and ends of sessions at once, measured figures every few seconds.

A worker that ends, or gives no sign of life for `dead_s`, is killed and started again. Meanwhile its cameras are down with
a reason, its sessions have ended with `worker_lost` (pages dial again), its call legs publish nothing; other workers notice
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.errors import GatewayError, NotFound, TooMany, Unavailable
from gateway.streams import sdp
from gateway.streams.cameras import CameraSource, CameraState, Counters, State, StreamState
from gateway.streams.channel import Channel
from gateway.streams.media import StreamName
from gateway.streams.media_service import Credentials, MediaCallbacks, MediaSpec, PlaneCounts, WorkerView
from gateway.streams.messages import (
    Answered,
    ApplyCameras,
    Beat,
    Cancel,
    Closed,
    CloseOwned,
    CloseSession,
    Done,
    FetchKeyframe,
    FromWorker,
    Keyframe,
    Publish,
    Ready,
    Refused,
    RestartSession,
    Setup,
    States,
    Stop,
    SupervisorCounts,
    ToWorker,
    Tracks,
    Watch,
    WireCamera,
)
from gateway.streams.placement import Backoff, Heartbeat, place_cameras, share_of, worker_of_call
from gateway.streams.plane import StreamChoice
from gateway.streams.session import SessionAnswer, SessionInfo, SessionState

__all__ = ["ShardTimes", "Shards"]

log = logging.getLogger(__name__)

MAX_REQUESTS = 1024
"""Under way to one worker; more are refused."""
MAX_WAITING_OCTETS = 4 << 20
"""Not taken by a worker yet; beyond it joins are refused."""
KEYFRAMES_KEPT = 64
LOST = "worker_lost"
RESTARTING = "media worker is restarting"
_T = TypeVar("_T", Answered, Done, Keyframe)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTimes:
    """Seconds. beat_s: between signs of life. dead_s: of silence, then the worker is killed. start_s: from the start of a
    process until its sockets are bound. stop_s: for a worker to end its sessions and leave its cameras."""

    beat_s: float = 0.25
    dead_s: float = 5.0
    start_s: float = 30.0
    stop_s: float = 5.0


class _Worker:
    """One worker over all its lives: the process of now, and the mirror of what is in it."""

    def __init__(self, number: int, owner: Shards) -> None:
        self.number = number
        self.cameras: list[WireCamera] = []
        self.credentials: dict[str, tuple[str, str]] = {}
        self.states: dict[str, CameraState] = {}
        self.sessions: dict[str, SessionInfo] = {}
        self.tracks: dict[str, tuple[str, ...]] = {}
        self.counts = SupervisorCounts({}, {}, {}, {}, {}, {})
        self.port: int | None = None
        self.lag_ms = 0.0
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._owner = owner
        self._channel: Channel[FromWorker] | None = None
        self._gone = asyncio.Event()
        self._heartbeat = Heartbeat(timeout_s=owner.times.dead_s, look_s=owner.times.beat_s)
        self._requests: dict[int, asyncio.Future[Any]] = {}
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
        channel.send(request)
        try:
            answer = await future
        except asyncio.CancelledError:
            # A session that comes of it (or has come in this very step) is nobody's.
            if not future.cancelled() and future.exception() is None:
                self._abandon(future.result())
            elif isinstance(request, Watch | Publish):
                self._abandoned.add(number)
            channel.send(Cancel(number))
            raise
        finally:
            self._requests.pop(number, None)
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
                self._mirror(message.states)
                self.sessions.update(
                    {info.session_id: info for info in message.sessions if info.session_id in self.sessions}
                )
                if message.counts is not None:
                    self.counts = message.counts
            case States():
                self._mirror(message.states)
            case Answered() | Done() | Keyframe():
                if isinstance(message, Answered):
                    self.sessions[message.answer.session_id] = message.info
                self._resolve(message)
            case Closed():
                info = self.sessions.pop(message.session_id, None)
                if info is not None:
                    self._later(self._owner.session_ended, info, message.reason)
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
                future = self._requests.get(message.id)
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

    def _resolve(self, message: Answered | Done | Keyframe) -> None:
        future = self._requests.get(message.id)
        if future is not None and not future.done():
            future.set_result(message)
        elif message.id in self._abandoned:
            self._abandoned.discard(message.id)
            self._abandon(message)

    def _abandon(self, message: Answered | Done | Keyframe) -> None:
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


class Shards:
    """A `MediaService` of several processes. Built once, opened once, run once."""

    def __init__(
        self,
        spec: MediaSpec,
        callbacks: MediaCallbacks,
        cameras: Sequence[CameraSource] = (),
        credentials: Credentials | None = None,
        *,
        workers: int,
        times: ShardTimes | None = None,
    ) -> None:
        self.callbacks = callbacks
        self.times = times or ShardTimes()
        self._spec = spec
        self._credentials: Credentials = dict(credentials or {})
        self._closed: deque[SessionInfo] = deque(maxlen=spec.plane.closed_kept)
        self._lost = Counter[str]()
        self._ended = SupervisorCounts({}, {}, {}, {}, {}, {})
        self._reserved = 0
        self._keyframes: OrderedDict[str, tuple[int, tuple[bytes, ...]]] = OrderedDict()
        self._places: dict[str, int] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._random = random.Random()
        self._workers = [_Worker(number, self) for number in range(workers)]
        self._place(cameras)

    # -- running ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        results = await asyncio.gather(*map(self._start, self._workers), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            await self.close()
            raise failed[0]

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for worker in self._workers:
                    self._tasks.create_task(self._keep(worker), name=f"media-worker-{worker.number}")
        finally:
            self._tasks = None

    async def close(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self._workers))

    async def _start(self, worker: _Worker) -> None:
        spec = self._spec
        await worker.start(
            replace(
                spec,
                binds=tuple((host, port + worker.number if port else 0) for host, port in spec.binds),
                dial=share_of(spec.dial, len(self._workers)),
            ),
            logging.getLogger().getEffectiveLevel(),
        )

    async def _keep(self, worker: _Worker) -> None:
        """Serve, lose, wait, start again: the only place where one worker's exceptions end."""
        backoff = Backoff()
        up_since: float | None = time.monotonic()
        try:
            while True:
                if up_since is not None:
                    reason = await worker.serve()
                    log.error("media worker %d is lost: %s", worker.number, reason)
                    await worker.kill()
                    self._mourn(worker)
                lived_s = 0.0 if up_since is None else time.monotonic() - up_since
                await asyncio.sleep(backoff.pause_s(lived_s, self._random))
                worker.restarts += 1
                up_since = None
                try:
                    await self._start(worker)
                except (GatewayError, OSError) as error:
                    log.error("media worker %d can't be started: %s", worker.number, error)
                else:
                    up_since = time.monotonic()
        finally:
            await worker.stop()
            self._bury_sessions(worker, "shutdown")

    def _mourn(self, worker: _Worker) -> None:
        """Tell everybody what the death of a worker means."""
        _add(self._ended, worker.counts)
        worker.counts = SupervisorCounts({}, {}, {}, {}, {}, {})
        self._lost[LOST] += len(worker.sessions)
        self._bury_sessions(worker, LOST)
        tracks, worker.tracks = worker.tracks, {}
        for source_id in tracks:
            self.callbacks.source_change(source_id, ())
        now_ms = time.time_ns() // 1_000_000
        down = {
            camera_id: _as_down(state, now_ms)
            for camera_id, state in worker.states.items()
            if state.state is not State.IDLE
        }
        worker.states.update(down)
        self.states_changed(list(down.values()))

    def _bury_sessions(self, worker: _Worker, reason: str) -> None:
        sessions, worker.sessions = worker.sessions, {}
        for info in sessions.values():
            self.session_ended(info, reason)

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Work that nobody waits for; its refusal is logged."""
        if self._tasks is None:
            work.close()
            return

        async def guarded() -> None:
            try:
                await work
            except NotFound:
                pass  # it ended by itself meanwhile
            except GatewayError as error:
                log.warning("%s: %s", name, error)

        self._tasks.create_task(guarded(), name=name)

    # -- news of the workers ------------------------------------------------------------------------------------------

    def states_changed(self, states: Sequence[CameraState]) -> None:
        for state in states:
            if state.camera_id in self._places:
                self.callbacks.state(state)

    def session_ended(self, info: SessionInfo, reason: str) -> None:
        self._closed.append(replace(info, state=SessionState.CLOSED, reason=reason))
        self.callbacks.session_closed(info.session_id, reason)

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def watch(
        self, source_id: str, offer_sdp: str, *, stream: str = StreamChoice.MAIN, owner: str
    ) -> SessionAnswer:
        return await self._join(
            source_id, lambda number: Watch(number, source_id, offer_sdp, str(stream), owner)
        )

    async def publish(self, source_id: str, offer_sdp: str, *, owner: str) -> SessionAnswer:
        return await self._join(source_id, lambda number: Publish(number, source_id, offer_sdp, owner))

    async def _join(self, source_id: str, make: Callable[[int], ToWorker]) -> SessionAnswer:
        worker = self._worker_of(source_id)
        if len(self) + self._reserved >= self._spec.plane.sessions:
            raise TooMany("all media sessions are in use", retry_after_s=5)
        self._reserved += 1
        try:
            return (await worker.ask(make, Answered)).answer
        finally:
            self._reserved -= 1

    async def restart_session(self, session_id: str, fragment: sdp.Fragment) -> SessionAnswer:
        worker = self._holder(session_id)
        answered = await worker.ask(lambda number: RestartSession(number, session_id, fragment), Answered)
        return answered.answer

    async def close_session(self, session_id: str, *, reason: str = "closed") -> None:
        worker = self._holder(session_id)
        await worker.ask(lambda number: CloseSession(number, session_id, reason), Done)

    async def close_owned_by(self, owner: str, *, reason: str = "revoked") -> int:
        """A worker that is down has no sessions to close."""
        asked = [
            worker.ask(lambda number: CloseOwned(number, owner, reason), Done)
            for worker in self._workers
            if worker.up
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Unavailable):
                raise answer
        return sum(answer.count for answer in answers if isinstance(answer, Done))

    def session(self, session_id: str) -> SessionInfo:
        """Raises NotFound."""
        return self._holder(session_id).sessions[session_id]

    def sessions(self, *, closed: bool = False) -> list[SessionInfo]:
        """Counters are a few seconds old at most."""
        current = [info for worker in self._workers for info in worker.sessions.values()]
        return current + list(self._closed) if closed else current

    def __len__(self) -> int:
        return sum(len(worker.sessions) for worker in self._workers)

    # -- sources ------------------------------------------------------------------------------------------------------

    def watchers(self, camera_id: str, name: StreamName) -> int:
        state = self._state(camera_id)
        stream = None if state is None else state.streams.get(name)
        return 0 if stream is None else stream.viewers

    def source_tracks(self, source_id: str) -> tuple[str, ...]:
        return self._workers[worker_of_call(source_id, len(self._workers))].tracks.get(source_id, ())

    async def fetch_keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        """Raises NotFound, Unavailable."""
        worker = self._worker_of(f"camera/{camera_id}")
        known = self._keyframes.get(camera_id)
        digest = 0 if known is None else known[0]
        answer = await worker.ask(lambda number: FetchKeyframe(number, camera_id, digest), Keyframe)
        if answer.nal_units is not None:
            self._keyframes[camera_id] = (answer.digest, answer.nal_units)
        elif answer.digest != digest:
            self._keyframes.pop(camera_id, None)
        if camera_id in self._keyframes:
            self._keyframes.move_to_end(camera_id)
        while len(self._keyframes) > KEYFRAMES_KEPT:
            self._keyframes.popitem(last=False)
        return self.keyframe(camera_id)

    def keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        known = self._keyframes.get(camera_id)
        return None if known is None else known[1]

    # -- cameras ------------------------------------------------------------------------------------------------------

    def state(self, camera_id: str) -> CameraState:
        state = self._state(camera_id)
        if state is None:
            raise NotFound(f"no camera {camera_id}")
        return state

    def states(self) -> list[CameraState]:
        return [self.state(camera_id) for camera_id in self._places]

    async def apply(self, cameras: Sequence[CameraSource], credentials: Credentials | None = None) -> None:
        """A worker that is down gets its share when it is up again."""
        if credentials is not None:
            self._credentials = dict(credentials)
        self._place(cameras)
        for camera_id in [camera_id for camera_id in self._keyframes if camera_id not in self._places]:
            del self._keyframes[camera_id]
        results = await asyncio.gather(
            *(worker.apply() for worker in self._workers if worker.up), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Unavailable):
                raise result

    def _place(self, cameras: Sequence[CameraSource]) -> None:
        self._places = place_cameras((camera.id for camera in cameras), self._places, len(self._workers))
        now_ms = time.time_ns() // 1_000_000
        for worker in self._workers:
            mine = [camera for camera in cameras if self._places[camera.id] == worker.number]
            names = {camera.credentials for camera in mine if camera.credentials}
            worker.cameras = [_wire(camera) for camera in mine]
            worker.credentials = {name: self._credentials[name] for name in names & set(self._credentials)}
            worker.states = {
                camera.id: worker.states.get(camera.id) or _idle(camera, now_ms) for camera in mine
            }

    # -- figures ------------------------------------------------------------------------------------------------------

    def counters(self) -> Counters:
        total = self._total()
        return Counters(**total.supervisor, failures=Counter(total.failures), faults=Counter(total.faults))

    def counts(self) -> PlaneCounts:
        total = self._total()
        return PlaneCounts(
            answered=Counter(total.answered),
            closed=Counter(total.closed) + self._lost,
            port=Counter(total.port),
        )

    def _total(self) -> SupervisorCounts:
        total = SupervisorCounts({}, {}, {}, {}, {}, {})
        for part in (self._ended, *(worker.counts for worker in self._workers)):
            _add(total, part)
        return total

    def workers(self) -> list[WorkerView]:
        return [
            WorkerView(
                number=worker.number,
                pid=None if worker.process is None else worker.process.pid,
                port=worker.port,
                restarts=worker.restarts,
                lag_ms=worker.lag_ms,
                cameras=len(worker.cameras),
                sessions=len(worker.sessions),
            )
            for worker in self._workers
        ]

    # -- small parts --------------------------------------------------------------------------------------------------

    def _worker_of(self, source_id: str) -> _Worker:
        kind, _, name = source_id.partition("/")
        if kind == "call":
            return self._workers[worker_of_call(source_id, len(self._workers))]
        number = self._places.get(name) if kind == "camera" else None
        if number is None:
            raise NotFound(f"no source {source_id}")
        return self._workers[number]

    def _holder(self, session_id: str) -> _Worker:
        for worker in self._workers:
            if session_id in worker.sessions:
                return worker
        raise NotFound("no such session")

    def _state(self, camera_id: str) -> CameraState | None:
        number = self._places.get(camera_id)
        return None if number is None else self._workers[number].states.get(camera_id)


def _wire(camera: CameraSource) -> WireCamera:
    return WireCamera(
        camera.id,
        camera.main,
        camera.sub,
        camera.credentials,
        str(camera.pull),
        str(camera.pull_main),
        str(camera.transport),
    )


def _idle(camera: CameraSource, now_ms: int) -> CameraState:
    names = (StreamName.MAIN, StreamName.SUB) if camera.sub is not None else (StreamName.MAIN,)
    return CameraState(
        camera_id=camera.id,
        state=State.IDLE,
        reason="",
        since_ms=now_ms,
        last_frame_at_ms=None,
        streams={name: StreamState(state=State.IDLE, reason="", since_ms=now_ms) for name in names},
    )


def _essence(state: CameraState) -> object:
    """What of a state is news, beside figures that change all the time."""
    streams = [(name, stream.state, stream.reason) for name, stream in state.streams.items()]
    return state.state, state.reason, streams


def _as_down(state: CameraState, now_ms: int) -> CameraState:
    return replace(
        state,
        state=State.DOWN,
        reason=RESTARTING,
        since_ms=now_ms,
        streams={
            name: stream
            if stream.state is State.IDLE
            else StreamState(state=State.DOWN, reason=RESTARTING, since_ms=now_ms)
            for name, stream in state.streams.items()
        },
    )


def _add(total: SupervisorCounts, part: SupervisorCounts) -> None:
    for name in SupervisorCounts.__struct_fields__:
        sums, more = getattr(total, name), getattr(part, name)
        for key, count in more.items():
            sums[key] = sums.get(key, 0) + count
