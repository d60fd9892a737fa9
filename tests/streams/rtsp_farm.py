"""A small RTSP camera for the tests: real sockets, digest authentication, and one fault at a time. Shares no code with us."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import ssl
import struct
from collections.abc import Callable
from types import TracebackType

SPS = bytes.fromhex("6742c01ed90141fa1000000300100000030320f162e480")
SPS_MAIN = bytes.fromhex("67640033ac1514a0a02ff950")
PPS = bytes.fromhex("68cb83cb20")


class Farm:
    """`async with Farm(...) as farm`: one camera at farm.url, 50 pictures and 50 audio frames a second, a keyframe every 10."""

    def __init__(
        self,
        *,
        algorithm: str | None = None,
        user: str = "u",
        password: str = "p",
        fault: str = "",
        location: str = "",
        port: int = 0,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        audio: tuple[str, list[bytes], int] | None = None,
        still: tuple[bytes, ...] = (),
    ) -> None:
        """still: NAL units (SPS, PPS, one slice) of the picture that it shows, else noise that no decoder takes.
        audio: SDP lines of the audio track, its payloads (sent in turn, 50 a second), and the step of its timestamp."""
        self.fault = fault
        self.still = still
        self.audio = audio or ("m=audio 0 RTP/AVP 8\r\n", [b"\xd5" * 160], 160)
        self.audio_reports: list[bytes] = []
        self.host = host
        self._tls = tls
        self.ssrc = 0xABCDEF01
        self.methods: list[str] = []
        self.transports: list[str] = []
        self.reports: list[bytes] = []
        self.authorizations = 0
        self.sessions = 0
        self.most_sessions = 0
        self._algorithm = algorithm
        self._account = f"{user}:cam:{password}"
        self._location = location
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Farm:
        self._server = await asyncio.start_server(self._accept, self.host, self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        await self.cut()
        for _ in range(3):  # transports close their sockets one turn of the loop later
            await asyncio.sleep(0)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rtsp{'s' if self._tls else ''}://{host}:{self._port}/live"

    @property
    def port(self) -> int:
        return self._port

    async def cut(self) -> None:
        """Close every connection, as a reboot does."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def saw(self, method: str, times: int = 1) -> None:
        async with asyncio.timeout(10):
            while self.methods.count(method) < times:
                self._changed.clear()
                await self._changed.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.sessions += 1
        self.most_sessions = max(self.most_sessions, self.sessions)
        try:
            await _Connection(self, reader, writer).serve()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.sessions -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    def allowed(self, method: str, headers: dict[str, str]) -> bool:
        if self._algorithm is None:
            return True
        value = headers.get("authorization", "")
        if not value:
            return False
        self.authorizations += 1
        if self.fault == "401":
            return False
        if self._algorithm == "Basic":
            return value == "Basic " + base64.b64encode(b"u:p").decode()
        part = dict(re.findall(r'(\w+)="?([^",]+)"?', value))
        new = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}[self._algorithm]

        def digest(text: str) -> str:
            return new(text.encode()).hexdigest()

        wanted = digest(
            f"{digest(self._account)}:n0nce:{part.get('nc')}:{part.get('cnonce')}:auth:{digest(method + ':' + part.get('uri', ''))}"
        )
        return part.get("response") == wanted

    def challenge(self) -> str:
        if self._algorithm == "Basic":
            return 'Basic realm="cam"'
        return f'Digest realm="cam", nonce="n0nce", qop="auth", algorithm={self._algorithm}'

    def note(self, method: str) -> None:
        self.methods.append(method)
        self._changed.set()

    @property
    def location(self) -> str:
        return self.url if self.fault == "redirect_loop" else self._location


