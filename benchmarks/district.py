"""A gateway of its own for a benchmark: files of a synthetic district with as many boxes as wanted, and the real process.

The files are the repository's own district with more households at the same places; every box and gridworker has a
random key. Nothing is shared with an installation: data, ports and keys are the benchmark's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).parents[1]
READY_S = 90.0


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hmac_hex(key: str, text: str) -> str:
    return hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()


def press_body(key: str, sid: str, pid: str, *, ts: int, kind: str = "help") -> bytes:
    """A signed press (docs/contract.md section 4), made without the gateway's own code."""
    sig = hmac_hex(key, f"press|{sid}|{pid}|1|{ts}|{kind}||0")
    body = {"v": 1, "sid": sid, "pid": pid, "seq": 1, "ts": ts, "kind": kind, "sig": sig}
    return json.dumps(body, separators=(",", ":")).encode()


@dataclass(slots=True)
class Site:
    """Files, ports and keys of one benchmark. boxes, workers: id -> key in hex. environment: what the process gets
    beside ours."""

    directory: Path
    http: int
    mqtt: int
    boxes: dict[str, str]
    workers: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    starts_s: list[float] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def broker_pid(self) -> int:
        """The mosquitto child of the gateway, by its parent."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(
            int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "mosquitto"
        )

    async def start(self, *, wait: bool = True) -> None:
        """Starts the gateway; with `wait` returns once it takes presses on both paths."""
        log = (self.directory / "gateway.log").open("ab")
        began = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "serve", "--config", str(self.directory / "gateway.yaml")),
            *("--cameras", str(self.directory / "cameras.yaml")),
            *("--district", str(self.directory / "district"), "--data", str(self.data)),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, **self.environment},
        )
        log.close()
        if wait:
            await self.until_ready(began)

    async def until_ready(self, began: float) -> None:
        async with aiohttp.ClientSession() as session:
            while time.monotonic() - began < READY_S:
                assert self.process is not None
                if self.process.returncode is not None:
                    raise RuntimeError(f"the gateway ended: {self.log_tail()}")
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.base}/readyz") as answer:
                        if answer.status == 200:
                            self.starts_s.append(time.monotonic() - began)
                            return
                await asyncio.sleep(0.02)
        raise RuntimeError(f"the gateway was not ready within {READY_S} s: {self.log_tail()}")

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(15):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    async def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def token(self, role: str, sub: str, *more: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "token", "--role", role, "--sub", sub, *more),
            *("--data", str(self.data)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        return output.decode().strip()

    def log_tail(self) -> str:
        return "\n".join((self.directory / "gateway.log").read_text(errors="replace").splitlines()[-20:])


def make_site(
    directory: Path, *, boxes: int, settings: dict[str, Any] | None = None, workers: int = 589
) -> Site:
    """Writes the files. JSON is YAML, and is written faster."""
    district = directory / "district"
    district.mkdir(parents=True)
    source = ROOT / "config/district"
    for name in ("district.yaml", "areas.geojson", "gridworkers.yaml", "volunteers.yaml", "users.yaml"):
        (district / name).symlink_to(source / name)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    homes = yaml.load((source / "households.yaml").read_text(encoding="utf-8"), loader)["households"]
    staff = yaml.load((source / "gridworkers.yaml").read_text(encoding="utf-8"), loader)["gridworkers"]
    households: list[dict[str, Any]] = []
    rows: list[dict[str, str]] = []
    for number in range(boxes):
        home = homes[number % len(homes)]
        round_ = number // len(homes)
        households.append(
            {**home, "id": f"h{number}", "lat": home["lat"] + 1e-4 * round_, "address": f"{home['address']}-{round_}"}
        )  # fmt: skip
        rows.append({"sid": f"box{number:06}", "household": f"h{number}"})
    (district / "households.yaml").write_text(json.dumps({"households": households}))
    (district / "boxes.yaml").write_text(json.dumps({"boxes": rows}))
    site = Site(
        directory=directory,
        http=free_port(),
        mqtt=free_port(),
        boxes={row["sid"]: secrets.token_hex(32) for row in rows},
        workers={str(row["id"]): secrets.token_hex(32) for row in staff[:workers]},
    )
    kept = directory / "secrets.yaml"
    kept.write_text(json.dumps({"boxes": site.boxes, "workers": site.workers}))
    kept.chmod(0o600)
    (directory / "cameras.yaml").write_text("cameras: [{id: cam001, main: 'rtsp://127.0.0.1:9/main'}]\n")
    chosen: dict[str, Any] = {
        "http": {"port": site.http},
        "mqtt": {"port": site.mqtt},
        "media": {"udp_port": 0},
        **(settings or {}),
    }
    (directory / "gateway.yaml").write_text(json.dumps(chosen))
    return site


@contextlib.asynccontextmanager
async def running(site: Site) -> AsyncIterator[Site]:
    await site.start()
    try:
        yield site
    finally:
        await site.stop()


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, one decimal; empty of nothing."""
    ordered = sorted(values)
    if not ordered:
        return {}
    found = {
        f"p{round(share * 100)}": ordered[min(len(ordered) - 1, int(len(ordered) * share))]
        for share in (0.5, 0.95, 0.99)
    }
    return {name: round(value, 1) for name, value in {**found, "max": ordered[-1]}.items()}
