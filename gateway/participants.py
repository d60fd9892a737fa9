"""Who takes part in an alarm or an incident: what `authorize` needs to let the people in the field see their own work.

An alarm: the desk that acknowledged it and the gridworker who took its call. An incident: whoever reported it, whoever has
a task in it that was not declined, and who takes part in the alarm that it came from. When an alarm is closed nobody takes
part in it any more (its household card hides); in its incident they still do.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, or_, select

from gateway.alarms import records
from gateway.alarms.task import TaskState
from gateway.alarms.tasks import task_table
from gateway.store import Store

__all__ = ["Participants"]

_GONE = (TaskState.DECLINED, TaskState.EXPIRED, TaskState.REVOKED)
_alarm, _incident = records.alarm_table, records.incident_table


class Participants:
    """Reads only. Subs are those of principals."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of_alarm(self, alarm_id: str) -> frozenset[str]:
        """Empty for one that is closed or unknown."""
        return await self._store.read(lambda c: _of_alarm(c, alarm_id, open_only=True))

    async def of_incident(self, incident_id: str) -> frozenset[str]:
        """Empty for one that is unknown."""
        return await self._store.read(lambda c: _of_incident(c, incident_id))

    async def alarms_of(self, sub: str) -> frozenset[str]:
        """Ids of the open alarms in which `sub` takes part."""
        query = select(_alarm.c.id).where(_alarm.c.closed_at.is_(None), _takes_part(sub))
        return frozenset(await self._store.read(lambda c: c.execute(query).scalars().all()))

    async def incidents_of(self, sub: str) -> frozenset[str]:
        """Ids of the incidents in which `sub` takes part."""
        by_task = select(task_table.c.incident_id).where(
            task_table.c.assignee == sub, task_table.c.state.not_in(_GONE)
        )
        by_alarm = select(_alarm.c.id).where(_takes_part(sub))
        query = select(_incident.c.id).where(
            or_(
                _incident.c.id.in_(by_task),
                _incident.c.alarm_id.in_(by_alarm),
                _incident.c.reported_by.in_(_as_reporter(sub)),
            )
        )
        return frozenset(await self._store.read(lambda c: c.execute(query).scalars().all()))


def _takes_part(sub: str) -> ColumnElement[bool]:
    return or_(_alarm.c.worker_id == sub, _alarm.c.acknowledged_sub == sub)


def _as_reporter(sub: str) -> list[str]:
    """`reported_by` is `role/sub`; only these two report from the field."""
    return [f"worker/{sub}", f"volunteer/{sub}"]


def _of_alarm(connection: Connection, alarm_id: str, *, open_only: bool) -> frozenset[str]:
    query = select(_alarm.c.acknowledged_sub, _alarm.c.worker_id).where(_alarm.c.id == alarm_id)
    if open_only:
        query = query.where(_alarm.c.closed_at.is_(None))
    row = connection.execute(query).first()
    return frozenset() if row is None else frozenset(sub for sub in row if sub)


def _of_incident(connection: Connection, incident_id: str) -> frozenset[str]:
    query = select(_incident.c.alarm_id, _incident.c.reported_by).where(_incident.c.id == incident_id)
    row = connection.execute(query).first()
    if row is None:
        return frozenset()
    helpers = select(task_table.c.assignee).where(
        task_table.c.incident_id == incident_id, task_table.c.state.not_in(_GONE)
    )
    found = frozenset(connection.execute(helpers).scalars().all())
    role, _, sub = row.reported_by.partition("/")
    if role in ("worker", "volunteer"):
        found |= {sub}
    return found if row.alarm_id is None else found | _of_alarm(connection, row.alarm_id, open_only=False)
