"""The shell on real sockets, with aiortc as the peer."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aioice.stun
import pytest
from aiortc import RTCCertificate, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from OpenSSL import SSL

from gateway.errors import ConfigError, ProtocolError
from gateway.streams import link, sdp
from gateway.streams.carrier import TCP_MAX_FRAME, UdpSocket, expand_binds
from gateway.streams.dtls import Certificate
from gateway.streams.ice import CONSENT_S, IceCredentials
from gateway.streams.srtp import Profile, SrtpKeys, SrtpReceiver, SrtpSender

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("send_loop"),
]


class Recorder:
    """Handlers that keep what came, with futures for the milestones."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[str] = loop.create_future()
        self.rtp: list[bytes] = []
        self.rtcp: list[bytes] = []
        self.rtcp_came = asyncio.Event()
        self.rtp_came = asyncio.Event()

    def on_connected(self) -> None:
        self.connected.set_result(None)

    def on_rtp(self, packets: Sequence[bytes], now: float) -> None:
        self.rtp += packets
        self.rtp_came.set()

    def on_rtcp(self, compound: bytes, now: float) -> None:
        self.rtcp.append(compound)
        self.rtcp_came.set()

    def on_closed(self, reason: str) -> None:
        self.closed.set_result(reason)


def remote_of(offer: sdp.Offer) -> link.RemoteTransport:
    return link.RemoteTransport(
        ufrag=offer.ice_ufrag,
        pwd=offer.ice_pwd,
        fingerprint_algorithm=offer.fingerprint_algorithm,
        fingerprint=offer.fingerprint,
    )


def answer_for(offer: sdp.Offer, port: link.MediaPort, made: link.Link, track: sdp.SendTrack) -> str:
    section = offer.first("video")
    assert section is not None
    choice = sdp.choose_h264(section, "640028")
    assert choice is not None
    types = (choice.payload_type,) if choice.rtx is None else (choice.payload_type, choice.rtx)
    return sdp.write_answer(
        offer,
        {section.mid: sdp.Answer(payload_types=types, direction=sdp.Direction.SENDONLY, track=track)},
        session_id=secrets.randbits(62),
        ice_ufrag=made.local.ufrag,
        ice_pwd=made.local.pwd,
        fingerprint=port.certificate.fingerprint,
        candidates=port.candidates(),
    )


TRACK = sdp.SendTrack(ssrc=0x1111, rtx_ssrc=0x2222, cname="gateway", stream_id="s", track_id="v")


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_aiortc_connects_and_receives(profile: Profile, host: str) -> None:
    port = await link.MediaPort.open([(host, 0)], certificate=Certificate(profiles=[profile]), tcp=False)
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        client.addTransceiver("video", direction="recvonly")
        await client.setLocalDescription(await client.createOffer())
        offer = sdp.parse_offer(client.localDescription.sdp)
        handlers = Recorder()
        made = port.create_link(remote_of(offer), handlers, port.clock())
        answer = answer_for(offer, port, made, TRACK)
        await client.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
        async with asyncio.timeout(10):
            await handlers.connected
            assert made.srtp is not None
            buffers = made.srtp.seal_group(
                [b"\x65" + bytes(99)] * 3,
                first_index=100,
                timestamp=9000,
                ssrc=TRACK.ssrc,
                payload_type=sdp.choose_h264(offer.first("video"), "640028").payload_type,
                marker=True,
            )
            assert made.send_segments(buffers, 100 + made.srtp.segment_overhead, 3)
            await handlers.rtcp_came.wait()  # aiortc's receiver reports
        await client.close()
        async with asyncio.timeout(5):
            assert await handlers.closed == "closed by the peer (DTLS close_notify)"
        assert port.links == 0
    finally:
        await client.close()
        await port.close()


# --- a hand-written client, over UDP or TCP ---


