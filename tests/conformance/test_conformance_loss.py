"""Networks as they are: loss, NAT rebinding, a blackout, keyframe requests. The link is `netem.Relay`, the viewers are aiortc and
Chromium.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from browser import statistics
from gateway_process import Running
from http_clients import Peer, eventually, request
from netem import Relay, Shape
from playwright.async_api import Page

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.browser, pytest.mark.realtime]
FPS = 25
WAN = Shape(delay_s=0.015, jitter_s=0.005)


@asynccontextmanager
async def relayed(gateway: Running, **shapes: Shape) -> AsyncIterator[Relay]:
    async with await Relay.open(("127.0.0.1", gateway.media_port), **shapes) as relay:
        yield relay


async def watch(page: Page, gateway: Running, relay: Relay, **options: Any) -> None:
    url, token = f"{gateway.base}/whep/cam001", await gateway.token()
    await page.evaluate(
        "([url, token, options]) => watch(url, token, options)",
        [url, token, {"port": relay.address[1], **options}],
    )


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.1])
async def test_pictures_stay_whole_by_retransmission(gateway: Running, http, page: Page, loss: float) -> None:
    """a lossy link (1-10 %, both ways) keeps pictures whole by retransmission

    Said in pictures and packets, not in seconds, so that a slow machine changes nothing: whoever decoded n keyframes,
    50 pictures apart, has decoded all between them; and no number of a packet is missing once retransmissions are in.
    """
    shape = Shape(loss=loss, delay_s=WAN.delay_s, jitter_s=WAN.jitter_s)
    # One after the other: the relay shares this process with aiortc, whose decoding would hold up the other's packets.
    async with relayed(gateway, up=shape, down=shape) as relay:
        await watch(page, gateway, relay)
        start = await statistics(page, lambda s: s.get("video.framesDecoded", 0) > 0, 60)
        seen = await statistics(page, lambda s: s.get("video.keyFramesDecoded", 0) >= 4, 60)
        assert relay.counters("down")["lost"] > 0
        assert seen["video.retransmittedPacketsReceived"] > 0
        # Before its first picture Chromium may ask: that keyframe can be lost, too.
        assert seen["video.pliCount"] == start["video.pliCount"], (start, seen)
        # 50 pictures lie between keyframes. Chromium goes on to a keyframe that is whole while the last pictures before it
        # still wait for a retransmission, the more often the more is lost; none of that is a packet that never came.
        groups = seen["video.keyFramesDecoded"] - start["video.keyFramesDecoded"]
        assert seen["video.framesDecoded"] >= (1 - 3 * loss) * 50 * groups, (start, seen)
        await page.evaluate("stop()")
    peer, bearer = Peer(), await gateway.bearer()
    async with relayed(gateway, up=shape, down=shape) as relay:
        try:
            session = await peer.join(
                http, f"{gateway.base}/whep/cam001?stream=sub", via=relay.address, **bearer
            )
            packets = peer.tap_packets()
            await eventually(
                lambda: len(packets.received) > 150 and peer.frames > FPS, timeout_s=60, why="aiortc plays"
            )
            assert relay.counters("down")["lost"] > 0
            missing, expected = packets.missing()
            assert packets.repaired > 0 or loss < 0.05
            assert missing <= 0.01 * expected, (missing, expected)
            await request(http, "DELETE", session.location, **bearer)
        finally:
            await peer.close()


async def test_a_nat_that_forgets_does_not_stop_the_picture(gateway: Running, http, page: Page) -> None:
    """NAT rebinding (address change) keeps playing"""
    peer, bearer = Peer(), await gateway.bearer()
    async with relayed(gateway, up=WAN, down=WAN) as relay:
        try:
            await watch(page, gateway, relay)
            session = await peer.join(
                http, f"{gateway.base}/whep/cam001?stream=sub", via=relay.address, **bearer
            )
            before = await statistics(page, lambda s: s.get("video.framesDecoded", 0) > FPS)
            await eventually(lambda: peer.frames > FPS, timeout_s=40, why="aiortc plays")
            relay.rebind()
            frames = peer.frames
            await statistics(
                page, lambda s: s["video.framesDecoded"] > before["video.framesDecoded"] + 3 * FPS, 20
            )
            await eventually(lambda: peer.frames > frames + 3 * FPS, timeout_s=40, why="aiortc goes on")
            await request(http, "DELETE", session.location, **bearer)
        finally:
            await peer.close()
        await page.evaluate("stop()")


async def test_a_blackout_of_three_seconds_recovers(gateway: Running, http, page: Page) -> None:
    """3 s blackout recovers"""
    peer, bearer = Peer(), await gateway.bearer()
    async with relayed(gateway, up=WAN, down=WAN) as relay:
        try:
            await watch(page, gateway, relay)
            session = await peer.join(
                http, f"{gateway.base}/whep/cam001?stream=sub", via=relay.address, **bearer
            )
            await statistics(page, lambda s: s.get("video.framesDecoded", 0) > FPS)
            await eventually(lambda: peer.frames > FPS, timeout_s=40, why="aiortc plays")
            relay.blackout(3.0)
            await asyncio.sleep(3.0)
            frames, dark = peer.frames, await page.evaluate("received()")
            after = await statistics(
                page, lambda s: s["video.framesDecoded"] > dark["video.framesDecoded"] + FPS, 10
            )
            assert after["video.pliCount"] <= dark["video.pliCount"] + 3, after
            await eventually(lambda: peer.frames > frames + FPS, timeout_s=40, why="aiortc goes on")
            await request(http, "DELETE", session.location, **bearer)
        finally:
            await peer.close()
        await page.evaluate("stop()")


async def test_a_picture_loss_indication_of_chromium_is_answered(gateway: Running, page: Page) -> None:
    """PLI from the keyframe cache in a running session with Chromium (which sends no FIR, whatever is negotiated)

    It offers no NACK here, so the first loss leaves it without a picture until it asks.
    """
    async with relayed(gateway) as relay:
        await watch(page, gateway, relay, without=["nack"])
        before = await statistics(page, lambda s: s.get("video.framesDecoded", 0) > FPS)
        relay.reshape(down=Shape(loss=0.05))
        asked = await statistics(page, lambda s: s["video.pliCount"] > before["video.pliCount"], 20)
        relay.reshape(down=Shape())
        after = await statistics(
            page, lambda s: s["video.framesDecoded"] > asked["video.framesDecoded"] + FPS
        )
        assert after["video.keyFramesDecoded"] > asked["video.keyFramesDecoded"]
        assert after["video.nackCount"] == 0
        await page.evaluate("stop()")


@pytest.mark.parametrize("kind", ["pli", "fir"])
async def test_a_keyframe_request_brings_a_keyframe_before_its_time(
    gateway: Running, http, kind: str
) -> None:
    """PLI (RFC 4585 section 6.3.1) and FIR (RFC 5104 section 4.3.1) from the keyframe cache in a running session

    The camera's keyframes are 50 pictures apart; what was asked for comes between two of them.
    """
    peer, bearer = Peer(), await gateway.bearer()
    try:
        session = await peer.join(http, f"{gateway.base}/whep/cam001?stream=sub", **bearer)
        await eventually(lambda: peer.frames > 5, why="pictures")
        pictures = peer.tap_pictures()
        await eventually(
            lambda: any(keyframe for _, keyframe in pictures), why="a keyframe of the camera's own"
        )
        await eventually(
            lambda: len(pictures) > 10 + [k for _, k in pictures].index(True), why="pictures after it"
        )
        await peer.ask_for_keyframe(kind)
        await eventually(lambda: sum(keyframe for _, keyframe in pictures) >= 2, why="another keyframe")
        first, second = [at for at, (_, keyframe) in enumerate(pictures) if keyframe][:2]
        assert 10 <= second - first < 45
        await request(http, "DELETE", session.location, **bearer)
    finally:
        await peer.close()


async def test_auto_leaves_a_bad_path_to_the_sub_stream(gateway: Running, page: Page) -> None:
    """`stream=auto` follows the loss that a real browser reports: from 720 lines to 360 in the running session"""
    async with relayed(gateway, up=WAN, down=WAN) as relay:
        await page.evaluate(
            "([url, token, port]) => watch(url, token, {port})",
            [f"{gateway.base}/whep/cam001?stream=auto", await gateway.token(), relay.address[1]],
        )
        await statistics(page, lambda s: s.get("video.framesDecoded", 0) > FPS)
        assert (await page.evaluate("played()"))["height"] == 720
        relay.reshape(down=Shape(loss=0.2, delay_s=WAN.delay_s))

        async def smaller() -> bool:
            return (await page.evaluate("played()"))["height"] == 360

        await eventually(smaller, timeout_s=60, why="the sub-stream is shown")
        relay.reshape(down=WAN)
        seen = await page.evaluate("received()")
        await statistics(page, lambda s: s["video.framesDecoded"] > seen["video.framesDecoded"] + FPS)
        await page.evaluate("stop()")
