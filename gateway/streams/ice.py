"""An ICE-lite agent for one session (RFC 8445), sans-I/O.

A lite agent sends no checks. It answers those of the peer, learns from them which paths work, and takes the
peer's nomination. The rules below were learned from browsers:

- Before nomination every path with an authenticated check may carry DTLS and media: Chromium sends its
  ClientHello on the first pair that answered, ahead of USE-CANDIDATE; waiting for that costs a second.
- After nomination the last USE-CANDIDATE wins (re-nomination, mobility). A selected pair that fell silent
  gives way to one that is being checked, because rebinding shows itself by checks alone, and at once to one on
  which the peer's RTCP comes.
- An authenticated request renews consent (RFC 7675); `consent_s` of silence ends the session.
- A restart keeps both generations of credentials until the first check of the new one; DTLS and SRTP are
  untouched by it.

A path is any hashable value that names (socket, remote address) to the caller.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from gateway.streams import stun

__all__ = ["CHECK_TIMEOUT_S", "CONSENT_S", "CheckResult", "IceCredentials", "IceSession", "IceState"]

PathT = TypeVar("PathT", bound=Hashable)

CONSENT_S = 30.0
CHECK_TIMEOUT_S = 30.0
# Chromium checks the selected pair every 2.5 s, Firefox every 5 s; one lost check must not move a pair.
SILENT_PAIR_S = 11.0
# RTCP on another pair says more than silence: the peer sends where it selected. Stragglers come within a second.
ABANDONED_S = 1.0
# One peer needs a few (interfaces x families x transports); the bound keeps a flapping NAT from filling the
# index.
MAX_PATHS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class IceCredentials:
    """ufrag: 4-256 ice-chars; pwd: 22-256 ice-chars (RFC 8839 section 5.4)."""

    ufrag: str
    pwd: str = field(repr=False)


class IceState(StrEnum):
    WAITING = "waiting"  # no authenticated check yet
    CHECKED = "checked"  # a path works, none is nominated
    NOMINATED = "nominated"
    FAILED = "failed"


class _Input(StrEnum):
    CHECK = "check"
    USE_CANDIDATE = "use_candidate"
    NEW_GENERATION = "new_generation"  # first check with the credentials of a restart
    EXPIRED = "expired"


_TRANSITIONS: dict[tuple[IceState, _Input], IceState] = {
    (IceState.WAITING, _Input.CHECK): IceState.CHECKED,
    (IceState.WAITING, _Input.USE_CANDIDATE): IceState.NOMINATED,
    (IceState.WAITING, _Input.NEW_GENERATION): IceState.WAITING,
    (IceState.WAITING, _Input.EXPIRED): IceState.FAILED,
    (IceState.CHECKED, _Input.CHECK): IceState.CHECKED,
    (IceState.CHECKED, _Input.USE_CANDIDATE): IceState.NOMINATED,
    (IceState.CHECKED, _Input.NEW_GENERATION): IceState.CHECKED,
    (IceState.CHECKED, _Input.EXPIRED): IceState.FAILED,
    (IceState.NOMINATED, _Input.CHECK): IceState.NOMINATED,
    (IceState.NOMINATED, _Input.USE_CANDIDATE): IceState.NOMINATED,
    (IceState.NOMINATED, _Input.NEW_GENERATION): IceState.CHECKED,
    (IceState.NOMINATED, _Input.EXPIRED): IceState.FAILED,
}


class CheckResult(NamedTuple, Generic[PathT]):
    """What to do after a request.

    response: to be sent back on the same path; None: the request was not authentic, stay silent (no oracle,
    no reflection).
    accepted: the path is authenticated now and belongs to this session in the caller's index.
    moved: `selected` changed. dropped: paths that the session gave up to stay within MAX_PATHS.
    retired_ufrag: a ufrag that became invalid with this check.
    """

    response: bytes | None
    accepted: bool = False
    moved: bool = False
    dropped: tuple[PathT, ...] = ()
    retired_ufrag: str | None = None


@dataclass(slots=True)
class _Generation:
    local: IceCredentials
    password: bytes
    username: bytes  # what the peer must send: our ufrag:its ufrag


def _generation(local: IceCredentials, remote_ufrag: str) -> _Generation:
    return _Generation(local, local.pwd.encode(), f"{local.ufrag}:{remote_ufrag}".encode())


class IceSession(Generic[PathT]):
    """One controlled ICE-lite agent with one component."""

    def __init__(
        self, *, local: IceCredentials, remote_ufrag: str, now: float, consent_s: float = CONSENT_S
    ) -> None:
        """consent_s: silence after which the peer's consent is lost (RFC 7675 section 5.1 has 30 s)."""
        self.state = IceState.WAITING
        self.selected: PathT | None = None
        self.failure: str | None = None
        self.moves = 0
        self._current = _generation(local, remote_ufrag)
        self._next: _Generation | None = None
        self._paths: dict[PathT, float] = {}
        self._heard = now
        self._consent_s = consent_s

    @property
    def local(self) -> IceCredentials:
        """Credentials to be announced: of the restart under way if there is one."""
        return (self._next or self._current).local

    @property
    def ufrags(self) -> tuple[str, ...]:
        """Every local ufrag under which checks are taken now."""
        if self._next is None:
            return (self._current.local.ufrag,)
        return (self._current.local.ufrag, self._next.local.ufrag)

    @property
    def paths(self) -> tuple[PathT, ...]:
        return tuple(self._paths)

    def receive_request(
        self, request: stun.BindingRequest, path: PathT, source: tuple[str, int], now: float
    ) -> CheckResult[PathT]:
        """Take one binding request that came from `source` on `path`."""
        generation = self._find(request)
        if generation is None or self.state is IceState.FAILED:
            return CheckResult(response=None)
        key = generation.password
        if request.unknown:
            answer = stun.error_response(request.transaction_id, stun.UNKNOWN_ATTRIBUTE, key, request.unknown)
            return CheckResult(response=answer)
        if request.controlling is False:
            # Lite is always controlled (RFC 8445 section 6.1.1), so the other side has to switch.
            return CheckResult(response=stun.error_response(request.transaction_id, stun.ROLE_CONFLICT, key))

        retired = None
        if generation is self._next:
            retired = self._current.local.ufrag
            self._current, self._next = generation, None
            self._step(_Input.NEW_GENERATION)
        silent = self.selected is not None and now - self._paths.get(self.selected, now) > SILENT_PAIR_S
        self._heard = now
        self._paths.pop(path, None)  # to the end: the first is the one heard longest ago
        self._paths[path] = now
        chosen = request.use_candidate or self.state is not IceState.NOMINATED or silent
        self._step(_Input.USE_CANDIDATE if request.use_candidate else _Input.CHECK)
        moved = chosen and self._select(path)
        return CheckResult(
            response=stun.success_response(request.transaction_id, source[0], source[1], key),
            accepted=True,
            moved=moved,
            dropped=self._trim(),
            retired_ufrag=retired,
        )

    def receive_data(self, path: PathT) -> bool:
        """DTLS or authentic RTCP came on a path.

        Before nomination an authenticated path shows what the peer prefers. Afterwards it does so too when
        the selected one was not checked since: the peer's NAT gave it another address, and its consent checks
        need not nominate again (aiortc's don't). True: `selected` changed.
        """
        heard = self._paths.get(path)
        if heard is None or path == self.selected:
            return False
        if self.state is IceState.CHECKED:
            return self._select(path)
        if self.state is IceState.NOMINATED and self.selected is not None:
            return heard - self._paths.get(self.selected, heard) > ABANDONED_S and self._select(path)
        return False

    def forget(self, path: PathT) -> None:
        """The path is gone: its TCP connection closed, or its address authenticated for another session."""
        self._paths.pop(path, None)
        if path == self.selected:
            # The most recently checked one is the best guess until the peer nominates again.
            self.selected = next(reversed(self._paths), None)
            self.moves += 1

    def restart(self, *, local: IceCredentials, remote_ufrag: str) -> str | None:
        """Begin a restart (RFC 8445 section 9).

        Returns the ufrag of an unfinished earlier restart, now invalid.
        """
        dropped = self._next.local.ufrag if self._next else None
        self._next = _generation(local, remote_ufrag)
        return dropped

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which handle_timeout() has something to decide."""
        if self.state is IceState.FAILED:
            return None
        return self._heard + (CHECK_TIMEOUT_S if self.state is IceState.WAITING else self._consent_s)

    def handle_timeout(self, now: float) -> None:
        """End the session if its time is over; `failure` says why."""
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return
        if self.state is IceState.WAITING:
            self.failure = (
                f"no connectivity check came within {CHECK_TIMEOUT_S:.0f} s (is the media port reachable?)"
            )
        else:
            self.failure = f"consent lost: no connectivity check for {self._consent_s:.0f} s"
        self._step(_Input.EXPIRED)

    def _find(self, request: stun.BindingRequest) -> _Generation | None:
        for generation in (self._next, self._current):
            if generation and request.username == generation.username:
                return generation if request.is_authentic(generation.password) else None
        return None

    def _step(self, event: _Input) -> None:
        self.state = _TRANSITIONS[self.state, event]

    def _select(self, path: PathT) -> bool:
        if path == self.selected:
            return False
        if self.selected is not None:
            self.moves += 1
        self.selected = path
        return True

    def _trim(self) -> tuple[PathT, ...]:
        if len(self._paths) <= MAX_PATHS:
            return ()
        oldest = next(path for path in self._paths if path != self.selected)
        del self._paths[oldest]
        return (oldest,)
