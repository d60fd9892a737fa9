"""What the media plane costs: the whole table of goals, on the finished gateway, with simulated cameras and light viewers.

    python -m benchmarks.media [--quick] [--seconds 20] [--repeat 3] [--only "1 -> 100"] [--loop compiled]

Cameras (720p25 at 2 Mbps, 640x360 at 400 kbps, GOP 2 s), `gateway serve` and viewers (benchmarks.whep_load) each run in
processes of their own on this machine. Prints a JSON line for each case and run, then the medians as a Markdown table beside
the best peer and the goals. --quick: everything once, seconds long, with fewer cameras where nobody watches.

cpu_ms: CPU (user + system) of the gateway per viewer-second, ingest included. join_ms: CPU of one join. gap_ms: the longest
pause between two frames. first_ms: from the POST to the first whole keyframe, of a camera that is pulled already; cold_ms:
of one that has to be dialled and starts with a keyframe. kb: RSS that one viewer (or one camera with its cached group of
pictures) adds. core_percent: of one core. back_s: after the last camera was up again. glass_ms: benchmarks.glass. A viewer
who is refused asks again as the answer says; `retried` and `failed` count that.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workers import ROOT, child, cpu_s, family, free_port, rss_mb, wait_for

LOOPS = {"python": "off", "compiled": "auto"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    seconds: float = 20
    quick: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """figure: its name in the results. Of two numbers the first is for pure Python. peer: the best open gateway's."""

    figure: str
    goal: tuple[float, float]
    peer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """measure(compiled, options) -> figures. both: whether the compiled loop makes a difference to it."""

    name: str
    measure: Callable[[str, Options], dict[str, Any]]
    goals: tuple[Goal, ...]
    both: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    pid: int
    http: int
    token: str
    farm: int | None


