"""A call's leg on networks as phones have them: the publisher's link is a lossy relay of our own, a desk watches on a good one.

Said in pictures and sounds that are decoded at the other end, not in seconds: a slow machine changes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiortc import (
    AudioStreamTrack,
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
)
from playwright.async_api import async_playwright
from test_browser_media import FLAGS, PAGE
from webrtc_clients import WhepClient, WhipClient, eventually, running_plane

from gateway.config import Secrets
from gateway.media_setup import ice_servers
from gateway.settings import MediaSettings, TurnSettings
from gateway.streams.session import SessionKind
from gateway.streams.whep import EdgeRequest, SessionEndpoint

sys.path.append(str(Path(__file__).parents[1]))
from netem import Relay, Shape

pytestmark = pytest.mark.realtime
LEG = "call/c1/leg1"
MOBILE = Shape(delay_s=0.03, jitter_s=0.01)


def redirected(sdp: str, to: tuple[str, int]) -> str:
    """The answer with its UDP candidates at another address."""
    lines = re.sub(r"a=candidate:.* (?i:tcp) .*\r\n", "", sdp)
    return re.sub(r"(a=candidate:\S+ 1 (?i:udp) \d+) \S+ \d+", rf"\g<1> {to[0]} {to[1]}", lines)


def address_of(plane: Any) -> tuple[str, int]:
    """One of the plane's own: it binds each address of the machine, never a wildcard."""
    candidate = next(one for one in plane.port.candidates() if ":" not in one.host)
    return candidate.host, candidate.port


class Call:
    """A publisher behind a relay, a viewer beside the plane, and what the plane tells of the leg."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.relay: Relay | None = None
        self.viewer = WhepClient(audio=True)
        self.publisher = WhipClient()

    @asynccontextmanager
    async def on(self, **shapes: Shape) -> AsyncIterator[Call]:
        def changed(source_id: str, tracks: tuple[str, ...]) -> None:
            self.told.append(tracks)

        async with running_plane(on_source_change=changed) as plane:  # noqa: SIM117 - the second needs the first
            async with await Relay.open(address_of(plane), **shapes) as self.relay:
                try:
                    await self.viewer.watch(plane, LEG)
                    answer = await plane.publish(LEG, await self.publisher.offer(), owner="w")
                    text = redirected(answer.sdp, self.relay.address)
                    await self.publisher.pc.setRemoteDescription(
                        RTCSessionDescription(sdp=text, type="answer")
                    )
                    self.plane = plane
                    yield self
                finally:
                    await self.publisher.close()
                    await self.viewer.close()

    def incoming(self) -> dict[str, Any]:
        """Counters of the publisher's tracks by kind."""
        (session,) = [one for one in self.plane._sessions.values() if one.kind is SessionKind.PUBLISH]
        return {str(one.media.kind): one.stats for one in session.publisher.tracks}

    async def another_desk(self) -> None:
        """It joins now: behind a hole aiortc's receiver waits for 1,024 packets, a browser's for a keyframe."""
        await self.viewer.close()
        self.viewer = WhepClient(audio=True)
        await self.viewer.watch(self.plane, LEG)

    async def goes_on(self, *, pictures: int = 15, sounds: int = 50, timeout_s: float = 60) -> None:
        """So many more pictures and sounds are decoded."""
        seen, heard = len(self.viewer.frames), len(self.viewer.audio_frames)
        await eventually(
            lambda: (
                len(self.viewer.frames) >= seen + pictures and len(self.viewer.audio_frames) >= heard + sounds
            ),
            timeout_s,
        )


async def test_ten_percent_of_loss_is_repaired_by_retransmission() -> None:
    lossy = Shape(loss=0.1, delay_s=0.02, jitter_s=0.005)
    async with Call().on(up=lossy, down=lossy) as call:
        await call.goes_on(pictures=20, sounds=100)
        video = call.incoming()["video"]
        await eventually(lambda: video.packets > 400, 60)
        lost = call.relay.counters("up")["lost"]
        assert lost > 0.05 * (video.packets + call.incoming()["audio"].packets)
        assert video.recovered > 0.05 * video.packets
        assert video.lost < 0.02 * video.packets, (
            "of ten that the path lost at least eight came in time after all"
        )
        assert video.keyframe_requests < 0.02 * video.packets


async def test_half_a_second_of_delay_costs_nothing_but_delay() -> None:
    slow = Shape(delay_s=0.5)
    async with Call().on(up=slow, down=slow) as call:
        await call.goes_on(pictures=45, sounds=100)
        assert call.incoming()["video"].lost == 0
        assert () not in call.told


