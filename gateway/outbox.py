"""The outbox: what a transaction announces is written in that transaction and delivered after it.

Delivery is at least once and in order per (kind, key); receivers drop repeats. A crash between commit and
delivery, or between delivery and its mark, is healed by the next start, which finds the row undelivered. One
`Courier` runs a lane for each kind, so a broker that is down doesn't delay the events of the pages. A row
that fails is tried again with exponential back-off for ever and holds back only its own key: an announcement
of an alarm never drops.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from gateway.errors import Unavailable
from gateway.store import Store, metadata, touch

__all__ = ["Courier", "Message", "add", "outbox_table", "pending", "prune"]

logger = logging.getLogger(__name__)

outbox_table = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("delivered_at", BigInteger),
    Column("error", Text),
    sqlite_autoincrement=True,
)
_undelivered = outbox_table.c.delivered_at.is_(None)
Index(
    "ix_outbox_pending",
    outbox_table.c.kind,
    outbox_table.c.id,
    sqlite_where=_undelivered,
    postgresql_where=_undelivered,
)
Index(
    "ix_outbox_pending_key",
    outbox_table.c.kind,
    outbox_table.c.key,
    outbox_table.c.id,
    sqlite_where=_undelivered,
    postgresql_where=_undelivered,
)

BATCH = 256
BACK_OFF_S = 0.25
BACK_OFF_CAP_S = 15.0

_ADD = insert(outbox_table)
_earlier = outbox_table.alias("earlier")
_DUE = (
    select(
        outbox_table.c.id,
        outbox_table.c.kind,
        outbox_table.c.key,
        outbox_table.c.payload,
        outbox_table.c.attempts,
    )
    .where(
        outbox_table.c.kind == bindparam("of_kind"),
        _undelivered,
        outbox_table.c.not_before <= bindparam("now_ms"),
        ~select(_earlier.c.id)
        .where(
            _earlier.c.kind == outbox_table.c.kind,
            _earlier.c.key == outbox_table.c.key,
            _earlier.c.delivered_at.is_(None),
            _earlier.c.id < outbox_table.c.id,
            _earlier.c.not_before > bindparam("now_ms"),
        )
        .exists(),
    )
    .order_by(outbox_table.c.id)
    .limit(BATCH)
)
_NEXT = select(func.min(outbox_table.c.not_before)).where(
    outbox_table.c.kind == bindparam("of_kind"), _undelivered
)
_DELIVERED = (
    update(outbox_table)
    .where(outbox_table.c.id == bindparam("row_id"))
    .values(delivered_at=bindparam("now_ms"), error=None)
)
_FAILED = (
    update(outbox_table)
    .where(outbox_table.c.id == bindparam("row_id"))
    .values(attempts=outbox_table.c.attempts + 1, not_before=bindparam("again_ms"), error=bindparam("why"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One announcement on its way. `id` is unique for ever and fits as a message id that receivers drop
    repeats by.
    """

    id: int
    kind: str
    key: str
    payload: Any
    attempts: int


def add(connection: Connection, kind: str, key: str, payload: object, *, delay_ms: int = 0) -> None:
    """Announces `payload` (anything msgspec encodes to JSON) in the transaction of `connection`.

    Rows with the same `kind` and `key` are delivered in the order in which they were added.
    """
    now_ms = _now_ms()
    touch(connection, f"outbox/{kind}")
    connection.execute(
        _ADD,
        {
            "kind": kind,
            "key": key,
            "payload": msgspec.json.encode(payload),
            "created_at": now_ms,
            "not_before": now_ms + delay_ms if delay_ms else 0,
            "attempts": 0,
        },
    )


def pending(connection: Connection) -> dict[str, int]:
    """How many rows of each kind wait (a figure for /metrics)."""
    rows = connection.execute(
        select(outbox_table.c.kind, func.count()).where(_undelivered).group_by(outbox_table.c.kind)
    )
    return {row[0]: row[1] for row in rows}


