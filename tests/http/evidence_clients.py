"""A gridworker's phone and a desk as aiortc peers over the gateway's own HTTP, for tests of calls with real media."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiortc import RTCSessionDescription
from webrtc_clients import WhipClient


async def publish(
    session: aiohttp.ClientSession, base: str, path: str, who: dict[str, str], **options: Any
) -> WhipClient:
    """Publishes at a WHIP endpoint; the caller closes it."""
    client = WhipClient(**options)
    try:
        async with session.post(
            base + path, data=await client.offer(), headers={**who, "Content-Type": "application/sdp"}
        ) as answer:
            text = await answer.text()
            assert answer.status == 201, text
        await client.pc.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))
    except BaseException:
        await client.close()
        raise
    return client


@asynccontextmanager
async def publishing(
    session: aiohttp.ClientSession, base: str, path: str, who: dict[str, str], **options: Any
) -> AsyncIterator[WhipClient]:
    client = await publish(session, base, path, who, **options)
    try:
        yield client
    finally:
        await client.close()


async def until(
    look: Callable[[], Any], holds: Callable[[Any], bool], *, timeout_s: float = 30.0, why: str = ""
) -> Any:
    """What `look` gives once it `holds`."""
    seen = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                seen = await look()
                if holds(seen):
                    return seen
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{why or 'it never held'}; last seen: {seen}") from None
