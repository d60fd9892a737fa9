"""The route table: every method and path names its action and the resource it acts on, or it does not exist.

A request passes, in this order: size limit, authentication, resolution of the resource, `authorize`, the CSRF rule, the
handler; errors of our tree become problem documents. `Edge.routes` is the table that tests walk to prove that
no endpoint lacks a rule.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.access import Action, Principal, Resource, authorize, needs_principal
from gateway.errors import GatewayError, NotAllowed, ProtocolError
from gateway.http.problems import problem, problem_of

__all__ = [
    "SESSION_COOKIE",
    "Edge",
    "Exchange",
    "Handler",
    "Resolver",
    "Route",
    "json_response",
    "page_of",
    "same_origin",
    "session_cookie",
]

log = logging.getLogger(__name__)

SESSION_COOKIE = "gateway_session"
CSRF_HEADER, CSRF_VALUE = "X-Requested-With", "gateway"
PAGE_HEADER, PAGE_QUERY = "X-Gateway-Page", "page"
PAGES = frozenset({"wall", "desk", "stb", "worker"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_BODY_BYTES = 256 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One authorised request. `principal` is None only where the action is open to all."""

    request: web.Request
    principal: Principal | None
    resource: Resource

    @property
    def who(self) -> Principal:
        """The principal, where the route is not open to all."""
        if self.principal is None:
            raise NotAllowed("log in first", authenticated=False)
        return self.principal

    def path(self, name: str) -> str:
        return self.request.match_info[name]

    def query(self, name: str, default: str = "") -> str:
        return self.request.query.get(name, default)

    async def body(self, shape: type[T]) -> T:
        """The JSON body in this shape. An empty body counts as `{}`. Raises ProtocolError with the path of the mistake."""
        raw = await self.request.read()
        try:
            return msgspec.json.decode(raw or b"{}", type=shape)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise ProtocolError(f"body: {error}") from None


Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]
Resolver = Callable[[web.Request], Resource | Awaitable[Resource]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row of the table. `request` is the shape of the body for OpenAPI, `media` its media type.

    `answer_headers` stand in every answer of the path, refusals too: with CORS, a page of another origin can read why.
    """

    method: str
    path: str
    action: Action
    handler: Handler
    resource: Resolver
    summary: str
    request: type | None = None
    media: str = "application/json"
    success: int = 200
    csrf: bool = True
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = field(default=())


def json_response(data: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(data),
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type="application/json",
    )


class Edge:
    """Binds the table to aiohttp. `authenticate` turns a bearer token or cookie into a principal, or raises NotAllowed."""

    def __init__(self, *, authenticate: Callable[[str], Principal], security_headers: dict[str, str]) -> None:
        self._authenticate = authenticate
        self._security_headers = security_headers
        self.routes: list[Route] = []
        self.app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._frame])
        self.counts: dict[tuple[str, int], int] = {}
        self._answer_headers: dict[str, Mapping[str, str]] = {}

    def add(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self.routes.append(route)
            added = self.app.router.add_route(route.method, route.path, self._bind(route))
            if route.answer_headers and added.resource is not None:
                self._answer_headers[added.resource.canonical] = route.answer_headers

    def principal_of(self, request: web.Request) -> tuple[Principal | None, bool]:
        """Who asks, and whether by cookie. A broken token is an error, not an anonymous request."""
        header = request.headers.get("Authorization", "")
        if header:
            scheme, _, token = header.partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise NotAllowed("Authorization must be: Bearer <token>", authenticated=False)
            return self._authenticate(token.strip()), False
        cookie = request.cookies.get(session_cookie(page_of(request))) or request.cookies.get(SESSION_COOKIE)
        if cookie:
            return self._authenticate(cookie), True
        return None, False

    def _bind(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        named_only = needs_principal(route.action)

        async def handle(request: web.Request) -> web.StreamResponse:
            by_cookie = False
            principal: Principal | None = None
            try:
                principal, by_cookie = self.principal_of(request)
            except NotAllowed:
                if named_only:
                    raise
            if principal is None and named_only:
                raise NotAllowed("log in, or send Authorization: Bearer <token>", authenticated=False)
            if by_cookie and route.csrf and request.method not in SAFE_METHODS:
                _refuse_foreign_request(request)
            resolved = route.resource(request)
            resource = resolved if isinstance(resolved, Resource) else await resolved
            decision = authorize(principal, route.action, resource)
            if not decision.allowed:
                raise NotAllowed(decision.reason, authenticated=principal is not None)
            return await route.handler(Exchange(request=request, principal=principal, resource=resource))

        return handle

    @web.middleware
    async def _frame(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Errors to problem documents, security headers on everything, one counter."""
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "unmatched"
        own = self._answer_headers.get(path, {})
        try:
            response = await handler(request)
        except NotAllowed as error:
            page = request.path.strip("/")
            if request.method == "GET" and page in PAGES:
                # A person with a browser, not a program: to the log-in page, which keeps the fragment's code.
                response = web.Response(status=302, headers={"Location": f"/login?next=/{page}"})
            else:
                response = problem_of(error)
        except GatewayError as error:
            response = problem_of(error)
        except web.HTTPException as error:
            response = problem(
                error.status, error.text or error.reason, headers=_keep(error, "Allow", "Location")
            )
        except (ConnectionResetError, TimeoutError):
            raise
        except Exception:
            log.exception("unhandled error in %s %s", request.method, request.path)
            response = problem(500, "internal error; the log says more")
        if not response.prepared:
            for name, value in (*self._security_headers.items(), *own.items()):
                response.headers.setdefault(name, value)
        key = (path, response.status)
        self.counts[key] = self.counts.get(key, 0) + 1
        return response


def _keep(error: web.HTTPException, *names: str) -> dict[str, str]:
    return {name: error.headers[name] for name in names if name in error.headers}


def _refuse_foreign_request(request: web.Request) -> None:
    """A cookie travels with any page's request, our header does not (OWASP: custom request header)."""
    if request.headers.get(CSRF_HEADER) != CSRF_VALUE:
        raise NotAllowed(f"requests by cookie need the header {CSRF_HEADER}: {CSRF_VALUE}")


def page_of(request: web.Request) -> str:
    """Which of our pages asks: by its header, its query or its own address; empty if none or unknown."""
    said = request.headers.get(PAGE_HEADER) or request.query.get(PAGE_QUERY) or request.path.strip("/")
    return said if said in PAGES else ""


def session_cookie(page: str) -> str:
    """The cookie's name: one session a page, so that two pages of one browser may be two people."""
    return f"{SESSION_COOKIE}_{page}" if page else SESSION_COOKIE


def same_origin(request: web.Request) -> bool:
    """Whether a WebSocket handshake comes from a page of this server (RFC 6455 section 10.2) or from no page at all."""
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    match = re.fullmatch(r"https?://(.+)", origin)
    return match is not None and match[1] == request.host
