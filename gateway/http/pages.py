"""Pages, static files, the MQTT pipe for pages, health and metrics: what is served without being domain."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from gateway.access import Action, Resource
from gateway.errors import NotAllowed, NotFound, ProtocolError, TooMany, Unavailable
from gateway.http.routes import Exchange, Route, json_response, same_origin

__all__ = ["DIST", "Health", "page_routes", "security_headers"]

DIST = Path(__file__).parent.parent / "web" / "dist"
PAGES: Mapping[str, Action] = {
    "login": Action.PAGE_LOGIN,
    "wall": Action.PAGE_WALL,
    "desk": Action.PAGE_DESK,
    "stb": Action.PAGE_STB,
    "worker": Action.PAGE_WORKER,
}
MQTT_CHUNK_BYTES = 16 * 1024
IMMUTABLE = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What /healthz and /readyz tell. `ready` says whether presses can be accepted now; `reasons` why not; `notes`
    what somebody should look at before it becomes one."""

    ready: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    parts: Mapping[str, Any]


def security_headers(*, tls: bool, tile_urls: tuple[str, ...] = ()) -> dict[str, str]:
    """Headers on every answer. Pages load nothing from elsewhere but map tiles that are configured (CSP Level 3)."""
    tile_origins = sorted({f"{url.scheme}://{url.netloc}" for url in map(urlsplit, tile_urls)})
    images = " ".join(("'self'", "data:", "blob:", *tile_origins))
    connect = " ".join(("'self'", *tile_origins))
    headers = {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; media-src 'self' blob:; "
            f"img-src {images}; connect-src {connect}; worker-src 'self' blob:; manifest-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Permissions-Policy": "camera=(self), microphone=(self), geolocation=(self), fullscreen=(self)",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    if tls:
        headers["Strict-Transport-Security"] = "max-age=31536000"
    return headers


def page_routes(
    *,
    health: Callable[[], Health],
    metrics: Callable[[], bytes],
    broker_address: Callable[[], tuple[str, int] | None],
    ca_certificate: Path | None = None,
    dist: Path = DIST,
    allowed_origins: Container[str] = (),
    mqtt_pipes: int = 4_096,
) -> list[Route]:
    """Routes of this module. `broker_address` is where the pipes of /mqtt lead, None while MQTT is off; pages of
    `allowed_origins` may open one beside our own, `mqtt_pipes` in all."""
    pages = _Pages(health, metrics, broker_address, ca_certificate, dist, allowed_origins, mqtt_pipes)

    def fixed(kind: str) -> Callable[[web.Request], Resource]:
        return lambda request: Resource(kind=kind, id=request.path)

    def get(
        path: str, action: Action, handler: Callable[[Exchange], Awaitable[web.StreamResponse]], summary: str
    ) -> Route:
        return Route(
            method="GET", path=path, action=action, handler=handler, resource=fixed("page"), summary=summary
        )

    return [
        get("/", Action.PAGE_INDEX, pages.root, "To the page of one's role"),
        *(get(f"/{name}", action, pages.page, f"The page {name}") for name, action in PAGES.items()),
        get(
            "/static/{path:.+}", Action.STATIC_READ, pages.static, "Scripts, styles and pictures of the pages"
        ),
        get("/sw.js", Action.STATIC_READ, pages.service_worker, "Service worker of the gridworker's page"),
        get("/ca.crt", Action.STATIC_READ, pages.ca, "The local certificate authority of `make demo LAN=1`"),
        get("/healthz", Action.HEALTH_READ, pages.healthz, "Whether the process lives; ignores cameras"),
        get("/readyz", Action.HEALTH_READ, pages.readyz, "Whether it accepts presses and viewers"),
        Route(
            method="GET",
            path="/metrics",
            action=Action.METRICS_READ,
            handler=pages.metrics,
            resource=_from_this_machine,
            summary="Prometheus text format",
        ),
        Route(
            method="GET",
            path="/mqtt",
            action=Action.MQTT_CONNECT,
            handler=pages.mqtt,
            resource=fixed("page"),
            summary="MQTT over WebSocket, a pipe to the broker",
            channel=True,
        ),
    ]


def _from_this_machine(request: web.Request) -> Resource:
    """A proxy on this machine speaks for others, so its requests don't count as local."""
    proxied = any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "Via"))
    local = request.remote in ("127.0.0.1", "::1")
    return Resource(kind="metrics", id="metrics", loopback=local and not proxied)


