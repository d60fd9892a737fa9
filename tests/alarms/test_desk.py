"""AlarmDesk against a real database: product.md section 6, rows 1-4, 6-8, 13, 14."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from conftest import CENTER, Bench, Clock, press_body, signed

from gateway.alarms.alarm import Illegal, Outcome
from gateway.alarms.policy import Actor, AlarmSettings
from gateway.alarms.world import ConfiguredWorld
from gateway.audit import verify_audit
from gateway.config import CameraConfig
from gateway.district import District
from gateway.errors import Conflict, NotFound, ProtocolError
from gateway.store import Store

ZHANG = Actor(sub="zhang", name="张三", role="operator")
LI = Actor(sub="li", name="李四", role="operator")
WANG = Actor(sub="w1", name="王一", role="worker")


async def test_press_is_persisted_announced_and_rung(bench: Bench) -> None:
    async with bench.running():
        ack = await bench.desk.press(press_body(cam="c_south"), "http")
        await bench.settle()
    assert ack["stage"] == "persisted"
    [alarm] = await bench.desk.list()
    assert alarm["id"] == ack["alarm"]
    assert alarm["place"]["ref"] == "c_south"
    assert alarm["level"] == "community"
    assert {d["kind"] for d in alarm["deadlines"]} == {"shown", "escalate"}
    assert bench.got.stages("b0") == ["persisted"]
    assert [(topic, retain) for topic, _, retain in bench.got.mqtt][1] == ("pd/v1/stb/b0/state", True)
    assert [data["id"] for kind, data in bench.got.events if kind == "alarm"] == [ack["alarm"]]
    [brief] = bench.got.rings
    assert (brief["alarm_id"], brief["place_label"]) == (ack["alarm"], "南门")
    assert verify_audit(bench.store.path).broken_at is None


async def test_same_press_a_thousand_times_on_both_paths_is_one_alarm_with_one_answer(bench: Bench) -> None:
    raw = press_body()
    async with bench.running():
        acks = await asyncio.gather(
            *(
                bench.desk.press(raw, "mqtt" if i % 2 else "http", "b0" if i % 2 else None)
                for i in range(1000)
            )
        )
        await bench.settle()
    assert {json.dumps(ack, sort_keys=True) for ack in acks} == {json.dumps(acks[0], sort_keys=True)}
    [alarm] = await bench.desk.list()
    assert alarm["repeats"] == 0
    assert len(bench.got.rings) == 1
    assert set(bench.got.stages("b0")) == {"persisted"}


async def test_same_press_after_a_restart_gets_the_same_answer(tmp_path: Path, clock: Clock) -> None:
    store = await Store.open(tmp_path / "x.db")
    first = await Bench(store, clock, AlarmSettings()).desk.press(press_body(), "http")
    await store.close()
    clock.now_ms += 3600_000
    store = await Store.open(tmp_path / "x.db")
    again = Bench(store, clock, AlarmSettings())
    assert await again.desk.press(press_body(), "http") == first
    async with again.running():  # and what the first process never delivered is delivered now
        await again.settle()
    assert len(again.got.rings) == 1
    assert again.got.stages("b0")[0] == "persisted"
    await store.close()


async def test_clock_a_year_off_is_accepted_and_shown_as_skew(bench: Bench, clock: Clock) -> None:
    ack = await bench.desk.press(press_body(ts=clock.now_ms - 31_536_000_000), "http")
    assert ack["now"] == clock.now_ms
    [alarm] = await bench.desk.list()
    assert alarm["skew_ms"] == -31_536_000_000
    assert alarm["received_at"] == clock.now_ms


async def test_old_signature_on_a_new_press_is_refused_and_shown_unverified(bench: Bench) -> None:
    replay = {**json.loads(press_body(pid="p1")), "pid": "p2"}
    async with bench.running():
        ack = await bench.desk.press(json.dumps(replay).encode(), "mqtt", "b0")
        await bench.settle()
    assert (ack["stage"], ack["reason"]) == ("refused", "bad_signature")
    [row] = await bench.desk.list()
    assert row["verified"] is False
    assert not bench.got.rings
    assert bench.got.stages("b0") == ["refused"]
    # A forged press doesn't take the name of the genuine one.
    assert (await bench.desk.press(press_body(pid="p2"), "http"))["stage"] == "persisted"


async def test_flood_of_forged_presses_is_one_row_and_a_bounded_number_of_writes(bench: Bench) -> None:
    before = bench.store.health().writes
    forged = [press_body(pid=f"f{i}", key=b"wrong") for i in range(300)]
    acks = await asyncio.gather(*(bench.desk.press(raw, "http") for raw in forged))
    assert {ack["reason"] for ack in acks} == {"bad_signature"}
    [row] = await bench.desk.list()
    assert row["repeats"] == 9
    assert bench.store.health().writes - before == 10


async def test_unknown_box_and_malformed_presses(bench: Bench) -> None:
    assert (await bench.desk.press(press_body(sid="nobody"), "http"))["reason"] == "unknown_box"
    assert (await bench.desk.press(b'{"pid":"x"}', "mqtt", "b0"))["reason"] == "malformed"
    for raw in (b"", b"\xff", b"[]", b"{" * 500, b"x" * 5000, b'{"pid":"x"}'):
        with pytest.raises(ProtocolError):
            await bench.desk.press(raw, "http")
    assert await bench.desk.list() == []


async def test_repeats_of_one_box_are_counted_answered_and_throttled(bench: Bench) -> None:
    async with bench.running():
        first = await bench.desk.press(press_body(pid="first"), "http")
        before = bench.store.health().commits
        acks = await asyncio.gather(*(bench.desk.press(press_body(pid=f"r{i}"), "http") for i in range(100)))
        other = await bench.desk.press(press_body(sid="b5", pid="other"), "http")
        await bench.settle()
    assert {ack["alarm"] for ack in acks} == {first["alarm"]}
    assert {ack["stage"] for ack in acks} == {"persisted"}
    assert other["alarm"] != first["alarm"]
    by_id = {alarm["id"]: alarm for alarm in await bench.desk.list()}
    assert by_id[first["alarm"]]["repeats"] == 100
    assert bench.desk.throttled == 91
    assert bench.store.health().commits - before < 60
    assert len(bench.got.rings) == 2


async def test_a_test_press_does_not_swallow_a_call_for_help(bench: Bench) -> None:
    test = await bench.desk.press(press_body(pid="t", kind="test"), "http")
    help_ = await bench.desk.press(press_body(pid="h"), "http")
    assert test["alarm"] != help_["alarm"]


async def test_alarms_of_neighbours_form_a_group_with_one_ring(bench: Bench, clock: Clock) -> None:
    async with bench.running():
        a = await bench.desk.press(press_body(sid="b0"), "http")
        b = await bench.desk.press(press_body(sid="b_near"), "http")
        c = await bench.desk.press(press_body(sid="b9"), "http")
        await bench.settle()
    by_id = {alarm["id"]: alarm for alarm in await bench.desk.list()}
    assert by_id[b["alarm"]]["group_id"] == a["alarm"]
    assert by_id[a["alarm"]]["group_id"] is by_id[c["alarm"]]["group_id"] is None
    assert {r["alarm_id"] for r in bench.got.rings} == {a["alarm"], c["alarm"]}


async def test_neighbours_after_two_minutes_are_no_group(bench: Bench, clock: Clock) -> None:
    await bench.desk.press(press_body(sid="b0"), "http")
    clock.now_ms += 120_001
    b = await bench.desk.press(press_body(sid="b_near"), "http")
    assert {a["id"]: a for a in await bench.desk.list()}[b["alarm"]]["group_id"] is None


async def test_stages_reach_the_box_each_once(bench: Bench) -> None:
    desk = bench.desk
    async with bench.running():
        alarm = (await desk.press(press_body(), "http"))["alarm"]
        for console in ("one", "two"):
            assert (await desk.shown(alarm, console, ZHANG))["handling"] == "SHOWN"
        assert (await desk.acknowledge(alarm, ZHANG))["acknowledged_by"] == {"sub": "zhang", "name": "张三"}
        await desk.acknowledge(alarm, ZHANG)
        with pytest.raises(Conflict) as taken:
            await desk.acknowledge(alarm, LI)
        assert taken.value.detail["by"] == {"sub": "zhang", "name": "张三"}
        await desk.on_call(alarm, "call1")
        await desk.on_dispatch_accepted(alarm, WANG, 240)
        await desk.on_dispatch_accepted(alarm, WANG, 240)
        view = await desk.triage(alarm, ZHANG, outcome=Outcome.FALSE, note="误按")
        assert view["deadlines"] == []
        assert (await desk.close(alarm, ZHANG))["handling"] == "CLOSED"
        await bench.settle()
    assert bench.got.stages("b0") == ["persisted", "shown", "answered", "dispatched", "closed"]
    retained = [payload for topic, payload, _ in bench.got.mqtt if topic.endswith("/state")]
    assert retained[3]["message"] == "网格员王一正赶来 约4分钟"
    assert retained[-1] is None
    events = [entry["event"] for entry in (await desk.get(alarm))["timeline"]]
    assert events == ["raised", "shown", "acknowledged", "call", "dispatched", "triaged", "closed"]
    with pytest.raises(Illegal):
        await desk.close(alarm, ZHANG)
    with pytest.raises(NotFound):
        await desk.acknowledge("nothing", ZHANG)


async def test_a_test_leaves_the_state_of_a_real_alarm_alone(bench: Bench) -> None:
    desk = bench.desk
    async with bench.running():
        alarm = (await desk.press(press_body(), "http"))["alarm"]
        test = (await desk.press(press_body(kind="test", pid="t1"), "http"))["alarm"]
        for one, outcome in ((test, Outcome.TEST), (alarm, Outcome.FALSE)):
            await desk.acknowledge(one, ZHANG)
            await desk.triage(one, ZHANG, outcome=outcome)
            await desk.close(one, ZHANG)
        again = (await desk.press(press_body(kind="test", pid="t2"), "http"))["alarm"]
        await bench.settle()
    retained = [payload for topic, payload, _ in bench.got.mqtt if topic.endswith("/state")]
    assert [payload and payload["alarm"] for payload in retained] == [alarm, alarm, None, again]


async def test_what_is_no_longer_true_is_taken_back(bench: Bench) -> None:
    """product.md section 2: each stage only when it is true. An ack can't say so; the retained state does."""
    desk = bench.desk
    async with bench.running():
        alarm = (await desk.press(press_body(), "http"))["alarm"]
        await desk.shown(alarm, "one", ZHANG)
        await desk.on_dispatch_accepted(alarm, WANG, 240)
        await desk.acknowledge(alarm, ZHANG)  # somebody is on the way all the same
        await desk.on_dispatch_released(alarm, "another")
        assert (await desk.get(alarm))["dispatched"]["id"] == WANG.sub
        for _ in range(2):
            await desk.on_dispatch_released(alarm, WANG.sub)
        assert (await desk.get(alarm))["dispatched"] is None
        await desk.unacknowledge(alarm, ZHANG)
        await bench.settle()
    retained = [payload["stage"] for topic, payload, _ in bench.got.mqtt if topic.endswith("/state")]
    assert retained == ["persisted", "shown", "dispatched", "dispatched", "answered", "shown"]
    assert bench.got.stages("b0") == ["persisted", "shown", "dispatched", "answered"]
    events = [entry["event"] for entry in (await desk.get(alarm))["timeline"]]
    assert events == ["raised", "shown", "dispatched", "acknowledged", "released", "unacknowledged"]


