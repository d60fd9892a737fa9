"""Who is watching by HLS now: camera streams tapped while somebody asks for their files, left when nobody has for a while.

Lives beside the plane, in the process that has the camera. A stream is one more viewer of its camera (`acquire`), and
takes the access units that ingest hands to the fan-out (`tap`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from gateway.errors import NotFound, ProtocolError, TooMany, Unavailable
from gateway.streams.hls import Container, HlsLimits, Part, Segmenter, part_of, remux, split_fmp4
from gateway.streams.media import AccessUnit, Codec, StreamName, Undecodable
from gateway.streams.packets import PacketGroup
from gateway.streams.stream import Tap, Track

__all__ = ["HlsFile", "HlsSources", "tap_track"]

LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HlsFile:
    """A playlist, an initialisation or a segment."""

    body: bytes
    media_type: str


def tap_track(track: Track, tap: Tap, on: bool) -> None:
    """Begins or ends handing a track's pictures to `tap`."""
    track.taps = (*(one for one in track.taps if one is not tap), *((tap,) if on else ()))


@dataclass(slots=True, kw_only=True)
class _Source:
    """One stream that is being cut into segments. held: which stream of the camera is counted in; None until it is."""

    segmenter: Segmenter
    asked_at: float
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: StreamName | None = None
    came: asyncio.Event = field(default_factory=asyncio.Event)
    files: dict[tuple[int, Container], bytes] = field(default_factory=dict)

    def on_access_unit(self, unit: AccessUnit) -> None:
        if self.segmenter.push(unit) is not None:
            kept = self.segmenter.segments[0].number
            for key in [key for key in self.files if key[0] < kept]:
                del self.files[key]
            self.came.set()

    def on_group(self, codec: Codec, group: PacketGroup, now: float) -> None:
        """Cameras give whole pictures."""

    def on_reset(self) -> None:
        self.segmenter.cut()


class HlsSources:
    """`acquire` and `release` are the camera supervisor's; `tap(camera_id, name, source, on)` begins and ends handing a
    stream's pictures to `source`."""

    def __init__(
        self,
        *,
        acquire: Callable[[str, StreamName], Awaitable[None]],
        release: Callable[[str, StreamName], None],
        tap: Callable[[str, StreamName, Tap, bool], None],
        limits: HlsLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._acquire = acquire
        self._release = release
        self._tap = tap
        self._limits = limits or HlsLimits()
        self._clock = clock
        self._sources: dict[tuple[str, StreamName], _Source] = {}

    def __len__(self) -> int:
        return len(self._sources)

    async def run(self) -> None:
        """Leave what nobody asks for. Runs until cancelled, then everything is left."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                now = self._clock()
                for key, source in list(self._sources.items()):
                    if now - source.asked_at > self._limits.idle_s and not source.opening.locked():
                        self._leave(key)
        finally:
            for key in list(self._sources):
                self._leave(key)

    def forget_camera(self, camera_id: str) -> None:
        """It is configured no more."""
        for name in StreamName:
            self._sources.pop((camera_id, name), None)

    async def fetch(
        self,
        camera_id: str,
        name: StreamName,
        file: str,
        container: Container,
        query: Sequence[tuple[str, str]],
    ) -> HlsFile:
        """Raises NotFound, TooMany, Unavailable. The first playlist waits for the first segment."""
        part = part_of(file)
        source = await self._open(camera_id, name, part)
        if part.kind == "playlist":
            await self._first_segment(source)
            text = source.segmenter.playlist(container, query)
            return HlsFile(body=text.encode(), media_type=part.media_type)
        return HlsFile(body=await self._file(source, part), media_type=part.media_type)

    async def _open(self, camera_id: str, name: StreamName, part: Part) -> _Source:
        key = (camera_id, name)
        source = self._sources.get(key)
        if source is None:
            if part.kind != "playlist":
                raise NotFound("nobody has been watching: read the playlist first")
            if len(self._sources) >= self._limits.sources:
                raise TooMany("too many streams by HLS", retry_after_s=5)
            source = self._sources[key] = _Source(segmenter=Segmenter(self._limits), asked_at=self._clock())
        source.asked_at = self._clock()
        async with source.opening:
            if source.held is None:
                try:
                    source.held = await self._hold(camera_id, name, source)
                except BaseException:
                    if self._sources.get(key) is source:
                        del self._sources[key]
                    raise
        return source

    async def _hold(self, camera_id: str, name: StreamName, source: _Source) -> StreamName:
        """Tapped before it is acquired: the keyframe that acquire waits for is the first picture. A camera with one stream
        only, or whose main stream no player could decode, gives what it has."""
        try:
            return await self._hold_exactly(camera_id, name, source)
        except Undecodable as error:
            refused: Undecodable | NotFound = error
            other = StreamName.SUB
        except NotFound as error:
            refused = error
            other = StreamName.MAIN
        if other is name:
            raise refused
        try:
            return await self._hold_exactly(camera_id, other, source)
        except NotFound:
            raise refused from None

    async def _hold_exactly(self, camera_id: str, name: StreamName, source: _Source) -> StreamName:
        self._tap(camera_id, name, source, True)
        try:
            await self._acquire(camera_id, name)
        except BaseException:
            self._tap(camera_id, name, source, False)
            raise
        return name

    async def _first_segment(self, source: _Source) -> None:
        if source.segmenter.segments:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.first_s):
                await source.came.wait()
        if not source.segmenter.segments:
            raise Unavailable("no keyframe in time", retry_after_s=2)

    async def _file(self, source: _Source, part: Part) -> bytes:
        held = source.segmenter
        segment = held.described(part.number) if part.kind == "init" else held.segment(part.number)
        key = (segment.number, part.container)
        data = source.files.get(key)
        if data is None:
            try:
                data = await asyncio.to_thread(remux, segment, part.container)
            except ProtocolError as error:
                raise Unavailable(f"this segment can't be remuxed: {error.reason}", retry_after_s=2) from None
            if any(one is segment for one in held.segments):
                source.files[key] = data
        if part.container is Container.TS:
            return data
        init, media = split_fmp4(data)
        return init if part.kind == "init" else media

    def _leave(self, key: tuple[str, StreamName]) -> None:
        source = self._sources.pop(key)
        if source.held is not None:
            self._tap(key[0], source.held, source, False)
            self._release(key[0], source.held)
