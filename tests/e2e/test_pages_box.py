"""The resident's box in a real Chromium: each rung of the picture ladder, four keys, the silent key, the question afterwards."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Browser, Page, WebSocketRoute
from running_product import Product, a_product, open_page
from test_pages_flows import alarm_from, on_duty, open_alarm, until

pytestmark = pytest.mark.browser

NO_WEBRTC = "delete window.RTCPeerConnection; window.webkitRTCPeerConnection = undefined;"
NO_MSE = "delete window.MediaSource; delete window.ManagedMediaSource;"
NO_HLS = "HTMLMediaElement.prototype.canPlayType = () => '';"
NO_MICROPHONE = "delete MediaDevices.prototype.getUserMedia; delete Navigator.prototype.webkitGetUserMedia; delete Navigator.prototype.getUserMedia;"
WITNESS = """
  // What the page has opened, and what its connections receive.
  window.opened = [];
  window.peers = [];
  const real = MediaDevices.prototype.getUserMedia;
  MediaDevices.prototype.getUserMedia = async function (wanted) {
    const stream = await real.call(this, wanted);
    window.opened.push(...stream.getTracks());
    return stream;
  };
  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...given) {
      super(...given);
      window.peers.push(this);
    }
  };
"""
HEARD = """async () => {
  let octets = 0;
  for (const peer of window.peers)
    (await peer.getStats()).forEach(r => { if (r.type === "inbound-rtp" && r.kind === "audio") octets += r.bytesReceived; });
  return octets;
}"""
BLIND_WEBRTC = """
  // A network that lets no media through: the answer comes, pictures never do.
  const Real = window.RTCPeerConnection;
  window.RTCPeerConnection = function (config) {
    const pc = new Real(config);
    pc.setRemoteDescription = (description, done, failed) => failed(new Error("no media gets through"));
    return pc;
  };
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """Every press is an alarm of its own with a call of its own, though the boxes are neighbours."""
    with a_product(tmp_path_factory.mktemp("product"), alarms={"group_radius_m": 0}) as running:
        yield running


async def box_without(browser: Browser, product: Product, sid: str, *scripts: str) -> Page:
    context = await browser.new_context(viewport={"width": 1280, "height": 720})
    for script in scripts:
        await context.add_init_script(script)
    stb = await context.new_page()
    stb.set_default_timeout(60_000)
    await stb.goto(product.link("stb", "stb", sid))
    return stb


async def plays(stb: Page, mode: str) -> None:
    """The first tile shows in this mode, and goes on showing."""
    tile = f"[data-tile='0'][data-mode={mode}][data-state=live]"
    await stb.wait_for_selector(tile)

    async def frames() -> int:
        return int(await stb.get_attribute("[data-tile='0']", "data-frames") or 0)

    before = await frames()

    async def moves() -> bool:
        return await frames() >= before + 2

    await until(f"pictures go on by {mode}", moves, 60)


@pytest.mark.parametrize(
    ("scripts", "mode"),
    [
        ((), "webrtc"),
        ((NO_WEBRTC,), "hls"),  # fed through Media Source Extensions
        ((NO_WEBRTC, NO_MSE), "hls"),  # the browser's own player, as on Android 4.4
        ((NO_WEBRTC, NO_MSE, NO_HLS), "still"),
        ((BLIND_WEBRTC,), "hls"),  # able, but nothing comes
    ],
    ids=["webrtc", "hls-fed", "hls-native", "stills", "blind-webrtc"],
)
async def test_each_rung_of_the_ladder(
    product: Product, browser: Browser, scripts: tuple[str, ...], mode: str
) -> None:
    stb = await box_without(browser, product, "stb00010", *scripts)
    await plays(stb, mode)
    await stb.context.close()


