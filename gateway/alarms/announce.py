"""What a transaction of the alarm path announces: rows of the outbox, and the words for the resident.

ack        {topic, payload, qos, retain}; payload null empties a retained message. Ordered per box.
event      News. Ordered per alarm.
ring_plan  the brief that opens the alarm's call. The same alarm again means: only what it says may have
changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, select

from gateway import outbox
from gateway.alarms.escalation import DeadlineKind
from gateway.alarms.press import Kind, Refusal
from gateway.alarms.records import Row, alarm_table, alarm_view, lineage_of

__all__ = [
    "KIND_ACK",
    "KIND_EVENT",
    "KIND_RING",
    "MQTT_ROOT",
    "News",
    "Stage",
    "ack",
    "announce_alarm",
    "announce_event",
    "announce_fall",
    "announce_ring",
    "announce_stage",
    "announce_state",
    "audience_brief",
    "refusal",
    "stage_of",
    "state_of",
]

MQTT_ROOT = "pd/v1"
KIND_ACK = "ack"
KIND_EVENT = "event"
KIND_RING = "ring_plan"

_REAL = (
    select(alarm_table.c.id)
    .where(
        alarm_table.c.source == bindparam("source"),
        alarm_table.c.closed_at.is_(None),
        alarm_table.c.verified,
        alarm_table.c.kind != Kind.TEST,
    )
    .limit(1)
)

Json = dict[str, Any]


class News(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the page channel on its way through the outbox. over_at: since when no phone may ring for this alarm
    (UTC ms); cancelled: because its resident took it back. data: JSON, encoded once for all pages; participants:
    who takes part in an alarm, as `Participants` would say; incident: that of an alarm."""

    type: str
    id: str
    lineage: tuple[str, ...]
    data: msgspec.Raw
    owner: str | None = None
    over_at: int | None = None
    cancelled: bool = False
    participants: tuple[str, ...] = ()
    incident: str | None = None

    def values(self) -> Json:
        values: Json = msgspec.json.decode(self.data)
        return values


class Stage(StrEnum):
    """How far the answer to a press is; each only when it is true (product.md section 2)."""

    PERSISTED = "persisted"
    SHOWN = "shown"
    ANSWERED = "answered"
    DISPATCHED = "dispatched"
    CLOSED = "closed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


def words(stage: Stage, row: Row) -> str:
    """What the box says."""
    if stage is Stage.DISPATCHED:
        minutes = max(1, round((row["eta_s"] or 0) / 60))
        return f"网格员{row['worker_name']}正赶来 约{minutes}分钟"
    return {
        Stage.PERSISTED: "已送达",
        Stage.SHOWN: "已显示在值班台",
        Stage.ANSWERED: "值班员已看到",
        Stage.CLOSED: "已结束",
        Stage.CANCELLED: "已取消，仍会回访",
        Stage.REFUSED: "请拨打110",
    }[stage]


def stage_of(row: Row) -> Stage:
    """The furthest stage that is true of the alarm."""
    if row["closed_at"] is not None:
        return Stage.CLOSED
    if row["cleared_at"] is not None:
        return Stage.CANCELLED
    if row["worker_id"] is not None:
        return Stage.DISPATCHED
    if row["acknowledged_at"] is not None:
        return Stage.ANSWERED
    return Stage.SHOWN if row["shown_at"] is not None else Stage.PERSISTED


def ack(pid: str, alarm_id: str | None, stage: Stage, now_ms: int, **more: object) -> Json:
    """The contract's ack. more: who, eta_s, reason."""
    return {"pid": pid, "alarm": alarm_id, "stage": stage, "now": now_ms, **more}


def refusal(pid: str, reason: Refusal, now_ms: int) -> Json:
    return ack(pid, None, Stage.REFUSED, now_ms, reason=reason)


def ack_message(sid: str, payload: Json) -> Json:
    return {"topic": f"{MQTT_ROOT}/stb/{sid}/ack", "payload": payload, "qos": 1, "retain": False}


def announce_ack(connection: Connection, sid: str, payload: Json) -> None:
    outbox.add(connection, KIND_ACK, f"stb/{sid}", ack_message(sid, payload))


