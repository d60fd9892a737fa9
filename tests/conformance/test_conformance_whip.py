"""WHIP (RFC 9725) over real HTTP and UDP: a gridworker publishes the own leg of a call, an operator watches it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from gateway_process import WORKER, Running
from http_clients import FRAGMENT, SDP, Peer, attributes, eventually, hang_up, open_call, request, trickle

pytestmark = pytest.mark.asyncio(loop_scope="session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A call with both legs taken and nothing published yet."""

    legs: str
    worker: dict[str, str]
    operator: dict[str, str]
    worker_leg: str
    operator_leg: str

    @property
    def whip(self) -> str:
        return f"{self.legs}/{self.worker_leg}/whip"

    @property
    def whep(self) -> str:
        return f"{self.legs}/{self.worker_leg}/whep"


@pytest_asyncio.fixture(loop_scope="session")
async def room(gateway: Running, http) -> AsyncIterator[Room]:
    legs, worker_leg, operator_leg = await open_call(gateway, http)
    yield Room(
        legs=legs,
        worker=await gateway.bearer("worker", WORKER),
        operator=await gateway.bearer(),
        worker_leg=worker_leg,
        operator_leg=operator_leg,
    )
    await hang_up(gateway, http, legs)


@pytest_asyncio.fixture(loop_scope="session")
async def publisher() -> AsyncIterator[Peer]:
    one = Peer(receive="", send="video audio", codec="VP8")
    yield one
    await one.close()


@pytest_asyncio.fixture(loop_scope="session")
async def viewer() -> AsyncIterator[Peer]:
    one = Peer(receive="video audio")
    yield one
    await one.close()


async def test_post_is_201_with_location_etag_and_recvonly_answer(http, room, publisher) -> None:
    """POST `application/sdp` -> 201 + `application/sdp` + `Location` (section 4.2), the answer recvonly."""
    offer = await publisher.offer()
    created = await request(http, "POST", room.whip, body=offer, Content_Type=SDP, **room.worker)
    assert created.status == 201
    assert created.headers["Content-Type"] == SDP
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', created.etag)
    assert created.body.count("a=recvonly\r\n") == 2
    assert "a=sendonly" not in created.body
    assert created.body.count("a=rtcp-mux\r\n") == 2
    assert "a=setup:passive" in created.body
    assert attributes(created.body, "group") == ["BUNDLE 0 1"]
    assert attributes(created.body, "candidate")
    assert created.headers.getall("Link")
    assert (await request(http, "DELETE", created.location, **room.worker)).status == 200


async def test_bad_requests_are_refused(http, room, publisher, viewer) -> None:
    """wrong type 415, bad SDP 400, an offer that only receives 400"""
    offer = await publisher.offer()
    wrong = await request(http, "POST", room.whip, body=offer, Content_Type="text/plain", **room.worker)
    assert (wrong.status, wrong.headers["Accept-Post"]) == (415, SDP)
    for body in ("", "v=0\r\n", await viewer.offer()):
        answer = await request(http, "POST", room.whip, body=body, Content_Type=SDP, **room.worker)
        assert answer.status == 400
        answer.problem()


async def test_unknown_legs_and_foreign_legs(http, room, publisher) -> None:
    """unknown 404; a leg of somebody else is refused; without a token 401"""
    offer = await publisher.offer()
    unknown = await request(
        http, "POST", f"{room.legs}/nobody/whip", body=offer, Content_Type=SDP, **room.worker
    )
    assert unknown.status == 404
    foreign = await request(http, "POST", room.whip, body=offer, Content_Type=SDP, **room.operator)
    assert foreign.status in (403, 404)
    nobody = await request(http, "POST", room.whip, body=offer, Content_Type=SDP)
    assert nobody.status == 401
    for one in (unknown, foreign, nobody):
        one.problem()
        assert one.headers["Access-Control-Allow-Origin"] == "*"


