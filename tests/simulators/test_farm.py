"""The camera farm on real sockets: a small raw client, Debian's ffprobe, digest, faults, the HTTP control."""

import asyncio
import itertools
import re
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from simulators import cameras, clips, faults, h264, rtsp, timecode
from simulators.farm import Farm

ROWS: list[dict[str, Any]] = [
    {"id": f"cam{n:03d}", "name": "路口", "main": f"rtsp://127.0.0.1:8554/cam{n:03d}/main"}
    for n in range(1, 4)
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips")
    plan = cameras.plan(ROWS, live=0, seconds=0.4)
    clips.ensure([camera.recipe for camera in plan], path, processes=1)
    return path


@pytest.fixture
async def farm(cache: Path) -> AsyncIterator[Farm]:
    farm = Farm(
        cameras.plan(ROWS, live=0, seconds=0.4), cache, authenticator=rtsp.Authenticator("viewer", "right")
    )
    await farm.start(port=0)
    yield farm
    await farm.close()


class Client:
    """RTSP over interleaved TCP, as little as it takes."""

    def __init__(self, farm: Farm, path: str, password: str = "right", algorithm: str = "MD5") -> None:
        self.url = f"rtsp://127.0.0.1:{farm.port}/{path}"
        self._port, self._password, self._algorithm = farm.port, password, algorithm
        self._cseq, self._nonce = 0, ""
        self.session = ""

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()
        await asyncio.wait([asyncio.ensure_future(self.writer.wait_closed())])

    async def once(self, method: str, url: str | None = None, **headers: str) -> tuple[int, str, str]:
        url = url or self.url
        self._cseq += 1
        lines = [f"{method} {url} RTSP/1.0", f"CSeq: {self._cseq}"]
        if self.session:
            lines.append(f"Session: {self.session}")
        if self._nonce:
            given = {"uri": url, "nonce": self._nonce}
            if self._algorithm != "MD5":
                given |= {"qop": "auth", "nc": "00000001", "cnonce": "abc"}
            answer = rtsp.digest(self._algorithm, "viewer", "farm", self._password, method, given)
            extra = "".join(f', {key}="{value}"' for key, value in given.items())
            algorithm = "" if self._algorithm == "MD5" else f", algorithm={self._algorithm}"
            lines.append(
                f'Authorization: Digest username="viewer", realm="farm", response="{answer}"'
                f"{extra}{algorithm}"
            )
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        assert re.search(rf"CSeq: {self._cseq}\r\n", head)
        length = re.search(r"Content-Length: (\d+)", head)
        body = (await self.reader.readexactly(int(length[1]))).decode() if length else ""
        return int(head.split(" ")[1]), head, body

    async def request(self, method: str, url: str | None = None, **headers: str) -> tuple[int, str, str]:
        """Once more with credentials after a 401."""
        status, head, body = await self.once(method, url, **headers)
        if status == 401 and not self._nonce:
            nonce = re.search(r'nonce="([^"]+)"', head)
            assert nonce is not None
            self._nonce = nonce[1]
            return await self.once(method, url, **headers)
        return status, head, body

    async def play(self, *tracks: int) -> str:
        status, head, sdp = await self.request("DESCRIBE", Accept="application/sdp")
        assert status == 200
        base = re.search(r"Content-Base: (\S+)", head)
        assert base is not None
        for number, track in enumerate(tracks or (0,)):
            transport = f"RTP/AVP/TCP;unicast;interleaved={2 * number}-{2 * number + 1}"
            status, head, _ = await self.request("SETUP", f"{base[1]}trackID={track}", Transport=transport)
            assert status == 200
            session = re.search(r"Session: (\w+)", head)
            assert session is not None
            self.session = session[1]
        assert (await self.request("PLAY"))[0] == 200
        return sdp

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(10):
            magic, channel, length = struct.unpack(">BBH", await self.reader.readexactly(4))
            assert magic == 0x24
            return channel, await self.reader.readexactly(length)

    async def packets(self, count: int) -> list[bytes]:
        out: list[bytes] = []
        while len(out) < count:
            channel, packet = await self.frame()
            if channel == 0:
                out.append(packet)
        return out


async def test_a_session_from_options_to_teardown(farm: Farm) -> None:
    async with Client(farm, "cam002/sub") as client:
        status, head, _ = await client.request("OPTIONS")
        assert status == 200
        assert "GET_PARAMETER" in head
        sdp = await client.play()
        assert "a=rtpmap:96 H264/90000" in sdp
        assert "sprop-parameter-sets=" in sdp
        packets = await client.packets(40)
        numbers = [int.from_bytes(p[2:4], "big") for p in packets]
        assert [(b - a) & 0xFFFF for a, b in itertools.pairwise(numbers)] == [1] * 39
        assert packets[0][12] & 0x1F in (h264.SPS, h264.SEI)  # playing starts with a keyframe
        stamps = sorted({int.from_bytes(p[4:8], "big") for p in packets})
        assert {b - a for a, b in itertools.pairwise(stamps)} == {3600}  # also where the clip loops
        client.writer.write(f"GET_PARAMETER {client.url} RTSP/1.0\r\nCSeq: 99\r\n\r\n".encode())
        client.writer.write(f"TEARDOWN {client.url} RTSP/1.0\r\nCSeq: 100\r\n\r\n".encode())


async def test_sender_report_comes_with_the_first_picture_and_audio_on_its_own_channels(farm: Farm) -> None:
    async with Client(farm, "cam001/sub") as client:
        assert "PCMA/8000" in await client.play(0, 1)
        seen: dict[int, list[bytes]] = {}
        while not {0, 1, 2} <= seen.keys():
            channel, packet = await client.frame()
            seen.setdefault(channel, []).append(packet)
        report = seen[1][0]
        assert report[1] == 200
        ssrc, _, _, timestamp = struct.unpack(">IIII", report[4:20])
        assert ssrc == int.from_bytes(seen[0][0][8:12], "big")
        assert timestamp == int.from_bytes(seen[0][0][4:8], "big")
        assert seen[2][0][1] == 8
        assert len(seen[2][0]) == 12 + 320


async def test_a_wrong_password_and_none_are_refused(farm: Farm) -> None:
    async with Client(farm, "cam002/sub", password="wrong") as client:
        assert (await client.request("DESCRIBE"))[0] == 401
    assert farm.counters.refused == 2
    assert farm.counters.sessions == 0


async def test_sha_256_digest_with_qop(cache: Path) -> None:
    authenticator = rtsp.Authenticator("viewer", "right", algorithms=("SHA-256",))
    farm = Farm(cameras.plan(ROWS, live=0, seconds=0.4), cache, authenticator=authenticator)
    await farm.start(port=0)
    async with Client(farm, "cam002/sub", algorithm="SHA-256") as client:
        assert (await client.request("DESCRIBE"))[0] == 200
    await farm.close()


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("DESCRIBE", "cam999/sub", {}, 404),
        ("DESCRIBE", "cam001/third", {}, 404),
        ("ANNOUNCE", "cam001/sub", {}, 405),
        ("PLAY", "cam001/sub", {}, 454),
        ("SETUP", "cam001/sub/trackID=0", {"Transport": "RTP/AVP;multicast"}, 461),
        ("SETUP", "cam002/sub/trackID=1", {"Transport": "RTP/AVP/TCP;interleaved=0-1"}, 404),
    ],
)
async def test_refusals(farm: Farm, method: str, path: str, headers: dict[str, str], status: int) -> None:
    async with Client(farm, path) as client:
        assert (await client.request(method, **headers))[0] == status