class Client:
    """A controlling ICE agent with a DTLS client; each step is said by the test."""

    def __init__(self, port: link.MediaPort, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.remote = link.RemoteTransport(
            ufrag="them", pwd="t" * 24, fingerprint_algorithm="sha-256", fingerprint=CLIENT_FINGERPRINT
        )
        self.handlers = Recorder()
        self.link = port.create_link(self.remote, self.handlers, port.clock())
        self.credentials = self.link.local
        self.ssl = SSL.Connection(CLIENT_CONTEXT, None)
        self.ssl.set_connect_state()
        self.ssl.set_ciphertext_mtu(1200)
        self.sender: SrtpSender
        self.receiver: SrtpReceiver

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    async def receive(self) -> bytes:
        async with asyncio.timeout(3):
            return await self.loop.sock_recv(self.sock, 2048)

    async def check(
        self, *, use: bool = True, local: IceCredentials | None = None, ufrag: str = "them"
    ) -> aioice.stun.Message:
        local = local or self.credentials
        message = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST)
        message.attributes["USERNAME"] = f"{local.ufrag}:{ufrag}"
        message.attributes["PRIORITY"] = 1
        message.attributes["ICE-CONTROLLING"] = 5
        if use:
            message.attributes["USE-CANDIDATE"] = None
        message.add_message_integrity(local.pwd.encode())
        message.add_fingerprint()
        await self.send(bytes(message))
        response = aioice.stun.parse_message(await self.receive())
        assert response.check_message_integrity(local.pwd.encode())
        assert response.transaction_id == message.transaction_id
        return response

    def flush(self) -> list[bytes]:
        out = []
        while True:
            try:
                out.append(self.ssl.bio_read(65536))
            except SSL.WantReadError:
                return out

    async def handshake(self) -> None:
        while True:
            try:
                self.ssl.do_handshake()
            except SSL.WantReadError:
                for datagram in self.flush():
                    await self.send(datagram)
                self.ssl.bio_write(await self.receive())
            else:
                break
        await self.handlers.connected
        profile = Profile(self.ssl.get_selected_srtp_profile().decode())
        key, salt = profile.key_length, profile.salt_length
        block = self.ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key + salt))
        salts = block[2 * key :]
        self.sender = SrtpSender.create(SrtpKeys.derive(profile, block[:key], salts[:salt]))
        self.receiver = SrtpReceiver(SrtpKeys.derive(profile, block[key : 2 * key], salts[salt:]))

    async def connect(self) -> None:
        await self.check(use=False)
        await self.handshake()
        await self.check(use=True)

    def move(self, port: link.MediaPort) -> None:
        """Go on from another source port, as behind a NAT that rebound."""
        self.sock.close()
        self.sock = udp_socket(port)


def _identity() -> tuple[SSL.Context, str]:
    certificate = RTCCertificate.generateCertificate()
    context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    context.use_privatekey(certificate._key)
    context.use_certificate(certificate._cert)
    context.set_tlsext_use_srtp(b"SRTP_AEAD_AES_128_GCM:SRTP_AES128_CM_SHA1_80")
    context.set_options(SSL.OP_NO_QUERY_MTU)
    return context, certificate.getFingerprints()[0].value


CLIENT_CONTEXT, CLIENT_FINGERPRINT = _identity()


def udp_socket(port: link.MediaPort) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.connect(("127.0.0.1", port.candidates()[0].port))
    sock.setblocking(False)
    return sock


@pytest.fixture
async def port() -> AsyncIterator[link.MediaPort]:
    opened = await link.MediaPort.open([("127.0.0.1", 0)], certificate=Certificate())
    yield opened
    await opened.close()


@pytest.fixture
async def client(port: link.MediaPort) -> AsyncIterator[Client]:
    made = Client(port, udp_socket(port))
    yield made
    made.sock.close()


