"""768 cameras in one process: an RTSP server whose every path is a camera with a main and a sub stream.

Each clip is packetised once. A playing session costs one list of twelve-byte headers, one join and one
write a picture; a timer wheel with 5 ms slots serves all of them, so there is no task, timer or queue a
camera. A slow reader loses pictures up to the next keyframe once 512 KiB wait in its socket, as it would
with a real camera.
"""

from __future__ import annotations

import asyncio
import logging
import secrets as random_secrets
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from simulators import clips, h264, rtsp
from simulators.faults import FAULTS, SOURCE_FAULTS
from simulators.live import LiveSource
from simulators.source import Picture, Source

__all__ = ["Camera", "Farm"]

logger = logging.getLogger(__name__)

TICK_S = 0.005
SLOTS = 64
WRITE_LIMIT = 512 * 1024
SESSION_TIMEOUT_S = 60
REPORT_EVERY = 125  # pictures between sender reports: 5 s
AUDIO_PERIOD = 320  # samples of a 40 ms packet
_INTERLEAVED = struct.Struct(">BBHBBHII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One simulated camera. recipe: its clip; live: encoded as it is watched, with the true clock."""

    id: str
    name: str
    number: int
    recipe: clips.Recipe
    live: bool = False
    audio: bool = False


@dataclass(slots=True)
class Counters:
    """What the farm did since its start."""

    sessions: int = 0
    pictures: int = 0
    octets: int = 0
    dropped: int = 0
    refused: int = 0
    late_ms: float = 0.0


@dataclass(slots=True)
class Track:
    """Where one track of a session goes."""

    channel: int = -1
    address: tuple[str, int] | None = None
    rtcp_address: tuple[str, int] | None = None


class Playback:
    """One playing session: a cursor in a source."""

    __slots__ = (
        "audio", "audio_sequence", "base", "camera", "connection", "due", "index", "octets",
        "packets", "playing", "queued", "random", "report_in", "sequence", "skipping", "source",
        "ssrc", "stream", "video",
    )  # fmt: skip

    def __init__(self, connection: Connection, camera: Camera, stream: str) -> None:
        self.connection, self.camera, self.stream = connection, camera, stream
        self.video: Track | None = None
        self.audio: Track | None = None
        self.random = Random(f"{camera.id}|{stream}")
        self.ssrc = self.random.getrandbits(32)
        self.sequence = self.random.getrandbits(15)
        self.audio_sequence = self.random.getrandbits(15)
        self.base = self.random.getrandbits(31)
        self.source: Source | None = None
        self.index = 0
        self.due = 0.0
        self.playing = False
        self.queued = False  # lies in a slot of the wheel
        self.skipping = False
        self.packets = self.octets = 0
        self.report_in = 1

    def use(self, source: Source, index: int) -> None:
        """Goes on with another source (after a fault came or went) without a jump in time."""
        if self.source is not None:
            self.base += self.source.pictures[self.index].at - source.pictures[index].at
        self.source, self.index, self.skipping = source, index, False


@dataclass(slots=True)
class FaultState:
    """Which faults are on for which camera."""

    on: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def has(self, camera_id: str, fault: str) -> bool:
        faults = self.on.get(camera_id)
        return faults is not None and fault in faults


class Farm:
    """All cameras. `start` listens, `close` ends every session."""

    def __init__(
        self,
        cameras: Sequence[Camera],
        cache: Path,
        *,
        authenticator: rtsp.Authenticator | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cameras = {camera.id: camera for camera in cameras}
        self.cache = cache
        self.authenticator = authenticator
        self.counters = Counters()
        self.faults = FaultState()
        self.connections: set[Connection] = set()
        self._clock = clock
        self._sources: dict[tuple[str, str], Source] = {}
        self._live: dict[tuple[str, str], LiveSource] = {}
        self._wheel: list[list[Playback]] = [[] for _ in range(SLOTS)]
        self._tick = 0
        self._epoch = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._udp: tuple[socket.socket, socket.socket] | None = None
        self._audio: dict[int, bytes] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str = "127.0.0.1", port: int = 8554) -> None:
        """Binds the port; OSError when it is taken."""
        self._loop = asyncio.get_running_loop()
        for camera in self.cameras.values():
            if camera.live:  # starting an encoder takes a while: not at the first DESCRIBE
                for stream in ("main", "sub"):
                    self.live(camera, stream).description()
        self._server = await self._loop.create_server(lambda: Connection(self), host, port, backlog=1024)
        self._epoch = self._clock()
        self._tick = 0
        self._schedule()

    async def close(self) -> None:
        """Stops listening, ends sessions and encoders."""
        if self._timer is not None:
            self._timer.cancel()
        for live in self._live.values():
            live.close()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()
        if self._server is not None:
            await self._server.wait_closed()
        for sock in self._udp or ():
            sock.close()

    # -- sources --

    async def prepare(self, camera_id: str, fault: str) -> None:
        """Encodes what a fault will show in a thread, so that switching it on does not hold up the others."""
        if fault in SOURCE_FAULTS:
            for stream in ("main", "sub"):
                await asyncio.to_thread(self.source, self.cameras[camera_id], stream, fault)

    def source(self, camera: Camera, stream: str, fault: str | None = None) -> Source:
        """The camera's clip, or what its faults make of it. Loads (and for faults encodes) at first use."""
        if fault is None:
            fault = next((name for name in SOURCE_FAULTS if self.faults.has(camera.id, name)), "")
        key = (camera.recipe.name(stream), fault)
        found = self._sources.get(key)
        if found is None:
            clip = clips.load(self.cache / camera.recipe.name(stream))
            spec = SOURCE_FAULTS.get(fault)
            if spec is not None and spec.derive:
                clip = clips.derive(clip, fault)
            found = Source(
                clip,
                max_payload=spec.max_payload if spec else 1400,
                dialect=spec.dialect if spec else "plain",
            )
            self._sources[key] = found
        return found

    def live(self, camera: Camera, stream: str) -> LiveSource:
        """The live encoder of one stream; it runs only while somebody plays it."""
        found = self._live.get((camera.id, stream))
        if found is None:
            found = self._live[camera.id, stream] = LiveSource(camera.recipe, stream, self._deliver)
        return found

    def ready_live(self, camera: Camera) -> bool:
        """Whether the camera is encoded live now: faults that change the picture work on its clip."""
        return camera.live and not any(self.faults.has(camera.id, name) for name in SOURCE_FAULTS)

    def audio_of(self, camera: Camera) -> bytes:
        """Five seconds of A-law."""
        seed = camera.number % 7
        if seed not in self._audio:
            self._audio[seed] = clips.tone(5, seed)
        return self._audio[seed]

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what plays now."""
        playing = [c.playback for c in self.connections if c.playback is not None and c.playback.playing]
        return asdict(self.counters) | {
            "playing": len(playing),
            "connections": len(self.connections),
            "cpu_s": time.process_time(),
        }

    # -- faults --

    def set_fault(self, camera_id: str, fault: str, on: bool) -> None:
        """Switches one fault of one camera. Raises KeyError for an unknown camera, ValueError for an
        unknown fault.
        """
        camera = self.cameras[camera_id]
        if fault not in FAULTS:
            raise ValueError(f"unknown fault {fault}; known: {', '.join(FAULTS)}")
        faults = self.faults.on[camera_id]
        if (fault in faults) == on:
            return
        (faults.add if on else faults.discard)(fault)
        logger.info("fault %s of %s is %s", fault, camera_id, "on" if on else "off")
        playbacks = [p for c in self.connections if (p := c.playback) is not None and p.camera is camera]
        if on and fault in ("cut", "401", "reboot"):
            for playback in playbacks:
                playback.connection.abort()
            if fault == "reboot" and self._loop is not None:
                self._loop.call_later(5, self.set_fault, camera_id, fault, False)
        elif fault in SOURCE_FAULTS:
            for playback in playbacks:
                if playback.playing:
                    self.play(playback)

    # -- playing --

    def play(self, playback: Playback) -> None:
        """Starts (or restarts after a fault) with the keyframe before the camera's own phase."""
        camera = playback.camera
        playback.playing = True
        for live in self._live.values():
            live.remove(playback)
        if self.ready_live(camera):
            playback.source = None
            self.live(camera, playback.stream).add(playback)
            return
        source = self.source(camera, playback.stream)
        now = self._clock()
        period = source.step / 90000
        count = len(source.pictures)
        phase = int(now / period + camera.number * 7.3) % count
        start = max((k for k in source.keyframes if k <= phase), default=source.keyframes[0])
        playback.use(source, start)
        if not playback.queued:
            playback.queued = True
            playback.due = now + 0.001 * (camera.number % 5)
            self._insert(playback)

    def stop(self, playback: Playback) -> None:
        """Ends it; the wheel forgets it when its slot comes round."""
        playback.playing = False
        for live in self._live.values():
            live.remove(playback)

    def _insert(self, playback: Playback) -> None:
        slot = max(int((playback.due - self._epoch) / TICK_S) + 1, self._tick + 1)
        self._wheel[slot % SLOTS].append(playback)

    def _schedule(self) -> None:
        assert self._loop is not None
        delay = self._epoch + (self._tick + 1) * TICK_S - self._clock()
        self._timer = self._loop.call_later(max(delay, 0.0), self._on_tick)

    def _on_tick(self) -> None:
        now = self._clock()
        target = int((now - self._epoch) / TICK_S)
        late = now - (self._epoch + (self._tick + 1) * TICK_S)
        self.counters.late_ms = max(self.counters.late_ms * 0.999, late * 1000)
        wheel = self._wheel
        # After a long pause every slot is visited once at most: a lap brings all that is due.
        for tick in range(max(self._tick + 1, target - SLOTS + 1), target + 1):
            slot = tick % SLOTS
            due = wheel[slot]
            if not due:
                continue
            wheel[slot] = []
            self._tick = tick
            for playback in due:
                if not playback.playing or playback.source is None:
                    playback.queued = False
                    continue
                self._advance(playback)
                playback.due += playback.source.step / 90000
                if playback.due < now - 1:
                    playback.due = now  # the machine slept: go on from here, don't burst
                at = int((playback.due - self._epoch) / TICK_S) + 1
                wheel[(at if at > tick else tick + 1) % SLOTS].append(playback)
        self._tick = target
        self._schedule()

    def _advance(self, playback: Playback) -> None:
        source = playback.source
        assert source is not None
        picture = source.pictures[playback.index]
        self._deliver(playback, picture)
        index = playback.index + 1
        if index == len(source.pictures):
            index = 0
            playback.base += source.length
        playback.index = index

    def _deliver(self, playback: Playback, picture: Picture) -> None:
        """Sends one picture, the audio of its time, and now and then a sender report."""
        camera_faults = self.faults.on.get(playback.camera.id)
        packets: Sequence[h264.Packet] = picture.packets
        if camera_faults:
            if "stall" in camera_faults or "hang" in camera_faults:
                return
            if "timestamps" in camera_faults and picture.keyframe:
                playback.base += playback.random.choice((-20 * 90000, 3600 * 90000, 17, -4000))
        timestamp = (playback.base + picture.at) & 0xFFFFFFFF
        video, audio = playback.video, playback.audio
        connection = playback.connection
        if video is None:
            if audio is not None:
                connection.write(b"".join(self._audio_parts(playback, audio)))
            return
        if connection.backlog() > WRITE_LIMIT:
            playback.skipping = True
        if playback.skipping:
            if not picture.keyframe or connection.backlog() > WRITE_LIMIT // 4:
                self.counters.dropped += 1
                return
            playback.skipping = False
        sequence, ssrc = playback.sequence, playback.ssrc
        playback.sequence = (sequence + len(packets)) & 0xFFFF
        playback.packets += len(packets)
        playback.octets += picture.octets
        self.counters.pictures += 1
        self.counters.octets += picture.octets
        if video.channel < 0:
            self._deliver_udp(playback, packets, sequence, timestamp)
            return
        channel = video.channel
        parts: list[bytes] = []
        pack = _INTERLEAVED.pack
        if camera_faults and "loss" in camera_faults:
            lossy = [(n, p) for n, p in enumerate(packets) if playback.random.random() > 0.03]
        else:
            lossy = list(enumerate(packets))
        for offset, packet in lossy:
            payload = packet.payload
            parts.append(
                pack(
                    0x24, channel, len(payload) + 12,
                    0x80, packet.second, (sequence + offset) & 0xFFFF, timestamp, ssrc,
                )
            )  # fmt: skip
            parts.append(payload)
        if audio is not None:
            parts += self._audio_parts(playback, audio)
        playback.report_in -= 1
        if playback.report_in == 0:
            playback.report_in = REPORT_EVERY
            report = self._report(playback, timestamp)
            parts += [struct.pack(">BBH", 0x24, channel + 1, len(report)), report]
        if camera_faults and "garbage" in camera_faults and picture.keyframe:
            parts.append(playback.random.randbytes(200))
        connection.write(b"".join(parts))

    def _report(self, playback: Playback, timestamp: int) -> bytes:
        return h264.sender_report(
            playback.ssrc,
            time.time(),
            timestamp,
            playback.packets,
            playback.octets,
            playback.camera.id.encode(),
        )

    def _audio_parts(self, playback: Playback, track: Track) -> list[bytes]:
        samples = self.audio_of(playback.camera)
        number = playback.audio_sequence
        playback.audio_sequence += 1
        at = number * AUDIO_PERIOD % len(samples)
        payload = samples[at : at + AUDIO_PERIOD]
        header = h264.rtp_header(8, number, number * AUDIO_PERIOD, playback.ssrc ^ 0x5A5A5A5A)
        if track.channel < 0:
            self.send_udp(header + payload, track.address)
            return []
        return [struct.pack(">BBH", 0x24, track.channel, len(payload) + 12), header, payload]

    # -- UDP --

    def udp_ports(self, host: str) -> tuple[int, int]:
        """The server's pair of ports, opened at the first client that wants UDP."""
        if self._udp is None:
            rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            rtcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            rtp.bind((host, 0))
            rtcp.bind((host, 0))
            for sock in (rtp, rtcp):
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            self._udp = (rtp, rtcp)
        first, second = self._udp
        return int(first.getsockname()[1]), int(second.getsockname()[1])

    def send_udp(self, datagram: bytes, address: tuple[str, int] | None, *, rtcp: bool = False) -> None:
        """Sends or, when the kernel's queue is full or nobody listens, loses a datagram."""
        if self._udp is None or address is None:
            return
        try:
            self._udp[rtcp].sendto(datagram, address)
        except OSError:
            self.counters.dropped += 1

    def _deliver_udp(
        self, playback: Playback, packets: Sequence[h264.Packet], sequence: int, timestamp: int
    ) -> None:
        assert playback.video is not None
        lossy = self.faults.has(playback.camera.id, "loss")
        for offset, packet in enumerate(packets):
            if lossy and playback.random.random() < 0.03:
                continue
            header = h264.rtp_header(packet.second, sequence + offset, timestamp, playback.ssrc)
            self.send_udp(header + packet.payload, playback.video.address)
        if playback.audio is not None:
            self._audio_parts(playback, playback.audio)
        playback.report_in -= 1
        if playback.report_in == 0:
            playback.report_in = REPORT_EVERY
            self.send_udp(self._report(playback, timestamp), playback.video.rtcp_address, rtcp=True)


class Connection(asyncio.Protocol):
    """One RTSP connection and at most one session on it."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._parser = rtsp.RequestParser()
        self._nonce = random_secrets.token_hex(16)
        self._transport: asyncio.Transport | None = None
        self._session = ""
        self._timeout: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._peer = ("", 0)
        self._host = ""
        self.playback: Playback | None = None

    # -- asyncio --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._farm.connections.add(self)
        self._peer = transport.get_extra_info("peername")
        self._host = transport.get_extra_info("sockname")[0]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_session()
        self._farm.connections.discard(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        try:
            for message in self._parser.feed(data):
                if isinstance(message, rtsp.Request):
                    self._on_request(message)
        except rtsp.BadRequest:
            if self._transport is not None:
                self._transport.write(rtsp.response(400, None))
                self._transport.close()

    def backlog(self) -> int:
        """Bytes that wait for the reader."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Hands bytes to the socket."""
        if self._transport is not None and data:
            self._transport.write(data)

    def abort(self) -> None:
        """Cuts the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    # -- requests --

    def _on_request(self, request: rtsp.Request) -> None:
        farm = self._farm
        parts = request.path.split("/")
        camera = farm.cameras.get(parts[0])
        stream = parts[1] if len(parts) > 1 else "main"
        faults = farm.faults.on.get(parts[0]) or ()
        if "cut" in faults or "reboot" in faults:
            self.abort()
            return
        if "hang" in faults:
            return
        if request.method == "OPTIONS":
            public = "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, TEARDOWN"
            self._reply(200, request, {"Public": public} | self._session_header())
            return
        authenticator = farm.authenticator
        if "401" in faults or (authenticator is not None and not authenticator.accepts(request, self._nonce)):
            farm.counters.refused += 1
            challenge = (authenticator or rtsp.Authenticator("", "")).challenge(self._nonce)
            self._reply(401, request, {"WWW-Authenticate": challenge})
            return
        if camera is None or stream not in ("main", "sub"):
            self._reply(404, request)
            return
        handler = {
            "DESCRIBE": self._describe,
            "SETUP": self._setup,
            "PLAY": self._play,
            "GET_PARAMETER": self._get_parameter,
            "TEARDOWN": self._teardown,
        }.get(request.method)
        if handler is None:
            self._reply(405, request)
            return
        handler(request, camera, stream)

    def _reply(
        self, status: int, request: rtsp.Request, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.write(rtsp.response(status, request, {"Server": "farm"} | (headers or {}), body))

    def _session_header(self) -> dict[str, str]:
        return {"Session": f"{self._session};timeout={SESSION_TIMEOUT_S}"} if self._session else {}

    def _describe(self, request: rtsp.Request, camera: Camera, stream: str) -> None:
        farm = self._farm
        if farm.ready_live(camera):
            level, sets = farm.live(camera, stream).description()
            fps = camera.recipe.fps
        else:
            source = farm.source(camera, stream)
            level, sets, fps = source.profile_level_id, source.parameter_sets, source.fps
        body = rtsp.session_description(
            name=camera.id,
            host=self._host,
            profile_level_id=level,
            parameter_sets=sets,
            fps=fps,
            audio=camera.audio,
        )
        base = request.uri.split("?")[0].rstrip("/") + "/"
        self._reply(200, request, {"Content-Base": base, "Content-Type": "application/sdp"}, body)

    def _setup(self, request: rtsp.Request, camera: Camera, stream: str) -> None:
        wanted = rtsp.Transport.parse(request.headers.get("transport", ""))
        if wanted is None:
            self._reply(461, request)
            return
        playback = self.playback
        if playback is None:
            playback = self.playback = Playback(self, camera, stream)
            self._session = random_secrets.token_hex(8)
            self._farm.counters.sessions += 1
            self._watch_timeout()
        elif playback.camera is not camera or playback.stream != stream:
            self._reply(459, request)
            return
        elif playback.playing:
            self._reply(455, request)
            return
        track = Track()
        ssrc = playback.ssrc
        is_audio = request.path.endswith("trackID=1")
        if is_audio and not camera.audio:
            self._reply(404, request)
            return
        if wanted.interleaved is not None:
            track.channel = wanted.interleaved[0]
            answer = f"RTP/AVP/TCP;unicast;interleaved={wanted.interleaved[0]}-{wanted.interleaved[1]}"
        else:
            assert wanted.client_port is not None
            first, second = wanted.client_port
            track.address, track.rtcp_address = (self._peer[0], first), (self._peer[0], second)
            ports = self._farm.udp_ports(self._host)
            answer = f"RTP/AVP;unicast;client_port={first}-{second};server_port={ports[0]}-{ports[1]}"
        if is_audio:
            playback.audio = track
            ssrc ^= 0x5A5A5A5A
        else:
            playback.video = track
        self._reply(200, request, {"Transport": f"{answer};ssrc={ssrc:08X}"} | self._session_header())

    def _play(self, request: rtsp.Request, camera: Camera, stream: str) -> None:
        if not self._in_session(request):
            return
        playback = self.playback
        assert playback is not None
        self._reply(200, request, {"Range": "npt=0.000-"} | self._session_header())
        if not playback.playing:
            self._farm.play(playback)

    def _get_parameter(self, request: rtsp.Request, camera: Camera, stream: str) -> None:
        if not self._session or self._in_session(request):
            self._reply(200, request, self._session_header())

    def _teardown(self, request: rtsp.Request, camera: Camera, stream: str) -> None:
        if self._in_session(request):
            self._reply(200, request)
            self._end_session()

    def _in_session(self, request: rtsp.Request) -> bool:
        named = request.headers.get("session", "").partition(";")[0].strip()
        if self.playback is None or named != self._session:
            self._reply(454, request)
            return False
        return True

    # -- session --

    def _watch_timeout(self) -> None:
        loop = asyncio.get_running_loop()
        silent = loop.time() - self._heard_at
        if silent >= SESSION_TIMEOUT_S * 1.1:
            logger.info("session of %s timed out", self.playback.camera.id if self.playback else "nobody")
            self.abort()
            return
        self._timeout = loop.call_later(SESSION_TIMEOUT_S * 1.1 - silent, self._watch_timeout)

    def _end_session(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        if self.playback is not None:
            self._farm.stop(self.playback)
        self.playback, self._session = None, ""
