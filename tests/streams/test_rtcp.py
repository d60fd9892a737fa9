"""RTCP against aiortc's reader and writer, and against garbage."""

from __future__ import annotations

import contextlib

import pytest
from aiortc import rtp
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams.rtcp import (
    Bye,
    FullIntraRequest,
    Nack,
    PictureLossIndication,
    ReceiverEstimatedBitrate,
    ReceiverReport,
    ReportBlock,
    SenderReport,
    SourceDescription,
    ntp_from_unix,
    parse_rtcp,
    write_bye,
    write_nack,
    write_pli,
    write_receiver_report,
    write_remb,
    write_sender_report,
    write_source_description,
)

u32 = st.integers(0, 0xFFFFFFFF)
blocks = st.builds(
    ReportBlock,
    ssrc=u32,
    fraction_lost=st.integers(0, 255),
    packets_lost=st.integers(-0x800000, 0x7FFFFF),
    highest_sequence=u32,
    jitter=u32,
    last_sender_report=u32,
    delay_since_last_sender_report=u32,
)
sender_reports = st.builds(
    SenderReport,
    ssrc=u32,
    ntp_time=st.integers(0, 2**64 - 1),
    rtp_timestamp=u32,
    packet_count=u32,
    octet_count=u32,
    reports=st.lists(blocks, max_size=31).map(tuple),
)


@given(sender_reports)
def test_sender_report_round_trip_and_aiortc_agrees(report: SenderReport):
    data = write_sender_report(report)
    assert parse_rtcp(data) == [report]
    (theirs,) = rtp.RtcpPacket.parse(data)
    assert theirs.sender_info.ntp_timestamp == report.ntp_time
    assert theirs.sender_info.rtp_timestamp == report.rtp_timestamp
    assert [one.packets_lost for one in theirs.reports] == [one.packets_lost for one in report.reports]


@given(u32, st.lists(blocks, max_size=31))
def test_receiver_report_round_trip(ssrc: int, reports: list[ReportBlock]):
    expected = ReceiverReport(ssrc=ssrc, reports=tuple(reports))
    assert parse_rtcp(write_receiver_report(ssrc, reports)) == [expected]


def test_aiortc_receiver_report_is_read():
    info = rtp.RtcpReceiverInfo(
        ssrc=7, fraction_lost=64, packets_lost=-2, highest_sequence=70_000, jitter=9, lsr=5, dlsr=6
    )
    (report,) = parse_rtcp(bytes(rtp.RtcpRrPacket(ssrc=1, reports=[info])))
    assert report == ReceiverReport(
        ssrc=1,
        reports=(
            ReportBlock(
                ssrc=7,
                fraction_lost=64,
                packets_lost=-2,
                highest_sequence=70_000,
                jitter=9,
                last_sender_report=5,
                delay_since_last_sender_report=6,
            ),
        ),
    )


@given(st.dictionaries(u32, st.text("abcdefgh-.@", max_size=30), max_size=5))
def test_source_description_round_trip(cnames: dict[int, str]):
    data = write_source_description(cnames)
    assert len(data) % 4 == 0
    assert parse_rtcp(data) == [SourceDescription(cnames=cnames)]


def test_aiortc_reads_two_chunks_of_our_cnames():
    """It doesn't align chunks to 32 bits as RFC 3550 section 6.5 says, so ours have a multiple of four
    letters."""
    (theirs,) = rtp.RtcpPacket.parse(write_source_description({1: "a1B2c3D4e5F6g7H8", 2: "a1B2c3D4e5F6g7H8"}))
    assert [(chunk.ssrc, chunk.items) for chunk in theirs.chunks] == [
        (1, [(1, b"a1B2c3D4e5F6g7H8")]),
        (2, [(1, b"a1B2c3D4e5F6g7H8")]),
    ]


@given(st.integers(0, 0xFFFF), st.lists(st.integers(1, 40), max_size=100))
def test_nack_round_trip_over_the_wrap(first: int, steps: list[int]):
    lost = [first]
    for step in steps:
        lost.append((lost[-1] + step) & 0xFFFF)
    data = write_nack(1, 2, lost)
    assert parse_rtcp(data) == [Nack(ssrc=1, media_ssrc=2, lost=tuple(lost))]
    (theirs,) = rtp.RtcpPacket.parse(data)
    assert [number & 0xFFFF for number in theirs.lost] == lost


