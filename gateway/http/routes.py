"""The route table: every method and path names its action and the resource it acts on, or it does not exist.

A request passes, in this order: authentication, the CSRF rule, whether its role could ever do this, resolution of the
resource, `authorize`, the body (bounded in bytes and time, and only read for whoever may), the handler; errors of our tree become problem documents. `Edge.routes` is the table that tests walk to prove that
no endpoint lacks a rule.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.access import Action, Principal, Resource, authorize, may_ever, needs_principal
from gateway.errors import GatewayError, NotAllowed, ProtocolError, TooMany
from gateway.http.problems import problem, problem_of

__all__ = [
    "PAGES",
    "PAGE_QUERY",
    "SESSION_COOKIE",
    "Edge",
    "Exchange",
    "Handler",
    "Resolver",
    "Route",
    "client_address",
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
CORS_ORIGIN = "Access-Control-Allow-Origin"
STREAM_TIMEOUT_S = 60.0  # a photo over a weak mobile network
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CHANNELS_EACH = 32
"""Long-lived connections of one principal: a wall of screens, each with its event channel, and room to reconnect."""

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
        except RecursionError:
            raise ProtocolError("body: nested too deeply") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProtocolError(f"body: {error}") from None


Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]
Resolver = Callable[[web.Request], Resource | Awaitable[Resource]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row of the table. `request` is the shape of the body for OpenAPI, `media` its media type.

    csrf: whether an unsafe request by cookie must carry our header. channel: it stays open (WebSocket): counted for each
    principal, and ended when its session is.
    streams: the handler reads the body itself and bounds it; it has STREAM_TIMEOUT_S in all.
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
    channel: bool = False
    streams: bool = False
    tags: tuple[str, ...] = field(default=())


def json_response(data: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(data),
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type="application/json",
    )


class Edge:
    """Binds the table to aiohttp. `authenticate` turns a bearer token or cookie into a principal, or raises NotAllowed.

    body_limit_bytes and body_timeout_s bound every body. Long-lived connections are counted by principal. allowed_origins:
    the only foreign ones whose pages may read media answers (CORS); none: any, since they need a bearer token all the same.
    """

    def __init__(
        self,
        *,
        authenticate: Callable[[str], Principal],
        security_headers: dict[str, str],
        body_limit_bytes: int = 65_536,
        body_timeout_s: float = 15.0,
        allowed_origins: Container[str] = (),
    ) -> None:
        self._authenticate = authenticate
        self._security_headers = security_headers
        self._body_limit_bytes = body_limit_bytes
        self._body_timeout_s = body_timeout_s
        self._allowed_origins = allowed_origins
        self._channels: Counter[tuple[str, str]] = Counter()
        self._channel_tasks: dict[asyncio.Task[Any], tuple[str, Principal]] = {}
        self.routes: list[Route] = []
        self.app = web.Application(client_max_size=body_limit_bytes, middlewares=[self._frame])
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
            if principal is not None and not may_ever(principal, route.action):
                raise NotAllowed(f"role {principal.role} may not {route.action}")
            resolved = route.resource(request)
            resource = resolved if isinstance(resolved, Resource) else await resolved
            decision = authorize(principal, route.action, resource)
            if not decision.allowed:
                raise NotAllowed(decision.reason, authenticated=principal is not None)
            exchange = Exchange(request=request, principal=principal, resource=resource)
            if route.channel and principal is not None:
                return await self._run_channel(route, exchange, principal)
            if route.streams:
                try:
                    async with asyncio.timeout(STREAM_TIMEOUT_S):
                        return await route.handler(exchange)
                except TimeoutError:
                    raise web.HTTPRequestTimeout(text="the body did not come in time") from None
            await self._read_body(request)
            return await route.handler(exchange)

        return handle

    async def _read_body(self, request: web.Request) -> None:
        """All of it, so that a handler never waits for a slow client. aiohttp keeps it for the handler."""
        if not request.can_read_body:
            return
        announced = request.content_length or 0
        if announced > self._body_limit_bytes:
            raise web.HTTPRequestEntityTooLarge(self._body_limit_bytes, announced)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body did not come in time") from None

    async def _run_channel(
        self, route: Route, exchange: Exchange, principal: Principal
    ) -> web.StreamResponse:
        key = (str(principal.role), principal.sub)
        if self._channels[key] >= CHANNELS_EACH:
            raise TooMany(f"{CHANNELS_EACH} connections of yours are open: close one", retry_after_s=5)
        task = asyncio.current_task()
        self._channels[key] += 1
        if task is not None:
            self._channel_tasks[task] = (route.path, principal)
        try:
            return await route.handler(exchange)
        finally:
            if task is not None:
                del self._channel_tasks[task]
            self._channels[key] -= 1
            if not self._channels[key]:
                del self._channels[key]

    def end_channels(self, path: str, concerned: Callable[[Principal], bool]) -> int:
        """Cut the long-lived connections to this path of these principals. Returns how many."""
        ended = [task for task, (at, who) in self._channel_tasks.items() if at == path and concerned(who)]
        for task in ended:
            task.cancel()
        return len(ended)

    def _limit_cors(self, request: web.Request, response: web.StreamResponse) -> None:
        """Fetch standard section 3.2: `*` becomes the one origin that asked, or nothing."""
        if not self._allowed_origins or CORS_ORIGIN not in response.headers:
            return
        response.headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin is not None and same_origin(request, self._allowed_origins):
            response.headers[CORS_ORIGIN] = origin
        else:
            del response.headers[CORS_ORIGIN]

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
        except (web.HTTPRequestTimeout, web.HTTPRequestEntityTooLarge) as error:
            response = problem(error.status, error.text or error.reason)
            response.force_close()  # what is left of the body is not waited for
        except web.HTTPException as error:
            response = problem(
                error.status, error.text or error.reason, headers=_keep(error, "Allow", "Location")
            )
        except (ConnectionResetError, TimeoutError):
            raise
        except Exception:
            log.exception("unhandled error in %s %r", request.method, request.path)
            response = problem(500, "internal error; the log says more")
        if not response.prepared:
            for name, value in (*self._security_headers.items(), *own.items()):
                response.headers.setdefault(name, value)
            self._limit_cors(request, response)
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


def same_origin(request: web.Request, allowed: Container[str] = ()) -> bool:
    """Whether a request comes from a page of this server (RFC 6455 section 10.2), of an allowed origin, or from no page at
    all."""
    origin = request.headers.get("Origin")
    if origin is None or origin in allowed:
        return True
    match = re.fullmatch(r"https?://(.+)", origin)
    return match is not None and match[1] == request.host


def client_address(request: web.Request, trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """Whose request it is: the peer, or behind trusted proxies the last address that they did not add themselves."""
    at = request.remote or ""
    for said in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        try:
            if not any(ip_address(at) in network for network in trusted):
                break
            at = str(ip_address(said.strip()))
        except ValueError:
            break
    return at
