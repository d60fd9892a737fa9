"""The configured world in memory: cameras, district, device keys. What the alarm path, the edge and the supervisor ask of it.

One object is swapped in as a whole when configuration is reloaded, so whoever asks twice within one step of the loop gets one truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from gateway.access import Resource
from gateway.alarms.world import Area, CameraSite, Home, WorkerSite
from gateway.config import CameraConfig, Secrets
from gateway.district import District, Household, Place
from gateway.errors import NotFound
from gateway.geo import Position

__all__ = ["Catalog"]


class Catalog:
    """Satisfies `alarms.world.World`. Immutable: build a new one to change anything."""

    def __init__(self, cameras: Sequence[CameraConfig], district: District, secrets: Secrets) -> None:
        self.district = district
        self.secrets = secrets
        self.configs: Mapping[str, CameraConfig] = {camera.id: camera for camera in cameras}
        self._resources = {camera.id: self._resource(camera) for camera in cameras}
        self._sites = {camera.id: self._site(camera) for camera in cameras}

    # -- cameras ------------------------------------------------------------------------------------------------

    def config(self, camera_id: str) -> CameraConfig:
        """Raises NotFound."""
        camera = self.configs.get(camera_id)
        if camera is None:
            raise NotFound(f"no camera {camera_id!r}")
        return camera

    def resource(self, camera_id: str) -> Resource:
        """The camera for `authorize`. Raises NotFound."""
        self.config(camera_id)
        return self._resources[camera_id]

    def camera(self, camera_id: str) -> CameraSite | None:
        return self._sites.get(camera_id)

    @cached_property
    def _all_sites(self) -> Sequence[CameraSite]:
        return tuple(self._sites.values())

    def cameras(self) -> Sequence[CameraSite]:
        """The same object as long as this catalog lives: a ranking caches by identity."""
        return self._all_sites

    def _resource(self, camera: CameraConfig) -> Resource:
        lineage = self.district.lineage(camera.area)
        if not lineage and camera.position is not None:
            lineage = self.district.locate(camera.position).lineage
        return Resource(kind="camera", id=camera.id, lineage=lineage, visible_to=camera.visible_to)

    def _site(self, camera: CameraConfig) -> CameraSite:
        return CameraSite(
            id=camera.id,
            name=camera.name or camera.id,
            position=camera.position,
            heading=camera.heading,
            fov=camera.fov,
            range_m=camera.range_m,
            area=_area(Place(self._resources[camera.id].lineage)),
        )

    # -- people and places --------------------------------------------------------------------------------------

    def box_key(self, sid: str) -> bytes | None:
        return self.secrets.boxes.get(sid)

    def home_of(self, sid: str) -> Home | None:
        household = self.district.household_of(sid)
        return None if household is None else self._home(household)

    def home(self, household_id: str) -> Home | None:
        household = self.district.households.get(household_id)
        return None if household is None else self._home(household)

    def _home(self, household: Household) -> Home:
        return Home(
            id=household.id,
            address=household.address,
            position=household.position,
            area=_area(self.district.place(household.grid or household.community)),
            contacts=[{"name": contact.name, "phone": contact.phone} for contact in household.contacts],
            notes=household.notes,
        )

    @cached_property
    def _all_workers(self) -> Sequence[WorkerSite]:
        return tuple(
            WorkerSite(
                id=worker.id,
                name=worker.name,
                grid=worker.grid,
                area=_area(self.district.place(worker.grid)),
                centroid=self.district.centroid(worker.grid) if worker.grid else None,
                phone=worker.phone,
                skills=tuple(worker.skills),
            )
            for worker in self.district.gridworkers.values()
        )

    def workers(self) -> Sequence[WorkerSite]:
        return self._all_workers

    def worker_resource(self, worker_id: str) -> Resource:
        """A gridworker for `authorize`: the grid is where the worker belongs. Raises NotFound."""
        worker = self.district.gridworkers.get(worker_id)
        if worker is None:
            raise NotFound(f"no gridworker {worker_id!r}")
        return Resource(
            kind="worker", id=worker_id, lineage=self.district.lineage(worker.grid), owner=worker_id
        )

    def area_at(self, position: Position) -> Area:
        return _area(self.district.locate(position))

    def full_lineage(self, codes: Sequence[str]) -> tuple[str, ...]:
        """Any known codes of one place, in any order, as the lineage from the district down."""
        lineages = [self.district.lineage(code) for code in codes]
        return max(lineages, key=len, default=())


def _area(place: Place) -> Area:
    return Area(district=place.district, street=place.street, community=place.community, grid=place.grid)
