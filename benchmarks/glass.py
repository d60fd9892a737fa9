"""Glass to glass: from a camera's sending a picture to the moment when Chromium presents it, one tile of a wall.

    python -m benchmarks.glass --seconds 20

A simulated camera (720p25, 2 Mbps) encodes live and draws its clock into each picture (simulators.timecode); the real
gateway forwards it to a headless Chromium that plays it as the wall does (jitterBufferTarget 0). Each presented picture is
named by the clock in it; its age is `presentationTime` of requestVideoFrameCallback less the time at which the camera
sent it. `drawn_ms` counts from the clock itself, so it has drawing and encoding in it. All runs on one machine and one
clock. Prints one JSON object, milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

from benchmarks.whep_load import quantile
from benchmarks.workers import ROOT, child

CAMERA = "cam000"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE = """<!doctype html><video id=v autoplay muted playsinline width=640></video><script>
const seen = [], canvas = document.createElement("canvas"), video = document.getElementById("v");
canvas.width = 1280; canvas.height = 20;
const context = canvas.getContext("2d", {willReadFrequently: true});
let count = 0;
function clock() {  // simulators.timecode: 60 cells, 4 of sync, 48 of milliseconds, 8 of check sum
  context.drawImage(video, 0, 0, 1280, 20, 0, 0, 1280, 20);
  const row = context.getImageData(0, 10, 1200, 1).data, bits = [];
  for (let cell = 0; cell < 60; cell++) bits.push(row[(cell * 20 + 10) * 4] > 127 ? 1 : 0);
  if (bits.slice(0, 4).join("") !== "1010") return null;
  let value = 0, sum = 0;
  for (let octet = 0; octet < 6; octet++) {
    const number = parseInt(bits.slice(4 + octet * 8, 12 + octet * 8).join(""), 2);
    value = value * 256 + number; sum += number;
  }
  return (sum & 255) === parseInt(bits.slice(52, 60).join(""), 2) ? value : null;
}
function frame(now, said) {
  if (++count % 3 === 0) {  // reading pixels back costs more than playing: not at each picture
    const at = clock();
    if (at !== null) seen.push([at, performance.timeOrigin + said.presentationTime]);
  }
  video.requestVideoFrameCallback(frame);
}
async function watch(token) {
  const pc = window.pc = new RTCPeerConnection();
  pc.addTransceiver("video", {direction: "recvonly"});
  pc.ontrack = event => { event.receiver.jitterBufferTarget = 0; video.srcObject = event.streams[0]; };
  video.requestVideoFrameCallback(frame);
  await pc.setLocalDescription(await pc.createOffer());
  const reply = await fetch("/whep/cam000", {method: "POST", body: pc.localDescription.sdp,
    headers: {"Content-Type": "application/sdp", Authorization: "Bearer " + token}});
  if (reply.status !== 201) throw new Error(await reply.text());
  await pc.setRemoteDescription({type: "answer", sdp: await reply.text()});
}
</script>"""


async def camera() -> None:
    """One live camera until the end of standard input; prints its RTSP port, and at the end when it sent what."""
    from simulators import clips, scenes
    from simulators.farm import Camera, Farm

    recipe = clips.Recipe(scene=0, label=scenes.SCENES[0].title)
    cache = ROOT / "var/clips"
    await asyncio.to_thread(clips.ensure, [recipe], cache, processes=None)
    one = Camera(id=CAMERA, name="", number=0, recipe=recipe, live=True)
    farm = Farm([one], cache, authenticator=None)
    await farm.start("127.0.0.1", 0)
    print(farm.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"sent": farm.live(one, "main").sent_ms}), flush=True)
    await farm.close()


async def play(http: int, token: str, seconds: float) -> list[tuple[int, float]]:
    """(the clock in the picture, when it was presented) of what one tile shows."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = await browser.new_page()
            await page.route("**/bench", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
            await page.goto(f"http://127.0.0.1:{http}/bench")
            await page.evaluate("token => watch(token)", token)
            await asyncio.sleep(3)  # the start from the cached picture is another measurement
            await page.evaluate("seen.length = 0")
            await asyncio.sleep(seconds)
            seen: list[tuple[int, float]] = await page.evaluate("seen")
            return seen
        finally:
            await browser.close()


def measure(seconds: float, compiled: str = "auto") -> dict[str, Any]:
    """Starts everything, plays, and compares clocks."""
    from benchmarks.media import gateway

    with child("benchmarks.glass", "--camera", stdin=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        assert sender.stdin is not None
        port = sender.stdout.readline().strip()
        with gateway(1, compiled, rtsp=port) as running:
            seen = asyncio.run(play(running.http, running.token, seconds))
        sender.stdin.close()
        sent = {int(at): float(ms) for at, ms in json.loads(sender.stdout.readline())["sent"].items()}
    ages = [shown - sent[at] for at, shown in seen if at in sent]
    drawn = [shown - at for at, shown in seen]
    if len(ages) < 10:
        raise SystemExit(f"only {len(ages)} of {len(seen)} pictures could be read")
    return {
        "pictures": len(ages),
        "glass_ms_p50": round(quantile(ages, 0.5), 1),
        "glass_ms_p95": round(quantile(ages, 0.95), 1),
        "drawn_ms_p50": round(quantile(drawn, 0.5), 1),
        "drawn_ms_p95": round(quantile(drawn, 0.95), 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--camera", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.camera:
        asyncio.run(camera())
        return
    if not Path(CHROMIUM).exists():
        raise SystemExit(f"{CHROMIUM} is needed: apt-get install chromium")
    print(json.dumps(measure(options.seconds)))


if __name__ == "__main__":
    main()
