"""Evidence of a call: each leg's picture and sound into Matroska files, not transcoded, each with its
SHA-256.

A leg is written as *segments*. A segment begins with a keyframe (or, if none comes within `AUDIO_ALONE_S`,
with sound alone) and ends when the media is lost, the picture's parameters change, a picture joins the sound,
or the call ends; each is a finished file that plays by itself. What a killed gateway leaves unfinished is
still readable up to its last cluster, but has no entry in the manifest.

`LegRecorder` does no I/O beside its files and knows no clock: `received_ms` (UTC milliseconds) comes with
each sample. It blocks for the time of a file write: call it from one thread of its own, not from the loop.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import msgspec

from gateway.errors import ProtocolError

__all__ = ["LegRecorder", "Sample", "Segment", "verify_manifest", "write_manifest"]

AUDIO_ALONE_S = 2.0
"""How long sound waits for a keyframe before it is written alone."""
MAX_WAITING = 500
"""Sound that may wait for a keyframe: ten seconds of 20 ms packets. Beyond it the oldest is dropped."""
REANCHOR_MS = 2_000
"""RTP time and arrival may differ by this much (jitter, clock drift) before the track is aligned anew."""
_TIME_BASE = Fraction(1, 1_000)
_START_CODE = b"\x00\x00\x00\x01"
_VIDEO = {"H264": "h264", "VP8": "vp8"}
_AUDIO = {"opus": "libopus", "PCMU": "pcm_mulaw", "PCMA": "pcm_alaw"}
_CLOCK_RATE = {"H264": 90_000, "VP8": 90_000, "opus": 48_000, "PCMU": 8_000, "PCMA": 8_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One access unit or one audio packet.

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
    def data(self) -> bytes:
        """As a muxer takes it: Annex B for H.264."""
        if self.codec == "H264":
            return b"".join(_START_CODE + unit for unit in self.units)
        return b"".join(self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One finished file. started_at, ended_at: UTC milliseconds of its first and last sample."""

    file: str
    sha256: str
    size: int
    started_at: int
    ended_at: int
    video: str | None
    audio: str | None
    pictures: int
    packets: int


@dataclass(slots=True)
class _Track:
    """One stream of a file, and where its RTP time lies on the file's clock (None before the first)."""

    stream: Any
    clock_rate: int
    anchor: tuple[int, int] | None = None
    last_ms: int = -1
    count: int = 0

    def place(self, sample: Sample, start_ms: int) -> int:
        """Milliseconds from the file's start: even as RTP time is, true as arrival is, never backwards."""
        arrived_ms = sample.received_ms - start_ms
        timestamp, anchor_ms = self.anchor or (sample.timestamp, arrived_ms)
        at_ms = anchor_ms + round((sample.timestamp - timestamp) * 1000 / self.clock_rate)
        if self.anchor is None or abs(at_ms - arrived_ms) > REANCHOR_MS:
            self.anchor, at_ms = (sample.timestamp, arrived_ms), arrived_ms
        self.last_ms = max(at_ms, self.last_ms + 1)
        self.count += 1
        return self.last_ms


@dataclass(slots=True)
class _OpenSegment:
    path: Path
    container: Any
    start_ms: int
    last_ms: int
    parameters: bytes
    tracks: dict[str, _Track] = field(default_factory=dict)


