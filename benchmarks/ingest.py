"""What pulling costs: N streams of a camera farm, nobody watching, the keyframe-to-keyframe group of pictures cached as the gateway does.

    python -m benchmarks.ingest rtsp://127.0.0.1:8654/cam{c}/sub --cameras 768 --seconds 20

Prints one JSON object: CPU (user + system of this process) in ms per camera-second and in percent of a core, frames per
camera-second, packets lost, seconds until all were live, RSS. {c} is the camera's number in three digits.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import time
from dataclasses import dataclass

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
    while sum(state.state is State.LIVE for state in supervisor.states()) < cameras:
        await asyncio.sleep(0.2)
        if time.monotonic() - started > 60:
            reasons = {state.reason for state in supervisor.states() if state.state is not State.LIVE}
            raise SystemExit(f"not all cameras came up: {reasons}")
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--cameras", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--name", choices=["main", "sub"], default=None, help="default: sub if the URL says so"
    )
    parser.add_argument("--transport", choices=["tcp", "udp"], default="tcp")
    parser.add_argument("--credentials", help="user:password")
    arguments = parser.parse_args(argv)
    name = StreamName(arguments.name or ("sub" if "sub" in arguments.url else "main"))
    username, colon, password = (arguments.credentials or "").partition(":")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
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
