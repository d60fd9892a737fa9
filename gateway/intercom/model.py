"""What a call is made of: its values, the inputs that move it, the effects that come out.

All times are UTC milliseconds; all settings are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

__all__ = [
    "Accepted",
    "AlarmBrief",
    "Busy",
    "Call",
    "CallKind",
    "CallSettings",
    "CallState",
    "Cancel",
    "Claim",
    "CloseMedia",
    "Decline",
    "Delivered",
    "Delivery",
    "Effect",
    "Elapsed",
    "EndReason",
    "Hangup",
    "IncidentBrief",
    "Input",
    "Join",
    "Leg",
    "MediaChanged",
    "MediaLost",
    "Missed",
    "NoAnswer",
    "Notify",
    "Outcome",
    "Participant",
    "RankedWorker",
    "RecordingChanged",
    "Relocate",
    "RestartIce",
    "Ring",
    "RingWorkers",
    "Rung",
    "Side",
    "Step",
    "StopRinging",
    "Supersede",
    "WatchChanged",
]


class CallState(StrEnum):
    RINGING = "RINGING"
    CLAIMED = "CLAIMED"
    CONNECTING = "CONNECTING"
    ACTIVE = "ACTIVE"
    RECONNECTING = "RECONNECTING"
    ENDED = "ENDED"


class CallKind(StrEnum):
    """alarm: opened by an alarm's commit; dispatch: an operator chose the worker; inbound: a worker calls."""

    ALARM = "alarm"
    DISPATCH = "dispatch"
    INBOUND = "inbound"


class EndReason(StrEnum):
    HANGUP = "hangup"
    NO_ANSWER = "no_answer"
    DECLINED = "declined"
    CANCELLED = "cancelled"
    MEDIA_FAILED = "media_failed"
    SUPERSEDED = "superseded"


