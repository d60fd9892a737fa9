"""Cameras around an alarm are pulled before anybody has asked for them, as long as the alarm is being shown: when the
wall puts them on screen, the first picture is there. Pure but for the loop that warms.

Drop rule: at most ALARMS alarms at a time have their cameras warmed; in a storm the later ones start cold, as they would
without this. A camera that can't be reached is its own supervisor's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from gateway.errors import GatewayError

__all__ = ["Prewarm"]

logger = logging.getLogger(__name__)

ALARMS = 8
LONGEST_MS = 600_000
"""An alarm that nobody triages for so long has its cameras watched, or nobody cares."""
WAITING = ("NEW", "SHOWN", "ACKNOWLEDGED")


class Prewarm:
    """`see(id, data)` with each alarm as it is now; `await run()` in a task.

    cameras_of(data): ids of the cameras around it, best first. warm(camera_id): pulls it; it stays up for a grace time
    after that, so it is warmed again every `again_s`, which is shorter.
    """

    def __init__(
        self,
        *,
        cameras_of: Callable[[Mapping[str, Any]], Sequence[str]],
        warm: Callable[[str], Awaitable[None]],
        again_s: float,
        clock: Callable[[], int],
    ) -> None:
        self._cameras_of = cameras_of
        self._warm = warm
        self._again_s = again_s
        self._clock = clock
        self._alarms: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._news = asyncio.Event()

    def wants(self, alarm_id: str) -> bool:
        """Whether `see` would look at this alarm: asked before its data is decoded."""
        return alarm_id in self._alarms or len(self._alarms) < ALARMS

    def see(self, alarm_id: str, data: Mapping[str, Any]) -> None:
        shown = data["handling"] in WAITING and data["verified"] and data["kind"] != "test"
        if not shown:
            self._alarms.pop(alarm_id, None)
        elif alarm_id not in self._alarms and len(self._alarms) < ALARMS:
            self._alarms[alarm_id] = (self._clock() + LONGEST_MS, tuple(self._cameras_of(data)))
            self._news.set()

    def wanted(self) -> list[str]:
        """Cameras to be warm now, each once."""
        now_ms = self._clock()
        self._alarms = {one: kept for one, kept in self._alarms.items() if kept[0] > now_ms}
        return list(dict.fromkeys(camera for _, cameras in self._alarms.values() for camera in cameras))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._news.clear()
            cameras = self.wanted()
            await asyncio.gather(*(self._warm_one(camera) for camera in cameras))
            try:
                async with asyncio.timeout(self._again_s if cameras else None):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _warm_one(self, camera: str) -> None:
        try:
            async with asyncio.timeout(
                self._again_s / 2
            ):  # one that is dead must not let the others grow cold
                await self._warm(camera)
        except (GatewayError, TimeoutError) as error:
            logger.debug("camera %s is not warm: %s", camera, error)
