"""Fixtures: one running product for each file of end-to-end tests, one Chromium for all files that a process runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright
from running_product import CHROMIUM, Product, a_product


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser's connection lives on one event loop, so its tests share one."""
    for item in items:
        if item.path.parent.name == "e2e" and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with a_product(tmp_path_factory.mktemp("product")) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(CHROMIUM))
        try:
            yield browser
        finally:
            await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """Without a page of another test: each opens profiles of its own, which go with it."""
    yield chromium
    for context in chromium.contexts:
        await context.close()
