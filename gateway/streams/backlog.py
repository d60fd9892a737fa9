"""Pictures of a camera nobody watches, kept as the packets they came in. Pure: no I/O, no clock.

Most cameras of a wall of hundreds are not looked at, but whoever opens one wants a picture at once. So keyframes are built
as they come, while the packets after one are only walked over, header by header, and kept as bytes; `watch(True)` builds
the pictures they hold, in order and with their times of arrival, before it returns. At the next keyframe they are
forgotten.

What the walk sees that is not routine (a lost packet, another source, a B slice, a NAL unit type of no everyday kind) ends
it: what was kept goes to the Depacketizer, which judges everything in full until the next keyframe. Counters, parameter
sets and the time of the last picture are those of the Depacketizer and are kept up to date.

Bound: MAX_BYTES and MAX_SECONDS of packets; beyond it they are dropped up to the picture under way, and `on_skip` is told.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from enum import IntEnum
from operator import itemgetter
from struct import Struct

from gateway.streams.h264 import B_SLICE, Depacketizer, NalType

__all__ = ["Backlog"]

MAX_BYTES = 1_000_000
MAX_SECONDS = 3.5

_HEAD = Struct("!HHHHQH").unpack_from  # as in h264: framing, RTP header and two bytes of payload
_FRAGMENT = Struct("!Q10s").unpack_from  # the same, cut behind the sequence number


class _Packet(IntEnum):
    """What the first two bytes of a payload tell."""

    UNUSUAL = 0
    ROUTINE = 1
    FIRST_FRAGMENT = 2  # of a slice, whose header is one byte further


def _packet_table() -> bytes:
    table = bytearray(65536)
    for value in range(65536):
        kind, second = value >> 8 & 31, value & 0xFF
        if value & 0x8000:
            continue  # forbidden_zero_bit
        if kind == NalType.SLICE and second & 0x80:  # begins a picture, if it is no B slice
            table[value] = _Packet.UNUSUAL if B_SLICE[second] else _Packet.ROUTINE
        elif kind in (NalType.SLICE, NalType.SEI, NalType.AUD, NalType.FILLER):
            table[value] = _Packet.ROUTINE
        elif kind == NalType.FU_A and second & 31 == NalType.SLICE:
            table[value] = _Packet.FIRST_FRAGMENT if second & 0x80 else _Packet.ROUTINE
    return bytes(table)


_PACKET = _packet_table()


class _Verdict(IntEnum):
    KEEP = 0
    KEYFRAME = 1
    JUDGE_IN_FULL = 2


class Backlog:
    """Stands in front of a Depacketizer that is fed from a TCP receive buffer.

    on_skip: pictures were dropped that no keyframe replaced. on_other(channel, start, stop, now): a whole interleaved frame
    of another channel lies at start:stop of the buffer that is being fed.
    """

    __slots__ = (
        "_chunks", "_depacketizer", "_expected", "_flags", "_held_packets", "_held_units", "_on_other", "_on_skip",
        "_resume_at", "_since", "_source", "_unit", "held_bytes",
    )  # fmt: skip

    def __init__(
        self,
        depacketizer: Depacketizer,
        *,
        on_skip: Callable[[], None],
        on_other: Callable[[int, int, int, float], None],
        watched: bool,
    ) -> None:
        self._depacketizer = depacketizer
        self._on_skip = on_skip
        self._on_other = on_other
        # What is kept, read by read, whole packets each: (offset of the first octet, octets, when they came). Never one long
        # array, which would be moved each time that it grows.
        self._chunks: list[tuple[int, bytearray, float]] = []
        self.held_bytes = 0
        self._held_packets = self._held_units = 0
        self._since = 0.0
        self._resume_at = (-1, -1)  # position of the depacketizer before the first held packet
        self._expected = self._source = -1  # position of the walk
        self._flags = 0  # of the last packet
        self._unit = (
            0,
            0,
            -1,
            -1,
        )  # the access unit under way: offset in what is held, held packets and position before it
        depacketizer.pause_after_keyframe = not watched

    def watch(self, watched: bool) -> None:
        """Somebody wants every picture as it comes, and those that were kept at once; or nobody does any more."""
        self._depacketizer.pause_after_keyframe = not watched
        if watched and self._depacketizer.paused:
            self._replay()

    def feed(self, buffer: bytearray, start: int, end: int, now: float) -> int:
        """Take whole interleaved packets; return where the first begins that must be looked at by others."""
        depacketizer = self._depacketizer
        while True:
            if not depacketizer.paused:
                start = depacketizer.feed(buffer, start, end, now)
                if not depacketizer.paused:
                    return start
                self._begin(now)
            start = self._walk(buffer, start, end, now)
            if depacketizer.paused:
                return start

    def packet(self, buffer: bytearray, start: int, stop: int, now: float) -> None:
        """Take one RTP packet that feed() would not take."""
        if self._depacketizer.paused:
            self._replay()
        self._depacketizer.packet(buffer, start, stop, now)
        if self._depacketizer.paused:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._resume_at = self._expected, self._source = self._depacketizer.position
        self._unit = (0, 0, self._expected, self._source)
        self._flags = self._depacketizer.framing[1] | 0x80
        self._held_packets = self._held_units = 0
        self._since = now

    def _walk(self, buffer: bytearray, start: int, end: int, now: float) -> int:
        """Keep packets while they are routine. When that ends, the depacketizer is paused no more."""
        magic_wanted, plain = self._depacketizer.framing
        marked = plain | 0x80
        table = _PACKET
        expected, source_now = self._expected, self._source
        limit = end - 18
        first = start
        base = self.held_bytes - first  # offset in what is held of the buffer's first octet
        count = units = 0
        before = self._flags
        unit_at = unit_count = unit_expected = unit_source = -1
        verdict = _Verdict.KEEP
        while start <= limit:
            magic, length, flags, sequence_number, source, fu = _HEAD(buffer, start)
            stop = start + 4 + length
            if stop > end or length < 14:
                break
            if magic != magic_wanted:
                if magic >> 8 != 0x24:
                    break
                self._on_other(magic & 0xFF, start + 4, stop, now)
                start = stop
                continue
            if sequence_number != expected or (flags != plain and flags != marked):
                verdict = _Verdict.JUDGE_IN_FULL
                break
            if source != source_now:
                if (source ^ source_now) & 0xFFFFFFFF:
                    verdict = _Verdict.JUDGE_IN_FULL
                    break
                unit_at, unit_count, unit_expected, unit_source = start, count, expected, source_now
                source_now = source
                units += 1
            elif before == marked:  # the picture that the marker ended goes on
                verdict = _Verdict.JUDGE_IN_FULL
                break
            before = flags
            expected = (expected + 1) & 0xFFFF
            count += 1
            kind = table[fu]
            if kind != 1:
                if kind == 0 or B_SLICE[buffer[start + 18]]:
                    verdict = self._judge(buffer, start + 16, stop)
                    if verdict:
                        expected = sequence_number
                        count -= 1
                        break
                elif stop <= limit and buffer[stop + 17] == fu & 31:
                    # Middle fragments of one size: all that may change from one to the next is the sequence number, so
                    # that one comparison of numbers and one of bytes are the whole check.
                    fragment = stop - start
                    wanted = magic << 48 | length << 32 | plain << 16 | expected
                    rest = bytes(buffer[start + 8 : start + 17]) + bytes((fu & 31,))
                    start = stop
                    whole = end - fragment
                    while start <= whole and _FRAGMENT(buffer, start) == (wanted, rest):
                        wanted += 1
                        start += fragment
                    repeated = (start - stop) // fragment
                    expected = (expected + repeated) & 0xFFFF
                    count += repeated
                    continue
            start = stop
        if unit_at >= 0:
            self._unit = (base + unit_at, self._held_packets + unit_count, unit_expected, unit_source)
        self._expected, self._source, self._flags = expected, source_now, before
        if start > first:
            self._chunks.append((self.held_bytes, buffer[first:start], now))
            self.held_bytes += start - first
        self._held_packets += count
        self._held_units += units
        self._depacketizer.count_held(count, units, now)
        if verdict is _Verdict.KEYFRAME:
            self._start_over(now)
        elif verdict is _Verdict.JUDGE_IN_FULL:
            self._replay()
        elif self.held_bytes > MAX_BYTES or now - self._since > MAX_SECONDS:
            self._skip(now)
        return start

    def _judge(self, buffer: bytearray, start: int, stop: int) -> _Verdict:
        """A payload that is no routine slice."""
        kind = buffer[start] & 31
        if kind == NalType.IDR or (kind == NalType.FU_A and buffer[start + 1] & 31 == NalType.IDR):
            return _Verdict.KEYFRAME
        if kind in (NalType.SPS, NalType.PPS):
            nal_unit = bytes(buffer[start:stop])
            if b"\0\0\1" in nal_unit:  # more NAL units follow in the same packet
                return _Verdict.JUDGE_IN_FULL
            self._depacketizer.keep_parameter_set(nal_unit)
            return _Verdict.KEEP
        if kind == NalType.STAP_A:
            start += 1
            while start + 2 < stop:
                size = buffer[start] << 8 | buffer[start + 1]
                start += 2 + size
                if not size or start > stop:
                    return _Verdict.JUDGE_IN_FULL
                if verdict := self._judge(buffer, start - size, start):
                    return verdict
            return _Verdict.KEEP
        if kind == NalType.SLICE and stop - start > 1 and not B_SLICE[buffer[start + 1]]:
            return _Verdict.KEEP
        if kind in (NalType.SEI, NalType.AUD, NalType.FILLER):
            return _Verdict.KEEP
        return _Verdict.JUDGE_IN_FULL

    # -- the ways out ----------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Give the depacketizer all it missed."""
        depacketizer = self._depacketizer
        depacketizer.packets -= self._held_packets
        depacketizer.units -= self._held_units
        chunks = self._empty()
        depacketizer.resume(self._resume_at)
        pausing, depacketizer.pause_after_keyframe = depacketizer.pause_after_keyframe, False
        for _, octets, at in chunks:
            _feed_all(depacketizer, octets, 0, at)
        depacketizer.pause_after_keyframe = pausing

    def _start_over(self, now: float) -> None:
        """A keyframe: all before its access unit is forgotten."""
        offset, packets, expected, source = self._unit
        depacketizer = self._depacketizer
        depacketizer.packets -= self._held_packets - packets
        depacketizer.units -= self._source != source
        chunks = self._empty()
        depacketizer.resume((expected, source))
        for begins, octets, _ in chunks[_place(chunks, offset) :]:  # parameter sets and the like
            _feed_all(depacketizer, octets, max(0, offset - begins), now)

    def _skip(self, now: float) -> None:
        """Too much: forget what is before the access unit under way."""
        offset, packets, expected, source = self._unit
        if not offset:
            self._replay()  # one picture, so large or so slow: the depacketizer has its own bounds
            return
        chunks = self._empty()
        for begins, octets, _ in chunks[_place(chunks, offset) :]:
            kept = octets[max(0, offset - begins) :]
            self._chunks.append((self.held_bytes, kept, now))
            self.held_bytes += len(kept)
        self._held_packets -= packets
        self._held_units = 1
        self._resume_at = (expected, source)
        self._unit = (0, 0, expected, source)
        self._since = now
        self._on_skip()

    def _empty(self) -> list[tuple[int, bytearray, float]]:
        chunks, self._chunks, self.held_bytes = self._chunks, [], 0
        return chunks


def _place(chunks: list[tuple[int, bytearray, float]], offset: int) -> int:
    """Index of the chunk that holds the octet at `offset`; their number if that is where the next would begin."""
    if chunks and offset < chunks[-1][0] + len(chunks[-1][1]):
        return bisect_right(chunks, offset, key=itemgetter(0)) - 1
    return len(chunks)


def _feed_all(depacketizer: Depacketizer, held: bytearray, start: int, now: float) -> None:
    end = len(held)
    while (start := depacketizer.feed(held, start, end, now)) < end:
        start += 4 + (held[start + 2] << 8 | held[start + 3])  # another channel's
