"""What evidence needs to know of alarms and calls: the one place that reads all three. Built by the root.

An alarm's event begins its cameras' recording; a call's leg its own. Everything here may be told again after a crash.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select
from ulid import ULID

from gateway.alarms import records
from gateway.alarms.casework import CaseDesk
from gateway.alarms.desk import AlarmDesk
from gateway.audit import audit_table
from gateway.catalog import Catalog
from gateway.errors import NotFound
from gateway.evidence.desk import AlarmScene, EvidenceDesk, EvidencePolicy, LegScene
from gateway.evidence.keeping import KeepingPolicy
from gateway.evidence.order import RecordingOrder, RecordingSpec
from gateway.intercom.model import Call
from gateway.intercom.switchboard import Switchboard
from gateway.intercom.view import call_view, leg_of_source
from gateway.settings import EvidenceSettings
from gateway.store import Store

__all__ = ["Witness", "recording_spec"]

Json = dict[str, Any]

SEEN = 4_096
"""Alarms whose first event was seen: a repeat costs nothing then. Beyond it one costs a look into the database."""
EXCERPT = 5_000
"""Lines of the audit trail in one export."""


def recording_spec(settings: EvidenceSettings, data: Path) -> RecordingSpec | None:
    """What the media processes are told; None: nothing is recorded."""
    if not settings.enabled:
        return None
    return RecordingSpec(
        directory=str((data / "evidence").absolute()),
        stop_octets=settings.floor_bytes // 2,
        preroll_s=settings.preroll_s,
    )


class Witness:
    """`desk` is the evidence desk; the rest feeds it."""

    def __init__(
        self,
        store: Store,
        settings: EvidenceSettings,
        data: Path,
        *,
        catalog: Callable[[], Catalog],
        alarms: AlarmDesk,
        cases: CaseDesk,
        calls: Switchboard,
        record: Callable[[RecordingOrder], Awaitable[None]],
        stop: Callable[[str], Awaitable[None]],
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._settings = settings
        self._catalog = catalog
        self._alarms = alarms
        self._cases = cases
        self._calls = calls
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str | None], None] = OrderedDict()
        self.desk = EvidenceDesk(
            store,
            data / "evidence",
            EvidencePolicy(
                keeping=KeepingPolicy(
                    retention_ms=settings.retention_days * 86_400_000, floor_octets=settings.floor_bytes
                ),
                after_ms=round(settings.after_s * 1000),
                cameras=settings.cameras,
                at_once=settings.recordings,
                preroll_ms=round(settings.preroll_s * 1000),
            ),
            record=record,
            stop=stop,
            recorded=calls.recording_changed,
            leg_scene=self._leg_scene,
            clock=clock,
            new_id=lambda at: str(ULID.from_timestamp(at / 1000)),
        )

    async def run(self) -> None:
        """Until cancelled. What a killed gateway left is made true first."""
        if not self._settings.enabled:
            return
        await self.desk.start()
        for alarm_id in await self._store.read(self._recent_alarms):
            await self._begin(alarm_id)
        await self.desk.run()

    def source_changed(self, source_id: str, tracks: tuple[str, ...]) -> None:
        """The media plane: what a leg publishes by now."""
        self._calls.media_changed(source_id, tracks)
        if self._settings.enabled:
            self.desk.on_tracks(source_id, tracks)

    def wants(self, alarm_id: str, incident_id: str | None) -> bool:
        """Whether such an event would tell something new: most don't."""
        return (alarm_id, None) not in self._seen or (alarm_id, incident_id) not in self._seen

    def alarm_changed(self, alarm: Json) -> None:
        """An alarm's event: its first begins the recording, later ones may name its incident."""
        alarm_id, incident_id = str(alarm["id"]), alarm["incident_id"]
        if not self._settings.enabled or not alarm["verified"]:
            return
        if self._first((alarm_id, None)):
            self.desk.soon(lambda: self._begin(alarm_id))
        if incident_id is not None and self._first((alarm_id, incident_id)):
            self.desk.soon(lambda: self.desk.name_incident(alarm_id, incident_id))

    def _first(self, key: tuple[str, str | None]) -> bool:
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return True

    async def _begin(self, alarm_id: str) -> None:
        # One read and the ranking of cameras, no more: in a storm this runs for each of hundreds of alarms a second.
        row = await self._store.read(lambda c: records.load(c, alarm_id))
        position = records.position_of(row)
        if not row["verified"]:
            return
        cameras = [] if position is None else self._alarms.cameras_at(position, watched=row["camera"])
        await self.desk.record_cameras(
            AlarmScene(
                alarm_id=alarm_id,
                incident_id=row["incident_id"],
                lineage=self._catalog().full_lineage(records.lineage_of(row)),
                pressed_at=row["received_at"],
                cameras=tuple((camera.id, camera.name) for camera in cameras),
            )
        )

    def _recent_alarms(self, connection: Connection) -> list[str]:
        """Those whose cameras should still be recorded."""
        table = records.alarm_table
        since = self._clock() - round(self._settings.after_s * 1000)
        query = select(table.c.id).where(table.c.received_at > since, table.c.verified.is_(True))
        return list(connection.execute(query).scalars())

    async def _leg_scene(self, source_id: str) -> LegScene | None:
        key = leg_of_source(source_id)
        if key is None:
            return None
        try:
            call = await self._calls.get(key[0])
        except NotFound:
            return None
        leg = call.leg(key[1])
        if leg is None or leg.left_at is not None:
            return None
        return LegScene(
            call_id=call.id,
            alarm_id=call.alarm_id,
            incident_id=call.incident_id,
            lineage=call.lineage,
            name=leg.participant.name,
        )

    # -- exports ----------------------------------------------------------------------------------------------------

    async def lineage(
        self, *, alarm_id: str | None, incident_id: str | None, call_id: str | None
    ) -> tuple[str, ...]:
        """Where the thing that is exported lies, for `authorize`. Raises NotFound."""
        if alarm_id is not None:
            codes = await self._alarms.lineage(alarm_id)
        elif incident_id is not None:
            codes = await self._cases.lineage(incident_id)
        else:
            codes = (await self._calls.get(str(call_id))).lineage
        return self._catalog().full_lineage(codes)

    async def timeline(
        self, *, alarm_id: str | None, incident_id: str | None, call_id: str | None
    ) -> tuple[Json, list[Json]]:
        """What happened, without the household's card, and the lines of the audit trail about it. Raises NotFound."""
        incident = None if incident_id is None else await self._cases.get(incident_id)
        if alarm_id is None and incident_id is not None:
            alarm_id = await self._cases.alarm_of(incident_id)
        calls = await self._calls_about(alarm_id, call_id)
        if alarm_id is None and calls:
            alarm_id = calls[0].alarm_id
        alarm = None if alarm_id is None else await self._alarms.get(alarm_id)
        if alarm is not None and incident is None and incident_id is None and call_id is None:
            incident_id = alarm["incident_id"]
            incident = None if incident_id is None else await self._cases.get(str(incident_id))
        story = {"alarm": alarm, "incident": incident, "calls": [call_view(call) for call in calls]}
        subjects = [f"alarm/{alarm_id}", f"incident/{incident_id}", *(f"call/{call.id}" for call in calls)]
        return story, await self._store.read(lambda connection: _excerpt(connection, subjects))

    async def _calls_about(self, alarm_id: str | None, call_id: str | None) -> list[Call]:
        if call_id is not None:
            return [await self._calls.get(call_id)]
        return [] if alarm_id is None else await self._calls.about(alarm_id)


def _excerpt(connection: Connection, subjects: list[str]) -> list[Json]:
    columns = audit_table.c
    query = (
        select(audit_table).where(columns.subject.in_(subjects)).order_by(columns.id.desc()).limit(EXCERPT)
    )
    found = [dict(row) for row in connection.execute(query).mappings()]
    return [{**row, "previous": row["previous"].hex(), "hash": row["hash"].hex()} for row in reversed(found)]
