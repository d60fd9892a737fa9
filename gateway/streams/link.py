"""MediaPort owns the sockets and timers of one process, Link is one peer: ICE, DTLS and SRTP (asyncio shell).

Datagrams are told apart by their first byte (RFC 7983) and belong to a link by (carrier, remote address) once
a check from there was authenticated. One UDP socket for each local address, never a wildcard, because a reply
must leave from the address that was asked. ICE-TCP (RFC 6544, passive) listens on the same port number.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import itertools
import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.errors import ConfigError, ProtocolError, TooMany
from gateway.streams import compiled, stun
from gateway.streams.carrier import (
    Address,
    Carrier,
    Path,
    TcpConnection,
    UdpSocket,
    bound_socket,
    expand_binds,
)
from gateway.streams.dtls import Certificate, DtlsServer, DtlsState
from gateway.streams.ice import CONSENT_S, IceCredentials, IceSession
from gateway.streams.sdp import Candidate
from gateway.streams.srtp import Buffers, SrtpReceiver, SrtpSender

__all__ = ["Certificate", "Link", "LinkHandlers", "MediaPort", "RemoteTransport", "new_credentials"]

logger = logging.getLogger(__name__)

MAX_LINKS = 4096
MAX_TCP_CONNECTIONS = 1024
SENDER_REPORT, RECEIVER_REPORT = 200, 201  # RFC 3550 section 12.1
QUICK_S = 1.0
MEDIA_S = 1.5  # the plane looks at each viewer once a second


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTransport:
    """What the peer's offer says of its transport."""

    ufrag: str
    pwd: str = field(repr=False)
    fingerprint_algorithm: str
    fingerprint: str


class LinkHandlers(Protocol):
    """Called from the event loop; must not block. An exception ends that link alone.

    on_closed comes exactly once for every link, whichever side ended it, and is the last call.
    """

    def on_connected(self) -> None: ...

    def on_rtp(self, packets: Sequence[bytes], now: float) -> None:
        """Those that came together."""

    def on_rtcp(self, compound: bytes, now: float) -> None: ...

    def on_closed(self, reason: str) -> None: ...


class _Nobody:
    """The handlers of a closed link."""

    def on_connected(self) -> None: ...

    def on_rtp(self, packets: Sequence[bytes], now: float) -> None: ...

    def on_rtcp(self, compound: bytes, now: float) -> None: ...

    def on_closed(self, reason: str) -> None: ...


_NOBODY = _Nobody()


