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
import logging
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from gateway.errors import GatewayError, NotFound, TooMany, Unavailable
from gateway.evidence.order import LOST as RECORDING_LOST
from gateway.evidence.order import Finished, News, RecordingOrder
from gateway.streams import sdp
from gateway.streams.cameras import CameraSource, CameraState, Counters, State, StreamState
from gateway.streams.hls import Container
from gateway.streams.hls_source import HlsFile
from gateway.streams.media import StreamName
from gateway.streams.media_service import Credentials, MediaCallbacks, MediaSpec, PlaneCounts, WorkerView
from gateway.streams.messages import (
    Answered,
    CloseOwned,
    CloseSession,
    Done,
    FetchHls,
    FetchKeyframe,
    HlsAnswer,
    Keyframe,
    Publish,
    Record,
    RestartSession,
    StopRecording,
    SupervisorCounts,
    ToWorker,
    Warm,
    Watch,
    WireCamera,
)
from gateway.streams.placement import Backoff, place_cameras, share_of, worker_of_call
from gateway.streams.plane import StreamChoice
from gateway.streams.session import SessionAnswer, SessionInfo, SessionState
from gateway.streams.verdict import HealthCounters, PictureState
from gateway.streams.worker_process import RESTARTING, ShardTimes, WorkerProcess

__all__ = ["ShardTimes", "Shards"]

log = logging.getLogger(__name__)

KEYFRAMES_KEPT = 64
LOST = "worker_lost"
_WHOLE_COUNTS = ("judged", "unchanged", "absent", "undecodable", "late")


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
        self._workers = [WorkerProcess(number, self) for number in range(workers)]
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

    async def _start(self, worker: WorkerProcess) -> None:
        spec = self._spec
        pictures = spec.pictures
        if pictures is not None:
            pictures = replace(pictures, cpu_share=pictures.cpu_share / len(self._workers))
        await worker.start(
            replace(
                spec,
                binds=tuple((host, port + worker.number if port else 0) for host, port in spec.binds),
                dial=share_of(spec.dial, len(self._workers)),
                pictures=pictures,
            ),
            logging.getLogger().getEffectiveLevel(),
        )

    async def _keep(self, worker: WorkerProcess) -> None:
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

    def _mourn(self, worker: WorkerProcess) -> None:
        """Tell everybody what the death of a worker means. By call_soon: what goes wrong there must not end this."""
        loop = asyncio.get_running_loop()
        _add(self._ended, worker.counts)
        worker.counts = SupervisorCounts({}, {}, {}, {}, {}, {})
        self._lost[LOST] += len(worker.sessions)
        self._bury_sessions(worker, LOST)
        worker.pictures.clear()
        recordings, worker.recordings = worker.recordings, set()
        worker.preroll_octets = 0
        for recording_id in recordings:
            lost = News(recording_id=recording_id, finished=Finished(reason=RECORDING_LOST))
            loop.call_soon(self.callbacks.recording, lost)
        tracks, worker.tracks = worker.tracks, {}
        for source_id in tracks:
            loop.call_soon(self.callbacks.source_change, source_id, ())
        now_ms = time.time_ns() // 1_000_000
        down = {
            camera_id: _as_down(state, now_ms)
            for camera_id, state in worker.states.items()
            if state.state is not State.IDLE
        }
        worker.states.update(down)
        loop.call_soon(self.states_changed, list(down.values()))

    def _bury_sessions(self, worker: WorkerProcess, reason: str) -> None:
        sessions, worker.sessions = worker.sessions, {}
        for info in sessions.values():
            asyncio.get_running_loop().call_soon(self.session_ended, info, reason)

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

    def picture_changed(self, camera_id: str) -> None:
        if camera_id in self._places:
            self.callbacks.picture(camera_id)

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

    async def fetch_hls(
        self,
        camera_id: str,
        name: StreamName,
        file: str,
        container: Container,
        query: Sequence[tuple[str, str]],
    ) -> HlsFile:
        worker = self._worker_of(f"camera/{camera_id}")
        answer = await worker.ask(
            lambda number: FetchHls(number, camera_id, name, file, container, list(query)), HlsAnswer
        )
        return HlsFile(body=answer.body, media_type=answer.media_type)

    async def warm(self, camera_id: str) -> None:
        """Raises NotFound, Unavailable."""
        await self._worker_of(f"camera/{camera_id}").ask(lambda number: Warm(number, camera_id), Done)

    def keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        known = self._keyframes.get(camera_id)
        return None if known is None else known[1]

    # -- recordings ---------------------------------------------------------------------------------------------------

    async def record(self, order: RecordingOrder) -> None:
        worker = self._worker_of(order.source_id)
        worker.recordings.add(order.id)
        try:
            await worker.ask(lambda number: Record(number, order), Done)
        except BaseException:
            worker.recordings.discard(order.id)
            raise

    async def stop_recording(self, recording_id: str) -> None:
        for worker in self._workers:
            if recording_id in worker.recordings and worker.up:
                await worker.ask(lambda number: StopRecording(number, recording_id), Done)

    def preroll_octets(self) -> int:
        return sum(worker.preroll_octets for worker in self._workers)

    # -- cameras ------------------------------------------------------------------------------------------------------

    def state(self, camera_id: str) -> CameraState:
        state = self._state(camera_id)
        if state is None:
            raise NotFound(f"no camera {camera_id}")
        return state

    def states(self) -> list[CameraState]:
        return [self.state(camera_id) for camera_id in self._places]

    def picture(self, camera_id: str) -> PictureState | None:
        number = self._places.get(camera_id)
        return None if number is None else self._workers[number].pictures.get(camera_id)

    def picture_counters(self) -> HealthCounters:
        totals = self._total().pictures
        whole = {name: int(totals.get(name, 0)) for name in _WHOLE_COUNTS}
        return HealthCounters(cpu_s=totals.get("cpu_s", 0.0), **whole)

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
            worker.pictures = {
                camera_id: picture
                for camera_id, picture in worker.pictures.items()
                if camera_id in worker.states
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

    def _worker_of(self, source_id: str) -> WorkerProcess:
        kind, _, name = source_id.partition("/")
        if kind == "call":
            return self._workers[worker_of_call(source_id, len(self._workers))]
        number = self._places.get(name) if kind == "camera" else None
        if number is None:
            raise NotFound(f"no source {source_id}")
        return self._workers[number]

    def _holder(self, session_id: str) -> WorkerProcess:
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
