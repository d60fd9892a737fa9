"""One end of the socket pair between front door and worker: frames in and out over asyncio."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from gateway.errors import ProtocolError
from gateway.streams.messages import FrameReader, FromWorker, ToWorker, encode_frame

__all__ = ["Channel"]

log = logging.getLogger(__name__)

_Incoming = TypeVar("_Incoming")


class Channel(asyncio.Protocol, Generic[_Incoming]):
    """on_message for each message, in order; on_closed once, when the other end is gone or talks nonsense."""

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[_Incoming],
        on_message: Callable[[_Incoming], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._reader = FrameReader(decoder)
        self._on_message = on_message
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None

    async def open(self, sock: socket.socket) -> None:
        """Take over one end of the pair."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def send(self, message: ToWorker | FromWorker) -> None:
        """Queue a message; without a peer it is dropped. Raises ProtocolError when it is too large."""
        if self._transport is not None:
            self._transport.write(encode_frame(message))

    @property
    def waiting(self) -> int:
        """Octets that the peer has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def close(self) -> None:
        """What was sent before still goes out."""
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream socket makes asyncio.Transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._on_message(message)
        except ProtocolError:
            log.exception("the other end of the worker channel can't be understood")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_closed()
