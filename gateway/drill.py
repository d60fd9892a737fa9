"""`gateway drill`: synthetic presses through both paths of a running gateway, timed step by step.

A drill presses with kind `test`: such an alarm stands in the queue marked as a test, rings nobody, escalates to nobody, is
told to no other platform, can't become an incident, and so is in no figure. The drill plays the box (MQTT and HTTP) and
an operator's console; with `people` it leaves the answering to the operators on duty and times them.

The box ids must be set apart for drills: a real box with the same id would lose its connection to the drill's.
Steps, each from the press: persisted (the box's ack), console (the event at an operator's page), shown and answered (the
box's acks to what the console said), closed.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway.alarms.press import sign
from gateway.errors import GatewayError
from gateway.identity import device_password

__all__ = ["GOALS", "Box", "DrillOptions", "DrillReport", "run_drill", "table"]

STEP_TIMEOUT_S = 15.0
"""Without `persisted` by then the box tells its resident to dial 110: the path has failed."""
PEOPLE_TIMEOUT_S = 60.0
STEPS = ("persisted", "console", "shown", "answered", "closed")
GOALS: tuple[tuple[str, float, float, str], ...] = (
    ("answered", 0.90, 10.0, "NFPA 1225 (2022)"),
    ("answered", 0.90, 15.0, "NENA-STA-020"),
    ("answered", 0.95, 20.0, "NENA-STA-020"),
)
"""(step, share, seconds, source): product.md section 5. EN 50136: both paths work, a failure is known within 180 s."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box set apart for drills."""

    sid: str
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOptions:
    """mqtt: (host, port), None without that path. token: of an operator. people: they answer, not the drill."""

    base: str
    token: str = field(repr=False)
    boxes: Sequence[Box]
    presses: int
    mqtt: tuple[str, int] | None
    root: str = "pd/v1"
    tls: ssl.SSLContext | None = None
    mqtt_tls: ssl.SSLContext | None = None
    people: bool = False


@dataclass(slots=True)
class DrillReport:
    """times_ms: path -> step -> milliseconds of each press; failures: path -> what went wrong."""

    times_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Every press of every path was persisted and seen."""
        return bool(self.times_ms) and not any(self.failures.values())

    def note(self, path: str, step: str, ms: float) -> None:
        self.times_ms.setdefault(path, {}).setdefault(step, []).append(ms)

    def json(self) -> Json:
        paths = {
            path: {step: _percentiles(times[step]) for step in STEPS if step in times}
            for path, times in self.times_ms.items()
        }
        return {"ok": self.ok, "paths": paths, "failures": self.failures, "goals": self.goals()}

    def goals(self) -> list[Json]:
        found = []
        for step, share, within_s, source in GOALS:
            times = [ms for steps in self.times_ms.values() for ms in steps.get(step, ())]
            reached = sum(ms <= within_s * 1000 for ms in times) / len(times) if times else 0.0
            met = bool(times) and reached >= share
            entry = {"step": step, "goal": share, "within_s": within_s, "source": source}
            found.append({**entry, "reached": round(reached, 4), "met": met})
        return found


async def run_drill(options: DrillOptions) -> DrillReport:
    """Presses by turns on the paths and boxes. Raises GatewayError if the gateway can't be reached at all."""
    report = DrillReport()
    connector = aiohttp.TCPConnector(ssl=options.tls) if options.tls else None
    async with aiohttp.ClientSession(options.base, connector=connector) as session:
        console = _Console(session, {"Authorization": f"Bearer {options.token}"})
        watching = asyncio.create_task(console.run(), name="drill-console")
        try:
            await console.ready(watching)
            for box in options.boxes:
                await _drill_box(options, box, session, console, report)
        except aiohttp.ClientError as error:
            raise GatewayError(f"{options.base} can't be reached: {error}") from None
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    return report


