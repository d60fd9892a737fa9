"""Incoming RTP: routing, order, loss, feedback. No clock: `now` is what the test says."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from recording_link import RecordingLink

from gateway.errors import ProtocolError
from gateway.streams.media import Codec
from gateway.streams.packets import RtpPacket, write_rtp
from gateway.streams.publisher import MAX_HELD, PublishedMedia, Publisher
from gateway.streams.rtcp import (
    Nack,
    PictureLossIndication,
    ReceiverEstimatedBitrate,
    ReceiverReport,
    SenderReport,
    ntp_from_unix,
    parse_rtcp,
    write_sender_report,
)
from gateway.streams.sender import PayloadTypes, TrackSender
from gateway.streams.stream import Stream, TrackKind

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
RID = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
VIDEO = PublishedMedia(
    kind=TrackKind.VIDEO, mid="v", codecs={96: Codec.VP8}, rtx={97: 96}, extensions={MID: 4, RID: 5}
)
AUDIO = PublishedMedia(kind=TrackKind.AUDIO, mid="a", codecs={111: Codec.OPUS}, extensions={MID: 4})
KEYFRAME, INTERFRAME = b"\x10\x00key", b"\x10\x01inter"


class Rig:
    def __init__(self, *media: PublishedMedia) -> None:
        self.stream = Stream()
        self.publisher = Publisher(
            self.stream, media or (VIDEO, AUDIO), ssrc=77, cname="c", bitrate_bps=1_500_000
        )
        self.link = RecordingLink()
        self.viewer = TrackSender(
            TrackKind.VIDEO,
            {Codec.VP8: PayloadTypes(media=100, rtx=101)},
            ssrc=1,
            rtx_ssrc=2,
            first_index=1000,
            first_timestamp=0,
        )
        self.viewer.start(self.link, self.link, self.stream.video, 0.0)
        self.rtcp: list = []

    def video(self, number: int, payload: bytes | None = None, *, now: float = 1.0, **changes) -> None:
        packet = RtpPacket(
            **{
                "payload_type": 96,
                "marker": True,
                "sequence_number": number & 0xFFFF,
                "timestamp": number * 3000 & 0xFFFFFFFF,
                "ssrc": 500,
                "payload": (KEYFRAME if payload is None and number % 100 == 0 else payload)
                or INTERFRAME + number.to_bytes(4, "big"),
                "extensions": {4: b"v"},
                **changes,
            }
        )
        self.feed(packet, now)

    def rtx(self, original: int, payload: bytes, number: int = 0, *, now: float = 1.0) -> None:
        self.feed(
            RtpPacket(
                payload_type=97,
                marker=True,
                sequence_number=number,
                timestamp=original * 3000,
                ssrc=501,
                payload=(original & 0xFFFF).to_bytes(2, "big") + payload,
                extensions={4: b"v"},
            ),
            now,
        )

    def feed(self, packet: RtpPacket, now: float) -> None:
        for compound in self.publisher.receive_rtp([write_rtp(packet)], now):
            self.rtcp += parse_rtcp(compound)

    def poll(self, now: float) -> list:
        for compound in self.publisher.poll(now):
            self.rtcp += parse_rtcp(compound)
        return self.take(object)

    def take(self, kind) -> list:
        found = [one for one in self.rtcp if isinstance(one, kind)]
        self.rtcp = []
        return found

    def numbers(self) -> list[int]:
        """Indices as the viewer sees them, from 0."""
        return [one.index - 1000 for one in self.link.sent]


def test_payloads_pass_unchanged():
    rig = Rig()
    for number in range(200, 205):
        rig.video(number)
    assert rig.link.sent[0].payload == KEYFRAME
    assert [one.payload for one in rig.link.sent[1:]] == [
        INTERFRAME + number.to_bytes(4, "big") for number in range(201, 205)
    ]
    stamps = [one.timestamp for one in rig.link.sent]
    assert [after - before for before, after in pairwise(stamps)] == [3000] * 4
    assert {one.payload_type for one in rig.link.sent} == {100}


@settings(max_examples=40)
@given(st.integers(0, 0xFFFF), st.randoms(use_true_random=False))
def test_any_order_within_bounds_is_put_right(first: int, shuffler: random.Random):
    rig = Rig()
    rig.video(first, KEYFRAME)
    order = list(range(first + 1, first + 30))
    order.sort(key=lambda number: number + shuffler.uniform(0, 12))
    for number in order:
        rig.video(number, INTERFRAME + number.to_bytes(4, "big"))
    assert rig.numbers() == list(range(30))
    assert [one.payload[-4:] for one in rig.link.sent[1:]] == [
        number.to_bytes(4, "big") for number in range(first + 1, first + 30)
    ]
    assert rig.publisher.tracks[0].stats.lost == 0


def packet_of(number: int, timestamp: int, marker: bool, payload: bytes) -> bytes:
    return write_rtp(
        RtpPacket(
            payload_type=96,
            marker=marker,
            sequence_number=number & 0xFFFF,
            timestamp=timestamp,
            ssrc=500,
            payload=payload,
            extensions={4: b"v"},
        )
    )


def test_a_picture_that_came_at_once_leaves_in_one_send():
    rig = Rig()
    rig.video(0, KEYFRAME)
    rig.link.sends.clear()
    picture = [
        packet_of(1 + at, 3000, at == 4, bytes([16, 1, at]) * (300 if at < 4 else 100)) for at in range(5)
    ]
    rig.publisher.receive_rtp(picture, 1.0)
    assert rig.link.sends == [5]
    assert [one.marker for one in rig.link.sent[-5:]] == [False] * 4 + [True]


def test_what_came_at_once_fits_into_one_send():
    rig = Rig()
    rig.video(0, KEYFRAME)
    rig.link.sends.clear()
    rig.publisher.receive_rtp([packet_of(1 + at, 3000, at == 99, bytes(1400)) for at in range(100)], 1.0)
    assert sum(rig.link.sends) == 100
    assert max(rig.link.sends) * 1440 < 65_000


@settings(max_examples=60)
@given(st.data())
def test_how_packets_come_together_changes_nothing_for_the_viewer(data: st.DataObject):
    """Any pictures, sizes, losses and order, in any runs: the same packets as one by one."""
    packets, number = [packet_of(0, 0, True, KEYFRAME)], 1
    for picture in range(1, data.draw(st.integers(1, 8))):
        sizes = data.draw(st.lists(st.sampled_from([3, 40, 40, 40, 41]), min_size=1, max_size=6))
        for at, size in enumerate(sizes):
            body = (b"\x10\x01" + number.to_bytes(2, "big") * size)[: size + 4]
            packets.append(packet_of(number, picture * 3000, at == len(sizes) - 1, body))
            number += 1
    lost = data.draw(st.sets(st.integers(1, number), max_size=3))
    packets = [packet for at, packet in enumerate(packets) if at not in lost]
    swapped = data.draw(st.integers(0, len(packets) - 1))
    packets[swapped:] = packets[swapped : swapped + 2][::-1] + packets[swapped + 2 :]
    runs, left = [], list(packets)
    while left:
        size = data.draw(st.integers(1, 7))
        runs.append(left[:size])
        del left[:size]
    seen = []
    for way in ([[packet] for packet in packets], runs):
        rig = Rig()
        for run in way:
            rig.publisher.receive_rtp(run, 1.0)
        rig.poll(3.0)  # what waits behind a gap is passed on
        seen.append([(one.index, one.payload, one.marker, one.timestamp) for one in rig.link.sent])
    assert seen[0] == seen[1]


def test_missing_packet_is_asked_for_and_taken_as_rtx():
    rig = Rig()
    rig.video(100)
    rig.video(101)
    rig.video(103)
    rig.video(104)
    rig.take(object)
    assert rig.numbers() == [0, 1]
    assert [one for one in rig.poll(1.005) if isinstance(one, Nack)] == []
    (nack,) = [one for one in rig.poll(1.02) if isinstance(one, Nack)]
    assert (nack.media_ssrc, nack.lost) == (500, (102,))
    assert [one for one in rig.poll(1.05) if isinstance(one, Nack)] == []
    (again,) = [one for one in rig.poll(1.11) if isinstance(one, Nack)]
    assert again.lost == (102,)
    rig.rtx(102, INTERFRAME + b"back", now=1.12)
    assert rig.numbers() == [0, 1, 2, 3, 4]
    assert rig.link.sent[2].payload == INTERFRAME + b"back"
    assert rig.publisher.tracks[0].stats.recovered == 1


def test_a_gap_given_up_stays_visible_and_asks_for_a_keyframe():
    rig = Rig()
    rig.video(100)
    rig.poll(1.0)
    rig.video(102, now=1.1)
    assert rig.numbers() == [0]
    kinds = rig.poll(2.0)
    assert rig.numbers() == [0, 2]
    assert any(isinstance(one, PictureLossIndication) for one in kinds)
    assert rig.publisher.tracks[0].stats.lost == 1
    rig.video(101, now=2.1)
    assert rig.numbers() == [0, 2]
    assert rig.publisher.tracks[0].stats.late == 1


def test_held_packets_are_bounded():
    rig = Rig()
    rig.video(100)
    for number in range(102, 102 + MAX_HELD + 1):
        rig.video(number)
    assert len(rig.publisher.tracks[0]._held) == 0
    assert rig.numbers()[1] == 2


def test_duplicates_pass_once():
    rig = Rig()
    rig.video(100)
    rig.video(101)
    rig.video(101)
    rig.video(100)
    assert rig.numbers() == [0, 1]
    assert rig.publisher.tracks[0].stats.late == 2


def test_padding_leaves_no_hole():
    rig = Rig()
    rig.video(100)
    rig.feed(
        RtpPacket(
            payload_type=96,
            marker=False,
            sequence_number=101,
            timestamp=300_000,
            ssrc=500,
            payload=b"",
            padding=200,
            extensions={4: b"v"},
        ),
        1.0,
    )
    rig.video(102)
    assert rig.numbers() == [0, 1]


def test_rtx_padding_is_ignored():
    rig = Rig()
    rig.video(100)
    rig.rtx(0, b"", now=1.0)
    assert rig.numbers() == [0]


def test_new_source_goes_on_in_the_same_timeline():
    rig = Rig()
    rig.video(100, now=1.0)
    rig.video(101, now=1.033)
    rig.video(7000, KEYFRAME, ssrc=900, timestamp=5, now=3.033)
    rig.video(7001, ssrc=900, timestamp=3005, now=3.066)
    assert rig.numbers() == [0, 1, 3, 4]
    stamps = [one.timestamp for one in rig.link.sent]
    assert abs(stamps[2] - stamps[1] - 2 * 90_000) < 100
    assert stamps[3] - stamps[2] == 3000
    assert rig.publisher.tracks[0].stats.restarts == 1


def test_routing_by_mid_then_ssrc_then_payload_type():
    rig = Rig()
    rig.video(100)  # MID
    rig.video(101, extensions={})  # known SSRC
    rig.video(7, KEYFRAME, extensions={}, ssrc=900, timestamp=9)  # only one m-line has this payload type
    assert rig.publisher.tracks[0].stats.packets == 3
    rig.video(102, extensions={4: b"zz"}, ssrc=901)
    rig.video(103, payload_type=50)
    assert rig.publisher.unrouted_packets == 2
    rig.publisher.receive_rtp([b"\x80"], 1.0)
    assert rig.publisher.bad_packets == 1


def test_payload_type_in_two_m_lines_says_nothing():
    other = PublishedMedia(kind=TrackKind.VIDEO, mid="w", codecs={96: Codec.VP8})
    rig = Rig(VIDEO, other)
    rig.video(100, extensions={})
    assert rig.publisher.unrouted_packets == 1
    rig.video(100)
    assert rig.publisher.tracks[0].stats.packets == 1


def test_other_layers_of_simulcast_are_left_out():
    rig = Rig()
    rig.video(100, extensions={4: b"v", 5: b"hi"})
    rig.video(200, KEYFRAME, ssrc=900, extensions={4: b"v", 5: b"lo"})
    assert rig.numbers() == [0]
    assert rig.publisher.tracks[0].ssrc == 500


def test_ssrcs_are_bounded():
    rig = Rig()
    for ssrc in range(2000, 2100):
        rig.video(100, ssrc=ssrc)
    assert len(rig.publisher._by_ssrc) == 32
    assert rig.publisher.unrouted_packets == 68


def test_keyframe_is_asked_for_at_the_start_and_throttled():
    rig = Rig()
    rig.video(1, INTERFRAME, now=1.0)
    assert len(rig.take(PictureLossIndication)) == 1
    rig.publisher.want_keyframe()
    rig.video(2, INTERFRAME, now=1.1)
    assert rig.take(PictureLossIndication) == []
    rig.video(3, INTERFRAME, now=1.8)
    assert len(rig.take(PictureLossIndication)) == 1
    rig.video(4, INTERFRAME, now=5.0)
    assert rig.take(PictureLossIndication) == []


def test_a_viewer_without_a_cached_keyframe_makes_it_ask():
    rig = Rig()
    rig.video(1, INTERFRAME, now=1.0)
    rig.poll(1.0)
    late = TrackSender(
        TrackKind.VIDEO,
        {Codec.VP8: PayloadTypes(media=100)},
        ssrc=5,
        rtx_ssrc=6,
        first_index=1,
        first_timestamp=0,
    )
    late.start(rig.link, rig.link, rig.stream.video, 2.0)
    assert any(isinstance(one, PictureLossIndication) for one in rig.poll(2.0))


def test_reports_and_remb_every_half_second():
    rig = Rig()
    for number in range(100, 110):
        if number != 105:
            rig.video(number, now=1.0)
    rig.take(object)
    packets = rig.poll(1.6)
    (report,) = [one for one in packets if isinstance(one, ReceiverReport)]
    (remb,) = [one for one in packets if isinstance(one, ReceiverEstimatedBitrate)]
    assert remb.ssrcs == (500,)
    assert abs(remb.bitrate_bps - 1_500_000) < 100
    (block,) = report.reports
    assert (block.ssrc, block.highest_sequence, block.packets_lost) == (500, 109, 1)
    assert 20 <= block.fraction_lost <= 29
    assert [one for one in rig.poll(1.7) if isinstance(one, ReceiverEstimatedBitrate)] == []
    assert [one for one in rig.poll(2.2) if isinstance(one, ReceiverEstimatedBitrate)]


def test_sender_reports_give_delay_and_a_common_clock():
    rig = Rig()
    rig.video(100, now=10.0)
    rig.feed(
        RtpPacket(
            payload_type=111,
            marker=False,
            sequence_number=1,
            timestamp=48_000,
            ssrc=600,
            payload=b"opus",
            extensions={4: b"a"},
        ),
        10.0,
    )
    # The publisher says: both were taken at the same moment, though the picture took 0.2 s longer to come.
    for ssrc, stamp, at in ((600, 48_000, 10.02), (500, 300_000, 10.03)):
        report = SenderReport(
            ssrc=ssrc, ntp_time=ntp_from_unix(5000.0), rtp_timestamp=stamp, packet_count=1, octet_count=1
        )
        rig.publisher.receive_rtcp(write_sender_report(report), at)
    video_at = rig.stream.video.base + rig.stream.video.last_timestamp / 90_000
    audio_at = rig.stream.audio.base + rig.stream.audio.last_timestamp / 48_000
    assert abs(video_at - audio_at) < 0.001
    rig.take(object)
    (report,) = [one for one in rig.poll(10.6) if isinstance(one, ReceiverReport)]
    block = next(one for one in report.reports if one.ssrc == 500)
    assert block.last_sender_report == (ntp_from_unix(5000.0) >> 16) & 0xFFFFFFFF
    assert abs(block.delay_since_last_sender_report / 65536 - 0.57) < 0.01


def test_closing_cuts_the_stream():
    rig = Rig()
    rig.video(100)
    rig.publisher.close()
    assert rig.stream.video.gop_first is None
    assert rig.stream.video.on_keyframe_wanted is None


NEGOTIATED = {
    bytes((marker | number,))
    for one in (VIDEO, AUDIO)
    for number in (*one.codecs, *one.rtx)
    for marker in (0, 0x80)
}


def is_rtcp(data: bytes) -> bool:
    try:
        parse_rtcp(data)
    except ProtocolError:
        return False
    return True


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=60).filter(lambda data: data[1:2] not in NEGOTIATED), max_size=20))
def test_garbage_is_counted(datagrams: list[bytes]):
    rig = Rig()
    publisher = rig.publisher
    for data in datagrams:
        publisher.receive_rtp([data], 1.0)
    assert publisher.bad_packets + publisher.unrouted_packets == len(datagrams)
    for data in datagrams:
        before = publisher.bad_packets
        publisher.receive_rtcp(data, 1.0)
        assert publisher.bad_packets == before + (not is_rtcp(data))


def test_what_may_be_asked_for_again_is_bounded_by_the_path():
    rig = Rig()
    for number in range(100, 120):
        rig.video(number, b"\x10\x01" + b"x" * 1_000, now=1.0 + number / 1000)
    rig.take(object)
    rig.publisher._estimate.bps = 100_000
    asked = 0
    for step in range(1, 21):  # 50 packets lost every 50 ms
        rig.video(119 + step * 50, b"\x10\x01" + b"x" * 1_000, now=1.2 + step * 0.05)
        told = rig.poll(1.22 + step * 0.05)
        asked += sum(len(one.lost) for one in told if isinstance(one, Nack))
    assert 0 < asked * 8_000 < 100_000, "half of the estimate, and half a second of it at once"


def test_a_gap_after_darkness_is_given_up_at_once_for_a_keyframe():
    rig = Rig()
    for number in range(100, 110):
        rig.video(number, now=1.0 + number / 1000)
    rig.poll(1.2)
    rig.take(object)
    rig.video(400, now=11.0)
    assert rig.publisher.tracks[0].stats.lost == 290
    rig.poll(11.02)
    assert not rig.publisher.tracks[0].waiting


def test_keyframes_are_asked_for_less_and_less_often_while_they_do_not_help():
    rig, asked = Rig(), []
    rig.video(100, now=1.0)
    for step in range(1, 1000):
        now = 1.0 + step / 100
        rig.publisher.want_keyframe()
        for compound in rig.publisher.poll(now):
            asked += [now for one in parse_rtcp(compound) if isinstance(one, PictureLossIndication)]
    assert [round(after - before, 1) for before, after in pairwise(asked)][:3] == [1.4, 2.8, 2.8]
