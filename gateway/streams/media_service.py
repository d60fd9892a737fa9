"""What the front door needs of the media plane, wherever it runs: `MediaService`, and the plane in this process.

`LocalMedia` is port, plane and supervisor of one process. `shards.Shards` has the same face and keeps a LocalMedia in
each of its worker processes. Questions that pages and metrics ask often (`state`, `session`, `watchers`) are answered at
once; what changes something is awaited.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gateway.errors import Unavailable
from gateway.evidence.order import News, RecordingOrder, RecordingSpec
from gateway.streams import sdp
from gateway.streams.cameras import CameraSource, CameraState, CameraSupervisor, Counters, DialLimits
from gateway.streams.hls import Container, HlsLimits
from gateway.streams.hls_source import HlsFile, HlsSources, tap_track
from gateway.streams.ice import CONSENT_S
from gateway.streams.link import Certificate, MediaPort
from gateway.streams.media import StreamName
from gateway.streams.plane import MediaPlane, PlaneLimits, StreamChoice
from gateway.streams.session import SessionAnswer, SessionInfo
from gateway.streams.tapes import Tapes
from gateway.streams.verdict import HealthCounters, PictureState

if TYPE_CHECKING:
    from gateway.streams.picture_health import PictureHealth

__all__ = [
    "Credentials",
    "LocalMedia",
    "MediaCallbacks",
    "MediaService",
    "MediaSpec",
    "PictureSpec",
    "PlaneCounts",
    "WorkerView",
]

Credentials = Mapping[str, tuple[str, str]]
"""Name -> (user name, password)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSpec:
    """How pictures are judged. interval_s: between two looks at a camera; cpu_share: of one core at most."""

    interval_s: float = 60.0
    cpu_share: float = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSpec:
    """What one media process is told at its start.

    binds: (host, port), port 0 takes a free one. announce: hosts of further candidates (1:1 NAT). tcp: ICE-TCP on the
    same port number. consent_s: silence of a viewer that ends its session (RFC 7675). use_compiled: the compiled send
    loop, where it was built. pictures: None, and nobody looks at what cameras show. camera_ca: PEM file that certificates of
    rtsps cameras are checked against; none: those that the system trusts. recording: None, and nothing is recorded.
    """

    binds: tuple[tuple[str, int], ...]
    announce: tuple[str, ...] = ()
    tcp: bool = True
    use_compiled: bool = True
    consent_s: float = CONSENT_S
    plane: PlaneLimits = field(default_factory=PlaneLimits)
    dial: DialLimits = field(default_factory=DialLimits)
    pictures: PictureSpec | None = None
    hls: HlsLimits = field(default_factory=HlsLimits)
    camera_ca: str = ""
    recording: RecordingSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaCallbacks:
    """Called from the event loop; must not block. state: a camera's state or reason changed. source_change(source_id,
    tracks): what a call leg publishes by now. session_closed(session_id, reason): the last word of a session.
    picture(camera_id): the verdict on what it shows changed (`picture` has it). recording(news): of what `record` began."""

    state: Callable[[CameraState], None]
    source_change: Callable[[str, tuple[str, ...]], None]
    session_closed: Callable[[str, str], None]
    picture: Callable[[str], None] = lambda camera_id: None
    recording: Callable[[News], None] = lambda news: None