class Outcome(StrEnum):
    """What became of one ring of one phone. `expired` and `cancelled` are missed calls."""

    RINGING = "ringing"
    CLAIMED = "claimed"
    DECLINED = "declined"
    TAKEN = "taken"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Side(StrEnum):
    """A call has two sides that it needs; the resident's box listens in and is never waited for."""

    WORKER = "worker"
    CENTER = "center"
    RESIDENT = "resident"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """Every figure of a call (product.md section 3). Seconds; named as in the configuration's `calls`.

    ring_first, ring_next: how many phones ring at once, and how many more `ring_next_s` after that.
    ring_own_grid: the worker of the place's grid rings with the first. no_answer_s: ringing ends;
    inbound_no_answer_s: the same where a gridworker calls the desks. publish_s: what a claimant has to
    publish within, before others are rung again. restart_s: after the loss of a leg, when its page is asked
    for an ICE restart. dead_s: when it is given up. rerank_s: how often a round that found too few workers
    asks the ranking again. max_rings: how often ringing may begin in one call (released claims and redials
    included). join_s: who takes a place and neither publishes nor watches for so long loses it (a closed tab). receipt_s: a phone that
    has not said by then that it rings is rung by the provider's `notify` channels too (sms, voice, push; none: no provider).
    sos_no_answer_s: how long a gridworker's call for help rings.
    """

    ring_first: int = 3
    ring_next: int = 3
    ring_next_s: float = 10.0
    ring_own_grid: bool = True
    no_answer_s: float = 40.0
    inbound_no_answer_s: float = 60.0
    publish_s: float = 8.0
    restart_s: tuple[float, ...] = (3.0, 8.0, 15.0)
    dead_s: float = 30.0
    rerank_s: float = 2.0
    max_rings: int = 4
    join_s: float = 30.0
    receipt_s: float = 3.0
    notify: tuple[str, ...] = ()
    sos_no_answer_s: float = 600.0

    @property
    def ring_rounds(self) -> tuple[tuple[float, int], ...]:
        """(seconds after the ringing began, how many more phones ring from then on)."""
        return ((0.0, self.ring_first), (self.ring_next_s, self.ring_next))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmBrief:
    """What a call needs to know of an alarm.

    position: (lat, lon) WGS-84; lineage: codes of the areas around it; again_at: when it was pressed again after a
    cancel, UTC milliseconds.
    """

    alarm_id: str
    place_label: str
    position: tuple[float, float] | None
    lineage: tuple[str, ...]
    grid: str | None = None
    incident_id: str | None = None
    again_at: int | None = None

    @property
    def opens(self) -> str:
        """The name under which the alarm's own call is opened once: each press after a cancel has one of its own."""
        return self.alarm_id if self.again_at is None else f"{self.alarm_id}/{self.again_at}"

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> AlarmBrief:
        """From the outbox kind `ring_plan`; what a call does not need is left aside."""
        where = payload["position"]
        return cls(
            alarm_id=payload["alarm_id"],
            place_label=payload["place_label"],
            position=None if where is None else (where["lat"], where["lon"]),
            lineage=tuple(payload["lineage"]),
            grid=payload["grid"],
            incident_id=payload["incident_id"],
            again_at=payload.get("again_at"),  # not in a row that an older version left
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentBrief:
    """The same of an incident that no alarm began: reported by a gridworker, or opened by hand on the map."""

    incident_id: str
    place_label: str
    position: tuple[float, float] | None
    lineage: tuple[str, ...]
    grid: str | None = None


class RankedWorker(Protocol):
    """What the ranking says of a gridworker: the contract's WorkerChoice, of which a call reads this much."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def grid(self) -> str | None: ...
    @property
    def distance_m(self) -> float | None: ...
    @property
    def eta_s(self) -> float | None: ...
    @property
    def freshness(self) -> str: ...
    @property
    def reason(self) -> str: ...


# ---------------------------------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """Somebody in a call. `role` is the role of the contract, which tells the side."""

    id: str
    name: str
    role: str

    @property
    def side(self) -> Side:
        if self.role == "worker":
            return Side.WORKER
        return Side.RESIDENT if self.role == "stb" else Side.CENTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One way by which a ring went to its phone: `event`, `mqtt`, or a channel of the provider (`sms`, `voice`, `push`).

    delivered_at: when the phone (or the provider for it) said that it is there; error: why it can't be.
    """

    channel: str
    sent_at: int
    delivered_at: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One ring of one gridworker. cycle: which ringing of the call; waiting: rung while in another call."""

    worker_id: str
    name: str
    distance_m: float | None
    eta_s: float | None
    reason: str
    rung_at: int
    cycle: int
    own_grid: bool = False
    waiting: bool = False
    outcome: Outcome = Outcome.RINGING
    outcome_at: int | None = None
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One participant's place in the room. `device` tells two phones of one person apart ("" while unknown).

    lost_at: since when its media is missing after it had some; restarts: ICE restarts asked for since then.
    recording: what it publishes is being written down, as everybody in the call is told. watching: it receives another
    leg's media; unwatched_at: since when it does no more.
    """

    id: str
    participant: Participant
    joined_at: int
    device: str = ""
    tracks: frozenset[str] = frozenset()
    published_at: int | None = None
    lost_at: int | None = None
    restarts: int = 0
    left_at: int | None = None
    recording: bool = False
    watching: bool = False
    unwatched_at: int | None = None

    @property
    def publishing(self) -> bool:
        return bool(self.tracks) and self.left_at is None

    @property
    def listening(self) -> bool:
        """It takes part without a microphone or camera of its own."""
        return self.watching and self.published_at is None and self.left_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call.

    lineage: area codes that contain its place, for authorisation. position: (lat, lon) WGS-84.
    rings: whom the present (or last) ringing calls. picked: the worker an operator chose, or the one
    redialled; empty when the ranking chooses. cycle: number of the present ringing, from 1.
    redial: it calls a dead worker back. ranked_at: when the ranking was last asked, None if it is due.
    told_nobody: the desk knows that no phone rings. sos: a gridworker calls for help.
    """

    id: str
    kind: CallKind
    opened_at: int
    alarm_id: str | None = None
    incident_id: str | None = None
    place_label: str = ""
    position: tuple[float, float] | None = None
    lineage: tuple[str, ...] = ()
    grid: str | None = None
    state: CallState = CallState.RINGING
    opened_by: Participant | None = None
    rings: Side = Side.WORKER
    picked: tuple[str, ...] = ()
    cycle: int = 1
    redial: bool = False
    ring_started_at: int
    ranked_at: int | None = None
    told_nobody: bool = False
    answered_by: Participant | None = None
    answered_at: int | None = None
    active_at: int | None = None
    ended_at: int | None = None
    end_reason: EndReason | None = None
    sos: bool = False
    rung: tuple[Rung, ...] = ()
    legs: tuple[Leg, ...] = ()
    version: int = 0

    @property
    def ended(self) -> bool:
        return self.state is CallState.ENDED

    @property
    def ringing(self) -> tuple[Rung, ...]:
        """The phones that ring at this moment."""
        return tuple(rung for rung in self.rung if rung.outcome is Outcome.RINGING)

    @property
    def present(self) -> tuple[Leg, ...]:
        return tuple(leg for leg in self.legs if leg.left_at is None)

    def leg(self, leg_id: str) -> Leg | None:
        return next((leg for leg in self.legs if leg.id == leg_id), None)

    def leg_of(self, participant_id: str) -> Leg | None:
        """The leg that this participant holds now."""
        return next((leg for leg in self.present if leg.participant.id == participant_id), None)


# ---------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class RingWorkers:
    """The ranking's answer to `ring_request`, best first, already cut to what shall ring (see `choose`)."""

    choices: tuple[RankedWorker, ...]
    waiting: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Somebody answers. `device`: the session it answers from, "" when the channel does not tell (MQTT)."""

    participant: Participant
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """A rung worker answered another call, or went off duty: `reason` is `busy` or `off_duty`."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    participant: Participant
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hangup:
    participant: Participant


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """What the call was for is over (the alarm was cancelled or closed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocate:
    """The place turned out to be another one (the resident corrected it): who is near it rings as well."""

    place_label: str
    position: tuple[float, float] | None
    lineage: tuple[str, ...]
    grid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Supersede:
    """Another call takes this one's place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaChanged:
    """The media plane: this leg publishes these kinds (audio, video) now."""

    leg_id: str
    tracks: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLost:
    leg_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchChanged:
    """The media edge: this leg watches another one, or none any more."""

    leg_id: str
    watching: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingChanged:
    """The evidence desk: this leg is being written down, or no more."""

    leg_id: str
    recording: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A ring is known to have come to the phone, or (`error`) can't. channel: see `Delivery`."""

    worker_id: str
    channel: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elapsed:
    """`next_deadline` has come."""


Input = (
    RingWorkers
    | Claim
    | Decline
    | Busy
    | Join
    | Hangup
    | Cancel
    | Supersede
    | Relocate
    | MediaChanged
    | MediaLost
    | WatchChanged
    | RecordingChanged
    | Delivered
    | Elapsed
)


# --------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Ring this phone. `until`: when the ringing is over if nobody answers."""

    rung: Rung
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """No phone of this worker said that it rings: the provider is to reach it."""

    rung: Rung
    channels: tuple[str, ...]
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRinging:
    """Every phone of this worker falls silent.

    reason: taken declined busy off_duty expired cancelled released.
    """

    worker_id: str
    reason: str
    taken_by: Participant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A gridworker answered (not: came back to) a call: the resident may be told."""

    participant: Participant
    eta_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """The desk is told: nobody_on_duty or nobody_left (still trying), no_answer, declined, media_failed."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """A missed call of this worker; of the command center if None."""

    worker_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartIce:
    leg_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseMedia:
    leg_id: str


Effect = Ring | Notify | StopRinging | Accepted | NoAnswer | Missed | RestartIce | CloseMedia
Step = tuple[Call, tuple[Effect, ...]]
