"""What a viewer's receiver asks for, and what it gets."""

from __future__ import annotations

import pytest
from recording_link import RecordingLink, Source, pictures

from gateway.streams.media import AudioFrame, Codec, StreamName
from gateway.streams.rtcp import (
    Bye,
    ReportBlock,
    SenderReport,
    SourceDescription,
    ntp_from_unix,
    write_nack,
    write_pli,
    write_receiver_report,
)
from gateway.streams.sender import MAX_NACKED, PayloadTypes, SenderState, TrackSender
from gateway.streams.stream import Stream, TrackKind
from gateway.streams.viewer import AutoChoice, Viewer

SSRC, RTX_SSRC, AUDIO_SSRC = 11, 12, 13
UNIX = 1_700_000_000.0


class Rig:
    """One viewer with picture and sound of one source; `first_index` near the wrap where a test wants it."""

    def __init__(
        self, *, rtx: int | None = 103, first_index: int = 1000, auto: AutoChoice | None = None
    ) -> None:
        self.source = Source(Stream())
        self.link = RecordingLink()
        self.video = TrackSender(
            TrackKind.VIDEO,
            {Codec.H264: PayloadTypes(media=102, rtx=rtx)},
            ssrc=SSRC,
            rtx_ssrc=RTX_SSRC,
            first_index=first_index,
            first_timestamp=5000,
        )
        self.audio = TrackSender(
            TrackKind.AUDIO,
            {Codec.PCMA: PayloadTypes(media=8)},
            ssrc=AUDIO_SSRC,
            rtx_ssrc=14,
            first_index=1,
            first_timestamp=7000,
        )
        self.choices: list[StreamName] = []
        self.replays = 0
        self.viewer = Viewer(
            self.source.stream,
            video=self.video,
            audio=self.audio,
            cname="a1B2c3D4",
            unix_offset=UNIX,
            auto=auto,
            on_choice=self.choices.append,
            on_replay=self._replay,
        )

    def _replay(self) -> None:
        self.replays += 1

    def connect(self) -> None:
        self.viewer.connect(self.link, self.link, self.source.now)
        self.settle()

    def settle(self) -> None:
        while self.viewer.pump(self.source.now + 10):
            pass

    def nack(self, *lost: int, after: float = 0.0) -> None:
        compound = write_receiver_report(99) + write_nack(99, SSRC, [index & 0xFFFF for index in lost])
        self.viewer.on_rtcp(compound, self.source.now + after)

    def pli(self, after: float = 0.0) -> None:
        self.viewer.on_rtcp(write_pli(99, SSRC), self.source.now + after)
        self.settle()


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.source.push(keyframe=True)
    rig.connect()
    return rig


def test_a_lost_packet_comes_again_as_rtx(rig):
    rig.source.push(size=5000)
    lost = rig.link.take()[-2]
    rig.nack(lost.index)
    (again,) = rig.link.take()
    assert again.ssrc == RTX_SSRC
    assert again.payload_type == 103
    assert again.payload == (lost.index & 0xFFFF).to_bytes(2, "big") + lost.payload
    assert (again.timestamp, again.marker) == (lost.timestamp, lost.marker)


def test_the_marker_comes_again_with_the_last_packet(rig):
    rig.source.push(size=5000)
    last = rig.link.take()[-1]
    rig.nack(last.index)
    assert rig.link.take()[0].marker


def test_without_rtx_the_very_same_packet_comes_again():
    rig = Rig(rtx=None)
    rig.source.push(keyframe=True)
    rig.connect()
    lost = rig.link.take()[0]
    rig.nack(lost.index)
    assert rig.link.take() == [lost]


def test_at_most_once_in_a_round_trip(rig):
    lost = rig.link.take()[0]
    rig.nack(lost.index)
    rig.nack(lost.index, after=0.04)
    assert len(rig.link.take()) == 1
    rig.nack(lost.index, after=0.06)
    assert len(rig.link.take()) == 1
    assert rig.video.stats.retransmissions_refused == 1


def test_retransmission_has_a_budget_that_refills(rig):
    rig.source.push(size=220_000)
    packets = rig.link.take()[-180:]
    for start in range(0, 180, 90):
        rig.nack(*(one.index for one in packets[start : start + 90]))
    rig.nack(*(one.index for one in packets), after=0.2)
    rig.nack(*(one.index for one in packets), after=0.21)
    sent = sum(len(one.payload) for one in rig.link.take())
    assert 400_000 < sent < 400_000 + 0.21 * 400_000 + 1200


def test_old_and_future_numbers_are_refused(rig):
    rig.link.take()
    rig.nack(999, 30_000, 1000 + 40)
    assert rig.link.take() == []
    assert rig.video.stats.retransmissions_refused == 3


def test_numbers_over_the_wrap():
    rig = Rig(first_index=0xFFFE)
    rig.source.push(keyframe=True, size=5000)
    rig.connect()
    packets = rig.link.take()
    assert packets[0].index < 0x10000 < packets[-1].index
    rig.nack(*(one.index for one in packets))
    again = rig.link.take()
    assert [one.payload[2:] for one in again] == [one.payload for one in packets]


