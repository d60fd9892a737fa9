"""What is due now: deadlines of many alarms fired in one transaction with a few statements for all of them.

In a storm thousands of alarms escalate that nobody shows; one by one they would take more of the machine than the presses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from gateway.alarms import announce, audiences, escalation, records
from gateway.alarms.alarm import Event, Handling, change_handling
from gateway.alarms.announce import announce_alarm
from gateway.alarms.escalation import DeadlineKind, Effect, EscalationSettings, Level, Progress
from gateway.alarms.records import NOT_ACKNOWLEDGED, Row, deadline_table
from gateway.audit import audit
from gateway.store import Prepared

__all__ = ["DUE_AT_ONCE", "fire_due", "next_due"]

DUE_AT_ONCE = 64
"""Alarms in one write: a press that comes meanwhile waits for no more than these."""

_LEVELS = tuple(Level)
_DUE = Prepared(
    select(deadline_table.c.alarm_id)
    .where(deadline_table.c.at <= bindparam("now"))
    .order_by(deadline_table.c.at)
    .limit(DUE_AT_ONCE)
)
_NEXT = Prepared(select(func.min(deadline_table.c.at)))


def next_due(connection: Connection) -> int | None:
    """When the earliest deadline is (UTC ms), None if there is none."""
    at: int | None = _NEXT.first(connection, {})[0]
    return at


def fire_due(
    connection: Connection, settings: EscalationSettings, now_ms: int, talked_about: Collection[str] = ()
) -> int:
    """Fires what is due, oldest first; for how many alarms. talked_about: alarms whose call a desk is in."""
    alarm_ids = list(dict.fromkeys(row[0] for row in _DUE.run(connection, {"now": now_ms}).fetchall()))
    found = records.load_many(connection, alarm_ids)
    left: dict[str, Mapping[DeadlineKind, int]] = {}
    for alarm_id in alarm_ids:
        if alarm_id in found:
            talking = alarm_id in talked_about
            left[alarm_id] = _fire(connection, *found[alarm_id], settings, now_ms, talking=talking)
        else:
            left[alarm_id] = {}
    records.replace_deadlines(connection, left)
    return len(alarm_ids)


def _fire(
    c: Connection,
    row: Row,
    deadlines: dict[DeadlineKind, int],
    settings: EscalationSettings,
    now_ms: int,
    *,
    talking: bool,
) -> Mapping[DeadlineKind, int]:
    """One alarm; the deadlines that it has then."""
    alarm_id, before = (
        row["id"],
        Progress(level=Level(row["level"]), base_ms=row["base_ms"], deadlines=deadlines),
    )
    after, effects = escalation.fire(
        settings, before, kind=row["kind"], silent=bool(row["silent"]), now_ms=now_ms, talking=talking
    )
    if not effects:  # nobody is told anything, but pages count down to another moment
        announce_alarm(c, row, after.deadlines)
        return after.deadlines
    values: Row = {"level": after.level, "base_ms": after.base_ms, "alerted_at": now_ms}
    if Effect.ABANDON in effects:
        handling = change_handling(Handling(row["handling"]), Event.ABANDON)
        values |= {"handling": handling, **NOT_ACKNOWLEDGED}
        _log(c, alarm_id, "abandoned", now_ms)
    added: tuple[Level, ...] = ()
    if Effect.ADD_AUDIENCE in effects:
        added = _LEVELS[_LEVELS.index(before.level) + 1 : _LEVELS.index(after.level) + 1]
        _log(c, alarm_id, "escalated", now_ms, level=after.level, added=added)
    if Effect.PROMPT_POLICE in effects:
        records.add_timeline(c, alarm_id, at=now_ms, event="police_prompt", by="system")
    row = records.update_alarm(c, row, **values)
    announce_alarm(c, row, after.deadlines)
    for audience in audiences.added_by(added, effects):
        audiences.call_on(c, f"alarm/{alarm_id}", audience, now_ms, announce.audience_brief(row))
    return after.deadlines


def _log(c: Connection, alarm_id: str, event: str, now_ms: int, **detail: Any) -> None:
    """Timeline and audit."""
    records.add_timeline(c, alarm_id, at=now_ms, event=event, by="system", **detail)
    audit(c, who="system", action=f"alarm.{event}", subject=f"alarm/{alarm_id}", detail=detail, now_ms=now_ms)
