"""A provider of SMS, voice calls and push: takes the gateway's webhooks, "reaches" the phone, posts signed receipts back."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
from aiohttp import web

__all__ = ["Provider", "arguments", "run"]

DELAYS_S = {"push": 0.3, "sms": 2.0, "voice": 4.0}
"""How long each channel takes to reach a phone, on average."""
MAX_WAITING = 1_000
"""Receipts under way; more notices are refused with 503, and the gateway tries again."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `provider`."""
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument(
        "--secret", required=True, help="as under credentials in secrets.yaml; `-` reads one line"
    )
    parser.add_argument("--fail", type=float, default=0.05, help="share of channels that reach nobody")
    parser.add_argument("--speed", type=float, default=1.0, help="times faster than real ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.set_defaults(run=run)


class Provider:
    """The web application, and what it did."""

    def __init__(self, secret: str, *, fail: float, speed: float, seed: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self._secret = secret.encode()
        self._fail, self._speed = fail, speed
        self._random = random.Random(seed)
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/rings", self._take)
        app.on_shutdown.append(self._stop)
        return app

    def _sign(self, stamp: str, body: bytes) -> str:
        return "sha256=" + hmac.new(self._secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        stamp = request.headers.get("X-Gateway-Timestamp", "")
        if not hmac.compare_digest(self._sign(stamp, body), request.headers.get("X-Gateway-Signature", "")):
            self.counts["forged"] += 1
            return web.Response(status=401)
        if len(self._tasks) >= MAX_WAITING:
            return web.Response(status=503, headers={"Retry-After": "1"})
        notice = json.loads(body)
        if notice["id"] not in self._seen:  # a webhook that comes again reaches nobody twice
            self._seen.add(notice["id"])
            self.counts["notices"] += 1
            for channel in notice["channels"]:
                task = asyncio.create_task(self._reach(notice, channel), name=f"{channel} {notice['id']}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return web.Response(status=202)

    async def _reach(self, notice: dict[str, Any], channel: str) -> None:
        mean_s = DELAYS_S.get(channel, 1.0) / self._speed
        failed = not notice["worker"]["phone"] or self._random.random() < self._fail
        await asyncio.sleep(self._random.uniform(0.5, 1.5) * mean_s)
        receipt = {
            "call": notice["call"],
            "worker": notice["worker"]["id"],
            "channel": channel,
            "status": "failed" if failed else "delivered",
        }
        if failed:
            receipt["error"] = "no answer" if notice["worker"]["phone"] else "no phone number"
        body, stamp = json.dumps(receipt).encode(), str(int(time.time()))
        headers = {"X-Gateway-Timestamp": stamp, "X-Gateway-Signature": self._sign(stamp, body)}
        self.counts[f"{channel} {receipt['status']}"] += 1
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
                session.post(notice["receipts"], data=body, headers=headers) as answer,
            ):
                self.counts[f"receipt {answer.status}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.counts[f"receipt {type(error).__name__}"] += 1

    async def _stop(self, app: web.Application) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def run(options: argparse.Namespace) -> None:
    """`provider`: serves until it is stopped, then prints one JSON report."""
    secret = sys.stdin.readline().strip() if options.secret == "-" else options.secret
    provider = Provider(secret, fail=options.fail, speed=options.speed, seed=options.seed)
    web.run_app(provider.app(), host="127.0.0.1", port=options.port, print=None)
    print(json.dumps(provider.counts), flush=True)
