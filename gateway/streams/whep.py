"""WHEP (draft-ietf-wish-whep-04) and WHIP (RFC 9725) as HTTP: requests to responses, without any web
framework.

    POST     endpoint  application/sdp offer        -> 201 answer, Location, ETag, Link; 400 406 409 413 415 429
    OPTIONS  endpoint                               -> 204 Accept-Post, CORS; never TURN credentials
    PATCH    session   application/trickle-ice-...  -> 204 (candidates), 200 (restart); 400 412 415 422 428
    GET      session                                -> 204
    DELETE   session                                -> 200, media has stopped

Errors are problem documents (RFC 9457). Authorization, rate limits and redirects are the caller's: he
passes what may pass, with the `owner` it is counted to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.errors import Conflict, GatewayError, NotAllowed, NotFound, ProtocolError, TooMany, Unavailable
from gateway.streams import sdp
from gateway.streams.plane import NotAcceptable
from gateway.streams.session import SessionAnswer, SessionInfo, SessionKind

__all__ = ["CORS_HEADERS", "EdgeRequest", "EdgeResponse", "IceServer", "SessionEndpoint", "problem"]

SDP_TYPE = "application/sdp"
FRAGMENT_TYPE = "application/trickle-ice-sdpfrag"
MAX_BODY = 64 * 1024

# RFC 9110 section 13.1.1 has the bare asterisk, the examples of RFC 9725 quote it, and clients do as either says.
_ANY_TAG = frozenset({"*", '"*"'})
_RESERVED = {"type", "title", "status", "detail", "headers"}
_ENDPOINT_METHODS = "OPTIONS, POST"
_SESSION_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH"
_EXPOSED = "Accept-Patch, Accept-Post, ETag, Link, Location, Retry-After"
_REQUEST_HEADERS = "Authorization, Content-Type, If-Match, X-Requested-With"

CORS_HEADERS: Mapping[str, str] = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": _EXPOSED,
}
"""What a page of any origin needs to read an answer or a refusal. With `*` browsers send no cookie: only a bearer counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRequest:
    """What of an HTTP request matters here. headers: names in lower case; owner: who the session belongs
    to."""

    method: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    query: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeResponse:
    status: int
    headers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServer:
    """A STUN or TURN server for the client (RFC 9725 section 4.6). Credentials: for TURN."""

    url: str
    username: str | None = None
    credential: str | None = field(default=None, repr=False)

    @property
    def link(self) -> str:
        value = f'<{self.url}>; rel="ice-server"'
        if self.username is not None and self.credential is not None:
            username, credential = (
                text.replace("\\", "\\\\").replace('"', '\\"') for text in (self.username, self.credential)
            )
            value += f'; username="{username}"; credential="{credential}"; credential-type="password"'
        return value


class Sessions(Protocol):
    """What is needed of a MediaPlane or a MediaService."""

    async def watch(self, source_id: str, offer_sdp: str, *, stream: str, owner: str) -> SessionAnswer: ...

    async def publish(self, source_id: str, offer_sdp: str, *, owner: str) -> SessionAnswer: ...

    async def restart_session(self, session_id: str, fragment: sdp.Fragment) -> SessionAnswer: ...

    async def close_session(self, session_id: str) -> None: ...

    def session(self, session_id: str) -> SessionInfo: ...


