"""A small district, a desk on a real database, and receivers that remember what they were given."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.alarms.announce import News
from gateway.alarms.desk import AlarmDesk
from gateway.alarms.policy import AlarmSettings
from gateway.alarms.roster import Roster
from gateway.alarms.world import Area, CameraSite, Home, WorkerSite
from gateway.geo import Position
from gateway.store import Store

KEY = b"k" * 32
AREA = Area(street="510117001", community="510117001001", grid="510117001001001")
FAR = Area(street="510117002", community="510117002001", grid="510117002001001")
CENTER = Position(30.81, 103.89)


def north(metres: float, east: float = 0.0) -> Position:
    """A position so many metres from the centre."""
    return Position(30.81 + metres / 111_195.08, 103.89 + east / (111_195.08 * 0.858872))


class SmallWorld:
    """Boxes b0..b999 at home 200 m apart in a line; four cameras; three workers."""

    def __init__(self) -> None:
        self._homes = {
            f"b{i}": Home(
                id=f"h{i}",
                address=f"幸福里{i}号",
                position=north(0, 200.0 * i),
                area=AREA,
                contacts=({"name": "李", "phone": "1"},),
                notes="心脏病",
            )
            for i in range(1000)
        }
        self._homes["b_near"] = Home(id="h_near", address="近邻", position=north(50), area=AREA)
        self._cameras = [
            CameraSite(
                id="c_south", name="南门", position=north(-40), heading=0, fov=90, range_m=60, area=AREA
            ),
            CameraSite(
                id="c_away", name="背向", position=north(-30), heading=180, fov=90, range_m=60, area=AREA
            ),
            CameraSite(
                id="c_far", name="远处", position=north(300), heading=180, fov=90, range_m=60, area=AREA
            ),
            CameraSite(
                id="c_else", name="别处", position=north(5000), heading=0, fov=90, range_m=60, area=FAR
            ),
        ]
        self._workers = [
            WorkerSite(id="w1", name="王一", grid=AREA.grid, area=AREA, centroid=north(100)),
            WorkerSite(id="w2", name="王二", grid="other", area=AREA, centroid=north(900)),
            WorkerSite(id="w3", name="王三", grid=FAR.grid, area=FAR, centroid=north(5000)),
        ]

    def box_key(self, sid: str) -> bytes | None:
        return KEY if sid in self._homes else None

    def home_of(self, sid: str) -> Home | None:
        return self._homes.get(sid)

    def home(self, household_id: str) -> Home | None:
        return self._homes.get("b" + household_id[1:])

    def camera(self, camera_id: str) -> CameraSite | None:
        return next((c for c in self._cameras if c.id == camera_id), None)

    def cameras(self) -> Sequence[CameraSite]:
        return self._cameras

    def workers(self) -> Sequence[WorkerSite]:
        return self._workers

    def area_at(self, position: Position) -> Area:
        return AREA


class Clock:
    """UTC milliseconds that move when told."""

    def __init__(self) -> None:
        self.now_ms = 1_790_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Receivers:
    """What the root would wire: remembers all that is delivered."""

    def __init__(self) -> None:
        self.mqtt: list[tuple[str, Any, bool]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.rings: list[dict[str, Any]] = []
        self.down = False
        self.reached: list[dict[str, Any]] = []
        self.on_duty = 1
        self.news = asyncio.Event()

    async def publish_mqtt(self, publications: Sequence[tuple[str, bytes, int, bool]]) -> None:
        if self.down:
            raise ConnectionError("broker is down")
        self.mqtt += [
            (topic, json.loads(body) if body else None, keep) for topic, body, _, keep in publications
        ]
        self.news.set()

    async def publish_events(self, events: Sequence[tuple[int, News]]) -> None:
        self.events += [(news.type, json.loads(bytes(news.data))) for _, news in events]
        self.news.set()

    async def ring(self, briefs: Sequence[dict[str, Any]]) -> None:
        self.rings += briefs
        self.news.set()

    async def reach(self, payload: dict[str, Any]) -> int:
        self.reached.append(payload)
        self.news.set()
        return self.on_duty

    def stages(self, sid: str) -> list[str]:
        return [p["stage"] for topic, p, _ in self.mqtt if topic == f"pd/v1/stb/{sid}/ack"]


class Bench:
    """A desk and all around it. `async with bench.running()` delivers; `await settle()` waits until
    nothing is left to deliver.
    """

    def __init__(self, store: Store, clock: Clock, settings: AlarmSettings) -> None:
        self.store = store
        self.clock = clock
        self.world = SmallWorld()
        self.got = Receivers()
        self.talked_about: set[str] = set()
        self.watchable: set[tuple[str, str]] = set()
        self.roster = Roster(store, settings.dispatch)
        self.desk = AlarmDesk(
            store,
            self.world,
            settings,
            roster=self.roster,
            camera_health=lambda camera_id: True,
            may_watch=lambda sid, camera_id: (sid, camera_id) in self.watchable,
            talked_about=lambda: self.talked_about,
            publish_mqtt=self.got.publish_mqtt,
            publish_events=self.got.publish_events,
            ring=self.got.ring,
            reach=self.got.reach,
            clock=clock,
        )

    async def settle(self) -> None:
        from gateway import outbox

        async with asyncio.timeout(10):
            while await self.store.read(outbox.pending):
                self.got.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.got.news.wait(), 0.02)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        task = asyncio.create_task(self.desk.run())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def press_body(sid: str = "b0", pid: str = "p1", *, key: bytes = KEY, **fields: Any) -> bytes:
    """A signed press, made without the gateway's own code."""
    body: dict[str, Any] = {
        "v": 1,
        "sid": sid,
        "pid": pid,
        "seq": 1,
        "ts": 1_790_000_000_000,
        "kind": "help",
        **fields,
    }
    cam, silent = body.get("cam") or "", int(body.get("silent", False))
    text = f"press|{sid}|{pid}|{body['seq']}|{body['ts']}|{body['kind']}|{cam}|{silent}"
    body["sig"] = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return json.dumps(body).encode()


def signed(text: str, **fields: Any) -> bytes:
    sig = hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()
    return json.dumps({**fields, "sig": sig}).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def bench(tmp_path: Path, clock: Clock) -> AsyncIterator[Bench]:
    store = await Store.open(tmp_path / "gateway.db")
    made = Bench(store, clock, AlarmSettings(throttle_ms=50, press_rate=2, press_burst=10))
    await made.roster.load(made.world.workers())
    try:
        yield made
    finally:
        await store.close()
