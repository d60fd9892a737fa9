"""One gateway for all conformance tests of a module's kind: they look at sessions of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from gateway_process import Running, running


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
    settings = {"media": {"ice_servers": ice, "ice_timeout_s": 5.0}, "access": {"joins_worker": 4}}
    async with running(directory, cache=clip_cache, settings=settings) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client
    await asyncio.sleep(0)  # connections close in the loop's next turn
