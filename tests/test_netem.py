"""The lossy link itself: its core by advancing time, its shell on real sockets."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netem import Direction, Relay, Shape


def through(
    shape: Shape, count: int, *, gap_s: float = 0.001, size: int = 100, seed: int = 1
) -> list[tuple[float, int]]:
    """(time, number) of each datagram that came out, of `count` sent at equal gaps."""
    direction = Direction(shape, seed=seed)
    for number in range(count):
        direction.push(number.to_bytes(4, "big") + bytes(size - 4), number * gap_s)
    out = []
    while (now := direction.next_deadline()) is not None:
        out += [(now, int.from_bytes(one[:4], "big")) for one in direction.pop(now)]
    return out


def numbers(out: list[tuple[float, int]]) -> list[int]:
    return [number for _, number in out]


def test_a_clean_link_passes_everything_at_once_and_in_order() -> None:
    assert through(Shape(), 100) == [(pytest.approx(number * 0.001), number) for number in range(100)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_the_share_lost_is_as_asked_for(share: float, burst: float) -> None:
    out = through(Shape(loss=share, loss_burst=burst), 40_000)
    assert 1 - len(out) / 40_000 == pytest.approx(share, rel=0.25)
    assert numbers(out) == sorted(numbers(out))


def test_bursts_have_their_mean_length() -> None:
    got = set(numbers(through(Shape(loss=0.05, loss_burst=5), 40_000)))
    runs, run = [], 0
    for number in range(40_000):
        if number in got:
            runs += [run] if run else []
            run = 0
        else:
            run += 1
    assert sum(runs) / len(runs) == pytest.approx(5, rel=0.2)


def test_all_or_nothing() -> None:
    assert through(Shape(loss=1.0), 100) == []
    assert len(through(Shape(loss=1.0, loss_burst=3), 100)) == 0


def test_delay_and_jitter_keep_the_order() -> None:
    out = through(Shape(delay_s=0.05, jitter_s=0.02), 1_000)
    assert numbers(out) == list(range(1_000))
    late = [at - number * 0.001 for at, number in out]
    assert min(late) >= 0.05
    assert max(late) <= 0.07 + 1e-9
    assert max(late) - min(late) > 0.01


def test_reordered_ones_are_overtaken() -> None:
    out = numbers(through(Shape(reorder=0.1, reorder_s=0.01), 1_000))
    assert sorted(out) == list(range(1_000))
    overtaken = sum(
        number < highest for number, highest in zip(out, itertools.accumulate(out, max), strict=True)
    )
    assert overtaken == pytest.approx(100, abs=30)


def test_duplicates_come_twice() -> None:
    out = numbers(through(Shape(duplicate=0.2), 1_000))
    assert len(out) == pytest.approx(1_200, abs=60)
    assert set(out) == set(range(1_000))


def test_the_rate_is_kept_and_a_full_queue_drops_its_tail() -> None:
    # 100 bytes a ms are 800 kbps; the line takes half of it and can queue 10 datagrams.
    direction = Direction(Shape(rate_bps=400_000, queue_bytes=1_000), seed=1)
    for number in range(1_000):
        direction.push(bytes(100), number * 0.001)
    assert direction.counters["queue"] == pytest.approx(490, abs=5)
    out = []
    while (now := direction.next_deadline()) is not None:
        out += [now] * len(direction.pop(now))
    assert len(out) == direction.counters["passed"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(out)]
    assert min(gaps) == pytest.approx(0.002)


def test_a_blackout_loses_what_enters_and_nothing_else() -> None:
    direction = Direction(Shape(delay_s=0.5), seed=1)
    direction.push(b"before", 0.9)
    direction.blackout(2.0)
    direction.push(b"in it", 1.5)
    direction.push(b"after", 2.0)
    assert direction.pop(10.0) == [b"before", b"after"]
    assert direction.counters["blackout"] == 1


def test_the_same_seed_is_the_same_link() -> None:
    shape = Shape(loss=0.1, jitter_s=0.01, reorder=0.05, duplicate=0.02)
    assert through(shape, 500, seed=7) == through(shape, 500, seed=7)
    assert through(shape, 500, seed=7) != through(shape, 500, seed=8)


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(1_000, 1e9)),
    st.integers(0, 99),
)
def test_every_datagram_is_accounted_for(
    loss: float, reorder: float, duplicate: float, rate: float | None, seed: int
) -> None:
    direction = Direction(
        Shape(loss=loss, reorder=reorder, duplicate=duplicate, rate_bps=rate, jitter_s=0.01), seed=seed
    )
    for number in range(50):
        direction.push(bytes(50), number * 0.001)
    out = direction.pop(float("inf"))
    counters = direction.counters
    assert counters["passed"] + counters["lost"] + counters["queue"] == 50
    assert len(out) == counters["passed"] + counters["duplicated"]
    assert direction.next_deadline() is None


@pytest.mark.parametrize("wrong", [{"loss": 1.5}, {"reorder": -1}, {"loss_burst": 0.5}, {"rate_bps": 0}])
def test_impossible_links_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Shape(**wrong)


class Echo(asyncio.DatagramProtocol):
    """Answers everything and remembers who asked."""

    def __init__(self) -> None:
        self.peers: list[tuple[str, int]] = []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data, addr) -> None:
        self.peers.append(addr)
        self.transport.sendto(data, addr)


class Client(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data, addr) -> None:
        self.got.put_nowait(data)


async def test_the_shell_carries_both_ways_hides_clients_and_rebinds() -> None:
    loop = asyncio.get_running_loop()
    server, echo = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    target = server.get_extra_info("sockname")
    async with await Relay.open(target, up=Shape(delay_s=0.01), down=Shape(delay_s=0.01)) as relay:
        ends = [await loop.create_datagram_endpoint(Client, remote_addr=relay.address) for _ in range(2)]
        async with asyncio.timeout(5):
            for number, (transport, client) in enumerate(ends):
                transport.sendto(b"hello %d" % number)
                assert await client.got.get() == b"hello %d" % number
            assert len(set(echo.peers)) == 2
            relay.rebind()
            for transport, client in ends:
                while (
                    client.got.empty()
                ):  # until the new socket is there, answers go to the old one and are lost
                    transport.sendto(b"again")
                    await asyncio.sleep(0.03)
        assert len(set(echo.peers)) == 4
        relay.blackout(60)
        ends[0][0].sendto(b"lost")
        await asyncio.sleep(0.05)
        assert relay.counters("up")["blackout"] == 1
        late, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=relay.address)
        late.sendto(b"lost, too")
        await asyncio.sleep(0.05)
        assert relay.counters("up")["blackout"] == 2, "a client that comes in the dark sees nothing"
        late.close()
        for transport, _ in ends:
            transport.close()
    server.close()
    await asyncio.sleep(0)
