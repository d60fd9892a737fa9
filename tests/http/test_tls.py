"""TLS on real sockets: HTTP and its WebSocket, the broker's second listener, and a camera that speaks RTSPS."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from running_gateway import KEY, PASSWORD, Bench, running_gateway, sign

from gateway.certificates import certificate_problems, certificates
from gateway.identity import device_password
from gateway.settings import HttpSettings, IngestSettings, MqttSettings, Settings

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from rtsp_farm import Farm
from webrtc_clients import WhepClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.broker]
ROOT = Path(__file__).parents[2]


@dataclass
class Secured:
    bench: Bench
    folder: Path
    trusting: ssl.SSLContext


def make_certificates(folder: Path) -> None:
    """ca.crt, server.crt and server.key for 127.0.0.1, as `make demo LAN=1` makes them."""
    command = [sys.executable, "scripts/lan_ca.py", "--out", str(folder), "--address", "127.0.0.1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    pair = {"tls_cert": "server.crt", "tls_key": "server.key"}
    camera = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    camera.load_cert_chain(folder / "server.crt", folder / "server.key")
    settings = {
        "http": {**pair, "tls_ca": "ca.crt"},
        "mqtt": {**pair, "tls_port": 0},
        "ingest": {"tls_ca": "ca.crt"},
    }
    trusting = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    async with (
        Farm(tls=camera) as farm,
        running_gateway(folder, live_url=farm.url, settings=settings, trusting=trusting) as bench,
    ):
        yield Secured(bench, folder, trusting)


async def test_http_and_its_channel_over_tls(secured: Secured) -> None:
    bench = secured.bench
    assert bench.gateway.base_url.startswith("https://")
    async with bench.client.post("/api/v1/session", json={"sub": "op", "password": PASSWORD}) as answer:
        assert answer.status == 200
        cookie = answer.headers["Set-Cookie"]
        assert {"Secure", "HttpOnly", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    bench.client.cookie_jar.clear()
    who = bench.bearer("operator", "op")
    async with bench.client.ws_connect("/api/v1/events", headers=who) as socket:
        assert (await socket.receive_json())["type"] == "hello"
    async with bench.client.get("/ca.crt") as answer:
        assert await answer.read() == (secured.folder / "ca.crt").read_bytes()


async def test_http_refuses_the_untrusting_the_old_and_the_plain(secured: Secured) -> None:
    url = secured.bench.gateway.base_url
    async with aiohttp.ClientSession() as stranger:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stranger.get(f"{url}/healthz")
        with pytest.raises(aiohttp.ClientError):
            await stranger.get(f"{url.replace('https', 'http')}/healthz")
        old = ssl.create_default_context(cafile=str(secured.folder / "ca.crt"))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(aiohttp.ClientConnectorError):
            await stranger.get(f"{url}/healthz", ssl=old)


async def publish(secured: Secured, *more: str) -> tuple[int, str]:
    """A press by mosquitto_pub to the TLS listener; exit code and what it said."""
    broker = secured.bench.gateway.devices.broker
    assert broker is not None
    assert broker.tls_address is not None
    host, port = broker.tls_address
    text = "press|box-a1|tls1|1|1700000000000|help||0"
    press = {"v": 1, "pid": "tls1", "seq": 1, "ts": 1_700_000_000_000, "kind": "help", "sig": sign(KEY, text)}
    process = await asyncio.create_subprocess_exec(
        "mosquitto_pub", "-h", host, "-p", str(port), "-u", "box-a1", "-i", "box-a1", "-q", "1",
        "-P", device_password(bytes.fromhex(KEY), "box-a1"),
        "-t", "pd/v1/stb/box-a1/press", "-m", json.dumps(press), *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(20):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_press_over_mqtt_with_tls(secured: Secured) -> None:
    ca = str(secured.folder / "ca.crt")
    assert (await publish(secured))[0] != 0  # plain, to a listener that speaks TLS only
    other = secured.folder / "other"
    await asyncio.to_thread(make_certificates, other)
    code, said = await publish(secured, "--cafile", str(other / "ca.crt"))
    assert code != 0, said
    code, said = await publish(secured, "--cafile", ca)
    assert (code, said) == (0, "")
    operator = secured.bench.bearer("operator", "op")
    async with asyncio.timeout(10):
        while not (await secured.bench.call("GET", "/api/v1/alarms", operator))[1]["alarms"]:
            await asyncio.sleep(0.02)
    [alarm] = (await secured.bench.call("GET", "/api/v1/alarms", operator))[1]["alarms"]
    assert (alarm["press_id"], alarm["verified"]) == ("tls1", True)


async def test_a_camera_over_rtsps_is_checked_against_the_configured_authority(secured: Secured) -> None:
    bench, client = secured.bench, WhepClient(video=True, audio=False)
    try:
        headers = {**bench.bearer("operator", "op"), "Content-Type": "application/sdp"}
        offer = await client.offer()
        async with bench.client.post("/whep/a1-community", data=offer, headers=headers) as answer:
            assert answer.status == 201, await answer.text()
        state = bench.gateway.media.state("a1-community")
        assert (state.state.value, state.reason) == ("live", "")
    finally:
        await client.close()


async def test_certificates_that_cannot_be_used_are_told_in_words(tmp_path: Path) -> None:
    await asyncio.to_thread(make_certificates, tmp_path)
    await asyncio.to_thread(make_certificates, tmp_path / "other")
    good, key = str(tmp_path / "server.crt"), str(tmp_path / "server.key")
    stranger = str(tmp_path / "other" / "server.key")
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    fine = Settings(http=HttpSettings(tls_cert=good, tls_key=key), ingest=IngestSettings(tls_ca=good))
    assert certificate_problems(fine) == []
    assert [one.setting for one in certificates(fine)] == ["http.tls_cert", "ingest.tls_ca"]
    wrong = Settings(
        http=HttpSettings(tls_cert=good, tls_key=stranger),
        mqtt=MqttSettings(tls_cert=str(junk), tls_key=key),
        ingest=IngestSettings(tls_ca=str(tmp_path / "missing.pem")),
    )
    mismatch, nonsense, missing = certificate_problems(wrong)
    assert mismatch == f"http.tls_cert: the key {stranger} does not belong to the certificate {good}"
    assert nonsense.startswith(f"mqtt.tls_cert: {junk} and {key} are no PEM certificate")
    assert missing == f"ingest.tls_ca: {tmp_path}/missing.pem can't be read: No such file or directory"
    assert certificates(wrong) == []
