"""Whatever comes and however it is cut: who attaches gets what he would have got, had every picture been built at once."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.streams.backlog import MAX_BYTES, Backlog
from gateway.streams.h264 import Depacketizer
from gateway.streams.media import AccessUnit

SPS = bytes.fromhex("6742c01ed90141fa1000000300100000030320f162e480")
PPS = bytes.fromhex("68cb83cb20")
SSRC = 0xCAFE0001


@dataclass
class Camera:
    """Writes interleaved frames. `wire` is what came out since it was last cleared."""

    wire: bytearray = field(default_factory=bytearray)
    number: int = 65_500
    timestamp: int = 0xFFFF0000
    ssrc: int = SSRC
    pictures: int = 0

    def packet(self, payload: bytes, *, marker: bool = False) -> None:
        head = struct.pack("!BBHII", 0x80, 96 | marker << 7, self.number, self.timestamp, self.ssrc)
        self.number = (self.number + 1) & 0xFFFF
        self.wire += struct.pack("!BBH", 0x24, 0, len(head) + len(payload)) + head + payload

    def other(self, channel: int = 2) -> None:
        self.wire += struct.pack("!BBH", 0x24, channel, 20) + b"\x80\x08" + bytes(18)

    def picture(self, *, idr: bool = False, size: int = 40, mtu: int = 30, slice_head: int = 0x9A) -> None:
        self.timestamp = (self.timestamp + 3600) & 0xFFFFFFFF
        self.pictures += 1
        body = bytes((slice_head,)) + struct.pack("!I", self.pictures | 0x70707000) + b"\x55" * size
        head = 0x65 if idr else 0x41
        if len(body) < mtu:
            self.packet(bytes((head,)) + body, marker=True)
            return
        parts = [body[at : at + mtu] for at in range(0, len(body), mtu)]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            flag = 0x80 if index == 0 else 0x40 if last else 0
            self.packet(bytes((head & 0x60 | 28, flag | head & 31)) + part, marker=last)

    def keyframe(self, *, aggregated: bool = False, size: int = 100, delimiter: bool = False) -> None:
        self.timestamp = (self.timestamp + 3600) & 0xFFFFFFFF
        if delimiter:
            self.packet(b"\x09\xf0")
        if aggregated:
            self.packet(b"\x78" + struct.pack("!H", len(SPS)) + SPS + struct.pack("!H", len(PPS)) + PPS)
        else:
            self.packet(SPS)
            self.packet(PPS)
        self.timestamp = (self.timestamp - 3600) & 0xFFFFFFFF
        self.picture(idr=True, size=size, slice_head=0x88)


class Rig:
    """The same bytes into a Backlog and into a Depacketizer of its own."""

    def __init__(self) -> None:
        self.kept: list[AccessUnit] = []
        self.built: list[AccessUnit] = []
        self.skips = 0
        self.others = 0
        self.depacketizer = Depacketizer(self.kept.append, payload_type=96)
        self.eager = Depacketizer(self.built.append, payload_type=96)
        self.backlog = Backlog(self.depacketizer, on_skip=self._skip, on_other=self._other, watched=False)
        self.now = 0.0
        self._tail = bytearray()

    def _skip(self) -> None:
        self.skips += 1

    def _other(self, channel: int, start: int, stop: int, now: float) -> None:
        self.others += 1

    def read(self, data: bytes, step_s: float = 0.04) -> None:
        self.now += step_s
        buffer = self._tail + data
        end = len(buffer)
        for which in (self.eager, self.backlog):
            at = 0
            while (at := which.feed(buffer, at, end, self.now)) < end:
                stop = at + 4 + int.from_bytes(buffer[at + 2 : at + 4], "big") if end - at >= 4 else end + 1
                if stop > end:
                    break
                if which is self.backlog:
                    if buffer[at + 1] == 0:
                        self.backlog.packet(buffer, at + 4, stop, self.now)
                    else:
                        self.others += 1
                elif buffer[at + 1] == 0:
                    self.eager.packet(buffer, at + 4, stop, self.now)
                at = stop
            tail = buffer[at:]
        self._tail = tail

    def compare(self) -> None:
        """After watch(True)."""
        kept = [(unit.nal_units, unit.keyframe) for unit in self.kept]
        built = [(unit.nal_units, unit.keyframe) for unit in self.built]
        assert [one for one in kept if one[1]] == [one for one in built if one[1]]
        newest = max((index for index, one in enumerate(built) if one[1]), default=0)
        assert kept[len(kept) - (len(built) - newest) :] == built[newest:]
        stamps = [unit.timestamp for unit in self.kept]
        assert stamps == sorted(stamps)
        for name in ("packets", "lost_packets", "units", "keyframes", "b_slices", "waiting", "last_unit_at"):
            assert getattr(self.depacketizer, name) == getattr(self.eager, name), name
        assert self.depacketizer.highest_sequence_number == self.eager.highest_sequence_number


def test_nothing_but_keyframes_is_built_until_somebody_watches() -> None:
    rig, camera = Rig(), Camera()
    camera.keyframe()
    for _ in range(10):
        camera.picture(size=200)
        camera.other()
    rig.read(camera.wire)
    assert [unit.keyframe for unit in rig.kept] == [True]
    assert rig.depacketizer.units == 11
    assert rig.depacketizer.packets == rig.eager.packets
    assert rig.depacketizer.last_unit_at == rig.now
    assert rig.others == 10
    rig.backlog.watch(True)
    assert len(rig.kept) == 11
    assert rig.backlog.held_bytes == 0
    rig.compare()
    camera.wire.clear()
    camera.picture()
    rig.read(camera.wire)
    assert len(rig.kept) == 12, "watched: at once"


def test_a_keyframe_takes_the_place_of_what_was_kept() -> None:
    rig, camera = Rig(), Camera()
    for _ in range(3):
        for delimiter, aggregated in ((False, False), (True, True), (True, False)):
            camera.wire.clear()
            camera.keyframe(delimiter=delimiter, aggregated=aggregated)
            for _ in range(20):
                camera.picture()
            rig.read(camera.wire)
            assert 0 < rig.backlog.held_bytes < 20 * 150
    assert len(rig.kept) == 9
    rig.backlog.watch(True)
    rig.compare()


def test_after_the_last_viewer_it_holds_back_from_the_next_keyframe_on() -> None:
    rig, camera = Rig(), Camera()
    rig.backlog.watch(True)
    camera.keyframe()
    camera.picture()
    rig.read(camera.wire)
    rig.backlog.watch(False)
    camera.wire.clear()
    camera.picture()
    rig.read(camera.wire)
    assert len(rig.kept) == 3
    camera.wire.clear()
    camera.keyframe()
    camera.picture()
    rig.read(camera.wire)
    assert len(rig.kept) == 4


def test_a_lost_packet_gives_up_what_was_kept_and_waits_for_a_keyframe() -> None:
    rig, camera = Rig(), Camera()
    camera.keyframe()
    camera.picture()
    camera.number += 3
    camera.picture()
    rig.read(camera.wire)
    assert (len(rig.kept), rig.depacketizer.lost_packets, rig.depacketizer.waiting) == (2, 3, True)
    rig.compare()


def test_b_frames_and_new_sources_are_noticed_unwatched() -> None:
    for size in (10, 200):
        rig, camera = Rig(), Camera()
        camera.keyframe()
        camera.picture(size=size)
        camera.picture(size=size, slice_head=0xA8)
        rig.read(camera.wire)
        assert rig.depacketizer.b_slices == 1
        rig.compare()
    rig, camera = Rig(), Camera()
    camera.keyframe()
    camera.ssrc += 1
    camera.picture()
    rig.read(camera.wire)
    assert rig.depacketizer.faults == {"ssrc_changed": 1}


def test_changed_parameter_sets_before_an_idr_are_kept() -> None:
    """Some cameras send them with the timestamp of the picture before."""
    rig, camera = Rig(), Camera()
    camera.keyframe()
    camera.picture()
    camera.packet(PPS + b"\x80")
    camera.picture(idr=True, slice_head=0x88)
    rig.read(camera.wire)
    assert PPS + b"\x80" in rig.kept[-1].nal_units
    rig.backlog.watch(True)


def test_several_nal_units_in_one_packet_are_judged_in_full() -> None:
    rig, camera = Rig(), Camera()
    camera.keyframe()
    camera.picture()
    camera.timestamp += 3600
    camera.packet(SPS + b"\0\0\0\1" + PPS + b"\0\0\0\1\x65\x88" + b"\x55" * 20, marker=True)
    camera.picture()
    rig.read(camera.wire)
    assert [unit.keyframe for unit in rig.kept] == [True, False, True, False]
    rig.compare()


def test_without_a_keyframe_for_long_it_keeps_no_more_than_its_bound() -> None:
    rig, camera = Rig(), Camera()
    camera.keyframe()
    rig.read(camera.wire)
    for _ in range(200):
        camera.wire.clear()
        camera.picture(size=20_000, mtu=1400)
        rig.read(camera.wire)
        assert rig.backlog.held_bytes <= MAX_BYTES
    assert rig.skips >= 2
    before = len(rig.kept)
    rig.backlog.watch(True)
    assert rig.depacketizer.units == rig.eager.units
    rest = [unit.nal_units for unit in rig.kept[before:]]
    assert rest, "whole pictures, the newest among them"
    assert rest == [unit.nal_units for unit in rig.built[-len(rest) :]]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("keyframe"), st.booleans(), st.sampled_from([10, 100, 300]), st.booleans()),
        st.tuples(st.just("picture"), st.sampled_from([0, 10, 28, 60, 400]), st.sampled_from([20, 30, 97])),
        st.tuples(st.just("picture"), st.sampled_from([0, 10, 28, 60, 400]), st.sampled_from([20, 30, 97])),
        st.tuples(
            st.sampled_from(["other", "lost", "sei", "aud", "b", "empty", "unwatch", "watch", "continued"])
        ),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(steps, st.integers(1, 400))
def test_whatever_comes_and_however_it_is_cut(script: list[tuple[object, ...]], cut: int) -> None:
    rig, camera = Rig(), Camera()
    camera.keyframe()
    for what, *how in script:
        match what, how:
            case "keyframe", [aggregated, size, delimiter]:
                camera.keyframe(aggregated=bool(aggregated), size=int(str(size)), delimiter=bool(delimiter))
            case "picture", [size, mtu]:
                camera.picture(size=int(str(size)), mtu=int(str(mtu)))
            case "other", _:
                camera.other()
            case "lost", _:
                camera.number = (camera.number + 1) & 0xFFFF
            case "sei", _:
                camera.packet(b"\x06\x05\x03abc\x80")
            case "aud", _:
                camera.packet(b"\x09\xf0")
            case "empty", _:
                camera.packet(b"")
            case "b", _:
                camera.picture(slice_head=0xA8)
            case "continued", _:
                camera.packet(b"\x41\x1a" + b"\x55" * 20, marker=True)
            case _:
                rig.read(camera.wire)
                camera.wire.clear()
                rig.backlog.watch(what == "watch")
    for at in range(0, len(camera.wire), cut):
        rig.read(camera.wire[at : at + cut], step_s=0.0001)
    rig.backlog.watch(True)
    rig.compare()
