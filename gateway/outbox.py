"""The outbox: what a transaction announces is written in that transaction and delivered after it.

Delivery is at least once and in order per (kind, key); receivers drop repeats. A row lives until it is
delivered: the commit hands it to the `Courier` in memory, the courier deletes it in the next transaction but one or
two. A crash in between, or a memory that is full, is healed by the rows, which are read again. One lane for each
kind, so a broker that is down doesn't delay the events of the pages; keys go side by side. A message that fails is
tried again with exponential back-off for ever and holds back only its own key: an announcement of an alarm never drops.

A kind whose messages are cheaper together (one write, one confirmation) is delivered in batches: all that waits, in
order, one batch after the other. If a batch fails, each of its messages is tried again by itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, Connection, Integer, LargeBinary, Table, Text, delete, func, select
from sqlalchemy import bindparam as param

from gateway.errors import Unavailable
from gateway.store import Prepared, Store, defer, metadata

__all__ = ["Courier", "Message", "add", "outbox_table", "pending"]

logger = logging.getLogger(__name__)

outbox_table = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

BATCH = 512
MAX_IN_MEMORY = 10_000
"""Messages of a kind in memory. More stay on the disk until there is room."""
AT_ONCE = 512
"""Messages of a kind that are being delivered at one time, unless the courier is told otherwise."""
BATCH_AT_ONCE = 128
"""Messages in one batch of a kind that is delivered in batches."""
MARK_AFTER_S = 0.1
"""How long delivered rows wait to be deleted together. A crash meanwhile delivers them again."""
BACK_OFF_S = 0.25
BACK_OFF_CAP_S = 15.0

_id = outbox_table.c.id
_AFTER = Prepared(
    select(_id, outbox_table.c.key, outbox_table.c.payload)
    .where(outbox_table.c.kind == param("of_kind"), _id > param("after"))
    .order_by(_id)
    .limit(BATCH)
)
_DELIVERED = Prepared(delete(outbox_table).where(_id.between(param("low"), param("high"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One announcement on its way. `id` is unique for ever and fits as a message id that receivers drop
    repeats by. `raw`: the JSON that was added.
    """

    id: int
    kind: str
    key: str
    raw: bytes

    @property
    def payload(self) -> Any:
        return msgspec.json.decode(self.raw)


def add(connection: Connection, kind: str, key: str, payload: object) -> None:
    """Announces `payload` (anything msgspec encodes to JSON) in the transaction of `connection`.

    Rows with the same `kind` and `key` are delivered in the order in which they were added.
    """
    row = {
        "kind": kind,
        "key": key,
        "payload": msgspec.json.encode(payload),
        "created_at": time.time_ns() // 1_000_000,
    }
    defer(connection, outbox_table, row)


def pending(connection: Connection) -> dict[str, int]:
    """How many rows of each kind wait (a figure for /metrics)."""
    rows = connection.execute(select(outbox_table.c.kind, func.count()).group_by(outbox_table.c.kind))
    return {row[0]: row[1] for row in rows}


Deliver = Callable[[Message], Awaitable[None]]
DeliverAll = Callable[[Sequence[Message]], Awaitable[None]]


class _Lane:
    """What is in memory of one kind. taken: every row up to this id has been taken into memory once.

    behind: newer rows are on disk only; missed: some were committed since the disk was read last. waiting: for
    the next batch; keys: messages that are delivered one after the other, by key.
    """

    __slots__ = (
        "at_once", "behind", "deliver", "deliver_all", "keys", "kind", "missed", "ready", "room", "size", "slots", "taken",
        "waiting",
    )  # fmt: skip

    def __init__(self, kind: str, deliver: Deliver, deliver_all: DeliverAll | None, at_once: int) -> None:
        self.kind = kind
        self.deliver = deliver
        self.deliver_all = deliver_all
        self.waiting: deque[Message] = deque()
        self.ready = asyncio.Event()
        self.keys: dict[str, deque[Message]] = {}
        self.size = 0
        self.taken = 0
        self.behind = self.missed = True
        self.at_once = at_once
        self.slots = asyncio.Semaphore(at_once)
        self.room = asyncio.Event()
        self.room.set()


