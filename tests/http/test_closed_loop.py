"""The closed loop over HTTP against a running gateway: tasks, photos, follow-up by box and desk, merge suggestions,
figures as JSON and CSV; and the drill, which leaves no trace in them.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import cv2
import numpy as np
import pytest
import pytest_asyncio
from running_gateway import AREAS, CORNERS, KEY, STREET_A, Bench, running_gateway, sign

from gateway.alarms.tasks import MAX_PHOTO_BYTES
from gateway.cli import main

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    settings = {"alarms": {"group_radius_m": 0}}
    async with running_gateway(tmp_path_factory.mktemp("loop"), settings=settings) as running:
        yield running


def jpeg() -> bytes:
    picture = np.random.default_rng().integers(0, 256, (240, 320, 3), dtype=np.uint8)
    written, data = cv2.imencode(".jpg", picture)
    assert written
    return data.tobytes()


async def done(
    bench: Bench, method: str, path: str, who: dict[str, str], body: Any = None, status: int = 200
) -> Any:
    got, said = await bench.call(method, path, who, **({"json": body} if body is not None else {}))
    assert got == status, (path, got, said)
    return said


async def report(bench: Bench, place: str, **more: Any) -> dict[str, Any]:
    lat, lon = CORNERS[place]
    said = {"type": "消防隐患", "lat": lat + 0.01, "lon": lon + 0.01, "datum": "wgs84", **more}
    made: dict[str, Any] = await done(
        bench, "POST", "/api/v1/incidents", bench.bearer("operator", "op"), said, 201
    )
    return made


async def task_of(bench: Bench, incident: str, worker: str = "wa") -> str:
    operator = bench.bearer("operator", "op")
    await done(
        bench, "POST", f"/api/v1/incidents/{incident}/dispatch", operator, {"detail": {"worker": worker}}
    )
    found = await done(bench, "GET", f"/api/v1/tasks?incident={incident}", operator)
    return str(found["tasks"][0]["id"])


async def alarm_incident(bench: Bench, place: str, pid: str) -> tuple[str, str]:
    """A press that was triaged; (alarm, incident)."""
    operator = bench.bearer("operator", "op")
    alarm = (await bench.press(place, pid=pid))["alarm"]
    await done(bench, "POST", f"/api/v1/alarms/{alarm}/acknowledge", operator, {})
    triage = {"outcome": "incident", "type": "help", "severity": 2, "police": "no"}
    view = await done(bench, "POST", f"/api/v1/alarms/{alarm}/triage", operator, triage)
    return alarm, view["incident_id"]


async def cancel(bench: Bench, place: str, alarm: str, pid: str) -> None:
    ts = time.time_ns() // 1_000_000
    body = {"sid": f"box-{place}", "pid": pid, "ts": ts, "sig": sign(KEY, f"cancel|box-{place}|{pid}|{ts}")}
    assert (await done(bench, "POST", f"/api/v1/alarms/{alarm}/cancel", {}, body))["stage"] == "cancelled"


async def test_a_task_with_photos_and_a_follow_up_by_the_box(bench: Bench) -> None:
    worker, other = bench.bearer("worker", "wa"), bench.bearer("worker", "wb")
    operator, verifier = bench.bearer("operator", "op"), bench.bearer("operator", "op2")
    box = bench.bearer("stb", "box-a1")
    alarm, incident = await alarm_incident(bench, "a1", "task-1")
    task = await task_of(bench, incident)
    assert (await done(bench, "GET", "/api/v1/tasks?mine=1&open=1", worker))["tasks"][0]["id"] == task
    assert (await done(bench, "GET", "/api/v1/tasks?mine=1", other))["tasks"] == []
    await done(bench, "POST", f"/api/v1/tasks/{task}/accept", other, {}, 403)
    for step in ("accept", "en_route", "on_scene"):
        view = await done(bench, "POST", f"/api/v1/tasks/{task}/{step}", worker, {})
    assert view["state"] == "ON_SCENE"
    # a real JPEG as the body, in pieces without a length, and as a form
    picture, second = jpeg(), jpeg()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(picture), 1000):
            yield picture[at : at + 1000]

    headers = {"Content-Type": "image/jpeg"}
    status, photo = await bench.call(
        "POST", f"/api/v1/tasks/{task}/photos", worker, data=pieces(), headers=headers
    )
    assert (status, photo["sha256"]) == (201, hashlib.sha256(picture).hexdigest())
    assert (photo["media_type"], photo["size"], photo["by"]) == ("image/jpeg", len(picture), "worker/wa")
    form = aiohttp.FormData()
    form.add_field("photo", second, filename="现场.jpg", content_type="image/jpeg")
    status, _ = await bench.call("POST", f"/api/v1/tasks/{task}/photos", worker, data=form)
    assert status == 201
    for body, wanted in ((b"GIF89a", 400), (picture + bytes(MAX_PHOTO_BYTES), 400)):
        status, said = await bench.call(
            "POST", f"/api/v1/tasks/{task}/photos", worker, data=io.BytesIO(body), headers=headers
        )
        assert status == wanted, said
    status, _ = await bench.call("POST", f"/api/v1/tasks/{task}/photos", other, data=picture, headers=headers)
    assert status == 403
    path = f"/api/v1/tasks/{task}/photos/{photo['sha256']}"
    async with bench.client.get(path, headers=operator) as answer:
        assert await answer.read() == picture
        assert (answer.content_type, answer.headers["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")
    view = await done(bench, "POST", f"/api/v1/tasks/{task}/done", worker, {"feedback": "已处理"})
    assert (view["incident"]["state"], len(view["photos"])) == ("VERIFYING", 2)
    # the box is asked, and answers signed
    mine = await done(bench, "GET", "/api/v1/stb/me", box)
    assert (mine["alarm"]["alarm"], mine["alarm"]["handled"]) == (alarm, True)
    asked = mine["follow_up"]
    assert asked == {"incident": incident, "pid": "task-1", "alarm": alarm}
    await done(bench, "POST", f"/api/v1/incidents/{incident}/rate", verifier, {"detail": {"score": 5}}, 409)
    follow = f"/api/v1/incidents/{incident}/follow_up"
    now = time.time_ns() // 1_000_000
    text = f"follow_up|box-a1|task-1|{incident}|1|{now}"
    answer_ = {"satisfied": True, "sid": "box-a1", "pid": "task-1", "ts": now, "sig": sign(KEY, text)}
    await done(bench, "POST", follow, {}, {**answer_, "satisfied": False}, 401)  # not what was signed
    foreign = text.replace("box-a1", "box-b1")
    stranger = {**answer_, "sid": "box-b1", "sig": sign(KEY, foreign)}
    await done(bench, "POST", follow, {}, stranger, 403)
    assert (await done(bench, "POST", follow, {}, answer_))["satisfied"] is True
    assert (await done(bench, "GET", "/api/v1/stb/me", box))["follow_up"] is None
    # who did it does not verify it; another does
    await done(bench, "POST", f"/api/v1/tasks/{task}/verify", worker, {}, 403)
    await done(bench, "POST", f"/api/v1/incidents/{incident}/rate", verifier, {"detail": {"score": 5}})
    await done(bench, "POST", f"/api/v1/incidents/{incident}/archive", verifier, {})
    closed = await done(bench, "GET", f"/api/v1/alarms/{alarm}", operator)
    assert closed["handling"] == "CLOSED"
    events = [
        entry["event"]
        for entry in (await done(bench, "GET", f"/api/v1/incidents/{incident}", operator))["timeline"]
    ]
    assert [
        e for e in ("open", "dispatch", "handle", "submit", "follow_up", "rate", "archive") if e not in events
    ] == []


async def test_a_report_whose_answer_was_lost_is_sent_again_without_harm(bench: Bench) -> None:
    lat, lon = CORNERS["a2"]
    said = {
        "type": "消防隐患",
        "lat": lat + 0.01,
        "lon": lon + 0.01,
        "datum": "wgs84",
        "report_id": "phone-1",
    }
    worker, operator = bench.bearer("worker", "wa2"), bench.bearer("operator", "op")
    at_once = await asyncio.gather(
        *(done(bench, "POST", "/api/v1/incidents", worker, said, 201) for _ in range(2))
    )
    first = at_once[0]
    assert at_once == [first, first]
    photos, picture = f"/api/v1/incidents/{first['id']}/photos", jpeg()
    headers = {"Content-Type": "image/jpeg"}
    sent = [await bench.call("POST", photos, worker, data=picture, headers=headers) for _ in range(2)]
    assert sent[0] == sent[1]
    assert len((await done(bench, "GET", photos, worker))["photos"]) == 1
    await done(bench, "POST", f"/api/v1/incidents/{first['id']}/cancel", operator, {})
    assert await done(bench, "POST", "/api/v1/incidents", worker, said, 201) == first
    # the name is the sender's own, and must be a name
    assert (await done(bench, "POST", "/api/v1/incidents", operator, said, 201))["id"] != first["id"]
    await done(bench, "POST", "/api/v1/incidents", worker, {**said, "report_id": "a b"}, 400)


async def test_a_desk_follows_up_by_phone_in_its_own_area_only(bench: Bench) -> None:
    worker = bench.bearer("worker", "wa2")
    _, incident = await alarm_incident(bench, "a2", "phone-1")
    task = await task_of(bench, incident, "wa2")
    follow = f"/api/v1/incidents/{incident}/follow_up"
    desk, elsewhere = bench.bearer("desk", "desk-a", STREET_A), bench.bearer("desk", "desk-b", "510117002")
    said = {"satisfied": False, "note": "还在漏水"}
    await done(bench, "POST", follow, desk, said, 409)  # nothing was done yet
    for step in ("accept", "on_scene", "done"):
        await done(bench, "POST", f"/api/v1/tasks/{task}/{step}", worker, {})
    await done(bench, "POST", follow, elsewhere, said, 403)
    await done(bench, "POST", follow, {}, said, 401)
    assert (await done(bench, "POST", follow, desk, said))["satisfied"] is False
    operator = bench.bearer("operator", "op2")
    reopened = await done(bench, "POST", f"/api/v1/incidents/{incident}/reopen", operator, {})
    assert (reopened["state"], reopened["reopened"], reopened["satisfied"]) == ("DISPATCHED", 1, None)
    assert (await done(bench, "GET", f"/api/v1/tasks/{task}", operator))["state"] == "ACCEPTED"
    handed = {"detail": {"to": "12345", "number": "A-7"}}
    await done(bench, "POST", f"/api/v1/incidents/{incident}/transfer", operator, handed)
    [over] = (await done(bench, "GET", f"/api/v1/incidents/{incident}", operator))["hand_overs"]
    assert (over["to"], over["number"], over["by"], over["back_at"]) == ("12345", "A-7", "operator/op2", None)


async def test_a_cancelled_alarm_ends_only_after_its_call_back(bench: Bench) -> None:
    operator, desk = bench.bearer("operator", "op"), bench.bearer("desk", "desk-b", "510117002")
    elsewhere = bench.bearer("desk", "desk-a", STREET_A)
    alarm = (await bench.press("b1", pid="cancel-1"))["alarm"]
    one = f"/api/v1/alarms/{alarm}"
    call_back, close = f"{one}/call_back", f"{one}/close"
    await done(bench, "POST", call_back, desk, {"outcome": "safe"}, 409)  # nothing was cancelled
    await cancel(bench, "b1", alarm, "cancel-1")
    await done(bench, "POST", f"{one}/acknowledge", desk, {})
    await done(bench, "POST", f"{one}/triage", desk, {"outcome": "false"})
    held = await done(bench, "POST", close, desk, {}, 409)
    assert (held["needs"], "回访" in held["detail"]) == ("call_back", True)
    await done(bench, "POST", call_back, elsewhere, {"outcome": "safe"}, 403)
    await done(bench, "POST", call_back, desk, {"outcome": "well"}, 400)
    await done(bench, "POST", call_back, desk, {"outcome": "unreachable"}, 400)  # and what was done instead?
    said = {"outcome": "unreachable", "note": "三次无人接听，已请网格员上门"}
    view = await done(bench, "POST", call_back, desk, said)
    assert {**view["call_back"], "at": 0} == {**said, "at": 0, "by": {"sub": "desk-b", "name": "乙街道"}}
    view = await done(bench, "POST", close, desk, {})
    assert (view["handling"], view["condition"]) == ("CLOSED", "CLEARED")
    timeline = (await done(bench, "GET", one, operator))["timeline"]
    [entry] = [entry for entry in timeline if entry["event"] == "called_back"]
    assert entry["detail"] == {**said, "name": "乙街道"}
    assert (entry["by"], entry["at"]) == ("desk/desk-b", view["call_back"]["at"])
    await done(bench, "POST", call_back, desk, said, 409)  # it is over


async def test_an_incident_does_not_end_over_a_call_back_that_is_owed(bench: Bench) -> None:
    operator = bench.bearer("operator", "op")
    alarm, incident = await alarm_incident(bench, "b1", "cancel-2")
    await cancel(bench, "b1", alarm, "cancel-2")
    end = f"/api/v1/incidents/{incident}/cancel"
    assert (await done(bench, "POST", end, operator, {}, 409))["alarm_id"] == alarm
    assert (await done(bench, "GET", f"/api/v1/incidents/{incident}", operator))["state"] == "REPORTED"
    call_back = f"/api/v1/alarms/{alarm}/call_back"
    view = await done(bench, "POST", call_back, operator, {"outcome": "help_needed", "note": "听到争吵"})
    assert (view["condition"], view["cleared_at"]) == ("ACTIVE", None)  # no longer taken back
    await cancel(bench, "b1", alarm, "cancel-2")
    await done(bench, "POST", end, operator, {}, 409)  # a new cancel owes a new call
    await done(bench, "POST", call_back, operator, {"outcome": "safe"})
    await done(bench, "POST", end, operator, {})
    closed = await done(bench, "GET", f"/api/v1/alarms/{alarm}", operator)
    assert (closed["handling"], closed["call_back"]["outcome"]) == ("CLOSED", "safe")


async def test_incidents_near_by_are_suggested_and_merged_by_hand_only(bench: Bench) -> None:
    operator = bench.bearer("operator", "op")
    first = await report(bench, "b1")
    near = await report(bench, "b1", type="环境卫生")
    lat, lon = CORNERS["b1"]
    await report(bench, "b1", lat=lat + 0.02, lon=lon + 0.02)
    found = await done(bench, "GET", f"/api/v1/incidents/{first['id']}/merge_suggestions", operator)
    assert [one["id"] for one in found["incidents"]] == [near["id"]]
    assert (await done(bench, "GET", f"/api/v1/incidents/{near['id']}", operator))["state"] == "REPORTED"
    desk = bench.bearer("desk", "desk-a", STREET_A)
    await done(bench, "GET", f"/api/v1/incidents/{first['id']}/merge_suggestions", desk, status=403)
    merged = {"detail": {"into": first["id"]}}
    view = await done(bench, "POST", f"/api/v1/incidents/{near['id']}/merge", operator, merged)
    assert view["state"] == "MERGED"
    found = await done(bench, "GET", f"/api/v1/incidents/{first['id']}/merge_suggestions", operator)
    assert found["incidents"] == []


async def test_figures_as_json_and_csv_by_area(bench: Bench) -> None:
    operator, desk = bench.bearer("operator", "op"), bench.bearer("desk", "desk-a", STREET_A)
    for by in ("worker", "community", "street"):
        said = await done(bench, "GET", f"/api/v1/statistics?by={by}", operator)
        assert [entry["rank"] for entry in said["entries"]] == list(range(1, len(said["entries"]) + 1))
    streets = (await done(bench, "GET", "/api/v1/statistics?by=street", operator))["entries"]
    own = (await done(bench, "GET", "/api/v1/statistics?by=street", desk))["entries"]
    assert {entry["code"] for entry in own} == {STREET_A} < {entry["code"] for entry in streets}
    status, text = await bench.call("GET", "/api/v1/statistics?by=community&format=csv", operator)
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert status == 200
    a1 = next(row for row in rows if row["code"] == AREAS["a1"])
    assert (a1["closed"], a1["closed_rate"], a1["satisfied_rate"]) == ("1", "1.0", "1.0")
    for query in ("by=nothing", "by=street&month=2026-13"):
        await done(bench, "GET", f"/api/v1/statistics?{query}", operator, status=400)


async def test_a_drill_times_both_paths_and_leaves_no_trace_in_the_figures(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = bench.bearer("operator", "op")
    figures = await done(bench, "GET", "/api/v1/statistics?by=street", operator)
    await bench.on_duty("wb", "b1")
    address = bench.gateway.devices.address
    assert address is not None
    arguments = [
        *("drill", "--cameras", str(bench.folder / "cameras.yaml"), "--data", str(bench.folder / "var")),
        *("--base", bench.gateway.base_url, "--mqtt", f"{address[0]}:{address[1]}"),
        *("--box", "box-b1", "--presses", "4"),
    ]
    assert await asyncio.to_thread(main, [*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    for path in ("mqtt", "http"):
        assert {step: times["count"] for step, times in said["paths"][path].items()} == dict.fromkeys(
            ("persisted", "console", "shown", "answered", "closed"), 2
        )
    assert [goal["met"] for goal in said["goals"]] == [True, True, True]
    alarms = (await done(bench, "GET", "/api/v1/alarms?limit=4", operator))["alarms"]
    assert {(a["kind"], a["outcome"], a["handling"], a["call_id"]) for a in alarms} == {
        ("test", "test", "CLOSED", None)
    }
    for alarm in alarms:
        one = await done(bench, "GET", f"/api/v1/alarms/{alarm['id']}", operator)
        assert [told["audience"] for told in one["deliveries"]] == ["community"]
    assert await done(bench, "GET", "/api/v1/statistics?by=street", operator) == figures
    # a path that is down is said, and the command fails
    status = await asyncio.to_thread(main, [*arguments[:-1], "1", "--mqtt", "127.0.0.1:9"])
    assert status == 1
    assert "mqtt FAILED: box-b1" in capsys.readouterr().out


async def test_a_test_never_becomes_an_incident(bench: Bench) -> None:
    operator = bench.bearer("operator", "op")
    text = "press|box-b1|t-1|1|1700000000000|test||0"
    press = {"v": 1, "sid": "box-b1", "pid": "t-1", "seq": 1, "ts": 1_700_000_000_000, "kind": "test"}
    ack = await done(bench, "POST", "/api/v1/alarms", {}, {**press, "sig": sign(KEY, text)})
    one = f"/api/v1/alarms/{ack['alarm']}"
    await done(bench, "POST", f"{one}/acknowledge", operator, {})
    await done(
        bench, "POST", f"{one}/triage", operator, {"outcome": "incident", "severity": 4, "police": "yes"}, 409
    )
    await done(bench, "POST", f"{one}/triage", operator, {"outcome": "test"})


async def test_a_call_about_an_incident_that_was_opened_by_hand_shows_its_place(bench: Bench) -> None:
    """product.md section 2: "a click or a circle on the map opens an incident by hand with the same ... call"."""
    operator = bench.bearer("operator", "op")
    await bench.on_duty("wb", "b1")
    incident = await report(bench, "b1", place_label="河堤")
    about = {"incident_id": incident["id"]}
    said = await done(bench, "POST", "/api/v1/calls", operator, about, 400)
    assert "worker_id" in said["detail"]
    call = await done(bench, "POST", "/api/v1/calls", operator, {**about, "worker_id": "wb"}, 201)
    assert (call["incident_id"], call["alarm_id"], call["place_label"]) == (incident["id"], None, "河堤")
    assert call["position"] == incident["position"]
    assert [rung["worker_id"] for rung in call["rung"]] == ["wb"]
    elsewhere = bench.bearer("desk", "desk-a", area="510117001")
    await done(bench, "POST", "/api/v1/calls", elsewhere, {**about, "worker_id": "wb"}, 403)
    await done(bench, "POST", "/api/v1/calls", operator, {"incident_id": "none", "worker_id": "wb"}, 404)
    await done(bench, "POST", f"/api/v1/calls/{call['id']}/hangup", operator, {})


async def test_a_call_about_an_incident_is_one_about_its_alarm(bench: Bench) -> None:
    operator = bench.bearer("operator", "op")
    alarm, incident = await alarm_incident(bench, "a1", "call-about")
    call = await done(bench, "POST", "/api/v1/calls", operator, {"incident_id": incident}, 201)
    assert (call["alarm_id"], call["incident_id"] or incident) == (alarm, incident)
    await done(bench, "POST", f"/api/v1/calls/{call['id']}/hangup", operator, {})
