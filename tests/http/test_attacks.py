"""What somebody tries who should not: on a running gateway, over real sockets, each with the outcome that is promised."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio
from running_gateway import (
    AREAS,
    CAMERA_PASSWORD,
    CONTACT,
    KEY,
    NOTES,
    PASSWORD,
    STREET_A,
    STREET_B,
    Bench,
    running_gateway,
    sign,
)
from sqlalchemy import select

from gateway.audit import audit_table
from gateway.identity import TokenKind, device_password

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from rtsp_farm import Farm
from webrtc_clients import WhepClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.broker]
OURS = {"X-Requested-With": "gateway"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with (
        Farm() as farm,
        running_gateway(
            tmp_path_factory.mktemp("attacks"),
            live_url=farm.url,
            settings={"http": {"request_timeout_s": 2}, "access": {"login_lockout_s": 300}},
        ) as running,
    ):
        await running.fill()
        yield running


def operator(bench: Bench) -> dict[str, str]:
    return bench.bearer("operator", "op")


def desk_a(bench: Bench) -> dict[str, str]:
    return bench.bearer("desk", "desk-a", STREET_A)


async def audited(bench: Bench, action: str) -> list[Any]:
    query = select(audit_table.c.who, audit_table.c.subject).where(audit_table.c.action == action)
    return await bench.gateway.store.read(lambda connection: list(connection.execute(query)))


# -- tokens ---------------------------------------------------------------------------------------------------------


def forged(text: str, **changes: object) -> str:
    """The token with other claims and the old signature."""
    head, claims, signature = text.split(".")
    content = json.loads(base64.urlsafe_b64decode(claims + "=="))
    body = base64.urlsafe_b64encode(json.dumps({**content, **changes}).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


async def test_tokens_that_are_not_ours_are_401(bench: Bench) -> None:
    good = bench.token("desk", "desk-a", STREET_A)
    claims = jwt.decode(good, options={"verify_signature": False})
    nested = base64.urlsafe_b64encode(b"[" * 2900).rstrip(b"=").decode()
    bad = {
        "other area": forged(good, area=STREET_B),
        "no area": forged(good, area=None),
        "other role": forged(good, role="operator"),
        "alg none": jwt.encode(claims, None, algorithm="none"),
        "other key": jwt.encode(claims, "x" * 32, algorithm="HS256"),
        "other alg": jwt.encode(claims, "x" * 64, algorithm="HS512"),
        "expired": bench.token("operator", "op", ttl_s=10, ago_s=3600),
        "of the future": bench.token("operator", "op", ago_s=-3600),
        "a code": bench.token("operator", "op", kind=TokenKind.CODE),
        "huge": "a" * 7000,
        "deeply nested": f"{nested}.{nested}.x",
        "not ASCII": "你好.你好.你好",
        "empty parts": "..",
    }
    status, _ = await bench.call("GET", "/api/v1/session", {"Authorization": f"Bearer {good}"})
    assert status == 200
    for name, token in bad.items():
        header = f"Bearer {token}".encode().decode("latin-1")
        status, said = await bench.call("GET", "/api/v1/session", {"Authorization": header})
        assert status == 401, (name, status, said)
        status, _ = await bench.call("POST", "/api/v1/session", json={"code": token})
        assert status in ((200,) if name == "a code" else (401,)), name


async def test_a_code_lets_in_once(bench: Bench) -> None:
    code = bench.token("desk", "desk-a", STREET_A, kind=TokenKind.CODE)
    tries = [bench.call("POST", "/api/v1/session", json={"code": code}) for _ in range(8)]
    statuses = sorted([status for status, _ in await asyncio.gather(*tries)])
    assert statuses == [200] + [401] * 7


# -- browsers -------------------------------------------------------------------------------------------------------


async def log_in(bench: Bench, page: str, role: str, sub: str, area: str | None = None) -> dict[str, str]:
    """The page's cookie."""
    code = bench.token(role, sub, area, kind=TokenKind.CODE)
    headers = {"X-Gateway-Page": page}
    async with bench.client.post("/api/v1/session", json={"code": code}, headers=headers) as answer:
        assert answer.status == 200
        [cookie] = answer.cookies.values()
        assert cookie["httponly"]
        assert (cookie["samesite"], cookie["path"]) == ("Strict", "/")
        assert cookie.key == f"gateway_session_{page}"
        bench.client.cookie_jar.clear()
        return {"Cookie": f"{cookie.key}={cookie.value}"}


