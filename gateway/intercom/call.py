"""The call machine: who won, who is connected, what an event leads to.

Pure: `now_ms` goes in, effects come out.

    RINGING -> CLAIMED -> CONNECTING -> ACTIVE <-> RECONNECTING        any of them -> ENDED
       ^          |                                     |
       +----------+ claimant without media    redial ---+ (back to RINGING)

RINGING       phones of gridworkers ring (or, for an inbound call, the desks); nobody has answered.
CLAIMED       one participant won; it has not published anything yet and loses the claim if it does not soon.
CONNECTING    the claimant publishes and waits in the room until the other side publishes as well.
ACTIVE        a gridworker publishes, and somebody of the command center does or (without a microphone) watches.
RECONNECTING  one of the two sides lost its media. ICE restarts are asked for, then it is dead: a dead worker
              is redialled in the same call, a dead desk leaves the worker waiting in CONNECTING.
ENDED         for good, with an EndReason.

`step` looks the pair (state, type of input) up in `TABLE`, runs the row, and verifies that it ended in a
state that the row declares. A pair without a row raises `Conflict`. Values are immutable: a step that raises
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gateway.errors import Conflict
from gateway.intercom.model import (
    Accepted,
    Busy,
    Call,
    CallSettings,
    CallState,
    Cancel,
    Claim,
    CloseMedia,
    Decline,
    Delivered,
    Delivery,
    Effect,
    Elapsed,
    EndReason,
    Hangup,
    Input,
    Join,
    Leg,
    MediaChanged,
    MediaLost,
    Missed,
    NoAnswer,
    Notify,
    Outcome,
    Participant,
    RecordingChanged,
    Relocate,
    RestartIce,
    Ring,
    RingWorkers,
    Rung,
    Side,
    Step,
    StopRinging,
    Supersede,
    WatchChanged,
)
from gateway.intercom.plan import ms, ring_request, ring_until, unheard, vain_since

__all__ = ["TABLE", "Row", "step"]


def _with_rung(call: Call, now_ms: int, outcome: Outcome, workers: Iterable[str]) -> Call:
    """Gives the phones of these workers that ring now an outcome."""
    names = set(workers)
    rung = tuple(
        replace(r, outcome=outcome, outcome_at=now_ms)
        if r.outcome is Outcome.RINGING and r.worker_id in names
        else r
        for r in call.rung
    )
    return replace(call, rung=rung)


def _with_leg(call: Call, leg: Leg) -> Call:
    return replace(call, legs=tuple(leg if old.id == leg.id else old for old in call.legs))


def _seat(call: Call, participant: Participant, device: str, now_ms: int) -> Call:
    """A leg for this participant, unless it has one."""
    if call.leg_of(participant.id) is not None:
        return call
    leg = Leg(id=f"leg{len(call.legs) + 1}", participant=participant, device=device, joined_at=now_ms)
    return replace(call, legs=(*call.legs, leg))


def _end(call: Call, now_ms: int, reason: EndReason) -> Step:
    """Ends it for everybody at once: phones fall silent, rooms empty, missed calls are noted."""
    effects: list[Effect] = []
    outcome = Outcome.EXPIRED if reason is EndReason.NO_ANSWER else Outcome.CANCELLED
    missed = [rung.worker_id for rung in call.ringing]
    effects += [StopRinging(worker_id=worker_id, reason=outcome.value) for worker_id in missed]
    rung = _with_rung(call, now_ms, outcome, missed).rung
    if reason is EndReason.CANCELLED and call.answered_by is not None and call.active_at is None:
        # The caller was quicker than the answer (product.md row 11): who answered has missed a call.
        answered = call.answered_by
        if answered.side is Side.WORKER:
            missed.append(answered.id)
            rung = tuple(
                replace(r, outcome=Outcome.CANCELLED, outcome_at=now_ms)
                if r.worker_id == answered.id and r.outcome is Outcome.CLAIMED
                else r
                for r in rung
            )
    if reason is not EndReason.SUPERSEDED:
        effects += [Missed(worker_id=worker_id) for worker_id in dict.fromkeys(missed)]
    if call.state is CallState.RINGING and call.rings is Side.CENTER:
        effects.append(Missed(worker_id=None))
    effects += [CloseMedia(leg_id=leg.id) for leg in call.present]
    if reason in (EndReason.NO_ANSWER, EndReason.DECLINED, EndReason.MEDIA_FAILED):
        effects.append(NoAnswer(reason=reason.value))
    legs = tuple(
        replace(leg, left_at=now_ms, tracks=frozenset(), lost_at=None, recording=False, watching=False)
        if leg.left_at is None
        else leg
        for leg in call.legs
    )
    ended = replace(call, state=CallState.ENDED, ended_at=now_ms, end_reason=reason, rung=rung, legs=legs)
    return ended, tuple(effects)


def _settle(call: Call, now_ms: int) -> Call:
    """The state that the media of an answered call amounts to."""
    worker = [leg for leg in call.present if leg.participant.side is Side.WORKER]
    center = [leg for leg in call.present if leg.participant.side is Side.CENTER]
    worker_up = any(leg.publishing for leg in worker)
    center_up = any(leg.publishing or leg.listening for leg in center)
    answering = worker if call.rings is Side.WORKER else center
    begins = call.state in (CallState.RINGING, CallState.CLAIMED)
    if begins and all(leg.published_at is None for leg in answering):
        state = CallState.CLAIMED
    elif worker_up and center_up:
        state = CallState.ACTIVE
    elif any(leg.lost_at for leg in worker) or (not center_up and any(leg.lost_at for leg in center)):
        state = CallState.RECONNECTING
    else:
        state = CallState.CONNECTING
    active_at = now_ms if state is CallState.ACTIVE and call.active_at is None else call.active_at
    return replace(call, state=state, active_at=active_at)


def _ring_anew(call: Call, now_ms: int, settings: CallSettings, *, redial: str | None) -> Step:
    """A new ringing in the same call: of one lost gridworker (`redial`), else as the plan says.

    Rings of the picked workers start here, since the call knows them; others come by `ring_request`.
    """
    if call.cycle >= settings.max_rings:
        return _end(call, now_ms, EndReason.MEDIA_FAILED if redial else EndReason.NO_ANSWER)
    call = replace(
        call,
        state=CallState.RINGING,
        cycle=call.cycle + 1,
        ring_started_at=now_ms,
        ranked_at=None,
        answered_by=None,
        answered_at=None,
        rings=Side.WORKER if redial else call.rings,
        picked=(redial,) if redial else call.picked,
        redial=redial is not None,
    )
    until = ring_until(call, settings)
    effects: list[Effect] = []
    for worker_id in call.picked if call.rings is Side.WORKER else ():
        before = next((r for r in reversed(call.rung) if r.worker_id == worker_id), None)
        caller = call.opened_by
        name = before.name if before else caller.name if caller and caller.id == worker_id else worker_id
        again = Rung(
            worker_id=worker_id,
            name=name,
            distance_m=before.distance_m if before else None,
            eta_s=before.eta_s if before else None,
            reason="redialled after its media was lost" if redial else "rung again: answered without media",
            rung_at=now_ms,
            cycle=call.cycle,
        )
        call = replace(call, rung=(*call.rung, again))
        effects.append(Ring(rung=again, until=until))
    return call, tuple(effects)


def _ring_workers(call: Call, given: RingWorkers, now_ms: int, settings: CallSettings) -> Step:
    until = ring_until(call, settings)
    ringing = {rung.worker_id for rung in call.ringing}
    new = []
    for choice in given.choices:
        if choice.id in ringing:
            continue
        ringing.add(choice.id)
        rung = Rung(
            worker_id=choice.id,
            name=choice.name,
            distance_m=choice.distance_m,
            eta_s=choice.eta_s,
            reason=choice.reason,
            rung_at=now_ms,
            cycle=call.cycle,
            own_grid=call.grid is not None and choice.grid == call.grid,
            waiting=choice.id in given.waiting,
        )
        new.append(rung)
    effects: list[Effect] = [Ring(rung=rung, until=until) for rung in new]
    rungs = (*call.rung, *new)
    nobody = not ringing
    if nobody and not call.told_nobody:
        # The desk hears it at once and once; the ranking is asked on, for somebody may come on duty.
        effects.append(NoAnswer(reason="nobody_left" if rungs else "nobody_on_duty"))
    return replace(call, rung=rungs, ranked_at=now_ms, told_nobody=nobody), tuple(effects)


def _claim(call: Call, given: Claim, now_ms: int, settings: CallSettings) -> Step:
    who = given.participant
    if who.side is not call.rings:
        raise Conflict("this call does not ring you", state=call.state.value)
    mine = next((rung for rung in call.ringing if rung.worker_id == who.id), None)
    if call.rings is Side.WORKER and mine is None:
        # Whoever declined, or whose ring ended, may not take it from those whose phones still ring.
        raise Conflict("your phone no longer rings for this call", state=call.state.value)
    effects: list[Effect] = [
        StopRinging(worker_id=rung.worker_id, reason="taken", taken_by=who) for rung in call.ringing
    ]
    call = _with_rung(call, now_ms, Outcome.CLAIMED, [who.id])
    call = _with_rung(call, now_ms, Outcome.TAKEN, [rung.worker_id for rung in call.ringing])
    if mine is not None and not call.redial:
        effects.append(Accepted(participant=who, eta_s=mine.eta_s))
    call = replace(_seat(call, who, given.device, now_ms), answered_by=who, answered_at=now_ms)
    return _settle(call, now_ms), tuple(effects)


def _claim_late(call: Call, given: Claim, now_ms: int, settings: CallSettings) -> Step:
    """The winner's phone asking again gets its leg; its other phone and everybody else hear who won."""
    winner, who = call.answered_by, given.participant
    leg = call.leg_of(who.id)
    if winner is not None and winner.id == who.id and leg is not None:
        if leg.device == given.device or not given.device:
            return call, ()
        if not leg.device and leg.published_at is None:
            # Accepted over MQTT, which names no session: the first page that shows itself holds the leg.
            return _with_leg(call, replace(leg, device=given.device)), ()
    taken_by = {"id": winner.id, "name": winner.name} if winner else None
    raise Conflict("taken by another", taken_by=taken_by, state=call.state.value)


