"""The migration and the tables that the code declares are the same thing."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from gateway.intercom import tables
from gateway.store import Store


async def test_the_migration_makes_the_declared_tables(tmp_path: Path) -> None:
    def differences(connection: Connection) -> list[object]:
        def ours(thing: object, name: str | None, kind: str, reflected: bool, other: object) -> bool:
            return kind != "table" or str(name).startswith("call")

        context = MigrationContext.configure(connection, opts={"include_object": ours})
        return list(compare_metadata(context, tables.metadata))

    store = await Store.open(tmp_path / "gateway.db")
    try:
        assert await store.read(differences) == []
        names = await store.read(
            lambda connection: set(
                connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
            )
        )
    finally:
        await store.close()
    assert {"calls", "call_legs", "call_rings"} <= names
