"""Simulated gridworkers: on duty, walking or riding inside their grid, answering when they are rung."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from simulators import geometry, keys, mqtt
from simulators.boxes import ROOT, percentiles
from simulators.district import to_local, to_wgs84

__all__ = ["Walk", "arguments", "gcj02", "run"]

Point = tuple[float, float]


def gcj02(lat: float, lon: float) -> Point:
    """WGS-84 to GCJ-02, the published approximation of China's shifted datum (Krasovsky 1940 ellipsoid)."""
    a, ee = 6378245.0, 0.00669342162296594323
    x, y = lon - 105.0, lat - 35.0
    wave = (20 * math.sin(6 * x * math.pi) + 20 * math.sin(2 * x * math.pi)) * 2 / 3
    d_lat = -100 + 2 * x + 3 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * math.sqrt(abs(x)) + wave
    d_lat += (20 * math.sin(y * math.pi) + 40 * math.sin(y / 3 * math.pi)) * 2 / 3
    d_lat += (160 * math.sin(y / 12 * math.pi) + 320 * math.sin(y * math.pi / 30)) * 2 / 3
    d_lon = 300 + x + 2 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * math.sqrt(abs(x)) + wave
    d_lon += (20 * math.sin(x * math.pi) + 40 * math.sin(x / 3 * math.pi)) * 2 / 3
    d_lon += (150 * math.sin(x / 12 * math.pi) + 300 * math.sin(x / 30 * math.pi)) * 2 / 3
    phi = math.radians(lat)
    magic = 1 - ee * math.sin(phi) ** 2
    d_lat = math.degrees(d_lat / (a * (1 - ee) / (magic * math.sqrt(magic))))
    d_lon = math.degrees(d_lon / (a / math.sqrt(magic) * math.cos(phi)))
    return lat + d_lat, lon + d_lon


class Walk:
    """Somebody who goes from one place to the next inside a polygon. Metres, seconds."""

    def __init__(self, polygon: Sequence[Point], random_: random.Random) -> None:
        self._polygon, self._random = list(polygon), random_
        self.position = self._place()
        self._goal = self._place()
        self.speed = random_.choice((1.1, 1.3, 1.5, 4.0, 4.5))  # on foot, or on an electric bicycle

    def _place(self) -> Point:
        xs, ys = [x for x, _ in self._polygon], [y for _, y in self._polygon]
        for _ in range(60):
            point = (self._random.uniform(min(xs), max(xs)), self._random.uniform(min(ys), max(ys)))
            if geometry.inside_distance(self._polygon, point) > 5:
                return point
        return geometry.centroid(self._polygon)

    def step(self, seconds: float) -> Point:
        """Goes on; turns to another goal when it is reached or when the way would leave the polygon."""
        left = self.speed * seconds
        for _ in range(8):
            dx, dy = self._goal[0] - self.position[0], self._goal[1] - self.position[1]
            distance = math.hypot(dx, dy)
            go = min(left, distance)
            if distance > 0:
                there = (self.position[0] + dx * go / distance, self.position[1] + dy * go / distance)
                if geometry.contains(self._polygon, there):
                    self.position = there
                    left -= go
                    if left <= 0:
                        break
            self._goal = self._place()
        return self.position


BEHAVIOURS = ("answer", "decline", "ignore", "off", "lost")
"""What a phone does when it rings: `off`: its owner goes off duty; `lost`: the network goes, and comes back later."""


def _mix(text: str) -> dict[str, float]:
    """`answer:6,ignore:2` -> weights."""
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition(":")
        if name not in BEHAVIOURS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BEHAVIOURS)}")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: the weight should be a number") from None
    return weights


