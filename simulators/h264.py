"""H.264 as a camera sends it: Annex B split into access units, access units packed into RTP payloads (RFC
6184).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "AccessUnit",
    "Packet",
    "access_units",
    "packetize",
    "rtp_header",
    "sender_report",
    "split",
    "sprop",
]

IDR, SEI, SPS, PPS, AUD = 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessUnit:
    """One picture: NAL units without start codes. keyframe: it holds an IDR slice."""

    nal_units: tuple[bytes, ...]
    keyframe: bool


@dataclass(frozen=True, slots=True)
class Packet:
    """One RTP payload. second: payload type field with the marker bit, the second byte of the RTP header."""

    payload: bytes
    second: int


def split(stream: bytes) -> list[bytes]:
    """NAL units of an Annex B byte stream (ITU-T H.264 annex B).

    Emulation prevention keeps 00 00 01 out of a NAL unit, and none ends in a zero byte, so splitting at the
    short start code and stripping zeros is exact.
    """
    return [nal for nal in (part.rstrip(b"\x00") for part in stream.split(b"\x00\x00\x01")[1:]) if nal]


def access_units(stream: bytes) -> list[AccessUnit]:
    """Groups the NAL units of a stream with one slice a picture; parameter sets and SEI go with the slice
    after them.
    """
    units: list[AccessUnit] = []
    pending: list[bytes] = []
    for nal in split(stream):
        kind = nal[0] & 0x1F
        if kind == AUD:
            continue
        pending.append(nal)
        if 1 <= kind <= IDR:
            units.append(AccessUnit(nal_units=tuple(pending), keyframe=kind == IDR))
            pending = []
    return units


def sprop(units: Iterable[AccessUnit]) -> tuple[str, str]:
    """`profile-level-id` and `sprop-parameter-sets` (RFC 6184 section 8.1) of the first keyframe."""
    for unit in units:
        sets = [nal for nal in unit.nal_units if nal[0] & 0x1F in (SPS, PPS)]
        if sets:
            profile = next(nal for nal in sets if nal[0] & 0x1F == SPS)[1:4].hex().upper()
            return profile, ",".join(base64.b64encode(nal).decode() for nal in sets)
    raise ValueError("a stream without parameter sets")


def packetize(
    nal_units: Sequence[bytes], *, payload_type: int = 96, max_payload: int = 1400, dialect: str = "plain"
) -> list[Packet]:
    """RTP payloads of one access unit, packetization-mode 1, the marker on the last.

    dialect: `plain`: single NAL units and FU-A. `stap`: parameter sets in a STAP-A. Oddities of real
    cameras: `marked-sets`: SPS and PPS carry the marker too (Tapo TC70, Reolink Duo 2); `annexb`: parameter
    sets and IDR in one payload with start codes between; `unmarked`: never a marker (FLIR M400).
    """
    chunks: list[bytes] = []
    marked: set[int] = set()
    nal_units = list(nal_units)
    if dialect == "annexb" and len(nal_units) > 1:
        nal_units = [b"\x00\x00\x00\x01".join(nal_units)]
    if dialect == "stap":
        sets = [nal for nal in nal_units if nal[0] & 0x1F in (SPS, PPS)]
        if len(sets) > 1:
            nal_units = [nal for nal in nal_units if nal not in sets]
            chunks.append(b"\x78" + b"".join(struct.pack(">H", len(nal)) + nal for nal in sets))
    for nal in nal_units:
        if len(nal) <= max_payload:
            if dialect == "marked-sets" and nal[0] & 0x1F in (SPS, PPS):
                marked.add(len(chunks))
            chunks.append(nal)
            continue
        # FU-A (section 5.8): the NAL header is split into indicator and header, fragments of one size.
        indicator, kind = bytes(((nal[0] & 0xE0) | 28,)), nal[0] & 0x1F
        body = nal[1:]
        step = max_payload - 2
        for at in range(0, len(body), step):
            flags = (0x80 if at == 0 else 0) | (0x40 if at + step >= len(body) else 0)
            chunks.append(indicator + bytes((flags | kind,)) + body[at : at + step])
    last = len(chunks) - 1
    if dialect == "unmarked":
        last = -1
    return [
        Packet(chunk, payload_type | (0x80 if index == last or index in marked else 0))
        for index, chunk in enumerate(chunks)
    ]


_RTP = struct.Struct(">BBHII")
_SR = struct.Struct(">BBHIIIIIIBBHIBB")


def rtp_header(second: int, sequence_number: int, timestamp: int, ssrc: int) -> bytes:
    """Twelve bytes of RFC 3550 section 5.1 without CSRC or extension."""
    return _RTP.pack(0x80, second, sequence_number & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)


def sender_report(
    ssrc: int, unix_time: float, timestamp: int, packets: int, octets: int, cname: bytes
) -> bytes:
    """A compound of SR and SDES CNAME (RFC 3550 sections 6.4.1 and 6.5). unix_time: seconds since 1970."""
    ntp = int((unix_time + 2_208_988_800) * 4_294_967_296)
    sdes = cname + b"\x00" * (4 - (10 + len(cname)) % 4)
    words = (10 + len(sdes)) // 4 - 1
    head = _SR.pack(
        0x80, 200, 6, ssrc, ntp >> 32 & 0xFFFFFFFF, ntp & 0xFFFFFFFF, timestamp & 0xFFFFFFFF,
        packets & 0xFFFFFFFF, octets & 0xFFFFFFFF, 0x81, 202, words, ssrc, 1, len(cname),
    )  # fmt: skip
    return head + sdes