async def test_a_change_of_address_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "aioice.ice.CONSENT_INTERVAL", 1
    )  # its next check tells of the address: 5 s otherwise
    async with Call().on(up=MOBILE, down=MOBILE) as call:
        await call.goes_on()
        call.relay.rebind()  # Wi-Fi to mobile, as far as the gateway can see
        came = call.incoming()["video"].packets
        await call.another_desk()
        await call.goes_on(pictures=15, sounds=50)
        await eventually(lambda: call.incoming()["video"].packets > came + 30, 20)
        assert call.relay.rebinds == 1


async def test_after_ten_dark_seconds_sound_and_picture_are_back() -> None:
    async with Call().on(up=MOBILE, down=MOBILE) as call:
        await call.goes_on()
        call.relay.blackout(10)
        await eventually(lambda: call.told[-1] == (), 8)  # so the call asks for ICE restarts meanwhile
        await asyncio.sleep(8)
        await eventually(lambda: set(call.told[-1]) == {"audio", "video"}, 20)
        await call.goes_on()


@pytest.mark.browser
async def test_on_a_narrow_path_chromiums_encoder_yields_and_the_sound_stays() -> None:
    """A phone whose path becomes narrower than its picture: REMB is all that tells its H.264 encoder so."""
    async with chromium_on(MOBILE, {"width": 640, "height": 480, "frameRate": 30}) as call:
        video, sound = (call.incoming()[kind] for kind in ("video", "audio"))
        await eventually(lambda: len(call.viewer.frames) > 15 and sound.packets > 100, 60)
        assert await call.target_bps() > 1_000_000, "it may send what it likes"
        heard = sound.packets
        call.relay.reshape(up=Shape(delay_s=0.03, rate_bps=250_000, queue_bytes=24_000))
        async with asyncio.timeout(60):
            while await call.target_bps() >= 250_000:
                await asyncio.sleep(0.2)
        dropped, octets, began = call.relay.counters("up")["queue"], video.octets, time.monotonic()
        await call.another_desk()
        await call.goes_on(pictures=60, sounds=200)
        assert (video.octets - octets) * 8 / (time.monotonic() - began) < 250_000, "and so it does"
        assert call.relay.counters("up")["queue"] - dropped < 15, "the path is not full any more"
        assert sound.lost < 0.02 * (sound.packets - heard), "from the first moment on"
        assert () not in call.told


@pytest.mark.browser
async def test_chromium_restarts_ice_in_the_dark_and_its_picture_returns() -> None:
    """What the worker's page does when the call asks: a restart by PATCH while nothing passes, again once something does."""
    async with chromium_on(MOBILE, {"width": 320, "height": 240, "frameRate": 15}) as call:
        await eventually(lambda: len(call.viewer.frames) > 15, 60)
        began = time.monotonic()
        call.relay.blackout(10)
        await eventually(lambda: call.told[-1] == (), 10)
        await call.page.evaluate("restartPublisher()")
        await eventually(lambda: call.told[-1] != (), 30)
        assert time.monotonic() > began + 10, "the dark is dark for the sockets of the restart, too"
        await call.another_desk()
        await call.goes_on(pictures=15, sounds=50)
        assert call.told.count(()) == 1, "gone once, back for good"


class ChromiumCall(Call):
    """As Call, with a browser that publishes."""

    page: Any

    def __init__(self) -> None:
        self.told = []
        self.viewer = WhepClient(audio=True)

    async def target_bps(self) -> float:
        """What its encoder of the picture aims at."""
        script = """async () => [...(await publisher.getStats()).values()]
            .find(one => one.type === 'outbound-rtp' && one.kind === 'video').targetBitrate"""
        return float(await self.page.evaluate(script))


@asynccontextmanager
async def chromium_on(link: Shape, camera: dict[str, int]) -> AsyncIterator[ChromiumCall]:
    """Chromium's fake camera (a clock, a moving pie) in H.264 by a relay, and an aiortc desk that watches."""
    call = ChromiumCall()
    async with running_plane(on_source_change=lambda source_id, tracks: call.told.append(tracks)) as plane:  # noqa: SIM117
        async with (
            await Relay.open(address_of(plane), up=link, down=link) as call.relay,
            whip_edge(plane, call.relay) as url,
            async_playwright() as playwright,
        ):
            call.plane = plane
            browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            call.page = await browser.new_page()
            try:
                await call.page.goto(url)
                await call.page.evaluate("camera => { window.camera = camera; }", camera)
                await call.viewer.watch(plane, LEG)
                await call.page.evaluate(f"publish('{LEG}', 'video/H264')")
                yield call
            finally:
                await call.viewer.close()
                await browser.close()


PUBLISHER = PAGE.replace("await negotiate(pc, '/whip/' + source);", "window.session = await negotiate(pc, '/whip/' + source);").replace(
    "{width: 320, height: 240, frameRate: 15}", "window.camera || {width: 320, height: 240, frameRate: 15}"
).replace(
    "async function received()",
    """async function restartPublisher() { window.viewer = window.publisher; await restart(); }
async function received()""",
)  # fmt: skip


