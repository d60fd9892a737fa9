"""One gateway for all conformance tests of a module's kind: they look at sessions of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from browser import bundle, chromium, other_origin
from gateway_process import Running, running
from playwright.async_api import Browser, Page

sys.path.append(str(Path(__file__).parents[1]))  # for netem, which other tests use too


@pytest.fixture(scope="session")
def clip_cache(tmp_path_factory: pytest.TempPathFactory):
    """Clips are encoded once for all gateways of this run."""
    return tmp_path_factory.mktemp("clips")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(tmp_path_factory: pytest.TempPathFactory, clip_cache) -> AsyncIterator[Running]:
    directory = tmp_path_factory.mktemp("gateway")
    ice = [{"urls": ["stun:stun.example:3478"]}, {"urls": ["turn:turn.example:3478"], "credentials": "turn"}]
    secrets = directory / "secrets.yaml"
    secrets.write_text('credentials: {turn: {username: "district", password: "turn-secret"}}\n')
    secrets.chmod(0o600)
    settings = {"media": {"ice_servers": ice, "ice_timeout_s": 13.0}, "access": {"joins_worker": 4}}
    async with running(directory, cache=clip_cache, settings=settings) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client
    await asyncio.sleep(0)  # connections close in the loop's next turn


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as one:
        yield one


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def origin(tmp_path_factory) -> AsyncIterator[str]:
    async with other_origin(bundle(tmp_path_factory.mktemp("page"))) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, origin: str) -> AsyncIterator[Page]:
    context = await browser.new_context()
    one = await context.new_page()
    await one.goto(origin)
    yield one
    await context.close()
