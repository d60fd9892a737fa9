"""Who goes and what is watched."""

from __future__ import annotations

import math

from conftest import AREA, CENTER, SmallWorld, north
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.alarms.dispatch import (
    Crowd,
    DispatchSettings,
    Duty,
    Freshness,
    WorkerState,
    freshness,
    rank_cameras,
    rank_workers,
)
from gateway.geo import Position, distance_m

S = DispatchSettings()
NOW = 1_000_000_000


def worker(
    name: str, metres: float | None, age_s: float = 0, *, grid: str = "g", duty: Duty = Duty.ON, **more: float
) -> WorkerState:
    return WorkerState(
        id=name,
        name=name,
        grid=grid,
        duty=duty,
        online=True,
        position=None if metres is None else north(metres),
        fix_at=None if metres is None else NOW - round(age_s * 1000),
        accuracy_m=more.get("accuracy_m", 10.0),
        speed_mps=more.get("speed_mps", 0.0),
        centroid=north(more.get("centroid_m", 400.0)),
    )


def ranked(*workers: WorkerState, grid: str | None = None, **options: object) -> list[str]:
    return [c.id for c in rank_workers(S, workers, CENTER, grid=grid, now_ms=NOW, **options)]  # type: ignore[arg-type]


def test_nearest_first_and_only_on_duty() -> None:
    assert ranked(
        worker("far", 900),
        worker("near", 100),
        worker("off", 1, duty=Duty.OFF),
        worker("break", 1, duty=Duty.BREAK),
        worker("sos", 1, duty=Duty.SOS),
        worker("busy", 1, duty=Duty.BUSY),
    ) == ["near", "far"]
    assert ranked(worker("busy", 1, duty=Duty.BUSY), worker("on", 900), busy_too=True) == ["on", "busy"]


def test_circle_of_an_older_fix_counts_against_it() -> None:
    # 100 m away a minute ago at 5 m/s may be 400 m away; 250 m away now surely is nearer.
    assert ranked(worker("moving", 100, 60, speed_mps=5), worker("sure", 250)) == ["sure", "moving"]
    assert ranked(worker("still", 100, 60), worker("sure", 250)) == ["still", "sure"]


def test_a_fix_of_twenty_minutes_is_never_the_nearest_but_the_own_grid_is_rung() -> None:
    others = [worker(f"w{i}", 500 + i) for i in range(6)]
    stale = worker("stale", 1, 1200, grid="mine", centroid_m=5)
    assert ranked(stale, *others)[-1] == "stale"
    choices = rank_workers(S, [stale, *others], CENTER, grid="mine", now_ms=NOW)
    assert [c.id for c in choices][:4] == ["w0", "w1", "w2", "stale"]
    assert (choices[3].freshness, choices[3].own_grid) == (Freshness.CENTROID, True)
    assert choices[3].reason == "本网格网格员，无可用定位，按网格中心约5米，在岗"


def test_classes_by_age() -> None:
    ages = {30: Freshness.FRESH, 31: Freshness.USABLE, 120: Freshness.USABLE, 121: Freshness.LAST_RESORT}
    ages |= {300: Freshness.LAST_RESORT, 301: Freshness.CENTROID}
    for age_s, wanted in ages.items():
        [choice] = rank_workers(S, [worker("w", 10, age_s)], CENTER, grid=None, now_ms=NOW)
        assert choice.freshness is wanted
    assert ranked(worker("old", 1, 200), worker("fresh", 3000)) == ["fresh", "old"]


def test_excluded_and_nowhere() -> None:
    lost = WorkerState(
        id="lost",
        name="lost",
        grid="g",
        duty=Duty.ON,
        online=True,
        position=None,
        fix_at=None,
        accuracy_m=0,
        speed_mps=0,
        centroid=None,
    )
    assert ranked(worker("a", 1), worker("b", 2), lost, exclude=frozenset({"a"})) == ["b"]
    assert ranked(worker("b", 2), lost, grid="g") == ["b", "lost"]
    assert ranked() == []


def in_words(
    workers: list[WorkerState],
    place: Position,
    *,
    grid: str | None,
    now_ms: int,
    busy_too: bool,
    exclude: frozenset[str],
) -> list[str]:
    """The order as the module's description has it, one worker at a time."""
    sortable = []
    for one in workers:
        if one.id in exclude or one.duty not in ((Duty.ON, Duty.BUSY) if busy_too else (Duty.ON,)):
            continue
        grade = freshness(S, one.fix_at if one.position else None, now_ms)
        where = one.centroid if grade is Freshness.CENTROID else one.position
        own = grid is not None and one.grid == grid
        if where is None and not own:
            continue
        edge = float("inf") if where is None else distance_m(place, where)
        if grade is not Freshness.CENTROID and one.fix_at is not None:
            moved = 0.0 if grade is Freshness.FRESH else one.speed_mps * (now_ms - one.fix_at) / 1000
            edge += one.accuracy_m + moved
        tier = max(1, list(Freshness).index(grade))
        sortable.append(((one.duty is Duty.BUSY, tier, edge, one.id), own))
    sortable.sort()
    found = [(key[3], own and not key[0]) for key, own in sortable]
    last = S.own_grid_within - 1
    for at, (_, own) in enumerate(list(found)):
        if own and at > last:
            found.insert(last, found.pop(at))
    return [name for name, _ in found]


