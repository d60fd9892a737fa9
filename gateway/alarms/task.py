"""The task of one helper within an incident, as a table (product.md section 3).

OFFERED -> ACCEPTED -> EN_ROUTE -> ON_SCENE -> DONE -> VERIFIED      ends: VERIFIED, DECLINED, EXPIRED,
REVOKED
"""

from __future__ import annotations

from enum import StrEnum

from gateway.errors import Conflict

__all__ = ["TASK_ENDS", "TASK_TRANSITIONS", "TaskEvent", "TaskState", "change_task"]


class TaskState(StrEnum):
    OFFERED = "OFFERED"
    ACCEPTED = "ACCEPTED"
    EN_ROUTE = "EN_ROUTE"
    ON_SCENE = "ON_SCENE"
    DONE = "DONE"
    VERIFIED = "VERIFIED"
    DECLINED = "DECLINED"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


class TaskEvent(StrEnum):
    ACCEPT = "accept"
    DECLINE = "decline"
    SET_OUT = "set_out"
    ARRIVE = "arrive"
    FINISH = "finish"
    VERIFY = "verify"
    REDO = "redo"  # the verification failed
    EXPIRE = "expire"
    REVOKE = "revoke"


S, E = TaskState, TaskEvent
TASK_ENDS = frozenset({S.VERIFIED, S.DECLINED, S.EXPIRED, S.REVOKED})
TASK_TRANSITIONS: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (S.OFFERED, E.ACCEPT): S.ACCEPTED,
    (S.OFFERED, E.DECLINE): S.DECLINED,
    (S.OFFERED, E.EXPIRE): S.EXPIRED,
    (S.ACCEPTED, E.SET_OUT): S.EN_ROUTE,
    (S.ACCEPTED, E.ARRIVE): S.ON_SCENE,  # who stands next to it doesn't set out
    (S.ACCEPTED, E.DECLINE): S.DECLINED,
    (S.EN_ROUTE, E.ARRIVE): S.ON_SCENE,
    (S.EN_ROUTE, E.DECLINE): S.DECLINED,
    (S.ON_SCENE, E.FINISH): S.DONE,
    (S.DONE, E.VERIFY): S.VERIFIED,
    (S.DONE, E.REDO): S.ACCEPTED,
    **{(state, E.REVOKE): S.REVOKED for state in (S.OFFERED, S.ACCEPTED, S.EN_ROUTE, S.ON_SCENE)},
}


def change_task(state: TaskState, event: TaskEvent) -> TaskState:
    """The next state. Raises Conflict."""
    try:
        return TASK_TRANSITIONS[state, event]
    except KeyError:
        raise Conflict(
            f"a task that is {state} can't take {event}", state=str(state), event=str(event)
        ) from None
