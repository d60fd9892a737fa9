"""The gridworker's phone: one thumb from the ring to done, camera switch, position by hand, photos, and a start without a network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.async_api import Browser, Page
from running_product import Product, open_page
from test_pages_flows import on_duty, press, until

pytestmark = pytest.mark.browser


async def swipe(phone: Page, act: str, *, far: float = 0.95) -> None:
    """A thumb drags the knob along its track."""
    knob = await phone.locator(f"[data-act={act}] .grip").bounding_box()
    track = await phone.locator(f"[data-act={act}]").bounding_box()
    assert knob
    assert track
    x, y = knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2
    await phone.mouse.move(x, y)
    await phone.mouse.down()
    await phone.mouse.move(x + 30, y)
    await phone.mouse.move(x + track["width"] * far, y, steps=4)
    await phone.mouse.up()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture larger than the phone sends."""
    path = tmp_path / "scene.jpg"
    cv2.imwrite(str(path), np.full((1200, 2400, 3), (40, 120, 200), np.uint8))
    return path


async def test_one_thumb_takes_does_and_reports_with_a_photo(
    product: Product, browser: Browser, photo: Path
) -> None:
    """Offer, accept, swipe to the scene, a photo and a word, swipe done; the desk sees both and verifies."""
    wall, wall_errors = await open_page(browser, product.link("wall", "operator", "op08"), 1366, 768)
    await wall.wait_for_selector("[data-list=incidents]")
    phone, errors = await open_page(browser, product.link("worker", "worker", "w009"), 390, 844)
    await on_duty(phone)
    made = await wall.evaluate(
        """fetch("/api/v1/incidents", {method: "POST", headers: {"Content-Type": "application/json",
        "X-Requested-With": "gateway", "X-Gateway-Page": "wall"}, body: JSON.stringify(
        {type: "facility", lat: 30.8169, lon: 103.8704, datum: "wgs84"})}).then(r => r.json())"""
    )
    await wall.click("[data-list=incidents]")
    await wall.click(f"[data-incident='{made['id']}']")
    await wall.click("[data-near-worker=w009] .pick")
    await phone.click("[data-act=task-accept]")
    await swipe(phone, "task-on_scene", far=0.3)
    await phone.wait_for_selector("[data-task-state=ACCEPTED]")  # half a swipe is none
    await swipe(phone, "task-on_scene")
    await phone.wait_for_selector("[data-task-state=ON_SCENE]")
    await phone.set_input_files("[data-task] input[type=file]", photo)
    await phone.wait_for_selector("[data-act=photo]:has-text('(1)')")
    await phone.fill("[data-task] input:not([type=file])", "已修好")
    await swipe(phone, "task-done")
    await phone.wait_for_selector("[data-task]", state="detached")
    sent = await wall.wait_for_selector(".tasks [data-task-state=DONE] [data-photo] img")
    await until("the photo shows", lambda: sent.evaluate("i => i.naturalWidth > 0"))
    assert await sent.evaluate("i => Math.max(i.naturalWidth, i.naturalHeight)") == 1600
    assert "已修好" in await wall.inner_text(".tasks")
    await wall.click("[data-act=task-redo]")  # not good enough: it is his again
    await swipe(phone, "task-on_scene")
    await phone.wait_for_selector("[data-task-state=ON_SCENE]")
    await swipe(phone, "task-done")
    await phone.wait_for_selector("[data-task]", state="detached")
    await wall.click("[data-act=task-verify]")
    await wall.wait_for_selector(".tasks [data-task-state=VERIFIED]")
    assert (wall_errors, errors) == ([], [])


async def test_a_call_switches_its_camera_and_mutes(product: Product, browser: Browser) -> None:
    phone, errors = await open_page(browser, product.link("worker", "worker", "w003"), 390, 844)
    await on_duty(phone)
    await press(product, "stb00001", "--cam", "cam001")
    await phone.click("[data-act=claim]")
    await phone.wait_for_selector("[data-publish=live]")
    asked = """() => { window.asked = []; const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = (c) => { window.asked.push(c.video.facingMode); return real(c); } }"""
    await phone.evaluate(asked)
    await phone.wait_for_selector(".local.front")
    await phone.click("text=切换摄像头")
    await phone.wait_for_selector(".local:not(.front)")
    assert await phone.evaluate("window.asked") == ["environment"]
    await phone.click("text=切换摄像头")
    await phone.wait_for_selector(".local.front")
    await phone.click("text=静音")
    await phone.wait_for_selector("text=取消静音")
    assert await phone.get_attribute("[data-publish]", "data-publish") == "live"
    await phone.click("[data-act=hangup]")
    await phone.wait_for_selector("[data-call]", state="detached")
    assert errors == []