async def test_calls_that_open_together_are_noted_with_their_alarms(bench: Bench) -> None:
    alarms = [(await bench.desk.press(press_body(sid=f"b{n}"), "http"))["alarm"] for n in (0, 3, 9)]
    notes = [(alarm, f"call-{alarm}") for alarm in alarms]
    told = await asyncio.gather(
        *(
            bench.desk.on_call(*note)
            for note in (*notes, ("nothing", "call"), notes[0], (alarms[1], "second"))
        ),
        return_exceptions=True,
    )
    assert [type(one).__name__ for one in told] == ["NoneType"] * 3 + ["NotFound"] + ["NoneType"] * 2
    seen = [await bench.desk.get(alarm) for alarm in alarms]
    assert [one["call_id"] for one in seen] == [notes[0][1], "second", notes[2][1]]
    assert [[e["event"] for e in one["timeline"]].count("call") for one in seen] == [1, 2, 1]


async def test_two_operators_at_once_have_one_winner(bench: Bench) -> None:
    alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
    results = await asyncio.gather(
        bench.desk.acknowledge(alarm, ZHANG), bench.desk.acknowledge(alarm, LI), return_exceptions=True
    )
    assert [type(r).__name__ for r in results] == ["dict", "Conflict"]


async def test_cancel_clears_but_hides_nothing(bench: Bench, clock: Clock) -> None:
    async with bench.running():
        alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
        cancel = signed("cancel|b0|p1|5", sid="b0", pid="p1", ts=5)
        assert (await bench.desk.cancel(cancel, "http"))["stage"] == "cancelled"
        assert (await bench.desk.cancel(cancel, "http"))["stage"] == "cancelled"
        wrong = signed("cancel|b0|p1|6", sid="b0", pid="p1", ts=5)
        assert (await bench.desk.cancel(wrong, "http"))["reason"] == "bad_signature"
        unknown = signed("cancel|b0|p9|5", sid="b0", pid="p9", ts=5)
        assert (await bench.desk.cancel(unknown, "http"))["reason"] == "unknown_press"
        view = await bench.desk.get(alarm)
        assert (view["handling"], view["condition"]) == ("NEW", "CLEARED")
        assert view["deadlines"]
        await bench.desk.press(press_body(pid="again"), "http")
        assert (await bench.desk.get(alarm))["condition"] == "ACTIVE"
        await bench.settle()


