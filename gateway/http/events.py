"""The event channel: one WebSocket a page, numbered frames, resume after a gap, only what the principal may see.

Every event names the action and the resource that a reader needs; `authorize` is asked per event and subscriber, so a page
never learns of an alarm that its own API would refuse. Frames are `{seq, epoch, type, at, data}`: `seq` counts
all events of this process (a page sees holes where it may not look), `epoch` changes with each start. A page that comes back with
`?epoch=E&after=N` gets what it missed out of a ring of the last events, or a `resync` frame that tells it to fetch anew.

Frames are written by ourselves, many in one call, as long as the page's connection takes them at once; aiohttp has its
share (its flow control) in what is left. In a storm a system call for each event cost more than all else about it.

Drop rule: a page that reads slower than events come loses its queue and gets `resync`; the alarm itself lives in the
database and in the list that the page then fetches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from gateway.access import Action, Principal, Resource, authorize

__all__ = ["EVENT_ACTIONS", "Event", "EventChannel"]

EVENT_ACTIONS: Mapping[str, tuple[Action, ...]] = {
    "alarm": (Action.ALARM_LIST,),
    "incident": (Action.INCIDENT_LIST,),
    "task": (Action.TASK_LIST,),
    "audience": (Action.ALARM_LIST, Action.TASK_LIST),  # an offer to volunteers, who see no alarms
    "call": (Action.CALL_LIST,),
    "ring": (Action.CALL_LIST,),
    "ring_end": (Action.CALL_LIST,),
    "camera": (Action.CAMERA_LIST,),
    "worker": (Action.WORKER_LIST,),
}
"""Every type of event, and what its reader must be allowed: the first, unless the publisher names another of the row.
What isn't here is not published. `hello`, `heartbeat`, `resync` and `revoked` are the channel's own."""

QUEUE_EVENTS = 2048
"""Of one page. Pages share the frames, so a longer queue costs little; a storm makes a thousand events a second."""
MAX_INCOMING_BYTES = 4096
WRITE_BYTES = 65_536
"""Frames in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One numbered event. `to`: only these subs (a ring is for one phone); None: whoever `authorize` lets read it."""

    seq: int
    type: str
    at_ms: int
    frame: bytes
    action: Action
    resource: Resource
    to: frozenset[str] | None

    def concerns(self, principal: Principal) -> bool:
        """Whether this principal may read it."""
        if self.to is not None and principal.sub not in self.to:
            return False
        return authorize(principal, self.action, self.resource).allowed


class _Subscriber:
    """One page. `wake` is set when there is something to send; `lost` when its queue overflowed."""

    __slots__ = ("_socket", "_transport", "closing", "lost", "principal", "queue", "visible", "wake")

    def __init__(
        self, principal: Principal, socket: web.WebSocketResponse, transport: asyncio.WriteTransport | None
    ) -> None:
        self.principal = principal
        self.queue: deque[bytes] = deque()
        self.wake = asyncio.Event()
        self.lost = False
        self.visible = True
        self.closing: str | None = None
        self._socket, self._transport = socket, transport

    def offer(self, frame: bytes) -> None:
        if len(self.queue) >= QUEUE_EVENTS:
            self.queue.clear()
            self.lost = True
        self.queue.append(frame)
        self.wake.set()

    def flush(self) -> None:
        """Writes what waits, as long as the connection takes it at once. What is left is for the task of the page."""
        transport = self._transport
        if transport is None or self.lost or self.closing is not None or self._socket.closed:
            return
        while self.queue and not transport.is_closing() and not transport.get_write_buffer_size():
            some, size = [], 0
            while self.queue and size < WRITE_BYTES:
                frame = self.queue.popleft()
                some += [_header(len(frame)), frame]
                size += len(frame)
            transport.write(b"".join(some))


def _header(size: int) -> bytes:
    """Of an unfragmented text frame that a server sends (RFC 6455 section 5.2)."""
    if size < 126:
        return bytes((0x81, size))
    return b"\x81\x7e" + size.to_bytes(2) if size < 65_536 else b"\x81\x7f" + size.to_bytes(8)


class EventChannel:
    """Owns the numbering, the ring and the subscribers. `now_ms` is the server's UTC clock in milliseconds."""

    def __init__(
        self,
        *,
        epoch: str,
        now_ms: Callable[[], int],
        lag_ms: Callable[[], float],
        presence: Callable[[Principal, bool], None] = lambda principal, connected: None,
        replay: int = 4096,
        heartbeat_s: float = 5.0,
    ) -> None:
        """presence(principal, connected): the first page of this principal opened, or the last one closed. replay: events
        kept for pages that come back."""
        self.epoch = epoch
        self._presence = presence
        self._now_ms = now_ms
        self._lag_ms = lag_ms
        self._heartbeat_s = heartbeat_s
        self._seq = 0
        self._forgotten = 0  # the newest kept event that has left the ring
        self._ring: deque[Event] = deque(maxlen=replay)
        self._subscribers: set[_Subscriber] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self._seq

    def readers(
        self, concerned: Callable[[Principal], bool] = lambda _: True, *, visible: bool = False
    ) -> int:
        """How many pages are open (and, with `visible`, on a screen) whose principal satisfies `concerned`."""
        return sum(1 for s in self._subscribers if concerned(s.principal) and (s.visible or not visible))

    def publish(
        self,
        type: str,
        data: Any,
        *,
        resource: Resource,
        action: Action | None = None,
        to: Iterable[str] | None = None,
        keep: bool = True,
    ) -> None:
        """Number an event and offer it to every page that may see it. Never blocks; it is sent when the loop comes to it,
        or by flush().

        keep: whether a page that comes back gets it again. Positions and camera states are not kept: a page that
        was away fetches the present ones, and alarms stay in the ring longer. Raises ValueError for a type or action
        that isn't in EVENT_ACTIONS.
        """
        allowed = EVENT_ACTIONS.get(type, ())
        if not allowed or (action is not None and action not in allowed):
            raise ValueError(f"no event {type} by {action} in EVENT_ACTIONS")
        self._seq += 1
        at_ms = self._now_ms()
        event = Event(
            seq=self._seq,
            type=type,
            at_ms=at_ms,
            frame=self._frame(type, data, self._seq, at_ms),
            action=action or allowed[0],
            resource=resource,
            to=None if to is None else frozenset(to),
        )
        if keep:
            if len(self._ring) == self._ring.maxlen:
                self._forgotten = self._ring[0].seq
            self._ring.append(event)
        for subscriber in self._subscribers:
            if event.concerns(subscriber.principal):
                subscriber.offer(event.frame)

    def flush(self) -> None:
        """Sends now what was published, to every page that takes it."""
        for subscriber in self._subscribers:
            subscriber.flush()

    def revoke(self, concerned: Callable[[Principal], bool], reason: str) -> int:
        """End the channels of these principals with a `revoked` frame. Returns how many."""
        ended = [s for s in self._subscribers if concerned(s.principal)]
        for subscriber in ended:
            subscriber.closing = reason
            subscriber.wake.set()
        return len(ended)

    def resync(self, reason: str) -> None:
        """Tell every page to fetch anew what it shows: things are gone that no event takes away."""
        for subscriber in self._subscribers:
            subscriber.offer(self._control("resync", {"reason": reason}))

    async def emptied(self) -> None:
        """Returns when no page is on the channel any more."""
        await self._empty.wait()

    async def serve(self, request: web.Request, principal: Principal) -> web.WebSocketResponse:
        """Run one page's channel until it closes. The caller has checked Origin and authorisation."""
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=MAX_INCOMING_BYTES, compress=False)
        await socket.prepare(request)
        subscriber = _Subscriber(principal, socket, request.transport)
        subscriber.offer(self._hello(principal))
        self._replay(subscriber, request.query.get("epoch"), request.query.get("after"))
        self._enter(subscriber)
        try:
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send(socket, subscriber), name=f"events-{principal.sub}")
                await self._receive(socket, subscriber)
                sender.cancel()
        finally:
            self._leave(subscriber)
        return socket

    def _enter(self, subscriber: _Subscriber) -> None:
        first = not self.readers(lambda p: p.sub == subscriber.principal.sub)
        self._subscribers.add(subscriber)
        self._empty.clear()
        if first:
            self._presence(subscriber.principal, True)

    def _leave(self, subscriber: _Subscriber) -> None:
        self._subscribers.discard(subscriber)
        if not self._subscribers:
            self._empty.set()
        if not self.readers(lambda p: p.sub == subscriber.principal.sub):
            self._presence(subscriber.principal, False)

    def _replay(self, subscriber: _Subscriber, epoch: str | None, after: str | None) -> None:
        if epoch is None or after is None:
            return
        if epoch != self.epoch or not after.isdecimal() or not self._forgotten <= int(after) <= self._seq:
            subscriber.offer(self._control("resync", {"reason": "gap"}))
            return
        for event in self._ring:
            if event.seq > int(after) and event.concerns(subscriber.principal):
                subscriber.offer(event.frame)

    async def _send(self, socket: web.WebSocketResponse, subscriber: _Subscriber) -> None:
        with contextlib.suppress(ConnectionResetError):  # the page left in the middle of a frame
            await self._pump(socket, subscriber)

    async def _pump(self, socket: web.WebSocketResponse, subscriber: _Subscriber) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._heartbeat_s
        while not socket.closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await subscriber.wake.wait()
            if loop.time() >= due:  # also between other events: the page reads its clock and our lag off them
                due = loop.time() + self._heartbeat_s
                beat = {"now": self._now_ms(), "lag_ms": round(self._lag_ms(), 1)}
                subscriber.offer(self._control("heartbeat", beat))
            subscriber.wake.clear()
            if subscriber.lost:
                subscriber.lost = False
                await self._say(socket, self._control("resync", {"reason": "slow reader"}))
            subscriber.flush()
            while subscriber.queue:
                await self._say(socket, subscriber.queue.popleft())
            if subscriber.closing is not None:
                await self._say(socket, self._control("revoked", {"reason": subscriber.closing}))
                await socket.close()

    async def _say(self, socket: web.WebSocketResponse, frame: bytes) -> None:
        """Returns when the page has read enough of what was sent before."""
        await socket.send_frame(frame, WSMsgType.TEXT)

    async def _receive(self, socket: web.WebSocketResponse, subscriber: _Subscriber) -> None:
        """The page says whether it is on a screen; all else is ignored."""
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                said = json.loads(message.data)
            except (ValueError, RecursionError):
                continue
            if isinstance(said, dict) and said.get("type") == "visible":
                subscriber.visible = said.get("visible") is True

    def _hello(self, principal: Principal) -> bytes:
        you = {"sub": principal.sub, "role": principal.role, "area": principal.area}
        hello = {"epoch": self.epoch, "seq": self._seq, "now": self._now_ms(), "you": you}
        return self._control("hello", hello)

    def _control(self, type: str, data: Any) -> bytes:
        return self._frame(type, data, self._seq, self._now_ms())

    def _frame(self, type: str, data: Any, seq: int, at_ms: int) -> bytes:
        frame = {"seq": seq, "epoch": self.epoch, "type": type, "at": at_ms, "data": data}
        return msgspec.json.encode(frame)
