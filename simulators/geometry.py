"""A planar partition: a convex outline cut recursively into weighted cells that really tile.

All in local metres (x east, y north). `partition` cuts convex polygons by straight lines, so any two
siblings share an edge exactly, but a later cut on one side leaves a T-junction on the other. `conform`
inserts those vertices on both sides, `roughen` then bends every edge a little, the same way for both
owners, so that the result looks grown rather than sawn and still has neither gap nor overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "area", "centroid", "conform", "contains", "inside_distance", "partition", "roughen"]

Point = tuple[float, float]
Polygon = list[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One cell to be cut out. weight: its share of the area; hint: where it would like to lie."""

    key: str
    weight: float
    hint: Point | None = None


def area(polygon: Sequence[Point]) -> float:
    """Signed area (shoelace); positive when the vertices run counter-clockwise."""
    total = 0.0
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        total += x1 * y2 - x2 * y1
    return total / 2


def centroid(polygon: Sequence[Point]) -> Point:
    """Centre of gravity of the area."""
    total, cx, cy = 0.0, 0.0, 0.0
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        cross = x1 * y2 - x2 * y1
        total += cross
        cx += (x1 + x2) * cross
        cy += (y1 + y2) * cross
    return cx / (3 * total), cy / (3 * total)


def contains(polygon: Sequence[Point], point: Point) -> bool:
    """Even-odd rule."""
    x, y = point
    inside = False
    x1, y1 = polygon[-1]
    for x2, y2 in polygon:
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            inside = not inside
        x1, y1 = x2, y2
    return inside


def inside_distance(polygon: Sequence[Point], point: Point) -> float:
    """Distance from the point to the outline, negative when it lies outside."""
    px, py = point
    best = math.inf
    x1, y1 = polygon[-1]
    for x2, y2 in polygon:
        dx, dy = x2 - x1, y2 - y1
        length2 = dx * dx + dy * dy
        t = 0.0 if length2 == 0 else max(0.0, min(1.0, ((px - x1) * dx + (py - y1) * dy) / length2))
        best = min(best, math.hypot(px - x1 - t * dx, py - y1 - t * dy))
        x1, y1 = x2, y2
    return best if contains(polygon, point) else -best


def _half(polygon: Polygon, normal: Point, offset: float, *, beyond: bool) -> Polygon:
    """The part of a convex polygon on one side of the line normal . p = offset (Sutherland-Hodgman, one
    plane).
    """
    out: Polygon = []
    nx, ny = normal
    x1, y1 = polygon[-1]
    d1 = nx * x1 + ny * y1 - offset
    for x2, y2 in polygon:
        d2 = nx * x2 + ny * y2 - offset
        if (d1 <= 0) != (d2 <= 0):
            # Interpolate from the lower to the upper end, so that both halves compute the very same vertex.
            (ax, ay, da), (bx, by, db) = (
                ((x1, y1, d1), (x2, y2, d2)) if d1 <= 0 else ((x2, y2, d2), (x1, y1, d1))
            )
            t = da / (da - db)
            out.append((ax + t * (bx - ax), ay + t * (by - ay)))
        if (d2 > 0) == beyond:
            out.append((x2, y2))
        x1, y1, d1 = x2, y2, d2
    return out


def _cut(polygon: Polygon, share: float, angle: float) -> tuple[Polygon, Polygon]:
    """Cuts across `angle` so that the first piece has `share` of the area (bisection on the offset)."""
    normal = (math.cos(angle), math.sin(angle))
    along = [normal[0] * x + normal[1] * y for x, y in polygon]
    low, high = min(along), max(along)
    goal = share * area(polygon)
    for _ in range(48):
        middle = (low + high) / 2
        piece = _half(polygon, normal, middle, beyond=False)
        if len(piece) >= 3 and area(piece) > goal:
            high = middle
        else:
            low = middle
    offset = (low + high) / 2
    return _half(polygon, normal, offset, beyond=False), _half(polygon, normal, offset, beyond=True)


def _long_axis(polygon: Polygon) -> float:
    """Direction (radians) of the polygon's longest extent, from the moments of its outline."""
    points: list[Point] = []
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 25))
        points += [(x1 + (x2 - x1) * k / steps, y1 + (y2 - y1) * k / steps) for k in range(steps)]
    cloud = np.asarray(points)
    cloud = cloud - cloud.mean(axis=0)
    cxx, cyy, cxy = (cloud[:, 0] ** 2).mean(), (cloud[:, 1] ** 2).mean(), (cloud[:, 0] * cloud[:, 1]).mean()
    return 0.5 * math.atan2(2 * float(cxy), float(cxx - cyy))