async def test_a_cookie_alone_changes_nothing(bench: Bench) -> None:
    cookie = await log_in(bench, "wall", "operator", "op")
    path = f"/api/v1/alarms/{bench.ids['alarm']['a2']}/unacknowledge"
    wall = {**cookie, "X-Gateway-Page": "wall"}
    assert (await bench.call("POST", path, wall))[0] == 403
    assert (await bench.call("POST", path, {**wall, **OURS}))[0] == 409  # allowed; nobody had acknowledged it
    foreign = {**wall, "Origin": "https://evil.example", "Content-Type": "text/plain"}
    assert (await bench.call("POST", path, foreign, data=b"{}"))[0] == 403
    login = json.dumps({"sub": "op", "password": PASSWORD}).encode()
    assert (await bench.call("POST", "/api/v1/session", foreign, data=login))[0] == 403  # log-in CSRF


async def test_one_page_s_cookie_is_of_no_use_to_another(bench: Bench) -> None:
    """A browser that holds a box's session and a desk's: each page gets its own, and naming the other's page gains no right
    that its cookie would not give."""
    box = await log_in(bench, "stb", "stb", "box-a1")
    desk = await log_in(bench, "desk", "desk", "desk-a", STREET_A)
    both = {"Cookie": f"{box['Cookie']}; {desk['Cookie']}"}
    for page, sub in (("stb", "box-a1"), ("desk", "desk-a")):
        for way in ({"headers": {"X-Gateway-Page": page}}, {"params": {"page": page}}):
            status, who = await bench.call("GET", "/api/v1/session", both, **way)
            assert (status, who["sub"]) == (200, sub)
    for page in ("wall", "worker", "", "../desk", "stb;desk"):
        status, _ = await bench.call("GET", "/api/v1/session", both, params={"page": page})
        assert status == 401, page
    assert (await bench.call("GET", "/api/v1/alarms", box, params={"page": "desk"}))[0] == 401
    assert (await bench.call("GET", "/api/v1/alarms", box, params={"page": "stb"}))[0] == 403
    assert (await bench.call("GET", "/wall?page=stb", both))[0] == 302


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example"]
)
@pytest.mark.parametrize("path", ["/api/v1/events", "/mqtt"])
async def test_a_foreign_page_gets_no_websocket(bench: Bench, path: str, origin: str) -> None:
    who = bench.bearer("worker", "wa")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await bench.client.ws_connect(path, headers={**who, "Origin": origin}, protocols=("mqtt",))
    assert refused.value.status == 403


# -- log-in ---------------------------------------------------------------------------------------------------------


async def test_guessing_side_by_side_is_locked_out_as_one_by_one_is(bench: Bench) -> None:
    def guess(sub: str, password: str) -> Any:
        return bench.call("POST", "/api/v1/session", json={"sub": sub, "password": password})

    statuses = [
        status for status, _ in await asyncio.gather(*(guess("desk-b", f"wrong{n}") for n in range(12)))
    ]
    assert statuses.count(401) <= 5, statuses
    assert set(statuses) == {401, 429}
    status, _ = await guess("desk-b", PASSWORD)
    assert status == 429  # also the right one, while it is locked
    status, _ = await guess("desk-a", PASSWORD)
    assert status == 200  # a colleague behind the same address


# -- revocation -----------------------------------------------------------------------------------------------------


class Watching:
    """Somebody watches a live camera: a WHEP session that was really answered."""

    def __init__(self, bench: Bench, who: dict[str, str], camera: str = "a1-community") -> None:
        self.bench, self.who, self.camera = bench, who, camera
        self.client = WhepClient()

    async def __aenter__(self) -> Watching:
        headers = {**self.who, **OURS, "Content-Type": "application/sdp"}
        async with self.bench.client.post(
            f"/whep/{self.camera}", data=await self.client.offer(), headers=headers
        ) as answer:
            self.status = answer.status
            self.said = await answer.text()
            self.session = answer.headers.get("Location", "").rpartition("/")[2]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.runs:
            await self.bench.gateway.media.close_session(self.session)
        await self.client.close()

    @property
    def runs(self) -> bool:
        return any(one.session_id == self.session for one in self.bench.gateway.media.sessions())

    async def ends(self) -> float:
        """Seconds until it has ended."""
        began = time.monotonic()
        async with asyncio.timeout(5):
            while self.runs:
                await asyncio.sleep(0.02)
        return time.monotonic() - began


