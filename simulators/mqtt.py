"""A lean MQTT 3.1.1 client: what two thousand boxes in one process need and no more.

The packets are pure functions and a sans-I/O parser; `Client` is an asyncio.Protocol without a task or
timer of its own. QoS 0 and 1, a will, user name and password, clean sessions. Whoever owns clients pings
them (`ping`).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Client", "MqttError", "Parser", "Will", "connect_packet", "publish_packet", "subscribe_packet"]

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 2, 3, 4, 9, 13
REFUSALS = {
    1: "unacceptable protocol version",
    2: "identifier rejected",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorized",
}


class MqttError(Exception):
    """The broker refused, broke the protocol or went away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker publishes when the connection dies."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True, slots=True)
class Packet:
    """One control packet: type and flags of its first byte, and the rest."""

    kind: int
    flags: int
    body: bytes


def _length(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + _length(len(body)) + body


def connect_packet(
    client_id: str, *, username: str, password: str, keepalive_s: int = 60, will: Will | None = None
) -> bytes:
    """CONNECT (section 3.1) with a clean session."""
    flags = 0xC2
    payload = _text(client_id)
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.retain << 5
        payload += _text(will.topic) + _text(will.payload)
    payload += _text(username) + _text(password)
    return _packet(0x10, _text("MQTT") + struct.pack(">BBH", 4, flags, keepalive_s) + payload)


def publish_packet(
    topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, packet_id: int = 0
) -> bytes:
    """PUBLISH (section 3.3)."""
    identifier = struct.pack(">H", packet_id) if qos else b""
    return _packet(0x30 | qos << 1 | retain, _text(topic) + identifier + payload)


def subscribe_packet(packet_id: int, filters: list[tuple[str, int]]) -> bytes:
    """SUBSCRIBE (section 3.8)."""
    return _packet(
        0x82, struct.pack(">H", packet_id) + b"".join(_text(f) + bytes((qos,)) for f, qos in filters)
    )


class Parser:
    """Cuts a byte stream into control packets. limit: bytes of the largest one accepted."""

    def __init__(self, limit: int = 256 * 1024) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Yields what is complete; raises MqttError on a length that can't be."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 2:
            length, shift, at = 0, 0, 1
            while True:
                if at == len(buffer):
                    return
                digit = buffer[at]
                length |= (digit & 0x7F) << shift
                at += 1
                shift += 7
                if not digit & 0x80:
                    break
                if at == 5:
                    raise MqttError("malformed remaining length")
            if length > self._limit:
                raise MqttError("packet too large")
            if len(buffer) < at + length:
                return
            packet = Packet(buffer[0] >> 4, buffer[0] & 15, bytes(buffer[at : at + length]))
            del buffer[: at + length]
            yield packet


class Client(asyncio.Protocol):
    """One connection. on_message(topic, payload) is called from the loop; on_lost(reason) once, when it
    ends.
    """

    def __init__(
        self,
        client_id: str,
        *,
        on_message: Callable[[str, bytes], None],
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.client_id = client_id
        self.connected = False
        self._on_message, self._on_lost = on_message, on_lost
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}  # 0 is the CONNACK
        self._next_id = 1

    async def connect(
        self, host: str, port: int, *, password: str, will: Will | None = None, keepalive_s: int = 60
    ) -> None:
        """Opens the connection and waits for CONNACK (10 s). Raises OSError or MqttError."""
        loop = asyncio.get_running_loop()
        accepted = self._waiting[0] = loop.create_future()
        await loop.create_connection(lambda: self, host, port)
        packet = connect_packet(
            self.client_id, username=self.client_id, password=password, keepalive_s=keepalive_s, will=will
        )
        self._write(packet)
        try:
            async with asyncio.timeout(10):
                await accepted
        except TimeoutError:
            self.abort()
            raise MqttError("no CONNACK in 10 s") from None

    async def subscribe(self, *topics: str, qos: int = 1) -> None:
        """Subscribes and waits for SUBACK; raises MqttError when a filter is refused."""
        packet_id, done = self._identify()
        self._write(subscribe_packet(packet_id, [(topic, qos) for topic in topics]))
        await done

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> asyncio.Future[None] | None:
        """Sends; for QoS 1 the future resolves at PUBACK."""
        if qos == 0:
            self._write(publish_packet(topic, payload, retain=retain))
            return None
        packet_id, done = self._identify()
        self._write(publish_packet(topic, payload, qos=1, retain=retain, packet_id=packet_id))
        return done

    def ping(self) -> None:
        """PINGREQ; to be sent at least once in a keep-alive time."""
        self._write(b"\xc0\x00")

    def disconnect(self) -> None:
        """An orderly end: the broker drops the will."""
        if self._transport is not None:
            self._write(b"\xe0\x00")
            self._transport.close()

    def abort(self) -> None:
        """Cuts the connection: the broker publishes the will."""
        if self._transport is not None:
            self._transport.abort()

    def _identify(self) -> tuple[int, asyncio.Future[None]]:
        while self._next_id in self._waiting:
            self._next_id = self._next_id % 65535 + 1
        packet_id = self._next_id
        self._next_id = packet_id % 65535 + 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody need wait for a PUBACK (it proves nothing): an unread failure is no error.
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._waiting[packet_id] = future
        return packet_id, future

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise MqttError("not connected")
        self._transport.write(data)

    # -- asyncio --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for packet in self._parser.feed(data):
                self._on_packet(packet)
        except (MqttError, struct.error, IndexError, UnicodeDecodeError) as error:
            self._fail(f"broker broke the protocol: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.connected = False
        self._fail(str(exc) if exc else "connection closed")
        if self._on_lost is not None:
            self._on_lost(str(exc) if exc else "connection closed")

    def _fail(self, reason: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(MqttError(reason))
        self._waiting.clear()

    def _on_packet(self, packet: Packet) -> None:
        if packet.kind == PUBLISH:
            qos = packet.flags >> 1 & 3
            end = 2 + int.from_bytes(packet.body[:2], "big")
            topic = packet.body[2:end].decode()
            if qos:
                self._write(b"\x40\x02" + packet.body[end : end + 2])
                end += 2
            self._on_message(topic, packet.body[end:])
        elif packet.kind in (PUBACK, SUBACK):
            future = self._waiting.pop(int.from_bytes(packet.body[:2], "big"), None)
            if future is None or future.done():
                return
            if packet.kind == SUBACK and 0x80 in packet.body[2:]:
                future.set_exception(MqttError("subscription refused"))
            else:
                future.set_result(None)
        elif packet.kind == CONNACK:
            future = self._waiting.pop(0, None)
            if future is None or future.done():
                return
            code = packet.body[1]
            if code:
                future.set_exception(MqttError(REFUSALS.get(code, f"refused with {code}")))
                with contextlib.suppress(MqttError):
                    self.abort()
            else:
                self.connected = True
                future.set_result(None)
