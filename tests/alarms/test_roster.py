"""Duty, presence and fixes on a real database."""

from __future__ import annotations

import json
import sqlite3

import pytest
from conftest import Bench, Clock, north

from gateway.alarms.datum import Confusion, DatumWatch
from gateway.alarms.dispatch import DispatchSettings, Duty, Freshness
from gateway.alarms.roster import Fix, Roster, parse_location
from gateway.errors import NotFound, ProtocolError
from gateway.geo import Datum, Position, from_datum, to_gcj02

MINUTE = 60_000


def fix(metres: float, seq: int, taken_at: int | None = None) -> Fix:
    return Fix(position=north(metres), accuracy_m=10, speed_mps=0, seq=seq, taken_at=taken_at)


async def test_duty_and_last_fix_survive_a_restart(bench: Bench, clock: Clock) -> None:
    await bench.roster.set_duty("w1", Duty.ON, now_ms=clock())
    assert bench.roster.locate("w1", fix(50, 1), now_ms=clock())
    await bench.roster.flush(clock())
    again = Roster(bench.store, DispatchSettings())
    await again.load(bench.world.workers())
    view = again.view("w1", clock())
    assert (view.duty, view.position, view.freshness) == (Duty.ON, north(50), Freshness.FRESH)
    assert again.view("w2", clock()).duty is Duty.OFF


async def test_positions_off_duty_are_dropped_unsaved_and_going_off_forgets(
    bench: Bench, clock: Clock
) -> None:
    assert not bench.roster.locate("w1", fix(50, 1), now_ms=clock())
    await bench.roster.set_duty("w1", Duty.ON, now_ms=clock())
    bench.roster.locate("w1", fix(50, 2), now_ms=clock())
    await bench.roster.flush(clock())
    await bench.roster.set_duty("w1", Duty.OFF, now_ms=clock())
    await bench.roster.flush(clock())
    assert bench.roster.view("w1", clock()).position is None
    raw = sqlite3.connect(bench.store.path)
    assert raw.execute("SELECT lat, fix_at FROM worker WHERE id='w1'").fetchone() == (None, None)
    assert raw.execute("SELECT count(*) FROM worker_track").fetchone() == (1,)
    raw.close()


async def test_impossible_jump_is_ignored_until_it_insists(bench: Bench, clock: Clock) -> None:
    await bench.roster.set_duty("w1", Duty.ON, now_ms=clock())
    assert bench.roster.locate("w1", fix(0, 1), now_ms=clock())
    taken = []
    for seq in (2, 3, 4):
        clock.now_ms += 1000
        taken.append(bench.roster.locate("w1", fix(50_000, seq), now_ms=clock()))
    assert taken == [False, False, True]
    assert bench.roster.jumps_ignored == 2


async def test_late_fix_does_not_move_back_and_a_new_count_is_believed(bench: Bench, clock: Clock) -> None:
    await bench.roster.set_duty("w1", Duty.ON, now_ms=clock())
    assert bench.roster.locate("w1", fix(0, 5000), now_ms=clock())
    assert not bench.roster.locate("w1", fix(10, 4999), now_ms=clock())
    assert bench.roster.locate("w1", fix(20, 0), now_ms=clock())
    with pytest.raises(NotFound):
        bench.roster.locate("nobody", fix(0, 1), now_ms=clock())


async def test_an_old_fix_stays_old_however_often_it_is_sent(bench: Bench, clock: Clock) -> None:
    """product.md section 6 row 9; a phone without reception sends its last fix every 25 s."""
    await bench.roster.set_duty("w1", Duty.ON, now_ms=clock())
    taken_at = clock() - 20 * MINUTE
    for seq in range(10):
        assert bench.roster.locate("w1", fix(0, seq, taken_at), now_ms=clock())
        view = bench.roster.view("w1", clock())
        assert (view.fix_at, view.freshness) == (taken_at, Freshness.CENTROID)
        clock.now_ms += 25_000
    assert bench.roster.locate("w1", fix(30, 10, clock() - 400), now_ms=clock())
    assert bench.roster.view("w1", clock()).freshness is Freshness.FRESH
    assert not bench.roster.locate(
        "w1", fix(0, 11, clock() - MINUTE), now_ms=clock()
    )  # found before that one


@pytest.mark.parametrize("wrong_by_ms", [-40 * MINUTE, 40 * MINUTE])
async def test_a_wrong_clock_of_a_phone_makes_no_fix_old(
    bench: Bench, clock: Clock, wrong_by_ms: int
) -> None:
    await bench.roster.set_duty("w1", Duty.ON, now_ms=clock())
    seen = []
    for seq in range(6):
        taken_at = clock() + wrong_by_ms
        clock.now_ms += 200 + 300 * (seq % 3)  # on its way
        assert bench.roster.locate("w1", fix(seq, seq, taken_at), now_ms=clock())
        seen.append(bench.roster.view("w1", clock()).freshness)
        clock.now_ms += 10_000
    at_first = 3 if wrong_by_ms < 0 else 0
    assert seen == [Freshness.CENTROID] * at_first + [Freshness.FRESH] * (6 - at_first)
    clock.now_ms += 4 * MINUTE  # the last one again: now it is old
    assert bench.roster.locate("w1", fix(5, 6, taken_at), now_ms=clock())
    assert bench.roster.view("w1", clock()).freshness is Freshness.LAST_RESORT


async def test_a_clock_that_is_off_by_more_than_a_day_says_nothing(bench: Bench, clock: Clock) -> None:
    await bench.roster.set_duty("w1", Duty.ON, now_ms=clock())
    assert bench.roster.locate("w1", fix(0, 1, 1), now_ms=clock())
    assert bench.roster.view("w1", clock()).fix_at == clock()


def test_location_needs_a_datum_and_is_stored_as_wgs84() -> None:
    body = {"lat": 30.81, "lon": 103.89, "datum": "gcj02", "acc": 5, "spd": 1, "fix": 1, "seq": 1}
    assert abs(parse_location(json.dumps(body).encode()).position.lon - 103.89) > 0.001
    body["datum"] = "wgs84"
    assert parse_location(json.dumps(body).encode()).position.lon == 103.89
    for change in ({"datum": None}, {"datum": "bd09"}, {"lat": 91}, {"acc": -1}, {"seq": "x"}, {"spd": 1000}):
        with pytest.raises(ProtocolError):
            parse_location(json.dumps({**body, **change}).encode())
    with pytest.raises(ProtocolError):
        parse_location(b'{"lat":30,"lon":103,"acc":5,"seq":1}')
    with pytest.raises(ProtocolError):
        parse_location(b"x" * 600)


def test_a_phone_that_names_the_wrong_datum_is_found_and_one_that_is_elsewhere_is_not() -> None:
    """The grid is a square of 300 m; GCJ-02 lies about 355 m away there."""
    center = Position(30.81, 103.89)

    def inside(grid: str, position: Position) -> bool:
        return abs(position.lat - center.lat) < 0.00135 and abs(position.lon - center.lon) < 0.00157

    for wrong, found in (
        (Position(*to_gcj02(center)), Confusion.GCJ02_CALLED_WGS84),
        (from_datum(center.lat, center.lon, Datum.GCJ02), Confusion.WGS84_CALLED_GCJ02),
        (center, None),
        (Position(30.90, 103.89), None),
    ):
        watch = DatumWatch(inside)
        for sample in range(29):
            assert watch.see("w1", "g", wrong, sample * 10_000) is None
        assert watch.see("w1", "g", wrong, 290_000) is found
        watch.forget("w1")
        assert watch.see("w1", "g", wrong, 300_000) is None
