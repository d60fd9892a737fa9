"""Logging in and out: passwords, one-time codes, session cookies, revocation.

A browser may hold one session a page (`gateway_session_wall`, `gateway_session_stb` ...), so that an operator can try the
box's page beside the wall without losing either. A page names itself by the header `X-Gateway-Page` or, where it can set
none (WebSocket, pictures), by the query `page=`. Spent codes and revoked sessions are kept on disk until they would
have expired: a restart brings none of them back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import web
from sqlalchemy import BigInteger, Column, Connection, Table, Text, delete, select
from sqlalchemy.dialects.sqlite import insert

from gateway.access import Action, Principal, Resource
from gateway.catalog import Catalog
from gateway.errors import NotAllowed, ProtocolError
from gateway.http.routes import Exchange, Route, json_response, page_of, session_cookie
from gateway.identity import Keyring, LoginThrottle, Token, TokenKind, verify_password
from gateway.store import Store, metadata

__all__ = ["SessionsEdge", "spent_tokens"]

spent_tokens = Table(
    "spent_tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("until", BigInteger, nullable=False, index=True),
)


class Login(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Either `code`, or `sub` and `password`."""

    code: str | None = None
    sub: str | None = None
    password: str | None = None


class SessionsEdge:
    """Turns credentials into principals. `revoked(matches, reason)` is told so that running channels and video end at once."""

    def __init__(
        self,
        keyring: Keyring,
        store: Store,
        catalog: Callable[[], Catalog],
        throttle: LoginThrottle,
        *,
        now_s: Callable[[], float],
        session_s: float,
        secure: bool,
        revoked: Callable[[Callable[[Principal], bool], str], None],
    ) -> None:
        self._keyring = keyring
        self._store = store
        self._catalog = catalog
        self._throttle = throttle
        self._now_s = now_s
        self._session_s = session_s
        self._secure = secure
        self._revoked = revoked
        self._spent: set[str] = set()

    async def load(self) -> None:
        """What was spent before this start, less what has expired since."""
        now = int(self._now_s())

        def tidy(connection: Connection) -> set[str]:
            connection.execute(delete(spent_tokens).where(spent_tokens.c.until < now))
            return set(connection.scalars(select(spent_tokens.c.id)))

        self._spent = await self._store.write(tidy)

    def authenticate(self, text: str) -> Principal:
        """The principal behind a bearer token or session cookie, placed in the district. Raises NotAllowed (401)."""
        token = self._keyring.verify(text, now_s=self._now_s())
        if token.jti in self._spent or (token.principal.session and token.principal.session in self._spent):
            raise NotAllowed("this session has ended: log in again", authenticated=False)
        return self._catalog().district.situate(token.principal)

    def routes(self) -> list[Route]:
        def session(request: web.Request) -> Resource:
            return Resource(kind="session")

        path = "/api/v1/session"
        return [
            Route(
                method="POST", path=path, action=Action.SESSION_CREATE, handler=self._login, resource=session,
                summary="Log in by password or one-time code", request=Login, csrf=False,
            ),
            Route(
                method="GET", path=path, action=Action.SESSION_READ, handler=self._who, resource=session,
                summary="Who am I",
            ),
            Route(
                method="DELETE", path=path, action=Action.SESSION_DELETE, handler=self._logout, resource=session,
                summary="Log out: the session, its channel and its video end",
            ),
        ]  # fmt: skip

    async def _login(self, exchange: Exchange) -> web.StreamResponse:
        said = await exchange.body(Login)
        if said.code is not None:
            principal = await self._redeem(said.code)
        elif said.sub and said.password is not None:
            principal = await self._check_password(said.sub, said.password, exchange.request.remote or "")
        else:
            raise ProtocolError("send a code, or sub and password")
        now_s = self._now_s()
        text = self._keyring.issue(principal, TokenKind.SESSION, now_s=now_s, ttl_s=self._session_s)
        response = self._describe(self._catalog().district.situate(principal), now_s + self._session_s)
        response.set_cookie(
            session_cookie(page_of(exchange.request)), text, max_age=int(self._session_s), httponly=True,
            secure=self._secure, samesite="Strict", path="/",
        )  # fmt: skip
        return response

    async def _redeem(self, code: str) -> Principal:
        token = self._keyring.verify(code, now_s=self._now_s(), kinds=frozenset({TokenKind.CODE}))
        if not await self._spend(token.jti, token):
            raise NotAllowed("this link was used before: ask for a new one", authenticated=False)
        return token.principal

    async def _check_password(self, sub: str, password: str, address: str) -> Principal:
        keys = (f"sub:{sub}", f"address:{address}")
        self._throttle.check(*keys, now_s=self._now_s())
        catalog = self._catalog()
        stored = catalog.secrets.users.get(sub)
        user = catalog.district.users.get(sub)
        right = await asyncio.to_thread(verify_password, stored, password)
        if not right or user is None:
            self._throttle.failed(*keys, now_s=self._now_s())
            raise NotAllowed("unknown user or wrong password", authenticated=False)
        self._throttle.succeeded(keys[0])
        return Principal(
            sub=user.sub, role=user.role, area=user.area, supervisor=user.supervisor, name=user.name
        )

    async def _who(self, exchange: Exchange) -> web.StreamResponse:
        return self._describe(exchange.who, None)

    async def _logout(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        if who.session:
            until = int(self._now_s() + self._session_s)
            await self._keep(who.session, until)
            self._revoked(lambda principal: principal.session == who.session, "logged out")
        response = json_response({})
        response.del_cookie(session_cookie(page_of(exchange.request)), path="/")
        return response

    async def _spend(self, jti: str, token: Token) -> bool:
        """True the first time. The answer waits for the disk: a crash must not let a code in twice."""
        if jti in self._spent:
            return False
        self._spent.add(jti)
        return await self._keep(jti, int(token.expires_at_s) + 60)

    async def _keep(self, identity: str, until: int) -> bool:
        self._spent.add(identity)

        def keep(connection: Connection) -> bool:
            statement = insert(spent_tokens).values(id=identity, until=until).on_conflict_do_nothing()
            return connection.execute(statement).rowcount == 1

        return await self._store.write(keep)

    @staticmethod
    def _describe(who: Principal, expires_at_s: float | None) -> web.Response:
        body = {
            "sub": who.sub, "role": who.role, "area": who.area, "name": who.name, "supervisor": who.supervisor,
            "lineage": who.lineage, "expires_at": None if expires_at_s is None else int(expires_at_s * 1000),
        }  # fmt: skip
        return json_response(body)