def prune(connection: Connection, before_ms: int) -> int:
    """Forgets what was delivered before `before_ms`. Undelivered rows stay for ever."""
    return connection.execute(delete(outbox_table).where(outbox_table.c.delivered_at < before_ms)).rowcount


class Courier:
    """Delivers the outbox. `deliver` maps a kind to an async callable that returns when the message is handed
    over.

    It raises to be tried again. Kinds without a callable stay in the outbox untouched.
    """

    def __init__(self, store: Store, deliver: Mapping[str, Callable[[Message], Awaitable[None]]]) -> None:
        self._store = store
        self._deliver = dict(deliver)
        self._wakes = {kind: asyncio.Event() for kind in self._deliver}
        store.on_commit(self._on_commit)

    async def run(self) -> None:
        """Until cancelled. Starts with what an earlier process left behind."""
        async with asyncio.TaskGroup() as group:
            for kind in self._deliver:
                group.create_task(self._lane(kind), name=f"outbox-{kind}")

    def _on_commit(self, touched: frozenset[str]) -> None:
        for kind, wake in self._wakes.items():
            if f"outbox/{kind}" in touched:
                wake.set()

    async def _lane(self, kind: str) -> None:
        wake = self._wakes[kind]
        while True:
            wake.clear()
            try:
                due, next_ms = await self._store.read(lambda c: _due(c, kind, _now_ms()))
                if due:
                    await self._deliver_batch(kind, due)
                    continue
            except Unavailable as exc:
                logger.warning("outbox %s waits for the database: %s", kind, exc)
                next_ms = _now_ms() + int(exc.retry_after_s * 1000)
            wait_s = None if next_ms is None else max(0.0, (next_ms - _now_ms()) / 1000) + 0.001
            try:
                async with asyncio.timeout(wait_s):
                    await wake.wait()
            except TimeoutError:
                continue

    async def _deliver_batch(self, kind: str, due: list[Message]) -> None:
        """Keys go side by side (a receiver may wait for a confirmation), the messages of one key one after
        the other.
        """
        delivered: list[int] = []
        failed: list[dict[str, object]] = []
        by_key: dict[str, list[Message]] = {}
        for message in due:
            by_key.setdefault(message.key, []).append(message)
        async with asyncio.TaskGroup() as group:
            for messages in by_key.values():
                group.create_task(
                    self._deliver_key(kind, messages, delivered, failed), name=f"outbox-{kind}-key"
                )

        def mark(connection: Connection) -> None:
            now_ms = _now_ms()
            if delivered:
                connection.execute(_DELIVERED, [{"row_id": row_id, "now_ms": now_ms} for row_id in delivered])
            if failed:
                connection.execute(_FAILED, failed)

        await self._store.write(mark)

    async def _deliver_key(
        self, kind: str, messages: list[Message], delivered: list[int], failed: list[dict[str, object]]
    ) -> None:
        deliver = self._deliver[kind]
        for message in messages:
            try:
                await deliver(message)
            except Exception as exc:  # a lane supervises whatever the receiver does
                back_off_s = min(BACK_OFF_CAP_S, BACK_OFF_S * 2 ** min(message.attempts, 10))
                again_ms = _now_ms() + int(random.uniform(0.5, 1.0) * back_off_s * 1000)
                failed.append(
                    {"row_id": message.id, "again_ms": again_ms, "why": f"{type(exc).__name__}: {exc}"[:500]}
                )
                if message.attempts in (0, 5):
                    logger.warning("outbox %s %s is not delivered yet: %s", kind, message.key, exc)
                return
            delivered.append(message.id)


def _due(connection: Connection, kind: str, now_ms: int) -> tuple[list[Message], int | None]:
    rows = connection.execute(_DUE, {"of_kind": kind, "now_ms": now_ms}).all()
    if rows:
        return [
            Message(id=row[0], kind=row[1], key=row[2], payload=msgspec.json.decode(row[3]), attempts=row[4])
            for row in rows
        ], None
    return [], connection.execute(_NEXT, {"of_kind": kind}).scalar()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
