"""What can go wrong with a simulated camera, by name (`--fault cam005=stall`, or POST /fault at run time)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAULTS", "SOURCE_FAULTS", "SourceFault", "parse"]

FAULTS: dict[str, str] = {
    "cut": "connections are cut and none is served",
    "reboot": "cut for 5 s, then back by itself",
    "hang": "the connection stays open, but neither media nor replies come",
    "stall": "replies come, media does not",
    "401": "every credential is refused",
    "loss": "3 % of the RTP packets are missing",
    "timestamps": "the RTP clock jumps back and forth at keyframes",
    "garbage": "200 random bytes between frames at each keyframe",
    "freeze": "the stream goes on with one and the same picture",
    "black": "the stream goes on in black",
    "resolution": "the picture's size changes in the middle of the stream",
    "bframes": "Main profile with B-frames",
    "mtu": "RTP payloads of 10,000 bytes (Tapo, over TCP)",
    "stap": "parameter sets in a STAP-A",
    "marked-sets": "SPS and PPS carry the marker bit (Tapo TC70, Reolink Duo 2)",
    "annexb": "SPS, PPS and IDR in one payload with start codes between",
    "unmarked": "never a marker bit (FLIR M400)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFault:
    """A fault that lies in the packetised clip itself. derive: the pictures are encoded anew."""

    derive: bool = False
    max_payload: int = 1400
    dialect: str = "plain"


SOURCE_FAULTS: dict[str, SourceFault] = {
    "freeze": SourceFault(derive=True),
    "black": SourceFault(derive=True),
    "resolution": SourceFault(derive=True),
    "bframes": SourceFault(derive=True),
    "mtu": SourceFault(max_payload=10_000),
    "stap": SourceFault(dialect="stap"),
    "marked-sets": SourceFault(dialect="marked-sets"),
    "annexb": SourceFault(dialect="annexb"),
    "unmarked": SourceFault(dialect="unmarked"),
}


def parse(text: str) -> tuple[str, str]:
    """`cam005=stall` -> (`cam005`, `stall`). Raises ValueError."""
    camera_id, _, fault = text.partition("=")
    if fault not in FAULTS:
        raise ValueError(f"unknown fault {fault!r}; known: {', '.join(FAULTS)}")
    return camera_id, fault
