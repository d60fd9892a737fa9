"""What product.md section 2 promises of each page, on the running product in a real browser."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import Browser, Page
from running_product import Product, open_page

pytestmark = pytest.mark.browser


async def until(what: str, ask: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """Ask until the answer is true; the limit only bounds a failure."""
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while not (last := await ask()):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{what}: still {last!r} after {seconds} s") from None
    return last


async def press(product: Product, sid: str, *more: str) -> None:
    """The resident's key, by the line that `boxes press --print` gives."""
    line = await asyncio.to_thread(product.signed_press, sid, *more)
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


async def alarm_from(product: Product, sid: str, token: str) -> str:
    """The id of the box's open alarm: the module's other tests leave alarms of their own."""

    async def mine() -> str | None:
        found = (await asyncio.to_thread(product.get, "/api/v1/alarms?open=1", token))["alarms"]
        return next((a["id"] for a in found if a["source"] == f"stb/{sid}"), None)

    return str(await until(f"the alarm of {sid}", mine))


async def open_alarm(wall: Page, alarm_id: str) -> None:
    """Clicks the alarm's row, which may be folded under a neighbour's."""
    await wall.wait_for_selector("[data-alarm]")
    for fold in await wall.locator(".unfold[aria-expanded=false]").all():
        await fold.click()
    await wall.click(f"[data-alarm='{alarm_id}']")


async def incident_of(product: Product, alarm_id: str, token: str) -> dict[str, Any]:
    alarm = await asyncio.to_thread(product.get, f"/api/v1/alarms/{alarm_id}", token)
    found = await asyncio.to_thread(product.get, f"/api/v1/incidents/{alarm['incident_id']}", token)
    return dict(found)


async def test_from_press_to_archive_by_keyboard_alone(product: Product, browser: Browser) -> None:
    """Take, call, judge, dispatch, one key a step; then another operator verifies: what the resident says, mark, archive.
    No pointer and no focus by the test: what an operator who has only a keyboard can't reach fails here."""
    token = product.token("operator", "op03")
    wall, errors = await open_page(browser, product.link("wall", "operator", "op03"), 1366, 768)
    await wall.wait_for_selector("[data-list=alarms]")
    await press(product, "stb00040")
    alarm_id = await alarm_from(product, "stb00040", token)
    await wall.wait_for_selector(f"[data-alarm='{alarm_id}'][aria-current=true]")
    await wall.keyboard.press("Space")
    await wall.keyboard.press("c")
    await wall.wait_for_selector("[data-call] [data-act=hangup]")
    await wall.keyboard.press("x")
    await wall.wait_for_selector("[data-call] [data-act=hangup]", state="detached")
    for key in ("3", "n", "d"):  # faster than any answer comes
        await wall.keyboard.press(key)
    await wall.wait_for_selector("[data-incident-detail]")
    incident = await incident_of(product, alarm_id, token)
    assert (incident["severity"], incident["police"]) == (3, "no")
    assert incident["state"] == "REPORTED"  # nobody has answered the call: the operator dispatches by hand
    await wall.keyboard.press("g")
    for before, after in (("DISPATCHED", "HANDLING"), ("HANDLING", "VERIFYING")):
        await wall.wait_for_selector(f"[data-incident-detail][data-incident-state={before}]")
        await wall.keyboard.press("g")
        await wall.wait_for_selector(f"[data-incident-detail][data-incident-state={after}]")
    await wall.keyboard.press("g")
    await wall.wait_for_selector(".notice.bad")  # who handled it doesn't verify it
    assert (await incident_of(product, alarm_id, token))["state"] == "VERIFYING"
    await wall.context.close()

    other, other_errors = await open_page(browser, product.link("wall", "operator", "op02"), 1366, 768)
    await other.wait_for_selector("[data-list=incidents]")
    await other.keyboard.press("Escape")
    await other.keyboard.press("l")
    row = other.locator(f"[data-incident='{incident['id']}']")
    await row.wait_for()
    for _ in range(await other.locator("[data-incident]").count()):
        await other.keyboard.press("j")
        if await row.get_attribute("aria-current") == "true":
            break
    await other.wait_for_selector(f"[data-incident-detail='{incident['id']}'][data-incident-state=VERIFYING]")
    await other.keyboard.press("w")
    await other.keyboard.type("电话回访：老人已回家")
    await other.keyboard.press("Enter")
    await other.keyboard.press("y")
    await other.wait_for_selector("[data-satisfied=true]")
    await other.keyboard.press("4")
    await other.wait_for_selector("[data-score='4'][aria-pressed=true]")
    for state in ("RATED", "ARCHIVED"):
        await other.keyboard.press("g")
        await other.wait_for_selector(f"[data-incident-detail][data-incident-state={state}]")
    archived = await incident_of(product, alarm_id, token)
    assert (archived["satisfied"], archived["score"]) == (True, 4)
    assert "老人已回家" in str(archived["timeline"])
    alarm = await asyncio.to_thread(product.get, f"/api/v1/alarms/{alarm_id}", token)
    assert alarm["handling"] == "CLOSED"
    assert (errors, other_errors) == ([], [])


