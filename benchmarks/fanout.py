"""What fan-out costs: `python -m benchmarks.fanout` measures in this process, `... serve` waits for viewers
by WHEP.

measure: N viewers with real SRTP keys, one UDP socket, GSO sends to a socket nobody reads (the kernel does
all its work up to the full receive queue). Prints CPU milliseconds per viewer-second and microseconds per
packet.

serve: camera `cam000` ... played from an H.264 file to whoever posts an offer to /camNNN/whep; for load
generators.
"""

from __future__ import annotations

import argparse
import asyncio
import fractions
import gc
import os
import re
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from gateway.streams.link import Certificate, MediaPort
from gateway.streams.media import AccessUnit, Codec, StreamName
from gateway.streams.plane import MediaPlane
from gateway.streams.sender import PayloadTypes, TrackSender
from gateway.streams.session import SessionKind
from gateway.streams.srtp import Buffers, Profile, SrtpKeys, SrtpSender
from gateway.streams.stream import Stream, TrackKind
from gateway.streams.viewer import Viewer
from gateway.streams.whep import EdgeRequest, EdgeResponse, SessionEndpoint

FPS = 25
Clip = Sequence[tuple[bool, tuple[bytes, ...]]]


def read_clip(path: Path) -> Clip:
    """Access units of an Annex B file with one slice a picture."""
    units = [unit for unit in re.split(b"\0\0\0?\1", path.read_bytes()) if unit]
    clip: list[tuple[bool, tuple[bytes, ...]]] = []
    pending: list[bytes] = []
    for unit in units:
        pending.append(unit)
        if unit[0] & 31 in (1, 5):
            clip.append((unit[0] & 31 == 5, tuple(pending)))
            pending = []
    return clip


def make_clip(bitrate_bps: int = 2_000_000, seconds: int = 4) -> Clip:
    """A moving, noisy 720p pattern at about this rate, encoded now."""
    import av
    import numpy as np

    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 1280, 720, "yuv420p"
    encoder.time_base, encoder.framerate = fractions.Fraction(1, FPS), fractions.Fraction(FPS, 1)
    encoder.bit_rate = bitrate_bps
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "profile": "baseline",
        "x264-params": f"keyint={2 * FPS}:min-keyint={2 * FPS}:scenecut=0:repeat-headers=1:nal-hrd=cbr:"
        f"vbv-maxrate={bitrate_bps // 1000}:vbv-bufsize={bitrate_bps // 1000}:sliced-threads=0",
    }
    generator = np.random.default_rng(1)
    background = generator.integers(0, 255, (720, 1280, 3), np.uint8)
    clip: list[tuple[bool, tuple[bytes, ...]]] = []
    for index in range(seconds * FPS):
        frame = av.VideoFrame.from_ndarray(np.roll(background, index * 3, axis=1), format="rgb24")
        frame.pts = index
        for packet in encoder.encode(frame):
            units = tuple(unit for unit in re.split(b"\0\0\0?\1", bytes(packet)) if unit)
            clip.append((bool(packet.is_keyframe), units))
    return clip