@contextmanager
def gateway(
    cameras: int, compiled: str, *, workers: int = 1, warm: bool = False, rtsp: str | None = None
) -> Iterator[Running]:
    """A gateway and, unless `rtsp` (a port) has them, its cameras. warm: they are pulled before anybody watches."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        farm = None
        if rtsp is None:
            process = stack.enter_context(
                child("benchmarks.workers", "--farm", str(cameras), stdin=subprocess.PIPE)
            )
            assert process.stdout is not None
            rtsp, farm = process.stdout.readline().strip(), process.pid
        http, pull = free_port(), "always" if warm else "on_demand"
        base = f"rtsp://127.0.0.1:{rtsp}/cam"
        rows = [
            {
                "id": f"cam{n:03}",
                "main": f"{base}{n:03}/main",
                "sub": f"{base}{n:03}/sub",
                "pull": pull,
                "pull_main": pull,
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
            served = stack.enter_context(
                child("gateway", "serve", *files, "--workers", str(workers), stderr=log)
            )
        wait_for(f"http://127.0.0.1:{http}/healthz", served, folder / "log")
        if warm:
            time.sleep(4)  # a group of pictures, and then some
        yield Running(pid=served.pid, http=http, token=token, farm=farm)


@contextmanager
def silent(farm: int | None) -> Iterator[None]:
    """The cameras send nothing for a while: connections stay, pictures stop."""
    if farm is not None:
        os.kill(farm, signal.SIGSTOP)
        time.sleep(0.5)
    try:
        yield
    finally:
        if farm is not None:
            os.kill(farm, signal.SIGCONT)


def viewers(
    *,
    cameras: int = 1,
    count: int = 100,
    stream: str = "main",
    srtp: str = "gcm",
    idle: bool = False,
    workers: int = 1,
    warm: bool = True,
) -> Callable[[str, Options], dict[str, Any]]:
    """A case with viewers."""

    def measure(compiled: str, options: Options) -> dict[str, Any]:
        with ExitStack() as stack:
            running = stack.enter_context(gateway(cameras, compiled, workers=workers, warm=warm))
            tree = family(running.pid)

            def spent() -> float:
                return sum(map(cpu_s, tree))

            url = f"http://127.0.0.1:{running.http}/whep/{{camera}}?stream={stream}"
            empty_mb = sum(map(rss_mb, tree))
            with silent(running.farm if idle else None):
                before, at = spent(), time.monotonic()
                time.sleep(3)
                resting = (spent() - before) / (time.monotonic() - at)
            time.sleep(1)
            load = stack.enter_context(
                child(
                    "benchmarks.whep_load",
                    *("--url", url, "--token", running.token, "--srtp", srtp),
                    *("--cameras", str(cameras), "--count", str(count), "--seconds", str(options.seconds)),
                )
            )
            assert load.stdout is not None
            joining = steady = watched = 0.0
            began = 0.0
            for line in load.stdout:
                said = json.loads(line)
                if said["event"] == "joining":
                    joining, began = spent(), time.monotonic()
                elif said["event"] == "steady":
                    watched, lasted = said["viewer_seconds"], time.monotonic() - began
                    stack.enter_context(silent(running.farm if idle else None))
                    steady, busiest = spent(), {pid: cpu_s(pid) for pid in tree}
                else:
                    used = spent() - steady
                    most = max(cpu_s(pid) - then for pid, then in busiest.items())
                    per_viewer = used / said["seconds"] / count
                    # A viewer's share of the steady state, less what the cameras cost without viewers.
                    rate = max(0.0, per_viewer - resting / count)
                    return {
                        "viewers": said["viewers"],
                        "failed": said["failed"],
                        "retried": said["retried"],
                        "cpu_ms": round((rate if idle else per_viewer) * 1000, 3),
                        "us_per_packet": round(used * 1e6 / max(1, said["packets"]), 2),
                        "join_ms": round(
                            (steady - joining - resting * lasted - rate * watched) * 1000 / count, 2
                        ),
                        "cold_ms_p50" if not warm else "first_ms_p50": round(said["first_ms_p50"], 1),
                        "cold_ms_p95" if not warm else "first_ms_p95": round(said["first_ms_p95"], 1),
                        "gap_ms_p95": round(said["worst_gap_ms_p95"], 1),
                        "kb": round((sum(map(rss_mb, tree)) - empty_mb) * 1000 / count),
                        "fps": round(said["fps"], 2),
                        "busiest_percent": round(most / said["seconds"] * 100, 1),
                        "load_percent": round(said["load_percent"], 1),
                    }
        raise SystemExit("the viewers did not finish")

    return measure


def pulled(cameras: int, stream: str) -> Callable[[str, Options], dict[str, Any]]:
    """A case without viewers: streams pulled, the last group of pictures of each cached."""

    def measure(_compiled: str, options: Options) -> dict[str, Any]:
        count = cameras // 8 if options.quick else cameras
        with child("benchmarks.workers", "--farm", str(count), stdin=subprocess.PIPE) as farm:
            assert farm.stdout is not None
            url = f"rtsp://127.0.0.1:{farm.stdout.readline().strip()}/cam{{c}}/{stream}"
            said = _said("benchmarks.ingest", url, "--cameras", str(count), "--seconds", str(options.seconds))
        return {
            "cameras": count,
            "core_percent": round(said["cpu_percent_of_a_core"] * cameras / count, 2),
            "kb": said["rss_kib_per_camera"],
            "ms_per_camera_second": said["cpu_ms_per_camera_second"],
            "all_live_after_s": said["all_live_after_s"],
            "lost_packets": said["lost_packets"],
        }

    return measure


def rebooted(_compiled: str, options: Options) -> dict[str, Any]:
    said = _said("benchmarks.ingest", "--reboot", "--cameras", "96" if options.quick else "768")
    return {
        "cameras": said["cameras"],
        "back_s": said["all_back_after_the_last_was_up_s"],
        "dial_peak": said["dial_peak"],
    }


def seen(compiled: str, options: Options) -> dict[str, Any]:
    from benchmarks import glass

    return glass.measure(options.seconds, compiled)


def _said(*command: str) -> dict[str, Any]:
    """The JSON object that a benchmark in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _same(figure: str, goal: float, peer: str = "") -> Goal:
    return Goal(figure=figure, goal=(goal, goal), peer=peer)


