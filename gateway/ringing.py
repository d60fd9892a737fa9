"""Whom the commit of an alarm rings: the gridworkers near a resident's press, the desks for a gridworker's call for help.

A call for help is an alarm like a press: named by (worker, the id that its phone made) for ever, on disk before it is
answered, escalated over the desks, in their queue until it is closed. Its call rings by the same outbox row as any
alarm's, so a crash between the two is healed at start. Built by the root; reads alarms and calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ulid import ULID

from gateway.alarms.desk import AlarmDesk
from gateway.alarms.dispatch import Duty
from gateway.alarms.intake import Admitted, Place
from gateway.alarms.press import Kind, PlaceKind, Press
from gateway.alarms.roster import Roster
from gateway.alarms.world import Area
from gateway.callout import Callout
from gateway.catalog import Catalog
from gateway.errors import NotFound
from gateway.geo import Position
from gateway.intercom.model import AlarmBrief, Call, Participant
from gateway.intercom.switchboard import Switchboard

__all__ = ["Ringing"]

Json = dict[str, Any]

NOTE_LIMIT = 200


class Ringing:
    """catalog: the configured world as it is now. now_ms: UTC milliseconds."""

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        *,
        alarms: AlarmDesk,
        calls: Switchboard,
        callout: Callout,
        roster: Roster,
        now_ms: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._alarms, self._calls = alarms, calls
        self._callout, self._roster = callout, roster
        self._now_ms = now_ms

    async def plans(self, plans: Sequence[Json]) -> None:
        """The outbox: what alarms were committed (announce.announce_ring). They may come again."""
        full = self._catalog().full_lineage
        briefs = []
        for plan in plans:
            kind, _, worker_id = str(plan["source"]).partition("/")
            if kind == "worker":
                await self._ring_desks(worker_id, str(plan["press_id"]), str(plan["alarm_id"]))
            else:
                briefs.append(AlarmBrief.from_payload({**plan, "lineage": full(tuple(plan["lineage"]))}))
        if briefs:
            await self._calls.open_for_alarms(briefs)

    async def help(self, worker: Participant, press_id: str, position: Position | None, note: str) -> Call:
        """This gridworker calls for help from `position` (None: where it was last seen). The same press again, also a second
        one while the first is open, is the same alarm. Raises NotFound for who is none, Unavailable if it is not on disk."""
        now_ms = self._now_ms()
        place = self._place(worker.id, position, note.strip()[:NOTE_LIMIT])
        ack = await self._alarms.raised(
            Admitted(
                press=Press(v=1, sid=worker.id, pid=press_id, seq=0, ts=now_ms, kind=Kind.SOS, sig=""),
                place=place,
                alarm_id=str(ULID.from_timestamp(now_ms / 1000)),
                now_ms=now_ms,
                via="http",
                origin="worker",
            )
        )
        call = await self._ring_desks(worker.id, press_id, str(ack["alarm"]))
        await self._roster.set_duty(worker.id, Duty.SOS, now_ms=self._now_ms())
        return call

    async def _ring_desks(self, worker_id: str, press_id: str, alarm_id: str) -> Call:
        brief = await self._callout.brief_of(alarm_id)
        known = self._catalog().district.gridworkers.get(worker_id)
        name = known.name if known is not None else worker_id
        call = await self._calls.call_center(
            Participant(id=worker_id, name=name, role="worker"),
            lineage=brief.lineage,
            position=brief.position,
            place_label=brief.place_label,
            sos=True,
            alarm_id=alarm_id,
            press_id=press_id,
        )
        if call.alarm_id != alarm_id:  # the call that goes on began with an alarm that is closed by now
            await self._alarms.on_call(alarm_id, call.id)
        return call

    def _place(self, worker_id: str, position: Position | None, note: str) -> Place:
        """Its desk is that of where the worker is; of its own grid if that is outside of the district or unknown."""
        catalog = self._catalog()
        site = next((one for one in catalog.world.workers() if one.id == worker_id), None)
        if site is None:
            raise NotFound(f"no gridworker {worker_id!r}")
        _, seen, where = self._callout.whereabouts(worker_id)
        label = f"网格员求助 {site.name} {where}"
        if position is None and seen is not None:
            position = Position(lat=seen[0], lon=seen[1])
        if position is None:
            position, label = site.centroid, f"{label}（位置未知）"
        area = catalog.world.area_at(position) if position is not None else Area()
        return Place(
            kind=PlaceKind.POINT,
            ref=None,
            label=f"{label} · {note}" if note else label,
            position=position,
            area=area if area.district else site.area,
            camera=None,
            household=None,
        )
