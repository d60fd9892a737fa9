"""Who goes and what is watched: ranking of gridworkers and of cameras around a place, each with its reason.
Pure numpy.

Workers (product.md section 3). A fix is judged by its age on the server's clock:

    fresh        <= 30 s
    usable       <= 120 s, somewhere in a circle of accuracy + speed x age
    last_resort  <= 300 s, the same circle, behind all better ones
    centroid     older or none: stands for the centroid of the own grid, behind all

Within fresh and usable the order is by the far edge of the circle (distance + radius): who is surely near
beats who may be near. Only duty `on` is ranked; `busy` comes last and only when asked for. The worker of the
grid that the place lies in is moved up among the first `own_grid_within`, whatever the fix says: the grid is
that worker's, and a phone in a cellar has no fix.

Cameras: those with the place in view first, by distance, bearing and field of view; a camera that is down
comes behind.

Distances use the local tangent plane (metres per degree at the place), 0.1 % off at 50 km: nothing beside a
GPS fix. Brute force over 589 workers or 768 cameras takes tens of microseconds; no spatial index is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gateway.alarms.world import CameraSite
from gateway.geo import EARTH_RADIUS_M, Position

__all__ = [
    "CameraChoice",
    "Candidate",
    "Crowd",
    "DispatchSettings",
    "Duty",
    "Freshness",
    "WorkerChoice",
    "WorkerState",
    "freshness",
    "rank_cameras",
    "rank_workers",
]

Floats = NDArray[np.float64]


class Duty(StrEnum):
    OFF = "off"
    ON = "on"
    BUSY = "busy"
    BREAK = "break"
    SOS = "sos"


class Freshness(StrEnum):
    FRESH = "fresh"
    USABLE = "usable"
    LAST_RESORT = "last_resort"
    CENTROID = "centroid"


_FRESHNESS = (Freshness.FRESH, Freshness.USABLE, Freshness.LAST_RESORT, Freshness.CENTROID)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """jump_mps: a faster move between two fixes is a faulty fix. speed_mps: of a gridworker on an electric bicycle over streets; detour: street length by straight
    line.
    """

    fresh_ms: int = 30_000
    usable_ms: int = 120_000
    last_resort_ms: int = 300_000
    own_grid_within: int = 4
    speed_mps: float = 4.0
    detour: float = 1.35
    set_out_s: float = 20.0
    jump_mps: float = 60.0
    camera_radius_m: float = 400.0
    camera_limit: int = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker as the ranking sees it. fix_at: server's UTC ms of the last fix; position None: never had
    one.
    """

    id: str
    name: str
    grid: str | None
    duty: Duty
    online: bool
    position: Position | None
    fix_at: int | None
    accuracy_m: float
    speed_mps: float
    centroid: Position | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerChoice:
    """As in the contract. own_grid: the place lies in this worker's grid."""

    id: str
    name: str
    grid: str | None
    distance_m: float
    eta_s: int
    freshness: Freshness
    fix_age_s: float | None
    accuracy_m: float | None
    own_grid: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraChoice:
    """As in the contract. bearing_deg: from the camera to the place, clockwise from north. score: 0..1."""

    id: str
    name: str
    distance_m: float
    bearing_deg: float
    in_view: bool
    score: float
    reason: str


def freshness(settings: DispatchSettings, fix_at: int | None, now_ms: int) -> Freshness:
    if fix_at is None:
        return Freshness.CENTROID
    age = now_ms - fix_at
    if age <= settings.fresh_ms:
        return Freshness.FRESH
    if age <= settings.usable_ms:
        return Freshness.USABLE
    return Freshness.LAST_RESORT if age <= settings.last_resort_ms else Freshness.CENTROID


@dataclass(frozen=True, slots=True, kw_only=True)
class _LineUp:
    """Who may be ranked at one moment, by id, and where each is taken to be: all that does not depend on the place.

    settings, now_ms, busy_too: what it was made for. pool: indices of workers; the arrays are parallel to it. at: the
    place of a worker's index in them. group: which of two is ranked first, whatever their distance. slack: what
    the far edge of the circle adds to the distance.
    """

    settings: DispatchSettings
    now_ms: int
    busy_too: bool
    pool: list[int]
    at: dict[int, int]
    grades: list[int]
    lost: list[bool]
    busy: NDArray[np.bool_]
    age_ms: Floats
    lat: Floats
    lon: Floats
    radius: Floats
    slack: Floats
    group: NDArray[np.int8]
    grid: NDArray[np.int32]


