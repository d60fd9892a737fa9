"""What a path runs over: a UDP socket shared by all links, or one ICE-TCP connection (asyncio shell).

Drop rules: a full kernel queue (EAGAIN) is the host's, shared by all: one batch is kept for writability,
further ones are dropped and counted. A TCP connection whose write buffer holds TCP_BUFFER octets drops.
Whoever sends sees False.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import ifaddr

from gateway.errors import ConfigError
from gateway.streams import compiled
from gateway.streams.srtp import Buffers

if TYPE_CHECKING:
    from gateway.streams._fan import Gate

__all__ = [
    "Address",
    "Carrier",
    "CarrierOwner",
    "Path",
    "Receiver",
    "TcpConnection",
    "UdpSocket",
    "bound_socket",
    "expand_binds",
]

logger = logging.getLogger(__name__)

SOL_UDP = 17
UDP_SEGMENT = 103  # linux/udp.h
SOCKET_BUFFER = 4 << 20
RECEIVE_SIZE = 2048
# Datagrams read before the loop gets its turn again.
RECEIVE_BURST = 64
# A process that sleeps between two packets pays several times more for each than one that takes them together: where only
# reports and consent checks come, a socket is read at multiples of this; the longer time where no media is sent either.
REST_S, LONG_REST_S = 0.025, 0.1
TCP_BUFFER = 512 * 1024
TCP_MAX_FRAME = 4096
TCP_AUTHENTICATE_S = 10.0
ANY_IPV4 = "0.0.0.0"  # noqa: S104  # recognised in order to never bind it
ANY_IPV6 = "::"

# Remote address as the socket module gives it: (host, port) or (host, port, flow, scope).
Address = tuple[str, int] | tuple[str, int, int, int]


class Receiver(Protocol):
    """Who takes the datagrams of an authenticated address: a Link. Media that came one after the other comes together."""

    def receive(self, datagrams: Sequence[bytes], carrier: Carrier, address: Address, now: float) -> None: ...

    def path_lost(self, path: Path) -> None: ...


class Carrier(Protocol):
    """links: the index of authenticated addresses; gate: for the compiled loop, None where it can't send.
    `send*` return False when the data was dropped."""

    links: dict[Address, Receiver]
    gate: Gate | None
    protocol: str

    def send(self, data: bytes, address: Address) -> bool: ...

    def send_segments(self, buffers: Buffers, segment_size: int, count: int, address: Address) -> bool: ...

    def unused(self) -> None:
        """The last link left."""


Path = tuple[Carrier, Address]


class CarrierOwner(Protocol):
    """The port, as carriers see it. counters: faults and drops by name; compiled: use the compiled loop; quick_until: until
    then what comes is answered at once, since somebody joins, publishes or misses packets; media_until: media is being
    sent until then at least."""

    counters: Counter[str]
    compiled: bool
    quick_until: float
    media_until: float

    def clock(self) -> float: ...

    def receive_stun(self, data: bytes, carrier: Carrier, address: Address, now: float) -> None: ...

    def add_connection(self, connection: TcpConnection) -> bool: ...

    def remove_connection(self, connection: TcpConnection) -> None: ...


class _Ancillary(dict[int, list[tuple[int, int, bytes]]]):
    """sendmsg's ancillary data by segment size, made once."""

    def __missing__(self, segment_size: int) -> list[tuple[int, int, bytes]]:
        value = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment_size))]
        if len(self) < 2048:
            self[segment_size] = value
        return value


_ancillary = _Ancillary()


