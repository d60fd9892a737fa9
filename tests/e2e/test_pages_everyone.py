"""Pages for everyone: WCAG 2.2 AA by axe-core, two languages, narrow and zoomed screens; and a lost connection that says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from playwright.async_api import Browser, Page
from running_product import ROOT, Product, open_page

pytestmark = pytest.mark.browser

AXE = ROOT / "gateway/web/node_modules/axe-core/axe.min.js"
RUN = """axe.run(document, {
  runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], resultTypes: ["violations"]
}).then(r => r.violations.map(v => [v.id, v.nodes.length, v.nodes[0].target.join(" ")]))"""


async def violations(page: Page) -> list[Any]:
    await page.evaluate(
        await asyncio.to_thread(AXE.read_text)
    )  # by the debugger: the page's own security policy stays as it is
    return list(await page.evaluate(RUN))


@pytest.mark.parametrize(
    ("page", "role", "sub", "width", "height", "ready"),
    [
        ("wall", "operator", "op01", 1366, 768, "[data-list=alarms]"),
        ("wall", "leader", "leader01", 390, 844, "[data-list=alarms]"),
        ("worker", "worker", "w009", 390, 844, "[data-act=duty]"),
        ("stb", "stb", "stb00009", 1280, 720, "#red"),
    ],
)
async def test_every_screen_meets_wcag_aa_and_fits(
    product: Product, browser: Browser, page: str, role: str, sub: str, width: int, height: int, ready: str
) -> None:
    opened, errors = await open_page(browser, product.link(page, role, sub), width, height)
    await opened.wait_for_selector(ready, state="attached")
    await opened.wait_for_selector(
        ".map > .quiet", state="detached"
    )  # the settled screen, not "loading the map"
    assert await violations(opened) == []
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    assert await opened.evaluate(fits)
    # 200 % zoom of a browser halves the CSS pixels
    await opened.set_viewport_size({"width": max(320, width // 2), "height": height // 2})
    assert await opened.evaluate(fits)
    assert errors == []


async def test_one_switch_speaks_english(product: Product, browser: Browser) -> None:
    wall, errors = await open_page(browser, product.link("wall", "operator", "op06"), 1366, 768)
    await wall.wait_for_selector("[data-list=alarms]")
    assert await wall.get_attribute("html", "lang") == "zh-CN"
    await wall.click("text=English")
    await wall.wait_for_selector("text=Whole district")
    assert await wall.get_attribute("html", "lang") == "en"
    assert await wall.title() == "Command center · Live video and alarms"
    assert errors == []


async def test_a_lost_gateway_is_said_and_the_session_kept(product: Product, browser: Browser) -> None:
    """Killed like in a power cut: a banner, no picture that looks live, and everything back without a log-in. A resident who
    presses meanwhile is sent to 110, and the press arrives all the same."""
    stb, stb_errors = await open_page(browser, product.link("stb", "stb", "stb00020"), 1280, 720)
    await stb.wait_for_selector("body[data-mqtt=up]")
    wall, errors = await open_page(browser, product.link("wall", "operator", "op07"), 1366, 768)
    await wall.wait_for_selector("[data-tile][data-state=live]", timeout=60_000)
    await asyncio.to_thread(product.kill, "gateway")
    try:
        for _ in range(2):
            await stb.keyboard.press("r")
        await wall.wait_for_selector("[data-stale]", timeout=60_000)
        await stb.wait_for_selector("body[data-stage=sent][data-help='1']")
        said = await stb.inner_text("#panel")
        assert "请拨打110" in said
        assert "网格员电话" in said
        await wall.wait_for_selector("[data-tile][data-state=live]", state="detached", timeout=60_000)
    finally:
        await asyncio.to_thread(product.start_gateway)
    await wall.wait_for_selector("[data-stale]", state="detached", timeout=60_000)
    await wall.wait_for_selector("[data-tile][data-state=live]", timeout=60_000)
    await stb.wait_for_selector("body[data-help='0']:not([data-stage=sent])")
    assert stb_errors == []
    assert await wall.evaluate("location.pathname") == "/wall"
    assert errors == []