def test_too_much_lost_gets_a_keyframe_instead(rig):
    for _ in range(10):
        rig.source.push()
    rig.link.take()
    rig.nack(*range(1000, 1000 + MAX_NACKED + 1), after=1)
    rig.settle()
    assert pictures(rig.link.take()) == list(range(11))
    assert rig.replays == 1


def test_keyframe_request_is_answered_from_the_cache(rig):
    for _ in range(4):
        rig.source.push()
    before = rig.link.take()
    rig.pli(after=1)
    burst = rig.link.take()
    assert pictures(burst) == [0, 1, 2, 3, 4]
    assert burst[0].index == before[-1].index + 1
    stamps = [one.timestamp for one in burst]
    assert stamps[0] > before[-1].timestamp
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] == 4 * 90, "squeezed"
    rig.source.push()
    live = rig.link.take()
    assert burst[-1].timestamp < live[0].timestamp <= burst[-1].timestamp + 3600
    assert pictures(live) == [5]


def test_packets_of_a_replay_come_again_with_their_own_timestamp(rig):
    rig.source.push()
    rig.pli(after=1)
    lost = rig.link.take()[-1]
    rig.nack(lost.index, after=1)
    assert rig.link.take()[0].timestamp == lost.timestamp


def test_keyframe_requests_are_throttled(rig):
    rig.pli(after=1)
    rig.pli(after=1.1)
    rig.pli(after=1.2)
    assert rig.video.stats.replays == 2
    rig.pli(after=1.6)
    assert rig.video.stats.replays == 3
    assert rig.video.stats.keyframe_requests == 4


def test_fir_is_a_keyframe_request(rig):
    fir = bytes.fromhex("84ce0004 00000063 00000000 0000000b 01000000".replace(" ", ""))
    rig.viewer.on_rtcp(fir, rig.source.now + 1)
    assert rig.video.stats.keyframe_requests == 1


def test_first_report_goes_with_the_burst_and_says_when(rig):
    rig.source.push()
    rig.link.take_rtcp()
    late = rig.source.start + 3.5
    rig.viewer.report(late)
    ((report, names),) = rig.link.take_rtcp()
    assert isinstance(report, SenderReport)
    assert report.ssrc == SSRC
    assert report.ntp_time == ntp_from_unix(UNIX + late)
    first = rig.link.sent[0].timestamp
    assert report.rtp_timestamp - first == pytest.approx(3.5 * 90_000, abs=200)
    assert report.packet_count == len(rig.link.sent)
    assert report.octet_count == sum(len(one.payload) for one in rig.link.sent)
    assert names == SourceDescription(cnames={SSRC: "a1B2c3D4", AUDIO_SSRC: "a1B2c3D4"})
    rig.viewer.report(late + 0.5)
    assert rig.link.take_rtcp() == []


def test_reports_come_half_as_often_later(rig):
    rig.link.take_rtcp()
    start = rig.source.now
    came = []
    for second in range(1, 12):
        rig.viewer.report(start + second)
        if rig.link.take_rtcp():
            came.append(second)
    assert came == [1, 2, 3, 5, 7, 9, 11]


def test_report_at_once_after_connecting():
    rig = Rig()
    rig.source.push(keyframe=True)
    rig.viewer.connect(rig.link, rig.link, rig.source.now)
    assert isinstance(rig.link.take_rtcp()[0][0], SenderReport)


def test_picture_and_sound_share_one_clock(rig):
    for number in range(10):
        now = rig.source.push()
        rig.source.stream.on_audio(
            AudioFrame(codec=Codec.PCMA, payload=bytes(160), timestamp=number * 320, received_at=now)
        )
    rig.link.take_rtcp()
    rig.viewer.report(now + 2)
    (compound,) = rig.link.take_rtcp()
    video, audio = compound[0], compound[1]
    sent_video = [one for one in rig.link.sent if one.ssrc == SSRC][-1]
    sent_audio = [one for one in rig.link.sent if one.ssrc == AUDIO_SSRC][-1]
    assert video.ntp_time == audio.ntp_time
    assert (video.rtp_timestamp - sent_video.timestamp) / 90_000 == pytest.approx(2, abs=0.01)
    assert (audio.rtp_timestamp - sent_audio.timestamp) / 8_000 == pytest.approx(2, abs=0.01)


def test_round_trip_time_out_of_a_receiver_report(rig):
    now = rig.source.now + 1
    sent_at = ntp_from_unix(UNIX + now - 0.25)
    block = ReportBlock(
        ssrc=SSRC,
        fraction_lost=64,
        packets_lost=3,
        highest_sequence=1000,
        jitter=900,
        last_sender_report=(sent_at >> 16) & 0xFFFFFFFF,
        delay_since_last_sender_report=int(0.2 * 65536),
    )
    rig.viewer.on_rtcp(write_receiver_report(99, [block]), now)
    stats = rig.video.stats
    assert stats.rtt_s == pytest.approx(0.05, abs=0.001)
    assert (stats.fraction_lost, stats.packets_lost, stats.jitter_s) == (0.25, 3, 0.01)


