"""Headless Chromium with the published clients on a page of an origin of its own."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from gateway_process import ROOT
from playwright.async_api import Browser, Page, async_playwright

CLIENTS = Path(__file__).parent / "clients"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
PAGE = "<!doctype html><meta charset=utf-8><video id=video autoplay playsinline muted></video><script src=page.js></script>"


def bundle(directory: Path) -> Path:
    """page.js with everything that it imports, by the bundler of the product's own pages."""
    built = directory / "page.js"
    bundler = ROOT / "gateway/web/node_modules/.bin/esbuild"
    subprocess.run(
        [bundler, "page.js", "--bundle", "--format=iife", "--log-level=warning", f"--outfile={built}"],
        cwd=CLIENTS,
        check=True,
    )
    return built


@asynccontextmanager
async def other_origin(script: Path) -> AsyncIterator[str]:
    """A web server with nothing but the page: whatever the page asks of the gateway is cross-origin."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def code(request: web.Request) -> web.FileResponse:
        return web.FileResponse(script)

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/page.js", code)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


async def statistics(
    page: Page, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 20
) -> dict[str, Any]:
    """The viewer's statistics at the moment when they satisfy the condition."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = await page.evaluate("received()")
                if condition(found):
                    return found
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"never came: {found}") from None
