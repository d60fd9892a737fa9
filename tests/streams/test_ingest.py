"""One pull against real sockets: a small RTSP server of the test's own with every fault, and GStreamer's RTSP server."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import ipaddress
import itertools
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.streams.backlog import Backlog
from gateway.streams.h264 import Depacketizer
from gateway.streams.ingest import Pull, PullFailed, PullSpec
from gateway.streams.media import AccessUnit, AudioFrame, Codec
from gateway.streams.rtsp import Remedy

sys.path.insert(0, str(Path(__file__).parent))
from rtsp_farm import Farm

GSTREAMER = """
import gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
server = GstRtspServer.RTSPServer(); server.set_service("0"); server.set_address("127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=25/1 "
    "! x264enc tune=zerolatency key-int-max=10 bitrate=300 ! rtph264pay name=pay0 pt=96 "
    "audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


class Collected:
    def __init__(self) -> None:
        self.units: list[AccessUnit] = []
        self.audio: list[AudioFrame] = []
        self.came = asyncio.Event()

    def unit(self, unit: AccessUnit) -> None:
        self.units.append(unit)
        self.came.set()

    async def at_least(self, units: int, audio: int = 0) -> None:
        async with asyncio.timeout(15):
            while len(self.units) < units or len(self.audio) < audio:
                self.came.clear()
                await self.came.wait()


def pull_of(
    spec: PullSpec, *, watched: bool = True, thread: ThreadPoolExecutor | None = None
) -> tuple[Pull, Collected]:
    collected = Collected()

    def audio(frame: AudioFrame) -> None:
        collected.audio.append(frame)
        collected.came.set()

    pull = Pull(
        spec, on_unit=collected.unit, on_audio=audio, listening=lambda: pull.watched, audio_thread=thread
    )
    pull.watch(watched)
    return pull, collected


@contextlib.asynccontextmanager
async def running(pull: Pull) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(pull.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, PullFailed):
            await task


async def failure(pull: Pull) -> PullFailed:
    with pytest.raises(PullFailed) as caught:
        async with asyncio.timeout(15):
            await pull.run()
    return caught.value


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("algorithm", [None, "MD5", "SHA-256", "Basic"])
async def test_pictures_and_teardown(transport: str, algorithm: str | None) -> None:
    """Complaints about the peers, item 4: digest variants; TEARDOWN on every exit leaves no session behind."""
    async with Farm(algorithm=algorithm) as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport=transport, username="u", password="p"))
        async with running(pull):
            await collected.at_least(12, audio=3)
            assert pull.depacketizer is not None
            assert pull.depacketizer.lost_packets == 0
        assert collected.units[0].keyframe
        assert [len(unit.nal_units) for unit in collected.units[:2]] == [3, 1]
        stamps = [unit.timestamp for unit in collected.units]
        assert stamps == sorted(stamps)
        assert {frame.codec for frame in collected.audio} == {Codec.PCMA}
        assert [frame.payload for frame in collected.audio[:2]] == [b"", b"\xd5" * 160]
        await farm.saw("TEARDOWN")


async def test_unwatched_it_is_swept_and_builds_keyframes_only() -> None:
    async with Farm() as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport="tcp"), watched=False)
        async with running(pull):
            await collected.at_least(15)
            assert (len(pull.sweep), pull.sweep.urgent) == (1, 0)
            assert all(unit.keyframe for unit in collected.units)
            assert len(collected.audio) == 1, "to tell the codec"
            assert pull.depacketizer is not None
            assert pull.depacketizer.units > 100
            assert pull.kbps > 10
            pull.watch(True)
            assert (len(pull.sweep), pull.sweep.urgent) == (1, 1)
            assert len(collected.units) == pull.depacketizer.units - 9 * (pull.depacketizer.keyframes - 1)
            at_once = len(collected.units)
            await collected.at_least(at_once + 30, audio=20)
            stamps = [unit.timestamp for unit in collected.units[at_once - 1 :]]
            assert {later - earlier for earlier, later in itertools.pairwise(stamps)} == {1800}
            pull.watch(False)
            await collected.at_least(len(collected.units) + 12)
            assert collected.units[-1].keyframe
            assert pull.depacketizer.lost_packets == 0
        await farm.saw("TEARDOWN")
        assert len(pull.sweep) == 0


