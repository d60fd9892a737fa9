"""The values that travel between ingest, fan-out and sessions. No behaviour beyond what a value can tell of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from gateway.errors import Unavailable

__all__ = ["AccessUnit", "AudioFrame", "Codec", "MediaSink", "StreamName", "Undecodable"]


class Codec(StrEnum):
    """RTP encoding names as IANA registers them."""

    H264 = "H264"
    H265 = "H265"
    VP8 = "VP8"
    OPUS = "opus"
    PCMU = "PCMU"
    PCMA = "PCMA"
    AAC = "MPEG4-GENERIC"


class Undecodable(Unavailable):
    """The stream is there, but its codec or its B-frames are beyond browsers. The camera's other stream may do."""


class StreamName(StrEnum):
    """The two pictures of one camera."""

    MAIN = "main"
    SUB = "sub"


class AccessUnit(NamedTuple):
    """One H.264 picture (ITU-T H.264 section 7.4.1.2.3): every NAL unit that shares a decoding time.

    A tuple, because one is made for each picture of each camera, and a frozen dataclass takes four times as long to make.

    nal_units: without start codes, in decoding order; SPS and PPS stand before each IDR (RFC 7742 section 6.2).
    timestamp: 90 kHz, unwrapped, never running backwards for the life of the stream (re-anchored at the ingest).
    keyframe: holds an IDR picture with its parameter sets, so decoding can start here.
    received_at: time.monotonic() seconds at which its last packet arrived.
    """

    nal_units: tuple[bytes, ...]
    timestamp: int
    keyframe: bool
    received_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFrame:
    """One RTP audio payload, untouched or made into Opus. timestamp: in the codec's RTP clock, unwrapped, monotone."""

    codec: Codec
    payload: bytes
    timestamp: int
    received_at: float


class MediaSink(Protocol):
    """Where ingest puts what it pulled. Called from the event loop, must not block, must not raise.

    While nobody has acquired the stream only keyframes come as they are received; the pictures after the newest one come,
    in order, before an acquire returns. An audio frame without payload only tells the codec; others come while `listening`.
    """

    @property
    def listening(self) -> bool: ...

    def on_access_unit(self, access_unit: AccessUnit) -> None: ...

    def on_audio(self, frame: AudioFrame) -> None: ...

    def on_skip(self) -> None:
        """Pictures that came after the last keyframe were dropped unseen: nothing continues it before the next one."""

    def on_reset(self) -> None:
        """The source was cut: the cached group of pictures is no longer a prefix of what follows."""
