"""The figures that the alarm path goes by, in its own units, and how they follow from gateway.yaml; and
who acts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway import settings as configured
from gateway.alarms.dispatch import DispatchSettings
from gateway.alarms.escalation import EscalationSettings

__all__ = ["Actor", "AlarmSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who does it. role and sub as in the access token."""

    sub: str
    name: str
    role: str

    def __str__(self) -> str:
        return f"{self.role}/{self.sub}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSettings:
    """press_rate: presses a second of one box before it is throttled, press_burst: how many at once.
    action_ms: an incident without any action goes to the supervisor. task_offer_ms: a task not answered expires.
    keep_track_ms: of gridworkers' tracks.
    """

    escalation: EscalationSettings = field(default_factory=EscalationSettings)
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)
    group_radius_m: float = 150.0
    group_ms: int = 120_000
    press_rate: float = 5.0
    press_burst: float = 20.0
    throttle_ms: int = 1_000
    throttle_bound: int = 500
    flush_ms: int = 5_000
    action_ms: int = 600_000
    volunteer_radius_m: float = 500.0
    task_offer_ms: int = 120_000
    keep_track_ms: int = 30 * 86_400_000

    @classmethod
    def of(
        cls, alarms: configured.AlarmSettings, dispatch: configured.DispatchSettings | None = None
    ) -> AlarmSettings:
        """From the sections `alarms` and `dispatch` of gateway.yaml."""
        where = dispatch or configured.DispatchSettings()
        return cls(
            escalation=EscalationSettings(
                shown_ms=round(alarms.shown_s * 1000),
                street_ms=round(min(alarms.street_s, alarms.acknowledged_s) * 1000),
                district_ms=round(alarms.district_s * 1000),
                leader_ms=round(alarms.leader_s * 1000),
                triage_ms=round(alarms.triage_s * 1000),
                realert_ms=round(alarms.realert_s * 1000),
            ),
            dispatch=DispatchSettings(
                fresh_ms=round(where.fresh_s * 1000),
                usable_ms=round(where.usable_s * 1000),
                last_resort_ms=round(where.last_resort_s * 1000),
                speed_mps=where.travel_m_per_s,
                jump_mps=where.jump_m_per_s,
                camera_radius_m=where.camera_radius_m,
                camera_limit=where.camera_count,
            ),
            group_radius_m=alarms.group_radius_m,
            group_ms=round(alarms.group_window_s * 1000),
            press_rate=alarms.press_rate_per_s,
            press_burst=float(alarms.press_burst),
            action_ms=round(alarms.action_s * 1000),
            task_offer_ms=round(alarms.task_offer_s * 1000),
            volunteer_radius_m=alarms.volunteer_radius_m,
            keep_track_ms=where.track_days * 86_400_000,
        )