class Candidate:
    """A WorkerChoice whose words are found when somebody asks: of a ranking most are never rung."""

    __slots__ = ("_at", "_line_up", "_metres", "_state", "own_grid")

    def __init__(self, state: WorkerState, line_up: _LineUp, at: int, metres: float, own_grid: bool) -> None:
        self._state = state
        self._line_up = line_up
        self._at = at
        self._metres = metres
        self.own_grid = own_grid

    @property
    def id(self) -> str:
        return self._state.id

    @property
    def name(self) -> str:
        return self._state.name

    @property
    def grid(self) -> str | None:
        return self._state.grid

    @property
    def freshness(self) -> Freshness:
        return _FRESHNESS[self._line_up.grades[self._at]]

    @property
    def distance_m(self) -> float:
        return round(self._metres, 1)

    @property
    def eta_s(self) -> int:
        settings = self._line_up.settings
        return round(settings.set_out_s + self._metres * settings.detour / settings.speed_mps)

    @property
    def reason(self) -> str:
        line, at = self._line_up, self._at
        age_s, radius, busy = float(line.age_ms[at]) / 1000, float(line.radius[at]), bool(line.busy[at])
        return _why_worker(self.freshness, self._metres, age_s, radius, own=self.own_grid, busy=busy)

    def choice(self) -> WorkerChoice:
        line, at = self._line_up, self._at
        age_s, lost = float(line.age_ms[at]) / 1000, line.lost[at]
        return WorkerChoice(
            id=self.id,
            name=self.name,
            grid=self.grid,
            distance_m=self.distance_m,
            eta_s=self.eta_s,
            freshness=self.freshness,
            fix_age_s=None if math.isnan(age_s) else round(age_s, 1),
            accuracy_m=None if lost else round(float(line.radius[at]), 1),
            own_grid=self.own_grid,
            reason=self.reason,
        )


