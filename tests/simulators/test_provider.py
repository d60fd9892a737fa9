"""The simulated provider: takes only what is signed, once, and posts signed receipts; and what simulated phones do when rung."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import Counter
from typing import Any

import aiohttp
from aiohttp import web

from simulators.provider import Provider
from simulators.workers import BEHAVIOURS, behaviour_of

SECRET = "shared"


def signature(stamp: str, body: bytes) -> str:
    return "sha256=" + hmac.new(SECRET.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


async def test_a_notice_reaches_the_phone_once_and_comes_back_signed() -> None:
    receipts: list[dict[str, Any]] = []
    done = asyncio.Event()

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        assert request.headers["X-Gateway-Signature"] == signature(
            request.headers["X-Gateway-Timestamp"], body
        )
        receipts.append(json.loads(body))
        if len(receipts) == 2:
            done.set()
        return web.Response()

    provider = Provider(SECRET, fail=0.0, speed=100.0)
    app = provider.app()
    app.router.add_post("/receipts", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        notice = {
            "id": "c1-0",
            "call": "c1",
            "worker": {"id": "w1", "name": "王", "phone": "139"},
            "channels": ["sms", "push"],
            "receipts": f"{base}/receipts",
        }
        body, stamp = json.dumps(notice).encode(), str(int(time.time()))
        headers = {"X-Gateway-Timestamp": stamp, "X-Gateway-Signature": signature(stamp, body)}
        async with aiohttp.ClientSession() as session:
            for sent, expected in ((body + b" ", 401), (body, 202), (body, 202)):
                async with session.post(f"{base}/rings", data=sent, headers=headers) as answer:
                    assert answer.status == expected
            async with asyncio.timeout(10):
                await done.wait()
        assert sorted((one["channel"], one["status"], one["worker"]) for one in receipts) == [
            ("push", "delivered", "w1"),
            ("sms", "delivered", "w1"),
        ]
        assert (provider.counts["notices"], provider.counts["forged"]) == (1, 1)
    finally:
        await runner.cleanup()


def test_a_mix_of_phones_is_as_it_was_asked_for_and_the_same_for_a_seed() -> None:
    mix = {"answer": 6.0, "ignore": 2.0, "lost": 2.0}
    drawn = [behaviour_of(f"w{number}", mix, "", 1) for number in range(1_000)]
    assert drawn == [behaviour_of(f"w{number}", mix, "", 1) for number in range(1_000)]
    counts = Counter(drawn)
    assert set(counts) == set(mix) <= set(BEHAVIOURS)
    assert 500 < counts["answer"] < 700
    assert [behaviour_of("w1", {}, reply, 1) for reply in ("accept", "decline", "")] == [
        "answer",
        "decline",
        "ignore",
    ]