async def test_correction_of_the_place_ranks_anew(bench: Bench) -> None:
    async with bench.running():
        alarm = (await bench.desk.press(press_body(cam="c_far"), "http"))["alarm"]
        at_camera = await bench.desk.get(alarm)
        body = signed("place|b0|p1|household|7", sid="b0", pid="p1", place="household", ts=7)
        assert (await bench.desk.correct_place(body))["alarm"] == alarm
        await bench.settle()
    at_home = await bench.desk.get(alarm)
    assert (at_camera["place"]["kind"], at_home["place"]["kind"]) == ("camera", "household")
    assert at_camera["cameras"][0].id == "c_far"
    assert [b["place_label"] for b in bench.got.rings] == ["远处", "幸福里0号"]
    back = signed("place|b0|p1|camera|8", sid="b0", pid="p1", place="camera", ts=8)
    await bench.desk.correct_place(back)
    assert (await bench.desk.get(alarm))["place"]["ref"] == "c_far"


async def test_a_camera_elsewhere_is_believed_only_if_the_box_may_watch_it(bench: Bench) -> None:
    """Else a box could send the help of another street."""
    async with bench.running():
        away = (await bench.desk.press(press_body(cam="c_else"), "http"))["alarm"]
        bench.watchable.add(("b1", "c_else"))
        shown = (await bench.desk.press(press_body(sid="b1", cam="c_else"), "http"))["alarm"]
        await bench.settle()
    places = [(await bench.desk.get(alarm))["place"] for alarm in (away, shown)]
    assert [(place["kind"], place["ref"]) for place in places] == [("household", "h0"), ("camera", "c_else")]


