"""Role x area x action on a running gateway: every route, list, event type, topic and page against one readable table.

The table is compared with `Edge.routes`: a route without a row fails, and so does a row without a route. Words of a cell:

    yes     whatever it is done to            area    in street A, not in street B
    no      403 everywhere                    home    in community a1 only (the worker's and the box's own)
    401     log in first                      part    where it takes part: the gridworker wa has claimed the call of a1
    own     what belongs to it                shown   the cameras that residents of a1 are shown
    page    a 302 to the log-in page, which is how a page says no to a browser

The desk and the leader have street A. `admin` administers and sees neither pictures nor alarms.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from running_gateway import AREAS, CAMERAS, STREET_A, Bench, running_gateway

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from webrtc_clients import WhepClient, WhipClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.broker]

COLUMNS = ("nobody", "operator", "desk", "leader", "worker", "volunteer", "stb", "service", "admin")
PEOPLE = {
    "operator": ("op", None), "desk": ("desk-a", STREET_A), "leader": ("lead-a", STREET_A), "worker": ("wa", None),
    "volunteer": ("va", None), "stb": ("box-a1", None), "service": ("prom", None), "admin": ("root", None),
}  # fmt: skip

SEEN = "401 yes area area no no no no no"
STAFF = "401 yes area no no no no no no"
PUBLIC = "yes yes yes yes yes yes yes yes yes"
LOGGED_IN = "401 yes yes yes yes yes yes yes yes"
TABLE = {
    # method and path                                          nobody operator desk leader worker volunteer stb service admin
    ("POST", "/api/v1/session"):                               PUBLIC,
    ("GET", "/api/v1/session"):                                LOGGED_IN,
    ("DELETE", "/api/v1/session"):                             LOGGED_IN,
    ("DELETE", "/api/v1/sessions/{sub}"):                      "401 no   no   no   no   no   no  no  yes",
    ("GET", "/api/v1/grants"):                                 "401 yes  no   no   no   no   no  no  yes",
    ("POST", "/api/v1/grants"):                                "401 yes  no   no   no   no   no  no  yes",
    ("DELETE", "/api/v1/grants/{grant_id}"):                   "401 yes  no   no   no   no   no  no  yes",
    #
    ("GET", "/api/v1/alarms"):                                 "401 yes  yes  yes  yes  no   no  no  no",
    ("POST", "/api/v1/alarms"):                                PUBLIC,
    ("POST", "/api/v1/alarms/{alarm_id}/cancel"):              PUBLIC,
    ("POST", "/api/v1/alarms/{alarm_id}/place"):               PUBLIC,
    ("GET", "/api/v1/alarms/{alarm_id}"):                      "401 yes  area area part no   no  no  no",
    ("POST", "/api/v1/alarms/{alarm_id}/shown"):               SEEN,
    ("POST", "/api/v1/alarms/{alarm_id}/acknowledge"):         SEEN,
    ("POST", "/api/v1/alarms/{alarm_id}/unacknowledge"):       SEEN,
    ("POST", "/api/v1/alarms/{alarm_id}/triage"):              STAFF,
    ("POST", "/api/v1/alarms/{alarm_id}/call_back"):           STAFF,
    ("POST", "/api/v1/alarms/{alarm_id}/close"):               STAFF,
    #
    ("GET", "/api/v1/incidents"):                              "401 yes  yes  yes  yes  yes  no  no  no",
    ("POST", "/api/v1/incidents"):                             "401 yes  area no   yes  no   no  no  no",
    ("GET", "/api/v1/incidents/{incident_id}"):                "401 yes  area area no   no   no  no  no",
    ("POST", "/api/v1/incidents/{incident_id}/dispatch"):      STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/handle"):        STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/submit"):        STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/reopen"):        STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/rate"):          SEEN,
    ("POST", "/api/v1/incidents/{incident_id}/archive"):       STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/transfer"):      STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/take_back"):     STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/suspend"):       STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/resume"):        STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/merge"):         STAFF,
    ("GET", "/api/v1/incidents/{incident_id}/merge_suggestions"):STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/follow_up"):     PUBLIC,
    ("GET", "/api/v1/incidents/{incident_id}/photos"):         "401 yes  area area no   no   no  no  no",
    ("GET", "/api/v1/incidents/{incident_id}/photos/{sha256:[0-9a-f]{64}}"): "401 yes  area area no   no   no  no  no",
    ("POST", "/api/v1/incidents/{incident_id}/photos"):        STAFF,
    ("POST", "/api/v1/incidents/{incident_id}/cancel"):        STAFF,
    #
    # of a task that does not exist: 404 for whoever may of some task
    ("GET", "/api/v1/tasks"):                                  "401 yes  yes  yes  yes  yes  no  no  no",
    ("GET", "/api/v1/tasks/{task_id}"):                        "401 yes  yes  yes  yes  yes  no  no  no",
    ("GET", "/api/v1/tasks/{task_id}/photos/{sha256:[0-9a-f]{64}}"):"401 yes  yes  yes  yes  yes  no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/accept"):                "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/decline"):               "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/done"):                  "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/en_route"):              "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/on_scene"):              "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/photos"):                "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/redo"):                  "401 yes  yes  no   no   no   no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/revoke"):                "401 yes  yes  no   no   no   no  no  no",
    ("POST", "/api/v1/tasks/{task_id}/verify"):                "401 yes  yes  no   no   no   no  no  no",
    ("GET", "/api/v1/duties"):                                 LOGGED_IN,
    ("GET", "/api/v1/statistics"):                             "401 yes  yes  yes  no   no   no  yes yes",
    #
    ("GET", "/api/v1/calls"):                                  "401 yes  yes  yes  yes  no   yes no  no",
    ("POST", "/api/v1/calls"):                                 "401 yes  area no   yes  no   no  no  no",
    ("GET", "/api/v1/calls/{call_id}"):                        "401 yes  area area part no   part no no",
    ("POST", "/api/v1/calls/{call_id}/claim"):                 "401 yes  area no   part no   no  no  no",
    ("POST", "/api/v1/calls/{call_id}/decline"):               "401 yes  area no   part no   no  no  no",
    ("POST", "/api/v1/calls/{call_id}/join"):                  "401 yes  area area part no   part no no",
    ("POST", "/api/v1/calls/{call_id}/hangup"):                "401 yes  area no   part no   part no no",
    ("POST", "/api/v1/calls/{call_id}/legs/{leg_id}/whip"):    "401 no   no   no   own  no   no  no  no",
    ("POST", "/api/v1/calls/{call_id}/legs/{leg_id}/whep"):    "401 yes  area area part no   part no no",
    ("POST", "/api/v1/calls/{call_id}/received"):              "401 no   no   no   part no   no  no  no",
    ("POST", "/api/v1/notify/receipts"):                       "401 401  401  401  401  401  401 401 401",  # signed
    ("POST", "/api/v1/workers/me/sos"):                        "401 no   no   no   yes  no   no  no  no",
    #
    # of a clip that does not exist: 404 for whoever may of some clip
    ("GET", "/api/v1/evidence"):                               "401 yes  yes  yes  no   no   no  no  yes",
    ("GET", "/api/v1/evidence/{clip_id}"):                     "401 yes  yes  yes  no   no   no  no  yes",
    ("GET", "/api/v1/evidence/{clip_id}/media"):               "401 yes  yes  yes  no   no   no  no  yes",
    ("POST", "/api/v1/evidence/{clip_id}/hold"):               "401 yes  yes  yes  no   no   no  no  yes",
    ("POST", "/api/v1/evidence/{clip_id}/release"):            "401 yes  yes  yes  no   no   no  no  yes",
    ("POST", "/api/v1/evidence/export"):                       "401 yes  area area no   no   no  no  yes",
    #
    ("GET", "/api/v1/cameras"):                                "401 yes  yes  yes  yes  no   yes no  yes",
    ("GET", "/api/v1/cameras/{camera_id}"):                    "401 yes  area area home no   shown no yes",
    ("GET", "/api/v1/cameras/{camera_id}/snapshot.jpg"):       "401 yes  area area home no   shown no no",
    ("POST", "/whep/{camera_id}"):                             "401 yes  area area home no   shown no no",
    ("GET", "/hls/{camera_id}/{file}"):                        "401 yes  area area home no   shown no no",
    ("POST", "/api/v1/cameras"):                               "401 no   no   no   no   no   no  no  yes",
    ("PATCH", "/api/v1/cameras"):                              "401 no   no   no   no   no   no  no  yes",
    ("PUT", "/api/v1/cameras/{camera_id}"):                    "401 no   no   no   no   no   no  no  yes",
    ("DELETE", "/api/v1/cameras/{camera_id}"):                 "401 no   no   no   no   no   no  no  yes",
    ("POST", "/api/v1/admin/reload"):                          "401 no   no   no   no   no   no  no  yes",
    ("GET", "/api/v1/webhooks"):                               "401 no   no   no   no   no   no  no  yes",
    ("GET", "/api/v1/webhooks/{name}/messages"):               "401 no   no   no   no   no   no  no  yes",
    ("POST", "/api/v1/webhooks/{name}/retry"):                 "401 no   no   no   no   no   no  no  yes",
    ("GET", "/api/v1/media/ice-servers"):                      "401 yes  yes  yes  yes  no   yes no  no",
    ("OPTIONS", "/whep/{camera_id}"):                          PUBLIC,
    ("OPTIONS", "/api/v1/calls/{call_id}/legs/{leg_id}/whip"): PUBLIC,
    ("OPTIONS", "/api/v1/calls/{call_id}/legs/{leg_id}/whep"): PUBLIC,
    ("OPTIONS", "/whep/sessions/{session_id}"):                PUBLIC,
    ("OPTIONS", "/whip/sessions/{session_id}"):                PUBLIC,
    ("GET", "/whep/sessions/{session_id}"):                    "401 own  no   no   no   no   no  no  no",
    ("HEAD", "/whep/sessions/{session_id}"):                   "401 own  no   no   no   no   no  no  no",
    ("PATCH", "/whep/sessions/{session_id}"):                  "401 own  no   no   no   no   no  no  no",
    ("DELETE", "/whep/sessions/{session_id}"):                 "401 own  no   no   no   no   no  no  no",
    ("GET", "/whip/sessions/{session_id}"):                    "401 no   no   no   own  no   no  no  no",
    ("HEAD", "/whip/sessions/{session_id}"):                   "401 no   no   no   own  no   no  no  no",
    ("PATCH", "/whip/sessions/{session_id}"):                  "401 no   no   no   own  no   no  no  no",
    ("DELETE", "/whip/sessions/{session_id}"):                 "401 no   no   no   own  no   no  no  no",
    #
    ("GET", "/api/v1/district"):                               "401 yes  yes  yes  yes  yes  no  no  yes",
    ("GET", "/api/v1/district/areas.geojson"):                 "401 yes  yes  yes  yes  yes  no  no  yes",
    ("GET", "/api/v1/workers"):                                "401 yes  yes  yes  no   no   no  no  no",
    ("GET", "/api/v1/volunteers"):                             "401 yes  yes  yes  no   no   no  no  no",
    ("GET", "/api/v1/me/layouts"):                             "401 yes  yes  yes  no   no   no  no  no",
    ("PUT", "/api/v1/me/layouts"):                             "401 yes  yes  yes  no   no   no  no  no",
    ("GET", "/api/v1/workers/me"):                             "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/workers/me/duty"):                       "401 no   no   no   yes  yes  no  no  no",
    ("POST", "/api/v1/workers/me/location"):                   "401 no   no   no   yes  yes  no  no  no",
    ("GET", "/api/v1/stb/me"):                                 "401 no   no   no   no   no   yes no  no",
    #
    ("GET", "/"):                                              PUBLIC,
    ("GET", "/login"):                                         PUBLIC,
    ("GET", "/wall"):                                          "page yes yes  yes  page page page page page",
    ("GET", "/desk"):                                          "page yes yes  yes  page page page page page",
    ("GET", "/stb"):                                           "page page page page page page yes page page",
    ("GET", "/worker"):                                        "page page page page yes yes page page page",
    ("GET", "/static/{path:.+}"):                              PUBLIC,
    ("GET", "/sw.js"):                                         PUBLIC,
    ("GET", "/ca.crt"):                                        PUBLIC,
    ("GET", "/healthz"):                                       PUBLIC,
    ("GET", "/readyz"):                                        PUBLIC,
    ("GET", "/metrics"):                                       "401 no   no   no   no   no   no  yes yes",
    ("GET", "/mqtt"):                                          "401 no   no   no   yes  no   yes no  no",
    ("GET", "/api/v1/events"):                                 "401 yes  yes  yes  yes  yes  no  no  yes",
    ("GET", "/api/v1/openapi.json"):                           PUBLIC,
}  # fmt: skip

PLACES = tuple(AREAS)
IN = {
    "yes": {*PLACES, *CAMERAS, "it"}, "no": set(), "401": set(), "page": set(), "own": {"a1", "it"}, "part": {"a1"},
    "area": {"a1", "a2", *(camera for camera in CAMERAS if camera[:2] in ("a1", "a2"))},
    "home": {"a1", "a1-none", "a1-community"}, "shown": {"a1-community", "a2-street", "b1-district"},
}  # fmt: skip
BODIES: dict[str, object] = {
    "claim": {"device": 1},
    "join": {"device": 1},
    "triage": {"outcome": 0},
    "close": {"note": 1},
}
"""Bodies of the wrong shape: whoever may gets 400, and nothing changes for the next case."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with running_gateway(tmp_path_factory.mktemp("rights")) as running:
        await running.fill()
        yield running


