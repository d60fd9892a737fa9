"""Somebody else's broker by URL with TLS: a real mosquitto with a certificate of an authority of its own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import pwd
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.alarms.broker import password_line
from gateway.alarms.mqtt import Incoming
from gateway.config import Credential, Secrets
from gateway.data_dir import DataDir
from gateway.devices import Devices
from gateway.settings import MqttMode, MqttSettings

pytestmark = pytest.mark.broker


def authority(directory: Path, name: str) -> Path:
    """A CA `{name}-ca.pem`, and `{name}.pem` with `{name}.key` for 127.0.0.1 signed by it."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")])
    common = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )
    root = (
        common.subject_name(issuer)
        .public_key(ca_key.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        common.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")]))
        .public_key(key.public_key())
        .serial_number(2)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / f"{name}-ca.pem").write_bytes(root.public_bytes(pem))
    (directory / f"{name}.pem").write_bytes(leaf.public_bytes(pem))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    return directory / f"{name}-ca.pem"


@contextlib.asynccontextmanager
async def foreign_broker(directory: Path, port: int) -> AsyncIterator[None]:
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    (directory / "passwords").write_text(password_line("district", "secret", bytes(12)) + "\n")
    (directory / "passwords").chmod(0o600)
    (directory / "foreign.conf").write_text(
        f"user {pwd.getpwuid(os.getuid()).pw_name}\nallow_anonymous false\n"
        f"password_file {directory}/passwords\nlistener {port} 127.0.0.1\n"
        f"certfile {directory}/broker.pem\nkeyfile {directory}/broker.key\n"
    )
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(directory / "foreign.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def devices_at(
    directory: Path, port: int, ca: Path, heard: asyncio.Queue[Incoming]
) -> AsyncIterator[Devices]:
    configured = MqttSettings(
        mode=MqttMode.EXTERNAL, url=f"mqtts://127.0.0.1:{port}", credentials="broker", tls_ca=str(ca)
    )
    secrets = Secrets(credentials={"broker": Credential(username="district", password="secret")})
    with DataDir.open(directory / "data") as data:
        devices = Devices(
            configured, secrets, data, on_denied=lambda client, topic: None, health=lambda: (True, 0.0)
        )
        await devices.start()

        async def hear(message: Incoming) -> None:
            await heard.put(message)

        task = asyncio.create_task(devices.run({"stb/+/press": hear}))
        try:
            yield devices
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await devices.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_foreign_broker_with_tls_carries_presses_and_acks(tmp_path: Path) -> None:
    ca, port = authority(tmp_path, "broker"), free_port()
    heard: asyncio.Queue[Incoming] = asyncio.Queue()
    async with foreign_broker(tmp_path, port), devices_at(tmp_path, port, ca, heard) as devices:
        assert devices.broker is None
        assert devices.address is None  # no pipe of pages into a broker that wants TLS
        async with asyncio.timeout(15):
            while not devices.is_up:
                await asyncio.sleep(0.02)
            login = (
                "-h",
                "127.0.0.1",
                "-p",
                str(port),
                "--cafile",
                str(ca),
                "-u",
                "district",
                "-P",
                "secret",
            )
            listener = await asyncio.create_subprocess_exec(
                "mosquitto_sub", *login, "-i", "box", "-t", "pd/v1/stb/box1/ack", "-C", "1",
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            process = await asyncio.create_subprocess_exec(
                "mosquitto_pub",
                *login,
                "-i",
                "other",
                "-q",
                "1",
                "-t",
                "pd/v1/stb/box1/press",
                "-m",
                "pressed",
            )
            assert await process.wait() == 0
            message = await heard.get()
            assert (message.device, message.payload) == ("box1", b"pressed")
            told = asyncio.create_task(listener.communicate())
            # Larger than a TLS record: what is decrypted already must not wait for the next byte on the wire.
            ack = b"x" * 40_000
            while not told.done():
                await devices.publish_all([("pd/v1/stb/box1/ack", ack, 1, False)])
                await asyncio.wait([told], timeout=0.05)
            assert told.result()[0].strip() == ack


async def test_a_foreign_broker_of_another_authority_is_not_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority(tmp_path, "broker")
    other, port = authority(tmp_path, "other"), free_port()
    heard: asyncio.Queue[Incoming] = asyncio.Queue()
    async with foreign_broker(tmp_path, port), devices_at(tmp_path, port, other, heard) as devices:
        async with asyncio.timeout(15):
            while "can't be reached" not in caplog.text:
                await asyncio.sleep(0.02)
        assert not devices.is_up
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
