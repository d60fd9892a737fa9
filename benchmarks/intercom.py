"""Calls with real media on the real gateway: answer to picture, mouth to ear, a blackout, fifty calls at once.

Run: python -m benchmarks.intercom [answer] [ear] [blackout] [load] [load-unrecorded]. Phones are aiortc where something is decoded, and light
RTP senders of a pre-encoded picture (640x360, 15 a second, ~500 kbps) and sound for the fifty calls, each leg of which is
watched by a light viewer. CPU is that of the gateway's processes together (user + system); the fifty calls are spread over a worker a core,
as by default, the rest is measured on one. Recording is on unless said.
"""

from __future__ import annotations

import asyncio
import contextlib
import fractions
import os
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
    rtcrtpreceiver,
)
from aiortc.jitterbuffer import JitterBuffer
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError
from pylibsrtp import Policy, Session

from benchmarks.district import Site, make_site, percentiles, running
from benchmarks.whep_load import OFFER, PROFILES, SALT_LENGTHS, Viewer, identity, poll
from gateway.access import Principal, Role
from gateway.identity import Keyring, TokenKind
from gateway.streams.packets import packetize_h264
from tests.netem import Relay, Shape

ANSWERS = 15
BURSTS = 30
BLACKOUTS = 3
CALLS = 50
LOAD_S = 15.0
LOOK_S = 0.01
FPS = 15
AT = {"lat": 30.8086, "lon": 103.8866, "datum": "wgs84"}


