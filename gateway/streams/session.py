"""One media session: a link, what runs over it, and what API and metrics see of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.streams import sdp
from gateway.streams.link import Link, RemoteTransport
from gateway.streams.media import StreamName
from gateway.streams.publisher import Publisher
from gateway.streams.viewer import Viewer

__all__ = ["Session", "SessionAnswer", "SessionInfo", "SessionKind", "SessionState", "new_etag"]


class SessionKind(StrEnum):
    WATCH = "watch"
    PUBLISH = "publish"


class SessionState(StrEnum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAnswer:
    """What WHEP and WHIP answer. etag: strong, quoted as HTTP wants it; changes with each ICE restart."""

    session_id: str
    sdp: str
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as API and metrics see it. reason: why it was closed; times: time.monotonic() seconds;
    remote_ufrag: names the client's ICE generation."""

    session_id: str
    kind: SessionKind
    source_id: str
    stream: StreamName | None
    owner: str
    state: SessionState
    reason: str
    created_at: float
    connected_at: float | None
    etag: str
    remote_ufrag: str
    counters: Mapping[str, float]


def new_etag() -> str:
    """A strong entity tag (RFC 9110 section 8.8.3), quotes included."""
    return f'"{secrets.token_hex(8)}"'


class Session:
    """One link with what runs over it: a viewer or a publisher. It is the link's handlers."""

    __slots__ = (
        "_sent",
        "connected_at",
        "created_at",
        "etag",
        "held",
        "kind",
        "link",
        "offer",
        "on_end",
        "owner",
        "publisher",
        "reason",
        "remote",
        "session_id",
        "source_id",
        "state",
        "stream_name",
        "viewer",
    )

    def __init__(
        self,
        kind: SessionKind,
        source_id: str,
        owner: str,
        offer: sdp.Offer,
        now: float,
        *,
        on_end: Callable[[Session, str], None],
    ) -> None:
        self.kind = kind
        self.source_id = source_id
        self.owner = owner
        self.offer = offer
        self.on_end = on_end
        self.session_id = secrets.token_urlsafe(18)
        self.etag = new_etag()
        self.created_at = now
        self.connected_at: float | None = None
        self.state = SessionState.CONNECTING
        self.reason = ""
        self.stream_name: StreamName | None = None
        self.held: tuple[str, StreamName] | None = None
        self.link: Link | None = None
        self.remote: RemoteTransport | None = None
        self.viewer: Viewer | None = None
        self.publisher: Publisher | None = None
        self._sent = 0

    # The link's handlers.

    def on_connected(self) -> None:
        now = time.monotonic()
        self.state = SessionState.CONNECTED
        self.connected_at = now
        if self.viewer is not None and self.link is not None and self.link.srtp is not None:
            self.viewer.connect(self.link, self.link.srtp, now)

    def on_rtp(self, packets: Sequence[bytes], now: float) -> None:
        if self.publisher is not None and self.link is not None:
            for compound in self.publisher.receive_rtp(packets, now):
                self.link.send_rtcp(compound)

    def on_rtcp(self, compound: bytes, now: float) -> None:
        if self.viewer is not None:
            self.viewer.on_rtcp(compound, now)
        elif self.publisher is not None:
            self.publisher.receive_rtcp(compound, now)

    def on_closed(self, reason: str) -> None:
        self.on_end(self, reason)

    def has_sent(self) -> bool:
        """Whether packets have left since this was asked last."""
        before, self._sent = (
            self._sent,
            sum(sender.packets for sender in self.viewer.senders) if self.viewer else 0,
        )
        return self._sent != before

    def info(self) -> SessionInfo:
        return SessionInfo(
            session_id=self.session_id,
            kind=self.kind,
            source_id=self.source_id,
            stream=self.stream_name,
            owner=self.owner,
            state=self.state,
            reason=self.reason,
            created_at=self.created_at,
            connected_at=self.connected_at,
            etag=self.etag,
            remote_ufrag="" if self.remote is None else self.remote.ufrag,
            counters=self._counters(),
        )

    def _counters(self) -> dict[str, float]:
        counters: dict[str, float] = {}
        if self.viewer is not None:
            for sender in self.viewer.senders:
                stats = sender.stats
                prefix = f"{sender.kind}_"
                counters |= {
                    f"{prefix}packets": sender.packets,
                    f"{prefix}octets": sender.octets,
                    f"{prefix}nacked": stats.packets_nacked,
                    f"{prefix}retransmitted": stats.packets_retransmitted,
                    f"{prefix}keyframe_requests": stats.keyframe_requests,
                    f"{prefix}replays": stats.replays,
                    f"{prefix}stalls": stats.stalls,
                    f"{prefix}skips": stats.skips,
                    f"{prefix}switches": stats.switches,
                    f"{prefix}codec_mismatches": stats.codec_mismatches,
                    f"{prefix}fraction_lost": stats.fraction_lost,
                    f"{prefix}jitter_seconds": stats.jitter_s,
                }
                if stats.rtt_s is not None:
                    counters["rtt_seconds"] = stats.rtt_s
        if self.publisher is not None:
            for incoming in self.publisher.tracks:
                received = incoming.stats
                prefix = f"{incoming.media.kind}_"
                counters |= {
                    f"{prefix}packets": received.packets,
                    f"{prefix}octets": received.octets,
                    f"{prefix}recovered": received.recovered,
                    f"{prefix}late": received.late,
                    f"{prefix}lost": received.lost,
                    f"{prefix}nacked": received.nacked,
                    f"{prefix}keyframe_requests": received.keyframe_requests,
                    f"{prefix}restarts": received.restarts,
                    f"{prefix}fraction_lost": received.fraction_lost,
                    f"{prefix}jitter_seconds": received.jitter_s,
                }
            counters["bad_packets"] = self.publisher.bad_packets
            counters["unrouted_packets"] = self.publisher.unrouted_packets
        return counters
