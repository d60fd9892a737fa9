"""`make screenshots`: each screen in several states, taken on the running demo, into docs/images.

Start `make demo CAMERAS=64` first. It presses a real alarm, answers it and works it; nothing is drawn or staged otherwise.
Usage: scripts/screenshots.py [--base http://127.0.0.1:8080] [--data var] [--out docs/images]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml
from playwright.async_api import Browser, Page, async_playwright

ROOT = Path(__file__).resolve().parent.parent
WIDEST = 1440  # pixels: wide enough to read on a screen, small enough for a repository
COLOURS = 200
CHROMIUM = (
    "--no-sandbox",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--enable-unsafe-swiftshader",
)


class Studio:
    """One browser, and where the pictures go."""

    def __init__(self, browser: Browser, base: str, data: str, out: Path) -> None:
        self.browser = browser
        self.base = base
        self.data = data
        self.out = out

    def link(self, page: str, role: str, sub: str, area: str = "") -> str:
        command = [sys.executable, "-m", "gateway", "link", "--page", page, "--role", role, "--sub", sub]
        command += ["--data", self.data, "--base", self.base, *(["--area", area] if area else [])]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    async def open(
        self, page: str, role: str, sub: str, width: int, height: int, *, area: str = "", language: str = "zh"
    ) -> Page:
        context = await self.browser.new_context(
            viewport={"width": width, "height": height},
            permissions=["camera", "microphone", "geolocation"],
            geolocation={"latitude": 30.8169, "longitude": 103.8704, "accuracy": 10},
        )
        opened = await context.new_page()
        opened.set_default_timeout(90_000)  # a busy machine draws late; nothing is measured here
        link = self.link(page, role, sub, area)
        await opened.goto(f"{link}&lang={language}")
        await opened.wait_for_url(f"{self.base}/{page}")  # by way of the log-in page, which spends the code
        return opened

    async def take(self, page: Page, name: str) -> None:
        picture = cv2.imdecode(np.frombuffer(await page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
        if picture.shape[1] > WIDEST:
            height = round(picture.shape[0] * WIDEST / picture.shape[1])
            picture = cv2.resize(picture, (WIDEST, height), interpolation=cv2.INTER_AREA)
        path = self.out / f"{name}.png"
        cv2.imwrite(str(path), few_colours(picture), [cv2.IMWRITE_PNG_COMPRESSION, 9])
        print(
            f"{path.name}: {picture.shape[1]}x{picture.shape[0]}, {path.stat().st_size // 1024} KiB",
            flush=True,
        )


def few_colours(picture: np.ndarray) -> np.ndarray:
    """Rounds each channel to six bits: screens are mostly flat, and flat is what PNG packs well."""
    return ((picture.astype(np.uint16) + 4) // 8 * 8).clip(0, 255).astype(np.uint8)


async def until(page: Page, expression: str, seconds: float = 40) -> bool:
    """Asks from outside: the pages' content security policy forbids what wait_for_function does inside."""
    for _ in range(round(seconds / 0.3)):
        if await page.evaluate(expression):
            return True
        await asyncio.sleep(0.3)
    print(f"after {seconds} s still not: {expression}", file=sys.stderr)
    return False


async def settled(page: Page, selector: str = "[data-tile]") -> None:
    """Until every tile that has a camera is live, or the time is up: a picture shows what is so."""
    await until(
        page,
        f"(tiles => tiles.length > 0 && tiles.every(t => t.dataset.state === 'live'))"
        f"([...document.querySelectorAll({selector!r})].filter(t => t.dataset.camera))",
    )
    await asyncio.sleep(4)  # the map draws itself, and a busy machine paints late


