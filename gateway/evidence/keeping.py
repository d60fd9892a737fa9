"""How long evidence stays, and what happens before the disk is full.

By policy a clip goes `retention_ms` after its end; what is held never goes, and alarms are not of this matter: their rows
stay for ever. Below `floor_octets` of free disk the oldest clips that nobody holds go before their time, but none younger
than `young_ms`; if that does not help, recording is refused with a reason and health is red, and the recorder itself stops
what runs at half of the floor. What was pruned keeps its row and its audit line.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from gateway.audit import audit
from gateway.errors import Unavailable
from gateway.evidence import tables
from gateway.evidence.tables import ClipState, Row
from gateway.store import Store

__all__ = ["Keeping", "KeepingPolicy"]

logger = logging.getLogger(__name__)

BATCH = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingPolicy:
    """interval_s: between two looks at disk and clock."""

    retention_ms: int = 30 * 86_400_000
    floor_octets: int = 2_000_000_000
    young_ms: int = 3_600_000
    interval_s: float = 10.0


class Keeping:
    """`refusal`: why nothing is recorded at this moment; None if it is."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        policy: KeepingPolicy,
        *,
        clock: Callable[[], int],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        """on_room: there is room again."""
        self._store = store
        self._directory = directory
        self._policy = policy
        self._clock = clock
        self._on_room = on_room
        self.refusal: str | None = None
        self.free_octets = 0
        self.pruned = {"retention": 0, "disk_full": 0}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._policy.interval_s)
            try:
                await self.look()
            except Unavailable as error:
                logger.warning("nothing is pruned: %s", error)

    async def look(self) -> None:
        """Prune what is due, make room if it is needed, and say whether there is any."""
        while rows := await self._store.read(lambda c: tables.expired(c, self._clock(), BATCH)):
            await self._prune(rows, "retention")
        floor = self._policy.floor_octets
        while not await self._free() >= floor:
            before = self._clock() - self._policy.young_ms
            rows = await self._store.read(lambda c, before=before: tables.oldest(c, before, 1))  # type: ignore[misc]
            if not rows:
                break
            await self._prune(rows, "disk_full")
        lacking = self.free_octets < floor
        refusal = (
            f"disk_full: {self.free_octets >> 20} MiB free, {floor >> 20} MiB wanted" if lacking else None
        )
        if (refusal is None) != (self.refusal is None):
            logger.log(
                logging.ERROR if lacking else logging.INFO, "evidence: %s", refusal or "there is room again"
            )
        was, self.refusal = self.refusal, refusal
        if was is not None and refusal is None:
            self._on_room()

    async def _free(self) -> int:
        def look() -> int:
            self._directory.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self._directory).free

        try:
            self.free_octets = await asyncio.to_thread(look)
        except OSError as error:
            logger.error("the evidence directory can't be used: %s", error)
            self.free_octets = 0
        return self.free_octets

    async def _prune(self, rows: Sequence[Row], why: str) -> None:
        """The row first: what is called pruned must not be handed out, even if the file outlives a crash for a while."""
        now_ms = self._clock()

        def write(connection: Connection) -> list[Row]:
            gone = []
            for stale in rows:
                row = tables.load(connection, stale["id"])
                if row["hold_at"] is not None or row["state"] != ClipState.COMPLETE.value:
                    continue  # held a moment ago
                told = "; ".join(filter(None, (row["reason"], f"pruned: {why}")))
                tables.change(connection, row["id"], state=ClipState.PRUNED.value, reason=told)
                audit(
                    connection,
                    who="system",
                    action="evidence.prune",
                    subject=f"evidence/{row['id']}",
                    detail={"why": why, "sha256": row["sha256"], "size": row["size"]},
                    now_ms=now_ms,
                )
                gone.append(row)
            return gone

        gone = await self._store.write(write)
        self.pruned[why] += len(gone)
        await asyncio.to_thread(self._unlink, gone)

    def _unlink(self, rows: Sequence[Row]) -> None:
        for row in rows:
            try:
                (self._directory / row["file"]).unlink(missing_ok=True)
            except OSError as error:
                logger.error("the file of clip %s can't be removed: %s", row["id"], error)
