"""Proof of who somebody is: tokens, one-time codes, revocation, passwords, limits on tries and joins. Pure.

Tokens are JWTs (RFC 7519) signed with HS256 by the key of the data directory. `typ` tells the kinds apart, so
that a code never passes as a session: `access` (a bare bearer token), `session` (in a cookie, revocable by
its `sid`) and `code` (short-lived, once). `now_s` is UTC seconds.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from gateway.access import Principal, Role
from gateway.errors import NotAllowed, TooMany

__all__ = [
    "JoinLimits",
    "Keyring",
    "LoginThrottle",
    "Revocations",
    "Token",
    "TokenKind",
    "device_password",
    "hash_password",
    "verify_password",
]

_ALGORITHM = "HS256"
_ISSUER = "gateway"
MAX_TOKEN_CHARS = 4_096
"""Ours have some 400. Longer ones are not decoded at all."""
MAX_TOKENS_READ = 2_048


class TokenKind(StrEnum):
    """What a token is good for."""

    ACCESS = "access"
    SESSION = "session"
    CODE = "code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A verified token. The principal's lineage is still empty: `District.situate` fills it."""

    principal: Principal
    kind: TokenKind
    jti: str
    issued_at_s: float
    expires_at_s: float


class Keyring:
    """Signs and verifies tokens with the key of the data directory (`DataDir.secret("signing.key")`)."""

    def __init__(
        self,
        key: bytes,
        *,
        leeway_s: float = 30.0,
        new_id: Callable[[], str] = lambda: secrets.token_urlsafe(16),
    ) -> None:
        if len(key) < 32:
            raise ValueError("HS256 needs a key of at least 32 bytes (RFC 7518 section 3.2)")
        self._key, self._leeway_s, self._new_id = key, leeway_s, new_id
        self._read: dict[str, Token] = {}

    @property
    def leeway_s(self) -> float:
        """How long after its end a token still counts, for clocks that differ."""
        return self._leeway_s

    def fingerprint(self, *parts: str) -> str:
        """Of what must stay as it is for a token to stay valid. Keyed: it tells nothing about a password in it."""
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.new(self._key, b"account|" + text.encode(), "sha256").hexdigest()[:32]

    def issue(self, principal: Principal, kind: TokenKind, *, now_s: float, ttl_s: float) -> str:
        """A signed token; a session gets a new session id."""
        claims: dict[str, Any] = {
            "iss": _ISSUER,
            "typ": str(kind),
            "sub": principal.sub,
            "role": str(principal.role),
            "iat": int(now_s),
            "exp": int(now_s + ttl_s),
            "jti": self._new_id(),
        }
        if principal.area:
            claims["area"] = principal.area
        if principal.supervisor:
            claims["supervisor"] = True
        if principal.name:
            claims["name"] = principal.name
        if principal.account:
            claims["account"] = principal.account
        if kind is TokenKind.SESSION:
            claims["sid"] = self._new_id()
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)

    def verify(self, text: str, *, now_s: float, kinds: frozenset[TokenKind] | None = None) -> Token:
        """The token's content. Raises NotAllowed (401). `kinds`: access and session unless said otherwise."""
        token = self._read.get(text) or self._decode(text)
        if token.kind not in (kinds or {TokenKind.ACCESS, TokenKind.SESSION}):
            raise NotAllowed(f"a token of kind {token.kind} is of no use here", authenticated=False)
        if now_s >= token.expires_at_s + self._leeway_s:
            raise NotAllowed("the token has expired: log in again", authenticated=False)
        # A second more than the leeway: a log-in right after a revocation is dated into the next second.
        if now_s < token.issued_at_s - self._leeway_s - 1:
            raise NotAllowed("the token is of the future: check the clock", authenticated=False)
        return token

    def _decode(self, text: str) -> Token:
        """Form and signature of a token, which stay what they are: remembered, since the same one comes with each request."""
        if len(text) > MAX_TOKEN_CHARS:
            raise NotAllowed("the token isn't valid: too long", authenticated=False)
        try:
            # Times are checked by `verify` against its `now_s`, not against this machine's clock.
            claims = jwt.decode(
                text,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={
                    "require": ["sub", "role", "iat", "exp", "jti", "typ", "iss"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": False,
                },
            )
            token = _token(claims)
        except (
            jwt.InvalidTokenError,
            ValueError,
            TypeError,
            KeyError,
            OverflowError,
            RecursionError,
        ) as error:
            raise NotAllowed("the token isn't valid: log in again", authenticated=False) from error
        if len(self._read) >= MAX_TOKENS_READ:
            del self._read[next(iter(self._read))]
        self._read[text] = token
        return token


def _token(claims: Mapping[str, Any]) -> Token:
    for key in ("sub", "role", "jti", "typ"):
        if not isinstance(claims[key], str) or not claims[key]:
            raise TypeError(key)
    for key in ("iat", "exp"):  # not NaN nor infinity, which never expire
        if not isinstance(claims[key], int):
            raise TypeError(key)
    area = claims.get("area")
    if area is not None and (not isinstance(area, str) or not area):
        raise TypeError("area")  # never mistake a broken limit for none
    kind = TokenKind(claims["typ"])
    session = str(claims["sid"]) if kind is TokenKind.SESSION else ""
    principal = Principal(
        sub=claims["sub"],
        role=Role(claims["role"]),
        area=area,
        supervisor=claims.get("supervisor") is True,
        name=str(claims.get("name", "")),
        session=session,
        issued_at_s=float(claims["iat"]),
        expires_at_s=float(claims["exp"]),
        account=str(claims.get("account", "")),
    )
    return Token(
        principal=principal,
        kind=kind,
        jti=claims["jti"],
        issued_at_s=float(claims["iat"]),
        expires_at_s=float(claims["exp"]),
    )


class Revocations:
    """Sessions that ended before their time, and the moment before which all tokens of somebody are void."""

    def __init__(self) -> None:
        self._sessions: dict[str, float] = {}
        self._not_before_s: dict[str, float] = {}

    def revoke_session(self, session: str, *, until_s: float) -> None:
        """`until_s`: when its token expires by itself, so that it may be forgotten."""
        self._sessions[session] = until_s

    def revoke_all(self, sub: str, *, now_s: float) -> None:
        """Every token of `sub` issued up to this second."""
        self._not_before_s[sub] = now_s

    def not_before_s(self, sub: str) -> float:
        """Tokens of `sub` issued up to then are void; -inf if none were revoked."""
        return self._not_before_s.get(sub, float("-inf"))

    def is_revoked(self, principal: Principal) -> bool:
        if principal.session and principal.session in self._sessions:
            return True
        return principal.issued_at_s <= self.not_before_s(principal.sub)

    def prune(self, now_s: float) -> None:
        """Forget sessions whose tokens have expired."""
        self._sessions = {session: until for session, until in self._sessions.items() if until > now_s}


# --- passwords --------------------------------------------------------------------------------------

_HASHER = PasswordHasher()
# Verified against when there is no such user, so that the answer's time doesn't tell.
_NOBODY = _HASHER.hash(secrets.token_urlsafe(16))


def verify_password(stored: str | None, given: str) -> bool:
    """Does `given` match a user's entry of secrets.yaml (argon2 hash or plain)? None: no such user.

    Takes some 50 ms of CPU in every case: call it in a thread.
    """
    if stored is not None and not stored.startswith("$argon2"):
        # Hash anyway, for the same time as the others take.
        _matches(_NOBODY, given)
        return bool(stored) and hmac.compare_digest(stored.encode(), given.encode("utf-8", "surrogatepass"))
    return _matches(stored or _NOBODY, given) and stored is not None


def hash_password(password: str) -> str:
    """As it stands in secrets.yaml (argon2id). Takes as long as a verification."""
    return _HASHER.hash(password.encode("utf-8", "surrogatepass"))


def _matches(hashed: str, given: str) -> bool:
    try:
        return _HASHER.verify(hashed, given.encode("utf-8", "surrogatepass"))
    except (Argon2Error, InvalidHashError):
        return False


def device_password(key: bytes, device: str) -> str:
    """The MQTT password of a box or a gridworker's phone: hex(HMAC-SHA256(key, "mqtt|" + id))."""
    return hmac.new(key, b"mqtt|" + device.encode(), "sha256").hexdigest()


# --- limits -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Failures:
    count: int
    last_s: float


class LoginThrottle:
    """Lock-out: after `failures` wrong tries each further one locks for twice as long, up to 15 minutes.

    Keys are what is guessed at and who guesses (`sub:wang`, `address:192.0.2.1`). `patience`: for keys of a kind (the part
    before the colon) so many times more tries, so that an office behind one address isn't locked out by one forgetful
    colleague, nor an operator by a stranger who knows the name. At most `limit` keys are held; the oldest is
    dropped.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        lockout_s: float = 60.0,
        limit: int = 20_000,
        patience: Mapping[str, int] | None = None,
    ) -> None:
        self._failures, self._lockout_s, self._limit = failures, lockout_s, limit
        self._patience = dict(patience or {})
        self._seen: dict[str, _Failures] = {}

    def _locked_for_s(self, key: str, count: int) -> float:
        over = count - self._failures * self._patience.get(key.partition(":")[0], 1)
        if over < 0:
            return 0.0
        return float(min(self._lockout_s * 2.0 ** min(over, 16), max(900.0, self._lockout_s)))

    def check(self, *keys: str, now_s: float) -> None:
        """Raise TooMany while any of the keys is locked."""
        wait_s = 0.0
        for key in keys:
            if seen := self._seen.get(key):
                wait_s = max(wait_s, seen.last_s + self._locked_for_s(key, seen.count) - now_s)
        if wait_s > 0:
            raise TooMany("too many wrong passwords: wait", retry_after_s=wait_s)

    def failed(self, *keys: str, now_s: float) -> None:
        """A wrong password. An hour without one forgives."""
        for key in keys:
            seen = self._seen.pop(key, _Failures(0, now_s))
            count = 1 if now_s - seen.last_s > 3_600 else seen.count + 1
            self._seen[key] = replace(seen, count=count, last_s=now_s)
            if len(self._seen) > self._limit:
                del self._seen[next(iter(self._seen))]

    def forgive(self, key: str) -> None:
        """Take one failure back that was counted before its outcome was known."""
        if seen := self._seen.get(key):
            self._seen[key] = replace(seen, count=max(0, seen.count - 1))

    def succeeded(self, key: str) -> None:
        """The right password: forget the key's failures (of the account, not of the address)."""
        self._seen.pop(key, None)


@dataclass(slots=True)
class _Joined:
    """Of one principal: streams that are open, and what is left of its burst at `seen_s`."""

    count: int
    tokens: float
    seen_s: float


class JoinLimits:
    """How many streams a principal may watch at one time, and how many joins a second it may ask for.

    most(principal): streams at one time, by its role; 0: none. Joins are a token bucket (RFC 2697 without colours): `rate`
    a second, and a burst of as many as it may watch, so that a whole wall opens at once but a page that loops doesn't keep
    the gateway busy with handshakes. Principals are told apart by role and sub. `now_s` is any monotonic clock.
    """

    def __init__(self, most: Callable[[Principal], int], *, rate: float) -> None:
        self._most, self._rate = most, rate
        self._joined: dict[tuple[Role, str], _Joined] = {}

    def join(self, principal: Principal, *, now_s: float) -> None:
        """Count one in, before anything is allocated for it. Raises TooMany, which says when to try again."""
        most = self._most(principal)
        burst = max(float(most), 1.0)
        key = (principal.role, principal.sub)
        held = self._joined.get(key)
        if held is None:
            self._forget(now_s)
            held = self._joined[key] = _Joined(0, burst, now_s)
        held.tokens = min(burst, held.tokens + (now_s - held.seen_s) * self._rate)
        held.seen_s = now_s
        if held.tokens < 1:
            wait_s = (1 - held.tokens) / self._rate
            raise TooMany(f"more than {self._rate:g} joins a second: wait", retry_after_s=wait_s)
        held.tokens -= 1
        if held.count >= most:
            raise TooMany(
                f"role {principal.role} may watch {most} streams at a time; close one", retry_after_s=2
            )
        held.count += 1

    def leave(self, principal: Principal) -> None:
        """Count one out; must match a `join`."""
        held = self._joined.get((principal.role, principal.sub))
        if held is None or held.count <= 0:
            raise ValueError(f"{principal.sub} left more streams than it joined")
        held.count -= 1

    def joined(self, principal: Principal) -> int:
        held = self._joined.get((principal.role, principal.sub))
        return 0 if held is None else held.count

    def _forget(self, now_s: float) -> None:
        """Those who watch nothing and have been quiet for a minute are as good as new, whatever they asked for before."""
        if len(self._joined) >= 1_024:
            self._joined = {
                key: held for key, held in self._joined.items() if held.count or now_s - held.seen_s < 60
            }