async def screens(studio: Studio) -> None:
    district = ROOT / "config/district"
    load = lambda name: yaml.load((district / f"{name}.yaml").read_text(), yaml.CSafeLoader)[name]  # noqa: E731
    household = {h["id"]: h for h in load("households")}
    boxes = load("boxes")
    home = household[boxes[0]["household"]]
    worker = next(w for w in load("gridworkers") if w["grid"] == home["grid"])["id"]

    login = await (await studio.browser.new_context(viewport={"width": 1280, "height": 720})).new_page()
    await login.goto(f"{studio.base}/login")
    await login.wait_for_selector("form")
    await studio.take(login, "login")
    await login.close()

    phone = await studio.open("worker", "worker", worker, 390, 844)
    await phone.wait_for_selector("[data-act=duty]:not([disabled])")
    if await phone.get_attribute("[data-duty]", "data-duty") == "off":
        await phone.click("[data-act=duty]")
    await phone.wait_for_selector(".fix.ok")
    await studio.take(phone, "worker-standby")
    await phone.click("[data-act=open-report]")
    await phone.click("[data-type=公共设施]")
    await phone.fill(".sheet textarea", "路灯不亮，行人看不清台阶")
    await studio.take(phone, "worker-report")
    await phone.click(".sheet .x")

    wall = await studio.open("wall", "operator", "op01", 1920, 1080)
    await settled(wall)
    await studio.take(wall, "wall-idle")
    await wall.click("[data-act=layouts]")
    await studio.take(wall, "wall-layouts")
    await wall.keyboard.press("Escape")
    await wall.click("[data-view=health]")
    await wall.click("[data-filter=all]")
    await studio.take(wall, "wall-health")
    await wall.click("[data-view=health]")

    # A box that has no open alarm: another press of the same box would only be counted as a repeat.
    busy = await wall.evaluate(
        "fetch('/api/v1/alarms?open=1', {headers: {'X-Gateway-Page': 'wall'}}).then(r => r.json())"
        ".then(a => a.alarms.map(x => x.source))"
    )
    free = (
        box["sid"]
        for box in boxes
        if household[box["household"]]["grid"] == home["grid"]
        and not any(source.endswith(box["sid"]) for source in busy)
    )
    stb = await studio.open("stb", "stb", next(free), 1280, 720)
    await stb.wait_for_selector("body[data-mqtt=up]")
    await settled(stb)
    await studio.take(stb, "stb-idle")
    await stb.keyboard.press("1")
    await settled(stb, ".t.big")
    await studio.take(stb, "stb-fullscreen")
    await stb.keyboard.press("r")
    await stb.keyboard.press("r")
    await phone.wait_for_selector("[data-ring]", timeout=20_000)
    await asyncio.sleep(1)
    await studio.take(phone, "worker-ringing")
    await studio.take(stb, "stb-alarm")
    await phone.click("[data-act=claim]")
    await wall.keyboard.press("Space")
    await wall.keyboard.press("c")
    for page in (wall, phone):
        await until(
            page,
            "[...document.querySelectorAll('[data-remote-frames]')].some(r => Number(r.dataset.remoteFrames) > 10)",
        )
    await settled(wall)
    await studio.take(wall, "wall-alarm")
    await studio.take(phone, "worker-call")
    await studio.take(stb, "stb-dispatched")
    leader = await studio.open("wall", "leader", "leader01", 390, 844)
    await leader.wait_for_selector("[data-alarm]", state="attached")
    await leader.click("nav.tabs button")
    await asyncio.sleep(1)
    await studio.take(leader, "leader-phone")
    await leader.close()

    await wall.keyboard.press("Space")  # taken again, if the pictures took longer than an operator may
    await wall.keyboard.press("3")
    await wall.keyboard.press("n")
    await wall.keyboard.press("d")
    await wall.wait_for_selector("[data-incident-detail] [data-near-worker]")
    await phone.click("[data-act=hangup]")
    await phone.wait_for_selector("[data-act=on_scene], [data-act=task-accept]")
    if await phone.locator("[data-act=task-accept]").count():
        await phone.click("[data-act=task-accept]")
        await phone.wait_for_selector("[data-act=task-on_scene]")
    await studio.take(phone, "worker-task")
    await settled(wall)
    await studio.take(wall, "wall-incident")
    await wall.keyboard.press("s")
    await wall.wait_for_selector("[data-page-view=statistics] table")
    await studio.take(wall, "wall-statistics")
    await wall.keyboard.press("s")
    for page in (wall, phone, stb):
        await page.context.close()

    desk = await studio.open("desk", "desk", "desk01", 1366, 768, area=home["community"])
    await settled(desk)
    await studio.take(desk, "desk")
    await desk.close()
    english = await studio.open("wall", "operator", "op02", 1366, 768, language="en")
    await settled(english)
    await studio.take(english, "wall-english")
    volunteer = await studio.open("worker", "volunteer", load("volunteers")[0]["id"], 390, 844)
    await volunteer.wait_for_selector(".box")
    await asyncio.sleep(1)
    await studio.take(volunteer, "volunteer")

    offline = await studio.open("worker", "worker", worker, 390, 844)
    await offline.wait_for_selector("[data-act=duty]:not([disabled])")
    await offline.evaluate("navigator.serviceWorker.ready.then(() => null)")
    await offline.context.set_offline(True)
    await offline.reload()
    await offline.wait_for_selector(".banner")
    await offline.click("[data-act=open-report]")
    await offline.fill(".sheet textarea", "井盖缺失")
    await offline.click(".sheet [data-act=report]")
    await offline.wait_for_selector(".waiting")
    await studio.take(offline, "worker-offline")


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--base", default="http://127.0.0.1:8080")
    arguments.add_argument("--data", default="var")
    arguments.add_argument("--out", type=Path, default=ROOT / "docs/images")
    said = arguments.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(CHROMIUM))
        try:
            await screens(Studio(browser, said.base, said.data, said.out))
        finally:
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
