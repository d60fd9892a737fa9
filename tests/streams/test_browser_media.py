"""Headless Chromium against the media plane: decodes by WHEP what cameras and other browsers send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright
from webrtc_clients import Feed, encode_clip, running_plane

from gateway.streams.media import StreamName
from gateway.streams.session import SessionKind
from gateway.streams.whep import EdgeRequest, SessionEndpoint

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
PAGE = """<!doctype html><video id=v autoplay playsinline></video><script>
async function negotiate(pc, path) {
  await pc.setLocalDescription(await pc.createOffer());
  const response = await fetch(path, {method: 'POST', headers: {'content-type': 'application/sdp'},
                                      body: pc.localDescription.sdp});
  if (response.status !== 201) throw new Error(response.status + await response.text());
  await pc.setRemoteDescription({type: 'answer', sdp: await response.text()});
  return {location: response.headers.get('location'), etag: response.headers.get('etag')};
}
async function watch(source, audio) {
  const pc = window.viewer = new RTCPeerConnection();
  pc.addTransceiver('video', {direction: 'recvonly'});
  if (audio) pc.addTransceiver('audio', {direction: 'recvonly'});
  pc.ontrack = event => { document.getElementById('v').srcObject = event.streams[0]; };
  return window.session = await negotiate(pc, '/whep/' + source);
}
async function publish(source, mime) {
  const pc = window.publisher = new RTCPeerConnection();
  const media = await navigator.mediaDevices.getUserMedia({video: {width: 320, height: 240, frameRate: 15},
                                                           audio: true});
  for (const track of media.getTracks()) {
    const transceiver = pc.addTransceiver(track, {direction: 'sendonly', streams: [media]});
    if (track.kind === 'video') {
      const codecs = RTCRtpSender.getCapabilities('video').codecs;
      transceiver.setCodecPreferences(codecs.filter(one => one.mimeType === mime));
    }
  }
  await negotiate(pc, '/whip/' + source);
}
async function restart() {  // RFC 9725 section 4.3.3
  const pc = window.viewer;
  await pc.setLocalDescription(await pc.createOffer({iceRestart: true}));
  const sdp = pc.localDescription.sdp;
  const line = name => sdp.match(new RegExp('a=' + name + ':.*'))[0];
  const fragment = [line('ice-ufrag'), line('ice-pwd'), 'm=video 9 UDP/TLS/RTP/SAVPF 0', 'a=mid:0', '']
    .join('\\r\\n');
  const response = await fetch(window.session.location, {method: 'PATCH', body: fragment,
    headers: {'content-type': 'application/trickle-ice-sdpfrag', 'if-match': '*'}});
  if (response.status !== 200) throw new Error(response.status + await response.text());
  const fresh = await response.text();
  let answer = pc.currentRemoteDescription.sdp;
  for (const name of ['ice-ufrag', 'ice-pwd']) {
    const pattern = 'a=' + name + ':.*';
    answer = answer.replace(new RegExp(pattern, 'g'), fresh.match(new RegExp(pattern))[0]);
  }
  await pc.setRemoteDescription({type: 'answer', sdp: answer});
}
async function received() {
  const found = {};
  (await window.viewer.getStats()).forEach(one => {
    if (one.type === 'inbound-rtp')
      for (const key of ['framesDecoded', 'packetsLost', 'packetsReceived', 'keyFramesDecoded', 'freezeCount',
                         'totalAudioEnergy', 'frameWidth', 'pliCount', 'nackCount', 'totalSamplesReceived'])
        if (key in one) found[one.kind + '.' + key] = one[key];
    if (one.type === 'transport') found.srtp = one.srtpCipher;
  });
  return found;
}
</script>"""


@asynccontextmanager
async def edge(plane) -> AsyncIterator[str]:
    """A small HTTP server for the page and both endpoints."""
    whep = SessionEndpoint(plane, SessionKind.WATCH, session_path=lambda session: f"/whep-session/{session}")
    whip = SessionEndpoint(
        plane, SessionKind.PUBLISH, session_path=lambda session: f"/whip-session/{session}"
    )

    def bind(handle, key: str):
        async def call(request: web.Request) -> web.Response:
            headers = {name.lower(): value for name, value in request.headers.items()}
            edge_request = EdgeRequest(method=request.method, headers=headers, body=await request.read())
            response = await handle(edge_request, request.match_info[key])
            return web.Response(status=response.status, headers=response.headers, body=response.body)

        return call

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_route("*", "/whep/{source:.+}", bind(whep.handle, "source"))
    app.router.add_route("*", "/whip/{source:.+}", bind(whip.handle, "source"))
    app.router.add_route("*", "/whep-session/{id}", bind(whep.handle_session, "id"))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def chromium(url: str) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        try:
            page = await browser.new_page()
            await page.goto(url)
            yield page
        finally:
            await browser.close()


async def until(page: Page, condition, timeout_s: float = 20) -> dict:
    """The statistics at the moment when they satisfy the condition."""
    statistics: dict = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                statistics = await page.evaluate("received()")
                if condition(statistics):
                    return statistics
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"never came: {statistics}")


async def test_chromium_decodes_a_camera_and_restarts_ice():
    async with running_plane("cam001") as plane, edge(plane) as url, chromium(url) as page:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip(), audio=True)
        playing = asyncio.create_task(feed.run())
        try:
            await asyncio.sleep(0.5)
            await page.evaluate("watch('camera/cam001', true)")
            seen = await until(
                page,
                lambda s: s.get("video.framesDecoded", 0) > 25 and s.get("audio.packetsReceived", 0) > 25,
            )
            assert seen["video.packetsLost"] == 0
            assert seen["srtp"] == "SRTP_AEAD_AES_128_GCM"
            await page.evaluate("restart()")
            before = seen["video.framesDecoded"]
            await until(page, lambda s: s["video.framesDecoded"] > before + 40)
            (session,) = plane.sessions()
            assert session.state == "connected"
            assert session.counters["rtt_seconds"] < 1
        finally:
            playing.cancel()


@pytest.mark.parametrize("mime", ["video/H264", "video/VP8"])
async def test_chromium_publishes_and_watches_itself(mime: str):
    async with running_plane() as plane, edge(plane) as url, chromium(url) as page:
        await page.evaluate("watch('call/c1/alice', true)")
        await page.evaluate(f"publish('call/c1/alice', '{mime}')")
        seen = await until(
            page,
            lambda s: s.get("video.framesDecoded", 0) > 30 and s.get("audio.totalAudioEnergy", 0) > 0,
        )
        assert seen["audio.packetsReceived"] > 20
        assert plane.source_tracks("call/c1/alice") == ("video", "audio")
        publishing = next(one for one in plane.sessions() if one.kind == "publish")
        assert publishing.counters["unrouted_packets"] == 0
        assert publishing.counters["bad_packets"] == 0
