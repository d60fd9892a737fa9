"""The configured world in memory: cameras, district and keys, and how each of them stands to `authorize`.

One object is swapped in as a whole when configuration is reloaded, so whoever asks twice within one step of the loop gets
one truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.access import Resource
from gateway.alarms.world import ConfiguredWorld
from gateway.config import CameraConfig, Secrets
from gateway.district import District
from gateway.errors import NotFound

__all__ = ["Catalog"]


class Catalog:
    """Immutable: build a new one to change anything. `world` is what the alarm path sees of it."""

    def __init__(self, cameras: Sequence[CameraConfig], district: District, secrets: Secrets) -> None:
        self.district = district
        self.secrets = secrets
        self.world = ConfiguredWorld(district, cameras, secrets.boxes)
        self.configs: Mapping[str, CameraConfig] = {camera.id: camera for camera in cameras}
        self._resources = {camera.id: self._resource(camera) for camera in cameras}

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

    def worker_resource(self, worker_id: str) -> Resource:
        """A gridworker for `authorize`: the grid is where the worker belongs. Raises NotFound."""
        worker = self.district.gridworkers.get(worker_id)
        if worker is None:
            raise NotFound(f"no gridworker {worker_id!r}")
        lineage = self.district.lineage(worker.grid)
        return Resource(kind="worker", id=worker_id, lineage=lineage, owner=worker_id)

    def full_lineage(self, codes: Sequence[str]) -> tuple[str, ...]:
        """Any known codes of one place, in any order, as the lineage from the district down."""
        return max((self.district.lineage(code) for code in codes), key=len, default=())

    def _resource(self, camera: CameraConfig) -> Resource:
        lineage = self.district.lineage(camera.area)
        if not lineage and camera.position is not None:
            lineage = self.district.locate(camera.position).lineage
        return Resource(kind="camera", id=camera.id, lineage=lineage, visible_to=camera.visible_to)
