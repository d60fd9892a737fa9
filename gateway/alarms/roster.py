"""Duty, presence and position of the gridworkers: live in memory, durable where a restart must not forget.

Duty changes are committed at once (who is on duty decides whom a call for help rings). Fixes come a hundred a
second; the newest of each worker is flushed together every few seconds, with a point of the track. What is
sent off duty is dropped unsaved: a gridworker off duty is nobody's business. An impossible jump (over 60 m/s
by default since the last fix) is ignored and flagged; three in a row that agree with one another are believed: then the
old fix was the wrong one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, Connection, Float, Index, Integer, Table, Text, delete, select
from sqlalchemy.dialects.sqlite import insert

from gateway.alarms.datum import Confusion, DatumWatch
from gateway.alarms.dispatch import Crowd, DispatchSettings, Duty, Freshness, WorkerState, freshness
from gateway.alarms.world import WorkerSite
from gateway.audit import audit
from gateway.errors import NotFound, ProtocolError
from gateway.geo import Datum, Position, distance_m, from_datum
from gateway.store import Store, metadata

__all__ = ["Fix", "Roster", "WorkerView", "parse_location", "track_table", "worker_table"]

logger = logging.getLogger(__name__)

JUMPS_BELIEVED = 3
CLOCK_BELIEVED = 3
"""So many fixes after the first must come behind by the same, before it is the phone's clock."""
STEADY_MS = 3_000
ABSURD_MS = 86_400_000
"""A clock that is further off says nothing: the time of receipt counts."""

