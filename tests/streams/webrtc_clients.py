"""Real WebRTC peers for the tests of the media plane: aiortc as WHEP viewer and WHIP publisher, clips by
PyAV."""

from __future__ import annotations

import asyncio
import fractions
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import av
import numpy as np
from aiortc import AudioStreamTrack, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import MediaStreamError

from gateway.errors import NotFound
from gateway.streams.link import Certificate, MediaPort
from gateway.streams.media import AccessUnit, AudioFrame, Codec, StreamName
from gateway.streams.plane import MediaPlane


def nal_units_of(annex_b: bytes) -> tuple[bytes, ...]:
    """Splits at start codes; written for the tests, not taken from the gateway."""
    units, start, at = [], None, 0
    while (at := annex_b.find(b"\0\0\1", at)) >= 0:
        if start is not None:
            units.append(annex_b[start:at].rstrip(b"\0"))
        start = at = at + 3
    if start is not None:
        units.append(annex_b[start:])
    return tuple(units)


@cache
def encode_clip(
    frames: int = 50, gop: int = 25, width: int = 320, height: int = 240, slices: int = 1, noise: int = 0
) -> tuple[tuple[bool, tuple[bytes, ...]], ...]:
    """(keyframe, NAL units) of each picture of a moving pattern, H.264 Constrained Baseline."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = fractions.Fraction(1, 25)
    encoder.framerate = fractions.Fraction(25, 1)
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "profile": "baseline",
        "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:repeat-headers=1:slices={slices}:threads=1",
    }
    generator = np.random.default_rng(7)
    clip = []
    for index in range(frames):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, :, 0] = (np.arange(width) + index * 8) % 256
        picture[20:60, (index * 6) % (width - 40) : (index * 6) % (width - 40) + 40] = 255
        if noise:
            picture += generator.integers(0, noise, picture.shape, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = index
        for packet in encoder.encode(frame):
            units = nal_units_of(bytes(packet))
            clip.append((any(unit[0] & 31 == 5 for unit in units), units))
    return tuple(clip)


class Feed:
    """Plays a clip into a stream in real time, and says at which picture it is."""

    def __init__(self, stream, clip, *, fps: float = 25, audio: bool = False) -> None:
        self.stream, self.clip, self.fps, self.audio = stream, clip, fps, audio
        self.index = 0

    def push(self, now: float | None = None) -> None:
        keyframe, units = self.clip[self.index % len(self.clip)]
        at = time.monotonic() if now is None else now
        self.stream.on_access_unit(
            AccessUnit(
                nal_units=units,
                timestamp=round(self.index * 90_000 / self.fps),
                keyframe=keyframe,
                received_at=at,
            )
        )
        if self.audio:  # two frames of 20 ms of G.711 silence for a picture of 40 ms
            for half in range(2):
                self.stream.on_audio(
                    AudioFrame(
                        codec=Codec.PCMA,
                        payload=b"\xd5" * 160,
                        timestamp=(self.index * 2 + half) * 160,
                        received_at=at,
                    )
                )
        self.index += 1

    async def run(self) -> None:
        start = time.monotonic() - self.index / self.fps
        while True:
            self.push()
            await asyncio.sleep(max(0.0, start + self.index / self.fps - time.monotonic()))


class Cameras:
    """The supervisor's face for the plane: what is known, and who counted whom in."""

    def __init__(self, *known: str) -> None:
        self.known = set(known)
        self.held: list[tuple[str, StreamName]] = []
        self.refuse: dict[StreamName, Exception] = {}

    async def acquire(self, camera_id: str, name: StreamName) -> None:
        if camera_id not in self.known:
            raise NotFound(f"no camera {camera_id}")
        if name in self.refuse:
            raise self.refuse[name]
        self.held.append((camera_id, name))

    def release(self, camera_id: str, name: StreamName) -> None:
        self.held.remove((camera_id, name))


@asynccontextmanager
async def running_plane(*cameras: str, **options) -> AsyncIterator[MediaPlane]:
    """A plane on a free port of this machine, with `plane.cameras` and `plane.port` for the test."""
    port = await MediaPort.open(
        options.pop("binds", [("0.0.0.0", 0)]),
        certificate=options.pop("certificate", Certificate()),
        announce=options.pop("announce", ()),
        tcp=False,
    )
    supervisor = Cameras(*cameras)
    plane = MediaPlane(port, acquire=supervisor.acquire, release=supervisor.release, **options)
    task = asyncio.create_task(plane.run())
    plane.cameras, plane.port = supervisor, port  # type: ignore[attr-defined]
    try:
        yield plane
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await port.close()
        await asyncio.sleep(0)


class WhepClient:
    """An aiortc viewer: decoded frames in lists, RTP seen on the way."""

    def __init__(self, *, video: bool = True, audio: bool = False) -> None:
        self.pc = RTCPeerConnection()
        self.frames: list[av.VideoFrame] = []
        self.audio_frames: list[av.AudioFrame] = []
        self.first_frame = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        if video:
            self.pc.addTransceiver("video", direction="recvonly")
        if audio:
            self.pc.addTransceiver("audio", direction="recvonly")
        self.pc.on("track", self._on_track)
        self.answer = None

    def _on_track(self, track) -> None:
        self._tasks.append(asyncio.ensure_future(self._consume(track)))

    async def _consume(self, track) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            if track.kind == "video":
                self.frames.append(frame)
                self.first_frame.set()
            else:
                self.audio_frames.append(frame)

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self.pc.localDescription.sdp

    async def accept(self, answer) -> None:
        self.answer = answer
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=answer.sdp, type="answer"))

    async def watch(
        self, plane: MediaPlane, source_id: str, *, stream: str = "main", owner: str = "test"
    ) -> None:
        await self.accept(await plane.watch(source_id, await self.offer(), stream=stream, owner=owner))

    def drop_incoming(self, decide) -> None:
        """Loses RTP before the client sees it: `decide(ssrc, sequence_number, payload_type)` is true for
        loss."""
        transport = self.pc.getTransceivers()[0].receiver.transport
        handle = transport._handle_rtp_data

        async def lossy(data: bytes, arrival_time_ms: int) -> None:
            plain = bytes(data)
            ssrc, number = int.from_bytes(plain[8:12], "big"), int.from_bytes(plain[2:4], "big")
            if not decide(ssrc, number, plain[1] & 127):
                await handle(data, arrival_time_ms=arrival_time_ms)

        transport._handle_rtp_data = lossy

    async def close(self) -> None:
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class WhipClient:
    """An aiortc publisher of a generated picture and silence."""

    def __init__(self, *, video: bool = True, audio: bool = True, codec: str | None = None) -> None:
        self.pc = RTCPeerConnection()
        if video:
            transceiver = self.pc.addTransceiver(VideoStreamTrack(), direction="sendonly")
            if codec is not None:
                from aiortc import RTCRtpSender

                codecs = RTCRtpSender.getCapabilities("video").codecs
                transceiver.setCodecPreferences([one for one in codecs if one.mimeType == f"video/{codec}"])
        if audio:
            self.pc.addTransceiver(AudioStreamTrack(), direction="sendonly")

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self.pc.localDescription.sdp

    async def publish(self, plane: MediaPlane, source_id: str, *, owner: str = "test") -> None:
        self.answer = await plane.publish(source_id, await self.offer(), owner=owner)
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=self.answer.sdp, type="answer"))

    async def close(self) -> None:
        await self.pc.close()


async def eventually(condition, timeout_s: float = 10.0) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)
