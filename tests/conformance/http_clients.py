"""WHEP and WHIP over HTTP as a client sees it: aiortc peers, requests with their answers, SDP read by hand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiortc import AudioStreamTrack, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpPsfbPacket, RtcpRrPacket
from gateway_process import WORKER, Running
from yarl import URL

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: Any
    body: str
    url: URL

    @property
    def location(self) -> str:
        return str(self.url.join(URL(self.headers["Location"])))

    @property
    def etag(self) -> str:
        return str(self.headers["ETag"])

    def problem(self) -> dict[str, Any]:
        """The problem document (RFC 9457), checked for its members."""
        import json

        assert self.headers["Content-Type"].startswith("application/problem+json"), self.headers
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        assert document["title"]
        assert document["detail"]
        return document


async def request(
    http: aiohttp.ClientSession, method: str, url: str, *, body: str = "", **headers: str
) -> Answer:
    """One request without following redirects. Header names with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.request(method, url, data=body.encode(), headers=named, allow_redirects=False) as reply:
        return Answer(status=reply.status, headers=reply.headers, body=await reply.text(), url=reply.url)


@dataclass(slots=True)
class Packets:
    """Sequence numbers of one stream, unwrapped (RFC 3550 appendix A.1)."""

    received: set[int] = field(default_factory=set)
    highest: int | None = None
    repaired: int = 0

    def add(self, number: int) -> None:
        if self.highest is None:
            self.highest = number
        extended = self.highest + ((number - self.highest + 0x8000) & 0xFFFF) - 0x8000
        self.highest = max(self.highest, extended)
        self.received.add(extended)

    def missing(self, *, under_way: int = 30) -> tuple[int, int]:
        """(missing, expected) numbers; the last ones may still be on their way again."""
        assert self.highest is not None
        expected = range(min(self.received), self.highest - under_way)
        return sum(number not in self.received for number in expected), len(expected)


class Peer:
    """An aiortc peer: what it decodes is counted, what it says is SDP text."""

    def __init__(self, *, receive: str = "video", send: str = "", codec: str | None = None) -> None:
        """receive, send: of `video` and `audio`, separated by spaces; codec: the only video codec offered."""
        self.pc = RTCPeerConnection()
        self.frames = 0
        self.audio_frames = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.pc.on("track", self._on_track)
        for kind in receive.split():
            self._only(self.pc.addTransceiver(kind, direction="recvonly"), codec)
        for kind in send.split():
            track = VideoStreamTrack() if kind == "video" else AudioStreamTrack()
            self._only(self.pc.addTransceiver(track, direction="sendonly"), codec)

    @staticmethod
    def _only(transceiver: Any, codec: str | None) -> None:
        if codec is not None and transceiver.kind == "video":
            from aiortc import RTCRtpReceiver

            codecs = RTCRtpReceiver.getCapabilities("video").codecs
            transceiver.setCodecPreferences([one for one in codecs if one.mimeType == f"video/{codec}"])

    def _on_track(self, track: Any) -> None:
        self._tasks.append(asyncio.ensure_future(self._consume(track)))

    async def _consume(self, track: Any) -> None:
        while True:
            try:
                await track.recv()
            except MediaStreamError:
                return
            if track.kind == "video":
                self.frames += 1
            else:
                self.audio_frames += 1

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        text: str = self.pc.localDescription.sdp
        return text

    async def accept(self, answer_sdp: str) -> None:
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=answer_sdp, type="answer"))

    async def join(
        self, http: aiohttp.ClientSession, url: str, *, via: tuple[str, int] | None = None, **headers: str
    ) -> Answer:
        """Offer, POST and answer. The session is the caller's to delete. via: media goes by this UDP address."""
        answer = await request(http, "POST", url, body=await self.offer(), **{"Content_Type": SDP, **headers})
        if answer.status == 201:
            await self.accept(answer.body if via is None else redirected(answer.body, via))
        return answer

    def tap_pictures(self) -> list[tuple[int, bool]]:
        """A list that grows by (RTP timestamp, has an IDR slice) of each picture sent under the video's own SSRC."""
        pictures: list[tuple[int, bool]] = []
        transport = self.pc.getTransceivers()[0].receiver.transport
        handle = transport._handle_rtp_data
        ssrc = self._video_ssrc()

        async def tapped(data: bytes, arrival_time_ms: int) -> None:
            if int.from_bytes(data[8:12], "big") == ssrc:
                timestamp, payload = int.from_bytes(data[4:8], "big"), data[12:]
                kind = payload[0] & 31
                idr = kind == 5 or (kind == 28 and payload[1] & 0x9F == 0x85)
                if not pictures or pictures[-1][0] != timestamp:
                    pictures.append((timestamp, idr))
                elif idr:
                    pictures[-1] = (timestamp, True)
            await handle(data, arrival_time_ms=arrival_time_ms)

        transport._handle_rtp_data = tapped
        return pictures

    def tap_packets(self) -> Packets:
        """Which packets of the picture come from now on, first or again."""
        packets = Packets()
        transport = self.pc.getTransceivers()[0].receiver.transport
        handle = transport._handle_rtp_data
        own, again = map(int, attributes(self.pc.remoteDescription.sdp, "ssrc-group")[0].split()[1:3])

        async def tapped(data: bytes, arrival_time_ms: int) -> None:
            ssrc = int.from_bytes(data[8:12], "big")
            if ssrc == own:
                packets.add(int.from_bytes(data[2:4], "big"))
            elif (
                ssrc == again and len(data) >= 14
            ):  # RFC 4588 section 4: the original number leads the payload
                packets.repaired += 1
                packets.add(int.from_bytes(data[12:14], "big"))
            await handle(data, arrival_time_ms=arrival_time_ms)

        transport._handle_rtp_data = tapped
        return packets

    def _video_ssrc(self) -> int:
        """The answer's first SSRC is the video's own (RFC 5576), RTX comes second."""
        return int(attributes(self.pc.remoteDescription.sdp, "ssrc")[0].split()[0])

    async def ask_for_keyframe(self, kind: str) -> None:
        """Sends a PLI or a FIR for the picture."""
        receiver, ssrc = self.pc.getTransceivers()[0].receiver, self._video_ssrc()
        ours = receiver._RTCRtpReceiver__rtcp_ssrc or 1
        if kind == "pli":
            feedback = RtcpPsfbPacket(fmt=1, ssrc=ours, media_ssrc=ssrc)
        else:
            entry = ssrc.to_bytes(4, "big") + bytes([1, 0, 0, 0])
            feedback = RtcpPsfbPacket(fmt=4, ssrc=ours, media_ssrc=0, fci=entry)
        await receiver.transport._send_rtp(bytes(RtcpRrPacket(ssrc=ours)) + bytes(feedback))

    def go_silent(self) -> None:
        """Stops every connectivity check and every answer, as a machine that was switched off."""
        ice = self.pc.getTransceivers()[0].receiver.transport.transport
        connection = ice._connection
        if connection._query_consent_task is not None:
            connection._query_consent_task.cancel()
        for protocol in connection._protocols:
            protocol.transport.close()

    async def close(self) -> None:
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def redirected(sdp: str, to: tuple[str, int]) -> str:
    """The answer with one UDP candidate, at another address."""
    lines = re.sub(r"a=candidate:.* (?i:tcp) .*\r\n", "", sdp)
    return re.sub(r"(a=candidate:\S+ 1 (?i:udp) \d+) \S+ \d+", rf"\g<1> {to[0]} {to[1]}", lines)


