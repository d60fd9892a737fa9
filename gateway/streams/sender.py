"""One outgoing RTP stream of one viewer: what goes out, from where, and what is sent again.

A `TrackSender` is one outgoing RTP stream. Its packets carry *indices* (48 bits: roll-over counter << 16 |
sequence number, RFC 3711 section 3.3.1) which follow each other without gap, while it moves between tracks
and skips within them: a short list of `Entry` says which track and which packet number an index stands for.
Hence a viewer sees neither the skip to a keyframe nor the switch between main and sub, and no index is ever
used for two packets.

    waiting ──keyframe──> live <──cursor at the end── catching up <──cached keyframe── (start, PLI, loss)
       ^                   │                               │
       └─── stalled, reset ┴───────────────────────────────┘

Sources: RFC 3550 section 6.4 (SR), RFC 4585 (NACK, PLI), RFC 4588 (RTX), RFC 5104 (FIR). Pure: `now` is
monotonic.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gateway.streams.compiled import Outgoing, fan
from gateway.streams.media import Codec
from gateway.streams.packets import PacketGroup
from gateway.streams.rtcp import ReportBlock, SenderReport, write_sender_report
from gateway.streams.srtp import SEND_WINDOW, Buffers
from gateway.streams.stream import Replay, SealGroup, Track, TrackKind

__all__ = ["MediaLink", "PayloadTypes", "SenderState", "SenderStats", "SessionKeys", "TrackSender"]

BURST_OCTETS_PER_S = 2_500_000  # 20 Mbps
RTX_OCTETS_PER_S = 400_000
RTX_OCTETS_MAX = 400_000
MAX_NACKED = 200
"""Missing packets in one RTCP datagram above which a keyframe is cheaper than retransmission."""
RESTART_INTERVAL_S = 0.5
SQUEEZE_STEP = 90
"""1 ms of the video clock between replayed pictures when a running viewer starts again at the cached
keyframe."""
MAX_ENTRIES = 16
MAX_STALLS = 3
STALL_WINDOW_S = 0.5
DEFAULT_RTT_S = 0.05  # before a report tells: receivers that do not know it either ask again after 0.1
MAX_RESENT = 1024
MAX_JUMP_S = 10


class SessionKeys(Protocol):
    """What senders use of `srtp.SrtpSender`. segment_overhead: bytes that sealing adds to a payload."""

    segment_overhead: int

    @property
    def lane(self) -> object | None: ...

    @property
    def seal_group(self) -> SealGroup: ...


class MediaLink(Protocol):
    """What senders use of a connected `link.Link`."""

    def send_segments(self, buffers: Buffers, segment_size: int, count: int) -> bool: ...

    def send_rtcp(self, compound: bytes) -> bool: ...


class SenderState(StrEnum):
    IDLE = "idle"  # not connected, or no track
    WAITING = "waiting"  # for a keyframe
    CATCHING_UP = "catching_up"  # reading the history
    LIVE = "live"  # in the track's loop


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadTypes:
    """Payload types of one codec as the answer names them; `rtx` is None where the viewer knows no RFC
    4588."""

    media: int
    rtx: int | None = None


@dataclass(slots=True, kw_only=True)
class SenderStats:
    """Counters of one sender, since it was made."""

    packets_nacked: int = 0
    packets_retransmitted: int = 0
    octets_retransmitted: int = 0
    retransmissions_refused: int = 0  # too old, too soon, or over the budget
    keyframe_requests: int = 0
    replays: int = 0
    stalls: int = 0
    skips: int = 0  # dropped to the next keyframe
    switches: int = 0
    codec_mismatches: int = 0
    fraction_lost: float = 0.0
    packets_lost: int = 0
    jitter_s: float = 0.0
    rtt_s: float | None = None
    bad_rtcp: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """From `first_index` on, index = packet number of `track` + index_offset, timestamp = its +
    timestamp_offset.

    Pictures below `live_picture` are a replay into a running session: they are squeezed, SQUEEZE_STEP apart
    from `squeeze_from` on, because a timestamp must not run backwards.
    """

    first_index: int
    track: Track
    index_offset: int
    timestamp_offset: int
    first_picture: int
    live_picture: int
    squeeze_from: int

    def timestamp_of(self, group: PacketGroup) -> int:
        if group.picture < self.live_picture:
            return self.squeeze_from + SQUEEZE_STEP * (group.picture - self.first_picture)
        return group.timestamp + self.timestamp_offset


class TrackSender(Outgoing):
    """One outgoing RTP stream (and its RTX stream) of one viewer. Attributes without underscore are
    `fan_out`'s; of these the compiled loop reads Outgoing's without asking Python."""

    __slots__ = (
        "_burst_octets",
        "_burst_started_at",
        "_clock_rate",
        "_entries",
        "_last_timestamp",
        "_next_index",
        "_payload_types",
        "_resent",
        "_restarted_at",
        "_rtx_at",
        "_rtx_index",
        "_rtx_octets",
        "_rtx_payload_type",
        "_stall_count",
        "_stalled_at",
        "_still_until",
        "_timestamp_base",
        "_track",
        "_wanted",
        "kind",
        "overhead",
        "rtx_ssrc",
        "seal",
        "send",
        "state",
        "stats",
    )

    def __init__(
        self,
        kind: TrackKind,
        payload_types: Mapping[Codec, PayloadTypes],
        *,
        ssrc: int,
        rtx_ssrc: int,
        first_index: int,
        first_timestamp: int,
    ) -> None:
        """first_index: random below 32768, so that the first packets lost don't upset the roll-over counter
        (RFC 3711 section 3.3.1); first_timestamp: random 32 bits, where the sender's own timeline starts."""
        self.kind = kind
        self.ssrc = ssrc
        self.rtx_ssrc = rtx_ssrc
        self.payload_type = 0
        self.index_offset = 0
        self.timestamp_offset = 0
        self.cursor = 0
        self.packets = 0
        self.octets = 0
        self.overhead = 0
        self.lane = None
        self.seal: SealGroup = _no_seal
        self.send: Callable[[Buffers, int, int], bool] = _no_send
        self.state = SenderState.IDLE
        self.stats = SenderStats()
        self._payload_types = payload_types
        self._rtx_payload_type: int | None = None
        self._track: Track | None = None
        self._wanted: Track | None = None
        self._entries: list[Entry] = []
        self._next_index = first_index
        self._rtx_index = first_index
        self._timestamp_base = first_timestamp
        self._last_timestamp: int | None = None
        self._clock_rate = 0
        self._burst_started_at = 0.0
        self._burst_octets = 0
        self._still_until: int | None = None
        self._restarted_at = float("-inf")
        self._resent: OrderedDict[int, float] = OrderedDict()
        self._rtx_at = 0.0
        self._rtx_octets = RTX_OCTETS_MAX
        self._stalled_at = float("-inf")
        self._stall_count = 0

    @property
    def track(self) -> Track | None:
        """The track that is being sent (or waited for)."""
        return self._track

    # Where the packets come from.

    def start(self, link: MediaLink, keys: SessionKeys, track: Track, now: float) -> None:
        """The link is up: from here packets may be sent."""
        self.lane = keys.lane
        self.seal = keys.seal_group
        self.overhead = keys.segment_overhead
        self.send = link.send_segments
        self._track = track
        self.state = SenderState.WAITING
        replay = track.join(self)
        if replay is not Replay.NOTHING:
            self._replay(track, still=replay is Replay.STILL, now=now)

    def switch(self, track: Track) -> None:
        """Goes on with what it has until the other track has a keyframe, then follows that one."""
        if (
            self.state is SenderState.IDLE
            or track is self._wanted
            or (track is self._track and not self._wanted)
        ):
            return
        if self._wanted is not None:
            self._wanted.leave(self)
            self._wanted = None
        if track is self._track:
            return
        self._wanted = track
        track.join(self)
        track.want_keyframe()

    def stop(self) -> None:
        for track in (self._track, self._wanted):
            if track is not None:
                track.leave(self)
        self._track = self._wanted = None
        self.state = SenderState.IDLE
        self.lane = None  # with these the link would stay until the collector comes round to their cycle
        self.seal, self.send = _no_seal, _no_send

    def go_live(self, track: Track, first: PacketGroup) -> bool:
        """`Track` says that the keyframe waited for starts with `first`."""
        if track.codec not in self._payload_types:
            self.stats.codec_mismatches += 1
            return False
        if track is self._wanted:
            if self._track is not None:
                self._track.leave(self)
            self._track, self._wanted = track, None
            self.stats.switches += 1
        self._open_entry(track, first.first, first.picture)
        self.state = SenderState.LIVE
        return True

    def on_reset(self, track: Track) -> None:
        if track is self._track:
            self.state = SenderState.WAITING

    def on_stalled(self, now: float) -> None:
        """A group was dropped. Once is repaired by NACK; again and again means that the path is full."""
        self.stats.stalls += 1
        self._stall_count = self._stall_count + 1 if now - self._stalled_at < STALL_WINDOW_S else 1
        self._stalled_at = now
        if self._stall_count >= MAX_STALLS and self._track is not None:
            self._stall_count = 0
            if self.state is not SenderState.WAITING and self.kind is TrackKind.VIDEO:
                self._skip(self._track)

    def _skip(self, track: Track) -> None:
        self.stats.skips += 1
        self.state = SenderState.WAITING
        track.wait(self)
        track.want_keyframe()

    def _open_entry(self, track: Track, number: int, picture: int, *, squeeze: bool = False) -> None:
        """The next index stands for packet `number` of the track from now on."""
        types = self._payload_types[track.codec or Codec.H264]
        latest = track.last_timestamp or 0
        self.payload_type, self._rtx_payload_type = types.media, types.rtx
        if self._entries:
            self._next_index = self.cursor + self.index_offset
        self.index_offset = self._next_index - number
        self.cursor = number
        live_picture, squeeze_from = 0, 0
        offset = self._timestamp_offset_for(track)
        if squeeze and self._last_timestamp is not None:
            live_picture = track.picture + 1
            squeeze_from = self._last_timestamp + SQUEEZE_STEP
            end = squeeze_from + SQUEEZE_STEP * (track.picture - picture)
            offset = max(offset, end - latest)
        self.timestamp_offset = offset
        self._clock_rate = track.clock_rate
        self._entries.append(
            Entry(self._next_index, track, self.index_offset, offset, picture, live_picture, squeeze_from)
        )
        del self._entries[:-MAX_ENTRIES]

    def _timestamp_offset_for(self, track: Track) -> int:
        """Keeps the viewer's timeline equal to real time when it moves between tracks; both know their
        clock."""
        if not self._entries:
            return self._timestamp_base - (track.last_timestamp or 0)
        previous = self._entries[-1]
        offset = previous.timestamp_offset
        if previous.track is not track and previous.track.base is not None and track.base is not None:
            offset += int((track.base - previous.track.base) * track.clock_rate)
        sent = self._sent_timestamp()
        next_timestamp = (track.last_timestamp or 0) + offset
        moved = previous.track is not track or self._clock_rate != track.clock_rate
        if moved and sent is not None and not 0 < next_timestamp - sent < MAX_JUMP_S * track.clock_rate:
            offset += sent + track.clock_rate // 50 - next_timestamp
        return offset

    def _sent_timestamp(self) -> int | None:
        """Timestamp of the newest packet sent, unwrapped."""
        if self.state is SenderState.LIVE and self._entries:
            track = self._entries[-1].track
            if track.last_timestamp is not None:
                return track.last_timestamp + self.timestamp_offset
        return self._last_timestamp

    # Replay from the history.

    def _replay(self, track: Track, *, still: bool, now: float, squeeze: bool = False) -> None:
        if track.gop_first is None or track.codec not in self._payload_types:
            self.stats.codec_mismatches += 1
            return
        self._last_timestamp = self._sent_timestamp()
        track.catch_up(self)
        self._open_entry(track, track.gop_first, track.gop_picture, squeeze=squeeze)
        self.state = SenderState.CATCHING_UP
        self.stats.replays += 1
        self._still_until = track.gop_picture + 1 if still else None
        self._burst_started_at = self._restarted_at = now
        self._burst_octets = 0
        self._pump_groups(track, now, keyframe=track.gop_picture)

    def pump(self, now: float) -> bool:
        """Sends what the pace allows by now of the replay. True while there is more to come."""
        if self.state is not SenderState.CATCHING_UP or self._track is None:
            return False
        self._pump_groups(self._track, now, keyframe=-1)
        return self.state is SenderState.CATCHING_UP

    def _pump_groups(self, track: Track, now: float, keyframe: int) -> None:
        """The picture `keyframe` goes out at once, the rest at BURST_OCTETS_PER_S."""
        history = track.history
        allowed = (now - self._burst_started_at) * BURST_OCTETS_PER_S - self._burst_octets
        if history is None or (history.first is not None and history.first > self.cursor):
            self._skip(track)  # the history ran away from it
            return
        ready: list[PacketGroup] = []
        complete = True
        for group in history.since(self.cursor):
            if self._still_until is not None and group.picture >= self._still_until:
                break
            if group.picture != keyframe:
                if allowed <= 0:
                    complete = False
                    break
                self._burst_octets += group.octets
            allowed -= group.octets
            ready.append(group)
        if not self._send_groups(ready, now) or not complete:
            return
        if self._still_until is not None:
            self._still_until = None
            self.state = SenderState.WAITING
            track.wait(self)
            return
        self.state = SenderState.LIVE
        track.caught_up(self)

    def _send_groups(self, groups: Sequence[PacketGroup], now: float) -> bool:
        """Groups of a replay. False: the path is full, and the sender waits for the next keyframe."""
        entry = self._entries[-1]
        if groups and self.lane is not None and not entry.live_picture:
            left = fan(groups, (self,))
            missing = left[0][1] if left else len(groups)
            if missing:
                self._last_timestamp = entry.timestamp_of(groups[missing - 1])
            groups = groups[missing:]
        for group in groups:
            if not self._send_group(group, entry):
                self.on_stalled(now)
                if self.state is not SenderState.CATCHING_UP:
                    return False
        return True

    def _send_group(self, group: PacketGroup, entry: Entry) -> bool:
        count = len(group.payloads)
        timestamp = entry.timestamp_of(group)
        buffers = self.seal(
            group.payloads,
            first_index=group.first + entry.index_offset,
            timestamp=timestamp & 0xFFFFFFFF,
            ssrc=self.ssrc,
            payload_type=self.payload_type,
            marker=group.marker,
        )
        self.cursor = group.first + count
        self._last_timestamp = timestamp
        if not self.send(buffers, len(group.payloads[0]) + self.overhead, count):
            return False
        self.packets += count
        self.octets += group.octets
        return True

    # What the receiver says.

    def restart(self, now: float) -> None:
        """It needs a keyframe: from the cache if a group of pictures is there, else the source is asked."""
        self.stats.keyframe_requests += 1
        track = self._track
        if track is None or self.kind is TrackKind.AUDIO or now - self._restarted_at < RESTART_INTERVAL_S:
            return
        self._restarted_at = now
        if self.state is SenderState.LIVE and track.replay() is Replay.GROUP_OF_PICTURES:
            self._replay(track, still=False, now=now, squeeze=True)
        else:
            track.want_keyframe()

    def on_nack(self, lost: Sequence[int], now: float) -> None:
        """Retransmits from the track's history; each packet at most once in a round trip, all within a byte
        budget."""
        self.stats.packets_nacked += len(lost)
        if len(lost) > MAX_NACKED:
            self.restart(now)
            return
        if not self._entries or self.state is SenderState.IDLE:
            return
        self._rtx_octets = min(
            RTX_OCTETS_MAX, self._rtx_octets + int((now - self._rtx_at) * RTX_OCTETS_PER_S)
        )
        self._rtx_at = now
        top = self.cursor + self.index_offset - 1
        for sequence_number in lost:
            index = (top & ~0xFFFF) | sequence_number
            self._retransmit(index if index <= top else index - 0x10000, now)

    def _retransmit(self, index: int, now: float) -> None:
        entry = next((entry for entry in reversed(self._entries) if entry.first_index <= index), None)
        group = None
        if entry is not None and entry.track.history is not None:
            group = entry.track.history.group_of(index - entry.index_offset)
        rtt = self.stats.rtt_s or DEFAULT_RTT_S
        too_old = self._rtx_payload_type is None and self.cursor + self.index_offset - index > SEND_WINDOW
        if entry is None or group is None or too_old or now - self._resent.get(index, float("-inf")) < rtt:
            self.stats.retransmissions_refused += 1
            return
        position = index - entry.index_offset - group.first
        payload = group.payloads[position]
        if len(payload) > self._rtx_octets:
            self.stats.retransmissions_refused += 1
            return
        marker = group.marker and position == len(group.payloads) - 1
        timestamp = entry.timestamp_of(group) & 0xFFFFFFFF
        if self._rtx_payload_type is None:  # the very same packet again: same nonce, same bytes
            buffers = self.seal(
                (payload,),
                first_index=index,
                timestamp=timestamp,
                ssrc=self.ssrc,
                payload_type=self.payload_type,
                marker=marker,
            )
        else:
            payload = (index & 0xFFFF).to_bytes(2, "big") + payload
            buffers = self.seal(
                (payload,),
                first_index=self._rtx_index,
                timestamp=timestamp,
                ssrc=self.rtx_ssrc,
                payload_type=self._rtx_payload_type,
                marker=marker,
            )
            self._rtx_index += 1
        self._rtx_octets -= len(payload)
        self._resent[index] = now
        self._resent.move_to_end(index)
        if len(self._resent) > MAX_RESENT:
            self._resent.popitem(last=False)
        if self.send(buffers, len(payload) + self.overhead, 1):
            self.stats.packets_retransmitted += 1
            self.stats.octets_retransmitted += len(payload)
        else:
            self.stats.retransmissions_refused += 1

    def on_report_block(self, block: ReportBlock, ntp_now: int) -> None:
        stats = self.stats
        stats.fraction_lost = block.fraction_lost / 256
        stats.packets_lost = block.packets_lost
        if self._clock_rate:
            stats.jitter_s = block.jitter / self._clock_rate
        if block.last_sender_report:
            elapsed = ((ntp_now >> 16) - block.last_sender_report) & 0xFFFFFFFF
            rtt = (elapsed - block.delay_since_last_sender_report) / 65536
            if 0 <= rtt < 10:  # else the receiver's arithmetic is wrong, or wrapped below zero
                stats.rtt_s = rtt

    def report(self, now: float, ntp_now: int) -> bytes:
        """The sender report of this moment (RFC 3550 section 6.4.1), empty before the first packet."""
        track = self._track
        if not self.packets or track is None or not self._entries:
            return b""
        timestamp = self._entries[-1].track.timestamp_at(now)
        if timestamp is None:
            return b""
        return write_sender_report(
            SenderReport(
                ssrc=self.ssrc,
                ntp_time=ntp_now,
                rtp_timestamp=timestamp + self.timestamp_offset,
                packet_count=self.packets,
                octet_count=self.octets,
            )
        )


def _no_seal(
    payloads: Sequence[bytes], *, first_index: int, timestamp: int, ssrc: int, payload_type: int, marker: bool
) -> Buffers:
    raise RuntimeError("sealing before the link is up")


def _no_send(buffers: Buffers, segment_size: int, count: int) -> bool:
    raise RuntimeError("sending before the link is up")
