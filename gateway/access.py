"""Who may do what to which thing: one table, one pure function, default deny.

`authorize` stands in front of every endpoint, page, topic and event. A row of the table says in which
*scope* a role may do an action; an action or role without a row is denied. The scope is checked against the
resource:

    ANY        nothing to check: the endpoint acts on the principal itself, or holds nothing of any place
    AREA       the resource lies in the principal's area (none: the whole district), or the principal takes part
    HOME       the resource lies in the community of the principal's own grid, or the principal takes part
    RESIDENT   the camera is shown to residents (`visible_to`) and the principal lives where it is shown, or it was
               granted to this resident for a time (`participants`)
    PART       the principal takes part in it (`participants`, `owner`)
    OWN        the principal owns it (`owner`)
    LOOPBACK   the request came from this machine

A list is authorized twice: first as a whole (`Resource.collection(kind)`: may this role ask at all?), then
each thing in it with the same action, which is also how an event is filtered for a page.

Least privilege where the contract leaves a choice: `admin` administers and sees the state of cameras, but no
picture, alarm or position (whoever needs them gets an operator's account as well), except what was recorded, which it
keeps, holds and hands out; `service` gets figures
only; `leader` sees, talks and acknowledges, but triages nothing; who isn't at a desk sees a household's card
only as the claimant of its call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.errors import NotAllowed

__all__ = [
    "RULES",
    "Action",
    "Decision",
    "Principal",
    "Resource",
    "Role",
    "Scope",
    "Visibility",
    "authorize",
    "may_ever",
    "needs_principal",
    "require",
]


class Role(StrEnum):
    """Who one is. One role a principal."""

    OPERATOR = "operator"  # district wall
    DESK = "desk"  # duty desk of a street or community
    LEADER = "leader"
    WORKER = "worker"  # full-time gridworker
    VOLUNTEER = "volunteer"
    STB = "stb"  # a resident's set-top box
    SERVICE = "service"  # monitoring
    ADMIN = "admin"


class Visibility(StrEnum):
    """To which residents a camera is shown. Staff don't depend on it."""

    NONE = "none"
    COMMUNITY = "community"
    STREET = "street"
    DISTRICT = "district"


