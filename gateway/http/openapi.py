"""The OpenAPI 3.1 document, made of the route table: what is not in the table is not in the document, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.access import Action, Resource, needs_principal
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


def openapi_route(routes: Callable[[], Sequence[Route]]) -> Route:
    async def answer(exchange: Exchange) -> web.StreamResponse:
        return json_response(document(routes()))

    return Route(
        method="GET", path="/api/v1/openapi.json", action=Action.OPENAPI_READ, handler=answer,
        resource=lambda _: Resource(kind="openapi"), summary="This document",
    )  # fmt: skip


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """One operation a route. Bodies come from the msgspec shapes that the handlers decode with."""
    shapes = [route.request for route in routes if route.request is not None]
    references, components = msgspec.json.schema_components(
        shapes, ref_template="#/components/schemas/{name}"
    )
    by_shape = dict(zip(shapes, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):[^}]+\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, by_shape)
    return {
        "openapi": "3.1.0",
        "info": {"title": "District gateway", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": PROBLEM},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "session": {"type": "apiKey", "in": "cookie", "name": "gateway_session"},
            },
        },
    }


def _operation(route: Route, path: str, by_shape: dict[type, dict[str, Any]]) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{route.method.lower()}_{path}").strip("_")
    named_only = needs_principal(route.action)
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "x-action": route.action,
        "security": [{"bearer": []}, {"session": []}] if named_only else [],
        "parameters": [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
            for parameter in re.findall(r"\{(\w+)\}", path)
        ],
        "responses": {
            str(route.success): {"description": "done"},
            "default": {
                "description": "a problem document (RFC 9457)",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if route.request is not None:
        operation["requestBody"] = {"content": {route.media: {"schema": by_shape[route.request]}}}
    elif route.media != "application/json" and route.method in ("POST", "PATCH"):
        operation["requestBody"] = {
            "required": True,
            "content": {route.media: {"schema": {"type": "string"}}},
        }
    return operation
