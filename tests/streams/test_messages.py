"""Frames and messages between front door and worker."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Conflict, GatewayError, NotFound, ProtocolError, TooMany, Unavailable
from gateway.streams import messages
from gateway.streams.cameras import CameraState, DialLimits, State, StreamState
from gateway.streams.media import StreamName
from gateway.streams.media_service import MediaSpec
from gateway.streams.plane import NotAcceptable, PlaneLimits
from gateway.streams.sdp import Fragment
from gateway.streams.session import SessionAnswer, SessionInfo, SessionKind, SessionState

TO_WORKER = msgspec.msgpack.Decoder(messages.ToWorker)
FROM_WORKER = msgspec.msgpack.Decoder(messages.FromWorker)

STATE = CameraState(
    camera_id="cam001",
    state=State.DOWN,
    reason="no answer from host",
    since_ms=5,
    last_frame_at_ms=None,
    streams={StreamName.SUB: StreamState(state=State.DOWN, reason="no answer from host", since_ms=5)},
)
INFO = SessionInfo(
    session_id="s",
    kind=SessionKind.WATCH,
    source_id="camera/cam001",
    stream=StreamName.SUB,
    owner="op",
    state=SessionState.CONNECTED,
    reason="",
    created_at=1.5,
    connected_at=None,
    etag='"e"',
    remote_ufrag="u",
    counters={"video_packets": 7},
)
SPEC = MediaSpec(
    binds=(("::1", 8189),), announce=("192.0.2.1",), plane=PlaneLimits(sessions=3), dial=DialLimits(dials=9)
)
REQUESTS = [
    messages.Setup(1, SPEC, 20, 0.25),
    messages.ApplyCameras(
        1,
        [messages.WireCamera("c", "rtsp://h/1", None, "k", "always", "on_demand", "auto")],
        {"k": ("u", "p")},
    ),
    messages.Watch(2, "camera/c", "v=0", "auto", "op"),
    messages.Publish(3, "call/1/2", "v=0", "w"),
    messages.RestartSession(4, "s", Fragment(ice_ufrag="u", ice_pwd="p")),
    messages.CloseSession(5, "s", "closed"),
    messages.CloseOwned(6, "op", "revoked"),
    messages.FetchKeyframe(7, "c", -(1 << 62)),
    messages.Cancel(7),
    messages.Stop(),
]
ANSWERS = [
    messages.Ready(8190),
    messages.Answered(1, SessionAnswer(session_id="s", sdp="v=0", etag='"e"'), INFO),
    messages.Done(2, 3),
    messages.Keyframe(3, 1 << 62, (b"\x67", b"\x65" * 9)),
    messages.Refused(4, messages.Failure("NotFound", "no")),
    messages.States([STATE]),
    messages.Closed("s", "closed"),
    messages.Tracks("call/1/2", ("audio", "video")),
    messages.Beat(0.5, [STATE], [INFO], messages.SupervisorCounts({"dials": 1}, {}, {}, {}, {"x": 2}, {})),
]


@pytest.mark.parametrize(
    ("sent", "decoder"), [(REQUESTS, TO_WORKER), (ANSWERS, FROM_WORKER)], ids=["to", "from"]
)
def test_every_message_survives_any_cut_of_the_stream(sent: list, decoder: msgspec.msgpack.Decoder) -> None:
    stream = b"".join(map(messages.encode_frame, sent))
    for size in (1, 2, 3, 7, 64, len(stream)):
        reader = messages.FrameReader(decoder)
        got = [one for at in range(0, len(stream), size) for one in reader.feed(stream[at : at + size])]
        assert got == sent


@given(st.binary(max_size=200))
def test_nonsense_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    frame = len(data).to_bytes(4, "big") + data
    try:
        FROM_WORKER.decode(data)
    except msgspec.DecodeError:
        with pytest.raises(ProtocolError, match="frame_content"):
            list(messages.FrameReader(FROM_WORKER).feed(frame))
    else:
        assert len(list(messages.FrameReader(FROM_WORKER).feed(frame))) == 1


def test_sizes_are_bounded_both_ways() -> None:
    with pytest.raises(ProtocolError, match="frame_size"):
        list(messages.FrameReader(FROM_WORKER).feed(b"\xff\xff\xff\xff"))
    with pytest.raises(ProtocolError, match="frame_size"):
        messages.encode_frame(messages.Keyframe(1, 1, (bytes(messages.MAX_FRAME),)))


@pytest.mark.parametrize(
    "error",
    [
        NotAcceptable("video", ["H264", "VP8"]),
        ProtocolError("sdp_direction", 17, mid="0"),
        NotFound("no camera x"),
        Unavailable("no answer from host", retry_after_s=2.5),
        TooMany("full", retry_after_s=5),
        Conflict("taken", by="w1"),
        GatewayError("else"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_on_the_other_side(error: GatewayError) -> None:
    (refused,) = messages.FrameReader(FROM_WORKER).feed(
        messages.encode_frame(messages.Refused(1, messages.Failure.of(error)))
    )
    again = refused.failure.error()
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_context_that_is_no_plain_value_becomes_text() -> None:
    error = messages.Failure.of(ProtocolError("x", peer=("192.0.2.1", 5))).error()
    assert isinstance(error, ProtocolError)
    assert error.context == {"peer": "('192.0.2.1', 5)"}


def test_passwords_do_not_show_in_logs() -> None:
    assert "'p'" not in repr(REQUESTS[1])
