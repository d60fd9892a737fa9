"""HTTP Live Streaming (RFC 8216) of one camera stream: access units into segments, segments into MPEG-TS or fragmented MP4.

For players without WebRTC. Nothing is transcoded: a segment is the camera's own pictures from one keyframe to the next,
put into the container that the player reads: MPEG-TS for native players (Android 4.4 reads nothing else), fragmented
MP4 for pages that feed Media Source Extensions themselves. Video only, as tiles have no sound.

Bounds and drop rules: `HlsLimits.kept` segments, the oldest goes first; a segment is cut at the first keyframe after
`shortest_s`, without one at `longest_s` or `segment_octets`. What follows a gap waits for a keyframe.

Pure: no clock, no tasks. `remux` blocks for milliseconds.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any
from urllib.parse import urlencode

from gateway.errors import NotFound, ProtocolError
from gateway.streams.media import AccessUnit
from gateway.streams.sps import parse_sps

__all__ = ["Container", "HlsLimits", "Part", "Segment", "Segmenter", "part_of", "remux", "split_fmp4"]

CLOCK_RATE = 90_000
_START_CODE = b"\0\0\0\1"
_SPS, _PPS = 7, 8


class Container(StrEnum):
    """What segments are put into. The value is the query's `format`."""

    TS = "ts"
    FMP4 = "mp4"


