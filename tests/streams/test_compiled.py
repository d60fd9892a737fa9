"""The compiled loop does what the Python loop does, byte for byte, and hands back what it can't do."""

from __future__ import annotations

import gc
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.streams import compiled
from gateway.streams.h264 import Depacketizer
from gateway.streams.media import AccessUnit, Codec
from gateway.streams.packets import PacketGroup, fragment_h264
from gateway.streams.sender import PayloadTypes, SenderState, TrackSender
from gateway.streams.srtp import Profile, SrtpKeys, SrtpSender
from gateway.streams.stream import Stream, TrackKind
from gateway.streams.viewer import Viewer

pytestmark = pytest.mark.skipif(not compiled.available(), reason="the compiled loop was not built here")

SPS = bytes.fromhex("6742c01ed90141fa1000000300100000030320f162e480")
PPS = bytes.fromhex("68cb83cb20")
KEYS = {
    profile: SrtpKeys.derive(profile, bytes(range(16)), bytes(profile.salt_length)) for profile in Profile
}


@given(
    profile=st.sampled_from(Profile),
    payloads=st.lists(st.binary(max_size=1300), min_size=1, max_size=12),
    first_index=st.integers(0, 0xFFFF),
    timestamp=st.integers(0, 0xFFFFFFFF),
    ssrc=st.integers(1, 0xFFFFFFFF),
    payload_type=st.integers(0, 127),
    marker=st.booleans(),
)
def test_both_seal_the_same_bytes(
    profile: Profile,
    payloads: list[bytes],
    first_index: int,
    timestamp: int,
    ssrc: int,
    payload_type: int,
    marker: bool,
) -> None:
    numbers = {
        "first_index": first_index,
        "timestamp": timestamp,
        "ssrc": ssrc,
        "payload_type": payload_type,
        "marker": marker,
    }
    expected = b"".join(SrtpSender.create(KEYS[profile]).seal_group(payloads, **numbers))
    assert b"".join(compiled.CompiledSender(KEYS[profile]).seal_group(payloads, **numbers)) == expected


@pytest.mark.parametrize("first_index", [0xFFFB, 5 << 16 | 0xFFFB, (1 << 48) - 20])
def test_both_count_the_roll_over(first_index: int) -> None:
    """AES-GCM from any index; libsrtp counts by itself, so AES-CM starts at the first one only."""
    for profile in Profile:
        if profile is Profile.AEAD_AES_128_GCM or first_index < 1 << 16:
            numbers = {"timestamp": 1, "ssrc": 2, "payload_type": 3, "marker": True}
            both = (SrtpSender.create(KEYS[profile]), compiled.CompiledSender(KEYS[profile]))
            ours, theirs = (
                b"".join(one.seal_group([b"x" * 50] * 9, first_index=first_index, **numbers)) for one in both
            )
            assert ours == theirs


