"""The running product for end-to-end tests: simulated cameras, broker, gateway, Chromium; all real, all stopped by their ids."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from playwright.async_api import Browser, Page

from gateway.cli import main

ROOT = Path(__file__).resolve().parents[2]
KEPT_DISTRICT = (
    ROOT / "var/test-district"
)  # what a gateway keeps of the files it has read; it checks that they are the same
CAMERAS = 24
FPS = 5  # of the cameras: decoding and drawing 16 tiles of 25 pictures a second takes a core
CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream=fps=5",
)


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Product:
    """One running product. `folder` holds its configuration and data."""

    folder: Path
    http: int
    mqtt: int
    rtsp: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    # -- processes --------------------------------------------------------------------------------------------

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def start_gateway(self) -> None:
        self.start(
            "gateway",
            *(
                "gateway",
                "serve",
                "--config",
                f"{self.folder}/gateway.yaml",
                "--cameras",
                f"{self.folder}/cameras.yaml",
            ),
            *("--district", "config/district", "--data", f"{self.folder}/data"),
        )
        self.until_ready()

    def keep_district(self) -> None:
        """For the next product's start."""
        own = self.folder / "data/cache/district"
        fresh = KEPT_DISTRICT.with_suffix(f".{os.getpid()}")
        shutil.copy(own, fresh)
        fresh.replace(KEPT_DISTRICT)

    def until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)}"
            try:
                with urllib.request.urlopen(f"{self.base}/readyz", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"not ready in 60 s:\n{self.log('gateway')}")

    def kill(self, name: str) -> None:
        """kill -9, as a power cut would."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    # -- what a person would do -------------------------------------------------------------------------------

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    def gateway(self, *command: str) -> str:
        """The console script in this process: starting Python costs more than what it does here."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert main(command) == 0
        return said.getvalue().strip()

    def link(self, page: str, role: str, sub: str) -> str:
        return self.gateway(
            *("link", "--page", page, "--role", role, "--sub", sub),
            *("--data", f"{self.folder}/data", "--base", self.base),
        )

    def token(self, role: str, sub: str, *more: str) -> str:
        return self.gateway("token", "--role", role, "--sub", sub, "--data", f"{self.folder}/data", *more)

    def get(self, path: str, token: str) -> Any:
        request = urllib.request.Request(self.base + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def post(self, path: str, token: str, body: object) -> Any:
        request = urllib.request.Request(
            self.base + path,
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def signed_press(self, sid: str, *more: str) -> list[str]:
        """The mosquitto_pub command line that `boxes press --print` gives."""
        line = self.run(
            *("simulators", "boxes", "press", "--sid", sid, "--print", *more),
            *("--secrets", f"{self.folder}/secrets.yaml", "--mqtt", f"127.0.0.1:{self.mqtt}"),
        )
        return shlex.split(line)


@contextmanager
def a_product(
    folder: Path, cameras: int = CAMERAS, faults: tuple[str, ...] = (), **settings: dict[str, Any]
) -> Iterator[Product]:
    """The whole product with simulated cameras, on free ports, with its data in `folder`. `faults` are the cameras' as in
    `--fault`, `settings` are sections of gateway.yaml beside (and over) those that it needs."""
    running = Product(folder, free_port(), free_port(), free_port())
    rows = yaml.load((ROOT / "config/cameras.yaml").read_text(), yaml.CSafeLoader)["cameras"][:cameras]
    for row in rows:
        for name in ("main", "sub"):
            row[name] = row[name].replace("127.0.0.1:8554", f"127.0.0.1:{running.rtsp}")
    (folder / "cameras.yaml").write_text(yaml.dump({"cameras": rows}, allow_unicode=True, sort_keys=False))
    needed: dict[str, dict[str, Any]] = {
        "http": {"port": running.http},
        "media": {"udp_port": 0},
        "mqtt": {"port": running.mqtt},
        "evidence": {"after_s": 3},
    }
    sections = {name: needed.get(name, {}) | settings.get(name, {}) for name in needed | settings}
    if sections["mqtt"].get("mode") == "off":
        del sections["mqtt"]["port"]
    (folder / "gateway.yaml").write_text(yaml.dump(sections))
    running.run("simulators", "secrets", "--out", f"{folder}/secrets.yaml")
    try:
        running.start(
            "cameras",
            *(
                "simulators",
                "cameras",
                "--cameras",
                f"{folder}/cameras.yaml",
                "--secrets",
                f"{folder}/secrets.yaml",
            ),
            *("--port", str(running.rtsp), "--live", "0", "--cache", "var/test-clips"),
            *("--seconds", "4", "--fps", str(FPS)),
            *(word for fault in faults for word in ("--fault", fault)),
        )
        if KEPT_DISTRICT.exists():
            (folder / "data/cache").mkdir(parents=True, mode=0o700)
            shutil.copy(KEPT_DISTRICT, folder / "data/cache/district")
        running.start_gateway()
        running.keep_district()
        yield running
    finally:
        running.stop()


async def open_page(
    browser: Browser, link: str, width: int, height: int, *scripts: str
) -> tuple[Page, list[str]]:
    """A page of its own browser profile, with what went wrong in it (script errors; not refused requests). `scripts` run
    before its own."""
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        permissions=["camera", "microphone", "geolocation"],
        geolocation={"latitude": 30.8169, "longitude": 103.8704, "accuracy": 10},
        locale="zh-CN",
    )
    for script in scripts:
        await context.add_init_script(script)
    page = await context.new_page()
    page.set_default_timeout(60_000)  # bounds a failure on a busy machine; nothing is measured by it
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(link)
    return page, errors
