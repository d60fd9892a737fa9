"""What worker processes cost and bring: the whole gateway with 1 and 2 of them, cameras to viewers, CPU of the process tree.

    python -m benchmarks.workers --workers 1 2 --seconds 20

Starts simulated cameras (720p25, 2 Mbps), `gateway serve` and light viewers on this machine, each in processes of their own,
and prints a line for each case. cpu_ms: milliseconds of CPU (user + system, front door and workers) per viewer-second.
busiest: the share of a core that the busiest process takes; it ends at 100, and the others then don't help it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CASES = ((64, 64), (1, 100))
SCENES = 4
HERTZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


async def farm(cameras: int) -> None:
    """Until the end of standard input. Prints its RTSP port. A few clips serve all cameras."""
    from simulators import clips, scenes
    from simulators.farm import Camera, Farm

    recipes = [clips.Recipe(scene=number, label=scenes.SCENES[number].title) for number in range(SCENES)]
    cache = ROOT / "var/clips"
    await asyncio.to_thread(clips.ensure, recipes, cache, processes=None)
    served = Farm(
        [
            Camera(id=f"cam{number:03}", name="", number=number, recipe=recipes[number % SCENES])
            for number in range(cameras)
        ],
        cache,
        authenticator=None,
    )
    await served.start("127.0.0.1", 0)
    print(served.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await served.close()


@contextmanager
def child(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is stopped at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def family(pid: int) -> list[int]:
    """The process and its children."""
    children = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
    return [pid, *map(int, children)]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / HERTZ


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def wait_for(url: str, process: subprocess.Popen[str], log: Path) -> None:
    for _ in range(900):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise SystemExit(f"the gateway did not come up:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(workers: int, cameras: int, viewers: int, seconds: float, srtp: str) -> dict[str, float]:
    """One case with everything started anew."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cams = stack.enter_context(child("benchmarks.workers", "--farm", str(cameras), stdin=subprocess.PIPE))
        assert cams.stdout is not None
        port = cams.stdout.readline().strip()
        rows = [
            {
                "id": f"cam{number:03}",
                "main": f"rtsp://127.0.0.1:{port}/cam{number:03}/main",
                "transport": "tcp",
            }
            for number in range(cameras)
        ]
        http = free_port()
        (folder / "cameras.yaml").write_text(json.dumps({"cameras": rows}))
        settings = {"http": {"port": http}, "media": {"udp_port": 0}, "mqtt": {"mode": "off"}}
        (folder / "gateway.yaml").write_text(json.dumps({**settings, "access": {"joins_staff": 10_000}}))
        data = str(folder / "data")
        token = subprocess.run(
            [sys.executable, "-m", "gateway", "token", "--role", "operator", "--sub", "bench", "--data", data],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        log = folder / "log"
        gateway = stack.enter_context(
            child(
                "gateway",
                "serve",
                "--cameras",
                str(folder / "cameras.yaml"),
                "--data",
                data,
                "--workers",
                str(workers),
                stderr=log.open("w"),
            )
        )
        wait_for(f"http://127.0.0.1:{http}/healthz", gateway, log)
        idle_mb = sum(map(rss_mb, family(gateway.pid)))
        load = stack.enter_context(
            child(
                "benchmarks.whep_load",
                "--url",
                f"http://127.0.0.1:{http}/whep/{{camera}}",
                "--token",
                token,
                "--cameras",
                str(cameras),
                "--count",
                str(viewers),
                "--seconds",
                str(seconds),
                "--srtp",
                srtp,
            )
        )
        assert load.stdout is not None
        before: dict[int, float] = {}
        for line in load.stdout:
            said = json.loads(line)
            if said["event"] == "joining":
                continue
            if said["event"] == "steady":
                before = {pid: cpu_s(pid) for pid in family(gateway.pid)}
                continue
            used = {pid: cpu_s(pid) - start for pid, start in before.items()}
            whole = sum(used.values())
            return {
                "workers": workers,
                "cameras": cameras,
                "viewers": said["viewers"],
                "cpu_ms": round(whole * 1000 / said["seconds"] / viewers, 3),
                "us_per_packet": round(whole * 1e6 / said["packets"], 2),
                "busiest": round(max(used.values()) / said["seconds"] * 100, 1),
                "mbps": round(said["mbps"], 1),
                "fps": round(said["fps"], 2),
                "worst_gap_ms_p95": round(said["worst_gap_ms_p95"]),
                "first_ms_p50": round(said["first_ms_p50"]),
                "rss_mb": round(sum(map(rss_mb, before)), 1),
                "idle_rss_mb": round(idle_mb, 1),
                "load_percent": round(said["load_percent"], 1),
            }
    raise SystemExit("the viewers did not finish")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--srtp", choices=("gcm", "cm"), default="gcm")
    parser.add_argument("--farm", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.farm is not None:
        asyncio.run(farm(options.farm))
        return
    for cameras, viewers in CASES:
        for workers in options.workers:
            print(json.dumps(measure(workers, cameras, viewers, options.seconds, options.srtp)), flush=True)


if __name__ == "__main__":
    main()
