"""Offers of browsers in, answers out; each rule of the parser with the line where it was broken."""

from __future__ import annotations

import pytest
from aiortc import sdp as independent
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams import sdp

FINGERPRINT = ":".join(["AB"] * 32)
# The shape of Chromium's WHEP offer (reduced to two H.264 profiles, their RTX, and VP8).
OFFER = f"""v=0
o=- 4215775240449105457 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=extmap-allow-mixed
a=msid-semantic: WMS
m=video 9 UDP/TLS/RTP/SAVPF 96 97 102 103 104 105 106
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=candidate:1 1 udp 2113937151 0d8a2b0c.local 51422 typ host generation 0
a=ice-ufrag:Yzq1
a=ice-pwd:3kPIvFqVgH6tFpnVQHXAKPZV
a=ice-options:trickle
a=fingerprint:sha-256 {FINGERPRINT}
a=setup:actpass
a=mid:0
a=extmap:1 urn:ietf:params:rtp-hdrext:toffset
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=recvonly
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 nack
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=rtpmap:102 H264/90000
a=rtcp-fb:102 goog-remb
a=rtcp-fb:102 ccm fir
a=rtcp-fb:102 nack
a=rtcp-fb:102 nack pli
a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
a=rtpmap:103 rtx/90000
a=fmtp:103 apt=102
a=rtpmap:104 H264/90000
a=fmtp:104 level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=4d001f
a=rtpmap:105 H264/90000
a=fmtp:105 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=4d001f
a=rtpmap:106 H264/90000
a=fmtp:106 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=f4001f
m=audio 9 UDP/TLS/RTP/SAVPF 111 8
c=IN IP4 0.0.0.0
a=ice-ufrag:Yzq1
a=ice-pwd:3kPIvFqVgH6tFpnVQHXAKPZV
a=fingerprint:sha-256 {FINGERPRINT}
a=setup:actpass
a=mid:1
a=recvonly
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;useinbandfec=1
""".replace("\n", "\r\n")

TRACK = sdp.SendTrack(ssrc=11, rtx_ssrc=12, cname="gateway", stream_id="camera", track_id="video")
CANDIDATES = (
    sdp.Candidate(host="192.0.2.1", port=8189),
    sdp.Candidate(host="2001:db8::1", port=8189),
    sdp.Candidate(host="192.0.2.1", port=8189, protocol="tcp"),
)


def answer(text: str = OFFER, **answers: sdp.Answer) -> str:
    offer = sdp.parse_offer(text)
    given_answers = {key.removeprefix("mid"): value for key, value in answers.items()}
    return sdp.write_answer(
        offer,
        given_answers,
        session_id=5,
        ice_ufrag="ours",
        ice_pwd="p" * 24,
        fingerprint=FINGERPRINT,
        candidates=CANDIDATES,
    )


def test_offer_whole() -> None:
    offer = sdp.parse_offer(OFFER)
    assert offer.bundle == ("0", "1")
    assert (offer.ice_ufrag, offer.ice_pwd) == ("Yzq1", "3kPIvFqVgH6tFpnVQHXAKPZV")
    assert (offer.fingerprint_algorithm, offer.fingerprint) == ("sha-256", FINGERPRINT)
    video, audio = offer.media
    assert (video.kind, video.mid, video.direction) == ("video", "0", sdp.Direction.RECVONLY)
    assert [codec.payload_type for codec in video.codecs] == [96, 97, 102, 103, 104, 105, 106]
    assert video.codec(102) == sdp.CodecDescription(
        payload_type=102,
        encoding="H264",
        clock_rate=90000,
        parameters={
            "level-asymmetry-allowed": "1",
            "packetization-mode": "1",
            "profile-level-id": "42e01f",
        },
        feedback=("goog-remb", "ccm fir", "nack", "nack pli"),
    )
    assert video.extensions["urn:ietf:params:rtp-hdrext:sdes:mid"] == 4
    assert audio.codec(111).channels == 2
    assert audio.codec(8).rtpmap == "PCMA/8000"  # static, without rtpmap
    assert sdp.choose_codec(audio, "OPUS") == (111, None)
    assert sdp.choose_codec(video, "vp8") == (96, 97)
    assert sdp.choose_codec(video, "AV1") is None


@pytest.mark.parametrize(
    ("source", "payload_type", "rtx", "exact"),
    [
        ("42c01e", 102, 103, True),  # Constrained Baseline by another spelling
        ("42001e", 102, 103, False),
        ("4d0028", 105, None, True),
        ("640028", 106, None, False),  # High goes under the nearest higher profile
        ("f4001f", 106, None, True),
        (None, 102, 103, False),
    ],
)
def test_h264_choice(source: str | None, payload_type: int, rtx: int | None, exact: bool) -> None:
    section = sdp.parse_offer(OFFER).media[0]
    assert sdp.choose_h264(section, source) == sdp.H264Choice(payload_type=payload_type, rtx=rtx, exact=exact)