class Desk:
    """The gateway's HTTP as an operator and gridworkers use it."""

    def __init__(self, site: Site, session: aiohttp.ClientSession) -> None:
        self.site, self.session = site, session
        self._keys = Keyring(bytes.fromhex((site.data / "signing.key").read_text()))

    def bearer(self, role: Role, sub: str) -> dict[str, str]:
        token = self._keys.issue(
            Principal(sub=sub, role=role), TokenKind.ACCESS, now_s=time.time(), ttl_s=3_600
        )
        return {"Authorization": f"Bearer {token}"}

    @property
    def operator(self) -> dict[str, str]:
        return self.bearer(Role.OPERATOR, "op")

    async def post(self, path: str, who: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        async with self.session.post(self.site.base + path, json=body, headers=who) as answer:
            said = await answer.json()
            if answer.status >= 300:
                raise RuntimeError(f"{path}: {answer.status} {said}")
            return dict(said)

    async def sdp(self, path: str, who: dict[str, str], offer: str) -> str:
        headers = {**who, "Content-Type": "application/sdp"}
        async with self.session.post(self.site.base + path, data=offer, headers=headers) as answer:
            text = await answer.text()
            if answer.status != 201:
                raise RuntimeError(f"{path}: {answer.status} {text}")
            return text

    async def on_duty(self, worker: str) -> dict[str, str]:
        who = self.bearer(Role.WORKER, worker)
        await self.post("/api/v1/workers/me/duty", who, {"duty": "on"})
        fix = {
            **AT,
            "acc": 5,
            "spd": 0,
            "fix": time.time_ns() // 1_000_000,
            "seq": time.time_ns() // 1_000_000,
        }
        await self.post("/api/v1/workers/me/location", who, fix)
        return who


class Bursts(AudioStreamTrack):
    """Silence with 100 ms of tone each second; `at` is when each was spoken."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []
        self._count, self._started = 0, time.monotonic()

    async def recv(self) -> Any:
        await asyncio.sleep(max(0.0, self._started + self._count / 48_000 - time.monotonic()))
        tone = self._count // 960 % 50 in range(25, 30)
        if tone and self._count // 960 % 50 == 25:
            self.at.append(time.monotonic())
        wave = 12_000 * np.sin(2 * np.pi * 800 * np.arange(960) / 48_000) if tone else np.zeros(960)
        frame: Any = av.AudioFrame.from_ndarray(
            wave.astype(np.int16).reshape(1, -1), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._count, fractions.Fraction(1, 48_000)
        self._count += 960
        return frame


class Peer:
    """One side of a call: publishes its leg, watches the other's, notes when what was decoded."""

    def __init__(self, voice: AudioStreamTrack | None = None) -> None:
        no_servers = RTCConfiguration(iceServers=[])
        self.out, self.into = RTCPeerConnection(no_servers), RTCPeerConnection(no_servers)
        self.voice = voice or AudioStreamTrack()
        self.first: dict[str, float] = {}
        self.pictures: list[float] = []
        self.heard: list[float] = []
        self._loud = False
        self._tasks: list[asyncio.Task[None]] = []
        self.into.on("track", lambda track: self._tasks.append(asyncio.ensure_future(self._take(track))))

    async def publish(
        self, desk: Desk, path: str, who: dict[str, str], via: Relay | None = None, video: bool = True
    ) -> None:
        for track in (VideoStreamTrack(), self.voice) if video else (self.voice,):
            self.out.addTransceiver(track, direction="sendonly")
        await self.out.setLocalDescription(await self.out.createOffer())
        answer = await desk.sdp(path, who, self.out.localDescription.sdp)
        if via is not None:
            host, port = via.address
            lines = [
                line for line in answer.split("\r\n") if "candidate" not in line or " udp " in line.lower()
            ]
            answer = "\r\n".join(
                f"{' '.join(line.split()[:4])} {host} {port} typ host"
                if line.startswith("a=candidate")
                else line
                for line in lines
            )
        await self.out.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))

    async def watch(self, desk: Desk, path: str, who: dict[str, str]) -> None:
        for kind in ("video", "audio"):
            self.into.addTransceiver(kind, direction="recvonly")
        await self.into.setLocalDescription(await self.into.createOffer())
        answer = await desk.sdp(path, who, self.into.localDescription.sdp)
        await self.into.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))

    async def _take(self, track: Any) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                now = time.monotonic()
                self.first.setdefault(track.kind, now)
                if track.kind == "video":
                    self.pictures.append(now)
                    continue
                loud = float(np.abs(frame.to_ndarray().astype(np.int32)).mean()) > 1_000
                if loud and not self._loud:
                    self.heard.append(now)
                self._loud = loud

    async def close(self) -> None:
        await asyncio.gather(self.out.close(), self.into.close())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - what is waited for is another library's
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def call(desk: Desk, worker: str) -> AsyncIterator[tuple[str, str, str, dict[str, str]]]:
    """An operator rings this worker: (path of the call, operator's leg, worker's leg comes with the claim, worker)."""
    who = await desk.on_duty(worker)
    opened = await desk.post("/api/v1/calls", desk.operator, {"worker_id": worker})
    base = f"/api/v1/calls/{opened['id']}"
    try:
        yield base, f"{base}/legs/{opened['leg']}", f"{base}/legs/leg2", who
    finally:
        await desk.post(f"{base}/hangup", desk.operator, {})


async def measure_answer(desk: Desk, workers: list[str], buffer: type[JitterBuffer], label: str) -> None:
    """From the claim leaving the phone to the first decoded picture and sound on either side."""
    pictures: list[float] = []
    sounds: list[float] = []
    rtcrtpreceiver.JitterBuffer = buffer  # type: ignore[attr-defined]
    for number in range(ANSWERS):
        async with call(desk, workers[number % len(workers)]) as (base, desk_leg, worker_leg, who):
            operator, phone = Peer(), Peer()
            try:
                await operator.publish(desk, f"{desk_leg}/whip", desk.operator)
                began = time.monotonic()
                await desk.post(f"{base}/claim", who, {})
                await asyncio.gather(
                    phone.publish(desk, f"{worker_leg}/whip", who),
                    phone.watch(desk, f"{desk_leg}/whep", who),
                    operator.watch(desk, f"{worker_leg}/whep", desk.operator),
                )
                await until(lambda: all(len(peer.first) == 2 for peer in (operator, phone)))  # noqa: B023
                for kind, found in (("video", pictures), ("audio", sounds)):
                    found += [(peer.first[kind] - began) * 1000 for peer in (operator, phone)]
            finally:
                await asyncio.gather(operator.close(), phone.close())
    rtcrtpreceiver.JitterBuffer = JitterBuffer  # type: ignore[attr-defined]
    print(f"answer to first decoded picture, both sides, {label}, ms: {percentiles(pictures)}", flush=True)
    print(f"answer to first decoded sound, both sides, {label}, ms: {percentiles(sounds)}", flush=True)