def announce_stage(
    connection: Connection, row: Row, stage: Stage, now_ms: int, *, pid: str | None = None
) -> Json | None:
    """Tells the box: an ack, and the retained state from which a rebooted box resumes. None if no box
    raised the alarm.
    """
    origin, _, sid = str(row["source"]).partition("/")
    if origin != "stb" or not row["verified"]:
        return None
    more: Json = {}
    if stage is Stage.DISPATCHED:
        more = {"who": row["worker_name"], "eta_s": row["eta_s"]}
    elif stage is Stage.ANSWERED:
        more = {"who": row["acknowledged_name"]}
    payload = ack(pid or row["press_id"], row["id"], stage, now_ms, **more)
    announce_ack(connection, sid, payload)
    announce_state(connection, row, None if stage is Stage.CLOSED else state_of(row))
    return payload


def announce_fall(connection: Connection, row: Row) -> None:
    """The furthest stage is no longer true (a gridworker released, an operator who gave it back): the box's retained state
    says what is. An ack says only what has come true."""
    origin, _, _ = str(row["source"]).partition("/")
    if origin == "stb" and row["verified"]:
        announce_state(connection, row, state_of(row))


def state_of(row: Row) -> Json:
    """What a rebooted box resumes from: the furthest stage that is true."""
    stage = stage_of(row)
    return {"alarm": row["id"], "stage": stage, "message": words(stage, row)}


def announce_state(connection: Connection, row: Row, state: Json | None) -> None:
    """The retained state of the box that raised the alarm. None: there is nothing to show. A test leaves a real one alone."""
    if row["kind"] == Kind.TEST and connection.execute(_REAL, {"source": row["source"]}).first() is not None:
        return
    sid = str(row["source"]).partition("/")[2]
    if state is not None and row["silent"]:
        state = {**state, "silent": True}
    retained = {"topic": f"{MQTT_ROOT}/stb/{sid}/state", "payload": state, "qos": 1, "retain": True}
    outbox.add(connection, KIND_ACK, f"stb/{sid}", retained)


def announce_alarm(connection: Connection, row: Row, deadlines: Mapping[DeadlineKind, int]) -> None:
    """The alarm as it is now, to every page that may see it."""
    taking_part = tuple(sub for sub in (row["acknowledged_sub"], row["worker_id"]) if sub)
    view = alarm_view(row, deadlines)
    announce_event(
        connection,
        "alarm",
        view,
        lineage_of(row),
        over_at=row["cleared_at"] or row["closed_at"],
        cancelled=row["cleared_at"] is not None,
        participants=taking_part,
    )


def announce_event(
    connection: Connection,
    type: str,
    data: Json,
    lineage: tuple[str, ...],
    *,
    owner: str | None = None,
    over_at: int | None = None,
    cancelled: bool = False,
    participants: tuple[str, ...] = (),
) -> None:
    """owner: whose it is besides the area's; over_at, cancelled, participants: see News."""
    encoded = msgspec.Raw(msgspec.json.encode(data))
    news = News(
        type=type,
        id=data["id"],
        lineage=lineage,
        owner=owner,
        over_at=over_at,
        cancelled=cancelled,
        participants=participants,
        incident=data.get("incident_id"),
        data=encoded,
    )
    outbox.add(connection, KIND_EVENT, f"{type}/{data['id']}", news)


def audience_brief(row: Row) -> Json:
    """What an added audience is told at once; its pages fetch the rest."""
    return {
        "alarm_id": row["id"],
        "kind": row["kind"],
        "silent": bool(row["silent"]),
        "place_label": row["place_label"],
        "position": None if row["lat"] is None else {"lat": row["lat"], "lon": row["lon"]},
        "lineage": lineage_of(row),
        "level": row["level"],
    }


def announce_ring(connection: Connection, row: Row, *, again_at: int | None = None) -> None:
    """Opens the alarm's call, which rings by itself: gridworkers, or for a gridworker's call for help the desks.
    again_at: when its resident, who had cancelled it, pressed again; the first call is over, so that rings anew."""
    brief = {
        "alarm_id": row["id"],
        "source": row["source"],
        "press_id": row["press_id"],
        "kind": row["kind"],
        "silent": bool(row["silent"]),
        "place_label": row["place_label"],
        "position": None if row["lat"] is None else {"lat": row["lat"], "lon": row["lon"]},
        "lineage": lineage_of(row),
        "grid": row["grid"],
        "incident_id": row["incident_id"],
        "received_at": row["received_at"],
        "again_at": again_at,
    }
    outbox.add(connection, KIND_RING, f"alarm/{row['id']}", brief)
