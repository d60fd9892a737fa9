"""RTP bytes, the H.264 packetiser against independent depacketisers, and the packet history."""

from __future__ import annotations

import contextlib

import pytest
from aiortc.codecs.h264 import H264PayloadDescriptor
from aiortc.codecs.vpx import VpxPayloadDescriptor
from aiortc.rtp import RtpPacket as AiortcPacket
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams.packets import (
    MAX_PAYLOAD_SIZE,
    MAX_SEGMENTS,
    PacketGroup,
    PacketHistory,
    RtpPacket,
    Unwrapper,
    h264_starts_keyframe,
    packetize_h264,
    parse_rtp,
    vp8_starts_keyframe,
    write_rtp,
)

GOLDEN = bytes.fromhex("90e6 1234 00015f90 deadbeef bede 0002 10 61 22 010203 0000 6588".replace(" ", ""))


def depacketize(payloads: list[bytes]) -> list[bytes]:
    """RFC 6184 by the book, for the tests only."""
    units: list[bytes] = []
    fragment: bytearray | None = None
    for payload in payloads:
        kind = payload[0] & 31
        if kind == 24:
            at = 1
            while at < len(payload):
                size = int.from_bytes(payload[at : at + 2], "big")
                units.append(payload[at + 2 : at + 2 + size])
                at += 2 + size
        elif kind == 28:
            if payload[1] & 0x80:
                assert fragment is None, "a fragmented NAL unit starts inside another"
                fragment = bytearray([payload[0] & 0xE0 | payload[1] & 0x1F])
            assert fragment is not None, "a fragment without a start"
            fragment += payload[2:]
            if payload[1] & 0x40:
                units.append(bytes(fragment))
                fragment = None
        else:
            units.append(payload)
    assert fragment is None, "a NAL unit without an end"
    return units


# (nal_ref_idc, nal_unit_type, size, fill): pictures as recipes, so that failures print small.
recipes = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([1, 5, 7, 8]),
        st.one_of(st.integers(0, 40), st.integers(1100, 1300), st.integers(0, 90_000)),
        st.integers(0, 255),
    ),
    max_size=5,
)


def cook(recipe: list[tuple[int, int, int, int]]) -> list[bytes]:
    return [bytes([ref << 5 | kind]) + bytes([fill]) * size for ref, kind, size, fill in recipe]


@settings(max_examples=60)
@given(recipes)
def test_what_goes_in_comes_out(recipe: list[tuple[int, int, int, int]]):
    units = cook(recipe)
    groups = packetize_h264(units)
    assert depacketize([payload for group in groups for payload in group]) == units


@settings(max_examples=60)
@given(recipes)
def test_groups_fit_one_segmented_send(recipe: list[tuple[int, int, int, int]]):
    for group in packetize_h264(cook(recipe)):
        assert 1 <= len(group) <= MAX_SEGMENTS
        sizes = [len(payload) for payload in group]
        assert set(sizes[:-1]) <= {sizes[0]}
        assert 0 < sizes[-1] <= sizes[0] <= MAX_PAYLOAD_SIZE
        assert sum(size + 28 for size in sizes) < 65_536