async def test_revoking_an_account_ends_its_tokens_channel_and_video(bench: Bench) -> None:
    who = bench.bearer("operator", "to-revoke")
    code = bench.token("operator", "to-revoke", kind=TokenKind.CODE)
    async with (
        Watching(bench, who) as watching,
        bench.client.ws_connect("/api/v1/events", headers=who) as events,
    ):
        assert watching.status == 201, watching.said
        assert (await events.receive_json())["type"] == "hello"
        admin = bench.bearer("admin", "root")
        assert (await bench.call("DELETE", "/api/v1/sessions/to-revoke", admin))[0] == 200
        await watching.ends()
        async with asyncio.timeout(5):
            frames = [message async for message in events]
        assert json.loads(frames[-1].data)["type"] == "revoked"
    assert (await bench.call("GET", "/api/v1/session", who))[0] == 401
    assert (await bench.call("POST", "/api/v1/session", json={"code": code}))[0] == 401
    assert ("admin/root", "account/to-revoke") in [
        tuple(row) for row in await audited(bench, "session.revoke")
    ]


async def test_logging_out_ends_video_and_leaves_others_alone(bench: Bench) -> None:
    first = await log_in(bench, "wall", "operator", "op")
    other = await log_in(bench, "wall", "operator", "op")
    page = {"X-Gateway-Page": "wall", **OURS}
    async with Watching(bench, {**first, **page}) as mine, Watching(bench, {**other, **page}) as others:
        assert (mine.status, others.status) == (201, 201), mine.said
        assert (await bench.call("DELETE", "/api/v1/session", {**first, **page}))[0] == 200
        await mine.ends()
        assert others.runs
    assert (await bench.call("GET", "/api/v1/session", {**first, **page}))[0] == 401
    assert (await bench.call("GET", "/api/v1/session", {**other, **page}))[0] == 200


async def test_video_ends_with_its_token(bench: Bench) -> None:
    who = bench.bearer("operator", "short", ttl_s=601, ago_s=627)  # valid by the leeway for about 4 s more
    async with Watching(bench, who) as watching:
        assert watching.status == 201, watching.said
        async with asyncio.timeout(9):  # 4 s until it expires, and at most 5
            while watching.runs:
                await asyncio.sleep(0.05)


async def test_a_changed_password_ends_the_sessions_that_began_with_the_old_one(bench: Bench) -> None:
    from dataclasses import replace

    from gateway.catalog import Catalog

    async with bench.client.post("/api/v1/session", json={"sub": "desk-a", "password": PASSWORD}) as answer:
        assert answer.status == 200
        bench.client.cookie_jar.clear()
        cookie = {"Cookie": f"gateway_session={answer.cookies['gateway_session'].value}"}
    async with Watching(bench, cookie) as watching:
        assert watching.status == 201, watching.said
        before = bench.gateway.catalog
        secrets = replace(before.secrets, users={**before.secrets.users, "desk-a": "another one"})
        try:
            bench.gateway.catalog = Catalog(tuple(before.configs.values()), before.district, secrets)
            await watching.ends()
            assert (await bench.call("GET", "/api/v1/session", cookie))[0] == 401
        finally:
            bench.gateway.catalog = before
    assert (await bench.call("GET", "/api/v1/session", cookie))[0] == 200


