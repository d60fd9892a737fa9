"""Recordings are made from real H.264 and Opus and read back by an independent demuxer and decoder."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gateway.errors import ProtocolError
from gateway.intercom.recording import LegRecorder, Sample, verify_manifest, write_manifest

START = 1_790_000_000_000


def pictures(count: int, *, size: tuple[int, int] = (160, 96), first: int = 0) -> list[Sample]:
    """25 pictures a second with a keyframe every 10, as a phone publishes them."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = size
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.gop_size = 10
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0"}
    samples = []
    for number in range(count):
        picture = np.full((size[1], size[0], 3), number * 7 % 255, dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        samples += [_video(packet, first + number) for packet in encoder.encode(frame)]
    return samples


def _video(packet: av.Packet, number: int) -> Sample:
    units = tuple(unit for unit in bytes(packet).replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit)
    return Sample(
        codec="H264",
        units=units,
        timestamp=number * 3_600,
        received_ms=START + number * 40,
        keyframe=bool(packet.is_keyframe),
    )


def sounds(count: int, *, first: int = 0) -> list[Sample]:
    """20 ms packets of Opus."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate = 48_000
    encoder.layout = "stereo"
    encoder.format = "s16"
    encoder.time_base = Fraction(1, 48_000)
    packets = []
    for number in range(count):
        wave = (np.sin(np.arange(960) / 20) * 8_000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[np.newaxis], format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, number * 960
        packets += encoder.encode(frame)
    return [
        Sample(
            codec="opus",
            units=(bytes(packet),),
            timestamp=(first + number) * 960,
            received_ms=START + (first + number) * 20,
        )
        for number, packet in enumerate(packets)
    ]


def record(directory: Path, samples: list[Sample]) -> LegRecorder:
    recorder = LegRecorder(directory, "leg1")
    for sample in sorted(samples, key=lambda sample: sample.received_ms):
        recorder.write(sample)
    return recorder


def test_picture_and_sound_come_back_as_they_were_sent(tmp_path: Path) -> None:
    video, audio = pictures(50), sounds(95)
    segments = record(tmp_path, [*video, *audio]).close()
    assert [(s.video, s.audio, s.pictures, s.packets) for s in segments] == [("H264", "opus", 50, len(audio))]
    with av.open(str(tmp_path / segments[0].file)) as file:
        stored = [bytes(p) for p in file.demux(audio=0) if p.size]
    assert stored == [sample.units[0] for sample in audio], "not transcoded"
    with av.open(str(tmp_path / segments[0].file)) as file:
        times = [frame.time for frame in file.decode(video=0)]
        assert (file.streams.video[0].width, file.streams.video[0].height) == (160, 96)
    assert len(times) == 50
    assert np.allclose(np.diff(times), 0.04, atol=0.0015)


def test_a_loss_begins_a_new_file_at_the_next_keyframe(tmp_path: Path) -> None:
    video = pictures(40)
    recorder = record(tmp_path, video[:15])
    recorder.cut()
    for sample in video[15:]:
        recorder.write(sample)
    first, second = recorder.close()
    assert (first.pictures, second.pictures) == (15, 20)
    assert second.started_at == START + 20 * 40
    assert recorder.dropped == 5


def test_another_size_begins_a_new_file(tmp_path: Path) -> None:
    segments = record(tmp_path, [*pictures(10), *pictures(10, size=(96, 160), first=10)]).close()
    assert len(segments) == 2
    with av.open(str(tmp_path / segments[1].file)) as file:
        assert file.streams.video[0].width == 96


def test_sound_without_a_picture_is_kept_alone_and_a_picture_begins_a_new_file(tmp_path: Path) -> None:
    audio = sounds(200)
    segments = record(tmp_path, [*audio, *pictures(10, first=75)]).close()
    assert [(s.video, s.audio) for s in segments] == [(None, "opus"), ("H264", "opus")]
    assert sum(s.packets for s in segments) == len(audio)


def test_a_short_word_without_a_picture_is_not_lost(tmp_path: Path) -> None:
    audio = sounds(20)
    assert [s.packets for s in record(tmp_path, audio).close()] == [len(audio)]


def test_vp8_is_passed_through(tmp_path: Path) -> None:
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 160, 96, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"deadline": "realtime", "lag-in-frames": "0", "cpu-used": "8"}
    video = []
    for number in range(10):
        frame = av.VideoFrame.from_ndarray(np.full((96, 160, 3), number * 20, np.uint8), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts = number
        video += [
            Sample(
                codec="VP8",
                units=(bytes(packet),),
                timestamp=number * 3_600,
                received_ms=START + number * 40,
                keyframe=bool(packet.is_keyframe),
            )
            for packet in encoder.encode(frame)
        ]
    segments = record(tmp_path, video).close()
    assert [(s.video, s.audio, s.pictures) for s in segments] == [("VP8", None, 10)]
    with av.open(str(tmp_path / segments[0].file)) as file:
        sizes = [(frame.width, frame.height) for frame in file.decode(video=0)]
    assert sizes == [(160, 96)] * 10


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_garbage_that_calls_itself_a_keyframe_leaves_no_file(tmp_path: Path, codec: str) -> None:
    recorder = LegRecorder(tmp_path, "leg1")
    bad = Sample(codec=codec, units=(b"\x67" + bytes(20),), timestamp=0, received_ms=START, keyframe=True)
    with pytest.raises(ProtocolError):
        recorder.write(bad)
    assert list(tmp_path.iterdir()) == []
    for sample in pictures(10):
        recorder.write(sample)
    assert recorder.close()[-1].pictures == 10


def test_time_that_jumps_is_aligned_by_arrival_and_never_runs_back(tmp_path: Path) -> None:
    video = pictures(10)
    jumped = [replace(sample, timestamp=sample.timestamp - 10**7) for sample in video[5:]]
    segments = record(tmp_path, [*video[:5], *jumped]).close()
    with av.open(str(tmp_path / segments[0].file)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    assert np.allclose(np.diff(times), 0.04, atol=0.0015)


def test_a_codec_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    sample = Sample(codec="G722", units=(b"x",), timestamp=0, received_ms=START)
    with pytest.raises(ProtocolError, match="codec"):
        LegRecorder(tmp_path, "leg1").write(sample)


def test_the_manifest_finds_what_was_changed(tmp_path: Path) -> None:
    segments = record(tmp_path, [*pictures(10), *pictures(10, size=(96, 160), first=10)]).close()
    write_manifest(tmp_path, {"id": "call1"}, {"leg1": segments})
    assert verify_manifest(tmp_path) == []
    first, second = (tmp_path / segment.file for segment in segments)
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.rename(tmp_path / "other.mkv")
    assert verify_manifest(tmp_path) == [
        f"{first.name}: changed after it was recorded",
        f"{second.name}: missing",
        "other.mkv: not in the manifest",
    ]
    (tmp_path / "manifest.json").write_bytes(b"{")
    assert len(verify_manifest(tmp_path)) == 1
