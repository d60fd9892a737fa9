"""Press to `persisted` through a real mosquitto: boxes press at a rate, latency is measured at the boxes'
side.

    python -m benchmarks.alarms [--boxes 200] [--rate 50] [--seconds 10] [--repeats 0.3]

The presses go to the broker by the gateway's own connection and come back from it; a press counts as answered
when the broker has confirmed its ack. The broker's work for thousands of connections is not in it; boxes and
desk share this process, so the CPU figure holds both. The database is on the disk that --directory names.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.alarms.broker import Broker, BrokerSettings
from gateway.alarms.desk import AlarmDesk
from gateway.alarms.mqtt import Incoming, MqttClient, MqttSettings
from gateway.alarms.policy import AlarmSettings
from gateway.alarms.roster import Roster
from gateway.alarms.world import Area, CameraSite, Home, WorkerSite
from gateway.geo import Position
from gateway.store import Store

KEY = b"k" * 32


class World:
    """Boxes 400 m apart, so that most alarms ring on their own."""

    def __init__(self, boxes: int) -> None:
        self._homes = {
            f"b{i}": Home(
                id=f"h{i}",
                address=f"{i}",
                position=Position(30.6 + 0.004 * (i // 100), 103.7 + 0.004 * (i % 100)),
                area=Area(district="510117", street="s", community="c", grid="g"),
            )
            for i in range(boxes)
        }

    def box_key(self, sid: str) -> bytes | None:
        return KEY if sid in self._homes else None

    def home_of(self, sid: str) -> Home | None:
        return self._homes.get(sid)

    def home(self, household_id: str) -> Home | None:
        return None

    def camera(self, camera_id: str) -> CameraSite | None:
        return None

    def cameras(self) -> Sequence[CameraSite]:
        return ()

    def workers(self) -> Sequence[WorkerSite]:
        return ()

    def area_at(self, position: Position) -> Area:
        return Area()


def body(sid: str, pid: str) -> bytes:
    ts = time.time_ns() // 1_000_000
    sig = hmac.new(KEY, f"press|{sid}|{pid}|1|{ts}|help||0".encode(), hashlib.sha256).hexdigest()
    return json.dumps({"v": 1, "pid": pid, "seq": 1, "ts": ts, "kind": "help", "sig": sig}).encode()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def measure(
    *, boxes: int, rate: float, seconds: float, repeats: float, directory: Path
) -> dict[str, Any]:
    """The figures of one run. repeats: share of presses by a box whose alarm is open."""
    store = await Store.open(directory / "gateway.db")
    broker = Broker(directory / "mq", BrokerSettings(port=0), passwords={}, gateway_password="g")
    await broker.start()
    events: dict[str, float] = {}
    rings: dict[str, float] = {}
    settings = AlarmSettings()

    async def on_press(message: Incoming) -> None:
        await desk.press(message.payload, "mqtt", message.device)

    gateway = MqttClient(
        MqttSettings(host=broker.host, port=broker.port, username="gateway", password="g"),
        {"stb/+/press": on_press},
    )

    async def publish_event(type: str, data: dict[str, Any], lineage: tuple[str, ...]) -> None:
        events.setdefault(data["press_id"], time.perf_counter())

    async def ring(brief: dict[str, Any]) -> None:
        rings.setdefault(brief["alarm_id"], time.perf_counter())

    desk = AlarmDesk(
        store,
        World(boxes),
        settings,
        roster=Roster(store, settings.dispatch),
        camera_health=lambda camera_id: True,
        publish_mqtt=gateway.publish,
        publish_event=publish_event,
        ring=ring,
        clock=lambda: time.time_ns() // 1_000_000,
    )
    sent: dict[str, float] = {}
    acked: dict[str, float] = {}
    alarms: dict[str, str] = {}
    heard = asyncio.Event()

    original = gateway.publish

    async def publish(topic: str, payload: bytes, qos: int, retain: bool) -> None:
        await original(topic, payload, qos, retain)
        if topic.endswith("/ack") and payload:
            ack = json.loads(payload)
            acked.setdefault(ack["pid"], time.perf_counter())
            alarms[ack["pid"]] = ack["alarm"]
            heard.set()

    desk._publish_mqtt = publish  # type: ignore[method-assign]
    tasks = [asyncio.create_task(gateway.run()), asyncio.create_task(desk.run())]
    await gateway.wait_up()
    dice = random.Random(1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    begun = time.perf_counter()
    fresh = 0
    count = int(rate * seconds)
    for i in range(count):
        due = begun + i / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if fresh < boxes and (fresh == 0 or dice.random() >= repeats):
            sid, fresh = f"b{fresh}", fresh + 1
        else:
            sid = f"b{dice.randrange(fresh)}"
        pid = f"p{i}"
        sent[pid] = time.perf_counter()
        gateway._client.publish(f"pd/v1/stb/{sid}/press", body(sid, pid), qos=1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while len(acked) < count:
                heard.clear()
                await heard.wait()
    took = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - cpu
    health = store.health()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await broker.stop()
    await store.close()
    waits = [(acked[pid] - sent[pid]) * 1000 for pid in acked]
    seen = [(events[pid] - sent[pid]) * 1000 for pid in events if pid in sent]
    rung = [
        (rings[alarms[pid]] - sent[pid]) * 1000 for pid in sent if alarms.get(pid) in rings and pid in events
    ]
    return {
        "presses": count,
        "answered": len(acked),
        "new_alarms": fresh,
        "presses_a_second": round(count / took, 1),
        "persisted_ms": {
            p: round(percentile(waits, v), 1) for p, v in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        "press_to_event_ms_p99": round(percentile(seen, 0.99), 1),
        "press_to_ring_ms_p95": round(percentile(rung, 0.95), 1),
        "writes_a_commit": round(health.writes / max(1, health.commits), 1),
        "cpu_ms_a_press": round(cpu * 1000 / count, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--boxes", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeats", type=float, default=0.4)
    parser.add_argument("--directory", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        figures = asyncio.run(
            measure(
                boxes=args.boxes,
                rate=args.rate,
                seconds=args.seconds,
                repeats=args.repeats,
                directory=Path(directory),
            )
        )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