async def test_four_keys_raise_an_alarm_and_another_corrects_the_place(
    product: Product, browser: Browser
) -> None:
    """Right, right, OK, OK: from the first tile to the red button, pressed twice."""
    token = product.token("operator", "op01")
    stb, errors = await open_page(browser, product.link("stb", "stb", "stb00011"), 1280, 720)
    await stb.wait_for_selector("body[data-mqtt=up]")
    for key in ("ArrowRight", "ArrowRight", "Enter", "Enter"):
        await stb.keyboard.press(key)
    await until("an alarm", lambda: stb.get_attribute("body", "data-alarm"))
    alarm_id = await stb.get_attribute("body", "data-alarm")
    alarm = await asyncio.to_thread(product.get, f"/api/v1/alarms/{alarm_id}", token)
    assert (alarm["place"]["kind"], alarm["silent"], alarm["source"]) == ("household", False, "stb/stb00011")
    assert errors == []


async def test_a_silent_press_shows_a_second_of_delivered_and_no_more(
    product: Product, browser: Browser
) -> None:
    token = product.token("operator", "op01")
    stb, errors = await open_page(browser, product.link("stb", "stb", "stb00012"), 1280, 720)
    await stb.wait_for_selector("body[data-mqtt=up]")
    await stb.keyboard.down("r")
    await stb.wait_for_selector("#toast:visible >> text=已送达")
    await stb.keyboard.up("r")
    await stb.wait_for_selector("#toast", state="hidden")
    assert not await stb.is_visible("#panel")
    alarm_id = await stb.get_attribute("body", "data-alarm")
    alarm = await asyncio.to_thread(product.get, f"/api/v1/alarms/{alarm_id}", token)
    assert alarm["silent"] is True
    await stb.reload()  # a reboot tells nothing either
    await stb.wait_for_selector("body[data-mqtt=up]")
    assert not await stb.is_visible("#panel")
    await stb.keyboard.press("r")  # its progress, on request
    await stb.wait_for_selector("#panel:visible")
    assert errors == []


async def test_a_refused_press_says_110_and_the_gridworkers_phone(product: Product, browser: Browser) -> None:
    """A box whose key is wrong: the gateway refuses, and the resident is sent to the telephone at once."""
    context = await browser.new_context(viewport={"width": 1280, "height": 720})
    stb = await context.new_page()
    stb.set_default_timeout(60_000)

    async def with_another_key(route: Any) -> None:
        answer = await route.fetch()
        me = await answer.json()
        await route.fulfill(response=answer, json={**me, "key": "00" * 32})

    await stb.route("**/api/v1/stb/me", with_another_key)
    await stb.goto(product.link("stb", "stb", "stb00014"))
    await stb.wait_for_selector("body[data-mqtt=up]")
    await stb.keyboard.press("r")
    await stb.keyboard.press("r")
    await stb.wait_for_selector("body[data-stage=refused][data-help='1']")
    said = await stb.inner_text("#panel")
    assert "请拨打110" in said
    assert "网格员电话" in said
    await context.close()


async def test_the_resident_answers_how_it_went(product: Product, browser: Browser) -> None:
    """回访 on the box: asked by the gateway once the incident is being verified, answered by one key."""
    token = product.token("operator", "op09")
    line = await asyncio.to_thread(product.signed_press, "stb00015")
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr

    async def mine() -> dict[str, Any] | None:
        found = (await asyncio.to_thread(product.get, "/api/v1/alarms?open=1", token))["alarms"]
        return next((a for a in found if a["source"] == "stb/stb00015"), None)

    alarm = await until("the alarm", mine)
    post = product.post
    await asyncio.to_thread(post, f"/api/v1/alarms/{alarm['id']}/acknowledge", token, {})
    triaged = await asyncio.to_thread(
        post, f"/api/v1/alarms/{alarm['id']}/triage", token, {"outcome": "incident", "type": "help"}
    )
    incident = triaged["incident_id"]
    for step in ("dispatch", "handle", "submit"):
        await asyncio.to_thread(post, f"/api/v1/incidents/{incident}/{step}", token, {})
    stb = await box_without(browser, product, "stb00015", NO_WEBRTC, NO_MSE, NO_HLS)
    await stb.wait_for_selector(f"body[data-ask='{incident}']")
    assert "上次报警处理得怎么样" in await stb.inner_text("#panel")
    await stb.keyboard.press("1")
    await stb.wait_for_selector("#toast:visible >> text=谢谢")
    assert not await stb.is_visible("#panel")
    await stb.reload()  # it is open until it is archived, but nobody is on the way any more
    await stb.wait_for_selector("#panel h2 >> text=已处理完毕")
    assert await stb.locator("#buttons .btn").all_inner_texts() == ["知道了"]
    found = await asyncio.to_thread(product.get, f"/api/v1/incidents/{incident}", token)
    assert found["satisfied"] is True
    await stb.context.close()


