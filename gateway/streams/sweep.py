"""Reading hundreds of sockets together, because waking a loop for each costs more than reading.

Cameras' sockets are taken out of the loop's selector and live in one of two epolls. `add`: nobody watches and nobody is in
a hurry; polled every INTERVAL_S, and SO_RCVLOWAT sees to it that a socket is ready only when it holds a good piece of data
(the kernel also says so when the window is about to close, and at the end of the connection). What must be done once in a
while for each of them rides along. `add_urgent`: somebody watches; a packet wakes the loop at once, but where packets come
sooner than REST_S after each other, they are read in rounds that far apart, so that many cameras share a waking (and warm
caches), and so do the packets of one picture that a camera writes one by one. A single camera's pictures, further apart
than that, cost one waking each and no timer.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ReceiveBuffer", "Sweep"]

INTERVAL_S = 0.05
REST_S = 0.008  # what a packet of a watched camera may wait for others; a fifth of a picture's time
TURNS = 50  # each member's on_turn comes once in so many sweeps


class ReceiveBuffer:
    """One receive buffer for all connections of one event loop."""

    __slots__ = ("data", "view")

    def __init__(self, size: int = 512 * 1024) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)


@dataclass(slots=True, kw_only=True)
class _Member:
    on_readable: Callable[[], None]
    on_turn: Callable[[], None]
    turn: int


class Sweep:
    """The sockets that are read together, and the buffer they are read into. Belongs to one event loop.

    A socket is in one of the two at a time: `remove` it first. on_readable and on_turn must not raise. A member must be removed before its socket is closed: the number of a closed
    socket may be another's at once.
    """

    def __init__(self, buffer: ReceiveBuffer | None = None) -> None:
        self.buffer = buffer or ReceiveBuffer()
        self._members: dict[int, _Member] = {}
        self._turns: list[dict[int, _Member]] = [{} for _ in range(TURNS)]
        self._turn = 0
        self._epoll: select.epoll | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._urgent: dict[int, Callable[[], None]] = {}
        self._urgent_epoll: select.epoll | None = None
        self._rest: asyncio.TimerHandle | None = None  # None: the loop wakes us at the first packet
        self._rested_at = 0.0  # the loop's time before which the next packets wait for each other

    def __len__(self) -> int:
        return len(self._members) + len(self._urgent)

    @property
    def urgent(self) -> int:
        """How many of the sockets are watched."""
        return len(self._urgent)

    def add(self, fd: int, *, on_readable: Callable[[], None], on_turn: Callable[[], None]) -> None:
        """From now on: on_readable() when there is something to read, on_turn() every INTERVAL_S * TURNS."""
        if self._epoll is None:
            self._epoll = select.epoll()
        turn = min(range(TURNS), key=lambda index: len(self._turns[index]))
        member = _Member(on_readable=on_readable, on_turn=on_turn, turn=turn)
        self._epoll.register(fd, select.EPOLLIN)
        self._members[fd] = self._turns[turn][fd] = member
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._sweep)

    def add_urgent(self, fd: int, *, on_readable: Callable[[], None]) -> None:
        """From now on: on_readable() within REST_S of there being something to read."""
        if self._urgent_epoll is None:
            self._urgent_epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._urgent_epoll.fileno(), self._round)
        self._urgent_epoll.register(fd, select.EPOLLIN)
        self._urgent[fd] = on_readable

    def _round(self) -> None:
        """Read all urgent sockets that have something. Called by the loop, or by a timer until a round finds nothing."""
        epoll, urgent = self._urgent_epoll, self._urgent
        if epoll is None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._rest is None and now < self._rested_at:
            loop.remove_reader(epoll.fileno())
            self._rest = loop.call_at(self._rested_at, self._round)
            return
        ready = epoll.poll(0, len(urgent))
        if not ready:
            if self._rest is not None:
                self._rest = None
                loop.add_reader(epoll.fileno(), self._round)
            return
        self._rested_at = now + REST_S
        if self._rest is not None:
            self._rest = loop.call_at(self._rested_at, self._round)
        for fd, _events in ready:
            if (on_readable := urgent.get(fd)) is not None:  # an earlier one may have removed it
                on_readable()

    def _remove_urgent(self, fd: int) -> None:
        epoll = self._urgent_epoll
        if self._urgent.pop(fd, None) is None or epoll is None:
            return
        epoll.unregister(fd)
        if not self._urgent:
            if self._rest is None:
                asyncio.get_running_loop().remove_reader(epoll.fileno())
            else:
                self._rest.cancel()
                self._rest = None
            epoll.close()
            self._urgent_epoll = None

    def remove(self, fd: int) -> None:
        """Leave the socket alone. The last one out ends the sweeping."""
        self._remove_urgent(fd)
        member = self._members.pop(fd, None)
        if member is None or self._epoll is None:
            return
        del self._turns[member.turn][fd]
        self._epoll.unregister(fd)
        if not self._members:
            self._epoll.close()
            self._epoll = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _sweep(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._sweep)
        epoll, members = self._epoll, self._members
        if epoll is None:
            return
        for fd, _events in epoll.poll(0, len(members)):
            if (member := members.get(fd)) is not None:  # an earlier one may have removed it
                member.on_readable()
        self._turn = (self._turn + 1) % TURNS
        for member in list(self._turns[self._turn].values()):
            member.on_turn()