@asynccontextmanager
async def whip_edge(plane: Any, relay: Relay) -> AsyncIterator[str]:
    """Page and WHIP endpoint; answers and fragments name the relay."""
    whip = SessionEndpoint(plane, SessionKind.PUBLISH, session_path=lambda one: f"/whip-session/{one}")

    def bind(handle: Any, key: str) -> Any:
        async def call(request: web.Request) -> web.Response:
            headers = {name.lower(): value for name, value in request.headers.items()}
            edge = EdgeRequest(method=request.method, headers=headers, body=await request.read())
            answer = await handle(edge, request.match_info[key])
            body = redirected(answer.body.decode(), relay.address).encode() if answer.body else answer.body
            return web.Response(status=answer.status, headers=answer.headers, body=body)

        return call

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PUBLISHER, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_route("*", "/whip/{source:.+}", bind(whip.handle, "source"))
    app.router.add_route("*", "/whip-session/{id}", bind(whip.handle_session, "id"))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


# -- TURN -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def coturn(folder: Path, secret: str, host: str) -> AsyncIterator[int]:
    """Debian's coturn on an address of this machine, with time-limited credentials; yields its port."""
    program = shutil.which("turnserver")
    assert program, "apt-get install coturn"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        port = int(probe.getsockname()[1])
    config = folder / "turnserver.conf"
    config.write_text(
        f"listening-ip={host}\nrelay-ip={host}\nlistening-port={port}\nuse-auth-secret\n"
        f"static-auth-secret={secret}\nrealm=district\nallow-loopback-peers\nno-tls\nno-dtls\nno-cli\n"
        f"cli-password=unused\npidfile={folder}/turn.pid\nuserdb={folder}/turn.db\nlog-file=stdout\n"
    )
    with (folder / "turn.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, "-c", str(config), "-v", stdout=log, stderr=log, cwd=folder
        )
    try:
        await asyncio.sleep(0.2)
        async with asyncio.timeout(10):
            while True:
                assert process.returncode is None, (folder / "turn.log").read_text()[-2000:]
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def turn(host: str, port: int, secret: str, *, now_s: float, owner: str = "w1") -> Any:
    media = MediaSettings(turn=TurnSettings(urls=(f"turn:{host}:{port}?transport=udp",), secret="turn"))
    credentials = {"turn": SimpleNamespace(username="", password=secret)}
    (server,) = ice_servers(media, Secrets(credentials=credentials), owner, now_s)
    return server


def test_turn_credentials_are_made_as_coturn_checks_them() -> None:
    server = turn("192.0.2.1", 3478, "shared", now_s=1_790_000_000, owner="w1")
    assert server.username == "1790003600:w1"
    digest = hmac.new(b"shared", b"1790003600:w1", hashlib.sha1).digest()
    assert server.credential == base64.b64encode(digest).decode()
    assert 'credential-type="password"' in server.link


@pytest.mark.parametrize("right", [True, False])
async def test_a_phone_that_can_only_reach_a_relay_publishes_through_it(tmp_path: Path, right: bool) -> None:
    """`right` false: credentials that have ended relay nothing."""
    secret = "shared with coturn"
    async with running_plane() as plane, coturn(tmp_path, secret, address_of(plane)[0]) as port:
        server = turn(address_of(plane)[0], port, secret, now_s=time.time() - (0 if right else 7_200))
        ice = RTCIceServer(urls=[server.url], username=server.username, credential=server.credential)
        publisher, viewer = WhipClient(), WhepClient(audio=True)
        await publisher.pc.close()
        relayed = RTCPeerConnection(RTCConfiguration(iceServers=[ice]))
        publisher.pc = relayed
        for track in (VideoStreamTrack(), AudioStreamTrack()):
            relayed.addTransceiver(track, direction="sendonly")
        try:
            await relayed.setLocalDescription(await relayed.createOffer())
            # Nothing but the relay: the host's own candidates go, in the offer and in what is checked.
            gatherer = relayed.getTransceivers()[0].sender.transport.transport.iceGatherer
            connection = gatherer._connection
            if not right:
                assert "typ relay" not in relayed.localDescription.sdp
                return
            assert "typ relay" in relayed.localDescription.sdp
            connection._local_candidates = [c for c in connection._local_candidates if c.type == "relay"]
            for protocol in [p for p in connection._protocols if p.local_candidate.type != "relay"]:
                connection._protocols.remove(protocol)
                await protocol.close()
            await viewer.watch(plane, LEG)
            answer = await plane.publish(LEG, relayed.localDescription.sdp, owner="w")
            local = redirected(answer.sdp, address_of(plane))
            await relayed.setRemoteDescription(RTCSessionDescription(sdp=local, type="answer"))
            await eventually(lambda: len(viewer.frames) > 15 and len(viewer.audio_frames) > 50, 40)
            assert "peer " in (tmp_path / "turn.log").read_text()
        finally:
            await relayed.close()
            await viewer.close()
