"""The RTP and RTCP sockets of one track of a camera that sends by UDP: the asyncio shell around reception.ReorderWindow."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import cast

from gateway.streams.reception import Reception, ReorderWindow

__all__ = ["UdpTrack"]


class UdpTrack:
    """The RTP and RTCP sockets of one track."""

    def __init__(
        self, rtp: asyncio.DatagramTransport, rtcp: asyncio.DatagramTransport, ports: tuple[int, int]
    ) -> None:
        self.ports = ports
        self._rtp = rtp
        self._rtcp = rtcp
        self._rtcp_peer: tuple[str, int] | None = None

    @classmethod
    async def open(cls, loop: asyncio.AbstractEventLoop, address: str) -> UdpTrack:
        """An even port and the next one (RFC 3550 section 11). Raises OSError when no such pair is free."""
        for _ in range(50):
            rtp, _protocol = await loop.create_datagram_endpoint(_Datagrams, local_addr=(address, 0))
            port = rtp.get_extra_info("sockname")[1]
            if port % 2 == 0:
                try:
                    rtcp, _protocol = await loop.create_datagram_endpoint(
                        _Datagrams,
                        local_addr=(address, port + 1),
                    )
                except OSError:
                    pass
                else:
                    return cls(rtp, rtcp, (port, port + 1))
            rtp.close()
        raise OSError(errno.EADDRINUSE, "no free UDP port pair")

    def start(
        self,
        host: str,
        server_ports: tuple[int, int] | None,
        reception: Reception,
        deliver: Callable[[bytes, float], None],
    ) -> None:
        window = ReorderWindow()

        def on_rtp(packet: bytes, now: float) -> None:
            reception.arrived(packet, now)
            for ready in window.push(packet, now):
                deliver(ready, now)

        def on_rtcp(compound: bytes, now: float) -> None:
            reception.on_rtcp(compound, now)

        for transport, handler in ((self._rtp, on_rtp), (self._rtcp, on_rtcp)):
            protocol = cast(_Datagrams, transport.get_protocol())
            protocol.host, protocol.handler = host, handler
        sock = self._rtp.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)
        if server_ports is not None:
            self._rtcp_peer = (host, server_ports[1])
            # Opens the way through a NAT or firewall on our side; cameras ignore it.
            self._rtp.sendto(b"\x80\0\0\0\0\0\0\0\0\0\0\0", (host, server_ports[0]))

    def send_rtcp(self, compound: bytes) -> None:
        if self._rtcp_peer is not None:
            self._rtcp.sendto(compound, self._rtcp_peer)

    def close(self) -> None:
        self._rtp.close()
        self._rtcp.close()


class _Datagrams(asyncio.DatagramProtocol):
    host = ""
    handler: Callable[[bytes, float], None] | None = None

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.handler is not None and addr[0] == self.host:
            self.handler(data, time.monotonic())
