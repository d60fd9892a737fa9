"""The wall's other work in a real Chromium: dragging, layouts that follow the operator, tours, figures, health, groups, a base map."""

from __future__ import annotations

import asyncio
import zipfile
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect
from running_product import Product, open_page
from test_pages_flows import alarm_from, open_alarm, press, until

pytestmark = pytest.mark.browser


async def wall_of(browser: Browser, product: Product, sub: str, **size: int) -> tuple[Page, list[str]]:
    wall, errors = await open_page(
        browser, product.link("wall", "operator", sub), size.get("width", 1600), size.get("height", 900)
    )
    await wall.wait_for_selector("[data-tree-camera], .tree .street")
    return wall, errors


async def drop_on(wall: Page, x: float, y: float, tile: int) -> None:
    box = await wall.locator(f"[data-tile='{tile}']").bounding_box()
    assert box
    await wall.mouse.move(x, y)
    await wall.mouse.down()
    await wall.mouse.move(x + 12, y + 8)
    await wall.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    await wall.wait_for_selector(".ghost")
    await wall.mouse.up()


async def test_a_camera_is_dragged_from_the_tree_and_from_the_map(product: Product, browser: Browser) -> None:
    wall, errors = await wall_of(browser, product, "op11")
    await wall.click("[data-layout='4']")
    await wall.fill("#search", "cam020")
    row = await wall.locator("[data-tree-camera=cam020]").bounding_box()
    assert row
    await drop_on(wall, row["x"] + 30, row["y"] + 8, 2)
    await expect(wall.locator("[data-tile='2']")).to_have_attribute("data-camera", "cam020")
    # The map goes to an incident, in the middle of which stands a camera to be dragged.
    token = product.token("operator", "op11")
    camera = await asyncio.to_thread(product.get, "/api/v1/cameras/cam022", token)
    made = await asyncio.to_thread(
        product.post,
        "/api/v1/incidents",
        token,
        {"type": "traffic", **camera["position"], "datum": "wgs84"},
    )
    await wall.keyboard.press("Escape")
    await wall.click("[data-list=incidents]")
    await wall.click(f"[data-incident='{made['id']}']")
    at: tuple[float, float] = (0, 0)

    async def under_the_pointer() -> bool:
        """Hovering only: a button pressed beside the camera would pan the map, and the camera away with it."""
        nonlocal at
        canvas = await wall.locator(".map .canvas").bounding_box()  # the page may still be laying itself out
        assert canvas
        at = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2 + 5
        await wall.mouse.move(at[0] - 1, at[1])
        await wall.mouse.move(*at)
        return camera["name"] in await wall.locator(".map .tip").all_inner_texts()

    await until("the map has come to the camera", under_the_pointer, 30)
    await drop_on(wall, *at, 3)
    await expect(wall.locator("[data-tile='3']")).to_have_attribute("data-camera", "cam022")
    assert errors == []


async def test_twentyfive_tiles_and_the_page_after_them(product: Product, browser: Browser) -> None:
    """24 cameras on 25 tiles, each live on its sub-stream; of nine, the third page holds the last six, and the first comes next."""
    wall, errors = await wall_of(browser, product, "op23", width=1920, height=1080)
    await wall.click("[data-layout='25']")
    await expect(wall.locator("[data-tile]")).to_have_count(25)
    await expect(wall.locator("[data-tile][data-state=live]")).to_have_count(24, timeout=90_000)
    await wall.click("[data-layout='9']")
    for first in ("cam010", "cam019", "cam001"):
        await wall.keyboard.press("PageDown")
        await expect(wall.locator("[data-tile='0']")).to_have_attribute("data-camera", first)
        if first == "cam019":
            await expect(wall.locator("[data-tile][data-camera^=cam]")).to_have_count(6)
    assert errors == []


async def test_layouts_and_tours_follow_the_operator(product: Product, browser: Browser) -> None:
    wall, errors = await wall_of(browser, product, "op12")
    for name, size in (("校门", "4"), ("路口", "1")):
        await wall.click(f"[data-layout='{size}']")
        await wall.click("[data-act=layouts]")
        await wall.fill(".layoutsheet input >> nth=0", name)
        await wall.click("[data-act=save-layout]")
        await wall.wait_for_selector(f"[data-layout-name={name}]")
        await wall.keyboard.press("Escape")
    await wall.context.close()
    other, other_errors = await wall_of(browser, product, "op12")  # another desk, another browser
    await other.click("[data-act=layouts]")
    for name in ("校门", "路口"):
        await other.check(f"[data-layout-name={name}] [type=checkbox]")
    await other.fill(".maketour input", "早高峰")
    await other.click("[data-act=save-tour]")
    await other.click("[data-tour=早高峰] .link")
    await expect(other.locator(".tour")).to_contain_text("早高峰")
    await expect(other.locator("[data-tile]")).to_have_count(4)  # its first stop
    await other.click(".tour")
    await expect(other.locator(".tour")).to_have_text("轮巡")
    stranger, _ = await wall_of(browser, product, "op13")
    await stranger.click("[data-act=layouts]")
    await stranger.wait_for_selector("text=还没有保存的布局")
    assert (errors, other_errors) == ([], [])