async def test_spent_codes_logged_out_sessions_and_revoked_accounts_survive_a_restart(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings={"mqtt": {"mode": "off"}}) as bench:
        code = bench.token("desk", "desk-a", STREET_A, kind=TokenKind.CODE)
        cookie = await log_in(bench, "desk", "desk", "desk-a", STREET_A)
        revoked = bench.bearer("operator", "gone")
        page = {"X-Gateway-Page": "desk", **OURS}
        assert (await bench.call("POST", "/api/v1/session", json={"code": code}))[0] == 200
        bench.client.cookie_jar.clear()
        assert (await bench.call("DELETE", "/api/v1/session", {**cookie, **page}))[0] == 200
        assert (await bench.call("DELETE", "/api/v1/sessions/gone", bench.bearer("admin", "root")))[0] == 200
        grant = await give(bench, "b1-none", "box-a1", 60_000)
    async with running_gateway(tmp_path) as again:
        assert (await again.call("POST", "/api/v1/session", json={"code": code}))[0] == 401
        assert (await again.call("GET", "/api/v1/session", {**cookie, **page}))[0] == 401
        assert (await again.call("GET", "/api/v1/session", revoked))[0] == 401
        _, listed = await again.call("GET", "/api/v1/grants", operator(again))
        assert [one["id"] for one in listed["grants"]] == [grant["id"]]


# -- grants and calls -----------------------------------------------------------------------------------------------


async def give(
    bench: Bench, camera: str, sub: str, for_ms: int, by: dict[str, str] | None = None
) -> dict[str, Any]:
    body = {"camera_id": camera, "sub": sub, "until": int(time.time() * 1000) + for_ms, "reason": "寻人"}
    status, grant = await bench.call("POST", "/api/v1/grants", by or operator(bench), json=body)
    assert status == 201, grant
    return dict(grant)


async def test_a_grant_opens_one_camera_until_it_ends(bench: Bench) -> None:
    box = bench.bearer("stb", "box-b1")
    camera = "/api/v1/cameras/a1-community"
    assert (await bench.call("GET", camera, box))[0] == 403
    grant = await give(bench, "a1-community", "box-b1", 60_000)
    assert (await bench.call("GET", camera, box))[0] == 200
    assert (await bench.call("GET", "/api/v1/cameras/a1-none", box))[0] == 403
    assert (await bench.call("GET", camera, bench.bearer("stb", "box-a2")))[0] == 403
    async with Watching(bench, box) as watching:
        assert watching.status == 201, watching.said
        assert (await bench.call("DELETE", f"/api/v1/grants/{grant['id']}", operator(bench)))[0] == 200
        await watching.ends()
    assert (await bench.call("GET", camera, box))[0] == 403
    assert {"grant.create", "grant.revoke"} <= {
        action
        for action in ("grant.create", "grant.revoke")
        if ("operator/op", "camera/a1-community") in [tuple(row) for row in await audited(bench, action)]
    }


async def test_a_grant_that_runs_out_ends_running_video(bench: Bench) -> None:
    box = bench.bearer("stb", "box-b1")
    await give(bench, "a1-community", "box-b1", 3_000)
    async with Watching(bench, box) as watching:
        assert watching.status == 201, watching.said
        async with asyncio.timeout(8):  # 3 s until it runs out, and at most 5
            while watching.runs:
                await asyncio.sleep(0.05)
    assert (await bench.call("GET", "/api/v1/cameras/a1-community", box))[0] == 403


async def test_grants_cannot_be_given_beyond_the_own_area_nor_without_end(bench: Bench) -> None:
    street_a = bench.bearer("operator", "op-a", STREET_A)
    now_ms = int(time.time() * 1000)
    body = {"camera_id": "b1-none", "sub": "box-a1", "until": now_ms + 1000, "reason": "x"}
    assert (await bench.call("POST", "/api/v1/grants", street_a, json=body))[0] == 403
    for until in (now_ms - 1, now_ms + 31 * 86_400_000, -1, 2**62):
        said = {**body, "camera_id": "a1-none", "until": until}
        assert (await bench.call("POST", "/api/v1/grants", street_a, json=said))[0] == 400
    await give(bench, "b1-none", "va", 60_000)
    # A grant widens where, never what: volunteers and monitoring see no cameras at all.
    assert (await bench.call("POST", "/whep/b1-none", bench.bearer("volunteer", "va")))[0] == 403
    status, listed = await bench.call("GET", "/api/v1/grants", street_a)
    assert (status, [g for g in listed["grants"] if g["camera_id"] == "b1-none"]) == (200, [])


