"""The soak for some seconds, and its arithmetic: `make soak` runs it for as long as one likes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "conformance"))  # the gateway as a process

from gateway_process import Resources
from soak import MIB, Report, Sample, slope, soak


async def test_joins_leaves_faults_and_absent_cameras_leave_nothing_behind(tmp_path: Path) -> None:
    report = await soak(tmp_path, 6, cameras=2, absent=1, abandon=False)
    assert report.counts["viewer with picture"] > 0
    assert report.counts["answer 409"] > 0
    # So short a time is all warm-up: memory is only kept from running away here, `make soak` looks at its slope.
    assert report.mistakes(warm_s=0, growth_limit=30 * MIB) == []


def sample(at_s: float, rss_mib: float, **held: int) -> Sample:
    resources = Resources(
        rss_bytes=round(rss_mib * MIB), fds=held.get("fds", 9), sockets=held.get("sockets", 3), threads=4
    )
    return Sample(
        at_s=at_s, held=resources, tasks=held.get("tasks", 10), sessions=held.get("sessions", 0), dials=0
    )  # fmt: skip


def test_slope_is_that_of_the_line_through_the_points() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 2), (1, 0), (2, 2)]) == pytest.approx(0)
    assert slope([(1, 2)]) == 0


def test_growth_counts_after_the_warm_up_only() -> None:
    report = Report(samples=[sample(at, min(at, 10)) for at in range(30)])
    assert report.growth_bytes(0) > 5 * MIB
    assert report.growth_bytes(10) == pytest.approx(0)


@pytest.mark.parametrize("leak", ["sessions", "tasks", "sockets", "fds"])
def test_what_is_left_behind_is_named(leak: str) -> None:
    report = Report(quiet_before=sample(0, 100), quiet_after=sample(9, 100))
    assert report.mistakes(warm_s=0, growth_limit=MIB) == []
    report.quiet_after = sample(9, 100, **{leak: 20})
    (mistake,) = report.mistakes(warm_s=0, growth_limit=MIB)
    assert mistake.startswith({"fds": "descriptors"}.get(leak, leak))


def test_growing_memory_is_named() -> None:
    report = Report(quiet_before=sample(0, 100), quiet_after=sample(9, 100))
    report.samples = [sample(at, 100 + at) for at in range(10)]
    (mistake,) = report.mistakes(warm_s=0, growth_limit=5 * MIB)
    assert "9.0 MiB" in mistake
