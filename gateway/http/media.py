"""Cameras, WHEP and WHIP at the HTTP edge: binds `streams.whep` to aiohttp, counts joins, remembers whose session is whose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aiohttp import web
from sqlalchemy import Connection

from gateway.access import Action, Principal, Resource, Role, authorize
from gateway.audit import audit
from gateway.catalog import Catalog
from gateway.errors import NotFound, Unavailable
from gateway.http.routes import Exchange, Handler, Route, json_response
from gateway.identity import JoinLimits
from gateway.store import Store
from gateway.streams.cameras import CameraState, State
from gateway.streams.media import StreamName
from gateway.streams.verdict import PictureState
from gateway.streams.whep import CORS_HEADERS, EdgeRequest, EdgeResponse, IceServer, SessionEndpoint

__all__ = ["WHEP_SESSIONS", "WHIP_SESSIONS", "CameraDirectory", "LiveCameras", "MediaEdge", "ViewTrail"]

WHEP_SESSIONS = "/whep/sessions"
WHIP_SESSIONS = "/whip/sessions"
VIEWS_TOGETHER_S = 0.1


class CameraDirectory(Protocol):
    """What this module needs to know of cameras. The root builds it out of configuration, district and supervisor."""

    def resource(self, camera_id: str) -> Resource:
        """The camera for `authorize`. Raises NotFound."""

    def view(self, camera_id: str) -> dict[str, Any]:
        """Camera JSON of the contract. Raises NotFound."""

    def ids(self) -> Sequence[str]: ...

    async def snapshot(self, camera_id: str) -> bytes:
        """JPEG of the last keyframe. Raises Unavailable when there is none yet."""


class LiveCameras:
    """The configured cameras with their state of this moment: the CameraDirectory of the running gateway."""

    def __init__(
        self,
        *,
        catalog: Callable[[], Catalog],
        state: Callable[[str], CameraState],
        watchers: Callable[[str, StreamName], int],
        jpeg: Callable[[str], Awaitable[bytes]],
        picture: Callable[[str], PictureState | None],
        guests: Callable[[str], frozenset[str]] = lambda camera_id: frozenset(),
    ) -> None:
        """guests(camera_id): who may see it for a time, by a grant or for a call near by."""
        self._guests = guests
        self._catalog = catalog
        self._state = state
        self._watchers = watchers
        self._jpeg = jpeg
        self._picture = picture

    def resource(self, camera_id: str) -> Resource:
        resource, guests = self._catalog().resource(camera_id), self._guests(camera_id)
        return replace(resource, participants=resource.participants | guests) if guests else resource

    def shown_to(self, sid: str, camera_id: str) -> bool:
        """Whether the resident with this box may watch it."""
        resident = self._catalog().district.situate(Principal(sub=sid, role=Role.STB))
        return bool(authorize(resident, Action.CAMERA_VIEW, self.resource(camera_id)))

    def healthy(self, camera_id: str) -> bool:
        """Whether it is worth being ranked: known, and not down."""
        try:
            return self._state(camera_id).state is not State.DOWN
        except NotFound:
            return False

    def ids(self) -> Sequence[str]:
        return tuple(self._catalog().configs)

    async def snapshot(self, camera_id: str) -> bytes:
        return await self._jpeg(camera_id)

    def view(self, camera_id: str) -> dict[str, Any]:
        config = self._catalog().config(camera_id)
        state = self._state(camera_id)
        return {
            "id": config.id,
            "name": config.name or config.id,
            "community": config.community,
            "grid": config.grid,
            "position": config.position,
            "heading": config.heading,
            "fov": config.fov,
            "range_m": config.range_m,
            "visible_to": config.visible_to,
            "pull": config.pull,
            "state": state.state,
            "reason": state.reason,
            "since": state.since_ms,
            "last_frame_at": state.last_frame_at_ms,
            "picture": _picture_json(self._picture(camera_id)),
            "streams": {name.value: self._stream(camera_id, name, state) for name in StreamName},
        }

    def _stream(self, camera_id: str, name: StreamName, state: CameraState) -> dict[str, Any] | None:
        stream = state.streams.get(name)
        if stream is None:
            return None
        return {
            "state": stream.state,
            "reason": stream.reason,
            "since": stream.since_ms,
            "codec": stream.codec,
            "profile": stream.profile,
            "width": stream.width,
            "height": stream.height,
            "fps": None if stream.fps is None else round(stream.fps, 1),
            "kbps": None if stream.kbps is None else round(stream.kbps),
            "viewers": self._watchers(camera_id, name),
        }


def _picture_json(picture: PictureState | None) -> dict[str, Any] | None:
    if picture is None:
        return None
    return {
        "verdict": picture.verdict,
        "reason": picture.reason,
        "since": picture.since_ms,
        "checked_at": picture.checked_at_ms,
    }


class ViewTrail:
    """Every view of a camera, put on the audit trail. The viewer does not wait for the disk, and all views of a tenth of a
    second share a transaction: a wall that opens 64 tiles writes once. A crash loses the lines of that tenth."""

    def __init__(
        self,
        store: Store,
        *,
        now_ms: Callable[[], int],
        background: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._store, self._now_ms, self._background = store, now_ms, background
        self._waiting: list[tuple[int, str, str]] = []

    async def viewed(self, principal: Principal, camera_id: str) -> None:
        self._waiting.append((self._now_ms(), f"{principal.role}/{principal.sub}", f"camera/{camera_id}"))
        if len(self._waiting) == 1:
            self._background(self._write(), "audit-view")

    async def _write(self) -> None:
        await asyncio.sleep(VIEWS_TOGETHER_S)
        views, self._waiting = self._waiting, []

        def record(connection: Connection) -> None:
            for at_ms, who, subject in views:
                audit(connection, who=who, action="camera.view", subject=subject, now_ms=at_ms)

        await self._store.write(record)


@dataclass(frozen=True, slots=True)
class _Held:
    """Whose session it is, and which camera's picture it shows; None: a leg of a call, which the call itself ends.
    watches: the media owner that watches by it."""

    principal: Principal
    camera_id: str | None
    watches: str | None


class MediaEdge:
    """Holds who owns which media session; the plane tells it when one ends (`session_closed`)."""

    def __init__(
        self,
        *,
        cameras: CameraDirectory,
        whep: SessionEndpoint,
        whip: SessionEndpoint,
        ice_servers: Callable[[str], Sequence[IceServer]],
        joins: JoinLimits,
        now_s: Callable[[], float],
        viewed: Callable[[Principal, str], Awaitable[None]],
        own_leg: Callable[[str, str, str], Awaitable[tuple[str, str]]],
        watchable_leg: Callable[[str, str, str], Awaitable[tuple[str, str]]],
        call_resource: Callable[[web.Request], Awaitable[Resource]],
        leg_resource: Callable[[web.Request], Awaitable[Resource]],
        watching_changed: Callable[[str, bool], None],
        draining: Callable[[], bool],
    ) -> None:
        """joins: sessions at once and joins a second of a principal, `now_s` its clock; viewed: the audit line of a camera's view; own_leg and
        watchable_leg(call, leg, sub) -> (source id, media owner); watching_changed(owner, yes): it watches a leg, or none any more."""
        self._cameras = cameras
        self._whep, self._whip = whep, whip
        self._ice_servers = ice_servers
        self._joins, self._now_s = joins, now_s
        self._viewed = viewed
        self._own_leg, self._watchable_leg = own_leg, watchable_leg
        self._call_resource, self._leg_resource = call_resource, leg_resource
        self._draining = draining
        self._watching_changed = watching_changed
        self._holders: dict[str, _Held] = {}

    def session_closed(self, session_id: str) -> None:
        """The plane ended it, for whatever reason."""
        holder = self._holders.pop(session_id, None)
        if holder is None:
            return
        self._joins.leave(holder.principal)
        if holder.watches is not None and not self._watches(holder.watches):
            self._watching_changed(holder.watches, False)

    def _watches(self, owner: str) -> bool:
        return any(held.watches == owner for held in self._holders.values())

    def sessions_where(self, concerned: Callable[[Principal], bool]) -> list[str]:
        """Media sessions whose holder satisfies `concerned`."""
        return [session_id for session_id, held in self._holders.items() if concerned(held.principal)]

    def sessions_without_right(self) -> list[str]:
        """Sessions that show a camera which their holder may not see any more: a grant or a call has ended."""
        return [session_id for session_id, held in self._holders.items() if not self._still_allowed(held)]

    def _still_allowed(self, held: _Held) -> bool:
        if held.camera_id is None:
            return True
        try:
            camera = self._cameras.resource(held.camera_id)
        except NotFound:
            return False
        return authorize(held.principal, Action.CAMERA_VIEW, camera).allowed

    def routes(self) -> list[Route]:
        def camera(request: web.Request) -> Resource:
            return self._cameras.resource(request.match_info["camera_id"])

        def cameras(request: web.Request) -> Resource:
            return Resource.collection("camera")

        def session(request: web.Request) -> Resource:
            session_id = request.match_info["session_id"]
            holder = self._holders.get(session_id)
            if holder is None:
                raise NotFound("no such media session")
            return Resource(kind="media_session", id=session_id, owner=holder.principal.sub)

        def open_path(request: web.Request) -> Resource:
            return Resource(kind="preflight", id=request.path)

        sdp = "application/sdp"
        fragment = "application/trickle-ice-sdpfrag"
        rows = [
            Route(
                method="GET", path="/api/v1/cameras", action=Action.CAMERA_LIST, handler=self._list, resource=cameras,
                summary="Cameras that the principal may see",
            ),
            Route(
                method="GET", path="/api/v1/cameras/{camera_id}", action=Action.CAMERA_LIST, handler=self._one,
                resource=camera, summary="One camera with the state of its streams",
            ),
            Route(
                method="GET", path="/api/v1/cameras/{camera_id}/snapshot.jpg", action=Action.CAMERA_SNAPSHOT,
                handler=self._snapshot, resource=camera, summary="The last cached keyframe",
            ),
            Route(
                method="GET", path="/api/v1/media/ice-servers", action=Action.MEDIA_ICE, handler=self._ice,
                resource=lambda _: Resource(kind="ice"), summary="STUN and TURN servers for this principal",
            ),
            Route(
                method="POST", path="/whep/{camera_id}", action=Action.CAMERA_VIEW, handler=self._watch,
                resource=camera, summary="Watch a camera (WHEP)", media=sdp, success=201,
            ),
            Route(
                method="POST", path="/api/v1/calls/{call_id}/legs/{leg_id}/whip", action=Action.CALL_PUBLISH,
                handler=self._publish_leg, resource=self._leg_resource, summary="Publish one's own leg (WHIP)", media=sdp,
                success=201,
            ),
            Route(
                method="POST", path="/api/v1/calls/{call_id}/legs/{leg_id}/whep", action=Action.CALL_WATCH,
                handler=self._watch_leg, resource=self._call_resource, summary="Watch a leg (WHEP)", media=sdp,
                success=201,
            ),
        ]  # fmt: skip

        def preflight(path: str, handler: Handler) -> Route:
            return Route(
                method="OPTIONS", path=path, action=Action.MEDIA_PREFLIGHT, handler=handler, resource=open_path,
                summary="What can be sent here (CORS preflight)", success=204,
            )  # fmt: skip

        leg = "/api/v1/calls/{call_id}/legs/{leg_id}"
        endpoints = ("/whep/{camera_id}", f"{leg}/whip", f"{leg}/whep")
        rows += [preflight(path, self._preflight) for path in endpoints]
        open_paths = {*endpoints, *(base + "/{session_id}" for base in (WHEP_SESSIONS, WHIP_SESSIONS))}
        for base, handler in ((WHEP_SESSIONS, self._whep_session), (WHIP_SESSIONS, self._whip_session)):
            path = base + "/{session_id}"
            rows.append(preflight(path, handler))
            rows += [
                Route(
                    method=method, path=path, action=Action.MEDIA_SESSION, handler=handler, resource=session,
                    summary=f"{method} a media session", media=fragment,
                )
                for method in ("GET", "HEAD", "PATCH", "DELETE")
            ]  # fmt: skip
        return [replace(row, answer_headers=CORS_HEADERS) if row.path in open_paths else row for row in rows]

    # -- cameras ------------------------------------------------------------------------------------------------

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        seen = [
            self._cameras.view(camera_id)
            for camera_id in self._cameras.ids()
            if authorize(exchange.principal, Action.CAMERA_LIST, self._cameras.resource(camera_id)).allowed
        ]
        return json_response({"cameras": seen})

    async def _one(self, exchange: Exchange) -> web.StreamResponse:
        return json_response(self._cameras.view(exchange.path("camera_id")))

    async def _snapshot(self, exchange: Exchange) -> web.StreamResponse:
        camera_id = exchange.path("camera_id")
        picture = await self._cameras.snapshot(camera_id)
        await self._viewed(exchange.who, camera_id)
        return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def _ice(self, exchange: Exchange) -> web.StreamResponse:
        servers = [
            {"urls": [s.url], **({"username": s.username, "credential": s.credential} if s.username else {})}
            for s in self._ice_servers(exchange.who.sub)
        ]
        return json_response({"ice_servers": servers})

    # -- sessions -----------------------------------------------------------------------------------------------

    async def _watch(self, exchange: Exchange) -> web.StreamResponse:
        camera_id = exchange.path("camera_id")
        answer = await self._join(exchange, self._whep, f"camera/{camera_id}", exchange.who.sub, camera_id)
        if answer.status == 201:
            await self._viewed(exchange.who, camera_id)
        return _to_aiohttp(answer)

    async def _publish_leg(self, exchange: Exchange) -> web.StreamResponse:
        source, owner = await self._own_leg(
            exchange.path("call_id"), exchange.path("leg_id"), exchange.who.sub
        )
        return _to_aiohttp(await self._join(exchange, self._whip, source, owner))

    async def _watch_leg(self, exchange: Exchange) -> web.StreamResponse:
        source, owner = await self._watchable_leg(
            exchange.path("call_id"), exchange.path("leg_id"), exchange.who.sub
        )
        return _to_aiohttp(await self._join(exchange, self._whep, source, owner))

    async def _join(
        self,
        exchange: Exchange,
        endpoint: SessionEndpoint,
        source: str,
        owner: str,
        camera_id: str | None = None,
    ) -> EdgeResponse:
        """Count the principal in before anything is allocated; count it out again if no session came of it."""
        principal = exchange.who
        if self._draining():
            raise Unavailable("this gateway is about to stop; try again", retry_after_s=3)
        self._joins.join(principal, now_s=self._now_s())
        kept = False
        try:
            answer = await endpoint.handle(await _from_aiohttp(exchange.request, owner), source)
            if answer.status == 201:
                location = answer.headers["Location"]
                session_id = str(location).rpartition("/")[2]
                watches = owner if endpoint is self._whep and camera_id is None else None
                self._holders[session_id] = _Held(principal, camera_id, watches)
                kept = True
                if watches is not None:
                    self._watching_changed(watches, True)
        finally:
            if not kept:
                self._joins.leave(principal)
        return answer

    async def _whep_session(self, exchange: Exchange) -> web.StreamResponse:
        return await self._session(exchange, self._whep)

    async def _whip_session(self, exchange: Exchange) -> web.StreamResponse:
        return await self._session(exchange, self._whip)

    async def _session(self, exchange: Exchange, endpoint: SessionEndpoint) -> web.StreamResponse:
        owner = exchange.principal.sub if exchange.principal is not None else ""
        request = await _from_aiohttp(exchange.request, owner)
        return _to_aiohttp(await endpoint.handle_session(request, exchange.path("session_id")))

    async def _preflight(self, exchange: Exchange) -> web.StreamResponse:
        """Says nothing of whether the thing exists: preflights carry no credentials."""
        endpoint = self._whip if exchange.request.path.endswith("/whip") else self._whep
        return _to_aiohttp(await endpoint.handle(await _from_aiohttp(exchange.request, ""), ""))


async def _from_aiohttp(request: web.Request, owner: str) -> EdgeRequest:
    headers: Mapping[str, str] = {name.lower(): value for name, value in request.headers.items()}
    return EdgeRequest(
        method=request.method,
        headers=headers,
        body=await request.read(),
        query=dict(request.query),
        owner=owner,
    )


def _to_aiohttp(answer: EdgeResponse) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body)
    response.headers.pop("Content-Type", None)
    for name, value in answer.headers.items():
        for one in (value,) if isinstance(value, str) else value:
            response.headers.add(name, one)
    return response
