"""A call as others see it: the contract's Call JSON, the messages to phones, the names of sources and
owners. Pure.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gateway.intercom.model import Call, Leg, Rung, StopRinging

__all__ = [
    "call_view",
    "leg_of_source",
    "media_owner",
    "participants",
    "ring_end_event",
    "ring_end_message",
    "ring_message",
    "source_id",
]

Json = dict[str, Any]

STOP_EXPIRY_MS = 60_000
"""How much longer than the ring itself the word to stop it is kept for a phone that is out of reach."""


def call_view(call: Call, *, leg: str | None = None) -> Json:
    """Call of docs/contract.md section 3.

    `leg`: the asking participant's own leg id, where there is one asking.
    """
    view: Json = {
        "id": call.id,
        "alarm_id": call.alarm_id,
        "incident_id": call.incident_id,
        "kind": call.kind.value,
        "state": call.state.value,
        "opened_at": call.opened_at,
        "place_label": call.place_label,
        "position": _position(call),
        "answered_by": _person(call),
        "end_reason": call.end_reason.value if call.end_reason else None,
        "rung": [
            {
                "worker_id": rung.worker_id,
                "name": rung.name,
                "distance_m": rung.distance_m,
                "reason": rung.reason,
                "rung_at": rung.rung_at,
                "outcome": rung.outcome.value,
                "waiting": rung.waiting,
                "deliveries": [asdict(one) for one in rung.deliveries],
            }
            for rung in call.rung
        ],
        "sos": call.sos,
        "legs": [_leg(one) for one in call.legs],
        "recording": any(leg.recording for leg in call.present),
    }
    if leg is not None:
        view["leg"] = leg
    return view


def ring_message(call: Call, rung: Rung, until: int) -> Json:
    """`w/{wid}/call` with act `ring`. The same ring always has the same mid: phones drop repeats by it."""
    return {
        "mid": _mid(call, rung.worker_id),
        "call": call.id,
        "act": "ring",
        "exp": until,
        "kind": call.kind.value,
        "alarm": call.alarm_id,
        "place_label": call.place_label,
        "position": _position(call),
        "distance_m": rung.distance_m,
        "eta_s": rung.eta_s,
        "reason": rung.reason,
        "waiting": rung.waiting,
        "from": call.opened_by.name if call.opened_by else None,
    }


def ring_end_message(call: Call, stop: StopRinging, until: int) -> Json:
    """`w/{wid}/call` with act `taken` (another phone was first) or `cancel`, and the reason."""
    return {
        "mid": f"{_mid(call, stop.worker_id)}-end",
        "call": call.id,
        "act": "taken" if stop.taken_by else "cancel",
        "exp": until + STOP_EXPIRY_MS,
        **_end_of(stop),
    }


def ring_end_event(call: Call, stop: StopRinging) -> Json:
    """Data of the event `ring_end`."""
    return {"call_id": call.id, **_end_of(stop)}


def participants(call: Call) -> tuple[str, ...]:
    """Everybody this call concerns in person, whatever their area: who was rung, who has or had a place."""
    ids = [rung.worker_id for rung in call.rung] + [leg.participant.id for leg in call.legs]
    return tuple(dict.fromkeys(ids))


def source_id(call_id: str, leg_id: str) -> str:
    """What the media plane calls a leg's picture and sound."""
    return f"call/{call_id}/{leg_id}"


def leg_of_source(source: str) -> tuple[str, str] | None:
    """(call id, leg id), or None for sources that are no call's."""
    match source.split("/"):
        case ["call", call_id, leg_id] if call_id and leg_id:
            return call_id, leg_id
        case _:
            return None


def media_owner(call_id: str, leg_id: str | None) -> str:
    """Who owns a media session of a call: the participant's leg, or (watching from outside) the call
    itself.
    """
    return f"call/{call_id}" if leg_id is None else f"call/{call_id}/{leg_id}"


def _end_of(stop: StopRinging) -> Json:
    if stop.taken_by is None:
        return {"reason": stop.reason}
    return {"reason": stop.reason, "taken_by": {"id": stop.taken_by.id, "name": stop.taken_by.name}}


def _mid(call: Call, worker_id: str) -> str:
    number = max(i for i, rung in enumerate(call.rung) if rung.worker_id == worker_id)
    return f"{call.id}-{number}"


def _position(call: Call) -> Json | None:
    return None if call.position is None else {"lat": call.position[0], "lon": call.position[1]}


def _person(call: Call) -> Json | None:
    who = call.answered_by
    return None if who is None else {"id": who.id, "name": who.name}


def _leg(leg: Leg) -> Json:
    return {
        "id": leg.id,
        "participant": leg.participant.id,
        "name": leg.participant.name,
        "role": leg.participant.role,
        "publishing": leg.publishing,
        "tracks": sorted(leg.tracks),
        "joined_at": leg.joined_at,
        "left_at": leg.left_at,
        "lost_at": leg.lost_at,
        "restarts": leg.restarts,
        "watching": leg.watching,
    }
