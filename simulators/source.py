"""A clip packed into RTP payloads, once for all who play it."""

from __future__ import annotations

from dataclasses import dataclass

from simulators import clips, h264

__all__ = ["Picture", "Source", "packed"]

CLOCK = 90_000


@dataclass(frozen=True, slots=True)
class Picture:
    """One packetised access unit. at: display time in 90 kHz from the start of its source."""

    packets: tuple[h264.Packet, ...]
    at: int
    keyframe: bool
    octets: int


def packed(unit: h264.AccessUnit, at: int, *, max_payload: int = 1400, dialect: str = "plain") -> Picture:
    """Packetises one access unit."""
    packets = tuple(h264.packetize(unit.nal_units, max_payload=max_payload, dialect=dialect))
    return Picture(packets, at, unit.keyframe, sum(len(packet.payload) for packet in packets))


class Source:
    """A looping clip. step and length in 90 kHz; keyframes: indices of the pictures where playing can
    start.
    """

    def __init__(self, clip: clips.Clip, *, max_payload: int = 1400, dialect: str = "plain") -> None:
        self.width, self.height, self.fps = clip.width, clip.height, clip.fps
        self.step = CLOCK // clip.fps
        self.profile_level_id, self.parameter_sets = h264.sprop(clip.units)
        self.pictures = [
            packed(unit, shown * self.step, max_payload=max_payload, dialect=dialect)
            for unit, shown in zip(clip.units, clip.shown, strict=True)
        ]
        self.length = len(self.pictures) * self.step
        self.keyframes = [index for index, picture in enumerate(self.pictures) if picture.keyframe]
