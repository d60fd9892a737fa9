"""A lossy link: what the kernel's netem does, for machines that have none, as a UDP relay of our own.

`Shape` says what a link is like, `Direction` is one direction of it as a pure core (datagrams and `now` in, datagrams out,
deterministic by its seed), `Relay` is the asyncio shell: clients talk to its port as if it were the target's, and the
target sees each of them behind an address of the relay's, as behind a NAT.

    async with await Relay.open(("127.0.0.1", 8189), down=Shape(loss=0.05, delay_s=0.02)) as relay:
        ... send media to relay.address ...
        relay.blackout(3.0)   # nothing passes, either way
        relay.rebind()        # the NAT forgets: from now on the clients come from new addresses
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

__all__ = ["Direction", "Relay", "Shape"]

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One direction of a link. Shares are 0 to 1.

    loss: share of datagrams lost; loss_burst: mean length of a run of losses (1: independent, more: Gilbert's model).
    delay_s, jitter_s: each datagram is late by delay_s plus 0 to jitter_s, in order. reorder: share of datagrams that
    are held back by another reorder_s, so that later ones overtake them. duplicate: share that comes twice.
    rate_bps: bits per second, behind a queue of queue_bytes that drops at its tail.
    """

    loss: float = 0.0
    loss_burst: float = 1.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.03
    duplicate: float = 0.0
    rate_bps: float | None = None
    queue_bytes: int = 65_536

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of 0 to 1")
        if self.loss_burst < 1 or (self.rate_bps is not None and self.rate_bps <= 0):
            raise ValueError("loss_burst is 1 or more, rate_bps more than 0")


class Direction:
    """One direction, sans-I/O. counters: `passed`, and drops as `lost`, `blackout`, `queue`."""

    def __init__(self, shape: Shape, *, seed: int) -> None:
        self.shape = shape
        self.counters: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._waiting: list[tuple[float, int, bytes]] = []
        self._number = itertools.count()
        self._dark_until = float("-inf")
        self._line_free = float("-inf")
        self._last_due = float("-inf")
        self._losing = False

    def blackout(self, until: float) -> None:
        """Nothing that comes before `until` passes; what is under way still arrives."""
        self._dark_until = until

    def push(self, datagram: bytes, now: float) -> None:
        """A datagram enters the link."""
        # Every datagram takes the same number of random values, so that one setting does not shift the others.
        lost, jitter, late, twice = (self._random.random() for _ in range(4))
        if now < self._dark_until:
            self.counters["blackout"] += 1
            return
        if self._loses(lost):
            self.counters["lost"] += 1
            return
        left = self._through_line(len(datagram), now)
        if left is None:
            self.counters["queue"] += 1
            return
        shape = self.shape
        due = left + shape.delay_s + jitter * shape.jitter_s
        if late < shape.reorder:
            due += shape.reorder_s
            self.counters["reordered"] += 1
        else:
            self._last_due = due = max(due, self._last_due)
        self.counters["passed"] += 1
        heapq.heappush(self._waiting, (due, next(self._number), datagram))
        if twice < shape.duplicate:
            self.counters["duplicated"] += 1
            heapq.heappush(self._waiting, (due, next(self._number), datagram))

    def pop(self, now: float) -> list[bytes]:
        """What leaves the link by `now`."""
        out = []
        while self._waiting and self._waiting[0][0] <= now:
            out.append(heapq.heappop(self._waiting)[2])
        return out

    def next_deadline(self) -> float | None:
        """When pop() has something next."""
        return self._waiting[0][0] if self._waiting else None

    def _loses(self, chance: float) -> bool:
        """Gilbert: the chance of going on losing gives the burst its length, that of beginning the share its value."""
        shape = self.shape
        if shape.loss <= 0:
            return False
        if shape.loss_burst <= 1 or shape.loss >= 1:
            return chance < shape.loss
        end = 1 / shape.loss_burst
        begin = min(1.0, end * shape.loss / (1 - shape.loss))
        self._losing = chance >= end if self._losing else chance < begin
        return self._losing

    def _through_line(self, size: int, now: float) -> float | None:
        """When the last bit has left a line of limited rate; None: its queue is full."""
        rate = self.shape.rate_bps
        if rate is None:
            return now
        backlog = max(0.0, self._line_free - now) * rate / 8
        if backlog + size > self.shape.queue_bytes:
            return None
        self._line_free = max(now, self._line_free) + size * 8 / rate
        return self._line_free


@dataclass(slots=True)
class _Flow:
    """One client behind the relay. sockets: all that it ever had towards the target; the last one counts."""

    client: Address
    up: Direction
    down: Direction
    sockets: list[asyncio.DatagramTransport] = field(default_factory=list)
    timers: dict[bool, asyncio.TimerHandle] = field(default_factory=dict)


