"""Tasks of helpers, follow-up, photos and the figures made of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from conftest import AREA, CENTER, Bench, north, press_body

from gateway.alarms import follow_up
from gateway.alarms.alarm import Outcome
from gateway.alarms.casework import CaseDesk
from gateway.alarms.incident import Transition as T
from gateway.alarms.policy import Actor
from gateway.alarms.statistics import By, Statistics, month_of, to_csv
from gateway.alarms.task import TaskEvent as E
from gateway.alarms.tasks import MAX_PHOTO_BYTES, TaskDesk
from gateway.audit import verify_audit
from gateway.errors import Conflict, NotAllowed, NotFound, ProtocolError

ZHANG = Actor(sub="zhang", name="张三", role="operator")
LI = Actor(sub="li", name="李四", role="operator")
WANG = Actor(sub="w1", name="王一", role="worker")
PLACE = {"district": "510117", "street": AREA.street, "community": AREA.community, "grid": AREA.grid}


class Ids:
    def __init__(self) -> None:
        self.last = 0

    def __call__(self, now_ms: int) -> str:
        self.last += 1
        return f"I{self.last:04}"


@pytest.fixture
def cases(bench: Bench) -> CaseDesk:
    names = {"w1": "王一", "w2": "王二", "v1": "红袖套"}
    return CaseDesk(bench.store, clock=bench.clock, new_id=Ids(), name_of=names.get)


@pytest.fixture
def tasks(bench: Bench, cases: CaseDesk, tmp_path: Path) -> TaskDesk:
    return TaskDesk(
        bench.store, photos=tmp_path / "photos", move_incident=cases.move_if_legal, clock=bench.clock
    )


async def reported(cases: CaseDesk, **more: Any) -> str:
    view = await cases.report(
        WANG,
        **{"type": "消防隐患", "severity": 2, "place_label": "路口", "position": CENTER, **PLACE, **more},
    )
    return str(view["id"])


async def test_a_task_carries_the_incident_from_dispatch_to_rating(
    bench: Bench, cases: CaseDesk, tasks: TaskDesk
) -> None:
    async with bench.running():
        alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
        await bench.desk.acknowledge(alarm, ZHANG)
        incident = (await bench.desk.triage(alarm, ZHANG, outcome=Outcome.INCIDENT, severity=2))[
            "incident_id"
        ]
        await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w1"}, note="带灭火器")
        await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w1"})  # the same helper: one task
        [task] = await tasks.list(incident_id=incident)
        assert (task["state"], task["note"], task["assignee"]["name"]) == ("OFFERED", "带灭火器", "王一")
        id = task["id"]
        for event in (E.ACCEPT, E.ACCEPT, E.SET_OUT):
            task = await tasks.act(id, event, WANG)
        assert task["incident"]["state"] == "HANDLING"
        await tasks.act(id, E.ARRIVE, WANG)
        done = await tasks.act(id, E.FINISH, WANG, feedback="已扑灭")
        assert (done["state"], done["feedback"], done["incident"]["state"]) == ("DONE", "已扑灭", "VERIFYING")
        with pytest.raises(NotAllowed):
            await tasks.act(id, E.VERIFY, WANG)
        await cases.move(incident, T.REOPEN, LI)
        assert (await tasks.get(id))["state"] == "ACCEPTED"
        for event in (E.SET_OUT, E.ARRIVE, E.FINISH):
            await tasks.act(id, event, WANG)
        followed = await cases.follow_up(incident, "stb/b0", satisfied=True, source="stb/b0")
        assert followed["satisfied"] is True
        with pytest.raises(NotAllowed):
            await cases.follow_up(incident, "stb/b1", satisfied=True, source="stb/b1")
        await cases.move(incident, T.RATE, LI, detail={"score": 5})
        assert (await tasks.get(id))["state"] == "VERIFIED"
        archived = await cases.move(incident, T.ARCHIVE, LI)
        assert (archived["score"], archived["reopened"], archived["state"]) == (5, 1, "ARCHIVED")
        with pytest.raises(Conflict):
            await cases.follow_up(incident, "operator/li", satisfied=False)
        await bench.settle()
    sent = [payload for topic, payload, _ in bench.got.mqtt if topic == "pd/v1/w/w1/task"]
    assert [message["act"] for message in sent] == ["offer", "redo"]
    assert sent[0]["incident"]["place_label"] == "幸福里0号"
    assert "dispatched" in bench.got.stages("b0")
    assert {data["state"] for kind, data in bench.got.events if kind == "task"} >= {
        "OFFERED",
        "DONE",
        "VERIFIED",
    }
    assert verify_audit(bench.store.path).broken_at is None


async def test_unanswered_tasks_expire_and_declined_ones_can_be_offered_anew(
    bench: Bench, cases: CaseDesk, tasks: TaskDesk
) -> None:
    incident = await reported(cases)
    await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w2"})
    assert await tasks.expire() == 0
    bench.clock.now_ms += 120_000
    assert await tasks.expire() == 1
    await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w2"})
    new, old = await tasks.list(incident_id=incident)
    assert (new["state"], old["state"]) == ("OFFERED", "EXPIRED")
    with pytest.raises(Conflict):
        await tasks.act(old["id"], E.ACCEPT, WANG)
    with pytest.raises(NotFound):
        await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "nobody"})
    await cases.move(incident, T.CANCEL, ZHANG, note="误报")
    assert (await tasks.get(new["id"]))["state"] == "REVOKED"


async def test_photos_are_kept_once_by_their_content(bench: Bench, cases: CaseDesk, tasks: TaskDesk) -> None:
    incident = await reported(cases)
    await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w1"})
    [task] = await tasks.list(incident_id=incident)
    picture = b"\xff\xd8\xff" + b"x" * 100
    photo = await tasks.add_photo(task["id"], picture, WANG)
    assert await tasks.add_photo(task["id"], picture, WANG) == photo
    path, media_type = await tasks.photo(task["id"], photo["sha256"])
    assert (path.read_bytes(), media_type) == (picture, "image/jpeg")
    assert (await tasks.get(task["id"]))["photos"] == [photo]
    for bad in (b"MZ", b"\xff\xd8\xff" + bytes(MAX_PHOTO_BYTES)):
        with pytest.raises(ProtocolError):
            await tasks.add_photo(task["id"], bad, WANG)
    with pytest.raises(NotFound):
        await tasks.photo(task["id"], "0" * 64)


async def test_hand_over_takes_110_or_12345_and_comes_back(bench: Bench, cases: CaseDesk) -> None:
    incident = await reported(cases)
    for bad in ({}, {"to": "119"}, {"to": "110", "number": "9" * 65}):
        with pytest.raises(ProtocolError):
            await cases.move(incident, T.TRANSFER, ZHANG, detail=bad)
    given = {"to": "12345", "number": "20260131000123"}
    view = await cases.move(incident, T.TRANSFER, ZHANG, detail=given, note="噪音")
    assert (view["state"], view["transferred_to"], view["action_by"]) == ("TRANSFERRED", "12345", None)
    handed = bench.clock.now_ms
    bench.clock.now_ms += 60_000
    assert (await cases.move(incident, T.TAKE_BACK, ZHANG))["state"] == "REPORTED"
    await cases.move(incident, T.TRANSFER, LI, detail={"to": "110"})
    first, second = (await cases.get(incident))["hand_overs"]
    assert first == {
        "at": handed, "by": "operator/zhang", "name": "张三", "to": "12345", "number": "20260131000123",
        "note": "噪音", "back_at": handed + 60_000,
    }  # fmt: skip
    assert (second["to"], second["by"], second["back_at"]) == ("110", "operator/li", None)


async def test_the_box_is_asked_for_its_follow_up_and_the_question_goes(
    bench: Bench, cases: CaseDesk
) -> None:
    async with bench.running():
        alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
        await bench.desk.acknowledge(alarm, ZHANG)
        triaged = await bench.desk.triage(alarm, ZHANG, outcome=Outcome.INCIDENT)
        incident = triaged["incident_id"]
        await cases.move(incident, T.DISPATCH, ZHANG)
        await cases.move(incident, T.HANDLE, WANG)
        assert await bench.store.read(lambda c: follow_up.asked_of(c, "stb/b0")) is None
        await cases.move(incident, T.SUBMIT, WANG)
        asked = await bench.store.read(lambda c: follow_up.asked_of(c, "stb/b0"))
        assert asked == {"incident": incident, "pid": "p1", "alarm": alarm}
        await cases.follow_up(incident, "stb/b0", satisfied=False, source="stb/b0")
        assert await bench.store.read(lambda c: follow_up.asked_of(c, "stb/b0")) is None
        await cases.move(incident, T.REOPEN, LI)
        await cases.move(incident, T.HANDLE, WANG)
        await cases.move(incident, T.SUBMIT, WANG)  # asked anew: the answer was about the first handling
        assert await bench.store.read(lambda c: follow_up.asked_of(c, "stb/b0")) == asked
        rated = await cases.move(incident, T.RATE, LI, detail={"satisfied": True, "score": 4})
        assert (rated["satisfied"], rated["follow_up_at"]) == (True, bench.clock.now_ms)
        await cases.move(incident, T.ARCHIVE, LI)
        await bench.settle()
    states = [
        payload for topic, payload, retain in bench.got.mqtt if topic == "pd/v1/stb/b0/state" and retain
    ]
    stages = [None if state is None else state["stage"] for state in states]
    assert stages == [
        "persisted", "answered", "follow_up", "answered", "answered", "follow_up", "answered", None
    ]  # fmt: skip
    # Between answer and end nobody is on the way: the box is told that it was handled, until it is reopened.
    assert [bool(state and state.get("handled")) for state in states] == [
        False, False, False, True, False, False, True, False
    ]  # fmt: skip
    assert states[3] is not None
    assert states[3]["message"] == "已处理完毕"
    question = states[2]
    assert (question["alarm"], question["incident"]) == (alarm, incident)
    assert question["message"].endswith("您满意吗？")


async def test_severity_four_calls_on_everybody_at_once(bench: Bench, cases: CaseDesk) -> None:
    async with bench.running():
        alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
        await bench.desk.acknowledge(alarm, ZHANG)
        await bench.desk.triage(alarm, ZHANG, outcome=Outcome.INCIDENT, severity=4)
        incident = await reported(cases, severity=4)
        await bench.settle()
    by_alarm = [told["audience"] for told in bench.got.reached if told.get("alarm_id") == alarm]
    assert by_alarm == ["street", "district", "supervisor", "leader", "volunteers", "police"]
    by_hand = [told["audience"] for told in bench.got.reached if told.get("incident_id") == incident]
    assert by_hand == ["community", *by_alarm]
    assert (await bench.desk.get(alarm))["level"] == "leader"


async def test_nothing_done_on_an_incident_goes_to_the_supervisor(bench: Bench, cases: CaseDesk) -> None:
    incident = await reported(cases)
    bench.clock.now_ms += 599_999
    assert await cases.fire_due() == 0
    bench.clock.now_ms += 1
    async with bench.running():
        assert await cases.fire_due() == 1
        assert await cases.fire_due() == 0
        await bench.settle()
    assert [(told["audience"], told["incident_id"]) for told in bench.got.reached] == [
        ("supervisor", incident)
    ]
    [delivery] = (await cases.get(incident))["deliveries"]
    assert (delivery["audience"], delivery["reached"]) == ("supervisor", 1)


async def test_incidents_near_by_are_suggested_for_merging_and_merge(bench: Bench, cases: CaseDesk) -> None:
    first = await reported(cases)
    near = await reported(cases, position=north(100))
    await reported(cases, position=north(400))
    [suggestion] = await cases.merge_suggestions(first)
    assert (suggestion["id"], suggestion["distance_m"]) == (near, 100.0)
    with pytest.raises(Conflict):
        await cases.move(near, T.MERGE, ZHANG, detail={"into": near})
    assert (await cases.move(near, T.MERGE, ZHANG, detail={"into": first}))["state"] == "MERGED"
    assert await cases.merge_suggestions(first) == []


async def test_figures_by_worker_community_and_street(bench: Bench, cases: CaseDesk, tasks: TaskDesk) -> None:
    incident = await reported(cases)
    await reported(cases, position=north(9000), **{**PLACE, "community": "510117001002"})
    bench.clock.now_ms += 30_000
    await cases.move(incident, T.DISPATCH, ZHANG, detail={"worker": "w2"})
    [task] = await tasks.list(incident_id=incident)
    wang2 = Actor(sub="w2", name="王二", role="worker")
    await tasks.act(task["id"], E.ACCEPT, wang2)
    bench.clock.now_ms += 240_000
    await tasks.act(task["id"], E.ARRIVE, wang2)
    await tasks.act(task["id"], E.FINISH, wang2)
    await cases.move(incident, T.RATE, LI, detail={"score": 4, "satisfied": True})
    await cases.move(incident, T.ARCHIVE, LI)
    statistics = Statistics(bench.store, clock=bench.clock)
    month = statistics.this_month()
    best, other = await statistics.figures(By.COMMUNITY, month)
    assert (best["rank"], best["code"], best["closed_rate"], best["satisfied_rate"]) == (
        1,
        AREA.community,
        1.0,
        1.0,
    )
    assert (best["dispatch_s"]["p50"], best["on_scene_s"]["p90"]) == (30.0, 270.0)
    assert (other["rank"], other["closed"], other["reported"]) == (2, 0, 1)
    [street] = await statistics.figures(By.STREET, month)
    assert (street["reported"], street["closed"], street["reopen_rate"]) == (2, 1, 0.0)
    workers = {entry["code"]: entry for entry in await statistics.figures(By.WORKER, month)}
    assert (workers["w1"]["reported"], workers["w2"]["closed"]) == (2, 1)
    assert await statistics.figures(By.STREET, month, visible=lambda lineage: False) == []
    table = list(csv.reader(io.StringIO(to_csv([{**best, "name": "=1+1"}]).removeprefix("\ufeff"))))
    assert dict(zip(*table, strict=True))["name"] == "'=1+1"
    assert month_of("2026-12")[1] - month_of("2026-12")[0] == 31 * 86_400_000
    with pytest.raises(ProtocolError):
        month_of("2026-13")
