"""The supervisor of all cameras: who is pulled, when it is dialled again, and what state and reason each one shows.

One task per stream that is wanted (always-on, or watched, or watched until a moment ago). A task dials, pulls until that
fails, and waits with full jitter (random between 0 and a ceiling that doubles); a wrong password, an unknown path and an
unsupported codec wait long, so that no account gets locked. DialGate lets only so many dial at once, in total and per host,
and lets those go first that were not found silent lately; who gets no answer for a second gives up his place if others
wait: dead cameras can't hold up the living. Nothing that goes wrong
with one camera is seen by another, and only changes of state are logged.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

from gateway.errors import NotFound, Unavailable
from gateway.streams.dialling import DialGate, DialLimits
from gateway.streams.h264 import Timeline
from gateway.streams.ingest import Pull, PullFailed, PullSpec
from gateway.streams.media import AccessUnit, AudioFrame, MediaSink, StreamName, Undecodable
from gateway.streams.rtsp import Remedy
from gateway.streams.sps import Sps
from gateway.streams.sweep import Sweep

__all__ = [
    "CameraSource",
    "CameraState",
    "CameraSupervisor",
    "DialGate",
    "DialLimits",
    "State",
    "StreamState",
]

log = logging.getLogger(__name__)


class CameraSource(Protocol):
    """What the supervisor needs to know of a camera (gateway.config.CameraConfig has it). URLs are without credentials."""

    @property
    def id(self) -> str: ...
    @property
    def main(self) -> str: ...
    @property
    def sub(self) -> str | None: ...
    @property
    def credentials(self) -> str | None: ...
    @property
    def pull(self) -> str: ...
    @property
    def pull_main(self) -> str: ...
    @property
    def transport(self) -> str: ...


class State(StrEnum):
    IDLE = "idle"
    CONNECTING = "connecting"
    LIVE = "live"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """reason: empty unless down. since_ms: UTC. profile: for example `High@4.0`. kbps, fps: measured."""

    state: State
    reason: str
    since_ms: int
    codec: str | None = None
    profile: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    kbps: float | None = None
    viewers: int = 0
    ignored_audio: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraState:
    """The best state of the camera's streams; down if any is down and none live or connecting."""

    camera_id: str
    state: State
    reason: str
    since_ms: int
    last_frame_at_ms: int | None
    streams: dict[StreamName, StreamState]


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals for the metrics, over all streams since start. failures: by reason."""

    dials: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    access_units: int = 0
    keyframes: int = 0
    received_bytes: int = 0
    packets: int = 0
    lost_packets: int = 0
    damaged_units: int = 0
    timestamp_jumps: int = 0
    sink_errors: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class _Stream:
    """One picture of one camera. Its task exists while it is wanted; its sink, timeline and viewers outlive that."""

    def __init__(
        self, owner: CameraSupervisor, camera: CameraSource, name: StreamName, sink: MediaSink
    ) -> None:
        self.owner = owner
        self.camera = camera
        self.name = name
        self.sink = sink
        self.viewers = 0
        self.state = State.IDLE
        self.reason = ""
        self.since_ms = owner.clock_ms()
        self.logged = (State.IDLE, "")
        self._last_frame_at: float | None = None
        self.pull: Pull | None = None
        self.task: asyncio.Task[None] | None = None
        self.grace: asyncio.TimerHandle | None = None
        self.failures = 0
        self.silent = False  # the last dial got no answer at all
        self.undecodable = False  # the last pull ended for what the camera sends
        self.proven: Sps | None = None  # with these parameters it sent no B-frames
        self.next_dial_at = 0.0
        self.wake = asyncio.Event()
        self.changed = asyncio.Event()
        self.timeline = Timeline()
        self.audio_timeline = Timeline(8000)

    @property
    def url(self) -> str:
        return self.camera.main if self.name is StreamName.MAIN else (self.camera.sub or self.camera.main)

    @property
    def always(self) -> bool:
        if self.name is StreamName.SUB or self.camera.sub is None:
            if self.camera.pull == "always":
                return True
            if self.name is StreamName.SUB:
                return False
        return self.camera.pull_main == "always"

    @property
    def last_frame_at(self) -> float | None:
        """time.monotonic() of the last picture, built or not."""
        depacketizer = self.pull.depacketizer if self.pull is not None else None
        if depacketizer is not None and depacketizer.last_unit_at is not None:
            self._last_frame_at = depacketizer.last_unit_at
        return self._last_frame_at

    @property
    def live(self) -> bool:
        return self.state is State.LIVE

    @property
    def host(self) -> str:
        try:
            return urlsplit(self.url).netloc.rpartition("@")[2]
        except ValueError:
            return self.url

    # -- media -----------------------------------------------------------------------------------------------------

    def on_unit(self, unit: AccessUnit) -> None:
        self._last_frame_at = unit.received_at
        if self.state is not State.LIVE and not self._may_prove_undecodable():
            self.failures = 0
            self.silent = self.undecodable = False
            self.set(State.LIVE)
        try:
            self.sink.on_access_unit(unit)
        except Exception:
            # A sink that breaks its promise must not take the pull (or its neighbours) down.
            self.owner.sink_failed(self)

    def _may_prove_undecodable(self) -> bool:
        """A viewer waits, and the SPS leaves room for B-frames: they show by the third picture, and he takes the sub-stream."""
        depacketizer = self.pull.depacketizer if self.pull is not None else None
        if depacketizer is None or depacketizer.sps is None or not self.viewers:
            return False
        sps = depacketizer.sps
        return sps.may_reorder and sps != self.proven and depacketizer.units < 3

    def remember_order(self, pull: Pull) -> None:
        """After a pull: the next first viewer of a camera without B-frames need not wait for the third picture."""
        depacketizer = pull.depacketizer
        if depacketizer is not None and depacketizer.sps is not None and depacketizer.units >= 3:
            self.proven = None if depacketizer.reordering else depacketizer.sps

    def on_audio(self, frame: AudioFrame) -> None:
        try:
            self.sink.on_audio(frame)
        except Exception:
            self.owner.sink_failed(self)

    def listening(self) -> bool:
        return self.sink.listening

    def on_skip(self) -> None:
        try:
            self.sink.on_skip()
        except Exception:
            self.owner.sink_failed(self)

    def reset(self) -> None:
        try:
            self.sink.on_reset()
        except Exception:
            self.owner.sink_failed(self)

    # -- state -----------------------------------------------------------------------------------------------------

    def set(self, state: State, reason: str = "") -> None:
        if (state, reason) == (self.state, self.reason):
            return
        self.state, self.reason = state, reason
        self.since_ms = self.owner.clock_ms()
        self.changed.set()
        self.changed = asyncio.Event()
        self.owner.stream_changed(self)

    def snapshot(self) -> StreamState:
        pull = self.pull
        depacketizer = pull.depacketizer if pull is not None else None
        sps = depacketizer.sps if depacketizer is not None else None
        live = pull is not None and self.state is State.LIVE
        return StreamState(
            state=self.state,
            reason=self.reason,
            since_ms=self.since_ms,
            codec="H264" if sps is not None else None,
            profile=sps.profile if sps is not None else None,
            width=sps.width if sps is not None else None,
            height=sps.height if sps is not None else None,
            fps=round(pull.fps or (sps.fps or 0.0 if sps is not None else 0.0), 1) if live and pull else None,
            kbps=round(pull.kbps, 1) if live and pull else None,
            viewers=self.viewers,
            ignored_audio=pull.ignored_audio if pull is not None else (),
        )


class CameraSupervisor:
    """Pulls cameras for whoever wants them.

    credentials: name -> (user name, password). sink_of: where the media of a stream goes, asked once per stream.
    on_state: called on every change of a camera's state or reason. tls: for rtsps, default verifies certificates.
    compiled: use the compiled loops, if they were built.
    """

    def __init__(
        self,
        cameras: Sequence[CameraSource],
        credentials: Mapping[str, tuple[str, str]],
        sink_of: Callable[[str, StreamName], MediaSink],
        *,
        limits: DialLimits | None = None,
        on_state: Callable[[CameraState], None] = lambda state: None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        tls: ssl.SSLContext | None = None,
        compiled: bool = True,
    ) -> None:
        self.limits = limits or DialLimits()
        self.clock_ms = clock_ms
        self.gate = DialGate(self.limits.dials, self.limits.dials_per_host)
        self._credentials = dict(credentials)
        self._sink_of = sink_of
        self._on_state = on_state
        self._tls = tls
        self._sweep = Sweep()
        self._compiled = compiled
        self._audio_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audio")
        self._streams: dict[str, dict[StreamName, _Stream]] = {}
        self._connections: Counter[str] = Counter()
        self._group: asyncio.TaskGroup | None = None
        self._past = Counters()
        self._leaving: set[asyncio.Future[None]] = set()
        for camera in cameras:
            self._streams[camera.id] = self._streams_of(camera)

    # -- what others call ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Supervise until cancelled; then every camera has taken its TEARDOWN, or had its time to."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    for stream in self._all():
                        if stream.always or stream.viewers:
                            self._start(stream)
                    await asyncio.Event().wait()
                finally:
                    self._group = None
                    for stream in self._all():
                        self._cancel(stream)
                    self._audio_thread.shutdown(wait=False, cancel_futures=True)
        finally:
            if self._leaving:
                await asyncio.wait(self._leaving)

    async def acquire(self, camera_id: str, name: StreamName) -> None:
        """Count a viewer in and return once there is a keyframe to start from.

        Raises NotFound for a camera or stream that there is none of, Unavailable with the camera's reason if no picture can
        be had now, Undecodable (one of these) if the camera's other stream may help. Every acquire that returned needs one release.
        """
        stream = self._find(camera_id, name)
        stream.viewers += 1
        try:
            await self._first_keyframe(stream)
        except BaseException:
            self._leave(stream)
            raise

    def release(self, camera_id: str, name: StreamName) -> None:
        """Count a viewer out; an on-demand stream closes after the grace time."""
        stream = self._streams.get(camera_id, {}).get(name)
        if stream is not None:  # removed by a reload meanwhile
            self._leave(stream)

    def state(self, camera_id: str) -> CameraState:
        streams = self._streams.get(camera_id)
        if streams is None:
            raise NotFound(f"no camera {camera_id}")
        return self._camera_state(camera_id, streams)

    def states(self) -> list[CameraState]:
        return [self._camera_state(camera_id, streams) for camera_id, streams in self._streams.items()]

    async def apply(
        self, cameras: Sequence[CameraSource], credentials: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        """Take a new list. Only streams whose source changed are cut; viewers of a changed stream stay counted."""
        before = self._credentials
        if credentials is not None:
            self._credentials = dict(credentials)
        wanted = {camera.id: camera for camera in cameras}
        stopped: list[asyncio.Task[None]] = []
        for camera_id in [camera_id for camera_id in self._streams if camera_id not in wanted]:
            for stream in self._streams.pop(camera_id).values():
                stopped += self._cancel(stream)
        for camera in cameras:
            streams = self._streams.get(camera.id)
            if streams is None:
                streams = self._streams[camera.id] = self._streams_of(camera)
            elif camera.sub is None and (gone := streams.pop(StreamName.SUB, None)) is not None:
                stopped += self._cancel(gone)
            elif camera.sub is not None and StreamName.SUB not in streams:
                streams[StreamName.SUB] = self._new(camera, StreamName.SUB)
            for stream in streams.values():
                old = self._identity(stream, before)
                stream.camera = camera
                if self._identity(stream, self._credentials) != old:
                    stopped += self._cancel(stream)
                    stream.undecodable = False
        if stopped:
            await asyncio.wait(stopped)
        if self._group is not None:
            for stream in self._all():
                if stream.always or stream.viewers:
                    self._start(stream)
                elif stream.task is not None and stream.grace is None:
                    self._begin_grace(stream)

    def counters(self) -> Counters:
        """Totals of what is over and what is under way."""
        past = self._past
        total = Counters(
            dials=past.dials,
            failures=Counter(past.failures),
            access_units=past.access_units,
            keyframes=past.keyframes,
            received_bytes=past.received_bytes,
            packets=past.packets,
            lost_packets=past.lost_packets,
            damaged_units=past.damaged_units,
            timestamp_jumps=sum(stream.timeline.jumps for stream in self._all()) + past.timestamp_jumps,
            sink_errors=past.sink_errors,
            faults=Counter(past.faults),
        )
        for stream in self._all():
            if stream.pull is not None:
                _add(total, stream.pull)
        return total

    # -- viewers ---------------------------------------------------------------------------------------------------

    async def _first_keyframe(self, stream: _Stream) -> None:
        if self._group is None:
            raise Unavailable("cameras are not being pulled", retry_after_s=1.0)
        if stream.grace is not None:
            stream.grace.cancel()
            stream.grace = None
        if stream.undecodable and stream.next_dial_at > time.monotonic():
            raise self._unavailable(stream)
        self._start(stream)
        if stream.pull is not None:
            stream.pull.watch(True)
        if stream.live:
            return
        if stream.state is State.DOWN and stream.failures > 1:
            raise self._unavailable(stream)
        # A first failure may be a camera that just rebooted: the viewer gets a second dial before an error.
        stream.wake.set()
        failed = 0
        try:
            async with asyncio.timeout(self.limits.first_keyframe_timeout_s):
                while not stream.live:
                    changed = stream.changed
                    await changed.wait()
                    if stream.state is State.DOWN:
                        failed += 1
                        if failed > 1 or stream.next_dial_at - time.monotonic() > self.limits.backoff_most_s:
                            raise self._unavailable(stream)
        except TimeoutError:
            raise Unavailable(stream.reason or "no keyframe in time", retry_after_s=2.0) from None

    def _unavailable(self, stream: _Stream) -> Unavailable:
        wait_s = max(1.0, stream.next_dial_at - time.monotonic())
        kind = Undecodable if stream.undecodable else Unavailable
        return kind(stream.reason, retry_after_s=round(wait_s, 1))

    def _leave(self, stream: _Stream) -> None:
        stream.viewers = max(0, stream.viewers - 1)
        if stream.viewers:
            return
        if stream.pull is not None:
            stream.pull.watch(False)
        if stream.task is not None and not stream.always and stream.grace is None:
            self._begin_grace(stream)

    def _begin_grace(self, stream: _Stream) -> None:
        stream.grace = asyncio.get_running_loop().call_later(self.limits.grace_s, self._grace_over, stream)

    def _grace_over(self, stream: _Stream) -> None:
        stream.grace = None
        if not stream.viewers and not stream.always:
            self._cancel(stream)
            if not stream.undecodable:  # why there is never a picture stays to be seen
                stream.set(State.IDLE)

    # -- tasks -----------------------------------------------------------------------------------------------------

    def _start(self, stream: _Stream) -> None:
        if stream.task is None and self._group is not None:
            stream.task = self._group.create_task(
                self._keep(stream), name=f"pull {stream.camera.id}/{stream.name}"
            )

    def _cancel(self, stream: _Stream) -> list[asyncio.Task[None]]:
        if stream.grace is not None:
            stream.grace.cancel()
            stream.grace = None
        task, stream.task = stream.task, None
        stream.failures = 0
        if task is None:
            return []
        task.cancel()
        return [task]

    async def _keep(self, stream: _Stream) -> None:
        """Pull, fail, wait, again: the only place where one camera's exceptions end."""
        limits = self.limits
        while True:
            try:
                await self._pull_once(stream)
                failure = PullFailed("ended")
            except PullFailed as error:
                failure = error
            except Exception:
                log.exception(
                    "pull failed unexpectedly", extra={"camera_id": stream.camera.id, "stream": stream.name}
                )
                failure = PullFailed("internal error", Remedy.LONG_PAUSE)
            stream.failures += 1
            stream.silent = failure.reason.startswith("no answer") or failure.reason == "host unreachable"
            stream.undecodable = failure.remedy is Remedy.OTHER_STREAM
            self._past.failures[failure.reason] += 1
            if failure.remedy in (Remedy.LONG_PAUSE, Remedy.OTHER_STREAM):
                pause_s = limits.long_pause_s * random.uniform(0.75, 1.25)
            else:
                ceiling_s = min(
                    limits.backoff_most_s, limits.backoff_first_s * 2.0 ** min(stream.failures - 1, 16)
                )
                pause_s = random.uniform(0, ceiling_s)
            stream.next_dial_at = time.monotonic() + pause_s
            stream.wake.clear()
            stream.set(State.DOWN, failure.reason)
            try:
                async with asyncio.timeout(pause_s):
                    await stream.wake.wait()
            except TimeoutError:
                pass

    async def _pull_once(self, stream: _Stream) -> None:
        host = stream.host
        limits = self.limits
        if limits.connections_per_host is not None and self._connections[host] >= limits.connections_per_host:
            raise PullFailed("connection limit of the recorder reached")
        self._connections[host] += 1
        try:
            # The reason of a camera that stays down stays visible while it is dialled again.
            if stream.state is not State.DOWN or stream.failures <= 1:
                stream.set(State.CONNECTING)
            async with self._dial(stream, host) as dialled:
                pull = self._new_pull(stream, dialled)
                pull.watch(stream.viewers > 0)
                stream.pull = pull
                try:
                    await pull.run()
                finally:
                    stream.pull = None
                    stream.reset()
                    if pull.leaving is not None:
                        self._leaving.add(pull.leaving)
                        pull.leaving.add_done_callback(self._leaving.discard)
        finally:
            self._connections[host] -= 1
            if not self._connections[host]:
                del self._connections[host]

    @asynccontextmanager
    async def _dial(self, stream: _Stream, host: str) -> AsyncIterator[Callable[[], None]]:
        """Hold a place in the dial gate until the yielded callable is called, or the pull ends."""
        await self.gate.enter(host, suspect=stream.silent)
        self._past.dials += 1
        loop = asyncio.get_running_loop()
        patience: asyncio.TimerHandle | None

        def waited() -> None:
            nonlocal patience
            if stream.pull is not None and self.gate.wanted_by_others(host):
                stream.pull.give_up_if_silent()
            patience = loop.call_later(self.limits.patience_s / 4, waited)

        def dialled() -> None:
            nonlocal patience
            if patience is not None:
                patience.cancel()
                patience = None
                self.gate.leave(host)

        # Twice as long after each failure: if it is us or the network that is slow, all get through in the end.
        patience = loop.call_later(self.limits.patience_s * 2.0 ** min(stream.failures, 4), waited)
        try:
            yield dialled
        finally:
            dialled()

    def _new_pull(self, stream: _Stream, dialled: Callable[[], None]) -> Pull:
        username, password = self._credentials.get(stream.camera.credentials or "", (None, ""))
        limits = self.limits
        spec = PullSpec(
            url=stream.url,
            name=stream.name,
            transport=stream.camera.transport,
            username=username,
            password=password,
            connect_timeout_s=limits.suspect_connect_timeout_s if stream.silent else limits.connect_timeout_s,
            data_timeout_s=limits.data_timeout_s,
            tls=self._tls,
        )
        return Pull(
            spec,
            on_unit=stream.on_unit,
            on_audio=stream.on_audio,
            on_skip=stream.on_skip,
            on_playing=dialled,
            on_closing=partial(self._closing, stream),
            timeline=stream.timeline,
            audio_timeline=stream.audio_timeline,
            sweep=self._sweep,
            listening=stream.listening,
            audio_thread=self._audio_thread,
            compiled=self._compiled,
        )

    def _closing(self, stream: _Stream, pull: Pull) -> None:
        _add(self._past, pull)
        stream.remember_order(pull)

    # -- states ----------------------------------------------------------------------------------------------------

    def stream_changed(self, stream: _Stream) -> None:
        camera_id = stream.camera.id
        streams = self._streams.get(camera_id)
        if streams is None or streams.get(stream.name) is not stream:
            return
        # Dialling again is no news: only a settled state (or another reason) is worth a line.
        settled = (stream.state, stream.reason)
        news = stream.state is not State.CONNECTING and settled != stream.logged
        if news:
            stream.logged = settled
        log.log(
            logging.INFO if news else logging.DEBUG,
            "camera %s %s: %s%s",
            camera_id,
            stream.name,
            stream.state,
            f" ({stream.reason})" if stream.reason else "",
            extra={
                "camera_id": camera_id,
                "stream": stream.name,
                "state": stream.state,
                "reason": stream.reason,
            },
        )
        state = self._camera_state(camera_id, streams)
        self._on_state(state)

    def sink_failed(self, stream: _Stream) -> None:
        self._past.sink_errors += 1
        if self._past.sink_errors & (self._past.sink_errors - 1) == 0:  # the 1st, 2nd, 4th, 8th ... time
            log.exception("sink of %s/%s raised", stream.camera.id, stream.name)

    def _camera_state(self, camera_id: str, streams: dict[StreamName, _Stream]) -> CameraState:
        rank = {State.LIVE: 0, State.CONNECTING: 1, State.DOWN: 2, State.IDLE: 3}
        best = min(streams.values(), key=lambda stream: rank[stream.state])
        frames = [at for stream in streams.values() if (at := stream.last_frame_at) is not None]
        last_ms = None
        if frames:
            last_ms = self.clock_ms() - int((time.monotonic() - max(frames)) * 1000)
        return CameraState(
            camera_id=camera_id,
            state=best.state,
            reason=best.reason,
            since_ms=best.since_ms,
            last_frame_at_ms=last_ms,
            streams={name: stream.snapshot() for name, stream in streams.items()},
        )

    # -- small parts -----------------------------------------------------------------------------------------------

    def _all(self) -> list[_Stream]:
        return [stream for streams in self._streams.values() for stream in streams.values()]

    def _find(self, camera_id: str, name: StreamName) -> _Stream:
        stream = self._streams.get(camera_id, {}).get(name)
        if stream is None:
            raise NotFound(f"no camera {camera_id} with a {name} stream")
        return stream

    def _new(self, camera: CameraSource, name: StreamName) -> _Stream:
        return _Stream(self, camera, name, self._sink_of(camera.id, name))

    def _streams_of(self, camera: CameraSource) -> dict[StreamName, _Stream]:
        names = [StreamName.MAIN, StreamName.SUB] if camera.sub is not None else [StreamName.MAIN]
        return {name: self._new(camera, name) for name in names}

    def _identity(self, stream: _Stream, credentials: Mapping[str, tuple[str, str]]) -> tuple[object, ...]:
        """What a pull depends on: if this stays the same over a reload, the pull goes on."""
        camera = stream.camera
        return stream.url, camera.transport, credentials.get(camera.credentials or "")


def _add(total: Counters, pull: Pull) -> None:
    depacketizer = pull.depacketizer
    total.received_bytes += pull.received_bytes
    if depacketizer is None:
        return
    total.access_units += depacketizer.units
    total.keyframes += depacketizer.keyframes
    total.packets += depacketizer.packets
    total.lost_packets += depacketizer.lost_packets
    total.damaged_units += depacketizer.damaged_units
    total.faults.update(depacketizer.faults)
