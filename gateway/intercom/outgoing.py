"""What a call tells the world, out of the outbox: rings, the provider's notices, events, news for the alarm desk."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway import outbox
from gateway.intercom import ledger
from gateway.intercom.model import Call

__all__ = ["Audience", "Outgoing", "Receipts"]

logger = logging.getLogger(__name__)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Who may get an event.

    only: this gridworker alone; else whoever is a participant or may see the lineage.
    """

    lineage: tuple[str, ...]
    participants: tuple[str, ...]
    only: str | None = None


class Receipts:
    """How rings reached phones, by channel: delivered, failed, and the seconds from the ring to the receipt."""

    def __init__(self) -> None:
        self.delivered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}

    def count(self, before: Call | None, after: Call, worker_id: str, channel: str) -> None:
        """After a `Delivered`; a receipt that came twice counts once."""
        if before is not None and before.version == after.version:
            return
        rung = next((r for r in reversed(after.rung) if r.worker_id == worker_id), None)
        told = next((d for d in rung.deliveries if d.channel == channel), None) if rung else None
        if told is None:
            return
        if told.delivered_at is None:
            self.failed[channel] += 1
            return
        self.delivered[channel] += 1
        spent = max(0, told.delivered_at - told.sent_at) / 1000
        self.seconds[channel] = self.seconds.get(channel, 0.0) + spent


class Outgoing:
    """Hands each row over to the callable that it is for; the callables are those of `Switchboard`."""

    def __init__(
        self,
        *,
        ring: Callable[[str, Json], Awaitable[None]],
        ring_all: Callable[[Sequence[tuple[str, Json]]], Awaitable[None]] | None,
        notify: Callable[[Json], Awaitable[None]] | None,
        publish_event: Callable[[str, Json, Audience], Awaitable[None]],
        on_accepted: Callable[[str, str, str, float | None], Awaitable[None]],
        on_released: Callable[[str, str], Awaitable[None]],
        on_no_answer: Callable[[str, str], Awaitable[None]],
        on_opened: Callable[[str, str], Awaitable[None]],
        on_missed: Callable[[str, str | None, str | None], Awaitable[None]],
        on_hung_up: Callable[[str, str, str], Awaitable[None]] | None,
        clock: Callable[[], int],
    ) -> None:
        self._ring = ring
        self._ring_all = ring_all
        self._notify = notify
        self._publish_event = publish_event
        self._on_accepted = on_accepted
        self._on_released = on_released
        self._on_no_answer = on_no_answer
        self._on_opened = on_opened
        self._on_missed = on_missed
        self._on_hung_up = on_hung_up
        self._clock = clock

    def kinds(self) -> dict[str, Callable[[outbox.Message], Awaitable[None]]]:
        return {ledger.KIND_NOTIFY: self._deliver_notice, ledger.KIND_NEWS: self._deliver_news}

    def batches(self) -> dict[str, Callable[[Sequence[outbox.Message]], Awaitable[None]]]:
        """What costs less together: a storm rings hundreds of phones at once."""
        return {ledger.KIND_RING: self._deliver_rings, ledger.KIND_EVENT: self._deliver_events}

    async def _deliver_rings(self, messages: Sequence[outbox.Message]) -> None:
        now_ms, due = self._clock(), []
        for message in messages:
            payload = message.payload
            ring = payload["message"]
            if ring["act"] == "ring" and ring["exp"] <= now_ms:
                continue  # the gateway was down for longer than the phone should have rung
            due.append((payload["worker_id"], ring))
        if self._ring_all is not None:
            await self._ring_all(due)
            return
        for worker_id, ring in due:
            await self._ring(worker_id, ring)

    async def _deliver_events(self, messages: Sequence[outbox.Message]) -> None:
        for message in messages:
            await self._deliver_event(message)

    async def _deliver_notice(self, message: outbox.Message) -> None:
        if self._notify is not None and message.payload["until"] > self._clock():
            await self._notify(message.payload)

    async def _deliver_event(self, message: outbox.Message) -> None:
        event = message.payload
        if event["type"] == "ring" and event["until"] <= self._clock():
            return
        audience = Audience(
            lineage=tuple(event.get("lineage", ())),
            participants=tuple(event.get("participants", ())),
            only=event.get("only"),
        )
        await self._publish_event(event["type"], event["data"], audience)

    async def _deliver_news(self, message: outbox.Message) -> None:
        news = message.payload
        alarm_id = news["alarm_id"]
        match news["what"]:
            case "missed":
                await self._on_missed(news["call_id"], news["worker_id"], alarm_id)
                if news.get("answering") and alarm_id is not None and self._on_hung_up is not None:
                    await self._on_hung_up(alarm_id, news["worker_id"], news["call_id"])
            case _ if alarm_id is None:
                pass  # a call that belongs to no alarm: the desk sees it in the call itself
            case "opened":
                await self._on_opened(alarm_id, news["call_id"])
            case "accepted":
                await self._on_accepted(alarm_id, news["worker_id"], news["name"], news["eta_s"])
            case "released":
                await self._on_released(alarm_id, news["worker_id"])
            case "no_answer":
                await self._on_no_answer(alarm_id, news["reason"])
            case _:
                logger.error("unknown news %r of call %s", news["what"], message.key)