class Crowd:
    """Workers as arrays, ranked again and again: what does not change with the place is laid out once."""

    def __init__(self, workers: Iterable[WorkerState] = ()) -> None:
        self._states = list(workers)
        count = len(self._states)
        self._index = {worker.id: i for i, worker in enumerate(self._states)}
        self._lat, self._lon = np.full(count, np.nan), np.full(count, np.nan)
        self._home_lat, self._home_lon = np.full(count, np.nan), np.full(count, np.nan)
        self._fix_at = np.full(count, np.nan)
        self._accuracy, self._speed = np.zeros(count), np.zeros(count)
        self._duty = np.zeros(count, dtype=np.int8)
        self._grids: dict[str | None, int] = {None: 0}
        self._grid = np.zeros(count, dtype=np.int32)
        self._by_id = np.array(sorted(range(count), key=lambda i: self._states[i].id), dtype=np.int32)
        self._line_up: _LineUp | None = None
        for worker in self._states:
            self.put(worker)

    def put(self, worker: WorkerState) -> None:
        """What is known now of one of them."""
        i = self._index[worker.id]
        self._states[i] = worker
        fixed = worker.position is not None and worker.fix_at is not None
        self._lat[i], self._lon[i] = _degrees(worker.position)
        self._home_lat[i], self._home_lon[i] = _degrees(worker.centroid)
        self._fix_at[i] = worker.fix_at if fixed else np.nan
        self._accuracy[i], self._speed[i] = worker.accuracy_m, worker.speed_mps
        self._duty[i] = {Duty.ON: 1, Duty.BUSY: 2}.get(worker.duty, 0)
        self._grid[i] = self._grids.setdefault(worker.grid, len(self._grids))
        self._line_up = None

    def rank(
        self,
        settings: DispatchSettings,
        place: Position,
        *,
        grid: str | None,
        now_ms: int,
        exclude: Collection[str] = frozenset(),
        busy_too: bool = False,
        limit: int = 10,
    ) -> list[WorkerChoice]:
        """As candidates()."""
        found = self.candidates(
            settings, place, grid=grid, now_ms=now_ms, exclude=exclude, busy_too=busy_too, limit=limit
        )
        return [candidate.choice() for candidate in found]

    def candidates(
        self,
        settings: DispatchSettings,
        place: Position,
        *,
        grid: str | None,
        now_ms: int,
        exclude: Collection[str] = frozenset(),
        busy_too: bool = False,
        limit: int = 10,
    ) -> list[Candidate]:
        """Best first. Workers without any position (no fix, no centroid) are left out, unless the place lies
        in their grid. Cheap when asked again for the same moment.
        """
        line = self._line_up
        if line is None or (line.settings, line.now_ms, line.busy_too) != (settings, now_ms, busy_too):
            line = self._line_up = self._lined_up(settings, now_ms, busy_too=busy_too)
        if not line.pool:
            return []
        east, north = _offset(place, line.lat, line.lon)
        distance = np.hypot(east, north)
        known = ~np.isnan(distance)
        own = line.grid == (self._grids.get(grid, -1) if grid is not None else -1)
        kept = known | own
        for worker_id in exclude:
            excluded = line.at.get(self._index.get(worker_id, -1))
            if excluded is not None:
                kept[excluded] = False
        far_edge = np.where(known, distance + line.slack, np.inf)
        # Lexicographic, the last key is the first one looked at; that the pool is in the order of ids makes ties stable.
        sequence = np.lexsort((far_edge, line.group))
        sequence = sequence[kept[sequence]]
        order: list[int] = sequence.tolist()
        last = settings.own_grid_within - 1
        for at in np.flatnonzero((own & ~line.busy)[sequence]).tolist():
            if at > last:
                order.insert(last, order.pop(at))
        return [
            Candidate(
                self._states[line.pool[i]],
                line,
                i,
                float(distance[i]) if known[i] else 0.0,
                bool(own[i]),
            )
            for i in order[:limit]
        ]

    def _lined_up(self, settings: DispatchSettings, now_ms: int, *, busy_too: bool) -> _LineUp:
        wanted = self._duty > 0 if busy_too else self._duty == 1
        pool = self._by_id[wanted[self._by_id]]
        age_ms = now_ms - self._fix_at[pool]  # NaN without a fix: not within any limit below
        within = [
            age_ms <= limit_ms
            for limit_ms in (settings.fresh_ms, settings.usable_ms, settings.last_resort_ms)
        ]
        grades = np.select(within, [0, 1, 2], default=3)
        lost = grades == 3
        # A fresh fix counts as it is; an older one may have moved on since.
        moved = np.where(grades == 0, 0.0, self._speed[pool] * np.nan_to_num(age_ms) / 1000)
        radius = self._accuracy[pool] + moved
        busy = self._duty[pool] == 2
        return _LineUp(
            settings=settings,
            now_ms=now_ms,
            busy_too=busy_too,
            pool=pool.tolist(),
            at={i: at for at, i in enumerate(pool.tolist())},
            grades=grades.tolist(),
            lost=lost.tolist(),
            busy=busy,
            age_ms=age_ms,
            lat=np.where(lost, self._home_lat[pool], self._lat[pool]),
            lon=np.where(lost, self._home_lon[pool], self._lon[pool]),
            radius=radius,
            slack=np.where(lost, 0.0, radius),
            # Busy ones behind all others; fresh and usable compete by their circle.
            group=(4 * busy + np.maximum(grades, 1)).astype(np.int8),
            grid=self._grid[pool],
        )


def rank_workers(
    settings: DispatchSettings,
    workers: Iterable[WorkerState],
    place: Position,
    *,
    grid: str | None,
    now_ms: int,
    exclude: Collection[str] = frozenset(),
    busy_too: bool = False,
    limit: int = 10,
) -> list[WorkerChoice]:
    """Crowd.rank() of workers that are ranked only once."""
    return Crowd(workers).rank(
        settings, place, grid=grid, now_ms=now_ms, exclude=exclude, busy_too=busy_too, limit=limit
    )


def _degrees(point: Position | None) -> tuple[float, float]:
    return (np.nan, np.nan) if point is None else (point.lat, point.lon)