async def test_who_speaks_in_the_alarms_call_keeps_it(bench: Bench, clock: Clock) -> None:
    async with bench.running():
        alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
        await bench.desk.acknowledge(alarm, ZHANG)
        bench.talked_about.add(alarm)
        clock.now_ms += 61_000
        await bench.desk.fire_due()
        assert (await bench.desk.get(alarm))["handling"] == "ACKNOWLEDGED"
        bench.talked_about.clear()
        clock.now_ms += 61_000
        await bench.desk.fire_due()
        assert (await bench.desk.get(alarm))["handling"] == "SHOWN"
        await bench.settle()


async def test_household_is_shown_on_demand_audited_once_and_ends_with_the_alarm(bench: Bench) -> None:
    alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
    assert (await bench.desk.get(alarm))["household"] is None
    for _ in range(2):
        view = await bench.desk.get(alarm, include_household=True, viewer=ZHANG)
        assert view["household"]["notes"] == "心脏病"
    with sqlite3.connect(bench.store.path) as raw:
        assert raw.execute("SELECT count(*) FROM audit WHERE action='household.view'").fetchone() == (1,)
    raw.close()
    await bench.desk.acknowledge(alarm, ZHANG)
    await bench.desk.triage(alarm, ZHANG, outcome=Outcome.FALSE)
    await bench.desk.close(alarm, ZHANG)
    assert (await bench.desk.get(alarm, include_household=True, viewer=ZHANG))["household"] is None


