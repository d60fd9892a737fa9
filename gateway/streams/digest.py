"""HTTP authentication as RTSP servers ask for it: Digest (RFC 7616, 2617, 2069) and Basic (RFC 7617). Pure."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Authorizer", "Challenge", "choose", "parse_challenges"]

MAX_HEADER_CHARS = 4_096
"""Longer headers are no challenge that a camera means; reading them must not take time."""
_PARAM = re.compile(r'\s*+([A-Za-z0-9_-]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))\s*')
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)(?=\s|,|$)(?!\s*=)")
_WORD = re.compile(r"\s*+[A-Za-z0-9_-]++")
_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One challenge of a WWW-Authenticate header. algorithm: upper case, MD5 if the server names none."""

    scheme: str
    realm: str
    nonce: str = ""
    opaque: str | None = None
    algorithm: str = "MD5"
    qop: tuple[str, ...] = ()
    stale: bool = False

    @property
    def strength(self) -> int:
        """0: we can't answer it; higher is better."""
        if self.scheme == "basic":
            return 1
        if self.scheme != "digest" or not self.nonce or (self.qop and "auth" not in self.qop):
            return 0
        return {"MD5": 2, "SHA-256": 3}.get(self.algorithm.removesuffix("-SESS"), 0)


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """All challenges of all WWW-Authenticate headers; several may share one header. Damaged parts are left out."""
    challenges = []
    for value in values:
        if len(value) > MAX_HEADER_CHARS:
            continue
        position = 0
        scheme: str | None = None
        params: dict[str, str] = {}
        while position < len(value):
            if match := _PARAM.match(value, position):
                quoted = match[2]
                params[match[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match[3]
            elif match := _SCHEME.match(value, position):
                if scheme is not None:
                    challenges.append(_challenge(scheme, params))
                scheme, params = match[1].lower(), {}
            else:
                match = _WORD.match(
                    value, position
                )  # the whole of it: letter by letter would take its length squared
            position = match.end() if match and match.end() > position else position + 1
        if scheme is not None:
            challenges.append(_challenge(scheme, params))
    return challenges


def _challenge(scheme: str, params: dict[str, str]) -> Challenge:
    return Challenge(
        scheme=scheme,
        realm=params.get("realm", ""),
        nonce=params.get("nonce", ""),
        opaque=params.get("opaque"),
        algorithm=params.get("algorithm", "MD5").upper() or "MD5",
        qop=tuple(part.strip().lower() for part in params.get("qop", "").split(",") if part.strip()),
        stale=params.get("stale", "").lower() == "true",
    )


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """The strongest challenge that we can answer, the first of equals."""
    best = max(challenges, key=lambda challenge: challenge.strength, default=None)
    return best if best is not None and best.strength else None


class Authorizer:
    """Writes Authorization headers for one challenge. cnonce: any string that is fresh for each connection."""

    __slots__ = ("_cnonce", "_count", "_password", "_username", "challenge")

    def __init__(self, challenge: Challenge, *, username: str, password: str, cnonce: str) -> None:
        self.challenge = challenge
        self._username = username
        self._password = password
        self._cnonce = cnonce
        self._count = 0

    def header(self, method: str, uri: str) -> str:
        """The value of the Authorization header for one request."""
        challenge = self.challenge
        if challenge.scheme == "basic":
            return "Basic " + b64encode(f"{self._username}:{self._password}".encode()).decode()
        new = _HASHES[challenge.algorithm.removesuffix("-SESS")]

        def digest(text: str) -> str:
            return new(text.encode()).hexdigest()

        self._count += 1
        count = f"{self._count:08x}"
        secret = digest(f"{self._username}:{challenge.realm}:{self._password}")
        if challenge.algorithm.endswith("-SESS"):
            secret = digest(f"{secret}:{challenge.nonce}:{self._cnonce}")
        what = digest(f"{method}:{uri}")
        if challenge.qop:
            response = digest(f"{secret}:{challenge.nonce}:{count}:{self._cnonce}:auth:{what}")
        else:
            response = digest(f"{secret}:{challenge.nonce}:{what}")
        parts = [
            f'username="{_quote(self._username)}"',
            f'realm="{_quote(challenge.realm)}"',
            f'nonce="{_quote(challenge.nonce)}"',
            f'uri="{uri}"',
            f'response="{response}"',
        ]
        if challenge.algorithm != "MD5":
            parts.append(f"algorithm={challenge.algorithm}")
        if challenge.opaque is not None:
            parts.append(f'opaque="{_quote(challenge.opaque)}"')
        if challenge.qop:
            parts.append(f'qop=auth, nc={count}, cnonce="{self._cnonce}"')
        return "Digest " + ", ".join(parts)


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