@st.composite
def states(draw: st.DrawFn, name: str) -> WorkerState:
    """Distances are whole hundreds of metres, and no circle ends on another's: rounding decides nothing."""
    number = int(name[1:])
    fixed = draw(st.booleans())
    return WorkerState(
        id=name,
        name=name,
        grid=draw(st.sampled_from([None, "g", "h"])),
        duty=draw(st.sampled_from([Duty.ON, Duty.ON, Duty.BUSY, Duty.OFF])),
        online=True,
        position=north(draw(st.integers(1, 30)) * 100 + number) if fixed else None,
        fix_at=NOW - draw(st.integers(0, 400)) * 1000 if fixed else None,
        accuracy_m=draw(st.sampled_from([0.0, 10.0, 40.0])),
        speed_mps=draw(st.sampled_from([0.0, 10.0])),
        centroid=draw(st.sampled_from([None, north(draw(st.integers(1, 30)) * 100 + number)])),
    )


@given(st.data())
def test_a_crowd_that_is_asked_again_and_again_ranks_as_the_description_says(data: st.DataObject) -> None:
    names = [f"w{number}" for number in range(data.draw(st.integers(0, 8)))]
    workers = {name: data.draw(states(name)) for name in names}
    crowd = Crowd(workers.values())
    for _ in range(data.draw(st.integers(1, 6))):
        if names and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(names))
            workers[name] = data.draw(states(name))
            crowd.put(workers[name])
        place = north(data.draw(st.sampled_from([0.0, 1550.3])))
        grid = data.draw(st.sampled_from([None, "g", "nobody's"]))
        now_ms = NOW + data.draw(st.sampled_from([0, 0, 100_000]))
        busy_too, exclude = (
            data.draw(st.booleans()),
            frozenset(data.draw(st.sets(st.sampled_from([*names, "x"])))),
        )
        asked = {"grid": grid, "now_ms": now_ms, "busy_too": busy_too, "exclude": exclude}
        choices = crowd.rank(S, place, limit=10, **asked)  # type: ignore[arg-type]
        assert [one.id for one in choices] == in_words(list(workers.values()), place, **asked)  # type: ignore[arg-type]
        for one, light in zip(choices, crowd.candidates(S, place, limit=10, **asked), strict=True):  # type: ignore[arg-type]
            told = (
                light.id,
                light.name,
                light.grid,
                light.distance_m,
                light.eta_s,
                light.freshness,
                light.reason,
            )
            assert told == (one.id, one.name, one.grid, one.distance_m, one.eta_s, one.freshness, one.reason)


def test_distance_and_eta() -> None:
    [choice] = rank_workers(S, [worker("w", 1000)], CENTER, grid=None, now_ms=NOW)
    assert abs(choice.distance_m - 1000) < 1
    assert choice.eta_s == 358  # 20 s to set out, 1,350 m of streets at 4 m/s
    assert choice.reason == "距离1.0公里，定位新（0秒前，误差10米），在岗"


@given(st.floats(1, 999), st.sampled_from((0.0, 0.46, 0.5)))
@example(485, 0.46)
def test_the_sentence_says_the_distance_that_a_page_shows(metres: float, more: float) -> None:
    away = math.floor(metres) + more
    [choice] = rank_workers(S, [worker("w", away)], CENTER, grid=None, now_ms=NOW)
    shown = math.floor(choice.distance_m + 0.5)  # as JavaScript rounds
    assert f"距离{shown}米" in choice.reason


def test_cameras_in_view_come_first() -> None:
    cameras = SmallWorld().cameras()
    choices = rank_cameras(S, cameras, CENTER, healthy=lambda c: True)
    assert [c.id for c in choices] == ["c_south", "c_away", "c_far"]
    assert [c.in_view for c in choices] == [True, False, False]
    assert choices[0].bearing_deg == 0.0
    assert choices[2].reason == "距离300米，现场在南方向，不在视野内"


def test_dead_camera_comes_behind_and_the_watched_one_first() -> None:
    cameras = SmallWorld().cameras()
    choices = rank_cameras(S, cameras, CENTER, healthy=lambda c: c != "c_south", watched="c_else")
    assert [c.id for c in choices] == ["c_else", "c_away", "c_far", "c_south"]
    assert choices[-1].reason.endswith("无画面")
    assert choices[0].reason.startswith("居民正在观看")


def test_north_wraps_around() -> None:
    cameras = [c for c in SmallWorld().cameras() if c.id == "c_south"]  # heading 0, 90 degrees wide
    for east, seen in ((-30, True), (30, True), (-50, False), (50, False)):
        [choice] = rank_cameras(S, cameras, north(0, east), healthy=lambda c: True)
        assert choice.in_view is seen, east


def test_world_without_positions() -> None:
    assert rank_cameras(S, [], CENTER, healthy=lambda c: True) == []
    assert AREA.grid
    assert Position(0, 0)
