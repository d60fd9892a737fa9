"""RTSP messages, SDP of several camera dialects, and the session machine with no socket in sight."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams.rtsp import (
    TRANSITIONS,
    Effect,
    Failed,
    Frame,
    Input,
    Message,
    Playing,
    Remedy,
    Send,
    Session,
    State,
    Transport,
    next_message,
    parse_description,
    resolve_control,
    without_credentials,
)

DATA = Path(__file__).parents[1] / "data" / "rtsp"
GOLDEN = sorted(DATA.glob("*.rtsp"))
SDP = b"v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=1\r\n"


def read_all(data: bytes) -> tuple[list[Message | bytes], int]:
    buffer = bytearray(data)
    items: list[Message | bytes] = []
    start = 0
    while True:
        found, start = next_message(buffer, start, len(buffer))
        if found is None:
            return items, start
        items.append(bytes(buffer[found.start : found.stop]) if isinstance(found, Frame) else found)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_whole_byte_by_byte_and_with_trailing_bytes(path: Path) -> None:
    data = path.read_bytes()
    (whole,), end = read_all(data)
    assert end == len(data)
    assert isinstance(whole, Message)
    assert whole.status == 200
    for cut in range(len(data)):
        items, end = read_all(data[:cut])
        assert items == []
        assert end in (0, cut)
    items, _ = read_all(data + b"$\0\0\1x" + data)
    assert items == [whole, b"x", whole]


@pytest.mark.parametrize(
    ("name", "setup", "aggregate", "encodings"),
    [
        (
            "hikvision",
            "rtsp://192.168.1.64:554/Streaming/Channels/101/trackID=1",
            "rtsp://192.168.1.64:554/Streaming/Channels/101/",
            ["H264", "PCMA"],
        ),
        (
            "dahua",
            "rtsp://192.168.5.112/cam/realmonitor?channel=1&subtype=1&unicast=true&proto=Onvif/trackID=0",
            "rtsp://192.168.5.112/cam/realmonitor?channel=1&subtype=1&unicast=true&proto=Onvif/",
            ["H264", "MPEG4-GENERIC"],
        ),
        (
            "axis",
            "rtsp://192.168.0.90/axis-media/media.amp/stream=0?videocodec=h264",
            "rtsp://192.168.0.90/axis-media/media.amp?videocodec=h264",
            ["H264"],
        ),
        (
            "tplink",
            "rtsp://192.168.1.60:554/stream1/track1",
            "rtsp://192.168.1.60:554/stream1",
            ["H264", "PCMA"],
        ),
        (
            "reolink",
            "rtsp://192.168.5.206/h264Preview_01_main/trackID=1",
            "rtsp://192.168.5.206/h264Preview_01_main/",
            ["H264", "MPEG4-GENERIC"],
        ),
        ("badlines", "rtsp://camera/live/trackID=1", "rtsp://camera/live", ["H264"]),
    ],
)
def test_dialects_are_set_up_where_they_say(
    name: str, setup: str, aggregate: str, encodings: list[str]
) -> None:
    (message,), _ = read_all((DATA / f"{name}_describe.rtsp").read_bytes())
    assert isinstance(message, Message)
    assert [track.encoding for track in parse_description(message.body)[1]] == encodings
    session = Session("rtsp://camera/live", cnonce="c")
    session.start(0.0)
    session.receive(answer(session), 0.0)
    described = Message(
        status=200, headers=(*message.headers[1:], ("cseq", str(session.cseq))), body=message.body
    )
    request = sent(session.receive(described, 0.0))
    assert request.startswith(f"SETUP {setup} RTSP/1.0\r\n")
    effects = session.receive(answer(session, transport="RTP/AVP/TCP;interleaved=0-1", session="7"), 0.0)
    if "PCMA" in encodings:
        assert "interleaved=2-3" in sent(effects)
        effects = session.receive(answer(session, transport="RTP/AVP/TCP;interleaved=2-3", session="7"), 0.0)
    assert sent(effects).startswith(f"PLAY {aggregate} RTSP/1.0\r\n")
    assert session.ignored == (("MPEG4-GENERIC",) if "MPEG4-GENERIC" in encodings else ())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(GOLDEN),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 7)), max_size=4),
    st.integers(0, 4000),
)
def test_bit_flips_and_truncations_raise_only_protocol_errors(
    path: Path, flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(path.read_bytes()[:cut])
    for at, bit in flips:
        if at < len(data):
            data[at] ^= 1 << bit
    try:
        items, _ = read_all(bytes(data))
        for item in items:
            if isinstance(item, Message):
                parse_description(item.body)
    except ProtocolError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_raise_only_protocol_errors(data: bytes) -> None:
    try:
        read_all(data)
        read_all(b"RTSP/1.0 200 OK\r\n" + data + b"\r\n\r\n")
        parse_description(data)
    except ProtocolError:
        pass


def test_rubbish_between_frames_is_stepped_over() -> None:
    items, _ = read_all(b"$\0\0\2abOOPS\0\xff$\0\0\1cRTSX$\1\0\0")
    assert items == [b"ab", b"c", b""]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"RTSP/1.0 200 OK\r\n" + b"X: y\r\n" * 4000, "oversized_head"),
        (b"RTSP/1.0 200 OK\r\nContent-Length: 268435456\r\n\r\n", "oversized_body"),
        (b"RTSP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n", "bad_content_length"),
        (b"RTSP/1.0 twohundred\r\n\r\n", "bad_start_line"),
    ],
)
def test_beyond_reason_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_all(data)
    assert caught.value.reason == reason


def test_urls() -> None:
    assert without_credentials("rtsp://u:p%40@host:8554/a?b=c") == "rtsp://host:8554/a?b=c"
    assert resolve_control("rtsp://h/a", "") == "rtsp://h/a"
    assert resolve_control("rtsp://h/a/", "*") == "rtsp://h/a/"
    assert resolve_control("rtsp://h/a", "?ctype=video") == "rtsp://h/a?ctype=video"
    assert resolve_control("rtsp://h/a", "RTSP://x/y") == "RTSP://x/y"


# -- session -----------------------------------------------------------------------------------------------------------


def answer(machine: Session, status: int = 200, /, body: bytes = b"", **headers: str) -> Message:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Message(status=status, reason="OK", headers=(("cseq", str(machine.cseq)), *pairs), body=body)


def sent(effects: list[Effect]) -> str:
    (effect,) = effects
    assert isinstance(effect, Send)
    return effect.data.decode()


def play(
    session: Session, *, public: str = "OPTIONS, DESCRIBE", timeout: int = 60, now: float = 0.0
) -> list[Effect]:
    session.start(now)
    session.receive(answer(session, public=public), now)
    session.receive(answer(session, body=SDP), now)
    session.receive(
        answer(session, session=f"12;timeout={timeout}", transport="RTP/AVP/TCP;unicast;interleaved=4-5"), now
    )
    return session.receive(answer(session), now)


def test_a_whole_session() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    (playing,) = play(session, public="OPTIONS, GET_PARAMETER")
    assert isinstance(playing, Playing)
    assert [active.channel for active in playing.tracks] == [4]
    assert session.state is State.PLAYING
    assert session.next_deadline() == 30.0
    assert session.on_time(29.9) == []
    request = sent(session.on_time(30.0))
    assert request.startswith("GET_PARAMETER rtsp://camera/live RTSP/1.0\r\n")
    assert "\r\nSession: 12\r\n" in request
    assert session.receive(answer(session), 30.5) == []
    assert session.next_deadline() == 60.5
    assert session.teardown().startswith(b"TEARDOWN rtsp://camera/live RTSP/1.0\r\n")
    assert session.teardown() == b""
    assert session.next_deadline() is None


def test_keep_alive_goes_by_public_and_by_timeout() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    play(session, timeout=20)
    assert session.next_deadline() == 10.0
    assert sent(session.on_time(10.0)).startswith("OPTIONS ")
    assert session.receive(answer(session, 501), 10.0) == []
    assert sent(session.on_time(20.0)).startswith("GET_PARAMETER ")
    # No answer at all: the session lives on, pictures decide.
    assert session.on_time(25.0) == []
    assert session.state is State.PLAYING


def test_session_lost_asks_for_a_new_one() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    play(session)
    session.on_time(30.0)
    assert session.receive(answer(session, 454), 30.0) == [
        Failed(reason="454 session not found", remedy=Remedy.NEW_SESSION)
    ]


def test_one_retry_on_401_then_a_long_pause() -> None:
    session = Session("rtsp://camera/live", username="u", password="p", cnonce="c")
    session.start(0.0)
    session.receive(answer(session), 0.0)
    challenge = 'Digest realm="r", nonce="n1"'
    assert 'nonce="n1"' in sent(session.receive(answer(session, 401, www_authenticate=challenge), 0.0))
    assert session.receive(answer(session, 401, www_authenticate=challenge), 0.0) == [
        Failed(reason="401 unauthorised", remedy=Remedy.LONG_PAUSE)
    ]


def test_stale_nonce_is_no_refusal() -> None:
    session = Session("rtsp://camera/live", username="u", password="p", cnonce="c")
    session.start(0.0)
    session.receive(answer(session), 0.0)
    session.receive(answer(session, 401, www_authenticate='Digest realm="r", nonce="n1"'), 0.0)
    stale = 'Digest realm="r", nonce="n2", stale=true'
    assert 'nonce="n2"' in sent(session.receive(answer(session, 401, www_authenticate=stale), 0.0))
    (failed,) = session.receive(answer(session, 401, www_authenticate=stale), 0.0)
    assert isinstance(failed, Failed)


def test_no_credentials_are_named() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    session.start(0.0)
    (failed,) = session.receive(answer(session, 401, www_authenticate='Basic realm="r"'), 0.0)
    assert failed == Failed(reason="401 unauthorised: no credentials configured", remedy=Remedy.LONG_PAUSE)


@pytest.mark.parametrize(
    ("status", "headers", "remedy"),
    [
        (461, {}, Remedy.OTHER_TRANSPORT),
        (302, {"location": "rtsp://other/live"}, Remedy.REDIRECT),
        (302, {"location": "http://other/live"}, Remedy.PAUSE),
        (404, {}, Remedy.LONG_PAUSE),
        (403, {}, Remedy.LONG_PAUSE),
        (453, {}, Remedy.PAUSE),
        (503, {}, Remedy.PAUSE),
    ],
)
def test_refusals_name_what_helps(status: int, headers: dict[str, str], remedy: Remedy) -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    session.start(0.0)
    session.receive(answer(session), 0.0)
    (failed,) = session.receive(answer(session, status, **headers), 0.0)
    assert isinstance(failed, Failed)
    assert failed.remedy is remedy
    assert failed.reason.startswith(str(status))
    assert session.state is State.ENDED
    assert session.receive(answer(session), 0.0) == []


def test_other_codecs_are_named() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    session.start(0.0)
    session.receive(answer(session), 0.0)
    (failed,) = session.receive(answer(session, body=SDP.replace(b"H264", b"H265")), 0.0)
    assert failed == Failed(reason="codec H265 not supported", remedy=Remedy.OTHER_STREAM)


def test_silence_ends_the_start() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    session.start(0.0)
    assert session.on_time(5.0) == [Failed(reason="no answer to OPTIONS", remedy=Remedy.PAUSE)]


def test_udp_asks_for_its_ports_and_reads_the_servers() -> None:
    session = Session("rtsp://camera/live", transport=Transport.UDP, udp_ports=[(5000, 5001)], cnonce="c")
    session.start(0.0)
    session.receive(answer(session), 0.0)
    assert "Transport: RTP/AVP;unicast;client_port=5000-5001\r\n" in sent(
        session.receive(answer(session, body=SDP), 0.0)
    )
    session.receive(
        answer(
            session,
            session="1",
            transport="RTP/AVP;client_port=5000-5001;server_port=6000-6001;source=1.2.3.4",
        ),
        0.0,
    )
    (playing,) = session.receive(answer(session), 0.0)
    assert isinstance(playing, Playing)
    assert playing.tracks[0].server_ports == (6000, 6001)


def test_requests_of_the_server_are_answered() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    play(session)
    known = Message(method="GET_PARAMETER", uri="*", headers=(("cseq", "9"),))
    assert sent(session.receive(known, 1.0)) == "RTSP/1.0 200 OK\r\nCSeq: 9\r\n\r\n"
    assert sent(session.receive(Message(method="ANNOUNCE", uri="*"), 1.0)).startswith("RTSP/1.0 501 ")


def test_a_camera_cannot_smuggle_lines_into_requests() -> None:
    session = Session("rtsp://camera/live", username="u", password="p", cnonce="c")
    session.start(0.0)
    session.receive(answer(session), 0.0)
    challenge = 'Digest realm="r\r\nX: y", nonce="n"'
    request = sent(session.receive(answer(session, 401, www_authenticate=challenge), 0.0))
    assert not re.search(r"^X:", request, re.MULTILINE)


@pytest.mark.parametrize(("state", "given"), sorted(TRANSITIONS))
def test_every_row_leads_to_a_state(state: State, given: Input) -> None:
    assert TRANSITIONS[state, given] in State


def test_an_illegal_pair_raises_and_changes_nothing() -> None:
    session = Session("rtsp://camera/live", cnonce="c")
    session.start(0.0)
    with pytest.raises(ProtocolError):
        session.start(0.0)
    assert session.state is State.OPTIONS
