"""gateway.store, gateway.outbox, gateway.audit on a real file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, select, text

from gateway import outbox
from gateway.audit import audit, audit_table, verify_audit
from gateway.errors import Unavailable
from gateway.outbox import Courier, Message
from gateway.store import Store, metadata


@contextlib.asynccontextmanager
async def opened(path: Path, **options: float) -> AsyncIterator[Store]:
    store = await Store.open(path / "gateway.db", **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


def note(who: str):
    return lambda c: audit(c, who=who, action="test.note", subject="x", detail={"n": who}, now_ms=1)


def whos(connection: Connection) -> list[str]:
    return list(connection.execute(select(audit_table.c.who).order_by(audit_table.c.id)).scalars())


async def test_writes_share_a_commit_and_a_failing_one_undoes_only_itself(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:

        def fail(connection: Connection) -> None:
            note("lost")(connection)
            raise ValueError("no")

        before = store.health().commits
        running, go = threading.Event(), threading.Event()
        first = asyncio.create_task(store.write(lambda c: (running.set(), go.wait(10))))
        await asyncio.to_thread(running.wait, 10)
        writes = [store.write(note(str(i))) for i in range(20)]
        writes.insert(10, store.write(fail))
        rest = asyncio.gather(*writes, return_exceptions=True)
        await asyncio.sleep(0)  # all of them wait behind the first now
        assert store.health().waiting == 21
        go.set()
        await first
        results = await rest
        assert isinstance(results[10], ValueError)
        assert await store.read(whos) == [str(i) for i in range(20)]
        assert store.health().commits - before == 2
        assert verify_audit(store.path).broken_at is None


async def test_synchronous_full_and_wal(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pragmas = await store.write(
            lambda c: (
                c.exec_driver_sql("PRAGMA synchronous").scalar(),
                c.exec_driver_sql("PRAGMA journal_mode").scalar(),
            )
        )
        assert pragmas == (2, "wal")


async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(Unavailable, match="readonly"):
            await store.read(note("x"))


async def test_locked_database_waits_then_commits(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        write = asyncio.create_task(store.write(note("patient")))
        while store.health().writable:
            await asyncio.to_thread(time.sleep, 0.01)
        assert not write.done()
        assert store.health().reason == "locked"
        other.execute("COMMIT")
        other.close()
        await write
        assert store.health().writable


async def test_locked_for_too_long_is_unavailable(tmp_path: Path) -> None:
    async with opened(tmp_path, busy_deadline_s=0.2) as store:
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="cannot process"):
            await store.write(note("late"))
        other.execute("ROLLBACK")
        other.close()
        await store.write(note("next"))
        assert await store.read(whos) == ["next"]


async def test_full_disk_is_unavailable_and_heals(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pages = await store.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())
        await store.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar())
        big = {"fill": "x" * 100_000}
        with pytest.raises(Unavailable, match="cannot process"):
            await store.write(lambda c: audit(c, who="big", action="a.b", subject="x", detail=big, now_ms=1))
        assert not store.health().writable
        await store.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000").scalar())
        await store.write(note("small"))
        assert await store.read(whos) == ["small"]


async def test_second_gateway_on_the_same_data_is_told_who_holds_it(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(Unavailable, match=r"in use by another gateway \(pid \d+\)"):
            await Store.open(tmp_path / "gateway.db")


async def test_reopen_migrates_nothing_twice_and_keeps_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(note("a"))
    async with opened(tmp_path) as store:
        await store.write(note("b"))
        assert await store.read(whos) == ["a", "b"]
    with pytest.raises(Unavailable, match="closed"):
        await store.write(note("c"))


async def test_migrations_and_declared_tables_agree(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        declared = {
            table.name: {c.name: (c.nullable, c.primary_key) for c in table.columns}
            for table in metadata.tables.values()
        }
        indexes = {table.name: {index.name for index in table.indexes} for table in metadata.tables.values()}

        def actual(connection: Connection) -> tuple[dict[str, object], dict[str, object]]:
            look = inspect(connection)
            names = [name for name in look.get_table_names() if name != "alembic_version"]
            columns = {
                n: {c["name"]: (c["nullable"], bool(c["primary_key"])) for c in look.get_columns(n)}
                for n in names
            }
            return columns, {n: {i["name"] for i in look.get_indexes(n)} for n in names}

        columns, built = await store.read(actual)
        for name, wanted in declared.items():
            assert columns[name] == wanted
            assert built[name] == indexes[name]


async def test_audit_refuses_changes_and_notices_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for who in "abcd":
            await store.write(note(who))
        for statement in ("UPDATE audit SET who='z'", "DELETE FROM audit"):
            with pytest.raises(Exception, match="append-only"):
                await store.write(lambda c, s=statement: c.execute(text(s)))
        path = store.path
    report = verify_audit(path)
    assert (report.entries, report.broken_at) == (4, None)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("DROP TRIGGER audit_no_update")
        raw.execute("DROP TRIGGER audit_no_delete")
        raw.execute("UPDATE audit SET who='z' WHERE id=3")
    assert verify_audit(path).broken_at == 3
    assert "changed" in verify_audit(path).reason
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("DELETE FROM audit WHERE id=2")
    assert verify_audit(path).reason == "entry 2 is missing"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("DELETE FROM audit WHERE id>1")
    assert verify_audit(path).broken_at is None
    assert "cut" in verify_audit(path, anchor=report.head).reason


async def test_outbox_delivers_in_order_per_key_and_retries_only_the_failing_key(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        seen: list[tuple[str, int]] = []
        refused = {"n": 2}
        done = asyncio.Event()

        async def deliver(message: Message) -> None:
            if message.key == "bad" and refused["n"]:
                refused["n"] -= 1
                raise ConnectionError("down")
            seen.append((message.key, message.payload))
            if len(seen) == 6:
                done.set()

        courier = Courier(store, {"ack": deliver})
        task = asyncio.create_task(courier.run())
        for i in range(3):
            await store.write(
                lambda c, i=i: (outbox.add(c, "ack", "bad", i), outbox.add(c, "ack", "good", i))
            )
        async with asyncio.timeout(10):
            await done.wait()
        assert [n for key, n in seen if key == "good"] == [0, 1, 2]
        assert [n for key, n in seen if key == "bad"] == [0, 1, 2]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_outbox_is_rolled_back_with_its_transaction_and_replayed_after_a_restart(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:

        def fail(connection: Connection) -> None:
            outbox.add(connection, "event", "k", "never")
            raise ValueError

        with pytest.raises(ValueError):
            await store.write(fail)
        await store.write(lambda c: outbox.add(c, "event", "k", "left behind"))
    async with opened(tmp_path) as store:
        got: asyncio.Queue[object] = asyncio.Queue()

        async def deliver(message: Message) -> None:
            got.put_nowait(message.payload)

        task = asyncio.create_task(Courier(store, {"event": deliver}).run())
        assert await asyncio.wait_for(got.get(), 10) == "left behind"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
