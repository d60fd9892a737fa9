"""A whole district from one seed: areas that tile, people, households, boxes and 768 cameras, as
configuration files.

Sizes are those of Pidu in Chengdu (438 km2, 14 streets and towns, 195 communities of which 160 have
cameras, 555 general and 34 dedicated grids, 768 cameras). Everything below the street names is invented.
The same seed gives the same bytes. Formats: docs/contract.md section 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from simulators import geometry, names

__all__ = ["CENTER", "District", "Row", "generate", "write"]

Row = dict[str, Any]

CENTER = (30.81, 103.89)  # WGS-84 latitude, longitude
AREA_M2 = 438e6
CODE = "510117"
COMMUNITIES, COMMUNITIES_WITH_CAMERAS = 195, 160
GENERAL, DEDICATED, CAMERAS = 555, 34, 768
VOLUNTEERS, HOUSEHOLDS = 1200, 2000
DEDICATED_WEIGHT = 0.35  # a school or a market takes about a third of an ordinary grid's ground

_METRES_PER_DEGREE = math.pi / 180 * 6_371_008.8
_LON_SCALE = math.cos(math.radians(CENTER[0]))
# The outline in units of its own size: convex, longer from north-west to south-east, as the real one is.
_OUTLINE = (
    (-1.02, 0.98), (-1.10, 0.62), (-0.92, 0.18), (-0.72, -0.22), (-0.38, -0.46), (0.10, -0.60),
    (0.62, -0.66), (0.94, -0.52), (1.04, -0.22), (0.82, 0.18), (0.46, 0.58), (0.04, 0.92), (-0.50, 1.12),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class District:
    """All rows as they are written, one list a file."""

    features: list[Row]
    gridworkers: list[Row]
    volunteers: list[Row]
    households: list[Row]
    boxes: list[Row]
    users: list[Row]
    cameras: list[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    code: str
    name: str
    level: str
    parent: str
    kind: str | None = None
    stem: str = ""
    place: int = -1  # index into names.DEDICATED


def to_local(lat: float, lon: float) -> tuple[float, float]:
    """WGS-84 degrees to metres east and north of the centre (equirectangular: 1 in 10,000 over 20 km)."""
    return (lon - CENTER[1]) * _METRES_PER_DEGREE * _LON_SCALE, (lat - CENTER[0]) * _METRES_PER_DEGREE


def to_wgs84(x: float, y: float) -> tuple[float, float]:
    """Metres from the centre to latitude, longitude, rounded to 1e-6 degrees (0.1 m)."""
    return round(CENTER[0] + y / _METRES_PER_DEGREE, 6), round(
        CENTER[1] + x / _METRES_PER_DEGREE / _LON_SCALE, 6
    )


def _shares(total: int, weights: list[float], least: int) -> list[int]:
    """Splits `total` by weight, each at least `least`; the largest remainders get what is left over."""
    rest = total - least * len(weights)
    exact = [rest * weight / sum(weights) for weight in weights]
    counts = [least + int(value) for value in exact]
    order = sorted(range(len(weights)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


class _Builder:
    def __init__(self, seed: int, rtsp_base: str) -> None:
        self.seed = seed
        self.rtsp_base = rtsp_base.rstrip("/")
        self.streets: list[_Area] = []
        self.communities: list[_Area] = []
        self.grids: list[_Area] = []
        self.cells: dict[str, list[tuple[float, float]]] = {}
        self.grids_of: dict[str, list[_Area]] = {}

    def random(self, label: str) -> Random:
        """An own source for each purpose: adding a row to one file does not reshuffle the others."""
        return Random(f"{self.seed}|{label}")

    # -- areas --

    def areas(self) -> None:
        random = self.random("areas")
        population = [street[5] for street in names.STREETS]
        per_street = _shares(COMMUNITIES, population, 5)
        stems = list(names.COMMUNITY_STEMS)
        random.shuffle(stems)
        for number, (stem, kind, *_rest) in enumerate(names.STREETS, start=1):
            street = _Area(
                code=f"{CODE}{number:03d}", name=stem + kind, level="street", parent=CODE, stem=stem
            )
            self.streets.append(street)
            for index in range(1, per_street[number - 1] + 1):
                stem_ = stems.pop()
                rural = kind == "镇" and random.random() < 0.7
                self.communities.append(
                    _Area(
                        code=f"{street.code}{index:03d}",
                        name=stem_ + ("村" if rural else "社区"),
                        level="community",
                        parent=street.code,
                        stem=stem_,
                    )
                )
        general = _shares(GENERAL, [1.0 + 0.8 * random.random() for _ in self.communities], 1)
        # Dedicated grids go to the streets by population, one a community, so that none gets two schools.
        dedicated: dict[str, int] = {}
        place = 0
        for street, count in zip(self.streets, _shares(DEDICATED, population, 1), strict=True):
            own = [area.code for area in self.communities if area.parent == street.code]
            for code in sorted(random.sample(own, count)):
                dedicated[code] = place % len(names.DEDICATED)
                place += 1
        for community, count in zip(self.communities, general, strict=True):
            rows = [
                _Area(
                    code=f"{community.code}{index:03d}",
                    name=f"{community.name}第{index}网格",
                    level="grid",
                    parent=community.code,
                    kind="general",
                    stem=community.stem,
                )
                for index in range(1, count + 1)
            ]
            if community.code in dedicated:
                place = dedicated[community.code]
                street_stem = next(street.stem for street in self.streets if street.code == community.parent)
                title = names.DEDICATED[place][0].format(stem=community.stem, street=street_stem)
                rows.append(
                    _Area(
                        code=f"{community.code}{count + 1:03d}",
                        name=f"{title}专属网格",
                        level="grid",
                        parent=community.code,
                        kind="dedicated",
                        stem=title,
                        place=place,
                    )
                )
            self.grids += rows
            self.grids_of[community.code] = rows

    def polygons(self) -> None:
        random = self.random("polygons")
        size = math.sqrt(AREA_M2 / geometry.area(list(_OUTLINE)))
        outline = [(x * size, y * size) for x, y in _OUTLINE]
        cells: dict[str, list[tuple[float, float]]] = {CODE: outline}
        cells |= geometry.partition(
            outline,
            [
                geometry.Part(key=area.code, weight=row[4], hint=to_local(row[2], row[3]))
                for area, row in zip(self.streets, names.STREETS, strict=True)
            ],
            random,
        )
        weight = {grid.code: 1.0 if grid.kind == "general" else DEDICATED_WEIGHT for grid in self.grids}
        for street in self.streets:
            own = [area for area in self.communities if area.parent == street.code]
            parts = [
                geometry.Part(
                    key=area.code, weight=sum(weight[grid.code] for grid in self.grids_of[area.code])
                )
                for area in own
            ]
            cells |= geometry.partition(cells[street.code], parts, random)
        for community in self.communities:
            parts = [
                geometry.Part(key=grid.code, weight=weight[grid.code])
                for grid in self.grids_of[community.code]
            ]
            cells |= geometry.partition(cells[community.code], parts, random)
        cells = geometry.roughen(geometry.conform(cells), lambda label: self.random("edge|" + label))
        # Round once to what the file says: a point is inside its grid by the file, not only by our floats.
        self.cells = {
            key: [to_local(*to_wgs84(x, y)) for x, y in polygon] for key, polygon in cells.items()
        }  # fmt: skip

    def features(self) -> list[Row]:
        random = self.random("phones")
        district = _Area(code=CODE, name="郫都区", level="district", parent="")
        rows = []
        for area in [district, *self.streets, *self.communities, *self.grids]:
            properties: Row = {
                "code": area.code,
                "name": area.name,
                "level": area.level,
                "parent": area.parent or None,
            }
            if area.kind is not None:
                properties["kind"] = area.kind
            properties["phone"] = names.phone(random)
            ring = [[lon, lat] for lat, lon in (to_wgs84(x, y) for x, y in self.cells[area.code])]
            ring.append(ring[0])
            rows.append(
                {
                    "type": "Feature",
                    "properties": properties,
                    "geometry": {"type": "Polygon", "coordinates": [ring]},
                }
            )
        return rows

    def spot(self, code: str, random: Random, margin_m: float) -> tuple[float, float]:
        """A point in the area, at least `margin_m` from its border where there is such a place; latitude,
        longitude.
        """
        polygon = self.cells[code]
        xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
        best, best_distance = geometry.centroid(polygon), -math.inf
        for _ in range(40):
            point = (random.uniform(min(xs), max(xs)), random.uniform(min(ys), max(ys)))
            distance = geometry.inside_distance(polygon, point)
            if distance >= margin_m:
                return to_wgs84(*point)
            if distance > best_distance:
                best, best_distance = point, distance
        return to_wgs84(*best)

    # -- people --

    def gridworkers(self) -> list[Row]:
        random = self.random("gridworkers")
        skills = ("急救", "消防", "调解", "川话手语", "英语", "无人机")
        return [
            {
                "id": f"w{number:03d}",
                "name": names.person(random),
                "grid": grid.code,
                "phone": names.phone(random),
                "skills": sorted(random.sample(skills, random.choice((0, 0, 1, 1, 2)))),
            }
            for number, grid in enumerate(self.grids, start=1)
        ]

    def volunteers(self) -> list[Row]:
        random = self.random("volunteers")
        hours = ("08:00-20:00", "07:00-22:00", "09:00-18:00", "18:00-23:00", "00:00-24:00")
        counts = _shares(VOLUNTEERS, [1.0 + len(self.grids_of[area.code]) for area in self.communities], 2)
        rows: list[Row] = []
        for community, count in zip(self.communities, counts, strict=True):
            for _ in range(count):
                lat, lon = self.spot(random.choice(self.grids_of[community.code]).code, random, 15)
                rows.append(
                    {
                        "id": f"v{len(rows) + 1:04d}",
                        "name": names.person(random),
                        "level": random.choice((2, 3, 3, 4, 4, 4)),
                        "community": community.code,
                        "phone": names.phone(random),
                        "lat": lat,
                        "lon": lon,
                        "datum": "wgs84",
                        "hours": random.choice(hours),
                    }
                )
        return rows

    def households(self) -> list[Row]:
        random = self.random("households")
        notes = (
            "",
            "",
            "",
            "",
            "",
            "独居老人",
            "行动不便",
            "听力障碍, 请敲门",
            "有大型犬",
            "心脏病史, 药在床头",
            "双胞胎婴儿",
        )
        weights = [1.0 + len(self.grids_of[area.code]) for area in self.communities]
        rows: list[Row] = []
        for community, count in zip(self.communities, _shares(HOUSEHOLDS, weights, 2), strict=True):
            street = next(area for area in self.streets if area.code == community.parent)
            for _ in range(count):
                grid = random.choice([g for g in self.grids_of[community.code] if g.kind == "general"])
                lat, lon = self.spot(grid.code, random, 15)
                building = f"{random.randint(1, 24)}栋{random.randint(1, 4)}单元"
                building += f"{random.randint(1, 18)}{random.randint(1, 4):02d}"
                house = f"{random.randint(1, 12)}组{random.randint(1, 90)}号"
                road = f"{random.choice(names.ROADS)}{random.randint(1, 399)}号"
                rows.append(
                    {
                        "id": f"h{len(rows) + 1:05d}",
                        "address": street.name
                        + community.name
                        + (house if community.name.endswith("村") else road + building),
                        "community": community.code,
                        "grid": grid.code,
                        "lat": lat,
                        "lon": lon,
                        "datum": "wgs84",
                        "contacts": [
                            {"name": names.person(random), "phone": names.phone(random)}
                            for _ in range(random.choice((1, 2, 2)))
                        ],
                        "notes": random.choice(notes),
                        "consent": random.random() < 0.9,
                    }
                )
        return rows

    def users(self) -> list[Row]:
        random = self.random("users")
        rows: list[Row] = []

        def add(sub: str, name: str, role: str, area: str | None, supervisor: bool = False) -> None:
            rows.append({"sub": sub, "name": name, "role": role, "area": area, "supervisor": supervisor})

        add("admin", "系统管理员", "admin", None)
        for number in range(1, 13):  # two shifts of six, the first of each supervises
            add(f"op{number:02d}", names.person(random), "operator", None, supervisor=number in (1, 7))
        for number in range(1, 4):
            add(f"leader{number:02d}", names.person(random), "leader", None)
        for area in self.streets:
            add(f"desk-{area.code}", f"{area.name}值班台", "desk", area.code)
        for area in self.communities:
            add(f"desk-{area.code}", f"{area.name}值班台", "desk", area.code)
        return rows

    # -- cameras --

    def cameras(self) -> list[Row]:
        random = self.random("cameras")
        must = [
            area.code
            for area in self.communities
            if any(g.kind == "dedicated" for g in self.grids_of[area.code])
        ]
        others = [area.code for area in self.communities if area.code not in must]
        chosen = set(must) | set(random.sample(others, COMMUNITIES_WITH_CAMERAS - len(must)))
        rows_of = [area for area in self.communities if area.code in chosen]
        weights = []
        for area in rows_of:
            population = names.STREETS[int(area.parent[-3:]) - 1][5]
            weights.append(0.4 + population * (0.6 + 0.8 * random.random()))
        # 1 everywhere, 3 more for a dedicated place (its first camera is one of them).
        free = CAMERAS - 2 * len(must)
        counts = _shares(free, weights, 1)
        rows: list[Row] = []
        used: set[str] = set()
        for community, count in zip(rows_of, counts, strict=True):
            grids = self.grids_of[community.code]
            dedicated = [grid for grid in grids if grid.kind == "dedicated"]
            places: list[tuple[str, _Area, str]] = []
            for grid in dedicated:
                views = names.DEDICATED[grid.place][1]
                places += [(grid.stem + view, grid, random.choice(("none", "community"))) for view in views]
                count += 2 - len(views)
            general = [grid for grid in grids if grid.kind == "general"]
            roads = self.random("roads|" + community.code).sample(names.ROADS, 5)
            for _ in range(max(0, count)):
                grid = random.choice(general)
                places.append(self._view(community, grid, roads, random, used))
            for name, grid, visible_to in places:
                rows.append(self._camera(len(rows) + 1, name, grid, visible_to, random))
        return rows

    def _view(
        self, community: _Area, grid: _Area, roads: list[str], random: Random, used: set[str]
    ) -> tuple[str, _Area, str]:
        a, b = random.sample(roads, 2)
        choices = (
            (f"{a}与{b}路口", "street", 9),
            (f"{community.stem}小区大门", "community", 3),
            (f"{a}公交站", "street", 2),
            (f"{community.stem}便民市场", "community", 2),
            (f"{community.stem}文化广场", "district", 2),
            (f"{community.stem}河边步道", "district", 1),
            (f"{community.stem}停车场", "community", 1),
            (f"{community.stem}党群服务中心", "community", 1),
            (f"{a}商业街", "street", 2),
        )
        name, visible_to, _ = random.choices(choices, [weight for *_, weight in choices])[0]
        final = name
        for suffix in ("", "东侧", "西侧", "南侧", "北侧", *(f"{n}号机位" for n in range(2, 40))):
            final = name + suffix
            if final not in used:
                break
        used.add(final)
        return final, grid, visible_to

    def _camera(self, number: int, name: str, grid: _Area, visible_to: str, random: Random) -> Row:
        lat, lon = self.spot(grid.code, random, 30)
        camera_id = f"cam{number:03d}"
        return {
            "id": camera_id,
            "name": name,
            "main": f"{self.rtsp_base}/{camera_id}/main",
            "sub": f"{self.rtsp_base}/{camera_id}/sub",
            "credentials": "farm",
            "lat": lat,
            "lon": lon,
            "datum": "wgs84",
            "heading": random.randrange(0, 360, 5),
            "fov": random.choice((60, 75, 90, 90, 105)),
            "range_m": random.choice((40, 60, 60, 80, 120)),
            "community": grid.parent,
            "grid": grid.code,
            "visible_to": visible_to,
            "pull": "always" if number <= 16 else "on_demand",
        }


def generate(seed: int = 1, rtsp_base: str = "rtsp://127.0.0.1:8554") -> District:
    """Builds all rows. Pure: the seed decides everything."""
    builder = _Builder(seed, rtsp_base)
    builder.areas()
    builder.polygons()
    households = builder.households()
    boxes = [
        {"sid": f"stb{number:05d}", "household": row["id"]} for number, row in enumerate(households, start=1)
    ]
    return District(
        features=builder.features(),
        gridworkers=builder.gridworkers(),
        volunteers=builder.volunteers(),
        households=households,
        boxes=boxes,
        users=builder.users(),
        cameras=builder.cameras(),
    )


# -- files --


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _scalar(key: str, value: object) -> str:
    """A YAML flow scalar: plain where that is safe and nicer to edit, else the JSON form (which is YAML
    too).
    """
    plain = (
        "id",
        "main",
        "sub",
        "datum",
        "credentials",
        "visible_to",
        "pull",
        "sid",
        "household",
        "role",
        "transport",
    )
    return str(value) if key in plain and key != "name" else _json(value)


def _flow(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_scalar(key, value)}" for key, value in row.items())


def _yaml_list(title: str, rows: Iterable[Mapping[str, Any]], comment: str) -> str:
    lines = [f"# {line}" for line in comment.splitlines()]
    return "\n".join([*lines, f"{title}:", *(f"  - {{{_flow(row)}}}" for row in rows), ""])


def _cameras_yaml(rows: list[Row]) -> str:
    header = """\