# How many codes of a lineage two things must share to lie in the same area of that level.
_DEPTH = {Visibility.DISTRICT: 1, Visibility.STREET: 2, Visibility.COMMUNITY: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody whose identity was proven.

    sub: the user's, gridworker's or volunteer's id, or the box's sid.
    area: code that limits what staff see; None is the whole district.
    lineage: codes of district, street, community, grid (as far as known) in which the principal works or
    lives. Filled from the district's data at each request (`District.situate`), never from a token, so that
    a move takes effect at once. supervisor: an operator who is told what was left undone.
    session: id of the login, by which it can be revoked; empty for a bare token. issued_at_s, expires_at_s: of its
    token, UTC seconds; what was opened under a token ends with it. account: fingerprint of the account's entry
    (password, role, area) at a login by password; empty otherwise.
    """

    sub: str
    role: Role
    area: str | None = None
    lineage: tuple[str, ...] = ()
    supervisor: bool = False
    name: str = ""
    session: str = ""
    issued_at_s: float = field(default=0.0, compare=False)
    expires_at_s: float = field(default=math.inf, compare=False)
    account: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What an action is done to.

    id: None stands for the collection as a whole.
    lineage: codes of district, street, community and grid, outermost first, as far as they are known.
    owner: `sub` of the one it belongs to. participants: `sub` of everyone who takes part in it (rung,
    claimed, assigned, acknowledged); of a camera those it is granted to for a time, and who has claimed the call of
    an alarm near by. For `alarm.household` they are the acknowledging operator and the
    claimant, and nobody once it is closed.
    """

    kind: str
    id: str | None = None
    lineage: tuple[str, ...] = ()
    visible_to: Visibility = Visibility.NONE
    owner: str | None = None
    participants: frozenset[str] = frozenset()
    loopback: bool = False

    @classmethod
    def collection(cls, kind: str) -> Resource:
        """All things of a kind: asking for a list, of which each item is authorized again."""
        return cls(kind=kind)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, with a reason fit for an audit line."""

    allowed: bool
    reason: str

    def __bool__(self) -> bool:
        return self.allowed


class Action(StrEnum):
    """Everything that can be asked for."""

    # open to everybody
    HEALTH_READ = "health.read"
    OPENAPI_READ = "openapi.read"
    STATIC_READ = "static.read"
    PRESS_SIGNED = "press.signed"  # press, cancel and place: the signature is the credential
    SESSION_CREATE = "session.create"
    MEDIA_PREFLIGHT = "media.preflight"  # CORS: browsers send no credentials with it
    PAGE_INDEX = "page.index"
    PAGE_LOGIN = "page.login"
    # one's own session
    SESSION_READ = "session.read"
    SESSION_DELETE = "session.delete"
    LAYOUT_KEEP = "layout.keep"  # one's own layouts and tours of the wall
    EVENTS_OPEN = "events.open"  # each event in it is authorized as a list item
    MEDIA_ICE = "media.ice"
    MEDIA_SESSION = "media.session"  # PATCH, DELETE, GET of a WHEP or WHIP session
    # pages
    PAGE_WALL = "page.wall"
    PAGE_DESK = "page.desk"
    PAGE_STB = "page.stb"
    PAGE_WORKER = "page.worker"
    # the district and its cameras
    DISTRICT_READ = "district.read"
    CAMERA_LIST = "camera.list"  # also one camera's description and the `camera` event
    CAMERA_VIEW = "camera.view"
    CAMERA_SNAPSHOT = "camera.snapshot"
    CAMERA_MANAGE = "camera.manage"
    # alarms
    ALARM_LIST = "alarm.list"  # also the `alarm` event
    ALARM_READ = "alarm.read"
    ALARM_SHOWN = "alarm.shown"
    ALARM_ACKNOWLEDGE = "alarm.acknowledge"  # and un-acknowledge
    ALARM_TRIAGE = "alarm.triage"
    ALARM_CLOSE = "alarm.close"
    ALARM_HOUSEHOLD = "alarm.household"
    # incidents and tasks
    INCIDENT_LIST = "incident.list"
    INCIDENT_READ = "incident.read"
    INCIDENT_CREATE = "incident.create"  # by hand from the map
    INCIDENT_REPORT = "incident.report"  # 上报 by a gridworker
    INCIDENT_UPDATE = "incident.update"
    INCIDENT_DISPATCH = "incident.dispatch"
    INCIDENT_HANDLE = "incident.handle"  # feedback, photos, done
    INCIDENT_VERIFY = "incident.verify"
    INCIDENT_FOLLOW_UP = "incident.follow_up"
    INCIDENT_RATE = "incident.rate"
    INCIDENT_ARCHIVE = "incident.archive"
    INCIDENT_TRANSFER = "incident.transfer"  # to 110 or 12345, and back
    INCIDENT_SUSPEND = "incident.suspend"
    INCIDENT_MERGE = "incident.merge"
    INCIDENT_CANCEL = "incident.cancel"
    TASK_LIST = "task.list"
    TASK_ASSIGN = "task.assign"
    TASK_ACT = "task.act"  # accept, decline, en route, on scene, done
    EVIDENCE_READ = "evidence.read"
    EVIDENCE_EXPORT = "evidence.export"
    EVIDENCE_HOLD = "evidence.hold"  # and release
    STATISTICS_READ = "statistics.read"
    # gridworkers
    WORKER_LIST = "worker.list"  # also the `worker` event
    WORKER_NEAR = "worker.near"
    VOLUNTEER_LIST = "volunteer.list"
    WORKER_SELF = "worker.self"
    WORKER_SOS = "worker.sos"
    # calls
    CALL_LIST = "call.list"  # also the `call` event
    CALL_READ = "call.read"
    CALL_OPEN = "call.open"
    CALL_CLAIM = "call.claim"
    CALL_DECLINE = "call.decline"
    CALL_RECEIVED = "call.received"  # the phone says that it rings
    CALL_RECEIPT = "call.receipt"  # the provider says so: its signature is the credential
    CALL_JOIN = "call.join"
    CALL_HANGUP = "call.hangup"
    CALL_PUBLISH = "call.publish"  # the own leg
    CALL_WATCH = "call.watch"
    # boxes and the broker
    STB_SELF = "stb.self"
    MQTT_CONNECT = "mqtt.connect"
    MQTT_TOPIC = "mqtt.topic"  # publish or subscribe below one's own branch
    # running the gateway
    METRICS_READ = "metrics.read"
    ADMIN_USERS = "admin.users"
    ADMIN_SESSIONS = "admin.sessions"
    ADMIN_SETTINGS = "admin.settings"
    ADMIN_AUDIT = "admin.audit"
    GRANT_LIST = "grant.list"  # cameras opened to somebody for a time
    GRANT_CREATE = "grant.create"
    GRANT_REVOKE = "grant.revoke"


class Scope(StrEnum):
    """How far a role may go with an action; see the module's docstring."""

    ANY = "any"
    AREA = "area"
    HOME = "home"
    RESIDENT = "resident"
    PART = "part"
    OWN = "own"
    LOOPBACK = "loopback"


_EVERYBODY = "everybody"  # the row for requests without a principal, and for all roles
_Row = Mapping[Role | str, Scope]

_ROLES = tuple(Role)
_STAFF = (Role.OPERATOR, Role.DESK)  # those who answer alarms
_SEEING = (*_STAFF, Role.LEADER)
_FIELD = (Role.WORKER, Role.VOLUNTEER)


def _row(*grants: tuple[tuple[Role, ...] | Role | str, Scope]) -> _Row:
    row: dict[Role | str, Scope] = {}
    for roles, scope in grants:
        for role in roles if isinstance(roles, tuple) else (roles,):
            row[role] = scope
    return row


_PUBLIC = _row((_EVERYBODY, Scope.ANY))
_BY_STAFF = _row((_STAFF, Scope.AREA))
_SEEN = _row((_SEEING, Scope.AREA))
_BY_ADMIN = _row((Role.ADMIN, Scope.ANY))

RULES: Mapping[Action, _Row] = {
    Action.HEALTH_READ: _PUBLIC,
    Action.OPENAPI_READ: _PUBLIC,
    Action.STATIC_READ: _PUBLIC,
    Action.PRESS_SIGNED: _PUBLIC,
    Action.SESSION_CREATE: _PUBLIC,
    Action.MEDIA_PREFLIGHT: _PUBLIC,
    Action.PAGE_INDEX: _PUBLIC,
    Action.PAGE_LOGIN: _PUBLIC,
    #
    Action.SESSION_READ: _row((_ROLES, Scope.ANY)),
    Action.SESSION_DELETE: _row((_ROLES, Scope.ANY)),
    Action.LAYOUT_KEEP: _row((_SEEING, Scope.ANY)),
    Action.EVENTS_OPEN: _row(((*_SEEING, *_FIELD, Role.ADMIN), Scope.ANY)),
    Action.MEDIA_ICE: _row(((*_SEEING, Role.WORKER, Role.STB), Scope.ANY)),
    Action.MEDIA_SESSION: _row((_ROLES, Scope.OWN)),
    #
    Action.PAGE_WALL: _row((_SEEING, Scope.ANY)),
    Action.PAGE_DESK: _row((_SEEING, Scope.ANY)),
    Action.PAGE_STB: _row((Role.STB, Scope.ANY)),
    Action.PAGE_WORKER: _row((_FIELD, Scope.ANY)),
    #
    Action.DISTRICT_READ: _row(((*_SEEING, Role.ADMIN), Scope.AREA), (_FIELD, Scope.HOME)),
    Action.CAMERA_LIST: _row(
        ((*_SEEING, Role.ADMIN), Scope.AREA), (Role.WORKER, Scope.HOME), (Role.STB, Scope.RESIDENT)
    ),
    Action.CAMERA_VIEW: _row((_SEEING, Scope.AREA), (Role.WORKER, Scope.HOME), (Role.STB, Scope.RESIDENT)),
    Action.CAMERA_SNAPSHOT: _row(
        (_SEEING, Scope.AREA), (Role.WORKER, Scope.HOME), (Role.STB, Scope.RESIDENT)
    ),
    Action.CAMERA_MANAGE: _BY_ADMIN,
    #
    Action.ALARM_LIST: _row((_SEEING, Scope.AREA), (Role.WORKER, Scope.PART)),
    Action.ALARM_READ: _row((_SEEING, Scope.AREA), (Role.WORKER, Scope.PART)),
    Action.ALARM_SHOWN: _SEEN,
    Action.ALARM_ACKNOWLEDGE: _SEEN,
    Action.ALARM_TRIAGE: _BY_STAFF,
    Action.ALARM_CLOSE: _BY_STAFF,
    Action.ALARM_HOUSEHOLD: _row(((*_STAFF, Role.WORKER), Scope.PART)),
    #
    Action.INCIDENT_LIST: _row((_SEEING, Scope.AREA), (_FIELD, Scope.PART)),
    Action.INCIDENT_READ: _row((_SEEING, Scope.AREA), (_FIELD, Scope.PART)),
    Action.INCIDENT_CREATE: _BY_STAFF,
    Action.INCIDENT_REPORT: _row((Role.WORKER, Scope.ANY)),
    Action.INCIDENT_UPDATE: _BY_STAFF,
    Action.INCIDENT_DISPATCH: _BY_STAFF,
    Action.INCIDENT_HANDLE: _row((_STAFF, Scope.AREA), (_FIELD, Scope.PART)),
    Action.INCIDENT_VERIFY: _BY_STAFF,
    Action.INCIDENT_FOLLOW_UP: _row((_STAFF, Scope.AREA), (Role.STB, Scope.PART)),
    Action.INCIDENT_RATE: _SEEN,
    Action.INCIDENT_ARCHIVE: _BY_STAFF,
    Action.INCIDENT_TRANSFER: _BY_STAFF,
    Action.INCIDENT_SUSPEND: _BY_STAFF,
    Action.INCIDENT_MERGE: _BY_STAFF,
    Action.INCIDENT_CANCEL: _BY_STAFF,
    Action.TASK_LIST: _row((_SEEING, Scope.AREA), (_FIELD, Scope.PART)),
    Action.TASK_ASSIGN: _BY_STAFF,
    Action.TASK_ACT: _row((_FIELD, Scope.OWN)),
    Action.EVIDENCE_READ: _row((_SEEING, Scope.AREA), (Role.ADMIN, Scope.ANY)),
    Action.EVIDENCE_EXPORT: _row((_SEEING, Scope.AREA), (Role.ADMIN, Scope.ANY)),
    Action.EVIDENCE_HOLD: _row((_SEEING, Scope.AREA), (Role.ADMIN, Scope.ANY)),
    Action.STATISTICS_READ: _row((_SEEING, Scope.AREA), ((Role.SERVICE, Role.ADMIN), Scope.ANY)),
    #
    Action.WORKER_LIST: _SEEN,
    Action.VOLUNTEER_LIST: _SEEN,
    Action.WORKER_NEAR: _row((_SEEING, Scope.ANY)),  # of all workers: the nearest may live across a border
    Action.WORKER_SELF: _row((_FIELD, Scope.ANY)),
    Action.WORKER_SOS: _row((Role.WORKER, Scope.ANY)),
    #
    Action.CALL_LIST: _row((_SEEING, Scope.AREA), ((Role.WORKER, Role.STB), Scope.PART)),
    Action.CALL_READ: _row((_SEEING, Scope.AREA), ((Role.WORKER, Role.STB), Scope.PART)),
    Action.CALL_OPEN: _row((_STAFF, Scope.AREA), (Role.WORKER, Scope.PART)),
    Action.CALL_CLAIM: _row((_STAFF, Scope.AREA), (Role.WORKER, Scope.PART)),
    Action.CALL_DECLINE: _row((_STAFF, Scope.AREA), (Role.WORKER, Scope.PART)),
    Action.CALL_RECEIVED: _row((Role.WORKER, Scope.PART)),
    Action.CALL_RECEIPT: _PUBLIC,
    Action.CALL_JOIN: _row((_SEEING, Scope.AREA), ((Role.WORKER, Role.STB), Scope.PART)),
    Action.CALL_HANGUP: _row((_STAFF, Scope.AREA), ((Role.LEADER, Role.WORKER, Role.STB), Scope.PART)),
    Action.CALL_PUBLISH: _row(((*_SEEING, Role.WORKER, Role.STB), Scope.OWN)),
    Action.CALL_WATCH: _row((_SEEING, Scope.AREA), ((Role.WORKER, Role.STB), Scope.PART)),
    #
    Action.STB_SELF: _row((Role.STB, Scope.ANY)),
    Action.MQTT_CONNECT: _row(((Role.STB, Role.WORKER), Scope.ANY)),
    Action.MQTT_TOPIC: _row(((Role.STB, Role.WORKER), Scope.OWN)),
    #
    Action.METRICS_READ: _row(((Role.SERVICE, Role.ADMIN), Scope.ANY), (_EVERYBODY, Scope.LOOPBACK)),
    Action.ADMIN_USERS: _BY_ADMIN,
    Action.ADMIN_SESSIONS: _BY_ADMIN,
    Action.ADMIN_SETTINGS: _BY_ADMIN,
    Action.ADMIN_AUDIT: _BY_ADMIN,
    Action.GRANT_LIST: _row((Role.OPERATOR, Scope.AREA), (Role.ADMIN, Scope.ANY)),
    Action.GRANT_CREATE: _row((Role.OPERATOR, Scope.AREA), (Role.ADMIN, Scope.ANY)),
    Action.GRANT_REVOKE: _row((Role.OPERATOR, Scope.AREA), (Role.ADMIN, Scope.ANY)),
}

# Actions that may be asked of a collection: each item of the answer is authorized on its own.
_LISTABLE = frozenset(
    {
        Action.DISTRICT_READ,
        Action.CAMERA_LIST,
        Action.ALARM_LIST,
        Action.INCIDENT_LIST,
        Action.TASK_LIST,
        Action.WORKER_LIST,
        Action.VOLUNTEER_LIST,
        Action.CALL_LIST,
        Action.EVIDENCE_READ,
        Action.STATISTICS_READ,
        Action.GRANT_LIST,
    }
)


def authorize(principal: Principal | None, action: Action, resource: Resource) -> Decision:
    """May `principal` (None: nobody has logged in) do `action` to `resource`? Pure; whatever isn't allowed
    is denied.
    """
    row: _Row = RULES.get(action, {})
    everybody = row.get(_EVERYBODY)
    if everybody is Scope.ANY:
        return Decision(True, "open to everybody")
    if everybody is Scope.LOOPBACK and resource.loopback:
        return Decision(True, "asked from this machine")
    if principal is None:
        return Decision(False, "log in first")
    scope = row.get(principal.role)
    if scope is None:
        return Decision(False, f"role {principal.role} may not {action}")
    if scope is not Scope.ANY and resource.id is None and action in _LISTABLE:
        return Decision(True, f"role {principal.role} may ask for {action}")
    return _in_scope(scope, principal, resource)


def needs_principal(action: Action) -> bool:
    """Whether nobody may do this without having proven who they are, whatever the resource."""
    return _EVERYBODY not in RULES.get(action, {})


def may_ever(principal: Principal, action: Action) -> bool:
    """Whether there is any resource to which this role may do it: asked before a resource is looked up, so that who may
    never do it learns nothing of what exists."""
    row = RULES.get(action, {})
    return _EVERYBODY in row or principal.role in row


def require(principal: Principal | None, action: Action, resource: Resource) -> None:
    """Raise NotAllowed unless `authorize` allows it."""
    decision = authorize(principal, action, resource)
    if not decision:
        raise NotAllowed(decision.reason, authenticated=principal is not None)


def _in_scope(scope: Scope, principal: Principal, resource: Resource) -> Decision:
    takes_part = principal.sub == resource.owner or principal.sub in resource.participants
    match scope:
        case Scope.ANY:
            return Decision(True, f"role {principal.role}")
        case Scope.OWN:
            return _decide(principal.sub == resource.owner, "it is one's own", "it belongs to another")
        case Scope.PART:
            return _decide(takes_part, "takes part", "doesn't take part in it")
        case Scope.AREA:
            if takes_part:
                return Decision(True, "takes part")
            if principal.area is None:
                return Decision(True, "whole district")
            inside = principal.area in resource.lineage
            return _decide(inside, f"in area {principal.area}", f"outside area {principal.area}")
        case Scope.HOME:
            if takes_part:
                return Decision(True, "takes part")
            inside = _same(principal.lineage, resource.lineage, _DEPTH[Visibility.COMMUNITY])
            return _decide(inside, "own community", "outside the own community")
        case Scope.RESIDENT:
            if takes_part:
                return Decision(True, "granted for a time")
            depth = _DEPTH.get(resource.visible_to)
            shown = depth is not None and _same(principal.lineage, resource.lineage, depth)
            return _decide(shown, f"shown to its {resource.visible_to}", "not shown to this resident")
        case Scope.LOOPBACK:
            return _decide(resource.loopback, "asked from this machine", "only from this machine")


def _same(one: tuple[str, ...], other: tuple[str, ...], depth: int) -> bool:
    """Do both lie in the same area at that level? Unknown places lie nowhere."""
    return len(one) >= depth and one[:depth] == other[:depth]


def _decide(allowed: bool, why: str, why_not: str) -> Decision:
    return Decision(allowed, why if allowed else why_not)