class Shallow(JitterBuffer):
    """A receiver that plays what it has: aiortc's own waits for four packets of sound (80 ms) before the first."""

    def __init__(self, capacity: int, prefetch: int = 0, is_video: bool = False) -> None:
        super().__init__(capacity, 0, is_video)


class Short(JitterBuffer):
    """A receiver of pictures that waits behind a hole for 16 packets: aiortc's own waits for 512, which is up to 17 s of a
    small picture and has nothing to do with the path. A browser goes on with the next keyframe."""

    def __init__(self, capacity: int, prefetch: int = 0, is_video: bool = False) -> None:
        super().__init__(16 if is_video else capacity, prefetch, is_video)


async def measure_ear(desk: Desk, workers: list[str]) -> None:
    """From the tone's first sample leaving the microphone to its first decoded frame at the desk; and our own part of it."""
    await measure_through(desk, workers[0])
    for label, buffer, video in (
        ("aiortc as it is, with pictures", JitterBuffer, True),
        ("receiver without its wait for four packets, with pictures", Shallow, True),
        ("the same, sound alone", Shallow, False),
    ):
        rtcrtpreceiver.JitterBuffer = buffer  # type: ignore[attr-defined]
        try:
            delays = await _ear(desk, workers[1], video)
        finally:
            rtcrtpreceiver.JitterBuffer = JitterBuffer  # type: ignore[attr-defined]
        print(
            f"mouth to ear on loopback, {label}, {len(delays)} tones, ms: {percentiles(delays)}", flush=True
        )


async def _ear(desk: Desk, worker: str, video: bool) -> list[float]:
    async with call(desk, worker) as (base, desk_leg, worker_leg, who):
        await desk.post(f"{base}/claim", who, {})
        voice = Bursts()
        operator, phone = Peer(), Peer(voice)
        try:
            await operator.publish(desk, f"{desk_leg}/whip", desk.operator, video=video)
            await phone.publish(desk, f"{worker_leg}/whip", who, video=video)
            await operator.watch(desk, f"{worker_leg}/whep", desk.operator)
            await until(lambda: len(operator.heard) > BURSTS, BURSTS + 30)
        finally:
            await asyncio.gather(operator.close(), phone.close())
    delays = []
    for heard in operator.heard:
        spoken = max((at for at in voice.at if at < heard), default=None)
        if spoken is not None and heard - spoken < 0.9:
            delays.append((heard - spoken) * 1000)
    return delays[1:]


async def measure_blackout(desk: Desk, worker: str, port: int, buffer: type[JitterBuffer]) -> None:
    """From the end of ten dark seconds on the phone's link to the first decoded picture at the desk."""
    async with call(desk, worker) as (base, desk_leg, worker_leg, who):
        await desk.post(f"{base}/claim", who, {})
        operator, phone = Peer(), Peer(Bursts())
        await operator.publish(desk, f"{desk_leg}/whip", desk.operator)
        link = Shape(delay_s=0.03, jitter_s=0.01)
        async with await Relay.open(("127.0.0.1", port), up=link, down=link) as relay:
            try:
                await phone.publish(desk, f"{worker_leg}/whip", who, via=relay)
                rtcrtpreceiver.JitterBuffer = buffer  # type: ignore[attr-defined]
                await operator.watch(desk, f"{worker_leg}/whep", desk.operator)
                await until(lambda: len(operator.pictures) > 30)
                back, heard = [], []
                for _ in range(BLACKOUTS):
                    relay.blackout(10)
                    await asyncio.sleep(10)
                    light = time.monotonic()
                    await until(lambda: operator.pictures[-1] > light and operator.heard[-1] > light)  # noqa: B023
                    back.append((next(at for at in operator.pictures if at > light) - light) * 1000)
                    heard.append((next(at for at in operator.heard if at > light) - light) * 1000)
                    await asyncio.sleep(5)
            finally:
                rtcrtpreceiver.JitterBuffer = JitterBuffer  # type: ignore[attr-defined]
                await asyncio.gather(operator.close(), phone.close())
    receiver = "waits for 16 packets" if buffer is Short else "waits for 512 packets (aiortc)"
    print(f"picture after a blackout of 10 s, {BLACKOUTS} times, desk {receiver}, ms: {percentiles(back)}")
    print(f"sound (a tone a second, so up to 1 s of waiting), ms: {percentiles(heard)}")


