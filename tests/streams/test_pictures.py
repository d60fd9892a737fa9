from __future__ import annotations

import asyncio
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still_encoder import encode

from gateway.errors import ProtocolError, TooMany, Unavailable
from gateway.streams.media import AccessUnit
from gateway.streams.pictures import (
    Picture,
    SnapshotLimits,
    Snapshots,
    decode_keyframe,
    freshest,
    snapshot_jpeg,
)


def card(width: int = 320, height: int = 180) -> Picture:
    """Four flat colours: red, green above blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (0, 0, 200)
    picture[: height // 2, width // 2 :] = (0, 200, 0)
    picture[height // 2 :, : width // 2] = (200, 0, 0)
    picture[height // 2 :, width // 2 :] = (200, 200, 200)
    return picture


KEYFRAME = encode(card())


def assert_is_card(picture: Picture) -> None:
    """Each quarter has its colour: neither channels nor axes are swapped."""
    wanted = card(picture.shape[1], picture.shape[0])
    for y in (0.25, 0.75):
        for x in (0.25, 0.75):
            at = int(y * picture.shape[0]), int(x * picture.shape[1])
            assert picture[at].astype(int) == pytest.approx(wanted[at].astype(int), abs=20)


@pytest.mark.parametrize(("width", "height"), [(320, 180), (640, 360), (1280, 720), (354, 290)])
def test_decodes_at_its_own_size(width: int, height: int) -> None:
    picture = decode_keyframe(encode(card(width, height)))
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8
    assert_is_card(picture)


def test_shrinks_but_never_enlarges() -> None:
    picture = decode_keyframe(KEYFRAME, max_width=160)
    assert picture.shape == (90, 160, 3)
    assert_is_card(picture)
    assert decode_keyframe(KEYFRAME, max_width=4000).shape == (180, 320, 3)


def test_snapshot_is_a_jpeg_of_the_picture() -> None:
    jpeg = snapshot_jpeg(KEYFRAME, max_width=200, quality=90)
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (112, 200, 3)
    assert_is_card(picture.astype(np.uint8))


def test_names_what_is_wrong() -> None:
    def reason(nal_units: tuple[bytes, ...]) -> str:
        with pytest.raises(ProtocolError) as caught:
            decode_keyframe(nal_units)
        return caught.value.reason

    noise = np.random.default_rng(1).integers(0, 255, (180, 320, 3), np.uint8)
    busy = encode(noise)
    assert reason(()) == "keyframe_size"
    assert reason((b"",)) == "keyframe_size"
    assert reason((b"\x65" + bytes(9_000_000),)) == "keyframe_size"
    assert reason(KEYFRAME[2:]) == "keyframe_undecodable"  # no parameter sets
    assert reason(KEYFRAME[:2]).startswith("keyframe_")  # nothing but parameter sets
    assert (
        reason((*busy[:-1], busy[-1][: len(busy[-1]) // 2])) == "keyframe_damaged"
    )  # the decoder would conceal it


def test_refuses_a_picture_larger_than_any_level() -> None:
    with pytest.raises(ProtocolError, match="keyframe_undecodable"):
        decode_keyframe(encode(np.zeros((2600, 4000, 3), np.uint8), qp=40))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_raises_only_protocol_error(nal_units: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode_keyframe(nal_units)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_gives_a_picture_or_protocol_error(data: st.DataObject) -> None:
    units = list(KEYFRAME)
    which = data.draw(st.integers(0, len(units) - 1))
    at = data.draw(st.integers(0, len(units[which]) - 1))
    damaged = bytearray(units[which])
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    units[which] = bytes(damaged)
    try:
        picture = decode_keyframe(units)
    except ProtocolError:
        return
    assert picture.ndim == 3
    assert picture.shape[2] == 3


def test_a_picture_of_yesterday_is_not_preferred() -> None:
    def unit(at: float) -> AccessUnit:
        return AccessUnit(nal_units=KEYFRAME, timestamp=0, keyframe=True, received_at=at)

    main, sub = unit(100.0), unit(104.0)
    assert freshest(main, sub) is main
    assert freshest(sub, main) is sub
    assert freshest(main, unit(115.1)).received_at == 115.1  # type: ignore[union-attr]
    assert freshest(None, sub) is sub
    assert freshest(main, None) is main
    assert freshest(None, None) is None


async def test_many_who_ask_share_one_decoding() -> None:
    snapshots = Snapshots(lambda camera_id: KEYFRAME)
    try:
        jpegs = await asyncio.gather(*(snapshots.jpeg("cam1") for _ in range(20)))
        assert snapshots.decoded == 1
        assert all(jpeg is jpegs[0] for jpeg in jpegs)
        assert await snapshots.jpeg("cam1") is jpegs[0]
        assert snapshots.decoded == 1
    finally:
        snapshots.close()


async def test_a_new_keyframe_makes_a_new_picture() -> None:
    keyframes = {"cam1": KEYFRAME}
    snapshots = Snapshots(keyframes.get)
    try:
        before = await snapshots.jpeg("cam1")
        keyframes["cam1"] = encode(np.zeros((180, 320, 3), np.uint8))
        assert await snapshots.jpeg("cam1") != before
        assert snapshots.decoded == 2
    finally:
        snapshots.close()


async def test_no_picture_yet_and_a_damaged_one_are_unavailable() -> None:
    keyframes = {"damaged": (b"\x65" + bytes(50),)}
    snapshots = Snapshots(keyframes.get)
    try:
        with pytest.raises(Unavailable, match="no picture yet") as caught:
            await snapshots.jpeg("cam1")
        assert caught.value.retry_after_s > 0
        with pytest.raises(Unavailable, match="damaged"):
            await snapshots.jpeg("damaged")
        assert snapshots.failed == 1
        keyframes["damaged"] = KEYFRAME
        assert await snapshots.jpeg("damaged")
    finally:
        snapshots.close()


async def test_one_who_hangs_up_takes_nothing_from_the_others() -> None:
    snapshots = Snapshots(lambda camera_id: KEYFRAME)
    try:
        leaving, staying = (asyncio.create_task(snapshots.jpeg("cam1")) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).startswith(b"\xff\xd8")
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert snapshots.decoded == 1
    finally:
        snapshots.close()


async def test_bounds_what_waits_and_what_is_kept() -> None:
    snapshots = Snapshots(lambda camera_id: KEYFRAME, limits=SnapshotLimits(waiting=2, kept=1))
    try:
        answers = await asyncio.gather(*(snapshots.jpeg(f"cam{i}") for i in range(4)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [bytes, bytes, TooMany, TooMany]
        assert snapshots.refused == 2
        await snapshots.jpeg("cam1")
        assert snapshots.decoded == 2
        await snapshots.jpeg("cam0")  # cam1 took its place
        assert snapshots.decoded == 3
    finally:
        snapshots.close()


def test_a_worker_loads_the_picture_libraries_only_when_it_looks_at_pictures() -> None:
    """Each worker process is 40 MB smaller for it; and what is loaded later stops its packets for a moment."""
    code = "import sys, gateway.streams.worker; print(sorted({'cv2', 'av', 'numpy'} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"
