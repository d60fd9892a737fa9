"""Reading YAML so that every mistake is found in one run and named with its file, line and path.

The document is composed to nodes (which know their lines), never constructed: texts keep what was written,
so that the grid code 510117001001001 or the name `no` stays a text. Readers ask a `Section` for the keys
they know; a key that nobody asked for is a mistake that names the nearest known one. A reader never stops at
a mistake: it gets the default and goes on.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gateway.errors import ConfigError
from gateway.geo import Datum, Position, from_datum

__all__ = ["Document", "Mistake", "Section", "Value", "nearest", "read_id", "read_position", "report_twins"]

E = TypeVar("E", bound=StrEnum)
D = TypeVar("D")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is some ten times faster
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}
_STRICT_INT = "tag:yaml.org,2002:int"
_STRICT_FLOAT = "tag:yaml.org,2002:float"
_NULL = "tag:yaml.org,2002:null"
_TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing that is wrong. `line` counts from 1 (0: the whole file); `path` is like
    `cameras[3].heading`.
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


MAX_DEPTH = 64
"""Of YAML nodes. Ours have ten."""


def _refuse_deep(data: bytes) -> None:
    """PyYAML composes nested nodes by recursion in C: a file of 10,000 brackets would end the process, not raise."""
    depth, events = 0, _Loader(data)
    try:
        while events.check_event():
            event = events.get_event()
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)  # type: ignore[arg-type]
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    finally:
        events.dispose()


class Document:
    """One YAML file and the mistakes found in it so far. Of a `secret` one no value is ever quoted."""

    def __init__(self, file: Path, *, secret: bool = False, data: bytes | None = None) -> None:
        """data: what the file is going to say, instead of what it says now."""
        self.file = str(file)
        self.secret = secret
        self.mistakes: list[Mistake] = []
        self.exists = False
        self._root: yaml.Node | None = None
        try:
            data = file.read_bytes() if data is None else data
        except FileNotFoundError:
            return self.add(0, "", "there is no such file")
        except OSError as error:
            return self.add(0, "", f"can't be read: {error.strerror}")
        self.exists = True
        loader = None
        try:
            _refuse_deep(data)
            loader = _Loader(data)
            self._root = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            self.add(mark.line + 1 if mark else 0, "", f"is no YAML: {problem}")
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            self.add(0, "", f"is no YAML: {' '.join(str(error).split())}")
        finally:
            if loader is not None:
                loader.dispose()

    def add(self, line: int, path: str, message: str) -> None:
        self.mistakes.append(Mistake(self.file, line, path, message))

    def root(self) -> Section:
        """The top level. An empty file is an empty mapping."""
        if self._root is None or _is_null(self._root):
            return Section(self, None, "", 1)
        return Value(self, self._root, "").section()

    def raise_mistakes(self) -> None:
        """Raise ConfigError if any mistake was found."""
        if self.mistakes:
            raise ConfigError([str(mistake) for mistake in sorted(self.mistakes)])


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


class Value:
    """A node with its path: knows how to be read as each type. Wrong ones are recorded and None comes
    back.
    """

    __slots__ = ("document", "node", "path")

    def __init__(self, document: Document, node: yaml.Node, path: str) -> None:
        self.document, self.node, self.path = document, node, path

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1

    def wrong(self, message: str) -> None:
        self.document.add(self.line, self.path, message)

    def _shown(self) -> str:
        if isinstance(self.node, yaml.ScalarNode):
            if self.document.secret:
                return "this"
            text = str(self.node.value)
            return repr(text if len(text) <= 40 else text[:37] + "...")
        return "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"

    def text(self) -> str | None:
        if isinstance(self.node, yaml.ScalarNode) and not _is_null(self.node):
            return str(self.node.value)
        self.wrong(f"should be a text, not {'empty' if _is_null(self.node) else self._shown()}")
        return None

    def number(self, low: float = -math.inf, high: float = math.inf) -> float | None:
        if isinstance(self.node, yaml.ScalarNode) and self.node.tag in (_STRICT_INT, _STRICT_FLOAT):
            try:
                number = float(self.node.value.replace("_", ""))
            except ValueError:  # YAML 1.1 also knows 0x1f, 1:30 and .inf, which nobody means here
                number = math.nan
            if low <= number <= high:
                return number
            if not math.isnan(number):
                self.wrong(f"{_plain(number)} is out of range: {_plain(low)} to {_plain(high)}")
                return None
        self.wrong(f"should be a number, not {self._shown()}")
        return None

    def integer(self, low: float = -math.inf, high: float = math.inf) -> int | None:
        if isinstance(self.node, yaml.ScalarNode) and self.node.tag == _STRICT_INT:
            number = self.number(low, high)
            return None if number is None else int(number)
        self.wrong(f"should be a whole number, not {self._shown()}")
        return None

    def flag(self) -> bool | None:
        text = self.node.value.lower() if isinstance(self.node, yaml.ScalarNode) else ""
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        self.wrong(f"should be true or false, not {self._shown()}")
        return None

    def choice(self, kind: type[E]) -> E | None:
        text = self.text()
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError:
            known = [str(one) for one in kind]
            self.wrong(f"{text!r} is none of {', '.join(known)}{nearest(text, known)}")
            return None

    def items(self) -> list[Value]:
        if isinstance(self.node, yaml.SequenceNode):
            return [Value(self.document, node, f"{self.path}[{i}]") for i, node in enumerate(self.node.value)]
        if not _is_null(self.node):
            self.wrong(f"should be a list, not {self._shown()}")
        return []

    def texts(self) -> tuple[str, ...]:
        return tuple(text for item in self.items() if (text := item.text()) is not None)

    def plain(self) -> object:
        """Nested lists of numbers (GeoJSON coordinates); anything else in them becomes None."""
        if isinstance(self.node, yaml.SequenceNode):
            return _numbers(self.node)
        return None

    def section(self) -> Section:
        if isinstance(self.node, yaml.MappingNode):
            return Section(self.document, self.node, self.path, self.line)
        if not _is_null(self.node):
            self.wrong(f"should be a mapping of keys to values, not {self._shown()}")
            return Section(self.document, None, self.path, self.line, readable=False)
        return Section(self.document, None, self.path, self.line)


class Section:
    """A mapping, read key by key. `done()` at the end reports the keys that nobody asked for."""

    __slots__ = ("_asked", "_readable", "_values", "document", "line", "path")

    def __init__(
        self,
        document: Document,
        node: yaml.MappingNode | None,
        path: str,
        line: int,
        *,
        readable: bool = True,
    ) -> None:
        """readable: False where something else stands, which was reported; its keys are not missed as well."""
        self.document, self.path, self.line = document, path, line
        self._readable = readable
        self._values: dict[str, Value] = {}
        self._asked: dict[str, None] = {}
        for key_node, value_node in node.value if node is not None else ():
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                document.add(key_line, path, "a key should be a text")
                continue
            key = str(key_node.value)
            value = Value(document, value_node, f"{path}.{key}" if path else key)
            if key in self._values:
                first = self._values[key].line
                document.add(key_line, value.path, f"stands twice, first on line {first}")
            self._values.setdefault(key, value)

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        """All keys, for mappings whose keys are names; counts as having asked for each."""
        for key, value in self._values.items():
            self._asked[key] = None
            yield key, value

    def wrong(self, message: str, key: str = "", *, near: str = "") -> None:
        """Record a mistake at the line of `key`, else of `near`, else of the section."""
        value = self._values.get(key) or self._values.get(near)
        path = f"{self.path}.{key}" if self.path and key else key or self.path
        self.document.add(value.line if value else self.line, path, message)

    def get(self, key: str, *, required: bool = False) -> Value | None:
        """The value of a key; None if it is missing or empty (`key:` with nothing behind)."""
        self._asked[key] = None
        value = self._values.get(key)
        if value is not None and not _is_null(value.node):
            return value
        if required and self._readable:
            self.wrong("is missing" if value is None else "is empty", key)
        return None

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def line_of(self, key: str) -> int:
        value = self._values.get(key)
        return value.line if value else self.line

    def text(self, key: str, default: str = "", *, required: bool = False) -> str:
        value = self.get(key, required=required)
        text = value.text() if value else None
        if text is not None and required and not text.strip():
            self.wrong("is empty", key)
        return default if text is None else text

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        required: bool = False,
    ) -> float | None:
        value = self.get(key, required=required)
        number = value.number(low, high) if value else None
        return default if number is None else number

    def choice(self, key: str, default: E) -> E:
        value = self.get(key)
        chosen = value.choice(type(default)) if value else None
        return default if chosen is None else chosen

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        flag = value.flag() if value else None
        return default if flag is None else flag

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.get(key)
        return value.texts() if value else ()

    def section(self, key: str, *, required: bool = False) -> Section:
        value = self.get(key, required=required)
        return (
            value.section()
            if value
            else Section(self.document, None, f"{self.path}.{key}".strip("."), self.line)
        )

    def sections(self, key: str, *, required: bool = False) -> list[Section]:
        value = self.get(key, required=required)
        return [item.section() for item in value.items()] if value else []

    def done(self) -> None:
        """Report each key that wasn't asked for, with the nearest that was."""
        for key, value in self._values.items():
            if key not in self._asked:
                close = nearest(key, list(self._asked))
                self.document.add(value.node.start_mark.line + 1, value.path, f"is no known key{close}")

    def shorthand(self, key: str, word: str, inner: str) -> None:
        """`key: word` stands for `key: {inner: word}`."""
        value = self._values.get(key)
        if value is None or not isinstance(value.node, yaml.ScalarNode) or value.node.value != word:
            return
        at, end = value.node.start_mark, value.node.end_mark
        pair = yaml.ScalarNode(_TEXT, inner, at, end), yaml.ScalarNode(_TEXT, word, at, end)
        node = yaml.MappingNode("tag:yaml.org,2002:map", [pair], at, end)
        self._values[key] = Value(self.document, node, value.path)

    def into(self, kind: type[D], check: Callable[[str, str], str | None]) -> D:
        """Read a dataclass whose fields have defaults; `check(what, text)` judges texts marked by
        `settings.checked`.

        Field types: int, float, bool, str, a StrEnum, tuples of float, str or dataclass, and dataclasses.
        """
        hints = typing.get_type_hints(kind)
        given: dict[str, Any] = {}
        for one in dataclasses.fields(kind):  # type: ignore[arg-type]
            value = self.get(one.name)
            if value is None:
                continue
            read = _read_as(hints[one.name], value, one.metadata, check)
            if read is not None:
                given[one.name] = read
        self.done()
        return kind(**given)