def test_nonsense_is_counted(rig):
    rig.viewer.on_rtcp(b"\x80\xc9\x00\x09", rig.source.now)
    rig.viewer.on_rtcp(write_pli(99, 12345), rig.source.now)
    assert rig.video.stats.bad_rtcp == 1
    assert rig.video.stats.keyframe_requests == 0


def test_a_slow_viewer_is_dropped_to_the_next_keyframe(rig):
    other = Rig()
    other.viewer.switch(rig.source.stream)
    other.viewer.connect(other.link, other.link, rig.source.now)
    other.settle()
    rig.link.take()
    rig.link.full = True
    for _ in range(5):
        rig.source.push()
    assert rig.video.state is SenderState.WAITING
    assert (rig.video.stats.stalls, rig.video.stats.skips) == (3, 1)
    rig.link.full = False
    rig.source.push()
    assert rig.link.take() == []
    rig.source.push(keyframe=True)
    assert pictures(rig.link.take()) == [7]
    assert pictures(other.link.take()) == list(range(8)), "others don't notice"


def test_one_dropped_group_is_left_to_nack(rig):
    lost_at = len(rig.link.sent)
    rig.link.full = True
    rig.source.push()
    rig.link.full = False
    rig.source.push()
    assert rig.video.state is SenderState.LIVE
    sent = rig.link.sent[lost_at:]
    missing = sent[0].index - 1
    rig.nack(missing)
    assert pictures([rig.link.sent[-1]]) or rig.link.sent[-1].payload[2:] == rig.source.pushed[1]


def test_switch_goes_on_until_the_other_has_a_keyframe(rig):
    rig.source.push()
    sub = Source(Stream(), start=rig.source.start - 40, index=1000)  # another timeline for the same moments
    sub.push(keyframe=True)
    rig.viewer.switch(sub.stream)
    rig.source.push()
    sub.push()
    assert pictures(rig.link.take()) == [0, 1, 2], "main until then"
    last = rig.link.used
    newest = max(index for ssrc, index in last if ssrc == SSRC)
    sub.start = rig.source.now - sub.index / sub.fps
    sub.push(keyframe=True)
    rig.source.push()
    sent = rig.link.take()
    assert pictures(sent) == [1002], "then sub alone"
    assert sent[0].index == newest + 1
    assert rig.source.stream.video.watchers == 0
    assert rig.video.stats.switches == 1
    rig.nack(newest)
    assert rig.link.take()[0].payload[2:] == rig.source.pushed[2], "and what main sent can come again"


def test_switch_back_before_the_keyframe_is_no_switch(rig):
    sub = Source(Stream())
    sub.push(keyframe=True)
    rig.viewer.switch(sub.stream)
    rig.viewer.switch(rig.source.stream)
    assert sub.stream.video.watchers == 0
    sub.push(keyframe=True)
    rig.source.push()
    assert rig.video.stats.switches == 0
    assert pictures(rig.link.take()) == [0, 1]


def test_close_says_bye_and_leaves(rig):
    rig.link.take_rtcp()
    rig.viewer.close()
    (compound,) = rig.link.take_rtcp()
    assert compound[-1] == Bye(ssrcs=(SSRC, AUDIO_SSRC))
    assert rig.source.stream.watchers == 0
    rig.link.take()
    rig.source.push()
    rig.viewer.report(rig.source.now + 9)
    rig.nack(1000)
    assert rig.link.take() == []
    assert rig.link.take_rtcp() == []


def test_auto_falls_with_loss_and_rises_ever_more_slowly():
    auto = AutoChoice()
    assert auto.on_report(0.3, 0) is None
    assert auto.on_report(0.01, 1) is None
    assert auto.on_report(0.1, 2) is None
    assert auto.on_report(0.1, 3) is StreamName.SUB
    assert auto.on_report(0.0, 4) is None
    assert auto.on_report(0.0, 18.9) is None
    assert auto.on_report(0.0, 19) is StreamName.MAIN
    assert auto.on_report(0.1, 20) is None
    assert auto.on_report(0.1, 21) is StreamName.SUB
    assert auto.on_report(0.0, 22) is None
    assert auto.on_report(0.0, 51.9) is None
    assert auto.on_report(0.05, 52) is None, "not clean: the time starts anew"
    assert auto.on_report(0.0, 53) is None
    assert auto.on_report(0.0, 83) is StreamName.MAIN


def test_reports_drive_the_choice():
    rig = Rig(auto=AutoChoice())
    rig.source.push(keyframe=True)
    rig.connect()
    block = ReportBlock(
        ssrc=SSRC,
        fraction_lost=50,
        packets_lost=3,
        highest_sequence=1000,
        jitter=0,
        last_sender_report=0,
        delay_since_last_sender_report=0,
    )
    for _ in range(2):
        rig.viewer.on_rtcp(write_receiver_report(99, [block]), rig.source.now)
    assert rig.choices == [StreamName.SUB]