class Courier:
    """Delivers the outbox. `deliver` maps a kind to an async callable that returns when the message is handed
    over.

    It raises to be tried again. Kinds without a callable stay in the outbox untouched.
    """

    def __init__(
        self,
        store: Store,
        deliver: Mapping[str, Deliver],
        *,
        batched: Mapping[str, DeliverAll] | None = None,
        at_once: Mapping[str, int] | None = None,
    ) -> None:
        """batched: by kind, what delivers many at once; it is given one message as well when a batch has failed.

        at_once: by kind, how many messages are being delivered at one time (AT_ONCE) or in one batch
        (BATCH_AT_ONCE) where it is not the usual.
        """
        self._store = store
        bounds = at_once or {}
        self._lanes = {
            kind: _Lane(kind, receiver, None, bounds.get(kind, AT_ONCE)) for kind, receiver in deliver.items()
        }
        for kind, many in (batched or {}).items():
            self._lanes[kind] = _Lane(kind, partial(_alone, many), many, bounds.get(kind, BATCH_AT_ONCE))
        self._group: asyncio.TaskGroup | None = None
        self._delivered: list[int] = []
        self._mark = asyncio.Event()
        store.on_inserted(outbox_table, self._on_inserted)

    async def run(self) -> None:
        """Until cancelled. Starts with what an earlier process left behind."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for lane in self._lanes.values():
                    lane.behind = True
                    lane.room.set()
                    group.create_task(self._catch_up(lane), name=f"outbox-{lane.kind}")
                    if lane.deliver_all is not None:
                        batches = self._run_batches(lane, lane.deliver_all)
                        group.create_task(batches, name=f"outbox-batches-{lane.kind}")
                group.create_task(self._run_marks(), name="outbox-delivered")
                await asyncio.Event().wait()
            finally:
                self._group = None  # what is committed from now on is for the next process

    def _on_inserted(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            lane = self._lanes.get(row["kind"])
            if lane is not None:
                self._offer(lane, row["id"], row["key"], row["payload"])

    def _offer(self, lane: _Lane, id: int, key: str, payload: bytes) -> None:
        """From a commit. While the lane is behind its rows come from the disk, in their order."""
        if lane.behind or lane.size >= MAX_IN_MEMORY:
            lane.behind = lane.missed = True
        else:
            self._take(lane, id, key, payload)

    def _take(self, lane: _Lane, id: int, key: str, payload: bytes) -> None:
        if id <= lane.taken or self._group is None:
            return
        lane.taken = id
        message = Message(id=id, kind=lane.kind, key=key, raw=payload)
        lane.size += 1
        if lane.deliver_all is not None and key not in lane.keys:
            lane.waiting.append(message)
            lane.ready.set()
        else:
            self._put_behind(self._group, lane, message)

    def _put_behind(self, group: asyncio.TaskGroup, lane: _Lane, message: Message) -> None:
        """To the messages of its key that are delivered one after the other."""
        queue = lane.keys.get(message.key)
        if queue is not None:
            queue.append(message)
            return
        queue = lane.keys[message.key] = deque((message,))
        group.create_task(self._run_key(lane, message.key, queue), name="outbox-key")

    async def _catch_up(self, lane: _Lane) -> None:
        """Reads what is on disk only, whenever there is room in memory."""
        while True:
            await lane.room.wait()
            if lane.behind:
                lane.missed = False
                try:
                    rows = await self._store.read(partial(_read, lane.kind, lane.taken))
                except Unavailable as exc:
                    logger.warning("outbox %s waits for the database: %s", lane.kind, exc)
                    await asyncio.sleep(exc.retry_after_s)
                    continue
                for id, key, payload in rows:
                    self._take(lane, id, key, payload)
                if len(rows) < BATCH and not lane.missed:
                    lane.behind = False
            if not lane.behind or lane.size >= MAX_IN_MEMORY // 2:
                lane.room.clear()

    async def _run_batches(self, lane: _Lane, deliver_all: DeliverAll) -> None:
        """What waits, in its order, a batch after the other."""
        while True:
            await lane.ready.wait()
            batch = [lane.waiting.popleft() for _ in range(min(len(lane.waiting), lane.at_once))]
            if not lane.waiting:
                lane.ready.clear()
            try:
                await deliver_all(batch)
            except Exception as exc:  # a lane supervises whatever the receiver does
                logger.warning(
                    "outbox %s: a batch of %d is not delivered yet: %s", lane.kind, len(batch), exc
                )
                self._one_by_one(lane, batch)
                continue
            self._done(lane, batch)

    def _one_by_one(self, lane: _Lane, batch: list[Message]) -> None:
        """The failed batch, and behind it what waits with a key of it."""
        if self._group is None:
            return
        for message in batch:
            self._put_behind(self._group, lane, message)
        waiting, lane.waiting = lane.waiting, deque()
        for message in waiting:
            if message.key in lane.keys:
                self._put_behind(self._group, lane, message)
            else:
                lane.waiting.append(message)

    def _done(self, lane: _Lane, messages: Sequence[Message]) -> None:
        lane.size -= len(messages)
        self._delivered += [message.id for message in messages]
        self._mark.set()
        if lane.behind and lane.size < MAX_IN_MEMORY // 2:
            lane.room.set()

    async def _run_key(self, lane: _Lane, key: str, queue: deque[Message]) -> None:
        """The messages of one key, one after the other."""
        attempts = 0
        while queue:
            message = queue[0]
            try:
                async with lane.slots:
                    await lane.deliver(message)
            except Exception as exc:  # a lane supervises whatever the receiver does
                if attempts in (0, 5):
                    logger.warning("outbox %s %s is not delivered yet: %s", lane.kind, key, exc)
                back_off_s = min(BACK_OFF_CAP_S, BACK_OFF_S * 2 ** min(attempts, 10))
                attempts += 1
                await asyncio.sleep(random.uniform(0.5, 1.0) * back_off_s)
                continue
            attempts = 0
            queue.popleft()
            self._done(lane, [message])
        del lane.keys[key]

    async def _run_marks(self) -> None:
        while True:
            await self._mark.wait()
            await asyncio.sleep(MARK_AFTER_S)
            self._mark.clear()
            done, self._delivered = self._delivered, []
            try:
                await self._store.write(partial(_forget, _ranges(sorted(done))))
            except Unavailable as exc:
                logger.warning("delivered rows of the outbox wait for the database: %s", exc)
                self._delivered += done
                self._mark.set()
                await asyncio.sleep(exc.retry_after_s)


async def _alone(deliver_all: DeliverAll, message: Message) -> None:
    await deliver_all((message,))


def _ranges(ids: list[int]) -> list[tuple[int, int]]:
    """Runs of numbers that follow one another."""
    found: list[tuple[int, int]] = []
    for number in ids:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def _read(kind: str, after: int, connection: Connection) -> list[tuple[int, str, bytes]]:
    return _AFTER.run(connection, {"of_kind": kind, "after": after}).fetchall()


def _forget(ranges: list[tuple[int, int]], connection: Connection) -> None:
    for low, high in ranges:
        _DELIVERED.run(connection, {"low": low, "high": high})
