"""Deadlines and audiences of an alarm (product.md section 3). Pure: rows in, rows out.

Escalation adds an audience and never takes one away, so one number says it all: the highest level reached.
Whoever is at or below it keeps being an audience.

    community  the community's desk            at once
    street     + the street's desk             after street_ms   (15 s), and volunteers near by unless it is
    about violence district   + the district wall, supervisor after district_ms (30 s)
    leader     + the duty leader and a prompt to hand over to the police, after leader_ms (60 s); then a
    re-alert every realert_ms

An alarm that no visible console has shown in shown_ms (5 s) goes to the next level early; each level gets
that time. An acknowledgement stops the clock, and starts another: without triage in triage_ms (60 s) the
alarm goes back to SHOWN and escalates on from its level, unless a desk is speaking in its call. All that is due is stored as deadlines by kind;
after a restart they are read back and go on, the overdue at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.alarms.alarm import Handling
from gateway.alarms.press import Kind

__all__ = [
    "DeadlineKind",
    "Effect",
    "EscalationSettings",
    "Level",
    "Progress",
    "fire",
    "first",
    "next_deadline",
    "on",
]


class Level(StrEnum):
    """Audiences from near to far."""

    COMMUNITY = "community"
    STREET = "street"
    DISTRICT = "district"
    LEADER = "leader"


ORDER = tuple(Level)


class DeadlineKind(StrEnum):
    SHOWN = "shown"
    ESCALATE = "escalate"
    TRIAGE = "triage"


class Effect(StrEnum):
    """What the service has to do besides storing the new progress."""

    ADD_AUDIENCE = "add_audience"
    REALERT = "realert"
    ABANDON = "abandon"
    OFFER_VOLUNTEERS = "offer_volunteers"
    PROMPT_POLICE = "prompt_police"


@dataclass(frozen=True, slots=True, kw_only=True)
class EscalationSettings:
    """Milliseconds. street/district/leader count from the commit (or from the return to SHOWN)."""

    shown_ms: int = 5_000
    street_ms: int = 15_000
    district_ms: int = 30_000
    leader_ms: int = 60_000
    triage_ms: int = 60_000
    realert_ms: int = 60_000
    violence: frozenset[Kind] = frozenset({Kind.THEFT, Kind.SOS})
    """Kinds to which no volunteer is called. Silent alarms count as violence always."""

    def after(self, level: Level) -> int:
        return {
            Level.COMMUNITY: 0,
            Level.STREET: self.street_ms,
            Level.DISTRICT: self.district_ms,
            Level.LEADER: self.leader_ms,
        }[level]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an alarm's escalation is. base_ms: from when the levels' times count. deadlines: UTC ms by
    kind.
    """

    level: Level
    base_ms: int
    deadlines: dict[DeadlineKind, int] = field(default_factory=dict)

    def next_deadline(self) -> int | None:
        return min(self.deadlines.values(), default=None)


def first(
    settings: EscalationSettings, *, level: Level, severity: int | None, kind: Kind, now_ms: int
) -> Progress:
    """At the commit. `level`: the nearest desk there is for this place. Severity 4 starts with every
    audience; a test stays where it is.
    """
    if severity == 4:
        level = Level.LEADER
    deadlines: dict[DeadlineKind, int] = {}
    if kind is not Kind.TEST:
        deadlines = _escalation(settings, level, now_ms, now_ms)
        if level is not Level.LEADER:
            deadlines[DeadlineKind.SHOWN] = now_ms + settings.shown_ms
    return Progress(level=level, base_ms=now_ms, deadlines=deadlines)


