"""Steps of calls within a transaction, on the writer thread: the call is read, moved by `call.step`, written back by
compare-and-set, its audit lines and its announcements with it.

What opens together is written together: each statement gives the interpreter lock away and has to win it back, so a
storm's calls cost by their statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.errors import NotFound
from gateway.intercom import ledger, tables
from gateway.intercom.call import step
from gateway.intercom.model import (
    AlarmBrief,
    Call,
    CallSettings,
    Effect,
    Elapsed,
    Input,
    RankedWorker,
    Relocate,
)
from gateway.intercom.plan import choose, ring_request

__all__ = ["Moved", "Plan", "Steps", "load"]

Plan = tuple[AlarmBrief, Call, Sequence[RankedWorker]]
"""What an alarm's commit asks for, the call as it would be opened, and who could ring for it."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A call as it is on disk after a transaction, and the effects that are not in the outbox."""

    call: Call
    effects: tuple[Effect, ...]

    def following(self, earlier: Moved) -> Moved:
        """Both steps of one transaction as one."""
        return Moved(self.call, (*earlier.effects, *self.effects))


def load(connection: Connection, call_id: str) -> Call:
    """Raises NotFound."""
    call = tables.load(connection, call_id)
    if call is None:
        raise NotFound(f"no call {call_id}")
    return call


class Steps:
    """Knows nothing but the settings; everything else is in the transaction."""

    def __init__(self, settings: CallSettings) -> None:
        self._settings = settings

    def move(self, connection: Connection, before: Call, given: Input, now_ms: int) -> Moved:
        """One step of one call with everything that belongs to it in the same transaction."""
        after, effects = step(before, given, now_ms, self._settings)
        if after == before:
            return Moved(before, effects)
        tables.save(connection, before, after)
        ledger.record_step(connection, before, after, given, effects, now_ms, self._settings)
        return Moved(after, effects)

    def ring_more(
        self, connection: Connection, call: Call, ranked: Sequence[RankedWorker], now_ms: int
    ) -> Moved:
        """Rings whom the plan lacks."""
        request = ring_request(call, now_ms, self._settings)
        if request is None:
            return Moved(call, ())
        busy = tables.busy_workers(connection)
        chosen = choose(ranked, request, busy, nobody_rings=not call.ringing)
        return self.move(connection, call, chosen, now_ms)

    def elapsed(
        self, connection: Connection, call: Call, ranked: Sequence[RankedWorker] | None, now_ms: int
    ) -> Moved:
        """Its deadline has come; `ranked` if more phones shall ring."""
        if call.ended:
            return Moved(call, ())
        done = self.move(connection, call, Elapsed(), now_ms)
        if done.call.ended or ranked is None:
            return done
        return self.ring_more(connection, done.call, ranked, now_ms).following(done)

    def begin(
        self,
        connection: Connection,
        call: Call,
        ranked: Sequence[RankedWorker],
        now_ms: int,
        who: str,
        *,
        opened_for: str | None,
    ) -> Moved:
        """A new call rings by itself."""
        begun = self._begun(connection, call, ranked, now_ms, who, tables.busy_workers(connection))
        tables.insert_calls(connection, [(begun.call, opened_for)])
        return begun

    def open_all(self, connection: Connection, plans: Sequence[Plan], now_ms: int) -> list[Moved]:
        """The calls of alarms. A plan that came before changes nothing, one with a corrected place rings who is near that."""
        known = tables.opened(connection, [brief.opens for brief, _, _ in plans])
        busy = tables.busy_workers(connection)
        moved: list[Moved] = []
        new: list[tuple[Call, str]] = []
        for brief, call, ranked in plans:
            if brief.opens in known or brief.again_at is not None:
                tables.insert_calls(connection, new)
                new = []
                moved.append(self._open_or_relocate(connection, brief, call, ranked, now_ms))
            else:
                begun = self._begun(connection, call, ranked, now_ms, ledger.SYSTEM, busy)
                new.append((begun.call, brief.opens))
                moved.append(begun)
            known.add(brief.opens)
        tables.insert_calls(connection, new)
        return moved

    def _open_or_relocate(
        self,
        connection: Connection,
        brief: AlarmBrief,
        call: Call,
        ranked: Sequence[RankedWorker],
        now_ms: int,
    ) -> Moved:
        call_id = tables.opened_for(connection, brief.opens)
        if call_id is None and brief.again_at is not None:  # what goes on about it need not ring twice
            call_id = next(iter(tables.open_for(connection, brief.alarm_id)), None)
        if call_id is None:
            return self.begin(connection, call, ranked, now_ms, ledger.SYSTEM, opened_for=brief.opens)
        known = load(connection, call_id)
        if known.ended:
            return Moved(known, ())
        place = Relocate(
            place_label=brief.place_label,
            position=brief.position,
            lineage=brief.lineage,
            grid=brief.grid,
        )
        moved = self.move(connection, known, place, now_ms)
        if moved.call.version == known.version:
            return moved
        return self.ring_more(connection, moved.call, ranked, now_ms).following(moved)

    def _begun(
        self,
        connection: Connection,
        call: Call,
        ranked: Sequence[RankedWorker],
        now_ms: int,
        who: str,
        busy: frozenset[str],
    ) -> Moved:
        """All of the beginning but the call's own rows, which the caller inserts as they are after it."""
        ledger.record_opening(connection, call, who, now_ms)
        request = ring_request(call, now_ms, self._settings)
        if request is None:
            return Moved(call, ())
        chosen = choose(ranked, request, busy, nobody_rings=not call.ringing)
        after, effects = step(call, chosen, now_ms, self._settings)
        ledger.record_step(connection, call, after, chosen, effects, now_ms, self._settings)
        return Moved(after, effects)
