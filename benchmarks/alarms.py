"""Press to `persisted` against the real gateway process: its broker, database and HTTP, boxes in this process.

    python -m benchmarks.alarms [--boxes 2000] [--rate 500] [--seconds 60] [--new 0.55] [--every-alarm-rings]

Every press comes from a box with a connection of its own and is answered on it; latency is taken here, from the write
of the PUBLISH to the arrival of the ack. New alarms and repeats are told apart: a box's first press opens its alarm, later ones
repeat it. There are as many boxes as new alarms need, at least --boxes, all connected at once. A console listens on the event channel, gridworkers on
duty listen for rings; both times count from the receipt of the press at the gateway (`received_at`), so they hold the commit. At the end the gateway is started once more, with
all those alarms and calls open. CPU is told for gateway, broker and boxes apart, for they share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.district import Site, hmac_hex, make_site, percentiles, press_body, running
from simulators import mqtt

CONNECT_RATE = 900.0
ROOT_TOPIC = "pd/v1"


class Load:
    """The boxes, the console and the phones, and what they saw. Times by the monotonic clock in seconds."""

    def __init__(self, site: Site, boxes: int, workers: int) -> None:
        self.site = site
        self.sids = list(site.boxes)[:boxes]
        self.wids = list(site.workers)[:workers]
        self.clients: dict[str, mqtt.Client] = {}
        self.sent: dict[str, tuple[float, bool]] = {}
        self.new_ms: list[float] = []
        self.repeat_ms: list[float] = []
        self.event_ms: list[float] = []
        self.ring_ms: dict[str, float] = {}
        self.stages: dict[str, int] = {}
        self.alarms: set[str] = set()
        self.opened: dict[str, int] = {}
        self.refused = 0
        self.resyncs = 0
        self.answered = asyncio.Event()

    async def connect(self) -> None:
        began = time.monotonic()
        waiting: set[asyncio.Task[None]] = set()
        devices = [(sid, key, self._on_ack) for sid, key in self.site.boxes.items() if sid in set(self.sids)]
        devices += [(wid, self.site.workers[wid], self._on_ring) for wid in self.wids]
        for number, (device, key, heard) in enumerate(devices):
            await asyncio.sleep(max(0.0, began + number / CONNECT_RATE - time.monotonic()))
            task = asyncio.create_task(self._connect(device, key, heard))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.gather(*waiting)

    async def _connect(self, device: str, key: str, heard: Any) -> None:
        client = mqtt.Client(device, on_message=heard)
        await client.connect(
            "127.0.0.1", self.site.mqtt, password=hmac_hex(key, f"mqtt|{device}"), keepalive_s=600
        )
        branch = "stb" if device in self.site.boxes else "w"
        await client.subscribe(f"{ROOT_TOPIC}/{branch}/{device}/{'ack' if branch == 'stb' else 'call'}")
        if branch == "w":
            now = time.time_ns() // 1_000_000
            client.publish(f"{ROOT_TOPIC}/w/{device}/duty", json.dumps({"duty": "on", "ts": now}).encode())
        self.clients[device] = client

    async def console(self, token: str, ready: asyncio.Event) -> None:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.ws_connect(f"{self.site.base}/api/v1/events", max_msg_size=0) as socket,
        ):
            async for message in socket:
                now_ms = time.time() * 1000
                frame = json.loads(message.data)
                if frame["type"] == "hello":
                    ready.set()
                elif frame["type"] == "resync":
                    self.resyncs += 1
                elif frame["type"] == "alarm":
                    alarm = frame["data"]
                    if alarm["id"] not in self.opened:
                        self.opened[alarm["id"]] = alarm["received_at"]
                        self.event_ms.append(now_ms - alarm["received_at"])

    def _on_ack(self, topic: str, payload: bytes) -> None:
        now = time.monotonic()
        ack = json.loads(payload)
        stage = ack["stage"]
        self.stages[stage] = self.stages.get(stage, 0) + 1
        sent = self.sent.pop(ack["pid"], None)
        if sent is None:
            return
        self.answered.set()
        if stage == "refused":
            self.refused += 1
            return
        self.alarms.add(ack["alarm"])
        (self.new_ms if sent[1] else self.repeat_ms).append((now - sent[0]) * 1000)

    def _on_ring(self, topic: str, payload: bytes) -> None:
        message = json.loads(payload)
        if message.get("act") == "ring" and message.get("alarm"):
            self.ring_ms.setdefault(message["alarm"], time.time() * 1000)

    async def press(self, *, rate: float, seconds: float, new: float) -> float:
        """Presses at the rate; returns how long it took until the last one was sent."""
        dice = random.Random(1)
        count = int(rate * seconds)
        ts = time.time_ns() // 1_000_000
        plan: list[tuple[str, str, bytes, bool]] = []
        fresh = 0
        for number in range(count):
            opens = fresh < len(self.sids) and (fresh < 50 or dice.random() < new)
            sid = self.sids[fresh if opens else dice.randrange(fresh)]
            fresh += opens
            pid = f"p{number}"
            plan.append((sid, pid, press_body(self.site.boxes[sid], sid, pid, ts=ts), opens))
        began = time.monotonic()
        for number, (sid, pid, body, opens) in enumerate(plan):
            delay = began + number / rate - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            self.sent[pid] = (time.monotonic(), opens)
            self.clients[sid].publish(f"{ROOT_TOPIC}/stb/{sid}/press", body)
        took = time.monotonic() - began
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while self.sent:
                    self.answered.clear()
                    await self.answered.wait()
        return took


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _starved_s(pid: int) -> float:
    """How long the process's threads were ready to run but had no CPU: the machine's part in a latency."""
    waits = [int(task.read_text().split()[1]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(waits) / 1e9


async def measure(
    directory: Path, *, boxes: int, rate: float, seconds: float, new: float, rings: bool, workers: int
) -> dict[str, Any]:
    """The figures of one run."""
    wanted = max(boxes, int(rate * seconds * new) + 60)
    settings = {"alarms": {"group_radius_m": 0}} if rings else {}
    site = make_site(directory, boxes=wanted, settings=settings)
    async with running(site):
        load = Load(site, wanted, workers)
        listening = asyncio.Event()
        console = asyncio.create_task(load.console(await site.token("operator", "bench"), listening))
        await listening.wait()
        await load.connect()
        await asyncio.sleep(1)
        assert site.process is not None
        cpu, broker_cpu, own = _cpu_s(site.process.pid), _cpu_s(site.broker_pid), time.process_time()
        starved = _starved_s(site.process.pid)
        began = time.monotonic()
        sending = await load.press(rate=rate, seconds=seconds, new=new)
        took = time.monotonic() - began
        spent = {
            "gateway": round(100 * (_cpu_s(site.process.pid) - cpu) / took),
            "broker": round(100 * (_cpu_s(site.broker_pid) - broker_cpu) / took),
            "boxes": round(100 * (time.process_time() - own) / took),
        }
        starved = round(100 * (_starved_s(site.process.pid) - starved) / took)
        await asyncio.sleep(1)
        console.cancel()
        await asyncio.gather(console, return_exceptions=True)
        await site.stop()
        await site.start()
    answered = len(load.new_ms) + len(load.repeat_ms)
    rung = [at - load.opened[alarm] for alarm, at in load.ring_ms.items() if alarm in load.opened]
    return {
        "connected_boxes": len(load.sids),
        "presses": answered + len(load.sent) + load.refused,
        "rate_offered": rate,
        "rate_sent": round(int(rate * seconds) / sending, 1),
        "rate_answered": round(answered / took, 1),
        "unanswered": len(load.sent),
        "refused": load.refused,
        "new_alarms": len(load.new_ms),
        "repeats": len(load.repeat_ms),
        "new_ms": percentiles(load.new_ms),
        "repeat_ms": percentiles(load.repeat_ms),
        "receipt_to_console_ms": percentiles(load.event_ms),
        "receipt_to_ring_ms": percentiles(rung),
        "alarms_rung": len(rung),
        "cpu_percent": spent,
        "cpu_ms_a_press": {
            name: round(10 * share * took / max(1, answered), 2) for name, share in spent.items()
        },
        "console_resyncs": load.resyncs,
        "gateway_ready_without_cpu_percent": starved,
        "start_to_ready_s": round(site.starts_s[0], 2),
        "restart_with_all_open_to_ready_s": round(site.starts_s[1], 2),
    }


def row(figures: dict[str, Any]) -> str:
    """One row of the table in the README."""
    new, again, event, ring = (
        figures[name].get(at, "-")
        for name, at in (("new_ms", "p99"), ("repeat_ms", "p99"), ("receipt_to_console_ms", "p99"), ("receipt_to_ring_ms", "p95"))
    )  # fmt: skip
    return (
        f"| {figures['rate_offered']:g}/s | {figures['connected_boxes']} | {figures['new_alarms']} | {figures['repeats']} "
        f"| {figures['rate_answered']} | {new} | {again} | {event} | {ring} | {figures['unanswered']} |"
    )


HEAD = (
    "| offered | boxes | new | repeats | answered/s | new p99 ms | repeat p99 ms | console p99 ms | ring p95 ms | lost |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--boxes", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--new", type=float, default=0.55, help="share of presses that open an alarm")
    parser.add_argument("--workers", type=int, default=200, help="gridworkers on duty with a connection")
    parser.add_argument("--every-alarm-rings", action="store_true", help="no grouping: each opens a call")
    parser.add_argument("--directory", type=Path, help="on the disk to be measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        figures = asyncio.run(
            measure(
                Path(directory) / "site", boxes=args.boxes, rate=args.rate, seconds=args.seconds,
                new=args.new, rings=args.every_alarm_rings, workers=args.workers,
            )
        )  # fmt: skip
    print(json.dumps(figures, indent=2))
    print(HEAD)
    print(row(figures))


if __name__ == "__main__":
    main()
