"""One source on its way to many viewers: packetised once, kept in one history, sent by one loop.

A `Stream` has a video and an audio `Track`. A track takes either access units (cameras) or ready RTP payloads
(publishers, passed through unchanged) and makes packet groups of them. While nobody watches it does next to
nothing: it keeps the access units of the current group of pictures, bounded, so that the next viewer starts
with a picture at once. The first viewer makes it packetise them; it goes back to idling at the first
keyframe without a viewer.

Drop rules. Cached group of pictures: above 3 s or 1 MB only its keyframe stays, as a still. History: oldest
groups first. A sender that cannot keep up: to the next keyframe.

Pure: no clock, no sockets; `now` is time.monotonic() seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gateway.streams.compiled import fan
from gateway.streams.compiled import fragment as compiled_fragment
from gateway.streams.media import AccessUnit, AudioFrame, Codec
from gateway.streams.packets import (
    MAX_PAYLOAD_SIZE,
    Fragment,
    PacketGroup,
    PacketHistory,
    fragment_h264,
    h264_starts_keyframe,
    packetize_h264,
    vp8_starts_keyframe,
)
from gateway.streams.srtp import Buffers

__all__ = [
    "CLOCK_RATES",
    "Replay",
    "SealGroup",
    "Sender",
    "Stream",
    "StreamLimits",
    "Tap",
    "Track",
    "TrackKind",
    "fan_out",
]

CLOCK_RATES = {
    Codec.H264: 90_000,
    Codec.H265: 90_000,
    Codec.VP8: 90_000,
    Codec.OPUS: 48_000,
    Codec.PCMU: 8_000,
    Codec.PCMA: 8_000,
}
_STARTS_KEYFRAME: dict[Codec, Callable[[bytes], bool]] = {
    Codec.H264: h264_starts_keyframe,
    Codec.VP8: vp8_starts_keyframe,
}
RETRANSMITTABLE_S = 1.5
"""What is older than that when a new group of pictures begins is forgotten: no player waits for it any more."""
_CLOCK_DRIFT = 1 / 1024
"""How fast the clock of a source follows arrivals that come later than the earliest one seen."""


class TrackKind(StrEnum):
    VIDEO = "video"
    AUDIO = "audio"


class Replay(StrEnum):
    """What a viewer who joins now gets first."""

    GROUP_OF_PICTURES = "group_of_pictures"  # everything since the cached keyframe, then live
    STILL = "still"  # the cached keyframe alone, then live from the next one
    NOTHING = "nothing"  # live from the next keyframe


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Bounds of one track. The history must hold a whole cached group of pictures, or it is not replayed."""

    gop_seconds: float = 3.0
    gop_octets: int = 1_000_000
    history_packets: int = 1200
    history_octets: int = 1_300_000


_VIDEO_LIMITS = StreamLimits()
_AUDIO_LIMITS = StreamLimits(gop_seconds=0, gop_octets=0, history_packets=64, history_octets=64_000)


class SealGroup(Protocol):
    """Writes the RTP headers of a group and encrypts it: srtp's `seal_group`."""

    def __call__(
        self,
        payloads: Sequence[bytes],
        *,
        first_index: int,
        timestamp: int,
        ssrc: int,
        payload_type: int,
        marker: bool,
    ) -> Buffers: ...


class Sender(Protocol):
    """One viewer's end of one track, as far as the track and `fan_out` must know it."""

    lane: object | None
    seal: SealGroup
    send: Callable[[Buffers, int, int], bool]
    overhead: int
    ssrc: int
    payload_type: int
    index_offset: int
    timestamp_offset: int
    cursor: int
    packets: int
    octets: int

    def go_live(self, track: Track, first: PacketGroup) -> bool:
        """The keyframe it waited for is about to be fanned out. False: it cannot take this codec."""

    def on_stalled(self, now: float) -> None:
        """The port took a group of its packets not."""

    def on_reset(self, track: Track) -> None:
        """What comes next on the track does not continue what was sent: wait for a keyframe."""


class Tap(Protocol):
    """Whoever takes a track's media as it comes, beside the viewers (recording). Must not block and must not raise."""

    def on_access_unit(self, unit: AccessUnit) -> None:
        """A camera's picture."""

    def on_group(self, codec: Codec, group: PacketGroup, now: float) -> None:
        """A publisher's (or a camera's audio) packet. A hole in the numbers is a loss."""

    def on_reset(self) -> None:
        """What comes next does not continue what came."""


