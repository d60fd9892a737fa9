"""The generated district: counts, determinism, and areas that tile without gap or overlap."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulators import district, geometry, keys

Ring = list[tuple[float, float]]


@pytest.fixture(scope="module")
def generated() -> district.District:
    return district.generate(1)


@pytest.fixture(scope="module")
def rings(generated: district.District) -> dict[str, Ring]:
    """Code -> outline in millionths of a degree (integers: what the file says, exactly)."""
    return {
        feature["properties"]["code"]: [
            (round(lon * 1e6), round(lat * 1e6)) for lon, lat in feature["geometry"]["coordinates"][0][:-1]
        ]
        for feature in generated.features
    }


def _children(generated: district.District) -> dict[str, list[str]]:
    children: dict[str, list[str]] = defaultdict(list)
    for feature in generated.features:
        properties = feature["properties"]
        if properties["parent"]:
            children[properties["parent"]].append(properties["code"])
    return children


def _edges(ring: Ring) -> Counter[tuple[tuple[float, float], tuple[float, float]]]:
    return Counter(zip(ring, [*ring[1:], ring[0]], strict=True))


def test_same_seed_same_bytes_and_another_seed_others(generated: district.District) -> None:
    first = district.render(generated)
    assert district.render(district.generate(1)) == first
    other = district.render(district.generate(2))
    assert all(
        first[name] != other[name]
        for name in first
        if name not in ("district/district.yaml", "district/boxes.yaml")
    )


def test_committed_files_are_what_seed_1_makes(generated: district.District) -> None:
    root = Path(__file__).parents[2] / "config"
    text = (root / "district" / "areas.geojson").read_text(encoding="utf-8")
    assert text == district.render(generated)["district/areas.geojson"]


def test_sizes_of_the_real_district(generated: district.District) -> None:
    levels = Counter((f["properties"]["level"], f["properties"].get("kind")) for f in generated.features)
    assert levels == {
        ("district", None): 1,
        ("street", None): 14,
        ("community", None): 195,
        ("grid", "general"): 555,
        ("grid", "dedicated"): 34,
    }
    assert len(generated.cameras) == 768
    assert len({camera["community"] for camera in generated.cameras}) == 160
    assert len({camera["name"] for camera in generated.cameras}) == 768
    assert Counter(worker["grid"] for worker in generated.gridworkers) == Counter(
        f["properties"]["code"] for f in generated.features if f["properties"]["level"] == "grid"
    )
    assert (len(generated.volunteers), len(generated.households), len(generated.boxes)) == (1200, 2000, 2000)
    assert generated.boxes[0]["sid"] == "stb00001"


def test_names_of_an_area_are_unique_among_siblings(generated: district.District) -> None:
    names = Counter((f["properties"]["parent"], f["properties"]["name"]) for f in generated.features)
    assert names.most_common(1)[0][1] == 1
    communities = [
        f["properties"]["name"] for f in generated.features if f["properties"]["level"] == "community"
    ]
    assert len(set(communities)) == len(communities)


def test_area_is_438_km2(generated: district.District) -> None:
    outline = next(f for f in generated.features if f["properties"]["level"] == "district")
    local = [district.to_local(lat, lon) for lon, lat in outline["geometry"]["coordinates"][0][:-1]]
    assert geometry.area(local) == pytest.approx(438e6, rel=0.01)
    assert geometry.contains(local, (0.0, 0.0))


def test_children_share_every_edge_with_a_sibling_or_the_parent(
    generated: district.District, rings: dict[str, Ring]
) -> None:
    """A planar map: each directed edge of a cell is met by its reverse in one sibling, or lies on the
    parent's outline.
    """
    for parent, codes in _children(generated).items():
        edges: Counter[tuple[tuple[float, float], tuple[float, float]]] = Counter()
        for code in codes:
            edges += _edges(rings[code])
        outer = Counter({edge: n for edge, n in edges.items() if (edge[1], edge[0]) not in edges})
        assert outer == _edges(rings[parent]), parent
        assert max(edges.values()) == 1
        assert sum(geometry.area(rings[code]) for code in codes) == pytest.approx(
            geometry.area(rings[parent])
        )


def test_each_point_lies_in_exactly_one_grid(generated: district.District, rings: dict[str, Ring]) -> None:
    grids = [rings[f["properties"]["code"]] for f in generated.features if f["properties"]["level"] == "grid"]
    outline = rings["510117"]
    boxes = [
        (min(x for x, _ in g), min(y for _, y in g), max(x for x, _ in g), max(y for _, y in g))
        for g in grids
    ]
    random = Random(5)
    x0, x1 = min(x for x, _ in outline), max(x for x, _ in outline)
    y0, y1 = min(y for _, y in outline), max(y for _, y in outline)
    inside = 0
    for _ in range(4000):
        x, y = random.uniform(x0, x1), random.uniform(y0, y1)
        owners = sum(
            geometry.contains(grid, (x, y))
            for grid, (a, b, c, d) in zip(grids, boxes, strict=True)
            if a <= x <= c and b <= y <= d
        )
        assert owners == geometry.contains(outline, (x, y))
        inside += owners
    assert inside > 1500


@pytest.mark.parametrize("table", ["cameras", "households"])
def test_everything_lies_inside_its_own_grid(
    generated: district.District, rings: dict[str, Ring], table: str
) -> None:
    parents = {f["properties"]["code"]: f["properties"]["parent"] for f in generated.features}
    for row in getattr(generated, table):
        assert geometry.contains(rings[row["grid"]], (row["lon"] * 1e6, row["lat"] * 1e6)), row
        assert parents[row["grid"]] == row["community"]


def test_files_load_as_yaml_with_codes_as_text(tmp_path: Path, generated: district.District) -> None:
    district.write(generated, tmp_path)
    cameras = yaml.load((tmp_path / "cameras.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)["cameras"]
    assert cameras == generated.cameras
    households = yaml.load(
        (tmp_path / "district/households.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader
    )
    assert households["households"] == generated.households
    assert (
        json.loads((tmp_path / "district/areas.geojson").read_text(encoding="utf-8"))["features"]
        == generated.features
    )
    for line in (tmp_path / "cameras.yaml").read_text(encoding="utf-8").splitlines():
        assert "password" not in line
        assert "@" not in line


def test_no_phone_number_can_belong_to_anyone(generated: district.District) -> None:
    numbers = [worker["phone"] for worker in generated.gridworkers]
    numbers += [contact["phone"] for row in generated.households for contact in row["contacts"]]
    assert all(len(number) == 11 and number.startswith("100") for number in numbers)


@given(seed=st.integers(0, 10_000), weights=st.lists(st.floats(0.2, 3.0), min_size=1, max_size=12))
def test_partition_gives_each_part_its_share(seed: int, weights: list[float]) -> None:
    square = [(0.0, 0.0), (1000.0, 0.0), (1000.0, 1000.0), (0.0, 1000.0)]
    parts = [geometry.Part(key=str(i), weight=weight) for i, weight in enumerate(weights)]
    cells = geometry.partition(square, parts, Random(seed))
    for part in parts:
        assert geometry.area(cells[part.key]) == pytest.approx(1e6 * part.weight / sum(weights), rel=1e-3)


def test_secrets_are_private_and_only_ever_added(tmp_path: Path, generated: district.District) -> None:
    district.write(generated, tmp_path)
    path = tmp_path / "secrets.yaml"
    assert keys.add_missing(path, tmp_path / "district") == 1 + 2000 + 589 + len(generated.users)
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_bytes()
    assert keys.add_missing(path, tmp_path / "district") == 0
    assert path.read_bytes() == first
    loaded = keys.load(path)
    kept = loaded["boxes"]["stb00002"]
    del loaded["boxes"]["stb00001"]
    path.write_text(yaml.safe_dump(loaded), encoding="utf-8")
    assert keys.add_missing(path, tmp_path / "district") == 1
    assert keys.load(path)["boxes"]["stb00002"] == kept
    assert path.stat().st_mode & 0o777 == 0o600


def test_signatures_are_those_of_the_contract() -> None:
    """Golden vectors, computed with `openssl dgst -sha256 -mac HMAC -macopt hexkey:...`."""
    key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    assert (
        keys.press_signature(
            key, sid="stb00001", pid="p-1", seq=7, ts=1700000000000, kind="help", cam="cam001"
        )
        == "7ae1aed97e827bb7d568abb8236d16a0b2b2c0b595b2416e577307bd2ea00001"
    )
    assert (
        keys.press_signature(
            key, sid="stb00001", pid="p-1", seq=7, ts=1700000000000, kind="theft", silent=True
        )
        == "a2dabc84fe139df2fd8c379684f4d4216156ac2c0ffd954dd2cbc8b7b8b19cc7"
    )
    assert (
        keys.cancel_signature(key, sid="stb00001", pid="p-1", ts=1700000000000)
        == "d87c66877d2d7929b1636a5d7bc8e3690b086ffc1d657c494e1e723b3b12a271"
    )
    assert (
        keys.mqtt_password(key, "stb00001")
        == "e254cbadad3749fef7ae3b23061eae0ea1cf2e475c36bc8c9b61088e5a1fc5ec"
    )
