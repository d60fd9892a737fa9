"""Routes that only pages need, wired together: HLS for old boxes, layouts of the wall, photos of reports."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from gateway.access import Principal, Resource
from gateway.alarms.incident_photos import IncidentPhotos
from gateway.http.hls import HlsEdge
from gateway.http.incident_photos import IncidentPhotosEdge
from gateway.http.layouts import LayoutsEdge
from gateway.http.media import LiveCameras
from gateway.http.routes import Route
from gateway.identity import JoinLimits
from gateway.store import Store
from gateway.streams.media_service import MediaService

__all__ = ["page_part_routes"]


def page_part_routes(
    store: Store,
    *,
    data: Path,
    media: MediaService,
    cameras: LiveCameras,
    joins: JoinLimits,
    viewed: Callable[[Principal, str], Awaitable[None]],
    incident: Callable[[web.Request], Awaitable[Resource]],
    now_ms: Callable[[], int],
) -> list[Route]:
    """data: the data directory, with the photos below it."""
    photos = IncidentPhotos(store, folder=data / "photos", clock=now_ms)
    return [
        *HlsEdge(media, cameras, joins, viewed=viewed, clock=time.monotonic).routes(),
        *IncidentPhotosEdge(photos, incident=incident).routes(),
        *LayoutsEdge(store, now_ms=now_ms).routes(),
    ]