def partition(polygon: Polygon, parts: Sequence[Part], random: Random) -> dict[str, Polygon]:
    """Cuts a convex polygon into one convex cell a part, areas in proportion to the weights.

    Cuts run across the longest extent (a little askew). Parts with hints are ordered along it, so
    neighbours in reality become neighbours here.
    """
    if len(parts) == 1:
        return {parts[0].key: polygon}
    angle = _long_axis(polygon) + random.uniform(-0.16, 0.16)
    direction = (math.cos(angle), math.sin(angle))
    ordered = list(parts)
    if all(part.hint is not None for part in ordered):
        ordered.sort(key=lambda part: (_along(part, direction), part.key))
    total = sum(part.weight for part in ordered)
    # Halve by weight: the index at which the running sum is nearest to the middle.
    best, running, split = math.inf, 0.0, 1
    for index, part in enumerate(ordered[:-1], start=1):
        running += part.weight
        if abs(running - total / 2) < best:
            best, split = abs(running - total / 2), index
    head, tail = ordered[:split], ordered[split:]
    first, second = _cut(polygon, sum(part.weight for part in head) / total, angle)
    return partition(first, head, random) | partition(second, tail, random)


def _along(part: Part, direction: Point) -> float:
    assert part.hint is not None
    return part.hint[0] * direction[0] + part.hint[1] * direction[1]


def conform(cells: dict[str, Polygon], tolerance: float = 0.01) -> dict[str, Polygon]:
    """Inserts each vertex that lies on another cell's edge into that cell, and merges vertices closer than
    tolerance.
    """
    canonical: dict[tuple[int, int], Point] = {}

    def snap(point: Point) -> Point:
        cell = (round(point[0] / tolerance), round(point[1] / tolerance))
        for dx in (0, -1, 1):
            for dy in (0, -1, 1):
                found = canonical.get((cell[0] + dx, cell[1] + dy))
                if found is not None:
                    return found
        canonical[cell] = point
        return point

    snapped = {key: [snap(point) for point in polygon] for key, polygon in cells.items()}
    vertices = np.asarray(sorted(set(canonical.values())))
    return {key: _with_vertices(polygon, vertices, 4 * tolerance) for key, polygon in snapped.items()}


def _with_vertices(polygon: Polygon, vertices: NDArray[np.float64], tolerance: float) -> Polygon:
    out: Polygon = []
    for start, end in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if start == end:
            continue
        out.append(start)
        ax, ay = start
        dx, dy = end[0] - ax, end[1] - ay
        length = math.hypot(dx, dy)
        along = ((vertices[:, 0] - ax) * dx + (vertices[:, 1] - ay) * dy) / length
        across = np.abs((vertices[:, 0] - ax) * dy - (vertices[:, 1] - ay) * dx) / length
        on = np.flatnonzero((across < tolerance) & (along > tolerance) & (along < length - tolerance))
        out += [
            (float(vertices[i, 0]), float(vertices[i, 1])) for i in on[np.argsort(along[on], kind="stable")]
        ]
    return out


def roughen(
    cells: dict[str, Polygon], random_for: Callable[[str], Random], amplitude: float = 0.07
) -> dict[str, Polygon]:
    """Bends each edge longer than 120 m at two inner points, by up to `amplitude` of its length, alike for
    both owners.

    `random_for(label)` gives the random source of an edge, named by its two ends in canonical order.
    """

    def bends(start: Point, end: Point) -> list[Point]:
        a, b = min(start, end), max(start, end)
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = math.hypot(dx, dy)
        if length < 120:
            return []
        random = random_for(f"{a[0]:.2f},{a[1]:.2f},{b[0]:.2f},{b[1]:.2f}")
        points = []
        for share in (0.33, 0.67):
            off = random.uniform(-amplitude, amplitude)
            t = share + random.uniform(-0.06, 0.06)
            points.append((a[0] + dx * t - dy * off, a[1] + dy * t + dx * off))
        return points if a == start else points[::-1]

    out: dict[str, Polygon] = {}
    for key, polygon in cells.items():
        rough: Polygon = []
        for start, end in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
            rough.append(start)
            rough += bends(start, end)
        out[key] = rough
    return out
