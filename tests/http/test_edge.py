"""The edge on real sockets: authentication, authorisation, CSRF, problems, security headers, and the event channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import msgspec
import pytest
from aiohttp import web

from gateway.access import Action, Principal, Resource, Role
from gateway.errors import Conflict, NotAllowed, NotFound, TooMany, Unavailable
from gateway.http import events as events_module
from gateway.http.events import EventChannel
from gateway.http.pages import security_headers
from gateway.http.routes import SESSION_COOKIE, Edge, Exchange, Route, json_response

OPERATOR = Principal(sub="op01", role=Role.OPERATOR)
DESK = Principal(sub="desk1", role=Role.DESK, area="510117001")
WORKER = Principal(sub="w1", role=Role.WORKER)
PEOPLE = {"op": OPERATOR, "desk": DESK, "worker": WORKER}


class Body(msgspec.Struct):
    number: int


def authenticate(token: str) -> Principal:
    if token not in PEOPLE:
        raise NotAllowed("the token is not ours", authenticated=False)
    return PEOPLE[token]


@asynccontextmanager
async def serving(*routes: Route) -> AsyncIterator[aiohttp.ClientSession]:
    edge = Edge(authenticate=authenticate, security_headers=security_headers(tls=False))
    edge.add(routes)
    runner = web.AppRunner(edge.app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        await runner.cleanup()


def place(request: web.Request) -> Resource:
    return Resource(kind="alarm", id="a1", lineage=("510117", request.query.get("street", "510117001")))


def alarm_route(method: str = "GET", handler: object = None, action: Action = Action.ALARM_READ) -> Route:
    async def fine(exchange: Exchange) -> web.StreamResponse:
        return json_response({"you": exchange.who.sub})

    return Route(
        method=method,
        path="/thing",
        action=action,
        handler=handler or fine,
        resource=place,
        summary="a thing",
    )


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


async def test_nobody_gets_401_with_a_challenge_and_a_problem_document() -> None:
    async with serving(alarm_route()) as client, client.get("/thing") as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.content_type == "application/problem+json"
        assert (await answer.json())["status"] == 401


@pytest.mark.parametrize("header", ["Bearer", "Bearer nobody", "Basic b3A6b3A=", "nonsense"])
async def test_a_broken_token_is_401_and_not_an_anonymous_request(header: str) -> None:
    async with (
        serving(alarm_route()) as client,
        client.get("/thing", headers={"Authorization": header}) as answer,
    ):
        assert answer.status == 401


async def test_the_area_decides() -> None:
    async with serving(alarm_route()) as client:
        async with client.get("/thing", headers=bearer("desk")) as inside:
            assert (inside.status, await inside.json()) == (200, {"you": "desk1"})
        async with client.get("/thing?street=510117002", headers=bearer("desk")) as outside:
            assert outside.status == 403
        async with client.get("/thing?street=510117002", headers=bearer("op")) as whole:
            assert whole.status == 200
        async with client.get("/thing", headers=bearer("worker")) as other:
            assert other.status == 403


async def test_unsafe_requests_by_cookie_need_our_header() -> None:
    async with serving(alarm_route("POST", action=Action.ALARM_ACKNOWLEDGE)) as client:
        cookies = {SESSION_COOKIE: "op"}
        async with client.post("/thing", cookies=cookies) as foreign:
            assert foreign.status == 403
            assert "X-Requested-With" in (await foreign.json())["detail"]
        async with client.post("/thing", cookies=cookies, headers={"X-Requested-With": "gateway"}) as own:
            assert own.status == 200
        async with client.post("/thing", headers=bearer("op")) as token:
            assert token.status == 200


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (NotFound("no such alarm"), 404, None),
        (Conflict("taken", by={"sub": "x"}), 409, None),
        (Unavailable("not now", retry_after_s=2.2), 503, "3"),
        (TooMany("slow down", retry_after_s=0.1), 429, "1"),
        (RuntimeError("a secret detail"), 500, None),
    ],
)
async def test_errors_become_problem_documents(error: Exception, status: int, header: str | None) -> None:
    async def fail(exchange: Exchange) -> web.StreamResponse:
        raise error

    async with (
        serving(alarm_route(handler=fail)) as client,
        client.get("/thing", headers=bearer("op")) as answer,
    ):
        body = await answer.json()
        assert answer.status == status
        assert answer.headers.get("Retry-After") == header
        assert "secret" not in json.dumps(body)
        if isinstance(error, Conflict):
            assert body["by"] == {"sub": "x"}


async def test_a_body_of_the_wrong_shape_names_its_place_and_loses_nothing() -> None:
    async def take(exchange: Exchange) -> web.StreamResponse:
        return json_response({"number": (await exchange.body(Body)).number})

    async with serving(alarm_route("POST", take, Action.ALARM_ACKNOWLEDGE)) as client:
        for raw in ('{"number": "1"}', "{", "[]", "{}"):
            async with client.post("/thing", data=raw, headers=bearer("op")) as answer:
                assert answer.status == 400
        async with client.post("/thing", data='{"number": 7}', headers=bearer("op")) as answer:
            assert await answer.json() == {"number": 7}
        async with client.post("/thing", data=b"x" * 300_000, headers=bearer("op")) as answer:
            assert answer.status == 413


async def test_a_streamed_body_reaches_its_handler_whole() -> None:
    """A photo is larger than any JSON: its handler reads and bounds it, the edge must leave it alone."""

    async def measure(exchange: Exchange) -> web.StreamResponse:
        size = 0
        while chunk := await exchange.request.content.read(65_536):
            size += len(chunk)
        return json_response({"size": size})

    route = replace(alarm_route("POST", measure, Action.ALARM_ACKNOWLEDGE), streams=True)
    async with serving(route) as client:
        async with client.post("/thing", data=b"x" * 300_000, headers=bearer("op")) as answer:
            assert await answer.json() == {"size": 300_000}
        async with client.post("/thing", data=b"x" * 300_000) as answer:
            assert answer.status == 401


async def test_security_headers_stand_on_every_answer_also_on_errors() -> None:
    async with serving(alarm_route()) as client:
        for path in ("/thing", "/nowhere"):
            async with client.get(path) as answer:
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"


# -- events -------------------------------------------------------------------------------------------------------


def alarm(lineage: tuple[str, ...] = ("510117", "510117001")) -> Resource:
    return Resource(kind="alarm", id="a1", lineage=lineage)


@asynccontextmanager
async def channel(**more: float) -> AsyncIterator[tuple[EventChannel, aiohttp.ClientSession]]:
    events = EventChannel(epoch="e1", now_ms=lambda: 1_700_000_000_000, lag_ms=lambda: 0.0, **more)

    async def serve(exchange: Exchange) -> web.StreamResponse:
        return await events.serve(exchange.request, exchange.who)

    route = Route(
        method="GET", path="/events", action=Action.EVENTS_OPEN, handler=serve,
        resource=lambda _: Resource(kind="events"), summary="events",
    )  # fmt: skip
    async with serving(route) as client:
        yield events, client


async def frames(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, object]]:
    async with asyncio.timeout(10):
        return [json.loads((await socket.receive()).data) for _ in range(count)]


async def test_a_page_gets_only_what_it_may_see() -> None:
    async with channel() as (events, client), client.ws_connect("/events", headers=bearer("desk")) as socket:
        [hello] = await frames(socket, 1)
        assert (hello["type"], hello["seq"]) == ("hello", 0)
        events.publish(
            "alarm", {"id": "far"}, action=Action.ALARM_LIST, resource=alarm(("510117", "510117002"))
        )
        events.publish("ring", {"id": "r"}, resource=alarm(), to=["somebody-else"])
        events.publish("alarm", {"id": "near"}, resource=alarm())
        [seen] = await frames(socket, 1)
        assert (seen["seq"], seen["data"]) == (3, {"id": "near"})


async def test_a_page_that_comes_back_gets_what_it_missed() -> None:
    async with channel() as (events, client):
        for number in range(5):
            events.publish("alarm", number, resource=alarm())
        async with client.ws_connect("/events?epoch=e1&after=2", headers=bearer("op")) as socket:
            got = await frames(socket, 4)
            assert [f["type"] for f in got] == ["hello", "alarm", "alarm", "alarm"]
            assert [f["data"] for f in got[1:]] == [2, 3, 4]


@pytest.mark.parametrize(
    "query", ["epoch=other&after=1", "epoch=e1&after=99", "epoch=e1&after=-1", "epoch=e1&after=x"]
)
async def test_a_gap_that_cannot_be_filled_asks_for_a_fresh_start(query: str) -> None:
    async with channel() as (events, client):
        events.publish("alarm", 1, resource=alarm())
        async with client.ws_connect(f"/events?{query}", headers=bearer("op")) as socket:
            assert [f["type"] for f in await frames(socket, 2)] == ["hello", "resync"]


async def test_a_page_that_does_not_read_is_told_to_start_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "QUEUE_EVENTS", 8)
    async with channel() as (events, client), client.ws_connect("/events", headers=bearer("op")) as socket:
        await frames(socket, 1)
        for number in range(20):  # all before the sender task has run once
            events.publish("alarm", number, resource=alarm())
        first, *rest = await frames(socket, 1 + 20 % 8)
        assert first["type"] == "resync"
        assert rest[-1]["data"] == 19


async def test_what_is_flushed_is_sent_before_the_loop_goes_on() -> None:
    texts = ["x" * size for size in (1, 120, 70_000, 200, 65_500)]  # frames of each length of header
    async with (
        channel() as (events, client),
        client.ws_connect("/events", headers=bearer("op"), max_msg_size=0) as socket,
    ):
        await frames(socket, 1)
        for text in texts:
            events.publish("alarm", text, resource=alarm())
        events.flush()
        [subscriber] = events._subscribers
        assert len(subscriber.queue) < len(texts)
        assert [f["data"] for f in await frames(socket, len(texts))] == texts
        events.publish("alarm", "later", resource=alarm())
        assert [f["data"] for f in await frames(socket, 1)] == ["later"]


async def test_flushing_to_a_page_that_does_not_read_keeps_the_bound_and_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events_module, "QUEUE_EVENTS", 8)
    async with (
        channel() as (events, client),
        client.ws_connect("/events", headers=bearer("op"), max_msg_size=0) as socket,
    ):
        await frames(socket, 1)
        [subscriber] = events._subscribers
        for number in range(400):  # more than the kernel takes on both ends
            events.publish("alarm", [number, "x" * 60_000], resource=alarm())
            events.flush()
            assert subscriber._transport is not None
            assert subscriber._transport.get_write_buffer_size() < 200_000
        got: list[int] = []
        resyncs = 0
        while not got or got[-1] != 399:
            [frame] = await frames(socket, 1)
            if frame["type"] == "resync":
                resyncs += 1
            else:
                got.append(frame["data"][0])  # type: ignore[index]
        assert resyncs == 1
        assert got == sorted(got)
        assert got[-1] - got[-2] == 1


async def test_a_revoked_session_loses_its_channel() -> None:
    async with channel() as (events, client), client.ws_connect("/events", headers=bearer("op")) as socket:
        await frames(socket, 1)
        assert events.revoke(lambda p: p.sub == "op01", "password changed") == 1
        [told] = await frames(socket, 1)
        assert (told["type"], told["data"]) == ("revoked", {"reason": "password changed"})
        async with asyncio.timeout(10):
            assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


async def test_visibility_is_what_the_page_says() -> None:
    async with channel() as (events, client), client.ws_connect("/events", headers=bearer("op")) as socket:
        await frames(socket, 1)
        assert events.readers(visible=True) == 1
        await socket.send_str("not json")
        await socket.send_json({"type": "visible", "visible": False})
        async with asyncio.timeout(10):
            while events.readers(visible=True):
                await asyncio.sleep(0)
        assert events.readers() == 1


async def test_silence_is_filled_by_heartbeats() -> None:
    async with (
        channel(heartbeat_s=0.01) as (_, client),
        client.ws_connect("/events", headers=bearer("op")) as socket,
    ):
        beats = await frames(socket, 3)
        assert [f["type"] for f in beats] == ["hello", "heartbeat", "heartbeat"]
