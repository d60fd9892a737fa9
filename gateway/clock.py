"""The gateway's UTC clock, which never goes back.

Deadlines of the alarm path stand in the database as UTC, because they must survive a restart. If the machine's clock were
set back by an hour under a running gateway, every one of them would come an hour late: nobody would be called. So time
goes on as before, a little slower (`SLEW`), until the machine's clock has caught up. A step forward is taken at once: what is
due early is only told early.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["SteadyClock"]

SLEW = 0.05
"""While the machine's clock is behind, a second of ours lasts this much longer: a minute is made good in 20."""
STEP_MS = 1_000
"""A difference that is no slewing of NTP (at most 0.5 ms a second, ntpd(8)) but a step."""


class SteadyClock:
    """`wall_ms`: UTC milliseconds of the machine; `monotonic_ms`: its clock that nobody sets."""

    def __init__(self, wall_ms: Callable[[], int], monotonic_ms: Callable[[], float]) -> None:
        self._wall_ms, self._monotonic_ms = wall_ms, monotonic_ms
        self._at = float(wall_ms())
        self._mono = monotonic_ms()
        self._ahead = 0.0
        self.steps = 0

    @property
    def ahead_ms(self) -> int:
        """How far we are ahead of the machine's clock since it was set back, as of the last look. 0: not at all."""
        return round(self._ahead)

    def now_ms(self) -> int:
        """Never less than the last answer."""
        wall, mono = float(self._wall_ms()), self._monotonic_ms()
        passed = max(0.0, mono - self._mono)
        expected = self._at + passed
        if abs(wall - expected) - self._ahead > STEP_MS:
            self.steps += 1
        now = wall if wall >= expected else max(wall, expected - SLEW * passed, self._at)
        self._ahead = max(0.0, now - wall)
        self._at, self._mono = now, mono
        return int(now)