@dataclass(slots=True, kw_only=True)
class PlaneCounts:
    """Totals since start, never running backwards. answered: offers by kind; closed: sessions by reason; port: what
    happened at the sockets."""

    answered: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    port: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker process. pid, port: None while it is down. restarts: since start. lag_ms: of its event loop."""

    number: int
    pid: int | None
    port: int | None
    restarts: int
    lag_ms: float
    cameras: int
    sessions: int


class MediaService(Protocol):
    """The media plane as the rest of the gateway sees it. Errors are those of `MediaPlane` and `CameraSupervisor`."""

    async def open(self) -> None:
        """Bind the sockets. Raises ConfigError naming what can't be bound."""

    async def run(self) -> None:
        """Pull cameras and serve sessions until cancelled; then every session is ended and every camera left."""

    async def close(self) -> None:
        """Give back what `open` took."""

    async def watch(
        self, source_id: str, offer_sdp: str, *, stream: str = StreamChoice.MAIN, owner: str
    ) -> SessionAnswer: ...

    async def publish(self, source_id: str, offer_sdp: str, *, owner: str) -> SessionAnswer: ...

    async def restart_session(self, session_id: str, fragment: sdp.Fragment) -> SessionAnswer: ...

    async def close_session(self, session_id: str, *, reason: str = "closed") -> None: ...

    async def close_owned_by(self, owner: str, *, reason: str = "revoked") -> int: ...

    def session(self, session_id: str) -> SessionInfo: ...

    def sessions(self, *, closed: bool = False) -> list[SessionInfo]: ...

    def __len__(self) -> int:
        """Sessions at this moment."""

    def watchers(self, camera_id: str, name: StreamName) -> int: ...

    def source_tracks(self, source_id: str) -> tuple[str, ...]: ...

    async def fetch_keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        """NAL units of the newest cached keyframe; the same object as long as it is the same keyframe."""

    async def fetch_hls(
        self,
        camera_id: str,
        name: StreamName,
        file: str,
        container: Container,
        query: Sequence[tuple[str, str]],
    ) -> HlsFile:
        """One file of a camera's stream by HLS, which begins with the first playlist and ends when nobody asks any more.
        Raises NotFound, TooMany, Unavailable."""

    async def warm(self, camera_id: str) -> None:
        """Pull what a tile would show of the camera; it stays for the grace time after a last viewer. Returns with its first
        picture."""

    def keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        """What `fetch_keyframe` gave last (or newer)."""

    def state(self, camera_id: str) -> CameraState: ...

    def states(self) -> list[CameraState]: ...

    def picture(self, camera_id: str) -> PictureState | None:
        """The verdict on what the camera shows; None while no picture of it was judged."""

    def picture_counters(self) -> HealthCounters: ...

    async def apply(self, cameras: Sequence[CameraSource], credentials: Credentials | None = None) -> None:
        """Take a new list of cameras; viewers of removed ones are told. The list is the new truth at once, before the
        first await; what that means for pulls and viewers has happened when it returns."""

    async def record(self, order: RecordingOrder) -> None:
        """Begin to record a source; what becomes of it is told by news. The same id again is the same recording. Raises
        NotFound, Unavailable."""

    async def stop_recording(self, recording_id: str) -> None:
        """End it before its time; its last news follow. Unknown ids are no mistake."""

    def preroll_octets(self) -> int:
        """Memory that the pre-roll takes."""

    def counters(self) -> Counters: ...

    def counts(self) -> PlaneCounts: ...

    def workers(self) -> list[WorkerView]:
        """Empty when everything runs in this process."""


