"""Recordings are made from real H.264 and Opus and read back by an independent demuxer and decoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gateway.errors import ProtocolError
from gateway.evidence.recording import Gap, Sample, Segment, SegmentWriter, hash_file, probe

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


class Recording(SegmentWriter):
    """A writer that remembers what it told."""

    def __init__(self, directory: Path) -> None:
        self.segments: list[Segment] = []
        super().__init__(directory, "day/leg1", on_end=self.segments.append)

    def ended(self) -> list[Segment]:
        self.close()
        return self.segments


def record(directory: Path, samples: list[Sample]) -> Recording:
    recorder = Recording(directory)
    for sample in sorted(samples, key=lambda sample: sample.received_ms):
        recorder.write(sample)
    return recorder


def test_picture_and_sound_come_back_as_they_were_sent(tmp_path: Path) -> None:
    video, audio = pictures(50), sounds(95)
    segments = record(tmp_path, [*video, *audio]).ended()
    assert [(s.video, s.audio, s.pictures, s.packets) for s in segments] == [("H264", "opus", 50, len(audio))]
    with av.open(str(tmp_path / segments[0].file)) as file:
        stored = [bytes(p) for p in file.demux(audio=0) if p.size]
    assert stored == [sample.units[0] for sample in audio], "not transcoded"
    with av.open(str(tmp_path / segments[0].file)) as file:
        times = [frame.time for frame in file.decode(video=0)]
        assert (file.streams.video[0].width, file.streams.video[0].height) == (160, 96)
    assert len(times) == 50
    assert np.allclose(np.diff(times), 0.04, atol=0.0015)


def test_the_end_that_is_told_is_where_the_file_ends(tmp_path: Path) -> None:
    """The packets of a sender under load come late, each later than the one before."""
    late = [
        one._replace(received_ms=one.received_ms + 30 * number) for number, one in enumerate(pictures(25))
    ]
    [segment] = record(tmp_path, late).ended()
    with av.open(str(tmp_path / segment.file)) as file:
        last = max(packet.pts * packet.time_base for packet in file.demux() if packet.pts is not None)
    assert segment.started_at == START
    assert abs(segment.ended_at - segment.started_at - last * 1_000) <= 1


def test_a_loss_begins_a_new_file_at_the_next_keyframe(tmp_path: Path) -> None:
    video = pictures(40)
    recorder = record(tmp_path, video[:15])
    recorder.cut()
    for sample in video[15:]:
        recorder.write(sample)
    first, second = recorder.ended()
    assert (first.pictures, second.pictures) == (15, 20)
    assert second.started_at == START + 20 * 40
    assert recorder.dropped == 5


def test_another_size_begins_a_new_file(tmp_path: Path) -> None:
    segments = record(tmp_path, [*pictures(10), *pictures(10, size=(96, 160), first=10)]).ended()
    assert len(segments) == 2
    with av.open(str(tmp_path / segments[1].file)) as file:
        assert file.streams.video[0].width == 96


def test_sound_without_a_picture_is_kept_alone_and_a_picture_begins_a_new_file(tmp_path: Path) -> None:
    audio = sounds(200)
    segments = record(tmp_path, [*audio, *pictures(10, first=75)]).ended()
    assert [(s.video, s.audio) for s in segments] == [(None, "opus"), ("H264", "opus")]
    assert sum(s.packets for s in segments) == len(audio)


def test_a_short_word_without_a_picture_is_not_lost(tmp_path: Path) -> None:
    audio = sounds(20)
    assert [s.packets for s in record(tmp_path, audio).ended()] == [len(audio)]


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
    segments = record(tmp_path, video).ended()
    assert [(s.video, s.audio, s.pictures) for s in segments] == [("VP8", None, 10)]
    assert segments[0].media_type == "video/webm"
    with av.open(str(tmp_path / segments[0].file)) as file:
        sizes = [(frame.width, frame.height) for frame in file.decode(video=0)]
    assert sizes == [(160, 96)] * 10


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_garbage_that_calls_itself_a_keyframe_leaves_no_file(tmp_path: Path, codec: str) -> None:
    recorder = Recording(tmp_path)
    bad = Sample(codec=codec, units=(b"\x67" + bytes(20),), timestamp=0, received_ms=START, keyframe=True)
    with pytest.raises(ProtocolError):
        recorder.write(bad)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    for sample in pictures(10):
        recorder.write(sample)
    assert recorder.ended()[-1].pictures == 10


def test_time_that_jumps_is_aligned_by_arrival_and_never_runs_back(tmp_path: Path) -> None:
    video = pictures(10)
    jumped = [sample._replace(timestamp=sample.timestamp - 10**7) for sample in video[5:]]
    segments = record(tmp_path, [*video[:5], *jumped]).ended()
    with av.open(str(tmp_path / segments[0].file)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    assert np.allclose(np.diff(times), 0.04, atol=0.0015)


def test_a_codec_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    sample = Sample(codec="G722", units=(b"x",), timestamp=0, received_ms=START)
    with pytest.raises(ProtocolError, match="codec"):
        Recording(tmp_path).write(sample)


@pytest.mark.parametrize("seconds", [2, 3])
def test_what_a_kill_leaves_plays_to_its_last_second(tmp_path: Path, seconds: int) -> None:
    """The file is copied while it is open: what the disk has at a kill."""
    count = seconds * 25 + 13
    recorder = record(tmp_path, [*pictures(count), *sounds(count * 2 - 5)])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((tmp_path / "day/leg1.mp4").read_bytes())
    played = probe(cut)
    assert played is not None
    assert played >= (seconds - 1) * 1000
    assert probe(tmp_path / "missing.mp4") is None
    assert recorder.ended()[0].sha256 == hash_file(tmp_path / "day/leg1.mp4")[1]


def test_what_is_missing_has_a_name(tmp_path: Path) -> None:
    recorder = record(tmp_path, pictures(10))
    missing = Gap(from_at=START + 400, to_at=START + 2_000, reason="slow_disk")
    recorder.gap(missing)
    for sample in pictures(10, first=50):
        recorder.write(sample)
    segment = recorder.ended()[0]
    assert segment.gaps == (missing,)
    assert segment.pictures == 20


def test_containers_go_by_what_is_in_them(tmp_path: Path) -> None:
    pcm = [
        Sample(codec="PCMU", units=(bytes(160),), timestamp=n * 160, received_ms=START + n * 20)
        for n in range(150)
    ]
    assert [s.media_type for s in record(tmp_path / "a", sounds(110)).ended()] == ["audio/mp4"]
    assert [s.media_type for s in record(tmp_path / "b", pictures(10)).ended()] == ["video/mp4"]
    assert [s.media_type for s in record(tmp_path / "c", pcm).ended()] == ["audio/quicktime"]
    both = record(tmp_path / "d", [*pcm, *pictures(30)]).ended()
    assert [(s.media_type, s.pictures, s.packets) for s in both] == [("video/quicktime", 30, 150)]
    assert probe(tmp_path / "d" / both[0].file) is not None
