"""HTTP semantics of WHEP and WHIP against a real plane. One test for each line of the conformance list."""

from __future__ import annotations

import json
import re

import pytest
from webrtc_clients import Feed, WhepClient, WhipClient, encode_clip, eventually, running_plane

from gateway.errors import TooMany, Unavailable
from gateway.streams.media import StreamName
from gateway.streams.plane import PlaneLimits
from gateway.streams.session import SessionKind
from gateway.streams.whep import EdgeRequest, IceServer, SessionEndpoint

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"


def endpoint(plane, kind=SessionKind.WATCH, **options):
    return SessionEndpoint(plane, kind, session_path=lambda session: f"/whep/sessions/{session}", **options)


def post(offer: str, content_type: str = SDP, **query: str) -> EdgeRequest:
    return EdgeRequest(
        method="POST",
        headers={"content-type": content_type},
        body=offer.encode(),
        query=query,
        owner="operator",
    )


def patch(body: str, if_match: str | None = None, content_type: str = FRAGMENT) -> EdgeRequest:
    headers = {"content-type": content_type}
    if if_match is not None:
        headers["if-match"] = if_match
    return EdgeRequest(method="PATCH", headers=headers, body=body.encode())


def document(response) -> dict:
    assert response.headers["Content-Type"] == "application/problem+json"
    return json.loads(response.body)


def attribute(sdp: str, name: str) -> list[str]:
    return [line[len(name) + 3 :] for line in sdp.splitlines() if line.startswith(f"a={name}:")]


@pytest.fixture
async def plane():
    async with running_plane("cam001") as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip(gop=250))
        for _ in range(5):
            feed.push()
        yield plane


@pytest.fixture
async def client():
    client = WhepClient(audio=True)
    yield client
    await client.close()


def session_of(response) -> str:
    return response.headers["Location"].rpartition("/")[2]


async def test_post_answers_201(plane, client):
    response = await endpoint(plane).handle(post(await client.offer()), "camera/cam001")
    assert response.status == 201
    assert response.headers["Content-Type"] == SDP
    assert response.headers["Location"] == f"/whep/sessions/{plane.sessions()[0].session_id}"
    assert re.fullmatch(r'"[^"]+"', response.headers["ETag"])
    assert response.headers["Accept-Patch"] == FRAGMENT
    assert plane.sessions()[0].owner == "operator"


async def test_answer_is_what_whep_wants(plane, client):
    response = await endpoint(plane).handle(post(await client.offer()), "camera/cam001")
    answer = response.body.decode()
    assert answer.count("a=sendonly") == 2
    assert answer.count("a=rtcp-mux\r\n") == 2
    assert answer.count("a=setup:passive") == 2
    assert "a=ice-lite" in answer
    assert len({msid.split()[0] for msid in attribute(answer, "msid")}) == 1
    assert attribute(answer, "group") == ["BUNDLE 0 1"]
    assert attribute(answer, "candidate")
    assert "a=end-of-candidates" in answer
    assert len(session_of(response)) >= 22


async def test_charset_parameter_is_no_other_type(plane, client):
    request = post(await client.offer(), "Application/SDP; charset=utf-8")
    assert (await endpoint(plane).handle(request, "camera/cam001")).status == 201


async def test_wrong_type_is_415(plane, client):
    response = await endpoint(plane).handle(post(await client.offer(), "text/plain"), "camera/cam001")
    assert response.status == 415
    assert response.headers["Accept-Post"] == SDP
    assert document(response)["status"] == 415


@pytest.mark.parametrize("body", ["", "hello", "v=0\r\n", "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n"])
async def test_bad_sdp_is_400(plane, body):
    response = await endpoint(plane).handle(post(body), "camera/cam001")
    assert response.status == 400
    assert document(response)["reason"].startswith("sdp_")


async def test_not_utf8_is_400(plane):
    request = EdgeRequest(method="POST", headers={"content-type": SDP}, body=b"v=0\r\n\xff\xfe")
    assert (await endpoint(plane).handle(request, "camera/cam001")).status == 400


async def test_huge_offer_is_413(plane):
    assert (await endpoint(plane).handle(post("v" * 70_000), "camera/cam001")).status == 413


async def test_offer_that_sends_is_400(plane):
    publisher = WhipClient(audio=False)
    try:
        response = await endpoint(plane).handle(post(await publisher.offer()), "camera/cam001")
        assert response.status == 400
        assert document(response)["reason"] == "sdp_direction"
        assert plane.cameras.held == []
    finally:
        await publisher.close()


async def test_no_codec_in_common_is_406_and_names_it(plane, client):
    offer = "\r\n".join(
        line.replace("H264/90000", "AV1/90000") for line in (await client.offer()).splitlines()
    )
    response = await endpoint(plane).handle(post(offer + "\r\n"), "camera/cam001")
    assert response.status == 406
    assert document(response)["codecs"] == ["H264"]
    assert plane.cameras.held == []


