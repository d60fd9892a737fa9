"""How many cameras may be dialled at one time, and who goes first: a district that comes back from a power cut must not be met
by a storm of our own, and dead cameras must not stand in the way of the living.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from dataclasses import dataclass

__all__ = ["DialGate", "DialLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DialLimits:
    """Seconds, and numbers of connections. A host is host:port of the URL (one recorder).

    dials, dials_per_host: from dialling to PLAY. connections_per_host: pulls at once, None for no limit.
    backoff_*: ceiling of the pause after the first failure and after many. long_pause_s: after what only a person can mend.
    suspect_connect_timeout_s: for a host that was silent at the last dial.
    patience_s: a first dial that heard nothing for so long ends if others wait to dial another host.
    """

    dials: int = 128
    dials_per_host: int = 32
    connections_per_host: int | None = None
    backoff_first_s: float = 0.5
    backoff_most_s: float = 5.0
    long_pause_s: float = 60.0
    connect_timeout_s: float = 5.0
    suspect_connect_timeout_s: float = 1.0
    patience_s: float = 1.0
    data_timeout_s: float = 10.0
    grace_s: float = 10.0
    first_keyframe_timeout_s: float = 12.0


class DialGate:
    """A priority semaphore with a limit in total and per host. Unsuspected first, then first come."""

    def __init__(self, total: int, per_host: int) -> None:
        self._total = total
        self._per_host = per_host
        self._order = 0
        self._waiting: list[tuple[bool, int, str, asyncio.Future[None]]] = []
        self._hosts: Counter[str] = Counter()
        self.dialling = 0
        self.peak = 0

    def wanted_by_others(self, host: str) -> bool:
        """Somebody waits who would dial another host."""
        return any(other != host and not future.done() for *_, other, future in self._waiting)

    async def enter(self, host: str, *, suspect: bool) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._waiting, (suspect, self._order, host, future))
        self._let_in()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave(host)
            raise

    def leave(self, host: str) -> None:
        self.dialling -= 1
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        self._let_in()

    def _let_in(self) -> None:
        full = []
        while self._waiting and self.dialling < self._total:
            entry = heapq.heappop(self._waiting)
            _suspect, _order, host, future = entry
            if future.done():
                continue
            if self._hosts[host] >= self._per_host:
                full.append(entry)
                continue
            self.dialling += 1
            self.peak = max(self.peak, self.dialling)
            self._hosts[host] += 1
            future.set_result(None)
        for entry in full:
            heapq.heappush(self._waiting, entry)
