"""The main job, as issue and README tell it: wall, press, cameras, ringing, face to face, hang-up. In a real browser."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import Browser, Page
from running_product import Product, open_page
from test_pages_phone import swipe

pytestmark = pytest.mark.browser

FRAMES = "tiles => Object.fromEntries(tiles.map(t => [t.dataset.camera, Number(t.dataset.frames)]))"
PICTURES = """tiles => tiles.map(t => {
  const video = t.querySelector("video"), canvas = document.createElement("canvas");
  canvas.width = 32; canvas.height = 18;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(video, 0, 0, 32, 18);
  return Array.from(context.getImageData(0, 0, 32, 18).data.filter((_, i) => i % 4 !== 3)).join();
})"""
REMOTE = "legs => legs.map(l => [Number(l.dataset.remoteFrames), Number(l.dataset.remoteAudio)])"


async def until(what: str, ask: Callable[[], Awaitable[object]], seconds: float = 60) -> object:
    """Ask until the answer is true. The time limit only bounds a failure; nothing is measured here."""
    last: object = None
    try:
        async with asyncio.timeout(seconds):
            while not (last := await ask()):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{what}: still {last!r} after {seconds} s") from None
    return last


async def test_a_press_from_the_shell_ends_face_to_face(product: Product, browser: Browser) -> None:
    box, grid_worker = "stb00001", "w003"
    wall, wall_errors = await open_page(browser, product.link("wall", "operator", "op01"), 1920, 1080)
    phone, phone_errors = await open_page(browser, product.link("worker", "worker", grid_worker), 390, 844)

    await sixteen_tiles_advance(wall)
    await on_duty(phone)

    # The press, by nothing but Debian's mosquitto_pub.
    line = await asyncio.to_thread(product.signed_press, box, "--cam", "cam001")
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr

    alarm = await wall.wait_for_selector("[data-alarm]", timeout=60_000)
    alarm_id = await alarm.get_attribute("data-alarm")
    assert alarm_id

    async def its_cameras_take_tiles() -> bool:
        shown = await wall.eval_on_selector_all("[data-tile]", "tiles => tiles.map(t => t.dataset.camera)")
        return shown[0] == "cam001" and {"cam002", "cam003"} <= set(shown[:4])

    await until("the cameras around take tiles", its_cameras_take_tiles)
    token = product.token("operator", "op01")
    shown = await until(
        "the wall reports shown",
        lambda: asyncio.to_thread(lambda: product.get(f"/api/v1/alarms/{alarm_id}", token)["shown_at"]),
    )
    assert shown

    # It rings by itself; the gridworker answers, the operator acknowledges and joins.
    await phone.wait_for_selector("[data-ring]", timeout=60_000)
    await phone.click("[data-act=claim]")
    await wall.keyboard.press("Space")
    await wall.keyboard.press("c")
    for page in (wall, phone):
        await until("the call is active", lambda page=page: state_of_call(page, "ACTIVE"))
        before = await remote(page)
        await until("picture and sound of the other come on", lambda p=page, b=before: grows(p, b))

    alarm_now = await asyncio.to_thread(product.get, f"/api/v1/alarms/{alarm_id}", token)
    assert alarm_now["handling"] == "ACKNOWLEDGED"
    assert alarm_now["dispatched"]["id"] == grid_worker
    assert alarm_now["cameras"][0]["id"] == "cam001"
    assert any(w["id"] == grid_worker and w["reason"] for w in alarm_now["workers"])

    # Hanging up on one side ends it on both.
    await phone.click("[data-act=hangup]")
    for page in (wall, phone):
        await until("the call is over", lambda page=page: no_call(page))
    calls = (await asyncio.to_thread(product.get, "/api/v1/calls", token))["calls"]
    assert [(c["state"], c["end_reason"]) for c in calls if c["alarm_id"] == alarm_id] == [
        ("ENDED", "hangup")
    ]

    # The operator sends who answered. That is one event on the phone, and it is over when its task is.
    for key in ("3", "n", "d"):
        await wall.keyboard.press(key)
    await phone.click("[data-act=task-accept]")
    await swipe(phone, "task-on_scene")
    await phone.wait_for_selector("[data-task-state=ON_SCENE]")
    await swipe(phone, "task-done")
    await phone.wait_for_selector("[data-task]", state="detached")
    await phone.wait_for_selector("text=暂无任务")
    assert await phone.locator("[data-act=on_scene], [data-act=done]").count() == 0
    assert (wall_errors, phone_errors) == ([], [])


async def test_the_red_key_twice_shows_each_stage_when_it_is_true(product: Product, browser: Browser) -> None:
    stb, stb_errors = await open_page(browser, product.link("stb", "stb", "stb00002"), 1280, 720)
    await stb.wait_for_selector("body[data-mqtt=up]", timeout=60_000)
    await stb.keyboard.press("r")
    await stb.keyboard.press("r")
    await stage(stb, "persisted")
    assert "已送达" in await stb.inner_text("body")

    # Nobody has looked yet. A wall opens, and the stage follows.
    wall, wall_errors = await open_page(browser, product.link("wall", "operator", "op02"), 1366, 768)
    await stage(stb, "shown")
    assert "已显示在值班台" in await stb.inner_text("body")
    alarm_id = await stb.get_attribute("body", "data-alarm")
    await wall.click(f"[data-alarm='{alarm_id}']")
    await wall.click("[data-act=acknowledge]")
    await stage(stb, "answered")
    assert "值班员已看到" in await stb.inner_text("body")
    assert (stb_errors, wall_errors) == ([], [])


async def test_the_box_shows_an_alarm_that_was_pressed_elsewhere(product: Product, browser: Browser) -> None:
    """The press takes over the box's MQTT connection, so the page learns of it from the retained state."""
    link = await asyncio.to_thread(product.link, "stb", "stb", "stb00003")
    stb, errors = await open_page(browser, link, 1280, 720)
    await stb.wait_for_selector("body[data-mqtt=up]", timeout=60_000)
    line = await asyncio.to_thread(product.signed_press, "stb00003")
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    await stage(stb, "persisted", "shown")
    assert errors == []


