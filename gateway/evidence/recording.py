"""One recorded source into files that play by themselves, not transcoded: fragmented MP4 for H.264 with Opus (QuickTime
for G.711, which MP4 does not know), WebM for VP8, each with its SHA-256.

A recording is written as *segments*, usually one. A segment begins with a keyframe (or, if none comes within
`AUDIO_ALONE_S`, with sound alone) and ends when the picture's parameters change, a picture joins the sound, or the recording
ends. A fragment is on its way to the disk every second, so what a killed gateway leaves unfinished plays up to its last
second. What is missing inside a segment is a *gap* and is named.

`SegmentWriter` knows no clock: `received_ms` (UTC milliseconds) comes with each sample. It blocks for the time of a file
write: it runs on the recorder's thread (`gateway.evidence.recorder`), never on the loop.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from gateway.errors import ProtocolError

__all__ = ["Begun", "Gap", "Sample", "Segment", "SegmentWriter", "probe"]

AUDIO_ALONE_S = 2.0
"""How long sound waits for a keyframe before it is written alone."""
MAX_WAITING = 500
"""Sound that may wait for a keyframe: ten seconds of 20 ms packets. Beyond it the oldest is dropped."""
REANCHOR_MS = 2_000
"""RTP time and arrival may differ by this much (jitter, clock drift) before the track is aligned anew."""
MAX_GAPS = 100
"""Gaps that are named one by one; of more only the last one grows."""
_TIME_BASE = Fraction(1, 1_000)
_START_CODE = b"\x00\x00\x00\x01"
_VIDEO = {"H264": "h264", "VP8": "vp8"}
_AUDIO = {"opus": "libopus", "PCMU": "pcm_mulaw", "PCMA": "pcm_alaw"}
_CLOCK_RATE = {"H264": 90_000, "VP8": 90_000, "opus": 48_000, "PCMU": 8_000, "PCMA": 8_000}
_TYPICAL_MS = {"H264": 40, "VP8": 40, "opus": 20, "PCMU": 20, "PCMA": 20}
# Fragments of one second reach the disk as they are: what a kill costs is the last second.
_FRAGMENTED = {
    "movflags": "empty_moov+default_base_moof",
    "frag_duration": "1000000",
    "flush_packets": "1",
}
_CLUSTERED = {"cluster_time_limit": "1000", "flush_packets": "1"}


class Sample(NamedTuple):
    """One access unit or one audio packet. A tuple, because a hundred and more are made for each second of a call.

    codec: RTP encoding name. units: NAL units without start codes (H264, SPS and PPS before each IDR), else
    one payload. timestamp: RTP time, unwrapped. keyframe: for video, decoding can start here.
    """

    codec: str
    units: tuple[bytes, ...]
    timestamp: int
    received_ms: int
    keyframe: bool = False

    @property
    def video(self) -> bool:
        return self.codec in _VIDEO

    @property
    def size(self) -> int:
        """Octets of media."""
        return sum(map(len, self.units))

    @property
    def data(self) -> bytes:
        """As a muxer takes it: Annex B for H.264."""
        if self.codec == "H264":
            return b"".join(_START_CODE + unit for unit in self.units)
        return b"".join(self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Media that is missing between two moments (UTC milliseconds), and why."""

    from_at: int
    to_at: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A segment that is being written. file: relative to the directory of all evidence."""

    number: int
    file: str
    media_type: str
    started_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One finished file. started_at, ended_at: UTC milliseconds of its first and last sample, on the file's timeline."""

    number: int
    file: str
    media_type: str
    sha256: str
    size: int
    started_at: int
    ended_at: int
    video: str | None
    audio: str | None
    pictures: int
    packets: int
    gaps: tuple[Gap, ...] = ()


@dataclass(slots=True)
class _Track:
    """One stream of a file, and where its RTP time lies on the file's clock (None before the first)."""

    stream: Any
    codec: str
    anchor: tuple[int, int] | None = None
    last_ms: int = -1
    count: int = 0

    def place(self, sample: Sample, start_ms: int) -> int:
        """Milliseconds from the file's start: even as RTP time is, true as arrival is, never backwards."""
        arrived_ms = sample.received_ms - start_ms
        timestamp, anchor_ms = self.anchor or (sample.timestamp, arrived_ms)
        at_ms = anchor_ms + round((sample.timestamp - timestamp) * 1000 / _CLOCK_RATE[self.codec])
        if self.anchor is None or abs(at_ms - arrived_ms) > REANCHOR_MS:
            self.anchor, at_ms = (sample.timestamp, arrived_ms), arrived_ms
        self.last_ms = max(at_ms, self.last_ms + 1)
        self.count += 1
        return self.last_ms


