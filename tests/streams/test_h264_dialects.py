"""Complaints about the peers, item 13: what named cameras send, as golden files, whole and in pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.streams.h264 import Depacketizer
from gateway.streams.media import AccessUnit

FOLDER = Path(__file__).parents[1] / "data" / "h264"
PICTURES: dict[str, list[tuple[bool, str]]] = json.loads((FOLDER / "pictures.json").read_text())


def digest(unit: AccessUnit) -> tuple[bool, str]:
    data = b"".join(len(nal_unit).to_bytes(4, "big") + nal_unit for nal_unit in unit.nal_units)
    return unit.keyframe, hashlib.sha256(data).hexdigest()[:16]


def slices(unit: AccessUnit) -> tuple[bool, str]:
    data = b"".join(nal_unit for nal_unit in unit.nal_units if nal_unit[0] & 31 in (1, 5))
    return unit.keyframe, hashlib.sha256(data).hexdigest()[:16]


def read(
    data: bytes, piece: int, name_of: Callable[[AccessUnit], tuple[bool, str]] = digest
) -> tuple[Depacketizer, list[tuple[bool, str]]]:
    """As the connection does: what is incomplete stays in front of the next piece; what the fast path leaves is given on."""
    seen: list[tuple[bool, str]] = []
    depacketizer = Depacketizer(lambda unit: seen.append(name_of(unit)), payload_type=96)
    buffer = bytearray()
    for at in range(0, len(data), piece):
        buffer += data[at : at + piece]
        start = 0
        while True:
            start = depacketizer.feed(buffer, start, len(buffer), 100.0 + at / len(data))
            stop = start + 4 + int.from_bytes(buffer[start + 2 : start + 4], "big")
            if len(buffer) - start < 4 or stop > len(buffer):
                break
            depacketizer.packet(buffer, start + 4, stop, 100.0)
            start = stop
        del buffer[:start]
    return depacketizer, seen


@pytest.mark.parametrize("piece", [1 << 20, 1460, 97])
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.rtp")))
def test_every_picture_comes_out_as_it_went_in(name: str, piece: int) -> None:
    expected = [tuple(one) for one in PICTURES[name]]
    if name == "unmarked":
        expected.pop()  # that it is whole shows only when the next one begins
    depacketizer, seen = read((FOLDER / f"{name}.rtp").read_bytes(), piece)
    if name == "b_frames":
        expected = expected[: len(seen)]  # whoever pulls it gives up when it is noticed
        assert 1 <= len(seen) <= 3
    assert seen == expected
    assert depacketizer.lost_packets == 0
    assert depacketizer.reordering is (name == "b_frames")


def test_a_new_size_is_noticed() -> None:
    data = (FOLDER / "resolution_change.rtp").read_bytes()
    depacketizer, _ = read(data, 1460)
    assert depacketizer.sps is not None
    assert (depacketizer.sps.width, depacketizer.sps.height) == (128, 96)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.rtp")))
def test_one_lost_packet_costs_no_more_than_up_to_the_next_keyframe(name: str) -> None:
    data = (FOLDER / f"{name}.rtp").read_bytes()
    packets = []
    while data:
        size = 4 + int.from_bytes(data[2:4], "big")
        packets.append(data[:size])
        data = data[size:]
    # Parameter sets that were lost are put in again from those before (and SEI does not matter), so slices are compared.
    expected = set(read(b"".join(packets), 1 << 20, slices)[1])
    for lost in range(1, len(packets), max(1, len(packets) // 20)):
        _, seen = read(b"".join(packets[:lost] + packets[lost + 1 :]), 1 << 20, slices)
        assert set(seen) <= expected, "a damaged picture was passed on"
