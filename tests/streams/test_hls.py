"""HLS: pictures into segments and playlists, containers that a foreign demuxer reads, and streams that begin and end."""

from __future__ import annotations

import asyncio
import io
import re
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtsp_farm import Farm
from still_encoder import encode
from test_shards import EVERYWHERE, eventually, live, running

from gateway.errors import NotFound, TooMany, Unavailable
from gateway.streams.hls import Container, HlsLimits, Segmenter, part_of, remux, split_fmp4
from gateway.streams.hls_source import HlsSources
from gateway.streams.media import AccessUnit, StreamName, Undecodable

FRAME = 3600  # 25 pictures a second at 90 kHz


@cache
def pictures(size: tuple[int, int] = (160, 96), gop: int = 25, count: int = 110) -> tuple[AccessUnit, ...]:
    """What ingest would hand on: x264 pictures cut into NAL units."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = size
    encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(gop), "profile": "baseline"}
    units = []
    for number in range(count):
        shade = np.full((size[1], size[0], 3), number * 2 % 255, np.uint8)
        frame = av.VideoFrame.from_ndarray(shade, format="rgb24")
        frame.pts = number
        for packet in encoder.encode(frame):
            nals = tuple(nal for nal in re.split(rb"\x00\x00\x00?\x01", bytes(packet)) if nal)
            units.append(
                AccessUnit(
                    nal_units=nals,
                    timestamp=7_000_000 + number * FRAME,
                    keyframe=number % gop == 0,
                    received_at=0,
                )
            )
    return tuple(units)


def filled(limits: HlsLimits | None = None, units: tuple[AccessUnit, ...] | None = None) -> Segmenter:
    segmenter = Segmenter(limits)
    for unit in pictures() if units is None else units:
        segmenter.push(unit)
    return segmenter


def timestamps(data: bytes) -> list[int]:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        return [
            round(packet.pts * packet.time_base * 90_000)
            for packet in container.demux(stream)
            if packet.pts is not None
        ]


def test_segments_run_from_keyframe_to_keyframe() -> None:
    segmenter = filled()
    assert [one.duration_s for one in segmenter.segments] == [1.0] * 4
    assert [one.start for one in segmenter.segments] == [0, 90_000, 180_000, 270_000]
    assert all(one.units[0].keyframe and len(one.units) == 25 for one in segmenter.segments)


def test_a_picture_before_the_first_keyframe_is_no_beginning() -> None:
    segmenter = filled(units=pictures()[1:60])
    assert [one.units[0].timestamp for one in segmenter.segments] == [pictures()[25].timestamp]


def test_a_camera_without_keyframes_is_cut_all_the_same() -> None:
    segmenter = filled(HlsLimits(longest_s=1.0), pictures(gop=1000))
    assert [one.duration_s for one in segmenter.segments] == [1.0] * 4
    assert not segmenter.segments[1].units[0].keyframe
    assert timestamps(remux(segmenter.segments[1], Container.FMP4))[0] == 90_000
    heavy = filled(HlsLimits(segment_octets=1), pictures(gop=1000))
    assert len(heavy.segments) == heavy.limits.kept


def test_the_playlist_names_what_is_there_and_keeps_the_query() -> None:
    text = filled(HlsLimits(kept=2)).playlist(Container.TS, [("stream", "sub"), ("page", "stb")])
    assert text.splitlines() == [
        "#EXTM3U",
        "#EXT-X-VERSION:3",
        "#EXT-X-TARGETDURATION:4",
        "#EXT-X-MEDIA-SEQUENCE:2",
        "#EXT-X-DISCONTINUITY-SEQUENCE:1",
        "#EXTINF:1.000,",
        "seg-2.ts?stream=sub&page=stb",
        "#EXTINF:1.000,",
        "seg-3.ts?stream=sub&page=stb",
    ]


def test_a_gap_and_another_resolution_are_discontinuities() -> None:
    segmenter = filled(units=pictures()[:60])
    segmenter.cut()
    later = [
        AccessUnit(
            nal_units=unit.nal_units,
            timestamp=unit.timestamp + 50 * FRAME,
            keyframe=unit.keyframe,
            received_at=0,
        )
        for unit in pictures((320, 192))[10:80]
    ]
    for unit in later:
        segmenter.push(unit)
    assert [one.cut for one in segmenter.segments] == [True, False, True, False]
    lines = segmenter.playlist(Container.FMP4).splitlines()
    maps = [line for line in lines if line.startswith("#EXT-X-MAP")]
    assert maps == ['#EXT-X-MAP:URI="init-0.mp4"', '#EXT-X-MAP:URI="init-2.mp4"']
    assert lines.count("#EXT-X-DISCONTINUITY") == 1
    wide, _ = split_fmp4(remux(segmenter.described(2), Container.FMP4))
    assert (320).to_bytes(2, "big") + b"\0\0" + (192).to_bytes(2, "big") in wide


@pytest.mark.parametrize("container", list(Container))
def test_a_foreign_demuxer_reads_each_segment_and_time_goes_on(container: Container) -> None:
    """FFmpeg's demuxers: every picture is there, and each file begins where the one before ended."""
    segmenter = filled()
    found = [timestamps(remux(one, container)) for one in segmenter.segments]
    assert [stamp for part in found for stamp in part] == [number * FRAME for number in range(100)]
    with av.open(io.BytesIO(remux(segmenter.segments[1], container))) as file:
        assert sum(1 for _ in file.decode(video=0)) == 25