@dataclass(slots=True)
class _OpenSegment:
    number: int
    path: Path
    media_type: str
    container: Any
    start_ms: int
    last_ms: int
    parameters: bytes
    tracks: dict[str, _Track] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)


class SegmentWriter:
    """Writes one recording below `directory` as `{name}.mp4`, `{name}-2.mp4` and so on.

    Feed it with `write`, tell it what is missing with `gap`, `close` at the end. on_begin, on_end: a segment's file was
    opened, is finished.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        first_number: int = 1,
        sound: str | None = "opus",
        on_begin: Callable[[Begun], None] = lambda begun: None,
        on_end: Callable[[Segment], None] = lambda segment: None,
    ) -> None:
        """name: a relative path without extension. sound: the codec that is expected to join a picture later; None: none."""
        self._directory = directory
        self._name = name
        self._sound = sound
        self._on_begin, self._on_end = on_begin, on_end
        self._open: _OpenSegment | None = None
        self._waiting: deque[Sample] = deque(maxlen=MAX_WAITING)
        self._number = first_number - 1
        self.dropped = 0

    def write(self, sample: Sample) -> None:
        """Takes one sample.

        Raises ProtocolError for a codec that can't be stored, OSError when the disk is full.
        """
        if sample.codec not in _CLOCK_RATE:
            raise ProtocolError("codec can't be recorded", codec=sample.codec)
        if sample.video:
            self._write_video(sample)
        elif self._open is not None:
            self._mux(self._open, sample)
        else:
            self.dropped += len(self._waiting) == MAX_WAITING
            self._waiting.append(sample)
            if sample.received_ms - self._waiting[0].received_ms >= AUDIO_ALONE_S * 1000:
                self._begin(self._waiting[0], picture=None)

    def expect(self, sound: str | None) -> None:
        """The codec of the sound that may join the next picture; none if it can't be stored."""
        self._sound = sound if sound in _AUDIO else None

    def gap(self, gap: Gap) -> None:
        """Media is missing here; what follows begins with a keyframe. Between two files nothing needs a name."""
        if self._open is None:
            return
        gaps = self._open.gaps
        if len(gaps) >= MAX_GAPS:
            last = gaps.pop()
            gap = Gap(from_at=last.from_at, to_at=gap.to_at, reason=last.reason)
        gaps.append(gap)

    def cut(self) -> None:
        """What follows is a new segment."""
        self._waiting.clear()
        if self._open is not None:
            segment, self._open = self._open, None
            self._on_end(self._finish(segment))

    def close(self) -> None:
        """Finishes the last file. Sound that still waits for a picture is kept."""
        if self._open is None and self._waiting:
            self._begin(self._waiting[0], picture=None)
        self.cut()

    def _write_video(self, sample: Sample) -> None:
        parameters = _parameters(sample) if sample.keyframe else b""
        current = self._open
        if current is not None and sample.codec in current.tracks and parameters in (b"", current.parameters):
            self._mux(current, sample)
        elif sample.keyframe:
            if current is not None:
                self.cut()
            self._begin(sample, picture=sample)
        else:
            self.dropped += 1  # nothing to decode it by

    def _begin(self, first: Sample, *, picture: Sample | None) -> None:
        """Opens a file with the tracks that there are; neither container takes further ones later."""
        waiting = sorted([*self._waiting, *([picture] if picture else [])], key=lambda one: one.received_ms)
        # A picture's file has a place for sound where some may come: a page may ask for the microphone later.
        sound = self._waiting[-1].codec if self._waiting else self._sound
        video = picture.codec if picture else None
        if video == "VP8" and sound != "opus":
            sound = None  # WebM knows no other; who publishes VP8 is a browser, whose sound is Opus
        form, extension, media_type = _container(video, sound)
        number = self._number + 1
        name = self._name if number == 1 else f"{self._name}-{number}"
        path = self._directory / f"{name}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        import av  # 17 MB, and a frame gap to load: only where something is recorded

        container = av.open(
            str(path), "w", format=form, options=_CLUSTERED if form == "webm" else _FRAGMENTED
        )
        try:
            # The picture first: players show the first track of a kind, and some tools name a file by its first stream.
            streams = {} if picture is None else {picture.codec: _video_stream(container, picture)}
            if sound is not None:
                streams[sound] = _audio_stream(container, sound)
            container.start_encoding()  # the header: from now on the file says what it is
        except ProtocolError:
            container.close()
            path.unlink(missing_ok=True)
            raise
        self._number = number
        self._waiting.clear()
        self._open = _OpenSegment(
            number=number,
            path=path,
            media_type=media_type,
            container=container,
            start_ms=waiting[0].received_ms if waiting else first.received_ms,
            last_ms=first.received_ms,
            parameters=_parameters(picture) if picture else b"",
            tracks={codec: _Track(stream=stream, codec=codec) for codec, stream in streams.items()},
        )
        self._on_begin(
            Begun(
                number=number,
                file=str(path.relative_to(self._directory)),
                media_type=media_type,
                started_at=self._open.start_ms,
            )
        )
        for sample in waiting:
            self._mux(self._open, sample)

    def _mux(self, segment: _OpenSegment, sample: Sample) -> None:
        track = segment.tracks.get(sample.codec)
        if track is None:
            self.dropped += 1  # sound of another codec than the file's: kept from the next segment on
            return
        import av

        packet = av.Packet(sample.data)
        packet.stream = track.stream
        packet.time_base = _TIME_BASE
        packet.pts = packet.dts = at_ms = track.place(sample, segment.start_ms)
        packet.duration = _TYPICAL_MS[sample.codec]
        packet.is_keyframe = sample.keyframe or not sample.video
        segment.container.mux_one(packet)
        # Where the file has it, not when it came: under load a sender's packets come late, and who seeks by the clock
        # must find the last picture at the end that is told.
        segment.last_ms = max(segment.last_ms, segment.start_ms + at_ms)

    def _finish(self, segment: _OpenSegment) -> Segment:
        segment.container.close()
        size, digest = hash_file(segment.path, sync=True)
        used = {codec: track for codec, track in segment.tracks.items() if track.count}
        video = next((codec for codec in used if codec in _VIDEO), None)
        audio = next((codec for codec in used if codec in _AUDIO), None)
        return Segment(
            number=segment.number,
            file=str(segment.path.relative_to(self._directory)),
            media_type=segment.media_type,
            sha256=digest,
            size=size,
            started_at=segment.start_ms,
            ended_at=segment.last_ms,
            video=video,
            audio=audio,
            pictures=used[video].count if video else 0,
            packets=used[audio].count if audio else 0,
            gaps=tuple(segment.gaps),
        )


