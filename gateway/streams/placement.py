"""Which worker a source lives in, how limits are divided, and when a silent worker counts as dead. Pure."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gateway.streams.cameras import DialLimits

__all__ = ["Backoff", "Heartbeat", "place_cameras", "share_of", "worker_of_call"]


def place_cameras(camera_ids: Iterable[str], before: Mapping[str, int], workers: int) -> dict[str, int]:
    """Camera id -> worker. A camera that has a place keeps it, so that a reload cuts nobody; a new one goes where the
    fewest are."""
    ids = list(camera_ids)
    placed = {camera_id: before[camera_id] for camera_id in ids if camera_id in before}
    load = [0] * workers
    for worker in placed.values():
        load[worker] += 1
    for camera_id in ids:
        if camera_id not in placed:
            worker = load.index(min(load))
            placed[camera_id] = worker
            load[worker] += 1
    return placed


def worker_of_call(source_id: str, workers: int) -> int:
    """The worker of a call's leg: by its name alone, so that a watcher who comes before the publisher finds the same."""
    return zlib.crc32(source_id.encode()) % workers


def share_of(limits: DialLimits, workers: int) -> DialLimits:
    """One worker's part of the limits that hold for the whole gateway, at least one of each."""
    most = limits.connections_per_host
    return replace(
        limits,
        dials=max(1, limits.dials // workers),
        dials_per_host=max(1, limits.dials_per_host // workers),
        connections_per_host=None if most is None else max(1, most // workers),
    )


@dataclass(slots=True, kw_only=True)
class Heartbeat:
    """Whether a worker was silent for longer than `timeout_s`.

    Time in which we ourselves were late to look (a stopped process, a suspended machine) proves nothing about the worker
    and is not counted: ask `expired` at least every `look_s`. Times are monotonic seconds.
    """

    timeout_s: float
    look_s: float
    _silent_s: float = 0.0
    _looked_at: float | None = None

    def heard(self) -> None:
        self._silent_s = 0.0

    def expired(self, now: float) -> bool:
        since = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        self._silent_s += min(since, 2 * self.look_s)
        return self._silent_s > self.timeout_s


@dataclass(slots=True, kw_only=True)
class Backoff:
    """The pause before a worker is started again: none after a long life, then up to a ceiling that doubles."""

    first_s: float = 0.5
    most_s: float = 10.0
    stable_s: float = 30.0
    _failures: int = 0

    def pause_s(self, lived_s: float, generator: random.Random) -> float:
        """lived_s: from ready to lost; 0 if it never got ready."""
        if lived_s >= self.stable_s:
            self._failures = 0
        ceiling = 0.0 if not self._failures else min(self.most_s, self.first_s * 2.0 ** (self._failures - 1))
        self._failures = min(self._failures + 1, 16)
        return generator.uniform(ceiling / 2, ceiling)
