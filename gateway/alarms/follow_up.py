"""回访: after an incident was handled, the residents who pressed are asked whether it was handled well.

A box is asked by its retained `state` (stage `follow_up`) and finds the same in GET /api/v1/stb/me; what it answers is
signed. Who can't be asked on the screen is telephoned by a desk. An incident is rated only once that was done, or once
the desk has said why it can't be (`no_follow_up`); one that no resident raised has nobody to ask.

Runs in the transaction of the step that asks or answers.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from gateway.alarms.announce import Json, announce_state, state_of
from gateway.alarms.incident import IncidentState
from gateway.alarms.records import Row, alarm_table, incident_table
from gateway.errors import Conflict, ProtocolError

__all__ = ["ANSWERABLE", "ask", "asked_of", "before_rating", "residents", "settle", "state_now"]

ANSWERABLE = (IncidentState.VERIFYING, IncidentState.RATED)
NOBODY = "没有居民可回访"
HANDLED = "已处理完毕"
REASON_LIMIT = 200


def residents(connection: Connection, incident_id: str) -> list[Row]:
    """The alarms of boxes that belong to the incident."""
    query = select(alarm_table).where(
        alarm_table.c.incident_id == incident_id,
        alarm_table.c.verified,
        alarm_table.c.source.startswith("stb/"),
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def ask(connection: Connection, incident: Row) -> None:
    """The boxes show the question until it is answered or the incident goes on."""
    for row in residents(connection, incident["id"]):
        asked = {
            "alarm": row["id"],
            "stage": "follow_up",
            "incident": incident["id"],
            "message": f"事件{incident['number']}已处理，您满意吗？",
        }
        announce_state(connection, row, asked)


def settle(connection: Connection, incident_id: str) -> None:
    """The question is gone: the boxes show how far their alarm is again."""
    for row in residents(connection, incident_id):
        if row["closed_at"] is None:
            announce_state(connection, row, state_now(connection, row))


def state_now(connection: Connection, row: Row) -> Json:
    """state_of() of an open alarm; with `handled` while its incident waits only for verification, rating or archive:
    nobody is on the way any more, and there is nothing left to correct or to cancel."""
    state = state_of(row)
    if row["incident_id"] is None:
        return state
    query = select(incident_table.c.state).where(incident_table.c.id == row["incident_id"])
    over = connection.execute(query).scalar_one_or_none() in ANSWERABLE
    return {**state, "message": HANDLED, "handled": True} if over else state


def asked_of(connection: Connection, source: str) -> Json | None:
    """What the box is asked now: {incident, pid, alarm}."""
    i, a = incident_table.c, alarm_table.c
    query = (
        select(i.id, a.press_id, a.id)
        .join(incident_table, i.id == a.incident_id)
        .where(a.source == source, a.verified, i.state.in_(ANSWERABLE), i.follow_up_at.is_(None))
        .order_by(a.received_at.desc())
        .limit(1)
    )
    found = connection.execute(query).first()
    return None if found is None else {"incident": found[0], "pid": found[1], "alarm": found[2]}


def before_rating(
    connection: Connection, incident: Row, said: dict[str, Any], now_ms: int
) -> tuple[Row, dict[str, Any]]:
    """Columns to set, and what the audit line says of it. `satisfied` in `said` is a desk's own call-back.

    Raises Conflict if there was no follow-up and no reason.
    """
    satisfied, reason = said.get("satisfied"), said.get("no_follow_up")
    if reason is not None and (not isinstance(reason, str) or not 0 < len(reason.strip()) <= REASON_LIMIT):
        raise ProtocolError(f"detail.no_follow_up must say why, in at most {REASON_LIMIT} characters")
    if isinstance(satisfied, bool):
        return {"satisfied": satisfied, "follow_up_at": now_ms}, {}
    if incident["follow_up_at"] is not None or reason is not None:
        return {}, {}
    if not residents(connection, incident["id"]):
        return {}, {"no_follow_up": NOBODY}
    raise Conflict(
        "请先回访居民（满意或不满意），或说明为什么不能回访",
        incident_id=incident["id"],
        needs=["satisfied", "no_follow_up"],
    )
