from collections.abc import Sequence
from typing import Any

from gateway.streams.packets import PacketGroup

INTERFACE: int

class Gate:
    open: bool
    def __init__(self, fd: int) -> None: ...

class Outgoing:
    lane: object | None
    index_offset: int
    timestamp_offset: int
    ssrc: int
    payload_type: int
    cursor: int
    packets: int
    octets: int

class Lane:
    def __init__(self, key: bytes, salt: bytes, auth_key: bytes) -> None: ...
    def seal_group(
        self,
        payloads: Sequence[bytes],
        first_index: int,
        timestamp: int,
        ssrc: int,
        payload_type: int,
        marker: bool,
    ) -> bytes: ...
    def aim(self, gate: Gate, host: str, port: int, scope: int = 0, /) -> None: ...
    def rest(self) -> None: ...

def fan(groups: Sequence[PacketGroup], senders: Sequence[Any], /) -> list[tuple[Any, int]]: ...
def whole_picture(
    buffer: bytearray, start: int, end: int, magic: int, plain: int, expected: int, source: int, /
) -> tuple[int, int, int, bytes] | None: ...
def fragment(nal_unit: bytes, max_payload_size: int, /) -> tuple[bytes, ...]: ...