def behaviour_of(worker_id: str, mix: dict[str, float], reply: str, seed: int) -> str:
    """One worker's: drawn from the mix, always the same for a seed; without a mix what `reply` says."""
    if not mix:
        return {"accept": "answer", "decline": "decline"}.get(reply, "ignore")
    random_ = random.Random(f"{seed}|{worker_id}|behaviour")
    return random_.choices(list(mix), weights=list(mix.values()))[0]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `workers run`."""
    commands = parser.add_subparsers(dest="action", required=True)
    run_ = commands.add_parser("run", help="gridworkers on duty")
    run_.add_argument("--count", type=int, default=589)
    run_.add_argument("--first", type=int, default=0, help="leave out that many of the list")
    run_.add_argument("--only", action="append", default=[], metavar="WID", help="just these")
    run_.add_argument(
        "--without", action="append", default=[], metavar="WID", help="not these: people play them"
    )
    answer = run_.add_mutually_exclusive_group()
    answer.add_argument(
        "--answer", dest="reply", action="store_const", const="accept", help="take every call"
    )
    answer.add_argument("--decline", dest="reply", action="store_const", const="decline")
    answer.add_argument(
        "--ignore", dest="reply", action="store_const", const="", help="let it ring (default)"
    )
    answer.add_argument(
        "--mix",
        dest="mix",
        type=_mix,
        default={},
        metavar="WHAT:N,...",
        help=f"each worker does one of {', '.join(BEHAVIOURS)}, in these proportions, like answer:6,ignore:2,lost:1",
    )
    run_.add_argument("--outage", type=float, default=12.0, help="seconds that a lost network stays away")
    run_.add_argument("--think", type=float, default=2.0, help="seconds before a reply")
    run_.add_argument("--off-duty", type=int, default=0, metavar="K", help="that many never go on duty")
    run_.add_argument("--every", type=float, default=5.0, help="seconds between positions")
    run_.add_argument(
        "--gcj02", type=int, default=5, metavar="N", help="each Nth phone speaks GCJ-02; 0: none"
    )
    run_.add_argument(
        "--media", default=None, metavar="URL", help="answer calls with real media at this gateway"
    )
    run_.add_argument(
        "--tokens", type=Path, default=None, help="YAML or JSON: gridworker id -> JWT, for --media"
    )
    run_.add_argument("--talk", type=float, default=15.0, help="seconds until it hangs up, with --media")
    run_.add_argument("--duration", type=float, default=None)
    run_.add_argument("--seed", type=int, default=1)
    run_.add_argument("--mqtt", default="127.0.0.1:1883", metavar="HOST:PORT")
    run_.add_argument("--secrets", type=Path, default=Path("config/secrets.yaml"))
    run_.add_argument("--district", type=Path, default=Path("config/district"))
    run_.set_defaults(run=run, reply="")


class Worker:
    """One phone: duty, positions, replies."""

    def __init__(
        self, row: dict[str, Any], key: str, walk: Walk, counts: Counts, options: argparse.Namespace
    ) -> None:
        self.id = str(row["id"])
        self._key, self._walk, self._counts, self._options = key, walk, counts, options
        self._shifted = False
        self._seq = 0
        self._client: mqtt.Client | None = None
        self._ringing: set[str] = set()
        self._token = ""
        self._talking: set[asyncio.Task[None]] = set()
        self._dark_until = 0.0
        self._on_duty = True
        self.behaviour = behaviour_of(self.id, options.mix, options.reply, options.seed)

    def use_token(self, token: str) -> None:
        """Answers calls over HTTP with real media from now on."""
        self._token = token

    def speak_gcj02(self) -> None:
        """From now on its positions are in GCJ-02, and say so."""
        self._shifted = True

    async def run(self, on_duty: bool, random_: random.Random) -> None:
        """Connects (again and again, with full jitter) and sends its position."""
        host, _, port = self._options.mqtt.rpartition(":")
        attempt = 0
        self._on_duty = on_duty
        while True:
            client = mqtt.Client(self.id, on_message=self._on_message)
            try:
                await client.connect(host, int(port), password=keys.mqtt_password(self._key, self.id))
                await client.subscribe(f"{ROOT}/w/{self.id}/call", f"{ROOT}/w/{self.id}/task")
                self._client = client
                attempt = 0
                duty = {"duty": "on" if self._on_duty else "off", "ts": time.time_ns() // 1_000_000}
                client.publish(f"{ROOT}/w/{self.id}/duty", json.dumps(duty).encode())
                await asyncio.sleep(random_.random() * min(1.0, self._options.every))
                while client.connected:
                    if self._on_duty:
                        self._send_position(client)
                    else:
                        client.ping()
                    await asyncio.sleep(self._options.every)
                    self._walk.step(self._options.every)
            except (OSError, mqtt.MqttError) as error:
                self._counts.failures[str(error)] = self._counts.failures.get(str(error), 0) + 1
            attempt += 1
            dark_s = self._dark_until - time.monotonic()
            await asyncio.sleep(max(dark_s, random_.uniform(0, min(30, 0.5 * 2**attempt))))

    def leave(self) -> None:
        """Goes off duty and hangs up."""
        if self._client is not None and self._client.connected:
            duty = {"duty": "off", "ts": time.time_ns() // 1_000_000}
            self._client.publish(f"{ROOT}/w/{self.id}/duty", json.dumps(duty).encode())
            self._client.disconnect()

    def _send_position(self, client: mqtt.Client) -> None:
        lat, lon = to_wgs84(*self._walk.position)
        datum = "wgs84"
        if self._shifted:
            lat, lon = (round(value, 6) for value in gcj02(lat, lon))
            datum = "gcj02"
        self._seq += 1
        self._counts.positions += 1
        message = {
            "lat": lat,
            "lon": lon,
            "datum": datum,
            "acc": 12,
            "spd": self._walk.speed,
            "fix": time.time_ns() // 1_000_000,
            "seq": self._seq,
        }
        client.publish(f"{ROOT}/w/{self.id}/loc", json.dumps(message).encode(), qos=0)

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            message = json.loads(payload)
            what = "call" if topic.endswith("/call") else "task"
            mid, subject, act = str(message["mid"]), str(message[what]), str(message["act"])
        except (ValueError, KeyError, TypeError):
            return
        self._counts.acts[f"{what} {act}"] = self._counts.acts.get(f"{what} {act}", 0) + 1
        print(json.dumps({"worker": self.id, what: subject, "act": act}, ensure_ascii=False), flush=True)
        if act not in ("ring", "offer"):
            self._ringing.discard(subject)  # taken by another, cancelled, expired
            return
        if subject in self._ringing:
            return
        self._ringing.add(subject)
        if what == "call" and self.behaviour != "lost":
            self._say({"mid": mid, "call": subject, "act": "received"})
        if self.behaviour == "ignore":
            return
        rung_at = time.monotonic()
        asyncio.get_running_loop().call_later(self._options.think, self._reply, what, mid, subject, rung_at)

    def _reply(self, what: str, mid: str, subject: str, rung_at: float) -> None:
        if subject not in self._ringing or self._client is None or not self._client.connected:
            return
        self._ringing.discard(subject)
        if self.behaviour == "off":
            self._on_duty = False
            self._client.publish(
                f"{ROOT}/w/{self.id}/duty", json.dumps({"duty": "off", "ts": _now()}).encode()
            )
            return
        if self.behaviour == "lost":
            self._dark_until = time.monotonic() + self._options.outage
            self._client.abort()  # no goodbye: the broker finds out by itself
            return
        if self._token and what == "call" and self.behaviour == "answer":
            task = asyncio.get_running_loop().create_task(self._talk(subject), name=f"call of {self.id}")
            self._talking.add(task)
            task.add_done_callback(self._talking.discard)
            return
        self._say({"mid": mid, what: subject, "act": "accept" if self.behaviour == "answer" else "decline"})
        self._counts.replies_ms.append((time.monotonic() - rung_at) * 1000)

    def _say(self, reply: dict[str, Any]) -> None:
        if self._client is not None and self._client.connected:
            self._client.publish(f"{ROOT}/w/{self.id}/reply", json.dumps({**reply, "ts": _now()}).encode())

    async def _talk(self, call_id: str) -> None:
        import aiohttp

        from simulators import calls  # aiortc and OpenCV are loaded only by those who talk

        async with aiohttp.ClientSession() as session:
            outcome = await calls.answer(
                session, self._options.media, call_id, self.id, self._token, talk_s=self._options.talk
            )
        print(
            json.dumps({"worker": self.id, "call": call_id, **asdict(outcome)}, ensure_ascii=False),
            flush=True,
        )


def _now() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000


class Counts:
    """What all workers did."""

    def __init__(self) -> None:
        self.positions = 0
        self.acts: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.replies_ms: list[float] = []


def load(district: Path) -> tuple[list[dict[str, Any]], dict[str, list[Point]]]:
    """Gridworkers, and the grids' polygons in local metres."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = yaml.load((district / "gridworkers.yaml").read_text(encoding="utf-8"), Loader=loader)[
        "gridworkers"
    ]
    features = json.loads((district / "areas.geojson").read_text(encoding="utf-8"))["features"]
    polygons = {
        feature["properties"]["code"]: [
            to_local(lat, lon) for lon, lat in feature["geometry"]["coordinates"][0][:-1]
        ]
        for feature in features
        if feature["properties"]["level"] == "grid"
    }
    return rows, polygons


