"""Mouth to ear in Chromium: from a tone's first sample in one peer connection to its first sample out of another.

    python -m benchmarks.ear --seconds 60

A gridworker's phone publishes its leg of a call by WHIP, sound and picture, and a desk watches that leg by WHEP, both by the
real gateway and both in one headless Chromium, so that one audio clock times both ends: a tone begins each second at a known
sample, and an audio worklet tells the sample at which it comes out of the receiver's jitter buffer. What is not in it is
what loopback does not have: microphone, loudspeaker and the network. Prints one JSON object, milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from playwright.async_api import async_playwright

from benchmarks.district import make_site, percentiles, running
from benchmarks.glass import CHROMIUM, FLAGS
from benchmarks.intercom import Desk, call

MOST_MS = 900.0  # a tone a second: what is older belongs to the one before
PAGE = """<!doctype html><audio id=ear autoplay muted></audio><video id=eye autoplay muted></video><script>
const spoken = [], heard = [];
const WORKLET = `registerProcessor("ear", class extends AudioWorkletProcessor {
  constructor() { super(); this.silent = sampleRate; }
  process([[samples]]) {
    for (let at = 0; samples && at < samples.length; at++) {
      if (Math.abs(samples[at]) < 0.1) { this.silent++; continue; }
      if (this.silent > sampleRate / 4) this.port.postMessage(currentTime + at / sampleRate);
      this.silent = 0;
    }
    return true;
  }
})`;
async function exchange(pc, path, header) {
  await pc.setLocalDescription(await pc.createOffer());
  const reply = await fetch(path, {method: "POST", body: pc.localDescription.sdp,
    headers: {"Content-Type": "application/sdp", Authorization: header}});
  if (reply.status !== 201) throw new Error(await reply.text());
  await pc.setRemoteDescription({type: "answer", sdp: await reply.text()});
}
async function start(leg, worker, desk) {
  const sound = window.sound = new AudioContext({sampleRate: 48000});
  await sound.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], {type: "text/javascript"})));
  const tone = new OscillatorNode(sound, {frequency: 800}), gain = new GainNode(sound, {gain: 0});
  const mouth = new MediaStreamAudioDestinationNode(sound, {channelCount: 1});
  tone.connect(gain).connect(mouth);
  tone.start();
  const camera = await navigator.mediaDevices.getUserMedia({video: {width: 640, height: 360, frameRate: 15}});
  const phone = window.phone = new RTCPeerConnection();
  phone.addTransceiver(mouth.stream.getAudioTracks()[0], {direction: "sendonly"});
  phone.addTransceiver(camera.getVideoTracks()[0], {direction: "sendonly"});
  await exchange(phone, leg + "/whip", worker);
  const listener = window.listener = new RTCPeerConnection();
  for (const kind of ["audio", "video"]) listener.addTransceiver(kind, {direction: "recvonly"});
  listener.ontrack = event => {
    const element = document.getElementById(event.track.kind === "audio" ? "ear" : "eye");
    element.srcObject = new MediaStream([event.track]);
    if (event.track.kind !== "audio") return;
    const ear = new AudioWorkletNode(sound, "ear");
    ear.port.onmessage = ({data}) => heard.push(data);
    new MediaStreamAudioSourceNode(sound, {mediaStream: element.srcObject}).connect(ear);
  };
  await exchange(listener, leg + "/whep", desk);
  setInterval(() => {
    const at = sound.currentTime + 0.1;
    spoken.push(at);
    gain.gain.setValueAtTime(0.8, at);
    gain.gain.setValueAtTime(0, at + 0.1);
  }, 1000);
}
</script>"""


async def play(desk: Desk, leg: str, who: dict[str, str], seconds: float) -> tuple[list[float], int]:
    """(delays of the tones in ms, pictures shown meanwhile)."""
    async with async_playwright() as playwright:
        media = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        quiet = ["--autoplay-policy=no-user-gesture-required"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *media, *quiet])
        try:
            page = await browser.new_page()
            await page.route("**/bench", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
            await page.goto(f"{desk.site.base}/bench")
            headers = [one["Authorization"] for one in (who, desk.operator)]
            await page.evaluate("([leg, ...who]) => start(leg, ...who)", [leg, *headers])
            await asyncio.sleep(5)  # the receiver's jitter buffer settles
            await page.evaluate("heard.length = 0")
            await asyncio.sleep(seconds)
            spoken, heard, pictures = await page.evaluate(
                "[spoken, heard, document.getElementById('eye').getVideoPlaybackQuality().totalVideoFrames]"
            )
        finally:
            await browser.close()
    delays = []
    for at in heard:
        said = max((one for one in spoken if one <= at), default=None)
        if said is not None and (at - said) * 1000 < MOST_MS:
            delays.append((at - said) * 1000)
    return delays, pictures


async def measure(seconds: float) -> dict[str, Any]:
    settings = {"media": {"udp_port": 0, "workers": 1}, "mqtt": {"mode": "off"}}
    with tempfile.TemporaryDirectory() as directory:
        site = make_site(Path(directory) / "site", boxes=1, settings=settings)
        async with running(site), aiohttp.ClientSession() as session:
            desk = Desk(site, session)
            async with call(desk, next(iter(site.workers))) as (base, _, worker_leg, who):
                await desk.post(f"{base}/claim", who, {})
                delays, pictures = await play(desk, worker_leg, who, seconds)
    if len(delays) < seconds / 2:
        raise SystemExit(f"only {len(delays)} tones of {seconds:.0f} were heard")
    return {"tones": len(delays), "pictures": pictures, "mouth_to_ear_ms": percentiles(delays)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args(argv)
    if not Path(CHROMIUM).exists():
        raise SystemExit(f"{CHROMIUM} is needed: apt-get install chromium")
    print(json.dumps(asyncio.run(measure(options.seconds))))


if __name__ == "__main__":
    main()
