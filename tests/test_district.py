"""The district's files: indices, places, rights that follow from them, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.access import Principal, Role
from gateway.config import Files, check_files, load_cameras
from gateway.district import District, Level, Place
from gateway.errors import ConfigError
from gateway.geo import Position

D, S1, S2 = "510117", "510117001", "510117002"
C1, C2, C3 = "510117001001", "510117001002", "510117002001"
G1, G2, G3, SCHOOL = "510117001001001", "510117001002001", "510117002001001", "510117001001101"


def square(west: float, south: float, width: float, height: float) -> list[list[list[float]]]:
    east, north = west + width, south + height
    return [[[west, south], [east, south], [east, north], [west, north], [west, south]]]


def feature(code: str, level: str, parent: str | None, shape: Any, **more: str) -> dict[str, Any]:
    properties = {"code": code, "name": f"名{code[-3:]}", "level": level, "parent": parent, **more}
    return {
        "type": "Feature",
        "properties": properties,
        "geometry": {"type": "Polygon", "coordinates": shape},
    }


def features() -> list[dict[str, Any]]:
    """Three columns: grid 1 (with a school in it), grid 2, grid 3; 1 and 2 are of one street."""
    return [
        feature(D, "district", None, square(103.0, 30.0, 0.3, 0.1)),
        feature(S1, "street", D, square(103.0, 30.0, 0.2, 0.1), phone="028-1"),
        feature(S2, "street", D, square(103.2, 30.0, 0.1, 0.1)),
        feature(C1, "community", S1, square(103.0, 30.0, 0.1, 0.1)),
        feature(C2, "community", S1, square(103.1, 30.0, 0.1, 0.1)),
        feature(C3, "community", S2, square(103.2, 30.0, 0.1, 0.1)),
        feature(G1, "grid", C1, square(103.0, 30.0, 0.1, 0.1), kind="general"),
        feature(SCHOOL, "grid", C1, square(103.04, 30.04, 0.02, 0.02), kind="dedicated"),
        feature(G2, "grid", C2, square(103.1, 30.0, 0.1, 0.1)),
        feature(G3, "grid", C3, square(103.2, 30.0, 0.1, 0.1)),
    ]


FILES = {
    "district.yaml": f"code: {D}\nname: 示例区\ncenter: {{lat: 30.05, lon: 103.15, datum: wgs84}}\n",
    "gridworkers.yaml": f"gridworkers:\n- {{id: w1, name: 王, grid: {G1}, phone: '1', skills: [急救]}}\n",
    "volunteers.yaml": f"volunteers:\n"
    f"- {{id: v1, name: 李, level: 2, community: {C2}, hours: '22:00-06:00'}}\n",
    "households.yaml": f"""households:
- {{id: h1, address: 一号, community: {C1}, grid: {G1}, lat: 30.01, lon: 103.01, datum: wgs84,
   contacts: [{{name: 张, phone: '2'}}], notes: 心脏病, consent: true}}
