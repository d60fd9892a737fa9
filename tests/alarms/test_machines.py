"""The tables: every row does what it says, every pair that is not a row is refused; escalation's figures."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.alarms.alarm import (
    CONDITION,
    HANDLING,
    Condition,
    Event,
    Handling,
    Illegal,
    change_condition,
    change_handling,
)
from gateway.alarms.escalation import (
    DeadlineKind,
    Effect,
    EscalationSettings,
    Level,
    Progress,
    fire,
    first,
    next_deadline,
    on,
)
from gateway.alarms.incident import (
    ENDS,
    TRANSITIONS,
    IncidentState,
    Transition,
    change_incident,
    check_verifier,
)
from gateway.alarms.press import Kind
from gateway.alarms.task import TASK_ENDS, TASK_TRANSITIONS, TaskEvent, TaskState, change_task
from gateway.errors import Conflict, NotAllowed

S = EscalationSettings()


@pytest.mark.parametrize(("state", "event"), list(product(Handling, Event)))
def test_handling(state: Handling, event: Event) -> None:
    if (state, event) in HANDLING:
        assert change_handling(state, event) is HANDLING[state, event]
    else:
        with pytest.raises(Illegal) as illegal:
            change_handling(state, event)
        assert illegal.value.detail == {"state": state, "event": event}


@pytest.mark.parametrize(("state", "event"), list(product(Condition, Event)))
def test_condition(state: Condition, event: Event) -> None:
    if (state, event) in CONDITION:
        assert change_condition(state, event) is CONDITION[state, event]
    else:
        with pytest.raises(Illegal):
            change_condition(state, event)


def test_the_ways_that_product_md_names() -> None:
    assert change_handling(Handling.NEW, Event.ACKNOWLEDGE) is Handling.ACKNOWLEDGED
    assert change_handling(Handling.ACKNOWLEDGED, Event.ABANDON) is Handling.SHOWN
    assert change_handling(Handling.NEW, Event.CANCEL) is Handling.NEW
    assert all((Handling.CLOSED, event) not in HANDLING for event in Event if event is not Event.SHOW)


@pytest.mark.parametrize(("state", "transition"), list(product(IncidentState, Transition)))
def test_incident(state: IncidentState, transition: Transition) -> None:
    if (state, transition) in TRANSITIONS:
        wanted = TRANSITIONS[state, transition] or IncidentState.HANDLING
        assert change_incident(state, transition, came_from=IncidentState.HANDLING) is wanted
        assert state not in ENDS
    else:
        with pytest.raises(Conflict):
            change_incident(state, transition)


def test_who_handled_it_does_not_verify_it() -> None:
    check_verifier(frozenset({"worker/w1"}), "operator/li")
    with pytest.raises(NotAllowed):
        check_verifier(frozenset({"worker/w1"}), "worker/w1")


@pytest.mark.parametrize(("state", "event"), list(product(TaskState, TaskEvent)))
def test_task(state: TaskState, event: TaskEvent) -> None:
    if (state, event) in TASK_TRANSITIONS:
        assert change_task(state, event) is TASK_TRANSITIONS[state, event]
        assert state not in TASK_ENDS
    else:
        with pytest.raises(Conflict):
            change_task(state, event)


def test_escalation_of_an_alarm_that_is_shown_but_not_acknowledged() -> None:
    p = on(
        S,
        first(S, level=Level.COMMUNITY, severity=None, kind=Kind.HELP, now_ms=0),
        Handling.SHOWN,
        now_ms=2_000,
    )
    seen = []
    while len(seen) < 5:
        at = p.next_deadline()
        assert at is not None
        p, effects = fire(S, p, kind=Kind.HELP, silent=False, now_ms=at)
        seen.append((at, p.level, effects))
    assert seen == [
        (15_000, Level.STREET, (Effect.ADD_AUDIENCE, Effect.OFFER_VOLUNTEERS)),
        (30_000, Level.DISTRICT, (Effect.ADD_AUDIENCE,)),
        (60_000, Level.LEADER, (Effect.ADD_AUDIENCE, Effect.PROMPT_POLICE)),
        (120_000, Level.LEADER, (Effect.REALERT,)),
        (180_000, Level.LEADER, (Effect.REALERT,)),
    ]


def test_nobody_shows_it() -> None:
    p = first(S, level=Level.COMMUNITY, severity=None, kind=Kind.THEFT, now_ms=0)
    levels = []
    for now_ms in (4_999, 5_000, 10_000, 15_000):
        p, effects = fire(S, p, kind=Kind.THEFT, silent=False, now_ms=now_ms)
        levels.append((p.level, Effect.OFFER_VOLUNTEERS in effects))
    assert levels == [(level, False) for level in Level]


def test_restart_after_an_hour_fires_once_what_was_missed() -> None:
    p = first(S, level=Level.COMMUNITY, severity=None, kind=Kind.HELP, now_ms=0)
    p, effects = fire(S, p, kind=Kind.HELP, silent=False, now_ms=3_600_000)
    assert p.level is Level.LEADER
    assert set(effects) == {Effect.ADD_AUDIENCE, Effect.OFFER_VOLUNTEERS, Effect.PROMPT_POLICE}
    assert p.deadlines == {DeadlineKind.ESCALATE: 3_660_000}
    assert fire(S, p, kind=Kind.HELP, silent=False, now_ms=3_600_000) == (p, ())


def test_severity_four_starts_with_everyone_and_a_test_with_nobody_else() -> None:
    assert first(S, level=Level.COMMUNITY, severity=4, kind=Kind.FIRE, now_ms=0).level is Level.LEADER
    drill = first(S, level=Level.COMMUNITY, severity=None, kind=Kind.TEST, now_ms=0)
    assert drill.deadlines == {}
    assert next_deadline([drill]) is None


def test_acknowledgement_stops_the_clock_and_its_return_starts_it_again() -> None:
    p = first(S, level=Level.STREET, severity=None, kind=Kind.HELP, now_ms=0)
    p = on(S, p, Handling.ACKNOWLEDGED, now_ms=3_000)
    assert p.deadlines == {DeadlineKind.TRIAGE: 63_000}
    abandoned, effects = fire(S, p, kind=Kind.HELP, silent=False, now_ms=63_000)
    assert effects == (Effect.ABANDON, Effect.REALERT)
    assert (abandoned.level, abandoned.deadlines) == (Level.STREET, {DeadlineKind.ESCALATE: 93_000})
    talking, effects = fire(S, p, kind=Kind.HELP, silent=False, now_ms=63_000, talking=True)
    assert (talking.deadlines, effects) == ({DeadlineKind.TRIAGE: 123_000}, ())
    given_back = on(S, p, Handling.SHOWN, now_ms=10_000)
    assert given_back.deadlines == {DeadlineKind.ESCALATE: 40_000}
    assert on(S, p, Handling.TRIAGED, now_ms=10_000).deadlines == {}
    assert next_deadline([given_back, abandoned]) == 40_000


@given(
    st.sampled_from(Level),
    st.dictionaries(st.sampled_from(DeadlineKind), st.integers(0, 200_000), max_size=3),
    st.integers(0, 400_000),
    st.booleans(),
)
def test_escalation_never_takes_an_audience_away_and_leaves_nothing_due(
    level: Level, deadlines: dict[DeadlineKind, int], now_ms: int, silent: bool
) -> None:
    before = Progress(level=level, base_ms=0, deadlines=deadlines)
    after, effects = fire(S, before, kind=Kind.HELP, silent=silent, now_ms=now_ms)
    order = list(Level)
    assert order.index(after.level) >= order.index(before.level)
    assert bool(effects) == any(at <= now_ms for at in deadlines.values())
    assert not (silent and Effect.OFFER_VOLUNTEERS in effects)
    at = after.next_deadline()
    assert at is None or at > now_ms
