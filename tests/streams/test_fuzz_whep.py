"""WHEP and WHIP as a stranger may call them: damaged offers, fragments and headers, against a real plane. Every answer is one of
HTTP's, every session that was made can be ended, and nothing is left of those that weren't."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from webrtc_clients import Feed, WhepClient, WhipClient, encode_clip, running_plane

from gateway.streams.media import StreamName
from gateway.streams.session import SessionKind
from gateway.streams.whep import EdgeRequest, EdgeResponse, SessionEndpoint

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
SDP, FRAGMENT = "application/sdp", "application/trickle-ice-sdpfrag"
TYPES = st.sampled_from([SDP, FRAGMENT, f"{SDP}; charset=utf-8", "", "text/plain", "application/SDP", ";"])
METHODS = st.sampled_from(["POST", "PATCH", "GET", "HEAD", "DELETE", "OPTIONS", "PUT", ""])
EXPECTED = {200, 201, 204, 400, 404, 405, 406, 409, 412, 413, 415, 428, 429}


class Bench:
    """A plane in a loop of its own, which the synchronous Hypothesis drives."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._running = running_plane("cam001")
        self.plane = self.run(self._running.__aenter__())
        feed = Feed(self.plane.sink_of("cam001", StreamName.MAIN), encode_clip(gop=250), audio=True)
        for _ in range(5):
            feed.push()
        self.offers = {}
        for kind, client in (
            (SessionKind.WATCH, self.run(self._made(WhepClient, audio=True))),
            (SessionKind.PUBLISH, self.run(self._made(WhipClient))),
        ):
            self.offers[kind] = self.run(client.offer())
            self.run(client.close())
        self.ends = {
            kind: SessionEndpoint(self.plane, kind, session_path=lambda session: f"/sessions/{session}")
            for kind in SessionKind
        }

    @staticmethod
    async def _made(kind: type, **options: bool) -> object:
        return kind(**options)

    def run(self, work):
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self._running.__aexit__(None, None, None))
        self.loop.close()

    def ask(self, kind: SessionKind, request: EdgeRequest, source: str) -> EdgeResponse:
        return self.run(self.ends[kind].handle(request, source))

    def ask_session(self, kind: SessionKind, request: EdgeRequest, session: str) -> EdgeResponse:
        return self.run(self.ends[kind].handle_session(request, session))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


LINES = st.sampled_from(
    ["a=ice-ufrag:", "a=ice-pwd:x", "m=video 0 RTP/AVP 0", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=mid:0", "a=inactive",
     "a=sendrecv", "a=setup:passive", "a=setup:actpass", "a=rtpmap:96 H264/90000", "a=rtpmap:96 H264/9e9", "a=fmtp:96 apt=96",
     "a=extmap:0 x", "a=extmap:99999999999 urn:ietf:params:rtp-hdrext:sdes:mid", "a=fingerprint:sha-256 00",
     "a=group:BUNDLE", "a=ssrc-group:FID 1", "a=ssrc:-1 cname:x", "a=candidate:1 1 udp 1 ::1 9 typ host", "", "x", "\0"]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, good: str) -> bytes:
    """The offer with lines dropped, doubled, swapped, replaced, or cut in their middle; rarely noise alone."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    lines = good.split("\r\n")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 5)):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
            case 2:
                lines.insert(at, draw(LINES))
            case 3:
                lines[at] = draw(LINES)
            case 4:
                lines[at] = lines[at][: draw(st.integers(0, max(1, len(lines[at]))))]
            case 5:
                lines[at] = lines[at] + draw(st.text(max_size=8))
    return "\r\n".join(lines).encode("utf-8", "surrogatepass")


CONFIGURED = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES <= 60,
)  # fmt: skip


@pytest.mark.parametrize("kind", [SessionKind.WATCH, SessionKind.PUBLISH])
def test_whatever_is_posted_is_answered_and_leaves_nothing(bench: Bench, kind: SessionKind) -> None:
    source = "camera/cam001" if kind is SessionKind.WATCH else "call/c/l"
    good = bench.offers[kind]

    @CONFIGURED
    @given(damaged(good), TYPES, METHODS, st.sampled_from(["main", "sub", "auto", "", "nonsense"]))
    @example(good.encode(), SDP, "POST", "main")
    def run(body: bytes, media_type: str, method: str, stream: str) -> None:
        sent = EdgeRequest(
            method=method,
            headers={"content-type": media_type},
            body=body,
            query={"stream": stream},
            owner="me",
        )
        answer = bench.ask(kind, sent, source)
        assert answer.status in EXPECTED
        if answer.status == 201:
            session = str(answer.headers["Location"]).rpartition("/")[2]
            assert bench.ask_session(kind, EdgeRequest(method="DELETE"), session).status == 200
        assert [one for one in bench.plane.sessions() if one.owner == "me"] == []
        assert bench.plane.cameras.held == []

    run()


def test_whatever_is_patched_keeps_or_ends_the_session_by_the_rules(bench: Bench) -> None:
    good = (
        f"a=ice-ufrag:efgh\r\na=ice-pwd:{'p' * 24}\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n"
        "a=candidate:1 1 udp 2130706431 198.51.100.1 61764 typ host\r\na=end-of-candidates\r\n"
    )
    kind = SessionKind.WATCH
    posted = EdgeRequest(
        method="POST", headers={"content-type": SDP}, body=bench.offers[kind].encode(), owner="me"
    )
    tags = st.sampled_from([None, "*", '"*"', '"old"', "", "own"])
    methods = st.sampled_from(["PATCH", "GET", "HEAD", "OPTIONS", "PUT", "POST", ""])
    made: list[tuple[str, str]] = []
    uses = 0

    def end(session: str) -> None:
        assert bench.ask_session(kind, EdgeRequest(method="DELETE"), session).status == 200

    def fresh() -> tuple[str, str]:
        """A session and its tag, younger than ICE's patience with a peer that never checks: 100 examples long."""
        nonlocal uses
        if uses % 100 == 0:
            if made:
                end(made.pop()[0])
            created = bench.ask(kind, posted, "camera/cam001")
            made.append((str(created.headers["Location"]).rpartition("/")[2], str(created.headers["ETag"])))
        uses += 1
        return made[0]

    @CONFIGURED
    @given(damaged(good), TYPES, tags, methods)
    @example(good.encode(), FRAGMENT, "*", "PATCH")
    def run(body: bytes, media_type: str, tag: str | None, method: str) -> None:
        session, own = fresh()
        headers = {"content-type": media_type}
        if tag is not None:
            headers["if-match"] = own if tag == "own" else tag
        answer = bench.ask_session(kind, EdgeRequest(method=method, headers=headers, body=body), session)
        assert answer.status in EXPECTED
        assert bench.ask_session(kind, EdgeRequest(method="GET"), session).status == 204

    run()
    end(made[0][0])
