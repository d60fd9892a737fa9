"""WHEP (draft-ietf-wish-whep) over real HTTP and UDP against a running gateway: each test names its line of the list."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from gateway_process import DEAD, WORKER, Running
from http_clients import FRAGMENT, SDP, Answer, Peer, attributes, eventually, request, trickle

pytestmark = pytest.mark.asyncio(loop_scope="session")
ORIGIN = "https://elsewhere.example"


@pytest.fixture
def url(gateway: Running) -> str:
    return f"{gateway.base}/whep/cam001"


@pytest_asyncio.fixture(loop_scope="session")
async def bearer(gateway: Running) -> dict[str, str]:
    return await gateway.bearer()


@pytest_asyncio.fixture(loop_scope="session")
async def peer() -> AsyncIterator[Peer]:
    one = Peer(receive="video audio")
    yield one
    await one.close()


@pytest_asyncio.fixture(loop_scope="session")
async def offer(peer: Peer) -> str:
    return await peer.offer()


@pytest_asyncio.fixture(loop_scope="session")
async def created(http, url, bearer, offer) -> AsyncIterator[Answer]:
    """A session that is not connected: enough for what HTTP says of it."""
    answer = await request(http, "POST", url, body=offer, Content_Type=SDP, **bearer)
    assert answer.status == 201, answer.body
    yield answer
    await request(http, "DELETE", answer.location, **bearer)


# -- POST -------------------------------------------------------------------------------------------------------


async def test_post_sdp_is_201_with_sdp_and_location(created: Answer) -> None:
    """POST `application/sdp` -> 201 + `application/sdp` + `Location`."""
    assert created.headers["Content-Type"] == SDP
    assert created.body.startswith("v=0\r\n")
    assert created.location.startswith(str(created.url.origin()))


async def test_wrong_type_is_415(http, url, bearer, offer) -> None:
    """wrong type 415"""
    for wrong in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
        answer = await request(http, "POST", url, body=offer, Content_Type=wrong, **bearer)
        assert answer.status == 415
        assert answer.headers["Accept-Post"] == SDP
        answer.problem()


@pytest.mark.parametrize(
    "body", ["", "hello", "v=0\r\n", "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "\0" * 999]
)
async def test_bad_sdp_is_400(http, url, bearer, body: str) -> None:
    """bad SDP 400"""
    answer = await request(http, "POST", url, body=body, Content_Type=SDP, **bearer)
    assert answer.status == 400
    answer.problem()


async def test_answer_is_sendonly_bundled_and_muxed(created: Answer) -> None:
    """answer `sendonly`, one msid, BUNDLE, rtcp-mux"""
    sections = created.body.split("m=")[1:]
    assert len(sections) == 2
    for section in sections:
        assert "a=sendonly\r\n" in section
        assert "a=rtcp-mux\r\n" in section
    assert len({msid.split()[0] for msid in attributes(created.body, "msid")}) == 1
    assert attributes(created.body, "group") == ["BUNDLE 0 1"]


async def test_rtcp_mux_only_is_honoured(http, url, bearer, offer) -> None:
    """`rtcp-mux-only` honoured (RFC 8858): such an offer gets an answer with rtcp-mux; without either, none."""
    only = offer.replace("a=rtcp-mux\r\n", "a=rtcp-mux\r\na=rtcp-mux-only\r\n")
    answer = await request(http, "POST", url, body=only, Content_Type=SDP, **bearer)
    assert answer.status == 201
    assert answer.body.count("a=rtcp-mux\r\n") == 2
    assert "rtcp-mux-only" not in answer.body  # section 4.3: an answer MUST NOT have it
    await request(http, "DELETE", answer.location, **bearer)
    none = await request(
        http, "POST", url, body=offer.replace("a=rtcp-mux\r\n", ""), Content_Type=SDP, **bearer
    )
    assert none.status == 400


async def test_all_candidates_are_in_the_answer(created: Answer, gateway: Running) -> None:
    """all candidates in the answer"""
    candidates = [one.split() for one in attributes(created.body, "candidate")]
    assert {(one[2].lower(), one[5]) for one in candidates} >= {("udp", str(gateway.media_port))}
    assert any(one[2].lower() == "tcp" and "passive" in one for one in candidates)
    assert "a=end-of-candidates" in created.body
    assert "a=ice-lite" in created.body


async def test_etag_is_strong_and_quoted(created: Answer) -> None:
    """quoted strong `ETag` if restart is supported"""
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', created.etag)


async def test_no_codec_in_common_is_406_naming_it(http, url, bearer) -> None:
    """Debian's Firefox offers VP8, VP9 and AV1 but no H.264: it gets 406 naming the codec"""
    firefox = Peer(codec="VP8")
    try:
        answer = await request(http, "POST", url, body=await firefox.offer(), Content_Type=SDP, **bearer)
        assert answer.status == 406
        document = answer.problem()
        assert document["codecs"] == ["H264"]
        assert "H264" in document["detail"]
    finally:
        await firefox.close()


