"""RTCP: compound packets to values and back. Pure; the only clock is the one passed in.

Sources: RFC 3550 section 6 (SR, RR, SDES, BYE), RFC 4585 section 6 (NACK, PLI), RFC 5104 section 4.3.1 (FIR),
draft-alvestrand-rmcat-remb-03 (REMB). Packets of other kinds are skipped, as RFC 3550 section 6.1 wants.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.errors import ProtocolError

__all__ = [
    "Bye",
    "FullIntraRequest",
    "Nack",
    "NtpTime",
    "PictureLossIndication",
    "ReceiverEstimatedBitrate",
    "ReceiverReport",
    "ReportBlock",
    "RtcpPacket",
    "SenderReport",
    "SourceDescription",
    "ntp_from_unix",
    "parse_rtcp",
    "write_bye",
    "write_nack",
    "write_pli",
    "write_receiver_report",
    "write_remb",
    "write_sender_report",
    "write_source_description",
]

_SR, _RR, _SDES, _BYE = 200, 201, 202, 203
_RTPFB, _PSFB = 205, 206
_NTP_EPOCH = 2_208_988_800  # seconds from 1900 to 1970
_SDES_CNAME = 1
_MAX_NACK_ITEMS = 253  # a NACK packet above this could not be one UDP datagram anyway

NtpTime = int
"""64 bits: seconds since 1900 << 32 | fraction (RFC 3550 section 4)."""


class ReportBlock(NamedTuple):
    """Reception statistics of one source (RFC 3550 section 6.4.1). fraction_lost in 1/256; jitter in RTP
    clock units."""

    ssrc: int
    fraction_lost: int
    packets_lost: int
    highest_sequence: int
    jitter: int
    last_sender_report: int
    delay_since_last_sender_report: int


class SenderReport(NamedTuple):
    ssrc: int
    ntp_time: NtpTime
    rtp_timestamp: int
    packet_count: int
    octet_count: int
    reports: tuple[ReportBlock, ...] = ()


class ReceiverReport(NamedTuple):
    ssrc: int
    reports: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDescription:
    """cnames by ssrc; other items are of no use to us."""

    cnames: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye:
    ssrcs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack:
    """Generic NACK: `lost` are sequence numbers of media_ssrc, expanded from PID and BLP, in the order
    sent."""

    ssrc: int
    media_ssrc: int
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLossIndication:
    ssrc: int
    media_ssrc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FullIntraRequest:
    """The media sources asked for a decoder refresh point, with the command sequence number of each."""

    ssrc: int
    requests: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverEstimatedBitrate:
    ssrc: int
    bitrate_bps: int
    ssrcs: tuple[int, ...]


RtcpPacket = (
    SenderReport
    | ReceiverReport
    | SourceDescription
    | Bye
    | Nack
    | PictureLossIndication
    | FullIntraRequest
    | ReceiverEstimatedBitrate
)

_BLOCK = struct.Struct("!IIIIII")
_SENDER_INFO = struct.Struct("!IQIII")
_SENDER_REPORT = struct.Struct("!BBHIQIII")


def ntp_from_unix(unix_s: float) -> NtpTime:
    """64-bit NTP time of a Unix time in seconds."""
    seconds = int(unix_s)
    return (seconds + _NTP_EPOCH) << 32 | int((unix_s - seconds) * 4_294_967_296)


# --- Parse ----------------------------------------------------------------------------------------


def parse_rtcp(data: bytes) -> list[RtcpPacket]:
    """The packets of a compound (or reduced-size, RFC 5506) datagram. Raises ProtocolError, never anything
    else."""
    packets: list[RtcpPacket] = []
    size = len(data)
    offset = 0
    while offset < size:
        if offset + 4 > size:
            raise ProtocolError("rtcp_short", offset)
        first, kind = data[offset], data[offset + 1]
        end = offset + 4 + 4 * (data[offset + 2] << 8 | data[offset + 3])
        if first >> 6 != 2:
            raise ProtocolError("rtcp_version", offset)
        if end > size:
            raise ProtocolError("rtcp_length", offset + 2)
        last = end
        if first & 0x20:
            padding = data[end - 1]
            if not 0 < padding <= end - offset - 4:
                raise ProtocolError("rtcp_padding", end - 1)
            last -= padding
        try:
            packet = _parse_one(kind, first & 31, data, offset + 4, last)
        except struct.error as error:
            raise ProtocolError("rtcp_body", offset, packet_type=kind) from error
        if packet is not None:
            packets.append(packet)
        offset = end
    return packets


def _parse_one(kind: int, count: int, data: bytes, start: int, end: int) -> RtcpPacket | None:
    if kind == _RR:
        if start + 4 > end:
            raise ProtocolError("rtcp_body", start)
        ssrc = int.from_bytes(data[start : start + 4], "big")
        return ReceiverReport(ssrc, _parse_blocks(data, start + 4, count, end))
    if kind == _SR:
        if start + 24 > end:
            raise ProtocolError("rtcp_body", start, packet_type=kind)
        ssrc, ntp_time, rtp_timestamp, packet_count, octet_count = _SENDER_INFO.unpack_from(data, start)
        return SenderReport(
            ssrc=ssrc,
            ntp_time=ntp_time,
            rtp_timestamp=rtp_timestamp,
            packet_count=packet_count,
            octet_count=octet_count,
            reports=_parse_blocks(data, start + 24, count, end),
        )
    if kind == _RTPFB and count == 1:
        ssrc, media_ssrc = _unpack("!II", data, start, end)
        lost: list[int] = []
        for item in range(start + 8, min(end - 3, start + 8 + 4 * _MAX_NACK_ITEMS), 4):
            packet_id, bitmask = struct.unpack_from("!HH", data, item)
            lost.append(packet_id)
            bit = 1
            while bitmask:
                if bitmask & 1:
                    lost.append((packet_id + bit) & 0xFFFF)
                bitmask >>= 1
                bit += 1
        return Nack(ssrc=ssrc, media_ssrc=media_ssrc, lost=tuple(lost))
    if kind == _PSFB:
        return _parse_payload_feedback(count, data, start, end)
    if kind == _BYE:
        ssrcs = _unpack(f"!{count}I", data, start, end)
        return Bye(ssrcs=tuple(ssrcs))
    if kind == _SDES:
        return _parse_source_description(count, data, start, end)
    return None


def _unpack(layout: str, data: bytes, start: int, end: int) -> tuple[int, ...]:
    if start + struct.calcsize(layout) > end:
        raise ProtocolError("rtcp_body", start)
    return struct.unpack_from(layout, data, start)


def _parse_blocks(data: bytes, offset: int, count: int, end: int) -> tuple[ReportBlock, ...]:
    if offset + 24 * count > end:
        raise ProtocolError("rtcp_report_count", offset)
    blocks = []
    for index in range(count):
        ssrc, loss, highest, jitter, lsr, dlsr = _BLOCK.unpack_from(data, offset + 24 * index)
        lost = loss & 0xFFFFFF
        signed = lost - 0x1000000 if lost & 0x800000 else lost
        blocks.append(ReportBlock(ssrc, loss >> 24, signed, highest, jitter, lsr, dlsr))
    return tuple(blocks)


def _parse_payload_feedback(fmt: int, data: bytes, start: int, end: int) -> RtcpPacket | None:
    ssrc, media_ssrc = _unpack("!II", data, start, end)
    body = start + 8
    if fmt == 1:
        return PictureLossIndication(ssrc=ssrc, media_ssrc=media_ssrc)
    if fmt == 4:
        requests = []
        for item in range(body, end - 7, 8):
            target, command = struct.unpack_from("!IB", data, item)
            requests.append((target, command))
        return FullIntraRequest(ssrc=ssrc, requests=tuple(requests))
    if fmt == 15 and data[body : body + 4] == b"REMB" and body + 8 <= end:
        count = data[body + 4]
        exponent = data[body + 5] >> 2
        mantissa = (data[body + 5] & 3) << 16 | data[body + 6] << 8 | data[body + 7]
        ssrcs = _unpack(f"!{count}I", data, body + 8, end)
        return ReceiverEstimatedBitrate(ssrc=ssrc, bitrate_bps=mantissa << exponent, ssrcs=ssrcs)
    return None


def _parse_source_description(count: int, data: bytes, start: int, end: int) -> SourceDescription:
    cnames: dict[int, str] = {}
    offset = start
    for _ in range(count):
        (ssrc,) = _unpack("!I", data, offset, end)
        offset += 4
        while offset < end and data[offset]:
            if offset + 2 > end or offset + 2 + data[offset + 1] > end:
                raise ProtocolError("rtcp_sdes", offset)
            value = data[offset + 2 : offset + 2 + data[offset + 1]]
            if data[offset] == _SDES_CNAME:
                cnames[ssrc] = value.decode("utf-8", "replace")
            offset += 2 + len(value)
        offset += 4 - (offset - start) % 4  # the null octet and padding to the next 32-bit boundary
    return SourceDescription(cnames=cnames)


# --- Write ----------------------------------------------------------------------------------------


def _write_blocks(reports: Iterable[ReportBlock]) -> bytes:
    return b"".join(
        _BLOCK.pack(
            block.ssrc,
            block.fraction_lost << 24 | block.packets_lost & 0xFFFFFF,
            block.highest_sequence & 0xFFFFFFFF,
            block.jitter & 0xFFFFFFFF,
            block.last_sender_report,
            block.delay_since_last_sender_report,
        )
        for block in reports
    )


def write_sender_report(report: SenderReport) -> bytes:
    """One SR; counters wrap at 32 bits as section 6.4.1 lets them."""
    return _SENDER_REPORT.pack(
        0x80 | len(report.reports),
        _SR,
        6 + 6 * len(report.reports),
        report.ssrc,
        report.ntp_time,
        report.rtp_timestamp & 0xFFFFFFFF,
        report.packet_count & 0xFFFFFFFF,
        report.octet_count & 0xFFFFFFFF,
    ) + _write_blocks(report.reports)


def write_receiver_report(ssrc: int, reports: Sequence[ReportBlock] = ()) -> bytes:
    return struct.pack("!BBHI", 0x80 | len(reports), _RR, 1 + 6 * len(reports), ssrc) + _write_blocks(reports)


def write_source_description(cnames: dict[int, str]) -> bytes:
    chunks = b""
    for ssrc, cname in cnames.items():
        value = cname.encode()
        chunk = struct.pack("!IBB", ssrc, _SDES_CNAME, len(value)) + value
        chunks += chunk + bytes(4 - len(chunk) % 4)
    return struct.pack("!BBH", 0x80 | len(cnames), _SDES, len(chunks) // 4) + chunks


def write_bye(ssrcs: Sequence[int]) -> bytes:
    return struct.pack(f"!BBH{len(ssrcs)}I", 0x80 | len(ssrcs), _BYE, len(ssrcs), *ssrcs)


def write_nack(ssrc: int, media_ssrc: int, lost: Sequence[int]) -> bytes:
    """`lost`: 16-bit sequence numbers in rising order (they may wrap)."""
    items: list[tuple[int, int]] = []
    for sequence_number in lost:
        if items:
            packet_id, bitmask = items[-1]
            distance = (sequence_number - packet_id) & 0xFFFF
            if distance <= 16:
                if distance:
                    items[-1] = (packet_id, bitmask | 1 << (distance - 1))
                continue
        items.append((sequence_number, 0))
    body = b"".join(struct.pack("!HH", *item) for item in items)
    return struct.pack("!BBHII", 0x81, _RTPFB, 2 + len(items), ssrc, media_ssrc) + body


def write_pli(ssrc: int, media_ssrc: int) -> bytes:
    return struct.pack("!BBHII", 0x81, _PSFB, 2, ssrc, media_ssrc)


def write_remb(ssrc: int, bitrate_bps: int, ssrcs: Sequence[int]) -> bytes:
    exponent = max(0, bitrate_bps.bit_length() - 18)
    mantissa = bitrate_bps >> exponent
    return struct.pack(
        f"!BBHII4sBBH{len(ssrcs)}I",
        0x8F,
        _PSFB,
        4 + len(ssrcs),
        ssrc,
        0,
        b"REMB",
        len(ssrcs),
        exponent << 2 | mantissa >> 16,
        mantissa & 0xFFFF,
        *ssrcs,
    )