def _fall_out(
    call: Call, worker_id: str, reason: str, outcome: Outcome, now_ms: int, settings: CallSettings
) -> tuple[Call, Effect]:
    if not any(rung.worker_id == worker_id for rung in call.ringing):
        raise Conflict("your phone does not ring for this call", state=call.state.value)
    call = _with_rung(call, now_ms, outcome, [worker_id])
    if ring_request(call, now_ms, settings) is not None:
        call = replace(call, ranked_at=None)  # due at once: somebody rings in its place
    return call, StopRinging(worker_id=worker_id, reason=reason)


def _decline(call: Call, given: Decline, now_ms: int, settings: CallSettings) -> Step:
    call, stop = _fall_out(call, given.worker_id, "declined", Outcome.DECLINED, now_ms, settings)
    if call.picked and not call.ringing:
        ended, effects = _end(call, now_ms, EndReason.DECLINED)
        return ended, (stop, *effects)
    return call, (stop,)


def _busy(call: Call, given: Busy, now_ms: int, settings: CallSettings) -> Step:
    call, stop = _fall_out(call, given.worker_id, given.reason, Outcome.EXPIRED, now_ms, settings)
    if call.picked and not call.ringing:
        ended, effects = _end(call, now_ms, EndReason.NO_ANSWER)
        return ended, (stop, Missed(worker_id=given.worker_id), *effects)
    return call, (stop, Missed(worker_id=given.worker_id))


