"""What the alarm path needs to know of the district: values, and the protocol that the composition root
satisfies.

Positions are WGS-84 degrees throughout; whoever reads a configuration or a device converts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.geo import Position

__all__ = ["Area", "CameraSite", "Home", "WorkerSite", "World"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Codes of the areas that something lies in, None where it is not known."""

    street: str | None = None
    community: str | None = None
    grid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """A household with a box. contacts: {name, phone}. notes: what helpers must know (sensitive)."""

    id: str
    address: str
    position: Position | None
    area: Area
    contacts: Sequence[dict[str, str]] = ()
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSite:
    """A camera as the ranking sees it. heading: degrees clockwise from north or None; fov: degrees;
    range_m: metres.
    """

    id: str
    name: str
    position: Position | None
    heading: float | None
    fov: float
    range_m: float
    area: Area


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSite:
    """A gridworker by configuration. centroid: of the own grid, the place of last resort."""

    id: str
    name: str
    grid: str | None
    area: Area
    centroid: Position | None
    phone: str = ""
    skills: Sequence[str] = field(default=())


class World(Protocol):
    """The district as configured. Called on the loop; must answer from memory."""

    def box_key(self, sid: str) -> bytes | None:
        """The box's HMAC key, None for an unknown box."""

    def home_of(self, sid: str) -> Home | None:
        """The household a box stands in."""

    def home(self, household_id: str) -> Home | None: ...

    def camera(self, camera_id: str) -> CameraSite | None: ...

    def cameras(self) -> Sequence[CameraSite]:
        """All of them. The same object as long as nothing changed, so that a ranking may cache by
        identity.
        """

    def workers(self) -> Sequence[WorkerSite]:
        """As `cameras`."""

    def area_at(self, position: Position) -> Area:
        """What lies there."""
