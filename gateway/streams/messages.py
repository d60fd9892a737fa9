"""What front door and worker process say to each other: typed messages, errors as values, and their framing. Sans-I/O.

A frame is four octets of length (big endian) and one msgpack message (a tagged array). The front door sends requests,
each with an `id` that its answer repeats; a worker also sends events. Both ends are the same version of the same program,
so there is no negotiation; a frame that can't be read ends the worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from gateway.errors import Conflict, GatewayError, NotFound, ProtocolError, TooMany, Unavailable
from gateway.evidence.order import News, RecordingOrder
from gateway.streams.cameras import CameraState
from gateway.streams.media_service import MediaSpec
from gateway.streams.plane import NotAcceptable
from gateway.streams.sdp import Fragment
from gateway.streams.session import SessionAnswer, SessionInfo
from gateway.streams.verdict import PictureState

__all__ = [
    "Answered",
    "ApplyCameras",
    "Beat",
    "Cancel",
    "CloseOwned",
    "CloseSession",
    "Closed",
    "Done",
    "Failure",
    "FetchHls",
    "FetchKeyframe",
    "FrameReader",
    "FromWorker",
    "HlsAnswer",
    "Keyframe",
    "PictureChange",
    "Publish",
    "Ready",
    "Record",
    "Recorded",
    "Refused",
    "Request",
    "RestartSession",
    "Setup",
    "States",
    "Stop",
    "StopRecording",
    "SupervisorCounts",
    "ToWorker",
    "Tracks",
    "Warm",
    "Watch",
    "WireCamera",
    "encode_frame",
]

MAX_FRAME = 16 * 1024 * 1024
"""Octets. The largest message is a keyframe."""
_LENGTH = 4


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages: msgspec tags each with its class name."""


class WireCamera(msgspec.Struct, frozen=True, array_like=True):
    """A `cameras.CameraSource`."""

    id: str
    main: str
    sub: str | None
    credentials: str | None
    pull: str
    pull_main: str
    transport: str


class SupervisorCounts(msgspec.Struct, array_like=True):
    """`cameras.Counters` with plain dictionaries, the totals of plane and port, and `HealthCounters`."""

    supervisor: dict[str, int]
    failures: dict[str, int]
    faults: dict[str, int]
    answered: dict[str, int]
    closed: dict[str, int]
    port: dict[str, int]
    pictures: dict[str, float] = {}


# To the worker.


class Setup(_Message, frozen=True):
    """The first message. log_level: as in `logging`."""

    number: int
    spec: MediaSpec
    log_level: int
    beat_s: float


class Request(_Message, frozen=True):
    """Anything that is answered by a message with the same id."""

    id: int


class ApplyCameras(Request, frozen=True):
    """The worker's share of the cameras, as a whole. The only message that carries passwords."""

    cameras: list[WireCamera]
    credentials: dict[str, tuple[str, str]]

    def __repr__(self) -> str:
        return f"ApplyCameras(id={self.id}, cameras={len(self.cameras)})"


class Watch(Request, frozen=True):
    source_id: str
    offer: str
    stream: str
    owner: str


class Publish(Request, frozen=True):
    source_id: str
    offer: str
    owner: str


class RestartSession(Request, frozen=True):
    session_id: str
    fragment: Fragment


class CloseSession(Request, frozen=True):
    session_id: str
    reason: str


class CloseOwned(Request, frozen=True):
    owner: str
    reason: str


class FetchKeyframe(Request, frozen=True):
    """known: digest of what the front door has; 0 for nothing."""

    camera_id: str
    known: int


class FetchHls(Request, frozen=True):
    """One file of a camera's stream by HLS; the fields are those of `MediaService.fetch_hls`."""

    camera_id: str
    name: str
    file: str
    container: str
    query: list[tuple[str, str]]


class Warm(Request, frozen=True):
    camera_id: str


class Record(Request, frozen=True):
    order: RecordingOrder


class StopRecording(Request, frozen=True):
    recording_id: str


class Cancel(_Message, frozen=True):
    """Nobody waits for the answer to this request any more."""

    id: int


class Stop(_Message, frozen=True):
    """End all sessions, leave all cameras, exit."""


# From the worker.


class Ready(_Message, frozen=True):
    """The sockets are bound."""

    port: int


class Answered(_Message, frozen=True):
    """To Watch, Publish and RestartSession."""

    id: int
    answer: SessionAnswer
    info: SessionInfo


class Done(_Message, frozen=True):
    """To all other requests."""

    id: int
    count: int = 0


