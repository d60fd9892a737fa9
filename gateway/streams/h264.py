"""H.264 as cameras really send it: RTP payloads (RFC 6184) in, whole access units out. Pure: no I/O, no clock.

Depacketizer takes RTP packets, either one by one (UDP, odd headers) or straight out of a TCP receive buffer with RFC 2326
section 10.12 framing; the latter is the hot path and the reason why framing, RTP header and FU header are read by one
`unpack`. What cameras do against the RFCs and how it is met:

- SPS/PPS carry the marker bit (Tapo TC70, Reolink Duo 2): a marker ends an access unit only once it holds a slice.
- SPS+PPS+IDR in one packet with Annex B start codes: any non-slice NAL unit is searched for start codes; once one was
  found, every NAL unit of that stream is.
- Single NAL unit packets of 10,000 bytes over TCP (Tapo): no limit but that of an access unit.
- Never a marker (FLIR M400): a new timestamp ends the access unit too.
- The marker on every slice of a picture: noticed by a slice that continues a finished picture, then markers are ignored.
- No parameter sets in-band: those of the SDP (or last seen) are put before every IDR.
- Timestamps that jump or run backwards: Timeline re-anchors, nothing ends.

Loss: a gap inside one non-reference picture costs that picture, any other gap costs everything up to the next IDR.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct

from gateway.errors import ProtocolError
from gateway.streams.media import AccessUnit
from gateway.streams.sps import Bits, Sps, parse_sps

__all__ = ["B_SLICE", "Depacketizer", "NalType", "Timeline", "WholePicture"]

WholePicture = Callable[[bytearray, int, int, int, int, int, int], tuple[int, int, int, bytes] | None]
"""(buffer, start, end, framing, plain flags, sequence number expected, timestamp << 32 | ssrc of the packet before) ->
(where it ends, packets, timestamp << 32 | ssrc, NAL unit), or None for the caller to look at each packet."""

MAX_ACCESS_UNIT_BYTES = 8 * 1024 * 1024
MAX_NAL_UNITS = 1024

_HEAD = Struct(
    "!HHHHQH"
).unpack_from  # '$' + channel, length, V/P/X/CC + M/PT, sequence number, timestamp + ssrc, FU
_RTP = Struct("!HHQ").unpack_from


class NalType(IntEnum):
    """nal_unit_type (ITU-T H.264 table 7-1) and the aggregation types of RFC 6184 table 1."""

    SLICE = 1
    PARTITION_A = 2
    IDR = 5
    SEI = 6
    SPS = 7
    PPS = 8
    AUD = 9
    END_OF_SEQUENCE = 10
    END_OF_STREAM = 11
    FILLER = 12
    STAP_A = 24
    STAP_B = 25
    MTAP16 = 26
    MTAP24 = 27
    FU_A = 28
    FU_B = 29


_REFUSED = {
    NalType.STAP_B: "stap_b_unsupported",
    NalType.MTAP16: "mtap16_unsupported",
    NalType.MTAP24: "mtap24_unsupported",
    NalType.FU_B: "fu_b_unsupported",
}


class Timeline:
    """RTP timestamps (32 bit) to one monotone clock of the same rate, kept over reconnects (RFC 3550 section 5.1).

    A step is believed while it does not run backwards and not further ahead of the arrival clock than `slack_s`;
    otherwise the line is anchored anew where the arrival clock says. `jumps` counts that.
    """

    __slots__ = ("_arrival", "_last", "_slack", "clock_rate", "jumps", "position")

    def __init__(self, clock_rate: int = 90_000, *, slack_s: float = 5.0) -> None:
        self.clock_rate = clock_rate
        self._slack = slack_s
        self._last: int | None = None
        self._arrival: float | None = None
        self.position = 0
        self.jumps = 0

    def cut(self) -> None:
        """The source starts anew: its next timestamp says nothing about the last one."""
        self._last = None

    def at(self, timestamp: int, now: float) -> int:
        """Position of `timestamp` (of an access unit whose last packet came at `now`, monotonic seconds)."""
        last = self._last
        self._last = timestamp
        if last is not None and self._arrival is not None:
            step = (timestamp - last) & 0xFFFFFFFF
            if step <= (now - self._arrival + self._slack) * self.clock_rate:
                self._arrival = now
                self.position += step
                return self.position
            self.jumps += 1
        if self._arrival is not None:
            self.position += max(1, int((now - self._arrival) * self.clock_rate))
        self._arrival = now
        return self.position


def _b_slice_table() -> bytes:
    """1 for every first byte of a slice header that starts a picture (first_mb_in_slice 0) with slice_type B (1 or 6)."""
    return bytes(1 if byte >> 4 == 0b1010 or byte >> 2 == 0b100111 else 0 for byte in range(256))


B_SLICE = _b_slice_table()


class Depacketizer:
    """RTP packets of one H.264 source in, access units to `emit` (which must not raise).

    payload_type: others are counted and left out. channel: interleaved channel for feed(). Counters are public ints.
    pause_after_keyframe: feed() returns behind a whole keyframe, paused, and wants resume() before it goes on (Backlog).
    whole_picture: takes a picture that lies whole in the buffer, if there is nothing unusual about it: `_fan.c`'s.
    """

    __slots__ = (
        "_annexb", "_bytes", "_channel", "_emit", "_ended", "_expected", "_has_slice", "_idr", "_late", "_magic",
        "_markers_lie", "_middle", "_nals", "_pieces", "_plain", "_pps", "_skip", "_source", "_sps_units", "_timeline", "_whole_picture",
        "b_slices", "damaged_units", "dropped_units", "faults", "foreign_packets", "keyframes", "last_unit_at",
        "lost_packets", "packets", "pause_after_keyframe", "paused", "payload_type", "reordering", "sps", "units", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        emit: Callable[[AccessUnit], None],
        *,
        payload_type: int,
        channel: int = 0,
        parameter_sets: list[bytes] | None = None,
        timeline: Timeline | None = None,
        whole_picture: WholePicture | None = None,
    ) -> None:
        self._emit = emit
        self._whole_picture = whole_picture
        self._timeline = timeline or Timeline()
        self.payload_type = payload_type
        self._channel = channel
        self._magic = 0x2400 | channel
        self._plain = 0x8000 | payload_type
        self._expected = -1
        self._source = -1  # timestamp << 32 | ssrc of the access unit under way
        self._middle = -1  # FU indicator and header of a middle fragment that would continue
        self._pieces: list[bytearray] = []
        self._nals: list[bytes] = []
        self._bytes = 0
        self._has_slice = self._idr = self._annexb = self._markers_lie = self._skip = False
        self._ended = -1  # source of the last finished access unit
        self._late = 0
        self._sps_units: dict[int, bytes] = {}
        self._pps: dict[int, bytes] = {}
        self.sps: Sps | None = None
        self.waiting = True  # for a keyframe
        self.reordering = False  # B-frames that change the output order were seen
        self.packets = self.lost_packets = self.foreign_packets = self.damaged_units = self.dropped_units = 0
        self.units = self.keyframes = self.b_slices = 0
        self.faults: dict[str, int] = {}
        self.last_unit_at: float | None = None
        self.pause_after_keyframe = self.paused = False
        for nal_unit in parameter_sets or ():
            if nal_unit[0] & 31 in (NalType.SPS, NalType.PPS):
                self.keep_parameter_set(nal_unit)

    @property
    def ssrc(self) -> int:
        return self._source & 0xFFFFFFFF if self._source >= 0 else 0

    @property
    def highest_sequence_number(self) -> int:
        """Extended by the cycles that the counts imply (RFC 3550 section 6.4.1)."""
        highest = (self._expected - 1) & 0xFFFF
        cycles = max(0, self.packets + self.lost_packets - 1 - highest + 0x8000) >> 16
        return cycles << 16 | highest

    # -- for whoever keeps packets back ----------------------------------------------------------------------------

    @property
    def framing(self) -> tuple[int, int]:
        """The first two bytes of our interleaved frames, and those of an RTP header with nothing unusual."""
        return self._magic, self._plain

    @property
    def position(self) -> tuple[int, int]:
        """The sequence number expected next, and timestamp << 32 | ssrc of the last packet."""
        return self._expected, self._source

    def resume(self, position: tuple[int, int]) -> None:
        """Go on from a pause at what was the position there, or at a later one before which all is forgotten."""
        self._expected, self._source = position
        self._ended = self._source
        self.paused = False

    def count_held(self, packets: int, units: int, now: float) -> None:
        """Count what is kept back as if it had been given on."""
        self.packets += packets
        if units:
            self.units += units
            self.last_unit_at = now

    # -- packets ---------------------------------------------------------------------------------------------------

    def feed(self, buffer: bytearray, start: int, end: int, now: float) -> int:
        """Take whole interleaved packets of our channel from `start` on; return where the first that is not begins."""
        magic_wanted, plain, middle = self._magic, self._plain, self._middle
        marked = plain | 0x80
        expected, source_now = self._expected, self._source
        pieces = self._pieces
        append = pieces.append
        quick = self._quick()
        last = middle | 0x40 if quick and middle & 31 == 1 else -1  # the fragment that would end a P picture
        limit = end - 18
        first = start
        count = 0
        whole_picture = self._whole_picture
        while start <= limit:
            if (
                whole_picture is not None
                and quick
                and not pieces
                and (found := whole_picture(buffer, start, end, magic_wanted, plain, expected, source_now))
            ):
                start, taken, source_now, nal_unit = found
                count += taken
                expected = (expected + taken) & 0xFFFF
                self._middle = middle = last = -1
                self._deliver(nal_unit, source_now, now)
                continue
            magic, length, flags, sequence_number, source, fu = _HEAD(buffer, start)
            stop = start + 4 + length
            if magic != magic_wanted or stop > end or length < 14:
                break
            count += 1
            if sequence_number == expected:
                # The four packets that nearly all of a stream consists of, in the order of their number. Whatever is
                # unusual about the packet or the state falls through to _rtp, which judges it in full.
                if source == source_now:
                    if flags == plain:
                        if fu == middle:
                            append(buffer[start + 18 : stop])
                            expected = (expected + 1) & 0xFFFF
                            start = stop
                            continue
                    elif fu == last and flags == marked:
                        head = pieces[0][1]
                        if head & 0x80 and not B_SLICE[head]:
                            append(buffer[start + 18 : stop])
                            nal_unit = b"".join(pieces)
                            pieces.clear()
                            self._middle = middle = last = -1
                            self._deliver(nal_unit, source, now)
                            expected = (expected + 1) & 0xFFFF
                            start = stop
                            continue
                elif quick and not pieces and not (source ^ source_now) & 0xFFFFFFFF:
                    if fu & 0x1FFF == 0x1C81 and flags == plain and length > 15:  # FU-A, start, slice
                        self._source = source_now = source
                        piece = buffer[start + 17 : stop]
                        piece[0] = fu >> 8 & 0xE0 | 1
                        append(piece)
                        self._middle = middle = fu & 0xFF1F
                        last = middle | 0x40
                        expected = (expected + 1) & 0xFFFF
                        start = stop
                        continue
                    if (
                        fu & 0x1F80 == 0x0180 and flags == marked and not B_SLICE[fu & 0xFF]
                    ):  # a whole picture
                        source_now = source
                        self._deliver(bytes(buffer[start + 16 : stop]), source, now)
                        expected = (expected + 1) & 0xFFFF
                        start = stop
                        continue
            self._expected = expected
            if flags & 0xFF7F == plain:
                self._rtp(flags & 0x80, sequence_number, source, fu, buffer, start + 16, stop, now)
            else:
                self.packets -= 1  # packet() counts it
                self.packet(buffer, start + 4, stop, now)
            if self.paused:
                expected = self._expected
                start = stop
                break
            middle, expected, source_now = self._middle, self._expected, self._source
            quick = self._quick()
            last = middle | 0x40 if quick and middle & 31 == 1 else -1
            start = stop
        self._expected = expected
        self.packets += count
        if self._pieces and start - first > 0:
            self._bytes += start - first  # an upper bound, so that endless fragments can't fill the memory
            if self._bytes > MAX_ACCESS_UNIT_BYTES:
                self._fault("oversized_access_unit")
                self._lose()
        return start

    def _quick(self) -> bool:
        """No picture is under way but perhaps one slice in fragments, and nothing odd is known of this source."""
        return not (
            self.waiting
            or self._nals
            or self._has_slice
            or self._skip
            or self._annexb
            or self._markers_lie
            or self._source < 0
        )

    def _deliver(self, nal_unit: bytes, source: int, now: float) -> None:
        """A picture of one P slice."""
        self._ended = self._source = source
        self._bytes = 0
        self.units += 1
        self.last_unit_at = now
        self._emit(
            AccessUnit(
                nal_units=(nal_unit,),
                timestamp=self._timeline.at(source >> 32, now),
                keyframe=False,
                received_at=now,
            )
        )

    def packet(self, buffer: bytearray | bytes, start: int, end: int, now: float) -> None:
        """Take one RTP packet with whatever header extension, CSRCs or padding it has (RFC 3550 section 5.1)."""
        self.packets += 1
        if end - start < 12:
            return self._fault("short_rtp")
        flags, sequence_number, source = _RTP(buffer, start)
        if flags >> 14 != 2:
            return self._fault("rtp_version")
        if flags & 0x7F != self.payload_type:
            self.foreign_packets += 1
            return None
        payload = start + 12 + 4 * ((flags >> 8) & 15)
        if flags & 0x1000:
            if payload + 4 > end:
                return self._fault("truncated_extension")
            payload += 4 + 4 * int.from_bytes(buffer[payload + 2 : payload + 4], "big")
        if flags & 0x2000 and end > payload:
            end -= buffer[end - 1]
        if payload >= end:
            # An empty packet (keep-alive of some recorders) still counts in the sequence.
            if payload > end:
                self._fault("truncated_rtp")
            if sequence_number == self._expected:
                self._expected = (sequence_number + 1) & 0xFFFF
            return None
        fu = buffer[payload] << 8 | (buffer[payload + 1] if payload + 1 < end else 0)
        if not isinstance(buffer, bytearray):
            buffer = bytearray(buffer)
        self._rtp(flags & 0x80, sequence_number, source, fu, buffer, payload, end, now)
        return None

    def _rtp(
        self,
        marker: int,
        sequence_number: int,
        source: int,
        fu: int,
        buffer: bytearray,
        start: int,
        stop: int,
        now: float,
    ) -> None:
        if sequence_number != self._expected and not self._resume(sequence_number, source):
            return None
        self._expected = (sequence_number + 1) & 0xFFFF
        if source != self._source:
            if (
                self._nals or self._pieces or self._has_slice
            ):  # an IDR that was skipped must not lend its name to the next
                self._end(now)
            if (source ^ self._source) & 0xFFFFFFFF and self._source >= 0:
                self._fault("ssrc_changed")
                self._timeline.cut()
                self._lose()
            self._source = source
            self._skip = False
        kind = (fu >> 8) & 31
        if kind == 28:
            if stop - start < 3:
                return self._fault("short_fu_a")
            if fu & 0x80:
                if self._pieces:
                    self._damage("fu_a_without_end")
                piece = buffer[start + 1 : stop]
                piece[0] = (fu >> 8) & 0xE0 | fu & 0x1F
                self._pieces.append(piece)
                self._middle = fu & 0xFF1F
                if fu & 0x40:
                    self._end_fragments()
            elif not self._pieces:
                if not self._skip:
                    self._damage("fu_a_without_start")
            else:
                self._pieces.append(buffer[start + 2 : stop])
                if fu & 0x40:
                    self._end_fragments()
        else:
            if self._pieces:
                self._damage("fu_a_without_end")
            if kind == 24:
                self._stap_a(buffer, start + 1, stop)
            elif kind in _REFUSED:
                self._fault(_REFUSED[NalType(kind)])
            else:
                self._nal_unit(bytes(memoryview(buffer)[start:stop]))
        if marker and self._has_slice and not self._markers_lie and not self._pieces:
            self.paused = self._end(now) and self.pause_after_keyframe and not self._annexb
        return None

    def _resume(self, sequence_number: int, source: int) -> bool:
        """Judge a sequence number that was not the expected one. False: leave the packet out."""
        if self._expected < 0:
            return True
        gap = (sequence_number - self._expected) & 0xFFFF
        if (source ^ self._source) & 0xFFFFFFFF:
            return True  # another source: its numbers say nothing
        if gap >= 0x8000:
            # Old or repeated: leave it out. A run of such packets is a camera that started its numbers anew.
            self._late += 1
            if self._late < 16:
                return False
        else:
            self.lost_packets += gap
            pieces = self._pieces
            if source == self._source and pieces and not pieces[0][0] & 0x60 and not self._idr:
                # Everything lost lies within this one picture, and no other refers to it.
                self._drop_unit()
                self._skip = True
                self._late = 0
                return True
        self._late = 0
        self._lose()
        return True

    def _stap_a(self, buffer: bytearray, start: int, stop: int) -> None:
        while start < stop:
            size = int.from_bytes(buffer[start : start + 2], "big")
            start += 2
            if not size or start + size > stop:
                return self._damage("truncated_stap_a")
            self._nal_unit(bytes(memoryview(buffer)[start : start + size]))
            start += size
        return None

    def _end_fragments(self) -> None:
        nal_unit = b"".join(self._pieces)
        self._pieces.clear()
        self._middle = -1
        self._nal_unit(nal_unit)

    # -- NAL units -------------------------------------------------------------------------------------------------

    def _nal_unit(self, nal_unit: bytes) -> None:
        kind = nal_unit[0] & 31
        if kind == 1 and not self._annexb:
            if not self._has_slice and not self._first_slice(nal_unit):
                return None
            if not self._skip:
                self._nals.append(nal_unit)
            return None
        if (kind != 1 or self._annexb) and (cut := nal_unit.find(b"\0\0\1")) >= 0:
            self._annexb = True
            for part in _split_annexb(nal_unit, cut):
                self._one(part)
            return None
        return self._one(nal_unit)

    def _one(self, nal_unit: bytes) -> None:
        kind = nal_unit[0] & 31
        if kind in (NalType.SPS, NalType.PPS):
            self.keep_parameter_set(nal_unit)
            return
        if 1 <= kind <= 5:
            if not self._has_slice and not self._first_slice(nal_unit):
                return
            if kind == NalType.IDR:
                self._idr = True
        elif kind != NalType.SEI:
            # Delimiters, fillers and end marks carry nothing over RTP; 0 and 13-23, 30, 31 mean nothing to decoders here.
            if kind in (0, 30, 31):
                self._fault("unknown_nal_unit_type")
            return
        if len(self._nals) >= MAX_NAL_UNITS:
            self._damage("too_many_nal_units")
            return
        if not self._skip:
            self._nals.append(nal_unit)

    def _first_slice(self, nal_unit: bytes) -> bool:
        """Judge the first slice seen of a picture (ITU-T H.264 section 7.3.3). False: leave it out."""
        if len(nal_unit) < 2:
            self._damage("short_slice")
            return False
        if not nal_unit[1] & 0x80 and not self._skip:  # first_mb_in_slice is not 0
            if self._source == self._ended and not self._markers_lie:
                # It continues a picture that we thought finished: the marker came too early.
                self._markers_lie = True
                self._damage("marker_on_every_slice")
            else:
                self._damage("first_slice_missing")
            return False
        self._has_slice = True
        if B_SLICE[nal_unit[1]] and nal_unit[0] & 31 == 1:
            self.b_slices += 1
            if self.sps is None or self.sps.may_reorder:
                self.reordering = True  # browsers decode in output order: nothing more is emitted
                self.waiting = True
        return True

    def keep_parameter_set(self, nal_unit: bytes) -> None:
        """Take note of an SPS or PPS; every keyframe from now on gets it put before."""
        try:
            if nal_unit[0] & 31 == NalType.SPS:
                key = Bits(nal_unit[4:12]).ue()
                if self._sps_units.get(key) == nal_unit:
                    return
                self.sps = parse_sps(nal_unit)
                if len(self._sps_units) < 32 or key in self._sps_units:
                    self._sps_units[key] = nal_unit
            else:
                key = Bits(nal_unit[1:9]).ue()
                if len(self._pps) < 256 or key in self._pps:
                    self._pps[key] = nal_unit
        except ProtocolError as error:
            self._fault(error.reason)

    def _end(self, now: float) -> bool:
        """The access unit is complete: give it on, if it can be decoded. True if that was a keyframe."""
        if self._pieces:
            self._damage("fu_a_without_end")
        nals = self._nals
        source = self._source
        idr = self._idr
        if not self._has_slice:
            if len(nals) > 16:
                nals.clear()
            return False
        self._ended = source
        self._has_slice = self._idr = self._skip = False
        self._bytes = 0
        if not nals:
            return False
        self._nals = []
        if self.waiting:
            if not idr or self.reordering or not self._sps_units or not self._pps:
                self.dropped_units += 1
                return False
            self.waiting = False
        if idr:
            self.keyframes += 1
            nals[:0] = [*self._sps_units.values(), *self._pps.values()]
        self.units += 1
        self.last_unit_at = now
        self._emit(
            AccessUnit(
                nal_units=tuple(nals),
                timestamp=self._timeline.at(source >> 32, now),
                keyframe=idr,
                received_at=now,
            )
        )
        return idr

    # -- faults ----------------------------------------------------------------------------------------------------

    def _fault(self, reason: str) -> None:
        self.faults[reason] = self.faults.get(reason, 0) + 1

    def _damage(self, reason: str) -> None:
        """The access unit under way is broken although no packet is missing."""
        self._fault(reason)
        self._lose()

    def _lose(self) -> None:
        self._drop_unit()
        self._skip = True
        self.waiting = True

    def _drop_unit(self) -> None:
        if self._nals or self._pieces:
            self.damaged_units += 1
        self._pieces.clear()
        self._middle = -1
        self._nals = []
        self._bytes = 0
        self._has_slice = self._idr = False


def _split_annexb(data: bytes, cut: int) -> list[bytes]:
    """NAL units between start codes (ITU-T H.264 annex B). `cut`: where the first start code is."""
    parts = []
    begin = 0
    while cut >= 0:
        parts.append(data[begin:cut].rstrip(b"\0"))
        begin = cut + 3
        cut = data.find(b"\0\0\1", begin)
    parts.append(data[begin:])
    return [part for part in parts if part]
