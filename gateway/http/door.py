"""Closes connections that ask for nothing: aiohttp bounds a header's size, but not the time that a client takes to send it.

A connection without a request in hand, be it that its first header trickles in (slowloris) or that it only idles,
is closed after `idle_s`. Whoever has a request going on (also a WebSocket) is left alone: bodies have a time limit of
their own (`routes.Edge`).
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

__all__ = ["Door"]


class Door:
    """`close_idle` is called now and then. `now`: monotonic seconds."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._idle_since: dict[RequestHandler, float] = {}

    def close_idle(self, runner: web.AppRunner, now: float) -> int:
        """Returns how many were closed."""
        server = runner.server
        idle = [one for one in (server.connections if server else ()) if one._current_request is None]
        self._idle_since = {one: self._idle_since.get(one, now) for one in idle}
        late = [one for one, since in self._idle_since.items() if now - since >= self._idle_s]
        for connection in late:
            connection.force_close()
        return len(late)
