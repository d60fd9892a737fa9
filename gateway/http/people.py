"""The district, its gridworkers and its boxes at the HTTP edge."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from aiohttp import web

from gateway.access import Action, Resource, Visibility, authorize
from gateway.alarms.dispatch import Duty, WorkerChoice
from gateway.alarms.roster import Roster, WorkerView, parse_location
from gateway.catalog import Catalog
from gateway.district import Volunteer
from gateway.errors import NotFound, ProtocolError
from gateway.geo import Datum, Position, from_datum
from gateway.http.routes import Exchange, Route, json_response
from gateway.identity import device_password
from gateway.settings import MapSettings

__all__ = ["PeopleEdge", "worker_json"]


class SetDuty(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    duty: Duty


def worker_json(view: WorkerView) -> dict[str, Any]:
    """Worker JSON of the contract."""
    return asdict(view)


class PeopleEdge:
    """Routes of district, gridworkers and boxes. `catalog` gives the configured world as it is now."""

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        roster: Roster,
        *,
        rank: Callable[[Position, int], Sequence[WorkerChoice]],
        duty_changed: Callable[[str, Duty], Awaitable[None]],
        last_ack: Callable[[str], Awaitable[dict[str, Any] | None]],
        asked_of: Callable[[str], Awaitable[dict[str, Any] | None]],
        call_of: Callable[[dict[str, Any] | None], dict[str, Any] | None],
        now_ms: Callable[[], int],
        mqtt_on: bool,
        base_map: MapSettings,
    ) -> None:
        """rank(position, limit): the nearest gridworkers; duty_changed(worker, duty): told after the commit;
        last_ack(sid): the stage of the box's open alarm, for a page that was reloaded; asked_of(sid): the incident
        whose handling the resident is asked about (回访); call_of(that stage): the alarm's call."""
        self._catalog = catalog
        self._roster = roster
        self._rank = rank
        self._duty_changed = duty_changed
        self._last_ack = last_ack
        self._asked_of = asked_of
        self._call_of = call_of
        self._now_ms = now_ms
        self._mqtt_on = mqtt_on
        self._base_map = base_map

    def routes(self) -> list[Route]:
        def collection(kind: str) -> Callable[[web.Request], Resource]:
            return lambda request: Resource.collection(kind)

        def workers_action(request: web.Request) -> Resource:
            return Resource.collection("worker")

        def own(kind: str) -> Callable[[web.Request], Resource]:
            return lambda request: Resource(kind=kind, id="me")

        return [
            Route(
                method="GET", path="/api/v1/district", action=Action.DISTRICT_READ, handler=self._district,
                resource=collection("area"), summary="The areas that the principal may know of",
            ),
            Route(
                method="GET", path="/api/v1/district/areas.geojson", action=Action.DISTRICT_READ,
                handler=self._areas, resource=collection("area"), summary="Their polygons, WGS-84",
            ),
            Route(
                method="GET", path="/api/v1/workers", action=Action.WORKER_LIST, handler=self._workers,
                resource=workers_action, summary="Gridworkers; with near=lat,lon&datum= the nearest, with the reason",
            ),
            Route(
                method="GET", path="/api/v1/volunteers", action=Action.VOLUNTEER_LIST, handler=self._volunteers,
                resource=collection("volunteer"), summary="Volunteers of one's area, and who may be asked at this hour",
            ),
            Route(
                method="GET", path="/api/v1/workers/me", action=Action.WORKER_SELF, handler=self._me,
                resource=own("worker"), summary="The gridworker's own state",
            ),
            Route(
                method="POST", path="/api/v1/workers/me/duty", action=Action.WORKER_SELF, handler=self._duty,
                resource=own("worker"), summary="On or off duty", request=SetDuty,
            ),
            Route(
                method="POST", path="/api/v1/workers/me/location", action=Action.WORKER_SELF, handler=self._location,
                resource=own("worker"), summary="Where the gridworker is; names its datum",
            ),
            Route(
                method="GET", path="/api/v1/stb/me", action=Action.STB_SELF, handler=self._box,
                resource=own("stb"), summary="What a box page needs: cameras, keys, where to call",
            ),
        ]  # fmt: skip

    # -- district -----------------------------------------------------------------------------------------------

    def _visible_areas(self, exchange: Exchange) -> list[Any]:
        district = self._catalog().district
        who = exchange.who
        area = who.area
        if area is None and who.role in ("worker", "volunteer"):
            area = who.lineage[2] if len(who.lineage) > 2 else "none"
        return district.within(area)

    async def _district(self, exchange: Exchange) -> web.StreamResponse:
        district = self._catalog().district
        areas = [
            {
                "code": area.code, "name": area.name, "level": area.level, "parent": area.parent,
                "kind": area.kind, "phone": area.phone,
            }
            for area in self._visible_areas(exchange)
        ]  # fmt: skip
        return json_response(
            {
                "code": district.code,
                "name": district.name,
                "center": district.center,
                "areas": areas,
                "map": {"tile_urls": self._base_map.tile_urls, "datum": self._base_map.datum},
            }
        )

    async def _areas(self, exchange: Exchange) -> web.StreamResponse:
        features = [
            {
                "type": "Feature",
                "id": area.code,
                "properties": {
                    "code": area.code, "name": area.name, "level": area.level, "parent": area.parent,
                    "kind": area.kind,
                },
                "geometry": {"type": "Polygon", "coordinates": area.polygon.to_geojson()},
            }
            for area in self._visible_areas(exchange)
        ]  # fmt: skip
        return json_response({"type": "FeatureCollection", "features": features})

    # -- gridworkers --------------------------------------------------------------------------------------------

    async def _workers(self, exchange: Exchange) -> web.StreamResponse:
        near = exchange.query("near")
        if near:
            decision = authorize(exchange.who, Action.WORKER_NEAR, Resource.collection("worker"))
            if not decision.allowed:
                raise NotFound(decision.reason)
            limit = exchange.query("limit", "5")
            if not limit.isdecimal() or not 1 <= int(limit) <= 50:
                raise ProtocolError("limit must be 1..50")
            return json_response({"workers": self._rank(_point(near, exchange.query("datum")), int(limit))})
        catalog, now_ms = self._catalog(), self._now_ms()
        seen = [
            worker_json(view)
            for view in self._roster.views(now_ms)
            if authorize(exchange.who, Action.WORKER_LIST, catalog.worker_resource(view.id)).allowed
        ]
        return json_response({"workers": seen})

    async def _volunteers(self, exchange: Exchange) -> web.StreamResponse:
        district = self._catalog().district
        local = time.localtime(self._now_ms() / 1000)
        minute = local.tm_hour * 60 + local.tm_min

        def visible(one: Volunteer) -> bool:
            resource = Resource(kind="volunteer", id=one.id, lineage=district.lineage(one.community))
            return authorize(exchange.who, Action.VOLUNTEER_LIST, resource).allowed

        seen = [
            {
                "id": one.id,
                "name": one.name,
                "level": one.level,
                "community": one.community,
                "position": one.position,
                "available": one.available_at(minute),
            }
            for one in district.volunteers.values()
            if visible(one)
        ]
        return json_response({"volunteers": seen})

    async def _me(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        if who.role == "volunteer":
            return json_response({"id": who.sub, "name": who.name, "role": who.role})
        view = worker_json(self._roster.view(who.sub, self._now_ms()))
        grid = self._catalog().district.areas.get(view["grid"] or "")
        return json_response({**view, "role": who.role, "grid_name": grid.name if grid else None})

    async def _duty(self, exchange: Exchange) -> web.StreamResponse:
        said = await exchange.body(SetDuty)
        view = await self._roster.set_duty(exchange.who.sub, said.duty, now_ms=self._now_ms())
        await self._duty_changed(exchange.who.sub, said.duty)
        return json_response(worker_json(view))

    async def _location(self, exchange: Exchange) -> web.StreamResponse:
        fix = parse_location(await exchange.request.read())
        counted = self._roster.locate(exchange.who.sub, fix, now_ms=self._now_ms())
        return json_response({"counted": counted})

    # -- boxes --------------------------------------------------------------------------------------------------

    async def _box(self, exchange: Exchange) -> web.StreamResponse:
        sid, catalog = exchange.who.sub, self._catalog()
        key = catalog.world.box_key(sid)
        if key is None:
            raise NotFound(f"box {sid} has no key in secrets.yaml")
        home = catalog.world.home_of(sid)
        place = catalog.district.home_of(sid)
        community = catalog.district.areas.get(place.community or "")
        grid = catalog.district.areas.get(place.grid or "")
        visible = [
            {"id": site.id, "name": site.name}
            for site in catalog.world.cameras()
            if catalog.configs[site.id].visible_to is not Visibility.NONE
            and authorize(exchange.who, Action.CAMERA_VIEW, catalog.resource(site.id)).allowed
        ]
        last = await self._last_ack(sid)
        mqtt = {"path": "/mqtt", "client_id": sid, "username": sid, "password": device_password(key, sid)}
        return json_response(
            {
                "sid": sid,
                "key": key.hex(),
                "name": home.address if home else sid,
                "community": community.name if community else None,
                "grid_phone": (grid.phone if grid else None) or (community.phone if community else None),
                "cameras": visible,
                "mqtt": mqtt if self._mqtt_on else None,
                "alarm": last,
                "call": self._call_of(last),
                "follow_up": await self._asked_of(sid),
                "now": self._now_ms(),
            }
        )


def _point(near: str, datum: str) -> Position:
    if datum not in tuple(Datum):
        raise ProtocolError(
            f"datum must be one of {', '.join(Datum)}: without it the nearest would be the wrong one"
        )
    lat, _, lon = near.partition(",")
    try:
        return from_datum(float(lat), float(lon), Datum(datum))
    except ValueError as error:
        raise ProtocolError(f"near must be lat,lon in degrees: {error}") from None