def test_high_falls_to_main_and_then_baseline() -> None:
    without_high = OFFER.replace("profile-level-id=f4001f", "profile-level-id=42001f")
    choice = sdp.choose_h264(sdp.parse_offer(without_high).media[0], "640028")
    assert choice is not None
    assert choice.payload_type == 105
    no_mode_1 = OFFER.replace("packetization-mode=1", "packetization-mode=0")
    assert sdp.choose_h264(sdp.parse_offer(no_mode_1).media[0], "640028") is None


def test_whep_answer_whole() -> None:
    text = answer(
        mid0=sdp.Answer(payload_types=(102, 103), direction=sdp.Direction.SENDONLY, track=TRACK),
    )
    assert text.split("\r\n") == [
        "v=0",
        "o=- 5 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=ice-lite",
        "a=msid-semantic:WMS *",
        "a=group:BUNDLE 0",
        "m=video 9 UDP/TLS/RTP/SAVPF 102 103",
        "c=IN IP4 0.0.0.0",
        "a=mid:0",
        "a=sendonly",
        "a=rtcp-mux",
        "a=rtcp-rsize",
        "a=ice-ufrag:ours",
        "a=ice-pwd:" + "p" * 24,
        "a=fingerprint:sha-256 " + FINGERPRINT,
        "a=setup:passive",
        "a=rtpmap:102 H264/90000",
        "a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
        "a=rtcp-fb:102 nack",
        "a=rtcp-fb:102 nack pli",
        "a=rtcp-fb:102 ccm fir",
        "a=rtpmap:103 rtx/90000",
        "a=fmtp:103 apt=102",
        "a=msid:camera video",
        "a=ssrc-group:FID 11 12",
        "a=ssrc:11 cname:gateway",
        "a=ssrc:12 cname:gateway",
        "a=candidate:1 1 udp 2130706431 192.0.2.1 8189 typ host",
        "a=candidate:2 1 udp 2130706175 2001:db8::1 8189 typ host",
        "a=candidate:3 1 tcp 1520434687 192.0.2.1 8189 typ host tcptype passive",
        "a=end-of-candidates",
        "m=audio 0 UDP/TLS/RTP/SAVPF 111",
        "c=IN IP4 0.0.0.0",
        "a=inactive",
        "a=mid:1",
        "",
    ]


def test_whip_answer_is_read_by_an_independent_parser() -> None:
    text = answer(
        mid0=sdp.Answer(
            payload_types=(102, 103),
            direction=sdp.Direction.RECVONLY,
            extensions=("urn:ietf:params:rtp-hdrext:sdes:mid", "urn:not:offered"),
        ),
        mid1=sdp.Answer(payload_types=(111,), direction=sdp.Direction.RECVONLY),
    )
    parsed = independent.SessionDescription.parse(text)
    assert [(media.kind, media.direction) for media in parsed.media] == [
        ("video", "recvonly"),
        ("audio", "recvonly"),
    ]
    assert [media.dtls.role for media in parsed.media] == ["server", "server"]
    assert [extension.id for extension in parsed.media[0].rtp.headerExtensions] == [4]
    assert len(parsed.media[0].ice_candidates) == 3
    assert "msid" not in text.replace("msid-semantic", "")


def test_rtcp_mux_only_is_honoured() -> None:
    """RFC 8858 section 4.3: the answer has rtcp-mux, and must not repeat rtcp-mux-only."""
    text = OFFER.replace("a=rtcp-mux\r\n", "a=rtcp-mux\r\na=rtcp-mux-only\r\n")
    accepted = sdp.Answer(payload_types=(102,), direction=sdp.Direction.SENDONLY, track=TRACK)
    assert "a=rtcp-mux\r\n" in answer(text, mid0=accepted)
    assert "rtcp-mux-only" not in answer(text, mid0=accepted)


