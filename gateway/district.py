"""The district: areas, grids, gridworkers, volunteers, households, boxes and users; who lies in what.

Read once from `config/district/` (docs/contract.md section 2) into frozen indices. Four levels, district >
street > community > grid; the `parent` of an area decides where it belongs, the prefix of its code doesn't.
Only a gateway without any district falls back on prefixes, so that `visible_to` works with nothing but a
cameras file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gateway.access import Principal, Role
from gateway.errors import ConfigError
from gateway.geo import Polygon, Position
from gateway.yaml_check import Document, Mistake, Section, nearest, read_id, read_position, report_twins

__all__ = [
    "Area",
    "Box",
    "Contact",
    "District",
    "GridKind",
    "Gridworker",
    "Household",
    "Level",
    "Place",
    "User",
    "Volunteer",
]


class Level(StrEnum):
    """Levels of areas, outermost first."""

    DISTRICT = "district"  # 区
    STREET = "street"  # 街道, 镇
    COMMUNITY = "community"  # 社区, 村
    GRID = "grid"  # 网格


_LEVELS = tuple(Level)
_CODE_DIGITS = {6: 1, 9: 2, 12: 3, 15: 4}  # digits of a code -> depth of its level, by the national numbering


class GridKind(StrEnum):
    """general: 一般网格. dedicated: 专属网格, e.g. a school, which may lie inside of a general one."""

    GENERAL = "general"
    DEDICATED = "dedicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """One area; parent None for the district only. `phone` is its desk's (of a grid: the duty phone)."""

    code: str
    name: str
    level: Level
    parent: str | None
    polygon: Polygon
    kind: GridKind = GridKind.GENERAL
    phone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gridworker:
    id: str
    name: str
    grid: str
    phone: str = ""
    skills: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Volunteer:
    """hours: local minutes of the day (from, to) in which he may be asked; to < from goes over midnight."""

    id: str
    name: str
    level: int
    community: str
    phone: str = ""
    position: Position | None = None
    hours: tuple[int, int] = (0, 1440)

    def available_at(self, minute_of_day: int) -> bool:
        start, end = self.hours
        if start <= end:
            return start <= minute_of_day < end
        return minute_of_day >= start or minute_of_day < end


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    name: str
    phone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Household:
    """Contacts and notes are for those whom `alarm.household` allows; consent: the resident agreed to be
    recorded so.
    """

    id: str
    address: str
    community: str
    grid: str | None = None
    position: Position | None = None
    contacts: tuple[Contact, ...] = field(default=(), repr=False)
    notes: str = field(default="", repr=False)
    consent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    sid: str
    household: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    sub: str
    name: str
    role: Role
    area: str | None = None
    supervisor: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Codes of the areas in which something lies, outermost first; empty: nowhere."""

    lineage: tuple[str, ...] = ()

    def _at(self, depth: int) -> str | None:
        return self.lineage[depth] if len(self.lineage) > depth else None

    @property
    def district(self) -> str | None:
        return self._at(0)

    @property
    def street(self) -> str | None:
        return self._at(1)

    @property
    def community(self) -> str | None:
        return self._at(2)

    @property
    def grid(self) -> str | None:
        return self._at(3)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """The polygons of one level, smallest first, with their boxes for a first sieve."""

    codes: tuple[str, ...]
    polygons: tuple[Polygon, ...]
    boxes: NDArray[np.float64]  # west, south, east, north

    @classmethod
    def of(cls, areas: Sequence[Area]) -> _Shapes:
        ordered = sorted(areas, key=lambda area: area.polygon.area_m2())
        boxes = np.array([area.polygon.bbox for area in ordered], dtype=np.float64).reshape(-1, 4)
        return cls(tuple(area.code for area in ordered), tuple(area.polygon for area in ordered), boxes)

    def find(self, position: Position) -> str | None:
        west, south, east, north = self.boxes.T
        lon, lat = position.lon, position.lat
        for i in np.flatnonzero((west <= lon) & (lon <= east) & (south <= lat) & (lat <= north)):
            if self.polygons[i].contains(position):
                return self.codes[i]
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class District:
    """Everything known of the district, by code or id."""

    code: str
    name: str
    center: Position | None
    areas: Mapping[str, Area]
    gridworkers: Mapping[str, Gridworker]
    volunteers: Mapping[str, Volunteer]
    households: Mapping[str, Household]
    boxes: Mapping[str, Box]
    users: Mapping[str, User]
    _lineages: Mapping[str, tuple[str, ...]] = field(repr=False)
    _shapes: tuple[_Shapes, ...] = field(repr=False)  # innermost level first

    @classmethod
    def of(
        cls,
        *,
        code: str = "",
        name: str = "",
        center: Position | None = None,
        areas: Sequence[Area] = (),
        gridworkers: Sequence[Gridworker] = (),
        volunteers: Sequence[Volunteer] = (),
        households: Sequence[Household] = (),
        boxes: Sequence[Box] = (),
        users: Sequence[User] = (),
    ) -> District:
        """A district from its parts, indexed. An area whose chain of parents is broken has no lineage."""
        by_code = {area.code: area for area in areas}
        return cls(
            code=code,
            name=name,
            center=center,
            areas=by_code,
            gridworkers={one.id: one for one in gridworkers},
            volunteers={one.id: one for one in volunteers},
            households={one.id: one for one in households},
            boxes={one.sid: one for one in boxes},
            users={one.sub: one for one in users},
            _lineages={code: _climb(code, by_code) for code in by_code},
            _shapes=tuple(
                _Shapes.of([area for area in areas if area.level is level]) for level in reversed(_LEVELS)
            ),
        )

    @classmethod
    def empty(cls) -> District:
        """None: the gateway runs with nothing but a cameras file."""
        return cls.of()

    @classmethod
    def load(cls, directory: Path) -> District:
        """All files of the directory. Raises ConfigError with every mistake."""
        district, mistakes = cls.read(directory)
        if mistakes:
            raise ConfigError([str(mistake) for mistake in sorted(mistakes)])
        return district

    @classmethod
    def read(cls, directory: Path) -> tuple[District, list[Mistake]]:
        """As `load`, with the mistakes beside what could be read."""
        return _Reader(directory).read()

    @property
    def is_empty(self) -> bool:
        return not self.areas

    def lineage(self, code: str | None) -> tuple[str, ...]:
        """Codes from the district down to this one; () for None and unknown codes."""
        if not code:
            return ()
        if self.is_empty and code.isdigit() and (depth := _CODE_DIGITS.get(len(code))):
            return tuple(code[: 6 + 3 * i] for i in range(depth))
        return self._lineages.get(code, ())

    def place(self, code: str | None) -> Place:
        """`lineage` with its levels named."""
        return Place(self.lineage(code))

    def locate(self, position: Position) -> Place:
        """The innermost area around a position (of overlapping ones the smallest), with all that it lies
        in.
        """
        for shapes in self._shapes:
            if (code := shapes.find(position)) is not None:
                return Place(self.lineage(code))
        return Place()

    def within(self, area: str | None) -> list[Area]:
        """The areas that someone limited to `area` may know of: its chain of parents and all below. None:
        all.
        """
        if area is None:
            return list(self.areas.values())
        above = self.lineage(area)
        return [one for one in self.areas.values() if one.code in above or area in self.lineage(one.code)]

    def centroid(self, code: str) -> Position | None:
        """Of an area's polygon: where a gridworker without a fix is taken to be."""
        area = self.areas.get(code)
        return area.polygon.centroid() if area else None

    def household_of(self, sid: str) -> Household | None:
        """The household of a box."""
        box = self.boxes.get(sid)
        return self.households.get(box.household) if box else None

    def home_of(self, sid: str) -> Place:
        """Where a box stands; nowhere for an unknown one."""
        household = self.household_of(sid)
        return self.place(household.grid or household.community) if household else Place()

    def situate(self, principal: Principal) -> Principal:
        """The principal with lineage (and name) as the district knows them now; a token's area only fills
        gaps.
        """
        sub, code, name = principal.sub, principal.area, principal.name
        lineage: tuple[str, ...] = ()
        if principal.role is Role.WORKER and (worker := self.gridworkers.get(sub)):
            code, name = worker.grid, name or worker.name
        elif principal.role is Role.VOLUNTEER and (volunteer := self.volunteers.get(sub)):
            code, name = volunteer.community, name or volunteer.name
        elif principal.role is Role.STB and sub in self.boxes:
            lineage = self.home_of(sub).lineage
        elif sub in self.users and self.users[sub].role is principal.role:
            name = name or self.users[sub].name
        return replace(principal, name=name, lineage=lineage or self.lineage(code))