async def test_figures_are_drawn_and_downloaded(product: Product, browser: Browser) -> None:
    token = product.token("operator", "op14")
    place = {"lat": 30.8169, "lon": 103.8704, "datum": "wgs84"}
    await asyncio.to_thread(product.post, "/api/v1/incidents", token, {"type": "facility", **place})
    wall, errors = await wall_of(browser, product, "op14")
    await wall.keyboard.press("s")
    await wall.wait_for_selector("[data-page-view=statistics] tbody tr")
    assert await wall.locator("[data-plot=counts] rect.reported").count() > 0
    async with wall.expect_download() as download:
        await wall.click("[data-act=csv]")
    file = await (await download.value).path()
    assert "reported" in (await asyncio.to_thread(file.read_text, encoding="utf-8-sig")).splitlines()[0]
    await wall.fill("[type=month]", "2020-01")
    await wall.wait_for_selector("text=2020-01 还没有事件")
    await wall.keyboard.press("Escape")
    await wall.keyboard.press("Escape")
    await wall.wait_for_selector("[data-tile]")
    assert errors == []


async def test_health_lists_every_camera_and_leads_to_its_picture(product: Product, browser: Browser) -> None:
    wall, errors = await wall_of(browser, product, "op15")
    await wall.keyboard.press("h")
    await wall.click("[data-filter=all]")
    await expect(wall.locator("[data-health-camera]")).to_have_count(24)
    await wall.fill("[data-page-view=health] [type=search]", "cam024")
    await wall.click("[data-health-camera=cam024] button")
    await wall.wait_for_selector("[data-tile][data-camera=cam024][data-state=live]")
    assert errors == []


async def test_alarms_of_neighbours_are_one_row_that_unfolds(product: Product, browser: Browser) -> None:
    """Three boxes of one community press within two minutes: a group, in which each can be worked."""
    token = product.token("operator", "op16")
    wall, errors = await wall_of(browser, product, "op16")
    for sid in ("stb00001", "stb00002", "stb00003"):
        await press(product, sid, "--cam", "cam001")

    async def grouped() -> list[dict[str, Any]] | None:
        found = (await asyncio.to_thread(product.get, "/api/v1/alarms?open=1", token))["alarms"]
        led = [a for a in found if a["group_id"]]
        return led if len(led) >= 2 else None

    members = await until("the gateway groups them", grouped)
    lead = members[0]["group_id"]
    group = wall.locator(f"[data-group='{lead}']")
    await expect(group.locator(".unfold")).to_contain_text("2")
    if await group.locator(".unfold").get_attribute("aria-expanded") == "false":
        await group.locator(".unfold").click()
    await expect(group.locator("[data-alarm]")).to_have_count(3)

    async def all_shown() -> bool:
        """Folded or not, a row on the screen shows its whole group."""
        found = (await asyncio.to_thread(product.get, "/api/v1/alarms?open=1", token))["alarms"]
        return all(a["shown_at"] for a in found if a["id"] == lead or a["group_id"] == lead)

    await until("each is shown", all_shown)
    await group.locator(f"[data-alarm='{lead}']").click()
    await wall.keyboard.press("Space")
    await wall.wait_for_selector(
        f"[data-detail='{lead}'] .hint"
    )  # merging is suggested, never done by itself
    # Whoever has scrolled away sees the next one come, once the pointer has been still.
    queue = wall.locator(".queue .scroll")
    far = await queue.evaluate("e => { e.style.maxHeight = '90px'; e.scrollTop = 1000; return e.scrollTop; }")
    assert far > 0
    await press(product, "stb00021")

    async def at_the_head() -> bool:
        return bool(await queue.evaluate("e => e.scrollTop === 0"))

    await until("the queue is at its head", at_the_head)
    assert errors == []


async def test_a_merge_is_suggested_and_done_by_one_key(product: Product, browser: Browser) -> None:
    token = product.token("operator", "op17")
    place = {"lat": 30.8301, "lon": 103.9102, "datum": "wgs84"}
    first, second = [
        await asyncio.to_thread(
            product.post, "/api/v1/incidents", token, {"type": "facility", "note": note, **place}
        )
        for note in ("一", "二")
    ]
    wall, errors = await wall_of(browser, product, "op17")
    await wall.click("[data-list=incidents]")
    await wall.click(f"[data-incident='{second['id']}']")
    await wall.click(f"[data-suggestion='{first['id']}'] [data-act=merge-into]")
    await wall.wait_for_selector("[data-incident-detail][data-incident-state=MERGED]")
    assert errors == []