def fan_out(groups: Sequence[PacketGroup], senders: Sequence[Sender]) -> list[Sender]:
    """Sends groups to every sender: the one hot loop of the process, compiled or here.

    Returns the senders of which a group was dropped. Their indices are spent all the same: a nonce is never
    used twice.
    """
    if senders[0].lane is None:
        return _fan_out(groups, senders)
    dropped: list[Sender] = []
    for sender, missing in fan(groups, senders):
        dropped += _fan_out(groups[missing:], (sender,))
    return dropped


def _fan_out(groups: Sequence[PacketGroup], senders: Iterable[Sender]) -> list[Sender]:
    dropped: list[Sender] = []
    end = groups[-1].first + len(groups[-1].payloads)
    for sender in senders:
        seal = sender.seal
        send = sender.send
        overhead = sender.overhead
        for payloads, first, timestamp, marker, octets, _, _ in groups:
            buffers = seal(
                payloads,
                first_index=first + sender.index_offset,
                timestamp=(timestamp + sender.timestamp_offset) & 0xFFFFFFFF,
                ssrc=sender.ssrc,
                payload_type=sender.payload_type,
                marker=marker,
            )
            count = len(payloads)
            if send(buffers, len(payloads[0]) + overhead, count):
                sender.packets += count
                sender.octets += octets
            else:
                dropped.append(sender)
        sender.cursor = end
    return dropped


