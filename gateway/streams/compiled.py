"""The optional compiled inner loops: `_fan.c` behind the interfaces of the Python ones.

Where the extension was built and `media.compiled` is `auto`, a port gives its UDP sockets a `Gate` and its links a
`CompiledSender`, whose `Lane` holds session keys and address; `stream.fan_out` then does headers, SRTP and sendmsg of
all viewers in one call. Whatever does not go smoothly comes back and takes the Python path, which counts, keeps what
a full queue refused, or turns GSO off. So there is one place for each rule, and both give the same bytes. Pictures on
their way in are taken out of the receive buffer and cut into payloads the same way: what is not routine is Python's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gateway.streams.packets import PacketGroup
from gateway.streams.srtp import Buffers, SrtpKeys, SrtpSender

try:
    from gateway.streams import _fan
except ImportError:  # no compiler or no OpenSSL headers when the gateway was installed
    _fan = None  # type: ignore[assignment]

INTERFACE = 2
"""Raised with every change of what `_fan` takes or gives: one built from older sources would send nothing, silently."""
if _fan is not None and getattr(_fan, "INTERFACE", 0) != INTERFACE:
    logging.getLogger(__name__).warning(
        "the compiled loop is of another version: run `make setup`; until then Python sends"
    )
    _fan = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from gateway.streams._fan import Gate, Lane

__all__ = ["CompiledSender", "Outgoing", "available", "fan", "fragment", "new_gate", "whole_picture"]

whole_picture = None if _fan is None else _fan.whole_picture
"""See h264.WholePicture."""

fragment = None if _fan is None else _fan.fragment
"""(NAL unit, largest payload) -> the payloads of its FU-A packets, of even size (RFC 6184 section 5.8)."""

if TYPE_CHECKING or _fan is None:

    class Outgoing:
        """The numbers of one viewer's RTP stream that `fan` works with; compiled, they lie side by side in memory.

        lane: the Lane it goes out by, None for the Python path. An SRTP index is a packet number + index_offset, a
        timestamp on the wire that of the source + timestamp_offset (mod 2**32). cursor: number of the packet that comes
        next. packets, octets: sent so far.
        """

        __slots__ = (
            "cursor", "index_offset", "lane", "octets", "packets", "payload_type", "ssrc", "timestamp_offset",
        )  # fmt: skip
        lane: object | None
        index_offset: int
        timestamp_offset: int
        ssrc: int
        payload_type: int
        cursor: int
        packets: int
        octets: int

else:
    Outgoing = _fan.Outgoing


def available() -> bool:
    """Whether the extension was built."""
    return _fan is not None


def new_gate(fd: int) -> Gate:
    """What lanes send through: one UDP socket."""
    return _fan.Gate(fd)


def fan(groups: Sequence[PacketGroup], senders: Sequence[Any]) -> list[tuple[Any, int]]:
    """Every group to every sender. Returns who has not got all, with the position of the first group missing.

    What was sent is counted in the sender's `packets` and `octets`.
    """
    return _fan.fan(groups, senders)


class CompiledSender(SrtpSender):
    """Seals like GcmSender and CmSender; RTCP, which is rare, is left to those."""

    __slots__ = ("_python", "lane", "segment_overhead")
    lane: Lane

    def __init__(self, keys: SrtpKeys) -> None:
        self._python = SrtpSender.create(keys)
        self.segment_overhead = self._python.segment_overhead
        self.lane = _fan.Lane(keys.rtp_key, keys.rtp_salt, keys.rtp_auth_key)

    def aim(self, gate: Gate | None, address: Sequence[Any]) -> None:
        """Where `fan` sends to; without a gate (TCP, or no path) it leaves this link to Python."""
        if gate is None:
            self.lane.rest()
        else:
            self.lane.aim(gate, address[0].partition("%")[0], address[1], *address[3:4])

    def seal_group(
        self,
        payloads: Sequence[bytes],
        *,
        first_index: int,
        timestamp: int,
        ssrc: int,
        payload_type: int,
        marker: bool,
    ) -> Buffers:
        return [self.lane.seal_group(payloads, first_index, timestamp, ssrc, payload_type, marker)]

    def protect_rtcp(self, compound: bytes) -> bytes:
        return self._python.protect_rtcp(compound)