async def _drill_box(
    options: DrillOptions, box: Box, session: aiohttp.ClientSession, console: _Console, report: DrillReport
) -> None:
    line = None
    paths = ["http"]
    if options.mqtt is not None:
        paths.insert(0, "mqtt")
        line = _Line(box, options.mqtt, options.root, options.mqtt_tls)
        try:
            await line.open()
        except (OSError, TimeoutError) as error:
            report.failures.setdefault("mqtt", []).append(f"{box.sid}: {error or 'no answer of the broker'}")
            line = None
            paths = ["http"]
    try:
        for number in range(options.presses):
            path = paths[number % len(paths)]
            try:
                await _press(options, box, path, session, console, line, report)
            except (GatewayError, aiohttp.ClientError, TimeoutError) as error:
                why = str(error) or f"nothing within {STEP_TIMEOUT_S:g} s"
                report.failures.setdefault(path, []).append(f"{box.sid}: {why}")
    finally:
        if line is not None:
            await line.close()


async def _press(
    options: DrillOptions,
    box: Box,
    path: str,
    session: aiohttp.ClientSession,
    console: _Console,
    line: _Line | None,
    report: DrillReport,
) -> None:
    pid = f"drill-{secrets.token_hex(8)}"
    ts = time.time_ns() // 1_000_000
    signature = sign(box.key, f"press|{box.sid}|{pid}|1|{ts}|test||0")
    body = {"v": 1, "sid": box.sid, "pid": pid, "seq": 1, "ts": ts, "kind": "test", "sig": signature}
    began = time.monotonic()

    def note(step: str, at: float) -> None:
        report.note(path, step, (at - began) * 1000)

    async with asyncio.timeout(STEP_TIMEOUT_S):
        if path == "mqtt" and line is not None:
            line.press(body)
            ack, at = await line.stage(pid, "persisted")
        else:
            async with session.post("/api/v1/alarms", json=body) as answer:
                ack, at = await answer.json(), time.monotonic()
    if ack.get("stage") == "refused":
        raise GatewayError(f"the press was refused: {ack.get('reason')}")
    note("persisted", at)
    alarm = str(ack["alarm"])
    one = f"/api/v1/alarms/{alarm}"
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            note("console", (await console.seen(alarm, lambda data: True)))
            await console.say(f"{one}/shown", {"console": "drill"})
            if line is not None:
                note("shown", (await line.stage(pid, "shown"))[1])
        if options.people:
            async with asyncio.timeout(PEOPLE_TIMEOUT_S):
                note("answered", await console.seen(alarm, lambda data: data["acknowledged_at"] is not None))
        else:
            await console.say(f"{one}/acknowledge", {})
            async with asyncio.timeout(STEP_TIMEOUT_S):
                answered = line is not None and (await line.stage(pid, "answered"))[1]
            note("answered", answered or time.monotonic())
    finally:
        await console.end(one)
    if line is not None:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            note("closed", (await line.stage(pid, "closed"))[1])


