"""The shapes of our answers: docs/contract.md section 3 as types.

Handlers build plain dictionaries; these say what is in them. `tests/http/test_schema.py` holds real answers against them, so
they can't drift. An answer may say more than its shape (names are extended, never changed); what stands here is always there.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.access import Role, Visibility
from gateway.alarms.alarm import Condition, Handling, Outcome
from gateway.alarms.call_back import Outcome as CallBackOutcome
from gateway.alarms.dispatch import Duty, Freshness
from gateway.alarms.incident import IncidentState
from gateway.alarms.press import Kind
from gateway.alarms.statistics import By
from gateway.alarms.task import TaskState
from gateway.geo import Datum
from gateway.intercom import model as calls
from gateway.streams.picture_health import Verdict


class Shape(msgspec.Struct, kw_only=True):
    """Base of all: named fields only."""


class LatLon(Shape):
    lat: float
    lon: float


class Person(Shape):
    sub: str
    name: str


class Named(Shape):
    id: str
    name: str


class Session(Shape):
    sub: str
    role: Role
    area: str | None
    name: str
    supervisor: bool
    lineage: list[str]
    expires_at: int | None


class Grant(Shape):
    id: str
    camera_id: str
    sub: str
    until: int
    reason: str
    granted_by: str
    granted_at: int


class Grants(Shape):
    grants: list[Grant]


class Area(Shape):
    code: str
    name: str
    level: str
    parent: str | None
    kind: str
    phone: str


class DistrictAnswer(Shape):
    code: str
    name: str
    center: LatLon | None
    areas: list[Area]


class Features(Shape):
    type: Literal["FeatureCollection"]
    features: list[dict[str, Any]]


class Stream(Shape):
    state: str
    reason: str
    since: int
    codec: str | None
    profile: str | None
    width: int | None
    height: int | None
    fps: float | None
    kbps: float | None
    viewers: int


class Picture(Shape):
    verdict: Verdict
    reason: str
    since: int
    checked_at: int


class Camera(Shape):
    id: str
    name: str
    community: str | None
    grid: str | None
    position: LatLon | None
    heading: float | None
    fov: float
    range_m: float
    visible_to: Visibility
    pull: str
    state: Literal["idle", "connecting", "live", "down"]
    reason: str
    since: int
    last_frame_at: int | None
    picture: Picture | None
    streams: dict[str, Stream | None]


class Cameras(Shape):
    cameras: list[Camera]


class Changed(Shape):
    added: list[str]
    changed: list[str]
    removed: list[str]
    secrets: bool
    restart: list[str]


class Place(Shape):
    kind: str
    ref: str | None
    label: str
    position: LatLon | None


class Dispatched(Named):
    eta_s: float | None


class Deadline(Shape):
    kind: str
    at: int


class CallBack(Shape):
    at: int
    by: Person
    outcome: CallBackOutcome
    note: str


class Alarm(Shape):
    id: str
    source: str
    press_id: str
    kind: str
    silent: bool
    handling: Handling
    condition: Condition
    verified: bool
    place: Place
    street: str | None
    community: str | None
    grid: str | None
    received_at: int
    device_time: int
    skew_ms: int
    repeats: int
    alerted_at: int
    group_id: str | None
    shown_at: int | None
    acknowledged_at: int | None
    acknowledged_by: Person | None
    outcome: Outcome | None
    severity: int | None
    police: str | None
    merged_into: str | None
    incident_id: str | None
    call_id: str | None
    dispatched: Dispatched | None
    level: str
    cleared_at: int | None
    closed_at: int | None
    call_back: CallBack | None
    deadlines: list[Deadline]


class Alarms(Shape):
    alarms: list[Alarm]


class Entry(Shape):
    at: int
    event: str
    by: str
    detail: dict[str, Any]


class Delivery(Shape):
    audience: str
    channel: str
    at: int
    delivered_at: int | None
    reached: int | None


class CameraChoice(Named):
    distance_m: float
    bearing_deg: float
    in_view: bool
    score: float
    reason: str


class WorkerChoice(Named):
    grid: str | None
    distance_m: float
    eta_s: float
    freshness: Freshness
    fix_age_s: float | None
    accuracy_m: float | None
    own_grid: bool
    reason: str


class Household(Shape):
    address: str
    contacts: list[dict[str, Any]]
    notes: str


class AlarmDetail(Alarm):
    cameras: list[CameraChoice]
    workers: list[WorkerChoice]
    household: Household | None
    timeline: list[Entry]
    deliveries: list[Delivery]


class Ack(Shape):
    """Also of a refusal, then with `reason`."""

    pid: str
    alarm: str | None
    stage: str
    now: int


class Incident(Shape):
    id: str
    number: str
    type: str
    severity: int
    police: str
    state: IncidentState
    came_from: str | None
    alarm_id: str | None
    place_label: str
    position: LatLon | None
    street: str | None
    community: str | None
    grid: str | None
    reported_by: str
    reported_at: int
    changed_at: int
    reopened: int
    note: str
    dispatched_at: int | None
    on_scene_at: int | None
    submitted_at: int | None
    ended_at: int | None
    action_by: int | None
    follow_up_at: int | None
    satisfied: bool | None
    score: int | None
    transferred_to: str | None


class IncidentDetail(Incident):
    timeline: list[Entry]
    deliveries: list[Delivery]


class Incidents(Shape):
    incidents: list[Incident]


class FollowedUp(Shape):
    id: str
    number: str
    state: IncidentState
    satisfied: bool | None
    follow_up_at: int | None


class Suggestion(Shape):
    id: str
    number: str
    type: str
    place_label: str
    state: IncidentState
    distance_m: float


class Suggestions(Shape):
    incidents: list[Suggestion]


class Assignee(Named):
    role: str


class Photo(Shape):
    sha256: str
    media_type: str
    size: int
    by: str
    at: int


class TaskIncident(Shape):
    id: str
    number: str
    type: str
    severity: int
    place_label: str
    state: IncidentState
    alarm_id: str | None


class Task(Shape):
    id: str
    incident_id: str
    state: TaskState
    assignee: Assignee
    note: str
    feedback: str
    offered_by: str
    offered_at: int
    expires_at: int | None
    accepted_at: int | None
    on_scene_at: int | None
    done_at: int | None
    changed_at: int
    incident: TaskIncident
    position: LatLon | None
    photos: list[Photo]


class Tasks(Shape):
    tasks: list[Task]


class Duties(Shape):
    duties: list[str]


class Figures(Shape):
    rank: int
    code: str
    name: str
    reported: int
    closed: int
    closed_rate: float | None
    reopened: int
    reopen_rate: float | None
    satisfied_rate: float | None
    acknowledge_s: dict[str, float]
    dispatch_s: dict[str, float]
    on_scene_s: dict[str, float]
    close_s: dict[str, float]


class Statistics(Shape):
    by: By
    month: str
    entries: list[Figures]


class Worker(Named):
    grid: str | None
    duty: Duty
    online: bool
    position: LatLon | None
    fix_at: int | None
    accuracy_m: float | None
    freshness: Freshness
    datum_suspected: str | None


class NearWorker(Named):
    """A Worker, or with `near` a WorkerChoice: what both have."""

    grid: str | None
    freshness: Freshness


class Workers(Shape):
    workers: list[NearWorker]


class Me(Named):
    """A volunteer's has nothing else."""

    role: str


