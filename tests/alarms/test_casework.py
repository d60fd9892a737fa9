"""The closed loop, from an alarm to the archive."""

from __future__ import annotations

import asyncio

import pytest
from conftest import AREA, CENTER, Bench, press_body

from gateway.alarms.alarm import Outcome
from gateway.alarms.casework import CaseDesk
from gateway.alarms.incident import Transition as T
from gateway.alarms.policy import Actor
from gateway.errors import Conflict, NotAllowed, NotFound

ZHANG = Actor(sub="zhang", name="张三", role="operator")
LI = Actor(sub="li", name="李四", role="operator")
WANG = Actor(sub="w1", name="王一", role="worker")


@pytest.fixture
def cases(bench: Bench) -> CaseDesk:
    return CaseDesk(bench.store, clock=bench.clock, new_id=lambda now_ms: f"I{bench.clock.now_ms}")


async def test_alarm_to_archive_closes_the_alarm(bench: Bench, cases: CaseDesk) -> None:
    async with bench.running():
        alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
        await bench.desk.acknowledge(alarm, ZHANG)
        triaged = await bench.desk.triage(alarm, ZHANG, outcome=Outcome.INCIDENT, severity=2, police="no")
        incident = triaged["incident_id"]
        await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w1"})
        await cases.move(incident, T.HANDLE, WANG)
        await cases.move(incident, T.SUBMIT, WANG, note="已处理")
        with pytest.raises(NotAllowed):
            await cases.move(incident, T.RATE, WANG)
        reopened = await cases.move(incident, T.REOPEN, LI)
        assert (reopened["state"], reopened["reopened"]) == ("DISPATCHED", 1)
        for transition in (T.HANDLE, T.SUBMIT):
            await cases.move(incident, transition, WANG)
        with pytest.raises(Conflict):  # nobody has asked the resident
            await cases.move(incident, T.RATE, LI)
        await cases.move(incident, T.RATE, LI, detail={"no_follow_up": "居民电话三次无人接听"})
        view = await cases.move(incident, T.ARCHIVE, LI)
        await bench.settle()
    assert view["state"] == "ARCHIVED"
    assert (await bench.desk.get(alarm))["handling"] == "CLOSED"
    assert bench.got.stages("b0")[-1] == "closed"
    with pytest.raises(Conflict):
        await cases.move(incident, T.CANCEL, ZHANG)
    states = [data["state"] for kind, data in bench.got.events if kind == "incident"]
    assert states[0] == "REPORTED"
    assert states[-1] == "ARCHIVED"
    timeline = [entry["event"] for entry in (await cases.get(incident))["timeline"]]
    assert timeline[:3] == ["open", "dispatch", "handle"]


async def test_reported_without_an_alarm_numbered_and_transferred(bench: Bench, cases: CaseDesk) -> None:
    where = {"district": "510117", "street": AREA.street, "community": AREA.community, "grid": AREA.grid}
    numbers = []
    for _ in range(2):
        bench.clock.now_ms += 1
        view = await cases.report(
            WANG, type="占道经营", severity=4, place_label="路口", position=CENTER, note="", **where
        )
        numbers.append(view["number"])
    assert numbers[0].endswith("-0001")
    assert numbers[1].endswith("-0002")
    incident = view["id"]
    await cases.move(incident, T.DISPATCH, ZHANG)
    assert (await cases.move(incident, T.TRANSFER, ZHANG, detail={"to": "110"}))["state"] == "TRANSFERRED"
    assert (await cases.move(incident, T.TAKE_BACK, ZHANG))["state"] == "DISPATCHED"
    assert len(await cases.list()) == 2
    assert await cases.list(visible=lambda lineage, incident_id: False) == []
    assert (await cases.lineage(incident))[0] == "510117"
    with pytest.raises(NotFound):
        await cases.get("none")


async def test_a_report_sent_again_is_one_incident_with_one_answer(bench: Bench, cases: CaseDesk) -> None:
    where = {"district": "510117", "street": AREA.street, "community": AREA.community, "grid": AREA.grid}

    async def report(by: Actor, report_id: str | None) -> dict[str, object]:
        bench.clock.now_ms += 1
        return await cases.report(
            by, type="占道经营", severity=2, place_label="路口", position=CENTER, report_id=report_id, **where
        )

    first, again = await asyncio.gather(report(WANG, "r1"), report(WANG, "r1"))  # both are on their way
    assert first == again
    incident = str(first["id"])
    await cases.move(incident, T.DISPATCH, ZHANG)
    assert await report(WANG, "r1") == first  # as it was, whatever became of it
    assert len(await cases.list()) == 1
    for by, name in ((LI, "r1"), (WANG, "r2"), (WANG, None), (WANG, None)):
        assert (await report(by, name))["id"] != incident
    assert len(await cases.list()) == 5


async def test_a_step_that_a_phone_says_twice_is_one_step(bench: Bench, cases: CaseDesk) -> None:
    incident = (
        await cases.report(
            ZHANG, type="占道经营", severity=2, place_label="路口", position=CENTER,
            district="510117", street=AREA.street, community=AREA.community, grid=AREA.grid,
        )
    )["id"]  # fmt: skip
    await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w1"})
    for step in (T.HANDLE, T.SUBMIT):
        once = await cases.move(incident, step, WANG)
        bench.clock.now_ms += 1
        assert await cases.move(incident, step, WANG) == once
        with pytest.raises(Conflict):
            await cases.move(incident, step, LI)
    events = [entry["event"] for entry in (await cases.get(incident))["timeline"]]
    assert events == ["open", "dispatch", "handle", "submit"]