class LegRecorder:
    """Writes one leg below `directory`.

    Feed it with `write`, tell `cut` when media is lost, `close` at the end.
    """

    def __init__(self, directory: Path, leg_id: str) -> None:
        self._directory = directory
        self._leg_id = leg_id
        self._open: _OpenSegment | None = None
        self._waiting: deque[Sample] = deque(maxlen=MAX_WAITING)
        self._number = 0
        self.segments: list[Segment] = []
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

    def cut(self) -> None:
        """The media was lost: what follows is a new segment."""
        self._waiting.clear()
        if self._open is not None:
            segment, self._open = self._open, None
            self.segments.append(self._finish(segment))

    def close(self) -> list[Segment]:
        """Finishes the last file and returns all of them. Sound that still waits for a picture is kept."""
        if self._open is None and self._waiting:
            self._begin(self._waiting[0], picture=None)
        self.cut()
        return self.segments

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
        """Opens a file with the tracks that there are; Matroska takes no further ones later."""
        waiting = sorted([*self._waiting, *([picture] if picture else [])], key=lambda one: one.received_ms)
        # A picture's file always has a place for sound: a page may ask for the microphone later.
        sound = self._waiting[-1].codec if self._waiting else "opus"
        self._number += 1
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{self._leg_id}-{self._number:03}.mkv"
        # Clusters of one second reach the disk as they are: what a kill costs is the last second.
        options = {"cluster_time_limit": "1000", "flush_packets": "1"}
        container = av.open(str(path), "w", format="matroska", options=options)
        try:
            streams = {sound: _audio_stream(container, sound)}
            if picture is not None:
                streams[picture.codec] = _video_stream(container, picture)
        except ProtocolError:
            container.close()
            path.unlink(missing_ok=True)
            raise
        self._waiting.clear()
        self._open = _OpenSegment(
            path=path,
            container=container,
            start_ms=waiting[0].received_ms if waiting else first.received_ms,
            last_ms=first.received_ms,
            parameters=_parameters(picture) if picture else b"",
            tracks={
                codec: _Track(stream=stream, clock_rate=_CLOCK_RATE[codec])
                for codec, stream in streams.items()
            },
        )
        for sample in waiting:
            self._mux(self._open, sample)

    def _mux(self, segment: _OpenSegment, sample: Sample) -> None:
        track = segment.tracks.get(sample.codec)
        if track is None:
            self.dropped += 1  # sound of another codec than the file's: kept from the next segment on
            return
        packet = av.Packet(sample.data)
        packet.stream = track.stream
        packet.time_base = _TIME_BASE
        packet.pts = packet.dts = track.place(sample, segment.start_ms)
        packet.is_keyframe = sample.keyframe or not sample.video
        segment.container.mux_one(packet)
        segment.last_ms = max(segment.last_ms, sample.received_ms)

    def _finish(self, segment: _OpenSegment) -> Segment:
        segment.container.close()
        with segment.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        used = {codec: track for codec, track in segment.tracks.items() if track.count}
        video = next((codec for codec in used if codec in _VIDEO), None)
        audio = next((codec for codec in used if codec in _AUDIO), None)
        return Segment(
            file=segment.path.name,
            sha256=digest,
            size=segment.path.stat().st_size,
            started_at=segment.start_ms,
            ended_at=segment.last_ms,
            video=video,
            audio=audio,
            pictures=used[video].count if video else 0,
            packets=used[audio].count if audio else 0,
        )


def write_manifest(directory: Path, call: Mapping[str, Any], legs: Mapping[str, list[Segment]]) -> Path:
    """Writes manifest.json, whole or not at all: the call as JSON and the files of each leg."""
    manifest = {"version": 1, "call": call, "legs": legs}
    path = directory / "manifest.json"
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def verify_manifest(directory: Path) -> list[str]:
    """What is wrong with a recording, one line each: files missing, changed, or not in the manifest.

    Offline.
    """
    try:
        manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=_Manifest)
    except (OSError, msgspec.DecodeError) as exc:
        return [f"manifest.json: {exc}"]
    wrong = []
    listed = {segment.file: segment for segments in manifest.legs.values() for segment in segments}
    for name, segment in listed.items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            wrong.append(f"{name}: missing")
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != segment.sha256:
                wrong.append(f"{name}: changed after it was recorded")
    wrong += [f"{p.name}: not in the manifest" for p in directory.glob("*.mkv") if p.name not in listed]
    return wrong


class _Manifest(msgspec.Struct):
    version: int
    call: dict[str, Any]
    legs: dict[str, list[Segment]]


def _parameters(sample: Sample) -> bytes:
    """What a decoder must know before this keyframe: SPS and PPS (H.264 types 7 and 8), VP8's size."""
    if sample.codec == "VP8":
        return sample.units[0][6:10]  # RFC 6386 section 9.1
    return b"".join(_START_CODE + unit for unit in sample.units if unit and unit[0] & 0x1F in (7, 8))


def _video_stream(container: Any, keyframe: Sample) -> Any:
    """A stream that states size and parameters as FFmpeg's own demuxer reads them from this one keyframe."""
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