async def test_the_claimant_of_a_call_sees_the_cameras_around_it_until_it_ends(bench: Bench) -> None:
    worker, camera = bench.bearer("worker", "wb"), "/api/v1/cameras/a2-street"
    assert (await bench.call("GET", camera, worker))[0] == 403  # rung for it, but has not claimed
    call = bench.ids["call"]["a2"]
    status, said = await bench.call("POST", f"/api/v1/calls/{call}/claim", worker, json={})
    assert status == 200, said
    assert (await bench.call("GET", camera, worker))[0] == 200
    assert (await bench.call("POST", "/whep/a2-street", worker))[0] == 415
    assert (await bench.call("GET", "/api/v1/cameras/a1-none", worker))[0] == 403
    _, listed = await bench.call("GET", "/api/v1/cameras", worker)
    assert {"a2-street", "a2-community", "b1-none"} <= {one["id"] for one in listed["cameras"]}
    desk = bench.bearer("desk", "desk-a2", AREAS["a2"])
    for who in (worker, desk):
        await bench.call("POST", f"/api/v1/calls/{call}/hangup", who, json={})
    async with asyncio.timeout(5):
        while (await bench.call("GET", camera, worker))[0] != 403:
            await asyncio.sleep(0.05)


# -- what others may learn ------------------------------------------------------------------------------------------


async def listen(
    bench: Bench, who: dict[str, str], heard: list[dict[str, Any]], ready: asyncio.Event
) -> None:
    async with bench.client.ws_connect("/api/v1/events", headers=who) as socket:
        async for message in socket:
            frame = json.loads(message.data)
            heard.append(frame)
            ready.set()


async def test_events_reach_only_whom_they_concern_and_hold_no_household(bench: Bench) -> None:
    people = {
        "op": operator(bench), "desk-a": desk_a(bench), "desk-b": bench.bearer("desk", "desk-b", STREET_B),
        "wa2": bench.bearer("worker", "wa2"), "wb": bench.bearer("worker", "wb"),
        "va": bench.bearer("volunteer", "va"), "root": bench.bearer("admin", "root"),
    }  # fmt: skip
    heard: dict[str, list[dict[str, Any]]] = {name: [] for name in people}
    ready = {name: asyncio.Event() for name in people}
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(listen(bench, who, heard[name], ready[name])) for name, who in people.items()
        ]
        for event in ready.values():
            await event.wait()
        await bench.on_duty("wb", "b1", "off")
        await bench.on_duty("wb", "b1")
        ack = await bench.press("b1", pid="events")
        alarm = ack["alarm"]
        await bench.call("POST", f"/api/v1/alarms/{alarm}/acknowledge", people["desk-b"])
        lat_lon = {"lat": 30.91, "lon": 103.81, "datum": "wgs84"}
        await bench.call("POST", "/api/v1/incidents", people["desk-b"], json={"type": "other", **lat_lon})

        def types(name: str) -> set[str]:
            return {frame["type"] for frame in heard[name]} - {"hello", "heartbeat"}

        async with asyncio.timeout(10):
            while not {"alarm", "incident", "worker"} <= types("desk-b") & types("op"):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
    for frame in heard["desk-a"]:  # street B's news is not street A's
        data = frame["data"]
        match frame["type"]:
            case "alarm" | "incident":
                assert data["street"] == STREET_A
            case "worker":
                assert data["id"] in ("wa", "wa2")
            case "call":
                assert data["alarm_id"] in (None, bench.ids["alarm"]["a1"], bench.ids["alarm"]["a2"])
            case other:
                assert other in ("hello", "heartbeat", "camera", "ring_end")
    assert "alarm" not in types("wa2") | types("wb")  # phones ring; the queue is the desks'
    for frame in heard["wb"]:
        if frame["type"] in ("call", "ring"):
            assert "wb" in [rung["worker_id"] for rung in frame["data"]["rung"]]
    assert types("va") == set()
    assert types("root") <= {"camera"}
    told = json.dumps(heard, ensure_ascii=False)
    for secret in (NOTES, CONTACT, KEY, CAMERA_PASSWORD, PASSWORD):
        assert secret not in told