def run(options: argparse.Namespace) -> None:
    """`workers run`: prints what rings them, and one JSON report at the end."""
    rows, polygons = load(options.district)
    rows = [row for row in rows if row["id"] not in options.without]
    if options.only:
        rows = [row for row in rows if row["id"] in options.only]
    rows = rows[options.first : options.first + options.count]
    known = keys.load(options.secrets).get("workers", {})
    counts = Counts()
    if (options.media is None) != (options.tokens is None):
        raise SystemExit("--media and --tokens go together")
    tokens = {} if options.tokens is None else yaml.safe_load(options.tokens.read_text(encoding="utf-8"))
    workers = []
    for number, row in enumerate(rows):
        if row["id"] not in known:
            raise SystemExit(f"{options.secrets} has no key for gridworker {row['id']}")
        walk = Walk(polygons[row["grid"]], random.Random(f"{options.seed}|{row['id']}"))
        worker = Worker(row, str(known[row["id"]]), walk, counts, options)
        if options.gcj02 and number % options.gcj02 == options.gcj02 - 1:
            worker.speak_gcj02()
        if row["id"] in tokens:
            worker.use_token(tokens[row["id"]])
        workers.append(worker)
    if not workers:
        raise SystemExit("no such gridworker")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(workers, options))
    report = {
        "workers": len(workers),
        "behaviours": dict(Counter(worker.behaviour for worker in workers)),
        "positions": counts.positions,
        "acts": counts.acts,
        "replies_ms": percentiles(counts.replies_ms),
        "connect_failures": counts.failures,
    }
    print(json.dumps(report, ensure_ascii=False), flush=True)


async def _run(workers: list[Worker], options: argparse.Namespace) -> None:
    random_ = random.Random(options.seed)
    off = set(random_.sample(range(len(workers)), min(options.off_duty, len(workers))))
    try:
        async with asyncio.timeout(options.duration), asyncio.TaskGroup() as group:
            for number, worker in enumerate(workers):
                group.create_task(worker.run(number not in off, random_), name=f"worker {worker.id}")
                if number % 20 == 19:
                    await asyncio.sleep(0.1)
    except TimeoutError:
        pass
    finally:
        for worker in workers:
            worker.leave()
