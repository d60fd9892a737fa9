"""`gateway doctor` on machines and configurations that are well and that are not: what it finds and what it says to do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from running_gateway import running_gateway, write_files

from gateway.cli import taken_ports
from gateway.config import Files
from gateway.doctor import Finding, Level, examine

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from rtsp_farm import Farm

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[2]
NOW = datetime.datetime.now(datetime.UTC)


async def findings(folder: Path, now: datetime.datetime = NOW) -> dict[str, list[Finding]]:
    files = Files.beside(folder / "cameras.yaml")
    data = folder / "var"
    found = await asyncio.to_thread(lambda: list(examine(files, data, taken_ports=taken_ports, now=now)))
    by_what: dict[str, list[Finding]] = {}
    for one in found:
        by_what.setdefault(one.what, []).append(one)
    return by_what


def levels(found: dict[str, list[Finding]], what: str) -> set[Level]:
    return {one.level for one in found[what]}


def three_lines(folder: Path, url: str, more: str = "") -> None:
    (folder / "cameras.yaml").write_text(f"cameras:\n  - {{id: gate, main: '{url}'}}\n{more}")
    (folder / "gateway.yaml").write_text("http: {port: 0}\nmedia: {udp_port: 0}\nmqtt: {port: 0}\n")


async def test_a_machine_before_its_first_start(tmp_path: Path) -> None:
    async with Farm() as farm:
        three_lines(tmp_path, farm.url)
        found = await findings(tmp_path)
    for what in ("configuration", "data", "database", "ports", "GSO", "broker", "cameras"):
        assert levels(found, what) == {Level.OK}, found[what]
    assert "clock" in found
    assert not [one for some in found.values() for one in some if one.level is not Level.OK and not one.todo]


async def test_beside_a_running_gateway_it_asks_that_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with running_gateway(
        tmp_path, settings={"http": {"port": port}, "storage": {"reserve_bytes": 1 << 40}}
    ):
        found = await findings(tmp_path)
    assert "ports" not in found
    assert levels(found, "database") == {Level.OK}
    assert levels(found, "disk") == {Level.FAIL}
    [said] = found["gateway"]
    assert said.level is Level.WARN
    assert "says: disk:" in said.found
    [silent] = found["cameras"]
    assert silent.level is Level.WARN
    assert silent.found.startswith("8 of 8 don't answer: a1-none: ")
    assert silent.found.endswith("and 3 more")


async def test_a_taken_port_a_damaged_database_and_open_secrets(tmp_path: Path) -> None:
    write_files(tmp_path, live_url="rtsp://127.0.0.1:9/x")
    data = tmp_path / "var"
    data.mkdir()
    (data / "signing.key").write_text("00" * 32)
    data.chmod(0o755)  # whatever the umask
    (data / "signing.key").chmod(0o644)
    with sqlite3.connect(data / "gateway.db") as raw:
        raw.execute("CREATE TABLE alembic_version (version_num)")
        raw.execute("INSERT INTO alembic_version VALUES ('a9999')")
    raw.close()
    (data / "gateway.db").chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        (tmp_path / "gateway.yaml").write_text(
            f"http: {{port: {port}}}\nmedia: {{udp_port: 0}}\nmqtt: {{port: 0}}\n"
        )
        found = await findings(tmp_path)
    [taken] = found["ports"]
    assert taken.level is Level.FAIL
    assert f"port {port} on 127.0.0.1 is taken" in taken.found
    todos = {one.todo for one in found["data"] if one.level is Level.FAIL}
    assert {f"chmod 700 {data}", f"chmod 600 {data}/signing.key"} <= todos
    [newer] = found["database"]
    assert (newer.level, "a9999" in newer.found) == (Level.FAIL, True)
    (data / "gateway.db").write_bytes(b"SQLite format 3\0" + os.urandom(8192))
    [damaged] = (await findings(tmp_path))["database"]
    assert (damaged.level, "damaged" in damaged.found) == (Level.FAIL, True)


async def test_certificates_that_end(tmp_path: Path) -> None:
    three_lines(tmp_path, "rtsp://127.0.0.1:9/x")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(days=60))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (tmp_path / "c.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "k.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    settings = "http: {port: 0, tls_cert: c.pem, tls_key: k.pem}\nmedia: {udp_port: 0}\nmqtt: {port: 0}\n"
    (tmp_path / "gateway.yaml").write_text(settings)
    for days, level in ((0, Level.OK), (31, Level.WARN), (61, Level.FAIL)):
        found = await findings(tmp_path, NOW + datetime.timedelta(days=days))
        assert levels(found, "certificates") == {level}, days


async def not_a_camera(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_the_others_that_do_not_answer(tmp_path: Path) -> None:
    async with await asyncio.start_server(not_a_camera, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        three_lines(tmp_path, f"rtsp://127.0.0.1:{port}/x")
        (tmp_path / "gateway.yaml").write_text(
            "http: {port: 0}\nmedia: {udp_port: 0}\nmqtt: {mode: external, url: 'mqtt://127.0.0.1:9'}\n"
        )
        found = await findings(tmp_path)
    assert "something answers, but not in RTSP" in found["cameras"][0].found
    [broker] = found["broker"]
    assert (broker.level, broker.found) == (Level.FAIL, "no answer at 127.0.0.1:9: Connection refused")


def test_the_command_says_what_to_do_and_its_exit_code_tells(tmp_path: Path) -> None:
    three_lines(tmp_path, "rtsp://127.0.0.1:9/x")
    script = "import resource, sys; from gateway.cli import main; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 4096)); sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        script,
        "doctor",
        "--cameras",
        f"{tmp_path}/cameras.yaml",
        "--data",
        f"{tmp_path}/var",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # warnings only
    assert "WARN limits: 512 file descriptors for 1 cameras\n     -> LimitNOFILE=65536" in done.stdout
    assert "WARN cameras: 1 of 1 don't answer: gate: Connect call failed" in done.stdout
    (tmp_path / "cameras.yaml").write_text("cameras: [{id: gate, main: 'http://x'}]")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL configuration: ")
    assert done.stdout.endswith("something must be done\n")
