"""kill -9 of the gateway and of its broker at random instants under presses on both paths; nothing acknowledged may be lost.

    python -m benchmarks.kill [--kills 200] [--presses 10000] [--boxes 60]

Boxes press over MQTT or HTTP and resend each press (same pid) until `persisted` comes, on the other path every other
time. No alarm is ever closed and grouping is off, so afterwards there must be exactly one alarm a box, and each of its presses must have got
that alarm's id, however often it was answered; and each alarm must have opened one call that rang gridworkers, with
nothing left in the outbox. The database is read after the last stop.
"""
# ruff: noqa: ASYNC110 - what is waited for happens in another process

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.district import Site, hmac_hex, make_site, percentiles, press_body
from gateway.audit import verify_audit
from simulators import mqtt

RESEND_S = 1.0
PHONES = 20


class Device:
    """An MQTT connection that comes back."""

    def __init__(self, site: Site, device: str, key: str, topics: list[str], heard: Any) -> None:
        self.site, self.device, self.key, self.topics, self._heard = site, device, key, topics, heard
        self.client: mqtt.Client | None = None
        self.lost = asyncio.Event()

    async def run(self) -> None:
        while True:
            self.lost.clear()
            client = mqtt.Client(self.device, on_message=self._heard, on_lost=lambda _: self.lost.set())
            try:
                password = hmac_hex(self.key, f"mqtt|{self.device}")
                await client.connect("127.0.0.1", self.site.mqtt, password=password, keepalive_s=600)
                await client.subscribe(*self.topics)
                self.client = client
                await self.lost.wait()
            except (OSError, mqtt.MqttError):
                pass
            self.client = None
            await asyncio.sleep(random.uniform(0.05, 0.3))

    def publish(self, topic: str, payload: bytes) -> bool:
        if self.client is None or not self.client.connected:
            return False
        self.client.publish(topic, payload)
        return True