class UdpSocket:
    """One bound UDP socket with its index of authenticated addresses."""

    protocol = "udp"

    def __init__(self, port: CarrierOwner, sock: socket.socket) -> None:
        self.links: dict[Address, Receiver] = {}
        self._port = port
        self._sock = sock
        self._sendmsg = sock.sendmsg
        self._gso = True
        self.gate = compiled.new_gate(sock.fileno()) if port.compiled else None
        self._pending: tuple[bytes, int, Address] | None = None
        self._loop = asyncio.get_running_loop()
        self._resting: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def local(self) -> tuple[str, int]:
        name = self._sock.getsockname()
        return name[0], name[1]

    def close(self) -> None:
        self._set_gate(False)
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def _set_gate(self, usable: bool) -> None:
        """The compiled loop must not pass a batch that waits, nor try GSO again."""
        if self.gate is not None:
            self.gate.open = usable and self._gso

    def _readable(self) -> None:
        now = self._port.clock()
        self._read(now)
        if now >= self._port.quick_until and self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._rest()

    def _rest(self) -> None:
        rest_s = REST_S if self._port.clock() < self._port.media_until else LONG_REST_S
        ticks = int(self._loop.time() / rest_s) + 1
        self._resting = self._loop.call_at(ticks * rest_s, self._rested)

    def _rested(self) -> None:
        """Read what came meanwhile; the loop watches the socket again when it was nothing, or when it must be quick."""
        self._resting = None
        now = self._port.clock()
        came = self._read(now)
        if self._sock.fileno() < 0:
            return
        if came and now >= self._port.quick_until:
            self._rest()
        else:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def wake(self) -> None:
        """Somebody is about to join: watch the socket at once."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _read(self, now: float) -> bool:
        """All that came, RECEIVE_BURST datagrams at most. False: there was nothing."""
        receive, counters = self._sock.recvfrom, self._port.counters
        media: list[bytes] = []  # from one address, without anything else in between
        sender: Address | None = None
        for count in range(RECEIVE_BURST):
            try:
                data, address = receive(RECEIVE_SIZE)
            except (BlockingIOError, InterruptedError):
                came = count > 0
                break
            except OSError:  # an ICMP error of an earlier send; it says nothing of this socket
                counters["receive_errors"] += 1
                continue
            if not data:
                continue
            if 127 < data[0] < 192:
                if address != sender:
                    self._pass_on(media, sender, now)
                    media, sender = [], address
                media.append(data)
                continue
            self._pass_on(media, sender, now)
            media, sender = [], None
            if data[0] < 4:
                self._port.receive_stun(data, self, address, now)
            else:
                self._pass_on([data], address, now)
        else:
            came = True
        self._pass_on(media, sender, now)
        return came

    def _pass_on(self, datagrams: list[bytes], address: Address | None, now: float) -> None:
        if address is None:
            return
        link = self.links.get(address)
        if link is None:
            self._port.counters["unknown_address"] += len(datagrams)
        else:
            link.receive(datagrams, self, address, now)

    def unused(self) -> None:
        """Shared by all: stays."""

    def send(self, data: bytes, address: Address) -> bool:
        if self._pending is not None and not self._flush():
            self._port.counters["send_dropped"] += 1
            return False
        try:
            self._sock.sendto(data, address)
        except OSError as error:
            return self._failed(error, data, len(data), address)
        return True

    def send_segments(self, buffers: Buffers, segment_size: int, count: int, address: Address) -> bool:
        if self._pending is not None and not self._flush():
            self._port.counters["send_dropped"] += count
            return False
        try:
            if count == 1:
                self._sendmsg(buffers, (), 0, address)
            elif self._gso:
                self._sendmsg(buffers, _ancillary[segment_size], 0, address)
            else:
                return self._send_plain(b"".join(buffers), segment_size, address)
        except OSError as error:
            return self._failed(error, b"".join(buffers), segment_size, address)
        return True

    def _send_plain(self, data: bytes, segment_size: int, address: Address) -> bool:
        """Without GSO: one sendto a segment. What EAGAIN leaves is kept as the pending batch."""
        for offset in range(0, len(data), segment_size):
            try:
                self._sock.sendto(data[offset : offset + segment_size], address)
            except OSError as error:
                return self._failed(error, data[offset:], segment_size, address)
        return True

    def _failed(self, error: OSError, data: bytes, segment_size: int, address: Address) -> bool:
        counters = self._port.counters
        if isinstance(error, BlockingIOError):
            counters["send_blocked"] += 1
            self._pending = (data, segment_size, address)
            self._set_gate(False)
            self._loop.add_writer(self._sock.fileno(), self._flush)
            return True
        if error.errno in (errno.EIO, errno.EINVAL) and self._gso and len(data) > segment_size:
            # The path refuses segmentation (a device without checksum offload, or a smaller MTU).
            self._gso = False
            self._set_gate(False)
            counters["gso_refused"] += 1
            logger.warning(
                "UDP GSO refused, plain sends from now on", extra={"local": self.local, "error": str(error)}
            )
            return self._send_plain(data, segment_size, address)
        counters["send_errors"] += 1
        return False

    def _flush(self) -> bool:
        """Send the pending batch; True when nothing is pending any more."""
        pending, self._pending = self._pending, None
        if pending is not None:
            data, segment_size, address = pending
            count = -(-len(data) // segment_size)
            self.send_segments([data], segment_size, count, address)
        if self._pending is not None:
            return False
        self._loop.remove_writer(self._sock.fileno())
        self._set_gate(True)
        return True


class TcpConnection(asyncio.Protocol):
    """One accepted ICE-TCP connection. Its first frame has to be a check that authenticates, and soon."""

    protocol = "tcp"
    gate: Gate | None = None

    def __init__(self, port: CarrierOwner) -> None:
        self.links: dict[Address, Receiver] = {}
        self.deadline: float | None = port.clock() + TCP_AUTHENTICATE_S
        self.wake: float | None = None
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._peer: Address = ("", 0)
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream server makes asyncio.Transport
        self._peer = transport.get_extra_info("peername")
        if not self._port.add_connection(self):
            self.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        now = self._port.clock()
        offset = 0
        while len(buffer) - offset >= 2:
            size = buffer[offset] << 8 | buffer[offset + 1]
            if size > TCP_MAX_FRAME:
                self._refuse("tcp_frame_too_long")
                return
            if len(buffer) - offset < 2 + size:
                break
            frame = bytes(buffer[offset + 2 : offset + 2 + size])
            offset += 2 + size
            if frame and not self._frame(frame, now):
                return
        del buffer[:offset]

    def _frame(self, frame: bytes, now: float) -> bool:
        if frame[0] < 4:
            self._port.receive_stun(frame, self, self._peer, now)
            if self.links:
                self.deadline = None
                return True
            self._refuse("tcp_unauthenticated")
            return False
        link = self.links.get(self._peer)
        if link is None:
            self._refuse("tcp_before_stun")
            return False
        link.receive((frame,), self, self._peer, now)
        return True

    def _refuse(self, counter: str) -> None:
        self._port.counters[counter] += 1
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._port.remove_connection(self)
        for address, link in tuple(self.links.items()):
            link.path_lost((self, address))
        self.links.clear()

    def next_deadline(self) -> float | None:
        return self.deadline

    def handle_timeout(self, now: float) -> None:
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self._refuse("tcp_unauthenticated")

    def close(self) -> None:
        self.deadline = None
        self._buffer.clear()
        if self._transport is not None:
            self._transport.close()

    def unused(self) -> None:
        self.close()

    def send(self, data: bytes, address: Address) -> bool:
        return self.send_segments([data], len(data), 1, address)

    def send_segments(self, buffers: Buffers, segment_size: int, count: int, address: Address) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > TCP_BUFFER:
            self._port.counters["tcp_dropped"] += count
            return False
        data = b"".join(buffers)
        frames = []
        for offset in range(0, len(data), segment_size):
            segment = data[offset : offset + segment_size]
            frames += [len(segment).to_bytes(2, "big"), segment]
        transport.write(b"".join(frames))
        return True


def expand_binds(binds: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Replace wildcards by the addresses of this machine.

    Loopback only when there is nothing else, link-local never.
    """
    expanded: list[tuple[str, int]] = []
    for host, number in binds:
        if host not in (ANY_IPV4, ANY_IPV6, ""):
            expanded.append((host, number))
            continue
        addresses = [
            ip.ip if ip.is_IPv4 else ip.ip[0]
            for adapter in ifaddr.get_adapters()
            for ip in adapter.ips
            if (ip.is_IPv4 and host != ANY_IPV6) or (ip.is_IPv6 and host != ANY_IPV4)
        ]
        usable = [str(a) for a in addresses if not str(a).startswith(("fe80:", "169.254."))]
        public = [a for a in usable if a != "::1" and not a.startswith("127.")]
        expanded += [(a, number) for a in public or usable]
    return list(dict.fromkeys(expanded))


def bound_socket(
    family: socket.AddressFamily, kind: socket.SocketKind, host: str, number: int
) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, number))
    except OSError as error:
        sock.close()
        name = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
        raise ConfigError([f"media: {name} {host} port {number} can't be bound: {error.strerror}"]) from error
    return sock
