"""A soak of the whole gateway: viewers come, go and vanish, cameras fail in every way, some were never there.

    make soak SECONDS=600

What is looked at is the gateway's process from outside (/proc) and /metrics. At the end, when everybody has left, there
must be no session, no task, no socket and no descriptor more than at the beginning, and resident memory must have
stopped growing once it was warm. Exit status 1 and the samples on failure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "conformance"), str(Path(__file__).parents[2])]

import aiohttp
from gateway_process import Resources, Running, running
from http_clients import SDP, Peer, request

FAULTS = ("cut", "hang", "stall", "401", "loss", "timestamps", "garbage", "stap", "annexb", "unmarked", "mtu")
MIB = 1 << 20
SETTINGS: dict[str, dict[str, Any]] = {
    "media": {"ice_timeout_s": 5.0},
    "ingest": {
        "stall_timeout_s": 1.0,
        "connect_timeout_s": 1.0,
        "idle_grace_s": 1.0,
        "first_keyframe_s": 3.0,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """at_s: since the begin; tasks, sessions: of /metrics."""

    at_s: float
    held: Resources
    tasks: int
    sessions: int
    dials: int

    def __str__(self) -> str:
        return (
            f"{self.at_s:7.1f} s  rss {self.held.rss_bytes / MIB:6.1f} MiB  fds {self.held.fds:3d}  sockets "
            f"{self.held.sockets:3d}  threads {self.held.threads:2d}  tasks {self.tasks:3d}  sessions {self.sessions:3d}"
        )


@dataclass(slots=True)
class Report:
    """What a soak saw. counts: what was done, by name."""

    quiet_before: Sample | None = None
    quiet_after: Sample | None = None
    samples: list[Sample] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def growth_bytes(self, warm_s: float) -> float:
        """How much resident memory grew from `warm_s` to the end, by the line of least squares through the samples."""
        points = [(one.at_s, float(one.held.rss_bytes)) for one in self.samples if one.at_s >= warm_s]
        if len(points) < 3:
            return 0.0
        return slope(points) * (points[-1][0] - points[0][0])

    def mistakes(self, *, warm_s: float, growth_limit: float) -> list[str]:
        """What is wrong, in words; empty when all is well."""
        before, after = self.quiet_before, self.quiet_after
        if before is None or after is None:
            return ["it did not come to its end"]
        found = []
        for name, was, now, slack in (
            ("sessions", before.sessions, after.sessions, 0),
            ("tasks", before.tasks, after.tasks, 1),
            ("sockets", before.held.sockets, after.held.sockets, 1),
            ("descriptors", before.held.fds, after.held.fds, 2),
            ("threads", before.held.threads, after.held.threads, 4),
        ):
            if now > was + slack:
                found.append(f"{name}: {was} before, {now} after everybody left")
        growth = self.growth_bytes(warm_s)
        if growth > growth_limit:
            found.append(
                f"memory grew by {growth / MIB:.1f} MiB after {warm_s:.0f} s; {growth_limit / MIB:.0f} are allowed"
            )
        return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line of least squares."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class Soak:
    """One soak. Random but by a seed."""

    def __init__(
        self,
        gateway: Running,
        http: aiohttp.ClientSession,
        scraper: aiohttp.ClientSession,
        *,
        seed: int,
        abandon: bool,
    ) -> None:
        """scraper: keeps one connection for /metrics, so that looking changes nothing; abandon: also leave sessions that never connect; the gateway gives them up after 20 s."""
        self.gateway, self.http, self.abandon = gateway, http, abandon
        self.scraper = scraper
        self.report = Report()
        self.random = random.Random(seed)
        self.began = time.monotonic()
        self.offer = ""
        self.bearer: dict[str, str] = {}

    async def run(self, seconds: float, say: Callable[[str], None]) -> Report:
        self.bearer = await self.gateway.bearer()
        template = Peer(receive="video audio")
        self.offer = await template.offer()
        await template.close()
        await self.round(0)  # what is allocated once is allocated now
        self.report.quiet_before = await self.quiet()
        say(f"quiet  {self.report.quiet_before}")
        self.report.samples.clear()
        self.began = time.monotonic()
        number = 1
        while time.monotonic() - self.began < seconds:
            await self.round(number)
            self.report.samples.append(await self.sample())
            say(f"{number:5d}  {self.report.samples[-1]}")
            number += 1
        self.report.quiet_after = await self.quiet()
        say(f"quiet  {self.report.quiet_after}")
        return self.report

    async def round(self, number: int) -> None:
        """A few seconds in which all that can happen happens."""
        camera = self.random.choice(self.gateway.cameras)
        fault = FAULTS[number % len(FAULTS)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.fail(camera, fault), name="fault")
            tasks.create_task(self.churn(12), name="churn")
            tasks.create_task(self.mistakes(), name="mistakes")
            tasks.create_task(self.page(), name="page")
            tasks.create_task(self.strangers(), name="strangers")
            tasks.create_task(self.absent(), name="absent")
            for vanish in (False, number % 3 == 0):
                tasks.create_task(
                    self.view(self.random.choice(self.gateway.cameras), vanish=vanish), name="viewer"
                )

    async def fail(self, camera: str, fault: str) -> None:
        await self.gateway.fault(camera, fault)
        await asyncio.sleep(self.random.uniform(0.5, 2.0))
        await self.gateway.fault(camera, fault, False)
        self.report.count(f"fault {fault}")

    async def churn(self, count: int) -> None:
        """Sessions that are made and ended before they connect."""
        for _ in range(count):
            camera, stream = (
                self.random.choice(self.gateway.cameras),
                self.random.choice(("main", "sub", "auto")),
            )
            made = await self.post(camera, stream)
            if made is not None and not (self.abandon and self.random.random() < 0.1):
                await request(self.http, "DELETE", made, **self.bearer)
            self.report.count("join")

    async def post(self, camera: str, stream: str) -> str | None:
        url = f"{self.gateway.base}/whep/{camera}?stream={stream}"
        answer = await request(self.http, "POST", url, body=self.offer, Content_Type=SDP, **self.bearer)
        self.report.count(f"answer {answer.status}")
        return answer.location if answer.status == 201 else None

    async def view(self, camera: str, *, vanish: bool) -> None:
        """A real viewer, who leaves in order or is switched off."""
        peer = Peer()
        try:
            joined = await peer.join(
                self.http, f"{self.gateway.base}/whep/{camera}?stream=sub", **self.bearer
            )
            if joined.status != 201:
                self.report.count(f"viewer {joined.status}")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(4):
                    while peer.frames < 10:
                        await asyncio.sleep(0.05)
            self.report.count("viewer with picture" if peer.frames else "viewer without picture")
            if vanish:
                peer.go_silent()
                self.report.count("viewer vanished")
            else:
                await request(self.http, "DELETE", joined.location, **self.bearer)
        finally:
            await peer.close()

    async def mistakes(self) -> None:
        """What is refused must leave nothing behind."""
        url = f"{self.gateway.base}/whep/{self.gateway.cameras[0]}"
        for headers, body in (
            ({"Content_Type": "text/plain", **self.bearer}, self.offer),
            ({"Content_Type": SDP, **self.bearer}, "nonsense"),
            ({"Content_Type": SDP}, self.offer),
        ):
            await request(self.http, "POST", url, body=body, **headers)
            self.report.count("refused")

    async def absent(self) -> None:
        """Someone waits for a camera that never was."""
        await self.post("cam900", "main")

    async def page(self) -> None:
        """A page on the event channel, closed without a goodbye now and then."""
        url = f"{self.gateway.base}/api/v1/events"
        channel = await self.http.ws_connect(url, headers=self.bearer)
        await channel.receive()
        if self.random.random() < 0.5:
            await channel.close()
        else:
            channel._response.close()  # the connection just ends
        self.report.count("page")

    async def strangers(self) -> None:
        """Datagrams and connections that mean nothing to the media port."""
        target = ("127.0.0.1", self.gateway.media_port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for size in (1, 20, 200, 1200):
                out.sendto(os.urandom(size), target)
        _, writer = await asyncio.open_connection(*target)
        writer.write(os.urandom(64))
        await asyncio.sleep(0.2)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.report.count("stranger")

    async def sample(self) -> Sample:
        metrics = await self.gateway.metrics(self.scraper)
        return Sample(
            at_s=time.monotonic() - self.began,
            held=self.gateway.resources(),
            tasks=int(metrics["gateway_tasks"]),
            sessions=sum(
                int(value) for name, value in metrics.items() if name.startswith("gateway_media_sessions{")
            ),
            dials=int(metrics["gateway_rtsp_dials_total"]),
        )

    async def quiet(self) -> Sample:
        """Everybody has left and what was opened for them is closed: the sample that stays the same for two seconds."""
        last, since = await self.sample(), time.monotonic()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            await asyncio.sleep(0.5)
            now = await self.sample()
            key = (now.tasks, now.sessions, now.held.fds)
            if now.sessions or key != (last.tasks, last.sessions, last.held.fds):
                since = time.monotonic()
            last = now
            if time.monotonic() - since >= 2:
                break
        return last


async def soak(
    directory: Path,
    seconds: float,
    *,
    cameras: int = 4,
    absent: int = 3,
    seed: int = 1,
    abandon: bool = True,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Runs a gateway of its own for so long. Absent cameras are on demand: they are dialled while someone waits."""
    async with (
        running(directory, cameras=cameras, absent=absent, settings=SETTINGS, cache=cache) as gateway,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
        aiohttp.ClientSession() as scraper,
    ):
        return await Soak(gateway, http, scraper, seed=seed, abandon=abandon).run(seconds, say)


def main() -> int:
    parser = argparse.ArgumentParser(description="Joins, leaves and faults; memory must stay flat.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--growth", type=float, default=6, metavar="MIB", help="allowed after the first third"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        report = asyncio.run(
            soak(
                Path(directory), options.seconds, seed=options.seed, say=lambda text: print(text, flush=True)
            )
        )
    mistakes = report.mistakes(warm_s=options.seconds / 3, growth_limit=options.growth * MIB)
    print(", ".join(f"{name} {count}" for name, count in sorted(report.counts.items())))
    print(f"memory after the first third: {report.growth_bytes(options.seconds / 3) / MIB:+.1f} MiB")
    print("\n".join(mistakes) or "nothing was left behind")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
