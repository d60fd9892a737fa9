"""`make demo`: simulated cameras, gridworkers and boxes, the broker and the gateway, on this machine.

Environment: CAMERAS=n bounds the cameras, HEADLESS=1 presses an alarm by itself and reports, SECONDS_TO_RUN=n stops by
itself, LAN=1 serves the local network over HTTPS. Everything it starts is its child and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from lan_ca import HOW_TO_TRUST, ensure_server, lan_addresses

from gateway.alarms.broker import end_left_behind
from gateway.data_dir import DataDir
from gateway.errors import GatewayError

ROOT = Path(__file__).resolve().parent.parent
VAR = ROOT / "var"
DEMO = VAR / "demo"
PYTHON = sys.executable
GATEWAY = [PYTHON, "-m", "gateway"]
READY_S = 60
CLIPS_S = 300


def number(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    if not value.isdecimal():
        sys.exit(f"{name} must be a whole number, not {value!r}")
    return int(value)


def is_free(port: int, kind: int, host: str) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(wanted: int, *, host: str = "127.0.0.1", media: bool = False) -> int:
    """`wanted` if nobody has it, else the next free one within a hundred. media: UDP and TCP, one pair a core."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM) if media else (socket.SOCK_STREAM,)
    span = (os.cpu_count() or 1) if media else 1
    for port in range(wanted, wanted + 100):
        if all(is_free(port + n, kind, host) for n in range(span) for kind in kinds):
            return port
    sys.exit(
        f"no free port in {wanted}-{wanted + 99}: stop what is using them, or set another in scripts/demo.py"
    )