def _join(call: Call, given: Join, now_ms: int, settings: CallSettings) -> Step:
    who = given.participant
    caller = call.rings is Side.CENTER and call.opened_by == who
    if who.side is Side.WORKER and call.leg_of(who.id) is None and not caller:
        raise Conflict("a gridworker answers a ring, it does not join", state=call.state.value)
    if call.state is CallState.RINGING and call.rings is Side.CENTER and who.side is Side.CENTER:
        return _claim(call, Claim(participant=who, device=given.device), now_ms, settings)
    call = _seat(call, who, given.device, now_ms)
    return (call if call.state is CallState.RINGING else _settle(call, now_ms)), ()


def _hangup(call: Call, given: Hangup, now_ms: int, settings: CallSettings) -> Step:
    who = given.participant
    leg = call.leg_of(who.id)
    if call.state is CallState.RINGING:
        if any(rung.worker_id == who.id for rung in call.ringing):
            return _decline(call, Decline(worker_id=who.id), now_ms, settings)
        caller = call.opened_by is not None and call.opened_by.id == who.id
        # Any desk may stop the ringing; a gridworker only what it began itself; a resident's box just leaves.
        if who.side is Side.CENTER or (caller and who.side is Side.WORKER):
            return _end(call, now_ms, EndReason.HANGUP if call.active_at else EndReason.CANCELLED)
    if leg is None:
        raise Conflict("you are not in this call", state=call.state.value)
    others = [other for other in call.present if other.id != leg.id]
    side = who.side
    if side is Side.RESIDENT or (
        side is Side.CENTER and any(other.participant.side is Side.CENTER for other in others)
    ):
        # Somebody else of the command center stays: only this one leaves.
        gone = replace(leg, left_at=now_ms, tracks=frozenset(), lost_at=None, recording=False, watching=False)
        call = _with_leg(call, gone)
        call = call if call.state is CallState.RINGING else _settle(call, now_ms)
        return call, (CloseMedia(leg_id=leg.id),)
    claimant = call.answered_by is not None and call.answered_by.id == who.id
    cancelled = call.active_at is None and not claimant
    return _end(call, now_ms, EndReason.CANCELLED if cancelled else EndReason.HANGUP)


