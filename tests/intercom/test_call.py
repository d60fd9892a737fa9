"""The call machine: every row of the table, every pair without one, and what must hold whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.errors import Conflict
from gateway.intercom.call import TABLE, step
from gateway.intercom.model import (
    Accepted,
    Busy,
    Call,
    CallKind,
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
    Side,
    StopRinging,
    Supersede,
    WatchChanged,
)
from gateway.intercom.plan import choose, next_deadline, ring_request

T0 = 1_790_000_000_000
S = CallSettings()
R, L, C, A, X, E = CallState
BOTH = frozenset({"audio", "video"})
DESK = Participant(id="op1", name="甲", role="operator")
DESK2 = Participant(id="op2", name="乙", role="desk")
BOX = Participant(id="stb1", name="望丛中路 3 号", role="stb")


@dataclass(frozen=True)
class Choice:
    id: str
    name: str = "某某"
    grid: str | None = None
    distance_m: float | None = 100.0
    eta_s: float | None = 80.0
    freshness: str = "fresh"
    reason: str = "nearest"


def worker(number: int) -> Participant:
    return Participant(id=f"w{number}", name="某某", role="worker")


@dataclass
class Drive:
    """A call on its way, the time, and the effects of the last step."""

    settings: ClassVar[CallSettings] = S

    call: Call
    now_ms: int = T0
    effects: tuple[Effect, ...] = ()

    def give(self, given: Input, *, after_s: float = 0.0) -> Drive:
        self.now_ms += round(after_s * 1000)
        self.call, self.effects = step(self.call, given, self.now_ms, self.settings)
        return self

    def of(self, kind: type[Effect]) -> list[Effect]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def rank(self, *choices: Choice, busy: frozenset[str] = frozenset()) -> Drive:
        request = ring_request(self.call, self.now_ms, S)
        assert request is not None
        return self.give(choose(choices, request, busy, nobody_rings=not self.call.ringing))

    def leg(self, participant: Participant) -> str:
        leg = self.call.leg_of(participant.id)
        assert leg is not None
        return leg.id


def alarm_call() -> Drive:
    return Drive(
        Call(id="c1", kind=CallKind.ALARM, opened_at=T0, ring_started_at=T0, alarm_id="a1", grid="g1")
    )


def ringing(*numbers: int) -> Drive:
    return alarm_call().rank(*[Choice(id=f"w{number}") for number in numbers or (1, 2, 3)])


def dispatched() -> Drive:
    call = Call(
        id="c1", kind=CallKind.DISPATCH, opened_at=T0, ring_started_at=T0, picked=("w1",), opened_by=DESK
    )
    drive = Drive(call).give(Join(participant=DESK))
    return drive.give(RingWorkers(choices=(Choice(id="w1"),)))


def inbound() -> Drive:
    call = Call(
        id="c1",
        kind=CallKind.INBOUND,
        opened_at=T0,
        ring_started_at=T0,
        opened_by=worker(1),
        rings=Side.CENTER,
    )
    return Drive(call).give(Join(participant=worker(1)))


def claimed() -> Drive:
    return ringing().give(Claim(participant=worker(1), device="a"))


def connecting() -> Drive:
    drive = claimed()
    return drive.give(MediaChanged(leg_id=drive.leg(worker(1)), tracks=BOTH))


def active() -> Drive:
    drive = connecting().give(Join(participant=DESK))
    return drive.give(MediaChanged(leg_id=drive.leg(DESK), tracks=BOTH))


def reconnecting(who: Participant | None = None) -> Drive:
    drive = active()
    return drive.give(MediaLost(leg_id=drive.leg(who or worker(1))))


def ended() -> Drive:
    return ringing().give(Cancel())


AT: dict[CallState, Callable[[], Drive]] = {
    R: ringing,
    L: claimed,
    C: connecting,
    A: active,
    X: reconnecting,
    E: ended,
}
ONE_OF_EACH: list[Input] = [
    RingWorkers(choices=()),
    Claim(participant=worker(1), device="a"),
    Decline(worker_id="w1"),
    Busy(worker_id="w1", reason="busy"),
    Join(participant=DESK),
    Hangup(participant=worker(1)),
    Cancel(),
    Supersede(),
    Relocate(place_label="我家里", position=None, lineage=(), grid="g2"),
    MediaChanged(leg_id="leg1", tracks=BOTH),
    MediaLost(leg_id="leg1"),
    RecordingChanged(leg_id="leg1", recording=True),
    WatchChanged(leg_id="leg1", watching=True),
    Delivered(worker_id="w1", channel="mqtt"),
    Elapsed(),
]


def test_the_examples_are_in_the_state_they_say() -> None:
    assert {state: make().call.state for state, make in AT.items()} == {state: state for state in CallState}


@pytest.mark.parametrize("given", ONE_OF_EACH, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("state", list(CallState))
def test_a_pair_without_a_row_raises_and_changes_nothing(state: CallState, given: Input) -> None:
    drive = AT[state]()
    before = drive.call
    if (state, type(given)) in TABLE:
        # Has a row: it may still refuse (no such leg, ...), but it may not break out of the states it
        # declares.
        try:
            after, _ = step(before, given, drive.now_ms, S)
        except Conflict:
            after = before
        assert after.state in TABLE[state, type(given)].to | {state}
    else:
        with pytest.raises(Conflict) as caught:
            step(before, given, drive.now_ms, S)
        assert caught.value.detail["state"] == state.value
    assert drive.call is before


def test_every_input_has_a_row_somewhere_and_no_row_leaves_the_end() -> None:
    assert {kind for _, kind in TABLE} == {type(given) for given in ONE_OF_EACH}
    assert not [pair for pair in TABLE if pair[0] is E]


# ------------------------------------------------------------------------------------------------ ringing


def test_a_corrected_place_rings_its_neighbours_beside_those_who_ring_already() -> None:
    place = Relocate(place_label="我家里", position=(30.8, 103.9), lineage=("510117",), grid="g2")
    drive = ringing().give(place, after_s=4)
    assert drive.effects == ()
    drive.rank(Choice(id="w3"), Choice(id="w8"), Choice(id="w9"), Choice(id="own", grid="g2"))
    assert [ring.rung.worker_id for ring in drive.of(Ring)] == ["w8", "w9", "own"]
    assert [rung.worker_id for rung in drive.call.ringing] == ["w1", "w2", "w3", "w8", "w9", "own"]
    assert drive.give(place).call.version == drive.call.version
    drive.give(Claim(participant=worker(1)))
    assert drive.call.ringing == ()
    later = active()
    assert later.give(place).call.state is A
    assert later.call.place_label == "我家里"


class Notifying(Drive):
    """With a provider that reaches phones."""

    settings: ClassVar[CallSettings] = CallSettings(notify=("sms", "voice"))


def test_a_phone_that_says_nothing_is_rung_by_the_provider_and_one_that_does_is_not() -> None:
    drive = Notifying(ringing(1, 2, 3).call)
    drive.give(Delivered(worker_id="w3", channel="event"))
    drive.give(Delivered(worker_id="w1", channel="mqtt"), after_s=1)
    assert next_deadline(drive.call, drive.settings) == T0 + 3_000
    drive.give(Elapsed(), after_s=2)
    (notice,) = drive.of(Notify)
    assert (notice.rung.worker_id, notice.channels, notice.until) == ("w2", ("sms", "voice"), T0 + 40_000)
    assert drive.give(Elapsed(), after_s=1).of(Notify) == []
    drive.give(Delivered(worker_id="w2", channel="sms"))
    drive.give(Delivered(worker_id="w2", channel="voice", error="busy"))
    sent = T0 + 3_000
    assert {one.channel: one for one in drive.call.rung[1].deliveries} == {
        "sms": Delivery(channel="sms", sent_at=sent, delivered_at=sent + 1_000),
        "voice": Delivery(channel="voice", sent_at=sent, error="busy"),
    }
    version = drive.call.version
    assert drive.give(Delivered(worker_id="w2", channel="sms"), after_s=1).call.version == version
    with pytest.raises(Conflict):
        drive.give(Delivered(worker_id="w9", channel="sms"))


def test_without_a_provider_nobody_is_notified() -> None:
    assert ringing(1, 2).give(Elapsed(), after_s=5).of(Notify) == []


def test_a_desk_that_never_publishes_loses_its_place_and_the_call_goes_on() -> None:
    drive = active()
    drive.give(Join(participant=DESK2))
    assert next_deadline(drive.call, S) == drive.now_ms + 30_000
    leg = drive.leg(DESK2)
    drive.give(Elapsed(), after_s=30)
    assert drive.of(CloseMedia) == [CloseMedia(leg_id=leg)]
    assert drive.call.state is A
    assert drive.call.leg_of(DESK2.id) is None


def test_a_gridworker_who_calls_may_wait_in_silence_and_is_asked_for_media_once_answered() -> None:
    drive = inbound().give(Elapsed(), after_s=45)
    assert drive.call.state is R
    drive.give(Join(participant=DESK))
    drive.give(MediaChanged(leg_id=drive.leg(DESK), tracks=BOTH))
    assert next_deadline(drive.call, S) == drive.now_ms + 30_000
    drive.give(Elapsed(), after_s=30)
    assert drive.call.state is R
    assert [ring.rung.worker_id for ring in drive.of(Ring)] == ["w1"]


def test_a_call_for_help_rings_for_ten_minutes() -> None:
    drive = inbound()
    drive.call = replace(drive.call, sos=True)
    assert next_deadline(drive.call, S) == T0 + 600_000
    assert drive.give(Elapsed(), after_s=60).call.state is R


def test_what_is_recorded_is_said_until_the_leg_or_the_call_is_over() -> None:
    drive = active()
    leg = drive.leg(worker(1))
    drive.give(RecordingChanged(leg_id=leg, recording=True))
    assert drive.call.leg(leg).recording
    drive.give(Hangup(participant=worker(1)))
    assert not any(one.recording for one in drive.call.legs)


def test_the_first_round_is_the_nearest_three_and_the_grids_own() -> None:
    drive = alarm_call().rank(*[Choice(id=f"w{n}") for n in range(1, 6)], Choice(id="own", grid="g1"))
    assert [ring.rung.worker_id for ring in drive.of(Ring)] == ["w1", "w2", "w3", "own"]
    assert [ring.until for ring in drive.of(Ring)] == [T0 + 40_000] * 4
    assert [rung.own_grid for rung in drive.call.rung] == [False, False, False, True]


def test_the_grids_own_among_the_nearest_costs_no_place() -> None:
    drive = alarm_call().rank(Choice(id="w1"), Choice(id="own", grid="g1"), Choice(id="w3"), Choice(id="w4"))
    assert [rung.worker_id for rung in drive.call.ringing] == ["w1", "own", "w3", "w4"]


def test_a_fresh_fix_goes_before_a_nearer_old_one_and_the_own_rings_however_old() -> None:
    drive = alarm_call().rank(
        Choice(id="old", freshness="last_resort"),
        Choice(id="w1"),
        Choice(id="w2"),
        Choice(id="w3"),
        Choice(id="own", grid="g1", freshness="centroid"),
    )
    assert [rung.worker_id for rung in drive.call.ringing] == ["w1", "w2", "w3", "own"]


def test_where_fresh_ones_are_few_the_others_fill_up() -> None:
    drive = alarm_call().rank(Choice(id="old", freshness="usable"), Choice(id="w1"))
    assert [rung.worker_id for rung in drive.call.ringing] == ["w1", "old"]


def test_busy_workers_are_skipped_unless_they_are_all_there_is() -> None:
    both = (Choice(id="w1"), Choice(id="w2"))
    assert [r.worker_id for r in alarm_call().rank(*both, busy=frozenset({"w1"})).call.ringing] == ["w2"]
    waiting = alarm_call().rank(*both, busy=frozenset({"w1", "w2"})).call.ringing
    assert [(rung.worker_id, rung.waiting) for rung in waiting] == [("w1", True)]


def test_the_next_round_comes_at_ten_seconds_and_asks_for_three_others() -> None:
    drive = ringing()
    assert next_deadline(drive.call, S) == T0 + 10_000
    assert ring_request(drive.call, T0 + 9_999, S) is None
    request = ring_request(drive.call, T0 + 10_000, S)
    assert request is not None
    assert (request.count, request.exclude) == (3, frozenset({"w1", "w2", "w3"}))


def test_a_decline_is_made_good_for_at_once_and_never_rung_again() -> None:
    drive = ringing().give(Decline(worker_id="w2"), after_s=2)
    assert drive.effects == (StopRinging(worker_id="w2", reason="declined"),)
    request = ring_request(drive.call, drive.now_ms, S)
    assert request is not None
    assert request.count == 1
    drive.rank(Choice(id="w2"), Choice(id="w4"))
    assert [rung.worker_id for rung in drive.call.ringing] == ["w1", "w3", "w4"]


def test_nobody_on_duty_is_told_once_and_asked_again_every_two_seconds() -> None:
    drive = alarm_call().rank()
    assert drive.effects == (NoAnswer(reason="nobody_on_duty"),)
    assert next_deadline(drive.call, S) == T0 + 2_000
    drive.now_ms += 2_000
    assert drive.rank().effects == ()
    drive.now_ms += 2_000
    assert [ring.rung.worker_id for ring in drive.rank(Choice(id="w1")).of(Ring)] == ["w1"]


def test_after_forty_seconds_nobody_answered() -> None:
    drive = ringing().give(Elapsed(), after_s=39.999)
    assert drive.call.state is R
    drive.give(Elapsed(), after_s=0.001)
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.NO_ANSWER)
    assert {rung.outcome for rung in drive.call.rung} == {Outcome.EXPIRED}
    assert [stop.worker_id for stop in drive.of(StopRinging)] == ["w1", "w2", "w3"]
    assert [missed.worker_id for missed in drive.of(Missed)] == ["w1", "w2", "w3"]
    assert drive.of(NoAnswer) == [NoAnswer(reason="no_answer")]


def test_all_asked_declined_ends_as_declined() -> None:
    drive = ringing(1).give(Decline(worker_id="w1")).rank()
    assert drive.effects == (NoAnswer(reason="nobody_left"),)
    drive.give(Elapsed(), after_s=40)
    assert drive.call.end_reason is EndReason.DECLINED


def test_the_chosen_worker_declines_a_dispatch() -> None:
    drive = dispatched().give(Decline(worker_id="w1"))
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.DECLINED)
    assert drive.of(CloseMedia) == [CloseMedia(leg_id="leg1")]


def test_a_phone_that_does_not_ring_can_neither_decline_nor_claim() -> None:
    drive = ringing().give(Decline(worker_id="w2"))
    for given in (Decline(worker_id="w2"), Claim(participant=worker(2)), Claim(participant=worker(9))):
        with pytest.raises(Conflict):
            drive.give(given)


def test_a_worker_off_duty_falls_out_and_a_dispatch_to_it_ends() -> None:
    drive = ringing().give(Busy(worker_id="w1", reason="off_duty"))
    assert drive.effects == (
        StopRinging(worker_id="w1", reason="off_duty"),
        Missed(worker_id="w1"),
    )
    assert dispatched().give(Busy(worker_id="w1", reason="off_duty")).call.end_reason is EndReason.NO_ANSWER


# ----------------------------------------------------------------------------------------------- answering


def test_the_claim_silences_every_phone_and_names_the_winner() -> None:
    drive = claimed()
    assert drive.call.state is L
    assert drive.call.answered_by == worker(1)
    assert [(stop.worker_id, stop.reason, stop.taken_by) for stop in drive.of(StopRinging)] == [
        ("w1", "taken", worker(1)),
        ("w2", "taken", worker(1)),
        ("w3", "taken", worker(1)),
    ]
    assert drive.of(Accepted) == [Accepted(participant=worker(1), eta_s=80.0)]
    assert [rung.outcome for rung in drive.call.rung] == [Outcome.CLAIMED, Outcome.TAKEN, Outcome.TAKEN]


@pytest.mark.parametrize("state", [L, C, A, X])
def test_the_loser_hears_who_won(state: CallState) -> None:
    drive = AT[state]()
    with pytest.raises(Conflict) as caught:
        drive.give(Claim(participant=worker(2)))
    assert caught.value.detail["taken_by"] == {"id": "w1", "name": "某某"}


def test_the_same_phone_asking_again_gets_its_leg_and_the_other_phone_is_told() -> None:
    drive = claimed()
    before = drive.call
    assert drive.give(Claim(participant=worker(1), device="a")).call is before
    with pytest.raises(Conflict) as caught:
        drive.give(Claim(participant=worker(1), device="b"))
    assert caught.value.detail["taken_by"] == {"id": "w1", "name": "某某"}


def test_a_claim_over_mqtt_is_taken_up_by_the_first_page() -> None:
    drive = ringing().give(Claim(participant=worker(1)))
    drive.give(Claim(participant=worker(1), device="a"))
    assert drive.call.legs[0].device == "a"
    with pytest.raises(Conflict):
        drive.give(Claim(participant=worker(1), device="b"))


def test_a_claimant_without_media_is_released_and_others_ring_again() -> None:
    drive = claimed()
    assert next_deadline(drive.call, S) == drive.now_ms + 8_000
    drive.give(Elapsed(), after_s=7.999)
    assert drive.call.state is L
    drive.give(Elapsed(), after_s=0.001)
    assert (drive.call.state, drive.call.answered_by, drive.call.cycle) == (R, None, 2)
    assert drive.of(CloseMedia) == [CloseMedia(leg_id="leg1")]
    assert drive.of(StopRinging) == [StopRinging(worker_id="w1", reason="released")]
    request = ring_request(drive.call, drive.now_ms, S)
    assert request is not None
    assert (request.count, request.exclude) == (3, frozenset())


def test_a_dispatched_worker_without_media_is_rung_again_by_itself() -> None:
    drive = dispatched().give(Claim(participant=worker(1))).give(Elapsed(), after_s=8)
    assert [ring.rung.worker_id for ring in drive.of(Ring)] == ["w1"]
    assert drive.call.state is R


def test_ringing_does_not_begin_for_ever() -> None:
    drive = dispatched()
    for _ in range(S.max_rings - 1):
        drive.give(Claim(participant=worker(1))).give(Elapsed(), after_s=8)
        assert drive.call.state is R
    drive.give(Claim(participant=worker(1))).give(Elapsed(), after_s=8)
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.NO_ANSWER)


def test_the_first_desk_answers_an_inbound_call_and_the_next_joins() -> None:
    drive = inbound()
    assert next_deadline(drive.call, S) == T0 + 60_000
    drive.give(Join(participant=DESK))
    assert (drive.call.state, drive.call.answered_by) == (L, DESK)
    drive.give(Join(participant=DESK2))
    assert drive.call.answered_by == DESK
    for who in (worker(1), DESK):
        drive.give(MediaChanged(leg_id=drive.leg(who), tracks=BOTH))
    assert drive.call.state is A


def test_a_second_desk_claiming_an_inbound_call_hears_who_was_first() -> None:
    drive = inbound().give(Claim(participant=DESK))
    with pytest.raises(Conflict) as caught:
        drive.give(Claim(participant=DESK2))
    assert caught.value.detail["taken_by"] == {"id": "op1", "name": "甲"}


def test_an_inbound_call_that_no_desk_answers_is_missed_by_the_center() -> None:
    drive = inbound().give(Elapsed(), after_s=60)
    assert drive.call.end_reason is EndReason.NO_ANSWER
    assert drive.of(Missed) == [Missed(worker_id=None)]


def test_an_inbound_call_whose_desk_brings_no_media_goes_to_the_other_desk_in_the_room() -> None:
    drive = inbound().give(Join(participant=DESK)).give(Join(participant=DESK2), after_s=1)
    drive.give(Elapsed(), after_s=7)
    assert (drive.call.state, drive.call.answered_by) == (L, DESK2)
    assert next_deadline(drive.call, S) == drive.now_ms + 8_000
    drive.give(Elapsed(), after_s=8)
    assert (drive.call.state, drive.call.cycle) == (R, 2)


def test_a_gridworker_cannot_join_by_itself_and_a_desk_cannot_claim_a_phones_ring() -> None:
    with pytest.raises(Conflict):
        claimed().give(Join(participant=worker(7)))
    with pytest.raises(Conflict):
        ringing().give(Claim(participant=DESK))


# --------------------------------------------------------------------------------------------------- media


def test_the_claimant_waits_in_the_room_until_a_desk_publishes() -> None:
    drive = connecting()
    assert drive.call.state is C
    assert next_deadline(drive.call, S) is None
    drive.give(Join(participant=DESK))
    assert drive.call.state is C
    drive.give(MediaChanged(leg_id=drive.leg(DESK), tracks=frozenset({"audio"})))
    assert (drive.call.state, drive.call.active_at) == (A, drive.now_ms)


def test_a_desk_that_waits_first_makes_the_call_active_with_the_claimants_media() -> None:
    drive = ringing().give(Join(participant=DESK))
    drive.give(MediaChanged(leg_id=drive.leg(DESK), tracks=BOTH))
    assert drive.call.state is R
    drive.give(Claim(participant=worker(1)))
    assert drive.call.state is L
    drive.give(MediaChanged(leg_id=drive.leg(worker(1)), tracks=BOTH))
    assert drive.call.state is A


def test_the_residents_box_is_never_waited_for() -> None:
    drive = connecting().give(Join(participant=BOX))
    drive.give(MediaChanged(leg_id=drive.leg(BOX), tracks=BOTH))
    assert drive.call.state is C
    drive = active().give(Join(participant=BOX)).give(Hangup(participant=BOX))
    assert drive.call.state is A


def test_a_lost_leg_is_asked_to_restart_at_3_8_and_15_seconds_and_redialled_at_30() -> None:
    drive = reconnecting()
    lost_at = drive.now_ms
    for attempt, at_s in enumerate((3, 8, 15), start=1):
        assert next_deadline(drive.call, S) == lost_at + at_s * 1000
        drive.now_ms = lost_at + at_s * 1000
        drive.give(Elapsed())
        assert drive.of(RestartIce) == [RestartIce(leg_id="leg1", attempt=attempt)]
        assert drive.call.state is X
    assert next_deadline(drive.call, S) == lost_at + 30_000
    drive.now_ms = lost_at + 30_000
    drive.give(Elapsed())
    assert drive.call.state is R
    assert [(ring.rung.worker_id, ring.until) for ring in drive.of(Ring)] == [("w1", drive.now_ms + 40_000)]
    assert drive.call.leg_of("op1") is not None, "the desk stays in the room"
    drive.give(Claim(participant=worker(1), device="b"))
    assert drive.of(Accepted) == [], "the resident was told the first time"
    drive.give(MediaChanged(leg_id=drive.leg(worker(1)), tracks=BOTH))
    assert drive.call.state is A


def test_redialling_does_not_go_on_for_ever() -> None:
    drive = active()
    for _ in range(S.max_rings - 1):
        drive.give(MediaLost(leg_id=drive.leg(worker(1)))).give(Elapsed(), after_s=30)
        assert drive.call.state is R
        drive.give(Claim(participant=worker(1)))
        drive.give(MediaChanged(leg_id=drive.leg(worker(1)), tracks=BOTH))
        assert drive.call.state is A
    drive.give(MediaLost(leg_id=drive.leg(worker(1)))).give(Elapsed(), after_s=30)
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.MEDIA_FAILED)


def test_restarts_slept_through_count_once() -> None:
    drive = reconnecting().give(Elapsed(), after_s=9)
    assert drive.of(RestartIce) == [RestartIce(leg_id="leg1", attempt=2)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [(Elapsed(), EndReason.MEDIA_FAILED), (Decline(worker_id="w1"), EndReason.DECLINED)],
    ids=["no answer", "declined"],
)
def test_a_redial_that_fails_ends_the_call(given: Input, reason: EndReason) -> None:
    drive = reconnecting().give(Elapsed(), after_s=30)
    drive.give(given, after_s=40)
    assert (drive.call.state, drive.call.end_reason) == (E, reason)
    assert drive.of(NoAnswer) == [NoAnswer(reason=reason.value)]


def test_media_that_comes_back_makes_it_active_again_and_forgets_the_timers() -> None:
    drive = reconnecting().give(Elapsed(), after_s=3)
    drive.give(MediaChanged(leg_id="leg1", tracks=BOTH))
    assert drive.call.state is A
    assert next_deadline(drive.call, S) is None
    assert drive.call.legs[0].restarts == 0


def test_a_dead_desk_leaves_the_gridworker_waiting() -> None:
    drive = reconnecting(DESK).give(Elapsed(), after_s=30)
    assert drive.call.state is C
    assert drive.of(CloseMedia) == [CloseMedia(leg_id="leg2")]
    drive.give(Join(participant=DESK2))
    drive.give(MediaChanged(leg_id=drive.leg(DESK2), tracks=BOTH))
    assert drive.call.state is A


def test_one_of_two_desks_may_lose_its_media() -> None:
    drive = active().give(Join(participant=DESK2))
    drive.give(MediaChanged(leg_id=drive.leg(DESK2), tracks=BOTH))
    drive.give(MediaLost(leg_id=drive.leg(DESK)))
    assert drive.call.state is A
    drive.give(Elapsed(), after_s=30)
    assert drive.call.state is A
    assert drive.call.leg_of("op1") is None


def test_a_claimant_that_loses_its_media_before_the_desk_came_reconnects() -> None:
    drive = connecting().give(MediaLost(leg_id="leg1"))
    assert drive.call.state is X
    assert drive.give(MediaChanged(leg_id="leg1", tracks=BOTH)).call.state is C


def test_a_caller_whose_media_dies_before_a_desk_answers_has_failed() -> None:
    drive = inbound()
    drive.give(MediaChanged(leg_id="leg1", tracks=BOTH)).give(MediaLost(leg_id="leg1"))
    assert drive.call.state is R
    drive.give(Elapsed(), after_s=30)
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.MEDIA_FAILED)
    assert Missed(worker_id=None) in drive.effects


def test_a_dead_gridworker_of_an_inbound_call_is_rung_by_the_center() -> None:
    drive = inbound().give(Join(participant=DESK))
    for who in (worker(1), DESK):
        drive.give(MediaChanged(leg_id=drive.leg(who), tracks=BOTH))
    drive.give(MediaLost(leg_id=drive.leg(worker(1)))).give(Elapsed(), after_s=30)
    assert (drive.call.state, drive.call.rings) == (R, Side.WORKER)
    assert [(ring.rung.worker_id, ring.rung.name) for ring in drive.of(Ring)] == [("w1", "某某")]


def test_publishing_nothing_is_losing_it_and_a_silent_leg_has_nothing_to_lose() -> None:
    drive = active()
    assert drive.give(MediaChanged(leg_id="leg1", tracks=frozenset())).call.state is X
    before = active().give(Join(participant=DESK2)).call
    assert step(before, MediaLost(leg_id="leg3"), T0, S) == (before, ())
    with pytest.raises(Conflict):
        step(before, MediaChanged(leg_id="leg9", tracks=BOTH), T0, S)


# ------------------------------------------------------------------------------------------------- endings


def test_a_desk_without_a_microphone_is_there_as_long_as_it_watches() -> None:
    drive = claimed().give(MediaChanged(leg_id="leg1", tracks=BOTH)).give(Join(participant=DESK))
    assert drive.call.state is C
    desk = drive.leg(DESK)
    assert drive.give(WatchChanged(leg_id=desk, watching=True)).call.state is A
    assert next_deadline(drive.call, S) is None
    assert drive.give(Elapsed(), after_s=600).call.leg_of(DESK.id) is not None
    drive.give(MediaLost(leg_id="leg1"))
    assert drive.call.state is X
    drive.give(MediaChanged(leg_id="leg1", tracks=BOTH))
    assert drive.give(WatchChanged(leg_id=desk, watching=False)).call.state is C
    drive.give(Elapsed(), after_s=S.join_s - 1)
    assert drive.call.leg_of(DESK.id) is not None
    drive.give(Elapsed(), after_s=1)
    assert drive.call.leg_of(DESK.id) is None, "its page is closed"
    assert drive.of(CloseMedia) == [CloseMedia(leg_id=desk)]


@pytest.mark.parametrize("who", [worker(1), DESK], ids=["worker", "desk"])
@pytest.mark.parametrize("make", [active, reconnecting], ids=["active", "reconnecting"])
def test_hanging_up_ends_it_on_both_sides(make: Callable[[], Drive], who: Participant) -> None:
    drive = make().give(Hangup(participant=who))
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.HANGUP)
    assert drive.of(CloseMedia) == [CloseMedia(leg_id="leg1"), CloseMedia(leg_id="leg2")]
    assert drive.call.present == ()


def test_a_desk_that_leaves_others_of_its_side_ends_nothing() -> None:
    drive = active().give(Join(participant=DESK2)).give(Hangup(participant=DESK2))
    assert drive.call.state is A
    assert drive.of(CloseMedia) == [CloseMedia(leg_id="leg3")]
    drive.give(Join(participant=DESK2)).give(Hangup(participant=DESK))
    assert drive.call.state is C, "the one who stays has published nothing"


@pytest.mark.parametrize("answered", ["ringing", "claimed", "connecting"])
def test_hanging_up_against_the_answer_cancels_and_leaves_a_missed_call(answered: str) -> None:
    drive = dispatched()
    if answered != "ringing":
        drive.give(Claim(participant=worker(1)))
    if answered == "connecting":
        drive.give(MediaChanged(leg_id=drive.leg(worker(1)), tracks=BOTH))
    drive.give(Hangup(participant=DESK))
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.CANCELLED)
    assert drive.of(Missed) == [Missed(worker_id="w1")]
    assert [rung.outcome for rung in drive.call.rung] == [Outcome.CANCELLED]
    assert drive.call.ringing == ()


def test_a_claimant_that_thinks_better_of_it_hangs_up() -> None:
    drive = claimed().give(Hangup(participant=worker(1)))
    assert (drive.call.end_reason, drive.of(Missed)) == (EndReason.HANGUP, [])


def test_hanging_up_a_ringing_phone_declines() -> None:
    drive = ringing().give(Hangup(participant=worker(2)))
    assert drive.call.state is R
    assert drive.call.rung[1].outcome is Outcome.DECLINED


def test_the_gridworker_takes_its_own_inbound_call_back() -> None:
    drive = inbound().give(Hangup(participant=worker(1)))
    assert (drive.call.end_reason, drive.of(Missed)) == (EndReason.CANCELLED, [Missed(worker_id=None)])


def test_only_those_in_the_call_hang_up() -> None:
    for drive in (claimed(), active()):
        for stranger in (DESK2, worker(9), BOX):
            with pytest.raises(Conflict):
                drive.give(Hangup(participant=stranger))
    with pytest.raises(Conflict):
        ringing().give(Hangup(participant=BOX))


@pytest.mark.parametrize("state", [R, L, C, A, X])
def test_another_call_takes_its_place(state: CallState) -> None:
    drive = AT[state]().give(Supersede())
    assert (drive.call.state, drive.call.end_reason) == (E, EndReason.SUPERSEDED)
    assert drive.of(Missed) == []


def test_the_alarm_is_over_while_it_rings() -> None:
    drive = ended()
    assert drive.call.end_reason is EndReason.CANCELLED
    assert [stop.reason for stop in drive.of(StopRinging)] == ["cancelled"] * 3


# ---------------------------------------------------------------------------------------------- whatever
# happens


class AnyCall(RuleBasedStateMachine):
    """Random inputs in random order at random times. What Conflict refuses must leave the call as it was."""

    @initialize(start=st.sampled_from([alarm_call, dispatched, inbound]))
    def begin(self, start: Callable[[], Drive]) -> None:
        self.drive = start()
        self.claims = 0

    def try_(self, given: Input) -> None:
        before = self.drive.call
        try:
            self.drive.give(given)
        except Conflict:
            assert self.drive.call is before
            return
        after = self.drive.call
        assert not before.ended, "an ended call stays ended"
        assert after.version == before.version + (after != before)
        assert len(after.rung) >= len(before.rung)
        assert len(after.legs) >= len(before.legs)
        stopped = {effect.worker_id for effect in self.drive.of(StopRinging)}
        rung = {effect.rung.worker_id for effect in self.drive.of(Ring)}
        was, now = ({r.worker_id for r in call.ringing} for call in (before, after))
        assert was - now <= stopped, "a phone that rings no more was told"
        assert now - was <= rung, "a phone that rings was rung"
        closed = {effect.leg_id for effect in self.drive.of(CloseMedia)}
        left = {leg.id for leg in before.present} - {leg.id for leg in after.present}
        assert left <= closed, "the media of a leg that left is closed"

    @rule(number=st.integers(1, 4), device=st.sampled_from(["", "a", "b"]))
    def claim(self, number: int, device: str) -> None:
        self.try_(Claim(participant=worker(number), device=device))

    @rule(who=st.sampled_from([DESK, DESK2]))
    def claim_by_desk(self, who: Participant) -> None:
        self.try_(Claim(participant=who))

    @rule(who=st.sampled_from([DESK, DESK2, BOX, worker(1)]))
    def join(self, who: Participant) -> None:
        self.try_(Join(participant=who))

    @rule(who=st.sampled_from([DESK, DESK2, BOX, worker(1), worker(2)]))
    def hangup(self, who: Participant) -> None:
        self.try_(Hangup(participant=who))

    @rule(number=st.integers(1, 4))
    def decline(self, number: int) -> None:
        self.try_(Decline(worker_id=f"w{number}"))

    @rule(number=st.integers(1, 4), reason=st.sampled_from(["busy", "off_duty"]))
    def fall_out(self, number: int, reason: str) -> None:
        self.try_(Busy(worker_id=f"w{number}", reason=reason))

    @rule(number=st.integers(1, 6), tracks=st.sampled_from([BOTH, frozenset({"audio"}), frozenset()]))
    def media(self, number: int, tracks: frozenset[str]) -> None:
        self.try_(MediaChanged(leg_id=f"leg{number}", tracks=tracks))

    @rule(number=st.integers(1, 6))
    def lose(self, number: int) -> None:
        self.try_(MediaLost(leg_id=f"leg{number}"))

    @rule(number=st.integers(1, 6), watching=st.booleans())
    def watch(self, number: int, watching: bool) -> None:
        self.try_(WatchChanged(leg_id=f"leg{number}", watching=watching))

    @rule(grid=st.sampled_from(["g1", "g2"]))
    def relocate(self, grid: str) -> None:
        self.try_(Relocate(place_label=grid, position=None, lineage=(), grid=grid))

    @rule(given=st.sampled_from([Cancel(), Supersede()]), really=st.integers(0, 9))
    def end(self, given: Input, really: int) -> None:
        if really == 0:
            self.try_(given)

    @precondition(lambda self: not self.drive.call.ended)
    @rule()
    def next_timer(self) -> None:
        deadline = next_deadline(self.drive.call, S)
        self.drive.now_ms = max(self.drive.now_ms, deadline or 0)
        for _ in range(3):  # a claim that ran out, a restart and a round may fall on one instant
            if deadline is not None and deadline <= self.drive.now_ms:
                self.serve()
                deadline = next_deadline(self.drive.call, S)
        assert deadline is None or deadline > self.drive.now_ms, "a timer that was served is over"

    def serve(self) -> None:
        """What the switchboard does when a deadline has come."""
        self.try_(Elapsed())
        request = ring_request(self.drive.call, self.drive.now_ms, S)
        if request is not None:
            roster = [Choice(id=f"w{number}", grid=f"g{number}") for number in range(1, 5)]
            nobody = not self.drive.call.ringing
            self.try_(choose(roster, request, frozenset(), nobody_rings=nobody))

    @invariant()
    def holds(self) -> None:
        call = self.drive.call
        winners = [r for r in call.rung if r.outcome is Outcome.CLAIMED and r.cycle == call.cycle]
        assert len(winners) <= 1, "at most one claimant"
        if call.state is not R:
            assert call.ringing == (), "nobody rings after the claim"
        assert (call.answered_by is not None) or call.state in (R, E)
        assert (call.end_reason is not None) == (call.ended_at is not None) == call.ended
        people = [leg.participant.id for leg in call.present]
        assert len(people) == len(set(people)), "one place for each"
        if call.ended:
            assert call.present == ()
            assert next_deadline(call, S) is None
        if call.state is A:
            sides = {leg.participant.side for leg in call.present if leg.publishing or leg.listening}
            assert {Side.WORKER, Side.CENTER} <= sides
        if call.state in (R, L):
            assert next_deadline(call, S) is not None, "ringing and a claim without media end by themselves"

    def teardown(self) -> None:
        """Everybody's phone and page is gone at once, and nobody answers any more: the call ends by itself."""
        if not hasattr(self, "drive"):
            return
        for leg in self.drive.call.present:
            self.try_(WatchChanged(leg_id=leg.id, watching=False))
            self.try_(MediaLost(leg_id=leg.id))
        end = self.drive.now_ms + 1000 * (
            S.dead_s + S.join_s + S.max_rings * (S.no_answer_s + S.inbound_no_answer_s)
        )
        while not self.drive.call.ended:
            deadline = next_deadline(self.drive.call, S)
            assert deadline is not None, f"{self.drive.call.state} with nobody in it, for ever"
            self.drive.now_ms = max(self.drive.now_ms, deadline)
            assert self.drive.now_ms <= end
            self.try_(Elapsed())
            request = ring_request(self.drive.call, self.drive.now_ms, S)
            if request is not None:
                self.try_(choose([], request, frozenset(), nobody_rings=not self.drive.call.ringing))


TestAnyCall = AnyCall.TestCase
TestAnyCall.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