async def test_a_position_by_hand_names_its_datum(product: Product, browser: Browser) -> None:
    """No right to the phone's position: by hand in GCJ-02, kept as WGS-84."""
    context = await browser.new_context(
        viewport={"width": 390, "height": 844}, permissions=["camera", "microphone"]
    )
    phone = await context.new_page()
    phone.set_default_timeout(60_000)
    await phone.goto(product.link("worker", "worker", "w010"))
    await on_duty(phone)
    await phone.click("button:has-text('手动填写位置')")
    await phone.fill(".manual input >> nth=0", "30.8145")
    await phone.fill(".manual input >> nth=1", "103.8730")
    assert await phone.input_value(".manual select") == "gcj02"
    await phone.click(".manual [type=submit]")
    await phone.wait_for_selector(".fix.ok")

    async def known() -> Any:
        workers = (
            await asyncio.to_thread(product.get, "/api/v1/workers", product.token("operator", "op01"))
        )["workers"]
        return next(w["position"] for w in workers if w["id"] == "w010")

    at = await until("the position is known", known)
    assert 250 < np.hypot((at["lat"] - 30.8145) * 111_320, (at["lon"] - 103.8730) * 95_600) < 450
    await context.close()


async def test_a_report_with_a_photo_survives_a_reload_without_a_network(
    product: Product, browser: Browser, photo: Path
) -> None:
    """The page opens offline from its service worker, and what was said before and after the reload arrives, once."""
    token = product.token("operator", "op01")
    phone, errors = await open_page(browser, product.link("worker", "worker", "w011"), 390, 844)
    await on_duty(phone)
    await phone.wait_for_selector(".fix.ok")
    assert (
        await phone.evaluate("navigator.serviceWorker.ready.then(r => new URL(r.scope).pathname)")
        == "/worker"
    )
    await until("the shell is held", lambda: phone.evaluate("caches.match('/worker').then(r => Boolean(r))"))

    async def report(words: str, picture: Path | None = None) -> None:
        await phone.click("[data-act=open-report]")
        await phone.click("[data-type=公共设施]")
        await phone.fill(".sheet textarea", words)
        if picture:
            await phone.set_input_files(".sheet input[type=file]", picture)
            await phone.wait_for_selector(".shots img")
        await phone.click(".sheet [data-act=report]")
        await phone.wait_for_selector("[data-report]", state="detached")

    await phone.context.set_offline(True)
    await report("电线垂落", photo)
    await phone.reload()
    await phone.wait_for_selector(".waiting")
    await phone.wait_for_selector(".banner")
    assert await phone.get_attribute("[data-duty]", "data-duty") == "on"
    await report("护栏损坏")

    async def both_wait() -> bool:
        kept = await phone.evaluate("JSON.parse(localStorage['worker/w011/outbox'])")
        return [one["kind"] for one in kept if one["kind"] != "position"] == ["report", "report"]

    await until("both are kept", both_wait)
    answers: list[str] = []
    phone.on("response", lambda r: answers.append(f"{r.request.method} {r.status} {r.url}"))
    phone.on("requestfailed", lambda r: answers.append(f"{r.method} {r.failure} {r.url}"))
    await phone.context.set_offline(False)

    async def arrived() -> Any:
        found = (await asyncio.to_thread(product.get, "/api/v1/incidents", token))["incidents"]
        mine = {i["note"]: i["id"] for i in found if i["reported_by"] == "worker/w011"}
        return mine if len(mine) == 2 else None

    mine = await until("both reports arrive", arrived, 60)
    await phone.wait_for_selector(".waiting", state="detached")
    found = (await asyncio.to_thread(product.get, "/api/v1/incidents", token))["incidents"]
    assert len([i for i in found if i["reported_by"] == "worker/w011"]) == 2, answers
    photos = await asyncio.to_thread(product.get, f"/api/v1/incidents/{mine['电线垂落']}/photos", token)
    assert [p["media_type"] for p in photos["photos"]] == ["image/jpeg"], answers
    assert errors == []