def _cancel(call: Call, given: Cancel, now_ms: int, settings: CallSettings) -> Step:
    if call.active_at is not None and call.state is not CallState.RINGING:
        return call, ()  # they have spoken: a call that lost its media since is theirs to end
    return _end(call, now_ms, EndReason.CANCELLED)


def _supersede(call: Call, given: Supersede, now_ms: int, settings: CallSettings) -> Step:
    return _end(call, now_ms, EndReason.SUPERSEDED)


def _relocate(call: Call, given: Relocate, now_ms: int, settings: CallSettings) -> Step:
    moved = replace(
        call,
        place_label=given.place_label,
        position=given.position,
        lineage=given.lineage,
        grid=given.grid,
    )
    if moved == call or call.state is not CallState.RINGING or call.picked or call.rings is not Side.WORKER:
        return moved, ()
    # A ringing of its own for the new place; the phones that ring already go on.
    return replace(moved, cycle=call.cycle + 1, ring_started_at=now_ms, ranked_at=None), ()


def _leg_present(call: Call, leg_id: str) -> Leg:
    leg = call.leg(leg_id)
    if leg is None or leg.left_at is not None:
        raise Conflict("no such leg in this call", state=call.state.value)
    return leg


def _media_changed(call: Call, given: MediaChanged, now_ms: int, settings: CallSettings) -> Step:
    if not given.tracks:
        return _media_lost(call, MediaLost(leg_id=given.leg_id), now_ms, settings)
    leg = _leg_present(call, given.leg_id)
    published_at = now_ms if leg.published_at is None else leg.published_at
    leg = replace(leg, tracks=given.tracks, published_at=published_at, lost_at=None, restarts=0)
    call = _with_leg(call, leg)
    return (call if call.state is CallState.RINGING else _settle(call, now_ms)), ()


