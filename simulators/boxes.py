"""Simulated set-top boxes: one press from a shell, or thousands connected that press at a rate."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import secrets as random_secrets
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from simulators import keys, mqtt

__all__ = ["Press", "arguments", "percentiles", "run_many", "run_press"]

ROOT = "pd/v1"
RESENDS_S = (2, 4, 8, 16, 30)  # after the press; the contract's ladder
HTTP_AFTER_S = 5.0
GIVE_UP_S = 45.0
DIAL_110_AFTER_S = 15.0
LAST_STAGES = ("closed", "cancelled", "refused")
STAGES = {
    "persisted": "已送达",
    "shown": "已显示在值班台",
    "answered": "值班员已看到",
    "dispatched": "网格员正赶来",
    "closed": "已结束",
    "cancelled": "已取消，仍会回访",
    "refused": "请拨打110",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """One press; `body` is its signed payload (docs/contract.md section 4). ts: milliseconds of the box's
    clock.
    """

    sid: str
    pid: str
    seq: int
    ts: int
    kind: str = "help"
    cam: str | None = None
    silent: bool = False

    def body(self, key: str) -> dict[str, Any]:
        """The payload as published; keys that the contract calls optional are left out when they say
        nothing.
        """
        out: dict[str, Any] = {"v": 1, "pid": self.pid, "seq": self.seq, "ts": self.ts, "kind": self.kind}
        if self.cam:
            out["cam"] = self.cam
        if self.silent:
            out["silent"] = True
        out["sig"] = keys.press_signature(
            key,
            sid=self.sid,
            pid=self.pid,
            seq=self.seq,
            ts=self.ts,
            kind=self.kind,
            cam=self.cam,
            silent=self.silent,
        )
        return out

    def topic(self) -> str:
        """Where it is published."""
        return f"{ROOT}/stb/{self.sid}/press"

    def shell(self, key: str, host: str, port: int) -> str:
        """The same as one `mosquitto_pub` command line."""
        words = ["mosquitto_pub", "-h", host, "-p", str(port), "-i", self.sid, "-u", self.sid]
        words += ["-P", keys.mqtt_password(key, self.sid), "-q", "1", "-t", self.topic()]
        return shlex.join([*words, "-m", json.dumps(self.body(key), separators=(",", ":"))])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `boxes press` and `boxes run`."""
    commands = parser.add_subparsers(dest="action", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--mqtt", default="127.0.0.1:1883", metavar="HOST:PORT")
    common.add_argument("--http", default=None, metavar="URL", help="the gateway, for the second path")
    common.add_argument("--secrets", type=Path, default=Path("config/secrets.yaml"))
    common.add_argument("--kind", choices=("help", "theft", "fire", "medical", "test"), default="help")
    common.add_argument("--cam", default=None, help="the camera that is watched full screen")
    common.add_argument("--silent", action="store_true")

    press = commands.add_parser(
        "press", parents=[common], help="press the key of one box and tell the stages"
    )
    press.add_argument("--sid", required=True)
    press.add_argument("--pid", default=None, help="default: a new one")
    press.add_argument("--print", action="store_true", help="print the mosquitto_pub line instead")
    press.add_argument("--follow", type=float, default=60, help="seconds to tell stages after the first")
    press.set_defaults(run=run_press)

    many = commands.add_parser("run", parents=[common], help="connect many boxes")
    many.add_argument("--count", type=int, default=2000)
    many.add_argument("--first", type=int, default=0, help="leave out that many boxes of the list")
    many.add_argument("--rate", type=float, default=0, help="presses per second, all boxes together")
    many.add_argument(
        "--duration", type=float, default=None, help="seconds of pressing; default: until it is ended"
    )
    many.add_argument("--connect-rate", type=float, default=200, help="connections per second")
    many.add_argument("--seed", type=int, default=1)
    many.set_defaults(run=run_many)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise SystemExit(f"--mqtt {text}: HOST:PORT is expected")
    return host, int(port)


def _key(options: argparse.Namespace, sid: str) -> str:
    key = keys.load(options.secrets).get("boxes", {}).get(sid)
    if key is None:
        raise SystemExit(f"{options.secrets} has no key for box {sid}")
    return str(key)


# -- one press --


def run_press(options: argparse.Namespace) -> None:
    """`boxes press`: exit status 0 when `persisted` came, 1 when refused or never answered."""
    key = _key(options, options.sid)
    now = _now_ms()
    press = Press(
        sid=options.sid,
        pid=options.pid or random_secrets.token_hex(8),
        seq=now // 1000 % 1_000_000,
        ts=now,
        kind=options.kind,
        cam=options.cam,
        silent=options.silent,
    )
    host, port = _address(options.mqtt)
    if options.print:
        print(press.shell(key, host, port))
        return
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(0 if asyncio.run(press_once(press, key, host, port, options.http, options.follow)) else 1)


async def press_once(press: Press, key: str, host: str, port: int, url: str | None, follow_s: float) -> bool:
    """Presses over MQTT, again and over HTTP as the contract says, and prints what comes back."""
    started = time.monotonic()
    acks: asyncio.Queue[dict[str, Any]] = asyncio.Queue(64)
    persisted = asyncio.Event()
    finished = asyncio.Event()
    accepted = False

    def tell(text: str) -> None:
        print(f"{time.monotonic() - started:7.3f} s  {text}", flush=True)

    def on_message(topic: str, payload: bytes) -> None:
        with contextlib.suppress(ValueError, asyncio.QueueFull):
            acks.put_nowait(json.loads(payload) | {"via": "mqtt"})

    async def send_mqtt() -> None:
        client = mqtt.Client(press.sid, on_message=on_message)
        payload = json.dumps(press.body(key)).encode()
        async with asyncio.timeout(GIVE_UP_S + follow_s):
            await client.connect(host, port, password=keys.mqtt_password(key, press.sid))
            try:
                await client.subscribe(f"{ROOT}/stb/{press.sid}/ack")
                client.publish(press.topic(), payload)
                tell(f"按下 {press.pid} ({press.kind})")
                for at in RESENDS_S:
                    delay = started + at - time.monotonic()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(persisted.wait(), max(delay, 0))
                    if persisted.is_set():
                        break
                    tell("没有回执，重发")
                    client.publish(press.topic(), payload)
                await finished.wait()
            finally:
                client.disconnect()

    async def send_http() -> None:
        if url is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(persisted.wait(), HTTP_AFTER_S)
            return
        tell("改走 HTTP")
        body = press.body(key) | {"sid": press.sid}
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url.rstrip("/") + "/api/v1/alarms", json=body) as reply,
        ):
            ack = await reply.json(content_type=None)
            if isinstance(ack, dict) and "stage" in ack:
                acks.put_nowait(ack | {"via": "http"})
            else:
                tell(f"HTTP {reply.status}: {ack}")

    async def guarded(path: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await path()
        except (OSError, mqtt.MqttError, aiohttp.ClientError, TimeoutError) as error:
            tell(f"{name} 失败: {error}")

    async def listen() -> None:
        nonlocal accepted
        seen: set[str] = set()
        end = started + GIVE_UP_S
        warned = False
        while (left := end - time.monotonic()) > 0:
            if not warned and not accepted:
                left = min(left, max(0.0, started + DIAL_110_AFTER_S - time.monotonic()))
            try:
                ack = await asyncio.wait_for(acks.get(), left)
            except TimeoutError:
                if not accepted and not warned:
                    warned = True
                    tell("请拨打110")
                    continue
                break
            if ack.get("pid") != press.pid:
                continue
            stage = str(ack.get("stage"))
            if stage in seen:
                continue
            seen.add(stage)
            detail = " ".join(f"{k}={ack[k]}" for k in ("alarm", "who", "eta_s", "reason", "via") if k in ack)
            tell(f"{STAGES.get(stage, stage)} [{stage}] {detail}")
            if stage != "refused" and not accepted:
                accepted = True
                persisted.set()
                end = time.monotonic() + follow_s
            if stage in LAST_STAGES:
                break
        persisted.set()
        finished.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(guarded(send_mqtt, "MQTT"), name="press mqtt")
        group.create_task(guarded(send_http, "HTTP"), name="press http")
        group.create_task(listen(), name="press acks")
    return accepted


# -- many boxes --


def percentiles(values: list[float]) -> dict[str, float | int]:
    """Count and p50, p90, p99, max, in the unit of the values; an empty list has only its count."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    out: dict[str, float | int] = {"count": len(ordered)}
    for name, share in (("p50", 0.50), ("p90", 0.90), ("p99", 0.99)):
        out[name] = round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
    out["max"] = round(ordered[-1], 2)
    return out


@dataclass(slots=True)
class Fleet:
    """Counts of a run. waiting: pid -> when it was first pressed (monotonic seconds)."""

    waiting: dict[str, float] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    alarms: set[str] = field(default_factory=set)
    pressed: int = 0
    refused: int = 0
    resent: int = 0
    lost: int = 0
    connect_failures: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # set while no press waits
    online: asyncio.Event = field(default_factory=asyncio.Event)  # set once all have been connected
    expected: int = 0

    def arrived(self) -> None:
        """One more box has connected for the first time."""
        self.expected -= 1
        if self.expected <= 0:
            self.online.set()

    def settle(self, pid: str) -> float | None:
        """Takes a press off the list; returns when it was pressed, None when it was not on it."""
        pressed_at = self.waiting.pop(pid, None)
        if not self.waiting:
            self.answered.set()
        return pressed_at


class Box:
    """One connected box: presence by will, acks, and reconnecting with full jitter."""

    def __init__(self, sid: str, key: str, fleet: Fleet, host: str, port: int) -> None:
        self.sid, self.key = sid, key
        self._fleet, self._host, self._port = fleet, host, port
        self.client: mqtt.Client | None = None
        self._seq = 0
        self._unanswered: dict[str, bytes] = {}

    def _presence(self, on: bool) -> bytes:
        return json.dumps({"on": on, "ts": _now_ms()}).encode()

    async def connect(self) -> None:
        """Connects, announces itself, subscribes, and sends again what no ack has answered."""
        topic = f"{ROOT}/stb/{self.sid}/presence"
        client = mqtt.Client(self.sid, on_message=self._on_message)
        await client.connect(
            self._host,
            self._port,
            password=keys.mqtt_password(self.key, self.sid),
            will=mqtt.Will(topic=topic, payload=self._presence(False)),
            keepalive_s=120,
        )
        await client.subscribe(f"{ROOT}/stb/{self.sid}/ack")
        client.publish(topic, self._presence(True), retain=True)
        if self.client is None:
            self._fleet.arrived()
        self.client = client
        for payload in list(self._unanswered.values()):
            self._fleet.resent += 1
            client.publish(f"{ROOT}/stb/{self.sid}/press", payload)

    def press(self, kind: str, cam: str | None, silent: bool) -> None:
        """One new press, sent again by the ladder until `persisted` comes."""
        self._seq += 1
        now = _now_ms()
        press = Press(
            sid=self.sid, pid=f"{now:x}-{self._seq}", seq=self._seq, ts=now, kind=kind, cam=cam, silent=silent
        )
        payload = json.dumps(press.body(self.key)).encode()
        self._fleet.pressed += 1
        self._fleet.waiting[press.pid] = time.monotonic()
        self._fleet.answered.clear()
        self._unanswered[press.pid] = payload
        self._send(press.pid, RESENDS_S, 0)

    def _send(self, pid: str, ladder: tuple[int, ...], waited: int) -> None:
        payload = self._unanswered.get(pid)
        if payload is None:
            return
        if waited:
            self._fleet.resent += 1
        if self.client is not None and self.client.connected:
            self.client.publish(f"{ROOT}/stb/{self.sid}/press", payload)
        loop = asyncio.get_running_loop()
        if ladder:
            loop.call_later(ladder[0] - waited, self._send, pid, ladder[1:], ladder[0])
        else:
            loop.call_later(GIVE_UP_S - waited, self._give_up, pid)

    def _give_up(self, pid: str) -> None:
        if self._unanswered.pop(pid, None) is not None:
            self._fleet.settle(pid)
            self._fleet.lost += 1

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            ack = json.loads(payload)
            pid, stage = str(ack["pid"]), str(ack["stage"])
        except (ValueError, KeyError, TypeError):
            return
        fleet = self._fleet
        fleet.stages[stage] = fleet.stages.get(stage, 0) + 1
        pressed_at = fleet.settle(pid)
        self._unanswered.pop(pid, None)
        if pressed_at is None:
            return
        if stage == "refused":
            fleet.refused += 1
        else:
            fleet.latencies_ms.append((time.monotonic() - pressed_at) * 1000)
            fleet.alarms.add(str(ack.get("alarm")))


def run_many(options: argparse.Namespace) -> None:
    """`boxes run`: prints one JSON report at the end."""
    rows = list(keys.load(options.secrets).get("boxes", {}).items())[
        options.first : options.first + options.count
    ]
    if not rows:
        raise SystemExit(f"{options.secrets} has no boxes")
    host, port = _address(options.mqtt)
    fleet = Fleet(expected=len(rows))
    boxes = [Box(sid, str(key), fleet, host, port) for sid, key in rows]
    report: dict[str, Any] = {}
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run_fleet(boxes, fleet, options, report))
    print(json.dumps(report, ensure_ascii=False), flush=True)


async def _run_fleet(
    boxes: list[Box], fleet: Fleet, options: argparse.Namespace, report: dict[str, Any]
) -> None:
    random_ = random.Random(options.seed)
    began = time.monotonic()
    failures: dict[str, int] = {}

    async def keep(box: Box, delay: float) -> None:
        """Keeps one box connected. Exponential back-off with full jitter, at most 30 s."""
        await asyncio.sleep(delay)
        attempt = 0
        while True:
            try:
                await box.connect()
                attempt = 0
                while box.client is not None and box.client.connected:
                    await asyncio.sleep(50 + random_.random() * 20)
                    if box.client.connected:
                        box.client.ping()
            except (OSError, mqtt.MqttError) as error:
                fleet.connect_failures += 1
                failures[str(error)] = failures.get(str(error), 0) + 1
            attempt += 1
            await asyncio.sleep(random_.uniform(0, min(30, 0.5 * 2**attempt)))

    async def press() -> None:
        if not options.rate:
            return
        next_at = time.monotonic()
        end = next_at + options.duration if options.duration else float("inf")
        while next_at < end:
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            online = [box for box in boxes if box.client is not None and box.client.connected]
            if online:
                random_.choice(online).press(options.kind, options.cam, options.silent)
            next_at += 1 / options.rate

    async def until_done() -> None:
        async with asyncio.timeout(30 + len(boxes) / options.connect_rate):
            await fleet.online.wait()
        report["connected"] = sum(box.client is not None and box.client.connected for box in boxes)
        report["connect_s"] = round(time.monotonic() - began, 2)
        print(json.dumps({"connected": report["connected"], "connect_s": report["connect_s"]}), flush=True)
        cpu = time.process_time()
        pressing = time.monotonic()
        await press()
        if not options.rate:
            await asyncio.sleep(options.duration if options.duration else 1e9)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5 if fleet.waiting else 0):
                await fleet.answered.wait()
        report["cpu_percent"] = round(100 * (time.process_time() - cpu) / (time.monotonic() - pressing), 1)

    keepers: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for number, box in enumerate(boxes):
                keepers.append(
                    group.create_task(keep(box, number / options.connect_rate), name=f"box {box.sid}")
                )
            main = group.create_task(until_done(), name="boxes")
            main.add_done_callback(lambda _: [keeper.cancel() for keeper in keepers])
    except* TimeoutError:
        report["error"] = f"not all boxes connected: {failures}"
    finally:
        for box in boxes:
            if box.client is not None and box.client.connected:
                box.client.disconnect()
        report |= {
            "pressed": fleet.pressed,
            "persisted_ms": percentiles(fleet.latencies_ms),
            "alarms": len(fleet.alarms),
            "unanswered": len(fleet.waiting) + fleet.lost,
            "refused": fleet.refused,
            "resent": fleet.resent,
            "connect_failures": failures,
            "stages": fleet.stages,
        }