@settings(max_examples=60)
@given(st.integers(MAX_PAYLOAD_SIZE, 50_000))
def test_fragments_are_balanced_and_aiortc_reads_them(size: int):
    unit = b"\x65" + bytes(range(251)) * (size // 251 + 1)
    (group,) = packetize_h264([unit])
    assert len(group[0]) - len(group[-1]) < len(group), "the last fragment is no leftover"
    read = b"".join(H264PayloadDescriptor.parse(payload)[1] for payload in group)
    assert read == b"\0\0\0\1" + unit


def test_parameter_sets_are_a_group_of_their_own():
    sps, pps, idr = b"\x67\x42\xe0\x1f", b"\x68\xce", b"\x65" + bytes(3000)
    groups = packetize_h264([sps, pps, idr])
    assert groups[0] == (b"\x78\x00\x04\x67\x42\xe0\x1f\x00\x02\x68\xce",)
    assert len(groups) == 2
    assert len(groups[1]) == 3


def test_each_slice_is_a_group():
    assert packetize_h264([b"\x41a", b"\x41bb", b"\x41c"]) == [(b"\x41a",), (b"\x41bb",), (b"\x41c",)]


def test_what_decoders_do_without_is_left_out():
    delimiter, sei, filler, slice_ = b"\x09\xf0", b"\x06" + bytes(9000), b"\x0c\xff", b"\x41x"
    assert packetize_h264([delimiter, sei, slice_, filler, b""]) == [(slice_,)]
    assert packetize_h264([sei]) == []


def test_a_keyframe_is_split_at_50_packets():
    groups = packetize_h264([b"\x65" + bytes(100_000)])
    assert [len(group) for group in groups] == [50, 35]
    assert [index for index, group in enumerate(groups) for p in group if p[1] & 0x80] == [0]
    assert groups[-1][-1][1] & 0x40


def test_monstrous_parameter_sets_are_split_too():
    groups = packetize_h264([b"\x67" + bytes(70_000), b"\x65"])
    assert [len(group) for group in groups] == [50, 10, 1]


def test_keyframe_starts():
    assert h264_starts_keyframe(b"\x67\x42")
    assert h264_starts_keyframe(b"\x65\x88")
    assert h264_starts_keyframe(b"\x78\x00\x04\x67\x42\xe0\x1f")
    assert h264_starts_keyframe(b"\x7c\x85")
    assert not h264_starts_keyframe(b"\x7c\x05")  # not its first fragment
    assert not h264_starts_keyframe(b"\x7c\x81")
    assert not h264_starts_keyframe(b"\x41")
    assert not h264_starts_keyframe(b"\x78\x00")
    assert not h264_starts_keyframe(b"\x7c")
    assert not h264_starts_keyframe(b"")


@given(st.binary(max_size=12))
def test_keyframe_tests_take_anything(payload: bytes):
    h264_starts_keyframe(payload)
    vp8_starts_keyframe(payload)


@given(
    st.one_of(st.none(), st.integers(0, 32767)),
    st.one_of(st.none(), st.integers(0, 255)),
    st.one_of(st.none(), st.integers(0, 31)),
    st.booleans(),
    st.integers(0, 7),
    st.integers(0, 1),
)
def test_vp8_keyframe_behind_every_descriptor(picture_id, tl0, keyidx, interframe, partition, start):
    descriptor = VpxPayloadDescriptor(
        partition_start=start,
        partition_id=partition,
        picture_id=picture_id,
        tl0picidx=tl0,
        tid=(1, 0) if keyidx is not None else None,
        keyidx=keyidx,
    )
    payload = bytes(descriptor) + bytes([0x10 | interframe])
    assert vp8_starts_keyframe(payload) == (start == 1 and partition == 0 and not interframe)


def test_golden_packet_is_read_and_written():
    packet = parse_rtp(GOLDEN)
    assert packet == RtpPacket(
        payload_type=102,
        marker=True,
        sequence_number=0x1234,
        timestamp=90_000,
        ssrc=0xDEADBEEF,
        payload=b"\x65\x88",
        extensions={1: b"a", 2: b"\x01\x02\x03"},
    )
    assert write_rtp(packet) == GOLDEN


def test_every_truncation_of_the_header_is_a_protocol_error():
    for size in range(24):
        with pytest.raises(ProtocolError):
            parse_rtp(GOLDEN[:size])


@given(st.binary(max_size=80))
def test_garbage_raises_only_protocol_errors(data: bytes):
    with contextlib.suppress(ProtocolError):
        parse_rtp(data)


@given(st.integers(0, len(GOLDEN) * 8 - 1))
def test_bit_flips_raise_only_protocol_errors(bit: int):
    data = bytearray(GOLDEN)
    data[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(ProtocolError):
        parse_rtp(data)


packets = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 127),
    marker=st.booleans(),
    sequence_number=st.integers(0, 0xFFFF),
    timestamp=st.integers(0, 0xFFFFFFFF),
    ssrc=st.integers(0, 0xFFFFFFFF),
    payload=st.binary(max_size=40),
    extensions=st.dictionaries(st.integers(1, 14), st.binary(min_size=1, max_size=16), max_size=3),
    padding=st.integers(0, 20),
)


@given(packets)
def test_rtp_round_trip_and_aiortc_agrees(packet: RtpPacket):
    data = write_rtp(packet)
    assert parse_rtp(data) == packet
    theirs = AiortcPacket.parse(data)
    assert (theirs.payload, theirs.sequence_number, theirs.marker) == (
        packet.payload,
        packet.sequence_number,
        int(packet.marker),
    )


def test_csrcs_and_two_byte_extensions():
    header = bytes.fromhex("92600001000000020000000300000004000000051000000205026162070163")
    packet = parse_rtp(header + b"\0" + b"x")
    assert packet.extensions == {5: b"ab", 7: b"c"}
    assert packet.payload == b"x"


@given(st.lists(st.integers(-300, 300), max_size=200))
def test_unwrapper_follows_a_walk(steps: list[int]):
    value, unwrapper = 65_000, Unwrapper(16)
    offset = unwrapper.unwrap(value) - value
    newest = value
    for step in steps:
        value = newest + step
        assert unwrapper.unwrap(value & 0xFFFF) == value + offset
        newest = max(newest, value)


def group(first: int, count: int, size: int = 10) -> PacketGroup:
    payloads = tuple(bytes([index % 256]) * size for index in range(first, first + count))
    return PacketGroup(payloads, first, first * 100, True, count * size, False, first)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), max_size=60))
def test_history_is_bounded_and_right(runs: list[tuple[int, int]]):
    history = PacketHistory(max_packets=100, max_octets=900)
    number = 0
    groups = []
    for count, hole in runs:
        number += hole
        groups.append(group(number, count))
        history.append(groups[-1])
        number += count
    assert len(history) <= 100
    assert history.octets <= 900
    kept = list(history.since(0))
    assert kept == groups[len(groups) - len(kept) :]
    assert history.octets == sum(one.octets for one in kept)
    assert history.first == (kept[0].first if kept else None)
    held = {one.first + index: payload for one in kept for index, payload in enumerate(one.payloads)}
    for wanted in range(-1, number + 2):
        assert history.get(wanted) == held.get(wanted)
    if kept:
        assert list(history.since(kept[-1].first)) == [kept[-1]]
    history.clear()
    assert len(history) == history.octets == 0


def test_history_forgets_what_is_older_than_a_moment():
    history = PacketHistory(max_packets=1000, max_octets=10**6)
    for first in range(0, 50, 5):
        history.append(group(first, 5))
    history.forget_before(2000)  # timestamps are first * 100
    assert history.first == 20
    assert len(history) == 30
    assert history.group_of(19) is None
    history.forget_before(10**9)
    assert (len(history), history.octets, history.first) == (0, 0, None)