class _Connection:
    def __init__(self, farm: Farm, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._farm = farm
        self._reader = reader
        self._writer = writer
        self._udp: dict[int, tuple[asyncio.DatagramTransport, tuple[str, int]]] = {}
        self._player: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        try:
            while True:
                first = await self._reader.readexactly(1)
                if first == b"$":
                    channel, length = struct.unpack("!BH", await self._reader.readexactly(3))
                    data = await self._reader.readexactly(length)
                    if channel == 1:
                        self._farm.reports.append(data)
                    elif channel == 3:
                        self._farm.audio_reports.append(data)
                    continue
                head = (first + await self._reader.readuntil(b"\r\n\r\n")).decode()
                if self._farm.fault == "mute":
                    continue
                if self._farm.fault == "late_reader" and self._player is not None:
                    await asyncio.sleep(0.3)  # playing on meanwhile
                    if self._writer.transport.is_closing():
                        return  # its writing has failed: it never comes to what was asked
                if not await self._handle(head):
                    return
        finally:
            for transport, _ in self._udp.values():
                transport.close()
            if self._player is not None:
                self._player.cancel()
                await asyncio.gather(self._player, return_exceptions=True)

    async def _handle(self, head: str) -> bool:
        farm = self._farm
        request, *lines = head.strip().split("\r\n")
        method, uri, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        farm.note(method)
        if method == "OPTIONS":
            return self._reply(
                headers, "200 OK", "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"
            )
        if not farm.allowed(method, headers):
            return self._reply(headers, "401 Unauthorized", f"WWW-Authenticate: {farm.challenge()}")
        if method == "DESCRIBE":
            if farm.fault == "404":
                return self._reply(headers, "404 Not Found")
            if farm.fault.startswith("redirect"):
                return self._reply(headers, "302 Moved", f"Location: {farm.location}")
            codec = "H265" if farm.fault == "h265" else "H264"
            body = (
                "v=0\r\nm=video 0 RTP/AVP 96\r\n"
                f"a=rtpmap:96 {codec}/90000\r\na=control:track1\r\n"
                f"{farm.audio[0]}a=control:track2\r\n"
            )
            return self._reply(
                headers, "200 OK", f"Content-Base: {uri}/", "Content-Type: application/sdp", body=body
            )
        if method == "SETUP":
            return await self._setup(uri, headers)
        if method == "PLAY":
            if farm.fault == "garbage":
                self._writer.write(b"\xff\x00" * 200_000)
                await self._writer.drain()
                return True
            self._reply(headers, "200 OK", "Session: 99")
            self._player = asyncio.create_task(self._play())
            return True
        if method == "TEARDOWN":
            self._reply(headers, "200 OK")
            return False
        return self._reply(headers, "200 OK")

    async def _setup(self, uri: str, headers: dict[str, str]) -> bool:
        wanted = headers["transport"]
        self._farm.transports.append(wanted)
        track = int(uri[-1]) - 1
        if ports := re.search(r"client_port=(\d+)-", wanted):
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=(self._farm.host, 0)
            )
            own = transport.get_extra_info("sockname")[1]
            self._udp[track] = (transport, (self._farm.host, int(ports[1])))
            wanted += f";server_port={own}-{own + 1}"
        elif self._farm.fault == "udp_only":
            return self._reply(headers, "461 Unsupported Transport")
        return self._reply(headers, "200 OK", "Session: 99;timeout=60", f"Transport: {wanted}")

    def _reply(self, headers: dict[str, str], status: str, *lines: str, body: str = "") -> bool:
        extra = [f"Content-Length: {len(body)}"] if body else []
        head = "\r\n".join((f"RTSP/1.0 {status}", f"CSeq: {headers['cseq']}", *lines, *extra))
        self._writer.write(f"{head}\r\n\r\n{body}".encode())
        return True

    def _show(self, send: Callable[[int, bytes, int, bool], None], timestamp: int) -> None:
        """The still as a keyframe, its slice in fragments."""
        *parameter_sets, picture = self._farm.still
        for nal_unit in parameter_sets:
            send(0, nal_unit, timestamp, False)
        indicator, kind = bytes((picture[0] & 0xE0 | 28,)), picture[0] & 31
        parts = [picture[at : at + 1200] for at in range(1, len(picture), 1200)]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            flags = (0x80 if not index else 0) | (0x40 if last else 0)
            send(0, indicator + bytes((flags | kind,)) + part, timestamp, last)

    async def _play(self) -> None:
        farm = self._farm
        sequence_numbers = [65_500, 7]
        held: list[bytes] = []

        def send(track: int, payload: bytes, timestamp: int, marker: bool) -> None:
            kind = (96, int(farm.audio[0].split()[3]))[track]
            packet = struct.pack(
                "!BBHII",
                0x80,
                kind | marker << 7,
                sequence_numbers[track],
                timestamp & 0xFFFFFFFF,
                farm.ssrc + track,
            )
            packet += payload
            sequence_numbers[track] = (sequence_numbers[track] + 1) & 0xFFFF
            if track in self._udp:
                transport, address = self._udp[track]
                if track == 0 and farm.fault == "reorder":
                    held.append(packet)
                    if len(held) < 5:
                        return
                    order = [held[index] for index in (0, 3, 1, 4, 2)]
                    held.clear()
                    for one in order:
                        transport.sendto(one, address)
                    return
                transport.sendto(packet, address)
            else:
                self._writer.write(struct.pack("!BBH", 0x24, 2 * track, len(packet)) + packet)

        for number in range(100_000):
            timestamp = 0xFFFFF000 + number * 1800
            if (number == 15 and farm.fault == "drop") or farm.fault == "drop_later":
                self._writer.close()
                return
            if (number == 15 and farm.fault == "stall") or farm.fault == "stall_later":
                return
            if farm.still and number % 10 == 0:
                self._show(send, timestamp)
            elif number % 10 == 0 and not (farm.fault == "no_keyframe" and number):
                send(0, SPS_MAIN if farm.fault in ("b_frames", "b_frames_allowed") else SPS, timestamp, False)
                send(0, PPS, timestamp, False)
                if farm.fault != "no_keyframe":
                    picture = b"\x88" + bytes((number & 127 | 1,)) * 2500
                    send(0, b"\x7c\x85" + picture[:1200], timestamp, False)
                    send(0, b"\x7c\x05" + picture[1200:2400], timestamp, False)
                    send(0, b"\x7c\x45" + picture[2400:], timestamp, True)
            elif farm.fault == "b_frames" and number % 3:
                send(0, b"\x01\xa8" + b"\x55" * 100, timestamp, True)
            else:
                send(0, b"\x41\x9a" + b"\x55" * 400, timestamp, True)
            _, payloads, step = farm.audio
            send(1, payloads[number % len(payloads)], number * step, number == 0 or len(payloads) > 1)
            if 0 not in self._udp:
                await self._writer.drain()
            await asyncio.sleep(0.02)