async def test_what_a_lost_link_has_not_said_is_asked_for(product: Product, browser: Browser) -> None:
    """The alarm is closed while nothing comes through, and the broker forgets what it had for the box: the box asks."""
    token = product.token("operator", "op10")
    deaf = False
    links: list[WebSocketRoute] = []

    def between(page_side: WebSocketRoute) -> None:
        links.append(page_side)
        broker = page_side.connect_to_server()

        def down(message: str | bytes) -> None:
            told = message if isinstance(message, bytes) else message.encode()
            if not (deaf and (b"/ack" in told or b"/state" in told)):
                page_side.send(message)

        broker.on_message(down)

    context = await browser.new_context(viewport={"width": 1280, "height": 720}, locale="zh-CN")
    stb = await context.new_page()
    stb.set_default_timeout(60_000)
    await stb.route_web_socket("**/mqtt**", between)
    await stb.goto(product.link("stb", "stb", "stb00017"))
    await stb.wait_for_selector("body[data-mqtt=up]")
    for key in ("1", "r", "r"):
        await stb.keyboard.press(key)
    await stb.wait_for_selector("#steps .done >> text=送达")
    alarm_id = await alarm_from(product, "stb00017", token)
    deaf = True
    await asyncio.to_thread(product.post, f"/api/v1/alarms/{alarm_id}/acknowledge", token, {})
    await asyncio.to_thread(product.post, f"/api/v1/alarms/{alarm_id}/triage", token, {"outcome": "false"})
    await asyncio.to_thread(product.post, f"/api/v1/alarms/{alarm_id}/close", token, {})
    assert await stb.locator("#panel h2 >> text=已结束").count() == 0
    await links[-1].close()
    await stb.wait_for_selector("#panel h2 >> text=已结束")
    await context.close()


async def hears_and_sees(stb: Page) -> None:
    """The other's picture fills the box, moves, and is heard."""
    await stb.wait_for_selector("#callBig .seat[data-state=live]")

    picture = stb.locator("#callBig video")

    async def frames() -> int:
        return int(await picture.evaluate("v => v.getVideoPlaybackQuality().totalVideoFrames"))

    seen, heard = await frames(), await stb.evaluate(HEARD)

    async def grows() -> bool:
        return await frames() > seen + 5 and await stb.evaluate(HEARD) > heard + 1000

    await until("picture and sound come on", grows, 60)
    assert await picture.evaluate("v => !v.muted && !v.paused")


async def accepts(stb: Page) -> None:
    """OK at the question; what is pressed in its first moment counts for nothing, so a resident presses again."""

    async def joined() -> bool:
        await stb.keyboard.press("Enter")
        return bool(await stb.get_attribute("body", "data-call"))

    await until("the box is in the call", joined, 60)