class Trial:
    """One run; `acks`: (sid, pid) -> the alarm ids that it was answered with."""

    def __init__(self, site: Site, presses: int, seed: int) -> None:
        self.site = site
        self.dice = random.Random(seed)
        self.left = presses
        self.acks: dict[tuple[str, str], set[str]] = {}
        self.answered: dict[tuple[str, str], asyncio.Event] = {}
        self.resends = 0
        self.kills = {"gateway": 0, "broker": 0}
        self.devices: dict[str, Device] = {}

    def take(self, sid: str, ack: dict[str, Any]) -> None:
        name = (sid, ack["pid"])
        if ack["stage"] == "refused" or name not in self.answered:
            return
        self.acks.setdefault(name, set()).add(ack["alarm"])
        self.answered[name].set()

    async def box(self, sid: str, session: aiohttp.ClientSession) -> None:
        """Presses one after the other until none are left."""
        device = self.devices[sid]
        number = 0
        while self.left > 0:
            self.left -= 1
            number += 1
            pid = f"{sid}-{number}"
            body = press_body(self.site.boxes[sid], sid, pid, ts=time.time_ns() // 1_000_000)
            done = self.answered[sid, pid] = asyncio.Event()
            over_http = self.dice.random() < 0.4
            while not done.is_set():
                if over_http:
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with session.post(f"{self.site.base}/api/v1/alarms", data=body) as answer:
                            if answer.status == 200:
                                self.take(sid, await answer.json())
                else:
                    device.publish(f"pd/v1/stb/{sid}/press", body)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RESEND_S):
                        await done.wait()
                        break
                self.resends += 1
                over_http = not over_http
            await asyncio.sleep(self.dice.uniform(0.0, 0.4))

    async def killer(self, kills: int, pressing: asyncio.Event) -> None:
        for number in range(kills):
            await asyncio.sleep(self.dice.uniform(0.05, 1.0))
            if number % 2 == 0:
                await self.site.kill()
                self.kills["gateway"] += 1
                await self.site.start()
            else:
                with contextlib.suppress(StopIteration, ProcessLookupError, FileNotFoundError):
                    os.kill(self.site.broker_pid, signal.SIGKILL)
                    self.kills["broker"] += 1
        pressing.set()

    async def run(self, kills: int) -> None:
        await self.site.start()
        tasks: list[asyncio.Task[None]] = []
        for sid, key in self.site.boxes.items():
            heard = lambda topic, payload, sid=sid: self.take(sid, json.loads(payload))  # noqa: E731
            self.devices[sid] = Device(self.site, sid, key, [f"pd/v1/stb/{sid}/ack"], heard)
        for wid, key in self.site.workers.items():
            self.devices[wid] = Device(self.site, wid, key, [f"pd/v1/w/{wid}/call"], lambda *_: None)
        tasks += [asyncio.create_task(device.run()) for device in self.devices.values()]
        try:
            await self._duty()
            finished = asyncio.Event()
            timeout = aiohttp.ClientTimeout(total=5)
            async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
                group.create_task(self.killer(kills, finished))
                for sid in self.site.boxes:
                    group.create_task(self.box(sid, session))
            await self._until_delivered()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.site.stop()

    async def _duty(self) -> None:
        """The phones go on duty, which the database remembers."""
        async with asyncio.timeout(20):
            for wid in self.site.workers:
                body = json.dumps({"duty": "on", "ts": 0}).encode()
                # ASYNC110: another process, nothing to wait on
                while not self.devices[wid].publish(f"pd/v1/w/{wid}/duty", body):
                    await asyncio.sleep(0.05)
            while self._count("SELECT count(*) FROM worker WHERE duty='on'") < len(self.site.workers):
                await asyncio.sleep(0.1)

    async def _until_delivered(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while self._count("SELECT count(*) FROM outbox"):
                    await asyncio.sleep(0.2)

    def _count(self, query: str) -> int:
        with contextlib.closing(sqlite3.connect(self.site.data / "gateway.db")) as raw:
            return int(raw.execute(query).fetchone()[0])

    def result(self) -> dict[str, Any]:
        """The table. All but the first lines must be 0."""
        path = self.site.data / "gateway.db"
        with contextlib.closing(sqlite3.connect(path)) as raw:
            stored = {
                (s.removeprefix("stb/"), p): a
                for s, p, a in raw.execute("SELECT source, press_id, alarm_id FROM press")
            }
            alarms = dict(raw.execute("SELECT id, source FROM alarm").fetchall())
            calls = raw.execute("SELECT opened_for, count(*) FROM calls GROUP BY opened_for").fetchall()
            rung = {
                row[0]
                for row in raw.execute(
                    "SELECT DISTINCT calls.opened_for FROM call_rings JOIN calls ON calls.id = call_id"
                )
            }
            waiting = raw.execute("SELECT count(*) FROM outbox").fetchone()[0]
        pressed = {sid for sid, _ in self.acks}
        return {
            "kills": self.kills,
            "presses_acknowledged": len(self.acks),
            "resends": self.resends,
            "alarms": len(alarms),
            "restart_to_presses_s": percentiles(self.site.starts_s),
            "acknowledged_presses_lost": sum(1 for name in self.acks if name not in stored),
            "presses_with_two_answers": sum(1 for answers in self.acks.values() if len(answers) != 1),
            "answers_not_as_stored": sum(1 for name, a in self.acks.items() if stored.get(name) not in a),
            "duplicate_alarms": len(alarms) - len(set(alarms.values())),
            "alarms_missing": len(pressed - {source.removeprefix("stb/") for source in alarms.values()}),
            "rings_lost": len(set(alarms) - rung),
            "calls_twice": sum(1 for _, count in calls if count != 1),
            "undelivered": waiting,
            "audit_broken": int(verify_audit(path).broken_at is not None),
        }  # fmt: skip


MUST_BE_ZERO = (
    "acknowledged_presses_lost",
    "presses_with_two_answers",
    "answers_not_as_stored",
    "duplicate_alarms",
    "alarms_missing",
    "rings_lost",
    "calls_twice",
    "undelivered",
    "audit_broken",
)


async def trial(directory: Path, *, kills: int, presses: int, boxes: int, seed: int = 1) -> dict[str, Any]:
    """One trial with files of its own in `directory`, which must not exist."""
    site = make_site(directory, boxes=boxes, workers=PHONES, settings={"alarms": {"group_radius_m": 0}})
    run = Trial(site, presses, seed)
    await run.run(kills)
    return run.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--presses", type=int, default=10_000)
    parser.add_argument("--boxes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        figures = asyncio.run(
            trial(
                Path(directory) / "site",
                kills=args.kills,
                presses=args.presses,
                boxes=args.boxes,
                seed=args.seed,
            )
        )
    print(json.dumps(figures, indent=2))
    print("| kills gateway/broker | presses | lost | duplicate alarms | rings lost |\n|---|---|---|---|---|")
    print(
        f"| {figures['kills']['gateway']}/{figures['kills']['broker']} | {figures['presses_acknowledged']} "
        f"| {figures['acknowledged_presses_lost']} | {figures['duplicate_alarms']} | {figures['rings_lost']} |"
    )
    raise SystemExit(int(any(figures[name] for name in MUST_BE_ZERO)))


if __name__ == "__main__":
    main()
