"""Delivering webhooks: kept on disk first, sent beside everything else, tried again until they arrive or are dead.

The alarm path hands its news over once they are committed; what a hook wants becomes a row in one transaction, and a
failure to write it makes the courier hand the news over again. Each hook has a task and a bound of its own, so a receiver
that stalls holds up nobody. Only vetted addresses are dialled: a host name is resolved here, each address is judged, and the
connection goes to a judged one (no second look-up that could say something else); redirects are not followed and no
proxy of the environment is used.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from gateway.audit import audit
from gateway.errors import NotFound, Unavailable
from gateway.store import Store, metadata
from gateway.webhooks import (
    ATTEMPTS,
    Hook,
    back_off_s,
    event_of,
    headers,
    is_reachable,
    message_body,
    wants,
)

__all__ = ["Sharing", "webhook_table"]

logger = logging.getLogger(__name__)
Json = dict[str, Any]
Deliveries = list[Json]

TIMEOUT_S = 10.0
AT_ONCE = 8
"""Requests of one hook at one time."""
KEEP_MS = 30 * 86_400_000
"""Delivered and dead messages are forgotten after it."""
PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"

webhook_table = Table(
    "webhook_message",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),  # of the outbox row: the order of the news
    Column("hook", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("error", Text, nullable=False),
)
Index("ix_webhook_message_due", webhook_table.c.hook, webhook_table.c.next_at)
Index("ix_webhook_message_subject", webhook_table.c.hook, webhook_table.c.subject, webhook_table.c.number)


class _Vetted(AbstractResolver):
    """Resolves and judges; aiohttp connects to exactly what this returns."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        allowed = [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=kind, proto=proto,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, proto, _, address in found
            if is_reachable(str(address[0]), self._hook.networks)
        ]  # fmt: skip
        if not allowed:
            raise OSError(None, f"{host} has no address that may be dialled (see webhooks[].networks)")
        return allowed

    async def close(self) -> None:
        """Nothing is held."""