def test_bounds_are_checked() -> None:
    lane = compiled.CompiledSender(KEYS[Profile.AEAD_AES_128_GCM]).lane
    with pytest.raises(ValueError, match="64 KiB"):
        lane.seal_group([bytes(1400)] * 60, 1, 2, 3, 4, True)
    with pytest.raises(ValueError, match="64 KiB"):
        lane.seal_group([bytes(70_000)], 1, 2, 3, 4, True)
    with pytest.raises(TypeError):
        lane.seal_group(["text"], 1, 2, 3, 4, True)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="keys"):
        type(lane)(b"short", bytes(12), b"")
    with pytest.raises(ValueError, match="keys"):
        type(lane)(bytes(16), bytes(12), bytes(20))
    with pytest.raises(RuntimeError, match="without keys"):
        type(lane).__new__(type(lane)).seal_group([b"x"], 1, 2, 3, 4, True)
    with pytest.raises(ValueError, match="address"):
        lane.aim(compiled.new_gate(0), "localhost", 1)
    for shots in (((), 1, 2, False, 3, False, 4), ((b"x",) * 65, 1, 2, False, 3, False, 4)):
        with pytest.raises(ValueError, match="1 to 64"):
            compiled.fan((shots,), [])
    with pytest.raises(TypeError):
        compiled.fan((None,), [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Outgoing"):
        compiled.fan((PacketGroup((b"x",), 1, 2, False, 1, False, 3),), [object()])


def test_bounds_of_what_comes_before_are_checked() -> None:
    assert compiled.whole_picture is not None
    assert compiled.fragment is not None
    for start, end in ((-1, 10), (0, 11)):
        with pytest.raises(ValueError, match="outside"):
            compiled.whole_picture(bytearray(10), start, end, 0x2400, 0x8060, 1, 1)
    for nal_unit, size in ((b"", 100), (b"\x41", 100), (b"\x41abc", 2), (b"\x41abc", 100)):
        with pytest.raises(ValueError, match="cut"):
            compiled.fragment(nal_unit, size)


@given(st.binary(min_size=40, max_size=4000), st.integers(3, 1200))
def test_both_cut_the_same_fragments(nal_unit: bytes, max_payload_size: int) -> None:
    assume(len(nal_unit) > max_payload_size)
    assert compiled.fragment is not None
    assert list(compiled.fragment(nal_unit, max_payload_size)) == fragment_h264(nal_unit, max_payload_size)


packets = st.tuples(
    st.sampled_from(["whole", "fragmented", "keyframe", "b", "late", "gap", "extension", "other_source"]),
    st.integers(2, 90),
)


@settings(max_examples=300, deadline=None)
@given(
    script=st.lists(packets, max_size=25),
    cut=st.integers(20, 3000),
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 7)), max_size=3),
)
def test_both_take_in_the_same_pictures(
    script: list[tuple[str, int]], cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(recorded([("keyframe", 50), *script]))
    for position, bit in flips:
        if position < len(data):
            data[position] ^= 1 << bit
    results = []
    for whole_picture in (None, compiled.whole_picture):
        units: list[AccessUnit] = []
        depacketizer = Depacketizer(units.append, payload_type=96, whole_picture=whole_picture)
        tail = bytearray()
        for at in range(0, len(data), cut):
            buffer = tail + data[at : at + cut]
            tail = buffer[feed_all(depacketizer, buffer, at / 1000) :]
        results.append(
            (
                units,
                depacketizer.position,
                depacketizer.packets,
                depacketizer.units,
                depacketizer.lost_packets,
                depacketizer.damaged_units,
                depacketizer.dropped_units,
                depacketizer.faults,
            )
        )
    assert results[0] == results[1]


def recorded(script: list[tuple[str, int]]) -> bytes:
    """Interleaved frames of a camera that sometimes does what the compiled loop must leave to Python."""
    wire = b""
    number, timestamp, ssrc = 65_530, 0xFFFFE000, 7

    def packet(payload: bytes, *, marker: bool = False, extension: bool = False) -> None:
        nonlocal wire, number
        head = struct.pack(
            "!BBHII", 0x90 if extension else 0x80, 96 | marker << 7, number & 0xFFFF, timestamp, ssrc
        )
        rtp = head + (b"\xbe\xde\0\1\x10\1\0\0" if extension else b"") + payload
        wire += struct.pack("!BBH", 0x24, 0, len(rtp)) + rtp
        number += 1

    for what, size in script:
        timestamp = (timestamp + 3600) & 0xFFFFFFFF
        body = bytes((number & 0x7F,)) * size
        match what:
            case "keyframe":
                for nal_unit in (SPS, PPS):
                    packet(nal_unit)
                packet(b"\x65\x88" + body, marker=True)
            case "whole" | "extension":
                packet(b"\x41\x9a" + body, marker=True, extension=what == "extension")
            case "b":
                packet(b"\x01\xa8" + body, marker=True)
            case "late":
                number -= 2
                packet(b"\x41\x9a" + body, marker=True)
                number += 1
            case "gap":
                number += 1
            case "other_source":
                ssrc += 1
            case _:
                payloads = fragment_h264(b"\x41\x9a" + body * 9, 40)
                for payload in payloads:
                    packet(payload, marker=payload is payloads[-1])
    return wire


def feed_all(depacketizer: Depacketizer, buffer: bytearray, now: float) -> int:
    """As the shell does: what feed() leaves goes to packet(). Returns where the incomplete rest begins."""
    at = 0
    while (at := depacketizer.feed(buffer, at, len(buffer), now)) + 4 <= len(buffer):
        stop = at + 4 + int.from_bytes(buffer[at + 2 : at + 4], "big")
        if stop > len(buffer):
            break
        if buffer[at] == 0x24 and buffer[at + 1] == 0:
            depacketizer.packet(buffer, at + 4, stop, now)
        at = stop
    return at


class Wire:
    """A MediaLink over a real socket: what came by the Python path is counted in `python`."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.inbox = socket.socket(family, socket.SOCK_DGRAM)
        self.inbox.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.inbox.bind((host, 0))
        self.inbox.setblocking(False)
        self.outbox = socket.socket(family, socket.SOCK_DGRAM)
        self.outbox.bind((host, 0))
        self.python = 0

    def send_segments(self, buffers: list, segment_size: int, count: int) -> bool:
        self.python += 1
        data = b"".join(buffers)
        for start in range(0, len(data), segment_size):
            self.outbox.sendto(data[start : start + segment_size], self.inbox.getsockname())
        return True

    def send_rtcp(self, compound: bytes) -> bool:
        return True

    def take(self) -> list[bytes]:
        packets = []
        while True:
            try:
                packets.append(self.inbox.recv(2048))
            except BlockingIOError:
                return packets

    def close(self) -> None:
        self.inbox.close()
        self.outbox.close()


@contextmanager
def wire(host: str = "127.0.0.1") -> Iterator[Wire]:
    made = Wire(host)
    try:
        yield made
    finally:
        made.close()


def watch(stream: Stream, keys: SrtpSender, link: Wire) -> TrackSender:
    sender = TrackSender(
        TrackKind.VIDEO,
        {Codec.H264: PayloadTypes(media=102, rtx=103)},
        ssrc=77,
        rtx_ssrc=78,
        first_index=65_500,
        first_timestamp=0xFFFFFF00,
    )
    Viewer(stream, video=sender, audio=None, cname="c", unix_offset=0.0).connect(link, keys, 0.0)
    return sender


def play(stream: Stream, pictures: range) -> None:
    for number in pictures:
        body = bytes((number & 0xFF,)) * (1 + 977 * number % 9000)
        units = (b"\x67sps", b"\x68pps", b"\x65" + body) if number % 10 == 0 else (b"\x41" + body,)
        stream.on_access_unit(
            AccessUnit(
                nal_units=units, timestamp=3600 * number, keyframe=number % 10 == 0, received_at=number / 25
            )
        )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("profile", list(Profile))
def test_a_viewer_gets_the_same_datagrams_from_both(profile: Profile, host: str) -> None:
    stream = Stream()
    with wire(host) as ours, wire(host) as theirs:
        fast = compiled.CompiledSender(KEYS[profile])
        gate = compiled.new_gate(ours.outbox.fileno())
        fast.aim(gate, ours.inbox.getsockname())
        senders = watch(stream, fast, ours), watch(stream, SrtpSender.create(KEYS[profile]), theirs)
        play(stream, range(25))
        assert ours.python == 0
        assert theirs.python > 25
        got = ours.take()
        assert got == theirs.take()
        assert len(got) > 60
        for name in ("packets", "octets", "cursor", "index_offset"):
            assert getattr(senders[0], name) == getattr(senders[1], name)


@pytest.mark.parametrize("profile", list(Profile))
def test_a_replay_is_the_same_from_both(profile: Profile) -> None:
    """A viewer who joins within a group of pictures, and a keyframe that a running one asks for."""
    stream = Stream()
    with wire() as ours, wire() as theirs:
        fast = compiled.CompiledSender(KEYS[profile])
        fast.aim(compiled.new_gate(ours.outbox.fileno()), ours.inbox.getsockname())
        play(stream, range(18))
        senders = watch(stream, fast, ours), watch(stream, SrtpSender.create(KEYS[profile]), theirs)
        assert {sender.state for sender in senders} == {SenderState.CATCHING_UP}  # the rest is paced
        for now in (0.005, 0.01, 1.0):
            for sender in senders:
                sender.pump(now)
        assert {sender.state for sender in senders} == {SenderState.LIVE}
        assert ours.python == 0
        for now in (2.0, 4.0):
            for sender in senders:
                sender.restart(now)
                sender.pump(now + 1)
            play(stream, range(18, 20))
        got = ours.take()
        assert got == theirs.take()
        assert len(got) > 60
        for name in ("packets", "octets", "cursor", "index_offset", "timestamp_offset", "_last_timestamp"):
            assert getattr(senders[0], name) == getattr(senders[1], name)


def test_what_has_no_open_gate_takes_the_python_path() -> None:
    stream = Stream()
    with wire() as link:
        fast = compiled.CompiledSender(KEYS[Profile.AEAD_AES_128_GCM])
        sender = watch(stream, fast, link)
        play(stream, range(3))  # never aimed: TCP, or no path yet
        assert link.python == 4
        gate = compiled.new_gate(link.outbox.fileno())
        fast.aim(gate, link.inbox.getsockname())
        play(stream, range(3, 5))
        assert link.python == 4
        gate.open = False  # a batch waits for writability, or GSO was refused
        play(stream, range(5, 6))
        assert link.python == 5
        gate.open = True
        fast.aim(None, link.inbox.getsockname())
        play(stream, range(6, 7))
        assert link.python == 6
        packets = link.take()
        assert len(packets) == sender.packets
        numbers = [int.from_bytes(packet[2:4], "big") for packet in packets]
        assert numbers == [(65_500 + position) & 0xFFFF for position in range(len(numbers))]


def test_a_refused_send_is_handed_back_from_there_on() -> None:
    stream = Stream()
    with wire() as link, wire() as broken:
        fast, bad = (compiled.CompiledSender(KEYS[Profile.AEAD_AES_128_GCM]) for _ in range(2))
        fast.aim(compiled.new_gate(link.outbox.fileno()), link.inbox.getsockname())
        with open(os.devnull, "wb") as file:
            bad.aim(compiled.new_gate(file.fileno()), link.inbox.getsockname())  # ENOTSOCK
            senders = watch(stream, bad, broken), watch(stream, fast, link)
            play(stream, range(3))
        assert (broken.python, link.python) == (4, 0)
        assert senders[0].packets == senders[1].packets == len(link.take()) == len(broken.take())


def test_nothing_is_kept() -> None:
    stream = Stream()
    with wire() as link:
        fast = compiled.CompiledSender(KEYS[Profile.AES128_CM_SHA1_80])
        gate = compiled.new_gate(link.outbox.fileno())
        sender = watch(stream, fast, link)
        before = [sys.getrefcount(one) for one in (gate, sender, fast.lane)]
        for _ in range(50):
            fast.aim(gate, link.inbox.getsockname())
            play(stream, range(11))
            link.take()
            fast.aim(None, ("127.0.0.1", 1))
            play(stream, range(11))
            link.take()
        gc.collect()
        assert [sys.getrefcount(one) for one in (gate, sender, fast.lane)] == before
