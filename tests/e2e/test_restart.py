"""The gateway is stopped as an operator would (SIGTERM) and started again under a wall: nobody logs in anew, the picture comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect
from running_product import Product, a_product, open_page

pytestmark = pytest.mark.browser


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Product]:
    """One camera."""
    with a_product(tmp_path, cameras=1, mqtt={"mode": "off"}) as running:
        yield running


async def test_the_wall_survives_a_restart(small: Product, browser: Browser) -> None:
    link = await asyncio.to_thread(small.link, "wall", "operator", "me")
    wall, _ = await open_page(browser, link, 1366, 768)
    tile = wall.locator("[data-tile][data-camera=cam001]")
    await expect(tile).to_have_attribute("data-state", "live", timeout=60_000)
    gateway = small.processes.pop("gateway")
    gateway.terminate()
    assert await asyncio.to_thread(gateway.wait, 20) == 0
    await expect(tile).not_to_have_attribute("data-state", "live", timeout=60_000)
    await asyncio.to_thread(small.start_gateway)
    await expect(tile).to_have_attribute("data-state", "live", timeout=60_000)
    assert wall.url.startswith(f"{small.base}/wall")
