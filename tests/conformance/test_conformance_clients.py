"""Clients that others wrote play from the gateway: in Chromium `whip-whep` and `@eyevinn/webrtc-player`, in node werift.

aiortc, the third independent stack, plays in the tests of each line. The browser's page is of another origin, so every
request of these clients also passes CORS.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from browser import CLIENTS, statistics
from gateway_process import WORKER, Running
from http_clients import eventually, hang_up, open_call
from playwright.async_api import Page

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.browser]


async def sessions(gateway: Running) -> float:
    return sum(
        value
        for name, value in (await gateway.metrics()).items()
        if name.startswith("gateway_media_sessions")
    )


async def alone(gateway: Running) -> None:
    """What an earlier test left without a DELETE has run out: sessions counted from here on are the test's own."""

    async def empty() -> bool:
        return await sessions(gateway) == 0

    await eventually(empty, timeout_s=60, why="earlier sessions end")


async def test_whip_whep_plays_restarts_and_stops(gateway: Running, page: Page) -> None:
    """npm `whip-whep`: picture and sound, an ICE restart by PATCH, DELETE when it stops"""
    await alone(gateway)
    await page.evaluate(
        "([url, token]) => watch(url, token)", [f"{gateway.base}/whep/cam001", await gateway.token()]
    )
    first = await statistics(
        page,
        lambda s: s.get("video.framesDecoded", 0) > 25 and s.get("audio.totalSamplesReceived", 0) > 8_000,
    )
    assert first["video.packetsLost"] == 0
    assert first["srtp"] == "SRTP_AEAD_AES_128_GCM"
    assert await sessions(gateway) == 1
    await page.evaluate("restart()")
    later = await statistics(page, lambda s: s["video.framesDecoded"] > first["video.framesDecoded"] + 40)
    assert later["state"] == "connected"
    assert (await page.evaluate("played()"))["height"] in (360, 720)
    await page.evaluate("stop()")
    assert await sessions(gateway) == 0


async def test_whip_whep_survives_that_it_names_no_etag(gateway: Running, page: Page) -> None:
    """missing tag 428: whip-whep 1.2 trickles without `If-Match`; it is told so, and plays nevertheless"""
    await page.evaluate(
        "([url, token]) => watch(url, token)", [f"{gateway.base}/whep/cam001", await gateway.token()]
    )
    await statistics(page, lambda s: s.get("video.framesDecoded", 0) > 5)
    refused = await eventually(lambda: page.evaluate("rejections"), why="the client's candidates are refused")
    assert all("428" in one for one in refused), refused
    await page.evaluate("stop()")


async def test_chromium_plays_over_tcp_where_udp_is_blocked(gateway: Running, page: Page) -> None:
    """ICE-TCP (RFC 6544) for networks without UDP"""
    await alone(gateway)
    await page.evaluate(
        "([url, token]) => watch(url, token, {only: 'tcp'})",
        [f"{gateway.base}/whep/cam001", await gateway.token()],
    )
    first = await statistics(
        page,
        lambda s: s.get("video.framesDecoded", 0) > 25 and s.get("audio.totalSamplesReceived", 0) > 8_000,
    )
    assert first["protocol"] == "tcp"
    assert first["video.packetsLost"] == 0
    await statistics(page, lambda s: s["video.framesDecoded"] > first["video.framesDecoded"] + 60)
    await page.evaluate("stop()")
    assert await sessions(gateway) == 0


@pytest.mark.parametrize("mime", ["video/H264", "video/VP8"])
async def test_whip_whep_publishes_and_the_other_side_watches(
    gateway: Running, http, page: Page, mime: str
) -> None:
    """WHIP: npm `whip-whep` publishes the leg of a gridworker, `whip-whep` of an operator plays it"""
    legs, leg, _ = await open_call(gateway, http)
    worker = await gateway.token("worker", WORKER)
    await page.evaluate(
        "([url, token, mime]) => publish(url, token, mime)", [f"{legs}/{leg}/whip", worker, mime]
    )
    await page.evaluate("([url, token]) => watch(url, token)", [f"{legs}/{leg}/whep", await gateway.token()])
    await statistics(
        page,
        lambda s: s.get("video.framesDecoded", 0) > 20 and s.get("audio.totalSamplesReceived", 0) > 8_000,
    )
    await page.evaluate("unpublish()")
    await page.evaluate("stop()")
    await hang_up(gateway, http, legs)


async def test_eyevinn_player_plays_and_unloads(gateway: Running, page: Page) -> None:
    """npm `@eyevinn/webrtc-player` with its WHEP adapter"""
    await alone(gateway)
    token = await gateway.token()
    await page.evaluate("([url, token]) => playEyevinn(url, token)", [f"{gateway.base}/whep/cam001", token])

    async def played() -> bool:
        return (await page.evaluate("played()"))["time"] > 1

    await eventually(played, timeout_s=20, why="the video element plays")
    report = await eventually(lambda: page.evaluate("inbound.video"), why="the player's own statistics")
    assert report["packetsLost"] == 0
    await page.evaluate("stopEyevinn()")

    async def left() -> bool:
        return await sessions(gateway) == 0

    await eventually(left, why="the player deletes its session")


async def test_werift_receives_whole_pictures(gateway: Running) -> None:
    """one more independent client (werift): RTP of picture and sound by its own ICE, DTLS and SRTP"""
    process = await asyncio.create_subprocess_exec(
        *("node", "werift_viewer.mjs", f"{gateway.base}/whep/cam001", await gateway.token(), "3"),
        cwd=CLIENTS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    report = json.loads(out)
    assert report["state"] == "connected"
    assert report["packets"]["video"] > 100
    assert report["packets"]["audio"] > 30
    assert report["lost"] == 0
    assert report["sets"]
    assert report["keyframes"] >= 1
    assert report["markers"] > 40
    assert len(report["ssrcs"]) == 2
    assert report["deleted"] == 200
