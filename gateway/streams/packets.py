"""RTP on the wire, the H.264 packetiser and the packet history that serves every viewer of a track.

A picture becomes *groups*: runs of RTP payloads of which all but the last have the same size, because that
is what one `sendmsg` with UDP_SEGMENT can cut into datagrams. A group is packetised once and sealed once
for each viewer, so nothing in it knows a viewer: packets carry a *packet number*, counted from the birth of
the track and never wrapping, and a timestamp on the unwrapped timeline of the source. What a viewer sees of
them is number + offset and timestamp + offset.

Sources: RFC 3550 section 5.1 (header), RFC 8285 (header extensions), RFC 6184 (H.264), RFC 7741 (VP8).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from gateway.errors import ProtocolError

__all__ = [
    "MAX_PAYLOAD_SIZE",
    "MAX_SEGMENTS",
    "Fragment",
    "PacketGroup",
    "PacketHistory",
    "RtpPacket",
    "Unwrapper",
    "fragment_h264",
    "h264_starts_keyframe",
    "packetize_h264",
    "parse_rtp",
    "vp8_starts_keyframe",
    "write_rtp",
]

MAX_PAYLOAD_SIZE = 1186
"""Bytes of one RTP payload: with 12 of header and 2 of RTX's original sequence number a packet has at most
1200."""

MAX_SEGMENTS = 50
"""Packets in one group. The kernel takes 64 segments and 64 KiB in one UDP_SEGMENT send; 50 * 1228 stays
below both."""

Fragment = Callable[[bytes, int], Sequence[bytes]]
"""`fragment_h264`, or the compiled one."""

_HEADER = struct.Struct("!BBHII")
_NAL_IDR, _NAL_SEI, _NAL_SPS, _NAL_PPS, _NAL_AUD = 5, 6, 7, 8, 9
_NAL_FILLER, _NAL_STAP_A, _NAL_FU_A = 12, 24, 28
_ONE_BYTE_PROFILE, _TWO_BYTE_PROFILE = 0xBEDE, 0x1000


# --- RTP packets ----------------------------------------------------------------------------------


_NO_EXTENSIONS: Mapping[int, bytes] = MappingProxyType({})


class RtpPacket(NamedTuple):
    """One RTP packet (RFC 3550 section 5.1). `extensions` maps the local id to the value (RFC 8285)."""

    payload_type: int
    marker: bool
    sequence_number: int
    timestamp: int
    ssrc: int
    payload: bytes
    extensions: Mapping[int, bytes] = _NO_EXTENSIONS
    padding: int = 0


def parse_rtp(packet: bytes | bytearray | memoryview) -> RtpPacket:
    """Reads a decrypted packet. Raises ProtocolError with the offset of what is wrong; never anything
    else."""
    size = len(packet)
    if size < 12:
        raise ProtocolError("rtp_short", size)
    first, second, sequence_number, timestamp, ssrc = _HEADER.unpack_from(packet)
    if first >> 6 != 2:
        raise ProtocolError("rtp_version", 0, version=first >> 6)
    offset = 12 + 4 * (first & 15)
    if offset > size:
        raise ProtocolError("rtp_csrc", 12, ssrc=ssrc, sequence_number=sequence_number)
    extensions = _NO_EXTENSIONS
    if first & 0x10:
        if offset + 4 > size:
            raise ProtocolError("rtp_extension", offset, ssrc=ssrc, sequence_number=sequence_number)
        profile = packet[offset] << 8 | packet[offset + 1]
        end = offset + 4 + 4 * (packet[offset + 2] << 8 | packet[offset + 3])
        if end > size:
            raise ProtocolError("rtp_extension", offset, ssrc=ssrc, sequence_number=sequence_number)
        extensions = _parse_extensions(profile, bytes(packet[offset + 4 : end]))
        offset = end
    padding = 0
    if first & 0x20:
        padding = packet[size - 1]
        if not 0 < padding <= size - offset:
            raise ProtocolError("rtp_padding", size - 1, ssrc=ssrc, sequence_number=sequence_number)
    payload = bytes(packet[offset : size - padding])
    return RtpPacket(
        second & 127, second > 127, sequence_number, timestamp, ssrc, payload, extensions, padding
    )


def _parse_extensions(profile: int, data: bytes) -> dict[int, bytes]:
    """RFC 8285 sections 4.2 and 4.3. An element that overruns ends the list: what came before it still
    counts."""
    values: dict[int, bytes] = {}
    two_byte = profile & 0xFFF0 == _TWO_BYTE_PROFILE
    if profile != _ONE_BYTE_PROFILE and not two_byte:
        return values
    offset = 0
    while offset < len(data):
        if data[offset] == 0:  # padding
            offset += 1
            continue
        if two_byte:
            if offset + 2 > len(data):
                break
            key, length, offset = data[offset], data[offset + 1], offset + 2
        else:
            key, length, offset = data[offset] >> 4, (data[offset] & 15) + 1, offset + 1
            if key == 15:  # reserved: stop here (section 4.2)
                break
        if offset + length > len(data):
            break
        values[key] = data[offset : offset + length]
        offset += length
    return values


def write_rtp(packet: RtpPacket) -> bytes:
    """The bytes of a packet; extensions in the one-byte form (ids 1-14, 1-16 bytes each)."""
    block = b"".join(
        bytes(((key << 4 | len(value) - 1),)) + value for key, value in sorted(packet.extensions.items())
    )
    block += bytes(-len(block) & 3)
    first = 0x80 | (0x10 if block else 0) | (0x20 if packet.padding else 0)
    header = _HEADER.pack(
        first,
        packet.payload_type | (0x80 if packet.marker else 0),
        packet.sequence_number,
        packet.timestamp,
        packet.ssrc,
    )
    if block:
        header += struct.pack("!HH", _ONE_BYTE_PROFILE, len(block) // 4) + block
    tail = bytes(packet.padding - 1) + bytes((packet.padding,)) if packet.padding else b""
    return header + packet.payload + tail


class Unwrapper:
    """Turns a counter of `bits` bits into one that never wraps, by the shortest way from the last value."""

    __slots__ = ("_half", "_last", "_size")

    def __init__(self, bits: int) -> None:
        self._size = 1 << bits
        self._half = self._size >> 1
        self._last: int | None = None

    def unwrap(self, value: int) -> int:
        if self._last is None:
            self._last = value
            return value
        step = (value - self._last) % self._size
        if step >= self._half:
            return self._last + step - self._size  # older than the newest: don't move the reference back
        self._last += step
        return self._last


# --- Groups and their history ---------------------------------------------------------------------


class PacketGroup(NamedTuple):
    """Packets of one picture that leave in one system call. A tuple, as the compiled loop takes it.

    payloads: all of the same size but the last, which may be shorter; first: packet number of the first; timestamp: RTP
    clock of the track, unwrapped; marker: the last packet ends the picture; octets: payload bytes (RTCP's sender's octet
    count); keyframe: the first group of a picture at which decoding can start; picture: counts pictures.
    """

    payloads: tuple[bytes, ...]
    first: int
    timestamp: int
    marker: bool
    octets: int
    keyframe: bool
    picture: int


class PacketHistory:
    """The last packets of a track, bounded in packets and in bytes; the oldest groups go first.

    One history serves the retransmissions and start bursts of all viewers. Numbers may have holes (packets
    that a publisher lost for good).
    """

    __slots__ = ("_first_numbers", "_groups", "_max_octets", "_max_packets", "_packets", "octets")

    def __init__(self, *, max_packets: int, max_octets: int) -> None:
        self._max_packets = max_packets
        self._max_octets = max_octets
        # Side by side and rising: what is asked for, which is rare, is found by bisection, so that what is
        # remembered, 25 times a second for each watched camera, costs no step per packet.
        self._groups: list[PacketGroup] = []
        self._first_numbers: list[int] = []
        self._packets = 0
        self.octets = 0

    def __len__(self) -> int:
        return self._packets

    @property
    def first(self) -> int | None:
        """Number of the oldest packet kept."""
        return self._first_numbers[0] if self._groups else None

    def append(self, group: PacketGroup) -> None:
        """`group` is younger than all that is there."""
        self._groups.append(group)
        self._first_numbers.append(group.first)
        self._packets += len(group.payloads)
        self.octets += group.octets
        if self._packets > self._max_packets or self.octets > self._max_octets:
            self._trim()

    def _trim(self) -> None:
        gone = 0
        while self._packets > self._max_packets or self.octets > self._max_octets:
            group = self._groups[gone]
            gone += 1
            self._packets -= len(group.payloads)
            self.octets -= group.octets
        del self._groups[:gone], self._first_numbers[:gone]

    def forget_before(self, timestamp: int) -> None:
        """Drops the groups of pictures older than this; timestamps rise."""
        gone = bisect_left(self._groups, timestamp, key=lambda group: group.timestamp)
        for group in self._groups[:gone]:
            self._packets -= len(group.payloads)
            self.octets -= group.octets
        del self._groups[:gone], self._first_numbers[:gone]

    def clear(self) -> None:
        self._groups.clear()
        self._first_numbers.clear()
        self._packets = 0
        self.octets = 0

    def group_of(self, number: int) -> PacketGroup | None:
        """The group that holds this packet, or None when it is too old, too new, or never came."""
        position = bisect_right(self._first_numbers, number) - 1
        if position < 0:
            return None
        group = self._groups[position]
        return group if number < group.first + len(group.payloads) else None

    def get(self, number: int) -> bytes | None:
        """The payload with this number."""
        group = self.group_of(number)
        return None if group is None else group.payloads[number - group.first]

    def since(self, number: int) -> Iterator[PacketGroup]:
        """Groups that start at `number` or later, oldest first."""
        return iter(self._groups[bisect_left(self._first_numbers, number) :])


# --- H.264 (RFC 6184) -----------------------------------------------------------------------------


def fragment_h264(nal_unit: bytes, max_payload_size: int) -> Sequence[bytes]:
    """The payloads of the FU-A packets of a NAL unit too large for one (RFC 6184 section 5.8), of even size."""
    head = nal_unit[0]
    kind = head & 31
    indicator = head & 0xE0 | _NAL_FU_A
    size = len(nal_unit) - 1
    count = -(-size // (max_payload_size - 2))
    step = -(-size // count)
    middle = bytes((indicator, kind))
    fragments = [middle + nal_unit[start : start + step] for start in range(1, size + 1, step)]
    fragments[0] = bytes((indicator, 0x80 | kind)) + fragments[0][2:]
    fragments[-1] = bytes((indicator, 0x40 | kind)) + fragments[-1][2:]
    return fragments


def packetize_h264(
    nal_units: Sequence[bytes], max_payload_size: int = MAX_PAYLOAD_SIZE, fragment: Fragment = fragment_h264
) -> list[tuple[bytes, ...]]:
    """The payloads of one access unit, in groups for one send each (packetization-mode 1, non-interleaved).

    Parameter sets travel together as a STAP-A (section 5.7.1) in a group of their own, each slice is a
    group of its own (single NAL unit packet, section 5.6, or FU-A, section 5.8), so sizes inside a group
    are equal but for the last. Fragments are balanced: no tiny last packet. Access unit delimiters, filler
    and SEI are left out: no browser's decoder needs them, and some cameras put kilobytes of their own into
    SEI.
    """
    if len(nal_units) == 1 and nal_units[0] and 0 < nal_units[0][0] & 31 <= _NAL_IDR:
        return _carry(nal_units[0], max_payload_size, fragment)  # one slice is what most pictures are
    groups: list[tuple[bytes, ...]] = []
    parameter_sets: list[bytes] = []
    for nal_unit in nal_units:
        if not nal_unit:
            continue
        kind = nal_unit[0] & 31
        if kind in (_NAL_SPS, _NAL_PPS):
            parameter_sets.append(nal_unit)
            continue
        if kind in (_NAL_SEI, _NAL_AUD) or 10 <= kind <= _NAL_FILLER:
            continue
        if parameter_sets:
            groups.extend(_aggregate(parameter_sets, max_payload_size, fragment))
            parameter_sets = []
        groups.extend(_carry(nal_unit, max_payload_size, fragment))
    if parameter_sets:  # a picture of nothing but parameter sets: some cameras send them apart
        groups.extend(_aggregate(parameter_sets, max_payload_size, fragment))
    return groups


def _aggregate(
    nal_units: list[bytes], max_payload_size: int, fragment: Fragment
) -> Iterable[tuple[bytes, ...]]:
    if len(nal_units) > 1 and 1 + sum(2 + len(nal_unit) for nal_unit in nal_units) <= max_payload_size:
        importance = max(nal_unit[0] & 0x60 for nal_unit in nal_units)
        body = b"".join(len(nal_unit).to_bytes(2, "big") + nal_unit for nal_unit in nal_units)
        return [(bytes((importance | _NAL_STAP_A,)) + body,)]
    return [group for nal_unit in nal_units for group in _carry(nal_unit, max_payload_size, fragment)]


def _carry(nal_unit: bytes, max_payload_size: int, fragment: Fragment) -> list[tuple[bytes, ...]]:
    """One NAL unit, whole or in fragments, of which MAX_SEGMENTS make a group."""
    if len(nal_unit) <= max_payload_size:
        return [(nal_unit,)]
    fragments = fragment(nal_unit, max_payload_size)
    if len(fragments) <= MAX_SEGMENTS:
        return [tuple(fragments)]
    return [
        tuple(fragments[start : start + MAX_SEGMENTS]) for start in range(0, len(fragments), MAX_SEGMENTS)
    ]


def h264_starts_keyframe(payload: bytes) -> bool:
    """Whether decoding can start at this payload: parameter sets, or the first packet of an IDR picture."""
    if not payload:
        return False
    kind = payload[0] & 31
    if kind == _NAL_STAP_A:
        return len(payload) > 3 and payload[3] & 31 in (_NAL_SPS, _NAL_IDR)
    if kind == _NAL_FU_A:
        return len(payload) > 1 and payload[1] & 0x80 != 0 and payload[1] & 31 == _NAL_IDR
    return kind in (_NAL_SPS, _NAL_IDR)


def vp8_starts_keyframe(payload: bytes) -> bool:
    """RFC 7741 section 4.2 and 4.3: first packet of partition 0 with the inverse key frame bit clear."""
    if not payload or payload[0] & 0x17 != 0x10:  # S set, partition index 0
        return False
    offset = 1
    if payload[0] & 0x80:
        if len(payload) < 2:
            return False
        flags = payload[1]
        offset = 2
        if flags & 0x80:
            if len(payload) < 3:
                return False
            offset += 2 if payload[2] & 0x80 else 1
        offset += 1 if flags & 0x40 else 0
        offset += 1 if flags & 0x30 else 0
    return len(payload) > offset and payload[offset] & 1 == 0