# -- fifty calls ------------------------------------------------------------------------------------------------------


def encoded() -> list[list[bytes]]:
    """Payloads of each picture of two seconds, a keyframe first."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 640, 360, "yuv420p"
    encoder.time_base, encoder.bit_rate = fractions.Fraction(1, FPS), 500_000
    encoder.options = {
        "preset": "veryfast", "tune": "zerolatency", "profile": "baseline",
        "x264-params": f"keyint={2 * FPS}:min-keyint={2 * FPS}:scenecut=0:repeat-headers=1:vbv-maxrate=500:vbv-bufsize=500",
    }  # fmt: skip
    noise, pictures = np.random.default_rng(1), []
    for number in range(2 * FPS):
        picture = np.kron(noise.integers(0, 255, (45, 80, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        picture = np.roll(picture // 4 + 90, number * 6, axis=1)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        for packet in encoder.encode(frame):
            units = [unit for unit in bytes(packet).replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
            pictures.append([payload for group in packetize_h264(tuple(units)) for payload in group])
    return pictures


SOUND = (
    OFFER.replace("a=group:BUNDLE 0", "a=group:BUNDLE 0 1").replace("a=recvonly", "a=sendonly")
    + """m=audio 9 UDP/TLS/RTP/SAVPF 111
c=IN IP4 0.0.0.0
a=rtcp-mux
a=mid:1
a=sendonly
a=setup:actpass
a=ice-ufrag:{ufrag}
a=ice-pwd:{password}
a=fingerprint:sha-256 {fingerprint}
a=rtpmap:111 opus/48000/2
"""
)


def opener(connection: Any) -> Session:
    """What opens the gateway's packets: the second half of what DTLS exports, with AES-GCM (RFC 5764)."""
    salt = SALT_LENGTHS["gcm"]
    block = connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (16 + salt))
    return Session(
        Policy(
            key=block[16:32] + block[32 + salt :],
            ssrc_type=Policy.SSRC_ANY_INBOUND,
            srtp_profile=Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
        )
    )