async def test_a_circle_on_the_map_opens_an_incident(product: Product, browser: Browser) -> None:
    wall, errors = await open_page(browser, product.link("wall", "operator", "op04"), 1366, 768)
    await wall.wait_for_selector(".maplibregl-canvas")
    await wall.keyboard.press("e")
    box = await wall.locator(".map .canvas").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    await wall.mouse.move(x, y)
    await wall.mouse.down()
    await wall.mouse.move(x + 20, y + 5)
    await wall.mouse.move(x + 40, y + 10)
    await wall.mouse.up()
    await wall.wait_for_selector("[data-draft]")
    await wall.select_option("[name=type]", "traffic")
    await wall.fill("[name=note]", "路口拥堵")
    await wall.click("[data-act=report]")
    detail = await wall.wait_for_selector("[data-incident-detail]")
    found = await asyncio.to_thread(
        product.get,
        f"/api/v1/incidents/{await detail.get_attribute('data-incident-detail')}",
        product.token("operator", "op04"),
    )
    assert (found["type"], found["note"], found["state"]) == ("traffic", "路口拥堵", "REPORTED")
    assert found["position"]
    assert found["reported_by"] == "operator/op04"
    assert errors == []


async def on_duty(phone: Page) -> None:
    await phone.wait_for_selector("[data-act=duty]:not([disabled])")
    if await phone.get_attribute("[data-duty]", "data-duty") == "off":
        await phone.click("[data-act=duty]")
    await until("on duty", lambda: phone.eval_on_selector("[data-duty]", "e => e.dataset.duty === 'on'"))


async def test_a_gridworker_reports_an_event_and_what_is_said_offline_arrives_later(
    product: Product, browser: Browser
) -> None:
    token = product.token("operator", "op01")
    phone, errors = await open_page(browser, product.link("worker", "worker", "w005"), 390, 844)
    await on_duty(phone)

    async def report(words: str) -> None:
        await phone.click("[data-act=open-report]")
        await phone.click("[data-type=公共设施]")
        await phone.fill(".sheet textarea", words)
        await phone.click(".sheet [data-act=report]")
        await phone.wait_for_selector("[data-report]", state="detached")

    async def known(words: str) -> bool:
        found = (await asyncio.to_thread(product.get, "/api/v1/incidents", token))["incidents"]
        return [i["type"] for i in found if i["note"] == words and i["reported_by"] == "worker/w005"] == [
            "公共设施"
        ]

    await report("井盖缺失")
    await until("the desk knows", lambda: known("井盖缺失"))
    await phone.context.set_offline(True)
    await report("路灯不亮")
    await phone.wait_for_selector(".waiting")
    assert not await known("路灯不亮")
    await phone.context.set_offline(False)
    await until("what was kept arrives, once", lambda: known("路灯不亮"))
    await phone.wait_for_selector(".waiting", state="detached")
    assert errors == []


async def test_a_gridworkers_call_for_help_is_answered_at_a_desk(product: Product, browser: Browser) -> None:
    wall, wall_errors = await open_page(browser, product.link("wall", "operator", "op05"), 1366, 768)
    await wall.wait_for_selector("[data-list=alarms]")
    phone, errors = await open_page(browser, product.link("worker", "worker", "w006"), 390, 844)
    await on_duty(phone)
    box = await phone.locator("[data-act=sos]").bounding_box()
    assert box
    await phone.mouse.move(box["x"] + 20, box["y"] + 20)
    await phone.mouse.down()
    call = await phone.wait_for_selector("[data-call]", timeout=60_000)
    await phone.mouse.up()
    call_id = await call.get_attribute("data-call")
    await wall.wait_for_selector(f"[data-call='{call_id}'] [data-act=join]")
    await wall.click(f"[data-call='{call_id}'] [data-act=join]")
    for page in (wall, phone):
        await page.wait_for_selector(f"[data-call='{call_id}'][data-state=ACTIVE]", timeout=60_000)
    assert await phone.get_attribute("[data-duty]", "data-duty") == "sos"
    await phone.click("[data-act=hangup]")
    await phone.wait_for_selector("[data-call]", state="detached")
    await phone.click("[data-act=duty]")
    await until("back on duty", lambda: phone.eval_on_selector("[data-duty]", "e => e.dataset.duty === 'on'"))
    assert (wall_errors, errors) == ([], [])


async def test_the_resident_corrects_the_place_and_cancels(product: Product, browser: Browser) -> None:
    """Full screen names the camera, 2 says at home, and a cancel still needs a call back."""
    token = product.token("operator", "op01")
    stb, errors = await open_page(browser, product.link("stb", "stb", "stb00003"), 1280, 720)
    await stb.wait_for_selector("body[data-mqtt=up]", timeout=60_000)
    camera = await stb.get_attribute("[data-tile='0']", "data-camera")
    await stb.keyboard.press("1")
    await stb.keyboard.press("r")
    await stb.wait_for_selector("#toast:visible >> text=再按一次")
    await stb.keyboard.press("r")
    assert not await stb.is_visible("#toast")  # what was asked for is done
    await until("an alarm", lambda: stb.get_attribute("body", "data-alarm"))
    alarm_id = await stb.get_attribute("body", "data-alarm")

    async def alarm() -> dict[str, Any]:
        return dict(await asyncio.to_thread(product.get, f"/api/v1/alarms/{alarm_id}", token))

    first = await alarm()
    assert (first["place"]["kind"], first["place"]["ref"]) == ("camera", camera)
    await stb.keyboard.press("2")

    async def at_home() -> bool:
        return bool((await alarm())["place"]["kind"] == "household")

    await until("the place is the household", at_home)
    await stb.keyboard.press("ArrowDown")
    await stb.click("text=取消报警")
    await stb.wait_for_selector("body[data-stage=cancelled]")
    assert (await alarm())["condition"] == "CLEARED"
    wall, wall_errors = await open_page(browser, product.link("wall", "operator", "op01"), 1280, 720)
    await wall.click(f"[data-alarm='{alarm_id}']")
    assert await wall.is_disabled("[data-act=called-unreachable]")  # until it says what was done instead
    await wall.click("[data-act=called-safe]")
    await wall.wait_for_selector("text=已确认平安")
    assert (await alarm())["call_back"]["outcome"] == "safe"
    assert errors == wall_errors == []
