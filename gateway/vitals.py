"""How the gateway is: what /healthz, /readyz, the metrics and the alert rules go by.

A *reason* is why presses can't be accepted now, or only on one path: /readyz fails. A *note* is what somebody must look at
before it becomes a reason: /readyz holds, /healthz says `degraded`.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.clock import SteadyClock
from gateway.data_dir import DataDir
from gateway.devices import Devices
from gateway.http.pages import Health
from gateway.store import Store
from gateway.streams.cameras import State
from gateway.streams.media_service import MediaService

__all__ = ["Vitals"]

LAG_LIMIT_MS = 1_000.0
"""Above it /readyz fails: a front door should send viewers elsewhere."""
CLOCK_LIMIT_MS = 2_000


class Vitals:
    """Asks the running parts. Cameras are counted and don't matter: a gateway without video still takes presses."""

    def __init__(
        self,
        *,
        store: Store,
        devices: Devices,
        media: MediaService,
        data: DataDir,
        clock: SteadyClock,
        reserve_bytes: int,
        lag_ms: Callable[[], float],
        draining: Callable[[], bool],
        recording_refused: Callable[[], str | None],
    ) -> None:
        """reserve_bytes: free disk below which somebody must make room; recording_refused: why evidence is not kept now."""
        self._store, self._devices, self._media, self._data = store, devices, media, data
        self._clock, self._reserve_bytes = clock, reserve_bytes
        self._lag_ms, self._draining, self._recording_refused = lag_ms, draining, recording_refused

    def health(self) -> Health:
        store, lag_ms = self._store.health(), self._lag_ms()
        reasons, notes = [], []
        if self._draining():
            reasons.append("draining")
        if not store.writable:
            reasons.append(f"database: {store.reason}")
        if lag_ms > LAG_LIMIT_MS:
            reasons.append(f"the loop is {lag_ms:.0f} ms late")
        if self._devices.is_off:
            notes.append("mqtt is off: presses by HTTP only")
        elif not self._devices.is_up:
            reasons.append("no connection to the broker")
        free = self._data.free_bytes()
        if free < self._reserve_bytes:
            notes.append(f"disk: {free >> 20} MiB free, below the reserve of {self._reserve_bytes >> 20}")
        if refused := self._recording_refused():
            notes.append(f"evidence: {refused}")
        ahead_ms = self._clock.ahead_ms
        if ahead_ms > CLOCK_LIMIT_MS:
            notes.append(f"the machine's clock was set back: our times are {ahead_ms // 1000} s ahead of it")
        states = [state.state for state in self._media.states()]
        return Health(
            ready=not reasons,
            reasons=tuple(reasons),
            notes=tuple(notes),
            parts={
                "db": store.writable,
                "mqtt": self._devices.is_up,
                "evidence": refused is None,
                "lag_ms": round(lag_ms, 1),
                "disk_free_bytes": free,
                "clock_ahead_ms": ahead_ms,
                "cameras": {state.value: states.count(state) for state in State},
                "sessions": len(self._media),
            },
        )