def hash_file(path: Path, *, sync: bool = False) -> tuple[int, str]:
    """Size and SHA-256 in hex. Blocking. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return file.tell(), digest


def probe(path: Path) -> int | None:
    """Milliseconds that can be played of a file that may have been cut off; None if nothing can. Blocking."""
    import av

    try:
        with av.open(str(path)) as container:
            last = -1.0
            for packet in container.demux():
                if packet.size and packet.pts is not None and packet.time_base is not None:
                    last = max(last, float(packet.pts * packet.time_base))
    except (av.FFmpegError, OSError, ValueError):
        return None
    return None if last < 0 else round(last * 1000)


def _container(video: str | None, sound: str | None) -> tuple[str, str, str]:
    """FFmpeg's name of the format, file extension, media type. MP4 has no G.711; its parent QuickTime has."""
    kind = "video" if video else "audio"
    if video == "VP8":
        return "webm", "webm", f"{kind}/webm"
    if sound in (None, "opus"):
        return "mp4", "mp4", f"{kind}/mp4"
    return "mov", "mov", "video/quicktime" if video else "audio/quicktime"


def _parameters(sample: Sample) -> bytes:
    """What a decoder must know before this keyframe: SPS and PPS (H.264 types 7 and 8), VP8's size."""
    if sample.codec == "VP8":
        return sample.units[0][6:10]  # RFC 6386 section 9.1
    return b"".join(_START_CODE + unit for unit in sample.units if unit and unit[0] & 0x1F in (7, 8))


def _video_stream(container: Any, keyframe: Sample) -> Any:
    """A stream that states size and parameters as FFmpeg's own demuxer reads them from this one keyframe."""
    import av

    form, data = ("h264", keyframe.data) if keyframe.codec == "H264" else ("ivf", _ivf(keyframe.data))
    try:
        with av.open(io.BytesIO(data), format=form) as alone:
            template = alone.streams.video[0]
            if not template.codec_context.width:
                raise ProtocolError("keyframe holds no picture", codec=keyframe.codec)
            return container.add_stream_from_template(template)
    except (av.FFmpegError, IndexError) as exc:
        raise ProtocolError("keyframe can't be read", codec=keyframe.codec) from exc


def _ivf(frame: bytes) -> bytes:
    """One VP8 frame as an IVF file (header of 32 bytes, then size and time of each frame)."""
    size = frame[6:10]
    header = b"DKIF" + bytes([0, 0, 32, 0]) + b"VP80" + size + bytes([30, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    return header + bytes(4) + len(frame).to_bytes(4, "little") + bytes(8) + frame


def _audio_stream(container: Any, codec: str) -> Any:
    """The encoder that stands for the codec's parameters is opened by PyAV but never given a sample."""
    stream = container.add_stream(_AUDIO[codec], rate=_CLOCK_RATE[codec])
    stream.codec_context.layout = "stereo" if codec == "opus" else "mono"
    return stream
