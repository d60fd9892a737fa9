"""A camera that shows nothing but black: the wall says so in words, in the tree and on the tile, while its video goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect
from running_product import Product, a_product, open_page

pytestmark = pytest.mark.browser


@pytest.fixture
def half_black(tmp_path: Path) -> Iterator[Product]:
    """Two cameras in two media workers, the second of them black, and pictures looked at twice a second."""
    with a_product(
        tmp_path,
        cameras=2,
        faults=("cam002=black",),
        media={"workers": 2},
        mqtt={"mode": "off"},
        pictures={"interval_s": 0.5, "cpu_share": 0.5},
    ) as running:
        yield running


async def test_a_black_picture_is_said_in_words(half_black: Product, browser: Browser) -> None:
    link = await asyncio.to_thread(half_black.link, "wall", "operator", "me")
    wall, errors = await open_page(browser, link, 1366, 768)
    black = wall.locator("[data-tile][data-camera=cam002]")
    await expect(black.locator(".picture")).to_contain_text("画面全黑", timeout=60_000)
    await expect(black).to_have_attribute("data-state", "live", timeout=60_000)
    await expect(wall.locator("[data-tree-camera=cam002] small")).to_contain_text("画面全黑")
    fine = wall.locator("[data-tile][data-camera=cam001]")
    await expect(fine).to_have_attribute("data-state", "live", timeout=60_000)
    assert await fine.locator(".picture").count() == 0
    assert errors == []