async def test_a_call_for_help_survives_a_reload_without_a_network(
    product: Product, browser: Browser
) -> None:
    """Nobody has acknowledged it yet: the page sends it by itself when the network is back, and it is one alarm."""
    token = product.token("operator", "op01")
    phone, errors = await open_page(browser, product.link("worker", "worker", "w012"), 390, 844)
    await on_duty(phone)
    await until("the shell is held", lambda: phone.evaluate("caches.match('/worker').then(r => Boolean(r))"))
    await phone.context.set_offline(True)
    box = await phone.locator("[data-act=sos]").bounding_box()
    assert box
    await phone.mouse.move(box["x"] + 20, box["y"] + 20)
    await phone.mouse.down()
    kept = await until("it is kept", lambda: phone.evaluate("localStorage['worker/w012/help']"))
    await phone.mouse.up()
    await phone.reload()
    await phone.wait_for_selector(".banner")
    assert await phone.evaluate("localStorage['worker/w012/help']") == kept
    await phone.context.set_offline(False)
    await phone.wait_for_selector("[data-call]", timeout=60_000)
    alarms = (await asyncio.to_thread(product.get, "/api/v1/alarms", token))["alarms"]
    assert len([one for one in alarms if one["source"] == "worker/w012"]) == 1
    assert await phone.evaluate("localStorage['worker/w012/help'] ?? null") is None
    await phone.click("[data-act=hangup]")
    await phone.wait_for_selector("[data-call]", state="detached")
    assert errors == []


async def test_the_page_can_be_installed(product: Product, browser: Browser) -> None:
    """What Chromium asks of an installable page: manifest with name, icons, start and display, and a worker that serves it."""
    phone, _ = await open_page(browser, product.link("worker", "worker", "w012"), 390, 844)
    await phone.wait_for_selector("[data-act=duty]")
    await phone.evaluate("navigator.serviceWorker.ready.then(() => null)")
    devtools = await phone.context.new_cdp_session(phone)
    manifest = await devtools.send("Page.getAppManifest")
    assert manifest["errors"] == []
    assert manifest["manifest"]["startUrl"].endswith("/worker")
    problems = (await devtools.send("Page.getInstallabilityErrors"))["installabilityErrors"]
    # A private window, which is what a test's profile is, is the only reason left.
    assert [p["errorId"] for p in problems if p["errorId"] != "in-incognito"] == []


async def test_a_volunteer_is_asked_from_the_wall_and_may_be_called_back(
    product: Product, browser: Browser
) -> None:
    """Picked from the list beside an incident; revoked, it is gone from the page; asked anew and done. No call, no duty."""
    token = product.token("operator", "op01")
    volunteers = (await asyncio.to_thread(product.get, "/api/v1/volunteers", token))["volunteers"]
    one = next(v for v in volunteers if v["position"] and v["available"])
    page, errors = await open_page(browser, product.link("worker", "volunteer", one["id"]), 390, 844)
    await page.wait_for_selector("text=目前没有需要协助的事件")
    assert await page.locator("[data-act=sos], [data-act=duty], [data-act=open-report]").count() == 0
    place = {"lat": one["position"]["lat"], "lon": one["position"]["lon"], "datum": "wgs84"}
    made = await asyncio.to_thread(product.post, "/api/v1/incidents", token, {"type": "environment", **place})
    wall, wall_errors = await open_page(browser, product.link("wall", "operator", "op01"), 1366, 768)
    await wall.click("[data-list=incidents]")
    await wall.click(f"[data-incident='{made['id']}']")
    await wall.click(f"[data-near-volunteer='{one['id']}'] .pick")
    await page.wait_for_selector("[data-act=task-accept]")
    await wall.click("[data-act=task-revoke]")
    await wall.wait_for_selector(".tasks [data-task-state=REVOKED]")
    await page.wait_for_selector("[data-task]", state="detached")
    await wall.click(f"[data-near-volunteer='{one['id']}'] .pick")
    await page.click("[data-act=task-accept]")
    await swipe(page, "task-on_scene")
    await page.wait_for_selector("[data-task-state=ON_SCENE]")
    await swipe(page, "task-done")
    await page.wait_for_selector("[data-task]", state="detached")
    assert (errors, wall_errors) == ([], [])