class Sharing:
    """`await take(...)` with committed news; `await run()` in a task delivers. Owned by the loop."""

    def __init__(self, store: Store, hooks: Sequence[Hook], *, clock: Callable[[], int]) -> None:
        self._store = store
        self._hooks = {hook.name: hook for hook in hooks}
        self._clock = clock
        self._news = {hook.name: asyncio.Event() for hook in hooks}
        self.counters = {name: {"delivered": 0, "failed": 0, "dead": 0} for name in self._hooks}

    @property
    def wanted(self) -> bool:
        """Whether anybody is told of anything."""
        return bool(self._hooks)

    async def take(self, news: Sequence[tuple[int, str, Json, Sequence[str]]]) -> None:
        """(number of the outbox row, type, data, full lineage). Returns once what somebody wants is on disk."""
        now_ms = self._clock()
        rows: list[Json] = []
        for number, type, data, lineage in news:
            event = event_of(type, data)
            if event is None:
                continue
            wanting = [hook.name for hook in self._hooks.values() if wants(hook, type, event, data, lineage)]
            message: Json = {
                "number": number,
                "subject": f"{type}/{data['id']}",
                "event": event,
                "body": message_body(type, event, data, now_ms) if wanting else b"",
                "created_at": now_ms,
                "state": PENDING,
                "attempts": 0,
                "next_at": now_ms,
                "ended_at": None,
                "error": "",
            }
            rows += [{**message, "id": f"{name}-{number}", "hook": name} for name in wanting]
        if rows:
            await self._store.write(lambda c: _keep(c, rows))
            for row in rows:
                self._news[row["hook"]].set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for hook in self._hooks.values():
                tasks.create_task(self._run_hook(hook), name=f"webhook-{hook.name}")

    async def overview(self) -> Deliveries:
        """One entry a hook, for administrators. No secret."""
        w = webhook_table.c
        query = select(w.hook, w.state, func.count(), func.max(w.ended_at)).group_by(w.hook, w.state)
        rows = await self._store.read(lambda c: c.execute(query).all())
        counts = {(hook, state): (count, at) for hook, state, count, at in rows}
        return [
            {
                "name": hook.name,
                "url": hook.url,
                "areas": sorted(hook.areas),
                "kinds": sorted(hook.kinds),
                "events": hook.events,
                **{
                    state: counts.get((hook.name, state), (0, None))[0]
                    for state in (PENDING, DELIVERED, DEAD)
                },
                "delivered_at": counts.get((hook.name, DELIVERED), (0, None))[1],
            }
            for hook in self._hooks.values()
        ]

    async def messages(self, name: str, *, state: str | None = None, limit: int = 100) -> Deliveries:
        """Newest first. Raises NotFound."""
        self._known(name)
        w = webhook_table.c
        columns = [
            w.id,
            w.subject,
            w.event,
            w.created_at,
            w.state,
            w.attempts,
            w.next_at,
            w.ended_at,
            w.error,
        ]
        query = select(*columns).where(w.hook == name).order_by(w.number.desc()).limit(limit)
        if state is not None:
            query = query.where(w.state == state)
        return await self._store.read(lambda c: [dict(row) for row in c.execute(query).mappings()])

    async def try_again(self, name: str, who: str) -> int:
        """Gives the dead messages another life; how many. Raises NotFound."""
        self._known(name)
        now_ms, w = self._clock(), webhook_table.c

        def revive(c: Connection) -> int:
            dead = update(webhook_table).where(w.hook == name, w.state == DEAD)
            count = c.execute(dead.values(state=PENDING, attempts=0, next_at=now_ms, ended_at=None)).rowcount
            detail = {"messages": count}
            audit(c, who=who, action="webhook.retry", subject=f"webhook/{name}", detail=detail, now_ms=now_ms)
            return count

        count = await self._store.write(revive)
        self._news[name].set()
        return count

    def _known(self, name: str) -> None:
        if name not in self._hooks:
            raise NotFound(f"no webhook {name}")

    async def _run_hook(self, hook: Hook) -> None:
        connector = aiohttp.TCPConnector(
            resolver=_Vetted(hook), use_dns_cache=False, force_close=True, limit=AT_ONCE
        )
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            while True:
                self._news[hook.name].clear()
                try:
                    next_at = await self._deliver_due(hook, session)
                except Unavailable as exc:
                    logger.warning("webhook %s waits for the database: %s", hook.name, exc)
                    next_at = self._clock() + round(exc.retry_after_s * 1000)
                wait_s = None if next_at is None else max(0.0, (next_at - self._clock()) / 1000)
                try:
                    async with asyncio.timeout(wait_s):
                        await self._news[hook.name].wait()
                except TimeoutError:
                    continue

    async def _deliver_due(self, hook: Hook, session: aiohttp.ClientSession) -> int | None:
        """Sends what is due, oldest first; when the next is (UTC ms), None if none waits."""
        w = webhook_table.c
        while True:
            now_ms = self._clock()
            due = (
                select(w.id, w.subject, w.event, w.body, w.attempts)
                .where(w.hook == hook.name, w.next_at <= now_ms)
                .order_by(w.number)
                .limit(AT_ONCE)
            )
            rows = await self._store.read(lambda c, due=due: c.execute(due).mappings().all())  # type: ignore[misc]
            if not rows:
                earliest = select(func.min(w.next_at)).where(w.hook == hook.name)
                at: int | None = await self._store.read(lambda c: c.execute(earliest).scalar())  # noqa: B023
                return at
            errors = await asyncio.gather(*(self._send(hook, session, row) for row in rows))
            results = list(zip(rows, errors, strict=True))
            ended_ms = self._clock()
            await self._store.write(lambda c: self._note(c, hook, results, ended_ms))  # noqa: B023 - awaited here
            for row, error in results:
                dead = bool(error) and row["attempts"] + 1 >= ATTEMPTS
                self.counters[hook.name]["dead" if dead else "failed" if error else "delivered"] += 1

    async def _send(self, hook: Hook, session: aiohttp.ClientSession, row: Any) -> str:
        """What went wrong, empty if it has arrived."""
        host = urlsplit(hook.url).hostname or ""
        try:
            if not is_reachable(host, hook.networks):  # a literal address is not asked of the resolver
                return f"{host} may not be dialled (see webhooks[].networks)"
        except ValueError:
            pass  # a name
        signed = headers(hook.secret, row["id"], self._clock() // 1000, row["body"])
        try:
            async with session.post(
                hook.url, data=row["body"], headers=signed, allow_redirects=False
            ) as answer:
                if 200 <= answer.status < 300:
                    return ""
                return f"answered {answer.status}" + (" (no redirects)" if 300 <= answer.status < 400 else "")
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"{type(error).__name__}: {error}"[:200]

    def _note(self, c: Connection, hook: Hook, results: Sequence[tuple[Any, str]], now_ms: int) -> None:
        w = webhook_table.c
        for row, error in results:
            attempts = row["attempts"] + 1
            values: Json = {"attempts": attempts, "error": error}
            if error and attempts < ATTEMPTS:
                values["next_at"] = now_ms + round(back_off_s(attempts, random.random()) * 1000)
            else:
                state = DEAD if error else DELIVERED
                values |= {"state": state, "next_at": None, "ended_at": now_ms}
                detail = {"event": row["event"], "message": row["id"], "attempts": attempts, "error": error}
                audit(
                    c, who=f"webhook/{hook.name}", action=f"webhook.{state}", subject=row["subject"],
                    detail=detail, now_ms=now_ms,
                )  # fmt: skip
            if error:
                logger.warning("webhook %s: attempt %d of %s: %s", hook.name, attempts, row["id"], error)
            c.execute(update(webhook_table).where(w.id == row["id"]).values(**values))
        c.execute(delete(webhook_table).where(w.hook == hook.name, w.ended_at < now_ms - KEEP_MS))


def _keep(connection: Connection, rows: Sequence[Json]) -> None:
    """One message a state: an alarm that is only announced again says nothing new. Known ones are left as they are."""
    w = webhook_table.c
    for row in rows:
        last = connection.execute(
            select(w.event)
            .where(w.hook == row["hook"], w.subject == row["subject"], w.number < row["number"])
            .order_by(w.number.desc())
            .limit(1)
        ).scalar()
        if last != row["event"]:
            connection.execute(insert(webhook_table).values(**row).on_conflict_do_nothing())