class Link:
    """One peer: an ICE session, a DTLS association and, once connected, SRTP both ways. Made by
    MediaPort.create_link().

    local: ICE credentials to announce. srtp: None until connected. moves: how often the peer's address
    changed.
    """

    __slots__ = (
        "_address",
        "_carrier",
        "_dtls",
        "_handlers",
        "_ice",
        "_port",
        "_receiver",
        "closed_reason",
        "connected",
        "srtp",
        "wake",
    )

    def __init__(
        self, port: MediaPort, ice: IceSession[Path], dtls: DtlsServer, handlers: LinkHandlers
    ) -> None:
        self._port = port
        self._ice = ice
        self._dtls = dtls
        self._handlers = handlers
        self._carrier: Carrier | None = None
        self._address: Address = ("", 0)
        self._receiver: SrtpReceiver | None = None
        self.srtp: SrtpSender | None = None
        self.connected = False
        self.closed_reason: str | None = None
        self.wake: float | None = None

    # --- for the owner ---

    @property
    def local(self) -> IceCredentials:
        return self._ice.local

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """(host, port) that media goes to now."""
        return None if self._carrier is None else (self._address[0], self._address[1])

    @property
    def protocol(self) -> str | None:
        """`udp` or `tcp` once there is a path."""
        return None if self._carrier is None else self._carrier.protocol

    @property
    def moves(self) -> int:
        return self._ice.moves

    def send_segments(self, buffers: Buffers, segment_size: int, count: int) -> bool:
        """Send `count` datagrams laid end to end in `buffers`: each of segment_size octets, the last one
        perhaps shorter.

        At most 50 datagrams and 64 KiB. False: dropped. The buffers may be reused as soon as this returns.
        """
        carrier = self._carrier
        return carrier is not None and carrier.send_segments(buffers, segment_size, count, self._address)

    def send_rtcp(self, compound: bytes) -> bool:
        """Protect and send one compound RTCP packet. False: dropped, or not connected."""
        if self.srtp is None or self._carrier is None:
            return False
        return self._carrier.send(self.srtp.protect_rtcp(compound), self._address)

    def restart_ice(self, remote: RemoteTransport) -> IceCredentials:
        """Begin an ICE restart.

        Returns the new local credentials. Media goes on over the old pair meanwhile.
        """
        local = new_credentials()
        retired = self._ice.restart(local=local, remote_ufrag=remote.ufrag)
        self._port.replace_ufrag(retired, local.ufrag, self)
        return local

    def close(self, reason: str = "closed by the gateway") -> None:
        """End the session: close_notify to the peer, then on_closed(reason). Idempotent."""
        if self.closed_reason is not None:
            return
        self.closed_reason = reason
        self._send_all(self._dtls.close())
        self._port.remove_link(self)
        self._carrier = None
        self._aim()
        self.srtp = None
        self._receiver = None
        self._dtls.release()
        handlers, self._handlers = self._handlers, _NOBODY  # no cycle: what is closed is gone at once
        try:
            handlers.on_closed(reason)
        except Exception:
            logger.exception("on_closed failed", extra={"reason": reason})

    # --- for the port ---

    def receive(self, datagrams: Sequence[bytes], carrier: Carrier, address: Address, now: float) -> None:
        """Datagrams other than STUN from an authenticated address: one, or media that came one after the other."""
        first = datagrams[0][0]
        if 127 < first < 192:
            try:
                self._receive_media(datagrams, carrier, address, now)
            except Exception:
                logger.exception("a packet's handler failed", extra={"peer": address})
                self.close("internal error")
        elif 19 < first < 64:
            if self._ice.receive_data((carrier, address)):
                self.follow_ice()
            for data in datagrams:
                self._receive_dtls(data, now)
        else:
            self._port.counters["unknown_protocol"] += 1

    def _receive_media(
        self, datagrams: Sequence[bytes], carrier: Carrier, address: Address, now: float
    ) -> None:
        receiver, counters = self._receiver, self._port.counters
        if receiver is None:
            counters["media_before_dtls"] += len(datagrams)
            return
        packets: list[bytes] = []
        for data in datagrams:
            try:
                # RFC 5761 section 4: RTCP packet types 192-223 are payload types 64-95 with the marker.
                if len(data) < 2 or not 64 <= data[1] & 0x7F < 96:
                    packets.append(receiver.unprotect(data))
                    continue
                compound = receiver.unprotect_rtcp(data)
                if data[1] not in (SENDER_REPORT, RECEIVER_REPORT):
                    self._port.be_quick(now)
                if self._ice.receive_data((carrier, address)):
                    self.follow_ice()
                self._handlers.on_rtcp(compound, now)
            except ProtocolError as error:
                counters[error.reason] += 1
        if packets and self.closed_reason is None:
            self._port.be_quick(now)
            self._handlers.on_rtp(packets, now)

    def receive_request(
        self, request: stun.BindingRequest, carrier: Carrier, address: Address, now: float
    ) -> None:
        """A binding request under one of our ufrags."""
        path: Path = (carrier, address)
        result = self._ice.receive_request(request, path, (address[0], address[1]), now)
        if result.response is None:
            self._port.counters["stun_unauthenticated"] += 1
            return
        carrier.send(result.response, address)
        if not result.accepted:
            self._port.counters["stun_refused"] += 1
            return
        before = carrier.links.get(address)
        if before is not self:
            if before is not None:  # its peer left, another took the same address: the newer proof counts
                before.path_lost(path)
            carrier.links[address] = self
        for lost in result.dropped:
            lost[0].links.pop(lost[1], None)
        if result.retired_ufrag is not None:
            self._port.replace_ufrag(result.retired_ufrag, None, self)
        if result.moved:
            self.follow_ice()

    def path_lost(self, path: Path) -> None:
        self._ice.forget(path)
        self.follow_ice()

    def follow_ice(self) -> None:
        """Send to the path that ICE selected."""
        selected = self._ice.selected
        if selected is None:
            self._carrier = None
        else:
            self._carrier, self._address = selected
        self._aim()

    def _aim(self) -> None:
        """Tell the compiled loop where packets go now."""
        if isinstance(self.srtp, compiled.CompiledSender):
            self.srtp.aim(None if self._carrier is None else self._carrier.gate, self._address)

    def next_deadline(self) -> float | None:
        if self.closed_reason is not None:
            return None
        deadlines = [at for at in (self._ice.next_deadline(), self._dtls.next_deadline()) if at is not None]
        return min(deadlines, default=None)

    def handle_timeout(self, now: float) -> None:
        if self.closed_reason is not None:
            return
        self._ice.handle_timeout(now)
        if self._ice.failure is not None:
            self.close(self._ice.failure)
            return
        self._send_all(self._dtls.handle_timeout(now))
        self._check_dtls()

    def paths(self) -> tuple[Path, ...]:
        return self._ice.paths

    def ufrags(self) -> tuple[str, ...]:
        return self._ice.ufrags

    def _receive_dtls(self, data: bytes, now: float) -> None:
        self._port.be_quick(now)
        self._send_all(self._dtls.receive(data, now))
        self._check_dtls()
        if not self.connected:
            self._port.schedule(self)

    def _check_dtls(self) -> None:
        dtls = self._dtls
        if dtls.state is DtlsState.HANDSHAKE:
            return
        if dtls.state is not DtlsState.CONNECTED:
            self.close(dtls.failure or "DTLS closed")
        elif not self.connected and dtls.keys is not None:
            self.connected = True
            keys = dtls.keys.local
            self.srtp = compiled.CompiledSender(keys) if self._port.compiled else SrtpSender.create(keys)
            self._aim()
            self._receiver = SrtpReceiver(dtls.keys.remote)
            try:
                self._handlers.on_connected()
            except Exception:
                logger.exception("on_connected failed", extra={"peer": self.remote_address})
                self.close("internal error")

    def _send_all(self, datagrams: list[bytes]) -> None:
        if self._carrier is not None:
            for datagram in datagrams:
                self._carrier.send(datagram, self._address)


