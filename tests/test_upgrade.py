"""Databases of earlier revisions come up to the schema of now, and nothing in them is lost."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.audit import verify_audit
from gateway.store import Store, metadata

EARLIER = sorted((Path(__file__).parent / "data" / "database").glob("*.sql"))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def contents(path: Path) -> dict[str, list[dict[str, object]]]:
    """Every row of every table, by column."""
    with opened(path) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}


@pytest.mark.parametrize("dump", EARLIER, ids=lambda path: path.stem)
async def test_an_earlier_database_keeps_every_row_and_takes_writes(dump: Path, tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    with opened(path) as connection:
        connection.executescript(dump.read_text(encoding="utf-8"))
    before, trail = contents(path), verify_audit(path)
    assert before["alarm"]
    assert before["task_photo"]
    store = await Store.open(path)
    await store.close()
    after = contents(path)
    for table, rows in before.items():
        if table in ("alembic_version", "sqlite_sequence"):
            continue
        assert table in after, f"{table} is gone: a migration must bring its rows along"
        kept = after[table]
        assert len(kept) >= len(rows), table
        for row in rows:  # columns may be new; what was there says what it said
            assert any(row.items() <= found.items() for found in kept), f"{table}: {row}"
    now = verify_audit(path, anchor=trail.head)
    assert (now.broken_at, now.head) == (None, trail.head)
    with opened(path) as connection:
        have = {
            (table, column[1])
            for table in metadata.tables
            for column in connection.execute(f"PRAGMA table_info({table})")
        }
    assert {
        (name, column.name) for name, table in metadata.tables.items() for column in table.columns
    } <= have


def test_there_is_an_earlier_database() -> None:
    assert EARLIER
