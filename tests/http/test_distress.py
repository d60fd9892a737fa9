"""A gridworker's call for help is an alarm: on disk before it is answered, in the queue, over the desks, one for each id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from running_gateway import STREET_A, STREET_B, running_gateway, serving, write_files

from gateway.access import Principal, Role
from gateway.identity import Keyring, TokenKind

SOS = "/api/v1/workers/me/sos"
HERE = {"lat": 30.812, "lon": 103.812, "datum": "wgs84"}
Ask = Callable[..., Awaitable[Any]]


async def until(ask: Callable[[], Awaitable[Any]], right: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(30):
        while not right(seen := await ask()):
            await asyncio.sleep(0.05)
    return seen


async def test_a_call_for_help_is_an_alarm_that_escalates_until_a_desk_has_seen_to_it(tmp_path: Path) -> None:
    settings = {"alarms": {"shown_s": 0.3, "street_s": 0.4, "district_s": 0.6, "leader_s": 0.8}}
    async with running_gateway(tmp_path, settings=settings) as bench:
        await bench.on_duty("wa", "a1")
        await bench.on_duty("wa2", "a2")
        worker, operator = bench.bearer("worker", "wa"), bench.bearer("operator", "op")
        for wrong in ({"position": {"lat": 1}}, {"id": "a b"}, {"id": "a" * 65}, {"note": "x" * 2_000}):
            assert (await bench.call("POST", SOS, worker, json=wrong))[0] == 400, wrong
        status, call = await bench.call(
            "POST", SOS, worker, json={"id": "s1", "position": HERE, "note": "有人持刀"}
        )
        assert (status, call["kind"], call["state"], call["sos"], call["rung"]) == (
            201,
            "inbound",
            "RINGING",
            True,
            [],
        )
        assert call["position"] == {"lat": 30.812, "lon": 103.812}
        assert call["place_label"].startswith("网格员求助 王网格")
        assert "有人持刀" in call["place_label"]
        assert (await bench.call("GET", "/api/v1/workers/me", worker))[1]["duty"] == "sos"
        path = f"/api/v1/alarms/{call['alarm_id']}"

        async def alarm() -> Any:
            return (await bench.call("GET", path, operator))[1]

        seen = await until(alarm, lambda seen: seen["level"] == "leader" and seen["call_id"])
        assert (seen["kind"], seen["source"], seen["press_id"], seen["verified"]) == (
            "sos",
            "worker/wa",
            "s1",
            True,
        )
        assert (seen["call_id"], seen["place"]["kind"], seen["handling"]) == (call["id"], "point", "NEW")
        assert {one["audience"] for one in seen["deliveries"]} >= {"street", "district", "leader"}
        assert "volunteers" not in {one["audience"] for one in seen["deliveries"]}, (
            "nobody is sent to a knife"
        )
        assert "wa" not in {one["id"] for one in seen["workers"]}, "who calls for help is not sent to help"
        near, far = bench.bearer("desk", "desk-a", STREET_A), bench.bearer("desk", "desk-b", STREET_B)
        for desk, listed in ((near, 1), (far, 0)):
            assert len((await bench.call("GET", "/api/v1/alarms?open=1", desk))[1]["alarms"]) == listed
        assert (await bench.call("GET", path, far))[0] == 403

        for _ in range(2):
            _, same = await bench.call("POST", SOS, worker, json={"id": "s1"})
            assert (same["id"], same["alarm_id"]) == (call["id"], call["alarm_id"])
        assert (await alarm())["repeats"] == 0
        _, more = await bench.call("POST", SOS, worker, json={"id": "s2"})
        assert (more["id"], (await alarm())["repeats"]) == (call["id"], 1)

        assert (await bench.call("POST", f"/api/v1/calls/{call['id']}/join", near, json={}))[1][
            "answered_by"
        ]["id"] == "desk-a"
        assert (await bench.call("POST", f"{path}/acknowledge", near, json={}))[0] == 200
        assert [one["kind"] for one in (await alarm())["deadlines"]] == ["triage"]
        assert (await bench.call("POST", f"/api/v1/calls/{call['id']}/hangup", worker, json={}))[1][
            "state"
        ] == "ENDED"
        status, triaged = await bench.call(
            "POST", f"{path}/triage", near, json={"outcome": "incident", "severity": 2}
        )
        assert status == 200, triaged
        _, incident = await bench.call("GET", f"/api/v1/incidents/{triaged['incident_id']}", near)
        assert (incident["type"], incident["alarm_id"]) == ("sos", call["alarm_id"])
        _, later = await bench.call("POST", SOS, worker, json={"id": "s3"})
        assert (later["alarm_id"], later["state"]) == (call["alarm_id"], "RINGING"), (
            "still the same trouble: ring again"
        )
        assert later["id"] != call["id"]
        assert (await bench.call("POST", SOS, worker, json={"id": "s1"}))[1]["id"] == call["id"], (
            "an old one is answered as then"
        )


async def test_neither_a_call_for_help_nor_a_test_swallows_a_press_near_by(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as bench:
        await bench.on_duty("wa", "a1")
        worker, operator = bench.bearer("worker", "wa"), bench.bearer("operator", "op")
        beside = {"lat": 30.8101, "lon": 103.8101, "datum": "wgs84"}
        status, call = await bench.call("POST", SOS, worker, json={"position": beside})
        assert status == 201, call
        assert (await bench.press("a2", kind="test", camera="a1-community"))["stage"] == "persisted"
        alarm_id = (await bench.press("a1"))["alarm"]
        call_id = await bench.call_of(alarm_id)
        _, alarm = await bench.call("GET", f"/api/v1/alarms/{alarm_id}", operator)
        assert (alarm["group_id"], call_id != call["id"]) == (None, True)
        box = bench.bearer("stb", "box-a1")
        assert (await bench.call("POST", SOS, box, json={}))[0] == 403
        assert (await bench.press("a2", pid="p9", kind="sos"))["status"] == 400, "no box can say that"


async def test_help_is_more_than_the_call_one_is_in(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as bench:
        await bench.on_duty("wa", "a1")
        worker = bench.bearer("worker", "wa")
        call_id = await bench.call_of((await bench.press("a1"))["alarm"])
        assert (await bench.call("POST", f"/api/v1/calls/{call_id}/claim", worker, json={}))[0] == 200
        assert (await bench.call("POST", "/api/v1/calls", worker, json={}))[0] == 409
        status, call = await bench.call("POST", SOS, worker, json={})
        assert (status, call["sos"]) == (201, True)
        _, before = await bench.call("GET", f"/api/v1/calls/{call_id}", worker)
        assert before["end_reason"] == "superseded"


async def test_a_kill_at_any_moment_leaves_one_alarm_and_one_call(tmp_path: Path) -> None:
    """The phone tries on with the same id; whatever was committed when the gateway was killed is taken up by the next."""
    write_files(tmp_path, live_url="rtsp://127.0.0.1:9/x", settings={"mqtt": {"mode": "off"}})

    def bearer(role: Role, sub: str) -> dict[str, str]:
        key = bytes.fromhex((tmp_path / "var" / "signing.key").read_text())
        token = Keyring(key).issue(
            Principal(sub=sub, role=role), TokenKind.ACCESS, now_s=time.time(), ttl_s=600
        )
        return {"Authorization": f"Bearer {token}"}

    async with aiohttp.ClientSession() as session:

        async def ask(method: str, url: str, who: dict[str, str], **more: Any) -> Any:
            async with session.request(method, url, headers=who, **more) as answer:
                assert answer.status < 300, await answer.text()
                return await answer.json()

        acked: dict[str, str] = {}
        for number, pause_s in enumerate(
            (0.0, 0.004, 0.02, None)
        ):  # before, around and (None) after the commit
            async with serving(tmp_path, "--workers", "1") as (process, base):
                worker = bearer(Role.WORKER, ("wa", "wa2", "wb", "wa")[number])
                asking = asyncio.create_task(ask("POST", base + SOS, worker, json={"id": f"k{number}"}))
                await (asking if pause_s is None else asyncio.sleep(pause_s))
                if asking.done():
                    acked[f"k{number}"] = (await asking)["alarm_id"]
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
                with contextlib.suppress(aiohttp.ClientError):
                    await asking
        async with serving(tmp_path, "--workers", "1") as (_, base):
            operator = bearer(Role.OPERATOR, "op")
            for number, sub in enumerate(("wa", "wa2", "wb", "wa")):
                call = await ask("POST", base + SOS, bearer(Role.WORKER, sub), json={"id": f"k{number}"})
                assert call["alarm_id"] == acked.get(f"k{number}", call["alarm_id"])
            alarms = (await ask("GET", f"{base}/api/v1/alarms?open=1", operator))["alarms"]
            assert sorted(one["source"] for one in alarms) == ["worker/wa", "worker/wa2", "worker/wb"]
            calls = (await ask("GET", f"{base}/api/v1/calls?open=1", operator))["calls"]
            assert {one["alarm_id"] for one in calls} == {one["id"] for one in alarms}
            assert len(calls) == 3
