"""The incident as a table: the closed loop of six steps (product.md section 3).

    发现上报 REPORTED -> 指挥派遣 DISPATCHED -> 处置反馈 HANDLING
        -> 任务核查 VERIFYING -> 考核评价 RATED -> 结案存档 ARCHIVED

Beside the loop: TRANSFERRED (to 110 or 12345) and SUSPENDED, both with a way back to where they came from;
MERGED, CANCELLED and ARCHIVED are ends and immutable. VERIFYING may reopen to DISPATCHED, which is counted.
"""

from __future__ import annotations

from enum import StrEnum

from gateway.errors import Conflict, NotAllowed

__all__ = ["ENDS", "TRANSITIONS", "IncidentState", "Transition", "change_incident", "check_verifier"]


class IncidentState(StrEnum):
    REPORTED = "REPORTED"
    DISPATCHED = "DISPATCHED"
    HANDLING = "HANDLING"
    VERIFYING = "VERIFYING"
    RATED = "RATED"
    ARCHIVED = "ARCHIVED"
    TRANSFERRED = "TRANSFERRED"
    SUSPENDED = "SUSPENDED"
    MERGED = "MERGED"
    CANCELLED = "CANCELLED"


class Transition(StrEnum):
    """Inputs; also the last part of POST /api/v1/incidents/{id}/{transition}."""

    DISPATCH = "dispatch"
    HANDLE = "handle"
    SUBMIT = "submit"  # the handler reports it done
    REOPEN = "reopen"  # the verifier doesn't agree
    RATE = "rate"  # after verification and follow-up
    ARCHIVE = "archive"
    TRANSFER = "transfer"
    TAKE_BACK = "take_back"
    SUSPEND = "suspend"
    RESUME = "resume"
    MERGE = "merge"
    CANCEL = "cancel"


S, T = IncidentState, Transition
ENDS = frozenset({S.ARCHIVED, S.MERGED, S.CANCELLED})
_WORKING = (S.REPORTED, S.DISPATCHED, S.HANDLING)

TRANSITIONS: dict[tuple[IncidentState, Transition], IncidentState | None] = {
    (S.REPORTED, T.DISPATCH): S.DISPATCHED,
    (S.DISPATCHED, T.DISPATCH): S.DISPATCHED,  # one more helper
    (S.HANDLING, T.DISPATCH): S.HANDLING,
    (S.DISPATCHED, T.HANDLE): S.HANDLING,
    (S.HANDLING, T.SUBMIT): S.VERIFYING,
    (S.VERIFYING, T.REOPEN): S.DISPATCHED,
    (S.VERIFYING, T.RATE): S.RATED,
    (S.RATED, T.ARCHIVE): S.ARCHIVED,
    (S.TRANSFERRED, T.TAKE_BACK): None,
    (S.SUSPENDED, T.RESUME): None,
    (S.TRANSFERRED, T.SUBMIT): S.VERIFYING,  # the other service reports it done
    **{(state, T.TRANSFER): S.TRANSFERRED for state in _WORKING},
    **{(state, T.SUSPEND): S.SUSPENDED for state in _WORKING},
    **{(state, T.MERGE): S.MERGED for state in _WORKING},
    **{(state, T.CANCEL): S.CANCELLED for state in (*_WORKING, S.TRANSFERRED, S.SUSPENDED)},
}
"""None: back to the state that was left for TRANSFERRED or SUSPENDED."""


def change_incident(
    state: IncidentState, transition: Transition, *, came_from: IncidentState | None = None
) -> IncidentState:
    """The next state. `came_from`: the state left for TRANSFERRED or SUSPENDED. Raises Conflict."""
    try:
        target = TRANSITIONS[state, transition]
    except KeyError:
        raise Conflict(
            f"an incident that is {state} can't take {transition}",
            state=str(state),
            transition=str(transition),
        ) from None
    if target is None:
        return came_from or IncidentState.REPORTED
    return target


def check_verifier(handlers: frozenset[str], verifier: str) -> None:
    """Raises NotAllowed: who handled an incident doesn't verify it."""
    if verifier in handlers:
        raise NotAllowed("处置人不能核查自己的事件")
