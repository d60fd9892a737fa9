"""Finds phones that name the wrong datum, by what their fixes would mean under the other one. Pure.

In Pidu GCJ-02 lies about 355 m from WGS-84, and a gridworker spends most of a shift in the own grid. A phone whose
fixes lie outside that grid again and again, but inside it once they are shifted by exactly the offset between the datums,
almost surely names the wrong one; somebody who merely works elsewhere is not inside either way. Nothing is corrected by
itself: the worker is flagged, and people look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.geo import Datum, Position, from_datum, to_gcj02

__all__ = ["Confusion", "DatumWatch"]

SAMPLES = 30
EVERY_MS = 10_000
"""One sample a worker in that time: 30 of them are five minutes of a shift."""
MOST_INSIDE = 0.2
LEAST_SHIFTED = 0.8


class Confusion(StrEnum):
    """What the phone's fixes seem to be."""

    GCJ02_CALLED_WGS84 = "gcj02_called_wgs84"
    WGS84_CALLED_GCJ02 = "wgs84_called_gcj02"


@dataclass(slots=True)
class _Seen:
    at_ms: int = -EVERY_MS
    samples: deque[tuple[bool, bool, bool]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    found: Confusion | None = None


class DatumWatch:
    """`inside(grid, position)`: whether the position lies in the grid."""

    def __init__(self, inside: Callable[[str, Position], bool]) -> None:
        self._inside = inside
        self._seen: dict[str, _Seen] = {}

    def see(self, worker_id: str, grid: str, position: Position, now_ms: int) -> Confusion | None:
        """Takes a fix as it was understood. What is suspected of this phone now, None if nothing."""
        seen = self._seen.setdefault(worker_id, _Seen())
        if now_ms - seen.at_ms < EVERY_MS:
            return seen.found
        seen.at_ms = now_ms
        seen.samples.append(
            (
                self._inside(grid, position),
                self._inside(grid, from_datum(position.lat, position.lon, Datum.GCJ02)),
                self._inside(grid, Position(*to_gcj02(position))),
            )
        )
        if len(seen.samples) == SAMPLES:
            as_is, if_gcj02, if_wgs84 = (sum(column) / SAMPLES for column in zip(*seen.samples, strict=True))
            seen.found = None
            if as_is <= MOST_INSIDE and max(if_gcj02, if_wgs84) >= LEAST_SHIFTED:
                seen.found = (
                    Confusion.GCJ02_CALLED_WGS84 if if_gcj02 >= if_wgs84 else Confusion.WGS84_CALLED_GCJ02
                )
        return seen.found

    def forget(self, worker_id: str) -> None:
        """The worker goes off duty: the next shift is judged anew."""
        self._seen.pop(worker_id, None)