def as_role(bench: Bench, role: str) -> dict[str, str]:
    return {} if role == "nobody" else bench.bearer(role, *PEOPLE[role])


async def test_the_table_has_a_row_for_every_route_and_no_other(bench: Bench) -> None:
    assert set(TABLE) == {(route.method, route.path) for route in bench.gateway.edge.routes}


def targets(path: str) -> tuple[str, ...]:
    if "{camera_id}" in path:
        return tuple(CAMERAS)
    if "_id}" in path and not any(one in path for one in ("session", "grant", "task", "clip")):
        return PLACES
    by_body = ("/api/v1/incidents", "/api/v1/calls", "/api/v1/evidence/export")
    return PLACES if path in by_body else ("it",)


async def aim(bench: Bench, method: str, path: str, target: str) -> tuple[str, dict[str, object]]:
    """The path for this target and what to send."""
    names = {
        "camera_id": target, "sub": "nobody-in-particular", "path": "none", "session_id": "none", "grant_id": "none",
        "task_id": "none", "clip_id": "none", "name": "none", "sha256": "0" * 64, "file": "seg-0.ts",
        **{f"{kind}_id": ids[target] for kind, ids in bench.ids.items() if target in ids},
    }  # fmt: skip
    if (method, path) == ("DELETE", "/api/v1/cameras/{camera_id}"):
        names["camera_id"] = await a_camera(bench, target)
    if path.startswith(("/whep/sessions", "/whip/sessions")) and method != "OPTIONS":
        names["session_id"] = await media_session(bench, "whep" if "whep" in path else "whip")
    if "{grant_id}" in path:
        names["grant_id"] = await a_grant(bench)
    sent: dict[str, object] = {}
    if method == "POST" and not path.endswith(("/whep", "/whip")) and not path.startswith("/whep"):
        sent["json"] = BODIES.get(path.rpartition("/")[2], {"note": 1} if "{incident_id}" in path else {})
    if (method, path) == ("POST", "/api/v1/incidents"):
        lat, lon = {"a1": (30.81, 103.81), "a2": (30.81, 103.91), "b1": (30.91, 103.81)}[target]
        sent["json"] = {"type": "other", "lat": lat, "lon": lon, "datum": "wgs84"}
    if (method, path) == ("POST", "/api/v1/calls"):
        sent["json"] = {"alarm_id": bench.ids["alarm"][target]}
    if path == "/api/v1/evidence/export":
        sent["json"] = {"alarm_id": bench.ids["alarm"][target], "reason": "test"}
    return re.sub(r"\{(\w+):(?:[^{}]|\{\d+\})+\}", r"{\1}", path).format(**names), sent