async def test_unknown_camera_is_404(http, gateway, bearer, offer) -> None:
    """unknown 404"""
    answer = await request(
        http, "POST", f"{gateway.base}/whep/nobody", body=offer, Content_Type=SDP, **bearer
    )
    assert answer.status == 404
    answer.problem()


async def test_camera_that_is_down_is_409_with_retry_after(http, gateway, bearer, offer) -> None:
    """camera known but down -> 409 + `Retry-After`"""
    answer = await request(
        http, "POST", f"{gateway.base}/whep/{DEAD}", body=offer, Content_Type=SDP, **bearer
    )
    assert answer.status == 409
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.problem()["detail"]


async def test_too_many_joins_are_429_with_retry_after(http, url, gateway, offer) -> None:
    """rate limit on POST, as far as there is one: how many sessions a principal may have at a time"""
    worker = await gateway.bearer("worker", WORKER)
    made = []
    try:
        while (
            answer := await request(http, "POST", url, body=offer, Content_Type=SDP, **worker)
        ).status == 201:
            made.append(answer)
            assert len(made) < 50
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        answer.problem()
    finally:
        for one in made:
            await request(http, "DELETE", one.location, **worker)
    assert len(made) == 4  # access.joins_worker of the gateway under test


# -- the session ------------------------------------------------------------------------------------------------


async def test_trickle_is_204(http, bearer, offer, created: Answer) -> None:
    """PATCH `application/trickle-ice-sdpfrag`: trickle -> 204; unknown transport (TCP, mDNS) candidates ignored"""
    body = trickle(attributes(offer, "ice-ufrag")[0])
    answer = await request(
        http, "PATCH", created.location, body=body, Content_Type=FRAGMENT, If_Match=created.etag, **bearer
    )
    assert (answer.status, answer.body) == (204, "")


async def test_restart_is_200_with_fragment_and_new_etag(http, bearer, created: Answer) -> None:
    """restart with `If-Match: "*"` -> 200 + fragment + new ETag (the entity tag's `*`, quoted or not)"""
    known = {created.etag}
    for number, star in enumerate(("*", '"*"')):
        answer = await request(
            http, "PATCH", created.location,
            body=trickle(f"fresh{number}"), Content_Type=FRAGMENT, If_Match=star, **bearer,
        )  # fmt: skip
        assert answer.status == 200
        assert answer.headers["Content-Type"] == FRAGMENT
        assert answer.etag not in known
        known.add(answer.etag)
        assert attributes(answer.body, "ice-ufrag") != attributes(created.body, "ice-ufrag")
        assert attributes(answer.body, "ice-pwd")
        assert attributes(answer.body, "candidate")


async def test_missing_tag_is_428_and_stale_tag_412(http, bearer, offer, created: Answer) -> None:
    """missing tag 428, stale 412"""
    body = trickle(attributes(offer, "ice-ufrag")[0])
    missing = await request(http, "PATCH", created.location, body=body, Content_Type=FRAGMENT, **bearer)
    assert missing.status == 428
    missing.problem()
    stale = await request(
        http, "PATCH", created.location, body=body, Content_Type=FRAGMENT, If_Match='"old"', **bearer
    )
    assert stale.status == 412
    stale.problem()


async def test_what_is_not_supported_is_422_and_keeps_the_session(http, bearer, created: Answer) -> None:
    """unsupported 422 (a failed restart keeps the session)"""
    answer = await request(
        http, "PATCH", created.location,
        body=trickle("fresh"), Content_Type=FRAGMENT, If_Match=created.etag, **bearer,
    )  # fmt: skip
    assert answer.status == 422
    answer.problem()
    still = await request(http, "GET", created.location, **bearer)
    assert (still.status, still.headers["ETag"]) == (204, created.etag)