def _climb(code: str, areas: Mapping[str, Area]) -> tuple[str, ...]:
    """From the top down to `code`; () when a parent is missing or of the wrong level (so that cycles end
    too).
    """
    chain: list[str] = []
    area = areas.get(code)
    for level in reversed(_LEVELS[: _LEVELS.index(area.level) + 1] if area else ()):
        if area is None or area.level is not level:
            return ()
        chain.append(area.code)
        area = areas.get(area.parent or "")
    return tuple(reversed(chain))


# --- reading ----------------------------------------------------------------------------------------

T = TypeVar("T")
_HOURS = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


class _Reader:
    """Reads the directory; each file's rows are checked against what the files before it said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mistakes: list[Mistake] = []
        self.areas: dict[str, Area] = {}
        self.subjects: dict[str, str] = {}  # id -> the file that has it: all share one name space in access

    def read(self) -> tuple[District, list[Mistake]]:
        if not self.directory.is_dir():
            return District.empty(), [Mistake(str(self.directory), 0, "", "there is no such directory")]
        document = Document(self.directory / "district.yaml")
        root = document.root()
        known = document.exists and not document.mistakes
        code = root.text("code", required=known)
        name = root.text("name", required=known)
        center = read_position(root.section("center", required=known), required=root.has("center"))
        root.done()
        self.mistakes += document.mistakes
        areas = self._areas(code)
        self.areas = {area.code: area for area in areas}
        gridworkers = self._rows("gridworkers", self._gridworker, subject="id")
        volunteers = self._rows("volunteers", self._volunteer, subject="id")
        households = self._rows("households", self._household)
        households_by_id = {one.id for one in households}
        boxes = self._rows("boxes", lambda one: self._box(one, households_by_id), "sid", subject="sid")
        users = self._rows("users", self._user, "sub", subject="sub")
        district = District.of(
            code=code,
            name=name,
            center=center,
            areas=areas,
            gridworkers=gridworkers,
            volunteers=volunteers,
            households=households,
            boxes=boxes,
            users=users,
        )
        return district, self.mistakes

    def _rows(
        self, name: str, read: Callable[[Section], T], key: str = "id", *, subject: str | None = None
    ) -> list[T]:
        """The rows of NAME.yaml; a file that doesn't exist has none."""
        path = self.directory / f"{name}.yaml"
        if not path.exists():
            return []
        document = Document(path)
        root = document.root()
        sections = root.sections(name, required=not document.mistakes)
        root.done()
        rows, ids = [], []
        for section in sections:
            rows.append(read(section))
            section.done()
            ids.append((section.text(key), section))
        report_twins(ids, key)
        if subject:
            for identifier, section in ids:
                other = self.subjects.setdefault(identifier, path.name)
                if identifier and other != path.name:
                    section.wrong(f"{identifier!r} is also in {other}: rights would be mixed up", key)
        self.mistakes += document.mistakes
        return rows

    def _areas(self, district_code: str) -> list[Area]:
        document = Document(self.directory / "areas.geojson")
        root = document.root()
        if document.exists and not document.mistakes and root.text("type") != "FeatureCollection":
            root.wrong("should be FeatureCollection (RFC 7946)", "type")
        areas: list[Area] = []
        places: list[tuple[str, Section]] = []
        for feature in root.sections("features", required=not document.mistakes):
            if (area := self._area(feature)) is not None:
                areas.append(area)
                places.append((area.code, feature.section("properties")))
        report_twins(places, "code")
        by_code = {area.code: area for area in areas}
        for area, (_, section) in zip(areas, places, strict=True):
            self._check_parent(area, section, by_code, district_code)
        self.mistakes += document.mistakes
        return areas

    def _area(self, feature: Section) -> Area | None:
        properties = feature.section("properties", required=True)
        geometry = feature.section("geometry", required=True)
        before = len(feature.document.mistakes)
        code = read_id(properties, "code")
        level_value = properties.get("level", required=True)
        level = level_value.choice(Level) if level_value else None
        name = properties.text("name", required=True)
        parent = properties.text("parent") or None
        kind = properties.choice("kind", GridKind.GENERAL)
        phone = properties.text("phone")
        properties.done()
        coordinates = geometry.get("coordinates", required=True)
        polygon = None
        if geometry.text("type", required=True) not in ("Polygon", ""):
            geometry.wrong("should be Polygon", "type")
        elif coordinates is not None:
            try:
                polygon = Polygon.from_geojson(coordinates.plain())  # type: ignore[arg-type]
            except ValueError as error:
                coordinates.wrong(str(error))
        if polygon is None or level is None or not code or len(feature.document.mistakes) > before:
            return None
        return Area(code=code, name=name, level=level, parent=parent, kind=kind, phone=phone, polygon=polygon)

    @staticmethod
    def _check_parent(area: Area, section: Section, areas: Mapping[str, Area], district_code: str) -> None:
        if area.level is Level.DISTRICT:
            if area.parent:
                section.wrong("the district has no parent", "parent")
            if district_code and area.code != district_code:
                section.wrong(f"district.yaml says that the district is {district_code}", "code")
            return
        above = _LEVELS[_LEVELS.index(area.level) - 1]
        parent = areas.get(area.parent or "")
        if parent is None or parent.level is not above:
            codes = [one.code for one in areas.values() if one.level is above]
            section.wrong(
                f"there is no {above} {area.parent or ''!r}{nearest(area.parent or '', codes)}", "parent"
            )

    def _code(self, section: Section, key: str, *levels: Level, required: bool = True) -> str:
        """A code of an area of one of the levels."""
        code = section.text(key, required=required)
        area = self.areas.get(code)
        if code and (area is None or area.level not in levels):
            codes = [one.code for one in self.areas.values() if one.level in levels]
            section.wrong(f"the district has no {' or '.join(levels)} {code!r}{nearest(code, codes)}", key)
        return code

    def _gridworker(self, section: Section) -> Gridworker:
        return Gridworker(
            id=read_id(section),
            name=section.text("name", required=True),
            grid=self._code(section, "grid", Level.GRID),
            phone=section.text("phone"),
            skills=section.texts("skills"),
        )

    def _volunteer(self, section: Section) -> Volunteer:
        hours, given = (0, 1440), section.text("hours")
        if match := _HOURS.fullmatch(given):
            one, two, three, four = (int(part) for part in match.groups())
            hours = (one * 60 + two, three * 60 + four)
        if given and (not match or max(hours) > 1440):
            section.wrong(f"{given!r} is no span of time like 08:00-20:00", "hours")
        return Volunteer(
            id=read_id(section),
            name=section.text("name", required=True),
            level=int(section.number("level", 4, low=2, high=4) or 4),
            community=self._code(section, "community", Level.COMMUNITY),
            phone=section.text("phone"),
            position=read_position(section),
            hours=hours,
        )

    def _household(self, section: Section) -> Household:
        contacts = []
        for contact in section.sections("contacts"):
            contacts.append(Contact(name=contact.text("name", required=True), phone=contact.text("phone")))
            contact.done()
        community = self._code(section, "community", Level.COMMUNITY)
        grid = self._code(section, "grid", Level.GRID, required=False) or None
        if grid in self.areas and self.areas[grid or ""].parent != community:
            section.wrong(f"grid {grid} isn't in community {community}", "grid")
        return Household(
            id=read_id(section),
            address=section.text("address", required=True),
            community=community,
            grid=grid,
            position=read_position(section),
            contacts=tuple(contacts),
            notes=section.text("notes"),
            consent=section.flag("consent", False),
        )

    @staticmethod
    def _box(section: Section, households: set[str]) -> Box:
        box = Box(sid=read_id(section, "sid"), household=section.text("household", required=True))
        if box.household and box.household not in households:
            section.wrong(f"there is no household {box.household!r}", "household")
        return box

    def _user(self, section: Section) -> User:
        role = section.get("role", required=True)
        return User(
            sub=read_id(section, "sub"),
            name=section.text("name"),
            role=(role.choice(Role) if role else None) or Role.VOLUNTEER,
            area=self._code(section, "area", *Level, required=False) or None,
            supervisor=section.flag("supervisor", False),
        )
