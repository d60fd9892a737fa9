"""Whole pictures out of the RTP payloads that a publisher sends, for whoever keeps them instead of passing them on.

`PictureAssembly` takes payloads in the order of their numbers. A hole in the numbers, a payload that can't be read, or a
picture without its last packet costs that picture, and all that follow up to the next keyframe (`damaged` tells).

Sources: RFC 6184 sections 5.6 to 5.8 (single NAL unit, STAP-A, FU-A; what browsers send), RFC 7741 section 4.2. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.streams.media import Codec

__all__ = ["Picture", "PictureAssembly", "vp8_payload"]

MAX_OCTETS = 4_000_000
"""Of one picture. More is no picture but an attack: it is dropped."""
_STAP_A, _FU_A, _IDR, _SPS, _PPS = 24, 28, 5, 7, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """units: NAL units (H.264; at a keyframe its parameter sets are among them) or the one frame (VP8)."""

    units: tuple[bytes, ...]
    timestamp: int
    keyframe: bool


class PictureAssembly:
    """Of one track with one codec."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.damaged = True  # until the first keyframe
        self._expected: int | None = None
        self._timestamp: int | None = None
        self._units: list[bytes] = []
        self._fragments: list[bytes] | None = None
        self._octets = 0
        self._broken = False
        self._parameters: dict[int, bytes] = {}

    def reset(self) -> None:
        """What comes next does not continue what came."""
        self._clear()
        self._expected = self._timestamp = None
        self.damaged = True

    def push(self, payload: bytes, *, number: int, timestamp: int, marker: bool) -> Picture | None:
        """A payload; the picture that it completes, unless that can't be decoded."""
        if self._expected is not None and number != self._expected:
            self.damaged = True
            self._broken = True
        self._expected = number + 1
        if timestamp != self._timestamp:
            if self._units or self._fragments:
                self.damaged = True  # its last packet never came
            lost_start = self._broken and self._timestamp is not None and not self._starts(payload)
            self._clear()
            self._broken = lost_start
            self._timestamp = timestamp
        self._octets += len(payload)
        if self._octets > MAX_OCTETS:
            self._broken = True
        if not self._broken:
            self._broken = not (self._h264(payload) if self.codec is Codec.H264 else self._vp8(payload))
        return self._finish(timestamp) if marker else None

    def _starts(self, payload: bytes) -> bool:
        """Whether a picture can begin with this payload: nothing before it, of the same picture, was lost."""
        if not payload:
            return False
        if self.codec is Codec.VP8:
            return payload[0] & 0x17 == 0x10
        kind = payload[0] & 0x1F
        return kind != _FU_A or (len(payload) > 1 and bool(payload[1] & 0x80))

    def _clear(self) -> None:
        self._units, self._fragments, self._octets, self._broken = [], None, 0, False

    def _finish(self, timestamp: int) -> Picture | None:
        units, broken = self._units, self._broken or self._fragments is not None
        self._clear()
        if broken or not units:
            self.damaged = True
            return None
        if self.codec is Codec.H264:
            keyframe, units = self._with_parameters(units)
        else:
            units = [b"".join(units)]
            keyframe = len(units[0]) >= 10 and not units[0][0] & 1  # RFC 6386 section 9.1
        if keyframe:
            self.damaged = False
        elif self.damaged:
            return None
        return Picture(units=tuple(units), timestamp=timestamp, keyframe=keyframe)

    def _with_parameters(self, units: list[bytes]) -> tuple[bool, list[bytes]]:
        """Browsers send SPS and PPS with each IDR; one that sent them only once gets them back."""
        kinds = [unit[0] & 0x1F for unit in units]
        for kind, unit in zip(kinds, units, strict=True):
            if kind in (_SPS, _PPS):
                self._parameters[kind] = unit
        if _IDR not in kinds:
            return False, units
        missing = [
            self._parameters[kind] for kind in (_SPS, _PPS) if kind not in kinds and kind in self._parameters
        ]
        return len(self._parameters) == 2, [*missing, *units]

    def _h264(self, payload: bytes) -> bool:
        """False when the picture is beyond repair."""
        if not payload:
            return False
        kind = payload[0] & 0x1F
        if kind == _FU_A:
            return self._fragment(payload)
        if self._fragments is not None:
            return False
        if kind != _STAP_A:
            self._units.append(payload)
            return 1 <= kind <= 23
        at = 1
        while at + 2 <= len(payload):
            size = int.from_bytes(payload[at : at + 2], "big")
            unit = payload[at + 2 : at + 2 + size]
            if not unit or len(unit) < size:
                return False
            self._units.append(unit)
            at += 2 + size
        return at == len(payload)

    def _fragment(self, payload: bytes) -> bool:
        if len(payload) < 3:
            return False
        head = payload[1]
        if head & 0x80:
            if self._fragments is not None:
                return False
            self._fragments = [bytes([payload[0] & 0xE0 | head & 0x1F])]
        if self._fragments is None:
            return False
        self._fragments.append(payload[2:])
        if head & 0x40:
            self._units.append(b"".join(self._fragments))
            self._fragments = None
        return True

    def _vp8(self, payload: bytes) -> bool:
        data = vp8_payload(payload)
        if not data:
            return False
        self._units.append(data)
        return True


def vp8_payload(payload: bytes) -> bytes:
    """Without the payload descriptor (RFC 7741 section 4.2); empty if it can't be read."""
    if not payload:
        return b""
    at = 1
    if payload[0] & 0x80:
        if len(payload) < 2:
            return b""
        flags, at = payload[1], 2
        if flags & 0x80:
            at += 2 if len(payload) > 2 and payload[2] & 0x80 else 1
        at += bool(flags & 0x40) + bool(flags & 0x30)
    return payload[at:]
