"""Recording where the media is: orders in, samples to the recorder's thread, news out.

A *tape* is a tap on one stream that turns what passes into samples. A camera is acquired for it as for a viewer, main first
and sub where main is beyond decoders; while it can't be had, it is asked for again until the order's time is over. A leg of
a call is taped from the order on, publishing or not, until it is stopped.

*Pre-roll*: with `preroll_s` in the spec the sub stream of each always pulled camera is held, and its last seconds are kept
in memory, whole groups of pictures, bounded by time and octets (the oldest group goes first). An order for that camera
begins with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.errors import GatewayError, NotFound, Unavailable
from gateway.evidence.order import News, RecordingOrder, RecordingSpec
from gateway.evidence.recorder import Intake, Recorder
from gateway.evidence.recording import Sample
from gateway.streams.assembly import PictureAssembly
from gateway.streams.cameras import CameraSource
from gateway.streams.media import AccessUnit, Codec, StreamName, Undecodable
from gateway.streams.packets import PacketGroup
from gateway.streams.stream import Stream, Track, TrackKind

__all__ = ["Preroll", "Tape", "Tapes"]

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""Between two attempts to get a camera that is down."""
LOST = "lost"
"""Reason of a gap: the media did not come, or came damaged."""
GAP_MS = 1_000
"""A pause of the picture shorter than this is no gap worth a name."""


class Tape:
    """Two taps, on picture and sound of one stream, that feed one intake."""

    def __init__(self, intake: Intake, *, unix_offset: float, of_call: bool = False) -> None:
        """unix_offset: UTC seconds less monotonic seconds. of_call: sound may join later, and will be Opus."""
        self._intake = intake
        self._of_call = of_call
        self._sound: Track | None = None
        self._unix_offset = unix_offset
        self._assembly: PictureAssembly | None = None
        self._taps: list[tuple[Track, _TrackTap]] = []
        self._last_picture: int | None = None
        self._waiting = True  # for a keyframe

    def continues(self, at: float) -> None:
        """What comes next continues a picture of that moment which the intake already has."""
        self._waiting, self._last_picture = False, self._ms(at)

    def attach(self, stream: Stream) -> None:
        for track in (stream.video, stream.audio):
            tap = _TrackTap(self, track.kind)
            track.taps = (*track.taps, tap)
            self._taps.append((track, tap))
        self._sound = stream.audio
        stream.video.want_keyframe()

    def detach(self) -> None:
        for track, tap in self._taps:
            track.taps = tuple(one for one in track.taps if one is not tap)
        self._taps.clear()
        self.reset()

    def picture(
        self, codec: str, units: tuple[bytes, ...], timestamp: int, keyframe: bool, at: float
    ) -> None:
        received_ms = self._ms(at)
        if self._waiting:
            if not keyframe:
                return
            if self._last_picture is not None and received_ms - self._last_picture >= GAP_MS:
                self._intake.gap(self._last_picture, received_ms, LOST)
            self._waiting = False
            if not self._of_call:
                self._intake.expect(None if self._sound is None else self._sound.codec)
        self._last_picture = received_ms
        self._intake.put(Sample(codec, units, timestamp, received_ms, keyframe))

    def packet(self, codec: Codec, group: PacketGroup, at: float) -> None:
        """A publisher's packet of the picture."""
        assembly = self._assembly
        if assembly is None or assembly.codec is not codec:
            assembly = self._assembly = PictureAssembly(codec)
        was_damaged = assembly.damaged
        last = len(group.payloads) - 1
        for offset, payload in enumerate(group.payloads):
            picture = assembly.push(
                payload,
                number=group.first + offset,
                timestamp=group.timestamp,
                marker=group.marker and offset == last,
            )
            if picture is not None:
                self.picture(str(codec), picture.units, picture.timestamp, picture.keyframe, at)
        if assembly.damaged and not was_damaged:
            self.broken()

    def sound(self, codec: Codec, group: PacketGroup, at: float) -> None:
        self._intake.put(
            Sample(str(codec), group.payloads, group.timestamp, self._ms(at)),
            has_video=self._last_picture is not None,
        )

    def broken(self) -> None:
        """Pictures are worth nothing before the next keyframe."""
        self._waiting = True
        for track, _ in self._taps:
            if track.kind is TrackKind.VIDEO:
                track.want_keyframe()

    def reset(self) -> None:
        if self._assembly is not None:
            self._assembly.reset()
        self._waiting = True

    def _ms(self, at: float) -> int:
        return round((at + self._unix_offset) * 1000)


class _TrackTap:
    """A `stream.Tap`."""

    def __init__(self, tape: Tape, kind: TrackKind) -> None:
        self._tape = tape
        self._video = kind is TrackKind.VIDEO

    def on_access_unit(self, unit: AccessUnit) -> None:
        self._tape.picture(str(Codec.H264), unit.nal_units, unit.timestamp, unit.keyframe, unit.received_at)

    def on_group(self, codec: Codec, group: PacketGroup, now: float) -> None:
        if self._video:
            self._tape.packet(codec, group, now)
        else:
            self._tape.sound(codec, group, now)

    def on_reset(self) -> None:
        if self._video:
            self._tape.reset()


