"""The gate before the writer: joins the same press, throttles a box, remembers recent answers.

A box that presses faster than `press_rate` is throttled, not refused: its further presses wait up to
`throttle_ms` and are recorded together, so that a key stuck at 100 presses a second costs one transaction a
second and others keep their latency. At most `throttle_bound` presses of a box wait; those beyond raise
Unavailable (the alarm itself lives long since).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial

from gateway.alarms import intake
from gateway.alarms.announce import Json
from gateway.alarms.policy import AlarmSettings
from gateway.errors import Unavailable
from gateway.store import Store

__all__ = ["Gate"]

RECENT_PRESSES = 20_000
BOXES_REMEMBERED = 50_000


@dataclass(slots=True)
class _Box:
    """Token bucket of one box and what it has waiting."""

    tokens: float
    at_ms: int
    waiting: list[tuple[intake.Admitted, asyncio.Future[tuple[Json, bool]]]] = field(default_factory=list)


class Gate:
    """Owned by the loop; run `run()` beside it."""

    def __init__(self, store: Store, settings: AlarmSettings) -> None:
        self._store = store
        self._settings = settings
        self._recent: OrderedDict[tuple[str, str], Json] = OrderedDict()
        self._on_their_way: dict[tuple[str, str], asyncio.Future[Json]] = {}
        self._boxes: OrderedDict[str, _Box] = OrderedDict()
        self._behind: set[str] = set()
        self._throttled = asyncio.Event()
        self._record_all = partial(
            intake.record_presses,
            settings=settings.escalation,
            grouping=intake.Grouping(radius_m=settings.group_radius_m, window_ms=settings.group_ms),
        )
        self.throttled = 0

    def recent(self, source: str, pid: str) -> Json | None:
        """The answer that this press got, if it is not too long ago. The database knows for ever."""
        return self._recent.get((source, pid))

    def spend(self, name: str, now_ms: int) -> bool:
        """Takes a token of the bucket `name`; False when it is empty."""
        box = self._box(name, now_ms)
        if box.tokens < 1:
            return False
        box.tokens -= 1
        return True

    async def run(self) -> None:
        """Records what waits, once every `throttle_ms`, until cancelled."""
        while True:
            await self._throttled.wait()
            await asyncio.sleep(self._settings.throttle_ms / 1000)
            self._throttled.clear()
            behind, self._behind = self._behind, set()
            await asyncio.gather(*(self._record_waiting(self._boxes[sid]) for sid in behind))

    async def admit(self, admitted: intake.Admitted) -> tuple[Json, bool]:
        """The same press that is on its way already gets its answer, so a thousand of them cost one write."""
        name = admitted.source, admitted.press.pid
        on_its_way = self._on_their_way.get(name)
        if on_its_way is not None:
            return await asyncio.shield(on_its_way), True
        answered: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._on_their_way[name] = answered
        try:
            answer, was_known = await self._admit_new(admitted)
            answered.set_result(answer)
            self._recent[name] = answer
            while len(self._recent) > RECENT_PRESSES:
                self._recent.popitem(last=False)
            return answer, was_known
        finally:
            del self._on_their_way[name]
            if not answered.done():
                answered.set_exception(Unavailable("cannot process: the same press has just failed"))
                answered.exception()  # taken note of, should nobody wait for it

    async def _admit_new(self, admitted: intake.Admitted) -> tuple[Json, bool]:
        box = self._box(admitted.source, admitted.now_ms)
        if box.tokens >= 1 and not box.waiting:
            box.tokens -= 1
            return (await self._record([admitted]))[0]
        if len(box.waiting) >= self._settings.throttle_bound:
            raise Unavailable("too many presses of one box are waiting")
        self.throttled += 1
        future: asyncio.Future[tuple[Json, bool]] = asyncio.get_running_loop().create_future()
        box.waiting.append((admitted, future))
        self._behind.add(admitted.source)
        self._throttled.set()
        return await future

    def _box(self, sid: str, now_ms: int) -> _Box:
        box = self._boxes.get(sid)
        if box is None:
            box = self._boxes[sid] = _Box(self._settings.press_burst, now_ms)
            if len(self._boxes) > BOXES_REMEMBERED:
                oldest, idle = next(iter(self._boxes.items()))
                if not idle.waiting:
                    del self._boxes[oldest]
        self._boxes.move_to_end(sid)
        gained = max(0, now_ms - box.at_ms) / 1000 * self._settings.press_rate
        box.tokens = min(self._settings.press_burst, box.tokens + gained)
        box.at_ms = now_ms
        return box

    async def _record(self, presses: list[intake.Admitted]) -> list[tuple[Json, bool]]:
        """What comes while the writer is at work is recorded together, in a few statements."""
        return await self._store.write_together(self._record_all, presses, urgent=True)

    async def _record_waiting(self, box: _Box) -> None:
        waiting, box.waiting = box.waiting, []
        try:
            answers = await self._record([admitted for admitted, _ in waiting])
        except Exception as exc:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(exc)
            return
        for (_, future), answer in zip(waiting, answers, strict=True):
            if not future.done():
                future.set_result(answer)
