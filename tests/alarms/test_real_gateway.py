"""The whole gateway as a process with its own broker: product.md section 6, rows 1, 8 and 13."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.district import Site, make_site, press_body, running
from benchmarks.kill import MUST_BE_ZERO, trial

pytestmark = pytest.mark.broker


async def press(session: aiohttp.ClientSession, site: Site, sid: str, pid: str) -> tuple[int, dict[str, Any]]:
    body = press_body(site.boxes[sid], sid, pid, ts=time.time_ns() // 1_000_000)
    async with session.post(f"{site.base}/api/v1/alarms", data=body) as answer:
        return answer.status, await answer.json()


async def ready(session: aiohttp.ClientSession, site: Site) -> int:
    async with session.get(f"{site.base}/readyz") as answer:
        return answer.status


async def test_ten_kills_of_gateway_and_broker_lose_nothing(tmp_path: Path) -> None:
    figures = await trial(tmp_path / "site", kills=10, presses=300, boxes=25)
    assert figures["kills"] == {"gateway": 5, "broker": 5}
    assert figures["presses_acknowledged"] == 300
    assert {name: figures[name] for name in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0)


async def test_500_boxes_in_10_seconds_are_all_persisted_and_rung_by_group(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", boxes=500)
    async with running(site), aiohttp.ClientSession() as session:

        async def one(number: int, sid: str) -> tuple[int, dict[str, Any]]:
            await asyncio.sleep(number * 10 / len(site.boxes))
            return await press(session, site, sid, "p1")

        answers = await asyncio.gather(*(one(number, sid) for number, sid in enumerate(site.boxes)))
        assert {(status, ack["stage"]) for status, ack in answers} == {(200, "persisted")}
        with contextlib.closing(sqlite3.connect(site.data / "gateway.db")) as raw:
            async with asyncio.timeout(60):
                while raw.execute("SELECT count(*) FROM outbox WHERE kind='ring_plan'").fetchone()[0]:
                    await asyncio.sleep(0.1)
            leaders = {row[0] for row in raw.execute("SELECT id FROM alarm WHERE group_id IS NULL")}
            members = raw.execute("SELECT group_id FROM alarm WHERE group_id IS NOT NULL").fetchall()
            rung = [row[0] for row in raw.execute("SELECT opened_for FROM calls")]
            total = raw.execute("SELECT count(*) FROM alarm").fetchone()[0]
    assert total == 500
    assert members  # a community's homes lie within 150 m of one another here and there
    assert {group for (group,) in members} <= leaders
    assert sorted(rung) == sorted(leaders)


async def test_a_lock_of_ten_seconds_delays_the_answer_and_a_full_disk_refuses_it(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", boxes=5)
    sids = list(site.boxes)
    async with running(site), aiohttp.ClientSession() as session:
        assert (await press(session, site, sids[0], "before"))[1]["stage"] == "persisted"
        with contextlib.closing(sqlite3.connect(site.data / "gateway.db", isolation_level=None)) as other:
            other.execute("PRAGMA busy_timeout = 5000")
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(press(session, site, sids[1], "locked"))
            await asyncio.sleep(10)
            assert not waiting.done()
            assert await ready(session, site) == 503
            other.execute("ROLLBACK")
        assert (await waiting)[1]["stage"] == "persisted"

        assert site.process is not None
        pid = site.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        # As full as a disk can be: no file of the gateway's grows any more.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
        status, ack = await press(session, site, sids[2], "full")
        assert (status, ack["stage"], ack["reason"]) == (503, "refused", "cannot_process")
        assert await ready(session, site) == 503
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        status, ack = await press(session, site, sids[2], "full")
        assert (status, ack["stage"]) == (200, "persisted")
        with contextlib.closing(sqlite3.connect(site.data / "gateway.db")) as raw:
            assert raw.execute("SELECT count(*) FROM alarm").fetchone() == (3,)
