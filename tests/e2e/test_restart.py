"""The gateway is stopped as an operator would (SIGTERM) and started again under a wall: nobody logs in anew, the picture comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.async_api import Browser, expect
from running_product import ROOT, Product, free_port, open_page

pytestmark = pytest.mark.browser


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Product]:
    """One camera."""
    running = Product(tmp_path, free_port(), free_port(), free_port())
    row = yaml.load((ROOT / "config/cameras.yaml").read_text(), yaml.CSafeLoader)["cameras"][0]
    row |= {
        name: row[name].replace("127.0.0.1:8554", f"127.0.0.1:{running.rtsp}") for name in ("main", "sub")
    }
    (tmp_path / "cameras.yaml").write_text(yaml.dump({"cameras": [row]}, allow_unicode=True))
    settings = {"http": {"port": running.http}, "media": {"udp_port": 0}, "mqtt": {"mode": "off"}}
    (tmp_path / "gateway.yaml").write_text(yaml.dump(settings))
    running.run("simulators", "secrets", "--out", f"{tmp_path}/secrets.yaml")
    try:
        running.start(
            "cameras",
            *("simulators", "cameras", "--cameras", f"{tmp_path}/cameras.yaml"),
            *("--secrets", f"{tmp_path}/secrets.yaml", "--port", str(running.rtsp)),
            *("--live", "0", "--seconds", "4", "--cache", "var/test-clips"),
        )
        running.start_gateway()
        yield running
    finally:
        running.stop()


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
