"""Fixtures: one running product for each file of end-to-end tests, one Chromium for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import yaml
from playwright.async_api import Browser, async_playwright
from running_product import CAMERAS, CHROMIUM, ROOT, Product, free_port


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("product")
    running = Product(folder, free_port(), free_port(), free_port())
    rows = yaml.load((ROOT / "config/cameras.yaml").read_text(), yaml.CSafeLoader)["cameras"][:CAMERAS]
    for row in rows:
        for name in ("main", "sub"):
            row[name] = row[name].replace("127.0.0.1:8554", f"127.0.0.1:{running.rtsp}")
    (folder / "cameras.yaml").write_text(yaml.dump({"cameras": rows}, allow_unicode=True, sort_keys=False))
    settings = {
        "http": {"port": running.http},
        "media": {"udp_port": 0},
        "mqtt": {"port": running.mqtt},
    }
    (folder / "gateway.yaml").write_text(yaml.dump(settings))
    running.run("simulators", "secrets", "--out", f"{folder}/secrets.yaml")
    try:
        running.start(
            "cameras",
            *(
                "simulators",
                "cameras",
                "--cameras",
                f"{folder}/cameras.yaml",
                "--secrets",
                f"{folder}/secrets.yaml",
            ),
            *("--port", str(running.rtsp), "--live", "0", "--seconds", "4", "--cache", "var/test-clips"),
        )
        running.start_gateway()
        yield running
    finally:
        running.stop()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(CHROMIUM))
        try:
            yield browser
        finally:
            await browser.close()
