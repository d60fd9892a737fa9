"""Calls: how long a claim takes when two phones answer at once, how soon after the alarm's plan they ring.

Run: python -m benchmarks.calls [races]. Prints one table; needs nothing but a temporary directory.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import Conflict
from gateway.intercom.model import CallSettings, Participant
from gateway.intercom.switchboard import AlarmBrief, Audience, Switchboard
from gateway.outbox import Courier
from gateway.store import Store

AT_ONCE = 10
"""Races in flight at a time: ten alarms whose phones answer in the same second."""


@dataclass(frozen=True)
class Choice:
    id: str
    name: str
    grid: str | None
    distance_m: float = 120.0
    eta_s: float = 90.0
    freshness: str = "fresh"
    reason: str = "120 m, fresh"


class Meter:
    """Stands where the root stands, and notes when what arrived."""

    def __init__(self) -> None:
        self.opened: dict[str, float] = {}
        self.ring_s: list[float] = []
        self.won_s: list[float] = []
        self.lost_s: list[float] = []
        self.bad = 0

    def rank(
        self, position: tuple[float, float] | None, grid: str | None, exclude: frozenset[str]
    ) -> Sequence[Choice]:
        return [Choice(f"{grid}-{phone}", f"{grid}-{phone}", grid) for phone in ("a", "b")]

    async def ring(self, worker_id: str, message: dict[str, Any]) -> None:
        if message["act"] == "ring":
            self.ring_s.append(time.perf_counter() - self.opened[worker_id.rpartition("-")[0]])

    async def nothing(self, *_: object) -> None:
        return

    async def event(self, kind: str, data: dict[str, Any], audience: Audience) -> None:
        return

    async def race(self, board: Switchboard, number: int) -> None:
        grid = f"g{number}"
        self.opened[grid] = time.perf_counter()
        call = await board.open_for_alarm(
            AlarmBrief(alarm_id=grid, place_label="", position=None, lineage=(), grid=grid)
        )
        outcomes = await asyncio.gather(*(self.claim(board, call.id, r.worker_id) for r in call.ringing))
        self.bad += sorted(outcomes) != [False, True]
        winner = (await board.get(call.id)).answered_by
        if winner is not None:
            await board.hangup(call.id, winner)

    async def claim(self, board: Switchboard, call_id: str, worker_id: str) -> bool:
        start = time.perf_counter()
        try:
            await board.claim(call_id, Participant(id=worker_id, name=worker_id, role="worker"))
        except Conflict:
            self.lost_s.append(time.perf_counter() - start)
            return False
        self.won_s.append(time.perf_counter() - start)
        return True


async def measure(races: int, directory: Path) -> Meter:
    meter = Meter()
    store = await Store.open(directory / "gateway.db")
    board = Switchboard(
        store,
        CallSettings(),
        rank=meter.rank,
        pick=lambda worker_id, position: None,
        ring=meter.ring,
        publish_event=meter.event,
        close_media=lambda owner: None,
        on_accepted=meter.nothing,
        on_released=meter.nothing,
        on_no_answer=meter.nothing,
        on_opened=meter.nothing,
        on_missed=meter.nothing,
    )
    courier = asyncio.create_task(Courier(store, board.deliveries()).run())
    try:
        await board.start()
        for first in range(0, races, AT_ONCE):
            last = min(races, first + AT_ONCE)
            await asyncio.gather(*(meter.race(board, number) for number in range(first, last)))
    finally:
        courier.cancel()
        await asyncio.gather(courier, return_exceptions=True)
        await store.close()
    return meter


def main(races: int = 1_000) -> list[tuple[str, float, float]]:
    """(what, p50 ms, p95 ms) of each figure; raises if a race had anything but one winner."""
    with tempfile.TemporaryDirectory() as directory:
        meter = asyncio.run(measure(races, Path(directory)))
    if meter.bad:
        raise SystemExit(f"{meter.bad} of {races} races had not exactly one winner")
    rows = []
    for name, values in (
        ("claim, winner", meter.won_s),
        ("claim, loser told", meter.lost_s),
        ("alarm's plan to ring message", meter.ring_s),
    ):
        ordered = sorted(values)
        rows.append((name, 1e3 * ordered[len(ordered) // 2], 1e3 * ordered[int(len(ordered) * 0.95)]))
    print(f"{races} claim races of two phones, {AT_ONCE} at a time: one winner each")
    for name, p50, p95 in rows:
        print(f"  {name:<30} p50 {p50:7.1f} ms   p95 {p95:7.1f} ms")
    return rows


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
