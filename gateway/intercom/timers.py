"""The deadlines of all open calls, as a heap: the next one is known without looking at every call. Pure.

A storm of alarms opens hundreds of calls a second, and each step of each of them asks when to wake next.
"""

from __future__ import annotations

import heapq

from gateway.intercom.model import Call, CallSettings
from gateway.intercom.plan import next_deadline

__all__ = ["Timers"]


class Timers:
    """Of a call only the deadline of the version that was set last counts."""

    def __init__(self, settings: CallSettings) -> None:
        self._settings = settings
        self._heap: list[tuple[int, str, int]] = []
        self._version: dict[str, int] = {}

    def set(self, call: Call, *, not_before: int = 0) -> None:
        """After each change of the call, and again when what was due could not be done, then not before a while."""
        at = None if call.ended else next_deadline(call, self._settings)
        if at is None:
            self._version.pop(call.id, None)
        else:
            self._version[call.id] = call.version
            heapq.heappush(self._heap, (max(at, not_before), call.id, call.version))

    def due(self, now_ms: int, at_most: int) -> list[str]:
        """Calls whose deadline has come, earliest first, no more than `at_most`. Each is named once, until it is set again."""
        found: list[str] = []
        while self._heap and self._heap[0][0] <= now_ms and len(found) < at_most:
            _, call_id, version = heapq.heappop(self._heap)
            if self._version.get(call_id) == version:
                del self._version[call_id]
                found.append(call_id)
        return found

    def next_deadline(self) -> int | None:
        """UTC ms."""
        while self._heap and self._version.get(self._heap[0][1]) != self._heap[0][2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
