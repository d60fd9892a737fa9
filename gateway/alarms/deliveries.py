"""What happens to the outbox rows of the alarm path: each kind goes to its receiver, many rows at a time.

A storm of presses announces thousands of things a second. One by one, each would cost a task, a wait for the broker
or a transaction; together they cost one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from sqlalchemy import Connection

from gateway.alarms import announce, audiences, records
from gateway.alarms.announce import Json, News
from gateway.alarms.tasks import KIND_TASK
from gateway.outbox import Courier, Message
from gateway.store import Store

__all__ = ["Publication", "PublishEvents", "PublishMqtt", "Ring", "courier_of"]

Publication = tuple[str, bytes, int, bool]
"""(topic, payload, qos, retain). Payload b"" empties a retained topic."""
PublishMqtt = Callable[[Sequence[Publication]], Awaitable[None]]
"""Returns when the broker has confirmed all (QoS 1). Raises to be tried again."""
PublishEvents = Callable[[Sequence[tuple[int, News]]], Awaitable[None]]
"""Takes (number of the outbox row, news)."""
Ring = Callable[[Sequence[Json]], Awaitable[None]]
"""Takes briefs of alarms (announce.announce_ring). The same alarm may come again."""

RINGS_AT_ONCE = 32
"""Calls opened in one transaction: some thirty milliseconds of the writer, for which presses wait, and a few of the loop."""


def courier_of(
    store: Store,
    *,
    publish_mqtt: PublishMqtt,
    publish_events: PublishEvents,
    ring: Ring,
    reach: audiences.Reach,
    clock: Callable[[], int],
) -> Courier:
    """The courier of the kinds `ack task event ring_plan audience`."""

    async def acks(messages: Sequence[Message]) -> None:
        await publish_mqtt([_publication(_ACK.decode(message.raw)) for message in messages])

    async def tasks(messages: Sequence[Message]) -> None:
        await publish_mqtt(
            [
                (f"{announce.MQTT_ROOT}/w/{to['worker']}/task", msgspec.json.encode(to["message"]), 1, False)
                for to in (message.payload for message in messages)
            ]
        )

    async def events(messages: Sequence[Message]) -> None:
        await publish_events([(message.id, _NEWS.decode(message.raw)) for message in messages])

    async def rings(messages: Sequence[Message]) -> None:
        await ring([message.payload for message in messages])

    async def added(messages: Sequence[Message]) -> None:
        """Reaches for them and takes down how many there were; that there was nobody is told to the desk at once."""
        counts = [(message, await reach(message.payload)) for message in messages]
        now_ms = clock()

        await store.write(lambda c: _note_reached(c, counts, now_ms))

    return Courier(
        store,
        {},
        batched={
            announce.KIND_ACK: acks,
            announce.KIND_EVENT: events,
            announce.KIND_RING: rings,
            audiences.KIND_AUDIENCE: added,
            KIND_TASK: tasks,
        },
        at_once={announce.KIND_RING: RINGS_AT_ONCE},
    )


class _Ack(msgspec.Struct):
    """announce.ack_message() as it lies in the outbox."""

    topic: str
    payload: msgspec.Raw
    qos: int
    retain: bool


_ACK = msgspec.json.Decoder(_Ack)
_NEWS = msgspec.json.Decoder(News)


def _publication(ack: _Ack) -> Publication:
    payload = bytes(ack.payload)
    return ack.topic, b"" if payload == b"null" else payload, ack.qos, ack.retain


def _note_reached(c: Connection, counts: Sequence[tuple[Message, int]], now_ms: int) -> None:
    """An alarm of which several audiences reached nobody is announced once."""
    missed: dict[str, list[str]] = {}
    for message, count in counts:
        payload = message.payload
        if audiences.reached(c, message.key, payload, count, now_ms) and not count:
            kind, _, id = message.key.partition("/")
            if kind == "alarm":
                missed.setdefault(id, []).append(payload["audience"])
    for id, (row, deadlines) in records.load_many(c, tuple(missed)).items():
        for audience in missed[id]:
            records.add_timeline(c, id, at=now_ms, event="nobody_reached", by="system", audience=audience)
        announce.announce_alarm(c, row, deadlines)
