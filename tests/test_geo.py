"""Geometry against known vectors and against itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.geo import (
    Datum,
    Polygon,
    Position,
    angle_between_deg,
    bearing_deg,
    bearings_deg,
    distance_m,
    distances_m,
    from_datum,
    moved,
    to_gcj02,
)

PIDU = Position(30.81, 103.89)

in_china = st.builds(Position, st.floats(18.5, 53.5), st.floats(74.0, 135.0))
in_district = st.builds(Position, st.floats(30.7, 30.95), st.floats(103.7, 104.05))
anywhere = st.builds(Position, st.floats(-89, 89), st.floats(-180, 180))


@pytest.mark.parametrize(
    ("wgs84", "gcj02"),
    [  # vectors of the public eviltransform (Shanghai, Shenzhen, Beijing) and coordtransform projects
        ((31.1774276, 121.5272106), (31.17530398364597, 121.531541859215)),
        ((22.543847, 113.912316), (22.540796131694766, 113.9171764808363)),
        ((39.911954, 116.377817), (39.91334545536069, 116.38404722455657)),
        ((39.915, 116.404), (39.91640428150164, 116.41024449916938)),
    ],
)
def test_gcj02_known_vectors(wgs84: tuple[float, float], gcj02: tuple[float, float]) -> None:
    assert distance_m(Position(*to_gcj02(Position(*wgs84))), Position(*gcj02)) < 0.05
    assert distance_m(from_datum(*gcj02, Datum.GCJ02), Position(*wgs84)) < 0.05


def test_the_datums_lie_hundreds_of_metres_apart_in_the_district() -> None:
    assert 300 < distance_m(PIDU, Position(*to_gcj02(PIDU))) < 400


def test_gcj02_is_wgs84_outside_china() -> None:
    assert to_gcj02(Position(51.5, -0.12)) == (51.5, -0.12)
    assert from_datum(51.5, -0.12, Datum.GCJ02) == Position(51.5, -0.12)


@given(in_china)
def test_gcj02_round_trip_is_below_a_tenth_of_a_metre(position: Position) -> None:
    assert distance_m(from_datum(*to_gcj02(position), Datum.GCJ02), position) < 0.1


@given(anywhere)
def test_from_datum_ends_everywhere(position: Position) -> None:
    assert from_datum(position.lat, position.lon, Datum.WGS84) == position
    assert distance_m(from_datum(position.lat, position.lon, Datum.GCJ02), position) < 2_000


@pytest.mark.parametrize(("lat", "lon"), [(90.1, 0), (0, 180.1), (math.nan, 0), (0, math.inf)])
def test_impossible_positions_are_refused(lat: float, lon: float) -> None:
    for datum in Datum:
        with pytest.raises(ValueError):
            from_datum(lat, lon, datum)


def test_distance_known_vector() -> None:
    # Nashville to Los Angeles airport, the usual haversine example: 2886.4 km on R = 6371 km
    assert distance_m(Position(36.12, -86.67), Position(33.94, -118.40)) == pytest.approx(2_886_448, rel=1e-5)


def test_bearings_of_the_compass() -> None:
    for course in (0, 45, 90, 180, 270, 359):
        assert angle_between_deg(bearing_deg(PIDU, moved(PIDU, course, 500)), course) < 0.01
    assert bearing_deg(PIDU, PIDU) == 0
    assert angle_between_deg(350, 10) == 20
    assert angle_between_deg(0, 180) == 180


@given(in_district, st.floats(0, 359.99), st.floats(1, 20_000))
def test_moved_inverts_distance_and_bearing(start: Position, course: float, metres: float) -> None:
    end = moved(start, course, metres)
    assert distance_m(start, end) == pytest.approx(metres, abs=0.01)
    assert angle_between_deg(bearing_deg(start, end), course) < 0.1


@given(anywhere, st.lists(anywhere, min_size=1, max_size=5))
def test_vectorised_equals_scalar(origin: Position, others: list[Position]) -> None:
    lats = np.array([p.lat for p in others])
    lons = np.array([p.lon for p in others])
    assert distances_m(origin, lats, lons) == pytest.approx([distance_m(origin, p) for p in others], abs=0.01)
    for got, other in zip(bearings_deg(origin, lats, lons), others, strict=True):
        assert 0 <= got < 360
        if 1 < distance_m(origin, other) < 1e7:
            assert angle_between_deg(float(got), bearing_deg(origin, other)) < 1e-6


def square(west: float, south: float, side: float) -> list[list[float]]:
    east, north = west + side, south + side
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def test_polygon_with_a_hole() -> None:
    polygon = Polygon.from_geojson([square(103, 30, 0.4), square(103.1, 30.1, 0.1)])
    assert polygon.contains(Position(30.05, 103.05))
    assert not polygon.contains(Position(30.15, 103.15))
    assert not polygon.contains(Position(29.9, 103.05))
    assert polygon.bbox == pytest.approx((103, 30, 103.4, 30.4))
    assert Polygon.from_geojson(polygon.to_geojson()) == polygon
    # 0.16 - 0.01 square degrees, centroid pushed away from the hole
    per_degree = math.radians(1) * 6_371_008.8
    assert polygon.area_m2() == pytest.approx(0.15 * per_degree**2 * math.cos(math.radians(30.2)), rel=1e-9)
    assert polygon.centroid().lat == pytest.approx((0.16 * 30.2 - 0.01 * 30.15) / 0.15)


def test_winding_does_not_matter() -> None:
    one = Polygon.from_geojson([square(103, 30, 0.1)])
    other = Polygon.from_geojson([square(103, 30, 0.1)[::-1]])
    assert one.area_m2() == pytest.approx(other.area_m2())
    assert one.centroid().lon == pytest.approx(other.centroid().lon)


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_point_on_a_shared_edge_is_in_one_polygon(i: int, j: int) -> None:
    tiles = [Polygon.from_geojson([square(x, y, 1.0)]) for x in (100, 101) for y in (30, 31)]
    point = Position(30 + i / 10.5, 100 + j / 10.5)
    assert sum(tile.contains(point) for tile in tiles) == 1


@pytest.mark.parametrize(
    "coordinates",
    [[], [[]], [[[1, 2], [3, 4], [1, 2]]], [[[1], [2], [3]]], [[[0, 0], [0, 91], [1, 1]]], [3], [[["a", 1]]]],
)
def test_broken_rings_are_refused(coordinates: list[list[list[float]]]) -> None:
    with pytest.raises(ValueError):
        Polygon.from_geojson(coordinates)
