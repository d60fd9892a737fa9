"""Safe by default: what a first start makes and binds, whom CORS and WebSockets let in, how often one may knock."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from running_gateway import Bench, running_gateway, serving
from yarl import URL

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from webrtc_clients import WhepClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.broker]
FRIEND = "https://portal.example"
THREE_LINES = 'cameras:\n  - {id: gate, main: "rtsp://127.0.0.1:9/x"}\n'
FREE_PORTS = "http: {port: 0}\nmedia: {udp_port: 0}\nmqtt: {port: 0}\n"
ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    settings = {
        "http": {"allowed_origins": [FRIEND]},
        "access": {"joins_per_s": 0.5, "joins_worker": 3},
    }
    async with running_gateway(tmp_path_factory.mktemp("door"), settings=settings) as running:
        yield running


# -- the first start ------------------------------------------------------------------------------------------------


def files(folder: Path, gateway: str) -> None:
    (folder / "cameras.yaml").write_text(THREE_LINES)
    (folder / "gateway.yaml").write_text(gateway)


def bound(pid: int) -> set[str]:
    """Addresses, without ports, on which this process listens (TCP) or receives (UDP)."""
    inodes = set()
    for name in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(name)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] == state:
                packed = bytes.fromhex(fields[1].partition(":")[0])
                words = [packed[at : at + 4][::-1] for at in range(0, len(packed), 4)]
                family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


async def test_a_first_start_makes_private_secrets_and_stays_on_this_machine(tmp_path: Path) -> None:
    files(tmp_path, FREE_PORTS)
    old = os.umask(0o022)  # the usual one, under which a file is for everybody unless said otherwise
    try:
        async with serving(tmp_path, "--workers", "2") as (process, base):
            assert base.startswith("http://127.0.0.1:")
            data = tmp_path / "var"
            made = {path.relative_to(data): stat.S_IMODE(path.stat().st_mode) for path in data.rglob("*")}
            assert stat.S_IMODE(data.stat().st_mode) == 0o700
            secrets = {Path("signing.key"), Path("broker.key"), Path("broker/passwords")}
            assert secrets <= set(made)
            for path, mode in made.items():
                assert mode & 0o077 == 0, f"{path}: {mode:o}"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) >= 3  # the broker and two workers
            for pid in (process.pid, *map(int, children)):
                assert bound(pid) <= {"127.0.0.1"}
            assert bound(process.pid)
    finally:
        os.umask(old)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("http: {host: 0.0.0.0, port: 0}", "http.host: beyond this machine needs tls_cert and tls_key"),
        ("mqtt: {host: '::', port: 0}", "mqtt.host: this listener has no TLS"),
        ("mqtt: {tls_host: 0.0.0.0, tls_cert: gateway.yaml}", "mqtt.tls_cert: tls_cert and tls_key stand together"),
        ("http: {tls_cert: gateway.yaml, tls_key: cameras.yaml}", "http.tls_cert: "),
    ],
)  # fmt: skip
async def test_beyond_this_machine_it_does_not_start_without_tls_or_a_word(
    tmp_path: Path, settings: str, why: str
) -> None:
    files(tmp_path, settings)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--cameras", f"{tmp_path}/cameras.yaml", "--data", f"{tmp_path}/var",
        cwd=ROOT, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert why in said.decode()
    assert b"Traceback" not in said


async def test_with_the_word_it_serves_everybody(tmp_path: Path) -> None:
    files(
        tmp_path, FREE_PORTS.replace("{port: 0}\nmedia", "{port: 0, host: 0.0.0.0, allow_plain: true}\nmedia")
    )
    async with serving(tmp_path, "--workers", "1") as (process, _):
        assert "0.0.0.0" in bound(process.pid)


# -- other origins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/events", "/mqtt"])
async def test_a_page_of_an_allowed_origin_gets_its_websocket(bench: Bench, path: str) -> None:
    who = {**bench.bearer("worker", "wa"), "Origin": FRIEND}
    async with bench.client.ws_connect(path, headers=who, protocols=("mqtt",)) as socket:
        assert not socket.closed
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        foreign = {**who, "Origin": "https://evil.example"}
        await bench.client.ws_connect(path, headers=foreign, protocols=("mqtt",))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("OPTIONS", "/whep/a1-none"),
        ("POST", "/whep/a1-none"),
        ("OPTIONS", "/whep/sessions/x"),
        ("DELETE", "/whep/sessions/x"),
        ("GET", "/whip/sessions/x"),
    ],
)
async def test_cors_names_only_allowed_origins(bench: Bench, method: str, path: str) -> None:
    own = bench.gateway.base_url
    for origin, told in ((FRIEND, FRIEND), (own, own), ("https://evil.example", None), ("null", None)):
        async with bench.client.request(method, path, headers={"Origin": origin}) as answer:
            assert answer.headers.get("Access-Control-Allow-Origin") == told
            assert "Origin" in answer.headers["Vary"]
    async with bench.client.request("GET", "/api/v1/cameras", headers={"Origin": FRIEND}) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers  # media answers only


async def test_without_a_list_any_origin_may_read_media_answers(tmp_path: Path) -> None:
    """RFC 9725 wants CORS; no cookie travels with `*`, so only a bearer token counts."""
    async with running_gateway(tmp_path, settings={"mqtt": {"mode": "off"}}) as open_bench:
        headers = {"Origin": "https://any.example"}
        async with open_bench.client.options("/whep/a1-none", headers=headers) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("name", ["%00", "a" * 400, "..%2f..%2fetc%2fpasswd", "%0aforged"])
async def test_a_file_that_can_not_be_is_not_found(bench: Bench, name: str) -> None:
    """From strangers, so it must not count as a mistake of ours."""
    async with bench.client.get(URL(f"{bench.gateway.base_url}/static/{name}", encoded=True)) as answer:
        assert answer.status == 404


async def test_logging_in_is_for_own_pages_only(bench: Bench) -> None:
    for origin in (FRIEND, "https://evil.example"):
        status, _ = await bench.call(
            "POST", "/api/v1/session", json={"code": "x"}, headers={"Origin": origin}
        )
        assert status == 403


# -- joins ----------------------------------------------------------------------------------------------------------


async def test_joins_a_second_are_limited_by_principal(bench: Bench) -> None:
    """Its cameras are down, so no session comes of any: only the asking is counted."""
    client = WhepClient(video=True, audio=False)
    offer = await client.offer()
    await client.close()

    async def join(who: dict[str, str]) -> tuple[int, str | None]:
        headers = {**who, "Content-Type": "application/sdp"}
        async with bench.client.post("/whep/a1-none", data=offer, headers=headers) as answer:
            return answer.status, answer.headers.get("Retry-After")

    worker = bench.bearer("worker", "wa")
    answers = await asyncio.gather(*(join(worker) for _ in range(12)))
    assert sorted(status for status, _ in answers) == [409] * 3 + [429] * 9
    assert {retry for status, retry in answers if status == 429} == {"2"}
    assert (await join(bench.bearer("operator", "op")))[0] == 409  # others are unaffected