async def test_incident_keeps_the_alarm_open_until_it_has_ended(bench: Bench) -> None:
    alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
    await bench.desk.acknowledge(alarm, ZHANG)
    view = await bench.desk.triage(alarm, ZHANG, outcome=Outcome.INCIDENT, severity=2, police="no")
    assert view["incident_id"]
    with pytest.raises(Conflict, match="尚未结案"):
        await bench.desk.close(alarm, ZHANG)


async def test_escalation_adds_audiences_until_somebody_acknowledges(bench: Bench, clock: Clock) -> None:
    desk = bench.desk
    alarm = (await desk.press(press_body(), "http"))["alarm"]
    started = clock.now_ms
    await desk.shown(alarm, "c", ZHANG)
    seen = []
    while len(seen) < 4:
        at = await desk.fire_due()
        seen.append(((await desk.get(alarm))["level"], (at or 0) - started))
        clock.now_ms = at or 0
    assert seen == [("community", 15_000), ("street", 30_000), ("district", 60_000), ("leader", 120_000)]
    await desk.acknowledge(alarm, ZHANG)
    assert await desk.fire_due() == clock.now_ms + 60_000


async def test_nobody_shows_it_so_the_next_desk_comes_early(bench: Bench, clock: Clock) -> None:
    alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
    clock.now_ms += 5_000
    await bench.desk.fire_due()
    assert (await bench.desk.get(alarm))["level"] == "street"


async def test_operator_who_leaves_is_noticed(bench: Bench, clock: Clock) -> None:
    alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
    await bench.desk.acknowledge(alarm, ZHANG)
    clock.now_ms += 60_000
    await bench.desk.fire_due()
    view = await bench.desk.get(alarm)
    assert (view["handling"], view["acknowledged_by"], view["alerted_at"]) == ("SHOWN", None, clock.now_ms)
    assert view["deadlines"][0]["at"] == clock.now_ms + 15_000
    assert (await bench.desk.acknowledge(alarm, LI))["acknowledged_by"]["sub"] == "li"


async def test_unacknowledge_goes_back_to_shown(bench: Bench) -> None:
    alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
    await bench.desk.acknowledge(alarm, ZHANG)
    assert (await bench.desk.unacknowledge(alarm, ZHANG))["handling"] == "SHOWN"
    with pytest.raises(Illegal):
        await bench.desk.unacknowledge(alarm, ZHANG)


async def test_locked_database_delays_the_answer_and_loses_nothing(bench: Bench) -> None:
    other = sqlite3.connect(bench.store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    press = asyncio.create_task(bench.desk.press(press_body(), "http"))
    await asyncio.to_thread(lambda: [None for _ in iter(lambda: bench.store.health().writable, False)])
    assert not press.done()
    other.execute("ROLLBACK")
    other.close()
    assert (await press)["stage"] == "persisted"


async def test_full_disk_is_refused_with_cannot_process(bench: Bench) -> None:
    pages = await bench.store.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())
    await bench.store.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar())
    reasons = {}
    for i in range(400):  # until the pages that exist are full
        ack = await bench.desk.press(press_body(sid=f"b{i}", pid="p", seq=i), "mqtt", f"b{i}")
        reasons[i] = ack.get("reason")
        if ack["stage"] == "refused":
            break
    assert list(reasons.values())[-1] == "cannot_process"
    assert bench.got.stages(f"b{len(reasons) - 1}") == ["refused"]
    assert len(await bench.desk.list(limit=1000)) == len(reasons) - 1


async def test_broker_that_is_down_delays_acks_only(bench: Bench) -> None:
    bench.got.down = True
    async with bench.running():
        await bench.desk.press(press_body(), "http")
        async with asyncio.timeout(5):
            while not (bench.got.rings and bench.got.events):
                await bench.got.news.wait()
                bench.got.news.clear()
        assert not bench.got.mqtt
        bench.got.down = False
        await bench.settle()
    assert bench.got.stages("b0") == ["persisted"]


