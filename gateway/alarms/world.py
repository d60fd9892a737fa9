"""What the alarm path needs to know of the district: values, and the protocol that the composition root
satisfies.

Positions are WGS-84 degrees throughout; whoever reads a configuration or a device converts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.config import CameraConfig
from gateway.district import District, Household, Place
from gateway.geo import Position

__all__ = ["Area", "CameraSite", "ConfiguredWorld", "Home", "WorkerSite", "World"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Codes of the areas that something lies in, None where it is not known."""

    district: str | None = None
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


class ConfiguredWorld:
    """A World from the configuration files. Build a new one after a reload and hand it to
    AlarmDesk.apply().
    """

    def __init__(
        self, district: District, cameras: Iterable[CameraConfig], box_keys: Mapping[str, bytes]
    ) -> None:
        self._district = district
        self._box_keys = dict(box_keys)
        self._homes: dict[str, Home] = {}
        self._cameras = {
            camera.id: CameraSite(
                id=camera.id,
                name=camera.name or camera.id,
                position=camera.position,
                heading=camera.heading,
                fov=camera.fov,
                range_m=camera.range_m,
                area=self._area(camera.area, camera.position),
            )
            for camera in cameras
        }
        self._all_cameras = tuple(self._cameras.values())
        self._workers = tuple(
            WorkerSite(
                id=worker.id,
                name=worker.name,
                grid=worker.grid,
                area=_named(district.place(worker.grid)),
                centroid=district.centroid(worker.grid),
                phone=worker.phone,
                skills=worker.skills,
            )
            for worker in district.gridworkers.values()
        )

    def box_key(self, sid: str) -> bytes | None:
        return self._box_keys.get(sid)

    def home_of(self, sid: str) -> Home | None:
        return self._home(self._district.household_of(sid))

    def home(self, household_id: str) -> Home | None:
        return self._home(self._district.households.get(household_id))

    def camera(self, camera_id: str) -> CameraSite | None:
        return self._cameras.get(camera_id)

    def cameras(self) -> Sequence[CameraSite]:
        return self._all_cameras

    def workers(self) -> Sequence[WorkerSite]:
        return self._workers

    def area_at(self, position: Position) -> Area:
        return _named(self._district.locate(position))

    def _home(self, household: Household | None) -> Home | None:
        """Kept: each press asks."""
        if household is None:
            return None
        home = self._homes.get(household.id)
        if home is None:
            home = self._homes[household.id] = self._make_home(household)
        return home

    def _make_home(self, household: Household) -> Home:
        return Home(
            id=household.id,
            address=household.address,
            position=household.position,
            area=self._area(household.grid or household.community, household.position),
            contacts=tuple({"name": contact.name, "phone": contact.phone} for contact in household.contacts),
            notes=household.notes,
        )

    def _area(self, code: str | None, position: Position | None) -> Area:
        """By its code, else by where it lies."""
        place = self._district.place(code)
        if not place.lineage and position is not None:
            place = self._district.locate(position)
        return _named(place)


def _named(place: Place) -> Area:
    return Area(district=place.district, street=place.street, community=place.community, grid=place.grid)