def _media_lost(call: Call, given: MediaLost, now_ms: int, settings: CallSettings) -> Step:
    leg = _leg_present(call, given.leg_id)
    if not leg.publishing:
        return call, ()
    call = _with_leg(call, replace(leg, tracks=frozenset(), lost_at=now_ms, restarts=0))
    return (call if call.state is CallState.RINGING else _settle(call, now_ms)), ()


def _watch_changed(call: Call, given: WatchChanged, now_ms: int, settings: CallSettings) -> Step:
    leg = _leg_present(call, given.leg_id)
    if leg.watching == given.watching:
        return call, ()
    call = _with_leg(
        call, replace(leg, watching=given.watching, unwatched_at=None if given.watching else now_ms)
    )
    return (call if call.state is CallState.RINGING else _settle(call, now_ms)), ()


def _recording_changed(call: Call, given: RecordingChanged, now_ms: int, settings: CallSettings) -> Step:
    leg = _leg_present(call, given.leg_id)
    return _with_leg(call, replace(leg, recording=given.recording)), ()


def _delivered(call: Call, given: Delivered, now_ms: int, settings: CallSettings) -> Step:
    """The newest ring of this worker; a receipt that comes twice changes nothing."""
    number = max((i for i, r in enumerate(call.rung) if r.worker_id == given.worker_id), default=None)
    if number is None:
        raise Conflict("your phone was not rung for this call", state=call.state.value)
    rung = call.rung[number]
    known = next((one for one in rung.deliveries if one.channel == given.channel), None)
    told = known or Delivery(channel=given.channel, sent_at=rung.rung_at)
    if told.delivered_at is not None:
        return call, ()
    told = replace(told, error=given.error, delivered_at=None if given.error else now_ms)
    others = tuple(one for one in rung.deliveries if one.channel != given.channel)
    rung = replace(rung, deliveries=(*others, told))
    return replace(call, rung=(*call.rung[:number], rung, *call.rung[number + 1 :])), ()


def _notify_unheard(call: Call, now_ms: int, settings: CallSettings) -> Step:
    """Phones of which nothing was heard in time are rung by the provider."""
    effects: list[Effect] = []
    told = []
    for rung in call.rung:
        due = rung.outcome is Outcome.RINGING and now_ms >= rung.rung_at + ms(settings.receipt_s)
        if due and unheard(rung, settings):
            sent = tuple(Delivery(channel=channel, sent_at=now_ms) for channel in settings.notify)
            rung = replace(rung, deliveries=sent)
            effects.append(Notify(rung=rung, channels=settings.notify, until=ring_until(call, settings)))
        told.append(rung)
    return (replace(call, rung=tuple(told)) if effects else call), tuple(effects)


def _lost_legs(call: Call, now_ms: int, settings: CallSettings) -> Step:
    """Asks for the ICE restarts that are due and gives up on the dead."""
    effects: list[Effect] = []
    for leg in call.present:
        since = vain_since(call, leg)
        vain = since is not None and now_ms >= since + ms(settings.join_s)
        if leg.lost_at is None and not vain:
            continue
        gone_ms = now_ms - (leg.lost_at or now_ms)
        if vain or gone_ms >= ms(settings.dead_s):
            effects.append(CloseMedia(leg_id=leg.id))
            call = _with_leg(
                call, replace(leg, left_at=now_ms, lost_at=None, recording=False, watching=False)
            )
            if leg.participant.side is not Side.WORKER:
                continue
            if call.state is CallState.RINGING:
                # The gridworker who called is gone before a desk answered: nobody is left to talk to.
                call, more = _end(call, now_ms, EndReason.MEDIA_FAILED)
            else:
                call, more = _ring_anew(call, now_ms, settings, redial=leg.participant.id)
            return call, (*effects, *more)
        due = sum(1 for at_s in settings.restart_s if gone_ms >= ms(at_s))
        if due > leg.restarts:
            # After a pause (a restarted gateway) the attempts that were slept through count as one.
            effects.append(RestartIce(leg_id=leg.id, attempt=due))
            call = _with_leg(call, replace(leg, restarts=due))
    return (call if call.state is CallState.RINGING else _settle(call, now_ms)), tuple(effects)


