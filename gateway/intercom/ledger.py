"""What a step of a call leaves in the store beside the call itself: audit lines and outbox rows.

Runs on the writer thread in the transaction that moves the call, so neither can exist without the other.
Outbox kinds:

    call.ring    {worker_id, message}: `w/{wid}/call`. Ordered per call and worker.
    call.notify  {worker_id, name, channels, message, until}: the provider that reaches phones. Ordered per call and worker.
    call.event   {type, data, lineage, participants, only, until?}: the event channel. Ordered per call.
    call.news    {what: opened|accepted|released|no_answer|missed, ...}: the alarm desk. Ordered per call.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from gateway import outbox
from gateway.audit import audit
from gateway.intercom.model import (
    Accepted,
    Busy,
    Call,
    CallSettings,
    Claim,
    Decline,
    Effect,
    EndReason,
    Hangup,
    Input,
    Join,
    Missed,
    NoAnswer,
    Notify,
    Outcome,
    Participant,
    RestartIce,
    Ring,
    Rung,
    StopRinging,
)
from gateway.intercom.plan import ring_until
from gateway.intercom.view import call_view, participants, ring_end_event, ring_end_message, ring_message

__all__ = [
    "KIND_EVENT",
    "KIND_NEWS",
    "KIND_NOTIFY",
    "KIND_RING",
    "SYSTEM",
    "announce_ring",
    "answered_too_late",
    "record_opening",
    "record_step",
    "who",
]

Json = dict[str, Any]

KIND_RING = "call.ring"
KIND_NOTIFY = "call.notify"
KIND_EVENT = "call.event"
KIND_NEWS = "call.news"
SYSTEM = "system"
LATE_ANSWER_MS = 10_000
"""An answer within this time after the caller hung up was on its way while the phone still rang."""


def who(participant: Participant) -> str:
    """The audit trail's name for a person."""
    return f"{participant.role}/{participant.id}"


def record_opening(connection: Connection, call: Call, by: str, now_ms: int) -> None:
    _note(connection, call, by, "call.open", {"kind": call.kind.value, "alarm": call.alarm_id}, now_ms)
    if call.alarm_id is not None:
        _news(connection, call, "opened", call_id=call.id)


def record_step(
    connection: Connection,
    before: Call,
    after: Call,
    given: Input,
    effects: tuple[Effect, ...],
    now_ms: int,
    settings: CallSettings,
) -> None:
    """Everything that one step of `call.step` has to leave behind."""
    view = _encoded(after)
    _note_input(connection, after, given, now_ms)
    for effect in effects:
        match effect:
            case Ring(rung=rung, until=until):
                _note(connection, after, SYSTEM, "call.ring", _why(rung), now_ms)
                announce_ring(connection, after, rung, until, view)
            case Notify(rung=rung, channels=channels, until=until):
                _note(connection, after, SYSTEM, "call.notify", {"worker": rung.worker_id}, now_ms)
                notice = {
                    "worker_id": rung.worker_id,
                    "name": rung.name,
                    "channels": channels,
                    "message": ring_message(after, rung, until),
                    "until": until,
                }
                outbox.add(connection, KIND_NOTIFY, f"{after.id}/{rung.worker_id}", notice)
            case StopRinging(worker_id=worker_id):
                message = ring_end_message(after, effect, ring_until(before, settings))
                payload = {"worker_id": worker_id, "message": message}
                outbox.add(connection, KIND_RING, f"{after.id}/{worker_id}", payload)
                event = {"type": "ring_end", "data": ring_end_event(after, effect), "only": worker_id}
                outbox.add(connection, KIND_EVENT, after.id, event)
                if effect.reason == "released":
                    _news(connection, after, "released", worker_id=worker_id)
            case Accepted(participant=worker, eta_s=eta_s):
                _news(connection, after, "accepted", worker_id=worker.id, name=worker.name, eta_s=eta_s)
            case NoAnswer(reason=reason):
                _news(connection, after, "no_answer", reason=reason)
            case Missed(worker_id=missed_by):
                answering = after.answered_by is not None and after.answered_by.id == missed_by
                _news(connection, after, "missed", worker_id=missed_by, call_id=after.id, answering=answering)
            case RestartIce(leg_id=leg_id, attempt=attempt):
                detail = {"leg": leg_id, "attempt": attempt}
                _note(connection, after, SYSTEM, "call.restart", detail, now_ms)
            case _:
                pass
    if after.ended and after.end_reason is not None:
        detail = {"reason": after.end_reason.value, "was": before.state.value}
        _note(connection, after, SYSTEM, "call.end", detail, now_ms)
    news: Json = {
        "type": "call",
        "data": view,
        "lineage": after.lineage,
        "participants": participants(after),
    }
    outbox.add(connection, KIND_EVENT, after.id, news)


