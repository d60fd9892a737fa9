"""Which cameras are warm while which alarms are shown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import Unavailable
from gateway.prewarm import ALARMS, LONGEST_MS, Prewarm


class Around:
    def __init__(self) -> None:
        self.now_ms = 1_000
        self.warmed: list[str] = []
        self.news = asyncio.Event()

    async def warm(self, camera: str) -> None:
        self.warmed.append(camera)
        self.news.set()
        if camera == "down":
            raise Unavailable("no picture")
        if camera == "hangs":
            await asyncio.Event().wait()

    def prewarm(self, again_s: float = 60.0) -> Prewarm:
        return Prewarm(
            cameras_of=lambda data: data["cameras"],
            warm=self.warm,
            again_s=again_s,
            clock=lambda: self.now_ms,
        )


def alarm(*cameras: str, **more: Any) -> dict[str, Any]:
    return {"handling": "NEW", "verified": True, "kind": "help", "cameras": cameras, **more}


async def test_from_the_commit_until_triage() -> None:
    around = Around()
    prewarm = around.prewarm()
    prewarm.see("A", alarm("c1", "c2"))
    prewarm.see("B", alarm("c2", "c3"))
    assert prewarm.wanted() == ["c1", "c2", "c3"]
    prewarm.see("A", alarm("c1", "c2", handling="ACKNOWLEDGED"))
    assert prewarm.wanted() == ["c1", "c2", "c3"]
    prewarm.see("A", alarm(handling="TRIAGED"))
    assert prewarm.wanted() == ["c2", "c3"]
    around.now_ms += LONGEST_MS
    assert prewarm.wanted() == []


@pytest.mark.parametrize("more", [{"verified": False}, {"kind": "test"}, {"handling": "CLOSED"}])
async def test_what_is_no_call_for_help_warms_nothing(more: dict[str, Any]) -> None:
    prewarm = Around().prewarm()
    prewarm.see("A", alarm("c1", **more))
    assert prewarm.wanted() == []


async def test_a_storm_warms_a_bounded_number() -> None:
    prewarm = Around().prewarm()
    for number in range(100):
        if prewarm.wants(f"A{number}"):
            prewarm.see(f"A{number}", alarm(f"c{number}"))
    assert len(prewarm.wanted()) == ALARMS


async def test_they_are_warmed_at_once_and_again_whatever_happens_to_one() -> None:
    around = Around()
    prewarm = around.prewarm(again_s=0.02)
    task = asyncio.create_task(prewarm.run())
    try:
        await asyncio.sleep(0)
        prewarm.see("A", alarm("down", "hangs", "good"))
        async with asyncio.timeout(10):
            while around.warmed.count("good") < 3:
                around.news.clear()
                await around.news.wait()
        assert {"down", "hangs"} < set(around.warmed)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