def rank_cameras(
    settings: DispatchSettings,
    cameras: Sequence[CameraSite],
    place: Position,
    *,
    healthy: Callable[[str], bool],
    watched: str | None = None,
    limit: int | None = None,
) -> list[CameraChoice]:
    """Best first, within `camera_radius_m`. `watched`: the camera that the alarm came from, always first."""
    sited = [(camera, camera.position) for camera in cameras if camera.position is not None]
    if not sited:
        return []
    # From the camera to the place, so the offset of the place as seen by the camera.
    east, north = _offset(place, np.array([p.lat for _, p in sited]), np.array([p.lon for _, p in sited]))
    east, north = -east, -north
    distance = np.hypot(east, north)
    bearing = np.degrees(np.arctan2(east, north)) % 360
    heading = np.array([np.nan if c.heading is None else c.heading for c, _ in sited])
    half = np.array([c.fov / 2 for c, _ in sited])
    reach = np.array([c.range_m for c, _ in sited])
    off_axis = np.abs((bearing - heading + 180) % 360 - 180)
    # A camera on the very spot sees it whatever it looks at; one without a heading may be a dome.
    in_angle = np.isnan(heading) | (off_axis <= half) | (distance <= 5)
    in_view = in_angle & (distance <= reach)
    near = np.clip(1 - distance / settings.camera_radius_m, 0, 1)
    aim = np.where(np.isnan(heading), 0.5, np.clip(1 - np.nan_to_num(off_axis) / 180, 0, 1))
    alive = np.array([healthy(c.id) for c, _ in sited])
    score = (0.5 * near + 0.2 * aim + 0.3 * in_view) * np.where(alive, 1.0, 0.2)
    keep = distance <= settings.camera_radius_m
    first = np.array([c.id == watched for c, _ in sited])
    score = np.where(first & alive, 1.0, score)
    order = [int(i) for i in np.lexsort((np.array([c.id for c, _ in sited]), -score)) if keep[i] or first[i]]
    return [
        CameraChoice(
            id=sited[i][0].id,
            name=sited[i][0].name,
            distance_m=round(float(distance[i]), 1),
            bearing_deg=round(float(bearing[i]), 1),
            in_view=bool(in_view[i]),
            score=round(float(score[i]), 3),
            reason=_why_camera(
                float(distance[i]),
                float(bearing[i]),
                seen=bool(in_view[i]),
                alive=bool(alive[i]),
                first=bool(first[i]),
            ),
        )
        for i in order[: limit or settings.camera_limit]
    ]


def _offset(origin: Position, lat: Floats, lon: Floats) -> tuple[Floats, Floats]:
    """Metres east and north of `origin`."""
    per_degree = math.radians(1) * EARTH_RADIUS_M
    north = (lat - origin.lat) * per_degree
    east = (lon - origin.lon) * per_degree * math.cos(math.radians(origin.lat))
    return east, north


def _why_worker(
    grade: Freshness, metres: float, age_s: float, radius: float, *, own: bool, busy: bool
) -> str:
    parts = ["本网格网格员"] if own else []
    if grade is Freshness.CENTROID:
        parts.append(f"无可用定位，按网格中心约{_metres(metres)}")
    else:
        quality = {
            Freshness.FRESH: "定位新",
            Freshness.USABLE: "定位可用",
            Freshness.LAST_RESORT: "定位较旧",
        }[grade]
        parts.append(f"距离{_metres(metres)}")
        parts.append(f"{quality}（{age_s:.0f}秒前，误差{_metres(radius)}）")
    parts.append("忙碌" if busy else "在岗")
    return "，".join(parts)


def _why_camera(metres: float, bearing: float, *, seen: bool, alive: bool, first: bool) -> str:
    parts = ["居民正在观看"] if first else []
    parts.append(f"距离{_metres(metres)}")
    parts.append("在视野内" if seen else f"现场在{_compass(bearing)}方向，不在视野内")
    if not alive:
        parts.append("无画面")
    return "，".join(parts)


def _metres(value: float) -> str:
    """As the pages say the same distance: they have it to 0.1 m, and round halves up."""
    metres = round(value, 1)
    if metres < 1000:
        return f"{Decimal(metres).quantize(Decimal(1), ROUND_HALF_UP)}米"
    return f"{Decimal(metres / 1000).quantize(Decimal('0.1'), ROUND_HALF_UP)}公里"


def _compass(bearing: float) -> str:
    return ("北", "东北", "东", "东南", "南", "西南", "西", "西北")[round(bearing / 45) % 8]