class LocalMedia:
    """Port, plane and supervisor in this process. Built once, opened once, run once."""

    def __init__(
        self,
        spec: MediaSpec,
        callbacks: MediaCallbacks,
        cameras: Sequence[CameraSource] = (),
        credentials: Credentials | None = None,
    ) -> None:
        self._spec = spec
        self._callbacks = callbacks
        self._cameras = tuple(cameras)
        self._credentials = dict(credentials or {})
        self._port: MediaPort | None = None
        self._parts: tuple[MediaPlane, CameraSupervisor] | None = None
        self._health: PictureHealth | None = None
        self._tapes: Tapes | None = None
        self._hls: HlsSources | None = None

    async def open(self) -> None:
        spec = self._spec
        self._port = port = await MediaPort.open(
            spec.binds,
            certificate=Certificate(),
            announce=[(host, 0) for host in spec.announce],
            tcp=spec.tcp,
            use_compiled=spec.use_compiled,
            consent_s=spec.consent_s,
        )
        plane = MediaPlane(
            port,
            acquire=lambda camera_id, name: supervisor.acquire(camera_id, name),
            release=lambda camera_id, name: supervisor.release(camera_id, name),
            on_source_change=self._callbacks.source_change,
            on_session_closed=self._callbacks.session_closed,
            limits=spec.plane,
        )
        supervisor = CameraSupervisor(
            self._cameras,
            self._credentials,
            plane.sink_of,
            limits=spec.dial,
            on_state=self._callbacks.state,
            compiled=spec.use_compiled,
            tls=ssl.create_default_context(cafile=spec.camera_ca) if spec.camera_ca else None,
        )
        self._parts = plane, supervisor
        self._hls = HlsSources(
            acquire=supervisor.acquire,
            release=supervisor.release,
            tap=lambda camera_id, name, source, on: tap_track(
                plane.sink_of(camera_id, name).video, source, on
            ),
            limits=spec.hls,
        )
        if spec.pictures is not None:
            # OpenCV and PyAV are 35 MB and a frame gap to load: now, and only where pictures are judged.
            from gateway.streams.picture_health import PictureHealth

            self._health = PictureHealth(
                self.camera_ids,
                plane.keyframe_to_judge,
                interval_s=spec.pictures.interval_s,
                cpu_share=spec.pictures.cpu_share,
                on_change=lambda camera_id, state: self._callbacks.picture(camera_id),
            )
        if spec.recording is not None:
            self._tapes = Tapes(
                spec.recording,
                acquire=supervisor.acquire,
                release=supervisor.release,
                camera_stream=plane.sink_of,
                hold_source=plane.hold_source,
                leave_source=plane.leave_source,
                tell=self._callbacks.recording,
            )
            self._tapes.apply(self._cameras)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.plane.run(), name="media-plane")
            tasks.create_task(self.supervisor.run(), name="cameras")
            if self._hls is not None:
                tasks.create_task(self._hls.run(), name="hls")
            if self._health is not None:
                tasks.create_task(self._health.run(), name="picture-health")
            if self._tapes is not None:
                tasks.create_task(self._tapes.run(), name="tapes")

    async def close(self) -> None:
        if self._port is not None:
            await self._port.close()

    @property
    def plane(self) -> MediaPlane:
        return self._opened()[0]

    @property
    def supervisor(self) -> CameraSupervisor:
        return self._opened()[1]

    def _opened(self) -> tuple[MediaPlane, CameraSupervisor]:
        if self._parts is None:
            raise RuntimeError("LocalMedia.open() comes first")
        return self._parts

    @property
    def port_number(self) -> int:
        """Of the media port, UDP and TCP."""
        candidates = () if self._port is None else self._port.candidates()
        return candidates[0].port if candidates else 0

    async def watch(
        self, source_id: str, offer_sdp: str, *, stream: str = StreamChoice.MAIN, owner: str
    ) -> SessionAnswer:
        return await self.plane.watch(source_id, offer_sdp, stream=stream, owner=owner)

    async def publish(self, source_id: str, offer_sdp: str, *, owner: str) -> SessionAnswer:
        return await self.plane.publish(source_id, offer_sdp, owner=owner)

    async def restart_session(self, session_id: str, fragment: sdp.Fragment) -> SessionAnswer:
        return await self.plane.restart_session(session_id, fragment)

    async def close_session(self, session_id: str, *, reason: str = "closed") -> None:
        await self.plane.close_session(session_id, reason=reason)

    async def close_owned_by(self, owner: str, *, reason: str = "revoked") -> int:
        return self.plane.close_owned_by(owner, reason=reason)

    def session(self, session_id: str) -> SessionInfo:
        return self.plane.session(session_id)

    def sessions(self, *, closed: bool = False) -> list[SessionInfo]:
        return self.plane.sessions(closed=closed)

    def session_ids(self) -> list[str]:
        return self.plane.session_ids()

    def camera_ids(self) -> list[str]:
        return [camera.id for camera in self._cameras]

    def __len__(self) -> int:
        return 0 if self._parts is None else len(self.plane)

    def watchers(self, camera_id: str, name: StreamName) -> int:
        return self.plane.watchers(camera_id, name)

    def source_tracks(self, source_id: str) -> tuple[str, ...]:
        return self.plane.source_tracks(source_id)

    async def fetch_keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        return self.plane.keyframe(camera_id)

    async def fetch_hls(
        self,
        camera_id: str,
        name: StreamName,
        file: str,
        container: Container,
        query: Sequence[tuple[str, str]],
    ) -> HlsFile:
        if self._hls is None:
            raise RuntimeError("LocalMedia.open() comes first")
        return await self._hls.fetch(camera_id, name, file, container, query)

    async def warm(self, camera_id: str) -> None:
        has_sub = any(camera.id == camera_id and camera.sub for camera in self._cameras)
        name = StreamName.SUB if has_sub else StreamName.MAIN
        await self.supervisor.acquire(camera_id, name)
        self.supervisor.release(camera_id, name)

    def keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        return self.plane.keyframe(camera_id)

    def state(self, camera_id: str) -> CameraState:
        return self.supervisor.state(camera_id)

    def states(self) -> list[CameraState]:
        return self.supervisor.states()

    def picture(self, camera_id: str) -> PictureState | None:
        return None if self._health is None else self._health.state(camera_id)

    def picture_counters(self) -> HealthCounters:
        return HealthCounters() if self._health is None else self._health.counters()

    async def apply(self, cameras: Sequence[CameraSource], credentials: Credentials | None = None) -> None:
        kept = {camera.id: (camera.main, camera.sub) for camera in cameras}
        removed = [camera.id for camera in self._cameras if camera.id not in kept]
        if self._health is not None:
            for camera in self._cameras:
                if kept.get(camera.id) != (camera.main, camera.sub):
                    self._health.relearn(camera.id)
        self._cameras = tuple(cameras)
        await self.supervisor.apply(cameras, credentials)
        for camera_id in removed:
            self.plane.forget_camera(camera_id)
            if self._hls is not None:
                self._hls.forget_camera(camera_id)
        if self._tapes is not None:
            self._tapes.apply(self._cameras)

    async def record(self, order: RecordingOrder) -> None:
        if self._tapes is None:
            raise Unavailable("this gateway records nothing")
        self._tapes.record(order)

    async def stop_recording(self, recording_id: str) -> None:
        if self._tapes is not None:
            self._tapes.stop(recording_id)

    def preroll_octets(self) -> int:
        return 0 if self._tapes is None else self._tapes.preroll_octets

    def counters(self) -> Counters:
        return self.supervisor.counters()

    def counts(self) -> PlaneCounts:
        return PlaneCounts(
            answered=Counter({str(kind): count for kind, count in self.plane.answered.items()}),
            closed=Counter(self.plane.closed_reasons),
            port=Counter({} if self._port is None else self._port.counters),
        )

    def workers(self) -> list[WorkerView]:
        return []