class Phone(Viewer):
    """Publishes without encoding: seals ready payloads and sends them in time."""

    offer = SOUND

    async def connected(self) -> None:
        await until(lambda: self._reporter is not None, 30)

    async def speak(self, pictures: list[list[bytes]], sound: bytes, start_s: float) -> None:
        await asyncio.sleep(start_s)
        session = self._reporter
        assert session is not None
        number, count, began = [0, 0], 0, time.monotonic()
        ssrc = struct.unpack("!I", os.urandom(4))[0] & 0x7FFFFFFE

        def send(kind: int, payload: bytes, timestamp: int, marker: bool) -> None:
            head = struct.pack(
                "!BBHII",
                0x80,
                (102, 111)[kind] | marker << 7,
                number[kind] & 0xFFFF,
                timestamp & 0xFFFFFFFF,
                ssrc + kind,
            )
            number[kind] += 1
            self._send(session.protect(head + payload))

        while True:  # one picture and the packets of 20 ms that lie before the next one
            payloads = pictures[count % len(pictures)]
            for at, payload in enumerate(payloads):
                send(0, payload, count * 90_000 // FPS, at == len(payloads) - 1)
            count += 1
            while number[1] * FPS < count * 50:
                send(1, sound, number[1] * 960, False)
            await asyncio.sleep(max(0.0, began + count / FPS - time.monotonic()))


class Listener(Viewer):
    """Opens the sound it gets and notes how old it is: each packet carries when it was sent."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.delays: list[float] = []
        self._opener: Session | None = None

    def watch_socket(self) -> None:
        """At once when something comes, not when it is polled for."""
        asyncio.get_running_loop().add_reader(self._socket, self.read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        super().close()

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                data = self._socket.recv(2048)
                now = time.monotonic_ns()
                if 19 < data[0] < 64:
                    self._handshake(data)
                elif 127 < data[0] < 192 and not 64 <= data[1] & 0x7F < 96:
                    self.playing.set()
                    if data[1] & 0x7F == 111:
                        self._opener = self._opener or opener(self._ssl)
                        (sent,) = struct.unpack_from("!Q", self._opener.unprotect(data)[12:], 1)
                        self.delays.append((now - sent) / 1e6)


class Speaker(Phone):
    """Sends 20 ms packets of sound alone, each with the time in it."""

    async def talk(self, seconds: float) -> None:
        session, began = self._reporter, time.monotonic()
        assert session is not None
        for number in range(int(seconds * 50)):
            payload = b"\x78" + struct.pack("!Q", time.monotonic_ns()) + bytes(71)
            head = struct.pack("!BBHII", 0x80, 111, number & 0xFFFF, number * 960, 77)
            self._send(session.protect(head + payload))
            await asyncio.sleep(max(0.0, began + (number + 1) / 50 - time.monotonic()))


async def measure_through(desk: Desk, worker: str) -> None:
    """What the gateway itself takes: a packet of sound from the sender's socket to the receiver's, opened and sealed anew."""
    context, fingerprint = identity(PROFILES["gcm"])
    speaker, listener = Speaker(context), Listener(context)
    listener.offer = SOUND.replace("a=sendonly", "a=recvonly")
    async with call(desk, worker) as (base, _, worker_leg, who), asyncio.TaskGroup() as tasks:
        await desk.post(f"{base}/claim", who, {})
        async with aiohttp.ClientSession(headers=who) as http:
            polling = tasks.create_task(poll([speaker]))
            speaker.playing.clear()
            joining = tasks.create_task(speaker.join(http, f"{desk.site.base}{worker_leg}/whip", fingerprint))
            await speaker.connected()
            speaker.playing.set()
            await joining
            talking = tasks.create_task(speaker.talk(20.0))
            hearing = tasks.create_task(
                listener.join(http, f"{desk.site.base}{worker_leg}/whep", fingerprint)
            )
            await until(lambda: listener._remote[0])
            listener.watch_socket()
            await hearing
            await talking
        polling.cancel()
    speaker.close()
    listener.close()
    settled = listener.delays[50:]
    print(f"sound through the gateway alone, {len(settled)} packets, ms: {percentiles(settled)}", flush=True)


def cpu_s(pid: int) -> float:
    """Of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_s(int(child)) for child in children)


