"""Layouts and tours of the wall, kept for each user: they follow the operator to whatever desk he sits down at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from sqlalchemy import BigInteger, Column, Connection, Table, Text, select
from sqlalchemy.dialects.sqlite import insert

from gateway.access import Action, Resource
from gateway.errors import ProtocolError
from gateway.http.routes import Exchange, Route, json_response
from gateway.store import Store, metadata

__all__ = ["LayoutsEdge", "layouts_table"]

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
CameraId = Annotated[str, msgspec.Meta(max_length=64)]

layouts_table = Table(
    "user_layouts",
    metadata,
    Column("sub", Text, primary_key=True),
    Column("kept", Text, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
)


class Layout(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`tiles`: camera ids in order, null for an empty tile."""

    name: Name
    layout: Literal[1, 4, 9, 16, 25]
    tiles: Annotated[list[CameraId | None], msgspec.Meta(max_length=25)]


class Tour(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`stops`: names of layouts, each shown for `dwell_s` seconds."""

    name: Name
    stops: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=50)]
    dwell_s: Annotated[int, msgspec.Meta(ge=5, le=3600)]


class Kept(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Everything of one user; it is written as a whole, the last one wins."""

    layouts: Annotated[list[Layout], msgspec.Meta(max_length=50)] = []
    tours: Annotated[list[Tour], msgspec.Meta(max_length=20)] = []


class LayoutsEdge:
    """Which cameras a layout shows is no right to see them: each tile asks for itself."""

    def __init__(self, store: Store, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms

    def routes(self) -> list[Route]:
        def own(request: web.Request) -> Resource:
            return Resource(kind="layouts", id="me")

        path = "/api/v1/me/layouts"
        return [
            Route(
                method="GET", path=path, action=Action.LAYOUT_KEEP, handler=self._read, resource=own,
                summary="One's own layouts and tours of the wall",
            ),
            Route(
                method="PUT", path=path, action=Action.LAYOUT_KEEP, handler=self._write, resource=own,
                summary="Keeps them, all at once", request=Kept,
            ),
        ]  # fmt: skip

    async def _read(self, exchange: Exchange) -> web.StreamResponse:
        sub = exchange.who.sub

        def read(connection: Connection) -> str | None:
            t = layouts_table.c
            return connection.execute(select(t.kept).where(t.sub == sub)).scalar()

        kept: str | None = await self._store.read(read)
        found: Any = msgspec.json.decode(kept) if kept else {"layouts": [], "tours": []}
        return json_response(found)

    async def _write(self, exchange: Exchange) -> web.StreamResponse:
        said, sub, now_ms = await exchange.body(Kept), exchange.who.sub, self._now_ms()
        names = [one.name for one in said.layouts]
        if len(set(names)) != len(names):
            raise ProtocolError("two layouts have the same name")
        if unknown := {stop for tour in said.tours for stop in tour.stops} - set(names):
            raise ProtocolError(f"a tour stops at a layout that there is none of: {min(unknown)}")
        kept = msgspec.json.encode(said).decode()

        def write(connection: Connection) -> None:
            statement = insert(layouts_table).values(sub=sub, kept=kept, changed_at=now_ms)
            changed = {"kept": kept, "changed_at": now_ms}
            connection.execute(statement.on_conflict_do_update(index_elements=["sub"], set_=changed))

        await self._store.write(write)
        return json_response(said)
