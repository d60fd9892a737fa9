"""From a cached keyframe to a picture: pixels for whoever judges them, JPEG for whoever asks for a still.

Video is forwarded, never transcoded; only here do pixels exist. What decodes blocks for milliseconds, so it
belongs on a worker thread. Every keyframe gets a decoder of its own: one that outlives a damaged picture
carries the damage on, and opening one costs far less than the picture.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gateway.errors import ProtocolError, TooMany, Unavailable
from gateway.streams.media import AccessUnit

__all__ = [
    "KeyframeSource",
    "NalUnits",
    "Picture",
    "SnapshotLimits",
    "Snapshots",
    "decode_keyframe",
    "freshest",
    "snapshot_jpeg",
]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# PyAV and OpenCV are loaded by the first picture: a process that makes none (a worker whose pictures nobody judges) is 35 MB
# smaller.
Picture: TypeAlias = "NDArray[np.uint8]"
"""Blue, green, red: (height, width, 3)."""

NalUnits = tuple[bytes, ...]
KeyframeSource = Callable[[str], NalUnits | None]
"""NAL units of a camera's newest keyframe by its id; the same object as long as it is the same keyframe."""

_MAX_PIXELS = 36_864 * 256
"""The largest picture of level 5.2 in macroblocks (ITU-T H.264 table A-1), 4096x2304: 14 MB decoded."""
_MAX_OCTETS = 8_000_000
"""More than any keyframe of a surveillance camera; the decoder never sees more."""
_START_CODE = b"\0\0\0\1"
_NEXT_KEYFRAME_S = 10.0
"""Without a picture yet, or with a damaged one: the next keyframe is hardly further away than this."""


def decode_keyframe(nal_units: Sequence[bytes], *, max_width: int | None = None) -> Picture:
    """The picture of one IDR access unit with its parameter sets. max_width: pixels, shrinks a wider one
    while its colours are converted, keeping the aspect. Blocks. Raises ProtocolError for what is too large or
    no whole picture, also when the decoder could conceal the damage: half a grey picture shows no street."""
    import av

    octets = sum(map(len, nal_units))
    if not octets or octets > _MAX_OCTETS:
        raise ProtocolError("keyframe_size", octets=octets)
    annex_b = b"".join(part for nal_unit in nal_units for part in (_START_CODE, nal_unit))
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(_MAX_PIXELS)}
    try:
        frames: list[Any] = [*decoder.decode(av.Packet(annex_b)), *decoder.decode(None)]
        frame = frames[0] if len(frames) == 1 else None
        if frame is None or frame.is_corrupt:
            raise ProtocolError("keyframe_damaged", pictures=len(frames), octets=octets)
        if max_width is not None and frame.width > max_width:
            height = max(2, round(frame.height * max_width / frame.width))
            frame = frame.reformat(width=max_width, height=height, format="bgr24", interpolation="AREA")
        picture: Picture = frame.to_ndarray(format="bgr24")
    except av.FFmpegError as error:
        raise ProtocolError("keyframe_undecodable", octets=octets, error=error.strerror) from None
    return picture


def snapshot_jpeg(nal_units: Sequence[bytes], *, max_width: int | None = None, quality: int = 80) -> bytes:
    """One keyframe as JPEG. quality: 1 to 100. Blocks. Raises as `decode_keyframe` does."""
    import cv2

    picture = decode_keyframe(nal_units, max_width=max_width)
    encoded, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise ProtocolError("keyframe_unencodable", shape=picture.shape)
    return bytes(jpeg.data)


def freshest(
    preferred: AccessUnit | None, other: AccessUnit | None, *, within_s: float = 15.0
) -> AccessUnit | None:
    """Which of a camera's two keyframes to look at: the preferred one unless the other came over within_s
    later. A stream that is pulled no more keeps its last keyframe, which may be of yesterday."""
    if preferred is None or other is None:
        return preferred or other
    return other if other.received_at - preferred.received_at > within_s else preferred


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotLimits:
    """waiting: cameras whose picture is being made or waits for the one thread, more are refused; kept: JPEG
    files of the cameras asked for last, around 100 kB each; max_width: pixels; quality: of JPEG, 1 to 100."""

    waiting: int = 32
    kept: int = 64
    max_width: int = 1280
    quality: int = 80


class Snapshots:
    """JPEG stills of cameras for an event loop: one thread, each keyframe decoded once however many ask."""

    def __init__(self, keyframe: KeyframeSource, *, limits: SnapshotLimits | None = None) -> None:
        self.decoded = 0
        self.failed = 0
        self.refused = 0
        self._keyframe = keyframe
        self._limits = limits or SnapshotLimits()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._kept: OrderedDict[str, tuple[NalUnits, bytes]] = OrderedDict()
        self._making: dict[str, asyncio.Future[bytes]] = {}

    async def jpeg(self, camera_id: str) -> bytes:
        """The camera's newest keyframe. Raises Unavailable (none yet, or the newest is damaged), TooMany."""
        nal_units = self._keyframe(camera_id)
        if nal_units is None:
            raise Unavailable(f"no picture yet of camera {camera_id}", retry_after_s=_NEXT_KEYFRAME_S)
        kept = self._kept.get(camera_id)
        if kept is not None and kept[0] is nal_units:
            self._kept.move_to_end(camera_id)
            return kept[1]
        making = self._making.get(camera_id)
        if making is None:  # a keyframe that came meanwhile is for the next who asks
            making = self._making[camera_id] = self._make(camera_id, nal_units)
        try:
            # Shielded: one who hangs up must not take the picture from the others.
            return await asyncio.shield(making)
        except ProtocolError as error:
            reason = f"the last picture of camera {camera_id} is damaged ({error.reason})"
            raise Unavailable(reason, retry_after_s=_NEXT_KEYFRAME_S) from error

    def forget_camera(self, camera_id: str) -> None:
        """The camera is configured no more."""
        self._kept.pop(camera_id, None)

    def close(self) -> None:
        """Ends the thread after the picture it is at; who waits for another gets CancelledError."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _make(self, camera_id: str, nal_units: NalUnits) -> asyncio.Future[bytes]:
        if len(self._making) >= self._limits.waiting:
            self.refused += 1
            raise TooMany("too many pictures are being made at the moment", retry_after_s=1)
        limits = self._limits
        future = asyncio.get_running_loop().run_in_executor(
            self._thread,
            lambda: snapshot_jpeg(nal_units, max_width=limits.max_width, quality=limits.quality),
        )
        future.add_done_callback(lambda done: self._made(camera_id, nal_units, done))
        return future

    def _made(self, camera_id: str, nal_units: NalUnits, done: asyncio.Future[bytes]) -> None:
        del self._making[camera_id]
        if done.cancelled():
            return
        if done.exception() is not None:
            self.failed += 1
            return
        self.decoded += 1
        self._kept[camera_id] = (nal_units, done.result())
        self._kept.move_to_end(camera_id)
        while len(self._kept) > self._limits.kept:
            self._kept.popitem(last=False)