class Keyframe(_Message, frozen=True):
    """To FetchKeyframe. nal_units: None if there is no keyframe, or if `known` still is the newest (digest tells)."""

    id: int
    digest: int
    nal_units: tuple[bytes, ...] | None


class HlsAnswer(_Message, frozen=True):
    """To FetchHls."""

    id: int
    body: bytes
    media_type: str


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A GatewayError as a value."""

    kind: str
    text: str
    retry_after_s: float = 0.0
    offset: int | None = None
    detail: dict[str, Any] = {}
    codecs: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: GatewayError) -> Failure:
        match error:
            case NotAcceptable():
                return cls("NotAcceptable", error.kind, codecs=error.codecs)
            case ProtocolError():
                return cls("ProtocolError", error.reason, offset=error.offset, detail=_plain(error.context))
            case Unavailable() | TooMany():
                return cls(type(error).__name__, str(error), error.retry_after_s)
            case Conflict():
                return cls("Conflict", str(error), detail=_plain(error.detail))
            case NotFound():
                return cls("NotFound", str(error))
        return cls("GatewayError", str(error))

    def error(self) -> GatewayError:
        """The same error again."""
        match self.kind:
            case "NotAcceptable":
                return NotAcceptable(self.text, self.codecs)
            case "ProtocolError":
                return ProtocolError(self.text, self.offset, **self.detail)
            case "Unavailable":
                return Unavailable(self.text, retry_after_s=self.retry_after_s)
            case "TooMany":
                return TooMany(self.text, retry_after_s=self.retry_after_s)
            case "Conflict":
                return Conflict(self.text, **self.detail)
            case "NotFound":
                return NotFound(self.text)
        return GatewayError(self.text)


def _plain(values: dict[str, object]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str | int | float | bool | None) else str(value)
        for name, value in values.items()
    }


class Refused(_Message, frozen=True):
    """To any request; id 0: to Setup."""

    id: int
    failure: Failure


class States(_Message, frozen=True):
    """Cameras whose state or reason changed."""

    states: list[CameraState]


class PictureChange(_Message, frozen=True):
    """The verdict on a camera's picture is another."""

    camera_id: str
    picture: PictureState


class Closed(_Message, frozen=True):
    session_id: str
    reason: str


class Tracks(_Message, frozen=True):
    """What a call leg publishes by now."""

    source_id: str
    tracks: tuple[str, ...]


class Recorded(_Message, frozen=True):
    """Something happened to a recording."""

    news: News


class Beat(_Message, frozen=True):
    """A sign of life every `beat_s`, with a part of the figures that change all the time: in turn every camera's state and
    every session, and now and then the totals. pictures: of the cameras whose state is there; None: not judged yet."""

    lag_ms: float
    states: list[CameraState]
    sessions: list[SessionInfo]
    counts: SupervisorCounts | None
    pictures: dict[str, PictureState | None] = {}
    preroll_octets: int = 0


ToWorker = (
    Setup
    | ApplyCameras
    | Watch
    | Publish
    | RestartSession
    | CloseSession
    | CloseOwned
    | FetchKeyframe
    | FetchHls
    | Warm
    | Record
    | StopRecording
    | Cancel
    | Stop
)
FromWorker = (
    Ready
    | Answered
    | Done
    | Keyframe
    | HlsAnswer
    | Refused
    | States
    | PictureChange
    | Closed
    | Tracks
    | Recorded
    | Beat
)

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: _Message) -> bytes:
    """Raises ProtocolError when it is larger than a frame may be."""
    buffer = bytearray(_LENGTH)
    _encoder.encode_into(message, buffer, _LENGTH)
    length = len(buffer) - _LENGTH
    if length > MAX_FRAME:
        raise ProtocolError("frame_size", length=length)
    buffer[:_LENGTH] = length.to_bytes(_LENGTH, "big")
    return bytes(buffer)


_T = TypeVar("_T")


class FrameReader(Generic[_T]):
    """Octets in, messages out."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[_T]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_T]:
        """Every message that is whole by now. Raises ProtocolError, after which the peer is past help."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH:
                length = int.from_bytes(buffer[start : start + _LENGTH], "big")
                if length > MAX_FRAME:
                    raise ProtocolError("frame_size", length=length)
                end = start + _LENGTH + length
                if len(buffer) < end:
                    return
                frame = bytes(buffer[start + _LENGTH : end])
                start = end
                try:
                    yield self._decoder.decode(frame)
                except msgspec.DecodeError as error:
                    raise ProtocolError("frame_content", detail=str(error)[:200]) from None
        finally:
            del buffer[:start]