""",
    "boxes.yaml": "boxes:\n- {sid: stb1, household: h1}\n",
    "users.yaml": f"users:\n- {{sub: op1, name: 赵, role: operator, supervisor: true}}\n"
    f"- {{sub: d1, role: desk, area: {S1}}}\n",
}


def make(directory: Path, areas: list[dict[str, Any]] | None = None, **files: str) -> Path:
    directory.mkdir(exist_ok=True)
    collection = {"type": "FeatureCollection", "features": features() if areas is None else areas}
    (directory / "areas.geojson").write_text(json.dumps(collection, indent=1))
    for name, text in (FILES | {f"{name}.yaml": text for name, text in files.items()}).items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


@pytest.fixture
def district(tmp_path: Path) -> District:
    return District.load(make(tmp_path / "district"))


def test_what_is_in_the_files(district: District) -> None:
    assert (district.code, district.name, district.center) == (D, "示例区", Position(30.05, 103.15))
    assert (district.areas[S1].level, district.areas[S1].phone, district.areas[S1].parent) == (
        Level.STREET,
        "028-1",
        D,
    )
    assert district.gridworkers["w1"].skills == ("急救",)
    assert district.users["op1"].supervisor
    household = district.household_of("stb1")
    assert household is not None
    assert household.consent
    assert [contact.phone for contact in household.contacts] == ["2"]
    assert "心脏病" not in repr(household)


def test_lineage_and_place(district: District) -> None:
    assert district.lineage(G3) == (D, S2, C3, G3)
    assert district.lineage(D) == (D,)
    assert district.lineage("nowhere") == district.lineage(None) == ()
    place = district.place(C1)
    assert (place.district, place.street, place.community, place.grid) == (D, S1, C1, None)


def test_locate_takes_the_innermost_and_smallest(district: District) -> None:
    assert district.locate(Position(30.05, 103.25)).lineage == (D, S2, C3, G3)
    assert district.locate(Position(30.01, 103.01)).grid == G1
    assert district.locate(Position(30.05, 103.05)).grid == SCHOOL
    assert district.locate(Position(31, 103.05)) == Place()


def test_within_an_area_its_parents_are_known_too(district: District) -> None:
    assert {area.code for area in district.within(C1)} == {D, S1, C1, G1, SCHOOL}
    assert len(district.within(None)) == len(district.areas)
    assert district.within("nowhere") == []


def test_situate_puts_everybody_where_he_belongs(district: District) -> None:
    def lineage(sub: str, role: Role, area: str | None = None) -> tuple[str, ...]:
        return district.situate(Principal(sub=sub, role=role, area=area)).lineage

    assert lineage("w1", Role.WORKER) == (D, S1, C1, G1)
    assert lineage("w1", Role.WORKER, G3) == (D, S1, C1, G1)  # the token can't move him
    assert lineage("v1", Role.VOLUNTEER) == (D, S1, C2)
    assert lineage("stb1", Role.STB, C3) == (D, S1, C1, G1)
    assert lineage("stb9", Role.STB, C3) == (D, S2, C3)
    assert lineage("d1", Role.DESK, S1) == (D, S1)
    assert lineage("stb1", Role.WORKER) == ()
    assert district.situate(Principal(sub="op1", role=Role.OPERATOR)).name == "赵"


def test_volunteers_hours_go_over_midnight(district: District) -> None:
    volunteer = district.volunteers["v1"]
    assert [volunteer.available_at(hour * 60) for hour in (21, 22, 0, 5, 6, 12)] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_without_a_district_codes_speak_for_themselves() -> None:
    empty = District.empty()
    assert empty.is_empty
    assert empty.lineage(G1) == (D, S1, C1, G1)
    assert empty.lineage("12345") == empty.lineage("here") == ()
    assert empty.locate(Position(30.05, 103.05)) == Place()
    assert empty.situate(Principal(sub="s", role=Role.STB, area=C1)).lineage == (D, S1, C1)


def test_every_mistake_in_one_run(tmp_path: Path) -> None:
    areas = features()
    areas[4]["properties"]["parent"] = "510117009"
    areas[6]["geometry"]["type"] = "Point"
    areas[9]["geometry"]["coordinates"] = [[[1, 2], [3, 4]]]
    directory = make(
        tmp_path / "district",
        areas,
        gridworkers=f"gridworkers:\n- {{id: w1, name: 王, grid: {C1}}}\n- {{id: w1, name: 王, grid: {G2}}}\n",
        volunteers=f"volunteers:\n- {{id: w1, name: 李, level: 1, community: {C2}, hours: morning}}\n",
        boxes="boxes:\n- {sid: stb1, household: h2, colour: red}\n",
        users="users:\n- {sub: u, role: opertor}\n- {sub: v, role: desk, area: 510118, supervisor: 7}\n",
    )
    found = [(Path(one.file).name, one.path, one.message) for one in check_files(Files(district=directory))]
    assert [(file, path) for file, path, _ in found] == [
        ("areas.geojson", "features[4].properties.parent"),
        ("areas.geojson", "features[6].geometry.type"),
        ("areas.geojson", "features[9].geometry.coordinates"),
        ("boxes.yaml", "boxes[0].colour"),
        ("boxes.yaml", "boxes[0].household"),
        ("gridworkers.yaml", "gridworkers[0].grid"),
        ("gridworkers.yaml", "gridworkers[1].id"),
        ("households.yaml", "households[0].grid"),
        ("users.yaml", "users[0].role"),
        ("users.yaml", "users[1].area"),
        ("users.yaml", "users[1].supervisor"),
        ("volunteers.yaml", "volunteers[0].hours"),
        ("volunteers.yaml", "volunteers[0].id"),
        ("volunteers.yaml", "volunteers[0].level"),
    ]
    assert "did you mean operator?" in found[8][2]
    with pytest.raises(ConfigError):
        District.load(directory)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    ((mistake),) = check_files(Files(district=tmp_path / "none"))
    assert mistake.message == "there is no such directory"


def test_cameras_lie_in_known_areas(tmp_path: Path, district: District) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(
        f"""cameras:
- {{id: a, main: "rtsp://x/1", community: {C1}, grid: {G1}}}
- {{id: b, main: "rtsp://x/1", community: {C1}, grid: {G2}}}
- {{id: c, main: "rtsp://x/1", community: 510117001009}}
"""
    )
    with pytest.raises(ConfigError) as error:
        load_cameras(path, district=district)
    assert [line.split(": ")[1] for line in error.value.mistakes] == [
        "cameras[1].grid",
        "cameras[2].community",
    ]
    assert "did you mean 510117001" in error.value.mistakes[1]
