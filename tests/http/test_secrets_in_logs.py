"""Every secret of a full run is looked for in everything that the gateway, its workers and its broker wrote at debug level."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from running_gateway import CAMERA_PASSWORD, CONTACT, KEY, NOTES, PASSWORD, sign, write_files

from gateway.access import Principal, Role
from gateway.identity import Keyring, TokenKind, device_password

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from rtsp_farm import Farm
from webrtc_clients import WhepClient

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[2]
TURN_PASSWORD = "turn-secret-8812"
GUESS = "wrong-guess-4711"


def press(pid: str, key: str = KEY) -> dict[str, Any]:
    text = f"press|box-a1|{pid}|1|1700000000000|help||0"
    return {
        "v": 1, "sid": "box-a1", "pid": pid, "seq": 1, "ts": 1_700_000_000_000, "kind": "help", "sig": sign(key, text),
    }  # fmt: skip


class Run:
    """One gateway process with two workers and `--verbose`; `tokens`: all that were issued for it."""

    def __init__(self, folder: Path, client: aiohttp.ClientSession, keyring: Keyring) -> None:
        self.folder, self.client, self._keyring = folder, client, keyring
        self.tokens: list[str] = []

    def token(self, role: str, sub: str, kind: TokenKind = TokenKind.ACCESS) -> str:
        text = self._keyring.issue(Principal(sub=sub, role=Role(role)), kind, now_s=time.time(), ttl_s=600)
        self.tokens.append(text)
        return text

    def bearer(self, role: str, sub: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(role, sub)}"}

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.client.request(method, path, **more) as answer:
            for cookie in answer.cookies.values():
                self.tokens += [cookie.value] if cookie.value else []
            body = await answer.read()
            return answer.status, json.loads(body) if answer.content_type.endswith("json") else body

    async def everything(self, mqtt: int) -> None:
        """Each way in which a secret comes in or goes out."""
        operator, worker = self.bearer("operator", "op"), self.bearer("worker", "wa")
        code = self.token("operator", "op", TokenKind.CODE)
        for body, expected in (
            ({"sub": "op", "password": PASSWORD}, 200), ({"sub": "op", "password": GUESS}, 401), ({"code": code}, 200),
            ({"code": code}, 401), ({"sub": "op", "password": [PASSWORD]}, 400),
        ):  # fmt: skip
            assert (await self.call("POST", "/api/v1/session", json=body))[0] == expected
        assert (await self.call("GET", "/api/v1/session", headers={"Authorization": "Bearer " + GUESS}))[
            0
        ] == 401
        assert (await self.call("GET", "/api/v1/stb/me", headers=self.bearer("stb", "box-a1")))[0] == 200
        assert (await self.call("GET", "/api/v1/media/ice-servers", headers=operator))[0] == 200
        status, _ = await self.call("POST", "/api/v1/workers/me/duty", headers=worker, json={"duty": "on"})
        assert status == 200
        assert (await self.call("POST", "/api/v1/alarms", json=press("forged", "00" * 32)))[0] == 403
        await publish(mqtt, json.dumps(press("by-mqtt")), PASSWORD)  # refused at the broker
        await publish(mqtt, "{bad", device_password(bytes.fromhex(KEY), "box-a1"))
        await publish(mqtt, json.dumps(press("by-mqtt")), device_password(bytes.fromhex(KEY), "box-a1"))
        status, ack = await self.call("POST", "/api/v1/alarms", json=press("by-http"))
        assert (status, ack["stage"]) == (200, "persisted")
        alarm = f"/api/v1/alarms/{ack['alarm']}"
        assert (await self.call("POST", f"{alarm}/acknowledge", headers=operator, json={}))[0] == 200
        status, view = await self.call("GET", alarm, headers=operator)
        assert view["household"]["notes"] == NOTES
        client = WhepClient(video=True, audio=False)
        offer = await client.offer()
        status, answer = await self.call(
            "POST", "/whep/a1-community", headers={**operator, "Content-Type": "application/sdp"}, data=offer
        )
        await client.close()
        assert status == 201, answer
        text = (self.folder / "secrets.yaml").read_text()
        (self.folder / "secrets.yaml").write_text(text.replace("users:", f"users:\n  extra: {GUESS}"))
        admin = self.bearer("admin", "root")
        status, said = await self.call("POST", "/api/v1/admin/reload", headers=admin)
        assert status == 200, said
        broken = text.replace(KEY, KEY + "zz")
        (self.folder / "secrets.yaml").write_text(broken)
        status, said = await self.call("POST", "/api/v1/admin/reload", headers=admin)
        assert status == 400
        assert KEY not in json.dumps(said)


async def publish(port: int, message: str, password: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-u", "box-a1", "-i", "box-a1", "-P", password,
        "-t", "pd/v1/stb/box-a1/press", "-q", "1", "-m", message, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(20):
        await process.wait()


async def test_no_secret_is_in_the_logs_of_a_whole_run(tmp_path: Path) -> None:
    async with Farm(algorithm="MD5", user="viewer", password=CAMERA_PASSWORD) as farm:
        turn = {"urls": ["turn:127.0.0.1:3478"], "credentials": "turn"}
        write_files(tmp_path, live_url=farm.url, settings={"media": {"udp_port": 0, "ice_servers": [turn]}})
        secrets_file = tmp_path / "secrets.yaml"
        credentials = f"credentials:\n  turn: {{username: t, password: {TURN_PASSWORD}}}"
        secrets_file.write_text(secrets_file.read_text().replace("credentials:", credentials))
        log = tmp_path / "gateway.log"
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-X", "dev", "-m", "gateway", "serve", "--verbose", "--workers", "2",
                "--cameras", f"{tmp_path}/cameras.yaml", "--data", f"{tmp_path}/var",
                cwd=ROOT, stdout=stream, stderr=stream,
            )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                while not (ready := re.search(r"ready at (\S+)", log.read_text())):
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.1)
                base = ready[1]
                async with aiohttp.ClientSession(base) as client:
                    while True:
                        async with client.get("/readyz") as answer:
                            if answer.status == 200:
                                break
                        await asyncio.sleep(0.1)
            port = re.search(r"mosquitto listens on 127\.0\.0\.1:(\d+)", log.read_text())
            assert port is not None
            keyring = Keyring(bytes.fromhex((tmp_path / "var" / "signing.key").read_text().strip()))
            async with aiohttp.ClientSession(base, cookie_jar=aiohttp.DummyCookieJar()) as client:
                run = Run(tmp_path, client, keyring)
                await run.everything(int(port[1]))
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    written = log.read_text(errors="replace")
    assert written.count(" DEBUG ") > 10
    secrets = {
        "password": PASSWORD, "guess": GUESS, "box key": KEY, "camera": CAMERA_PASSWORD, "turn": TURN_PASSWORD,
        "notes": NOTES, "contact": CONTACT, "mqtt": device_password(bytes.fromhex(KEY), "box-a1"),
        **{f"token {number}": text for number, text in enumerate(run.tokens)},
        **{path.name: path.read_text().strip() for path in (tmp_path / "var").glob("*.key")},
    }  # fmt: skip
    assert len(secrets) > 14
    assert [name for name, secret in secrets.items() if secret in written] == []
    # Nor in any other file that was made, but the ones that are made to hold them.
    for path in (tmp_path / "var").rglob("*"):
        if path.is_file() and path.suffix != ".key":
            content = path.read_bytes()
            kept = (
                {"notes", "contact"} if path.name == "district" else set()
            )  # the district as it was read, which names its households
            assert not kept or path.stat().st_mode & 0o777 == 0o600
            for name, secret in secrets.items() - {(name, secrets[name]) for name in kept}:
                assert secret.encode() not in content, f"{name} in {path.name}"
