"""A media worker is killed under a wall that watches: its tiles come back by themselves, the others never stop."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser
from running_product import Product, a_product, open_page

pytestmark = pytest.mark.browser

CAMERAS = 4
FRAMES = "tiles => Object.fromEntries(tiles.map(t => [t.dataset.camera, Number(t.dataset.frames)]))"


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Product]:
    """A gateway with two media workers and four cameras."""
    with a_product(tmp_path, cameras=CAMERAS, media={"workers": 2}, mqtt={"mode": "off"}) as running:
        yield running


def workers_of(product: Product) -> list[int]:
    """The pids of the gateway's media workers."""
    pid = product.processes["gateway"].pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in children if "streams.worker" in Path(f"/proc/{one}/cmdline").read_text()]


def metric(product: Product, name: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{product.base}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(name)}


async def test_tiles_of_a_killed_worker_come_back(sharded: Product, browser: Browser) -> None:
    link = await asyncio.to_thread(sharded.link, "wall", "operator", "me")
    wall, errors = await open_page(browser, link, 1366, 768)

    async def frames() -> dict[str, int]:
        return await wall.eval_on_selector_all('[data-tile]:not([data-camera=""])', FRAMES)

    async def all_advance(by: int, seconds: float) -> None:
        start = await frames()
        now: dict[str, int] = {}
        try:
            async with asyncio.timeout(seconds):
                while len(now) < CAMERAS or any(now[one] < start.get(one, 0) + by for one in now):
                    await asyncio.sleep(0.1)
                    now = await frames()
        except TimeoutError:
            raise AssertionError(f"{start} -> {now}") from None

    await wall.wait_for_selector("[data-tile][data-state=live]", timeout=60_000)
    await all_advance(20, 30)
    first, second = workers_of(sharded)
    ends = await asyncio.to_thread(metric, sharded, "gateway_media_closed_total")
    assert 'gateway_media_closed_total{reason="worker_lost"}' not in ends
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.5)
    lost = await asyncio.to_thread(metric, sharded, "gateway_media_closed_total")
    assert lost['gateway_media_closed_total{reason="worker_lost"}'] == CAMERAS / 2
    await all_advance(50, 30)
    assert second in workers_of(sharded)
    assert first not in workers_of(sharded)
    restarts = await asyncio.to_thread(metric, sharded, "gateway_worker_restarts_total")
    assert sorted(restarts.values()) == [0, 1]
    assert errors == []
