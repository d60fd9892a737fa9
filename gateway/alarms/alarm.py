"""The alarm's two axes as tables (product.md section 3).

    handling   NEW -> SHOWN -> ACKNOWLEDGED -> TRIAGED -> CLOSED, with the ways back to SHOWN
    condition  ACTIVE <-> CLEARED

They are independent: a clear never hides an alarm that nobody acknowledged, and a new press of the same box
and a call-back that finds
help needed make a cleared one active again. A pair that is not in a table raises Illegal and changes nothing. A row may
lead back to its own state: the input is then legal and without effect (a second console shows the alarm,
too).
"""

from __future__ import annotations

from enum import StrEnum

from gateway.errors import Conflict

__all__ = [
    "CONDITION",
    "HANDLING",
    "OUTCOMES",
    "Condition",
    "Event",
    "Handling",
    "Illegal",
    "Outcome",
    "change_condition",
    "change_handling",
]


class Handling(StrEnum):
    NEW = "NEW"
    SHOWN = "SHOWN"
    ACKNOWLEDGED = "ACKNOWLEDGED"
    TRIAGED = "TRIAGED"
    CLOSED = "CLOSED"


class Condition(StrEnum):
    ACTIVE = "ACTIVE"
    CLEARED = "CLEARED"


class Outcome(StrEnum):
    """What triage found."""

    INCIDENT = "incident"
    MERGED = "merged"
    FALSE = "false"
    TEST = "test"


OUTCOMES = frozenset(Outcome)


class Event(StrEnum):
    """Inputs of both machines."""

    SHOW = "show"  # a visible console rendered it
    ACKNOWLEDGE = "acknowledge"  # an operator took it
    UNACKNOWLEDGE = "unacknowledge"  # that operator gave it back
    ABANDON = "abandon"  # acknowledged, but not triaged in time
    TRIAGE = "triage"
    CLOSE = "close"
    PRESS = "press"  # the same box again
    CANCEL = "cancel"  # the resident took it back
    HELP_NEEDED = "help_needed"  # says the call-back after that


class Illegal(Conflict):
    """The table has no such row. `detail`: state and event."""


H = Handling
HANDLING: dict[tuple[Handling, Event], Handling] = {
    (H.NEW, Event.SHOW): H.SHOWN,
    (H.NEW, Event.ACKNOWLEDGE): H.ACKNOWLEDGED,  # implies SHOWN: who acknowledges has seen it
    (H.SHOWN, Event.SHOW): H.SHOWN,
    (H.SHOWN, Event.ACKNOWLEDGE): H.ACKNOWLEDGED,
    (H.ACKNOWLEDGED, Event.SHOW): H.ACKNOWLEDGED,
    (H.ACKNOWLEDGED, Event.UNACKNOWLEDGE): H.SHOWN,
    (H.ACKNOWLEDGED, Event.ABANDON): H.SHOWN,
    (H.ACKNOWLEDGED, Event.TRIAGE): H.TRIAGED,
    (H.TRIAGED, Event.SHOW): H.TRIAGED,
    (H.TRIAGED, Event.CLOSE): H.CLOSED,
    (H.CLOSED, Event.SHOW): H.CLOSED,
    (H.NEW, Event.PRESS): H.NEW,
    (H.SHOWN, Event.PRESS): H.SHOWN,
    (H.ACKNOWLEDGED, Event.PRESS): H.ACKNOWLEDGED,
    (H.TRIAGED, Event.PRESS): H.TRIAGED,
    (H.NEW, Event.CANCEL): H.NEW,
    (H.SHOWN, Event.CANCEL): H.SHOWN,
    (H.ACKNOWLEDGED, Event.CANCEL): H.ACKNOWLEDGED,
    (H.TRIAGED, Event.CANCEL): H.TRIAGED,
    (H.NEW, Event.HELP_NEEDED): H.NEW,
    (H.SHOWN, Event.HELP_NEEDED): H.SHOWN,
    (H.ACKNOWLEDGED, Event.HELP_NEEDED): H.ACKNOWLEDGED,
    (H.TRIAGED, Event.HELP_NEEDED): H.TRIAGED,
}
"""(CLOSED, PRESS) is missing on purpose: a press after the end is a new alarm. So is (CLOSED, CANCEL)."""

C = Condition
CONDITION: dict[tuple[Condition, Event], Condition] = {
    (C.ACTIVE, Event.PRESS): C.ACTIVE,
    (C.ACTIVE, Event.CANCEL): C.CLEARED,
    (C.CLEARED, Event.PRESS): C.ACTIVE,
    (C.CLEARED, Event.CANCEL): C.CLEARED,
    (C.CLEARED, Event.HELP_NEEDED): C.ACTIVE,
}


def change_handling(state: Handling, event: Event) -> Handling:
    """The next state. Raises Illegal."""
    try:
        return HANDLING[state, event]
    except KeyError:
        raise Illegal(
            f"an alarm that is {state} can't take {event}", state=str(state), event=str(event)
        ) from None


def change_condition(state: Condition, event: Event) -> Condition:
    """The next state. Raises Illegal."""
    try:
        return CONDITION[state, event]
    except KeyError:
        raise Illegal(f"a condition {state} can't take {event}", state=str(state), event=str(event)) from None