def attributes(sdp: str, name: str) -> list[str]:
    """Values of every `a=name:value` line."""
    return re.findall(rf"^a={name}:(.*?)\r?$", sdp, re.MULTILINE)


def trickle(ufrag: str, mid: str = "0") -> str:
    """A fragment with candidates of every kind that a lite agent has no use for (RFC 8840 section 9)."""
    return (
        f"a=ice-ufrag:{ufrag}\r\na=ice-pwd:{'p' * 22}\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:{mid}\r\n"
        "a=candidate:1 1 udp 2130706431 198.51.100.1 61764 typ host\r\n"
        "a=candidate:2 1 tcp 1518280447 198.51.100.1 9 typ host tcptype active\r\n"
        "a=candidate:3 1 udp 2122260223 5c6dc5b3-6f42-4ae5-8f4d-1fe0c0a3a1c5.local 50000 typ host\r\n"
        "a=candidate:4 1 quic 1 example 1 typ strange\r\na=end-of-candidates\r\n"
    )


async def eventually(condition: Callable[[], Any], timeout_s: float = 15.0, why: str = "") -> Any:
    """The first true value of a plain or async condition."""
    found: Any = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"never came: {why or condition} (last {found!r})") from None


async def open_call(gateway: Running, http: aiohttp.ClientSession) -> tuple[str, str, str]:
    """A gridworker calls the center and an operator joins. Returns (legs' base URL, worker's leg, operator's leg)."""
    calls = f"{gateway.base}/api/v1/calls"
    worker, operator = await gateway.bearer("worker", WORKER), await gateway.bearer()
    async with http.post(calls, json={}, headers=worker) as reply:
        assert reply.status == 201, await reply.text()
        call = await reply.json()
    async with http.post(f"{calls}/{call['id']}/join", json={}, headers=operator) as reply:
        assert reply.status == 200, await reply.text()
        joined = await reply.json()
    return f"{calls}/{call['id']}/legs", call["leg"], joined["leg"]


async def hang_up(gateway: Running, http: aiohttp.ClientSession, legs: str) -> None:
    url = legs.removesuffix("/legs") + "/hangup"
    async with http.post(url, json={}, headers=await gateway.bearer()) as reply:
        assert reply.status == 200, await reply.text()
