"""Depacketiser, SPS and timeline. The packetiser here is the test's own: a shared one would cancel out shared bugs."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams.h264 import Depacketizer, Timeline
from gateway.streams.media import AccessUnit
from gateway.streams.sps import parse_sprop, parse_sps

# x264 baseline 3.0 320x240 and High 1920x1080 of an IP camera, as they stand in SDP.
SPS = bytes.fromhex("6742c01ed90141fa1000000300100000030320f162e480")
PPS = bytes.fromhex("68cb83cb20")
IDR = b"\x65\x88" + b"\x11" * 30
P = b"\x41\x9a" + b"\x22" * 20
P_DISPOSABLE = b"\x01\x9a" + b"\x33" * 4000
B = b"\x01\xa8" + b"\x44" * 20
SSRC = 0x11223344


class Camera:
    """Packetises as RFC 6184 says and as cameras do otherwise."""

    def __init__(self, depacketizer: Depacketizer, *, channel: int = 0, framed: bool = True) -> None:
        self.depacketizer = depacketizer
        self.sequence_number = 65_530
        self.now = 100.0
        self._channel = channel
        self._framed = framed

    def packet(self, payload: bytes, timestamp: int, marker: bool = False, ssrc: int = SSRC) -> bytes:
        header = struct.pack(
            "!BBHII", 0x80, 96 | marker << 7, self.sequence_number, timestamp & 0xFFFFFFFF, ssrc
        )
        self.sequence_number = (self.sequence_number + 1) & 0xFFFF
        return header + payload

    def send(self, payload: bytes, timestamp: int, marker: bool = False, ssrc: int = SSRC) -> None:
        self.give(self.packet(payload, timestamp, marker, ssrc))

    def give(self, packet: bytes) -> None:
        if self._framed:
            data = bytearray(struct.pack("!BBH", 0x24, self._channel, len(packet)) + packet)
            end = self.depacketizer.feed(data, 0, len(data), self.now)
            if end != len(data):  # too short for the fast path, as the shell does
                self.depacketizer.packet(data, 4, len(data), self.now)
        else:
            self.depacketizer.packet(packet, 0, len(packet), self.now)

    def unit(self, nal_units: list[bytes], timestamp: int, *, size: int = 1400, marker: bool = True) -> None:
        payloads = [payload for nal_unit in nal_units for payload in fragments(nal_unit, size)]
        for index, payload in enumerate(payloads):
            self.send(payload, timestamp, marker and index == len(payloads) - 1)


def fragments(nal_unit: bytes, size: int) -> Iterator[bytes]:
    if len(nal_unit) <= size:
        yield nal_unit
        return
    indicator, kind = nal_unit[0] & 0xE0 | 28, nal_unit[0] & 31
    body = nal_unit[1:]
    step = size - 2
    for at in range(0, len(body), step):
        flags = (0x80 if at == 0 else 0) | (0x40 if at + step >= len(body) else 0)
        yield bytes((indicator, flags | kind)) + body[at : at + step]


def stap_a(nal_units: list[bytes]) -> bytes:
    return b"\x78" + b"".join(struct.pack("!H", len(nal_unit)) + nal_unit for nal_unit in nal_units)


@pytest.fixture
def units() -> list[AccessUnit]:
    return []


@pytest.fixture
def depacketizer(units: list[AccessUnit]) -> Depacketizer:
    return Depacketizer(units.append, payload_type=96)


@pytest.fixture(params=[True, False], ids=["tcp", "udp"])
def camera(request: pytest.FixtureRequest, depacketizer: Depacketizer) -> Camera:
    return Camera(depacketizer, framed=request.param)


# -- roundtrip ---------------------------------------------------------------------------------------------------------


def slices() -> st.SearchStrategy[bytes]:
    body = st.binary(min_size=1, max_size=120).filter(
        lambda data: b"\0\0\1" not in data and data[-1:] != b"\0"
    )
    return body.map(lambda data: b"\x41\x9a" + data)


@settings(max_examples=150, deadline=None)
@given(
    pictures=st.lists(st.lists(slices(), min_size=1, max_size=3), min_size=1, max_size=6),
    size=st.integers(4, 60),
    framed=st.booleans(),
    cuts=st.lists(st.integers(0, 5000), max_size=8),
    marker=st.booleans(),
)
def test_depacketize_packetize_is_identity(
    pictures: list[list[bytes]], size: int, framed: bool, cuts: list[int], marker: bool
) -> None:
    units: list[AccessUnit] = []
    depacketizer = Depacketizer(units.append, payload_type=96, channel=2)
    camera = Camera(depacketizer, channel=2, framed=framed)
    stream: list[bytes] = []
    camera.give = stream.append  # type: ignore[method-assign]
    camera.unit([SPS, PPS, IDR], 0, size=size, marker=marker)
    for number, picture in enumerate(pictures, 1):
        continued = [picture[0], *(nal[:1] + b"\x1a" + nal[2:] for nal in picture[1:])]
        pictures[number - 1] = continued
        camera.unit(continued, number * 3600, size=size, marker=marker)
    camera.unit([P], 10**6, marker=True)
    if framed:
        data = b"".join(struct.pack("!BBH", 0x24, 2, len(packet)) + packet for packet in stream)
        points = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        tail = b""
        for begin, end in itertools.pairwise(points):
            buffer = bytearray(tail + data[begin:end])
            stop = depacketizer.feed(buffer, 0, len(buffer), 1.0)
            while len(buffer) - stop >= 4 and stop + 4 + int.from_bytes(
                buffer[stop + 2 : stop + 4], "big"
            ) <= len(buffer):
                length = int.from_bytes(buffer[stop + 2 : stop + 4], "big")
                depacketizer.packet(buffer, stop + 4, stop + 4 + length, 1.0)
                stop = depacketizer.feed(buffer, stop + 4 + length, len(buffer), 1.0)
            tail = bytes(buffer[stop:])
            buffer[:] = b"\xee" * len(buffer)  # the receive buffer belongs to others now
        assert tail == b""
    else:
        for packet in stream:
            depacketizer.packet(packet, 0, len(packet), 1.0)
    assert [list(unit.nal_units) for unit in units] == [[SPS, PPS, IDR], *pictures, [P]]
    assert [unit.keyframe for unit in units] == [True] + [False] * (len(pictures) + 1)
    assert depacketizer.lost_packets == depacketizer.damaged_units == 0
    assert depacketizer.packets == len(stream)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=40)), max_size=30), st.booleans())
def test_any_packets_raise_nothing(packets: list[tuple[int, bytes]], framed: bool) -> None:
    units: list[AccessUnit] = []
    camera = Camera(Depacketizer(units.append, payload_type=96), framed=framed)
    for number, payload in packets:
        camera.sequence_number = number
        camera.send(payload, number)
        camera.give(payload)
    assert all(unit.nal_units for unit in units)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 7)), min_size=1, max_size=6))
def test_bit_flips_raise_nothing_and_bound_the_output(flips: list[tuple[int, int]]) -> None:
    units: list[AccessUnit] = []
    depacketizer = Depacketizer(units.append, payload_type=96)
    camera = Camera(depacketizer)
    stream: list[bytes] = []
    camera.give = stream.append  # type: ignore[method-assign]
    camera.unit([SPS, PPS, IDR + b"\x55" * 3000], 0)
    camera.unit([P], 3600)
    data = bytearray(b"".join(struct.pack("!BBH", 0x24, 0, len(packet)) + packet for packet in stream))
    for at, bit in flips:
        data[at % len(data)] ^= 1 << bit
    assert depacketizer.feed(data, 0, len(data), 1.0) <= len(data)
    assert len(units) <= 8


# -- oddities of cameras (each one seen in the field) ------------------------------------------------------------------


def test_stap_a_and_parameter_sets(camera: Camera, units: list[AccessUnit]) -> None:
    camera.send(stap_a([SPS, PPS, b"\x06\x05\x01\x00\x80"]), 0)
    camera.send(IDR, 0, marker=True)
    assert [unit.nal_units for unit in units] == [(SPS, PPS, b"\x06\x05\x01\x00\x80", IDR)]


def test_parameter_sets_with_the_marker(camera: Camera, units: list[AccessUnit]) -> None:
    """Complaints about the peers, item 13: Tapo TC70, Reolink Duo 2."""
    camera.send(SPS, 0, marker=True)
    camera.send(PPS, 0, marker=True)
    camera.send(IDR, 0, marker=True)
    assert [unit.nal_units for unit in units] == [(SPS, PPS, IDR)]


def test_annex_b_in_one_packet(camera: Camera, units: list[AccessUnit]) -> None:
    """Complaints about the peers, item 13."""
    camera.send(SPS + b"\0\0\0\1" + PPS + b"\0\0\1" + IDR, 0, marker=True)
    camera.send(b"\0\0\0\1" + P, 3600, marker=True)
    assert [unit.nal_units for unit in units] == [(SPS, PPS, IDR), (P,)]


def test_annex_b_in_fragments(camera: Camera, units: list[AccessUnit]) -> None:
    camera.unit([SPS + b"\0\0\0\1" + PPS + b"\0\0\0\1" + IDR], 0, size=20)
    assert [unit.nal_units for unit in units] == [(SPS, PPS, IDR)]


def test_packets_of_ten_thousand_bytes(camera: Camera, units: list[AccessUnit]) -> None:
    """Complaints about the peers, item 13: Tapo over TCP."""
    camera.unit([SPS, PPS, IDR + b"\x77" * 9_990], 0, size=20_000)
    assert len(units[0].nal_units[2]) == len(IDR) + 9_990


def test_never_a_marker(camera: Camera, units: list[AccessUnit]) -> None:
    """Complaints about the peers, item 13: FLIR M400."""
    for number in range(4):
        camera.unit([SPS, PPS, IDR] if number == 0 else [P], number * 3600, marker=False)
    assert [unit.nal_units for unit in units] == [(SPS, PPS, IDR), (P,), (P,)]


def test_marker_on_every_slice_is_learned(
    camera: Camera, depacketizer: Depacketizer, units: list[AccessUnit]
) -> None:
    second = b"\x41\x1a" + b"\x23" * 20
    camera.unit([SPS, PPS, IDR], 0)
    for number in (1, 2):
        camera.send(P, number * 3600, marker=True)
        camera.send(second, number * 3600, marker=True)
    camera.send(SPS, 9 * 3600)
    camera.send(PPS, 9 * 3600)
    camera.send(IDR, 9 * 3600, marker=True)
    camera.send(b"\x65\x08" + b"\x12" * 9, 9 * 3600, marker=True)
    camera.send(P, 10 * 3600, marker=True)
    camera.send(second, 10 * 3600, marker=True)
    camera.send(P, 11 * 3600, marker=True)
    assert depacketizer.faults == {"marker_on_every_slice": 1}
    assert [unit.nal_units for unit in units[-2:]] == [
        (SPS, PPS, IDR, b"\x65\x08" + b"\x12" * 9),
        (P, second),
    ]


def test_parameter_sets_of_the_sdp_come_before_every_idr(units: list[AccessUnit]) -> None:
    camera = Camera(Depacketizer(units.append, payload_type=96, parameter_sets=[SPS, PPS]))
    camera.send(IDR, 0, marker=True)
    camera.send(P, 3600, marker=True)
    camera.send(IDR, 7200, marker=True)
    assert [unit.nal_units for unit in units] == [(SPS, PPS, IDR), (P,), (SPS, PPS, IDR)]


def test_delimiters_and_fillers_are_left_out(camera: Camera, units: list[AccessUnit]) -> None:
    camera.unit([b"\x09\x10", SPS, PPS, IDR, b"\x0c\xff\xff\x80"], 0)
    assert [unit.nal_units for unit in units] == [(SPS, PPS, IDR)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (25, "stap_b_unsupported"),
        (26, "mtap16_unsupported"),
        (27, "mtap24_unsupported"),
        (29, "fu_b_unsupported"),
    ],
)
def test_refused_types_have_a_name(
    camera: Camera, depacketizer: Depacketizer, kind: int, reason: str
) -> None:
    camera.send(bytes((0x60 | kind, 0, 1, 2, 3, 4)), 0)
    assert depacketizer.faults == {reason: 1}


def test_header_extension_csrc_and_padding(depacketizer: Depacketizer, units: list[AccessUnit]) -> None:
    camera = Camera(depacketizer)
    camera.unit([SPS, PPS], 0, marker=False)
    plain = camera.packet(IDR, 0, marker=True)
    camera.give(bytes((0xB1,)) + plain[1:12] + b"CSRC" + b"\xab\xac\0\1EXT!" + plain[12:] + b"\0\0\3")
    assert [unit.nal_units for unit in units] == [(SPS, PPS, IDR)]


# -- loss --------------------------------------------------------------------------------------------------------------


def start(camera: Camera) -> None:
    camera.unit([SPS, PPS, IDR], 0)


def test_a_gap_costs_everything_up_to_the_next_keyframe(
    camera: Camera, depacketizer: Depacketizer, units: list[AccessUnit]
) -> None:
    start(camera)
    camera.packet(P, 3600, marker=True)
    camera.unit([P], 7200)
    camera.unit([P], 10800)
    camera.unit([IDR], 14400)
    assert [unit.timestamp for unit in units] == [0, 14400]
    assert depacketizer.lost_packets == 1
    assert depacketizer.dropped_units == 2


def test_a_gap_inside_a_disposable_picture_costs_only_that(
    camera: Camera, depacketizer: Depacketizer, units: list[AccessUnit]
) -> None:
    start(camera)
    first, _second, *rest = fragments(P_DISPOSABLE, 900)
    camera.send(first, 3600)
    camera.packet(_second, 3600)
    for index, payload in enumerate(rest):
        camera.send(payload, 3600, marker=index == len(rest) - 1)
    camera.unit([P], 7200)
    assert [unit.timestamp for unit in units] == [0, 7200]
    assert depacketizer.damaged_units == 1


def test_a_keyframe_whose_start_was_lost_is_no_keyframe(camera: Camera, units: list[AccessUnit]) -> None:
    start(camera)
    camera.packet(b"\x65\x88first slice", 3600)
    camera.send(b"\x65\x08second slice", 3600, marker=True)
    camera.unit([P], 7200)
    camera.unit([IDR], 10800)
    assert [unit.timestamp for unit in units] == [0, 10800]


def test_repeated_packets_are_left_out(
    camera: Camera, depacketizer: Depacketizer, units: list[AccessUnit]
) -> None:
    start(camera)
    packet = camera.packet(P, 3600, marker=True)
    camera.give(packet)
    camera.give(packet)
    camera.unit([P], 7200)
    assert [unit.timestamp for unit in units] == [0, 3600, 7200]
    assert depacketizer.lost_packets == 0


def test_a_source_that_counts_anew_is_followed(camera: Camera, units: list[AccessUnit]) -> None:
    start(camera)
    camera.sequence_number -= 30_000
    for number in range(1, 40):
        camera.unit([SPS, PPS, IDR], number * 3600)
    assert len(units) > 30


def test_a_new_ssrc_starts_with_its_keyframe(
    camera: Camera, depacketizer: Depacketizer, units: list[AccessUnit]
) -> None:
    start(camera)
    camera.now += 1.0
    camera.send(P, 77, marker=True, ssrc=5)
    camera.send(IDR, 3677, marker=True, ssrc=5)
    assert [unit.keyframe for unit in units] == [True, True]
    assert units[1].timestamp > units[0].timestamp
    assert depacketizer.faults == {"ssrc_changed": 1}


def test_endless_fragments_do_not_fill_the_memory(depacketizer: Depacketizer) -> None:
    """Complaints about the peers, item 8."""
    camera = Camera(depacketizer)
    start(camera)
    camera.send(b"\x7c\x85" + b"x" * 60_000, 3600)
    for _ in range(300):
        camera.send(b"\x7c\x05" + b"x" * 60_000, 3600)
    assert depacketizer.faults["oversized_access_unit"] >= 1


# -- B-frames, SPS, timeline -------------------------------------------------------------------------------------------


def encode(width: int, height: int, **options: str) -> list[bytes]:
    """NAL units of half a second out of x264, which knows nothing of our parser."""
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    context.options = {"preset": "veryfast", **options}
    packets = []
    for number in range(12):
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes((number * 9,)) * plane.buffer_size)
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    data = b"".join(bytes(packet) for packet in packets)
    return [part.rstrip(b"\0") for part in data.split(b"\0\0\1") if part.rstrip(b"\0")]


@pytest.mark.parametrize(("frames", "reordering"), [("0", False), ("2", True)])
def test_b_frames_of_a_real_encoder_are_noticed(
    camera: Camera, depacketizer: Depacketizer, units: list[AccessUnit], frames: str, reordering: bool
) -> None:
    """Complaints about the peers, item 6."""
    timestamp = 0
    for nal_unit in encode(640, 360, bf=frames, profile="main", threads="1"):
        camera.unit([nal_unit], timestamp)
        timestamp += 3600 if 1 <= nal_unit[0] & 31 <= 5 else 0
    assert depacketizer.reordering is reordering
    assert bool(depacketizer.b_slices) is reordering
    assert len(units) < 12 if reordering else len(units) == 12


def test_b_slices_without_reordering_are_let_through(camera: Camera, depacketizer: Depacketizer) -> None:
    camera.unit([SPS, PPS, IDR], 0)  # Baseline
    camera.unit([B], 3600)
    assert depacketizer.b_slices == 1
    assert not depacketizer.reordering


@pytest.mark.parametrize(
    ("width", "height", "profile", "options"),
    [
        (1920, 1080, "High", {}),
        (640, 360, "Main", {"profile": "main"}),
        (638, 350, "Constrained Baseline", {"profile": "baseline"}),
        (704, 576, "High", {"x264-params": "interlaced=1"}),
        (1920, 1080, "High", {"x264-params": "interlaced=1"}),
    ],
)
def test_sps_of_a_real_encoder(width: int, height: int, profile: str, options: dict[str, str]) -> None:
    nal_unit = next(nal for nal in encode(width, height, threads="1", **options) if nal[0] & 31 == 7)
    sps = parse_sps(nal_unit)
    assert (sps.width, sps.height) == (width, height)
    assert sps.profile.startswith(profile + "@")
    assert sps.fps == 25.0
    assert sps.may_reorder is (profile != "Constrained Baseline")


def test_sps_without_vui() -> None:
    sps = parse_sps(parse_sprop("Z2QAM6wVFKCgL/lQ")[0])
    assert sps.fps is None
    assert sps.may_reorder
    assert sps.profile_level_id == "640033"


def test_damaged_sps_raise_only_protocol_errors() -> None:
    for nal_unit in (SPS, parse_sprop("Z2QAHqwsaoLA9puCgIKgAAADACAAAAMD0IAA")[0]):
        for cut in range(len(nal_unit)):
            for bit in range(8):
                damaged = bytearray(nal_unit)
                damaged[cut] ^= 1 << bit
                for data in (bytes(damaged), nal_unit[:cut]):
                    with contextlib.suppress(ProtocolError):
                        parse_sps(data)


def test_sprop_leaves_out_what_is_no_base64() -> None:
    assert parse_sprop("%%%,aO48sA==") == [bytes.fromhex("68ee3cb0")]
    assert parse_sprop("AAAAAWjuPLA=") == [bytes.fromhex("68ee3cb0")]
    assert parse_sprop("") == []


def test_timeline_unwraps() -> None:
    timeline = Timeline()
    assert timeline.at(0xFFFFFFFF - 1800, 0.0) == 0
    assert timeline.at(1799, 0.04) == 3600


def test_timeline_anchors_anew_on_jumps() -> None:
    """Complaints about the peers, item 7."""
    timeline = Timeline()
    timeline.at(1000, 10.0)
    assert timeline.at(90_000_000, 10.04) in (3599, 3600)  # where the arrival clock says
    assert timeline.jumps == 1
    at = timeline.position
    assert timeline.at(5, 10.08) > at
    assert timeline.jumps == 2
    at = timeline.position
    assert timeline.at(3605, 10.12) == at + 3600


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 5)), max_size=50))
def test_timeline_never_runs_backwards(steps: list[tuple[int, float]]) -> None:
    timeline = Timeline()
    now = 0.0
    before = 0
    for timestamp, step in steps:
        now += step
        position = timeline.at(timestamp, now)
        assert position >= before
        before = position