# Cameras of the district (docs/contract.md section 2). One mapping a camera; edit by hand as you like.
# Only `id` and `main` are required. `credentials` names an entry of secrets.yaml; none belongs into a URL.
# heading: degrees clockwise from north; fov: degrees; range_m: metres. `pull` governs the sub stream.
# Generated by `python -m simulators district`; running that again overwrites this file.
cameras:
"""
    second = ("main", "sub", "credentials", "visible_to", "pull")
    lines = []
    for row in rows:
        first = {key: value for key, value in row.items() if key not in second}
        lines.append(f"  - {{{_flow(first)},\n     {_flow({key: row[key] for key in second})}}}\n")
    return header + "".join(lines)


def render(district: District) -> dict[str, str]:
    """File name below the configuration folder -> text."""
    lat, lon = CENTER
    rows = ",\n".join(_json(feature) for feature in district.features)
    return {
        "cameras.yaml": _cameras_yaml(district.cameras),
        "district/district.yaml": (
            f'code: "{CODE}"\nname: 郫都区\ncenter: {{lat: {lat}, lon: {lon}, datum: wgs84}}\n'
        ),
        "district/areas.geojson": f'{{"type": "FeatureCollection", "features": [\n{rows}\n]}}\n',
        "district/gridworkers.yaml": _yaml_list(
            "gridworkers",
            district.gridworkers,
            "One full-time gridworker a grid. People and numbers are invented.",
        ),
        "district/volunteers.yaml": _yaml_list(
            "volunteers",
            district.volunteers,
            "Red armbands (红袖套), levels 2-4, and the hours they opted in for. People are invented.",
        ),
        "district/households.yaml": _yaml_list(
            "households",
            district.households,
            "Households with a set-top box. People and numbers are invented.",
        ),
        "district/boxes.yaml": _yaml_list(
            "boxes", district.boxes, "Set-top boxes; their keys are in secrets.yaml."
        ),
        "district/users.yaml": _yaml_list(
            "users", district.users, "Who logs in at a page. `area: null` is the whole district."
        ),
    }


def write(district: District, out: Path) -> list[Path]:
    """Writes all files below `out` and returns their paths."""
    paths = []
    for name, text in render(district).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
