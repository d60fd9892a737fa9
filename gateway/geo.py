"""Positions on the ground: datums, distance, bearing, polygons. Pure.

Positions are WGS-84 everywhere inside the gateway. Chinese maps and phones often speak GCJ-02, which lies
350 m off in Chengdu: an input without a named datum is worth nothing; `from_datum` is the only way in.

Distances use the haversine formula on the mean sphere (IUGG R1); the error against the ellipsoid is below
0.3 %. Polygons use a local equirectangular projection, as good for areas of tens of kilometres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Datum",
    "Polygon",
    "Position",
    "angle_between_deg",
    "bearing_deg",
    "bearings_deg",
    "distance_m",
    "distances_m",
    "from_datum",
    "moved",
    "to_gcj02",
]

EARTH_RADIUS_M = 6_371_008.8  # mean radius R1 (IUGG)

FloatArray = NDArray[np.float64]
Ring = tuple[tuple[float, float], ...]


class Datum(StrEnum):
    """What a pair of coordinates refers to."""

    WGS84 = "wgs84"
    GCJ02 = "gcj02"


@dataclass(frozen=True, slots=True)
class Position:
    """A point in WGS-84, degrees, north and east positive. Out of range or not finite: ValueError."""

    lat: float
    lon: float

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        if not (-90.0 <= self.lat <= 90.0 and -180.0 <= self.lon <= 180.0):
            raise ValueError(f"no such position: lat {self.lat}, lon {self.lon}")


# --- datums ---------------------------------------------------------------------------------------

# Krasovsky 1940, on which GCJ-02's published offset formula is built.
_KRASOVSKY_A_M = 6_378_245.0
_KRASOVSKY_EE = 0.006_693_421_622_965_943


def _outside_china(lat: float, lon: float) -> bool:
    """The box outside of which GCJ-02 equals WGS-84."""
    return not (72.004 <= lon <= 137.8347 and 0.8293 <= lat <= 55.8271)


def _gcj02_offset(lat: float, lon: float) -> tuple[float, float]:
    """(d_lat, d_lon) in degrees that GCJ-02 adds to a WGS-84 position."""
    if _outside_china(lat, lon):
        return 0.0, 0.0
    x, y = lon - 105.0, lat - 35.0
    root = math.sqrt(abs(x))
    shared = (20.0 * math.sin(6.0 * x * math.pi) + 20.0 * math.sin(2.0 * x * math.pi)) * 2.0 / 3.0
    north = -100.0 + 2.0 * x + 3.0 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * root + shared
    north += (20.0 * math.sin(y * math.pi) + 40.0 * math.sin(y / 3.0 * math.pi)) * 2.0 / 3.0
    north += (160.0 * math.sin(y / 12.0 * math.pi) + 320.0 * math.sin(y * math.pi / 30.0)) * 2.0 / 3.0
    east = 300.0 + x + 2.0 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * root + shared
    east += (20.0 * math.sin(x * math.pi) + 40.0 * math.sin(x / 3.0 * math.pi)) * 2.0 / 3.0
    east += (150.0 * math.sin(x / 12.0 * math.pi) + 300.0 * math.sin(x / 30.0 * math.pi)) * 2.0 / 3.0
    lat_rad = math.radians(lat)
    magic = 1.0 - _KRASOVSKY_EE * math.sin(lat_rad) ** 2
    meridian_m = _KRASOVSKY_A_M * (1.0 - _KRASOVSKY_EE) / (magic * math.sqrt(magic))
    parallel_m = _KRASOVSKY_A_M / math.sqrt(magic) * math.cos(lat_rad)
    return math.degrees(north / meridian_m), math.degrees(east / parallel_m)


def to_gcj02(position: Position) -> tuple[float, float]:
    """(lat, lon) of a WGS-84 position in GCJ-02, for map tiles that use it. Deliberately not a Position."""
    d_lat, d_lon = _gcj02_offset(position.lat, position.lon)
    return position.lat + d_lat, position.lon + d_lon


def from_datum(lat: float, lon: float, datum: Datum) -> Position:
    """The WGS-84 position of an input. GCJ-02 has no closed inverse: it is iterated to < 1 mm.

    At the border of the box around China the formula jumps; an input that no point maps to is kept as it is.
    Raises ValueError for coordinates that are out of range or not finite.
    """
    given = Position(lat, lon)
    if datum is Datum.WGS84:
        return given
    guess_lat, guess_lon = lat, lon
    for _ in range(12):  # the offset's derivative is below 0.01, so that each round gains two digits
        d_lat, d_lon = _gcj02_offset(guess_lat, guess_lon)
        next_lat, next_lon = lat - d_lat, lon - d_lon
        moved_deg = max(abs(next_lat - guess_lat), abs(next_lon - guess_lon))
        guess_lat, guess_lon = next_lat, next_lon
        if moved_deg < 1e-9:
            return Position(guess_lat, guess_lon)
    return given


# --- distance and direction -----------------------------------------------------------------------


def distance_m(a: Position, b: Position) -> float:
    """Great-circle distance in metres (haversine)."""
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    half_lat = math.sin((lat_b - lat_a) / 2.0)
    half_lon = math.sin(math.radians(b.lon - a.lon) / 2.0)
    h = half_lat * half_lat + math.cos(lat_a) * math.cos(lat_b) * half_lon * half_lon
    return 2.0 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(h)))


def distances_m(origin: Position, lats: FloatArray, lons: FloatArray) -> FloatArray:
    """Metres from `origin` to each of many points (degrees, WGS-84). NaN gives NaN."""
    lat_o = math.radians(origin.lat)
    lat_p = np.radians(lats)
    half_lat = np.sin((lat_p - lat_o) / 2.0)
    half_lon = np.sin(np.radians(lons - origin.lon) / 2.0)
    h = half_lat * half_lat + math.cos(lat_o) * np.cos(lat_p) * half_lon * half_lon
    result: FloatArray = 2.0 * EARTH_RADIUS_M * np.arcsin(np.minimum(1.0, np.sqrt(h)))
    return result


def bearing_deg(a: Position, b: Position) -> float:
    """Initial bearing from a to b: degrees clockwise from north in [0, 360). 0 when they coincide."""
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    d_lon = math.radians(b.lon - a.lon)
    east = math.sin(d_lon) * math.cos(lat_b)
    north = math.cos(lat_a) * math.sin(lat_b) - math.sin(lat_a) * math.cos(lat_b) * math.cos(d_lon)
    return math.degrees(math.atan2(east, north)) % 360.0 % 360.0  # twice: -1e-17 % 360 is 360.0


def bearings_deg(origin: Position, lats: FloatArray, lons: FloatArray) -> FloatArray:
    """Initial bearing from `origin` to each of many points, degrees clockwise from north in [0, 360)."""
    lat_o = math.radians(origin.lat)
    lat_p = np.radians(lats)
    d_lon = np.radians(lons - origin.lon)
    east = np.sin(d_lon) * np.cos(lat_p)
    north = math.cos(lat_o) * np.sin(lat_p) - math.sin(lat_o) * np.cos(lat_p) * np.cos(d_lon)
    result: FloatArray = np.degrees(np.arctan2(east, north)) % 360.0 % 360.0
    return result


def angle_between_deg(a_deg: float, b_deg: float) -> float:
    """The smaller angle between two directions, in [0, 180]."""
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


def moved(start: Position, bearing: float, distance: float) -> Position:
    """Where one gets from `start` by going `distance` metres on the initial `bearing` (degrees)."""
    lat_s, along, course = math.radians(start.lat), distance / EARTH_RADIUS_M, math.radians(bearing)
    sin_lat = math.sin(lat_s) * math.cos(along) + math.cos(lat_s) * math.sin(along) * math.cos(course)
    lat_e = math.asin(max(-1.0, min(1.0, sin_lat)))
    d_lon = math.atan2(
        math.sin(course) * math.sin(along) * math.cos(lat_s),
        math.cos(along) - math.sin(lat_s) * math.sin(lat_e),
    )
    lon_e = (start.lon + math.degrees(d_lon) + 180.0) % 360.0 - 180.0
    return Position(math.degrees(lat_e), lon_e)


# --- polygons -------------------------------------------------------------------------------------


def _ring(points: Sequence[Sequence[float]]) -> Ring:
    """A GeoJSON linear ring without its repeated last point, checked (RFC 7946 section 3.1.6)."""
    ring = []
    for point in points:
        lon, lat = float(point[0]), float(point[1])
        Position(lat, lon)  # range
        ring.append((lon, lat))
    if len(ring) > 1 and ring[0] == ring[-1]:
        ring.pop()
    if len(set(ring)) < 3:
        raise ValueError("a ring needs three different points")
    return tuple(ring)


def _in_ring(lon: float, lat: float, ring: Ring) -> bool:
    """Crossing number, half-open: of two polygons that share an edge a point on it is in just one."""
    inside = False
    lon_a, lat_a = ring[-1]
    for lon_b, lat_b in ring:
        if (lat_a > lat) != (lat_b > lat) and lon < lon_a + (lat - lat_a) * (lon_b - lon_a) / (lat_b - lat_a):
            inside = not inside
        lon_a, lat_a = lon_b, lat_b
    return inside


def _moments(ring: Ring, origin: tuple[float, float]) -> tuple[float, float, float]:
    """(unsigned area, area * centroid x, area * centroid y), degrees from `origin` (shoelace)."""
    area2 = moment_x = moment_y = 0.0
    x_a, y_a = ring[-1][0] - origin[0], ring[-1][1] - origin[1]
    for lon, lat in ring:
        x_b, y_b = lon - origin[0], lat - origin[1]
        cross = x_a * y_b - x_b * y_a
        area2 += cross
        moment_x += (x_a + x_b) * cross
        moment_y += (y_a + y_b) * cross
        x_a, y_a = x_b, y_b
    sign = 1.0 if area2 >= 0 else -1.0
    return sign * area2 / 2.0, sign * moment_x / 6.0, sign * moment_y / 6.0


@dataclass(frozen=True, slots=True)
class Polygon:
    """A GeoJSON polygon in WGS-84 that does not cross the antimeridian. Rings hold (lon, lat), unclosed."""

    outer: Ring
    holes: tuple[Ring, ...] = ()

    @classmethod
    def from_geojson(cls, coordinates: Sequence[Sequence[Sequence[float]]]) -> Polygon:
        """From the `coordinates` of a Polygon geometry. Raises ValueError when they make none."""
        try:
            rings = [_ring(ring) for ring in coordinates]
        except (TypeError, IndexError, KeyError) as error:
            raise ValueError("coordinates are lists of [lon, lat] pairs") from error
        if not rings:
            raise ValueError("a polygon needs an outer ring")
        return cls(rings[0], tuple(rings[1:]))

    def to_geojson(self) -> list[list[list[float]]]:
        """The `coordinates` of a Polygon geometry, rings closed."""
        return [[[lon, lat] for lon, lat in (*ring, ring[0])] for ring in (self.outer, *self.holes)]

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees."""
        lons, lats = zip(*self.outer, strict=True)
        return min(lons), min(lats), max(lons), max(lats)

    def contains(self, position: Position) -> bool:
        """Inside the outer ring and in none of the holes."""
        lon, lat = position.lon, position.lat
        return _in_ring(lon, lat, self.outer) and not any(_in_ring(lon, lat, hole) for hole in self.holes)

    def area_m2(self) -> float:
        """Square metres, holes taken out."""
        origin = self.outer[0]
        degrees2 = _moments(self.outer, origin)[0] - sum(_moments(hole, origin)[0] for hole in self.holes)
        _, south, _, north = self.bbox
        per_degree_m = math.radians(1.0) * EARTH_RADIUS_M
        return max(0.0, degrees2) * per_degree_m**2 * math.cos(math.radians((south + north) / 2.0))

    def centroid(self) -> Position:
        """Centre of mass; may lie outside of a concave polygon. Without area: the first corner."""
        lon, lat = origin = self.outer[0]
        area, moment_x, moment_y = _moments(self.outer, origin)
        for hole in self.holes:
            hole_area, hole_x, hole_y = _moments(hole, origin)
            area, moment_x, moment_y = area - hole_area, moment_x - hole_x, moment_y - hole_y
        if area <= 1e-15:
            return Position(lat, lon)
        return Position(lat + moment_y / area, lon + moment_x / area)