def _elapsed_ringing(call: Call, given: Elapsed, now_ms: int, settings: CallSettings) -> Step:
    if now_ms >= ring_until(call, settings):
        asked = {rung.outcome for rung in call.rung}
        reason = EndReason.DECLINED if asked == {Outcome.DECLINED} else EndReason.NO_ANSWER
        return _end(call, now_ms, EndReason.MEDIA_FAILED if call.redial else reason)
    call, notified = _notify_unheard(call, now_ms, settings)
    call, effects = _lost_legs(call, now_ms, settings)
    return call, (*notified, *effects)


def _elapsed_claimed(call: Call, given: Elapsed, now_ms: int, settings: CallSettings) -> Step:
    winner, answered_at = call.answered_by, call.answered_at
    if winner is None or answered_at is None or now_ms < answered_at + ms(settings.publish_s):
        return _lost_legs(call, now_ms, settings)
    effects: list[Effect] = []
    leg = call.leg_of(winner.id)
    if leg is not None:
        effects.append(CloseMedia(leg_id=leg.id))
        call = _with_leg(call, replace(leg, left_at=now_ms, recording=False, watching=False))
    if winner.side is Side.WORKER:
        effects.append(StopRinging(worker_id=winner.id, reason="released"))
        rung = tuple(
            replace(r, outcome=Outcome.EXPIRED, outcome_at=now_ms)
            if r.worker_id == winner.id and r.outcome is Outcome.CLAIMED
            else r
            for r in call.rung
        )
        call = replace(call, rung=rung)
    heir = next((leg for leg in call.present if leg.participant.side is winner.side), None)
    if heir is not None:
        # Another desk is in the room: the inbound call is now its own, with a time of its own to publish.
        call = replace(call, answered_by=heir.participant, answered_at=now_ms)
        return _settle(call, now_ms), tuple(effects)
    call, more = _ring_anew(call, now_ms, settings, redial=winner.id if call.redial else None)
    return call, (*effects, *more)


def _elapsed_answered(call: Call, given: Elapsed, now_ms: int, settings: CallSettings) -> Step:
    return _lost_legs(call, now_ms, settings)


# ------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Row:
    """What a pair does, and the states it may lead to."""

    act: Callable[..., Step]
    to: frozenset[CallState]


_R, _L, _C, _A, _X, _E = CallState  # in the order of their definition


def _to(*states: CallState) -> frozenset[CallState]:
    return frozenset(states)


