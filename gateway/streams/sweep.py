"""Reading hundreds of sockets that nobody is in a hurry about.

A selector loop that is woken for each of 768 cameras spends more on waking than on reading. The sockets of unwatched cameras
are therefore taken out of the loop's selector and polled together every INTERVAL_S; SO_RCVLOWAT sees to it that one is
ready only when it holds a good piece of data (the kernel also says so when the window is about to close, and at the end of
the connection). What must be done once in a while for each of them rides along.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ReceiveBuffer", "Sweep"]

INTERVAL_S = 0.05
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

    on_readable and on_turn must not raise. A member must be removed before its socket is closed: the number of a closed
    socket may be another's at once.
    """

    def __init__(self, buffer: ReceiveBuffer | None = None) -> None:
        self.buffer = buffer or ReceiveBuffer()
        self._members: dict[int, _Member] = {}
        self._turns: list[dict[int, _Member]] = [{} for _ in range(TURNS)]
        self._turn = 0
        self._epoll: select.epoll | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._members)

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

    def remove(self, fd: int) -> None:
        """Leave the socket alone. The last one out ends the sweeping."""
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
