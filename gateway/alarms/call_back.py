"""The call-back that a cancelled alarm owes: who cancels under somebody's eyes may need help all the same.

A cancel clears the alarm and closes nothing. Until a desk has recorded whom it spoke to, the alarm can't be closed, neither by
hand nor with its incident (whose own 回访 after the cancel counts as well). A cancelled test owes nothing. If the resident
needs help after all, the alarm is active again. A new cancel owes a new call-back.

Runs in the transaction of the step.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection

from gateway.alarms import records
from gateway.alarms.alarm import Condition, Event, Handling, change_condition, change_handling
from gateway.alarms.announce import announce_alarm, announce_state, state_of
from gateway.alarms.policy import Actor
from gateway.alarms.press import Kind
from gateway.alarms.records import Row
from gateway.errors import Conflict, ProtocolError

__all__ = ["NOTE_LIMIT", "Outcome", "check_called_back", "record_call_back"]

NOTE_LIMIT = 500


class Outcome(StrEnum):
    """What the call-back found."""

    SAFE = "safe"  # the resident was spoken to and is well
    HELP_NEEDED = "help_needed"
    UNREACHABLE = "unreachable"  # nobody was spoken to: the note says what was done instead


def check_called_back(row: Row, *, followed_up_at: int | None = None) -> None:
    """Raises Conflict while the alarm owes its call-back. followed_up_at: when its incident's 回访 was answered."""
    if row["condition"] != Condition.CLEARED or row["call_back"] is not None or row["kind"] == Kind.TEST:
        return
    if followed_up_at is None or followed_up_at < row["cleared_at"]:
        raise Conflict("居民已取消报警：请先回访并登记结果", alarm_id=row["id"], needs="call_back")


def record_call_back(
    c: Connection, row: Row, by: Actor, outcome: Outcome, note: str, now_ms: int
) -> tuple[Row, dict[str, Any]]:
    """The row as it is then, and what the trail keeps of it. Again: the newest counts. Raises Conflict, ProtocolError."""
    if row["closed_at"] is not None or row["condition"] != Condition.CLEARED:
        raise Conflict("只有居民取消且尚未结束的报警需要回访", condition=row["condition"])
    if outcome is Outcome.UNREACHABLE and not note:
        raise ProtocolError("note must say what was done instead, since nobody was reached")
    said = {"at": now_ms, "sub": by.sub, "name": by.name, "outcome": outcome, "note": note}
    values: Row = {"call_back": msgspec.json.encode(said).decode()}
    if outcome is Outcome.HELP_NEEDED:
        values |= {
            "handling": change_handling(Handling(row["handling"]), Event.HELP_NEEDED),
            "condition": change_condition(Condition(row["condition"]), Event.HELP_NEEDED),
            "cleared_at": None,
            "alerted_at": now_ms,
        }
    row = records.update_alarm(c, row, **values)
    if outcome is Outcome.HELP_NEEDED:
        announce_state(c, row, state_of(row))
    announce_alarm(c, row, records.load_deadlines(c, row["id"]))
    return row, {"outcome": outcome, "note": note}
