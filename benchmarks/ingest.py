"""What pulling costs: N streams of a camera farm, nobody watching, the keyframe-to-keyframe group of pictures cached as the gateway does.

    python -m benchmarks.ingest rtsp://127.0.0.1:8654/cam{c}/sub --cameras 768 --seconds 20

    python -m benchmarks.ingest --reboot --cameras 768

The second starts the project's own simulators, lets all cameras reboot at the same moment and says how long after the last
one was up again all were live, and how many were dialled at one time at most.

Prints one JSON object: CPU (user + system of this process) in ms per camera-second and in percent of a core, frames per
camera-second, packets lost, seconds until all were live, RSS. {c} is the camera's number in three digits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import resource
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from gateway.streams.cameras import CameraSupervisor, DialLimits, State
from gateway.streams.media import StreamName
from gateway.streams.stream import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    id: str
    main: str
    sub: str | None = None
    credentials: str | None = None
    pull: str = "always"
    pull_main: str = "on_demand"
    transport: str = "tcp"


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def kernel_s() -> float:
    """An estimate: the split is sampled, the sum is exact."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def rss_mib() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


async def measure(
    url: str,
    cameras: int,
    seconds: float,
    *,
    name: StreamName,
    transport: str,
    credentials: tuple[str, str] | None,
) -> dict[str, float]:
    """Pull `cameras` streams for `seconds` after all are live."""
    sinks: dict[str, Stream] = {}

    def sink_of(camera_id: str, _name: StreamName) -> Stream:
        return sinks.setdefault(camera_id, Stream())

    sources = []
    for number in range(cameras):
        place = url.replace("{c}", f"{number:03d}")
        sub = place if name is StreamName.SUB else None
        sources.append(
            Source(
                id=f"cam{number:03d}",
                main=place,
                sub=sub,
                transport=transport,
                credentials="bench" if credentials else None,
            )
        )
    rss_before = rss_mib()
    supervisor = CameraSupervisor(
        sources, {"bench": credentials} if credentials else {}, sink_of, limits=DialLimits()
    )
    started = time.monotonic()
    running = asyncio.create_task(supervisor.run())
    start_cpu = cpu_s()
    await all_live(supervisor, cameras)
    live_after_s = time.monotonic() - started
    start_cpu = cpu_s() - start_cpu
    await asyncio.sleep(6.0)  # rates are known, low water marks set
    gc.collect()
    gc.freeze()
    kernel = kernel_s()
    before, cpu, clock = supervisor.counters(), cpu_s(), time.monotonic()
    await asyncio.sleep(seconds)
    cpu, clock = cpu_s() - cpu, time.monotonic() - clock
    after = supervisor.counters()
    result = {
        "cameras": cameras,
        "cpu_ms_per_camera_second": round(cpu * 1000 / cameras / clock, 4),
        "cpu_percent_of_a_core": round(100 * cpu / clock, 2),
        "of_it_in_the_kernel_percent": round(100 * (kernel_s() - kernel) / clock, 2),
        "frames_per_camera_second": round((after.access_units - before.access_units) / cameras / clock, 2),
        "packets_per_camera_second": round((after.packets - before.packets) / cameras / clock, 1),
        "kbps_per_camera": round(
            (after.received_bytes - before.received_bytes) * 8 / 1000 / cameras / clock, 1
        ),
        "lost_packets": after.lost_packets,
        "all_live_after_s": round(live_after_s, 2),
        "cpu_ms_per_start": round(start_cpu * 1000 / cameras, 2),
        "dial_peak": supervisor.gate.peak,
        "rss_mib": round(rss_mib(), 1),
        "rss_kib_per_camera": round((rss_mib() - rss_before) * 1024 / cameras, 1),
    }
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return result


@contextlib.asynccontextmanager
async def simulators(cameras: int) -> AsyncIterator[tuple[str, str]]:
    """(RTSP address, control address) of that many simulated cameras, each with /camNNN/main and /camNNN/sub."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        rows = "".join(
            f"  - {{id: cam{number:03d}, main: 'rtsp://127.0.0.1/cam{number:03d}/main'}}\n"
            for number in range(cameras)
        )
        listed = Path(folder) / "cameras.yaml"
        listed.write_text(f"cameras:\n{rows}", encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simulators", "cameras", "--cameras", str(listed), "--port", "0"),
            *("--http", str(port), "--live", "0", "--no-auth", "--seconds", "4"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            if process.stdout is None:
                raise SystemExit("the simulators have no output")
            async with asyncio.timeout(300):  # they may have to encode their clips first
                said = json.loads(await process.stdout.readline())
            yield said["rtsp"], f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def measure_reboot(cameras: int) -> dict[str, float]:
    """All cameras go away at once and come back 5 s later."""
    async with simulators(cameras) as (rtsp, control), aiohttp.ClientSession() as http:
        sources = [
            Source(
                id=f"cam{number:03d}", main=f"{rtsp}/cam{number:03d}/main", sub=f"{rtsp}/cam{number:03d}/sub"
            )
            for number in range(cameras)
        ]
        sinks: dict[str, Stream] = {}
        limits = DialLimits(dials=64, dials_per_host=64)
        supervisor = CameraSupervisor(
            sources, {}, lambda camera_id, _name: sinks.setdefault(camera_id, Stream()), limits=limits
        )
        running = asyncio.create_task(supervisor.run())
        started = time.monotonic()
        await all_live(supervisor, cameras)
        first_s = time.monotonic() - started
        for source in sources:
            await http.post(f"{control}/fault", json={"camera": source.id, "fault": "reboot"})
        while True:
            async with http.get(f"{control}/faults") as answer:
                if not (await answer.json())["on"]:
                    break
            await asyncio.sleep(0.1)
        up = time.monotonic()
        live = sum(state.state is State.LIVE for state in supervisor.states())
        await all_live(supervisor, cameras)
        result = {
            "cameras": cameras,
            "all_live_after_start_s": round(first_s, 2),
            "live_when_the_last_was_up": live,
            "all_back_after_the_last_was_up_s": round(time.monotonic() - up, 2),
            "dial_cap": limits.dials,
            "dial_peak": supervisor.gate.peak,
            "dials": supervisor.counters().dials,
        }
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return result


async def all_live(supervisor: CameraSupervisor, cameras: int) -> None:
    started = time.monotonic()
    while sum(state.state is State.LIVE for state in supervisor.states()) < cameras:
        await asyncio.sleep(0.1)
        if time.monotonic() - started > 90:
            reasons = {state.reason for state in supervisor.states() if state.state is not State.LIVE}
            raise SystemExit(f"not all cameras came up: {reasons}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="?")
    parser.add_argument("--reboot", action="store_true", help="measure the return of all after a reboot")
    parser.add_argument("--cameras", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--name", choices=["main", "sub"], default=None, help="default: sub if the URL says so"
    )
    parser.add_argument("--transport", choices=["tcp", "udp"], default="tcp")
    parser.add_argument("--credentials", help="user:password")
    arguments = parser.parse_args(argv)
    if bool(arguments.url) is arguments.reboot:
        parser.error("either a URL or --reboot")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    if arguments.reboot:
        print(json.dumps(asyncio.run(measure_reboot(arguments.cameras)), indent=1))
        return
    name = StreamName(arguments.name or ("sub" if "sub" in arguments.url else "main"))
    username, colon, password = (arguments.credentials or "").partition(":")
    result = asyncio.run(
        measure(
            arguments.url,
            arguments.cameras,
            arguments.seconds,
            name=name,
            transport=arguments.transport,
            credentials=(username, password) if colon else None,
        )
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