def test_publisher_details() -> None:
    text = OFFER.replace(
        "a=mid:0\r\n",
        "a=mid:0\r\na=rid:h send\r\na=rid:l send\r\na=simulcast:send h;l\r\n"
        "a=ssrc-group:FID 7 8\r\na=ssrc:7 cname:x\r\na=ssrc:7 msid:a b\r\na=ssrc:8 cname:x\r\n",
    )
    section = sdp.parse_offer(text).media[0]
    assert (section.rids, section.simulcast) == (("h", "l"), "send h;l")
    assert (section.ssrcs, section.fid_groups) == ((7, 8), ((7, 8),))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("v=0\r\n", "v=1\r\n", "sdp_version"),
        ("a=ice-ufrag:Yzq1", "a=ice-ufrag:Y", "sdp_ice_ufrag"),
        ("a=ice-pwd:3kPIvFqVgH6tFpnVQHXAKPZV", "a=ice-pwd:short", "sdp_ice_pwd"),
        ("a=ice-ufrag:Yzq1\r\n", "", "sdp_no_ice_credentials"),
        ("AB:AB", "AB:XY", "sdp_fingerprint"),
        (f"a=fingerprint:sha-256 {FINGERPRINT}\r\n", "", "sdp_no_fingerprint"),
        (f"sha-256 {FINGERPRINT}", "md5 " + ":".join(["AB"] * 16), "sdp_no_fingerprint"),
        ("a=setup:actpass", "a=setup:passive", "sdp_setup"),
        ("a=rtcp-mux\r\n", "", "sdp_no_rtcp_mux"),
        ("a=group:BUNDLE 0 1\r\n", "", "sdp_no_bundle"),
        ("a=group:BUNDLE 0 1", "a=group:BUNDLE 0 9", "sdp_bundle_unknown_mid"),
        ("a=mid:1", "a=mid:0", "sdp_duplicate_mid"),
        ("a=rtpmap:96 VP8/90000", "a=rtpmap:96 VP8", "sdp_rtpmap"),
        ("m=audio 9", "m=audio x", "sdp_media_line"),
        ("m=audio 9", "m=audio 99999", "sdp_media_line"),
        ("a=extmap:1 ", "a=extmap:z ", "sdp_extmap"),
        ("s=-", "s", "sdp_line"),
        ("s=-", "s=\x07", "sdp_line"),
        ("s=-", "s=" + "x" * 5000, "sdp_too_long"),
        ("s=-", "s=-" + "\r\na=x" * 20000, "sdp_too_long"),
        ("s=-", "s=-" + "\r\nm=video 9 UDP/TLS/RTP/SAVPF 96" * 20, "sdp_too_many_sections"),
    ],
)
def test_what_is_refused(old: str, new: str, reason: str) -> None:
    assert old in OFFER
    with pytest.raises(ProtocolError) as caught:
        sdp.parse_offer(OFFER.replace(old, new))
    assert caught.value.reason == reason
    assert caught.value.offset is not None


def test_the_line_is_named() -> None:
    with pytest.raises(ProtocolError) as caught:
        sdp.parse_offer(OFFER.replace("a=rtpmap:111 opus/48000/2", "a=rtpmap:111 opus"))
    assert OFFER.split("\r\n")[(caught.value.offset or 0) - 1] == "a=rtpmap:111 opus/48000/2"


def test_session_level_attributes_are_inherited() -> None:
    one = OFFER[: OFFER.index("m=audio")].replace("BUNDLE 0 1", "BUNDLE 0")
    moved = ["a=ice-ufrag:Yzq1", "a=ice-pwd:3kPIvFqVgH6tFpnVQHXAKPZV", f"a=fingerprint:sha-256 {FINGERPRINT}"]
    for line in moved:
        one = one.replace(line + "\r\n", "")
    one = one.replace("t=0 0\r\n", "t=0 0\r\n" + "\r\n".join(moved) + "\r\n")
    assert sdp.parse_offer(one).ice_ufrag == "Yzq1"


def test_fragments() -> None:
    trickle = sdp.parse_fragment(
        "a=ice-ufrag:Yzq1\r\na=ice-pwd:3kPIvFqVgH6tFpnVQHXAKPZV\r\n"
        "m=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n"
        "a=candidate:1 1 udp 1 192.0.2.7 5000 typ host\r\na=end-of-candidates\r\n"
    )
    assert trickle.candidates == 1
    assert not trickle.is_restart("Yzq1")
    assert trickle.is_restart("older")
    written = sdp.write_fragment(
        ice_ufrag="new1", ice_pwd="q" * 24, candidates=CANDIDATES, mid="0", kind="video"
    )
    read = sdp.parse_fragment(written)
    assert (read.ice_ufrag, read.ice_pwd, read.candidates) == ("new1", "q" * 24, 3)
    for bad in ("a=ice-ufrag:Yzq1\r\n", "x=1\r\n", "a=ice-pwd:short\r\n"):
        with pytest.raises(ProtocolError):
            sdp.parse_fragment(bad)


@settings(max_examples=300)
@given(st.integers(0, len(OFFER) - 1), st.integers(0, 6), st.text(max_size=6))
def test_edits_raise_only_protocol_error(at: int, cut: int, text: str) -> None:
    edited = OFFER[:at] + text + OFFER[at + cut :]
    try:
        offer = sdp.parse_offer(edited)
    except ProtocolError:
        return
    accepted = {
        section.mid: sdp.Answer(
            payload_types=(section.codecs[0].payload_type,), direction=sdp.Direction.RECVONLY
        )
        for section in offer.media
        if section.codecs
    }
    written = sdp.write_answer(
        offer,
        accepted,
        session_id=1,
        ice_ufrag="ours",
        ice_pwd="p" * 24,
        fingerprint=FINGERPRINT,
        candidates=CANDIDATES,
    )
    # Whatever was offered, the answer is lines that our own strict splitter takes.
    assert all(len(line) > 1 and line[1] == "=" for line in written.split("\r\n") if line)


@given(st.text(max_size=300))
def test_garbage_raises_only_protocol_error(text: str) -> None:
    for parse in (sdp.parse_offer, sdp.parse_fragment):
        try:
            parse(text)
        except ProtocolError:
            continue