MEDIA_TYPES = {"m3u8": "application/vnd.apple.mpegurl", "ts": "video/mp2t", "m4s": "video/mp4", "mp4": "video/mp4"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HlsLimits:
    """shortest_s, longest_s: of a segment; the longest is also the playlist's target duration (whole seconds).
    kept: segments in the playlist. segment_octets: of one segment. sources: streams at the same time in one process.
    idle_s: without a request a stream is left. first_s: how long a first request waits for the first segment."""

    shortest_s: float = 1.0
    longest_s: float = 4.0
    kept: int = 6
    segment_octets: int = 6_000_000
    sources: int = 64
    idle_s: float = 20.0
    first_s: float = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """number: media sequence number. start: 90 kHz since the stream's first segment. parameter_sets: the SPS and PPS that
    count here; described_by: number of the segment that brought them. cut: what came before does not continue into it
    (EXT-X-DISCONTINUITY)."""

    number: int
    units: tuple[AccessUnit, ...]
    start: int
    duration_s: float
    parameter_sets: tuple[bytes, ...]
    described_by: int
    cut: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a stream. kind: playlist, init or segment; number: of the segment."""

    kind: str
    number: int
    extension: str

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.extension]

    @property
    def container(self) -> Container:
        return Container.TS if self.extension == "ts" else Container.FMP4


_NAMES = re.compile(r"(?:(?P<kind>init|seg)-(?P<number>\d{1,10})\.(?P<extension>mp4|m4s|ts))")


def part_of(name: str) -> Part:
    """`index.m3u8`, `seg-12.ts`, `seg-12.m4s`, `init-3.mp4`. Raises NotFound."""
    if name == "index.m3u8":
        return Part("playlist", 0, "m3u8")
    found = _NAMES.fullmatch(name)
    if found is None or (found["kind"] == "init") != (found["extension"] == "mp4"):
        raise NotFound("no such file: a stream has index.m3u8, and the files that stand in it")
    return Part(found["kind"], int(found["number"]), found["extension"])


class Segmenter:
    """Access units in, segments out; the last `kept` of them are held."""

    def __init__(self, limits: HlsLimits | None = None) -> None:
        self.limits = limits or HlsLimits()
        self.segments: deque[Segment] = deque(maxlen=self.limits.kept)
        self._units: list[AccessUnit] = []
        self._octets = 0
        self._base: int | None = None
        self._next = 0
        self._cut = True
        self._cuts = 0
        self._waiting = True
        self._parameters: tuple[bytes, ...] = ()
        self._parameters_of = 0

    def push(self, unit: AccessUnit) -> Segment | None:
        """The segment that this picture completes, if it does."""
        if self._waiting and not unit.keyframe:
            return None
        self._waiting = False
        done = None
        if self._units:
            lasts_s = (unit.timestamp - self._units[0].timestamp) / CLOCK_RATE
            full = lasts_s >= self.limits.longest_s or self._octets >= self.limits.segment_octets
            if full or (unit.keyframe and lasts_s >= self.limits.shortest_s):
                done = self._complete(unit.timestamp)
        self._units.append(unit)
        self._octets += sum(map(len, unit.nal_units))
        return done

    def cut(self) -> None:
        """The source was interrupted: what is complete stays, the rest is dropped, the next keyframe begins anew."""
        self._units, self._octets = [], 0
        self._cut = self._waiting = True

    def segment(self, number: int) -> Segment:
        """Raises NotFound when it is not there (any more)."""
        for one in self.segments:
            if one.number == number:
                return one
        raise NotFound("this segment is gone: read the playlist again")

    def described(self, number: int) -> Segment:
        """Any segment that the initialisation `number` describes. Raises NotFound."""
        for one in self.segments:
            if one.described_by == number:
                return one
        raise NotFound("this initialisation is gone: read the playlist again")

    def playlist(self, container: Container, query: Sequence[tuple[str, str]] = ()) -> str:
        """A media playlist (RFC 8216 section 4.3). query: repeated in each address, since relative ones lose it."""
        tail = f"?{urlencode(query)}" if query else ""
        first = self.segments[0].number if self.segments else self._next
        dropped_cuts = self._cuts - sum(one.cut for one in self.segments)
        lines = [
            "#EXTM3U",
            f"#EXT-X-VERSION:{3 if container is Container.TS else 7}",
            f"#EXT-X-TARGETDURATION:{round(self.limits.longest_s)}",
            f"#EXT-X-MEDIA-SEQUENCE:{first}",
            f"#EXT-X-DISCONTINUITY-SEQUENCE:{max(0, dropped_cuts)}",
        ]
        described: int | None = None
        for one in self.segments:
            if one.cut and one is not self.segments[0]:
                lines.append("#EXT-X-DISCONTINUITY")
            if container is Container.FMP4 and one.described_by != described:
                lines.append(f'#EXT-X-MAP:URI="init-{one.described_by}.mp4{tail}"')
                described = one.described_by
            extension = "ts" if container is Container.TS else "m4s"
            lines += [f"#EXTINF:{one.duration_s:.3f},", f"seg-{one.number}.{extension}{tail}"]
        return "\n".join(lines) + "\n"

    def _complete(self, until: int) -> Segment:
        units = tuple(self._units)
        if self._base is None:
            self._base = units[0].timestamp
        parameters = tuple(nal for nal in units[0].nal_units if nal and nal[0] & 31 in (_SPS, _PPS))
        if parameters and parameters != self._parameters:
            self._cut = self._cut or bool(self._parameters)
            self._parameters, self._parameters_of = parameters, self._next
        segment = Segment(
            number=self._next,
            units=units,
            start=units[0].timestamp - self._base,
            duration_s=(until - units[0].timestamp) / CLOCK_RATE,
            parameter_sets=self._parameters,
            described_by=self._parameters_of,
            cut=self._cut,
        )
        self._cuts += self._cut
        self._cut = False
        self._next += 1
        self._units, self._octets = [], 0
        self.segments.append(segment)
        return segment


def remux(segment: Segment, container: Container) -> bytes:
    """The segment as a file of its own, timestamps going on from the segment before. Fragmented MP4 comes with its
    initialisation in front (`split_fmp4`). Raises ProtocolError when its parameter sets say nothing. Blocks."""
    sps = next((nal for nal in segment.parameter_sets if nal[0] & 31 == _SPS), None)
    if sps is None:
        raise ProtocolError("no_parameter_sets", segment=segment.number)
    described = parse_sps(sps)
    options = {
        Container.TS: {"mpegts_copyts": "1"},
        # frag_discont: the fragment's own time stands in it (tfdt) instead of zero.
        Container.FMP4: {
            "movflags": "empty_moov+default_base_moof+frag_discont+frag_custom",
            "use_editlist": "0",
            "avoid_negative_ts": "disabled",
            "video_track_timescale": str(CLOCK_RATE),
        },
    }[container]
    import av  # 35 MB to load: only where somebody watches by HLS

    sink = io.BytesIO()
    out: Any = av.open(sink, "w", format="mpegts" if container is Container.TS else "mp4", options=options)
    try:
        stream = out.add_stream("h264", rate=25)
        stream.time_base = Fraction(1, CLOCK_RATE)
        stream.width, stream.height = described.width, described.height
        stream.codec_context.extradata = _annex_b(segment.parameter_sets)
        begin = segment.units[0].timestamp
        ends = [unit.timestamp for unit in segment.units[1:]]
        ends.append(begin + round(segment.duration_s * CLOCK_RATE))
        for unit, end in zip(segment.units, ends, strict=True):
            packet: Any = av.Packet(_annex_b(unit.nal_units))
            packet.stream = stream
            packet.time_base = stream.time_base
            packet.pts = packet.dts = segment.start + unit.timestamp - begin
            packet.duration = max(1, end - unit.timestamp)
            packet.is_keyframe = unit.keyframe
            out.mux(packet)
    finally:
        out.close()
    return sink.getvalue()


def split_fmp4(data: bytes) -> tuple[bytes, bytes]:
    """Initialisation (ftyp, moov) and media (moof, mdat) of what `remux` made (ISO/IEC 14496-12 section 8). The random
    access index at the end is left out: a segment needs none."""
    init, media, at = bytearray(), bytearray(), 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size < 8:
            raise ProtocolError("mp4_box_size", at, size=size)
        if kind in (b"ftyp", b"moov"):
            init += data[at : at + size]
        elif kind in (b"moof", b"mdat"):
            media += data[at : at + size]
        at += size
    return bytes(init), bytes(media)


def _annex_b(nal_units: Sequence[bytes]) -> bytes:
    return b"".join(part for nal_unit in nal_units for part in (_START_CODE, nal_unit))
