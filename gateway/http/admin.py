"""Configuration by HTTP: reload, and the cameras of cameras.yaml. Every change is on the audit trail before it happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from aiohttp import web

from gateway.access import Action, Principal, Resource
from gateway.cameras_file import Put, Remove, Update
from gateway.errors import ProtocolError
from gateway.http.routes import Exchange, Route, json_response
from gateway.reload import Changed, Reloader

__all__ = ["AdminEdge", "CameraChange", "CameraChanges"]


class CameraChange(msgspec.Struct, forbid_unknown_fields=True):
    """op `put`: `camera`, an entry as in cameras.yaml, new or instead of the old one; `update`: `set` some keys of camera
    `id`, null takes a key away; `remove`: camera `id`."""

    op: str
    id: str = ""
    camera: dict[str, Any] = {}
    set: dict[str, Any] = {}


class CameraChanges(msgspec.Struct, forbid_unknown_fields=True):
    changes: list[CameraChange]


class AdminEdge:
    """record(principal, action, subject, detail): an audit line, on disk when it returns. view(camera_id): Camera JSON."""

    def __init__(
        self,
        reloader: Reloader,
        *,
        camera: Callable[[str], Resource],
        view: Callable[[str], dict[str, Any]],
        record: Callable[[Principal, str, str, dict[str, Any]], Awaitable[None]],
    ) -> None:
        self._reloader = reloader
        self._camera = camera
        self._view = view
        self._record = record

    def routes(self) -> list[Route]:
        def settings(request: web.Request) -> Resource:
            return Resource(kind="settings", id="settings")

        def cameras(request: web.Request) -> Resource:
            return Resource.collection("camera")

        def camera(request: web.Request) -> Resource:
            return self._camera(request.match_info["camera_id"])

        manage = Action.CAMERA_MANAGE
        return [
            Route(
                method="POST", path="/api/v1/admin/reload", action=Action.ADMIN_SETTINGS, handler=self._reload,
                resource=settings, summary="Read all configuration files anew",
            ),
            Route(
                method="POST", path="/api/v1/cameras", action=manage, handler=self._add, resource=cameras,
                summary="Add a camera to cameras.yaml", request=dict[str, Any], success=201,
            ),
            Route(
                method="PATCH", path="/api/v1/cameras", action=manage, handler=self._bulk, resource=cameras,
                summary="Many changes to cameras.yaml, all or none", request=CameraChanges,
            ),
            Route(
                method="PUT", path="/api/v1/cameras/{camera_id}", action=manage, handler=self._replace,
                resource=camera, summary="Replace a camera's entry", request=dict[str, Any],
            ),
            Route(
                method="DELETE", path="/api/v1/cameras/{camera_id}", action=manage, handler=self._remove,
                resource=camera, summary="Remove a camera", success=204,
            ),
        ]  # fmt: skip

    async def _reload(self, exchange: Exchange) -> web.StreamResponse:
        await self._record(exchange.who, "settings.reload", "settings", {})
        return json_response(asdict(await self._reloader.reload()))

    async def _add(self, exchange: Exchange) -> web.StreamResponse:
        entry = await exchange.body(dict[str, Any])
        await self._change(exchange, [Put(entry=entry, new=True)])
        camera_id = str(entry["id"])
        headers = {"Location": f"/api/v1/cameras/{camera_id}"}
        return json_response(self._view(camera_id), status=201, headers=headers)

    async def _replace(self, exchange: Exchange) -> web.StreamResponse:
        camera_id = exchange.path("camera_id")
        entry = await exchange.body(dict[str, Any])
        if entry.setdefault("id", camera_id) != camera_id:
            raise ProtocolError(
                f"body: id should be {camera_id!r}: remove the camera and add another instead"
            )
        await self._change(exchange, [Put(entry=entry, new=False)])
        return json_response(self._view(camera_id))

    async def _remove(self, exchange: Exchange) -> web.StreamResponse:
        await self._change(exchange, [Remove(id=exchange.path("camera_id"))])
        return web.Response(status=204)

    async def _bulk(self, exchange: Exchange) -> web.StreamResponse:
        wanted = await exchange.body(CameraChanges)
        changes = [_change_of(one, f"changes[{at}]") for at, one in enumerate(wanted.changes)]
        return json_response(asdict(await self._change(exchange, changes)))

    async def _change(self, exchange: Exchange, changes: Sequence[Put | Update | Remove]) -> Changed:
        async def recorded(changed: Changed) -> None:
            detail = {
                name: list(ids) for name in ("added", "changed", "removed") if (ids := getattr(changed, name))
            }
            await self._record(exchange.who, "cameras.change", "cameras", detail)

        return await self._reloader.change_cameras(changes, recorded=recorded)


def _change_of(change: CameraChange, path: str) -> Put | Update | Remove:
    match change.op:
        case "put" if change.camera and not change.id and not change.set:
            return Put(entry=change.camera)
        case "update" if change.id and not change.camera:
            return Update(id=change.id, values=change.set)
        case "remove" if change.id and not change.camera and not change.set:
            return Remove(id=change.id)
        case "put" | "update" | "remove":
            raise ProtocolError(
                f"body: {path} should be {{op: put, camera}}, {{op: update, id, set}} or {{op: remove, id}}"
            )
    raise ProtocolError(f"body: {path}.op should be put, update or remove")
