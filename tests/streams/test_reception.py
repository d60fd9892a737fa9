"""Order, losses and receiver reports of datagrams. Sequence numbers in these tests stand for whole packets."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.reception import Reception, ReorderWindow, SequenceCounter


def packet(number: int, timestamp: int = 0, ssrc: int = 9) -> bytes:
    return struct.pack("!BBHII", 0x80, 96, number & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)


def numbers(packets: list[bytes]) -> list[int]:
    return [int.from_bytes(one[2:4], "big") for one in packets]


@given(st.integers(0, 65_535), st.permutations(range(20)))
def test_any_order_within_the_window_is_put_right(first: int, order: list[int]) -> None:
    window = ReorderWindow(capacity=32, wait_s=10)
    out = numbers(window.push(packet(first), 0.0))
    for index in order:
        out += numbers(window.push(packet(first + 1 + index), 0.0))
    assert out == [(first + index) & 0xFFFF for index in range(21)]
    assert window.late == 0


def test_a_missing_packet_is_waited_for_only_so_long() -> None:
    window = ReorderWindow(capacity=64, wait_s=0.1)
    window.push(packet(1), 0.0)
    assert window.push(packet(3), 0.0) == []
    assert window.push(packet(4), 0.05) == []
    assert numbers(window.push(packet(5), 0.11)) == [3, 4, 5]
    assert window.push(packet(2), 0.12) == []
    assert window.late == 1


def test_a_full_window_gives_up_the_missing_packet() -> None:
    window = ReorderWindow(capacity=3, wait_s=10)
    window.push(packet(1), 0.0)
    assert [numbers(window.push(packet(number), 0.0)) for number in (3, 4, 5)] == [[], [], [3, 4, 5]]


def test_repeats_are_dropped() -> None:
    window = ReorderWindow()
    window.push(packet(1), 0.0)
    window.push(packet(3), 0.0)
    assert window.push(packet(3), 0.0) == []
    assert window.push(packet(1), 0.0) == []
    assert window.late == 2


def test_numbers_that_begin_anew_are_followed() -> None:
    for jump in (5000, -5000):
        window = ReorderWindow()
        window.push(packet(10_000), 0.0)
        window.push(packet(10_002), 0.0)
        assert numbers(window.push(packet(10_000 + jump), 0.0)) == [10_002, 10_000 + jump]
        assert numbers(window.push(packet(10_001 + jump), 0.0)) == [10_001 + jump]


@given(st.lists(st.tuples(st.integers(0, 65_535), st.floats(0, 0.2)), max_size=200))
def test_whatever_comes_nothing_is_given_on_twice_in_a_row_and_little_is_held(
    script: list[tuple[int, float]],
) -> None:
    window = ReorderWindow(capacity=8)
    now, given_on = 0.0, 0
    for pushed, (number, step) in enumerate(script, 1):
        now += step
        given_on += len(window.push(packet(number), now))
        assert given_on <= pushed
        assert pushed - given_on - window.late <= 8


@given(st.integers(0, 65_535), st.lists(st.booleans(), min_size=1, max_size=300))
def test_losses_are_what_did_not_come(first: int, came: list[bool]) -> None:
    came[0] = came[-1] = True
    counter = SequenceCounter()
    for index, here in enumerate(came):
        if here:
            counter.count((first + index) & 0xFFFF)
    assert (counter.packets, counter.lost) == (sum(came), came.count(False))
    assert counter.highest == first + len(came) - 1, "extended by the cycles"


def test_the_report_byte_by_byte() -> None:
    reception = Reception(own_ssrc=0x01020304, clock_rate=90_000)
    sender_report = struct.pack("!BBHIIIIII", 0x80, 200, 6, 0xAABBCCDD, 0x11112222, 0x33334444, 0, 0, 0)
    assert not reception.on_rtcp(sender_report, 10.0)
    report = reception.report(packets=90, lost=10, highest=0x1_0005, now=11.5)
    assert report == bytes.fromhex(
        "81c90007 01020304 aabbccdd"
        "19 00000a"  # 10 of 100 lost: 25/256; 10 in all
        "00010005 00000000 22223333"
        "00018000"  # 1.5 s in 1/65536 s
        "81ca0004 01020304 01 08 3031303230333034 0000"
    )
    assert len(report) % 4 == 0
    again = reception.report(packets=190, lost=10, highest=0x1_0069, now=12.0)
    assert again[12] == 0, "nothing lost since the last report"


def test_jitter_follows_the_arrivals() -> None:
    reception = Reception(own_ssrc=1, clock_rate=90_000)
    for number in range(200):
        late = 0.01 if number % 2 else 0.0
        reception.arrived(packet(number, number * 3600), number * 0.04 + late)
    jitter = int.from_bytes(reception.report(packets=200, lost=0, highest=200, now=9.0)[20:24], "big")
    assert 850 < jitter <= 900, "10 ms are 900 ticks"
    assert reception.ssrc == 9


def test_goodbye_is_noticed_and_rubbish_is_not() -> None:
    reception = Reception(own_ssrc=1, clock_rate=8000)
    assert reception.on_rtcp(bytes.fromhex("80c900010000000781cb000100000007"), 0.0)
    assert not reception.on_rtcp(b"\x00" * 40, 0.0)
    assert not reception.on_rtcp(b"\x80\xc8\xff", 0.0)
