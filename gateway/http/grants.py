"""Cameras opened to somebody for a time: who gave them to whom until when and why, on disk and in the audit trail.

A grant widens where a role may look, never what a role may do: it makes its holder a participant of the camera
(`access.Resource`). It ends by itself, by `DELETE`, or with a restart after its end; what runs under it is
ended by the sweep of the composition root within seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import msgspec
from aiohttp import web
from sqlalchemy import BigInteger, Column, Connection, Table, Text, delete, insert, select
from ulid import ULID

from gateway.access import Action, Resource, Role, authorize, may_ever, require
from gateway.alarms.dispatch import CameraChoice
from gateway.audit import audit
from gateway.errors import NotAllowed, NotFound, ProtocolError, TooMany
from gateway.geo import Position
from gateway.http.routes import Exchange, Route, json_response
from gateway.intercom.model import Call
from gateway.store import Store, metadata

__all__ = ["CallCameras", "CameraGrants", "Grant", "GrantsEdge", "grants_table"]

LONGEST_MS = 30 * 86_400_000
MOST_GRANTS = 10_000
"""Held in memory. More than every camera thirteen times over: somebody's script went wrong."""

grants_table = Table(
    "camera_grants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("camera_id", Text, nullable=False),
    Column("sub", Text, nullable=False),
    Column("until", BigInteger, nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("granted_by", Text, nullable=False),
    Column("granted_at", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """`sub` may see `camera_id` until then (UTC ms)."""

    id: str
    camera_id: str
    sub: str
    until: int
    reason: str
    granted_by: str
    granted_at: int


class NewGrant(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`until`: UTC milliseconds, at most 30 days away."""

    camera_id: str
    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    until: int
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class CameraGrants:
    """The grants that have not ended, in memory; the table behind them."""

    def __init__(self, store: Store, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._grants: dict[str, Grant] = {}
        self._by_camera: dict[str, tuple[Grant, ...]] = {}
        self._giving = asyncio.Lock()

    async def load(self) -> None:
        """What was granted before this start and has not ended."""
        now_ms = self._now_ms()

        def read(connection: Connection) -> list[Grant]:
            connection.execute(delete(grants_table).where(grants_table.c.until <= now_ms))
            return [Grant(**row) for row in connection.execute(select(grants_table)).mappings()]

        self._keep({grant.id: grant for grant in await self._store.write(read)})

    def holders(self, camera_id: str) -> frozenset[str]:
        """Who may see the camera now by a grant."""
        grants = self._by_camera.get(camera_id)
        if not grants:
            return frozenset()
        now_ms = self._now_ms()
        return frozenset(grant.sub for grant in grants if grant.until > now_ms)

    def all(self) -> list[Grant]:
        """Those that have not ended, the next to end first."""
        now_ms = self._now_ms()
        return sorted((g for g in self._grants.values() if g.until > now_ms), key=lambda g: (g.until, g.id))

    def grant(self, grant_id: str) -> Grant:
        """Raises NotFound, also when it has ended."""
        found = self._grants.get(grant_id)
        if found is None or found.until <= self._now_ms():
            raise NotFound("no such grant, or it has ended")
        return found

    async def give(self, camera_id: str, sub: str, *, until: int, reason: str, by: str) -> Grant:
        """Counts after the commit. Raises ProtocolError for a time that makes no sense."""
        async with self._giving:
            now_ms = self._now_ms()
            if not now_ms < until <= now_ms + LONGEST_MS:
                raise ProtocolError("until must lie in the next 30 days (UTC milliseconds)")
            held = {g.id: g for g in self._grants.values() if g.until > now_ms}
            if len(held) >= MOST_GRANTS:
                raise TooMany(f"there are {MOST_GRANTS} grants already: end some", retry_after_s=60)
            grant = Grant(
                id=str(ULID()),
                camera_id=camera_id,
                sub=sub,
                until=until,
                reason=reason,
                granted_by=by,
                granted_at=now_ms,
            )

            def keep(connection: Connection) -> None:
                connection.execute(delete(grants_table).where(grants_table.c.until <= now_ms))
                connection.execute(insert(grants_table), asdict(grant))
                detail = {"grant": grant.id, "sub": sub, "until": until, "reason": reason}
                audit(
                    connection,
                    who=by,
                    action="grant.create",
                    subject=f"camera/{camera_id}",
                    detail=detail,
                    now_ms=now_ms,
                )

            await self._store.write(keep)
            self._keep({**held, grant.id: grant})
        return grant

    async def end(self, grant: Grant, *, by: str) -> None:
        """Before its time. At once in memory, also should the disk not answer."""
        self._keep({key: one for key, one in self._grants.items() if key != grant.id})
        now_ms = self._now_ms()

        def drop(connection: Connection) -> None:
            connection.execute(delete(grants_table).where(grants_table.c.id == grant.id))
            detail = {"grant": grant.id, "sub": grant.sub}
            subject = f"camera/{grant.camera_id}"
            audit(connection, who=by, action="grant.revoke", subject=subject, detail=detail, now_ms=now_ms)

        await self._store.write(drop)

    def _keep(self, grants: dict[str, Grant]) -> None:
        by_camera: dict[str, tuple[Grant, ...]] = {}
        for grant in grants.values():
            by_camera[grant.camera_id] = (*by_camera.get(grant.camera_id, ()), grant)
        self._grants, self._by_camera = grants, by_camera


class CallCameras:
    """The cameras that a call opens to the gridworker who has claimed it: those its place is ranked with, until it ends.

    cameras_at(position): ranked CameraChoices.
    """

    def __init__(
        self,
        open_calls: Callable[[], Iterable[Call]],
        cameras_at: Callable[[Position], Sequence[CameraChoice]],
    ) -> None:
        self._open_calls = open_calls
        self._cameras_at = cameras_at
        self._around: dict[str, tuple[tuple[float, float], frozenset[str]]] = {}

    def claimants(self, camera_id: str) -> frozenset[str]:
        """Who may see this camera now for a call's sake."""
        found = {
            call.answered_by.id
            for call in self._open_calls()
            if call.answered_by is not None
            and call.answered_by.role == Role.WORKER
            and call.position is not None
            and camera_id in self._cameras_around(call.id, call.position)
        }
        return frozenset(found)

    def _cameras_around(self, call_id: str, at: tuple[float, float]) -> frozenset[str]:
        """Ranked once for a place: a list of all cameras asks once for each camera and call."""
        known = self._around.get(call_id)
        if known is None or known[0] != at:
            found = frozenset(one.id for one in self._cameras_at(Position(lat=at[0], lon=at[1])))
            going_on = {call.id for call in self._open_calls()}
            self._around = {key: around for key, around in self._around.items() if key in going_on}
            self._around[call_id] = known = (at, found)
        return known[1]


class GrantsEdge:
    """`camera(camera_id)` is the camera for `authorize` (raises NotFound)."""

    def __init__(self, grants: CameraGrants, *, camera: Callable[[str], Resource]) -> None:
        self._grants = grants
        self._camera = camera

    def routes(self) -> list[Route]:
        path = "/api/v1/grants"

        def all_of_them(request: web.Request) -> Resource:
            return Resource.collection("grant")

        def body_decides(request: web.Request) -> Resource:
            return Resource(kind="session")

        def one(request: web.Request) -> Resource:
            return self._resource(self._grants.grant(request.match_info["grant_id"]).camera_id)

        return [
            Route(
                method="GET", path=path, action=Action.GRANT_LIST, handler=self._list, resource=all_of_them,
                summary="Cameras that are opened to somebody for a time",
            ),
            Route(
                method="POST", path=path, action=Action.SESSION_READ, handler=self._give, resource=body_decides,
                summary="Open a camera to somebody until a time", request=NewGrant, success=201,
            ),
            Route(
                method="DELETE", path=path + "/{grant_id}", action=Action.GRANT_REVOKE, handler=self._end, resource=one,
                summary="End a grant; video that runs under it ends within 5 s",
            ),
        ]  # fmt: skip

    def _resource(self, camera_id: str) -> Resource:
        """Where the camera lies. A camera that was taken out of the configuration lies nowhere."""
        try:
            lineage = self._camera(camera_id).lineage
        except NotFound:
            lineage = ()
        return Resource(kind="grant", id=camera_id, lineage=lineage)

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        seen = [
            asdict(grant)
            for grant in self._grants.all()
            if authorize(exchange.who, Action.GRANT_LIST, self._resource(grant.camera_id)).allowed
        ]
        return json_response({"grants": seen})

    async def _give(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        if not may_ever(who, Action.GRANT_CREATE):
            raise NotAllowed(f"role {who.role} may not open cameras to others")
        said = await exchange.body(NewGrant)
        camera = self._camera(said.camera_id)
        require(who, Action.GRANT_CREATE, Resource(kind="grant", id=said.camera_id, lineage=camera.lineage))
        by = f"{who.role}/{who.sub}"
        grant = await self._grants.give(said.camera_id, said.sub, until=said.until, reason=said.reason, by=by)
        return json_response(asdict(grant), status=201)

    async def _end(self, exchange: Exchange) -> web.StreamResponse:
        grant = self._grants.grant(exchange.path("grant_id"))
        await self._grants.end(grant, by=f"{exchange.who.role}/{exchange.who.sub}")
        return json_response({})