class Preroll:
    """The last seconds of one stream: whole groups of pictures. A `stream.Tap`."""

    def __init__(self, seconds: float, max_octets: int) -> None:
        self._seconds = seconds
        self._max_octets = max_octets
        self._groups: deque[list[AccessUnit]] = deque()
        self._sizes: deque[int] = deque()
        self.octets = 0

    def on_access_unit(self, unit: AccessUnit) -> None:
        size = sum(map(len, unit.nal_units))
        if unit.keyframe:
            self._groups.append([])
            self._sizes.append(0)
        elif not self._groups:
            return
        self._groups[-1].append(unit)
        self._sizes[-1] += size
        self.octets += size
        horizon = unit.received_at - self._seconds
        while len(self._groups) > 1 and (
            self._groups[1][0].received_at <= horizon or self.octets > self._max_octets
        ):
            self._groups.popleft()
            self.octets -= self._sizes.popleft()
        if self.octets > self._max_octets:  # one group that is too large by itself
            self.on_reset()

    def on_group(self, codec: Codec, group: PacketGroup, now: float) -> None:
        """Sound is not kept: before the press nobody had a reason to listen."""

    def on_reset(self) -> None:
        self._groups.clear()
        self._sizes.clear()
        self.octets = 0

    def units(self) -> list[AccessUnit]:
        return [unit for group in self._groups for unit in group]