async def test_unknown_camera_is_404(plane, client):
    assert (await endpoint(plane).handle(post(await client.offer()), "camera/none")).status == 404
    assert (await endpoint(plane).handle(post(await client.offer()), "nonsense")).status == 404


async def test_camera_that_is_down_is_409_with_retry_after(plane, client):
    plane.cameras.refuse[StreamName.MAIN] = Unavailable("no route to camera", retry_after_s=3.2)
    response = await endpoint(plane).handle(post(await client.offer()), "camera/cam001")
    assert response.status == 409
    assert response.headers["Retry-After"] == "4"
    assert "no route" in document(response)["detail"]


async def test_auto_falls_back_to_sub(plane, client):
    plane.cameras.refuse[StreamName.MAIN] = Unavailable("H.265")
    response = await endpoint(plane).handle(post(await client.offer(), stream="auto"), "camera/cam001")
    assert response.status == 201
    assert plane.sessions()[0].stream is StreamName.SUB


async def test_unknown_stream_is_400(plane, client):
    response = await endpoint(plane).handle(post(await client.offer(), stream="huge"), "camera/cam001")
    assert response.status == 400


async def test_full_plane_is_429_with_retry_after():
    async with running_plane("cam001", limits=PlaneLimits(sessions=0)) as plane:
        client = WhepClient()
        try:
            response = await endpoint(plane).handle(post(await client.offer()), "camera/cam001")
            assert response.status == 429
            assert response.headers["Retry-After"]
        finally:
            await client.close()


async def test_ice_servers_in_201_but_not_in_preflight(plane, client):
    servers = [
        IceServer(url="stun:stun.example:3478"),
        IceServer(url="turn:turn.example:3478?transport=udp", username='a"b', credential="secret"),
    ]
    whep = endpoint(plane, ice_servers=lambda owner: servers)
    response = await whep.handle(post(await client.offer()), "camera/cam001")
    assert response.headers["Link"] == [
        '<stun:stun.example:3478>; rel="ice-server"',
        '<turn:turn.example:3478?transport=udp>; rel="ice-server"; username="a\\"b"; credential="secret"; '
        'credential-type="password"',
    ]
    preflight = await whep.handle(EdgeRequest(method="OPTIONS"), "camera/cam001")
    assert preflight.status == 204
    assert "Link" not in preflight.headers
    assert b"secret" not in preflight.body


async def test_preflight_allows_what_clients_send(plane):
    response = await endpoint(plane).handle(EdgeRequest(method="OPTIONS"), "camera/cam001")
    assert response.headers["Accept-Post"] == SDP
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    exposed = response.headers["Access-Control-Expose-Headers"]
    assert all(name in exposed for name in ("Location", "Link", "ETag"))


async def test_endpoint_takes_only_post(plane):
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
        response = await endpoint(plane).handle(EdgeRequest(method=method), "camera/cam001")
        assert response.status == 405
        assert "POST" in response.headers["Allow"]


async def test_get_on_session_is_2xx_without_body(plane, client):
    whep = endpoint(plane)
    created = await whep.handle(post(await client.offer()), "camera/cam001")
    response = await whep.handle_session(EdgeRequest(method="GET"), session_of(created))
    assert (response.status, response.body) == (204, b"")
    assert response.headers["ETag"] == created.headers["ETag"]


async def test_delete_is_200_once(plane, client):
    whep = endpoint(plane)
    created = await whep.handle(post(await client.offer()), "camera/cam001")
    session = session_of(created)
    assert (await whep.handle_session(EdgeRequest(method="DELETE"), session)).status == 200
    assert plane.cameras.held == []
    assert (await whep.handle_session(EdgeRequest(method="DELETE"), session)).status == 404
    assert (await whep.handle_session(EdgeRequest(method="GET"), session)).status == 404


async def test_session_preflight(plane):
    response = await endpoint(plane).handle_session(EdgeRequest(method="OPTIONS"), "whatever")
    assert response.status == 204
    assert response.headers["Accept-Patch"] == FRAGMENT


async def test_session_refuses_other_methods(plane, client):
    whep = endpoint(plane)
    created = await whep.handle(post(await client.offer()), "camera/cam001")
    for method in ("POST", "PUT"):
        response = await whep.handle_session(EdgeRequest(method=method), session_of(created))
        assert response.status == 405
        assert "PATCH" in response.headers["Allow"]


async def test_session_of_the_other_kind_is_404(plane, client):
    created = await endpoint(plane).handle(post(await client.offer()), "camera/cam001")
    whip = endpoint(plane, SessionKind.PUBLISH)
    assert (await whip.handle_session(EdgeRequest(method="GET"), session_of(created))).status == 404


@pytest.fixture
async def session(plane, client):
    offer = await client.offer()
    whep = endpoint(plane)
    created = await whep.handle(post(offer), "camera/cam001")
    return whep, session_of(created), created.headers["ETag"], attribute(offer, "ice-ufrag")[0]


