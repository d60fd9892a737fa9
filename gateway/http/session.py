"""Logging in and out: passwords, one-time codes, session cookies, revocation.

A browser may hold one session a page (`gateway_session_wall`, `gateway_session_stb` ...), so that an operator can try the
box's page beside the wall without losing either. A page names itself by the header `X-Gateway-Page` or, where it can set
none (WebSocket, pictures), by the query `page=`. Spent codes, revoked sessions and revoked accounts are kept on disk: a
restart brings none of them back.

A session that began with a password also ends when the account's entry changes (password, role or area): its token
carries a keyed fingerprint of it. `is_valid` is asked at each request, and once a second for whatever is still open
from an earlier one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Annotated

import msgspec
from aiohttp import web
from sqlalchemy import BigInteger, Column, Connection, Table, Text, delete, select
from sqlalchemy.dialects.sqlite import insert

from gateway.access import Action, Principal, Resource
from gateway.audit import audit
from gateway.catalog import Catalog
from gateway.errors import NotAllowed, ProtocolError, TooMany
from gateway.http.routes import (
    Exchange,
    Route,
    client_address,
    json_response,
    page_of,
    same_origin,
    session_cookie,
)
from gateway.identity import Keyring, LoginThrottle, Revocations, Token, TokenKind, verify_password
from gateway.store import Store, metadata

__all__ = ["SessionsEdge", "revoked_accounts", "spent_tokens"]

HASHES_AT_ONCE = 2
"""argon2 takes 64 MiB and a core for 50 ms each; the rest of the gateway shares both."""
HASHES_WAITING = 16

spent_tokens = Table(
    "spent_tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("until", BigInteger, nullable=False, index=True),
)
revoked_accounts = Table(
    "revoked_accounts",
    metadata,
    Column("sub", Text, primary_key=True),
    Column("not_before", BigInteger, nullable=False),
)


class Login(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Either `code`, or `sub` and `password`."""

    code: str | None = None
    sub: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    password: Annotated[str, msgspec.Meta(max_length=1024)] | None = None


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
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        """trusted_proxies: networks whose X-Forwarded-For counts for the lock-out."""
        self._trusted = [ip_network(network) for network in trusted_proxies]
        self._keyring = keyring
        self._store = store
        self._catalog = catalog
        self._throttle = throttle
        self._now_s = now_s
        self._session_s = session_s
        self._secure = secure
        self._revoked = revoked
        self._spent: dict[str, int] = {}  # id -> UTC seconds until which it could come back
        self._revocations = Revocations()
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)
        self._hashes = 0

    async def load(self) -> None:
        """What was spent before this start, less what has expired since."""
        now = int(self._now_s())

        def tidy(connection: Connection) -> tuple[dict[str, int], dict[str, int]]:
            connection.execute(delete(spent_tokens).where(spent_tokens.c.until < now))
            spent = {row.id: row.until for row in connection.execute(select(spent_tokens))}
            return spent, {row.sub: row.not_before for row in connection.execute(select(revoked_accounts))}

        self._spent, accounts = await self._store.write(tidy)
        for sub, not_before_s in accounts.items():
            self._revocations.revoke_all(sub, now_s=not_before_s)

    def authenticate(self, text: str) -> Principal:
        """The principal behind a bearer token or session cookie, placed in the district. Raises NotAllowed (401)."""
        token = self._keyring.verify(text, now_s=self._now_s())
        if token.jti in self._spent or not self.is_valid(token.principal):
            raise NotAllowed("this session has ended: log in again", authenticated=False)
        return self._catalog().district.situate(token.principal)

    def is_valid(self, principal: Principal) -> bool:
        """Whether what this principal once proved still holds: not expired, logged out, revoked or changed."""
        if self._now_s() >= principal.expires_at_s + self._keyring.leeway_s:
            return False
        if principal.session in self._spent or self._revocations.is_revoked(principal):
            return False
        return not principal.account or principal.account == self._account(principal.sub)

    async def revoke_account(self, sub: str, *, by: str) -> None:
        """Every token of `sub` issued until now is void, for ever; its channels and video end. At once in memory, then
        on disk."""
        now_s = int(self._now_s())
        self._revocations.revoke_all(sub, now_s=now_s)
        self._revoked(lambda principal: principal.sub == sub, "revoked")

        def keep(connection: Connection) -> None:
            statement = insert(revoked_accounts).values(sub=sub, not_before=now_s)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["sub"], set_={"not_before": now_s})
            )
            audit(
                connection,
                who=by,
                action="session.revoke",
                subject=f"account/{sub}",
                detail={},
                now_ms=now_s * 1000,
            )

        await self._store.write(keep)

    def _account(self, sub: str) -> str:
        """Fingerprint of what an account may do and how it proves itself, as configured now."""
        catalog = self._catalog()
        user, stored = catalog.district.users.get(sub), catalog.secrets.users.get(sub)
        if user is None or stored is None:
            return ""
        return self._keyring.fingerprint(sub, stored, user.role, user.area or "", str(user.supervisor))

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
                method="DELETE", path="/api/v1/sessions/{sub}", action=Action.ADMIN_SESSIONS, handler=self._revoke,
                resource=lambda request: Resource(kind="account", id=request.match_info["sub"]),
                summary="End all sessions and tokens of somebody, with their channels and video",
            ),
            Route(
                method="DELETE", path=path, action=Action.SESSION_DELETE, handler=self._logout, resource=session,
                summary="Log out: the session, its channel and its video end",
            ),
        ]  # fmt: skip

    async def _revoke(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        await self.revoke_account(exchange.path("sub"), by=f"{who.role}/{who.sub}")
        return json_response({})

    async def _login(self, exchange: Exchange) -> web.StreamResponse:
        if not same_origin(exchange.request):
            # Else a foreign page could log a browser in as somebody of its choice (login CSRF).
            raise NotAllowed("log in from a page of this server")
        said = await exchange.body(Login)
        if said.code is not None:
            principal = await self._redeem(said.code)
        elif said.sub and said.password is not None:
            principal = await self._check_password(
                said.sub, said.password, client_address(exchange.request, self._trusted)
            )
        else:
            raise ProtocolError("send a code, or sub and password")
        # Not into the second of a revocation, which would end it before it began.
        now_s = max(self._now_s(), self._revocations.not_before_s(principal.sub) + 1)
        text = self._keyring.issue(principal, TokenKind.SESSION, now_s=now_s, ttl_s=self._session_s)
        response = self._describe(self._catalog().district.situate(principal), now_s + self._session_s)
        response.set_cookie(
            session_cookie(page_of(exchange.request)), text, max_age=int(self._session_s), httponly=True,
            secure=self._secure, samesite="Strict", path="/",
        )  # fmt: skip
        return response

    async def _redeem(self, code: str) -> Principal:
        token = self._keyring.verify(code, now_s=self._now_s(), kinds=frozenset({TokenKind.CODE}))
        if self._revocations.is_revoked(token.principal):
            raise NotAllowed("this link was revoked: ask for a new one", authenticated=False)
        if not await self._spend(token.jti, token):
            raise NotAllowed("this link was used before: ask for a new one", authenticated=False)
        return token.principal

    async def _check_password(self, sub: str, password: str, address: str) -> Principal:
        keys = (f"pair:{sub}@{address}", f"sub:{sub}", f"address:{address}")
        self._throttle.check(*keys, now_s=self._now_s())
        if self._hashes >= HASHES_AT_ONCE + HASHES_WAITING:
            raise TooMany("too many log-ins at once", retry_after_s=2)
        # Counted before it is known: guesses sent side by side must not all pass the check above.
        self._throttle.failed(*keys, now_s=self._now_s())
        catalog = self._catalog()
        stored = catalog.secrets.users.get(sub)
        user = catalog.district.users.get(sub)
        self._hashes += 1
        try:
            async with self._hashing:
                right = await asyncio.to_thread(verify_password, stored, password)
        finally:
            self._hashes -= 1
        if not right or user is None:
            raise NotAllowed("unknown user or wrong password", authenticated=False)
        for key in keys[:2]:
            self._throttle.succeeded(key)
        self._throttle.forgive(keys[2])
        return Principal(
            sub=user.sub, role=user.role, area=user.area, supervisor=user.supervisor, name=user.name,
            account=self._account(sub),
        )  # fmt: skip

    async def _who(self, exchange: Exchange) -> web.StreamResponse:
        return self._describe(exchange.who, None)

    async def _logout(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        if who.session:
            until = int(who.expires_at_s + self._keyring.leeway_s) + 1
            self._spent[who.session] = until
            self._revoked(lambda principal: principal.session == who.session, "logged out")
            await self._keep(who.session, until)
        response = json_response({})
        response.del_cookie(session_cookie(page_of(exchange.request)), path="/")
        return response

    async def _spend(self, jti: str, token: Token) -> bool:
        """True the first time. The answer waits for the disk: a crash must not let a code in twice."""
        if jti in self._spent:
            return False
        until = int(token.expires_at_s + self._keyring.leeway_s) + 1
        self._spent[jti] = until
        return await self._keep(jti, until)

    async def _keep(self, identity: str, until: int) -> bool:
        now = int(self._now_s())
        self._spent = {one: end for one, end in self._spent.items() if end >= now}

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