async def own_call(bench: Bench) -> tuple[str, str]:
    """A call that `wa` is in, and its leg there."""
    worker = as_role(bench, "worker")
    status, said = await bench.call("POST", "/api/v1/calls", worker, json={})
    call_id = said["call_id"] if status == 409 else said["id"]
    _, call = await bench.call("GET", f"/api/v1/calls/{call_id}", worker)
    return str(call_id), str(call["leg"])


async def media_session(bench: Bench, kind: str) -> str:
    """A fresh media session: `wa` publishes on its leg, or the operator watches that."""
    client = WhipClient(video=False) if kind == "whip" else WhepClient(video=False, audio=True)
    call_id, leg = await own_call(bench)
    try:
        if kind == "whep":
            await media_session(bench, "whip")
        who = as_role(bench, "worker" if kind == "whip" else "operator")
        headers = {**who, "Content-Type": "application/sdp"}
        path = f"/api/v1/calls/{call_id}/legs/{leg}/{kind}"
        async with bench.client.post(path, data=await client.offer(), headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            return answer.headers["Location"].rpartition("/")[2]
    finally:
        await client.close()


async def a_camera(bench: Bench, place: str) -> str:
    """A camera of its own to be removed."""
    entry = {"id": f"goner-{place}", "main": "rtsp://127.0.0.1:9/x"}
    status, said = await bench.call("POST", "/api/v1/cameras", as_role(bench, "admin"), json=entry)
    assert status == 201, said
    return str(said["id"])


async def a_grant(bench: Bench) -> str:
    until = bench.gateway.events._now_ms() + 60_000
    body = {"camera_id": "a1-none", "sub": "somebody", "until": until, "reason": "test"}
    status, grant = await bench.call("POST", "/api/v1/grants", as_role(bench, "admin"), json=body)
    assert status == 201
    return str(grant["id"])


@pytest.mark.parametrize(("method", "path"), TABLE)
async def test_who_may(bench: Bench, method: str, path: str) -> None:
    cells = dict(zip(COLUMNS, TABLE[method, path].split(), strict=True))
    wrong = []
    # Those who may come last: what they do may end the thing.
    may_not_first = sorted(COLUMNS, key=lambda role: cells[role] not in ("401", "no", "page"))
    aims = {target: await aim(bench, method, path, target) for target in targets(path)}
    for role in may_not_first:
        for target, (aimed, sent) in aims.items():
            headers = {"X-Forwarded-For": "192.0.2.7"} if path == "/metrics" else {}
            status, said = await bench.call(method, aimed, as_role(bench, role), headers=headers, **sent)
            if not as_expected(cells[role], target, status, path):
                wrong.append(f"{role} on {target}: {cells[role]}, but {status} {str(said)[:150]}")
    assert not wrong, "\n".join(wrong)


def as_expected(word: str, target: str, status: int, path: str) -> bool:
    if word == "401":
        return status == 401
    if word == "page":
        return status == 302
    if target in IN[word]:
        if path in ("/wall", "/desk", "/stb", "/worker") and status == 302:
            return False
        return status not in (401, 403) and (status < 500 or status == 503)
    return status == 403
