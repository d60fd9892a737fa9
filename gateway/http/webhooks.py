"""Webhooks at the HTTP edge, for administrators: how they fare, what is dead, and trying that again."""

from __future__ import annotations

from aiohttp import web

from gateway.access import Action, Resource
from gateway.errors import ProtocolError
from gateway.http.routes import Exchange, Route, json_response
from gateway.sharing import Sharing

__all__ = ["WebhooksEdge"]

STATES = ("pending", "delivered", "dead")


class WebhooksEdge:
    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing

    def routes(self) -> list[Route]:
        def settings(request: web.Request) -> Resource:
            return Resource(kind="settings", id="webhooks")

        one = "/api/v1/webhooks/{name}"
        return [
            Route(
                method="GET", path="/api/v1/webhooks", action=Action.ADMIN_SETTINGS, handler=self._list, resource=settings,
                summary="Receivers of webhooks and how many messages wait, arrived or are dead",
            ),
            Route(
                method="GET", path=f"{one}/messages", action=Action.ADMIN_SETTINGS, handler=self._messages,
                resource=settings, summary="Messages of a receiver, newest first; ?state=pending|delivered|dead",
            ),
            Route(
                method="POST", path=f"{one}/retry", action=Action.ADMIN_SETTINGS, handler=self._retry, resource=settings,
                summary="Try the dead messages again",
            ),
        ]  # fmt: skip

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        return json_response({"webhooks": await self._sharing.overview()})

    async def _messages(self, exchange: Exchange) -> web.StreamResponse:
        state = exchange.query("state") or None
        if state is not None and state not in STATES:
            raise ProtocolError(f"state must be one of {', '.join(STATES)}")
        return json_response({"messages": await self._sharing.messages(exchange.path("name"), state=state)})

    async def _retry(self, exchange: Exchange) -> web.StreamResponse:
        who = f"{exchange.who.role}/{exchange.who.sub}"
        return json_response({"retried": await self._sharing.try_again(exchange.path("name"), who)})