async def test_codec_nobody_knows_is_406(http, room, publisher) -> None:
    """406 naming the codecs when there is none in common"""
    offer = (await publisher.offer()).replace("VP8/90000", "AV1/90000")
    answer = await request(http, "POST", room.whip, body=offer, Content_Type=SDP, **room.worker)
    assert answer.status == 406
    assert {"H264", "VP8"} <= set(answer.problem()["codecs"])


async def test_patch_and_delete(http, room, publisher) -> None:
    """PATCH: trickle 204, 428 without a tag, 412 with a stale one, restart 200 + new ETag; DELETE 200, then 404"""
    offer = await publisher.offer()
    created = await request(http, "POST", room.whip, body=offer, Content_Type=SDP, **room.worker)
    body = trickle(attributes(offer, "ice-ufrag")[0])
    expected = [
        (created.etag, body, 204),
        ("", body, 428),
        ('"old"', body, 412),
        ("*", trickle("fresh"), 200),
    ]
    for tag, fragment, status in expected:
        condition = {"If_Match": tag} if tag else {}
        answer = await request(
            http, "PATCH", created.location, body=fragment, Content_Type=FRAGMENT, **condition, **room.worker
        )
        assert answer.status == status, answer.body
    assert answer.etag != created.etag
    assert (await request(http, "GET", created.location, **room.worker)).status == 204
    assert (await request(http, "DELETE", created.location, **room.operator)).status in (403, 404)
    assert (await request(http, "DELETE", created.location, **room.worker)).status == 200
    assert (await request(http, "DELETE", created.location, **room.worker)).status == 404


async def test_preflight(http, room) -> None:
    """OPTIONS with `Accept-Post`, no TURN credentials in it"""
    answer = await request(http, "OPTIONS", room.whip, Origin="https://elsewhere.example")
    assert answer.status in (200, 204)
    assert answer.headers["Accept-Post"] == SDP
    assert "turn-secret" not in str(answer.headers) + answer.body


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_what_is_published_is_watched_until_delete(http, room, viewer, codec: str) -> None:
    """What a publisher sends passes through (VP8 too); DELETE ends it."""
    publisher = Peer(receive="", send="video audio", codec=codec)
    try:
        made = await publisher.join(http, room.whip, **room.worker)
        assert made.status == 201
        watched = await viewer.join(http, room.whep, **room.operator)
        assert watched.status == 201
        await eventually(lambda: viewer.frames > 10 and viewer.audio_frames > 10, timeout_s=30, why="media")
        assert (await request(http, "DELETE", made.location, **room.worker)).status == 200
        await eventually(lambda: publisher.pc.connectionState == "closed", why="close_notify")
        await asyncio.sleep(0.5)  # what the viewer's own buffers still hold
        seen = viewer.frames
        await asyncio.sleep(0.5)
        assert viewer.frames == seen
        await request(http, "DELETE", watched.location, **room.operator)
    finally:
        await publisher.close()


async def test_a_second_publisher_of_a_leg_takes_over(http, room) -> None:
    """A page that was reloaded publishes again: its old session ends, the new one counts."""
    first, second = (Peer(receive="", send="audio") for _ in range(2))
    try:
        one = await first.join(http, room.whip, **room.worker)
        two = await second.join(http, room.whip, **room.worker)
        assert (one.status, two.status) == (201, 201)
        assert (await request(http, "GET", one.location, **room.worker)).status == 404
        assert (await request(http, "GET", two.location, **room.worker)).status == 204
        await request(http, "DELETE", two.location, **room.worker)
    finally:
        await first.close()
        await second.close()


async def test_hanging_up_ends_the_publisher(http, gateway, room, publisher) -> None:
    """The session ends with its call, whoever hangs up."""
    made = await publisher.join(http, room.whip, **room.worker)
    await hang_up(gateway, http, room.legs)

    async def gone() -> bool:
        return (await request(http, "GET", made.location, **room.worker)).status == 404

    await eventually(gone, why="the session is gone")
