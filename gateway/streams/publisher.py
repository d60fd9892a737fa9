"""The WHIP side of one session: RTP in, put in order, asked for again when lost, passed on unchanged.

    packet ──router──> IncomingTrack: RTX unwrapped, reordered within bounds ──> stream.Track.push_packets

The router finds the m-line of a packet as RFC 8843 section 9.2 says: by the MID header extension, then by
an SSRC it knows, then by a payload type that only one m-line has. What is missing is asked for by NACK
until it is too late; then a number is left out towards the viewers, so that their decoders see the gap, and
the publisher is asked for a keyframe. A publisher of the browser kind sends next to nothing without an
estimate of the path: REMB tells it one.

Bounds: reordering MAX_HELD packets or HOLD_S seconds, then the gap is given up; SSRCs MAX_SSRCS, more are
ignored.

Sources: RFC 3550 appendix A (loss, jitter), RFC 4585, RFC 4588, RFC 8843, RFC 8852 (RID),
draft-alvestrand-rmcat-remb. Pure: `now` is monotonic seconds; what shall be sent is returned as RTCP
compounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.errors import ProtocolError
from gateway.streams.estimate import PathEstimate
from gateway.streams.media import Codec
from gateway.streams.packets import MAX_SEGMENTS, RtpPacket, Unwrapper, parse_rtp
from gateway.streams.rtcp import (
    ReportBlock,
    SenderReport,
    parse_rtcp,
    write_nack,
    write_pli,
    write_receiver_report,
    write_remb,
    write_source_description,
)
from gateway.streams.stream import CLOCK_RATES, Stream, Track, TrackKind

__all__ = ["IncomingTrack", "PublishedMedia", "Publisher", "PublisherStats"]

MAX_HELD = 512
HOLD_S = {TrackKind.VIDEO: 0.25, TrackKind.AUDIO: 0.06}
"""How long packets behind a gap are held back. Video: two retransmissions on a path of 100 ms; a decoder
could not go on anyway. Audio: receivers conceal what is lost, so hardly at all."""
NACK_DELAY_S = 0.01  # a packet overtaken on the way is not lost
NACK_INTERVAL_S = 0.08
MAX_NACKS = 4
MAX_NACKED = 100
NACK_SHARE = 0.5
"""Of the estimate, what may be asked for again. On a full path each retransmission pushes something else out:
asked for without a bound, they are most of what is sent, and neither picture nor sound gets through."""
NACK_BURST_S = 0.5  # so much of that at once
DARK_S = 1.0
"""After so long without a packet what is missing is not asked for: it comes too late, and before the keyframe."""
MAX_GAP = 1000
"""A jump in sequence numbers above this is a restart of the sender, not loss."""
PLI_INTERVAL_S, PLI_SLOWEST_S = 0.7, 2.8
"""Between two PLIs; twice as long after each that follows closely, as a keyframe asked for before the last one
could arrive only fills the path. After DARK_S of silence, or a pause of twice its length, it is short again."""
BASE_WINDOW_S, NEW_PATH_S = 10.0, 1.0
"""The least delay of the last one to two windows is that of the empty path; a jump above is another path or clock."""
FEEDBACK_INTERVAL_S = 0.5
MAX_SSRCS = 32
MAX_RUN_OCTETS = 60_000
"""Of the payloads that go on as one group: with headers and tags they must fit into one send of 64 KiB."""
MIN_MEASURED = 20
"""Packets between two reports, below which nothing is concluded."""
MAX_MEASURED_S = 5 * FEEDBACK_INTERVAL_S
"""A longer time between two reports (the first one, a pause) says nothing of what the path carries."""
_MID_URI = "urn:ietf:params:rtp-hdrext:sdes:mid"
_RID_URI = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
_REPAIRED_RID_URI = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMedia:
    """One m-line of a publisher, as negotiated.

    codecs: payload type -> codec; rtx: payload type of RTX -> payload type it repairs (apt); extensions:
    URI -> id.
    """

    kind: TrackKind
    mid: str
    codecs: Mapping[int, Codec]
    rtx: Mapping[int, int] = field(default_factory=dict)
    extensions: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class PublisherStats:
    """Counters of one incoming track."""

    packets: int = 0
    octets: int = 0
    recovered: int = 0  # came as a retransmission in time
    late: int = 0  # came after its gap was given up, or twice
    lost: int = 0  # given up
    nacked: int = 0
    keyframe_requests: int = 0
    restarts: int = 0  # new SSRC or a jump of its numbers
    fraction_lost: float = 0.0
    jitter_s: float = 0.0


class IncomingTrack:
    """Packets of one m-line: put in order, gaps noticed, passed on to the stream's track."""

    def __init__(self, media: PublishedMedia, track: Track) -> None:
        self.media = media
        self.track = track
        self.ssrc: int | None = None
        self.rid: bytes | None = None
        self.stats = PublisherStats()
        self.wants_keyframe = media.kind is TrackKind.VIDEO
        self._hold_s = HOLD_S[media.kind]
        self._rates = {payload_type: CLOCK_RATES[codec] for payload_type, codec in media.codecs.items()}
        self._numbers = Unwrapper(16)
        self._timestamps = Unwrapper(32)
        self._timestamp_offset: int | None = None
        self._next: int | None = None  # the number that is to be passed on next
        self._highest = 0
        self._held: dict[int, tuple[RtpPacket, float]] = {}
        self._missing: dict[int, tuple[float, int]] = {}  # number -> (when to ask next, asked so often)
        self._heard_at = float("-inf")
        # What came together, of one timestamp and in order: it goes on as one group.
        self._run: list[bytes] = []
        self._run_of = (Codec.OPUS, 0, False, 0.0)  # codec, timestamp, marker, when
        self._run_octets = 0
        self._first = 0
        self._received = 0
        self._expected_before = self._received_before = 0
        self._transit: float | None = None
        self._jitter = 0.0
        self._bases = (
            float("inf"),
            float("inf"),
        )  # least transit of the window before and of this one, seconds
        self._base_at = float("-inf")
        self._queue_s: float | None = None
        self._sender_report: tuple[int, float] | None = None  # middle of NTP time, arrival

    def start(self, ssrc: int) -> None:
        """A new source took over the m-line: its numbers and timestamps say nothing about the old ones."""
        self.pass_on()
        if self.ssrc is not None:
            self.stats.restarts += 1
            self.track.skip_number()
        self.ssrc = ssrc
        self._numbers, self._timestamps = Unwrapper(16), Unwrapper(32)
        self._timestamp_offset = self._next = self._transit = self._sender_report = None
        self._held.clear()
        self._missing.clear()
        self._received = self._expected_before = self._received_before = 0
        self._jitter = 0.0
        self._bases, self._queue_s = (float("inf"), float("inf")), None
        self.wants_keyframe = self.media.kind is TrackKind.VIDEO

    def receive(self, packet: RtpPacket, now: float, *, retransmitted: bool = False) -> None:
        """A packet of the current source, in any order."""
        number = self._numbers.unwrap(packet.sequence_number)
        if self._next is not None and abs(number - self._highest) > MAX_GAP:
            self.start(packet.ssrc)
            number = self._numbers.unwrap(packet.sequence_number)
        stats = self.stats
        stats.packets += 1
        stats.octets += len(packet.payload)
        self._received += 1
        if self._next is None:
            self._next = self._first = number
            self._highest = number - 1
        if number == self._next == self._highest + 1:  # nothing is missing or held, as nearly always
            if not retransmitted:
                self._measure_jitter(packet, now)
            self._heard_at = now
            self._highest = number
            self._next = number + 1
            self._push(packet, now)
            return
        if number < self._next or number in self._held:
            stats.late += 1
            return
        if not retransmitted:
            self._measure_jitter(packet, now)
        dark, self._heard_at = now - self._heard_at > DARK_S, now
        if not dark:
            for missing in range(self._highest + 1, number):
                self._missing[missing] = (now + NACK_DELAY_S, 0)
        if self._missing.pop(number, None) is not None and retransmitted:
            stats.recovered += 1
        self._highest = max(self._highest, number)
        self._held[number] = (packet, now)
        self._release(now, 0.0 if dark else self._hold_s)

    def _release(self, now: float, hold_s: float) -> None:
        """Passes on what is in order; gives up the gaps that packets have waited behind for `hold_s`."""
        while self._held and self._next is not None:
            entry = self._held.pop(self._next, None)
            if entry is not None:
                self._next += 1
                self._push(entry[0], now)
                continue
            oldest = min(self._held)
            if now - self._held[oldest][1] < hold_s and len(self._held) <= MAX_HELD:
                return
            for number in range(self._next, oldest):
                self._missing.pop(number, None)
            self.stats.lost += oldest - self._next
            self.pass_on()
            self.track.skip_number(oldest - self._next)
            self._next = oldest
            self.wants_keyframe = self.media.kind is TrackKind.VIDEO

    def _push(self, packet: RtpPacket, now: float) -> None:
        codec = self.media.codecs.get(packet.payload_type)
        if codec is None or not packet.payload:  # padding alone probes the path; viewers get no hole for it
            return
        track = self.track
        timestamp = self._timestamps.unwrap(packet.timestamp)
        if self._timestamp_offset is None:
            # Continue the track's own timeline, which never runs backwards: by the time that has passed.
            self._timestamp_offset = -timestamp
            if track.last_timestamp is not None and track.last_at is not None and track.codec is not None:
                elapsed = max(int((now - track.last_at) * track.clock_rate), 1)
                at_end = (track.last_timestamp + elapsed) * CLOCK_RATES[codec] // track.clock_rate
                self._timestamp_offset += at_end
        timestamp += self._timestamp_offset
        payload, run = packet.payload, self._run
        if run:
            was_codec, was_timestamp, marked, _ = self._run_of
            size = len(run[0])
            if (
                marked
                or timestamp != was_timestamp
                or codec is not was_codec
                or len(payload) > size
                or len(run[-1]) < size  # only the last of a group may be shorter
                or len(run) >= MAX_SEGMENTS
                or self._run_octets + len(payload) > MAX_RUN_OCTETS
            ):
                self.pass_on()
                run = self._run
        run.append(payload)
        self._run_of = codec, timestamp, packet.marker, now
        self._run_octets += len(payload)

    def pass_on(self) -> None:
        """What was received goes to the viewers: call it when nothing more is at hand."""
        if not self._run:
            return
        (codec, timestamp, marker, now), payloads = self._run_of, tuple(self._run)
        self._run, self._run_octets = [], 0
        self.track.push_packets(codec, payloads, timestamp=timestamp, marker=marker, now=now)

    def _measure_jitter(self, packet: RtpPacket, now: float) -> None:
        """Jitter (RFC 3550 appendix A.8), and how much longer than on an empty path the packet was under way."""
        rate = self._rates.get(packet.payload_type)
        if rate is None:
            return
        transit = now * rate - packet.timestamp
        if self._transit is not None:
            step = abs(transit - self._transit)
            if step < 1 << 31:  # else the timestamp wrapped in between
                self._jitter += (step - self._jitter) / 16
            self.stats.jitter_s = self._jitter / rate
        self._transit = transit
        transit_s = transit / rate
        before, current = self._bases
        if now - self._base_at > BASE_WINDOW_S:
            self._base_at, before, current = now, current, transit_s
            self._bases = before, current
        elif transit_s < current:
            current = transit_s
            self._bases = before, current
        queue_s = transit_s - (before if before < current else current)
        if queue_s > NEW_PATH_S:
            self._bases, queue_s = (transit_s, transit_s), 0.0
        if self._queue_s is None or queue_s < self._queue_s:
            self._queue_s = queue_s

    def take_queue(self) -> float | None:
        """Seconds that every packet since the last call waited longer than on an empty path."""
        queue_s, self._queue_s = self._queue_s, None
        return queue_s

    def on_sender_report(self, report: SenderReport, now: float) -> None:
        self._sender_report = ((report.ntp_time >> 16) & 0xFFFFFFFF, now)

    def local_timestamp(self, rtp_timestamp: int) -> int | None:
        """The track's timestamp for one that the publisher named."""
        if self._timestamp_offset is None:
            return None
        return self._timestamps.unwrap(rtp_timestamp) + self._timestamp_offset

    def lost_numbers(self, now: float, most: int = MAX_NACKED) -> list[int]:
        """Sequence numbers to ask for now, `most` of them. Each at most MAX_NACKS times, NACK_INTERVAL_S apart."""
        self._release(now, self._hold_s)
        self.pass_on()
        due: list[int] = []
        for number, (when, count) in list(self._missing.items()):
            if len(due) >= most:
                break
            if when <= now and count < MAX_NACKS:
                self._missing[number] = (now + NACK_INTERVAL_S, count + 1)
                due.append(number & 0xFFFF)
        self.stats.nacked += len(due)
        return due

    @property
    def waiting(self) -> bool:
        """Something is missing or held back."""
        return bool(self._held or self._missing)

    @property
    def asks(self) -> bool:
        """Something is waited for, or a keyframe wanted, of the source that there is: it must be polled soon."""
        return self.ssrc is not None and (self.wants_keyframe or self.waiting)

    def report_block(self, now: float) -> ReportBlock | None:
        """Reception since the last one (RFC 3550 appendix A.3)."""
        if self.ssrc is None or self._next is None:
            return None
        expected = self._highest - self._first + 1
        expected_interval = expected - self._expected_before
        lost_interval = expected_interval - (self._received - self._received_before)
        self._expected_before, self._received_before = expected, self._received
        fraction = 0
        if expected_interval > 0 and lost_interval > 0:
            fraction = min(255, (lost_interval << 8) // expected_interval)
        self.stats.fraction_lost = fraction / 256
        lsr, delay = 0, 0
        if self._sender_report is not None:
            lsr, arrived_at = self._sender_report
            delay = int((now - arrived_at) * 65536) & 0xFFFFFFFF
        return ReportBlock(
            ssrc=self.ssrc,
            fraction_lost=fraction,
            packets_lost=max(-0x800000, min(0x7FFFFF, expected - self._received)),
            highest_sequence=self._highest,
            jitter=int(self._jitter),
            last_sender_report=lsr,
            delay_since_last_sender_report=delay,
        )


class Publisher:
    """All incoming media of one WHIP session. `receive_*` and `poll` return RTCP compounds to send."""

    def __init__(
        self,
        stream: Stream,
        media: Sequence[PublishedMedia],
        *,
        ssrc: int,
        cname: str,
        bitrate_bps: int = 2_000_000,
    ) -> None:
        """ssrc: our own, as the sender of RTCP; bitrate_bps: what REMB allows for all tracks together at most."""
        self.stream = stream
        self._estimate = PathEstimate(bitrate_bps)
        self.heard_at = float("-inf")
        self.bad_packets = 0
        self.unrouted_packets = 0
        self.tracks = [
            IncomingTrack(one, stream.video if one.kind is TrackKind.VIDEO else stream.audio) for one in media
        ]
        self._counts_reported = [(0, 0)] * len(self.tracks)
        self._ssrc = ssrc
        self._cname = cname
        self._by_mid = {one.media.mid.encode(): one for one in self.tracks}
        self._by_ssrc: dict[int, IncomingTrack] = {}
        self._ids = {
            uri: {one.media.extensions[uri] for one in self.tracks if uri in one.media.extensions}
            for uri in (_MID_URI, _RID_URI, _REPAIRED_RID_URI)
        }
        by_payload_type: dict[int, list[IncomingTrack]] = {}
        for one in self.tracks:
            for payload_type in (*one.media.codecs, *one.media.rtx):
                by_payload_type.setdefault(payload_type, []).append(one)
        self._by_payload_type = {key: found[0] for key, found in by_payload_type.items() if len(found) == 1}
        self._pli_at, self._pli_interval_s = float("-inf"), PLI_INTERVAL_S
        self._feedback_at = float("-inf")
        self._nack_bits, self._nack_at = 0.0, float("-inf")
        self._clock_offset: float | None = None
        stream.video.on_keyframe_wanted = self.want_keyframe

    @property
    def bitrate_bps(self) -> int:
        """What REMB allows for all tracks together."""
        return self._estimate.bps

    @property
    def kinds(self) -> tuple[TrackKind, ...]:
        """The kinds that really arrive."""
        return tuple(one.media.kind for one in self.tracks if one.stats.packets)

    def want_keyframe(self) -> None:
        """A viewer needs one; asked for at the next `poll`."""
        for one in self.tracks:
            if one.media.kind is TrackKind.VIDEO:
                one.wants_keyframe = True

    def close(self) -> None:
        self.stream.video.on_keyframe_wanted = None
        self.stream.on_reset()

    def receive_rtp(self, packets: Iterable[bytes], now: float) -> list[bytes]:
        """Decrypted RTP packets that came together. What can't be read or routed is counted and dropped."""
        for data in packets:
            self._receive_one(data, now)
        due = False
        for one in self.tracks:
            one.pass_on()
            due |= one.asks
        return self.poll(now) if due else []

    def _receive_one(self, data: bytes, now: float) -> None:
        try:
            packet = parse_rtp(data)
        except ProtocolError:
            self.bad_packets += 1
            return
        incoming = self._by_ssrc.get(packet.ssrc)
        # What has no extension and is of a known source needs no further look.
        if incoming is None or packet.extensions or packet.payload_type not in incoming.media.codecs:
            incoming = self._route(packet)
        if incoming is None:
            self.unrouted_packets += 1
            return
        if now - self.heard_at > DARK_S:
            self._pli_interval_s = PLI_INTERVAL_S
        self.heard_at = now
        apt = incoming.media.rtx.get(packet.payload_type)
        if apt is not None:
            self._receive_rtx(incoming, packet, apt, now)
            return
        rid = self._extension(packet, _RID_URI) if packet.extensions else None
        if incoming.rid is None:
            incoming.rid = rid
        if rid is not None and rid != incoming.rid:
            return  # another layer of simulcast, which our answer did not ask for
        if packet.ssrc != incoming.ssrc:
            incoming.start(packet.ssrc)
        incoming.receive(packet, now)

    def _receive_rtx(self, incoming: IncomingTrack, packet: RtpPacket, apt: int, now: float) -> None:
        """RFC 4588 section 4: two bytes of original sequence number, then the original payload."""
        repaired = self._extension(packet, _REPAIRED_RID_URI)
        if len(packet.payload) < 2 or incoming.ssrc is None or (repaired and repaired != incoming.rid):
            return  # padding that probes the path, or nothing yet that it could repair
        incoming.receive(
            RtpPacket(
                payload_type=apt,
                marker=packet.marker,
                sequence_number=int.from_bytes(packet.payload[:2], "big"),
                timestamp=packet.timestamp,
                ssrc=incoming.ssrc,
                payload=packet.payload[2:],
            ),
            now,
            retransmitted=True,
        )

    def _extension(self, packet: RtpPacket, uri: str) -> bytes | None:
        for key in self._ids[uri]:
            if key in packet.extensions:
                return packet.extensions[key]
        return None

    def _route(self, packet: RtpPacket) -> IncomingTrack | None:
        mid = self._extension(packet, _MID_URI)
        incoming = self._by_mid.get(mid) if mid is not None else None
        known = self._by_ssrc.get(packet.ssrc)
        if incoming is None:
            incoming = known or (self._by_payload_type.get(packet.payload_type) if mid is None else None)
        if incoming is None or (
            packet.payload_type not in incoming.media.codecs and packet.payload_type not in incoming.media.rtx
        ):
            return None
        if known is not incoming:
            if len(self._by_ssrc) >= MAX_SSRCS and packet.ssrc not in self._by_ssrc:
                return None
            self._by_ssrc[packet.ssrc] = incoming
        return incoming

    def receive_rtcp(self, data: bytes, now: float) -> None:
        """Sender reports give delay for our reports, and the common clock of picture and sound."""
        try:
            packets = parse_rtcp(data)
        except ProtocolError:
            self.bad_packets += 1
            return
        for packet in packets:
            if isinstance(packet, SenderReport):
                for one in self.tracks:
                    if one.ssrc == packet.ssrc:
                        one.on_sender_report(packet, now)
                        self._align_clock(one, packet, now)

    def _align_clock(self, incoming: IncomingTrack, report: SenderReport, now: float) -> None:
        """Both tracks' timestamps to our clock by one offset, so that what belongs together stays
        together."""
        sent_at = report.ntp_time / 2**32
        offset = now - sent_at
        if self._clock_offset is None or abs(offset - self._clock_offset) > 5:
            self._clock_offset = offset
        else:
            self._clock_offset = min(offset, self._clock_offset + (offset - self._clock_offset) / 64)
        timestamp = incoming.local_timestamp(report.rtp_timestamp)
        if timestamp is not None:
            incoming.track.set_clock(timestamp, sent_at + self._clock_offset)

    def _measure_path(self, spent_s: float) -> None:
        """Loss over all tracks, each weighed by its packets: one lost of three says little about a path."""
        counts = [(one.stats.packets, one.stats.octets) for one in self.tracks]
        before, self._counts_reported = self._counts_reported, counts
        came = [now[0] - then[0] for now, then in zip(counts, before, strict=True)]
        queues = [queue_s for one in self.tracks if (queue_s := one.take_queue()) is not None]
        octets = sum(now[1] - then[1] for now, then in zip(counts, before, strict=True))
        if sum(came) < MIN_MEASURED or spent_s > MAX_MEASURED_S:
            return
        lost = sum(
            count * one.stats.fraction_lost / (1 - min(one.stats.fraction_lost, 0.99))
            for count, one in zip(came, self.tracks, strict=True)
        )
        self._estimate.report(
            fraction_lost=lost / (lost + sum(came)),
            received_bps=octets * 8 / spent_s,
            jitter_s=max(one.stats.jitter_s for one in self.tracks),
            queue_s=min(queues, default=0.0),
        )

    def _nack_credit(self, now: float) -> float:
        """Bits of retransmission that may be asked for: a bucket that NACK_SHARE of the estimate fills."""
        rate_bps = self.bitrate_bps * NACK_SHARE
        filled = self._nack_bits + rate_bps * (now - self._nack_at)
        self._nack_bits, self._nack_at = min(filled, rate_bps * NACK_BURST_S), now
        return self._nack_bits

    def poll(self, now: float) -> list[bytes]:
        """What is due: NACKs, a PLI, and every FEEDBACK_INTERVAL_S the reports with REMB."""
        reports = now - self._feedback_at >= FEEDBACK_INTERVAL_S
        if not reports and not any(one.asks for one in self.tracks):
            return []
        feedback = b""
        for one in self.tracks:
            if one.ssrc is None:
                continue
            if one.media.kind is TrackKind.VIDEO:
                size_bits = 8 * max(one.stats.octets // max(one.stats.packets, 1), 1)
                lost = one.lost_numbers(now, min(MAX_NACKED, int(self._nack_credit(now) / size_bits)))
                self._nack_bits -= len(lost) * size_bits
                if lost:
                    feedback += write_nack(self._ssrc, one.ssrc, lost)
            else:
                one.lost_numbers(now, 0)  # receivers conceal it
            if one.wants_keyframe and now - self._pli_at >= self._pli_interval_s:
                often = now - self._pli_at < 2 * self._pli_interval_s
                self._pli_interval_s = (
                    min(2 * self._pli_interval_s, PLI_SLOWEST_S) if often else PLI_INTERVAL_S
                )
                self._pli_at = now
                one.wants_keyframe = False
                one.stats.keyframe_requests += 1
                feedback += write_pli(self._ssrc, one.ssrc)
        ssrcs = [one.ssrc for one in self.tracks if one.ssrc is not None]
        if ssrcs and reports:
            spent_s, self._feedback_at = now - self._feedback_at, now
            blocks = [block for one in self.tracks if (block := one.report_block(now)) is not None]
            self._measure_path(spent_s)
            return [
                write_receiver_report(self._ssrc, blocks)
                + write_source_description({self._ssrc: self._cname})
                + write_remb(self._ssrc, self.bitrate_bps, ssrcs)
                + feedback
            ]
        # RFC 3550 section 6.1: a compound starts with a report, even an empty one.
        return [write_receiver_report(self._ssrc) + feedback] if feedback else []
