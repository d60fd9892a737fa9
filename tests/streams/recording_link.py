"""A link that keeps what is sent, in the clear: RTP as the viewer would have it after SRTP."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from gateway.streams.media import AccessUnit
from gateway.streams.rtcp import parse_rtcp


@dataclass(frozen=True)
class Sent:
    index: int
    payload_type: int
    marker: bool
    timestamp: int
    ssrc: int
    payload: bytes


class RecordingLink:
    """MediaLink and SessionKeys in one: sealing lays header and payload end to end."""

    segment_overhead = 12
    lane = None

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.sends: list[int] = []
        self.compounds: list[bytes] = []
        self.used: dict[tuple[int, int], bytes] = {}
        self.full = False
        self._sealed: list[Sent] = []

    def seal_group(self, payloads, *, first_index, timestamp, ssrc, payload_type, marker):
        assert 0 <= timestamp <= 0xFFFFFFFF
        self._sealed = []
        buffers = []
        for position, payload in enumerate(payloads):
            index = first_index + position
            last = marker and position == len(payloads) - 1
            header = struct.pack(
                "!BBHII", 0x80, payload_type | (0x80 if last else 0), index & 0xFFFF, timestamp, ssrc
            )
            before = self.used.setdefault((ssrc, index), header + payload)
            assert before == header + payload, "an index must never seal two different packets"
            self._sealed.append(Sent(index, payload_type, last, timestamp, ssrc, payload))
            buffers += [header, payload]
        return buffers

    def send_segments(self, buffers, segment_size, count) -> bool:
        data = b"".join(buffers)
        assert -(-len(data) // segment_size) == count
        for position, one in enumerate(self._sealed):
            assert data[position * segment_size :][:segment_size][12:] == one.payload
        if self.full:
            return False
        self.sent += self._sealed
        self.sends.append(count)
        return True

    def send_rtcp(self, compound: bytes) -> bool:
        self.compounds.append(compound)
        return True

    def take(self) -> list[Sent]:
        sent, self.sent = self.sent, []
        return sent

    def take_rtcp(self):
        compounds, self.compounds = self.compounds, []
        return [parse_rtcp(compound) for compound in compounds]


@dataclass
class Source:
    """Pictures in the order of time, named by their content."""

    stream: object
    fps: int = 25
    index: int = 0
    size: int = 500
    start: float = 100.0
    pushed: list[bytes] = field(default_factory=list)

    @property
    def now(self) -> float:
        return self.start + self.index / self.fps

    def push(self, *, keyframe: bool = False, size: int | None = None) -> float:
        body = self.index.to_bytes(4, "big") * ((self.size if size is None else size) // 4)
        units = (b"\x67SPS", b"\x68PPS", b"\x65" + body) if keyframe else (b"\x41" + body,)
        now = self.now
        self.stream.on_access_unit(
            AccessUnit(
                nal_units=units,
                timestamp=self.index * 90_000 // self.fps,
                keyframe=keyframe,
                received_at=now,
            )
        )
        self.pushed.append(units[-1])
        self.index += 1
        return now


def pictures(sent: list[Sent]) -> list[int]:
    """Which pictures these packets are of, by the content that Source gave them."""
    found = []
    for one in sent:
        kind = one.payload[0] & 31
        if kind in (1, 5):
            found.append(int.from_bytes(one.payload[1:5], "big"))
        elif kind == 28 and one.payload[1] & 0x80:
            found.append(int.from_bytes(one.payload[2:6], "big"))
    return found
