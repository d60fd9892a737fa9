"""The shell on real sockets, with aiortc as the peer."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from gateway.streams import link, sdp
from gateway.streams.dtls import Certificate
from gateway.streams.srtp import Profile

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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

    def on_rtp(self, packet: bytes, now: float) -> None:
        self.rtp.append(packet)
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