class _Console:
    """An operator's event channel: when each alarm was seen in which state."""

    def __init__(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        self._session = session
        self._headers = headers
        self._hello = asyncio.Event()
        self._news = asyncio.Condition()
        self._seen: dict[str, list[tuple[float, Json]]] = {}

    async def run(self) -> None:
        async with self._session.ws_connect(
            "/api/v1/events", headers=self._headers, max_msg_size=0
        ) as socket:
            async for message in socket:
                frame = json.loads(message.data)
                if frame["type"] == "hello":
                    self._hello.set()
                elif frame["type"] == "alarm" and frame["data"]["kind"] == "test":
                    async with self._news:
                        self._seen.setdefault(frame["data"]["id"], []).append(
                            (time.monotonic(), frame["data"])
                        )
                        self._news.notify_all()

    async def ready(self, watching: asyncio.Task[None]) -> None:
        hello = asyncio.create_task(self._hello.wait())
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                await asyncio.wait([hello, watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            hello.cancel()
        if watching.done():
            watching.result()
            raise GatewayError("the event channel was closed")

    async def seen(self, alarm: str, is_it: Callable[[Mapping[str, Any]], bool]) -> float:
        """When (monotonic seconds) the alarm was first seen like that."""
        async with self._news:
            while True:
                for at, data in self._seen.get(alarm, ()):
                    if is_it(data):
                        return at
                await self._news.wait()

    async def say(self, path: str, body: Json) -> None:
        async with self._session.post(path, json=body, headers=self._headers) as answer:
            if answer.status >= 300:
                problem = await answer.text()
                raise GatewayError(f"POST {path} answered {answer.status}: {problem[:200]}")

    async def end(self, one: str) -> None:
        """The alarm leaves the queue, whoever has answered it or not."""
        async with self._session.get(one, headers=self._headers) as answer:
            handling = (await answer.json())["handling"]
        if handling in ("NEW", "SHOWN"):
            await self.say(f"{one}/acknowledge", {})
        if handling in ("NEW", "SHOWN", "ACKNOWLEDGED"):
            await self.say(f"{one}/triage", {"outcome": "test", "note": "演练"})
        if handling != "CLOSED":
            await self.say(f"{one}/close", {"note": "演练"})


class _Line:
    """The box's connection to the broker. paho's thread is bridged to the loop."""

    def __init__(self, box: Box, address: tuple[str, int], root: str, tls: ssl.SSLContext | None) -> None:
        self._box, self._address, self._root = box, address, root
        self._loop = asyncio.get_running_loop()
        self._subscribed = asyncio.Event()
        self._acks: dict[tuple[str, str], asyncio.Future[tuple[Json, float]]] = {}
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=box.sid, protocol=paho.MQTTv311)
        client.username_pw_set(box.sid, device_password(box.key, box.sid))
        if tls is not None:
            client.tls_set_context(tls)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        self._client = client

    async def open(self) -> None:
        """Raises OSError, TimeoutError (refused as well)."""
        await asyncio.to_thread(self._client.connect, *self._address)
        self._client.loop_start()
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                await self._subscribed.wait()
        except TimeoutError:
            await self.close()
            raise TimeoutError("the broker does not let the box in") from None

    async def close(self) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def press(self, body: Json) -> None:
        told = {key: value for key, value in body.items() if key != "sid"}
        self._client.publish(f"{self._root}/stb/{self._box.sid}/press", json.dumps(told), qos=1)

    async def stage(self, pid: str, stage: str) -> tuple[Json, float]:
        """The ack and when it came. A refusal answers whatever was waited for."""
        return await asyncio.shield(self._ack(pid, stage))

    def _ack(self, pid: str, stage: str) -> asyncio.Future[tuple[Json, float]]:
        found = self._acks.get((pid, stage))
        if found is None:
            found = self._acks[pid, stage] = self._loop.create_future()
        return found

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if not reason.is_failure:
            client.subscribe(f"{self._root}/stb/{self._box.sid}/ack", qos=1)

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: Any, properties: Any
    ) -> None:
        self._loop.call_soon_threadsafe(self._subscribed.set)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(self._take, bytes(message.payload), time.monotonic())

    def _take(self, payload: bytes, at: float) -> None:
        ack = json.loads(payload)
        stage = "persisted" if ack["stage"] == "refused" else ack["stage"]
        future = self._ack(ack["pid"], stage)
        if not future.done():
            future.set_result((ack, at))


def table(report: DrillReport) -> str:
    """For people."""
    lines = [f"{'path':5} {'step':10} {'presses':>7} {'p50 ms':>8} {'p95 ms':>8} {'max ms':>8}"]
    for path, steps in report.json()["paths"].items():
        lines += [
            f"{path:5} {step:10} {f['count']:7} {f['p50']:8.1f} {f['p95']:8.1f} {f['max']:8.1f}" for step, f in steps.items()
        ]  # fmt: skip
    for goal in report.goals():
        lines.append(
            f"{goal['step']} within {goal['within_s']:g} s: {goal['reached']:.0%} of {goal['goal']:.0%} "
            f"({goal['source']}): {'met' if goal['met'] else 'MISSED'}"
        )
    for path, failures in report.failures.items():
        lines += [f"{path} FAILED: {failure}" for failure in failures]
    return "\n".join(lines)


def _percentiles(times: Sequence[float]) -> Json:
    ordered = sorted(times)
    at = {share: ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)] for share in (50, 95)}
    return {
        "count": len(ordered),
        **{f"p{share}": round(ms, 1) for share, ms in at.items()},
        "max": round(ordered[-1], 1),
    }
