"""Does the wall stay flat? Alarms come, are shown, taken and dismissed, faster than in life, under a page that is measured.

    make memory SECONDS=1200

The page's own heap is read through Chromium's debugger after a forced collection, with its DOM nodes and listeners: what
cannot be collected is what the page holds. Lists of the page are bounded (50 closed alarms ...), so they are filled first;
from then on nothing may grow. Exit status 1 and the samples if it does.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from playwright.async_api import CDPSession, Page, async_playwright
from running_product import CHROMIUM, Product, a_product, open_page

FILL = 55
"""Alarms until every bounded list of the page is full (state.ts keeps 50 closed ones)."""
HEAP_SLACK = 1_500_000
"""Octets: compiled code, inline caches and timers' churn, measured on a page that only looks at pictures."""
NODE_SLACK = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """heap: octets in use after a forced collection. alarms: so many had come."""

    at_s: float
    alarms: int
    heap: int
    nodes: int
    listeners: int

    def __str__(self) -> str:
        return (
            f"{self.at_s:7.1f} s  alarms {self.alarms:5d}  heap {self.heap / 1e6:6.2f} MB  nodes {self.nodes:6d}"
            f"  listeners {self.listeners:5d}"
        )


async def measure(devtools: CDPSession, alarms: int, begun: float) -> Sample:
    for _ in range(2):  # finalisers of the first round free what the second collects
        await devtools.send("HeapProfiler.collectGarbage")
    heap = await devtools.send("Runtime.getHeapUsage")
    counts = await devtools.send("Memory.getDOMCounters")
    return Sample(
        at_s=time.monotonic() - begun,
        alarms=alarms,
        heap=int(heap["usedSize"]),
        nodes=int(counts["nodes"]),
        listeners=int(counts["jsEventListeners"]),
    )


class Alarms:
    """Presses by HTTP, signed like a box's; each is taken and dismissed so that the next press of that box is a new one."""

    def __init__(self, product: Product, boxes: Sequence[str]) -> None:
        self.product = product
        self.boxes = boxes
        self.count = 0
        self._token = product.token("operator", "op01")
        self._keys = yaml.safe_load((product.folder / "secrets.yaml").read_text())["boxes"]

    def one(self) -> str:
        """From the press to the end. Blocks for some round trips."""
        sid = self.boxes[self.count % len(self.boxes)]
        self.count += 1
        pid, seq, ts = f"memory-{time.time_ns()}", time.time_ns() // 1000, time.time_ns() // 1_000_000
        text = f"press|{sid}|{pid}|{seq}|{ts}|help||0"
        sig = hmac.new(bytes.fromhex(self._keys[sid]), text.encode(), hashlib.sha256).hexdigest()
        press = {"v": 1, "sid": sid, "pid": pid, "seq": seq, "ts": ts, "kind": "help", "sig": sig}
        alarm = str(self.product.post("/api/v1/alarms", self._token, press)["alarm"])
        self.product.post(f"/api/v1/alarms/{alarm}/acknowledge", self._token, {})
        self.product.post(f"/api/v1/alarms/{alarm}/triage", self._token, {"outcome": "false"})
        self.product.post(f"/api/v1/alarms/{alarm}/close", self._token, {})
        return alarm


async def drive(page: Page, alarms: Alarms, count: int, pause_s: float) -> None:
    """`count` alarms, each seen by the page to its end before the next."""
    for _ in range(count):
        alarm = await asyncio.to_thread(alarms.one)
        await page.wait_for_function(
            "id => [...document.querySelectorAll('[data-alarm]')].some("
            "r => r.dataset.alarm === id && r.dataset.handling === 'CLOSED')",
            arg=alarm,
        )
        await asyncio.sleep(pause_s)


def verdict(samples: Sequence[Sample]) -> str:
    """Empty if flat. The quieter half of the samples before and after the middle: one busy moment is no leak."""
    half = len(samples) // 2
    before, after = samples[:half] or samples[:1], samples[half:]
    grown = []
    for what, slack in (("heap", HEAP_SLACK), ("nodes", NODE_SLACK), ("listeners", NODE_SLACK)):
        least = [min(getattr(one, what) for one in part) for part in (before, after)]
        if least[1] - least[0] > slack:
            grown.append(f"{what} grew from {least[0]} to {least[1]}")
    return "; ".join(grown)


@asynccontextmanager
async def watched_wall(product: Product) -> AsyncIterator[tuple[Page, CDPSession]]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(CHROMIUM))
        try:
            wall, _ = await open_page(browser, product.link("wall", "operator", "op02"), 1366, 768)
            await wall.wait_for_selector("[data-tile][data-state=live]")
            yield wall, await wall.context.new_cdp_session(wall)
        finally:
            await browser.close()


async def run(product: Product, *, seconds: float, pause_s: float, every: int) -> list[Sample]:
    """Samples from the moment on when the page's lists are full, one for every `every` alarms."""
    boxes = [f"stb{number:05d}" for number in range(1, 9)]
    alarms = Alarms(product, boxes)
    samples: list[Sample] = []
    async with watched_wall(product) as (page, devtools):
        begun = time.monotonic()
        for _ in range(FILL - 1):  # the page need not see each of these to its end: only the last, below
            await asyncio.to_thread(alarms.one)
        await drive(page, alarms, 1, 0.0)
        while len(samples) < 2 or time.monotonic() - begun < seconds:
            samples.append(await measure(devtools, alarms.count, begun))
            print(samples[-1], flush=True)
            await drive(page, alarms, every, pause_s)
        samples.append(await measure(devtools, alarms.count, begun))
        print(samples[-1], flush=True)
    return samples


async def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seconds", type=float, default=1200)
    arguments.add_argument("--pause", type=float, default=1.0, help="seconds between two alarms")
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as folder, a_product(Path(folder)) as product:
        samples = await run(product, seconds=said.seconds, pause_s=said.pause, every=20)
    grown = verdict(samples)
    print(grown or f"flat over {samples[-1].alarms - samples[0].alarms} alarms")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
