"""The WHEP side of one session: a sender for each kind of media, what its receiver says, and `stream=auto`.

Sources: RFC 3550 section 6 (SR, RR, SDES), RFC 4585 (NACK, PLI), RFC 5104 (FIR). Pure: `now` is monotonic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.errors import ProtocolError
from gateway.streams.media import StreamName
from gateway.streams.rtcp import (
    FullIntraRequest,
    Nack,
    PictureLossIndication,
    ReceiverReport,
    ReportBlock,
    SenderReport,
    ntp_from_unix,
    parse_rtcp,
    write_bye,
    write_receiver_report,
    write_source_description,
)
from gateway.streams.sender import MediaLink, SenderState, SessionKeys, TrackSender
from gateway.streams.stream import Stream, Track, TrackKind

__all__ = ["AutoChoice", "Viewer"]

REPORT_INTERVAL_S = 1.0
STEADY_REPORT_INTERVAL_S = 2.0
"""Sender reports: often until the receiver has enough to align picture and sound, then half as often."""
EARLY_REPORTS = 4
_REPORTS = (ReceiverReport, SenderReport)
REPORT_SLACK_S = 0.1  # callers come by once a second, more or less


class AutoChoice:
    """`stream=auto`: main while the path carries it, sub when receiver reports show loss. Pure.

    Down after two reports in a row with LOSS_DOWN or more; up after a clean time that doubles with every
    fall, so that a path which can't carry main is not tried again and again.
    """

    LOSS_DOWN = 0.08
    LOSS_CLEAN = 0.02
    CLEAN_S = 15.0
    CLEAN_MAX_S = 240.0

    __slots__ = ("_bad", "_clean_since", "_hold_s", "name")

    def __init__(self) -> None:
        self.name = StreamName.MAIN
        self._bad = 0
        self._clean_since: float | None = None
        self._hold_s = self.CLEAN_S

    def on_report(self, fraction_lost: float, now: float) -> StreamName | None:
        """The stream to change to, if it is time to."""
        if fraction_lost >= self.LOSS_DOWN:
            self._bad += 1
        elif fraction_lost <= self.LOSS_CLEAN:
            self._bad = 0
        if fraction_lost > self.LOSS_CLEAN:
            self._clean_since = None
        elif self._clean_since is None:
            self._clean_since = now
        if self.name is StreamName.MAIN and self._bad >= 2:
            self.name, self._bad, self._clean_since = StreamName.SUB, 0, None
            return self.name
        if (
            self.name is StreamName.SUB
            and self._clean_since is not None
            and now - self._clean_since >= self._hold_s
        ):
            self._hold_s = min(self._hold_s * 2, self.CLEAN_MAX_S)
            self.name, self._clean_since = StreamName.MAIN, None
            return self.name
        return None


class Viewer:
    """One WHEP session behind its link: a sender for each kind of media, one clock, one CNAME."""

    __slots__ = (
        "_auto",
        "_link",
        "_names",
        "_on_choice",
        "_on_replay",
        "_report_due",
        "_reports",
        "_senders",
        "_stream",
        "_unix_offset",
        "audio",
        "connected",
        "video",
    )

    def __init__(
        self,
        stream: Stream,
        *,
        video: TrackSender | None,
        audio: TrackSender | None,
        cname: str,
        unix_offset: float,
        auto: AutoChoice | None = None,
        on_choice: Callable[[StreamName], None] | None = None,
        on_replay: Callable[[], None] | None = None,
    ) -> None:
        """unix_offset: seconds to add to monotonic time for Unix time, fixed for the session so that a step
        of the wall clock doesn't tear its sender reports; on_choice: `stream=auto` wants the other stream;
        on_replay: the viewer must be pumped until `pump` says False."""
        self.video = video
        self.audio = audio
        self.connected = False
        self._stream = stream
        self._senders = {sender.ssrc: sender for sender in (video, audio) if sender is not None}
        self._unix_offset = unix_offset
        self._auto = auto
        self._on_choice = on_choice
        self._on_replay = on_replay
        self._link: MediaLink | None = None
        self._report_due = float("inf")
        self._reports = 0
        self._names = write_source_description(dict.fromkeys(self._senders, cname))

    @property
    def senders(self) -> Sequence[TrackSender]:
        return tuple(self._senders.values())

    def connect(self, link: MediaLink, keys: SessionKeys, now: float) -> None:
        """ICE and DTLS are through: the first picture leaves before this returns, if one is cached."""
        self._link = link
        self.connected = True
        self._report_due = now
        for sender in self._senders.values():
            sender.start(link, keys, self._track_of(self._stream, sender), now)
        self.report(now)
        self._note_replay()

    def switch(self, stream: Stream) -> None:
        """Follows another stream (main/sub) from its next keyframe on."""
        self._stream = stream
        if self.connected:
            for sender in self._senders.values():
                sender.switch(self._track_of(stream, sender))

    def close(self) -> None:
        """Stops sending; the receiver is told by a BYE. The link is the caller's to close."""
        if self._link is not None and self._senders:
            ssrcs = list(self._senders)
            self._link.send_rtcp(write_receiver_report(ssrcs[0]) + write_bye(ssrcs))
        for sender in self._senders.values():
            sender.stop()
        self._link = self._on_choice = self._on_replay = None
        self.connected = False

    def pump(self, now: float) -> bool:
        """Goes on with replays. True while there is more to send later."""
        pending = False
        for sender in self._senders.values():
            pending |= sender.pump(now)
        return pending

    def report(self, now: float) -> None:
        """Sends the sender reports if they are due."""
        if now < self._report_due or self._link is None:
            return
        ntp_now = ntp_from_unix(now + self._unix_offset)
        reports = [report for sender in self._senders.values() if (report := sender.report(now, ntp_now))]
        if reports:
            self._reports += 1
            early = self._reports < EARLY_REPORTS
            self._report_due = (
                now + (REPORT_INTERVAL_S if early else STEADY_REPORT_INTERVAL_S) - REPORT_SLACK_S
            )
            self._link.send_rtcp(b"".join(reports) + self._names)

    def on_rtcp(self, compound: bytes, now: float) -> None:
        """What the receiver said. Nonsense is counted, never raised."""
        try:
            packets = parse_rtcp(compound)
        except ProtocolError:
            for sender in self._senders.values():
                sender.stats.bad_rtcp += 1
            return
        for packet in packets:
            if isinstance(packet, _REPORTS):
                for block in packet.reports:
                    self._on_block(block, now)
            elif isinstance(packet, Nack):
                if packet.media_ssrc in self._senders:
                    self._senders[packet.media_ssrc].on_nack(packet.lost, now)
            elif isinstance(packet, PictureLossIndication):
                self._restart(packet.media_ssrc, now)
            elif isinstance(packet, FullIntraRequest):
                for ssrc, _ in packet.requests:
                    self._restart(ssrc, now)
        self._note_replay()

    def _restart(self, ssrc: int, now: float) -> None:
        if ssrc in self._senders:
            self._senders[ssrc].restart(now)

    def _on_block(self, block: ReportBlock, now: float) -> None:
        sender = self._senders.get(block.ssrc)
        if sender is None:
            return
        sender.on_report_block(block, ntp_from_unix(now + self._unix_offset))
        if self._auto is not None and sender is self.video and self._on_choice is not None:
            choice = self._auto.on_report(sender.stats.fraction_lost, now)
            if choice is not None:
                self._on_choice(choice)

    def _note_replay(self) -> None:
        if self._on_replay is None:
            return
        for sender in self._senders.values():
            if sender.state is SenderState.CATCHING_UP:
                self._on_replay()
                return

    @staticmethod
    def _track_of(stream: Stream, sender: TrackSender) -> Track:
        return stream.video if sender.kind is TrackKind.VIDEO else stream.audio