async def test_malformed_fragment_is_400_and_keeps_the_session(http, bearer, created: Answer) -> None:
    """a failed restart keeps the session"""
    for body in ("nonsense", "a=ice-ufrag:only\r\n"):
        answer = await request(
            http, "PATCH", created.location, body=body, Content_Type=FRAGMENT, If_Match="*", **bearer
        )
        assert answer.status in (400, 422), body
        answer.problem()
    wrong = await request(
        http, "PATCH", created.location, body="{}", Content_Type="application/json", If_Match="*", **bearer
    )
    assert wrong.status == 415
    assert wrong.headers["Accept-Patch"] == FRAGMENT
    assert (await request(http, "GET", created.location, **bearer)).status == 204


async def test_get_on_the_session_is_2xx_without_body(http, bearer, created: Answer) -> None:
    """GET on the session 2xx without body"""
    for method in ("GET", "HEAD"):
        answer = await request(http, method, created.location, **bearer)
        assert (answer.status, answer.body) == (204, "")


async def test_delete_is_200_and_the_session_is_gone(http, url, bearer, offer) -> None:
    """DELETE -> 200"""
    created = await request(http, "POST", url, body=offer, Content_Type=SDP, **bearer)
    assert (await request(http, "DELETE", created.location, **bearer)).status == 200
    for method in ("DELETE", "GET", "PATCH"):
        again = await request(http, method, created.location, **bearer)
        assert again.status == 404
        again.problem() if method != "HEAD" else None


async def test_media_stops_with_delete(http, url, bearer, peer: Peer) -> None:
    """DELETE -> 200 and media stops"""
    created = await peer.join(http, url, **bearer)
    await eventually(lambda: peer.frames > 10 and peer.audio_frames > 10, why="pictures and sound")
    assert (await request(http, "DELETE", created.location, **bearer)).status == 200
    await eventually(lambda: peer.pc.connectionState == "closed", why="close_notify reaches the client")
    seen = peer.frames
    await asyncio.sleep(0.3)
    assert peer.frames <= seen + 1


async def test_other_methods_are_405(http, url, bearer, created: Answer) -> None:
    """The methods reserved for later versions get 405 and learn what is allowed."""
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
        answer = await request(http, method, url, **bearer)
        assert answer.status == 405
        assert "POST" in answer.headers["Allow"]
    for method in ("POST", "PUT"):
        answer = await request(http, method, created.location, **bearer)
        assert answer.status == 405
        assert "PATCH" in answer.headers["Allow"]


# -- CORS, ICE servers ------------------------------------------------------------------------------------------


async def test_link_names_the_ice_servers(created: Answer) -> None:
    """`Link: <...>; rel="ice-server"`"""
    links = created.headers.getall("Link")
    assert links == [
        '<stun:stun.example:3478>; rel="ice-server"',
        '<turn:turn.example:3478>; rel="ice-server"; username="district"; credential="turn-secret"; '
        'credential-type="password"',
    ]


async def test_options_has_accept_post_and_no_turn_credentials(http, url, created: Answer) -> None:
    """OPTIONS/CORS with `Accept-Post`, no TURN credentials in a preflight"""
    preflight = {"Origin": ORIGIN, "Access_Control_Request_Headers": "authorization,content-type,if-match"}
    for target, wanted, header in ((url, "POST", "Accept-Post"), (created.location, "PATCH", "Accept-Patch")):
        answer = await request(http, "OPTIONS", target, Access_Control_Request_Method=wanted, **preflight)
        assert answer.status in (200, 204)
        assert answer.headers[header] == (SDP if wanted == "POST" else FRAGMENT)
        assert answer.headers["Access-Control-Allow-Origin"] in ("*", ORIGIN)
        assert wanted in answer.headers["Access-Control-Allow-Methods"]
        allowed = answer.headers["Access-Control-Allow-Headers"].lower()
        assert all(name in allowed for name in ("authorization", "content-type", "if-match"))
        assert "Link" not in answer.headers
        assert "turn-secret" not in answer.body + str(answer.headers)


