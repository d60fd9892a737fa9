"""The README's own-camera section: a minimal cameras.yaml, a camera that is not ours, a picture on the wall."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser
from running_product import ROOT, Product, free_port, open_page

pytestmark = pytest.mark.browser


@pytest.fixture
def bare_gateway(tmp_path: Path) -> Iterator[Product]:
    """A gateway with nothing but a cameras file (and free ports), beside GStreamer's RTSP server."""
    rtsp = free_port()
    camera = subprocess.Popen(
        ["/usr/bin/python3", str(ROOT / "simulators/gst_camera.py"), str(rtsp)], stdout=subprocess.DEVNULL
    )
    (tmp_path / "cameras.yaml").write_text(
        f'cameras:\n  - {{id: test, main: "rtsp://127.0.0.1:{rtsp}/test"}}\n'
        f'  - {{id: gone, main: "rtsp://127.0.0.1:{free_port()}/nobody"}}\n'
    )
    running = Product(tmp_path, free_port(), free_port(), rtsp)
    (tmp_path / "gateway.yaml").write_text(
        f"http: {{port: {running.http}}}\nmqtt: {{port: {running.mqtt}}}\nmedia: {{udp_port: 0}}\n"
    )
    try:
        running.start(
            "gateway",
            "gateway",
            "serve",
            "--cameras",
            f"{tmp_path}/cameras.yaml",
            "--data",
            f"{tmp_path}/data",
        )
        running.until_ready()
        yield running
    finally:
        running.stop()
        camera.terminate()
        camera.wait(10)


async def test_a_foreign_camera_shows_on_the_wall_and_a_dead_one_says_why(
    bare_gateway: Product, browser: Browser
) -> None:
    link = await asyncio.to_thread(bare_gateway.link, "wall", "operator", "me")
    wall, errors = await open_page(browser, link, 1366, 768)
    tile = "[data-tile][data-camera=test]"
    await wall.wait_for_selector(f"{tile}[data-state=live]", timeout=60_000)
    async with asyncio.timeout(60):
        while int(await wall.get_attribute(tile, "data-frames") or 0) < 25:
            await asyncio.sleep(0.1)
    token = await asyncio.to_thread(bare_gateway.token, "operator", "me")
    gone = await asyncio.to_thread(bare_gateway.get, "/api/v1/cameras/gone", token)
    assert (gone["state"], gone["reason"]) == ("down", "connection refused")
    assert errors == []