async def test_a_resident_is_followed_up_by_telephone(product: Product, browser: Browser) -> None:
    token = product.token("operator", "op18")
    made = await asyncio.to_thread(
        product.post,
        "/api/v1/incidents",
        token,
        {"type": "dispute", "lat": 30.84, "lon": 103.92, "datum": "wgs84"},
    )
    for step in ("dispatch", "handle", "submit"):
        await asyncio.to_thread(product.post, f"/api/v1/incidents/{made['id']}/{step}", token, {})
    wall, errors = await wall_of(browser, product, "op19")
    await wall.click("[data-list=incidents]")
    await wall.click(f"[data-incident='{made['id']}']")
    await wall.click("[data-act=follow-bad]")
    await wall.wait_for_selector("[data-satisfied=false]")
    found = await asyncio.to_thread(product.get, f"/api/v1/incidents/{made['id']}", token)
    assert found["satisfied"] is False
    assert errors == []


async def test_evidence_is_played_held_and_exported(product: Product, browser: Browser) -> None:
    """The cameras around a press: a clip plays in the page, a hold asks for a reason, the bundle comes as a download."""
    token = product.token("operator", "op21")
    wall, errors = await wall_of(browser, product, "op21")
    await press(product, "stb00025", "--cam", "cam005")

    async def mine() -> dict[str, Any] | None:
        found = (await asyncio.to_thread(product.get, "/api/v1/alarms?open=1", token))["alarms"]
        return next((a for a in found if a["source"] == "stb/stb00025"), None)

    alarm = await until("the alarm", mine)
    await wall.click(f"[data-alarm='{alarm['id']}']")
    await wall.wait_for_selector("[data-clip][data-clip-state=complete]")
    clip = wall.locator("[data-clip][data-clip-state=complete]").first
    await clip.locator("[data-act=play]").click()
    video = clip.locator("video")
    await until("it plays", lambda: video.evaluate("v => v.currentTime > 0.5 && v.videoWidth > 0"))
    assert await clip.locator("canvas.watermark").count() == 1
    await clip.locator("[data-act=hold]").click()
    await clip.locator(".reasonform input").fill("案件侦办")
    await clip.locator(".reasonform [type=submit]").click()
    await expect(clip.locator(".tag.hold")).to_be_visible()
    await wall.click(".evidence > [data-act=export]")
    await wall.fill(".evidence > .reasonform input", "移交公安")
    async with wall.expect_download() as download:
        await wall.click(".evidence > .reasonform [type=submit]")
    file = await (await download.value).path()
    names = await asyncio.to_thread(lambda: zipfile.ZipFile(file).namelist())
    assert "manifest.json" in names
    assert any(name.endswith(".mp4") for name in names)
    assert errors == []


async def test_a_leader_on_a_phone_sees_alarms_map_a_camera_and_joins(
    product: Product, browser: Browser
) -> None:
    """A new alarm comes up by itself, once: neither a repeat nor an escalation takes the screen from him again."""
    token = product.token("leader", "leader01")
    await press(product, "stb00029")  # waits already when he opens the page
    await alarm_from(product, "stb00029", token)
    leader, errors = await open_page(browser, product.link("wall", "leader", "leader01"), 390, 844)
    tabs = leader.locator("nav.tabs button")
    await leader.wait_for_selector("[data-alarm][aria-current=true]")
    await tabs.nth(1).click()
    await leader.wait_for_selector("[data-tile][data-state=live]")
    await press(product, "stb00030")
    mine = await alarm_from(product, "stb00030", token)
    await leader.wait_for_selector(f"[data-alarm='{mine}'][aria-current=true]")
    await tabs.nth(1).click()
    await press(product, "stb00030")
    await leader.wait_for_selector(f"[data-alarm='{mine}']:has-text('×2')", state="attached")
    await expect(tabs.nth(1)).to_have_attribute("aria-pressed", "true")
    await leader.click("[data-act=arrival]")  # what waits first in the queue is one tap away
    await expect(tabs.nth(0)).to_have_attribute("aria-pressed", "true")
    await leader.wait_for_selector("[data-detail]")
    await open_alarm(leader, mine)
    await leader.wait_for_selector(f"[data-detail='{mine}']")
    await leader.click("[data-act=acknowledge]")
    await leader.wait_for_selector("[data-act=call]")
    assert await leader.locator("[data-act=dispatch], [data-act=false]").count() == 0  # judging is for a desk
    await tabs.nth(2).click()
    await leader.wait_for_selector(".maplibregl-canvas", state="visible")
    await tabs.nth(1).click()
    await leader.wait_for_selector("[data-tile][data-state=live]")
    await leader.click("[data-view=statistics]")
    await leader.wait_for_selector("[data-page-view=statistics]")
    assert await leader.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert errors == []
