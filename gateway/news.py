"""Where an alarm's, incident's or task's news goes once it is on disk: to the pages that may see it, and to those parts of
the gateway that act on it. The outbox delivers it, so it may come twice; whoever takes it here bears that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.access import Resource
from gateway.alarms.announce import News
from gateway.catalog import Catalog
from gateway.intercom.switchboard import Switchboard
from gateway.participants import Participants
from gateway.prewarm import Prewarm
from gateway.sharing import Sharing
from gateway.witness import Witness

__all__ = ["AlarmNews"]


class Publish(Protocol):
    """EventChannel.publish."""

    def __call__(self, type: str, data: object, *, resource: Resource) -> None: ...


class AlarmNews:
    """publish: to the pages; flush: what was published goes out now. Raises what the parts raise; the courier then delivers all of it again."""

    def __init__(
        self,
        publish: Publish,
        *,
        flush: Callable[[], None],
        catalog: Callable[[], Catalog],
        participants: Participants,
        prewarm: Prewarm,
        witness: Witness,
        calls: Switchboard,
        sharing: Sharing,
    ) -> None:
        self._publish, self._flush = publish, flush
        self._catalog, self._participants = catalog, participants
        self._prewarm, self._witness, self._calls, self._sharing = prewarm, witness, calls, sharing

    async def publish(self, events: Sequence[tuple[int, News]]) -> None:
        """(number of the outbox row, news), oldest first."""
        full_lineage = self._catalog().full_lineage
        for _, news in events:
            participants = frozenset(news.participants)
            if news.type == "incident":
                participants = await self._participants.of_incident(news.id)
            resource = Resource(
                kind=news.type,
                id=news.id,
                lineage=full_lineage(news.lineage),
                owner=news.owner,
                participants=participants,
            )
            self._publish(news.type, news.data, resource=resource)
            if news.type == "alarm":
                if self._prewarm.wants(news.id):
                    self._prewarm.see(news.id, news.values())
                if self._witness.wants(news.id, news.incident):
                    self._witness.alarm_changed(news.values())
        self._flush()
        # By the outbox, so that no crash leaves a phone ringing for an alarm that is over.
        over = [news for _, news in events if news.over_at is not None]
        await asyncio.gather(
            *(self._calls.cancel_alarm(one.id, at_ms=one.over_at, hung_up=one.cancelled) for one in over)
        )
        if self._sharing.wanted:
            await self._sharing.take(
                [(number, news.type, news.values(), full_lineage(news.lineage)) for number, news in events]
            )
