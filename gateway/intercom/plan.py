"""The ring plan: how many more phones should ring now, whose, and when to look again. Pure.

Nearest three fresh workers and the grid's own at once, three more after ten seconds, an end after forty
(product.md section 3); whoever declines or falls out is made good for at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.intercom.model import (
    Call,
    CallSettings,
    CallState,
    Leg,
    Outcome,
    RankedWorker,
    RingWorkers,
    Rung,
    Side,
)

__all__ = [
    "RingRequest",
    "choose",
    "ms",
    "next_deadline",
    "ring_request",
    "ring_until",
    "unheard",
    "vain_since",
]


def ms(seconds: float) -> int:
    """Settings are seconds, times are milliseconds."""
    return round(seconds * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingRequest:
    """How many more phones should ring. exclude: who may not; own_grid: whose worker rings as well."""

    count: int
    exclude: frozenset[str]
    own_grid: str | None


def ring_request(call: Call, now_ms: int, settings: CallSettings) -> RingRequest | None:
    """What the plan lacks at this moment, or None."""
    if call.state is not CallState.RINGING or call.rings is not Side.WORKER or call.picked:
        return None
    elapsed_ms = now_ms - call.ring_started_at
    wanted = sum(count for offset_s, count in settings.ring_rounds if elapsed_ms >= ms(offset_s))
    present = [rung for rung in call.rung if rung.cycle == call.cycle]
    missing = wanted - sum(1 for r in present if r.outcome is Outcome.RINGING and not r.own_grid)
    if missing <= 0:
        return None
    tried = {rung.worker_id for rung in present}
    declined = {rung.worker_id for rung in call.rung if rung.outcome is Outcome.DECLINED}
    own_grid = call.grid if settings.ring_own_grid and not any(r.own_grid for r in present) else None
    return RingRequest(count=missing, exclude=frozenset(tried | declined), own_grid=own_grid)


def choose(
    ranked: Sequence[RankedWorker], request: RingRequest, busy: frozenset[str], *, nobody_rings: bool
) -> RingWorkers:
    """Cuts the ranking to who shall ring: those with a fresh position, then the others as ranked, the grid's
    own.

    Workers in another call are skipped, unless they are all there is and nobody rings: then the nearest hears
    a waiting call, because an alarm rings somebody if there is anybody.
    """
    open_to = [choice for choice in ranked if choice.id not in request.exclude]
    free = sorted((c for c in open_to if c.id not in busy), key=lambda c: c.freshness != "fresh")
    chosen = free[: request.count]
    if request.own_grid is not None:
        own = next((c for c in free if c.grid == request.own_grid), None)
        # The grid's own comes on top of the nearest; being among them already costs no place.
        if own is not None and own in chosen:
            chosen = free[: request.count + 1]
        elif own is not None:
            chosen.append(own)
    if not chosen and nobody_rings and open_to:
        return RingWorkers(choices=(open_to[0],), waiting=frozenset({open_to[0].id}))
    return RingWorkers(choices=tuple(chosen))


def ring_until(call: Call, settings: CallSettings) -> int:
    """When the present ringing is over if nobody answers."""
    limit_s = settings.no_answer_s if call.rings is Side.WORKER else settings.inbound_no_answer_s
    if call.sos and call.rings is Side.CENTER:
        limit_s = settings.sos_no_answer_s
    return call.ring_started_at + ms(limit_s)


def unheard(rung: Rung, settings: CallSettings) -> bool:
    """Nothing is known of this ring, and nobody was asked yet to reach the phone in another way."""
    return bool(settings.notify) and not rung.deliveries


def vain_since(call: Call, leg: Leg) -> int | None:
    """Since when somebody has a place, publishes nothing and watches nobody; None if that is as it should be.

    Who has just answered has a time of its own (`publish_s`), and a caller may wait in silence until somebody answers.
    """
    if leg.published_at is not None or leg.left_at is not None or leg.watching:
        return None
    winner, caller = call.answered_by, call.opened_by
    if call.state is CallState.CLAIMED and winner is not None and winner.id == leg.participant.id:
        return None
    if call.state is CallState.RINGING and caller is not None and caller.id == leg.participant.id:
        return None
    return max(leg.joined_at, call.answered_at or 0, leg.unwatched_at or 0)


def next_deadline(call: Call, settings: CallSettings) -> int | None:
    """When `Elapsed` or a new look at `ring_request` is due; None when the call waits for people only."""
    due: list[int] = []
    if call.state is CallState.RINGING:
        due.append(ring_until(call, settings))
        due += [r.rung_at + ms(settings.receipt_s) for r in call.ringing if unheard(r, settings)]
        if call.rings is Side.WORKER and not call.picked:
            rounds = [call.ring_started_at + ms(offset_s) for offset_s, _ in settings.ring_rounds]
            due += [at for at in rounds if call.ranked_at is None or at > call.ranked_at]
            if call.ranked_at is not None and ring_request(call, call.ranked_at, settings) is not None:
                due.append(call.ranked_at + ms(settings.rerank_s))
    elif call.state is CallState.CLAIMED and call.answered_at is not None:
        due.append(call.answered_at + ms(settings.publish_s))
    for leg in call.present:
        since = vain_since(call, leg)
        if since is not None:
            due.append(since + ms(settings.join_s))
        if leg.lost_at is not None:
            steps_s = (*settings.restart_s, settings.dead_s)
            due.append(leg.lost_at + ms(steps_s[min(leg.restarts, len(steps_s) - 1)]))
    return min(due, default=None)