async def test_garbage_is_answered_with_400_and_the_end(farm: Farm) -> None:
    async with Client(farm, "cam001/sub") as client:
        client.writer.write(b"\x16\x03\x01 not rtsp\r\n\r\n")
        assert (await client.reader.read()).startswith(b"RTSP/1.0 400 ")


@pytest.mark.parametrize(("path", "transport"), [("cam002/main", "tcp"), ("cam003/sub", "udp")])
async def test_ffprobe_decodes_a_stream(farm: Farm, path: str, transport: str) -> None:
    url = f"rtsp://viewer:right@127.0.0.1:{farm.port}/{path}"
    words = ["-v", "error", "-rtsp_transport", transport, "-read_intervals", "%+#10", "-count_frames"]
    words += ["-show_entries", "stream=codec_name,width,height,nb_read_frames", "-of", "csv=p=0"]
    process = await asyncio.create_subprocess_exec(
        "ffprobe", *words, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    size = "1280,720" if path.endswith("main") else "640,360"
    assert out.decode().startswith(f"h264,{size},"), err.decode()


async def test_fault_cut_ends_the_session_and_refuses_new_ones(farm: Farm) -> None:
    async with Client(farm, "cam002/sub") as client:
        await client.play()
        farm.set_fault("cam002", "cut", True)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while True:
                await client.frame()
    async with Client(farm, "cam002/sub") as client:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.request("OPTIONS")
    async with Client(farm, "cam003/sub") as client:
        assert (await client.request("DESCRIBE"))[0] == 200
    farm.set_fault("cam002", "cut", False)
    async with Client(farm, "cam002/sub") as client:
        await client.play()
        assert await client.packets(3)


async def test_fault_401_refuses_the_right_password(farm: Farm) -> None:
    farm.set_fault("cam002", "401", True)
    async with Client(farm, "cam002/sub") as client:
        assert (await client.request("DESCRIBE"))[0] == 401


async def test_fault_stall_stops_media_but_not_replies(farm: Farm) -> None:
    farm.set_fault("cam002", "stall", True)
    async with Client(farm, "cam002/sub") as client:
        await client.play()
        before = farm.counters.pictures
        for _ in range(3):
            assert (await client.request("GET_PARAMETER"))[0] == 200
        assert farm.counters.pictures == before
        farm.set_fault("cam002", "stall", False)
        assert await client.packets(1)


async def test_a_reader_that_does_not_read_loses_pictures_up_to_a_keyframe(cache: Path) -> None:
    now = 0.0
    farm = Farm(cameras.plan(ROWS, live=0, seconds=0.4), cache, authenticator=None, clock=lambda: now)
    await farm.start(port=0)
    async with Client(farm, "cam002/main") as client:
        await client.play()
        (playback,) = [c.playback for c in farm.connections if c.playback is not None]
        while not farm.counters.dropped:  # the clock stands: each picture is sent by hand
            farm._advance(playback)
        assert playback.skipping
        sent = playback.packets
        packets = await client.packets(sent)
        while playback.skipping:
            farm._advance(playback)
        after = await client.packets(1)
        assert (int.from_bytes(packets[-1][2:4], "big") + 1) & 0xFFFF == int.from_bytes(after[0][2:4], "big")
        assert after[0][12] & 0x1F in (h264.SPS, h264.SEI)
    await farm.close()


@pytest.mark.parametrize("fault", ["freeze", "black", "resolution", "bframes"])
async def test_derived_clips_show_their_fault(cache: Path, fault: str) -> None:
    recipe = cameras.plan(ROWS, live=0, seconds=0.4)[1].recipe
    clip = clips.load(cache / recipe.name("sub"))
    derived = clips.derive(clip, fault)
    pictures = _decode(derived)
    if fault == "freeze":
        assert max(np.abs(p.astype(int) - pictures[0]).mean() for p in pictures) < 2
    elif fault == "black":
        assert max(p[: clip.height].mean() for p in pictures) < 20
    elif fault == "resolution":
        assert (derived.width, derived.height) == (480, 256)
        assert pictures[0].shape == (384, 480)
    else:
        assert sorted(derived.shown) != list(derived.shown)


async def test_a_fault_at_run_time_switches_a_playing_session_and_back(farm: Farm) -> None:
    async with TestClient(TestServer(cameras.control(farm))) as http, Client(farm, "cam002/sub") as client:
        sdp = await client.play()
        level = re.search(r"profile-level-id=(\w+)", sdp)
        assert level is not None
        reply = await http.post("/fault", json={"camera": "cam002", "fault": "bframes", "on": True})
        assert (await reply.json()) == {"camera": "cam002", "faults": ["bframes"]}
        while True:
            (packet,) = await client.packets(1)
            if packet[12] & 0x1F == h264.SPS and packet[13:16].hex().upper() != level[1]:
                break
        await http.post("/fault", json={"camera": "cam002", "fault": "bframes", "on": False})
        while True:
            (packet,) = await client.packets(1)
            if packet[12] & 0x1F == h264.SPS and packet[13:16].hex().upper() == level[1]:
                break
        assert (await http.post("/fault", json={"camera": "cam002", "fault": "no"})).status == 400
        assert (await http.post("/fault", json={"camera": "cam999", "fault": "cut"})).status == 400
        assert (await (await http.get("/stats")).json())["playing"] == 1


async def test_a_live_camera_carries_the_true_clock(cache: Path) -> None:
    plan = cameras.plan(ROWS, live=1, seconds=0.4)
    farm = Farm(plan, cache, authenticator=None)
    await farm.start(port=0)
    async with Client(farm, "cam001/sub") as client:
        await client.play()
        decoder: Any = av.CodecContext.create("h264", "r")
        decoder.thread_count = 1
        codes: list[int] = []
        unit: list[bytes] = []
        while len(codes) < 3:
            (packet,) = await client.packets(1)
            unit.append(packet)
            if packet[1] & 0x80:
                data = b"".join(b"\x00\x00\x00\x01" + nal for nal in _depacketize(unit))
                unit = []
                for frame in decoder.decode(av.Packet(data)):
                    code = timecode.read(frame.to_ndarray(format="yuv420p")[:360])
                    assert code is not None
                    codes.append(code)
    await farm.close()
    assert codes == sorted(codes)
    assert codes[0] > 1_700_000_000_000


def _depacketize(packets: list[bytes]) -> list[bytes]:
    """Single NAL units, FU-A and STAP-A, written anew so that it shares no bug with the packetiser."""
    nals: list[bytes] = []
    for packet in packets:
        payload = packet[12:]
        kind = payload[0] & 0x1F
        if kind == 28:
            if payload[1] & 0x80:
                nals.append(bytes([payload[0] & 0xE0 | payload[1] & 0x1F]))
            nals[-1] += payload[2:]
        elif kind == 24:
            at = 1
            while at < len(payload):
                size = int.from_bytes(payload[at : at + 2], "big")
                nals.append(payload[at + 2 : at + 2 + size])
                at += 2 + size
        else:
            nals.append(payload)
    return nals


def _decode(clip: clips.Clip) -> list[Any]:
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    frames = []
    for unit in clip.units:
        frames += decoder.decode(av.Packet(b"".join(b"\x00\x00\x00\x01" + nal for nal in unit.nal_units)))
    frames += decoder.decode(None)
    return [frame.to_ndarray(format="yuv420p") for frame in frames]


@pytest.mark.parametrize("name", [name for name, spec in faults.SOURCE_FAULTS.items() if not spec.derive])
def test_dialects_carry_the_same_pictures(cache: Path, name: str) -> None:
    recipe = cameras.plan(ROWS, live=0, seconds=0.4)[1].recipe
    clip = clips.load(cache / recipe.name("main"))
    spec = faults.SOURCE_FAULTS[name]
    unit = clip.units[0]
    packets = h264.packetize(unit.nal_units, max_payload=spec.max_payload, dialect=spec.dialect)
    nals = _depacketize([bytes(12) + packet.payload for packet in packets])
    if name == "annexb":
        nals = h264.split(b"\x00\x00\x00\x01" + b"\x00\x00\x00\x01".join(nals))
    assert sorted(nals) == sorted(unit.nal_units)
    marks = [packet.second >> 7 for packet in packets]
    assert sum(marks) == {"unmarked": 0, "marked-sets": 3}.get(name, 1)
    assert max(len(packet.payload) for packet in packets) <= spec.max_payload


def test_request_parser_byte_by_byte_and_interleaved() -> None:
    stream = (
        b"OPTIONS rtsp://h/cam001/sub/ RTSP/1.0\r\nCSeq: 1\r\n\r\n\r\n"
        b"$\x01\x00\x03abcGET_PARAMETER rtsp://h/a RTSP/1.0\r\nCSeq: 2\r\nContent-Length: 2\r\n\r\nhi"
    )
    parser = rtsp.RequestParser()
    messages = [message for byte in stream for message in parser.feed(bytes([byte]))]
    assert messages == list(rtsp.RequestParser().feed(stream))
    first, frame, second = messages
    assert isinstance(first, rtsp.Request)
    assert first.path == "cam001/sub"
    assert frame == rtsp.Interleaved(1, b"abc")
    assert isinstance(second, rtsp.Request)
    assert second.method == "GET_PARAMETER"


def test_digest_vector_of_rfc_2617() -> None:
    given = {
        "uri": "/dir/index.html",
        "nonce": "dcd98b7102dd2f0e8b11d0f600bfb0c093",
        "qop": "auth",
        "nc": "00000001",
        "cnonce": "0a4f113b",
    }
    answer = rtsp.digest("MD5", "Mufasa", "testrealm@host.com", "Circle Of Life", "GET", given)
    assert answer == "6629fae49393a05397450978507c4ef1"


def test_cached_clips_are_not_made_again(cache: Path) -> None:
    plan = cameras.plan(ROWS, live=0, seconds=0.4)
    assert clips.ensure([camera.recipe for camera in plan], cache, processes=1) == 0
