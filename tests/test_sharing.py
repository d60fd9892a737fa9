"""Webhooks against real receivers on the loopback interface that fail, stall, redirect and come back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway import sharing as module
from gateway.audit import verify_audit
from gateway.errors import NotFound
from gateway.settings import WebhookSettings
from gateway.sharing import Sharing
from gateway.store import Store
from gateway.webhooks import ATTEMPTS, hooks_of

SECRET = "a secret of many characters"
LOOPBACK = ("127.0.0.0/8", "::1/128")


class Receiver:
    """An HTTP server that answers what `answers` says, the last for ever."""

    def __init__(self, *answers: Callable[[], web.Response] | int) -> None:
        self.answers = list(answers)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.news = asyncio.Event()
        self.url = ""
        self.release = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == 0:  # stalls
            await self.release.wait()
            answer = 200
        self.got.append((dict(request.headers), body))
        self.news.set()
        return answer() if callable(answer) else web.Response(status=answer)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.got) < count:
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def receiver(*answers: Callable[[], web.Response] | int) -> AsyncIterator[Receiver]:
    one = Receiver(*answers)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield one
    finally:
        one.release.set()
        await runner.cleanup()


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_790_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "gateway.db")
    try:
        yield opened
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def shared(store: Store, clock: Clock, *settings: WebhookSettings) -> AsyncIterator[Sharing]:
    one = Sharing(store, hooks_of(settings, {"s": SECRET}), clock=clock)
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def to(one: Receiver, name: str = "police", **more: Any) -> WebhookSettings:
    return WebhookSettings(name=name, url=one.url, secret="s", **{"networks": LOOPBACK, **more})


def alarm(number: int, **more: Any) -> tuple[int, str, dict[str, Any], tuple[str, ...]]:
    data = {"id": "A1", "kind": "theft", "verified": True, "handling": "NEW", **more}
    return number, "alarm", data, ("510117", "510117001")


async def until_state(one: Sharing, name: str, state: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while len(found := await one.messages(name, state=state)) < count:
            await asyncio.sleep(0.01)
    return found


async def test_a_message_arrives_signed_once_and_is_audited(store: Store) -> None:
    clock = Clock()
    async with receiver(200) as there, shared(store, clock, to(there)) as one:
        await one.take([alarm(7), alarm(8, repeats=1), alarm(9, kind="test")])  # the second says nothing new
        await one.take([alarm(7)])  # handed over again after a crash
        await one.take([alarm(10, handling="ACKNOWLEDGED")])
        await until_state(one, "police", "delivered", 2)
        [(headers, body), (_, second)] = there.got
        assert json.loads(body)["type"] == "alarm.new"
        assert json.loads(second)["type"] == "alarm.acknowledged"
        assert headers["Webhook-Id"] == "police-7"
        signed = f"police-7.{headers['Webhook-Timestamp']}.".encode() + body
        wanted = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
        assert headers["Webhook-Signature"] == f"v1,{wanted}"
        [overview] = await one.overview()
        assert (overview["delivered"], overview["pending"], overview["dead"]) == (2, 0, 0)
        assert SECRET not in str(overview)
    assert verify_audit(store.path).entries == 2


async def test_failures_are_tried_again_with_the_same_id_until_they_arrive(store: Store) -> None:
    clock = Clock()
    async with receiver(500, 503, 200) as there, shared(store, clock, to(there)) as one:
        await one.take([alarm(1)])
        for attempt in (1, 2):
            await there.until(attempt)
            async with asyncio.timeout(20):
                while (await one.messages("police"))[0]["attempts"] < attempt:
                    await asyncio.sleep(0.01)
            [waiting] = await one.messages("police", state="pending")
            assert waiting["error"].startswith("answered 50")
            clock.now_ms = waiting["next_at"]
            one._news["police"].set()  # the clock of this test does not wake anybody
        await until_state(one, "police", "delivered", 1)
        assert {headers["Webhook-Id"] for headers, _ in there.got} == {"police-1"}
        assert one.counters["police"] == {"delivered": 1, "failed": 2, "dead": 0}


async def test_what_never_arrives_is_dead_until_it_is_tried_again(store: Store) -> None:
    clock = Clock()
    async with receiver(500) as there, shared(store, clock, to(there)) as one:
        await one.take([alarm(1)])
        async with asyncio.timeout(20):
            while not await one.messages("police", state="dead"):
                clock.now_ms += 100_000_000
                one._news["police"].set()
                await asyncio.sleep(0.01)
        assert len(there.got) == ATTEMPTS
        there.answers = [200]
        assert await one.try_again("police", "admin/root") == 1
        await until_state(one, "police", "delivered", 1)
        with pytest.raises(NotFound):
            await one.try_again("nobody", "admin/root")


async def test_redirects_are_not_followed(store: Store) -> None:
    async with receiver(200) as target:
        away = lambda: web.Response(status=307, headers={"Location": target.url})  # noqa: E731
        async with receiver(away) as there, shared(store, Clock(), to(there)) as one:
            await one.take([alarm(1)])
            await there.until(1)
            async with asyncio.timeout(20):
                while not (await one.messages("police"))[0]["error"]:
                    await asyncio.sleep(0.01)
            [waiting] = await one.messages("police")
            assert waiting["error"] == "answered 307 (no redirects)"
        assert not target.got


async def test_a_receiver_that_stalls_holds_up_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    async with (
        receiver(0) as slow,
        receiver(200) as quick,
        shared(store, Clock(), to(slow, "slow"), to(quick, "quick")) as one,
    ):
        await one.take([alarm(1)])
        await quick.until(1)
        await until_state(one, "quick", "delivered", 1)
        async with asyncio.timeout(20):
            while not (await one.messages("slow"))[0]["error"]:
                await asyncio.sleep(0.01)
        [waiting] = await one.messages("slow")
        assert (waiting["state"], waiting["error"]) == ("pending", "no answer within 0.3 s")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433"])
async def test_private_hosts_are_not_dialled_unless_listed(store: Store, host: str) -> None:
    async with receiver(200) as there:
        url = there.url.replace("127.0.0.1", host)
        hook = WebhookSettings(name="police", url=url, secret="s")
        async with shared(store, Clock(), hook) as one:
            await one.take([alarm(1)])
            async with asyncio.timeout(20):
                while not (await one.messages("police"))[0]["error"]:
                    await asyncio.sleep(0.01)
            [refused] = await one.messages("police")
            assert refused["state"] == "pending"
        assert not there.got


async def test_a_name_that_says_something_else_the_second_time_is_asked_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the connection goes to the address that was judged."""
    asked: list[str] = []
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def rebinding(host: str, port: int, **more: Any) -> Any:
        if host != "rebind.example":
            return await real(host, port, **more)
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    async with receiver(200) as there:
        hook = to(there)
        url = there.url.replace("127.0.0.1", "rebind.example")
        async with shared(
            store, Clock(), WebhookSettings(name="police", url=url, secret="s", networks=hook.networks)
        ) as one:
            await one.take([alarm(1)])
            await until_state(one, "police", "delivered", 1)
        assert len(asked) == 1
        assert there.got[0][0]["Host"].startswith("rebind.example")


async def test_waiting_messages_survive_a_restart(store: Store) -> None:
    clock = Clock()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead_end = f"http://127.0.0.1:{probe.getsockname()[1]}/"
    gone = WebhookSettings(name="police", url=dead_end, secret="s", networks=LOOPBACK)
    async with shared(store, clock, gone) as one:
        await one.take([alarm(1)])
        async with asyncio.timeout(20):
            while not (await one.messages("police"))[0]["error"]:
                await asyncio.sleep(0.01)
    clock.now_ms += 60_000
    async with receiver(200) as there, shared(store, clock, to(there)) as one:
        await until_state(one, "police", "delivered", 1)
        assert there.got[0][0]["Webhook-Id"] == "police-1"
