"""The clock under steps and slews of the machine's: monotone, on time going forward, made good going back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import SLEW, SteadyClock

START = 1_700_000_000_000
HOUR = 3_600_000


class Machine:
    """A wall clock that somebody sets, and one that nobody can."""

    def __init__(self) -> None:
        self.passed, self.offset = 0.0, 0
        self.clock = SteadyClock(lambda: START + int(self.passed) + self.offset, lambda: self.passed)

    def after(self, ms: float) -> int:
        self.passed += ms
        return self.clock.now_ms()


def test_it_is_the_machines_clock_while_nobody_sets_it() -> None:
    machine = Machine()
    assert [machine.after(ms) - START for ms in (0, 1, 499.6, 60_000)] == [0, 1, 500, 60_500]
    assert (machine.clock.ahead_ms, machine.clock.steps) == (0, 0)


def test_a_step_forward_is_taken_at_once() -> None:
    machine = Machine()
    machine.offset = HOUR
    assert machine.after(10) == START + HOUR + 10
    assert (machine.clock.ahead_ms, machine.clock.steps) == (0, 1)


def test_after_a_step_back_deadlines_come_in_time_and_the_difference_is_made_good() -> None:
    machine = Machine()
    machine.after(1_000)
    machine.offset = -60_000
    before = machine.clock.now_ms()
    now = before
    for _ in range(15):  # a deadline of 15 s
        now = machine.after(1_000)
    assert 14_000 < now - before <= 15_000
    assert machine.clock.steps == 1
    assert 55_000 < machine.clock.ahead_ms < 60_000
    for _ in range(round(60 / SLEW)):
        machine.after(1_000)
    assert machine.clock.ahead_ms == 0
    assert machine.clock.now_ms() == START + int(machine.passed) - 60_000


def test_a_slew_of_ntp_is_no_step() -> None:
    machine = Machine()
    for _ in range(2_000):
        machine.offset -= 1
        machine.after(1_000)
    assert machine.clock.steps == 0
    assert machine.clock.ahead_ms <= 60


@given(st.lists(st.tuples(st.floats(0, 100_000), st.integers(-10 * HOUR, 10 * HOUR)), max_size=40))
def test_it_never_goes_back_and_never_falls_behind(steps: list[tuple[float, int]]) -> None:
    machine = Machine()
    last = machine.clock.now_ms()
    for passed, set_by in steps:
        machine.offset += set_by
        now = machine.after(passed)
        assert now >= last
        assert now >= last + int(passed * (1 - SLEW)) - 1
        assert now >= START + int(machine.passed) + machine.offset
        last = now