class Track:
    """One kind of media of a stream, and those who watch it."""

    __slots__ = (
        "_bare_octets",
        "_bare_units",
        "_clock_set",
        "_fragment",
        "_limits",
        "_live",
        "_members",
        "_packetising",
        "_still",
        "_still_only",
        "_waiting",
        "base",
        "clock_rate",
        "codec",
        "frames",
        "gop_first",
        "gop_octets",
        "gop_picture",
        "gop_timestamp",
        "history",
        "keyframe",
        "kind",
        "last_at",
        "last_keyframe_at",
        "last_timestamp",
        "next_number",
        "octets",
        "on_keyframe_wanted",
        "picture",
        "taps",
    )

    def __init__(self, kind: TrackKind, limits: StreamLimits, fragment: Fragment = fragment_h264) -> None:
        self.kind = kind
        self._fragment = fragment
        self.codec: Codec | None = None
        self.clock_rate = 90_000 if kind is TrackKind.VIDEO else 48_000
        self.keyframe: AccessUnit | None = None
        self.history: PacketHistory | None = None
        self.next_number = 0
        self.picture = 0
        self.last_timestamp: int | None = None
        self.last_at: float | None = None
        self.last_keyframe_at: float | None = None
        self.base: float | None = None
        self.frames = 0
        self.octets = 0
        self.gop_first: int | None = None
        self.gop_picture = 0
        self.gop_timestamp = 0
        self.gop_octets = 0
        self.on_keyframe_wanted: Callable[[], None] | None = None
        self.taps: tuple[Tap, ...] = ()
        self._limits = limits
        self._members: set[Sender] = set()
        self._live: list[Sender] = []
        self._waiting: list[Sender] = []
        self._packetising = False
        self._clock_set = False
        self._still: AccessUnit | None = None
        self._still_only = False
        self._bare_units: list[AccessUnit] = []
        self._bare_octets = 0

    @property
    def watchers(self) -> int:
        return len(self._members)

    # Senders. A member is live, waiting for a keyframe, or catching up by itself from the history.

    def join(self, sender: Sender) -> Replay:
        """Counts a sender in and says with what it may start; it is waiting until `catch_up` or a
        keyframe."""
        self._members.add(sender)
        if sender not in self._waiting:
            self._waiting.append(sender)
        if not self._packetising:
            self._start_packetising()
        replay = self.replay()
        if replay is not Replay.GROUP_OF_PICTURES:
            self.want_keyframe()
        return replay

    def leave(self, sender: Sender) -> None:
        self._members.discard(sender)
        self._park(sender)

    def _park(self, sender: Sender) -> None:
        if sender in self._live:
            self._live.remove(sender)
        if sender in self._waiting:
            self._waiting.remove(sender)

    def catch_up(self, sender: Sender) -> None:
        """The sender reads the history by its own cursor from now on."""
        self._park(sender)

    def caught_up(self, sender: Sender) -> None:
        """The sender's cursor is at `next_number`: it joins the common loop."""
        self._park(sender)
        self._live.append(sender)

    def wait(self, sender: Sender) -> None:
        """The sender is left out until the next keyframe."""
        self._park(sender)
        self._waiting.append(sender)

    def want_keyframe(self) -> None:
        if self.on_keyframe_wanted is not None:
            self.on_keyframe_wanted()

    def replay(self) -> Replay:
        if self.gop_first is None or self.history is None or self.history.group_of(self.gop_first) is None:
            return Replay.NOTHING
        if (
            self._still_only
            or self.gop_octets > self._limits.gop_octets
            or (self.last_timestamp or 0) - self.gop_timestamp > self._limits.gop_seconds * self.clock_rate
        ):
            return Replay.STILL
        return Replay.GROUP_OF_PICTURES

    # The source's side.

    def push_access_unit(self, unit: AccessUnit) -> None:
        """A camera's picture: packetised if anyone watches, else only kept."""
        self._follow_clock(unit.timestamp, unit.received_at)
        self.frames += 1
        for tap in self.taps:
            tap.on_access_unit(unit)
        if unit.keyframe:
            self.codec = Codec.H264
            self.keyframe = self._still = unit
            self._still_only = False
            self.last_keyframe_at = unit.received_at
            if not self._members:
                self._idle()
                self._bare_units = [unit]
                self._bare_octets = sum(map(len, unit.nal_units))
                return
        if self._packetising:
            groups = self._packetise(unit)
            if groups:
                self._emit(groups, unit.received_at)
        elif self._bare_units:
            self._bare_octets += sum(map(len, unit.nal_units))
            if (
                self._bare_octets > self._limits.gop_octets
                or unit.timestamp - self._bare_units[0].timestamp > self._limits.gop_seconds * self.clock_rate
            ):
                self._bare_units = []
            else:
                self._bare_units.append(unit)

    def push_packets(
        self, codec: Codec, payloads: tuple[bytes, ...], *, timestamp: int, marker: bool, now: float
    ) -> None:
        """A publisher's (or a camera's audio) payloads, in order, passed through as they are.

        They are of one timestamp and make one group: see PacketGroup for their sizes. marker: of the last one. What was
        lost on the way here must stay visible to the viewers' decoders: call `skip_number` for it.
        """
        if codec is not self.codec:
            if self.codec is not None:
                self.reset()
            self.codec = codec
            self.clock_rate = CLOCK_RATES[codec]
            self.base = None
        new_picture = timestamp != self.last_timestamp
        if new_picture:
            self.picture += 1
            self.frames += 1
        self._follow_clock(timestamp, now)
        video = self.kind is TrackKind.VIDEO
        keyframe = not video or (new_picture and _STARTS_KEYFRAME[codec](payloads[0]))
        if keyframe and video:
            self.last_keyframe_at = now
        octets = sum(map(len, payloads))
        group = PacketGroup(payloads, self.next_number, timestamp, marker, octets, keyframe, self.picture)
        self._packetising = True
        self._remember(group)
        self._emit((group,), now)
        for tap in self.taps:
            tap.on_group(codec, group, now)

    def skip_number(self, count: int = 1) -> None:
        """Leaves a hole in the numbers, for packets that are lost for good."""
        self.next_number += count

    def set_clock(self, timestamp: int, at: float) -> None:
        """The source itself said (in a sender report) which timestamp belongs to which local time."""
        self._clock_set = True
        self.base = at - timestamp / self.clock_rate

    def reset(self) -> None:
        """The source was cut. The last keyframe stays as a snapshot; nobody starts from it any more."""
        self.gop_first = None
        self._still = None
        self._bare_units = []
        self._clock_set = False
        for sender in list(self._members):
            sender.on_reset(self)
            self.wait(sender)
        for tap in self.taps:
            tap.on_reset()

    def skip(self) -> None:
        """What follows does not continue the cached group of pictures; its keyframe stays as a still."""
        self.gop_first = None
        self._bare_units = []
        for tap in self.taps:
            tap.on_reset()

    def timestamp_at(self, now: float) -> int | None:
        """The track's timestamp at a moment, extrapolated; None before anything came."""
        if self.base is None:
            return None
        return int((now - self.base) * self.clock_rate)

    def _follow_clock(self, timestamp: int, now: float) -> None:
        """base: the local time of timestamp 0 by the packet that was least delayed, slowly following
        drift."""
        if not self._clock_set:
            base = now - timestamp / self.clock_rate
            if self.base is None or base < self.base:
                self.base = base
            else:
                self.base += (base - self.base) * _CLOCK_DRIFT
        self.last_timestamp = timestamp
        self.last_at = now

    def _start_packetising(self) -> None:
        self._packetising = True
        self._still_only = False
        units = self._bare_units
        if not units and self._still is not None:
            units = [self._still]
            self._still_only = True
        for unit in units:
            self._packetise(unit)
        self._bare_units = []

    def _idle(self) -> None:
        self._packetising = False
        self.history = None
        self.gop_first = None

    def _packetise(self, unit: AccessUnit) -> list[PacketGroup]:
        payload_groups = packetize_h264(unit.nal_units, MAX_PAYLOAD_SIZE, self._fragment)
        if not payload_groups:
            return []
        self.picture += 1
        if unit.keyframe and self.history is not None:
            self.history.forget_before(unit.timestamp - int(RETRANSMITTABLE_S * self.clock_rate))
        groups: list[PacketGroup] = []
        last = len(payload_groups) - 1
        for position, payloads in enumerate(payload_groups):
            group = PacketGroup(
                payloads,
                self.next_number,
                unit.timestamp,
                position == last,
                sum(map(len, payloads)),
                unit.keyframe and position == 0,
                self.picture,
            )
            groups.append(group)
            self._remember(group)
        return groups

    def _remember(self, group: PacketGroup) -> None:
        if self.history is None:
            limits = self._limits
            self.history = PacketHistory(max_packets=limits.history_packets, max_octets=limits.history_octets)
        if group.keyframe:
            self.gop_first = group.first
            self.gop_picture = group.picture
            self.gop_timestamp = group.timestamp
            self.gop_octets = 0
        self.gop_octets += group.octets
        self.octets += group.octets
        self.history.append(group)
        self.next_number = group.first + len(group.payloads)

    def _emit(self, groups: Sequence[PacketGroup], now: float) -> None:
        if groups[0].keyframe and self._waiting:
            waiting, self._waiting = self._waiting, []
            for sender in waiting:
                (self._live if sender.go_live(self, groups[0]) else self._waiting).append(sender)
        if self._live:
            for sender in fan_out(groups, self._live):
                sender.on_stalled(now)