async def test_a_page_of_another_origin_can_read_answer_and_refusal(
    http, url, gateway, bearer, offer, created
) -> None:
    """OPTIONS/CORS: also what is refused before the endpoint is reached is readable"""
    exposed = created.headers["Access-Control-Expose-Headers"]
    assert all(name in exposed for name in ("Location", "Link", "ETag", "Retry-After"))
    refusals = [
        await request(http, "POST", url, body=offer, Content_Type=SDP, Origin=ORIGIN),
        await request(http, "POST", url, body=offer, Content_Type="text/plain", Origin=ORIGIN, **bearer),
        await request(http, "POST", f"{gateway.base}/whep/nobody", body=offer, Content_Type=SDP, Origin=ORIGIN, **bearer),
        await request(http, "GET", f"{gateway.base}/whep/sessions/nobody", Origin=ORIGIN, **bearer),
    ]  # fmt: skip
    assert [one.status for one in refusals] == [401, 415, 404, 404]
    for one in refusals:
        assert one.headers["Access-Control-Allow-Origin"] in ("*", ORIGIN)
        one.problem()


# -- who may ----------------------------------------------------------------------------------------------------


async def test_bearer_works_and_nothing_else_does(http, url, offer) -> None:
    """Bearer works (RFC 6750): without one 401 with a challenge, and no redirect to a page"""
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic b3AxOm9wMQ=="}):
        answer = await request(http, "POST", url, body=offer, Content_Type=SDP, **headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        answer.problem()


async def test_session_urls_are_unguessable(http, url, bearer, offer) -> None:
    """unguessable session URL: at least 128 random bits, never the same twice"""
    names = []
    for _ in range(3):
        created = await request(http, "POST", url, body=offer, Content_Type=SDP, **bearer)
        names.append(created.location.rpartition("/")[2])
        await request(http, "DELETE", created.location, **bearer)
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,}", name) for name in names)


async def test_another_principal_cannot_touch_a_session(http, gateway, bearer, created: Answer) -> None:
    """session of another principal refused, whatever its role"""
    strangers = [await gateway.bearer("operator", "op2"), await gateway.bearer("admin", "root"), {}]
    for stranger in strangers:
        for method in ("GET", "DELETE", "PATCH"):
            answer = await request(
                http, method, created.location, body=trickle("evil"), Content_Type=FRAGMENT, If_Match="*", **stranger
            )  # fmt: skip
            assert answer.status in (401, 403, 404), (method, answer.status)
    still = await request(http, "GET", created.location, **bearer)
    assert (still.status, still.headers["ETag"]) == (204, created.etag)


async def test_a_redirect_in_front_is_307(gateway: Running, bearer, peer: Peer) -> None:
    """redirects 307: a front that sends elsewhere keeps method and body, and the session works where it was made"""

    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(f"{gateway.base}{request.rel_url}")

    app = web.Application()
    app.router.add_post("/whep/{camera}", elsewhere)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    front = f"http://127.0.0.1:{runner.addresses[0][1]}/whep/cam001"
    try:
        async with aiohttp.ClientSession() as client:
            first = await request(client, "POST", front, body=await peer.offer(), Content_Type=SDP, **bearer)
            assert first.status == 307
            made = await request(
                client, "POST", first.location, body=await peer.offer(), Content_Type=SDP, **bearer
            )
            assert made.status == 201
            assert made.location.startswith(gateway.base)
            assert (await request(client, "DELETE", made.location, **bearer)).status == 200
    finally:
        await runner.cleanup()


async def test_consent_loss_ends_the_session(http, url, bearer, gateway) -> None:
    """consent loss (RFC 7675) ends the session (13 s here, 30 s by default; aiortc checks every 4 to 6 s)"""
    gone = Peer()
    try:
        created = await gone.join(http, url, **bearer)
        await eventually(lambda: gone.frames > 3, why="pictures")
        before = await gateway.metrics()
        gone.go_silent()

        async def ended() -> bool:
            return (await request(http, "GET", created.location, **bearer)).status == 404

        await eventually(ended, timeout_s=25, why="the session is gone")
        now = await gateway.metrics()
        closed = {
            name: now[name] - before.get(name, 0)
            for name in now
            if name.startswith("gateway_media_closed_total")
        }
        assert any("consent" in name and count == 1 for name, count in closed.items()), closed
    finally:
        await gone.close()
