"""Sockets that are read together: who is woken when, and nobody is read after he left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from gateway.streams.sweep import REST_S, Sweep

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [socket.socketpair() for _ in range(4)]
    for pair in made:
        pair[1].setblocking(False)
    yield made
    for pair in made:
        for one in pair:
            one.close()


class Reader:
    """Reads one socket; `heard` gets (name, data) in the order of reading."""

    def __init__(self, name: str, sock: socket.socket, heard: asyncio.Queue[tuple[str, bytes]]) -> None:
        self.name, self.sock, self.heard = name, sock, heard
        self.turns = 0

    def read(self) -> None:
        self.heard.put_nowait((self.name, self.sock.recv(1000)))

    def turn(self) -> None:
        self.turns += 1


async def test_the_first_packet_wakes_the_loop_and_the_rest_comes_together(pairs: list[Pair]) -> None:
    sweep, heard = Sweep(), asyncio.Queue[tuple[str, bytes]]()
    for number, (_, inner) in enumerate(pairs):
        sweep.add_urgent(inner.fileno(), on_readable=Reader(str(number), inner, heard).read)
    pairs[0][0].send(b"a")
    assert await heard.get() == ("0", b"a")
    for name in "bcd":  # three packets of one picture and another camera's, while it rests: one reading each
        pairs[0][0].send(name.encode())
    pairs[1][0].send(b"x")
    await asyncio.sleep(0)
    assert heard.empty(), "it rests"
    assert {await heard.get(), await heard.get()} == {("0", b"bcd"), ("1", b"x")}
    await asyncio.sleep(3 * REST_S)  # a round that finds nothing hands the waking back to the loop
    pairs[2][0].send(b"late")
    assert await heard.get() == ("2", b"late")
    for _, inner in pairs:
        sweep.remove(inner.fileno())
    assert len(sweep) == 0


async def test_who_is_removed_by_another_is_not_read(pairs: list[Pair]) -> None:
    sweep, heard = Sweep(), asyncio.Queue[tuple[str, bytes]]()
    inners = [inner for _, inner in pairs[:2]]

    def read_and_remove(index: int) -> None:
        heard.put_nowait((str(index), inners[index].recv(10)))
        sweep.remove(inners[1 - index].fileno())

    for index, inner in enumerate(inners):
        sweep.add_urgent(inner.fileno(), on_readable=lambda index=index: read_and_remove(index))
        pairs[index][0].send(b"x")
    first, _ = await heard.get()
    await asyncio.sleep(3 * REST_S)
    assert heard.empty()
    sweep.remove(inners[int(first)].fileno())
    assert len(sweep) == 0


async def test_the_last_one_out_while_it_rests(pairs: list[Pair]) -> None:
    sweep, heard = Sweep(), asyncio.Queue[tuple[str, bytes]]()
    _, inner = pairs[0]
    for _ in range(3):
        sweep.add_urgent(inner.fileno(), on_readable=Reader("0", inner, heard).read)
        pairs[0][0].send(b"x")
        await heard.get()
        sweep.remove(inner.fileno())
        assert len(sweep) == 0
        await asyncio.sleep(2 * REST_S)


async def test_moving_between_hurry_and_leisure(pairs: list[Pair]) -> None:
    sweep, heard = Sweep(), asyncio.Queue[tuple[str, bytes]]()
    reader = Reader("0", pairs[0][1], heard)
    fd = pairs[0][1].fileno()
    sweep.add(fd, on_readable=reader.read, on_turn=reader.turn)
    pairs[0][0].send(b"slow")
    assert await heard.get() == ("0", b"slow")
    sweep.remove(fd)
    sweep.add_urgent(fd, on_readable=reader.read)
    assert (len(sweep), sweep.urgent) == (1, 1)
    pairs[0][0].send(b"quick")
    assert await heard.get() == ("0", b"quick")
    sweep.remove(fd)
    assert len(sweep) == 0