async def test_the_household_card_is_for_who_acknowledged_and_who_claimed(bench: Bench) -> None:
    alarm = bench.ids["alarm"]["a1"]
    path = f"/api/v1/alarms/{alarm}"
    status, _ = await bench.call("POST", f"{path}/acknowledge", desk_a(bench))
    assert status == 200

    async def sees(who: dict[str, str]) -> bool:
        status, view = await bench.call("GET", path, who)
        assert status in (200, 403)
        text = json.dumps(view, ensure_ascii=False)
        assert (NOTES in text) == (CONTACT in text)
        return NOTES in text

    assert await sees(desk_a(bench))
    assert await sees(bench.bearer("worker", "wa"))
    for other in (
        operator(bench), bench.bearer("desk", "other-desk", STREET_A), bench.bearer("leader", "lead", STREET_A),
        bench.bearer("worker", "wb"), bench.bearer("desk", "desk-b", STREET_B),
    ):  # fmt: skip
        assert not await sees(other)
    views = [tuple(row) for row in await audited(bench, "household.view")]
    assert ("desk/desk-a", f"alarm/{alarm}") in views


async def test_a_legs_media_is_its_owners(bench: Bench) -> None:
    """Publishing on, or ending, somebody else's leg."""
    worker, call = bench.bearer("worker", "wa"), bench.ids["call"]["a1"]
    async with Watching(bench, operator(bench)) as watching:
        path = f"/whep/sessions/{watching.session}"
        for thief in (desk_a(bench), worker, bench.bearer("admin", "root"), bench.bearer("stb", "box-a1")):
            for method in ("GET", "PATCH", "DELETE"):
                assert (await bench.call(method, path, thief))[0] == 403
        assert (await bench.call("DELETE", f"/whip/sessions/{watching.session}", operator(bench)))[0] == 404
        assert watching.runs
    headers = {**operator(bench), "Content-Type": "application/sdp"}
    leg = f"/api/v1/calls/{call}/legs/{bench.ids['leg']['a1']}/whip"
    assert (await bench.call("POST", leg, headers, data=b"v=0\r\n"))[0] == 403


async def test_what_does_not_exist_is_told_only_to_who_could_ask(bench: Bench) -> None:
    nowhere = "/api/v1/alarms/01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert (await bench.call("GET", nowhere, operator(bench)))[0] == 404
    for role in ("stb", "service", "admin", "volunteer"):
        assert (await bench.call("GET", nowhere, bench.bearer(role, "x")))[0] == 403


# -- the broker (rows 5 and 6) ---------------------------------------------------------------------------------------


