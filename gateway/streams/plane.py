"""The facade of the media plane: sources, sessions, and what happens to both over time.

A *source* is whatever can be watched: `camera/{id}` (its main and sub stream, fed by ingest) or
`call/{call_id}/{leg_id}` (fed by whoever publishes there). A *session* is one WHEP viewer or one WHIP
publisher, named by an unguessable id. Watching a leg may begin before it publishes: the session is answered
with picture and sound, media starts when it comes.

The plane lives on one event loop; nothing here blocks. Periodic work is spread: each viewer is visited once
a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gateway.errors import GatewayError, NotFound, ProtocolError, TooMany, Unavailable
from gateway.streams import sdp
from gateway.streams.link import MediaPort, RemoteTransport
from gateway.streams.media import AccessUnit, Codec, StreamName, Undecodable
from gateway.streams.pictures import freshest
from gateway.streams.publisher import PublishedMedia, Publisher
from gateway.streams.sender import PayloadTypes, TrackSender
from gateway.streams.session import Session, SessionAnswer, SessionInfo, SessionKind, SessionState, new_etag
from gateway.streams.stream import Stream, TrackKind
from gateway.streams.viewer import AutoChoice, Viewer

__all__ = [
    "MediaPlane",
    "NotAcceptable",
    "PlaneLimits",
    "StreamChoice",
]

logger = logging.getLogger(__name__)

_TICK_S = 0.05
_BUCKETS = 20  # a viewer is visited once in _BUCKETS ticks: once a second
_FEW = 400
"""Up to so many viewers are visited in few wakings of many ticks, because a waking costs more than a visit; more than these
would keep pictures waiting."""
_PACE_S = 0.005
SILENT_S = 2.0
"""Without a packet of any kind a publisher counts as lost. A muted microphone and a covered camera still send."""
_AUDIO_CODECS = (Codec.OPUS, Codec.PCMU, Codec.PCMA)
_CALL_VIDEO_CODECS = (Codec.H264, Codec.VP8)
_CALL_H264_PROFILE = "42e01f"  # what browsers publish


class NotAcceptable(GatewayError):
    """The offer has none of the codecs that the source needs (HTTP 406). `codecs` names them."""

    def __init__(self, kind: str, codecs: Sequence[str]) -> None:
        self.kind = kind
        self.codecs = tuple(codecs)
        super().__init__(f"the offer has no {kind} codec that fits; needed: {' or '.join(codecs)}")


class StreamChoice(StrEnum):
    """Which picture of a camera a viewer asks for. AUTO starts with main and follows the loss he reports."""

    MAIN = "main"
    SUB = "sub"
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneLimits:
    """sessions: at the same time, more are refused; connect_s: from the answer to the first packet by DTLS;
    publish_bitrate_bps: what publishers are told that they may send (REMB)."""

    sessions: int = 4000
    connect_s: float = 20.0
    publish_bitrate_bps: int = 2_000_000
    closed_kept: int = 200


@dataclass(slots=True, kw_only=True)
class _Source:
    """One call leg: its stream lives as long as somebody publishes or watches."""

    stream: Stream = field(default_factory=Stream)
    publisher: Session | None = None
    watchers: int = 0
    announced: tuple[str, ...] = ()


class MediaPlane:
    """Sources and sessions. `acquire` and `release` are the camera supervisor's; `sink_of` is for it."""

    def __init__(
        self,
        port: MediaPort,
        *,
        acquire: Callable[[str, StreamName], Awaitable[None]],
        release: Callable[[str, StreamName], None],
        on_source_change: Callable[[str, tuple[str, ...]], None] | None = None,
        on_session_closed: Callable[[str, str], None] | None = None,
        limits: PlaneLimits | None = None,
    ) -> None:
        """on_source_change(source_id, tracks): what a call leg publishes by now (`audio`, `video`), empty
        when it ended; on_session_closed(session_id, reason). Both are called from the loop and must not
        block."""
        self.closed_reasons: Counter[str] = Counter()
        self.answered: Counter[SessionKind] = Counter()
        self._port = port
        self._acquire = acquire
        self._release = release
        self._on_source_change = on_source_change
        self._on_session_closed = on_session_closed
        self._limits = limits or PlaneLimits()
        self._streams: dict[tuple[str, StreamName], Stream] = {}
        self._sources: dict[str, _Source] = {}
        self._sessions: dict[str, Session] = {}
        self._closed: deque[SessionInfo] = deque(maxlen=self._limits.closed_kept)
        self._buckets: list[dict[str, Session]] = [{} for _ in range(_BUCKETS)]
        self._publishers: dict[str, Session] = {}
        self._replaying: set[Viewer] = set()
        self._pacer: asyncio.TimerHandle | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._hurry = asyncio.Event()  # a publisher came: it is polled each tick
        self._reserved = 0

    async def run(self) -> None:
        """The plane's clock: reports, feedback, time limits. Runs until cancelled, then ends every
        session."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                tick = 0
                while True:
                    stride = self._stride()
                    wait_s = stride * _TICK_S - time.monotonic() % (stride * _TICK_S)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await self._hurry.wait()
                    self._hurry.clear()
                    for _ in range(stride):
                        tick += 1
                        self._visit(tick, time.monotonic())
                    self._poll_publishers(time.monotonic())
        finally:
            self._tasks = None
            if self._pacer is not None:
                self._pacer.cancel()
            for session_id in list(self._sessions):
                self.close(session_id, reason="shutdown")

    def _stride(self) -> int:
        """How many ticks pass until the next waking."""
        if self._publishers or len(self._sessions) > _FEW:
            return 1
        return 5 if self._sessions else _BUCKETS

    # Sources.

    def sink_of(self, camera_id: str, name: StreamName) -> Stream:
        """Where ingest puts this camera's media."""
        key = (camera_id, name)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = Stream(compiled=self._port.compiled)
        return stream

    def forget_camera(self, camera_id: str) -> None:
        """The camera is configured no more: its viewers are told."""
        for session in list(self._sessions.values()):
            if session.source_id == f"camera/{camera_id}":
                self.close(session.session_id, reason="camera_removed")
        for name in StreamName:
            self._streams.pop((camera_id, name), None)

    def keyframe(self, camera_id: str) -> tuple[bytes, ...] | None:
        """NAL units of the cached keyframe to show: of main, unless sub's is much newer."""
        unit = freshest(*self._keyframes(camera_id))
        return None if unit is None else unit.nal_units

    def keyframe_to_judge(self, camera_id: str) -> AccessUnit | None:
        """The cached keyframe to look at for its health: of sub, which costs a quarter, unless main's is much newer."""
        main, sub = self._keyframes(camera_id)
        return freshest(sub, main)

    def _keyframes(self, camera_id: str) -> tuple[AccessUnit | None, AccessUnit | None]:
        """Of main and sub."""
        main, sub = (self._streams.get((camera_id, name)) for name in (StreamName.MAIN, StreamName.SUB))
        return (
            None if main is None else main.video.keyframe,
            None if sub is None else sub.video.keyframe,
        )

    def watchers(self, camera_id: str, name: StreamName) -> int:
        """Viewers of one picture of a camera."""
        stream = self._streams.get((camera_id, name))
        return 0 if stream is None else stream.watchers

    def source_tracks(self, source_id: str) -> tuple[str, ...]:
        """What comes from a call leg now: of `audio` and `video`."""
        source = self._sources.get(source_id)
        return () if source is None else source.announced

    def hold_source(self, source_id: str) -> Stream:
        """The stream of a call's leg, which stays the same until `leave_source`: for whoever records it."""
        source = self._sources.setdefault(source_id, _Source())
        source.watchers += 1
        return source.stream

    def leave_source(self, source_id: str) -> None:
        source = self._sources.get(source_id)
        if source is not None:
            source.watchers -= 1
            self._drop_source(source_id)

    # Sessions.

    async def watch(
        self, source_id: str, offer_sdp: str, *, stream: str = StreamChoice.MAIN, owner: str
    ) -> SessionAnswer:
        """Answers a WHEP offer. Raises ProtocolError (bad SDP), NotAcceptable, NotFound, Unavailable,
        TooMany."""
        offer = sdp.parse_offer(offer_sdp)
        try:
            choice = StreamChoice(stream)
        except ValueError:
            raise ProtocolError("stream_choice", stream=stream[:16]) from None
        self._admit()
        kind, *names = source_id.split("/")
        if kind == "camera" and len(names) == 1:
            return await self._watch_camera(names[0], offer, choice, owner)
        if kind == "call" and len(names) == 2 and all(names):
            return self._watch_call(source_id, offer, owner)
        raise NotFound(f"no source {source_id}")

    async def _watch_camera(
        self, camera_id: str, offer: sdp.Offer, choice: StreamChoice, owner: str
    ) -> SessionAnswer:
        name = StreamName.SUB if choice is StreamChoice.SUB else StreamName.MAIN
        self._reserved += 1
        try:
            try:
                await self._acquire(camera_id, name)
            except (Unavailable, NotFound) as error:
                # A camera may have one picture only: whoever asks for a tile gets that. AUTO takes what there is, and
                # if main is beyond browsers (H.265, B-frames), sub is what there is to see, whatever was asked for.
                other = _other_picture(choice, name, error)
                if other is None:
                    raise
                name = other
                try:
                    await self._acquire(camera_id, name)
                except NotFound:
                    raise error from None
        finally:
            self._reserved -= 1
        try:
            session = Session(
                SessionKind.WATCH, f"camera/{camera_id}", owner, offer, time.monotonic(), on_end=self._end
            )
            session.stream_name = name
            auto = AutoChoice() if choice is StreamChoice.AUTO and name is StreamName.MAIN else None
            stream = self.sink_of(camera_id, name)
            video = self._payload_types(offer, "video", (Codec.H264,), _profile_of(stream))
            if not video:
                raise NotAcceptable("video", [Codec.H264])
            answer = self._answer_watch(session, stream, video, auto=auto)
        except BaseException:
            self._release(camera_id, name)
            raise
        session.held = (camera_id, name)
        return answer

    def _watch_call(self, source_id: str, offer: sdp.Offer, owner: str) -> SessionAnswer:
        session = Session(SessionKind.WATCH, source_id, owner, offer, time.monotonic(), on_end=self._end)
        video = self._payload_types(offer, "video", _CALL_VIDEO_CODECS, _CALL_H264_PROFILE)
        if offer.first("video") is not None and not video:
            raise NotAcceptable("video", _CALL_VIDEO_CODECS)
        source = self._sources.setdefault(source_id, _Source())
        source.watchers += 1
        try:
            return self._answer_watch(session, source.stream, video)
        except BaseException:
            source.watchers -= 1
            self._drop_source(source_id)
            raise

    def _answer_watch(
        self,
        session: Session,
        stream: Stream,
        video: Mapping[Codec, PayloadTypes],
        *,
        auto: AutoChoice | None = None,
    ) -> SessionAnswer:
        offer = session.offer
        audio = self._payload_types(offer, "audio", _AUDIO_CODECS, None)
        if not video and not audio:
            raise NotAcceptable("audio", _AUDIO_CODECS)
        senders: dict[TrackKind, TrackSender] = {}
        answers: dict[str, sdp.Answer] = {}
        stream_id, cname = secrets.token_hex(8), _new_cname()
        for kind, types in ((TrackKind.VIDEO, video), (TrackKind.AUDIO, audio)):
            section = offer.first(kind)
            if section is None or not types:
                continue
            if section.direction not in (sdp.Direction.RECVONLY, sdp.Direction.SENDRECV):
                raise ProtocolError("sdp_direction", mid=section.mid)
            has_rtx = any(one.rtx is not None for one in types.values())
            sender = senders[kind] = TrackSender(
                kind,
                types,
                ssrc=_new_ssrc(),
                rtx_ssrc=_new_ssrc(),
                first_index=1 + secrets.randbelow(32_000),
                first_timestamp=secrets.randbits(32),
            )
            answers[section.mid] = sdp.Answer(
                payload_types=_flat(types),
                direction=sdp.Direction.SENDONLY,
                track=sdp.SendTrack(
                    ssrc=sender.ssrc,
                    rtx_ssrc=sender.rtx_ssrc if has_rtx else None,
                    cname=cname,
                    stream_id=stream_id,
                    track_id=f"{stream_id}-{kind}",
                ),
            )
        viewer = Viewer(
            stream,
            video=senders.get(TrackKind.VIDEO),
            audio=senders.get(TrackKind.AUDIO),
            cname=cname,
            unix_offset=time.time() - time.monotonic(),
            auto=auto,
            on_choice=lambda name: self._choose(session, name),
            on_replay=lambda: self._pace(session),
        )
        session.viewer = viewer
        return self._answer(session, answers)

    async def publish(self, source_id: str, offer_sdp: str, *, owner: str) -> SessionAnswer:
        """Answers a WHIP offer. A second publisher of a leg takes over from the first. Raises as `watch`
        does."""
        offer = sdp.parse_offer(offer_sdp)
        self._admit()
        kind, *names = source_id.split("/")
        if kind != "call" or len(names) != 2 or not all(names):
            raise NotFound(f"no source {source_id} to publish")
        session = Session(SessionKind.PUBLISH, source_id, owner, offer, time.monotonic(), on_end=self._end)
        answers: dict[str, sdp.Answer] = {}
        media: list[PublishedMedia] = []
        for track_kind, codecs in ((TrackKind.VIDEO, _CALL_VIDEO_CODECS), (TrackKind.AUDIO, _AUDIO_CODECS)):
            section = offer.first(track_kind)
            if section is None:
                continue
            if section.direction not in (sdp.Direction.SENDONLY, sdp.Direction.SENDRECV):
                raise ProtocolError("sdp_direction", mid=section.mid)
            types = self._payload_types(offer, track_kind, codecs, _CALL_H264_PROFILE)
            if not types:
                raise NotAcceptable(track_kind, codecs)
            chosen, one = next(iter(types.items()))
            wanted = [uri for uri in PUBLISHED_EXTENSIONS if uri in section.extensions]
            media.append(
                PublishedMedia(
                    kind=track_kind,
                    mid=section.mid,
                    codecs={one.media: chosen},
                    rtx={one.rtx: one.media} if one.rtx is not None else {},
                    extensions={uri: section.extensions[uri] for uri in wanted},
                )
            )
            answers[section.mid] = sdp.Answer(
                payload_types=_flat({chosen: one}),
                direction=sdp.Direction.RECVONLY,
                extensions=tuple(wanted),
                feedback=("nack", "nack pli", "ccm fir", "goog-remb"),
            )
        if not media:
            raise NotAcceptable("video", _CALL_VIDEO_CODECS)
        source = self._sources.setdefault(source_id, _Source())
        if source.publisher is not None:
            self.close(source.publisher.session_id, reason="superseded")
            source = self._sources.setdefault(source_id, _Source())
        session.publisher = Publisher(
            source.stream,
            media,
            ssrc=_new_ssrc(),
            cname=_new_cname(),
            bitrate_bps=self._limits.publish_bitrate_bps,
        )
        source.publisher = session
        try:
            answer = self._answer(session, answers)
        except BaseException:
            source.publisher = None
            self._drop_source(source_id)
            raise
        self._publishers[session.session_id] = session
        self._hurry.set()
        return answer

    def _answer(self, session: Session, answers: Mapping[str, sdp.Answer]) -> SessionAnswer:
        offer = session.offer
        remote = RemoteTransport(
            ufrag=offer.ice_ufrag,
            pwd=offer.ice_pwd,
            fingerprint_algorithm=offer.fingerprint_algorithm,
            fingerprint=offer.fingerprint,
        )
        link = self._port.create_link(remote, session, time.monotonic())
        session.link = link
        text = sdp.write_answer(
            offer,
            answers,
            session_id=secrets.randbits(62),
            ice_ufrag=link.local.ufrag,
            ice_pwd=link.local.pwd,
            fingerprint=self._port.certificate.fingerprint,
            fingerprint_algorithm=self._port.certificate.fingerprint_algorithm,
            candidates=self._port.candidates(),
        )
        session.remote = remote
        self._sessions[session.session_id] = session
        self._buckets[hash(session.session_id) % _BUCKETS][session.session_id] = session
        self.answered[session.kind] += 1
        return SessionAnswer(session_id=session.session_id, sdp=text, etag=session.etag)

    def restart(self, session_id: str, fragment: sdp.Fragment) -> SessionAnswer:
        """ICE restart: new credentials, same media. `sdp` of the answer is a fragment. A failure keeps the
        session."""
        session = self._session(session_id)
        if session.link is None or session.remote is None or not fragment.ice_ufrag or not fragment.ice_pwd:
            raise ProtocolError("sdpfrag_credentials")
        session.remote = replace(session.remote, ufrag=fragment.ice_ufrag, pwd=fragment.ice_pwd)
        local = session.link.restart_ice(session.remote)
        session.etag = new_etag()
        section = session.offer.transport
        text = sdp.write_fragment(
            ice_ufrag=local.ufrag,
            ice_pwd=local.pwd,
            candidates=self._port.candidates(),
            mid=section.mid,
            kind=section.kind,
        )
        return SessionAnswer(session_id=session_id, sdp=text, etag=session.etag)

    def close(self, session_id: str, *, reason: str = "closed") -> None:
        """Ends a session; media stops before this returns. Raises NotFound."""
        session = self._session(session_id)
        if session.viewer is not None:
            session.viewer.close()
        link = session.link
        self._end(session, reason)
        if link is not None:
            link.close(reason)

    def close_owned_by(self, owner: str, *, reason: str = "revoked") -> int:
        """Ends all sessions of one owner. Returns how many there were."""
        mine = [one.session_id for one in self._sessions.values() if one.owner == owner]
        for session_id in mine:
            self.close(session_id, reason=reason)
        return len(mine)

    async def restart_session(self, session_id: str, fragment: sdp.Fragment) -> SessionAnswer:
        """`restart` for those who must be able to ask a plane in another process."""
        return self.restart(session_id, fragment)

    async def close_session(self, session_id: str, *, reason: str = "closed") -> None:
        """`close` for the same."""
        self.close(session_id, reason=reason)

    def session(self, session_id: str) -> SessionInfo:
        """Raises NotFound."""
        return self._session(session_id).info()

    def sessions(self, *, closed: bool = False) -> list[SessionInfo]:
        """The sessions of now; with `closed` the last ended ones too, with the reason."""
        current = [session.info() for session in self._sessions.values()]
        return current + list(self._closed) if closed else current

    def session_ids(self) -> list[str]:
        """Of the sessions of now, in the order in which they came."""
        return list(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    # What happens to sessions.

    def _session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFound("no such session")
        return session

    def _admit(self) -> None:
        if len(self._sessions) + self._reserved >= self._limits.sessions:
            raise TooMany("all media sessions are in use", retry_after_s=5)

    def _end(self, session: Session, reason: str) -> None:
        if self._sessions.pop(session.session_id, None) is None:
            return
        self._buckets[hash(session.session_id) % _BUCKETS].pop(session.session_id, None)
        self._publishers.pop(session.session_id, None)
        if session.viewer is not None:
            self._replaying.discard(session.viewer)
            session.viewer.close()
        if session.held is not None:
            self._release(*session.held)
            session.held = None
        session.state = SessionState.CLOSED
        session.reason = reason
        self._closed.append(session.info())
        self.closed_reasons[reason] += 1
        self._leave_source(session)
        logger.info(
            "media session closed",
            extra={"session_id": session.session_id, "source_id": session.source_id, "reason": reason},
        )
        if self._on_session_closed is not None:
            self._on_session_closed(session.session_id, reason)

    def _leave_source(self, session: Session) -> None:
        source = self._sources.get(session.source_id)
        if source is None:
            return
        if session.kind is SessionKind.WATCH:
            source.watchers -= 1
        elif source.publisher is session:
            source.publisher = None
            if session.publisher is not None:
                session.publisher.close()
            self._announce(session.source_id, source, ())
        self._drop_source(session.source_id)

    def _drop_source(self, source_id: str) -> None:
        source = self._sources.get(source_id)
        if source is not None and source.publisher is None and source.watchers <= 0:
            del self._sources[source_id]

    def _announce(self, source_id: str, source: _Source, tracks: tuple[str, ...]) -> None:
        if tracks != source.announced:
            source.announced = tracks
            if self._on_source_change is not None:
                self._on_source_change(source_id, tracks)

    def _visit(self, tick: int, now: float) -> None:
        """The viewers of one bucket."""
        for session in list(self._buckets[tick % _BUCKETS].values()):
            if session.state is SessionState.CONNECTING:
                if now - session.created_at > self._limits.connect_s:
                    self.close(session.session_id, reason="connect_timeout")
            elif session.viewer is not None:
                session.viewer.report(now)
                if session.has_sent():
                    self._port.note_media(now)

    def _poll_publishers(self, now: float) -> None:
        for session in list(self._publishers.values()):
            if session.publisher is None or session.link is None or session.state is SessionState.CONNECTING:
                continue
            for compound in session.publisher.poll(now):
                session.link.send_rtcp(compound)
            source = self._sources.get(session.source_id)
            if source is not None:
                silent = now - session.publisher.heard_at > SILENT_S
                self._announce(session.source_id, source, () if silent else session.publisher.kinds)

    def _pace(self, session: Session) -> None:
        """Someone is catching up: keep pumping until nobody is."""
        if session.viewer is not None:
            self._replaying.add(session.viewer)
            if self._pacer is None:
                self._pacer = asyncio.get_running_loop().call_later(_PACE_S, self._pump)

    def _pump(self) -> None:
        now = time.monotonic()
        self._replaying = {viewer for viewer in self._replaying if viewer.pump(now)}
        self._pacer = asyncio.get_running_loop().call_later(_PACE_S, self._pump) if self._replaying else None

    def _choose(self, session: Session, name: StreamName) -> None:
        """`stream=auto` changes its mind. Without the other stream it stays where it is."""
        if self._tasks is not None and session.held is not None:
            self._tasks.create_task(
                self._switch(session, session.held[0], name), name=f"switch-{session.session_id[:6]}"
            )

    async def _switch(self, session: Session, camera_id: str, name: StreamName) -> None:
        try:
            await self._acquire(camera_id, name)
        except GatewayError as error:
            logger.info(
                "no switch", extra={"camera_id": camera_id, "stream": str(name), "reason": str(error)}
            )
            return
        if session.viewer is None or session.held is None or session.held == (camera_id, name):
            self._release(camera_id, name)
            return
        before, session.held = session.held, (camera_id, name)
        session.stream_name = name
        session.viewer.switch(self.sink_of(camera_id, name))
        self._release(*before)

    def _payload_types(
        self, offer: sdp.Offer, kind: str, codecs: Sequence[Codec], profile: str | None
    ) -> dict[Codec, PayloadTypes]:
        """The payload types of what is offered and of use, in our order of preference."""
        section = offer.first(kind)
        found: dict[Codec, PayloadTypes] = {}
        if section is None:
            return found
        for codec in codecs:
            if codec is Codec.H264:
                choice = sdp.choose_h264(section, profile)
                if choice is not None:
                    if profile is not None and not choice.exact:
                        self._port.counters["h264_profile_substituted"] += 1
                    found[codec] = PayloadTypes(media=choice.payload_type, rtx=choice.rtx)
            elif (pair := sdp.choose_codec(section, codec)) is not None:
                found[codec] = PayloadTypes(media=pair[0], rtx=pair[1])
        return found


PUBLISHED_EXTENSIONS = ("urn:ietf:params:rtp-hdrext:sdes:mid",)


def _flat(types: Mapping[Codec, PayloadTypes]) -> tuple[int, ...]:
    """Payload types for the answer: each codec followed by its RTX."""
    return tuple(
        payload_type
        for one in types.values()
        for payload_type in (one.media, one.rtx)
        if payload_type is not None
    )


def _other_picture(choice: StreamChoice, name: StreamName, error: GatewayError) -> StreamName | None:
    """What to show instead of the picture that failed with `error`."""
    if name is StreamName.SUB:
        return StreamName.MAIN if isinstance(error, NotFound) else None
    if choice is StreamChoice.AUTO or isinstance(error, Undecodable):
        return StreamName.SUB
    return None


def _profile_of(stream: Stream) -> str | None:
    """profile-level-id (RFC 6184 section 8.1) out of the cached SPS."""
    if stream.video.keyframe is None:
        return None
    for nal_unit in stream.video.keyframe.nal_units:
        if nal_unit and nal_unit[0] & 31 == 7 and len(nal_unit) >= 4:
            return nal_unit[1:4].hex()
    return None


def _new_ssrc() -> int:
    return 1 + secrets.randbelow(0xFFFFFFFE)


def _new_cname() -> str:
    """RFC 7022 section 4.2: random, for one session. 16 characters: a chunk of SDES then needs no more than
    its end mark as padding, which clients that misread the padding (aiortc 1.16) need to read a second
    chunk."""
    return secrets.token_urlsafe(12)