async def measure_load(desk: Desk, workers: list[str], label: str) -> None:
    context, fingerprint = identity(PROFILES["gcm"])
    pictures, sound = encoded(), b"\x78" + os.urandom(79)
    kbps = sum(len(p) for one in pictures for p in one) * 8 * FPS / len(pictures) / 1000
    phones: list[Viewer] = []
    viewers: list[Viewer] = []
    bases = []
    async with asyncio.TaskGroup() as tasks:
        # Rarely, as times are not taken here: what looks at the sockets must not take the machine from what it measures.
        polling = [tasks.create_task(poll(ends, LOOK_S)) for ends in (phones, viewers)]
        for number, worker in enumerate(workers[:CALLS]):
            who = await desk.on_duty(worker)
            opened = await desk.post("/api/v1/calls", desk.operator, {"worker_id": worker})
            base = f"/api/v1/calls/{opened['id']}"
            bases.append(base)
            claimed = await desk.post(f"{base}/claim", who, {})
            for side, (leg, by) in enumerate(((opened["leg"], desk.operator), (claimed["leg"], who))):
                phone, viewer = Phone(context), Viewer(context)
                phones.append(phone)
                async with aiohttp.ClientSession(headers=by) as http:
                    joining = asyncio.create_task(
                        phone.join(http, f"{desk.site.base}{base}/legs/{leg}/whip", fingerprint)
                    )
                    await phone.connected()
                phone.playing.set()
                await joining
                offset = (2 * number + side) / (2 * CALLS) / FPS
                polling.append(tasks.create_task(phone.speak(pictures, sound, offset)))
                viewers.append(viewer)
                async with aiohttp.ClientSession(headers=desk.operator) as http:
                    await viewer.join(http, f"{desk.site.base}{base}/legs/{leg}/whep", fingerprint)
                polling += [tasks.create_task(one.keep_consent()) for one in (phone, viewer)]
        await asyncio.sleep(2)
        assert desk.site.process is not None
        before, frames, began = cpu_s(desk.site.process.pid), [v.frames for v in viewers], time.monotonic()
        own = time.process_time()
        await asyncio.sleep(LOAD_S)
        spent, seconds = cpu_s(desk.site.process.pid) - before, time.monotonic() - began
        shown = [(v.frames - f) / seconds for v, f in zip(viewers, frames, strict=True)]
        print(
            f"{CALLS} calls at once, {label}: {spent / seconds * 100:.1f} % of a core, {spent / seconds / CALLS * 1000:.2f} ms a"
            f" call-second; {kbps:.0f} kbps a leg; pictures a second at {len(shown)} viewers: least {min(shown):.1f}, mean"
            f" {sum(shown) / len(shown):.1f} of {FPS}; load generator {(time.process_time() - own) / seconds * 100:.0f} %"
        )
        for task in polling:
            task.cancel()
    for base in bases:
        await desk.post(f"{base}/hangup", desk.operator, {})
    for one in (*phones, *viewers):
        one.close()


async def run(wanted: list[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    for names, recording, workers in (
        ({"answer", "ear", "blackout"}, True, 1),
        ({"load"}, True, cores),  # as the gateway is started by default
        ({"load-unrecorded"}, False, cores),
    ):
        asked = names & set(wanted)
        if not asked:
            continue
        settings = {
            "evidence": {"enabled": recording},
            "access": {"joins_staff": 1_000},
            "calls": {"publish_s": 60},
            "media": {"udp_port": 0, "tcp": False, "workers": workers},
            "mqtt": {"mode": "off"},
        }
        with tempfile.TemporaryDirectory() as directory:
            site = make_site(Path(directory) / "site", boxes=1, settings=settings)
            async with running(site), aiohttp.ClientSession() as session:
                await _measure(asked, Desk(site, session), recording)


async def _measure(asked: set[str], desk: Desk, recording: bool) -> None:
    workers = list(desk.site.workers)
    if "answer" in asked:
        await measure_answer(desk, workers, JitterBuffer, "aiortc as it is")
        await measure_answer(desk, workers, Shallow, "receiver without its wait")
    if "ear" in asked:
        await measure_ear(desk, workers[20:])
    if "blackout" in asked:
        port = await _media_port(desk, workers[22])
        for buffer in (JitterBuffer, Short):
            await measure_blackout(desk, workers[21], port, buffer)
    if asked & {"load", "load-unrecorded"}:
        await measure_load(desk, workers, "recorded" if recording else "not recorded")


async def _media_port(desk: Desk, worker: str) -> int:
    """The gateway's media port, as an answer tells it."""
    async with call(desk, worker) as (_, desk_leg, _, _):
        peer = Peer()
        try:
            await peer.publish(desk, f"{desk_leg}/whip", desk.operator)
            text = peer.out.remoteDescription.sdp
            return int(next(line for line in text.splitlines() if line.startswith("a=candidate")).split()[5])
        finally:
            await peer.close()


def main() -> None:
    asyncio.run(run(sys.argv[1:] or ["answer", "ear", "blackout", "load", "load-unrecorded"]))


if __name__ == "__main__":
    main()
