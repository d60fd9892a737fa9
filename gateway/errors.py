"""The one tree of errors that cross a module boundary.

    GatewayError
    ├── ProtocolError          a peer sent what its protocol forbids; carries where
    ├── ConfigError            a configuration file is wrong; carries every mistake found
    ├── NotAllowed             authorize() said no (HTTP 401/403)
    ├── NotFound               no such thing, or none the caller may know of (HTTP 404)
    ├── Conflict               the thing is in another state than the request assumes (HTTP 409)
    ├── Unavailable            it exists but can't serve now; says when to try again (HTTP 409/503 + Retry-After)
    └── TooMany                a limit is reached (HTTP 429 + Retry-After)

The HTTP boundary turns each into an RFC 9457 problem document (`gateway.http.problems`). Messages say what to do.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "Conflict",
    "GatewayError",
    "NotAllowed",
    "NotFound",
    "ProtocolError",
    "TooMany",
    "Unavailable",
]


class GatewayError(Exception):
    """Base of all errors that a caller is expected to handle."""


class ProtocolError(GatewayError):
    """A peer sent what its protocol forbids.

    `reason` is short and stable (usable as a counter label), `offset` the byte (or line) where it was noticed,
    `context` what is needed to find the packet in a capture: camera_id, peer, CSeq, ssrc, sequence_number.
    """

    def __init__(self, reason: str, offset: int | None = None, **context: object) -> None:
        self.reason = reason
        self.offset = offset
        self.context = context
        where = "" if offset is None else f" at {offset}"
        what = "".join(f" {key}={value}" for key, value in context.items())
        super().__init__(f"{reason}{where}{what}")


class ConfigError(GatewayError):
    """Configuration is wrong. `mistakes` holds one printable line for each, with file, line and path."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        super().__init__("\n".join(mistakes))


class NotAllowed(GatewayError):
    """The principal may not do this. `authenticated` tells 403 from 401."""

    def __init__(self, reason: str, *, authenticated: bool = True) -> None:
        self.authenticated = authenticated
        super().__init__(reason)


class NotFound(GatewayError):
    """No such thing (or none that the caller may know of)."""


class Conflict(GatewayError):
    """The thing is not in the state that the request assumes. `detail` goes into the problem document."""

    def __init__(self, reason: str, **detail: object) -> None:
        self.detail = detail
        super().__init__(reason)


class Unavailable(GatewayError):
    """Known, but can't serve now. `retry_after_s` is a promise worth keeping."""

    def __init__(self, reason: str, *, retry_after_s: float = 5.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class TooMany(GatewayError):
    """A limit per principal, host or process is reached."""

    def __init__(self, reason: str, *, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)
