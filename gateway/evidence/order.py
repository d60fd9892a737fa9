"""What is said between whoever keeps evidence and whoever has the media: an order to record, and news of it.

Plain values: they travel between processes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.evidence.recording import Begun, Segment

__all__ = ["DISK_FULL", "LOST", "NO_MEDIA", "WRITING", "Finished", "News", "RecordingOrder", "RecordingSpec"]

DISK_FULL = "disk_full"
NO_MEDIA = "no_media"
LOST = "worker_lost"
WRITING = (DISK_FULL, "disk: ", "failed: ")
"""How the reasons begin that mean: it could not be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingSpec:
    """What a media process is told at its start. directory: of all evidence. stop_octets: free disk below which nothing
    more is written. preroll_s: how many seconds of each always pulled camera's sub stream are kept in memory; 0: none.
    preroll_octets: bound of one camera's."""

    directory: str
    stop_octets: int
    preroll_s: float = 0.0
    preroll_octets: int = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingOrder:
    """Record this source. file: relative path without extension. until_ms: when it ends by itself (UTC); None: by `stop`.

    pressed_at: what is wanted of the time before it comes from the pre-roll (0: nothing). first_number: of the first file,
    more than 1 if an earlier process wrote some.
    """

    id: str
    source_id: str
    file: str
    until_ms: int | None = None
    pressed_at: int = 0
    first_number: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last word on a recording. reason: empty, or why it ended before its time (see the constants)."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One thing that happened to a recording; exactly one of the three is there."""

    recording_id: str
    begun: Begun | None = None
    segment: Segment | None = None
    finished: Finished | None = None