def access_unit(clip: Clip, index: int, now: float) -> AccessUnit:
    keyframe, units = clip[index % len(clip)]
    return AccessUnit(nal_units=units, timestamp=index * 90_000 // FPS, keyframe=keyframe, received_at=now)


class _BareLink:
    """A link without ICE and DTLS: seals with made-up keys, sends to one address."""

    def __init__(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self._sendmsg = sock.sendmsg
        self._address = address

    def send_segments(self, buffers: Buffers, segment_size: int, count: int) -> bool:
        ancillary = [(17, 103, struct.pack("=H", segment_size))] if count > 1 else []
        self._sendmsg(buffers, ancillary, 0, self._address)
        return True

    def send_rtcp(self, compound: bytes) -> bool:
        return True


def measure(clip: Clip, viewers: int, seconds: float, profile: Profile) -> dict[str, float]:
    """Feeds as fast as it goes; `seconds` of the clip's own time."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind(("127.0.0.1", 0))
    stream = Stream()
    stream.on_access_unit(access_unit(clip, 0, 0.0))
    everyone = []
    for number in range(viewers):
        video = TrackSender(
            TrackKind.VIDEO,
            {Codec.H264: PayloadTypes(media=102, rtx=103)},
            ssrc=1 + 2 * number,
            rtx_ssrc=2 + 2 * number,
            first_index=1000,
            first_timestamp=0,
        )
        keys = SrtpSender.create(SrtpKeys.derive(profile, os.urandom(16), os.urandom(profile.salt_length)))
        viewer = Viewer(stream, video=video, audio=None, cname="bench", unix_offset=0.0)
        viewer.connect(_BareLink(sender, receiver.getsockname()), keys, 0.0)
        everyone.append(viewer)
    gc.collect()
    gc.freeze()
    pictures = int(seconds * FPS)
    before = sum(viewer.video.packets for viewer in everyone if viewer.video)
    start = time.process_time()
    for index in range(1, pictures + 1):
        stream.on_access_unit(access_unit(clip, index, index / FPS))
    spent = time.process_time() - start
    packets = sum(viewer.video.packets for viewer in everyone if viewer.video) - before
    receiver.close()
    sender.close()
    return {
        "viewers": viewers,
        "ms_per_viewer_second": spent * 1000 / viewers / seconds,
        "us_per_packet": spent * 1e6 / packets,
        "packets_per_second": packets / viewers / seconds,
    }


async def serve(clip: Clip, cameras: int, http_port: int, profiles: Sequence[Profile]) -> None:
    """Until cancelled. Reports once in 10 s what the process spent."""
    certificate = Certificate(profiles=profiles)
    port = await MediaPort.open([("127.0.0.1", 0)], certificate=certificate, tcp=False)

    async def acquire(camera_id: str, name: StreamName) -> None:
        return None

    plane = MediaPlane(port, acquire=acquire, release=lambda camera_id, name: None)
    endpoint = SessionEndpoint(plane, SessionKind.WATCH, session_path=lambda session: f"/s/{session}")

    def bind(
        handler: Callable[[EdgeRequest, str], Awaitable[EdgeResponse]], key: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            edge = EdgeRequest(
                method=request.method,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=await request.read(),
            )
            name = request.match_info[key]
            answer = await handler(edge, f"camera/{name}" if key == "camera" else name)
            return web.Response(
                status=answer.status, body=answer.body, headers={k: str(v) for k, v in answer.headers.items()}
            )

        return handle

    app = web.Application()
    app.router.add_route("*", "/{camera}/whep", bind(endpoint.handle, "camera"))
    app.router.add_route("*", "/s/{session}", bind(endpoint.handle_session, "session"))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    print("ready", os.getpid(), flush=True)
    gc.collect()
    gc.freeze()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(plane.run())
        streams = [plane.sink_of(f"cam{number:03}", StreamName.MAIN) for number in range(cameras)]
        start = time.monotonic()
        index, report_at, cpu = 0, start + 10, time.process_time()
        while True:
            for number, stream in enumerate(streams):
                unit = access_unit(clip, index + number * 7, time.monotonic())
                stream.on_access_unit(unit)
                if number % 4 == 3:
                    await asyncio.sleep(0)
            index += 1
            if time.monotonic() > report_at:
                used, cpu = time.process_time() - cpu, time.process_time()
                report_at += 10
                print(
                    f"{len(plane)} sessions, {used * 10:.1f} % of a core, {dict(port.counters)}", flush=True
                )
            await asyncio.sleep(max(0.0, start + index / FPS - time.monotonic()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", nargs="?", default="measure", choices=["measure", "serve"])
    parser.add_argument("--clip", type=Path, help="Annex B H.264, one slice a picture; default: encoded now")
    parser.add_argument("--viewers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--cm", action="store_true", help="AES_CM_128_HMAC_SHA1_80 instead of AES-GCM")
    options = parser.parse_args(argv)
    clip = read_clip(options.clip) if options.clip else make_clip()
    if options.mode == "serve":
        profiles = [Profile.AES128_CM_SHA1_80] if options.cm else list(Profile)
        asyncio.run(serve(clip, options.cameras, options.port, profiles))
        return
    for profile in Profile:
        figures = measure(clip, options.viewers, options.seconds, profile)
        print(profile, {name: round(value, 3) for name, value in figures.items()}, flush=True)


if __name__ == "__main__":
    main()
