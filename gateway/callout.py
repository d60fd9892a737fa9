"""Whom an alarm calls out: the alarm desk's knowledge in the words of calls, and what the edge asks of an alarm's people.

Alarms and calls don't know each other; this is the one place that reads both.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, select

from gateway.alarms import follow_up, records
from gateway.alarms.dispatch import Candidate, DispatchSettings, WorkerChoice, rank_workers
from gateway.alarms.press import sign
from gateway.alarms.roster import Roster
from gateway.catalog import Catalog
from gateway.errors import NotFound
from gateway.geo import Position
from gateway.intercom.switchboard import AlarmBrief, IncidentBrief
from gateway.store import Store

__all__ = ["Callout"]

RANKED = 24
"""Workers that a call's plan may choose from: more than ever ring in one call."""
AGE_STEP_MS = 100
"""Ages of fixes are rounded up to it, so that the calls of a storm are ranked from the same line-up."""

Pair = tuple[float, float]


class Callout:
    """Rankings and descriptions. `catalog` gives the configured world as it is now."""

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        store: Store,
        roster: Roster,
        settings: DispatchSettings,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._roster = roster
        self._settings = settings
        self._now_ms = now_ms

    def rank(self, position: Pair | None, grid: str | None, exclude: frozenset[str]) -> list[Candidate]:
        """Workers for a call, best first; busy ones too, since a call may wait at a phone."""
        catalog = self._catalog()
        where = _position(position) or (catalog.district.centroid(grid) if grid else None)
        if where is None:
            return []
        return self._roster.crowd.candidates(
            self._settings,
            where,
            grid=grid or catalog.world.area_at(where).grid,
            now_ms=-(-self._now_ms() // AGE_STEP_MS) * AGE_STEP_MS,
            exclude=exclude,
            busy_too=True,
            limit=RANKED,
        )

    def pick(self, worker_id: str, position: Pair | None) -> WorkerChoice | None:
        """One worker as the ranking sees it; None if unknown, off duty or nowhere."""
        site = next((w for w in self._catalog().world.workers() if w.id == worker_id), None)
        where = _position(position) or (site.centroid if site is not None else None)
        if site is None or where is None:
            return None
        ranked = rank_workers(
            self._settings,
            [self._roster.state(worker_id)],
            where,
            grid=site.grid,
            now_ms=self._now_ms(),
            busy_too=True,
            limit=1,
        )
        return ranked[0] if ranked else None

    def whereabouts(self, worker_id: str) -> tuple[tuple[str, ...], Pair | None, str]:
        """Lineage, position and a label of where a worker is. Raises NotFound."""
        district = self._catalog().district
        worker = district.gridworkers.get(worker_id)
        if worker is None:
            raise NotFound(f"no gridworker {worker_id!r}")
        position = self._roster.view(worker_id, self._now_ms()).position
        grid = district.areas.get(worker.grid or "")
        pair = None if position is None else (position.lat, position.lon)
        return district.lineage(worker.grid), pair, grid.name if grid else worker.name

    async def brief_of(self, alarm_id: str) -> AlarmBrief:
        """An alarm as a call needs it. Raises NotFound."""
        row = await self._row(alarm_id)
        position = records.position_of(row)
        return AlarmBrief(
            alarm_id=alarm_id,
            place_label=row["place_label"],
            position=None if position is None else (position.lat, position.lon),
            lineage=self._catalog().full_lineage(records.lineage_of(row)),
            grid=row["grid"],
            incident_id=row["incident_id"],
        )

    async def brief_of_incident(self, incident_id: str) -> AlarmBrief | IncidentBrief:
        """An incident as a call needs it, by its alarm if it has one. Raises NotFound."""
        row = await self._store.read(lambda connection: records.load_incident(connection, incident_id))
        if row["alarm_id"] is not None:
            return await self.brief_of(row["alarm_id"])
        position = records.position_of(row)
        return IncidentBrief(
            place_label=row["place_label"],
            position=None if position is None else (position.lat, position.lon),
            lineage=self._catalog().full_lineage(records.lineage_of(row)),
            grid=row["grid"],
            incident_id=incident_id,
        )

    async def box_of(self, alarm_id: str) -> str | None:
        """The box that raised it, if it was proven to be that one."""
        try:
            row = await self._row(alarm_id)
        except NotFound:
            return None
        kind, _, sid = str(row["source"]).partition("/")
        return sid if kind == "stb" and row["verified"] else None

    async def is_silent(self, alarm_id: str) -> bool:
        """Whether nothing of it may be seen or heard at its box. Raises NotFound."""
        return bool((await self._row(alarm_id))["silent"])

    def verify_box(self, sid: str, text: str, signature: str) -> bool:
        """Whether this box has signed that text."""
        key = self._catalog().world.box_key(sid)
        return key is not None and hmac.compare_digest(sign(key, text).encode(), signature.encode())

    async def last_ack(self, sid: str) -> dict[str, Any] | None:
        """The stage of the box's open alarm, for a page that was reloaded."""
        table = records.alarm_table
        query = (
            select(table)
            .where(table.c.source == f"stb/{sid}", table.c.closed_at.is_(None), table.c.verified.is_(True))
            .order_by(table.c.received_at.desc())
            .limit(1)
        )

        def read(connection: Connection) -> dict[str, Any] | None:
            row = connection.execute(query).mappings().first()
            if row is None:
                return None
            state = follow_up.state_now(connection, dict(row))
            return {"handled": False, **state, "pid": row["press_id"], "silent": bool(row["silent"])}

        return await self._store.read(read)

    async def asked_of(self, sid: str) -> dict[str, Any] | None:
        """Whether this box is asked for its 回访 now: {incident, pid, alarm}."""
        return await self._store.read(lambda connection: follow_up.asked_of(connection, f"stb/{sid}"))

    async def _row(self, alarm_id: str) -> records.Row:
        return await self._store.read(lambda connection: records.load(connection, alarm_id))


def _position(pair: Pair | None) -> Position | None:
    return None if pair is None else Position(lat=pair[0], lon=pair[1])
