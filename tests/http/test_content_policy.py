"""The pages under their Content-Security-Policy in a real browser: they work, and nothing they do is refused."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from playwright.async_api import async_playwright
from running_gateway import STREET_A, Bench, running_gateway

from gateway.http.pages import DIST, security_headers
from gateway.identity import TokenKind

PAGES = {
    "login": None, "wall": ("operator", "op", None), "desk": ("desk", "desk-a", STREET_A), "stb": ("stb", "box-a1", None),
    "worker": ("worker", "wa", None),
}  # fmt: skip
COUNT = """
    window.violations = [];
    document.addEventListener('securitypolicyviolation',
        e => window.violations.push(e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sourceFile + ':' + e.lineNumber));
"""


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    policy = security_headers(tls=True)["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("page", PAGES)
def test_no_page_holds_inline_script_or_style(page: str) -> None:
    html = (DIST / f"{page}.html").read_text(encoding="utf-8")
    assert (
        re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html, re.IGNORECASE) == []
    )
    assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", html) == []


async def load(bench: Bench, browser: object, page: str) -> tuple[list[str], str]:
    """Violations on the page and its visible text, some seconds after the log-in."""
    context = await browser.new_context()  # type: ignore[attr-defined]
    tab = await context.new_page()
    await tab.add_init_script(COUNT)
    console: list[str] = []
    tab.on("console", lambda message: console.append(message.text))
    who = PAGES[page]
    code = "" if who is None else f"#code={bench.token(*who, kind=TokenKind.CODE)}"
    answer = await tab.goto(
        f"{bench.gateway.base_url}/{page if who is None else 'login'}{'' if who is None else f'?next=/{page}'}{code}"
    )
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    if who is not None:
        await tab.wait_for_url(f"**/{page}*", timeout=20_000)
    await asyncio.sleep(3)
    violations = await tab.evaluate("window.violations")
    text = await tab.inner_text("body")
    await context.close()
    return violations + [line for line in console if "Content Security Policy" in line], text


@pytest.mark.browser
@pytest.mark.broker
async def test_every_page_works_under_its_policy(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as bench, async_playwright() as playwright:
        await bench.fill()
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            # Side by side: each is a browser context of its own, and most of the time is looking on.
            seen = dict(
                zip(PAGES, await asyncio.gather(*(load(bench, browser, page) for page in PAGES)), strict=True)
            )
        finally:
            await browser.close()
    assert {page: violations for page, (violations, _) in seen.items() if violations} == {}
    assert all(text.strip() for _, text in seen.values())
