"""Where sources live, how limits are shared, when silence is death: no clocks, no processes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.cameras import DialLimits
from gateway.streams.placement import Backoff, Heartbeat, place_cameras, share_of, worker_of_call

IDS = st.lists(st.text("abc012", min_size=1, max_size=4), unique=True, max_size=40)


@given(IDS, st.integers(1, 8))
def test_new_cameras_are_spread_evenly(ids: list[str], workers: int) -> None:
    placed = place_cameras(ids, {}, workers)
    load = [list(placed.values()).count(worker) for worker in range(workers)]
    assert sorted(placed) == sorted(ids)
    assert max(load) - min(load) <= 1


@given(IDS, IDS, st.integers(1, 8))
def test_a_reload_moves_no_camera(before: list[str], after: list[str], workers: int) -> None:
    first = place_cameras(before, {}, workers)
    second = place_cameras(after, first, workers)
    assert set(second) == set(after)
    assert all(second[camera_id] == first[camera_id] for camera_id in set(before) & set(after))


def test_calls_are_spread_by_name_alone() -> None:
    places = [worker_of_call(f"call/c{number}/leg", 4) for number in range(400)]
    assert {places.count(worker) // 50 for worker in range(4)} <= {1, 2}
    assert worker_of_call("call/c1/alice", 1) == 0


def test_limits_are_shared_but_never_nothing() -> None:
    limits = DialLimits(dials=64, dials_per_host=3, connections_per_host=10)
    shared = share_of(limits, 4)
    assert (shared.dials, shared.dials_per_host, shared.connections_per_host) == (16, 1, 2)
    assert share_of(DialLimits(connections_per_host=None), 4).connections_per_host is None


def test_a_silent_worker_is_dead_after_the_timeout() -> None:
    heartbeat = Heartbeat(timeout_s=2.0, look_s=0.5)
    looks = [heartbeat.expired(100.0 + 0.5 * number) for number in range(6)]
    assert looks == [False, False, False, False, False, True]


def test_a_word_in_between_counts() -> None:
    heartbeat = Heartbeat(timeout_s=2.0, look_s=0.5)
    for number in range(40):
        if number % 4 == 3:
            heartbeat.heard()
        assert not heartbeat.expired(number * 0.5)


def test_time_in_which_we_slept_ourselves_proves_nothing() -> None:
    heartbeat = Heartbeat(timeout_s=2.0, look_s=0.5)
    assert not heartbeat.expired(0.0)
    assert not heartbeat.expired(3600.0)  # the machine was suspended
    heartbeat.heard()
    assert not heartbeat.expired(3600.5)


def test_the_first_restart_is_at_once_and_later_ones_wait() -> None:
    backoff, generator = Backoff(first_s=0.5, most_s=4.0, stable_s=30.0), random.Random(1)
    pauses = [backoff.pause_s(1.0, generator) for _ in range(8)]
    assert pauses[0] == 0
    for pause, ceiling in zip(pauses[1:], (0.5, 1, 2, 4, 4, 4, 4), strict=True):
        assert ceiling / 2 <= pause <= ceiling
    assert backoff.pause_s(31.0, generator) == 0
