"""`make screenshots`: each screen in several states, taken on the running demo, into docs/images.

Start `make demo CAMERAS=64 HEADLESS=1` first. It presses real alarms, answers them and works them to the archive; nothing is
drawn or staged otherwise. A scene that fails is named at the end, and the others are taken all the same.
Usage: scripts/screenshots.py [--base http://127.0.0.1:8080] [--data var] [--out docs/images] [--only SCENE ...]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import math
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright

from gateway.cli import main as gateway

ROOT = Path(__file__).resolve().parent.parent
WIDEST = 1440  # pixels: wide enough to read on a screen, small enough for a repository
HERE = {"latitude": 30.8169, "longitude": 103.8704, "accuracy": 10}
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
    """One browser, the gateway's command line and API, and where the pictures go."""

    def __init__(self, browser: Browser, base: str, data: str, out: Path) -> None:
        self.browser = browser
        self.base = base
        self.data = data
        self.out = out
        self._free = self._free_boxes()

    # -- the gateway ------------------------------------------------------------------------------------------

    def _say(self, *command: str) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            if gateway(command) != 0:
                raise RuntimeError(f"gateway {' '.join(command)} failed")
        return said.getvalue().strip()

    def link(self, page: str, role: str, sub: str, area: str = "", name: str = "") -> str:
        more = [*(["--area", area] if area else []), *(["--name", name] if name else [])]
        return self._say(
            *("link", "--page", page, "--role", role, "--sub", sub, *more),
            *("--data", self.data, "--base", self.base),
        )

    async def api(self, method: str, path: str, *, sub: str = "op05", body: object = None) -> Any:
        """As an operator."""
        token = self._say("token", "--role", "operator", "--sub", sub, "--data", self.data)
        request = urllib.request.Request(  # noqa: S310 - the gateway that --base names
            self.base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )

        def ask() -> Any:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                return json.load(answer)

        return await asyncio.to_thread(ask)

    async def clear_the_desk(self) -> None:
        """Nothing of an earlier run waits: what is open is judged, as an operator would after an exercise."""
        for alarm in (await self.api("GET", "/api/v1/alarms?open=1&limit=200"))["alarms"]:
            with contextlib.suppress(OSError):
                if alarm["handling"] in ("NEW", "SHOWN"):
                    await self.api("POST", f"/api/v1/alarms/{alarm['id']}/acknowledge", body={})
                if alarm["handling"] != "TRIAGED":
                    await self.api("POST", f"/api/v1/alarms/{alarm['id']}/triage", body={"outcome": "false"})
                if not alarm["incident_id"]:
                    await self.api("POST", f"/api/v1/alarms/{alarm['id']}/close", body={"note": "演练"})
        for incident in (await self.api("GET", "/api/v1/incidents"))["incidents"]:
            if incident["alarm_id"] and incident["state"] in ("REPORTED", "DISPATCHED", "HANDLING"):
                with contextlib.suppress(OSError):
                    await self.api(
                        "POST",
                        f"/api/v1/incidents/{incident['id']}/cancel",
                        body={"detail": {}, "note": "演练结束"},
                    )

    def _free_boxes(self) -> Iterator[str]:
        """Boxes of the first household's grid, then of its community; another for each alarm: a second press would be a repeat."""
        households = {h["id"]: h for h in district("households")}
        home = households[district("boxes")[0]["household"]]
        near = lambda box: [households[box["household"]][key] != home[key] for key in ("grid", "community")]  # noqa: E731
        return (b["sid"] for b in sorted(district("boxes"), key=near))

    async def free_box(self) -> str:
        busy = {a["source"] for a in (await self.api("GET", "/api/v1/alarms?open=1&limit=200"))["alarms"]}
        for sid in self._free:
            if f"stb/{sid}" not in busy:
                return sid
        raise RuntimeError("every box has an open alarm")

    async def alarm_of(self, sid: str) -> dict[str, Any]:
        async def mine() -> Any:
            found = (await self.api("GET", "/api/v1/alarms?open=1&limit=200"))["alarms"]
            return next((a for a in found if a["source"] == f"stb/{sid}"), None)

        return dict(await until(f"the alarm of {sid}", mine))

    # -- pages ------------------------------------------------------------------------------------------------

    async def open(
        self,
        page: str,
        role: str,
        sub: str,
        width: int,
        height: int,
        *,
        area: str = "",
        language: str = "zh",
        zoom: float = 1,
    ) -> Page:
        context = await self.browser.new_context(
            viewport={"width": round(width / zoom), "height": round(height / zoom)},
            device_scale_factor=zoom,
            permissions=["camera", "microphone", "geolocation"],
            geolocation={**HERE},
            locale="zh-CN",
        )
        opened = await context.new_page()
        opened.set_default_timeout(60_000)  # a busy machine draws late; nothing is measured here
        await opened.goto(f"{self.link(page, role, sub, area)}&lang={language}")
        await opened.wait_for_url(f"{self.base}/{page}")  # by way of the log-in page, which spends the code
        return opened

    async def take(self, page: Page, name: str) -> None:
        picture = Image.open(io.BytesIO(await page.screenshot())).convert("RGB")
        if picture.width > WIDEST:
            picture = picture.resize(
                (WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS
            )
        path = self.out / f"{name}.png"
        few_colours(picture).save(path, optimize=True)
        print(f"{path.name}: {picture.width}x{picture.height}, {path.stat().st_size // 1024} KiB", flush=True)


def few_colours(picture: Image.Image) -> Image.Image:
    """A palette of 256: most for what covers most of the picture, the rest for small things that stand out, like a green dot."""
    common = picture.quantize(200, method=Image.Quantize.MEDIANCUT).getpalette() or []
    rare = picture.quantize(56, method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(common[: 200 * 3] + rare[: 56 * 3])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)  # dots don't pack


@cache
def district(name: str) -> list[dict[str, Any]]:
    found = yaml.load((ROOT / f"config/district/{name}.yaml").read_text(), yaml.CSafeLoader)[name]
    return list(found)


def own_gridworker() -> tuple[str, str, str]:
    """The gridworker of the first box's grid, that grid and its community."""
    households = {h["id"]: h for h in district("households")}
    home = households[district("boxes")[0]["household"]]
    worker = next(w for w in district("gridworkers") if w["grid"] == home["grid"])
    return worker["id"], home["grid"], home["community"]


async def until(what: str, ask: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    """Asks from outside: the pages' content security policy forbids what wait_for_function does inside."""
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while not (last := await ask()):  # noqa: ASYNC110 - a page tells nobody when it has changed
                await asyncio.sleep(0.3)
    except TimeoutError:
        raise AssertionError(f"{what}: still {last!r} after {seconds:.0f} s") from None
    return last


async def settled(page: Page, selector: str = "[data-tile]") -> None:
    """Every visible tile that has a camera is live, and the map has drawn itself."""
    live = (
        "tiles => (all => all.length > 0 && all.every(t => t.dataset.state === 'live'))"
        "(tiles.filter(t => t.dataset.camera && t.getClientRects().length))"
    )
    await until("every tile is live", lambda: page.eval_on_selector_all(selector, live))
    await asyncio.sleep(2.5)  # the map draws itself, and a busy machine paints late


async def talking(page: Page, selector: str = "[data-remote-frames]", key: str = "remoteFrames") -> None:
    moves = f"all => all.some(one => Number(one.dataset.{key}) > 10)"
    await until("the other's picture moves", lambda: page.eval_on_selector_all(selector, moves))


async def on_duty(phone: Page) -> None:
    await phone.wait_for_selector("[data-act=duty]:not([disabled])")
    if await phone.get_attribute("[data-duty]", "data-duty") == "off":
        await phone.click("[data-act=duty]")
    await phone.wait_for_selector(".fix.ok")


async def box(studio: Studio, sid: str, width: int = 1280, height: int = 720, language: str = "zh") -> Page:
    stb = await studio.open("stb", "stb", sid, width, height, language=language)
    await stb.wait_for_selector("body[data-mqtt=up]")
    return stb


async def open_alarm(wall: Page, alarm_id: str) -> None:
    """Its row, which may be folded under a neighbour's."""
    await wall.wait_for_selector("[data-alarm]", state="attached")
    for fold in await wall.locator(".unfold[aria-expanded=false]").all():
        await fold.click()
    await wall.click(f"[data-alarm='{alarm_id}']")


def handheld(base: str, data: str, path: Path) -> Path:
    """What phones and boxes film: a street of the demo, panned as a hand would, instead of Chromium's green test picture."""
    token = io.StringIO()
    with contextlib.redirect_stdout(token):
        gateway(("token", "--role", "operator", "--sub", "op05", "--data", data))
    request = urllib.request.Request(  # noqa: S310 - the gateway that --base names
        f"{base}/api/v1/cameras/cam001/snapshot.jpg",
        headers={"Authorization": f"Bearer {token.getvalue().strip()}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        scene = Image.open(io.BytesIO(answer.read())).convert("RGB").resize((960, 540))
    with path.open("wb") as film:
        for step in range(80):
            left = 40 + round(36 * math.sin(step / 80 * 2 * math.pi))
            scene.crop((left, 20, left + 640, 500)).save(film, "JPEG", quality=85)
    return path


# ---- scenes: each stands for itself ----


async def people(studio: Studio) -> None:
    """The log-in page, and the gridworker's phone at rest, reporting, and without a network."""
    login = await (await studio.browser.new_context(viewport={"width": 1280, "height": 720})).new_page()
    await login.goto(f"{studio.base}/login")
    await login.wait_for_selector("form")
    await studio.take(login, "login")
    worker, _, _ = own_gridworker()
    phone = await studio.open("worker", "worker", worker, 390, 844)
    await on_duty(phone)
    await studio.take(phone, "worker-standby")
    await phone.click("[data-act=open-report]")
    await phone.click("[data-type=公共设施]")
    await phone.fill(".sheet textarea", "路灯不亮，行人看不清台阶")
    await studio.take(phone, "worker-report")
    await phone.click(".sheet .x")
    await phone.evaluate("navigator.serviceWorker.ready.then(() => null)")
    await phone.context.set_offline(True)
    await phone.reload()
    await phone.wait_for_selector(".banner")
    await phone.click("[data-act=open-report]")
    await phone.click("[data-type=公共设施]")
    await phone.fill(".sheet textarea", "井盖缺失")
    await phone.click(".sheet [data-act=report]")
    await phone.wait_for_selector(".waiting")
    await studio.take(phone, "worker-offline")
    english = await studio.open("worker", "worker", worker, 390, 844, language="en")
    await on_duty(english)
    await studio.take(english, "worker-english")


async def calm_wall(studio: Studio) -> None:
    """The wall when nothing happens: pictures, layouts, 25 tiles, the cameras' health; at 200 %; and with its channel lost."""
    await studio.clear_the_desk()
    wall = await studio.open("wall", "operator", "op01", 1920, 1080)
    await settled(wall)
    await studio.take(wall, "wall-idle")
    await wall.click("[data-layout='25']")
    await settled(wall)
    await studio.take(wall, "wall-25")
    await wall.click("[data-layout='9']")
    await wall.click("[data-act=layouts]")
    await wall.fill(".layoutsheet input >> nth=0", "校门与路口")
    await wall.click("[data-act=save-layout]")
    await settled(wall)
    await studio.take(wall, "wall-layouts")
    await wall.keyboard.press("Escape")
    await wall.click("[data-layout='16']")
    await wall.click("[data-view=health]")
    await wall.click("[data-filter=all]")
    await asyncio.sleep(1)
    await studio.take(wall, "wall-health")
    await wall.click("[data-view=health]")
    await settled(wall)
    await wall.context.set_offline(True)
    await wall.wait_for_selector("[data-stale]")
    await asyncio.sleep(4)
    await studio.take(wall, "wall-stale")
    await wall.context.close()


async def other_walls(studio: Studio) -> None:
    """At 200 %, in English, and a community's desk."""
    await studio.clear_the_desk()
    zoomed = await studio.open("wall", "operator", "op02", 1920, 1080, zoom=2)
    await settled(zoomed)
    await studio.take(zoomed, "wall-zoom200")
    english = await studio.open("wall", "operator", "op02", 1366, 768, language="en")
    await settled(english)
    await studio.take(english, "wall-english")
    _, _, community = own_gridworker()
    desk = await studio.open("desk", "desk", f"desk-{community}", 1366, 768, area=community)
    await settled(desk)
    await studio.take(desk, "desk")


async def alarm(studio: Studio) -> None:
    """One alarm from the key to the archive, seen from box, phone, wall and a leader's pocket."""
    await studio.clear_the_desk()
    worker, _, _ = own_gridworker()
    phone = await studio.open("worker", "worker", worker, 390, 844)
    await on_duty(phone)
    wall = await studio.open("wall", "operator", "op01", 1920, 1080)
    await settled(wall)
    sid = await studio.free_box()
    stb = await box(studio, sid)
    await settled(stb)
    await studio.take(stb, "stb-idle")
    await stb.keyboard.press("1")
    await settled(stb, ".t.big")
    await studio.take(stb, "stb-fullscreen")
    await stb.keyboard.press("r")
    await stb.keyboard.press("r")
    await phone.wait_for_selector("[data-ring]")
    await asyncio.sleep(1.5)
    await studio.take(phone, "worker-ringing")
    await stb.wait_for_selector("body[data-stage=shown]")
    await studio.take(stb, "stb-alarm")
    of = await studio.alarm_of(sid)
    await phone.click("[data-act=claim]")
    await open_alarm(wall, of["id"])
    await wall.keyboard.press("Space")
    await wall.keyboard.press("c")
    for page in (wall, phone):
        await talking(page)
    await stb.wait_for_selector("body[data-stage=dispatched]")
    await settled(wall)
    await studio.take(wall, "wall-alarm")
    await studio.take(phone, "worker-call")
    await stb.wait_for_selector("#ask:visible")
    await studio.take(stb, "stb-call-ask")
    await stb.keyboard.press("Backspace")
    await studio.take(stb, "stb-dispatched")
    await stb.keyboard.press("ArrowDown")
    await stb.click("text=与网格员通话")
    await stb.wait_for_selector("#ask:visible")

    async def joined() -> bool:
        await stb.keyboard.press("Enter")
        return bool(await stb.get_attribute("body", "data-call"))

    await until("the box is in the call", joined)
    await talking(stb, "#callBig .seat", "frames")
    await stb.wait_for_selector("#callRec:visible")
    await talking(stb, "#callRow .seat[data-leg]", "frames")
    await studio.take(stb, "stb-call")
    leader = await studio.open("wall", "leader", "leader01", 390, 844)
    await leader.click("nav.tabs button >> nth=0")
    await open_alarm(leader, of["id"])
    await leader.wait_for_selector("[data-detail]")
    await asyncio.sleep(1)
    await studio.take(leader, "leader-alarm")
    await leader.click("nav.tabs button >> nth=2")
    await asyncio.sleep(3)
    await studio.take(leader, "leader-map")
    await leader.click("nav.tabs button >> nth=1")
    await settled(leader)
    await studio.take(leader, "leader-tiles")
    await leader.context.close()
    await stb.keyboard.press("Backspace")
    await closed_loop(studio, wall, phone, stb, of["id"])


async def closed_loop(studio: Studio, wall: Page, phone: Page, stb: Page, alarm_id: str) -> None:
    handling = (await studio.api("GET", f"/api/v1/alarms/{alarm_id}"))["handling"]
    if handling in ("NEW", "SHOWN"):
        await wall.keyboard.press("Space")  # taken again: the pictures took longer than an operator may
    for key in ("3", "n", "d"):
        await wall.keyboard.press(key)
    await wall.wait_for_selector("[data-incident-detail] [data-near-worker]")
    incident = await wall.get_attribute("[data-incident-detail]", "data-incident-detail")
    await phone.click("[data-act=hangup]")
    await phone.wait_for_selector("[data-act=on_scene], [data-act=task-accept], [data-act=task-on_scene]")
    if await phone.locator("[data-act=task-accept]").count():
        await phone.click("[data-act=task-accept]")
        await phone.wait_for_selector("[data-act=task-on_scene]")
    await asyncio.sleep(1)
    await studio.take(phone, "worker-task")
    await settled(wall)
    await studio.take(wall, "wall-incident")
    for step in ("handle", "submit"):
        state = (await studio.api("GET", f"/api/v1/incidents/{incident}"))["state"]
        if (step, state) in (("handle", "DISPATCHED"), ("submit", "HANDLING")):
            await studio.api("POST", f"/api/v1/incidents/{incident}/{step}", body={"detail": {}})
    await wall.wait_for_selector("[data-incident-state=VERIFYING][data-incident-detail]")
    await stb.wait_for_selector("body[data-ask]:not([data-ask=''])")
    await studio.take(stb, "stb-follow-up")
    evidence = wall.locator("[data-clip]").first
    await evidence.wait_for()
    await evidence.scroll_into_view_if_needed()
    await asyncio.sleep(1)
    await studio.take(wall, "wall-evidence")
    await stb.keyboard.press("1")
    other = await studio.open("wall", "operator", "op06", 1366, 768)
    await other.click("[data-list=incidents]")
    await other.click(f"[data-incident='{incident}']")
    await other.wait_for_selector("[data-satisfied=true]")
    await asyncio.sleep(1)
    await studio.take(other, "wall-verify")
    for state in ("RATED", "ARCHIVED"):
        await other.keyboard.press("g")
        await other.wait_for_selector(f"[data-incident-detail][data-incident-state={state}]")
    await asyncio.sleep(1)
    await studio.take(other, "wall-archive")


async def boxes(studio: Studio) -> None:
    """The box in full HD: tiles, a silent alarm, no way to the gateway; and in English."""
    await studio.clear_the_desk()
    wall = await studio.open("wall", "operator", "op03", 1366, 768)
    await settled(wall)
    sid = await studio.free_box()
    stb = await box(studio, sid, 1920, 1080)
    await settled(stb)
    await studio.take(stb, "stb-idle-1080")
    await stb.keyboard.down("r")
    await stb.wait_for_selector("#toast:visible")
    await studio.take(stb, "stb-silent-1080")
    await stb.keyboard.up("r")
    of = await studio.alarm_of(sid)
    await open_alarm(wall, of["id"])
    await settled(wall)
    await studio.take(wall, "wall-silent")
    await stb.context.close()
    lost = await box(studio, await studio.free_box(), 1920, 1080)
    await settled(lost)
    await lost.context.set_offline(True)
    await lost.keyboard.press("r")
    await lost.keyboard.press("r")
    await lost.wait_for_selector("body[data-help='1']")
    await studio.take(lost, "stb-110-1080")
    await lost.context.close()
    english = await box(studio, await studio.free_box(), language="en")
    await settled(english)
    await studio.take(english, "stb-english")


async def volunteers(studio: Studio) -> None:
    """A red armband that is asked, from the wall."""
    free = (await studio.api("GET", "/api/v1/volunteers"))["volunteers"]
    one = next(v for v in free if v["position"])
    page = await studio.open("worker", "volunteer", one["id"], 390, 844)
    await page.wait_for_selector(".box")
    made = await studio.api(
        "POST",
        "/api/v1/incidents",
        body={
            "type": "environment",
            "place_label": "楼道堆物，请协助劝离",
            "lat": one["position"]["lat"],
            "lon": one["position"]["lon"],
            "datum": "wgs84",
        },
    )
    await studio.api(
        "POST",
        f"/api/v1/incidents/{made['id']}/dispatch",
        body={"detail": {"volunteer": one["id"], "name": one["name"]}},
    )
    await page.wait_for_selector("[data-act=task-accept]")
    await asyncio.sleep(1)
    await studio.take(page, "volunteer")


async def figures(studio: Studio) -> None:
    """A day's work, done by two operators through the API, and the page of figures over it."""
    await studio.clear_the_desk()
    kinds = ("traffic", "facility", "dispute", "environment", "safety", "public_order")
    sites = [c for c in (await studio.api("GET", "/api/v1/cameras"))["cameras"] if c["position"]][::5]
    for number, site in enumerate(sites):
        at = {"lat": site["position"]["lat"] + 0.0005, "lon": site["position"]["lon"], "datum": "wgs84"}
        body = {"type": kinds[number % len(kinds)], "place_label": site["name"], **at}
        incident = (await studio.api("POST", "/api/v1/incidents", sub="op03", body=body))["id"]
        steps = ("dispatch", "handle", "submit", "rate", "archive")[: (5, 3, 5, 1, 5)[number % 5]]
        for step in steps:
            last = step in ("rate", "archive")
            detail = {"satisfied": number % 4 != 0, "score": 5 - number % 3} if step == "rate" else {}
            await studio.api(
                "POST",
                f"/api/v1/incidents/{incident}/{step}",
                sub="op04" if last else "op03",
                body={"detail": detail},
            )
    for language, name in (("zh", "wall-statistics"), ("en", "wall-statistics-english")):
        wall = await studio.open("wall", "operator", "op07", 1600, 900, language=language)
        await wall.wait_for_selector("[data-tile]")
        await wall.keyboard.press("s")
        await wall.wait_for_selector("[data-page-view=statistics] tbody tr")
        await asyncio.sleep(2)
        await studio.take(wall, name)
        await wall.context.close()
    leader = await studio.open("wall", "leader", "leader01", 390, 844)
    await leader.click("[data-view=statistics]")
    await leader.wait_for_selector("[data-page-view=statistics] tbody tr")
    await asyncio.sleep(1)
    await studio.take(leader, "leader-statistics")


SCENES = (people, calm_wall, other_walls, alarm, boxes, volunteers, figures)


async def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--base", default="http://127.0.0.1:8080")
    arguments.add_argument("--data", default="var")
    arguments.add_argument("--out", type=Path, default=ROOT / "docs/images")
    arguments.add_argument("--only", nargs="*", choices=[s.__name__ for s in SCENES], default=[])
    said = arguments.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    failures = ROOT / "var/screenshots-failed"
    failures.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    async with async_playwright() as playwright:
        lens = handheld(said.base, said.data, failures.parent / "handheld.mjpeg")
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=[*CHROMIUM, f"--use-file-for-fake-video-capture={lens}"]
        )
        studio = Studio(browser, said.base, said.data, said.out)
        for scene in SCENES:
            if said.only and scene.__name__ not in said.only:
                continue
            began = time.monotonic()
            try:
                await scene(studio)
            except Exception as error:  # one scene: the others are taken all the same
                failed.append(f"{scene.__name__}: {error}")
                for number, context in enumerate(browser.contexts):
                    for page in context.pages:
                        await page.screenshot(path=failures / f"{scene.__name__}-{number}.png")
            for context in browser.contexts:
                await context.close()
            print(f"-- {scene.__name__}: {time.monotonic() - began:.0f} s", flush=True)
        await browser.close()
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