async def mosquitto(program: str, bench: Bench, user: str, *arguments: str) -> tuple[int, bytes]:
    broker = bench.gateway.devices.broker
    assert broker is not None
    password = device_password(bytes.fromhex(KEY), user)
    process = await asyncio.create_subprocess_exec(
        program, "-h", broker.host, "-p", str(broker.port), "-u", user, "-P", password, "-i", user, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(15):
            out, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out


MQTT_TABLE = {
    # topic of box-a1 / wa / others            box-a1  wa     (w: may write, -: refused and audited)
    "stb/box-a1/press": "w-", "stb/box-a1/cancel": "w-", "stb/box-a1/presence": "w-",
    "stb/box-a1/ack": "--", "stb/box-a1/state": "--", "stb/box-a2/press": "--", "stb/box-a2/presence": "--",
    "w/wa/loc": "-w", "w/wa/duty": "-w", "w/wa/reply": "-w", "w/wa/task": "--", "w/wa/call": "--",
    "w/wb/loc": "--", "w/wb/duty": "--", "w/wb/reply": "--", "gw/health": "--", "other": "--", "$SYS/broker/x": "--",
}  # fmt: skip


async def test_a_device_writes_its_own_topics_and_no_other(bench: Bench) -> None:
    before = len(await audited(bench, "mqtt.denied"))
    root = bench.gateway.settings.mqtt.root
    expected = set()
    for topic, cells in MQTT_TABLE.items():
        for device, cell in zip(("box-a1", "wa"), cells, strict=True):
            # A payload that means nothing: rights are the broker's affair, before anybody reads it.
            await mosquitto("mosquitto_pub", bench, device, "-t", f"{root}/{topic}", "-m", "{}", "-q", "1")
            if cell == "-" and not topic.startswith("$"):
                expected.add((f"device/{device}", f"topic/{root}/{topic}"))
    async with asyncio.timeout(10):
        while len(await audited(bench, "mqtt.denied")) - before < len(expected):
            await asyncio.sleep(0.1)
    assert {tuple(row) for row in await audited(bench, "mqtt.denied")} >= expected
    written = {(f"device/{d}", f"topic/{root}/{t}") for t, cells in MQTT_TABLE.items()
               for d, cell in zip(("box-a1", "wa"), cells, strict=True) if cell == "w"}  # fmt: skip
    assert not written & {tuple(row) for row in await audited(bench, "mqtt.denied")}


async def test_a_device_that_subscribes_to_everything_hears_only_its_own(bench: Bench) -> None:
    _, out = await asyncio.gather(
        asyncio.sleep(0),
        mosquitto("mosquitto_sub", bench, "box-a2", "-t", "#", "-W", "3", "-F", "%t", "-q", "1"),
    )
    topics = {line for line in out[1].decode().splitlines() if "/" in line}
    assert {t for t in topics if "/gw/" not in t and "/stb/box-a2/" not in t} == set()
    assert ["device/box-a2", "topic/#"] in [list(row) for row in await audited(bench, "mqtt.denied")]


async def test_a_press_with_a_wrong_signature_alarms_nobody(bench: Bench) -> None:
    """Row 6: refused, audited, an unverified row at the desk, no ring."""
    _, before = await bench.call("GET", "/api/v1/calls", operator(bench))
    ack = await bench.press("a2", pid="forged", key="00" * 32)
    assert (ack["stage"], ack["reason"]) == ("refused", "bad_signature")
    _, listed = await bench.call("GET", "/api/v1/alarms", desk_a(bench))
    [row] = [one for one in listed["alarms"] if one["press_id"] == "forged"]
    assert (row["verified"], row["call_id"]) == (False, None)
    _, after = await bench.call("GET", "/api/v1/calls", operator(bench))
    assert len(after["calls"]) == len(before["calls"])


# -- resources (row 16) ----------------------------------------------------------------------------------------------


async def raw(bench: Bench, sent: bytes, *, wait_s: float = 10) -> bytes:
    """Everything that comes back until the server closes."""
    url = bench.client._base_url
    assert url is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(sent)
    try:
        async with asyncio.timeout(wait_s):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_slow_and_huge_requests_end_and_others_are_unaffected(bench: Bench) -> None:
    auth = f"Authorization: Bearer {bench.token('operator', 'op')}\r\n"
    shown = f"POST /api/v1/alarms/{bench.ids['alarm']['a1']}/shown HTTP/1.1\r\nHost: x\r\n"
    press = "POST /api/v1/alarms HTTP/1.1\r\nHost: x\r\nContent-Length: "
    answers = await asyncio.gather(
        raw(bench, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "),  # a header that never ends
        raw(bench, b""),  # nothing at all
        raw(bench, f"{press}100\r\n\r\n{{".encode()),  # a body that never comes
        raw(bench, f"{press}{256 * 1024 * 1024}\r\n\r\n".encode()),
        raw(bench, f"{shown}{auth}Content-Length: 50\r\n\r\n{{".encode()),
        raw(bench, b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n"),
        raw(bench, b"\x16\x03\x01\x02\x00garbage\r\n\r\n"),
        bench.call("GET", "/healthz"),
    )
    assert answers[0] == b""
    assert answers[1] == b""
    for answer, status in zip(answers[2:7], (b"408", b"413", b"408", b"400", b"400"), strict=True):
        line = answer.split(b"\r\n")[0]  # type: ignore[union-attr]
        assert status in line, answer[:200]
    assert answers[7][0] == 200


async def test_a_body_is_not_read_for_who_may_not(bench: Bench) -> None:
    """No buffer for strangers: the refusal comes before the body has."""
    head = "POST /api/v1/incidents HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
    began = time.monotonic()
    answer = await raw(bench, head.encode())
    assert answer.startswith(b"HTTP/1.1 401")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "body", [b"[" * 30_000, b'{"a":' * 9_000, b"\xff\xfe", b'{"device":"\\ud800"}', b"null", b"1e999", b"{" + b'"a":1,' * 9000]
)  # fmt: skip
async def test_malformed_bodies_are_400_everywhere(bench: Bench, body: bytes) -> None:
    who = {"operator": operator(bench), "worker": bench.bearer("worker", "wa")}
    for route in bench.gateway.edge.routes:
        if route.method != "POST" or "whip" in route.path or "whep" in route.path:
            continue
        ids = {
            "task_id": "none",
            "clip_id": "none",
            "name": "none",
            **{f"{kind}_id": places["b1"] for kind, places in bench.ids.items()},
        }
        role = "worker" if "/workers/me" in route.path else "operator"
        status, said = await bench.call("POST", route.path.format(**ids), who[role], data=body)
        assert status < 500, (route.path, said)


async def test_one_principal_cannot_take_all_connections(bench: Bench) -> None:
    who = bench.bearer("worker", "many")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(bench.client.ws_connect("/api/v1/events", headers=who))
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await bench.client.ws_connect("/api/v1/events", headers=who)
        assert refused.value.status == 429
        async with bench.client.ws_connect("/api/v1/events", headers=operator(bench)) as other:
            assert (await other.receive_json())["type"] == "hello"


async def test_nonsense_on_the_event_channel_harms_nobody(bench: Bench) -> None:
    async with bench.client.ws_connect("/api/v1/events", headers=operator(bench)) as socket:
        assert (await socket.receive_json())["type"] == "hello"
        for text in ("[" * 4000, "\x00", '{"type":"visible","visible":[]}', "1" * 4000, "nan"):
            await socket.send_str(text)
        await socket.send_bytes(b"\xff" * 100)
        async with asyncio.timeout(8):
            while json.loads((await socket.receive()).data)["type"] != "heartbeat":
                pass


async def test_a_cancel_over_http_silences_the_phones_too(bench: Bench) -> None:
    alarm, call = bench.ids["alarm"]["b1"], bench.ids["call"]["b1"]
    body = {"sid": "box-b1", "pid": "p1", "ts": 1, "sig": sign(KEY, "cancel|box-b1|p1|1")}
    status, ack = await bench.call("POST", f"/api/v1/alarms/{alarm}/cancel", json=body)
    assert (status, ack["stage"]) == (200, "cancelled")
    _, ended = await bench.call("GET", f"/api/v1/calls/{call}", operator(bench))
    assert (ended["state"], ended["end_reason"]) == ("ENDED", "cancelled")


# -- secrets ---------------------------------------------------------------------------------------------------------


async def test_no_secret_is_logged_at_any_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Farm(algorithm="MD5") as farm, running_gateway(tmp_path, live_url=farm.url) as bench:
        tokens = [
            bench.token("operator", "op"),
            bench.token("worker", "wa"),
            bench.token("operator", "op", kind=TokenKind.CODE),
        ]
        async with bench.client.post("/api/v1/session", json={"sub": "op", "password": PASSWORD}) as answer:
            tokens.append(answer.cookies["gateway_session"].value)
        await bench.call("POST", "/api/v1/session", json={"code": tokens[2]})
        await bench.call("POST", "/api/v1/session", json={"sub": "op", "password": "guess-4711"})
        await bench.fill()
        await bench.press("a1", pid="forged", key="00" * 32)
        await bench.call("GET", "/api/v1/stb/me", bench.bearer("stb", "box-a1"))
        async with Watching(bench, {"Authorization": f"Bearer {tokens[0]}"}):
            pass
        await mosquitto(
            "mosquitto_pub", bench, "box-a1", "-t", "pd/v1/stb/box-a1/press", "-m", "{bad", "-q", "1"
        )
        data = tmp_path / "var"
        secrets = [
            *tokens, PASSWORD, "guess-4711", KEY, CAMERA_PASSWORD, NOTES, CONTACT,
            device_password(bytes.fromhex(KEY), "box-a1"),
            *(path.read_text().strip() for path in data.glob("*.key")),
        ]  # fmt: skip
    assert len(caplog.records) > 20
    logged = "\n".join(
        f"{r.getMessage()} {r.exc_text or ''} {vars(r)}"
        for r in caplog.records
        if r.name.startswith("gateway")
    )
    assert [secret[:6] for secret in secrets if secret in logged] == []