def trickle(ufrag: str) -> str:
    return (
        f"a=ice-ufrag:{ufrag}\r\na=ice-pwd:{'p' * 22}\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n"
        "a=candidate:1 1 udp 2130706431 198.51.100.1 61764 typ host\r\n"
        "a=candidate:2 1 tcp 1518280447 198.51.100.1 9 typ host tcptype active\r\n"
        "a=candidate:3 1 udp 2122260223 5c6dc5b3-6f42-4ae5-8f4d-1fe0c0a3a1c5.local 50000 typ host\r\n"
        "a=candidate:4 1 quic 1 example 1 typ strange\r\na=end-of-candidates\r\n"
    )


async def test_trickle_is_204_whatever_the_candidates(session):
    whep, session_id, etag, ufrag = session
    response = await whep.handle_session(patch(trickle(ufrag), etag), session_id)
    assert (response.status, response.body) == (204, b"")


async def test_patch_without_if_match_is_428(session):
    whep, session_id, _, ufrag = session
    assert (await whep.handle_session(patch(trickle(ufrag)), session_id)).status == 428


async def test_patch_with_a_stale_tag_is_412(session):
    whep, session_id, _, ufrag = session
    assert (await whep.handle_session(patch(trickle(ufrag), '"old"'), session_id)).status == 412


async def test_patch_of_another_type_is_415(session):
    whep, session_id, etag, ufrag = session
    response = await whep.handle_session(patch(trickle(ufrag), etag, "application/json"), session_id)
    assert response.status == 415
    assert response.headers["Accept-Patch"] == FRAGMENT


async def test_malformed_fragment_is_400_and_keeps_the_session(session):
    whep, session_id, etag, _ = session
    assert (await whep.handle_session(patch("nonsense", etag), session_id)).status == 400
    assert (await whep.handle_session(EdgeRequest(method="GET"), session_id)).status == 204


async def test_restart_under_a_tag_is_422_and_keeps_the_session(session):
    whep, session_id, etag, _ = session
    response = await whep.handle_session(patch(trickle("fresh"), etag), session_id)
    assert response.status == 422
    assert (await whep.handle_session(patch(trickle("fresh"), etag), session_id)).status == 422


async def test_restart_is_200_with_a_fragment_and_a_new_tag(session):
    whep, session_id, etag, _ = session
    quoted = await whep.handle_session(patch(trickle("first"), '"*"'), session_id)
    assert quoted.status == 200
    response = await whep.handle_session(patch(trickle("fresh"), "*"), session_id)
    assert response.status == 200
    assert response.headers["ETag"] != quoted.headers["ETag"]
    assert response.headers["Content-Type"] == FRAGMENT
    assert response.headers["ETag"] != etag
    body = response.body.decode()
    assert all(attribute(body, name) for name in ("ice-ufrag", "ice-pwd", "candidate"))
    # The old tag is stale now, the new one names the new generation.
    assert (await whep.handle_session(patch(trickle("fresh"), etag), session_id)).status == 412
    again = patch(trickle("fresh"), response.headers["ETag"])
    assert (await whep.handle_session(again, session_id)).status == 204


async def test_whip_publishes_and_deletes(plane):
    whip = endpoint(plane, SessionKind.PUBLISH)
    publisher = WhipClient()
    try:
        response = await whip.handle(post(await publisher.offer()), "call/c1/alice")
        assert response.status == 201
        answer = response.body.decode()
        assert answer.count("a=recvonly") == 2
        assert not attribute(answer, "ssrc")
        assert (await whip.handle_session(EdgeRequest(method="DELETE"), session_of(response))).status == 200
        assert (await whip.handle(post(await publisher.offer()), "camera/cam001")).status == 404
    finally:
        await publisher.close()


async def test_consent_loss_ends_the_session(plane, client):
    """RFC 7675: the transport says so, the session is gone, and the API keeps the reason."""
    created = await endpoint(plane).handle(post(await client.offer()), "camera/cam001")
    for link in tuple(plane.port._links):
        link.handle_timeout(plane.port.clock() + 60)
    await eventually(lambda: not plane.sessions())
    (ended,) = plane.sessions(closed=True)
    assert ended.session_id == session_of(created)
    assert ended.reason not in ("", "closed")
    assert plane.cameras.held == []


async def test_too_many_is_a_problem_document():
    class Full:
        async def watch(self, source_id, offer_sdp, *, stream, owner):
            raise TooMany("enough", retry_after_s=0.1)

    response = await endpoint(Full()).handle(post("v=0"), "camera/x")
    assert (response.status, response.headers["Retry-After"]) == (429, "1")
    assert document(response) == {
        "type": "about:blank",
        "title": "Too many sessions",
        "status": 429,
        "detail": "enough",
    }