class Counted(Shape):
    """counted: whether the fix was taken; not while off duty, nor an older or impossible one."""

    counted: bool


class Mqtt(Shape):
    path: str
    client_id: str
    username: str
    password: str


class BoxCall(Shape):
    id: str
    state: calls.CallState
    joinable: bool


class Box(Shape):
    sid: str
    key: str
    name: str
    community: str | None
    grid_phone: str | None
    cameras: list[Named]
    mqtt: Mqtt | None
    alarm: dict[str, Any] | None
    call: BoxCall | None
    now: int


class Rung(Shape):
    worker_id: str
    name: str
    distance_m: float | None
    reason: str
    rung_at: int
    outcome: calls.Outcome
    waiting: bool


class Leg(Shape):
    id: str
    participant: str
    name: str
    role: str
    publishing: bool
    tracks: list[str]
    joined_at: int
    left_at: int | None
    lost_at: int | None
    restarts: int
    watching: bool


class Call(Shape):
    """With `leg`, the own leg's id, for who is in it."""

    id: str
    alarm_id: str | None
    incident_id: str | None
    kind: calls.CallKind
    state: calls.CallState
    opened_at: int
    place_label: str
    position: LatLon | None
    answered_by: Named | None
    end_reason: str | None
    rung: list[Rung]
    legs: list[Leg]
    recording: bool


class Calls(Shape):
    calls: list[Call]


class IceServers(Shape):
    ice_servers: list[dict[str, Any]]


class HealthAnswer(Shape):
    status: Literal["ok", "degraded"]
    reasons: list[str]
    notes: list[str]
    db: bool
    mqtt: bool
    lag_ms: float
    cameras: dict[str, int]
    sessions: int


class Ready(Shape):
    ready: bool
    reasons: list[str]


class Press(Shape):
    """The signed press (section 4)."""

    v: int
    sid: str
    pid: str
    seq: int
    ts: int
    kind: Kind
    sig: str
    cam: str | None = None
    silent: bool = False


class Cancel(Shape):
    sid: str
    pid: str
    ts: int
    sig: str


class Correction(Cancel):
    place: Literal["camera", "household"]


class Location(Shape):
    lat: float
    lon: float
    datum: Datum
    acc: float | None = None
    spd: float | None = None
    fix: int | None = None
    seq: int | None = None


class Clip(Shape):
    """A piece of evidence."""

    id: str
    kind: Literal["camera", "call"]
    alarm_id: str | None
    incident_id: str | None
    call_id: str | None
    camera_id: str | None
    name: str
    from_at: int | None
    to_at: int | None
    media_type: str | None
    size: int | None
    sha256: str | None
    state: Literal["recording", "complete", "failed", "pruned"]
    reason: str
    preroll_s: float
    hold: dict[str, Any] | None
    expires_at: int | None


class Clips(Shape):
    evidence: list[Clip]


class Volunteer(Named):
    level: int
    community: str | None
    position: LatLon | None
    available: bool


class Volunteers(Shape):
    volunteers: list[Volunteer]


class Webhook(Shape):
    """No secret is in it."""

    name: str
    url: str
    pending: int
    delivered: int
    dead: int
    delivered_at: int | None


class Webhooks(Shape):
    webhooks: list[Webhook]


class Messages(Shape):
    messages: list[dict[str, Any]]


class Retried(Shape):
    retried: int


class Photos(Shape):
    photos: list[Photo]


class Layouts(Shape):
    layouts: list[dict[str, Any]]
    tours: list[dict[str, Any]]
