"""Editing cameras.yaml by program as a careful hand would: what isn't changed stays as it was written, octet by octet.

A YAML library that writes a file anew reflows it. Here the parser only says where things stand, and the text in between
is cut and pasted: comments, order, quotes and line breaks of everything else are kept. Every edit is then read back; if
the file does not say exactly what was wanted (anchors, tags, whatever a hand may write), it is refused and a person must
do it. Pure: text in, text out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gateway.errors import ConfigError, Conflict, NotFound

__all__ = ["Entry", "Put", "Remove", "Update", "edit_cameras"]

Entry = Mapping[str, object]
"""One camera as it stands in the file: key to text, number, or whatever else a caller got wrong."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./:?=%+-]*[A-Za-z0-9_/]|[A-Za-z]")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""Plain scalars that YAML 1.1 takes for something else than a text."""
_NULL = "tag:yaml.org,2002:null"
_HAND = "cameras.yaml is written in a way that can't be changed by program; change it by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """The camera with this entry's id, new or instead of the one there is. new: it must not be there yet (False: it must,
    None: either)."""

    entry: Entry
    new: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Some keys of a camera; None takes a key away."""

    id: str
    values: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    id: str


@dataclass(frozen=True, slots=True)
class _Cut:
    """[start, end) of the text becomes `text`."""

    start: int
    end: int
    text: str


def edit_cameras(text: str, changes: Sequence[Put | Update | Remove]) -> str:
    """The file after all changes, in their order. Raises NotFound, Conflict (it is there already; or the file is past
    editing by program), ConfigError (an entry without id). Whether the result is a valid configuration is for its reader to say."""
    try:
        return _edit(text, changes)
    except RecursionError:
        raise ConfigError(["a camera's value is nested too deeply"]) from None


def _edit(text: str, changes: Sequence[Put | Update | Remove]) -> str:
    file = _File(text)
    before = file.entries()
    wanted = _apply(before, changes)
    edited = file.rewritten(before, wanted)
    try:
        after = _File(edited).entries()
    except Conflict:
        raise Conflict(_HAND) from None
    if list(after.items()) != list(wanted.items()):
        raise Conflict(_HAND)
    return edited


_Read = dict[str, dict[str, object]]
"""Id -> key -> value as `_plain` gives it, in the order of the file."""


def _apply(before: _Read, changes: Sequence[Put | Update | Remove]) -> _Read:
    wanted = {identifier: dict(entry) for identifier, entry in before.items()}
    for change in changes:
        match change:
            case Put():
                identifier = change.entry.get("id")
                if not isinstance(identifier, str) or not identifier:
                    raise ConfigError([f"id: {'is missing' if not identifier else 'should be a text'}"])
                if change.new is True and identifier in wanted:
                    raise Conflict(f"there is a camera {identifier!r} already", id=identifier)
                if change.new is False and identifier not in wanted:
                    raise NotFound(f"no camera {identifier!r}")
                entry = {
                    key: _plain(yaml.compose(_render(value), Loader=_Loader))
                    for key, value in change.entry.items()
                    if value is not None
                }
                old = wanted.get(identifier, {})
                # Keys keep the places they have.
                wanted[identifier] = {key: entry[key] for key in old if key in entry} | entry
            case Update():
                if change.id not in wanted:
                    raise NotFound(f"no camera {change.id!r}")
                if "id" in change.values and change.values["id"] != change.id:
                    raise Conflict("a camera's id does not change: remove it and add another", id=change.id)
                for key, value in change.values.items():
                    if value is None:
                        wanted[change.id].pop(key, None)
                    else:
                        wanted[change.id][key] = _plain(yaml.compose(_render(value), Loader=_Loader))
            case Remove():
                if wanted.pop(change.id, None) is None:
                    raise NotFound(f"no camera {change.id!r}")
    return wanted


def _plain(node: Any) -> object:
    """What a node says, however it is written. A scalar is (kind, text): a quoted number is a text."""
    match node:
        case yaml.MappingNode():
            return {"mapping": [(_plain(key), _plain(value)) for key, value in node.value]}
        case yaml.SequenceNode():
            return [_plain(item) for item in node.value]
    return str(node.tag), str(node.value)