class Demo:
    """The children and how they were asked to run."""

    def __init__(self) -> None:
        self.lan = os.environ.get("LAN", "") == "1"
        self.headless = os.environ.get("HEADLESS", "") == "1"
        self.cameras = number("CAMERAS", 768)
        self.seconds = number("SECONDS_TO_RUN", 0)
        self.host = "0.0.0.0" if self.lan else "127.0.0.1"  # noqa: S104 - LAN=1 asks for it
        with (
            contextlib.suppress(GatewayError),
            DataDir.open(VAR),
        ):  # else a demo runs here, whose broker it is
            end_left_behind(VAR / "broker")  # of one that was killed: it would hold the port
        self.http = free_port(8443 if self.lan else 8080, host=self.host)
        self.rtsp = free_port(8554)
        self.mqtt = free_port(1883)
        self.media = free_port(8189, media=True)
        self.children: dict[str, asyncio.subprocess.Process] = {}
        self.address = lan_addresses()[0] if self.lan else "127.0.0.1"
        self.base = f"{'https' if self.lan else 'http'}://{self.address}:{self.http}"

    # -- files ----------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """The demo's own settings and its view of cameras.yaml: fewer cameras, and the port that was free."""
        DEMO.mkdir(parents=True, exist_ok=True)
        await self.run("secrets", PYTHON, "-m", "simulators", "secrets", "--out", "config/secrets.yaml")
        document = yaml.load((ROOT / "config/cameras.yaml").read_text(), yaml.CSafeLoader)
        rows = document["cameras"][: self.cameras]
        for row in rows:
            for key in ("main", "sub"):
                if key in row:
                    row[key] = row[key].replace("127.0.0.1:8554", f"127.0.0.1:{self.rtsp}")
        self.cameras_file = DEMO / "cameras.yaml"
        self.cameras_file.write_text(
            yaml.dump({"cameras": rows}, allow_unicode=True, sort_keys=False, width=1000)
        )
        secrets = DEMO / "secrets.yaml"
        secrets.unlink(missing_ok=True)
        secrets.symlink_to(ROOT / "config/secrets.yaml")
        settings: dict[str, object] = {
            "http": {"host": self.host, "port": self.http},
            "media": {"udp_port": self.media},
            "mqtt": {"port": self.mqtt},
            "ingest": {"host_connections": 2 * len(rows)},  # all simulated cameras are one host
        }
        if self.lan:
            lan = ROOT / "config/lan"
            lan.mkdir(parents=True, exist_ok=True, mode=0o700)
            ensure_server(lan, lan_addresses())
            settings["http"] = {
                "host": self.host,
                "port": self.http,
                "tls_cert": str(lan / "server.crt"),
                "tls_key": str(lan / "server.key"),
                "tls_ca": str(lan / "ca.crt"),
            }
            settings["media"] = {"udp_port": self.media, "addresses": lan_addresses()}
        self.settings_file = DEMO / "gateway.yaml"
        self.settings_file.write_text(yaml.dump(settings))

    # -- processes ------------------------------------------------------------------------------------------

    async def run(self, name: str, *command: str) -> str:
        """Run to the end; its output, or a clear exit."""
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode:
            sys.exit(f"{name} failed:\n{output.decode(errors='replace')}")
        return output.decode()

    async def start(self, name: str, *command: str) -> None:
        log = (DEMO / f"{name}.log").open("wb")
        self.children[name] = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    async def stop(self) -> None:
        for process in reversed(self.children.values()):
            if process.returncode is None:
                process.terminate()
        for process in self.children.values():
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    def log_tail(self, name: str) -> str:
        return "\n".join((DEMO / f"{name}.log").read_text(errors="replace").splitlines()[-20:])

    async def until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for name, process in self.children.items():
                if process.returncode is not None:
                    sys.exit(f"{name} ended with {process.returncode}:\n{self.log_tail(name)}")
            if await asyncio.to_thread(self.get, "/readyz"):
                return
            await asyncio.sleep(0.1)
        sys.exit(f"the gateway was not ready within {READY_S} s:\n{self.log_tail('gateway')}")

    async def until_cameras(self) -> None:
        """The farm listens once its clips are there: a minute the first time, a few seconds later on."""
        deadline = time.monotonic() + CLIPS_S
        while time.monotonic() < deadline:
            if self.children["cameras"].returncode is not None:
                sys.exit(f"the simulated cameras ended:\n{self.log_tail('cameras')}")
            if not is_free(self.rtsp, socket.SOCK_STREAM, "127.0.0.1"):
                return
            await asyncio.sleep(0.1)
        sys.exit(f"no simulated camera within {CLIPS_S} s:\n{self.log_tail('cameras')}")

    def get(self, path: str) -> bytes | None:
        context = None
        if self.lan:
            context = ssl.create_default_context(cafile=str(ROOT / "config/lan/ca.crt"))
        try:
            with urllib.request.urlopen(self.base + path, timeout=2, context=context) as answer:  # noqa: S310
                return bytes(answer.read())
        except (urllib.error.URLError, OSError):
            return None

    async def link(self, page: str, role: str, sub: str, area: str = "") -> str:
        more = ["--area", area] if area else []
        return (
            await self.run(
                "gateway link",
                *(*GATEWAY, "link", "--page", page, "--role", role, "--sub", sub, *more),
                *("--data", str(VAR), "--base", self.base, "--ttl", "86400"),
            )
        ).strip()

    # -- the story ------------------------------------------------------------------------------------------

    async def main(self) -> int:
        began = time.monotonic()
        await self.prepare()
        secrets = ("--secrets", "config/secrets.yaml")
        say(f"starting {self.cameras} simulated cameras (the first time their clips are drawn and encoded)")
        await self.start(
            "cameras",
            *(PYTHON, "-m", "simulators", "cameras", "--cameras", str(self.cameras_file), *secrets),
            *("--port", str(self.rtsp), "--cache", str(VAR / "clips")),
        )
        await self.start(
            "gateway",
            *(*GATEWAY, "serve", "--config", str(self.settings_file), "--cameras", str(self.cameras_file)),
            *("--district", "config/district", "--data", str(VAR)),
        )
        await self.until_ready()
        await self.until_cameras()
        story = await self.introduce()
        await self.start(
            "workers",
            *(
                PYTHON,
                "-m",
                "simulators",
                "workers",
                "run",
                "--count",
                "60",
                "--mix",
                "ignore:6,decline:2,off:2",
                *secrets,
            ),
            *("--mqtt", f"127.0.0.1:{self.mqtt}", "--without", self.worker),
        )
        say(f"ready after {time.monotonic() - began:.1f} s\n\n{story}")
        stopped = asyncio.Event()
        for number_ in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number_, stopped.set)
        watching = [asyncio.create_task(self.watch(name), name=name) for name in self.children]
        status = 0
        if self.headless:
            status = await self.rehearse()
        waiting = asyncio.create_task(stopped.wait(), name="stop")
        timeout = self.seconds or None
        done, _ = await asyncio.wait(
            {waiting, *watching}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done - {waiting}:
            say(f"{task.get_name()} ended by itself:\n{self.log_tail(task.get_name())}")
            status = 1
        for task in (waiting, *watching):
            task.cancel()
        return status

    async def watch(self, name: str) -> None:
        await self.children[name].wait()

    async def introduce(self) -> str:
        """The links to open. The box and the gridworker are those of the first camera's own grid, so that they meet."""
        district = ROOT / "config/district"
        first = yaml.load(self.cameras_file.read_text(), yaml.CSafeLoader)["cameras"][0]
        load = lambda name: yaml.load((district / f"{name}.yaml").read_text(), yaml.CSafeLoader)[name]  # noqa: E731
        households = {h["id"]: h for h in load("households")}
        boxes = load("boxes")
        box = next(
            (b for b in boxes if households[b["household"]]["grid"] == first.get("grid")), None
        ) or next(
            (b for b in boxes if households[b["household"]]["community"] == first.get("community")), boxes[0]
        )
        grid = households[box["household"]]["grid"]
        worker = next(w for w in load("gridworkers") if w["grid"] == grid)
        operator = next(u for u in load("users") if u["role"] == "operator")
        self.worker = worker["id"]
        self.sid = box["sid"]
        self.camera = first["id"]
        wall = await self.link("wall", "operator", operator["sub"])
        stb = await self.link("stb", "stb", box["sid"])
        phone = await self.link("worker", "worker", worker["id"])
        lines = [
            f"  指挥中心 video wall      {wall}",
            f"  机顶盒 set-top box       {stb}",
            f"  网格员 gridworker        {phone}",
            "",
            "  Each link logs in once. Open the wall, the gridworker (点一下上岗) and the box in three windows;",
            "  press the red key twice on the box (key r), or from a shell:",
            f"    .venv/bin/python -m simulators boxes press --sid {box['sid']} --cam {first['id']} --mqtt 127.0.0.1:{self.mqtt}",
            "  Ctrl-C ends everything. Logs: var/demo/*.log",
        ]
        if self.lan:
            lines += ["", HOW_TO_TRUST.format(ca="config/lan/ca.crt", url=self.base, folder="config/lan")]
        return "\n".join(lines)

    async def rehearse(self) -> int:
        """One press, and what came of it."""
        say("HEADLESS: pressing one alarm")
        output = await self.run(
            "boxes press",
            *(PYTHON, "-m", "simulators", "boxes", "press", "--sid", self.sid, "--cam", self.camera),
            *("--mqtt", f"127.0.0.1:{self.mqtt}", "--secrets", "config/secrets.yaml", "--follow", "5"),
        )
        print(output, flush=True)
        health = self.get("/healthz")
        print(json.dumps(json.loads(health or b"{}"), ensure_ascii=False), flush=True)
        return 0 if "persisted" in output else 1


def say(text: str) -> None:
    print(f"\033[1m[demo]\033[0m {text}", flush=True)


async def main() -> int:
    demo = Demo()
    try:
        return await demo.main()
    finally:
        await demo.stop()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()))