def _read_as(
    hint: Any, value: Value, meta: typing.Mapping[str, Any], check: Callable[[str, str], str | None]
) -> Any:
    low, high = meta.get("low", -math.inf), meta.get("high", math.inf)
    if isinstance(hint, types.GenericAlias):  # tuple[X, ...]
        read = [_read_as(typing.get_args(hint)[0], item, meta, check) for item in value.items()]
        return tuple(one for one in read if one is not None)
    if dataclasses.is_dataclass(hint):
        return value.section().into(hint, check)  # type: ignore[arg-type]
    if hint is bool:
        return value.flag()
    if hint is int:
        return value.integer(low, high)
    if hint is float:
        return value.number(low, high)
    if issubclass(hint, StrEnum):
        return value.choice(hint)
    text = value.text()
    if text and (what := meta.get("check")) and (complaint := check(what, text)):
        value.wrong(complaint)
    return text


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # safe in URLs, MQTT topics and file names


def read_id(section: Section, key: str = "id") -> str:
    """A required identifier; empty (with its mistake recorded) when it is none."""
    text = section.text(key, required=True)
    if text and not _ID.fullmatch(text):
        section.wrong("should be 1 to 64 letters, digits, '-', '_' or '.', a letter or digit first", key)
        return ""
    return text


def report_twins(sections: Sequence[tuple[str, Section]], key: str = "id") -> None:
    """Record each identifier that stands a second time, naming both lines."""
    first: dict[str, int] = {}
    for identifier, section in sections:
        if identifier in first:
            section.wrong(f"{identifier!r} stands twice, first on line {first[identifier]}", key)
        elif identifier:
            first[identifier] = section.line_of(key)