class Tapes:
    """All recordings of the sources of one process."""

    def __init__(
        self,
        spec: RecordingSpec,
        *,
        acquire: Callable[[str, StreamName], Awaitable[None]],
        release: Callable[[str, StreamName], None],
        camera_stream: Callable[[str, StreamName], Stream],
        hold_source: Callable[[str], Stream],
        leave_source: Callable[[str], None],
        tell: Callable[[News], None],
    ) -> None:
        """hold_source, leave_source: the stream of a call's leg stays the same in between. tell: news, on the loop."""
        self._spec = spec
        self._acquire, self._release = acquire, release
        self._camera_stream = camera_stream
        self._hold_source, self._leave_source = hold_source, leave_source
        self._tell = tell
        self._unix_offset = time.time() - time.monotonic()
        self._recorder: Recorder | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._prerolls: dict[str, tuple[Preroll, StreamName]] = {}
        self._held: dict[str, asyncio.Task[None]] = {}
        self._cameras: tuple[CameraSource, ...] = ()

    @property
    def preroll_octets(self) -> int:
        """In memory for the pre-roll."""
        return sum(preroll.octets for preroll, _ in self._prerolls.values())

    def __len__(self) -> int:
        return len(self._running)

    async def run(self) -> None:
        """Until cancelled; then every file is finished and its last news told."""
        loop = asyncio.get_running_loop()
        recorder = self._recorder = Recorder(
            Path(self._spec.directory),
            stop_octets=self._spec.stop_octets,
            tell=lambda news: _on_loop(loop, self._on_news, news),
        )
        recorder.start()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self.apply(self._cameras)
                await asyncio.Event().wait()
        finally:
            self._tasks = self._recorder = None
            # A thread that waits for the disk must not hold up the loop, and its last news must still come through.
            await asyncio.shield(asyncio.to_thread(recorder.stop))
            await asyncio.sleep(0)

    def record(self, order: RecordingOrder) -> None:
        """Begin. The same id again is the same recording. Raises NotFound, Unavailable."""
        if self._recorder is None or self._tasks is None:
            raise Unavailable("recordings are not possible yet", retry_after_s=1)
        if order.id in self._running:
            return
        kind, _, name = order.source_id.partition("/")
        if kind == "camera":
            intake = self._recorder.record(order)
            work = self._tape_camera(order, name, intake)
        elif kind == "call":
            intake = self._recorder.record(order)
            work = self._tape_leg(order, intake)
        else:
            raise NotFound(f"no source {order.source_id}")
        try:
            task = self._tasks.create_task(work, name=f"tape-{order.id}")
        except RuntimeError:  # the group is shutting down
            work.close()
            intake.close("stopped")
            raise Unavailable("this gateway is about to stop", retry_after_s=3) from None
        self._running[order.id] = task

    def stop(self, recording_id: str) -> None:
        """End it before its time. Unknown ids are no mistake: it may have ended by itself."""
        task = self._running.get(recording_id)
        if task is not None:
            task.cancel()

    def apply(self, cameras: Sequence[CameraSource]) -> None:
        """Keep the pre-roll of these cameras from now on."""
        self._cameras = tuple(cameras)
        if self._tasks is None or self._spec.preroll_s <= 0:
            return
        wanted = {camera.id for camera in cameras if camera.pull == "always"}
        for camera_id in self._held.keys() - wanted:
            self._held.pop(camera_id).cancel()
        for camera_id in wanted - self._held.keys():
            self._held[camera_id] = self._tasks.create_task(
                self._hold(camera_id), name=f"preroll-{camera_id}"
            )

    # -- one recording ----------------------------------------------------------------------------------------------

    async def _tape_leg(self, order: RecordingOrder, intake: Intake) -> None:
        """Supervision of one recording: it ends with its news, whatever happens."""
        tape = Tape(intake, unix_offset=self._unix_offset, of_call=True)
        stream = self._hold_source(order.source_id)
        try:
            tape.attach(stream)
            async with asyncio.timeout(_left_s(order.until_ms)):
                await asyncio.Event().wait()
        except TimeoutError:
            pass  # its time is over, which is how it should end
        finally:
            tape.detach()
            self._leave_source(order.source_id)
            self._close(order, intake)

    async def _tape_camera(self, order: RecordingOrder, camera_id: str, intake: Intake) -> None:
        reason = ""
        tape = Tape(intake, unix_offset=self._unix_offset)
        try:
            if order.pressed_at:
                self._give_preroll(camera_id, order, intake, tape)
            async with asyncio.timeout(_left_s(order.until_ms)):
                while True:
                    try:
                        async with self._picture(camera_id, tape):
                            reason = ""
                            await asyncio.Event().wait()
                    except NotFound as error:
                        reason = str(error)
                        return
                    except GatewayError as error:
                        reason = str(error)
                        await asyncio.sleep(RETRY_S)
        except TimeoutError:
            pass  # its time is over, which is how it should end
        finally:
            self._close(order, intake, reason)

    @asynccontextmanager
    async def _picture(self, camera_id: str, tape: Tape) -> AsyncIterator[None]:
        """The camera is watched for us: main, or sub where main can't be decoded by anybody."""
        name = StreamName.MAIN
        tape.attach(self._camera_stream(camera_id, name))
        try:
            try:
                await self._acquire(camera_id, name)
            except Undecodable:
                tape.detach()
                name = StreamName.SUB
                tape.attach(self._camera_stream(camera_id, name))
                await self._acquire(camera_id, name)
            try:
                yield
            finally:
                self._release(camera_id, name)
        finally:
            tape.detach()

    def _close(self, order: RecordingOrder, intake: Intake, reason: str = "") -> None:
        self._running.pop(order.id, None)
        intake.close(reason)

    def _on_news(self, news: News) -> None:
        if news.finished is not None:
            self.stop(news.recording_id)  # the recorder itself may have ended it: a full disk
        self._tell(news)

    # -- pre-roll ---------------------------------------------------------------------------------------------------

    def _give_preroll(self, camera_id: str, order: RecordingOrder, intake: Intake, tape: Tape) -> None:
        """Where the camera has one picture only, what comes next continues the pre-roll; else main begins a file anew."""
        preroll, name = self._prerolls.get(camera_id, (None, None))
        begin = order.pressed_at / 1000 - self._unix_offset - self._spec.preroll_s
        for unit in _from_keyframe(() if preroll is None else preroll.units(), begin):
            intake.put(
                Sample(
                    codec=str(Codec.H264),
                    units=unit.nal_units,
                    timestamp=unit.timestamp,
                    received_ms=round((unit.received_at + self._unix_offset) * 1000),
                    keyframe=unit.keyframe,
                )
            )
            if name is StreamName.MAIN:
                tape.continues(unit.received_at)

    async def _hold(self, camera_id: str) -> None:
        """Watch one camera's sub stream (main where there is no sub) and keep its last seconds."""
        name = StreamName.SUB
        while True:
            preroll = Preroll(self._spec.preroll_s, self._spec.preroll_octets)
            track = self._camera_stream(camera_id, name).video
            track.taps = (*track.taps, preroll)
            try:
                await self._acquire(camera_id, name)
                self._prerolls[camera_id] = preroll, name
                try:
                    await asyncio.Event().wait()
                finally:
                    self._release(camera_id, name)
            except NotFound:
                if name is StreamName.MAIN:
                    return
                name = StreamName.MAIN
            except GatewayError:
                await asyncio.sleep(RETRY_S)
            finally:
                self._prerolls.pop(camera_id, None)
                track.taps = tuple(tap for tap in track.taps if tap is not preroll)


def _from_keyframe(units: Sequence[AccessUnit], begin: float) -> Iterable[AccessUnit]:
    """From the last keyframe at or before `begin`; from the first one if all are later."""
    first = 0
    for position, unit in enumerate(units):
        if unit.keyframe and unit.received_at <= begin:
            first = position
    return units[first:]


def _left_s(until_ms: int | None) -> float | None:
    return None if until_ms is None else max(0.0, until_ms / 1000 - time.time())


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[News], None], news: News) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: the next start finds the files
        loop.call_soon_threadsafe(call, news)
