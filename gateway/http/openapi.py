"""The OpenAPI 3.1 document, made of the route table and the shapes of `answers`: what is not in the table is not in the
document, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.access import RULES, Action, Resource, needs_principal
from gateway.http.answers import ANSWERS, BODIES, QUERIES, Answer
from gateway.http.routes import Exchange, Route, json_response

__all__ = ["document", "openapi_route"]

PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_PROBLEM_CONTENT = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_PROBLEM_ANSWER = {"description": "a problem document (RFC 9457)", "content": _PROBLEM_CONTENT}
_ANY_OBJECT = Answer(dict[str, Any])
_PAGE = Answer(media="text/html")
_Schemas = Callable[[Any], Mapping[str, Any]]


def openapi_route(routes: Callable[[], Sequence[Route]]) -> Route:
    made: list[dict[str, Any]] = []

    async def answer(exchange: Exchange) -> web.StreamResponse:
        if not made:  # anybody may ask as often as he likes, and the table is complete by now
            made.append(document(routes()))
        return json_response(made[0])

    return Route(
        method="GET", path="/api/v1/openapi.json", action=Action.OPENAPI_READ, handler=answer,
        resource=lambda _: Resource(kind="openapi"), summary="This document",
    )  # fmt: skip


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """One operation a route."""
    shapes = list(dict.fromkeys(shape for route in routes for shape in _shapes_of(route)))
    references, components = msgspec.json.schema_components(
        shapes, ref_template="#/components/schemas/{name}"
    )
    by_shape = dict(zip(shapes, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):[^/]+\}(?=/|$)", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, by_shape.__getitem__)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "District gateway",
            "version": __version__,
            "description": "Times are UTC milliseconds, positions WGS-84 on output; each input position names its datum.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": PROBLEM},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "session": {"type": "apiKey", "in": "cookie", "name": "gateway_session"},
            },
        },
    }


def _key(route: Route) -> tuple[str, str]:
    return route.method, route.path


def _answer_of(route: Route) -> Answer:
    if route.action.startswith("page.") or route.action == Action.STATIC_READ:
        return _PAGE
    if route.success == 204 or route.method in ("HEAD", "OPTIONS") or route.action == Action.MEDIA_SESSION:
        return Answer()
    return ANSWERS.get(_key(route), _ANY_OBJECT)


def _shapes_of(route: Route) -> list[Any]:
    answer = _answer_of(route)
    found = [route.request, BODIES.get(_key(route)), answer.shape, *(answer.also or {}).values()]
    return [shape for shape in found if shape is not None]


def _operation(route: Route, path: str, schema: _Schemas) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{route.method.lower()}_{path}").strip("_")
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "tags": [path.removeprefix("/api/v1").strip("/").partition("/")[0] or "pages"],
        "x-action": route.action,
        "x-roles": [str(role) for role in RULES[route.action]],
        "security": [{"bearer": []}, {"session": []}] if needs_principal(route.action) else [],
        "parameters": [*_parameters(route, path)],
        "responses": _responses(route, schema),
    }
    if (body := route.request or BODIES.get(_key(route))) is not None:
        content = {"application/json": {"schema": schema(body)}}
        operation["requestBody"] = {"required": _has_required(body), "content": content}
    elif route.media != "application/json" and route.method in ("POST", "PATCH"):
        binary = {"type": "string"} if route.media.startswith("application/") else {}
        operation["requestBody"] = {"required": True, "content": {route.media: {"schema": binary}}}
    return operation


def _has_required(body: Any) -> bool:
    """An empty body counts as `{}`."""
    return isinstance(body, type) and issubclass(body, msgspec.Struct) and any(
        field.required for field in msgspec.structs.fields(body)
    )  # fmt: skip


def _parameters(route: Route, path: str) -> list[dict[str, Any]]:
    patterns = dict(re.findall(r"\{(\w+):([^/]+)\}(?=/|$)", route.path))
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", **({"pattern": f"^{patterns[name]}$"} if name in patterns else {})},
        }
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    found += [
        {"name": query.name, "in": "query", "description": query.text, "schema": query.schema}
        for query in QUERIES.get(_key(route), ())
    ]
    return found


def _responses(route: Route, schema: _Schemas) -> dict[str, Any]:
    answer = _answer_of(route)
    done: dict[str, Any] = {"description": "done"}
    if answer.shape is not None:
        done["content"] = {answer.media: {"schema": schema(answer.shape)}}
    elif answer is _PAGE:
        done = {"description": "a file", "content": {"*/*": {}}}
    elif answer.media != "application/json":
        done["content"] = {answer.media: {}}
    responses = {str(route.success): done}
    if route.action == Action.MEDIA_SESSION:
        responses = {"200": done, "204": {"description": "done, nothing to say"}}
    if route.action.startswith("page."):
        responses["302"] = {"description": "to the page for this role, or to the log-in page"}
    if route.channel:
        responses = {"101": {"description": "a WebSocket"}}
    for status, shape in (answer.also or {}).items():
        content = {answer.media: {"schema": schema(shape)}, **_PROBLEM_CONTENT}
        responses[str(status)] = {"description": "refused", "content": content}
    responses["default"] = _PROBLEM_ANSWER
    return responses
