"""Who is told of an alarm or incident besides the desk it began at, over which channel, and whether anybody was reached.

Each audience that escalation adds gets a row here in the same transaction and an outbox row of kind `audience`; the
root reaches for it and says how many it reached. That nobody was reached is written down and told to the desk at once: the
alarm is announced again with an entry `nobody_reached` in its timeline.

    audience                     channel  who
    community, street, district  event    the pages of that desk
    supervisor                   event    operators with the flag
    leader                       event    duty leaders
    police                       prompt   the desks are asked to hand over to 110
    volunteers                   event    volunteers within the radius who opted in for this hour
"""

from __future__ import annotations

import datetime
import math
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    Table,
    Text,
    bindparam,
    select,
    update,
)

from gateway import outbox
from gateway.alarms.escalation import Effect, Level
from gateway.district import Volunteer
from gateway.geo import EARTH_RADIUS_M, Position, distance_m
from gateway.store import Prepared, defer, flush, metadata

__all__ = [
    "KIND_AUDIENCE",
    "Audience",
    "Reach",
    "Volunteers",
    "added_by",
    "call_on",
    "call_on_everybody",
    "deliveries_of",
    "delivery_table",
    "note_first",
    "reached",
]

KIND_AUDIENCE = "audience"
CHINA = datetime.timezone(datetime.timedelta(hours=8))
Json = dict[str, Any]
Reach = Callable[[Json], Awaitable[int]]
"""Takes {audience, alarm_id | incident_id, lineage, ...}; returns how many people it reached."""


class Audience(StrEnum):
    COMMUNITY = "community"
    STREET = "street"
    DISTRICT = "district"
    SUPERVISOR = "supervisor"
    LEADER = "leader"
    POLICE = "police"
    VOLUNTEERS = "volunteers"


_OF_LEVEL = {
    Level.COMMUNITY: (Audience.COMMUNITY,),
    Level.STREET: (Audience.STREET,),
    Level.DISTRICT: (Audience.DISTRICT, Audience.SUPERVISOR),
    Level.LEADER: (Audience.LEADER,),
}

delivery_table = Table(
    "alarm_delivery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("audience", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("delivered_at", BigInteger),
    Column("reached", Integer),
)
Index("ix_alarm_delivery_subject", delivery_table.c.subject, delivery_table.c.id)


_REACHED = Prepared(
    update(delivery_table)
    .where(
        delivery_table.c.subject == bindparam("of_subject"),
        delivery_table.c.audience == bindparam("of_audience"),
        delivery_table.c.at == bindparam("called_at"),
        delivery_table.c.delivered_at.is_(None),
    )
    .values(delivered_at=bindparam("delivered_at"), reached=bindparam("reached"))
)


def added_by(added: Iterable[Level], effects: Iterable[Effect]) -> list[Audience]:
    """The audiences that a step of the escalation adds."""
    found = [audience for level in added for audience in _OF_LEVEL[level]]
    if Effect.OFFER_VOLUNTEERS in effects:
        found.append(Audience.VOLUNTEERS)
    if Effect.PROMPT_POLICE in effects:
        found.append(Audience.POLICE)
    return found


def call_on_everybody(
    connection: Connection, subject: str, payload: Json, now_ms: int, *, told: Level | None, peaceful: bool
) -> None:
    """Severity 4: all who have not been told yet. told: the highest level that was; peaceful: volunteers, too."""
    levels = tuple(Level)
    left = levels if told is None else levels[levels.index(told) + 1 :]
    effects = [Effect.PROMPT_POLICE] if Level.LEADER in left else []
    if peaceful and Level.STREET in left:
        effects.append(Effect.OFFER_VOLUNTEERS)
    for audience in added_by(left, effects):
        call_on(connection, subject, audience, now_ms, payload)


def note_first(connection: Connection, alarm_id: str, level: Level, now_ms: int) -> None:
    """The desk that an alarm begins at hears of it by the alarm's own event; that it was shown is its confirmation."""
    row = {
        "subject": f"alarm/{alarm_id}",
        "audience": _OF_LEVEL[level][0],
        "channel": "event",
        "at": now_ms,
        "delivered_at": None,
        "reached": None,
    }
    defer(connection, delivery_table, row)


def call_on(connection: Connection, subject: str, audience: Audience, now_ms: int, payload: Json) -> None:
    """Records the delivery that is due and announces it."""
    channel = "prompt" if audience is Audience.POLICE else "event"
    row = {"subject": subject, "audience": audience, "channel": channel, "at": now_ms}
    defer(connection, delivery_table, {**row, "delivered_at": None, "reached": None})
    message = {**payload, "called_at": now_ms, "audience": audience, "channel": channel}
    outbox.add(connection, KIND_AUDIENCE, subject, message)


def reached(connection: Connection, subject: str, payload: Json, count: int, now_ms: int) -> bool:
    """Takes down how many the message (`payload` as call_on made it) reached. False: it was known already."""
    values = {"of_subject": subject, "of_audience": payload["audience"], "called_at": payload["called_at"]}
    values |= {"delivered_at": now_ms, "reached": count}
    return _REACHED.run(connection, values).rowcount == 1


def deliveries_of(connection: Connection, subject: str) -> list[Json]:
    """{audience, channel, at, delivered_at, reached}, oldest first."""
    flush(connection)
    d = delivery_table.c
    rows = connection.execute(
        select(d.audience, d.channel, d.at, d.delivered_at, d.reached)
        .where(d.subject == subject)
        .order_by(d.id)
    )
    return [dict(row) for row in rows.mappings()]


class Volunteers:
    """Those of a district, by latitude: thousands of them, and each escalation asks for the few around its place."""

    def __init__(self, volunteers: Iterable[Volunteer]) -> None:
        sited = [(one.position.lat, one.id, one) for one in volunteers if one.position is not None]
        self._ordered = [one for _, _, one in sorted(sited, key=lambda item: item[:2])]
        self._lats = [one.position.lat for one in self._ordered if one.position is not None]

    def near(self, place: Position, *, radius_m: float, now_ms: int) -> list[str]:
        """Ids of those within the radius who opted in for this hour, nearest first."""
        clock = datetime.datetime.fromtimestamp(now_ms / 1000, CHINA)
        minute = clock.hour * 60 + clock.minute
        reach = math.degrees(1.01 * radius_m / EARTH_RADIUS_M)
        low, high = bisect_left(self._lats, place.lat - reach), bisect_right(self._lats, place.lat + reach)
        found = [
            (distance_m(one.position, place), one.id)
            for one in self._ordered[low:high]
            if one.position is not None and one.available_at(minute)
        ]
        return [id for metres, id in sorted(found) if metres <= radius_m]