def _render(value: object) -> str:
    """A value as YAML that also stands in a flow mapping, on one line. JSON is such YAML."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        return _printable(json.dumps(value, ensure_ascii=False))
    written = _printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, float) and "." not in written:
        written = written.replace("e", ".0e")  # YAML 1.1 wants a point in what has an exponent
    return written


def _printable(written: str) -> str:
    """JSON leaves alone what YAML does not print: DEL, C1 controls, line separators. They only stand in its strings."""
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]",
        lambda one: f"\\u{ord(one[0]):04x}",
        written,
    )


class _File:
    """The text and where its cameras stand."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [0]
        self._lines += [at + 1 for at, character in enumerate(text) if character == "\n"]
        try:
            root = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError:
            raise Conflict(_HAND) from None
        self._key: Any = None
        self._list: Any = None
        if isinstance(root, yaml.MappingNode):
            for key, value in root.value:
                if key.value == "cameras":
                    self._key, self._list = key, value
        elif root is not None and root.tag != _NULL:
            raise Conflict(_HAND)
        self._items: dict[str, Any] = {}
        if isinstance(self._list, yaml.SequenceNode):
            for item in self._list.value:
                identifier = _identifier(item)
                if not identifier or identifier in self._items:
                    raise Conflict(_HAND)
                self._items[identifier] = item
        elif self._list is not None and self._list.tag != _NULL:
            raise Conflict(_HAND)

    def entries(self) -> _Read:
        entries: _Read = {}
        for identifier, item in self._items.items():
            entry = {str(key.value): _plain(value) for key, value in item.value}
            if len(entry) != len(item.value):
                raise Conflict(_HAND)
            # An empty key says as little as a missing one.
            entries[identifier] = {key: value for key, value in entry.items() if not _is_null(value)}
        return entries

    def rewritten(self, before: _Read, wanted: _Read) -> str:
        cuts: list[_Cut] = []
        kept = [identifier for identifier in before if identifier in wanted]
        for identifier in before:
            if identifier not in wanted:
                cuts.append(self._without_item(identifier))
            elif before[identifier] != wanted[identifier]:
                cuts += self._changed_item(identifier, before[identifier], wanted[identifier])
        added = [_flow(entry) for identifier, entry in wanted.items() if identifier not in before]
        if added or (before and not kept):
            cuts.append(self._appended(added, kept))
        text = self._text
        previous = len(text)
        # From the end, so that places stay true; of those at one place the later one first.
        order = sorted(range(len(cuts)), key=lambda one: (cuts[one].start, cuts[one].end, one), reverse=True)
        for cut in (cuts[one] for one in order):
            if cut.end > previous:
                raise Conflict(_HAND)
            text = text[: cut.start] + cut.text + text[cut.end :]
            previous = cut.start
        return text

    # -- items ------------------------------------------------------------------------------------------------------

    def _without_item(self, identifier: str) -> _Cut:
        item = self._items[identifier]
        if self._list.flow_style:
            items = list(self._items.values())
            return self._from_flow([(one, one) for one in items], items.index(item))
        start = self._dash(item)
        return _Cut(self._line_start(start), self._line_end(self._end(item)), "")

    def _changed_item(
        self, identifier: str, before: Mapping[str, object], wanted: Mapping[str, object]
    ) -> list[_Cut]:
        item = self._items[identifier]
        pairs = item.value
        cuts: list[_Cut] = []
        gone: list[int] = []
        for index, (key, value) in enumerate(pairs):
            name = str(key.value)
            if name not in wanted:
                if name in before:
                    gone.append(index)
            elif wanted[name] != before.get(name):
                start, end = self._at(value.start_mark), self._end(value)
                if start < self._at(key.end_mark):
                    raise Conflict(_HAND)  # an alias: what it stands for is written elsewhere
                space = " " if start == end else ""
                cuts.append(_Cut(start, end, space + _text_of(wanted[name])))
        present = {str(key.value) for key, _ in pairs}
        new = [(name, value) for name, value in wanted.items() if name not in present]
        if item.flow_style:
            cuts += [self._from_flow(pairs, index) for index in gone]
            if new:
                at = self._end(pairs[-1][1])
                cuts.append(_Cut(at, at, "".join(f", {name}: {_text_of(value)}" for name, value in new)))
            return cuts
        for index in gone:
            key, value = pairs[index]
            if index == 0:  # stands behind the dash
                cuts.append(_Cut(self._at(key.start_mark), self._at(pairs[1][0].start_mark), ""))
            else:
                start = self._line_start(self._at(key.start_mark))
                cuts.append(_Cut(start, self._line_end(self._end(value)), ""))
        if new:
            indent = " " * pairs[0][0].start_mark.column
            lines = "".join(f"{indent}{name}: {_text_of(value)}\n" for name, value in new)
            cuts.append(self._insert_line(self._line_end(self._end(pairs[-1][1])), lines))
        return cuts

    def _appended(self, added: Sequence[str], kept: Sequence[str]) -> _Cut:
        if self._key is None:
            end = len(self._text)
            return self._insert_line(end, "cameras:\n" + "".join(f"  - {entry}\n" for entry in added))
        lines = "".join(f"  - {entry}\n" for entry in added)
        if self._list.tag == _NULL and not isinstance(self._list, yaml.SequenceNode):
            end = self._line_end(self._at(self._key.end_mark))
            return self._insert_line(end, lines)
        if self._list.flow_style:
            if not self._items:
                start, end = self._at(self._list.start_mark), self._at(self._list.end_mark)
                return _Cut(start, end, f"[{', '.join(added)}]")
            at = self._end(list(self._items.values())[-1])
            return _Cut(at, at, "".join(f", {entry}" for entry in added) if kept else ", ".join(added))
        if not added:  # nothing is left of the list
            at = self._at(self._key.end_mark) + 1
            return _Cut(at, at, " []")
        last = list(self._items.values())[-1]
        indent = " " * self._column(self._dash(last))
        end = self._line_end(self._end(last))
        return self._insert_line(end, "".join(f"{indent}- {entry}\n" for entry in added))

    # -- places -----------------------------------------------------------------------------------------------------

    def _from_flow(self, pairs: Sequence[tuple[Any, Any]], index: int) -> _Cut:
        """One of `a, b, c` together with a comma."""
        first, last = pairs[index]
        if index:
            return _Cut(self._end(pairs[index - 1][1]), self._end(last), "")
        if len(pairs) > 1:
            return _Cut(self._at(first.start_mark), self._at(pairs[1][0].start_mark), "")
        return _Cut(self._at(first.start_mark), self._end(last), "")

    def _insert_line(self, at: int, lines: str) -> _Cut:
        missing = at > 0 and self._text[at - 1] != "\n"
        return _Cut(at, at, ("\n" if missing else "") + lines)

    def _at(self, mark: Any) -> int:
        return int(self._lines[mark.line] + mark.column) if mark.line < len(self._lines) else len(self._text)

    def _end(self, node: Any) -> int:
        """Behind the last character of a node. A block collection's own mark stands behind what follows it."""
        while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            node = last[1] if isinstance(last, tuple) else last
        start, end = self._at(node.start_mark), self._at(node.end_mark)
        return start + len(self._text[start:end].rstrip())

    def _dash(self, item: Any) -> int:
        ahead = self._text[: self._at(item.start_mark)].rstrip()
        if not ahead.endswith("-"):
            raise Conflict(_HAND)
        return len(ahead) - 1

    def _line_start(self, at: int) -> int:
        return self._text.rfind("\n", 0, at) + 1

    def _line_end(self, at: int) -> int:
        end = self._text.find("\n", at)
        return len(self._text) if end < 0 else end + 1

    def _column(self, at: int) -> int:
        return at - self._line_start(at)


def _identifier(item: Any) -> str:
    if isinstance(item, yaml.MappingNode):
        for key, value in item.value:
            if key.value == "id" and isinstance(value, yaml.ScalarNode):
                return str(value.value)
    return ""


def _is_null(value: object) -> bool:
    return isinstance(value, tuple) and value[0] == _NULL


def _flow(entry: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {_text_of(value)}" for key, value in entry.items()) + "}"


def _text_of(plain: object) -> str:
    """What `_plain` says, as text again."""
    match plain:
        case {"mapping": [*pairs]}:
            return "{" + ", ".join(f"{_text_of(key)}: {_text_of(value)}" for key, value in pairs) + "}"
        case (str(tag), str(text)):
            return _render(text) if tag == "tag:yaml.org,2002:str" else text
        case [*items]:
            return "[" + ", ".join(map(_text_of, items)) + "]"
    raise AssertionError(f"not plain: {plain!r}")
