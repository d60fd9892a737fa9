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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gateway.alarms.world import CameraSite
from gateway.geo import EARTH_RADIUS_M, Position

__all__ = [
    "CameraChoice",
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


def rank_workers(
    settings: DispatchSettings,
    workers: Iterable[WorkerState],
    place: Position,
    *,
    grid: str | None,
    now_ms: int,
    exclude: frozenset[str] = frozenset(),
    busy_too: bool = False,
    limit: int = 10,
) -> list[WorkerChoice]:
    """Best first. Workers without any position (no fix, no centroid) are left out, unless the place lies
    in their grid.
    """
    wanted = (Duty.ON, Duty.BUSY) if busy_too else (Duty.ON,)
    pool = [w for w in workers if w.duty in wanted and w.id not in exclude]
    if not pool:
        return []
    grades = np.array(
        [_FRESHNESS.index(freshness(settings, w.fix_at if w.position else None, now_ms)) for w in pool]
    )
    where = [w.centroid if grade == 3 else w.position for w, grade in zip(pool, grades, strict=True)]
    known = np.array([point is not None for point in where])
    lat = np.array([place.lat if point is None else point.lat for point in where])
    lon = np.array([place.lon if point is None else point.lon for point in where])
    east, north = _offset(place, lat, lon)
    distance = np.where(known, np.hypot(east, north), np.inf)
    age_s = np.array([0.0 if w.fix_at is None else (now_ms - w.fix_at) / 1000 for w in pool])
    radius = np.array([w.accuracy_m for w in pool])
    # A fresh fix counts as it is; an older one may have moved on since.
    radius = radius + np.where(grades == 0, 0.0, np.array([w.speed_mps for w in pool]) * age_s)
    own = np.array([grid is not None and w.grid == grid for w in pool])
    far_edge = np.where(grades == 3, distance, distance + radius)
    tier = np.maximum(grades, 1)  # fresh and usable compete by their circle
    busy = np.array([w.duty is Duty.BUSY for w in pool])
    # Lexicographic, the last key is the first one looked at; the id makes ties stable.
    order = [int(i) for i in np.lexsort((np.array([w.id for w in pool]), far_edge, tier, busy))]
    order = [i for i in order if known[i] or own[i]]
    for i in [i for i in order if own[i] and not busy[i]]:
        at = order.index(i)
        last = settings.own_grid_within - 1
        if at > last:
            order.insert(last, order.pop(at))
    choices = []
    for i in order[:limit]:
        worker, grade = pool[i], _FRESHNESS[grades[i]]
        metres = float(distance[i]) if known[i] else 0.0
        choices.append(
            WorkerChoice(
                id=worker.id,
                name=worker.name,
                grid=worker.grid,
                distance_m=round(metres, 1),
                eta_s=round(settings.set_out_s + metres * settings.detour / settings.speed_mps),
                freshness=grade,
                fix_age_s=None if worker.fix_at is None else round(float(age_s[i]), 1),
                accuracy_m=None if grade is Freshness.CENTROID else round(float(radius[i]), 1),
                own_grid=bool(own[i]),
                reason=_why_worker(
                    grade, metres, float(age_s[i]), float(radius[i]), own=bool(own[i]), busy=bool(busy[i])
                ),
            )
        )
    return choices


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
    return f"{value:.0f}米" if value < 1000 else f"{value / 1000:.1f}公里"


def _compass(bearing: float) -> str:
    return ("北", "东北", "东", "东南", "南", "西南", "西", "西北")[round(bearing / 45) % 8]
