"""Every parser that reads what the network or a hand-written file says, fed with noise and with damaged good messages.

Only the parser's own refusal may come out (ProtocolError, ConfigError, NotAllowed), within bounded time and memory.
`make test` runs a few hundred examples of each; `make fuzz` (FUZZ_EXAMPLES=n) as many as one likes, each run others. What was found
once stands in FOUND and is tried first for ever.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import aioice.stun
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway import config
from gateway.access import Principal, Role
from gateway.alarms import press, roster
from gateway.devices import _decode
from gateway.district import District
from gateway.errors import ConfigError, NotAllowed, ProtocolError
from gateway.identity import Keyring, TokenKind
from gateway.streams import digest, h264, packets, reception, rtcp, rtsp, sdp, sps, srtp, stun
from gateway.streams.dtls import Certificate, DtlsServer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
REFUSALS = (ProtocolError, ConfigError, NotAllowed)
MOST_BYTES = 32 * 1024 * 1024
"""A parser that takes more than this for a datagram or a body of 64 KiB has found an amplifier."""
MOST_CPU_S = 10.0
"""CPU time, under tracemalloc: what is linear takes a hundredth of it. A regular expression once took 155 s."""

KEYRING = Keyring(b"k" * 32)
TOKEN = KEYRING.issue(Principal(sub="op", role=Role.OPERATOR), TokenKind.ACCESS, now_s=1_000, ttl_s=60)
OFFER = (
    "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=ice-ufrag:abcd\r\n"
    "a=ice-pwd:abcdefghijklmnopqrstuvwx\r\na=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\n"
    "m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=recvonly\r\na=setup:actpass\r\na=rtcp-mux\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 profile-level-id=42e01f;packetization-mode=1\r\na=rtcp-fb:96 nack pli\r\n"
    "a=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\na=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid\r\n"
    "m=audio 9 UDP/TLS/RTP/SAVPF 111 8\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=recvonly\r\na=rtcp-mux\r\n"
    "a=rtpmap:111 opus/48000/2\r\n"
)
FRAGMENT = "a=ice-ufrag:efgh\r\na=ice-pwd:abcdefghijklmnopqrstuvwy\r\nm=video 9 RTP/AVP 0\r\na=mid:0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n"
DESCRIPTION = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    "a=fmtp:96 packetization-mode=1;sprop-parameter-sets=Z0LAHtkBQfoQAAADABAAAAMDIPFi5IA=,aMuDyyA=\r\na=control:trackID=1\r\n"
)
REPLY = 'RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 4\r\nWWW-Authenticate: Digest realm="a", nonce="b"\r\n\r\nbody'
PRESS = b'{"v":1,"sid":"b0","pid":"p","seq":1,"ts":1,"kind":"help","cam":"c1","silent":0,"sig":"ab"}'
LOCATION = b'{"lat":30.8,"lon":103.9,"datum":"gcj02","acc":5,"spd":1.5,"fix":1,"seq":1}'
SPS = bytes.fromhex("6742c01ed90141fa1000000300100000030320f162e480")
RTP = bytes.fromhex("80e0000100000001abcdef01") + b"\x7c\x85" + SPS
RTCP = rtcp.write_receiver_report(1) + rtcp.write_nack(1, 2, [3, 4, 500]) + rtcp.write_remb(1, 1_000_000, [2])
_BINDING = aioice.stun.Message(
    message_method=aioice.stun.Method.BINDING,
    message_class=aioice.stun.Class.REQUEST,
    transaction_id=b"0123456789ab",
)
_BINDING.attributes.update(
    {"USERNAME": "abcd:efgh", "PRIORITY": 1, "ICE-CONTROLLING": 7, "USE-CANDIDATE": None}
)
_BINDING.add_message_integrity(b"p" * 24)
STUN = bytes(_BINDING)
CLIENT_HELLO = bytes.fromhex("16feff000000000000000000360100002a000000000000002afefd") + bytes(40)
CAMERAS = "cameras:\n- {id: c1, main: 'rtsp://192.0.2.1/x', lat: 30.8, lon: 103.9, datum: wgs84, visible_to: community}\n"


def _depacketize(data: bytes) -> None:
    """As RTP of a camera, packet after packet, so that state builds up."""
    unit = h264.Depacketizer(lambda access_unit: None, payload_type=96)
    for size in (len(data), 200, 40):
        for start in range(0, len(data), size or 1):
            unit.packet(data, start, min(len(data), start + size), 1.0)


def _rtsp_stream(data: bytes) -> None:
    """All that can be read of a connection's bytes."""
    buffer, start = bytearray(data), 0
    while start < len(buffer):
        message, consumed = rtsp.next_message(buffer, start, len(buffer))
        assert consumed >= 0
        if message is None or consumed == 0:
            return
        start += consumed


def _reception(data: bytes) -> None:
    window = reception.ReorderWindow()
    window.push(data, 1.0)
    reception.Reception(own_ssrc=1, clock_rate=90_000).on_rtcp(data, 1.0)


def _srtp(data: bytes) -> None:
    keys = srtp.SrtpKeys.derive(srtp.Profile.AES128_CM_SHA1_80, bytes(16), bytes(14))
    receiver = srtp.SrtpReceiver(keys)
    for open_it in (receiver.unprotect, receiver.unprotect_rtcp):
        try:
            open_it(data)
        except ProtocolError:
            continue


CERTIFICATE = Certificate()


def _dtls(data: bytes) -> None:
    server = DtlsServer(CERTIFICATE, fingerprint_algorithm="sha-256", fingerprint=":".join(["AB"] * 32))
    try:
        server.receive(data, 1.0)
        server.receive(data, 2.0)
    finally:
        server.release()


