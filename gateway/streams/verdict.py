"""What is said of a camera's picture: values without the libraries that look at it (see picture_health)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["HealthCounters", "PictureState", "Verdict"]


class Verdict(StrEnum):
    OK = "ok"
    FROZEN = "frozen"
    BLACK = "black"
    COVERED = "covered"
    BLURRED = "blurred"
    COLOUR_CAST = "colour_cast"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureState:
    """What is shown of a camera's picture. reason: for people (zh-CN), empty when ok. since_ms: UTC, of the
    first picture that showed it; checked_at_ms: UTC, of the newest judged picture."""

    verdict: Verdict
    reason: str
    since_ms: int
    checked_at_ms: int


@dataclass(slots=True, kw_only=True)
class HealthCounters:
    """Totals since start. judged: pictures. unchanged: visits that found the keyframe judged before; absent:
    that found none; undecodable: a damaged one. late: turns put off because pictures took longer or cost more
    CPU than the budget has. cpu_s: spent on pictures."""

    judged: int = 0
    unchanged: int = 0
    absent: int = 0
    undecodable: int = 0
    late: int = 0
    cpu_s: float = 0.0