def answered_too_late(connection: Connection, call: Call, by: Participant, now_ms: int) -> bool:
    """Whether the caller hung up just before this gridworker answered a phone that rang. Then it is told like a call that was
    cancelled just after (product.md section 6 row 11), whichever of the two came first."""
    rung = any(one.worker_id == by.id and one.outcome is Outcome.CANCELLED for one in call.rung)
    if call.end_reason is not EndReason.CANCELLED or call.ended_at is None or not rung:
        return False
    if now_ms - call.ended_at > LATE_ANSWER_MS:
        return False
    _note(connection, call, who(by), "call.claim", {"late": True}, now_ms)
    _news(connection, call, "missed", worker_id=by.id, call_id=call.id, answering=True)
    return True


def announce_ring(
    connection: Connection, call: Call, rung: Rung, until: int, view: msgspec.Raw | None = None
) -> None:
    """Rings a phone by both ways: MQTT and the event channel. view: the call's JSON, if it is at hand."""
    payload = {"worker_id": rung.worker_id, "message": ring_message(call, rung, until)}
    outbox.add(connection, KIND_RING, f"{call.id}/{rung.worker_id}", payload)
    data = view or _encoded(call)
    event = {"type": "ring", "data": data, "only": rung.worker_id, "until": until}
    outbox.add(connection, KIND_EVENT, call.id, event)


def _encoded(call: Call) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(call_view(call)))


def _note_input(connection: Connection, call: Call, given: Input, now_ms: int) -> None:
    """Who did what. What the clock, the ranking and the media do shows in lines of their own."""
    match given:
        case Claim(participant=by) | Join(participant=by) | Hangup(participant=by):
            _note(connection, call, who(by), f"call.{type(given).__name__.lower()}", {}, now_ms)
        case Decline(worker_id=worker_id):
            _note(connection, call, f"worker/{worker_id}", "call.decline", {}, now_ms)
        case Busy(worker_id=worker_id, reason=reason):
            _note(connection, call, SYSTEM, "call.pass_over", {"worker": worker_id, "why": reason}, now_ms)
        case _:
            pass


def _why(rung: Rung) -> Json:
    """Why this worker: what the audit trail keeps of each choice."""
    return {
        "worker": rung.worker_id,
        "reason": rung.reason,
        "distance_m": rung.distance_m,
        "eta_s": rung.eta_s,
        "own_grid": rung.own_grid,
        "waiting": rung.waiting,
        "ringing": rung.cycle,
    }


def _news(connection: Connection, call: Call, what: str, **more: object) -> None:
    """For the alarm desk. What concerns no alarm is told as well: the receiver decides."""
    outbox.add(connection, KIND_NEWS, call.id, {"what": what, "alarm_id": call.alarm_id, **more})


def _note(connection: Connection, call: Call, by: str, action: str, detail: Json, now_ms: int) -> None:
    audit(connection, who=by, action=action, subject=f"call/{call.id}", detail=detail, now_ms=now_ms)
