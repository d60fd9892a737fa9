"""What sending video costs: the whole gateway, simulated cameras and light viewers, with and without the compiled loop.

    python -m benchmarks.media --seconds 20 --repeat 3 [--only "1 -> 100"] [--loop compiled]

Cameras (720p25 at 2 Mbps, 640x360 at 400 kbps), `gateway serve --workers 1` and viewers (benchmarks.whep_load) each run in
processes of their own on this machine. Prints a JSON line for each case and run, then the medians as a Markdown table beside
the goals. cpu_ms: CPU (user + system) of the gateway per viewer-second, ingest included; join_ms: CPU of one join; gap: the
longest pause between two frames; first: from the POST to the first whole keyframe; kb: RSS that one viewer adds; idle: a
viewer whose camera sends nothing. A first frame waits for the camera's next keyframe where the camera was cold.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workers import ROOT, child, cpu_s, family, free_port, rss_mb, wait_for

LOOPS = {"python": "off", "compiled": "auto"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """goals: figure -> (pure Python, compiled), as the README's table has them."""

    name: str
    cameras: int = 1
    viewers: int = 100
    stream: str = "main"
    srtp: str = "gcm"
    idle: bool = False
    goals: dict[str, tuple[float, float]]


CASES = (
    Case(
        name="1 -> 100 main, AES-GCM",
        goals={"cpu_ms": (1.0, 0.7), "join_ms": (3, 3), "first_ms_p50": (30, 30), "first_ms_p95": (80, 80)},
    ),
    Case(name="1 -> 100 main, AES-CM", srtp="cm", goals={"cpu_ms": (1.25, 0.8)}),
    Case(name="1 -> 100 sub, AES-GCM", stream="sub", goals={"cpu_ms": (0.45, 0.4)}),
    Case(name="1 -> 400 main, AES-GCM", viewers=400, goals={"gap_ms_p95": (100, 80), "kb": (150, 150)}),
    Case(name="64 -> 64 main, AES-GCM", cameras=64, viewers=64, goals={"cpu_ms": (2.0, 1.6)}),
    Case(name="1 -> 100, nothing sent", idle=True, goals={"cpu_ms": (0.08, 0.08)}),
)


@contextmanager
def gateway(cameras: int, compiled: str) -> Iterator[tuple[int, int, int, str]]:
    """Farm and gateway. Yields the pids of both, the HTTP port and a token."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        farm = stack.enter_context(child("benchmarks.workers", "--farm", str(cameras), stdin=subprocess.PIPE))
        assert farm.stdout is not None
        port, http = farm.stdout.readline().strip(), free_port()
        base = f"rtsp://127.0.0.1:{port}/cam"
        rows = [
            {
                "id": f"cam{n:03}",
                "main": f"{base}{n:03}/main",
                "sub": f"{base}{n:03}/sub",
                "pull": "on_demand",
            }
            for n in range(cameras)
        ]
        settings = {
            "http": {"port": http},
            "media": {"udp_port": 0, "compiled": compiled},
            "mqtt": {"mode": "off"},
            "access": {"joins_staff": 10_000},
            "ingest": {"stall_timeout_s": 120},  # the idle case stops the cameras
        }
        (folder / "cameras.yaml").write_text(json.dumps({"cameras": rows}))
        (folder / "gateway.yaml").write_text(json.dumps(settings))
        files = ["--cameras", str(folder / "cameras.yaml"), "--data", str(folder / "data")]
        who = ["--role", "operator", "--sub", "bench", *files[2:]]
        token = subprocess.run(
            [sys.executable, "-m", "gateway", "token", *who],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        with (folder / "log").open("w") as log:
            served = stack.enter_context(child("gateway", "serve", *files, "--workers", "1", stderr=log))
        wait_for(f"http://127.0.0.1:{http}/healthz", served, folder / "log")
        yield farm.pid, served.pid, http, token


def measure(case: Case, compiled: str, seconds: float) -> dict[str, Any]:
    """One case with everything started anew."""
    with ExitStack() as stack:
        farm, pid, http, token = stack.enter_context(gateway(case.cameras, compiled))
        tree = family(pid)

        def spent() -> float:
            return sum(map(cpu_s, tree))

        empty_mb = sum(map(rss_mb, tree))
        load = stack.enter_context(
            child(
                "benchmarks.whep_load",
                *("--url", f"http://127.0.0.1:{http}/whep/{{camera}}?stream={case.stream}", "--token", token),
                *("--cameras", str(case.cameras), "--count", str(case.viewers), "--srtp", case.srtp),
                *("--seconds", str(seconds)),
            )
        )
        assert load.stdout is not None
        joining = steady = watched = 0.0
        for line in load.stdout:
            said = json.loads(line)
            if said["event"] == "joining":
                joining = spent()
            elif said["event"] == "steady":
                watched = said["viewer_seconds"]
                if case.idle:
                    os.kill(farm, signal.SIGSTOP)
                    time.sleep(0.2)
                steady = spent()
            else:
                if case.idle:
                    os.kill(farm, signal.SIGCONT)
                rate = (spent() - steady) / said["seconds"] / case.viewers
                return {
                    "viewers": said["viewers"],
                    "cpu_ms": round(rate * 1000, 3),
                    "us_per_packet": round(
                        rate * case.viewers * said["seconds"] * 1e6 / max(1, said["packets"]), 2
                    ),
                    "join_ms": round((steady - joining - rate * watched) * 1000 / case.viewers, 2),
                    "first_ms_p50": round(said["first_ms_p50"], 1),
                    "first_ms_p95": round(said["first_ms_p95"], 1),
                    "gap_ms_p95": round(said["worst_gap_ms_p95"], 1),
                    "kb": round((sum(map(rss_mb, tree)) - empty_mb) * 1000 / case.viewers),
                    "fps": round(said["fps"], 2),
                    "load_percent": round(said["load_percent"], 1),
                }
    raise SystemExit("the viewers did not finish")


def table(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Goal and median of every figure that has a goal."""
    lines = ["| case | figure | goal Python / compiled | Python | compiled |", "|---|---|---|---|---|"]
    for case in CASES:
        for figure, goals in case.goals.items():
            cells = []
            for loop in LOOPS:
                runs = results.get((case.name, loop))
                cells.append(f"{statistics.median(run[figure] for run in runs):g}" if runs else "")
            if any(cells):
                lines.append(
                    f"| {case.name} | {figure} | {goals[0]:g} / {goals[1]:g} | {' | '.join(cells)} |"
                )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--loop", choices=LOOPS, help="default: both, compiled where it was built")
    options = parser.parse_args(argv)
    from gateway.streams import compiled

    loops = (
        [options.loop]
        if options.loop
        else [name for name in LOOPS if name == "python" or compiled.available()]
    )
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(options.repeat):
        for case in CASES:
            for loop in loops if options.only in case.name else ():
                figures = measure(case, LOOPS[loop], options.seconds)
                results.setdefault((case.name, loop), []).append(figures)
                print(json.dumps({"case": case.name, "loop": loop, **figures}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