def on(settings: EscalationSettings, progress: Progress, handling: Handling, *, now_ms: int) -> Progress:
    """After the alarm's handling has become `handling` by what people did (never by `fire`)."""
    if handling is Handling.SHOWN:
        if DeadlineKind.TRIAGE in progress.deadlines:  # it came back from ACKNOWLEDGED
            deadlines = _escalation(settings, progress.level, now_ms, now_ms)
            return Progress(level=progress.level, base_ms=now_ms, deadlines=deadlines)
        kept: dict[DeadlineKind, int] = {
            kind: at for kind, at in progress.deadlines.items() if kind != DeadlineKind.SHOWN
        }
        return Progress(level=progress.level, base_ms=progress.base_ms, deadlines=kept)
    if handling is Handling.ACKNOWLEDGED:
        triage: dict[DeadlineKind, int] = {DeadlineKind.TRIAGE: now_ms + settings.triage_ms}
        return Progress(level=progress.level, base_ms=progress.base_ms, deadlines=triage)
    if handling in (Handling.TRIAGED, Handling.CLOSED):
        return Progress(level=progress.level, base_ms=progress.base_ms)
    return progress


def fire(
    settings: EscalationSettings,
    progress: Progress,
    *,
    kind: Kind,
    silent: bool,
    now_ms: int,
    talking: bool = False,
) -> tuple[Progress, tuple[Effect, ...]]:
    """What is due at `now_ms`, all at once. Nothing due: the same progress and no effects.

    talking: a desk is in the alarm's call, so that it is not abandoned; triage then waits as long again.
    """
    due = {what for what, at in progress.deadlines.items() if at <= now_ms}
    if not due:
        return progress, ()
    if DeadlineKind.TRIAGE in due and talking:
        later = {**progress.deadlines, DeadlineKind.TRIAGE: now_ms + settings.triage_ms}
        return Progress(level=progress.level, base_ms=progress.base_ms, deadlines=later), ()
    if DeadlineKind.TRIAGE in due:
        deadlines = _escalation(settings, progress.level, now_ms, now_ms)
        return Progress(level=progress.level, base_ms=now_ms, deadlines=deadlines), (
            Effect.ABANDON,
            Effect.REALERT,
        )
    level = progress.level
    deadlines = dict(progress.deadlines)
    if DeadlineKind.SHOWN in due:
        level = _above(level)
        deadlines.pop(DeadlineKind.SHOWN)
        if level is not Level.LEADER:
            deadlines[DeadlineKind.SHOWN] = now_ms + settings.shown_ms
    # By the time that has passed; after an un-acknowledge the clock starts anew but the level is kept.
    for candidate in ORDER[ORDER.index(level) + 1 :]:
        if progress.base_ms + settings.after(candidate) <= now_ms:
            level = candidate
    if DeadlineKind.ESCALATE in due or level is not progress.level:
        deadlines.pop(DeadlineKind.ESCALATE, None)
        deadlines.update(_escalation(settings, level, progress.base_ms, now_ms))
    if level is Level.LEADER:  # nobody is left who could be told earlier
        deadlines.pop(DeadlineKind.SHOWN, None)
    effects: list[Effect] = []
    if level is progress.level:
        effects.append(Effect.REALERT)
    else:
        effects.append(Effect.ADD_AUDIENCE)
        crossed = ORDER[ORDER.index(progress.level) + 1 : ORDER.index(level) + 1]
        if Level.STREET in crossed and not silent and kind not in settings.violence:
            effects.append(Effect.OFFER_VOLUNTEERS)
        if Level.LEADER in crossed:
            effects.append(Effect.PROMPT_POLICE)
    return Progress(level=level, base_ms=progress.base_ms, deadlines=deadlines), tuple(effects)


def next_deadline(all_progress: list[Progress]) -> int | None:
    """The earliest deadline of several alarms, UTC ms."""
    return min(
        (at for progress in all_progress if (at := progress.next_deadline()) is not None), default=None
    )


def _above(level: Level) -> Level:
    return ORDER[min(ORDER.index(level) + 1, len(ORDER) - 1)]


def _escalation(
    settings: EscalationSettings, level: Level, base_ms: int, now_ms: int
) -> dict[DeadlineKind, int]:
    """When the next level is due, or the next re-alert once there is none. Never in the past: a missed
    step is not repeated.
    """
    if level is Level.LEADER:
        return {DeadlineKind.ESCALATE: now_ms + settings.realert_ms}
    return {DeadlineKind.ESCALATE: max(now_ms, base_ms + settings.after(_above(level)))}
