"""Streams without viewers, with viewers, and across cuts. No clock: `now` is what the test says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from recording_link import RecordingLink, Source, pictures

from gateway.streams.media import AudioFrame, Codec
from gateway.streams.sender import PayloadTypes, SenderState, TrackSender
from gateway.streams.stream import Replay, Stream, StreamLimits, TrackKind

VIDEO = {Codec.H264: PayloadTypes(media=102, rtx=103)}


def sender(kind: TrackKind = TrackKind.VIDEO, types=VIDEO, *, first_index: int = 1000) -> TrackSender:
    return TrackSender(kind, types, ssrc=1, rtx_ssrc=2, first_index=first_index, first_timestamp=0xFFFFFF00)


def test_unwatched_it_keeps_access_units_and_packetises_nothing():
    source = Source(Stream())
    source.push(keyframe=True)
    for _ in range(20):
        source.push()
    track = source.stream.video
    assert track.history is None
    assert track.next_number == 0
    assert track.frames == 21
    assert track.keyframe.nal_units[2] == source.pushed[0]


def test_the_first_viewer_starts_with_the_cached_pictures():
    source = Source(Stream())
    source.push(keyframe=True)
    for _ in range(9):
        source.push()
    link, viewer = RecordingLink(), sender()
    viewer.start(link, link, source.stream.video, source.now)
    while viewer.pump(source.now + 1):
        pass
    assert viewer.state is SenderState.LIVE
    assert pictures(link.sent) == list(range(10))
    source.push()
    assert pictures(link.sent) == list(range(11))
    assert [one.index for one in link.sent] == list(range(1000, 1000 + len(link.sent)))


def test_keyframe_at_once_the_rest_paced_at_20_mbps():
    source = Source(Stream())
    source.push(keyframe=True, size=60_000)
    for _ in range(20):
        source.push(size=10_000)
    link, viewer = RecordingLink(), sender()
    now = source.now
    viewer.start(link, link, source.stream.video, now)
    assert pictures(link.sent) == [0]
    assert link.sent[-1].marker
    octets = []
    while viewer.pump(now):
        octets.append(sum(len(one.payload) for one in link.take()))
        now += 0.005
    assert sum(octets[1:]) > 150_000
    assert max(octets[1:]) <= 12_500 + 10_100, "5 ms at 2.5 MB/s, and the picture begun"
    assert 0.06 < now - source.now < 0.12


def test_live_pictures_queue_behind_the_replay():
    source = Source(Stream())
    source.push(keyframe=True)
    for _ in range(5):
        source.push(size=40_000)
    link, viewer = RecordingLink(), sender()
    now = source.now
    viewer.start(link, link, source.stream.video, now)
    source.push()
    assert pictures(link.sent) == [0]
    while viewer.pump(now := now + 0.005):
        pass
    source.push()
    assert pictures(link.sent) == list(range(8))


def test_idle_again_at_the_first_keyframe_without_viewers():
    source = Source(Stream())
    source.push(keyframe=True)
    link, first, second = RecordingLink(), sender(), sender()
    first.start(link, link, source.stream.video, source.now)
    source.push()
    first.stop()
    source.push()
    assert source.stream.video.history is not None, "a page that reloads finds its pictures"
    other = RecordingLink()
    second.start(other, other, source.stream.video, source.now)
    while second.pump(source.now + 1):
        pass
    assert pictures(other.sent) == [0, 1, 2]
    second.stop()
    source.push(keyframe=True)
    source.push()
    assert source.stream.video.history is None
    assert source.stream.video.watchers == 0
    third, link = sender(), RecordingLink()
    third.start(link, link, source.stream.video, source.now)
    while third.pump(source.now + 1):
        pass
    assert pictures(link.sent) == [3, 4]


def test_too_long_a_group_of_pictures_shows_a_still_and_waits():
    for watched in (False, True):
        source = Source(Stream(StreamLimits(gop_seconds=1.0)))
        source.push(keyframe=True)
        if watched:
            keeper, other = sender(), RecordingLink()
            keeper.start(other, other, source.stream.video, source.now)
        for _ in range(40):
            source.push()
        link, viewer = RecordingLink(), sender()
        viewer.start(link, link, source.stream.video, source.now)
        viewer.pump(source.now + 1)
        assert pictures(link.take()) == [0]
        assert viewer.state is SenderState.WAITING
        source.push()
        assert link.take() == []
        source.push(keyframe=True)
        source.push()
        sent = link.take()
        assert pictures(sent) == [42, 43]


def test_too_big_a_group_of_pictures_is_not_cached():
    source = Source(Stream(StreamLimits(gop_octets=50_000)))
    source.push(keyframe=True)
    for _ in range(10):
        source.push(size=10_000)
    track = source.stream.video
    assert sum(len(unit) for au in track._bare_units for unit in au.nal_units) == 0
    assert track.join(sender()) is Replay.STILL


def test_without_a_keyframe_it_waits():
    source = Source(Stream())
    link, viewer = RecordingLink(), sender()
    viewer.start(link, link, source.stream.video, source.now)
    source.push()
    assert link.sent == []
    source.push(keyframe=True)
    assert pictures(link.sent) == [1]


def test_a_cut_makes_everyone_wait_and_forgets_the_cache():
    source = Source(Stream())
    source.push(keyframe=True)
    link, viewer = RecordingLink(), sender()
    viewer.start(link, link, source.stream.video, source.now)
    source.push()
    link.take()
    source.stream.on_reset()
    source.push()
    assert link.sent == []
    late, other = sender(), RecordingLink()
    late.start(other, other, source.stream.video, source.now)
    assert other.sent == []
    assert source.stream.video.keyframe is not None, "the snapshot stays"
    source.push(keyframe=True)
    assert pictures(link.sent) == pictures(other.sent) == [3]


def test_audio_costs_nothing_unwatched_and_starts_with_the_next_frame():
    stream = Stream()

    def push(number: int, codec: Codec = Codec.PCMA) -> None:
        stream.on_audio(
            AudioFrame(codec=codec, payload=bytes([number]) * 160, timestamp=number * 160, received_at=1.0)
        )

    push(0)
    assert stream.audio.history is None
    types = {Codec.PCMA: PayloadTypes(media=8), Codec.OPUS: PayloadTypes(media=111)}
    link, viewer = RecordingLink(), sender(TrackKind.AUDIO, types)
    viewer.start(link, link, stream.audio, 1.0)
    push(1)
    push(2)
    assert [(one.payload[0], one.payload_type) for one in link.sent] == [(1, 8), (2, 8)]
    assert link.sent[1].timestamp - link.sent[0].timestamp == 160
    push(3, Codec.AAC)
    assert len(link.sent) == 2
    push(4, Codec.OPUS)
    assert link.sent[-1].payload_type == 111
    push(5, Codec.PCMU)
    assert viewer.stats.codec_mismatches == 1
    assert len(link.sent) == 3


def test_the_clock_follows_the_least_delayed_packet():
    stream = Stream()
    source = Source(stream)
    for index in range(50):
        source.start = 100.0 + (0.2 if index % 3 else 0.0)
        source.push(keyframe=index == 0)
    at = 100.0 + 49 / 25
    assert abs(stream.video.timestamp_at(at) - 49 * 3600) < 0.02 * 90_000


@settings(max_examples=50)
@given(
    st.lists(
        st.sampled_from(
            ["push", "push", "push", "key", "join", "leave", "reset", "pump", "pli", "full", "free"]
        ),
        max_size=80,
    )
)
def test_whatever_happens_no_index_is_used_twice_and_time_runs_forward(steps: list[str]):
    """RecordingLink fails on a reused index; timestamps are unwrapped here and must never run backwards."""
    source = Source(Stream(), size=3000)
    link, viewer = RecordingLink(), sender()
    joined = False
    for step in steps:
        match step:
            case "push" | "key":
                source.push(keyframe=step == "key")
            case "join" if not joined:
                viewer.start(link, link, source.stream.video, source.now)
                joined = True
            case "leave" if joined:
                viewer.stop()
                link, viewer, joined = RecordingLink(), sender(), False
            case "reset":
                source.stream.on_reset()
            case "pump":
                viewer.pump(source.now)
            case "pli" if joined:
                viewer.restart(source.now)
            case "full":
                link.full = True
            case "free":
                link.full = False
        last = None
        for one in link.sent:
            if last is not None:
                assert one.index > last.index
                assert (one.timestamp - last.timestamp) & 0xFFFFFFFF < 0x80000000
            last = one