@pytest.mark.parametrize(
    ("fault", "reason"), [("drop_later", "connection closed by camera"), ("stall_later", "no data for 3 s")]
)
async def test_the_end_of_a_swept_connection_is_noticed(fault: str, reason: str) -> None:
    """Complaints about the peers, item 3."""
    async with Farm() as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport="tcp", data_timeout_s=3.0), watched=False)
        async with running(pull) as task:
            await collected.at_least(15)
            assert len(pull.sweep) == 1
            farm.fault = fault
            with pytest.raises(PullFailed) as caught:
                async with asyncio.timeout(15):
                    await task
        assert caught.value.reason == reason
        assert len(pull.sweep) == 0


async def test_reordered_datagrams_are_put_in_order() -> None:
    async with Farm(fault="reorder") as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport="udp"))
        async with running(pull):
            await collected.at_least(20)
            assert pull.depacketizer is not None
            assert pull.depacketizer.lost_packets == 0


async def test_receiver_reports_reach_the_camera_for_both_tracks() -> None:
    async with Farm() as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport="tcp"))
        async with running(pull):
            await collected.at_least(1)
            async with asyncio.timeout(15):
                while not farm.reports or not farm.audio_reports:
                    await asyncio.sleep(0.05)
    for report, ssrc in ((farm.reports[0], farm.ssrc), (farm.audio_reports[0], farm.ssrc + 1)):
        assert report[1] == 201
        assert struct.unpack("!I", report[8:12])[0] == ssrc
        assert report[12:16] == bytes(4), "nothing was lost"


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_ipv6(transport: str) -> None:
    async with Farm(host="::1") as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport=transport))
        async with running(pull):
            await collected.at_least(12, audio=3)


def self_signed(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(the camera's, ours that trusts it)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "camera")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = folder / "camera.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    camera = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    camera.load_cert_chain(pem)
    return camera, ssl.create_default_context(cafile=str(pem))


async def test_rtsps_with_a_certificate_that_is_trusted_and_one_that_is_not(tmp_path: Path) -> None:
    camera, ours = self_signed(tmp_path)
    async with Farm(tls=camera, algorithm="MD5") as farm:
        assert farm.url.startswith("rtsps://")
        pull, collected = pull_of(PullSpec(url=farm.url, username="u", password="p", tls=ours), watched=False)
        async with running(pull):
            await collected.at_least(3)
            assert len(pull.sweep) == 0, "TLS is not swept"
            pull.watch(True)
            await collected.at_least(len(collected.units) + 12, audio=3)
        failed = await failure(pull_of(PullSpec(url=farm.url))[0])
        assert failed.reason == "TLS: certificate verify failed"


async def test_aac_arrives_as_opus() -> None:
    """Complaints about the peers, item 6."""
    encoder = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "mono", "fltp"
    payloads = []
    for number in range(60):
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.planes[0].update(struct.pack("<1024f", *([0.2, -0.2] * 512)))
        frame.sample_rate, frame.pts = 48_000, number * 1024
        payloads += [bytes(packet) for packet in encoder.encode(frame)]
    lines = (
        "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/48000/1\r\na=fmtp:97 mode=AAC-hbr; sizelength=13; "
        f"indexlength=3; indexdeltalength=3; config={bytes(encoder.extradata or b'').hex()}\r\n"
    )
    framed = [b"\x00\x10" + (len(unit) << 3).to_bytes(2, "big") + unit for unit in payloads]
    async with Farm(audio=(lines, framed, 1024)) as farm:
        with ThreadPoolExecutor(max_workers=1) as thread:
            pull, collected = pull_of(PullSpec(url=farm.url), thread=thread)
            async with running(pull):
                await collected.at_least(1, audio=30)
        assert {frame.codec for frame in collected.audio} == {Codec.OPUS}
        stamps = [frame.timestamp for frame in collected.audio[1:]]
        assert {after - before for before, after in itertools.pairwise(stamps)} == {960}
        pull, collected = pull_of(PullSpec(url=farm.url))
        async with running(pull):
            await collected.at_least(12)
            assert pull.ignored_audio == ("MPEG4-GENERIC",)
            assert collected.audio == []


@pytest.mark.parametrize(
    ("fault", "reason", "remedy"),
    [
        ("401", "401 unauthorised", Remedy.LONG_PAUSE),
        ("404", "404 not found", Remedy.LONG_PAUSE),
        ("h265", "codec H265 not supported", Remedy.OTHER_STREAM),
        ("drop", "connection closed by camera", Remedy.PAUSE),
        ("stall", "no data for 3 s", Remedy.PAUSE),
        ("no_keyframe", "no decodable picture for 3 s", Remedy.PAUSE),
        ("garbage", "garbage instead of RTSP", Remedy.PAUSE),
        ("b_frames", "B-frames not supported", Remedy.OTHER_STREAM),
        ("redirect_loop", "too many redirects or refusals", Remedy.PAUSE),
    ],
)
async def test_faults_have_their_reason(fault: str, reason: str, remedy: Remedy) -> None:
    async with Farm(fault=fault, algorithm="MD5") as farm:
        pull, _ = pull_of(
            PullSpec(url=farm.url, transport="tcp", username="u", password="p", data_timeout_s=3.0)
        )
        failed = await failure(pull)
        assert (failed.reason, failed.remedy) == (reason, remedy)
        if fault == "401":
            assert farm.authorizations == 1  # never lock the account


async def test_silence_is_told_by_the_last_byte_and_not_by_a_counter() -> None:
    """A counter that was set anew a moment ago knows of nothing that came, though the camera sends all the time."""
    async with Farm(fault="no_keyframe") as farm:
        pull, _ = pull_of(PullSpec(url=farm.url, transport="tcp"))
        task = asyncio.create_task(pull.run())
        async with asyncio.timeout(15):
            while pull.received_bytes < 4000:
                await asyncio.sleep(0.02)
        connection = pull._connection
        assert connection is not None
        now = time.monotonic()
        connection._counted = (now, connection.received, 0)
        connection._playing_since = now - 60
        connection._check_pictures(now)
        await asyncio.wait([task], timeout=15)
        assert str(task.exception()) == "no decodable picture for 10 s"


async def test_a_pull_that_ended_is_gone_without_the_collector() -> None:
    """A camera that fails again and again would pile up its group of pictures until the collector comes round."""
    async with Farm(fault="drop") as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport="tcp"), watched=False)
        gc.collect()
        gc.disable()
        try:
            task = asyncio.create_task(pull.run())
            await collected.at_least(1)
            parts = (type(pull._connection), Depacketizer, Backlog)
            assert set(alive(*parts)) == {part.__name__ for part in parts}
            await asyncio.wait([task], timeout=15)
            assert isinstance(task.exception(), PullFailed)
            del task
            async with asyncio.timeout(15):
                while alive(*parts):
                    await asyncio.sleep(0.02)
        finally:
            gc.enable()