async def sixteen_tiles_advance(wall: Page) -> None:
    async def all_live() -> bool:
        states = await wall.eval_on_selector_all("[data-tile]", "tiles => tiles.map(t => t.dataset.state)")
        return len(states) == 16 and set(states) == {"live"}

    await until("16 tiles are live", all_live, 90)
    before = await wall.eval_on_selector_all("[data-tile]", FRAMES)

    async def all_advanced() -> bool:
        now = await wall.eval_on_selector_all("[data-tile]", FRAMES)
        return len(now) == 16 and all(now[camera] >= before[camera] + 10 for camera in before)

    await until("every tile decodes on", all_advanced)
    pictures = await wall.eval_on_selector_all("[data-tile]", PICTURES)
    assert len(set(pictures)) >= 14, "tiles show the same picture"


async def on_duty(phone: Page) -> None:
    await phone.wait_for_selector("[data-duty]")
    if await phone.get_attribute("[data-duty]", "data-duty") == "off":
        await phone.click("[data-act=duty]")
    await until("on duty", lambda: phone.eval_on_selector("[data-duty]", "e => e.dataset.duty !== 'off'"))


async def stage(stb: Page, *any_of: str) -> None:
    async def reached() -> bool:
        return await stb.get_attribute("body", "data-stage") in any_of

    await until(f"the box says {any_of}", reached)


async def state_of_call(page: Page, wanted: str) -> bool:
    states = await page.eval_on_selector_all("[data-call]", "calls => calls.map(c => c.dataset.state)")
    return wanted in states


async def no_call(page: Page) -> bool:
    states = await page.eval_on_selector_all("[data-call]", "calls => calls.map(c => c.dataset.state)")
    return all(state == "ENDED" for state in states)


async def remote(page: Page) -> list[list[float]]:
    return list(await page.eval_on_selector_all("[data-remote-frames]", REMOTE))


async def grows(page: Page, before: list[list[float]]) -> bool:
    now = await remote(page)
    start = before[0] if before else [0, 0]
    return bool(now) and now[0][0] > start[0] + 10 and now[0][1] > start[1] + 1000
