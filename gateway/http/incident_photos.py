"""Photos of an incident at the HTTP edge: whoever reported it adds them, whoever may read it sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from aiohttp import web

from gateway.access import Action, Resource
from gateway.alarms.incident_photos import IncidentPhotos
from gateway.http.alarms import actor
from gateway.http.cases import photo_bytes
from gateway.http.routes import Exchange, Route, json_response

__all__ = ["IncidentPhotosEdge"]


class IncidentPhotosEdge:
    """`incident` gives the resource of the incident that a path names, with who takes part in it."""

    def __init__(
        self, photos: IncidentPhotos, *, incident: Callable[[web.Request], Awaitable[Resource]]
    ) -> None:
        self._photos = photos
        self._incident = incident

    async def _resource(self, request: web.Request) -> Resource:
        """Who reported it takes part too: the photo belongs to the report."""
        resource = await self._incident(request)
        reporter = await self._photos.reporter(request.match_info["incident_id"])
        return replace(resource, participants=resource.participants | {reporter.partition("/")[2]})

    def routes(self) -> list[Route]:
        path = "/api/v1/incidents/{incident_id}/photos"
        return [
            Route(
                method="POST", path=path, action=Action.INCIDENT_HANDLE, handler=self._add, resource=self._resource,
                summary="A photo of the event: JPEG, PNG or WebP as the body, or multipart with one file",
                media="image/jpeg", success=201, streams=True,
            ),
            Route(
                method="GET", path=path, action=Action.INCIDENT_READ, handler=self._list, resource=self._resource,
                summary="Photos of the event",
            ),
            Route(
                method="GET", path=f"{path}/{{sha256:[0-9a-f]{{64}}}}", action=Action.INCIDENT_READ,
                handler=self._read, resource=self._resource, summary="One of them",
            ),
        ]  # fmt: skip

    async def _add(self, exchange: Exchange) -> web.StreamResponse:
        data = await photo_bytes(exchange.request)
        photo = await self._photos.add(exchange.path("incident_id"), data, actor(exchange.who))
        return json_response(photo, status=201)

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        return json_response({"photos": await self._photos.all(exchange.path("incident_id"))})

    async def _read(self, exchange: Exchange) -> web.StreamResponse:
        path, media_type = await self._photos.file(exchange.path("incident_id"), exchange.path("sha256"))
        data = await asyncio.to_thread(path.read_bytes)
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        return web.Response(body=data, content_type=media_type, headers=headers)