def alive(*types: type) -> list[str]:
    return [type(one).__name__ for one in gc.get_objects() if isinstance(one, types)]


async def test_nobody_there() -> None:
    async with Farm() as farm:
        url = farm.url
    assert (await failure(pull_of(PullSpec(url=url))[0])).reason == "connection refused"
    assert (await failure(pull_of(PullSpec(url="http://127.0.0.1/"))[0])).reason == "bad URL"


async def test_461_leads_to_udp() -> None:
    async with Farm(fault="udp_only") as farm:
        pull, collected = pull_of(PullSpec(url=farm.url, transport="auto"))
        async with running(pull):
            await collected.at_least(3)
        assert any("client_port" in line for line in farm.transports)


async def test_redirect_is_followed() -> None:
    async with Farm() as target, Farm(fault="redirect", location=target.url) as farm:
        pull, collected = pull_of(PullSpec(url=farm.url))
        async with running(pull):
            await collected.at_least(3)


async def test_a_peer_that_accepts_and_says_nothing_is_given_up() -> None:
    async with Farm(fault="mute") as farm:
        failed = await failure(pull_of(PullSpec(url=farm.url))[0])
    assert failed.reason == "no answer to OPTIONS"


async def test_gstreamer_server() -> None:
    """An independent server, TCP and UDP, with audio."""
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if await asyncio.to_thread(subprocess.call, ["/usr/bin/python3", "-c", probe], stderr=subprocess.DEVNULL):
        pytest.skip("GStreamer's RTSP server is not installed")
    server = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-c", GSTREAMER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        async with asyncio.timeout(20):
            port = int(await server.stdout.readline())
        for transport in ("tcp", "udp"):
            pull, collected = pull_of(PullSpec(url=f"rtsp://127.0.0.1:{port}/live", transport=transport))
            async with running(pull):
                await collected.at_least(15, audio=5)
                assert pull.depacketizer is not None
                assert pull.depacketizer.sps is not None
                assert (pull.depacketizer.sps.width, pull.depacketizer.sps.height) == (320, 240)
                assert pull.depacketizer.lost_packets == 0
                assert not pull.depacketizer.faults
    finally:
        server.terminate()
        await server.wait()
