"""Pictures out of payloads: what our own packetiser (and aiortc's VP8) cuts comes back whole, and damage costs whole pictures."""

from __future__ import annotations

from aiortc.codecs.vpx import VpxPayloadDescriptor
from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.assembly import Picture, PictureAssembly, vp8_payload
from gateway.streams.media import Codec
from gateway.streams.packets import packetize_h264

SPS, PPS = b"\x67" + b"s" * 10, b"\x68" + b"p" * 4
IDR = b"\x65" + bytes(range(256)) * 20
P = b"\x41" + bytes(range(256)) * 8


def payloads(units: tuple[bytes, ...]) -> list[bytes]:
    return [payload for group in packetize_h264(units) for payload in group]


def feed(
    assembly: PictureAssembly, pictures: list[tuple[bytes, ...]], lost: set[int] = frozenset()
) -> list[Picture]:
    found, number = [], 0
    for position, units in enumerate(pictures):
        cut = payloads(units)
        for offset, payload in enumerate(cut):
            if number not in lost:
                picture = assembly.push(
                    payload, number=number, timestamp=position * 3600, marker=offset == len(cut) - 1
                )
                if picture is not None:
                    found.append(picture)
            number += 1
    return found


def test_pictures_come_back_whole() -> None:
    found = feed(PictureAssembly(Codec.H264), [(SPS, PPS, IDR), (P,), (P, P)])
    assert [(one.units, one.keyframe) for one in found] == [
        ((SPS, PPS, IDR), True),
        ((P,), False),
        ((P, P), False),
    ]


def test_nothing_is_given_before_a_keyframe_and_after_a_loss() -> None:
    first, later = len(payloads((SPS, PPS, IDR))), len(payloads((P,)))
    stream = [(SPS, PPS, IDR), (P,), (P,), (SPS, PPS, IDR), (P,)]
    assert feed(PictureAssembly(Codec.H264), stream[1:3]) == []
    for hole in range(first, first + later):
        assembly = PictureAssembly(Codec.H264)
        assert [one.timestamp for one in feed(assembly, stream, {hole})] == [0, 3 * 3600, 4 * 3600]
        assert not assembly.damaged


def test_parameter_sets_that_came_once_are_given_to_each_keyframe() -> None:
    found = feed(PictureAssembly(Codec.H264), [(SPS, PPS, IDR), (IDR,)])
    assert found[1].units == (SPS, PPS, IDR)


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 3), st.booleans()), max_size=40))
def test_garbage_is_no_picture_and_no_error(packets: list[tuple[bytes, int, bool]]) -> None:
    for codec in (Codec.H264, Codec.VP8):
        assembly = PictureAssembly(codec)
        given = [
            picture
            for number, (payload, step, marker) in enumerate(packets)
            if (picture := assembly.push(payload, number=number + step, timestamp=number // 3, marker=marker))
        ]
        assert all(all(picture.units) for picture in given)
        assert not given or given[0].keyframe


@given(st.binary(min_size=1, max_size=64), st.integers(0, 0x7FFF), st.integers(0, 255), st.integers(0, 31))
def test_the_vp8_descriptor_is_taken_off(data: bytes, picture_id: int, tl0picidx: int, keyidx: int) -> None:
    descriptor = VpxPayloadDescriptor(
        partition_start=1,
        partition_id=0,
        picture_id=picture_id,
        tl0picidx=tl0picidx,
        tid=(1, 0),
        keyidx=keyidx,
    )
    assert vp8_payload(bytes(descriptor) + data) == data
