"""What a receiver of RTP over UDP owes: order (RFC 3550 section 5.1) and receiver reports (section 6.4). Pure."""

from __future__ import annotations

from struct import Struct

__all__ = ["Reception", "ReorderWindow", "SequenceCounter"]

_REPORT = Struct("!BBHIIIIIII").pack
_SDES = Struct("!BBHIBB").pack


class ReorderWindow:
    """Gives packets on in order; waits for a missing one until `capacity` later ones have come or `wait_s` passed.

    Drop rule: a packet older than what was given on, or one that is there already, is dropped and counted as late.
    """

    __slots__ = ("_capacity", "_held", "_next", "_since", "_wait_s", "late")

    def __init__(self, *, capacity: int = 64, wait_s: float = 0.1) -> None:
        self._capacity = capacity
        self._wait_s = wait_s
        self._held: dict[int, bytes] = {}
        self._next: int | None = None
        self._since = 0.0
        self.late = 0

    def push(self, packet: bytes, now: float) -> list[bytes]:
        """The packets that can be given on now. Packets too short for a header are passed through to be counted."""
        if len(packet) < 12:
            return [packet]
        number = packet[2] << 8 | packet[3]
        if self._next is None:
            self._next = number
        ahead = (number - self._next) & 0xFFFF
        if ahead >= 0x8000:
            self.late += 1
            if ahead > 0xFFFF - 512:
                return []
            # Far behind: the source began its numbers anew. Give on what is held and follow it.
            return [*self._flush(), *self._follow(number, packet)]
        if ahead > 4 * self._capacity:
            return [*self._flush(), *self._follow(number, packet)]
        if ahead == 0 and not self._held:
            self._next = (number + 1) & 0xFFFF
            return [packet]
        if number in self._held:
            self.late += 1
            return []
        if not self._held:
            self._since = now
        self._held[number] = packet
        ready = self._in_order()
        if self._held and (len(self._held) >= self._capacity or now - self._since >= self._wait_s):
            self._next = min(self._held, key=lambda held: (held - (self._next or 0)) & 0xFFFF)
            ready += self._in_order()
        if ready:
            self._since = now
        return ready

    def _in_order(self) -> list[bytes]:
        ready: list[bytes] = []
        number = self._next or 0
        while (packet := self._held.pop(number, None)) is not None:
            ready.append(packet)
            number = (number + 1) & 0xFFFF
        self._next = number
        return ready

    def _flush(self) -> list[bytes]:
        start = self._next or 0
        ready = [
            self._held[number] for number in sorted(self._held, key=lambda number: (number - start) & 0xFFFF)
        ]
        self._held.clear()
        return ready

    def _follow(self, number: int, packet: bytes) -> list[bytes]:
        self._next = (number + 1) & 0xFFFF
        return [packet]


class SequenceCounter:
    """Packets, losses and the extended highest sequence number of a source (RFC 3550 appendix A.1, A.3)."""

    __slots__ = ("_first", "highest", "packets")

    def __init__(self) -> None:
        self._first = 0
        self.highest = 0
        self.packets = 0

    def count(self, sequence_number: int) -> None:
        if not self.packets:
            self._first = self.highest = sequence_number
        else:
            step = (sequence_number - self.highest) & 0xFFFF
            if step < 0x8000:
                self.highest += step
        self.packets += 1

    @property
    def lost(self) -> int:
        return max(0, self.highest - self._first + 1 - self.packets) if self.packets else 0


class Reception:
    """Statistics of one source and the receiver reports about it.

    The packets themselves are counted by the depacketiser: report() is told the totals. arrived() is for UDP, where jitter
    means something; over TCP it stays 0.
    """

    __slots__ = (
        "_clock_rate",
        "_jitter",
        "_last_sr",
        "_last_sr_at",
        "_own_ssrc",
        "_reported",
        "_transit",
        "ssrc",
    )

    def __init__(self, *, own_ssrc: int, clock_rate: int) -> None:
        self._own_ssrc = own_ssrc
        self._clock_rate = clock_rate
        self._jitter = 0.0
        self._transit: float | None = None
        self._last_sr = 0
        self._last_sr_at = 0.0
        self._reported = (0, 0)
        self.ssrc: int | None = None

    def arrived(self, packet: bytes, now: float) -> None:
        """RFC 3550 appendix A.8."""
        if len(packet) < 12:
            return
        transit = now * self._clock_rate - int.from_bytes(packet[4:8], "big")
        self.ssrc = int.from_bytes(packet[8:12], "big")
        if self._transit is not None:
            step = abs(transit - self._transit)
            if step < self._clock_rate * 10:
                self._jitter += (step - self._jitter) / 16
        self._transit = transit

    def on_rtcp(self, compound: bytes, now: float) -> bool:
        """Take note of a sender report (section 6.4.1). True if the source said goodbye (section 6.6)."""
        at = 0
        goodbye = False
        while at + 8 <= len(compound) and compound[at] >> 6 == 2:
            kind = compound[at + 1]
            if kind == 200 and at + 20 <= len(compound):
                self.ssrc = int.from_bytes(compound[at + 4 : at + 8], "big")
                self._last_sr = int.from_bytes(compound[at + 10 : at + 14], "big")
                self._last_sr_at = now
            elif kind == 203:
                goodbye = True
            at += 4 + 4 * int.from_bytes(compound[at + 2 : at + 4], "big")
        return goodbye

    def report(self, *, packets: int, lost: int, highest: int, now: float) -> bytes:
        """Compound of RR and SDES/CNAME. highest: extended highest sequence number received."""
        before_packets, before_lost = self._reported
        self._reported = (packets, lost)
        expected = packets - before_packets + lost - before_lost
        fraction = min(255, max(0, lost - before_lost) * 256 // expected) if expected > 0 else 0
        delay = int((now - self._last_sr_at) * 65536) & 0xFFFFFFFF if self._last_sr else 0
        report = _REPORT(
            0x81,
            201,
            7,
            self._own_ssrc,
            self.ssrc or 0,
            fraction << 24 | min(lost, 0x7FFFFF),
            highest & 0xFFFFFFFF,
            int(self._jitter) & 0xFFFFFFFF,
            self._last_sr,
            delay,
        )
        name = f"{self._own_ssrc:08x}".encode()
        # header, ssrc, item type CNAME, length 8, 8 characters, then zeros to a multiple of four with at least one
        return report + _SDES(0x81, 202, 4, self._own_ssrc, 1, len(name)) + name + b"\0\0"