async def test_refused_publishes_are_audited_within_a_rate(bench: Bench) -> None:
    for _ in range(50):
        await bench.desk.on_denied("b0", "pd/v1/stb/b1/press")
    with contextlib.closing(sqlite3.connect(bench.store.path)) as raw:
        rows = raw.execute("SELECT who, subject FROM audit WHERE action='mqtt.denied'").fetchall()
    assert rows == [("device/b0", "topic/pd/v1/stb/b1/press")] * 10
    assert verify_audit(bench.store.path).broken_at is None


async def test_house_of_the_files_is_the_world_of_the_desk() -> None:
    camera = CameraConfig(id="c1", main="rtsp://x/", position=CENTER, community="510117001001")
    world = ConfiguredWorld(District.empty(), [camera], {"b0": b"k"})
    site = world.camera("c1")
    assert site is not None
    assert (site.name, site.area.street, site.area.grid) == ("c1", "510117001", None)
    assert world.box_key("b0") == b"k"
    assert world.home_of("b0") is None
    assert world.cameras() is world.cameras()


async def test_each_audience_has_a_delivery_and_nobody_on_duty_is_told_to_the_desk(
    bench: Bench, clock: Clock
) -> None:
    bench.got.on_duty = 0
    async with bench.running():
        alarm = (await bench.desk.press(press_body(), "http"))["alarm"]
        await bench.desk.shown(alarm, "c", ZHANG)
        for seconds in (15, 15, 30):
            clock.now_ms += seconds * 1000
            await bench.desk.fire_due()
        await bench.settle()
    view = await bench.desk.get(alarm)
    told = [(d["audience"], d["channel"], d["reached"]) for d in view["deliveries"]]
    assert told == [
        ("community", "event", None),  # confirmed by SHOWN
        ("street", "event", 0),
        ("volunteers", "event", 0),
        ("district", "event", 0),
        ("supervisor", "event", 0),
        ("leader", "event", 0),
        ("police", "prompt", 0),
    ]
    nobody = [e["detail"]["audience"] for e in view["timeline"] if e["event"] == "nobody_reached"]
    assert sorted(nobody) == sorted(audience for audience, _, _ in told[1:])
    assert "volunteers" in [payload["audience"] for payload in bench.got.reached]


async def test_no_volunteer_is_called_to_violence(bench: Bench, clock: Clock) -> None:
    async with bench.running():
        await bench.desk.press(press_body(silent=True), "http")
        clock.now_ms += 60_000
        await bench.desk.fire_due()
        await bench.settle()
    assert {payload["audience"] for payload in bench.got.reached} == {
        "street", "district", "supervisor", "leader", "police"
    }  # fmt: skip


async def test_presses_that_wait_together_are_told_apart(bench: Bench, clock: Clock) -> None:
    """One write of many boxes: repeats, known ones, tests and groups come out as if each had come alone."""
    sent = [
        ("b0", "p1", "help"), ("b0", "p2", "help"), ("b0", "p1", "help"), ("b0", "t1", "test"),
        ("b_near", "p1", "help"), ("b7", "p1", "fire"), ("b7", "p2", "fire"),
    ]  # fmt: skip
    acks = await asyncio.gather(
        *(bench.desk.press(press_body(sid, pid, kind=kind), "http") for sid, pid, kind in sent)
    )
    assert {ack["stage"] for ack in acks} == {"persisted"}
    first, again, _, test, near, far, far_again = (ack["alarm"] for ack in acks)
    assert (first, far) == (again, far_again)
    assert acks[0] == acks[2]
    assert len({first, test, near, far}) == 4
    alarms = {alarm["id"]: alarm for alarm in await bench.desk.list()}
    assert {id: alarm["repeats"] for id, alarm in alarms.items()} == {first: 1, test: 0, near: 0, far: 1}
    assert [alarms[id]["group_id"] for id in (first, near, test, far)] == [None, first, None, None]
    assert [len(alarms[id]["deadlines"]) for id in (first, near, test, far)] == [2, 2, 0, 2]
    await bench.desk.press(press_body("b0", "p3"), "http")  # and after the commit
    assert (await bench.desk.get(first))["repeats"] == 2
