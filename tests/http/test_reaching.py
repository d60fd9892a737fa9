"""A call reaches people: the provider that rings silent phones, the box that says OK."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from running_gateway import KEY, Bench, running_gateway, write_files

from gateway.errors import NotAllowed
from gateway.identity import device_password
from gateway.notify import read_receipt, sign
from simulators.mqtt import Client

pytestmark = pytest.mark.realtime
SECRET = "between the gateway and its provider"


class FakeProvider:
    """Takes webhooks; written for the test, with a signature check of its own."""

    def __init__(self) -> None:
        self.notices: list[dict[str, Any]] = []
        self.refuse = 0
        self.got = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        timestamp = int(request.headers["X-Gateway-Timestamp"])
        assert request.headers["X-Gateway-Signature"] == sign(SECRET, timestamp, body)
        if self.refuse:
            self.refuse -= 1
            return web.Response(status=503)
        self.notices.append(json.loads(body))
        self.got.set()
        return web.Response(status=202)


@asynccontextmanager
async def provided(folder: Path) -> AsyncIterator[tuple[FakeProvider, Bench]]:
    provider = FakeProvider()
    app = web.Application()
    app.router.add_post("/rings", provider.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/rings"
    settings = {
        "notify": {"url": url, "secret": "provider", "channels": ["sms", "voice"]},
        "calls": {"receipt_s": 0.5},
    }
    write_files(folder, live_url="rtsp://127.0.0.1:9/x", settings=settings)
    secrets = yaml.safe_load((folder / "secrets.yaml").read_text())
    secrets["credentials"]["provider"] = {"username": "provider", "password": SECRET}
    (folder / "secrets.yaml").write_text(yaml.safe_dump(secrets))
    workers = yaml.safe_load((folder / "district" / "gridworkers.yaml").read_text())
    workers["gridworkers"][0]["phone"] = "13900000001"
    (folder / "district" / "gridworkers.yaml").write_text(yaml.safe_dump(workers))
    try:
        async with running_gateway(folder) as bench:
            yield provider, bench
    finally:
        await runner.cleanup()


async def rung(bench: Bench, call_id: str) -> dict[str, Any]:
    _, call = await bench.call("GET", f"/api/v1/calls/{call_id}", bench.bearer("operator", "op"))
    return call["rung"][0]


def by_channel(rung: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["channel"]: one for one in rung["deliveries"]}


async def test_a_silent_phone_is_reached_by_the_provider_and_its_receipts_count(tmp_path: Path) -> None:
    async with provided(tmp_path) as (provider, bench):
        provider.refuse = 1  # the outbox tries again
        await bench.on_duty("wa", "a1")
        call_id = await bench.call_of((await bench.press("a1"))["alarm"])
        async with asyncio.timeout(15):
            await provider.got.wait()
        (notice,) = provider.notices
        assert (notice["call"], notice["channels"], notice["kind"]) == (call_id, ["sms", "voice"], "alarm")
        assert notice["worker"] == {"id": "wa", "name": "王网格", "phone": "13900000001"}

        async def receipt(status: str, channel: str, *, secret: str = SECRET, age_s: int = 0) -> int:
            said = {"call": call_id, "worker": "wa", "channel": channel, "status": status, "error": "空号"}
            body, stamp = json.dumps(said).encode(), int(time.time()) - age_s
            headers = {
                "X-Gateway-Timestamp": str(stamp),
                "X-Gateway-Signature": sign(secret, stamp, body),
            }
            async with bench.client.post(notice["receipts"], data=body, headers=headers) as answer:
                return answer.status

        assert await receipt("delivered", "sms", secret="somebody else's") == 401
        assert await receipt("delivered", "sms", age_s=3_600) == 401
        assert by_channel(await rung(bench, call_id))["sms"]["delivered_at"] is None
        for _ in range(2):
            assert await receipt("delivered", "sms") == 200
        assert await receipt("failed", "voice") == 200
        assert await receipt("lost", "voice") == 400
        told = by_channel(await rung(bench, call_id))
        assert told["sms"]["delivered_at"] >= told["sms"]["sent_at"]
        assert (told["voice"]["delivered_at"], told["voice"]["error"]) == (None, "空号")
        _, metrics = await bench.call("GET", "/metrics")
        assert 'gateway_ring_receipts_total{channel="sms",result="delivered"} 1.0' in metrics
        assert 'gateway_ring_receipts_total{channel="voice",result="failed"} 1.0' in metrics
        assert 'gateway_notices_total{result="failed"} 1.0' in metrics


async def test_a_phone_that_says_it_rings_costs_no_message(tmp_path: Path) -> None:
    async with provided(tmp_path) as (provider, bench):
        await bench.on_duty("wa", "a1")
        call_id = await bench.call_of((await bench.press("a1"))["alarm"])
        path, worker = f"/api/v1/calls/{call_id}/received", bench.bearer("worker", "wa")
        assert (await bench.call("POST", path, bench.bearer("worker", "wb"), json={}))[0] == 403
        status, _ = await bench.call("POST", path, worker, json={})
        assert status == 200
        await asyncio.sleep(1)
        assert provider.notices == []
        assert by_channel(await rung(bench, call_id))["event"]["delivered_at"] is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stamp, signature, body: (stamp, signature, body + b" "),
        lambda stamp, signature, body: (str(int(stamp) + 1), signature, body),
        lambda stamp, signature, body: (stamp, "", body),
        lambda stamp, signature, body: (stamp, "sha256=é", body),
        lambda stamp, signature, body: ("²", signature, body),
    ],
)
def test_a_signature_covers_time_and_body(spoil: Any) -> None:
    body = b'{"call":"c","worker":"w","channel":"sms","status":"delivered"}'
    stamp, signature = "1790000000", sign(SECRET, 1_790_000_000, body)
    assert read_receipt(SECRET, stamp, signature, body, now_s=1_790_000_100).worker == "w"
    with pytest.raises(NotAllowed):
        read_receipt("", stamp, sign("", 1_790_000_000, body), body, now_s=1_790_000_100)
    stamp, signature, body = spoil(stamp, signature, body)
    with pytest.raises(NotAllowed):
        read_receipt(SECRET, stamp, signature, body, now_s=1_790_000_100)


@asynccontextmanager
async def box_state(
    bench: Bench, sid: str
) -> AsyncIterator[Callable[[Callable[[Any], bool]], Awaitable[Any]]]:
    """Waits until the retained state of this box, as it gets it from the broker, is as asked."""
    state: list[Any] = [None]
    came = asyncio.Event()

    def keep(topic: str, payload: bytes) -> None:
        state[0] = json.loads(payload) if payload else None
        came.set()

    client = Client(sid, on_message=keep)
    assert bench.gateway.devices.address is not None
    await client.connect(*bench.gateway.devices.address, password=device_password(bytes.fromhex(KEY), sid))
    await client.subscribe(f"pd/v1/stb/{sid}/state")

    async def until(right: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(20):
            while not right(state[0]):
                came.clear()
                await came.wait()
        return state[0]

    try:
        yield until
    finally:
        client.disconnect()


async def test_the_box_of_the_alarm_joins_by_an_ok_and_no_other_box(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as bench, box_state(bench, "box-a1") as state:
        await bench.on_duty("wa", "a1")
        call_id = await bench.call_of((await bench.press("a1"))["alarm"])
        path = f"/api/v1/calls/{call_id}"
        box, neighbour = bench.bearer("stb", "box-a1"), bench.bearer("stb", "box-a2")
        assert [c["id"] for c in (await bench.call("GET", "/api/v1/calls?open=1", box))[1]["calls"]] == [
            call_id
        ]
        assert (await bench.call("GET", "/api/v1/calls?open=1", neighbour))[1]["calls"] == []
        ringing = {"id": call_id, "state": "RINGING", "joinable": False}
        assert (await bench.call("GET", "/api/v1/stb/me", box))[1]["call"] == ringing
        assert (await bench.call("GET", "/api/v1/stb/me", neighbour))[1]["call"] is None
        assert (await bench.call("POST", f"{path}/join", neighbour, json={}))[0] == 403
        status, joined = await bench.call("POST", f"{path}/join", box, json={})
        assert status == 200
        assert (joined["rung"], joined["position"]) == ([], None), (
            "who was asked is not the resident's business"
        )
        (leg,) = joined["legs"]
        assert (leg["participant"], leg["role"], joined["leg"]) == ("box-a1", "stb", leg["id"])
        assert joined["state"] == "RINGING", "a box is never waited for"
        worker = bench.bearer("worker", "wa")
        assert (await bench.call("POST", f"{path}/claim", worker, json={}))[0] == 200
        answered = {"id": call_id, "state": "CLAIMED", "joinable": True}
        await state(lambda told: told["stage"] == "dispatched" and told.get("call") == answered)
        assert (await bench.call("GET", "/api/v1/stb/me", box))[1]["call"] == answered
        status, left = await bench.call("POST", f"{path}/hangup", box, json={})
        assert (status, left["state"]) == (200, "CLAIMED"), "it leaves, the call goes on"
        operator = bench.bearer("operator", "op")
        alarm = f"/api/v1/alarms/{left['alarm_id']}"
        assert (await bench.call("POST", f"{alarm}/acknowledge", operator, json={}))[0] == 200
        await state(lambda told: told.get("call") == answered)
        assert (await bench.call("POST", f"{path}/hangup", worker, json={}))[0] == 200
        assert (await state(lambda told: "call" not in told))["alarm"] == left["alarm_id"]
        assert (await bench.call("GET", "/api/v1/stb/me", box))[1]["call"] is None
