"""What each route answers and may be asked, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.alarms.alarm import Handling
from gateway.alarms.incident import IncidentState
from gateway.alarms.statistics import By
from gateway.geo import Datum
from gateway.http import shapes

__all__ = ["ANSWERS", "BODIES", "QUERIES", "Answer", "Query"]


@dataclass(frozen=True, slots=True)
class Answer:
    """shape: of JSON; None: nothing, or what `media` is. also: other successes or answers that are no problem documents,
    by status, with the same shape unless another is named."""

    shape: Any = None
    media: str = "application/json"
    also: Mapping[int, Any] | None = None


@dataclass(frozen=True, slots=True)
class Query:
    name: str
    schema: Mapping[str, Any]
    text: str


_ALARM, _INCIDENT, _TASK, _CALL = (
    "/api/v1/alarms/{alarm_id}", "/api/v1/incidents/{incident_id}", "/api/v1/tasks/{task_id}", "/api/v1/calls/{call_id}",
)  # fmt: skip
_CLIP = "/api/v1/evidence/{clip_id}"
_MOVES = (
    "dispatch", "handle", "submit", "reopen", "rate", "archive", "transfer", "take_back", "suspend", "resume", "merge",
    "cancel",
)  # fmt: skip
_STEPS = ("accept", "decline", "en_route", "on_scene", "done", "verify", "redo", "revoke")
_NOTHING = Answer(dict[str, Any])
_REFUSED = {400: shapes.Ack, 403: shapes.Ack, 503: shapes.Ack}
_SDP = Answer(media="application/sdp")

ANSWERS: Mapping[tuple[str, str], Answer] = {
    ("POST", "/api/v1/session"): Answer(shapes.Session),
    ("GET", "/api/v1/session"): Answer(shapes.Session),
    ("DELETE", "/api/v1/session"): _NOTHING,
    ("DELETE", "/api/v1/sessions/{sub}"): _NOTHING,
    ("GET", "/api/v1/grants"): Answer(shapes.Grants),
    ("POST", "/api/v1/grants"): Answer(shapes.Grant),
    ("DELETE", "/api/v1/grants/{grant_id}"): _NOTHING,
    ("GET", "/api/v1/alarms"): Answer(shapes.Alarms),
    ("POST", "/api/v1/alarms"): Answer(shapes.Ack, also=_REFUSED),
    ("GET", _ALARM): Answer(shapes.AlarmDetail),
    ("POST", f"{_ALARM}/cancel"): Answer(shapes.Ack, also=_REFUSED),
    ("POST", f"{_ALARM}/place"): Answer(shapes.Ack, also=_REFUSED),
    **{
        ("POST", f"{_ALARM}/{verb}"): Answer(shapes.Alarm)
        for verb in ("shown", "acknowledge", "unacknowledge", "triage", "call_back", "close")
    },
    ("GET", "/api/v1/incidents"): Answer(shapes.Incidents),
    ("POST", "/api/v1/incidents"): Answer(shapes.Incident),
    ("GET", _INCIDENT): Answer(shapes.IncidentDetail),
    **{("POST", f"{_INCIDENT}/{move}"): Answer(shapes.Incident) for move in _MOVES},
    ("POST", f"{_INCIDENT}/follow_up"): Answer(shapes.FollowedUp),
    ("GET", f"{_INCIDENT}/merge_suggestions"): Answer(shapes.Suggestions),
    ("GET", "/api/v1/tasks"): Answer(shapes.Tasks),
    ("GET", _TASK): Answer(shapes.Task),
    **{("POST", f"{_TASK}/{step}"): Answer(shapes.Task) for step in _STEPS},
    ("POST", f"{_TASK}/photos"): Answer(shapes.Photo),
    ("GET", f"{_TASK}/photos/{{sha256:[0-9a-f]{{64}}}}"): Answer(media="image/*"),
    ("GET", "/api/v1/duties"): Answer(shapes.Duties),
    ("GET", "/api/v1/statistics"): Answer(shapes.Statistics),
    ("GET", "/api/v1/calls"): Answer(shapes.Calls),
    ("POST", "/api/v1/calls"): Answer(shapes.Call),
    ("GET", _CALL): Answer(shapes.Call),
    **{("POST", f"{_CALL}/{verb}"): Answer(shapes.Call) for verb in ("claim", "decline", "join", "hangup")},
    ("POST", f"{_CALL}/legs/{{leg_id}}/whip"): _SDP,
    ("POST", f"{_CALL}/legs/{{leg_id}}/whep"): _SDP,
    ("GET", "/api/v1/cameras"): Answer(shapes.Cameras),
    ("POST", "/api/v1/cameras"): Answer(shapes.Camera),
    ("PATCH", "/api/v1/cameras"): Answer(shapes.Changed),
    ("GET", "/api/v1/cameras/{camera_id}"): Answer(shapes.Camera),
    ("PUT", "/api/v1/cameras/{camera_id}"): Answer(shapes.Camera),
    ("GET", "/api/v1/cameras/{camera_id}/snapshot.jpg"): Answer(media="image/jpeg"),
    ("POST", "/whep/{camera_id}"): _SDP,
    ("GET", "/api/v1/media/ice-servers"): Answer(shapes.IceServers),
    ("GET", "/api/v1/district"): Answer(shapes.DistrictAnswer),
    ("GET", "/api/v1/district/areas.geojson"): Answer(shapes.Features),
    ("GET", "/api/v1/workers"): Answer(shapes.Workers),
    ("GET", "/api/v1/workers/me"): Answer(shapes.Me),
    ("POST", "/api/v1/workers/me/duty"): Answer(shapes.Worker),
    ("POST", "/api/v1/workers/me/location"): Answer(shapes.Counted),
    ("GET", "/api/v1/stb/me"): Answer(shapes.Box),
    ("POST", "/api/v1/admin/reload"): Answer(shapes.Changed),
    ("GET", "/api/v1/openapi.json"): _NOTHING,
    ("POST", "/api/v1/workers/me/sos"): Answer(shapes.Call),
    ("POST", "/api/v1/notify/receipts"): _NOTHING,
    ("POST", f"{_CALL}/received"): Answer(shapes.Call),
    ("GET", "/api/v1/volunteers"): Answer(shapes.Volunteers),
    ("GET", "/api/v1/webhooks"): Answer(shapes.Webhooks),
    ("GET", "/api/v1/webhooks/{name}/messages"): Answer(shapes.Messages),
    ("POST", "/api/v1/webhooks/{name}/retry"): Answer(shapes.Retried),
    ("GET", "/api/v1/evidence"): Answer(shapes.Clips),
    ("GET", f"{_CLIP}"): Answer(shapes.Clip),
    ("GET", f"{_CLIP}/media"): Answer(media="video/mp4"),
    ("POST", f"{_CLIP}/hold"): Answer(shapes.Clip),
    ("POST", f"{_CLIP}/release"): Answer(shapes.Clip),
    ("POST", "/api/v1/evidence/export"): Answer(media="application/zip"),
    ("GET", "/hls/{camera_id}/{file}"): Answer(media="application/vnd.apple.mpegurl"),
    ("POST", f"{_INCIDENT}/photos"): Answer(shapes.Photo),
    ("GET", f"{_INCIDENT}/photos"): Answer(shapes.Photos),
    ("GET", f"{_INCIDENT}/photos/{{sha256:[0-9a-f]{{64}}}}"): Answer(media="image/*"),
    ("GET", "/api/v1/me/layouts"): Answer(shapes.Layouts),
    ("PUT", "/api/v1/me/layouts"): Answer(shapes.Layouts),
    ("GET", "/healthz"): Answer(shapes.HealthAnswer),
    ("GET", "/readyz"): Answer(shapes.Ready, also={503: shapes.Ready}),
    ("GET", "/metrics"): Answer(media="text/plain"),
}
"""By method and path of the route table. A route without a row is in the document with any JSON object."""

BODIES: Mapping[tuple[str, str], Any] = {
    ("POST", "/api/v1/alarms"): shapes.Press,
    ("POST", f"{_ALARM}/cancel"): shapes.Cancel,
    ("POST", f"{_ALARM}/place"): shapes.Correction,
    ("POST", "/api/v1/workers/me/location"): shapes.Location,
}
"""Bodies that the handlers read with parsers of their own."""

_FLAG = {"type": "string", "enum": ["1"]}
_LIMIT = Query("limit", {"type": "integer", "minimum": 1, "maximum": 500}, "at most so many, newest first")
QUERIES: Mapping[tuple[str, str], tuple[Query, ...]] = {
    ("GET", "/api/v1/alarms"): (
        Query("handling", {"type": "string", "enum": list(Handling)}, "only in this state"),
        Query("open", _FLAG, "only those not closed"),
        _LIMIT,
    ),
    ("GET", "/api/v1/incidents"): (
        Query("state", {"type": "string", "enum": list(IncidentState)}, "only in this state"),
        _LIMIT,
    ),
    ("GET", "/api/v1/tasks"): (
        Query("mine", _FLAG, "only one's own"),
        Query("open", _FLAG, "only those going on"),
        Query("incident", {"type": "string"}, "only of this incident"),
        _LIMIT,
    ),
    ("GET", "/api/v1/statistics"): (
        Query("by", {"type": "string", "enum": list(By)}, "what a row is"),
        Query("month", {"type": "string", "pattern": r"^20\d\d-(0[1-9]|1[0-2])$"}, "YYYY-MM; none: this month"),
    ),
    ("GET", "/api/v1/calls"): (
        Query("open", _FLAG, "only those going on"),
        Query("missed", _FLAG, "a gridworker's missed ones"),
    ),
    ("GET", "/api/v1/workers"): (
        Query("near", {"type": "string", "pattern": r"^[0-8]\d(\.\d{1,6})?,1[0-7]\d(\.\d{1,6})?$"}, "lat,lon: the nearest"),
        Query("datum", {"type": "string", "enum": list(Datum)}, "of `near`; must be given with it"),
        Query("limit", {"type": "integer", "minimum": 1, "maximum": 50}, "of `near`"),
    ),
    ("POST", "/whep/{camera_id}"): (
        Query("stream", {"type": "string", "enum": ["main", "sub", "auto"]}, "which stream, default main"),
    ),
}  # fmt: skip
