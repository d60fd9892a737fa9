"""The console script, as its user meets it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.access import Role
from gateway.cli import SIGNING_KEY, main, taken_ports
from gateway.data_dir import DataDir, DataDirBusy
from gateway.errors import GatewayError
from gateway.identity import Keyring, TokenKind
from gateway.settings import HttpSettings, MediaSettings, MqttMode, MqttSettings, Settings


@pytest.fixture
def cameras(tmp_path: Path) -> Path:
    path = tmp_path / "cameras.yaml"
    path.write_text("cameras:\n- {id: a, main: 'rtsp://x/1'}\n")
    return path


def test_check_says_what_is_there(cameras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--cameras", str(cameras)]) == 0
    assert capsys.readouterr().out == "1 cameras, 0 areas, 0 boxes: no mistakes\n"


def test_check_names_every_mistake_of_every_file(cameras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cameras.write_text("cameras:\n- {id: a, man: 'rtsp://x/1'}\n")
    (cameras.parent / "gateway.yaml").write_text("htp: {}\n")
    assert main(["check", "--cameras", str(cameras)]) == 1
    text = capsys.readouterr().err
    assert f"{cameras}:2: cameras[0].man: is no known key; did you mean main?" in text
    assert f"{cameras}:2: cameras[0].main: is missing" in text
    assert f"{cameras.parent / 'gateway.yaml'}:1: htp: is no known key; did you mean http?" in text
    assert "3 mistakes" in text


def test_token_and_link_are_good_with_the_data_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "var"
    who = ["--role", "desk", "--sub", "d1", "--area", "510117001", "--data", str(data)]
    assert main(["token", *who, "--supervisor", "--ttl", "60"]) == 0
    keyring = Keyring(DataDir.open(data, lock=False).secret(SIGNING_KEY))
    token = keyring.verify(capsys.readouterr().out.strip(), now_s=time.time())
    assert (token.kind, token.expires_at_s - token.issued_at_s) == (TokenKind.ACCESS, 60)
    assert (token.principal.role, token.principal.sub, token.principal.area) == (Role.DESK, "d1", "510117001")
    assert token.principal.supervisor
    assert main(["link", "--page", "desk", *who, "--base", "http://192.0.2.1:8080/"]) == 0
    page, code = capsys.readouterr().out.strip().split("#code=")
    assert page == "http://192.0.2.1:8080/desk"
    kinds = frozenset({TokenKind.CODE})
    assert keyring.verify(code, now_s=time.time(), kinds=kinds).principal.sub == "d1"
    assert main(["link", "--page", "stb", *who]) == 1
    assert "role desk has no page stb" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["token", "--role", "king", "--sub", "x"], ["token", "--role", "stb", "--sub", ""]]
)
def test_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_as_a_module(cameras: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--cameras", str(cameras)],
        timeout=20,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_second_gateway_is_told_who_holds_the_data(
    cameras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "var"
    with DataDir.open(data):
        with pytest.raises(DataDirBusy) as busy:
            DataDir.open(data)
        assert busy.value.pid == os.getpid()
        assert main(["serve", "--cameras", str(cameras), "--data", str(data)]) == 1
        assert f"in use by the gateway with pid {os.getpid()}" in capsys.readouterr().err
    DataDir.open(data).close()
    assert (data.stat().st_mode & 0o777, (data / "lock").stat().st_mode & 0o777) == (0o700, 0o600)


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "var", lock=False)
    secret = data.secret("x.key")
    assert len(secret) == 32
    assert DataDir.open(tmp_path / "var", lock=False).secret("x.key") == secret
    file = data.path / "x.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in data.path.iterdir()] == ["x.key"]
    for text, mode in (("zz", 0o600), ("00", 0o600), (secret.hex(), 0o644)):
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(GatewayError):
            data.secret("x.key")


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GatewayError):
        DataDir.open(tmp_path / "file")


def test_taken_ports_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        http, media = tcp.getsockname()[1], udp.getsockname()[1]
        settings = Settings(
            http=HttpSettings(port=http),
            media=MediaSettings(udp_port=media, tcp=False),
            mqtt=MqttSettings(port=http, mode=MqttMode.SUPERVISED),
        )
        lines = taken_ports(settings)
    assert [line.split(" on ")[0] for line in lines] == [
        f"HTTP TCP port {http}",
        f"media UDP port {media}",
        f"MQTT TCP port {http}",
    ]
    assert "(setting media.udp_port)" in lines[1]
    free = Settings(http=HttpSettings(port=0), media=MediaSettings(udp_port=0), mqtt=MqttSettings(port=0))
    assert taken_ports(free) == []
