"""The optional compiled inner loop: `_fan.c` behind the interfaces of the Python one.

Where the extension was built and `media.compiled` is `auto`, a port gives its UDP sockets a `Gate` and its links a
`CompiledSender`, whose `Lane` holds session keys and address; `stream.fan_out` then does headers, SRTP and sendmsg of
all viewers in one call. Whatever does not go smoothly comes back and takes the Python path, which counts, keeps what
a full queue refused, or turns GSO off. So there is one place for each rule, and both give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gateway.streams.packets import PacketGroup
from gateway.streams.srtp import Buffers, SrtpKeys, SrtpSender

try:
    from gateway.streams import _fan
except ImportError:  # no compiler or no OpenSSL headers when the gateway was installed
    _fan = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from gateway.streams._fan import Gate, Lane

__all__ = ["CompiledSender", "available", "fan", "new_gate"]


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