class _Pages:
    def __init__(
        self,
        health: Callable[[], Health],
        metrics: Callable[[], bytes],
        broker_address: Callable[[], tuple[str, int] | None],
        ca_certificate: Path | None,
        dist: Path,
        allowed_origins: Container[str],
        mqtt_pipes: int,
    ) -> None:
        self._allowed_origins, self._mqtt_pipes = allowed_origins, mqtt_pipes
        self._health = health
        self._metrics = metrics
        self._broker_address = broker_address
        self._ca = ca_certificate
        self._dist = dist.resolve()
        self._pipes = 0

    async def root(self, exchange: Exchange) -> web.StreamResponse:
        home = {"stb": "/stb", "worker": "/worker", "volunteer": "/worker", "desk": "/desk"}
        principal = exchange.principal
        raise web.HTTPFound("/login" if principal is None else home.get(principal.role, "/wall"))

    async def page(self, exchange: Exchange) -> web.StreamResponse:
        return self._file(exchange.request.path.strip("/") + ".html", "no-cache")

    async def static(self, exchange: Exchange) -> web.StreamResponse:
        return self._file("static/" + exchange.path("path"), IMMUTABLE)

    async def service_worker(self, exchange: Exchange) -> web.StreamResponse:
        return self._file("sw.js", "no-cache")

    def _file(self, name: str, cache: str) -> web.StreamResponse:
        try:
            path = (self._dist / name).resolve()
            found = path.is_relative_to(self._dist) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL
            found = False
        if not found:
            if not self._dist.is_dir():
                raise Unavailable("the pages are not built: run `make setup`", retry_after_s=60)
            raise NotFound(f"no file {name[:200]!r}")
        response = web.FileResponse(path, headers={"Cache-Control": cache})
        kind, _ = mimetypes.guess_type(path.name)
        if kind is not None:
            text = kind.startswith("text/") or kind in ("application/javascript", "application/json")
            response.headers["Content-Type"] = f"{kind}; charset=utf-8" if text else kind
        return response

    async def ca(self, exchange: Exchange) -> web.StreamResponse:
        if self._ca is None or not self._ca.is_file():
            raise NotFound("this gateway has no certificate authority of its own")
        return web.FileResponse(self._ca, headers={"Content-Type": "application/x-x509-ca-cert"})

    async def healthz(self, exchange: Exchange) -> web.StreamResponse:
        health = self._health()
        return json_response(
            {
                "status": "ok" if health.ready and not health.notes else "degraded",
                "reasons": health.reasons,
                "notes": health.notes,
                **health.parts,
            }
        )

    async def readyz(self, exchange: Exchange) -> web.StreamResponse:
        health = self._health()
        return json_response(
            {"ready": health.ready, "reasons": health.reasons}, status=200 if health.ready else 503
        )

    async def metrics(self, exchange: Exchange) -> web.StreamResponse:
        return web.Response(
            body=self._metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def mqtt(self, exchange: Exchange) -> web.StreamResponse:
        """The broker itself checks the device's credential; this only carries bytes (MQTT 5.0 section 6)."""
        if not same_origin(exchange.request, self._allowed_origins):
            raise NotAllowed("this WebSocket is for pages of this server")
        if not web.WebSocketResponse(protocols=("mqtt",)).can_prepare(exchange.request):
            raise ProtocolError("this is a WebSocket of the subprotocol mqtt")  # before the broker is dialled
        address = self._broker_address()
        if address is None:
            raise Unavailable("MQTT is off; use the signed HTTP press")
        if self._pipes >= self._mqtt_pipes:
            raise TooMany("too many MQTT connections over WebSocket", retry_after_s=10)
        self._pipes += 1
        try:
            return await _pipe(exchange.request, address)
        finally:
            self._pipes -= 1


async def _pipe(request: web.Request, address: tuple[str, int]) -> web.WebSocketResponse:
    """Bytes both ways until either side ends. Backpressure is TCP's on both sides."""
    try:
        reader, writer = await asyncio.open_connection(*address, limit=MQTT_CHUNK_BYTES)
    except OSError as error:
        raise Unavailable(f"the broker does not answer: {error.strerror}", retry_after_s=2) from None
    socket = web.WebSocketResponse(protocols=("mqtt",), heartbeat=30, max_msg_size=64 * 1024, compress=False)
    try:
        await socket.prepare(request)
    except BaseException:
        writer.close()
        raise

    async def downstream() -> None:
        with contextlib.suppress(ConnectionResetError):
            while chunk := await reader.read(MQTT_CHUNK_BYTES):
                await socket.send_bytes(chunk)
        await socket.close()

    try:
        async with asyncio.TaskGroup() as group:
            down = group.create_task(downstream(), name="mqtt-pipe-down")
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    writer.write(message.data)
                    with contextlib.suppress(ConnectionResetError):
                        await writer.drain()
            down.cancel()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return socket
