"""The path estimate follows a link: a queue model says what is lost, the sender sends what it is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.estimate import LEAST_BPS, PathEstimate

MOST = 2_000_000


def drive(estimate: PathEstimate, link_bps: int, reports: int, *, loss: float = 0.0) -> list[int]:
    """A sender that sends all it may over a link that loses what is too much, and `loss` of the rest."""
    seen = []
    for _ in range(reports):
        sent = estimate.bps
        through = min(sent, link_bps) * (1 - loss)
        seen.append(estimate.report(fraction_lost=1 - through / sent, received_bps=through, jitter_s=0.01))
    return seen


@pytest.mark.parametrize("link", [150_000, 300_000, 800_000])
def test_a_narrow_link_is_found_and_kept_full(link: int) -> None:
    settled = drive(PathEstimate(MOST), link, 100)[50:]
    assert max(settled) < 1.3 * link
    assert sum(settled) / len(settled) > 0.75 * link


def test_a_link_that_widens_is_used() -> None:
    estimate = PathEstimate(MOST)
    drive(estimate, 300_000, 50)
    assert drive(estimate, 5_000_000, 60)[-1] == MOST


def test_loss_that_is_not_by_the_load_costs_no_more_than_it_must() -> None:
    assert drive(PathEstimate(MOST), 5_000_000, 50, loss=0.05)[-1] == MOST


def test_a_path_that_delays_is_a_path_that_is_full() -> None:
    estimate = PathEstimate(MOST)
    assert estimate.report(fraction_lost=0.0, received_bps=300_000, jitter_s=0.4) < 300_000


def test_a_queue_that_stands_is_drained_and_a_short_one_stops_the_growth() -> None:
    estimate = PathEstimate(MOST)
    assert estimate.report(fraction_lost=0.0, received_bps=300_000, jitter_s=0.01, queue_s=0.6) == 255_000
    assert estimate.report(fraction_lost=0.0, received_bps=250_000, jitter_s=0.01, queue_s=0.15) == 255_000
    assert estimate.report(fraction_lost=0.0, received_bps=250_000, jitter_s=0.01, queue_s=0.01) > 255_000


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e8), st.floats(0, 10)), max_size=50))
def test_it_stays_within_its_bounds(reports: list[tuple[float, float, float]]) -> None:
    estimate = PathEstimate(MOST)
    for lost, received, jitter in reports:
        assert (
            LEAST_BPS <= estimate.report(fraction_lost=lost, received_bps=received, jitter_s=jitter) <= MOST
        )
