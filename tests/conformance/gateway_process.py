"""A whole gateway and a small farm of cameras as child processes, for tests that see only what the outside sees.

`running()` writes a configuration of its own, starts `python -m simulators cameras` and `python -m gateway serve`, waits
until both say that they are up, and ends them by their process ids. Ports are free ones, files lie in the given directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).resolve().parents[2]
DISTRICT, STREET = "510117", "510117001"
COMMUNITY, GRID = "510117001001", "510117001001001"
DEAD = "cam900"  # configured, but nothing listens there
WORKER = "w1"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Child:
    """One process with its output in a file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    async def stop(self, grace_s: float = 15) -> None:
        """SIGTERM, and SIGKILL when that does not do. A child that had ended by itself is an error."""
        if self.process.returncode is not None:
            raise AssertionError(f"{self.name} ended by itself:\n{self.text()[-4000:]}")
        self.process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.text()[-4000:]}") from None


@dataclass(slots=True)
class Running:
    """The gateway under test, and how to use it."""

    base: str
    directory: Path
    children: dict[str, Child]
    media_port: int
    control: str
    rtsp_port: int
    cameras: Sequence[str]
    tokens: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.children["gateway"].pid

    async def token(self, role: str = "operator", sub: str = "op1", *options: str) -> str:
        """A bearer token, by the command that an administrator would use."""
        key = (role, " ".join((sub, *options)))
        if key not in self.tokens:
            self.tokens[key] = await self._cli("token", "--role", role, "--sub", sub, *options)
        return self.tokens[key]

    async def bearer(self, role: str = "operator", sub: str = "op1", *options: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self.token(role, sub, *options)}"}

    async def link(self, page: str, role: str, sub: str) -> str:
        return await self._cli("link", "--page", page, "--role", role, "--sub", sub, "--base", self.base)

    async def _cli(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *arguments, "--data", str(self.directory / "data")),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, problems = await process.communicate()
        assert process.returncode == 0, problems.decode()
        return out.decode().strip()

    async def fault(self, camera: str, fault: str, on: bool = True) -> None:
        """Switches a fault of a simulated camera (`simulators.faults`)."""
        async with aiohttp.ClientSession() as client:
            body = {"camera": camera, "fault": fault, "on": on}
            async with client.post(f"{self.control}/fault", json=body) as reply:
                assert reply.status == 200, await reply.text()

    async def metrics(self, http: aiohttp.ClientSession | None = None) -> dict[str, float]:
        """Samples of /metrics by name with labels, as they stand in the text. http: whose connection is to be used."""
        if http is None:
            async with aiohttp.ClientSession() as client:
                return await self.metrics(client)
        async with http.get(f"{self.base}/metrics") as reply:
            assert reply.status == 200
            return parse_metrics(await reply.text())

    async def get_json(self, path: str, **who: str) -> Any:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{self.base}{path}", headers=await self.bearer(**who)) as reply,
        ):
            assert reply.status == 200, await reply.text()
            return await reply.json()

    def resources(self) -> Resources:
        """What the gateway's process holds of the kernel at this moment."""
        return Resources.of(self.pid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """rss_bytes: resident memory; fds, sockets: open descriptors, and those of them that are sockets."""

    rss_bytes: int
    fds: int
    sockets: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Resources:
        status = Path(f"/proc/{pid}/status").read_text()
        targets = descriptors(pid)
        return cls(
            rss_bytes=int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024,  # type: ignore[index]
            fds=len(targets),
            sockets=sum(target.startswith("socket:") for target in targets),
            threads=int(re.search(r"Threads:\s+(\d+)", status)[1]),  # type: ignore[index]
        )


def descriptors(pid: int) -> list[str]:
    """What each open descriptor of a process is."""
    targets = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed between listing and reading
            targets.append(os.readlink(entry.path))
    return targets


def parse_metrics(text: str) -> dict[str, float]:
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


def merge(base: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the base with those of `extra` over them, section by section."""
    return {name: base.get(name, {}) | dict(extra.get(name, {})) for name in base.keys() | extra.keys()}


def camera_row(camera_id: str, rtsp_port: int, **more: Any) -> dict[str, Any]:
    base = f"rtsp://127.0.0.1:{rtsp_port}/{camera_id}"
    place = {"community": COMMUNITY, "grid": GRID, "lat": 30.05, "lon": 103.05, "datum": "wgs84"}
    return {
        "id": camera_id,
        "name": f"路口 {camera_id}",
        "main": f"{base}/main",
        "sub": f"{base}/sub",
        **place,
        **more,
    }


def write_district(directory: Path) -> None:
    """One street with one grid and one gridworker: enough for a call."""
    directory.mkdir()
    square = [[[103.0, 30.0], [103.1, 30.0], [103.1, 30.1], [103.0, 30.1], [103.0, 30.0]]]
    levels = ("district", "street", "community", "grid")
    codes = (DISTRICT, STREET, COMMUNITY, GRID)
    features = [
        {
            "type": "Feature",
            "properties": {
                "code": code, "name": f"名{code[-3:]}", "level": level, "parent": parent,
                **({"kind": "general"} if level == "grid" else {}),
            },
            "geometry": {"type": "Polygon", "coordinates": square},
        }
        for code, level, parent in zip(codes, levels, (None, *codes), strict=False)
    ]  # fmt: skip
    collection = {"type": "FeatureCollection", "features": features}
    (directory / "areas.geojson").write_text(json.dumps(collection), encoding="utf-8")
    files: dict[str, Any] = {
        "district": {
            "code": DISTRICT, "name": "示例区", "center": {"lat": 30.05, "lon": 103.05, "datum": "wgs84"}
        },
        "gridworkers": {"gridworkers": [{"id": WORKER, "name": "王", "grid": GRID, "phone": "1", "skills": []}]},
        "volunteers": {"volunteers": []},
        "households": {"households": []},
        "boxes": {"boxes": []},
        "users": {"users": [{"sub": "op1", "name": "赵", "role": "operator"}]},
    }  # fmt: skip
    for name, content in files.items():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


@asynccontextmanager
async def running(
    directory: Path,
    *,
    cameras: int = 2,
    absent: int = 1,
    clip_seconds: float = 4,
    cache: Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    row: Mapping[str, Any] | None = None,
) -> AsyncIterator[Running]:
    """A gateway with `cameras` simulated cameras (cam001 ...) and `absent` ones (cam900 ...) where nothing listens.

    settings: of gateway.yaml, over those of a quiet test; row: added to each camera of cameras.yaml.
    """
    children: dict[str, Child] = {}
    ids = [f"cam{number + 1:03d}" for number in range(cameras)]
    control, rtsp, nobody, http = (free_port() for _ in range(4))
    rows = [camera_row(camera_id, rtsp, **(row or {})) for camera_id in ids]
    rows += [camera_row(f"cam{900 + number}", nobody) for number in range(absent)]
    cameras_file = directory / "cameras.yaml"
    cameras_file.write_text(yaml.safe_dump({"cameras": rows}, allow_unicode=True), encoding="utf-8")
    write_district(directory / "district")
    quiet = {
        "http": {"port": http, "shutdown_s": 1.0},
        "media": {"udp_port": 0},
        "mqtt": {"mode": "off"},
        "ingest": {"idle_grace_s": 2.0, "backoff_max_s": 1.0},
        "calls": {"publish_s": 120.0, "no_answer_s": 600.0},
    }
    merged = merge(quiet, settings or {})
    (directory / "gateway.yaml").write_text(yaml.safe_dump(merged, allow_unicode=True), encoding="utf-8")

    async def start(name: str, *arguments: str) -> Child:
        log = directory / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *arguments), cwd=ROOT, stdout=output, stderr=output
            )
        children[name] = Child(name, process, log)
        return children[name]

    try:
        farm = await start(
            "farm",
            *("simulators", "cameras", "--cameras", str(cameras_file), "--limit", str(cameras), "--no-auth"),
            *("--port", str(rtsp), "--http", str(control), "--live", "0", "--seconds", str(clip_seconds)),
            *("--cache", str(cache or directory / "clips"), "--processes", "1"),
        )
        await until(lambda: '"rtsp"' in farm.text(), farm, timeout_s=90)
        gateway = await start(
            "gateway",
            *(
                "gateway",
                "serve",
                "--workers",
                "1",
                "--cameras",
                str(cameras_file),
                "--data",
                str(directory / "data"),
            ),
        )
        base = f"http://127.0.0.1:{http}"
        async with aiohttp.ClientSession() as client:
            await until(lambda: ready(client, base), gateway, timeout_s=90)  # bounds a failure
        yield Running(
            base=base,
            directory=directory,
            children=children,
            media_port=udp_port_of(gateway.pid),
            control=f"http://127.0.0.1:{control}",
            rtsp_port=rtsp,
            cameras=ids,
        )
    finally:
        for child in reversed(children.values()):
            await child.stop()


async def ready(client: aiohttp.ClientSession, base: str) -> bool:
    try:
        async with client.get(f"{base}/readyz") as reply:
            return reply.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def until(condition: Any, child: Child, *, timeout_s: float) -> None:
    """Waits for a plain or async condition while the child lives."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                assert child.process.returncode is None, f"{child.name} ended:\n{child.text()[-4000:]}"
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{child.name} never came up:\n{child.text()[-4000:]}") from None


def udp_port_of(pid: int) -> int:
    """The media port of a gateway that took a free one: its only bound UDP socket, read out of /proc."""
    inodes = {target[8:-1] for target in descriptors(pid) if target.startswith("socket:[")}
    lines = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    ports = [int(fields[1].rpartition(":")[2], 16) for fields in map(str.split, lines) if fields[9] in inodes]
    assert len(ports) == 1, f"UDP ports of the gateway: {ports}"
    return ports[0]