class _Receiver(asyncio.DatagramProtocol):
    """Takes datagrams with room for bursts: what the relay loses should be what its shape says."""

    def __init__(self, receive: Callable[[bytes, Address], None]) -> None:
        self._receive = receive

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._receive(data, addr)


class Relay:
    """The link between clients and one target. Each client has its own two directions with seeds of their own."""

    def __init__(self, target: Address, up: Shape, down: Shape, seed: int) -> None:
        self.target = target
        self.rebinds = 0
        self._shapes = (up, down)
        self._seed = seed
        self._flows: dict[Address, _Flow] = {}
        self._loop = asyncio.get_running_loop()
        self._front: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._dark_until = float("-inf")

    @classmethod
    async def open(
        cls,
        target: Address,
        *,
        up: Shape | None = None,
        down: Shape | None = None,
        seed: int = 1,
        front: Address = ("127.0.0.1", 0),
    ) -> Self:
        """A relay on a port of this machine. up: client to target; down: target to client; front: where clients send to."""
        relay = cls(target, up or Shape(), down or Shape(), seed)
        relay._front, _ = await relay._loop.create_datagram_endpoint(
            lambda: _Receiver(relay._from_client), local_addr=front
        )
        return relay

    @property
    def address(self) -> Address:
        """Where clients send to."""
        assert self._front is not None
        host, port = self._front.get_extra_info("sockname")[:2]
        return host, port

    def counters(self, direction: str) -> Counter[str]:
        """Of `up` or `down`, over all clients."""
        total: Counter[str] = Counter()
        for flow in self._flows.values():
            total += getattr(flow, direction).counters
        return total

    def reshape(self, *, up: Shape | None = None, down: Shape | None = None) -> None:
        """Another link from now on; what is under way arrives as it would have."""
        self._shapes = (up or self._shapes[0], down or self._shapes[1])
        for flow in self._flows.values():
            flow.up.shape, flow.down.shape = self._shapes

    def blackout(self, seconds: float) -> None:
        """Nothing passes for so long, from no address: a socket that is opened in the dark sees nothing either."""
        self._dark_until = time.monotonic() + seconds
        for flow in self._flows.values():
            flow.up.blackout(self._dark_until)
            flow.down.blackout(self._dark_until)

    def rebind(self) -> None:
        """Every client gets a new address towards the target; what is sent to the old one is lost without an error."""
        self.rebinds += 1
        for flow in self._flows.values():
            self._connect(flow)

    async def close(self) -> None:
        self._closed = True
        for flow in self._flows.values():
            for timer in flow.timers.values():
                timer.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for flow in self._flows.values():
            for transport in flow.sockets:
                transport.close()
        if self._front is not None:
            self._front.close()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _from_client(self, data: bytes, client: Address) -> None:
        flow = self._flows.get(client)
        if flow is None:
            number = self._seed * 1_000 + len(self._flows) * 2
            flow = self._flows[client] = _Flow(
                client, Direction(self._shapes[0], seed=number), Direction(self._shapes[1], seed=number + 1)
            )
            flow.up.blackout(self._dark_until)
            flow.down.blackout(self._dark_until)
            self._connect(flow)
        self._carry(flow, data, upwards=True)

    def _connect(self, flow: _Flow) -> None:
        task = self._loop.create_task(self._open_socket(flow), name=f"relay-{flow.client[1]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_socket(self, flow: _Flow) -> None:
        current = len(flow.sockets)

        def receive(data: bytes, address: Address) -> None:
            if current == len(flow.sockets) - 1:
                self._carry(flow, data, upwards=False)

        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: _Receiver(receive), local_addr=("127.0.0.1", 0)
        )
        flow.sockets.append(transport)
        self._deliver(flow, upwards=True)  # what came before the socket was there

    def _carry(self, flow: _Flow, data: bytes, *, upwards: bool) -> None:
        direction = flow.up if upwards else flow.down
        direction.push(data, time.monotonic())
        self._deliver(flow, upwards=upwards)

    def _deliver(self, flow: _Flow, *, upwards: bool) -> None:
        if self._closed or (upwards and not flow.sockets):
            return
        direction = flow.up if upwards else flow.down
        for datagram in direction.pop(time.monotonic()):
            if upwards:
                flow.sockets[-1].sendto(datagram, self.target)
            elif self._front is not None:
                self._front.sendto(datagram, flow.client)
        timer = flow.timers.pop(upwards, None)
        if timer is not None:
            timer.cancel()
        deadline = direction.next_deadline()
        if deadline is not None:
            delay = max(0.0, deadline - time.monotonic())
            flow.timers[upwards] = self._loop.call_later(delay, lambda: self._deliver(flow, upwards=upwards))