@pytest.mark.realtime
async def test_ok_at_the_box_joins_the_call_and_back_shuts_everything(
    product: Product, browser: Browser
) -> None:
    """Nothing is open before OK; a sign as long as it is; then the same call without a microphone: watched only."""
    token = product.token("operator", "op22")
    phone, phone_errors = await open_page(browser, product.link("worker", "worker", "w013"), 390, 844)
    await on_duty(phone)
    stb, errors = await open_page(browser, product.link("stb", "stb", "stb00016"), 1280, 720, WITNESS)
    await stb.wait_for_selector("body[data-mqtt=up]")
    for key in ("1", "r", "r"):
        await stb.keyboard.press(key)
    alarm_id = await alarm_from(product, "stb00016", token)
    await phone.click("[data-act=claim]")
    call_id = await phone.get_attribute("[data-call]", "data-call")
    wall, wall_errors = await open_page(browser, product.link("wall", "operator", "op22"), 1366, 768)
    await open_alarm(wall, alarm_id)
    await wall.keyboard.press("c")
    await stb.wait_for_selector(f"body[data-ask-call='{call_id}']")
    assert "是否与网格员" in await stb.inner_text("#ask")
    assert await stb.evaluate("window.opened.length") == 0
    await accepts(stb)
    await stb.wait_for_selector(f"body[data-call='{call_id}'][data-open='microphone camera']")
    sign = await stb.inner_text("#callSign")
    assert "话筒已开" in sign
    assert "摄像头已开" in sign
    await hears_and_sees(stb)
    await stb.wait_for_selector("#callRec:visible >> text=正在录制")
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(octet => octet > 0)"
    assert await stb.eval_on_selector("#callBig canvas.wm", drawn)

    async def box_leg() -> dict[str, Any] | None:
        call = await asyncio.to_thread(product.get, f"/api/v1/calls/{call_id}", token)
        return next((leg for leg in call["legs"] if leg["role"] == "stb" and leg["left_at"] is None), None)

    leg = await box_leg()
    assert leg
    theirs = wall.locator(f"[data-leg='{leg['id']}']")

    async def seen_at_the_desk() -> bool:
        return int(await theirs.get_attribute("data-remote-frames") or 0) > 5

    await until("the desk sees the resident", seen_at_the_desk, 60)

    # The gateway gives the place away, as after a network that stalled: whoever is still there takes another.
    resident = product.token("stb", "stb00016")
    await asyncio.to_thread(product.post, f"/api/v1/calls/{call_id}/hangup", resident, {})
    anew = await until("the box takes a place again", box_leg)
    assert anew["id"] != leg["id"]
    theirs = wall.locator(f"[data-leg='{anew['id']}']")
    await until("the desk sees the resident again", seen_at_the_desk, 60)
    assert await stb.evaluate("window.opened.length") == 2  # nothing was opened anew
    await stb.keyboard.press("Backspace")
    await stb.wait_for_selector("body[data-call=''][data-open='']")
    assert await stb.evaluate("window.opened.map(track => track.readyState)") == ["ended", "ended"]
    await until("its place is given up", lambda: _none(box_leg))
    assert (await asyncio.to_thread(product.get, f"/api/v1/calls/{call_id}", token))["state"] == "ACTIVE"
    assert not await stb.is_visible("#ask")  # who has left is not asked again
    await stb.context.close()

    mute, mute_errors = await open_page(
        browser, product.link("stb", "stb", "stb00016"), 1280, 720, WITNESS, NO_MICROPHONE
    )
    await mute.wait_for_selector(f"body[data-ask-call='{call_id}']")
    assert "收看" in await mute.inner_text("#ask")
    await accepts(mute)
    await hears_and_sees(mute)
    assert await mute.get_attribute("body", "data-open") == ""
    assert "没有打开" in await mute.inner_text("#callSign")
    assert await box_leg() is None
    await phone.click("[data-act=hangup]")
    await mute.wait_for_selector("body[data-call='']")
    assert (errors, mute_errors, phone_errors, wall_errors) == ([], [], [], [])


async def _none(ask: Any) -> bool:
    return await ask() is None