def test_fragments_without_their_initialisation_are_nothing_and_with_it_a_film() -> None:
    segmenter = filled()
    parts = [split_fmp4(remux(one, Container.FMP4)) for one in segmenter.segments]
    assert len({init for init, _ in parts}) == 1
    assert timestamps(parts[0][0] + b"".join(media for _, media in parts)) == [n * FRAME for n in range(100)]


@given(st.text(max_size=24))
def test_no_name_reaches_beyond_the_stream(name: str) -> None:
    try:
        part = part_of(name)
    except NotFound:
        return
    assert part.kind in ("playlist", "init", "seg")


class Camera:
    """A supervisor with one camera, and who taps it. fails: what acquire raises, by stream."""

    def __init__(self, **fails: Exception) -> None:
        self.fails = fails
        self.held: list[StreamName] = []
        self.tapped: list[Any] = []

    async def acquire(self, camera_id: str, name: StreamName) -> None:
        if name in self.fails:
            raise self.fails[name]
        self.held.append(name)
        for unit in pictures()[:60]:
            self.tapped[-1].on_access_unit(unit)

    def release(self, camera_id: str, name: StreamName) -> None:
        self.held.remove(name)

    def tap(self, camera_id: str, name: StreamName, source: Any, on: bool) -> None:
        (self.tapped.append if on else self.tapped.remove)(source)

    def sources(self, **limits: Any) -> HlsSources:
        return HlsSources(
            acquire=self.acquire,
            release=self.release,
            tap=self.tap,
            limits=HlsLimits(**limits),
            clock=lambda: 0,
        )


async def playlist(sources: HlsSources, camera_id: str = "cam", name: StreamName = StreamName.SUB) -> str:
    return (await sources.fetch(camera_id, name, "index.m3u8", Container.TS, [])).body.decode()


async def test_many_who_ask_at_once_are_one_viewer_of_the_camera() -> None:
    camera = Camera()
    sources = camera.sources()
    texts = await asyncio.gather(*(playlist(sources) for _ in range(5)))
    assert set(texts) == {texts[0]}
    assert "seg-1.ts" in texts[0]
    assert camera.held == [StreamName.SUB]


async def test_a_camera_with_one_stream_or_an_undecodable_one_gives_what_it_has() -> None:
    only_main = Camera(sub=NotFound("no sub"))
    assert "seg-0.ts" in await playlist(only_main.sources())
    assert only_main.held == [StreamName.MAIN]
    hevc = Camera(main=Undecodable("H.265"))
    assert "seg-0.ts" in await playlist(hevc.sources(), name=StreamName.MAIN)
    assert hevc.held == [StreamName.SUB]


async def test_what_cannot_be_had_is_said_and_leaves_nothing_behind() -> None:
    down = Camera(sub=Unavailable("401 unauthorised"))
    sources = down.sources()
    with pytest.raises(Unavailable, match="401"):
        await playlist(sources)
    assert (len(sources), down.tapped, down.held) == (0, [], [])
    with pytest.raises(NotFound):
        await sources.fetch("cam", StreamName.SUB, "seg-0.ts", Container.TS, [])
    few = Camera().sources(sources=1)
    await playlist(few)
    with pytest.raises(TooMany):
        await playlist(few, "another")


async def test_what_nobody_asks_for_is_left() -> None:
    camera, now = Camera(), [0.0]
    sources = HlsSources(acquire=camera.acquire, release=camera.release, tap=camera.tap, clock=lambda: now[0])
    task = asyncio.create_task(sources.run())
    await playlist(sources)
    now[0] = 60.0
    async with asyncio.timeout(10):
        while len(sources):
            await asyncio.sleep(0.1)
    assert (camera.held, camera.tapped) == ([], [])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@EVERYWHERE
async def test_a_real_camera_comes_by_hls(workers: int) -> None:
    """Pulled by RTSP, in this process and in a worker's; read back by FFmpeg."""
    still = encode(np.full((96, 160, 3), 90, np.uint8))
    async with Farm(still=still) as farm, running(farm, 2, workers=workers) as (media, _):
        await eventually(lambda: live(media))
        for camera_id in ("cam0", "cam1"):
            text = (
                await media.fetch_hls(camera_id, StreamName.MAIN, "index.m3u8", Container.FMP4, [])
            ).body.decode()
            init = re.search(r'URI="([^"]+)"', text)
            segment = re.search(r"^seg-\d+\.m4s", text, re.MULTILINE)
            assert init
            assert segment
            parts = [
                (await media.fetch_hls(camera_id, StreamName.MAIN, name, Container.FMP4, [])).body
                for name in (init[1], segment[0])
            ]
            assert len(timestamps(b"".join(parts))) > 5
        with pytest.raises(NotFound):
            await media.fetch_hls("nobody", StreamName.MAIN, "index.m3u8", Container.TS, [])