class _Timed(Protocol):
    wake: float | None

    def next_deadline(self) -> float | None: ...

    def handle_timeout(self, now: float) -> None: ...


@dataclass(slots=True)
class _Entry:
    """One deadline in the heap. timed: None once it is superseded or gone."""

    at: float
    number: int
    timed: _Timed | None

    def __lt__(self, other: _Entry) -> bool:
        return (self.at, self.number) < (other.at, other.number)


class MediaPort:
    """The sockets of one process and every link on them. All deadlines share one timer.

    counters: faults and drops by name, monotone. clock: monotonic seconds. compiled: whether the compiled loop
    is used.
    """

    def __init__(
        self,
        *,
        certificate: Certificate,
        announce: Sequence[tuple[str, int]],
        clock: Callable[[], float],
        compiled: bool,
        consent_s: float,
    ) -> None:
        self.compiled = compiled
        self.certificate = certificate
        self.counters: Counter[str] = Counter()
        self.clock = clock
        self.quick_until = self.media_until = 0.0
        self._consent_s = consent_s
        self._announce = tuple(announce)
        self._sockets: list[UdpSocket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[TcpConnection] = set()
        self._by_ufrag: dict[str, Link] = {}
        self._links: set[Link] = set()
        self._heap: list[_Entry] = []
        self._entries: dict[_Timed, _Entry] = {}
        self._sequence = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls,
        binds: Sequence[tuple[str, int]],
        *,
        certificate: Certificate,
        announce: Sequence[tuple[str, int]] = (),
        tcp: bool = True,
        use_compiled: bool = True,
        consent_s: float = CONSENT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> MediaPort:
        """Bind every address of `binds` (host, port; port 0 takes a free one; a wildcard means each address
        of this machine).

        announce: further addresses under which the port is reachable (1:1 NAT); port 0 there means the local
        one; consent_s: silence that ends a session (RFC 7675); use_compiled: the compiled loop if it was built.
        Raises ConfigError naming the address that can't be bound.
        """
        port = cls(
            certificate=certificate,
            announce=announce,
            clock=clock,
            consent_s=consent_s,
            compiled=use_compiled and compiled.available(),
        )
        try:
            for host, number in expand_binds(binds):
                await port._bind(host, number, tcp)
        except BaseException:
            await port.close()
            raise
        return port

    async def _bind(self, host: str, number: int, tcp: bool) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for attempt in range(8):
            udp = bound_socket(family, socket.SOCK_DGRAM, host, number)
            if not tcp:
                self._sockets.append(UdpSocket(self, udp))
                return
            try:
                listener = bound_socket(family, socket.SOCK_STREAM, host, udp.getsockname()[1])
            except ConfigError:
                udp.close()
                if number or attempt == 7:
                    raise
                continue  # the free UDP port is taken for TCP: another one
            self._sockets.append(UdpSocket(self, udp))
            self._servers.append(
                await self._loop.create_server(lambda: TcpConnection(self), sock=listener, backlog=128)
            )
            return

    async def close(self) -> None:
        """End every link, then the sockets."""
        for link in tuple(self._links):
            link.close("the gateway is shutting down")
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            connection.close()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._heap.clear()
        self._entries.clear()

    def create_link(self, remote: RemoteTransport, handlers: LinkHandlers, now: float) -> Link:
        """A new session waiting for the peer's checks.

        Raises ProtocolError for a fingerprint that can't be checked, TooMany at MAX_LINKS.
        """
        if len(self._links) >= MAX_LINKS:
            raise TooMany("too many media sessions on this port")
        dtls = DtlsServer(
            self.certificate,
            fingerprint_algorithm=remote.fingerprint_algorithm,
            fingerprint=remote.fingerprint,
        )
        ice: IceSession[Path] = IceSession(
            local=new_credentials(), remote_ufrag=remote.ufrag, now=now, consent_s=self._consent_s
        )
        link = Link(self, ice, dtls, handlers)
        self.be_quick(now)
        for sock in self._sockets:
            sock.wake()
        self._links.add(link)
        self._by_ufrag[link.local.ufrag] = link
        self.schedule(link)
        return link

    def candidates(self) -> tuple[Candidate, ...]:
        """Every local candidate, in order of preference; all of them go into each answer."""
        addresses = [sock.local for sock in self._sockets]
        local_port = addresses[0][1] if addresses else 0
        addresses += [(host, port or local_port) for host, port in self._announce]
        addresses = list(dict.fromkeys(addresses))
        protocols = ("udp", "tcp") if self._servers else ("udp",)
        return tuple(
            Candidate(host=host, port=port, protocol=protocol)
            for protocol in protocols
            for host, port in addresses
        )

    @property
    def links(self) -> int:
        return len(self._links)

    # --- for links and carriers ---

    def receive_stun(self, data: bytes, carrier: Carrier, address: Address, now: float) -> None:
        try:
            request = stun.parse_request(data)
            ufrag = request.ufrags[0].decode("ascii")
        except (ProtocolError, UnicodeDecodeError) as error:
            self.counters[error.reason if isinstance(error, ProtocolError) else "stun_username"] += 1
            return
        link = self._by_ufrag.get(ufrag)
        if link is None:
            self.counters["stun_unknown_ufrag"] += 1
        else:
            if not link.connected:
                self.be_quick(now)
            link.receive_request(request, carrier, address, now)

    def be_quick(self, now: float) -> None:
        """What comes next must not wait for its turn: a handshake, media, or a viewer that misses packets."""
        self.quick_until = now + QUICK_S

    def note_media(self, now: float) -> None:
        """Somebody was sent media lately: who misses some should not wait long."""
        self.media_until = now + MEDIA_S

    def replace_ufrag(self, old: str | None, new: str | None, link: Link) -> None:
        if old is not None:
            self._by_ufrag.pop(old, None)
        if new is not None:
            self._by_ufrag[new] = link

    def remove_link(self, link: Link) -> None:
        self._links.discard(link)
        self._unschedule(link)
        for ufrag in link.ufrags():
            self._by_ufrag.pop(ufrag, None)
        for carrier, address in link.paths():
            if carrier.links.get(address) is link:
                del carrier.links[address]
            if not carrier.links:
                carrier.unused()

    def add_connection(self, connection: TcpConnection) -> bool:
        if len(self._connections) >= MAX_TCP_CONNECTIONS:
            self.counters["tcp_too_many"] += 1
            return False
        self._connections.add(connection)
        self.schedule(connection)
        return True

    def remove_connection(self, connection: TcpConnection) -> None:
        self._connections.discard(connection)
        self._unschedule(connection)

    def schedule(self, timed: _Timed) -> None:
        """Make sure that the timer wakes by the deadline. A later one is found when the earlier fires."""
        deadline = timed.next_deadline()
        if deadline is None or (timed.wake is not None and timed.wake <= deadline):
            return
        self._unschedule(timed)
        timed.wake = deadline
        entry = self._entries[timed] = _Entry(deadline, next(self._sequence), timed)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._arm()

    def _unschedule(self, timed: _Timed) -> None:
        """Its entry stays in the heap until its time comes, but keeps nothing alive: a closed link is some 14 KB."""
        entry = self._entries.pop(timed, None)
        if entry is not None:
            entry.timed = None
            timed.wake = None

    def handle_timeout(self, now: float) -> None:
        """Serve every deadline up to `now`."""
        heap = self._heap
        while heap and heap[0].at <= now:
            timed = heapq.heappop(heap).timed
            if timed is None:
                continue  # superseded by an earlier entry, or gone
            self._unschedule(timed)
            timed.handle_timeout(now)
            self.schedule(timed)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            delay = max(0.0, self._heap[0].at - self.clock())
            self._timer = self._loop.call_later(delay, lambda: self.handle_timeout(self.clock()))


def new_credentials() -> IceCredentials:
    """Random ICE credentials: 48 and 144 bits (RFC 8445 section 5.3 asks for 24 and 128)."""
    text = base64.b64encode(secrets.token_bytes(24)).decode()  # its alphabet is that of ice-char
    return IceCredentials(ufrag=text[:8], pwd=text[8:])