CASES = (
    Case(
        name="1 -> 100 main, AES-GCM",
        measure=viewers(),
        goals=(
            Goal(figure="cpu_ms", goal=(1.0, 0.7), peer="3.57"),
            _same("join_ms", 3),
            _same("first_ms_p50", 30, "1026"),
            _same("first_ms_p95", 80, "1848"),
        ),
    ),
    Case(
        name="1 -> 100 main, AES-CM",
        measure=viewers(srtp="cm"),
        goals=(Goal(figure="cpu_ms", goal=(1.25, 0.8), peer="3.0"),),
    ),
    Case(
        name="1 -> 100 sub, AES-GCM",
        measure=viewers(stream="sub"),
        goals=(Goal(figure="cpu_ms", goal=(0.45, 0.4)),),
    ),
    Case(
        name="1 -> 400 main, AES-GCM",
        measure=viewers(count=400),
        goals=(Goal(figure="gap_ms_p95", goal=(100, 80), peer="686"), _same("kb", 150, "4300")),
    ),
    Case(
        name="64 -> 64 main, on demand",
        measure=viewers(cameras=64, count=64, warm=False),
        goals=(Goal(figure="cpu_ms", goal=(2.0, 1.6), peer="4.93"), _same("cold_ms_p50", 60, "42")),
    ),
    Case(
        name="1 -> 100, nothing sent",
        measure=viewers(idle=True),
        goals=(_same("cpu_ms", 0.08, "~0.4"),),
        both=False,
    ),
    Case(
        name="768 subs, nobody watches",
        measure=pulled(768, "sub"),
        goals=(_same("core_percent", 12, "32"), _same("kb", 150, "150")),
        both=False,
    ),
    Case(
        name="256 mains, nobody watches",
        measure=pulled(256, "main"),
        goals=(_same("core_percent", 8, "21"),),
        both=False,
    ),
    Case(name="768 cameras reboot at once", measure=rebooted, goals=(_same("back_s", 10),), both=False),
    Case(
        name="64 -> 64 main, 2 workers",
        measure=viewers(cameras=64, count=64, workers=2, warm=False),
        goals=(_same("cpu_ms", 2.0), _same("cold_ms_p50", 60)),
        both=False,
    ),
    Case(
        name="1 -> 100 main, 2 workers",
        measure=viewers(workers=2),
        goals=(_same("cpu_ms", 1.0), _same("join_ms", 4.5)),
        both=False,
    ),
    Case(name="glass to glass, one tile", measure=seen, goals=(_same("glass_ms_p95", 80),), both=False),
)


def table(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Best peer, goal and median of every figure that has a goal."""
    lines = [
        "| case | figure | best peer | goal Python / compiled | Python | compiled |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for goal in case.goals:
            cells = []
            for loop in LOOPS:
                runs = results.get((case.name, loop))
                cells.append(f"{statistics.median(run[goal.figure] for run in runs):g}" if runs else "")
            if any(cells):
                wanted = f"{goal.goal[0]:g} / {goal.goal[1]:g}" if case.both else f"{goal.goal[1]:g}"
                lines.append(
                    f"| {case.name} | {goal.figure} | {goal.peer} | {wanted} | {' | '.join(cells)} |"
                )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="some seconds each, fewer unwatched cameras")
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--loop", choices=LOOPS, help="default: both, compiled where it was built")
    options = parser.parse_args(argv)
    from gateway.streams import compiled

    built = [name for name in LOOPS if name == "python" or compiled.available()]
    chosen = Options(
        seconds=min(options.seconds, 4) if options.quick else options.seconds, quick=options.quick
    )
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(1 if options.quick else options.repeat):
        for case in CASES:
            if options.only not in case.name:
                continue
            for loop in [options.loop] if options.loop else built if case.both else built[-1:]:
                figures = case.measure(LOOPS[loop], chosen)
                results.setdefault((case.name, loop), []).append(figures)
                print(json.dumps({"case": case.name, "loop": loop, **figures}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
