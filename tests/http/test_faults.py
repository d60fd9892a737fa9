"""Rows of product.md section 6 that concern alarms, against a whole running gateway with its own broker and database.

Each test names its row; docs/faults.md says where the other rows are.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from running_gateway import AREAS, CORNERS, KEY, STREET_A, Bench, running_gateway, sign

from gateway.identity import device_password
from simulators import mqtt

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    settings = {"alarms": {"group_radius_m": 0, "triage_s": 1}}
    async with running_gateway(tmp_path_factory.mktemp("faults"), settings=settings) as running:
        yield running


class BoxLine:
    """A box on the broker: what it was answered, by pid, in the order of arrival."""

    def __init__(self, place: str) -> None:
        self.sid = f"box-{place}"
        self.order: list[str] = []
        self.acks: dict[str, list[dict[str, Any]]] = {}
        self.news = asyncio.Event()
        self.client = mqtt.Client(self.sid, on_message=self._heard)

    def _heard(self, topic: str, payload: bytes) -> None:
        ack = json.loads(payload)
        self.order.append(ack["pid"])
        self.acks.setdefault(ack["pid"], []).append(ack)
        self.news.set()

    def press(self, pid: str, *, ts: int = 1_700_000_000_000, kind: str = "help", sig: str = "") -> bytes:
        body = {"v": 1, "pid": pid, "seq": 1, "ts": ts, "kind": kind}
        body["sig"] = sig or sign(KEY, f"press|{self.sid}|{pid}|1|{ts}|{kind}||0")
        self.client.publish(f"pd/v1/stb/{self.sid}/press", json.dumps(body).encode())
        return json.dumps({**body, "sid": self.sid}).encode()

    async def until(self, *pids: str, count: int = 1) -> None:
        async with asyncio.timeout(30):
            while any(len(self.acks.get(pid, ())) < count for pid in pids):
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def line(bench: Bench, place: str) -> AsyncIterator[BoxLine]:
    box, address = BoxLine(place), bench.gateway.devices.address
    assert address is not None
    await box.client.connect(*address, password=device_password(bytes.fromhex(KEY), box.sid))
    await box.client.subscribe(f"pd/v1/stb/{box.sid}/ack")
    try:
        yield box
    finally:
        box.client.disconnect()


async def clean(bench: Bench, place: str) -> None:
    """Ends what a test before has left open, so that a press is a new alarm."""
    operator = bench.bearer("operator", "op")
    _, listed = await bench.call("GET", "/api/v1/alarms?open=1&limit=100", operator)
    for alarm in listed["alarms"]:
        if alarm["source"] == f"stb/box-{place}" and alarm["verified"]:
            one = f"/api/v1/alarms/{alarm['id']}"
            for step, body in (("acknowledge", {}), ("triage", {"outcome": "false"}), ("close", {})):
                await bench.call("POST", f"{one}/{step}", operator, json=body)


async def get(bench: Bench, path: str) -> dict[str, Any]:
    status, said = await bench.call("GET", path, bench.bearer("operator", "op"))
    assert status == 200, said
    found: dict[str, Any] = said
    return found


async def until(bench: Bench, path: str, is_it: Any) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not is_it(said := await get(bench, path)):
            await asyncio.sleep(0.02)
    return said


async def test_row_2_a_thousand_times_the_same_press_is_one_alarm(bench: Bench) -> None:
    await clean(bench, "a1")
    before = {alarm["id"] for alarm in (await get(bench, "/api/v1/alarms?limit=500"))["alarms"]}
    slots = asyncio.Semaphore(50)

    async def http(body: bytes) -> dict[str, Any]:
        async with slots:
            status, ack = await bench.call("POST", "/api/v1/alarms", data=body)
            assert status == 200, ack
            found: dict[str, Any] = ack
            return found

    async with line(bench, "a1") as box:
        body = box.press("thousand")
        for _ in range(499):
            box.press("thousand")
        by_http = await asyncio.gather(*(http(body) for _ in range(500)))
        await box.until("thousand", count=500)
        by_mqtt = box.acks["thousand"]
    answers = {json.dumps(ack, sort_keys=True) for ack in (*by_http, *by_mqtt)}
    assert len(answers) == 1
    made = {alarm["id"]: alarm for alarm in (await get(bench, "/api/v1/alarms?limit=500"))["alarms"]}
    [new] = made.keys() - before
    assert (json.loads(answers.pop())["alarm"], made[new]["repeats"]) == (new, 0)


async def test_row_3_a_clock_a_year_off_is_accepted_and_shown(bench: Bench) -> None:
    await clean(bench, "a1")
    now_ms = time.time_ns() // 1_000_000
    ts = now_ms - 365 * 86_400_000
    async with line(bench, "a1") as box:
        box.press("year", ts=ts)
        await box.until("year")
        [ack, *_] = box.acks["year"]
    assert ack["stage"] == "persisted"
    alarm = await get(bench, f"/api/v1/alarms/{ack['alarm']}")
    assert alarm["device_time"] == ts
    assert alarm["skew_ms"] == ts - alarm["received_at"]
    assert now_ms <= alarm["received_at"] == ack["now"]


async def test_row_4_a_replay_gets_the_same_answer_and_an_old_signature_none(bench: Bench) -> None:
    await clean(bench, "a1")
    async with line(bench, "a1") as box:
        box.press("first")
        await box.until("first")
        box.press("first")
        await box.until("first", count=2)
        first, again = box.acks["first"][:2]
        assert first == again
        box.press("second", sig=sign(KEY, "press|box-a1|first|1|1700000000000|help||0"))
        await box.until("second")
        [refused] = box.acks["second"]
    assert (refused["stage"], refused["reason"], refused["alarm"]) == ("refused", "bad_signature", None)
    listed = (await get(bench, "/api/v1/alarms?open=1&limit=500"))["alarms"]
    [unverified] = [a for a in listed if a["source"] == "stb/box-a1" and not a["verified"]]
    assert unverified["call_id"] is None


async def test_row_7_a_stuck_key_is_throttled_and_others_keep_their_latency(bench: Bench) -> None:
    await clean(bench, "a1")
    await clean(bench, "b1")
    throttled = bench.gateway.desk.throttled
    async with line(bench, "a1") as stuck, line(bench, "b1") as other:
        pids = [f"stuck-{number}" for number in range(200)]
        overtaken = 0
        for number, pid in enumerate(pids, 1):
            stuck.press(pid)
            if (
                number % 40 == 0
            ):  # what is throttled is recorded once a second: one of these may fall into that moment
                other.press(f"calm-{number}")
                await other.until(f"calm-{number}")
                overtaken += number - len(stuck.acks)
            await asyncio.sleep(0.01)  # 100 a second
        await stuck.until(*pids)
    assert bench.gateway.desk.throttled > throttled
    assert overtaken > 0, "the other box waited for the stuck one each time"
    assert {ack["stage"] for acks in stuck.acks.values() for ack in acks} <= {
        "persisted",
        "shown",
        "answered",
    }
    [alarm] = {ack["alarm"] for acks in stuck.acks.values() for ack in acks}
    assert (await get(bench, f"/api/v1/alarms/{alarm}"))["repeats"] == len(pids) - 1


async def test_row_9_an_old_fix_is_not_the_nearest_and_the_own_worker_is_rung(bench: Bench) -> None:
    await clean(bench, "a1")
    lat, lon = CORNERS["a1"]
    for worker in ("wa", "wa2", "wb"):
        await bench.on_duty(worker, "b1" if worker == "wb" else "a1", "off")
        status, _ = await bench.call(
            "POST", "/api/v1/workers/me/duty", bench.bearer("worker", worker), json={"duty": "on"}
        )
        assert status == 200
    # wa2 stood at the very spot 20 minutes ago; wb is 11 km away now; wa, the grid's own, has no fix at all.
    old = {"lat": lat + 0.01, "lon": lon + 0.01, "datum": "wgs84", "acc": 5, "seq": 1}
    status, _ = await bench.call(
        "POST", "/api/v1/workers/me/location", bench.bearer("worker", "wa2"),
        json={**old, "fix": time.time_ns() // 1_000_000 - 20 * 60_000},
    )  # fmt: skip
    assert status == 200
    await bench.on_duty("wb", "b1")
    ack = await bench.press("a1", pid="old-fix")
    alarm = await get(bench, f"/api/v1/alarms/{ack['alarm']}")
    ranked = {worker["id"]: worker for worker in alarm["workers"]}
    assert next(iter(ranked)) == "wb"
    assert (ranked["wa2"]["freshness"], ranked["wb"]["freshness"]) == ("centroid", "fresh")
    call = await get(bench, f"/api/v1/calls/{await bench.call_of(ack['alarm'])}")
    assert {"wa", "wb"} <= {rung["worker_id"] for rung in call["rung"]}
    assert "本网格网格员" in next(rung["reason"] for rung in call["rung"] if rung["worker_id"] == "wa")
    # without a datum every position is refused
    wb, operator = bench.bearer("worker", "wb"), bench.bearer("operator", "op")
    place = {"lat": lat, "lon": lon}
    for method, path, who, body in (
        ("POST", "/api/v1/workers/me/location", wb, {**place, "acc": 5, "seq": 9}),
        ("POST", "/api/v1/incidents", operator, {**place, "type": "消防隐患"}),
        ("GET", f"/api/v1/workers?near={lat},{lon}", operator, None),
    ):
        status, said = await bench.call(method, path, who, json=body)
        assert status == 400, (path, said)


async def test_row_10_two_at_once_have_one_winner_and_the_other_is_told_who(bench: Bench) -> None:
    await clean(bench, "a1")
    for worker in ("wa", "wb"):
        await bench.on_duty(worker, "a1")
    ack = await bench.press("a1", pid="race")
    one = f"/api/v1/alarms/{ack['alarm']}"
    call = f"/api/v1/calls/{await bench.call_of(ack['alarm'])}"
    people = [bench.bearer("operator", "op"), bench.bearer("desk", "desk-a", STREET_A)]
    taken = await asyncio.gather(*(bench.call("POST", f"{one}/acknowledge", who, json={}) for who in people))
    assert sorted(status for status, _ in taken) == [200, 409]
    loser = next(said for status, said in taken if status == 409)
    winner = next(said for status, said in taken if status == 200)
    assert loser["by"] == winner["acknowledged_by"]
    workers = [bench.bearer("worker", "wa"), bench.bearer("worker", "wb")]
    claims = [(who, device) for who in workers for device in ("phone-1", "phone-2")]
    claimed = await asyncio.gather(
        *(bench.call("POST", f"{call}/claim", who, json={"device": device}) for who, device in claims)
    )
    statuses = [status for status, _ in claimed]
    assert statuses.count(200) == 1, claimed
    assert statuses.count(409) == 3
    answered = (await get(bench, call))["answered_by"]
    told = [said["taken_by"] for status, said in claimed if status == 409]
    assert all(by["id"] == answered["id"] for by in told), told
    status, _ = await bench.call("POST", f"{call}/hangup", bench.bearer("worker", answered["id"]), json={})
    assert status == 200  # free again, for the next test


@pytest.mark.parametrize("first", ["answer", "hang-up", "at once"])
async def test_row_11_a_caller_who_hangs_up_as_the_worker_answers_ends_it_for_all(
    bench: Bench, first: str
) -> None:
    await clean(bench, "a1")
    for name in ("wa", "wb"):
        await bench.on_duty(name, "a1")
    pid = f"hung-up-{first.replace(' ', '-')}"
    alarm = (await bench.press("a1", pid=pid))["alarm"]
    call_id = await bench.call_of(alarm)
    call = f"/api/v1/calls/{call_id}"
    worker, ts = bench.bearer("worker", "wa"), 1_700_000_000_000

    async def answer() -> tuple[int, Any]:
        return await bench.call("POST", f"{call}/claim", worker, json={})

    async def hang_up() -> tuple[int, Any]:
        said = {"sid": "box-a1", "pid": pid, "ts": ts, "sig": sign(KEY, f"cancel|box-a1|{pid}|{ts}")}
        return await bench.call("POST", f"/api/v1/alarms/{alarm}/cancel", json=said)

    if first == "answer":
        status, claimed = await answer()
        assert (status, claimed["state"]) == (200, "CLAIMED")
        await hang_up()
    elif first == "hang-up":
        await hang_up()
        await until(bench, call, lambda said: said["state"] == "ENDED")
        status, refused = await answer()
        assert (status, refused["end_reason"]) == (409, "cancelled")
    else:
        await asyncio.gather(answer(), hang_up())
    ended = await until(bench, call, lambda said: said["state"] == "ENDED")
    assert ended["end_reason"] == "cancelled"
    assert not [rung for rung in ended["rung"] if rung["outcome"] == "ringing"]
    # who answered has missed a call, and a task to look in on the caller
    _, missed = await bench.call("GET", "/api/v1/calls?missed=1", worker)
    assert call_id in [one["id"] for one in missed["calls"]]
    tasks = (
        await until(
            bench,
            "/api/v1/tasks",
            lambda said: any(task["offered_by"] == f"call/{call_id}" for task in said["tasks"]),
        )
    )["tasks"]
    [task] = [task for task in tasks if task["incident"]["alarm_id"] == alarm]
    assert (task["assignee"]["id"], task["state"]) == ("wa", "OFFERED")
    assert await bench.call("GET", f"/api/v1/tasks/{task['id']}", worker) == (200, task)
    # nothing rings on: every phone was told; the desk still owes the call-back
    assert call_id not in [one["id"] for one in (await get(bench, "/api/v1/calls?open=1"))["calls"]]
    one = await get(bench, f"/api/v1/alarms/{alarm}")
    assert (one["condition"], one["handling"], one["call_back"]) == ("CLEARED", "NEW", None)
    # told again after a crash it is the same task; a triage takes its incident over
    await bench.gateway.cases.on_hung_up(alarm, "wa", call_id)
    operator = bench.bearer("operator", "op")
    await bench.call("POST", f"/api/v1/alarms/{alarm}/acknowledge", operator, json={})
    triage = {"outcome": "incident", "type": "help", "severity": 2}
    status, triaged = await bench.call("POST", f"/api/v1/alarms/{alarm}/triage", operator, json=triage)
    assert (status, triaged["incident_id"]) == (200, task["incident"]["id"])
    tasks = (await get(bench, f"/api/v1/tasks?incident={triaged['incident_id']}"))["tasks"]
    assert [one["id"] for one in tasks] == [task["id"]]
    for path, body in (
        (f"alarms/{alarm}/call_back", {"outcome": "safe"}),
        (f"incidents/{triaged['incident_id']}/cancel", {}),
    ):
        status, said = await bench.call("POST", f"/api/v1/{path}", operator, json=body)
        assert status == 200, said


async def test_who_cancels_and_presses_again_is_rung_for_again(bench: Bench) -> None:
    await clean(bench, "a1")
    await bench.on_duty("wa", "a1")
    alarm = (await bench.press("a1", pid="once"))["alarm"]
    first, operator = await bench.call_of(alarm), bench.bearer("operator", "op")

    async def hang_up(ts: int) -> None:
        said = {"sid": "box-a1", "pid": "once", "ts": ts, "sig": sign(KEY, f"cancel|box-a1|once|{ts}")}
        status, _ = await bench.call("POST", f"/api/v1/alarms/{alarm}/cancel", json=said)
        assert status == 200

    async def calls() -> list[Any]:
        return [one for one in (await get(bench, "/api/v1/calls"))["calls"] if one["alarm_id"] == alarm]

    await hang_up(1_700_000_000_000)
    await until(bench, f"/api/v1/calls/{first}", lambda said: said["state"] == "ENDED")
    for pid in ("again-1", "again-2"):  # the second finds the phones ringing
        assert (await bench.press("a1", pid=pid))["alarm"] == alarm
    ringing = await until(
        bench, "/api/v1/calls?open=1", lambda said: any(one["alarm_id"] == alarm for one in said["calls"])
    )
    [anew] = [one for one in ringing["calls"] if one["alarm_id"] == alarm]
    assert (anew["id"] != first, anew["state"]) == (True, "RINGING")
    assert "wa" in [rung["worker_id"] for rung in anew["rung"]]
    assert (await get(bench, f"/api/v1/alarms/{alarm}"))["condition"] == "ACTIVE"
    assert len(await calls()) == 2
    await hang_up(1_700_000_000_001)
    ended = await until(bench, f"/api/v1/calls/{anew['id']}", lambda said: said["state"] == "ENDED")
    assert ended["end_reason"] == "cancelled"
    for path, body in (
        (f"alarms/{alarm}/acknowledge", {}),
        (f"alarms/{alarm}/call_back", {"outcome": "safe"}),
    ):
        status, said = await bench.call("POST", f"/api/v1/{path}", operator, json=body)
        assert status == 200, said


async def test_row_14_an_operator_who_acknowledges_and_leaves_is_noticed(bench: Bench) -> None:
    await clean(bench, "a2")
    ack = await bench.press("a2", pid="left")
    one = f"/api/v1/alarms/{ack['alarm']}"
    status, taken = await bench.call("POST", f"{one}/acknowledge", bench.bearer("operator", "op"), json={})
    assert status == 200
    [deadline] = taken["deadlines"]
    assert (deadline["kind"], deadline["at"] - taken["acknowledged_at"]) == ("triage", 1_000)
    back = await until(bench, one, lambda said: said["handling"] == "SHOWN")
    assert back["acknowledged_by"] is None
    assert back["alerted_at"] > taken["alerted_at"]
    assert "abandoned" in [entry["event"] for entry in back["timeline"]]
    assert AREAS["a2"] == back["community"]


async def test_the_box_of_a_silent_alarm_has_no_place_in_its_call(bench: Bench) -> None:
    """Who pressed silently may not be alone: no voice may come from the set."""
    await clean(bench, "a2")
    alarm = (await bench.press("a2", pid="hush", silent=True))["alarm"]
    assert (await get(bench, f"/api/v1/alarms/{alarm}"))["silent"] is True
    join, box = f"/api/v1/calls/{await bench.call_of(alarm)}/join", bench.bearer("stb", "box-a2")
    assert (await bench.call("GET", "/api/v1/stb/me", box))[1]["call"]["joinable"] is False
    assert (await bench.call("POST", join, box, json={}))[0] == 409
    assert (await bench.call("POST", join, bench.bearer("operator", "op"), json={}))[0] == 200
