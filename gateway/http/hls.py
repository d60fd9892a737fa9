"""HLS at the HTTP edge: playlists and segments of a camera, for players without WebRTC (RFC 8216).

Each request is authorised anew with the right of a WHEP join, so a right that ends stops the picture with the next
segment. Who keeps asking is one viewer: counted against the same limit of joins, one line on the audit trail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from gateway.access import Action, Principal, Resource
from gateway.errors import ProtocolError
from gateway.http.media import LiveCameras
from gateway.http.routes import PAGE_QUERY, PAGES, Exchange, Route
from gateway.identity import JoinLimits
from gateway.streams.hls import Container
from gateway.streams.media import StreamName
from gateway.streams.media_service import MediaService

__all__ = ["HlsEdge"]

GONE_S = 20.0
"""Without a request a viewer has left: five times the target duration, after which a player asks again."""

LOOK_S = 5.0


class HlsEdge:
    """`viewed` writes the audit line of a camera's view; `joins` counts streams of a principal."""

    def __init__(
        self,
        media: MediaService,
        cameras: LiveCameras,
        joins: JoinLimits,
        *,
        viewed: Callable[[Principal, str], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._media = media
        self._cameras = cameras
        self._joins = joins
        self._viewed = viewed
        self._clock = clock
        self._viewers: dict[tuple[str, str, StreamName], tuple[Principal, float]] = {}
        self._look: asyncio.TimerHandle | None = None

    def routes(self) -> list[Route]:
        def camera(request: web.Request) -> Resource:
            return self._cameras.resource(request.match_info["camera_id"])

        return [
            Route(
                method="GET", path="/hls/{camera_id}/{file}", action=Action.CAMERA_VIEW, handler=self._file,
                resource=camera, summary="Watch a camera by HLS: index.m3u8?stream=main|sub&format=ts|mp4, and its segments",
                media="application/vnd.apple.mpegurl",
            )
        ]  # fmt: skip

    async def _file(self, exchange: Exchange) -> web.StreamResponse:
        camera_id, who = exchange.path("camera_id"), exchange.who
        try:
            name = StreamName(exchange.query("stream", StreamName.MAIN))
            container = Container(exchange.query("format", Container.TS))
        except ValueError:
            raise ProtocolError("stream must be main or sub, format ts or mp4") from None
        query = [("stream", name.value), ("format", container.value)]
        page = exchange.query(PAGE_QUERY) or exchange.request.headers.get("X-Gateway-Page", "")
        if page in PAGES:
            query.append((PAGE_QUERY, page))  # a native player sends no header of ours
        new = self._count(who, camera_id, name)
        made = await self._media.fetch_hls(camera_id, name, exchange.path("file"), container, query)
        if new:
            await self._viewed(who, camera_id)
        return web.Response(
            body=made.body, headers={"Content-Type": made.media_type, "Cache-Control": "no-store"}
        )

    def _count(self, who: Principal, camera_id: str, name: StreamName) -> bool:
        """Whether this is a viewer who was not there before. Raises TooMany."""
        now = self._clock()
        self._forget_gone()
        key = (who.sub, camera_id, name)
        held = self._viewers.get(key)
        if held is None:
            self._joins.join(who, now_s=now)
        self._viewers[key] = (who if held is None else held[0], now)
        if self._look is None:
            self._look_again()
        return held is None

    def _forget_gone(self) -> None:
        now = self._clock()
        for key in [key for key, (_, asked_at) in self._viewers.items() if now - asked_at > GONE_S]:
            self._joins.leave(self._viewers.pop(key)[0])

    def _look_again(self) -> None:
        """While there are viewers: the place of one that has left must not wait for the next one's request."""
        self._forget_gone()
        self._look = (
            asyncio.get_running_loop().call_later(LOOK_S, self._look_again) if self._viewers else None
        )