async def settle(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is true (bounded)."""
    async with asyncio.timeout(3):
        while not condition():  # counters and lists have no event
            await asyncio.sleep(0.005)


async def media_arrives(client: Client, index: int) -> None:
    """Three packets go out in one batch and come as three datagrams that open."""
    srtp = client.link.srtp
    assert srtp is not None
    payloads = [b"a" * 300, b"b" * 300, b"c" * 120]
    buffers = srtp.seal_group(payloads, first_index=index, timestamp=1, ssrc=5, payload_type=96, marker=True)
    assert client.link.send_segments(buffers, 300 + srtp.segment_overhead, 3)
    for payload in payloads:
        assert client.receiver.unprotect(await client.receive())[12:] == payload


async def test_media_both_ways(port: link.MediaPort, client: Client) -> None:
    assert not client.link.send_rtcp(bytes(8))
    await client.connect()
    assert client.link.remote_address == client.sock.getsockname()
    assert client.link.protocol == "udp"
    await media_arrives(client, 1)
    report = bytes.fromhex("80c9000100000007")
    assert client.link.send_rtcp(report)
    assert client.receiver.unprotect_rtcp(await client.receive()) == report
    await client.send(client.sender.protect_rtcp(report))
    await client.send(
        b"".join(
            client.sender.seal_group(
                [b"up"], first_index=1, timestamp=2, ssrc=7, payload_type=96, marker=True
            )
        )
    )
    await settle(lambda: client.handlers.rtcp and client.handlers.rtp)
    assert client.handlers.rtcp == [report]
    assert client.handlers.rtp[0][12:] == b"up"


async def test_rebinding_is_followed_after_a_check(port: link.MediaPort, client: Client) -> None:
    await client.connect()
    client.move(port)
    await client.send(client.sender.protect_rtcp(bytes.fromhex("80c9000100000007")))
    await settle(lambda: port.counters["unknown_address"] == 1)  # not before it authenticated
    await client.check()
    assert client.link.remote_address == client.sock.getsockname()
    assert client.link.moves == 1
    await media_arrives(client, 1)


async def test_restart_keeps_dtls_and_media(port: link.MediaPort, client: Client) -> None:
    await client.connect()
    old = client.credentials
    client.credentials = client.link.restart_ice(
        link.RemoteTransport(
            ufrag="anew", pwd="n" * 24, fingerprint_algorithm="sha-256", fingerprint=CLIENT_FINGERPRINT
        )
    )
    assert client.link.local == client.credentials != old
    await client.check(local=old)
    await media_arrives(client, 1)
    client.move(port)
    await client.check(ufrag="anew")
    await media_arrives(client, 10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.check(local=old)
    assert port.counters["stun_unknown_ufrag"] == 1


async def test_consent_loss_ends_the_link(port: link.MediaPort, client: Client) -> None:
    await client.connect()
    port.handle_timeout(time.monotonic() + CONSENT_S - 5)
    assert not client.handlers.closed.done()
    port.handle_timeout(time.monotonic() + CONSENT_S + 1)
    assert "consent lost" in await client.handlers.closed
    assert port.links == 0
    assert client.link.srtp is None
    with pytest.raises(SSL.ZeroReturnError):  # close_notify tells the page at once
        client.ssl.bio_write(await client.receive())
        client.ssl.recv(100)


async def test_no_check_came(port: link.MediaPort, client: Client) -> None:
    port.handle_timeout(time.monotonic() + 31)
    assert "no connectivity check" in await client.handlers.closed


async def test_fingerprint_mismatch_is_named(port: link.MediaPort) -> None:
    client = Client(port, udp_socket(port))
    client.link.close()
    wrong = link.RemoteTransport(
        ufrag="them", pwd="t" * 24, fingerprint_algorithm="sha-256", fingerprint=":".join(["00"] * 32)
    )
    client.handlers = Recorder()
    client.link = port.create_link(wrong, client.handlers, port.clock())
    client.credentials = client.link.local
    await client.check()
    handshake = asyncio.create_task(client.handshake())
    assert "fingerprint mismatch" in await client.handlers.closed
    handshake.cancel()
    await asyncio.gather(handshake, return_exceptions=True)
    client.handlers.connected.cancel()
    client.sock.close()


async def test_close_is_told_once(port: link.MediaPort, client: Client) -> None:
    await client.connect()
    client.link.close("the viewer left")
    client.link.close("again")
    assert await client.handlers.closed == "the viewer left"
    assert not client.link.send_segments([b"x"], 1, 1)
    assert not client.link.send_rtcp(bytes(8))


async def test_a_newer_session_takes_over_an_address(port: link.MediaPort, client: Client) -> None:
    await client.connect()
    second = Client(port, client.sock)
    await second.check()
    assert client.link.remote_address is None
    await second.handshake()
    await media_arrives(second, 1)


async def test_garbage_is_counted_and_harms_nobody(port: link.MediaPort, client: Client) -> None:
    await client.connect()
    stranger = udp_socket(port)
    loop = asyncio.get_running_loop()
    for data in (b"\0", b"\x00\x01" + bytes(18), b"\x16" * 40, b"\x80" * 40, b"\xff" * 40):
        await loop.sock_sendall(stranger, data)
        await client.send(data)
    stranger.close()
    await settle(lambda: port.counters.total() >= 9)
    assert port.counters["unknown_address"] == 3
    assert port.counters["stun_truncated"] == 2
    assert port.counters["stun_cookie"] == 2
    assert port.counters["unknown_protocol"] == 1
    await media_arrives(client, 1)


async def test_a_failing_handler_ends_its_own_link_alone(
    port: link.MediaPort, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.connect()
    other = Client(port, udp_socket(port))
    await other.connect()

    def fail(compound: bytes, now: float) -> None:
        raise RuntimeError("broken")

    client.handlers.on_rtcp = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.CRITICAL, logger="gateway.streams.link"):
        await client.send(client.sender.protect_rtcp(bytes.fromhex("80c9000100000007")))
        assert await client.handlers.closed == "internal error"
    await media_arrives(other, 1)
    other.sock.close()


async def test_without_gso_segments_are_sent_one_by_one(port: link.MediaPort, client: Client) -> None:
    await client.connect()
    carrier = client.link._carrier
    assert isinstance(carrier, UdpSocket)
    # 64 KiB and more than 64 segments is what the kernel refuses with EINVAL.
    segments = [bytes([n]) * 20 for n in range(130)]
    assert client.link.send_segments(segments, 20, 130)
    assert [await client.receive() for _ in segments] == segments
    assert port.counters["gso_refused"] == 1
    assert carrier.gate is None or not carrier.gate.open
    await media_arrives(client, 1)


async def test_reports_of_quiet_viewers_are_read_together_and_a_join_at_once(
    port: link.MediaPort, client: Client
) -> None:
    await client.connect()
    carrier = client.link._carrier
    assert isinstance(carrier, UdpSocket)
    loop, descriptor = asyncio.get_running_loop(), carrier._sock.fileno()
    report = client.sender.protect_rtcp(bytes.fromhex("80c9000100000007"))

    def is_watched() -> bool:
        watched = loop.remove_reader(descriptor)
        if watched:
            loop.add_reader(descriptor, carrier._readable)
        return watched

    assert is_watched(), "right after a handshake nothing waits"
    port.quick_until = 0.0  # that time is over
    client.sock.send(report)
    carrier._readable()
    assert not is_watched()
    client.sock.send(client.sender.protect_rtcp(bytes.fromhex("80c9000100000007")))
    await settle(lambda: len(client.handlers.rtcp) == 2)
    await settle(is_watched)  # nothing came any more
    client.sock.send(client.sender.protect_rtcp(bytes.fromhex("80c9000100000007")))
    carrier._readable()
    assert not is_watched()
    other = Client(port, udp_socket(port))
    assert is_watched()
    await other.connect()
    port.quick_until = 0.0
    # A viewer that misses packets (a NACK, RFC 4585) makes it quick for all.
    client.sock.send(client.sender.protect_rtcp(bytes.fromhex("81cd0003000000070000000500010000")))
    carrier._readable()
    assert is_watched()
    await media_arrives(other, 1)
    other.sock.close()


async def test_a_full_kernel_queue_keeps_one_batch_and_drops_the_rest(
    port: link.MediaPort, tmp_path: Path
) -> None:
    # Loopback UDP never says EAGAIN, datagrams between Unix sockets do; the carrier sees no difference.
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "receiver"))
    receiver.setblocking(False)
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setblocking(False)
    carrier = UdpSocket(port, sender)
    address: Any = str(tmp_path / "receiver")
    accepted = 0
    while port.counters["send_blocked"] == 0 and accepted < 5000:
        assert carrier.send_segments([accepted.to_bytes(4, "big")], 4, 1, address)
        accepted += 1
    assert port.counters["send_blocked"] == 1
    assert carrier.gate is None or not carrier.gate.open  # the compiled loop must not overtake
    assert not carrier.send(b"dropped", address)
    assert port.counters["send_dropped"] == 1
    received = []
    async with asyncio.timeout(3):
        while len(received) < accepted:
            received.append(await asyncio.get_running_loop().sock_recv(receiver, 100))
    assert received == [n.to_bytes(4, "big") for n in range(accepted)]  # nothing lost, nothing overtaken
    assert carrier.gate is None or carrier.gate.open
    assert carrier.send(b"again", address)
    assert await asyncio.get_running_loop().sock_recv(receiver, 100) == b"again"
    carrier.close()
    assert carrier.gate is None or not carrier.gate.open
    receiver.close()


# --- ICE-TCP ---


class TcpClient(Client):
    async def open(self, port: link.MediaPort) -> None:
        await self.loop.sock_connect(self.sock, ("127.0.0.1", port.candidates()[-1].port))
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await super().send(len(data).to_bytes(2, "big") + data)

    async def receive(self) -> bytes:
        while len(self.buffer) < 2 or len(self.buffer) < 2 + int.from_bytes(self.buffer[:2], "big"):
            more = await super().receive()
            if not more:
                raise EOFError
            self.buffer += more
        size = int.from_bytes(self.buffer[:2], "big")
        frame, self.buffer = self.buffer[2 : 2 + size], self.buffer[2 + size :]
        return frame


@pytest.fixture
async def tcp_client(port: link.MediaPort) -> AsyncIterator[TcpClient]:
    made = TcpClient(port, socket.socket())
    await made.open(port)
    yield made
    made.sock.close()


async def test_tcp_carries_the_same(port: link.MediaPort, tcp_client: TcpClient) -> None:
    assert [candidate.protocol for candidate in port.candidates()] == ["udp", "tcp"]
    await tcp_client.connect()
    assert tcp_client.link.protocol == "tcp"
    await media_arrives(tcp_client, 1)
    tcp_client.sock.close()
    await settle(lambda: tcp_client.link.remote_address is None)
    assert not tcp_client.handlers.closed.done()  # it may come back by another path within its consent


async def test_tcp_needs_a_check_first(port: link.MediaPort, tcp_client: TcpClient) -> None:
    await tcp_client.send(b"\x16" * 30)
    with pytest.raises((EOFError, ConnectionError)):
        await tcp_client.receive()
    assert port.counters["tcp_before_stun"] == 1


async def test_tcp_frames_are_bounded(port: link.MediaPort, tcp_client: TcpClient) -> None:
    await tcp_client.send(bytes(TCP_MAX_FRAME + 1))
    with pytest.raises((EOFError, ConnectionError)):
        await tcp_client.receive()
    assert port.counters["tcp_frame_too_long"] == 1


async def test_silent_tcp_connections_are_closed(port: link.MediaPort, tcp_client: TcpClient) -> None:
    await settle(lambda: port._connections)
    port.handle_timeout(time.monotonic() + 11)
    with pytest.raises((EOFError, ConnectionError)):
        await tcp_client.receive()
    assert port.counters["tcp_unauthenticated"] == 1


async def test_a_slow_tcp_viewer_loses_packets_not_memory(
    port: link.MediaPort, tcp_client: TcpClient
) -> None:
    await tcp_client.connect()
    sent = [tcp_client.link.send_segments([bytes(1000)] * 50, 1000, 50) for _ in range(300)]
    assert sent[0]
    assert not sent[-1]
    assert port.counters["tcp_dropped"] == 50 * sent.count(False)


# --- the port itself ---


async def test_a_taken_port_is_named(port: link.MediaPort) -> None:
    number = port.candidates()[0].port
    with pytest.raises(ConfigError, match=f"UDP 127.0.0.1 port {number}"):
        await link.MediaPort.open([("127.0.0.1", number)], certificate=port.certificate)


async def test_announced_addresses_follow_the_bound_ones() -> None:
    port = await link.MediaPort.open(
        [("127.0.0.1", 0)],
        certificate=Certificate(),
        announce=[("203.0.113.5", 0), ("203.0.113.6", 9000)],
        tcp=False,
    )
    number = port.candidates()[0].port
    assert [(c.host, c.port) for c in port.candidates()] == [
        ("127.0.0.1", number),
        ("203.0.113.5", number),
        ("203.0.113.6", 9000),
    ]
    await port.close()


def test_wildcards_become_addresses() -> None:
    hosts = [host for host, _ in expand_binds([("0.0.0.0", 1), ("::", 1), ("192.0.2.77", 2)])]
    assert "192.0.2.77" in hosts
    assert len(hosts) >= 2
    assert not {"0.0.0.0", "::"} & set(hosts)
    assert not any(host.startswith("fe80") for host in hosts)


async def test_an_uncheckable_fingerprint_is_refused(port: link.MediaPort) -> None:
    with pytest.raises(ProtocolError):
        port.create_link(
            link.RemoteTransport(ufrag="them", pwd="t" * 24, fingerprint_algorithm="md5", fingerprint="00"),
            Recorder(),
            port.clock(),
        )
    assert port.links == 0


async def test_a_closed_link_is_not_kept_until_its_deadline(port: link.MediaPort) -> None:
    """Deadlines lie half a minute ahead; sessions that come and go faster must not pile up until then."""
    remote = link.RemoteTransport(
        ufrag="them", pwd="p" * 24, fingerprint_algorithm="sha-256", fingerprint=CLIENT_FINGERPRINT
    )
    handlers = [Recorder() for _ in range(3)]
    gone = [weakref.ref(one) for one in handlers]  # a link holds its handlers
    for one in [port.create_link(remote, one, port.clock()) for one in handlers]:
        one.close("left")
    del one
    handlers.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    port.handle_timeout(port.clock() + 120)  # what is left of them is passed over
    assert port.links == 0
