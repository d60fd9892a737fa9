"""Every view of a camera is on the audit trail, those of one moment in one transaction."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import select

from gateway.access import Principal, Role
from gateway.audit import audit_table
from gateway.http.media import ViewTrail
from gateway.store import Store


async def test_views_of_one_moment_share_a_transaction_and_keep_their_own_times(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "gateway.db")
    try:
        times = iter(range(1000, 2000))
        started: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as tasks:
            trail = ViewTrail(
                store,
                now_ms=lambda: next(times),
                background=lambda work, name: started.append(tasks.create_task(work, name=name)),
            )
            before = store.health().commits
            for camera in ("cam001", "cam002", "cam003"):
                await trail.viewed(Principal(sub="op", role=Role.OPERATOR), camera)
        assert store.health().commits == before + 1
        async with asyncio.TaskGroup() as tasks:  # and the next moment has its own
            await trail.viewed(Principal(sub="box", role=Role.STB), "cam001")
        query = select(audit_table.c.at, audit_table.c.who, audit_table.c.action, audit_table.c.subject)
        rows = await store.read(lambda connection: [tuple(row) for row in connection.execute(query)])
        assert rows == [
            (1000, "operator/op", "camera.view", "camera/cam001"),
            (1001, "operator/op", "camera.view", "camera/cam002"),
            (1002, "operator/op", "camera.view", "camera/cam003"),
            (1003, "stb/box", "camera.view", "camera/cam001"),
        ]
    finally:
        await store.close()
