"""Who is behind an audience of the escalation, by the pages that are open: the answer to "did that reach anybody?"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.access import Action, Principal, Resource, Role
from gateway.alarms.audiences import Audience, Volunteers
from gateway.catalog import Catalog
from gateway.geo import Position
from gateway.http.events import EventChannel

__all__ = ["AudienceReach"]

_DESK_LEVEL = {Audience.COMMUNITY: 2, Audience.STREET: 1}  # index of its area in a lineage


class AudienceReach:
    """`await tell(payload)` publishes the event `audience` and returns how many pages of those meant are open."""

    def __init__(
        self, events: EventChannel, catalog: Callable[[], Catalog], radius_m: float, now_ms: Callable[[], int]
    ) -> None:
        self._events = events
        self._catalog = catalog
        self._radius_m = radius_m
        self._now_ms = now_ms
        self._volunteers_of: Catalog | None = None
        self._known = Volunteers(())

    async def tell(self, payload: dict[str, Any]) -> int:
        audience = Audience(payload["audience"])
        lineage = self._catalog().full_lineage(tuple(payload["lineage"]))
        near = self._near(payload) if audience is Audience.VOLUNTEERS else ()
        resource = Resource(
            kind="alarm" if "alarm_id" in payload else "incident",
            id=payload.get("alarm_id") or payload.get("incident_id"),
            lineage=lineage,
            participants=frozenset(near),
        )
        data = {key: value for key, value in payload.items() if key not in ("lineage", "called_at")}
        # Volunteers see no alarms; for them it is an offer, which the desks of the place see as well.
        action = Action.TASK_LIST if audience is Audience.VOLUNTEERS else None
        self._events.publish("audience", data, resource=resource, action=action)
        return self._events.readers(lambda principal: _meant(principal, audience, lineage, near))

    def _near(self, payload: dict[str, Any]) -> tuple[str, ...]:
        if payload["position"] is None:
            return ()
        catalog = self._catalog()
        if self._volunteers_of is not catalog:
            self._volunteers_of, self._known = catalog, Volunteers(catalog.district.volunteers.values())
        return tuple(
            self._known.near(Position(**payload["position"]), radius_m=self._radius_m, now_ms=self._now_ms())
        )


def _meant(principal: Principal, audience: Audience, lineage: tuple[str, ...], near: tuple[str, ...]) -> bool:
    if audience is Audience.VOLUNTEERS:
        return principal.role is Role.VOLUNTEER and principal.sub in near
    if principal.area is not None and principal.area not in lineage:
        return False
    match audience:
        case Audience.SUPERVISOR:
            return principal.supervisor
        case Audience.LEADER:
            return principal.role is Role.LEADER
        case Audience.DISTRICT:
            return principal.role is Role.OPERATOR
        case Audience.POLICE:
            return principal.role in (Role.OPERATOR, Role.DESK)
    level = _DESK_LEVEL[audience]
    return principal.role is Role.DESK and principal.area in lineage[level : level + 1]