worker_table = Table(
    "worker",
    metadata,
    Column("id", Text, primary_key=True),
    Column("duty", Text, nullable=False),
    Column("duty_at", BigInteger, nullable=False),
    Column("lat", Float),
    Column("lon", Float),
    Column("fix_at", BigInteger),
    Column("accuracy_m", Float),
    Column("speed_mps", Float),
    Column("seq", BigInteger),
)
track_table = Table(
    "worker_track",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("worker", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("lat", Float, nullable=False),
    Column("lon", Float, nullable=False),
    Column("accuracy_m", Float, nullable=False),
)
Index("ix_worker_track_worker_at", track_table.c.worker, track_table.c.at)
Index("ix_worker_track_at", track_table.c.at)

_UPSERT_DUTY = insert(worker_table)
_UPSERT_DUTY = _UPSERT_DUTY.on_conflict_do_update(
    index_elements=["id"], set_={"duty": _UPSERT_DUTY.excluded.duty, "duty_at": _UPSERT_DUTY.excluded.duty_at}
)
_FIX_COLUMNS = ("lat", "lon", "fix_at", "accuracy_m", "speed_mps", "seq")
_UPSERT_FIX = insert(worker_table)
_UPSERT_FIX = _UPSERT_FIX.on_conflict_do_update(
    index_elements=["id"], set_={name: _UPSERT_FIX.excluded[name] for name in _FIX_COLUMNS}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """A position as a phone reports it, already WGS-84. seq: the phone's counter, so that a late one
    doesn't move it back. taken_at: when it was found, by the phone's clock (ms).
    """

    position: Position
    accuracy_m: float
    speed_mps: float
    seq: int
    taken_at: int | None = None


@dataclass(slots=True)
class _PhoneClock:
    """How far a phone's clock is behind ours, as far as its fixes show. Server time decides how old a fix is (product.md
    section 3), and a phone without reception sends its last one again and again.

    A fix that is behind is old, unless they go on coming behind by the same: then the clock is slow, not the fixes.
    """

    slow_ms: int = 0
    last: int | None = None
    behind_ms: int = 0
    alike: int = 0

    def ours(self, taken_at: int | None, now_ms: int) -> int:
        """When a fix that comes now was found, by our clock."""
        if taken_at is None or abs(now_ms - taken_at) > ABSURD_MS:
            return now_ms
        behind_ms = now_ms - taken_at
        if taken_at != self.last:
            steady = self.last is not None and abs(behind_ms - self.behind_ms) <= STEADY_MS
            self.alike = self.alike + 1 if steady and taken_at > (self.last or 0) else 0
            self.last, self.behind_ms = taken_at, behind_ms
            if self.alike >= CLOCK_BELIEVED:
                self.slow_ms = behind_ms
        self.slow_ms = min(self.slow_ms, behind_ms)
        return taken_at + self.slow_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """The contract's Worker."""

    id: str
    name: str
    grid: str | None
    duty: Duty
    online: bool
    position: Position | None
    fix_at: int | None
    accuracy_m: float | None
    freshness: Freshness
    datum_suspected: Confusion | None = None


@dataclass(slots=True)
class _Entry:
    state: WorkerState
    suspected: Confusion | None = None
    seq: int = -1
    jumps: int = 0
    jumped_to: Position | None = None
    jumped_at: int = 0
    clock: _PhoneClock = field(default_factory=_PhoneClock)


class Roster:
    """Owned by the loop. `await roster.load(sites)` before use; `await flush(now_ms)` now and then
    (AlarmDesk.run does).
    """

    def __init__(
        self,
        store: Store,
        settings: DispatchSettings,
        *,
        on_change: Callable[[WorkerView], None] | None = None,
        inside: Callable[[str, Position], bool] | None = None,
    ) -> None:
        """inside(grid, position): for the detector of confused datums; None: without it."""
        self._store = store
        self._settings = settings
        self._on_change = on_change or (lambda view: None)
        self._entries: dict[str, _Entry] = {}
        self.crowd = Crowd()
        self._dirty: dict[str, _Entry] = {}
        self._datum = None if inside is None else DatumWatch(inside)
        self._suspects: dict[str, Confusion] = {}  # to be audited with the next flush
        self.jumps_ignored = 0

    async def load(self, sites: Iterable[WorkerSite]) -> None:
        """The configured workers, with what was kept of them. Again after a reload: presence is kept."""
        kept = {row["id"]: row for row in await self._store.read(_load)}
        entries: dict[str, _Entry] = {}
        for site in sites:
            old, row = self._entries.get(site.id), kept.get(site.id)
            if old is not None:
                state = replace(old.state, name=site.name, grid=site.grid, centroid=site.centroid)
                entries[site.id] = _Entry(state, old.suspected, old.seq, clock=old.clock)
                continue
            position = None
            if row is not None and row["lat"] is not None:
                position = Position(lat=row["lat"], lon=row["lon"])
            state = WorkerState(
                id=site.id,
                name=site.name,
                grid=site.grid,
                duty=Duty.OFF if row is None else Duty(row["duty"]),
                online=False,
                position=position,
                fix_at=None if row is None else row["fix_at"],
                accuracy_m=0.0 if row is None or row["accuracy_m"] is None else row["accuracy_m"],
                speed_mps=0.0 if row is None or row["speed_mps"] is None else row["speed_mps"],
                centroid=site.centroid,
            )
            # The phone may have restarted its counter while we were away: seq is not taken from the row.
            entries[site.id] = _Entry(state)
        self._entries = entries
        self.crowd = Crowd(entry.state for entry in entries.values())

    def state(self, worker_id: str) -> WorkerState:
        """Raises NotFound."""
        return self._entry(worker_id).state

    def view(self, worker_id: str, now_ms: int) -> WorkerView:
        """Raises NotFound."""
        return self._view(self._entry(worker_id).state, now_ms)

    def views(self, now_ms: int) -> list[WorkerView]:
        return [self._view(entry.state, now_ms) for entry in self._entries.values()]

    async def set_duty(
        self, worker_id: str, duty: Duty, *, now_ms: int, who: str | None = None
    ) -> WorkerView:
        """Commits the change with its audit line, then tells. Going off duty forgets the live position.
        Raises NotFound.
        """
        entry = self._entry(worker_id)
        if entry.state.duty is not duty:

            def change(connection: Connection) -> None:
                connection.execute(_UPSERT_DUTY, {"id": worker_id, "duty": duty, "duty_at": now_ms})
                audit(
                    connection,
                    who=who or f"worker/{worker_id}",
                    action="worker.duty",
                    subject=f"worker/{worker_id}",
                    detail={"duty": duty},
                    now_ms=now_ms,
                )

            await self._store.write(change)
            self._know(entry, replace(entry.state, duty=duty))
            if duty is Duty.OFF:
                gone = replace(entry.state, position=None, fix_at=None, accuracy_m=0.0, speed_mps=0.0)
                self._know(entry, gone)
                self._dirty[worker_id] = entry
                if self._datum is not None:
                    self._datum.forget(worker_id)
        view = self._view(entry.state, now_ms)
        self._on_change(view)
        return view

    def set_online(self, worker_id: str, online: bool, *, now_ms: int) -> None:
        """Presence of the phone (a connection, a page). Unknown ids are ignored."""
        entry = self._entries.get(worker_id)
        if entry is not None and entry.state.online is not online:
            self._know(entry, replace(entry.state, online=online))
            self._on_change(self._view(entry.state, now_ms))

    def locate(self, worker_id: str, fix: Fix, *, now_ms: int) -> bool:
        """Takes a fix; True if it counts. Dropped: off duty, older than what is known, an impossible jump.
        Raises NotFound.
        """
        entry = self._entry(worker_id)
        state = entry.state
        if state.duty is Duty.OFF:
            return False
        if fix.seq <= entry.seq and entry.seq - fix.seq < 1000:  # far below: the phone began to count anew
            return False
        taken_at = entry.clock.ours(fix.taken_at, now_ms)
        if state.fix_at is not None and taken_at < state.fix_at:
            return False
        if self._jumps(entry, fix, taken_at):
            self.jumps_ignored += 1
            return False
        entry.seq = fix.seq
        here = replace(
            state,
            position=fix.position,
            fix_at=taken_at,
            accuracy_m=fix.accuracy_m,
            speed_mps=fix.speed_mps,
            online=True,
        )
        self._know(entry, here)
        self._dirty[worker_id] = entry
        if self._datum is not None and state.grid is not None:
            suspected = self._datum.see(worker_id, state.grid, fix.position, now_ms)
            if suspected is not None and suspected is not entry.suspected:
                logger.warning("phone of %s seems to name the wrong datum: %s", worker_id, suspected)
                self._suspects[worker_id] = suspected
            entry.suspected = suspected
        self._on_change(self._view(entry.state, now_ms))
        return True

    async def flush(self, now_ms: int, *, keep_track_ms: int = 30 * 86_400_000) -> None:
        """Writes what changed since the last flush and forgets tracks older than `keep_track_ms`."""
        dirty, self._dirty = self._dirty, {}
        if not dirty:
            return
        suspects, self._suspects = self._suspects, {}
        rows = []
        for worker_id, entry in dirty.items():
            s = entry.state
            lat, lon = (None, None) if s.position is None else (s.position.lat, s.position.lon)
            rows.append(
                {
                    "id": worker_id,
                    "duty": s.duty,
                    "duty_at": now_ms,
                    "lat": lat,
                    "lon": lon,
                    "fix_at": s.fix_at,
                    "accuracy_m": s.accuracy_m,
                    "speed_mps": s.speed_mps,
                    "seq": entry.seq,
                }
            )
        points = [
            {
                "worker": r["id"],
                "at": r["fix_at"],
                "lat": r["lat"],
                "lon": r["lon"],
                "accuracy_m": r["accuracy_m"],
            }
            for r in rows
            if r["lat"] is not None
        ]

        def keep(connection: Connection) -> None:
            connection.execute(_UPSERT_FIX, rows)
            if points:
                connection.execute(track_table.insert(), points)
            connection.execute(delete(track_table).where(track_table.c.at < now_ms - keep_track_ms))
            for worker_id, suspected in suspects.items():
                audit(
                    connection,
                    who="system",
                    action="worker.datum_suspected",
                    subject=f"worker/{worker_id}",
                    detail={"confusion": suspected},
                    now_ms=now_ms,
                )

        try:
            await self._store.write(keep)
        except BaseException:
            self._dirty = {**dirty, **self._dirty}
            self._suspects = {**suspects, **self._suspects}
            raise

    def _know(self, entry: _Entry, state: WorkerState) -> None:
        entry.state = state
        self.crowd.put(state)

    def _entry(self, worker_id: str) -> _Entry:
        try:
            return self._entries[worker_id]
        except KeyError:
            raise NotFound(f"no gridworker {worker_id}") from None

    def _view(self, state: WorkerState, now_ms: int) -> WorkerView:
        return WorkerView(
            id=state.id,
            name=state.name,
            grid=state.grid,
            duty=state.duty,
            online=state.online,
            position=state.position,
            fix_at=state.fix_at,
            accuracy_m=None if state.position is None else state.accuracy_m,
            freshness=freshness(self._settings, state.fix_at if state.position else None, now_ms),
            datum_suspected=self._entries[state.id].suspected if state.id in self._entries else None,
        )

    def _jumps(self, entry: _Entry, fix: Fix, now_ms: int) -> bool:
        """Whether to ignore this fix as an impossible jump. Counts agreeing jumps in `entry`."""
        state = entry.state
        if state.position is None or state.fix_at is None:
            return False
        limit_mps = self._settings.jump_mps
        if not _impossible(
            state.position,
            state.fix_at,
            state.accuracy_m + fix.accuracy_m,
            fix.position,
            now_ms,
            limit_mps,
        ):
            entry.jumps, entry.jumped_to = 0, None
            return False
        agrees = entry.jumped_to is not None and not _impossible(
            entry.jumped_to, entry.jumped_at, 2 * fix.accuracy_m, fix.position, now_ms, limit_mps
        )
        entry.jumps = entry.jumps + 1 if agrees else 1
        entry.jumped_to, entry.jumped_at = fix.position, now_ms
        if entry.jumps >= JUMPS_BELIEVED:
            entry.jumps, entry.jumped_to = 0, None
            return False
        logger.info("impossible jump of %s ignored", state.id, extra={"worker_id": state.id})
        return True


def parse_location(raw: bytes) -> Fix:
    """`w/{wid}/loc` and the HTTP form. Raises ProtocolError, also without a datum."""
    if len(raw) > 512:
        raise ProtocolError("too_long", 512)
    try:
        report = msgspec.json.decode(raw, type=_Location)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ProtocolError("malformed", detail=str(exc)[:200]) from None
    return Fix(
        position=from_datum(report.lat, report.lon, report.datum),
        accuracy_m=report.acc,
        speed_mps=report.spd or 0.0,
        seq=report.seq,
        taken_at=report.fix,
    )


class _Location(msgspec.Struct, frozen=True, kw_only=True):
    """fix: the phone's own time of the fix (ms); see _PhoneClock."""

    lat: float
    lon: float
    datum: Datum
    acc: float
    seq: int
    spd: float | None = None
    fix: int | None = None

    def __post_init__(self) -> None:
        if not (-90 <= self.lat <= 90 and -180 <= self.lon <= 180):
            raise ValueError("position out of range")
        if not (0 <= self.acc <= 100_000 and 0 <= (self.spd or 0.0) <= 100):
            raise ValueError("accuracy or speed out of range")


def _impossible(a: Position, a_at: int, slack_m: float, b: Position, b_at: int, limit_mps: float) -> bool:
    elapsed_s = max(0.5, (b_at - a_at) / 1000)
    return distance_m(a, b) - slack_m > limit_mps * elapsed_s


def _load(connection: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(select(worker_table)).mappings()]