TABLE: dict[tuple[CallState, type[Input]], Row] = {
    (_R, RingWorkers): Row(_ring_workers, _to(_R)),
    (_R, Claim): Row(_claim, _to(_L)),
    (_R, Decline): Row(_decline, _to(_R, _E)),
    (_R, Busy): Row(_busy, _to(_R, _E)),
    (_R, Join): Row(_join, _to(_R, _L)),
    (_R, Hangup): Row(_hangup, _to(_R, _E)),
    (_R, Cancel): Row(_cancel, _to(_E)),
    (_R, Supersede): Row(_supersede, _to(_E)),
    (_R, Relocate): Row(_relocate, _to(_R)),
    (_R, MediaChanged): Row(_media_changed, _to(_R)),
    (_R, MediaLost): Row(_media_lost, _to(_R)),
    (_R, Delivered): Row(_delivered, _to(_R)),
    (_R, WatchChanged): Row(_watch_changed, _to(_R)),
    (_R, RecordingChanged): Row(_recording_changed, _to(_R)),
    (_R, Elapsed): Row(_elapsed_ringing, _to(_R, _E)),
    (_L, Claim): Row(_claim_late, _to(_L)),
    (_L, Join): Row(_join, _to(_L)),
    (_L, Hangup): Row(_hangup, _to(_L, _E)),
    (_L, Cancel): Row(_cancel, _to(_E)),
    (_L, Supersede): Row(_supersede, _to(_E)),
    (_L, Relocate): Row(_relocate, _to(_L)),
    (_L, MediaChanged): Row(_media_changed, _to(_L, _C, _A, _X)),
    (_L, MediaLost): Row(_media_lost, _to(_L)),
    (_L, Delivered): Row(_delivered, _to(_L)),
    (_L, WatchChanged): Row(_watch_changed, _to(_L)),
    (_L, RecordingChanged): Row(_recording_changed, _to(_L)),
    (_L, Elapsed): Row(_elapsed_claimed, _to(_L, _R, _E)),
    (_C, Claim): Row(_claim_late, _to(_C)),
    (_C, Join): Row(_join, _to(_C)),
    (_C, Hangup): Row(_hangup, _to(_C, _X, _E)),
    (_C, Cancel): Row(_cancel, _to(_C, _E)),
    (_C, Supersede): Row(_supersede, _to(_E)),
    (_C, Relocate): Row(_relocate, _to(_C)),
    (_C, MediaChanged): Row(_media_changed, _to(_C, _A, _X)),
    (_C, MediaLost): Row(_media_lost, _to(_C, _X)),
    (_C, Delivered): Row(_delivered, _to(_C)),
    (_C, WatchChanged): Row(_watch_changed, _to(_C, _A)),
    (_C, RecordingChanged): Row(_recording_changed, _to(_C)),
    (_C, Elapsed): Row(_elapsed_answered, _to(_C, _R, _E)),
    (_A, Claim): Row(_claim_late, _to(_A)),
    (_A, Join): Row(_join, _to(_A)),
    (_A, Hangup): Row(_hangup, _to(_A, _C, _X, _E)),
    (_A, Supersede): Row(_supersede, _to(_E)),
    (_A, Relocate): Row(_relocate, _to(_A)),
    (_A, MediaChanged): Row(_media_changed, _to(_A, _X)),
    (_A, MediaLost): Row(_media_lost, _to(_A, _X)),
    (_A, Delivered): Row(_delivered, _to(_A)),
    (_A, WatchChanged): Row(_watch_changed, _to(_A, _C, _X)),
    (_A, RecordingChanged): Row(_recording_changed, _to(_A)),
    (_A, Elapsed): Row(_elapsed_answered, _to(_A)),
    (_X, Claim): Row(_claim_late, _to(_X)),
    (_X, Join): Row(_join, _to(_X)),
    (_X, Hangup): Row(_hangup, _to(_X, _C, _E)),
    (_X, Supersede): Row(_supersede, _to(_E)),
    (_X, Relocate): Row(_relocate, _to(_X)),
    (_X, MediaChanged): Row(_media_changed, _to(_X, _A, _C)),
    (_X, MediaLost): Row(_media_lost, _to(_X)),
    (_X, Delivered): Row(_delivered, _to(_X)),
    (_X, WatchChanged): Row(_watch_changed, _to(_X, _A)),
    (_X, RecordingChanged): Row(_recording_changed, _to(_X)),
    (_X, Elapsed): Row(_elapsed_answered, _to(_X, _C, _R, _E)),
}


def step(call: Call, given: Input, now_ms: int, settings: CallSettings) -> Step:
    """Feeds one input: the new call and what is to be done. Raises Conflict where there is no row for it."""
    row = TABLE.get((call.state, type(given)))
    if row is None:
        winner = call.answered_by
        raise Conflict(
            f"a call that is {call.state.value} can't do {type(given).__name__}",
            state=call.state.value,
            taken_by={"id": winner.id, "name": winner.name} if winner else None,
            end_reason=call.end_reason.value if call.end_reason else None,
        )
    after, effects = row.act(call, given, now_ms, settings)
    if after.state not in row.to:
        raise RuntimeError(f"{call.state} + {type(given).__name__} led to {after.state}")
    return (call if after == call else replace(after, version=call.version + 1)), effects
