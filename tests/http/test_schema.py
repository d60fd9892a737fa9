"""The API against its own description: schemathesis makes requests of the OpenAPI document, good and bad ones, as admin, operator
and gridworker, to a running gateway. No answer is a server error, and each is as the document says it is."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from running_gateway import Bench, running_gateway
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.http.answers import ANSWERS, BODIES, QUERIES
from gateway.http.openapi import document

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.broker]
FUZZ = int(os.environ.get("FUZZ_EXAMPLES", "0"))
EXAMPLES = max(4, FUZZ // 200)
"""Of each operation and person: a request takes some milliseconds, a parser microseconds."""
CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
PEOPLE = {"admin": ("admin", "root"), "operator": ("operator", "op"), "worker": ("worker", "wa")}
NOT_CALLED = {
    "/mqtt": "a WebSocket", "/api/v1/events": "a WebSocket", "/": "pages", "/login": "pages", "/wall": "pages",
    "/desk": "pages", "/stb": "pages", "/worker": "pages", "/static/{path}": "files", "/ca.crt": "files",
}  # fmt: skip
UNDESCRIBED: set[tuple[str, str]] = set()
"""Routes whose answer has no shape in `answers.ANSWERS` yet: the document says `object`."""


@schemathesis.serializer(
    "application/sdp", "application/trickle-ice-sdpfrag", "image/jpeg", "application/zip"
)
def as_text(ctx: Any, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@dataclass
class Rig:
    bench: Bench
    schema: Any
    tokens: dict[str, str]
    ids: dict[str, str]
    answered: Counter[tuple[str, str, int]] = field(default_factory=Counter)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    quick = {"access": {"joins_per_s": 10_000}, "ingest": {"first_keyframe_s": 1}}
    async with running_gateway(tmp_path_factory.mktemp("schema"), settings=quick) as bench:
        await bench.fill()
        operator, incident = bench.bearer("operator", "op"), bench.ids["incident"]["a1"]
        offer = {"detail": {"worker": "wa"}}
        await bench.call("POST", f"/api/v1/incidents/{incident}/dispatch", operator, json=offer)
        _, found = await bench.call("GET", "/api/v1/tasks", bench.bearer("worker", "wa"))
        ids = {
            "camera_id": "a1-none", "sub": "nobody", "incident_id": incident, "task_id": found["tasks"][0]["id"],
            **{f"{kind}_id": bench.ids[kind]["a1"] for kind in ("alarm", "call", "leg")},
        }  # fmt: skip
        tokens = {name: bench.token(role, sub, ttl_s=36_000) for name, (role, sub) in PEOPLE.items()}
        _, api = await bench.call("GET", "/api/v1/openapi.json")
        yield Rig(bench, schemathesis.openapi.from_dict(api), tokens, ids)


def exercise(rig: Rig, operation: Any, person: str, base: str, findings: list[str]) -> None:
    """In a thread: schemathesis is synchronous. A wrong answer is a finding even if the same request is answered well
    the next time: what is there changes with each request, so Hypothesis isn't asked to see it twice."""
    token = {"Authorization": f"Bearer {rig.tokens[person]}"}
    session = requests.Session()

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        derandomize=not FUZZ, phases=[Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy(), real=st.integers(0, 3))
    def run(case: Any, real: int) -> None:
        if real:  # ids of things that are there, else every answer would be 404
            case.path_parameters = {**case.path_parameters, **{
                name: rig.ids[name] for name in case.path_parameters if name in rig.ids}}  # fmt: skip
        answer = case.call(base_url=base, headers=token, session=session)
        rig.answered[operation.method.upper(), operation.path, answer.status_code] += 1
        try:
            assert answer.status_code < 500 or (answer.status_code == 503 and is_refusal(answer))
            case.validate_response(answer, checks=CHECKS)
        except (AssertionError, BaseExceptionGroup) as error:
            findings.append(
                f"{person} {operation.method} {operation.path}: {answer.status_code} {answer.text[:500]}\n{error!r:.1500}"
            )

    try:
        run()
    finally:
        session.close()


def is_refusal(answer: Any) -> bool:
    """503 in words: what can't serve now says when to come again, and a press what to do."""
    kind = answer.headers["Content-Type"].partition(";")[0]
    return (
        "Retry-After" in answer.headers if kind == "application/problem+json" else kind == "application/json"
    )


# Hypothesis takes a changed state of `random` for a strategy's doing; here the gateway's loop draws beside it.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
async def test_no_request_breaks_it_and_answers_are_as_described(rig: Rig) -> None:
    base = str(rig.bench.gateway.base_url)
    wrong: list[str] = []
    for result in rig.schema.get_all_operations():
        operation = result.ok()
        if operation.path in NOT_CALLED or operation.method.upper() in ("HEAD", "OPTIONS"):
            continue
        for person in PEOPLE:
            await asyncio.to_thread(exercise, rig, operation, person, base, wrong)
    assert not wrong, f"{len(wrong)} findings\n" + "\n\n".join(wrong)
    # It would also pass if nothing were ever reached: whatever is only read must have been read.
    read = {path for method, path, status in rig.answered if method == "GET" and status == 200}
    missing = {
        path for (method, path) in ANSWERS
        if method == "GET" and "{" not in path and path not in read and path not in NOT_CALLED
    }  # fmt: skip
    assert missing <= {"/api/v1/stb/me"}  # a box's own
    for path in ("/api/v1/alarms/{alarm_id}", "/api/v1/calls/{call_id}", "/api/v1/tasks/{task_id}"):
        assert path in read
    _, said = await rig.bench.call("GET", "/healthz")
    assert said["status"] == "ok", said


async def test_every_answer_has_a_shape_and_no_shape_is_left_over(rig: Rig) -> None:
    routes = {(route.method, route.path): route for route in rig.bench.gateway.edge.routes}
    assert set(BODIES) | set(QUERIES) | set(ANSWERS) <= set(routes)
    for key, route in routes.items():
        in_json = key[0] != "OPTIONS" and route.success != 204 and not route.channel
        if in_json and key[1].startswith("/api/v1") and key not in UNDESCRIBED:
            assert key in ANSWERS, f"{key}: say in gateway/http/answers.py what it answers"


async def test_a_box_s_answer_is_as_described(rig: Rig) -> None:
    """No role above is a box."""
    status, said = await rig.bench.call("GET", "/api/v1/stb/me", rig.bench.bearer("stb", "box-a1"))
    assert status == 200
    shape = document(rig.bench.gateway.edge.routes)["components"]["schemas"]["Box"]
    assert set(shape["required"]) <= set(said)


@pytest.mark.parametrize(
    "wrong", [{"lat": 90.5}, {"lon": -181}, {"lat": -1.7e90}, {"lon": 5.7e16, "datum": "gcj02"}]
)
async def test_an_incident_beyond_the_earth_is_refused(rig: Rig, wrong: dict[str, Any]) -> None:
    """Found by schemathesis: a position out of range was a server error."""
    report = {"type": "环境卫生", "lat": 30.8, "lon": 103.8, "datum": "wgs84", **wrong}
    for who in (rig.bench.bearer("operator", "op"), rig.bench.bearer("worker", "wa")):
        status, said = await rig.bench.call("POST", "/api/v1/incidents", who, json=report)
        assert (status, said["title"]) == (400, "Bad Request"), said