def problem(
    status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: object
) -> EdgeResponse:
    """A problem document (RFC 9457)."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    return EdgeResponse(
        status=status,
        headers={"Content-Type": "application/problem+json", "Cache-Control": "no-store", **(headers or {})},
        body=json.dumps(document, ensure_ascii=False).encode(),
    )


def _problem_of(error: GatewayError) -> EdgeResponse:
    match error:
        case NotAcceptable():
            return problem(406, "No codec in common", str(error), kind=error.kind, codecs=list(error.codecs))
        case ProtocolError():
            return problem(400, "Malformed request", str(error), reason=error.reason)
        case NotFound():
            return problem(404, "Not found", str(error))
        case Unavailable():
            retry = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            return problem(409, "Not available now", str(error), headers=retry)
        case TooMany():
            retry = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            return problem(429, "Too many sessions", str(error), headers=retry)
        case Conflict():
            members = {name: value for name, value in error.detail.items() if name not in _RESERVED}
            return problem(409, "Conflict", str(error), headers=None, **members)
        case NotAllowed():
            return problem(403 if error.authenticated else 401, "Not allowed", str(error))
    raise error


class SessionEndpoint:
    """One WHEP or WHIP endpoint and the sessions made there."""

    def __init__(
        self,
        plane: Sessions,
        kind: SessionKind,
        *,
        session_path: Callable[[str], str],
        ice_servers: Callable[[str], Sequence[IceServer]] = lambda owner: (),
        allow_origin: str | None = "*",
    ) -> None:
        """session_path(session_id): the path for Location; ice_servers(owner): fresh credentials for him;
        allow_origin: None leaves CORS to the caller."""
        self._plane = plane
        self._kind = kind
        self._session_path = session_path
        self._ice_servers = ice_servers
        self._allow_origin = allow_origin

    async def handle(self, request: EdgeRequest, source_id: str) -> EdgeResponse:
        """A request to the endpoint of `source_id`."""
        try:
            match request.method:
                case "OPTIONS":
                    response = self._options(_ENDPOINT_METHODS, {"Accept-Post": SDP_TYPE})
                case "POST":
                    response = await self._post(request, source_id)
                case _:
                    response = problem(
                        405, "Method not allowed", "POST an offer here", headers={"Allow": _ENDPOINT_METHODS}
                    )
        except GatewayError as error:
            response = _problem_of(error)
        return self._with_cors(response)

    async def handle_session(self, request: EdgeRequest, session_id: str) -> EdgeResponse:
        """A request to a session made here."""
        try:
            if request.method == "OPTIONS":
                response = self._options(_SESSION_METHODS, {"Accept-Patch": FRAGMENT_TYPE})
            else:
                response = await self._session(request, session_id)
        except GatewayError as error:
            response = _problem_of(error)
        return self._with_cors(response)

    async def _post(self, request: EdgeRequest, source_id: str) -> EdgeResponse:
        if request.content_type != SDP_TYPE:
            return problem(
                415,
                "Unsupported media type",
                f"an offer is {SDP_TYPE}",
                headers={"Accept-Post": SDP_TYPE},
            )
        if len(request.body) > MAX_BODY:
            return problem(413, "Content too large", f"an offer has at most {MAX_BODY} bytes")
        offer = _text(request.body)
        if self._kind is SessionKind.WATCH:
            stream = request.query.get("stream", "main")
            answer = await self._plane.watch(source_id, offer, stream=stream, owner=request.owner)
        else:
            answer = await self._plane.publish(source_id, offer, owner=request.owner)
        headers: dict[str, str | Sequence[str]] = {
            "Content-Type": SDP_TYPE,
            "Location": self._session_path(answer.session_id),
            "ETag": answer.etag,
            "Accept-Patch": FRAGMENT_TYPE,
            "Cache-Control": "no-store",
        }
        links = [server.link for server in self._ice_servers(request.owner)]
        if links:
            headers["Link"] = links
        return EdgeResponse(status=201, headers=headers, body=answer.sdp.encode())

    async def _session(self, request: EdgeRequest, session_id: str) -> EdgeResponse:
        session = self._plane.session(session_id)
        if session.kind is not self._kind:
            raise NotFound("no such session")
        match request.method:
            case "GET" | "HEAD":
                return EdgeResponse(status=204, headers={"ETag": session.etag, "Cache-Control": "no-store"})
            case "DELETE":
                await self._plane.close_session(session_id)
                return EdgeResponse(status=200)
            case "PATCH":
                return await self._patch(request, session)
        return problem(
            405, "Method not allowed", "a session takes PATCH and DELETE", headers={"Allow": _SESSION_METHODS}
        )

    async def _patch(self, request: EdgeRequest, session: SessionInfo) -> EdgeResponse:
        """RFC 9725 section 4.3: candidates to the ICE session that the entity tag names, or a restart."""
        if request.content_type != FRAGMENT_TYPE:
            return problem(
                415,
                "Unsupported media type",
                f"a session takes {FRAGMENT_TYPE}",
                headers={"Accept-Patch": FRAGMENT_TYPE},
            )
        condition = request.headers.get("if-match", "").strip()
        if not condition:
            return problem(428, "Precondition required", "name the ICE session by If-Match")
        any_tag = condition in _ANY_TAG
        tags = [tag.strip() for tag in condition.split(",")]
        if not any_tag and session.etag not in tags:
            return problem(412, "Precondition failed", "the ICE session was restarted since")
        if len(request.body) > MAX_BODY:
            return problem(413, "Content too large", f"a fragment has at most {MAX_BODY} bytes")
        fragment = sdp.parse_fragment(_text(request.body))
        if not fragment.is_restart(session.remote_ufrag):
            # A lite agent learns the client's addresses from its checks, so candidates of any kind are
            # taken and need not be kept.
            return EdgeResponse(status=204, headers={"ETag": session.etag})
        if not any_tag:
            # Section 4.3.3: a restart is asked for with "*"; new credentials under a tag are a mix-up.
            return problem(422, "Unprocessable content", 'an ICE restart needs If-Match: "*"')
        answer = await self._plane.restart_session(session.session_id, fragment)
        return EdgeResponse(
            status=200,
            headers={"Content-Type": FRAGMENT_TYPE, "ETag": answer.etag, "Cache-Control": "no-store"},
            body=answer.sdp.encode(),
        )

    def _options(self, methods: str, accept: Mapping[str, str]) -> EdgeResponse:
        headers = {"Allow": methods, **accept}
        if self._allow_origin is not None:
            headers |= {
                "Access-Control-Allow-Methods": methods,
                "Access-Control-Allow-Headers": _REQUEST_HEADERS,
                "Access-Control-Max-Age": "86400",
            }
        return EdgeResponse(status=204, headers=headers)

    def _with_cors(self, response: EdgeResponse) -> EdgeResponse:
        if self._allow_origin is None:
            return response
        cors = {
            "Access-Control-Allow-Origin": self._allow_origin,
            "Access-Control-Expose-Headers": _EXPOSED,
        }
        return EdgeResponse(status=response.status, headers={**response.headers, **cors}, body=response.body)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("not_utf8", error.start) from error
