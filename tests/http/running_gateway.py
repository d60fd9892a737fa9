"""A whole gateway on a small district, in this process and over real sockets: two streets, three communities, one
camera of each `visible_to`, one live camera, three alarms, a call with a claimant.

    street 510117001 (A)   community 510117001001 (a1): grids ...001 (wa), ...002   box-a1
                           community 510117001002 (a2): grid  ...001                box-a2
    street 510117002 (B)   community 510117002001 (b1): grid  ...001 (wb)           box-b1
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from gateway.access import Principal, Role
from gateway.app import Gateway
from gateway.config import Files, ServeOptions, load_configuration
from gateway.data_dir import DataDir
from gateway.identity import Keyring, TokenKind
from gateway.store import Store

ROOT = Path(__file__).parents[2]
STREET_A, STREET_B = "510117001", "510117002"
AREAS = {"a1": "510117001001", "a2": "510117001002", "b1": "510117002001"}
CORNERS = {"a1": (30.80, 103.80), "a2": (30.80, 103.90), "b1": (30.90, 103.80)}
KEY = "5a" * 32
PASSWORD = "correct horse battery staple"
NOTES = "老人独居，备用钥匙在门房"
CONTACT = "13800001234"
CAMERA_PASSWORD = "rtsp-secret-7391"
CAMERAS = {  # id: (community, visible_to)
    "a1-none": ("a1", "none"), "a1-community": ("a1", "community"), "a2-community": ("a2", "community"),
    "a2-street": ("a2", "street"), "b1-none": ("b1", "none"), "b1-street": ("b1", "street"),
    "b1-district": ("b1", "district"), "nowhere": ("", "district"),
}  # fmt: skip


def _square(lat: float, lon: float, height: float, width: float) -> dict[str, Any]:
    ring = [[lon, lat], [lon + width, lat], [lon + width, lat + height], [lon, lat + height], [lon, lat]]
    return {"type": "Polygon", "coordinates": [ring]}


def _area(code: str, level: str, parent: str | None, shape: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {"code": code, "name": f"{level} {code}", "level": level}
    if parent:
        properties["parent"] = parent
    return {"type": "Feature", "properties": properties, "geometry": shape}


def _features() -> list[dict[str, Any]]:
    features = [
        _area("510117", "district", None, _square(30.7, 103.7, 0.4, 0.4)),
        _area(STREET_A, "street", "510117", _square(30.80, 103.80, 0.05, 0.2)),
        _area(STREET_B, "street", "510117", _square(30.90, 103.80, 0.05, 0.2)),
    ]
    for name, code in AREAS.items():
        lat, lon = CORNERS[name]
        features.append(_area(code, "community", code[:9], _square(lat, lon, 0.05, 0.05)))
        for number in (1, 2) if name == "a1" else (1,):
            shape = _square(lat, lon + 0.025 * (number - 1), 0.05, 0.025)
            features.append(_area(f"{code}00{number}", "grid", code, shape))
    return features


def write_files(folder: Path, *, live_url: str, settings: dict[str, Any] | None = None) -> Path:
    """All configuration files; returns the cameras file. `a1-community` pulls `live_url`, the others nothing."""
    district = folder / "district"
    district.mkdir(parents=True, exist_ok=True)

    def write(path: Path, data: object) -> None:
        path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")

    center = {"lat": 30.81, "lon": 103.89, "datum": "wgs84"}
    write(district / "district.yaml", {"code": "510117", "name": "郫都区", "center": center})
    collection = {"type": "FeatureCollection", "features": _features()}
    (district / "areas.geojson").write_text(json.dumps(collection), encoding="utf-8")
    workers = [
        {"id": "wa", "name": "王网格", "grid": AREAS["a1"] + "001"},
        {"id": "wa2", "name": "李网格", "grid": AREAS["a2"] + "001"},
        {"id": "wb", "name": "赵网格", "grid": AREAS["b1"] + "001"},
    ]
    write(district / "gridworkers.yaml", {"gridworkers": workers})
    volunteers = [{"id": "va", "name": "红袖套", "level": 2, "community": AREAS["a1"]}]
    write(district / "volunteers.yaml", {"volunteers": volunteers})
    households, boxes = [], []
    for name, code in AREAS.items():
        lat, lon = CORNERS[name]
        place = {"lat": lat + 0.01, "lon": lon + 0.01, "datum": "wgs84"}
        households.append({
            "id": f"home-{name}", "address": f"{name}小区1号", "community": code, "grid": f"{code}001", **place,
            "contacts": [{"name": "家属", "phone": CONTACT}], "notes": NOTES, "consent": True,
        })  # fmt: skip
        boxes.append({"sid": f"box-{name}", "household": f"home-{name}"})
    write(district / "households.yaml", {"households": households})
    write(district / "boxes.yaml", {"boxes": boxes})
    users = [
        {"sub": "op", "name": "指挥中心", "role": "operator"},
        {"sub": "desk-a", "name": "甲街道", "role": "desk", "area": STREET_A},
        {"sub": "desk-b", "name": "乙街道", "role": "desk", "area": STREET_B},
    ]
    write(district / "users.yaml", {"users": users})
    cameras: list[dict[str, Any]] = []
    for name, (community, visible_to) in CAMERAS.items():
        url = live_url if name == "a1-community" else "rtsp://127.0.0.1:9/x"
        camera: dict[str, Any] = {"id": name, "main": url, "credentials": "recorder"}
        if community:
            lat, lon = CORNERS[community]
            camera |= {"community": AREAS[community], "grid": AREAS[community] + "001", "lat": lat + 0.01}
            camera |= {"lon": lon + 0.01, "datum": "wgs84"}
        cameras.append({**camera, "visible_to": visible_to})
    write(folder / "cameras.yaml", {"cameras": cameras})
    secrets = folder / "secrets.yaml"
    write(secrets, {
        "credentials": {"recorder": {"username": "viewer", "password": CAMERA_PASSWORD}},
        "boxes": {f"box-{name}": KEY for name in AREAS}, "workers": {"wa": KEY, "wa2": KEY, "wb": KEY},
        "users": {"op": PASSWORD, "desk-a": PASSWORD, "desk-b": PASSWORD},
    })  # fmt: skip
    secrets.chmod(0o600)
    chosen: dict[str, Any] = {
        "http": {"port": 0}, "media": {"udp_port": 0}, "mqtt": {"port": 0}, "calls": {"publish_s": 120, "no_answer_s": 600}, "ingest": {"first_keyframe_s": 2},
    }  # fmt: skip
    for section, values in (settings or {}).items():
        chosen[section] = {**chosen.get(section, {}), **values}
    write(folder / "gateway.yaml", chosen)
    return folder / "cameras.yaml"


@dataclass
class Bench:
    """A running gateway and how to talk to it. `ids`: what was made by `fill`, by kind and place."""

    gateway: Gateway
    client: aiohttp.ClientSession
    keyring: Keyring
    folder: Path
    ids: dict[str, dict[str, str]] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def token(
        self, role: str, sub: str, area: str | None = None, *, kind: TokenKind = TokenKind.ACCESS, ttl_s: float = 600,
        ago_s: float = 0,
    ) -> str:  # fmt: skip
        principal = Principal(sub=sub, role=Role(role), area=area)
        return self.keyring.issue(principal, kind, now_s=time.time() - ago_s, ttl_s=ttl_s)

    def bearer(self, role: str, sub: str, area: str | None = None, **more: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(role, sub, area, **more)}"}

    async def call(
        self, method: str, path: str, who: dict[str, str] | None = None, **more: Any
    ) -> tuple[int, Any]:
        """Status and JSON (or text) of the answer."""
        headers = {**(who or {}), **more.pop("headers", {})}
        async with self.client.request(
            method, path, headers=headers, allow_redirects=False, **more
        ) as answer:
            body = await answer.read()
            if body and answer.content_type.endswith("json"):
                return answer.status, json.loads(body)
            return answer.status, body.decode(errors="replace")

    async def press(
        self,
        place: str,
        *,
        pid: str = "p1",
        camera: str = "",
        key: str = KEY,
        kind: str = "help",
        silent: bool = False,
    ) -> dict[str, Any]:
        sid = f"box-{place}"
        text = f"press|{sid}|{pid}|1|1700000000000|{kind}|{camera}|{int(silent)}"
        press = {
            "v": 1,
            "sid": sid,
            "pid": pid,
            "seq": 1,
            "ts": 1_700_000_000_000,
            "kind": kind,
            "sig": sign(key, text),
        }
        if camera:
            press["cam"] = camera
        if silent:
            press["silent"] = True
        _, ack = await self.call("POST", "/api/v1/alarms", json=press)
        return ack

    async def on_duty(self, worker: str, place: str, duty: str = "on") -> None:
        who = self.bearer("worker", worker)
        status, said = await self.call("POST", "/api/v1/workers/me/duty", who, json={"duty": duty})
        assert status == 200, said
        lat, lon = CORNERS[place]
        fix = {
            "lat": lat + 0.011,
            "lon": lon + 0.011,
            "datum": "wgs84",
            "acc": 5,
            "seq": time.time_ns() // 1_000_000,
        }
        if duty == "on":
            status, said = await self.call("POST", "/api/v1/workers/me/location", who, json=fix)
            assert status == 200, said

    async def call_of(self, alarm_id: str) -> str:
        """The call that the alarm opened by itself."""
        operator = self.bearer("operator", "op")
        async with asyncio.timeout(10):
            while True:
                _, alarm = await self.call("GET", f"/api/v1/alarms/{alarm_id}", operator)
                if alarm["call_id"]:
                    return str(alarm["call_id"])
                await asyncio.sleep(0.02)

    async def fill(self) -> None:
        """Three alarms, three incidents by hand, three calls; `wa` has claimed the one of a1, `wb` was rung for the rest."""
        operator, worker = self.bearer("operator", "op"), self.bearer("worker", "wa")
        alarms, calls, legs, incidents = {}, {}, {}, {}
        await self.on_duty("wa", "a1")
        alarms["a1"] = (await self.press("a1"))["alarm"]
        calls["a1"] = await self.call_of(alarms["a1"])
        status, call = await self.call("POST", f"/api/v1/calls/{calls['a1']}/claim", worker, json={})
        assert status == 200, call
        legs["a1"] = call["leg"]
        await self.on_duty("wa", "a1", "off")
        await self.on_duty("wb", "b1")
        for place in ("a2", "b1"):
            alarms[place] = (await self.press(place))["alarm"]
            calls[place] = await self.call_of(alarms[place])
            desk = self.bearer("desk", "desk-b" if place == "b1" else "desk-a2", AREAS[place])
            status, call = await self.call("POST", f"/api/v1/calls/{calls[place]}/join", desk, json={})
            assert status == 200, call
            legs[place] = call["leg"]
        for place, (lat, lon) in CORNERS.items():
            report = {"type": "other", "lat": lat + 0.01, "lon": lon + 0.01, "datum": "wgs84"}
            status, incident = await self.call("POST", "/api/v1/incidents", operator, json=report)
            assert status == 201, incident
            incidents[place] = incident["id"]
        self.ids = {"alarm": alarms, "call": calls, "leg": legs, "incident": incidents}


def sign(key: str, text: str) -> str:
    return hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()


@asynccontextmanager
async def running_gateway(
    folder: Path,
    *,
    live_url: str = "rtsp://127.0.0.1:9/x",
    settings: dict[str, Any] | None = None,
    trusting: ssl.SSLContext | None = None,
) -> AsyncIterator[Bench]:
    """The gateway on these files; a second time on the same folder is a restart. trusting: for a client over TLS."""
    cameras = folder / "cameras.yaml"
    if not cameras.exists():
        cameras = write_files(folder, live_url=live_url, settings=settings)
    files = Files.beside(cameras)
    configuration = load_configuration(files)
    with DataDir.open(folder / "var") as data:
        options = ServeOptions(files=files, configuration=configuration, data=data, workers=1)
        store = await Store.open(data.path / "gateway.db", busy_deadline_s=5)
        stopping = asyncio.Event()
        gateway = Gateway(options, store)
        try:
            await gateway.media.open()
            task = asyncio.create_task(gateway.run(stopping))
            try:
                await _until_ready(gateway, task)
                connector = aiohttp.TCPConnector(
                    keepalive_timeout=1, ssl=trusting or True
                )  # less than any gateway's here
                key = Keyring(data.secret("signing.key"))
                async with aiohttp.ClientSession(gateway.base_url, connector=connector) as client:
                    yield Bench(gateway, client, key, folder, stopping=stopping)
            finally:
                stopping.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        finally:
            await gateway.media.close()
            await store.close()


async def _until_ready(gateway: Gateway, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(20):
        while not task.done() and not (hasattr(gateway, "base_url") and gateway.health().ready):
            await asyncio.sleep(0.02)
    if task.done():
        await task


@asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`gateway serve` as a process of its own, and its address."""
    arguments = ("serve", "--cameras", f"{folder}/cameras.yaml", "--data", f"{folder}/var", *options)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *arguments, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while not (ready := re.search(rb"ready at (\S+)", line := await process.stderr.readline())):
                assert line, "the gateway ended"
        yield process, ready[1].decode()
    finally:
        if process.returncode is None:
            process.terminate()  # a kill would leave its broker behind
            try:
                async with asyncio.timeout(20):
                    await process.communicate()
            except TimeoutError:
                process.kill()
        await process.communicate()