class Stream:
    """The two tracks of a source. It is the `MediaSink` that ingest feeds."""

    __slots__ = ("audio", "video")

    def __init__(self, limits: StreamLimits = _VIDEO_LIMITS, *, compiled: bool = True) -> None:
        """compiled: pictures are cut into payloads by the compiled loop, if it was built."""
        self.video = Track(
            TrackKind.VIDEO,
            limits,
            compiled_fragment if compiled and compiled_fragment is not None else fragment_h264,
        )
        self.audio = Track(TrackKind.AUDIO, _AUDIO_LIMITS)

    @property
    def watchers(self) -> int:
        return max(self.video.watchers, self.audio.watchers)

    @property
    def listening(self) -> bool:
        """Somebody takes the sound."""
        return self.audio.watchers > 0 or bool(self.audio.taps)

    def on_access_unit(self, access_unit: AccessUnit) -> None:
        self.video.push_access_unit(access_unit)

    def on_audio(self, frame: AudioFrame) -> None:
        track = self.audio
        if (not track.watchers and not track.taps) or (track.codec is None and not frame.payload):
            track.codec = frame.codec if frame.codec in CLOCK_RATES else None
        elif frame.payload and frame.codec in CLOCK_RATES:
            track.push_packets(
                frame.codec,
                (frame.payload,),
                timestamp=frame.timestamp,
                marker=False,
                now=frame.received_at,
            )

    def on_skip(self) -> None:
        self.video.skip()

    def on_reset(self) -> None:
        self.video.reset()
        self.audio.reset()