def test_nack_packs_seventeen_numbers_in_one_item():
    assert len(write_nack(1, 2, range(100, 117))) == 16
    assert len(write_nack(1, 2, range(100, 118))) == 20


@given(u32, u32)
def test_pli_and_fir(ssrc: int, media_ssrc: int):
    assert parse_rtcp(write_pli(ssrc, media_ssrc)) == [
        PictureLossIndication(ssrc=ssrc, media_ssrc=media_ssrc)
    ]
    fir = bytes(
        rtp.RtcpPsfbPacket(fmt=4, ssrc=ssrc, media_ssrc=0, fci=media_ssrc.to_bytes(4, "big") + b"\x07\0\0\0")
    )
    assert parse_rtcp(fir) == [FullIntraRequest(ssrc=ssrc, requests=((media_ssrc, 7),))]


@given(st.integers(1, 10_000_000_000), st.lists(u32, max_size=6))
def test_remb_is_close_and_aiortc_agrees(bitrate: int, ssrcs: list[int]):
    data = write_remb(1, bitrate, ssrcs)
    (packet,) = parse_rtcp(data)
    assert isinstance(packet, ReceiverEstimatedBitrate)
    assert packet.ssrcs == tuple(ssrcs)
    assert bitrate * 0.99998 <= packet.bitrate_bps <= bitrate
    (theirs,) = rtp.RtcpPacket.parse(data)
    assert rtp.unpack_remb_fci(theirs.fci) == (packet.bitrate_bps, ssrcs)


def test_bye_and_compounds():
    compound = write_receiver_report(1) + write_bye([1, 2]) + write_pli(1, 2)
    assert parse_rtcp(compound) == [
        ReceiverReport(ssrc=1),
        Bye(ssrcs=(1, 2)),
        PictureLossIndication(ssrc=1, media_ssrc=2),
    ]


def test_unknown_kinds_are_skipped():
    xr = bytes.fromhex("80cf000100000001")
    twcc = bytes.fromhex("8fcd0004000000010000000200010001000000002000000000"[:40])
    assert parse_rtcp(xr + twcc + write_pli(1, 2)) == [PictureLossIndication(ssrc=1, media_ssrc=2)]


COMPOUND = (
    write_sender_report(
        SenderReport(
            ssrc=1,
            ntp_time=2,
            rtp_timestamp=3,
            packet_count=4,
            octet_count=5,
            reports=(
                ReportBlock(
                    ssrc=6,
                    fraction_lost=7,
                    packets_lost=8,
                    highest_sequence=9,
                    jitter=10,
                    last_sender_report=11,
                    delay_since_last_sender_report=12,
                ),
            ),
        )
    )
    + write_source_description({1: "gateway"})
    + write_nack(1, 2, [3, 4, 900])
    + write_remb(1, 2_000_000, [2])
    + write_bye([1])
)


def test_truncations_raise_only_protocol_errors():
    for size in range(1, len(COMPOUND)):
        try:
            parse_rtcp(COMPOUND[:size])
        except ProtocolError:
            continue
    with pytest.raises(ProtocolError):
        parse_rtcp(COMPOUND[:-1])
    with pytest.raises(ProtocolError):
        parse_rtcp(COMPOUND + b"\x80")


@given(st.integers(0, len(COMPOUND) * 8 - 1))
def test_bit_flips_raise_only_protocol_errors(bit: int):
    data = bytearray(COMPOUND)
    data[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(ProtocolError):
        parse_rtcp(bytes(data))


@given(st.binary(max_size=100))
def test_garbage_raises_only_protocol_errors(data: bytes):
    with contextlib.suppress(ProtocolError):
        parse_rtcp(data)


def test_ntp_time():
    assert ntp_from_unix(0.0) == 2_208_988_800 << 32
    assert ntp_from_unix(1.5) - ntp_from_unix(0.0) == 3 << 31
