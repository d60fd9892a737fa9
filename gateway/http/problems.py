"""RFC 9457 problem documents: the one way in which this server says no."""

from __future__ import annotations

import json
import math
from http import HTTPStatus

from aiohttp import web

from gateway.errors import (
    ConfigError,
    Conflict,
    GatewayError,
    NotAllowed,
    NotFound,
    ProtocolError,
    TooMany,
    Unavailable,
)

__all__ = ["problem", "problem_of"]

CONTENT_TYPE = "application/problem+json"


def problem(
    status: int,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    **members: object,
) -> web.Response:
    """A problem document. `detail` tells the caller what to do; `members` are extension members (section 3.2)."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **members,
    }
    return web.Response(
        status=status,
        body=json.dumps(body, ensure_ascii=False).encode(),
        headers=headers,
        content_type=CONTENT_TYPE,
    )


def problem_of(error: GatewayError) -> web.Response:
    """The answer to an error of our tree. Anything else is a bug and becomes a 500 elsewhere."""
    match error:
        case NotAllowed(authenticated=True):
            return problem(403, str(error))
        case NotAllowed():
            return problem(401, str(error), headers={"WWW-Authenticate": 'Bearer realm="gateway"'})
        case NotFound():
            return problem(404, str(error))
        case Conflict():
            return problem(409, str(error), headers=None, **error.detail)
        case Unavailable():
            return problem(503, str(error), headers=_retry_after(error.retry_after_s))
        case TooMany():
            return problem(429, str(error), headers=_retry_after(error.retry_after_s))
        case ConfigError():
            return problem(400, str(error), mistakes=error.mistakes)
        case ProtocolError():
            return problem(400, str(error))
    return problem(500, "internal error")


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