def _yaml(read: Callable[[Path], object], name: str) -> Callable[[bytes], None]:
    def parse(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            path.chmod(0o600)
            read(path if name != "district.yaml" else path.parent)

    return parse


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "replace"))


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "rtsp": (_rtsp_stream, REPLY.encode()),
    "rtsp-description": (rtsp.parse_description, DESCRIPTION.encode()),
    "rtsp-challenge": (_text(lambda text: digest.parse_challenges([text])), b'Digest realm="a", nonce="b", qop="auth,x"'),
    "sdp-offer": (_text(sdp.parse_offer), OFFER.encode()),
    "sdp-fragment": (_text(sdp.parse_fragment), FRAGMENT.encode()),
    "rtp": (packets.parse_rtp, RTP),
    "rtcp": (rtcp.parse_rtcp, RTCP),
    "reception": (_reception, RTP),
    "h264": (_depacketize, RTP),
    "sps": (sps.parse_sps, SPS),
    "sprop": (_text(sps.parse_sprop), b"Z0LAHtkBQfoQAAADABAAAAMDIPFi5IA=,aMuDyyA="),
    "stun": (stun.parse_request, STUN),
    "dtls": (_dtls, CLIENT_HELLO),
    "srtp": (_srtp, RTP + bytes(10)),
    "press": (press.parse_press, PRESS),
    "cancel": (press.parse_cancel, b'{"sid":"b0","pid":"p","ts":1,"sig":"ab"}'),
    "place": (press.parse_correction, b'{"sid":"b0","pid":"p","place":"camera","ts":1,"sig":"ab"}'),
    "location": (roster.parse_location, LOCATION),
    "duty-and-reply": (_decode, b'{"call":"x","act":"accept","ts":1}'),
    "token": (_text(lambda text: KEYRING.verify(text, now_s=1_001)), TOKEN.encode()),
    "cameras.yaml": (_yaml(config.load_cameras, "cameras.yaml"), CAMERAS.encode()),
    "gateway.yaml": (_yaml(config.load_settings, "gateway.yaml"), b"http: {host: 127.0.0.1, port: 8080}\nmqtt: {mode: off}\n"),
    "secrets.yaml": (_yaml(config.load_secrets, "secrets.yaml"), b"boxes: {b0: 'aa'}\nusers: {op: x}\ncredentials: {r: {username: a}}\n"),
    "district.yaml": (_yaml(District.load, "district.yaml"), b"{code: '1', name: x, center: {lat: 1, lon: 2, datum: wgs84}}"),
}  # fmt: skip

_NESTED = b"[" * 2900
FOUND: dict[str, list[bytes]] = {
    # json and msgspec raise RecursionError for depth, which is no ValueError.
    "token": [b".".join([base64.urlsafe_b64encode(_NESTED).rstrip(b"=")] * 2) + b".x"],
    "location": [b"[" * 500],
    "duty-and-reply": [_NESTED, b'{"a":' * 2900],
    "press": [b"[" * 1000],
}


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """A good message with some bytes changed, cut out, doubled or put in; or noise alone."""
    data = bytearray(draw(st.one_of(st.just(good), st.just(good), st.just(good), st.binary(max_size=400))))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at:at] = data[at : at + 60] * draw(st.integers(1, 30))
            case 3:
                data[at:at] = draw(
                    st.sampled_from(
                        [
                            b"\0",
                            b"\r\n",
                            b"\xff\xff\xff\xff",
                            b"9" * 25,
                            b"-1",
                            b"1e999",
                            b":",
                            b'"',
                            b"\xf0\x9f",
                            b"a=",
                            b"&a *a",
                            "０".encode(),
                            "²".encode(),
                        ]
                    )
                )
            case 4 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data[:65_536])


def refuse_or_read(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except REFUSALS:
        return


@pytest.mark.parametrize("name", PARSERS)
def test_noise_is_refused_and_nothing_else_comes_out(name: str) -> None:
    parse, good = PARSERS[name]

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES <= 60
    )  # fmt: skip
    @given(damaged(good))
    @example(good)
    @example(b"")
    def run(data: bytes) -> None:
        refuse_or_read(parse, data)

    run()
    for data in FOUND.get(name, ()):
        refuse_or_read(parse, data)


BOMBS = {
    "long line": b"a" * 65_000, "many lines": b"a=b\r\n" * 13_000, "zeros": bytes(65_000), "ones": b"\xff" * 65_000,
    "brackets": b"[" * 65_000, "braces": b'{"a":' * 13_000, "digits": b"9" * 65_000, "commas": b"," * 65_000,
    "sections": b"m=video 9 UDP/TLS/RTP/SAVPF 96\r\n" * 2_000, "formats": b"m=video 9 UDP/TLS/RTP/SAVPF" + b" 96" * 20_000,
    "colons": b":" * 65_000, "quotes": b'"' * 65_000, "dashes": b"- " * 32_000, "digest": b'Digest a="' + b"\\" * 60_000,
    "anchors": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(12)),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", PARSERS)
def test_a_bomb_takes_bounded_memory_and_time(name: str, bomb: str) -> None:
    parse, good = PARSERS[name]
    for data in (BOMBS[bomb], (good + BOMBS[bomb])[:65_536]):
        tracemalloc.start()
        began = time.thread_time()
        try:
            refuse_or_read(parse, data)
            assert time.thread_time() - began < MOST_CPU_S
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        finally:
            tracemalloc.stop()


def test_a_good_message_is_read() -> None:
    """Else the fuzzing would only ever see the first check."""
    for name, (parse, good) in PARSERS.items():
        if name in ("secrets.yaml", "district.yaml", "srtp"):
            continue
        parse(good)
    assert json.loads(PRESS)