def read_position(section: Section, *, required: bool = False) -> Position | None:
    """lat, lon and their datum as a WGS-84 position. All three stand together or none does."""
    lat = section.number("lat", low=-90, high=90, required=required)
    lon = section.number("lon", low=-180, high=180, required=required)
    value = section.get("datum")
    if not (section.has("lat") or section.has("lon")):
        if value:
            value.wrong("says a datum of no position: lat and lon are missing")
        return None
    for key in ("lat", "lon"):
        if not section.has(key) and not required:
            section.wrong("is missing: lat and lon stand together", key)
    if value is None:
        section.wrong(
            "is missing: lat and lon are wgs84 or gcj02? (they differ by some 350 m)", "datum", near="lat"
        )
        return None
    datum = value.choice(Datum)
    if datum is None or lat is None or lon is None:
        return None
    return from_datum(lat, lon, datum)


def nearest(word: str, known: Sequence[str]) -> str:
    """The words `; did you mean ...?` for the known word that is nearest, or nothing."""
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _numbers(node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_numbers(one) for one in node.value]
    if isinstance(node, yaml.ScalarNode) and node.tag in (_STRICT_INT, _STRICT_FLOAT):
        return float(node.value)
    return None


def _plain(number: float) -> str:
    return f"{number:.12g}"
