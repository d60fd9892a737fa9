"""What is known of calls: reads of the store, and whose media is whose. The switchboard is who changes them."""

from __future__ import annotations

from sqlalchemy import Connection

from gateway.errors import NotFound
from gateway.intercom import tables
from gateway.intercom.model import Call
from gateway.intercom.steps import load
from gateway.intercom.view import media_owner, source_id
from gateway.store import Store

__all__ = ["CallReader"]


class CallReader:
    """Calls as they are on disk."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, call_id: str) -> Call:
        """Raises NotFound."""
        return await self._store.read(lambda connection: load(connection, call_id))

    async def calls(self, *, only_open: bool = False, limit: int = 100) -> list[Call]:
        """Newest first; the caller leaves out what the principal may not see."""

        def read(connection: Connection) -> list[Call]:
            ids = tables.recent(connection, only_open=only_open, limit=limit)
            return [load(connection, call_id) for call_id in ids]

        return await self._store.read(read)

    async def about(self, alarm_id: str) -> list[Call]:
        """The calls about this alarm, oldest first."""

        def read(connection: Connection) -> list[Call]:
            return [load(connection, call_id) for call_id in tables.about(connection, alarm_id)]

        return await self._store.read(read)

    async def missed(self, worker_id: str, *, since_ms: int, limit: int = 50) -> list[Call]:
        """The calls this worker missed, newest first."""

        def read(connection: Connection) -> list[Call]:
            found = tables.missed(connection, worker_id, since_ms, limit)
            return [load(connection, call_id) for call_id in dict.fromkeys(c for c, _ in found)]

        return await self._store.read(read)

    async def own_leg(self, call_id: str, leg_id: str, participant_id: str) -> tuple[str, str]:
        """(source id, media owner) for publishing on one's own leg.

        Raises NotFound for anybody else's, or if it left.
        """
        call = await self.get(call_id)
        leg = call.leg(leg_id)
        if leg is None or leg.left_at is not None or leg.participant.id != participant_id:
            raise NotFound(f"no leg {leg_id} of yours in call {call_id}")
        return source_id(call_id, leg_id), media_owner(call_id, leg_id)

    async def watchable_leg(self, call_id: str, leg_id: str, participant_id: str) -> tuple[str, str]:
        """(source id, media owner) for watching a leg.

        A desk that is not in the call watches under the call's own name.
        """
        call = await self.get(call_id)
        leg = call.leg(leg_id)
        if leg is None or leg.left_at is not None:
            raise NotFound(f"no leg {leg_id} in call {call_id}")
        own = call.leg_of(participant_id)
        return source_id(call_id, leg_id), media_owner(call_id, own.id if own else None)
