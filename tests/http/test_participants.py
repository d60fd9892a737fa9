"""Workers and volunteers see the alarms, incidents and tasks that they take part in, in lists, one by one and as events, and
nothing else: on a running gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from running_gateway import AREAS, Bench, running_gateway

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.broker]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with running_gateway(tmp_path_factory.mktemp("part")) as running:
        await running.fill()
        yield running


async def ids(bench: Bench, kind: str, who: dict[str, str]) -> set[str]:
    status, said = await bench.call("GET", f"/api/v1/{kind}?limit=500", who)
    assert status == 200, said
    return {one["id"] for one in said[kind]}


async def listen(bench: Bench, who: dict[str, str], heard: list[Any], ready: asyncio.Event) -> None:
    async with bench.client.ws_connect("/api/v1/events", headers=who) as socket:
        async for message in socket:
            heard.append(json.loads(message.data))
            ready.set()


def about(heard: list[Any], kind: str) -> set[str]:
    return {frame["data"]["id"] for frame in heard if frame["type"] == kind}


async def test_the_claimant_sees_its_alarm_and_no_other(bench: Bench) -> None:
    alarms = bench.ids["alarm"]
    assert await ids(bench, "alarms", bench.bearer("worker", "wa")) == {alarms["a1"]}
    assert await ids(bench, "alarms", bench.bearer("worker", "wa2")) == set()
    status, view = await bench.call("GET", f"/api/v1/alarms/{alarms['a1']}", bench.bearer("worker", "wa"))
    assert (status, view["id"]) == (200, alarms["a1"])
    for other in ("a2", "b1"):
        status, _ = await bench.call("GET", f"/api/v1/alarms/{alarms[other]}", bench.bearer("worker", "wa"))
        assert status == 403


async def test_an_offered_task_opens_its_incident_to_the_helper_only(bench: Bench) -> None:
    operator, incidents = bench.bearer("operator", "op"), bench.ids["incident"]
    volunteer, worker = bench.bearer("volunteer", "va"), bench.bearer("worker", "wa2")
    outsider = bench.bearer("worker", "wb")
    heard: dict[str, list[Any]] = {"va": [], "wa2": [], "wb": []}
    ready = {name: asyncio.Event() for name in heard}
    people = {"va": volunteer, "wa2": worker, "wb": outsider}
    async with asyncio.TaskGroup() as group:
        listening = [
            group.create_task(listen(bench, who, heard[name], ready[name])) for name, who in people.items()
        ]
        for event in ready.values():
            await event.wait()
        for place, helper in (("a1", {"volunteer": "va"}), ("a2", {"worker": "wa2"})):
            path = f"/api/v1/incidents/{incidents[place]}/dispatch"
            status, said = await bench.call("POST", path, operator, json={"detail": helper})
            assert status == 200, said
        async with asyncio.timeout(10):
            while not about(heard["va"], "task") or not about(heard["wa2"], "task"):
                await asyncio.sleep(0.02)
        async with asyncio.timeout(10):  # the news of the incident itself comes to its helper too
            for name, place in (("va", "a1"), ("wa2", "a2")):
                path = f"/api/v1/incidents/{incidents[place]}/handle"
                status, said = await bench.call("POST", path, operator, json={})
                assert status == 200, said
                while incidents[place] not in about(heard[name], "incident"):
                    await asyncio.sleep(0.02)
        for task in listening:
            task.cancel()
    assert about(heard["va"], "incident") == {incidents["a1"]}
    assert about(heard["wa2"], "incident") == {incidents["a2"]}
    assert about(heard["wb"], "incident") | about(heard["wb"], "task") | about(heard["wb"], "alarm") == set()
    for who, place in ((volunteer, "a1"), (worker, "a2")):
        assert await ids(bench, "incidents", who) == {incidents[place]}
        [task] = (await bench.call("GET", "/api/v1/tasks", who))[1]["tasks"]
        assert task["incident_id"] == incidents[place]
        for other, expected in ((place, 200), ("b1", 403)):
            status, _ = await bench.call("GET", f"/api/v1/incidents/{incidents[other]}", who)
            assert status == expected
    assert await ids(bench, "incidents", outsider) == set()


async def test_declined_is_out_again(bench: Bench) -> None:
    volunteer = bench.bearer("volunteer", "va")
    [task] = (await bench.call("GET", "/api/v1/tasks", volunteer))[1]["tasks"]
    status, said = await bench.call("POST", f"/api/v1/tasks/{task['id']}/decline", volunteer, json={})
    assert status == 200, said
    assert await ids(bench, "incidents", volunteer) == set()
    status, _ = await bench.call("GET", f"/api/v1/incidents/{task['incident_id']}", volunteer)
    assert status == 403


async def test_who_reported_an_incident_follows_it(bench: Bench) -> None:
    worker = bench.bearer("worker", "wb")
    report = {"type": "环境卫生", "lat": 30.91, "lon": 103.81, "datum": "wgs84"}
    status, incident = await bench.call("POST", "/api/v1/incidents", worker, json=report)
    assert status == 201, incident
    assert await ids(bench, "incidents", worker) == {incident["id"]}
    assert incident["id"] not in await ids(bench, "incidents", bench.bearer("worker", "wa"))
    assert incident["id"] in await ids(bench, "incidents", bench.bearer("desk", "desk-b", AREAS["b1"]))


async def test_a_closed_alarm_is_told_to_its_people_and_then_closed_to_them(bench: Bench) -> None:
    operator, worker, alarm = (
        bench.bearer("operator", "op"),
        bench.bearer("worker", "wa"),
        bench.ids["alarm"]["a1"],
    )
    heard: list[Any] = []
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen(bench, worker, heard, ready))
        await ready.wait()
        for step, body in (
            ("acknowledge", {}),
            ("triage", {"outcome": "false"}),
            ("close", {"note": "误报"}),
        ):
            status, said = await bench.call("POST", f"/api/v1/alarms/{alarm}/{step}", operator, json=body)
            assert status in (200, 409), said
        async with asyncio.timeout(10):
            while "CLOSED" not in {f["data"]["handling"] for f in heard if f["type"] == "alarm"}:
                await asyncio.sleep(0.02)
        listening.cancel()
    assert await ids(bench, "alarms", worker) == set()
    status, _ = await bench.call("GET", f"/api/v1/alarms/{alarm}", worker)
    assert status == 403
