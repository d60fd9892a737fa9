"""Edits of cameras.yaml: what isn't changed stays octet by octet; what can't be done safely is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cameras_file import Put, Remove, Update, edit_cameras
from gateway.errors import ConfigError, Conflict, NotFound

BLOCK = """\
# Our street.
cameras:
  # the gate
  - id: gate   # do not rename
    main: "rtsp://10.0.0.1/a"
    heading: 90  # degrees

  # the yard
  - id: yard
    name: 院子
    sub:
    main: rtsp://10.0.0.2/a
# end
"""
FLOW = """\
cameras:
- {id: gate, name: "大门", heading: 90, grid: "510117001001004",
   main: rtsp://10.0.0.1/a, pull: always}   # first
- {id: yard, main: rtsp://10.0.0.2/a}
"""
LINE = "cameras: [{id: gate, main: rtsp://10.0.0.1/a}, {id: yard, main: rtsp://10.0.0.2/a}]\n"


def read(text: str) -> dict[str, dict[str, object]]:
    return {camera["id"]: camera for camera in yaml.safe_load(text)["cameras"] or []}


def test_a_value_changes_and_nothing_else() -> None:
    edited = edit_cameras(
        BLOCK, [Update(id="gate", values={"heading": 180.5, "main": "rtsp://10.0.0.9/b c"})]
    )
    assert edited == BLOCK.replace("90  #", "180.5  #").replace(
        '"rtsp://10.0.0.1/a"', '"rtsp://10.0.0.9/b c"'
    )


def test_an_empty_key_gets_its_value() -> None:
    edited = edit_cameras(BLOCK, [Update(id="yard", values={"sub": "rtsp://10.0.0.2/b"})])
    assert edited == BLOCK.replace("sub:\n", "sub: rtsp://10.0.0.2/b\n")


def test_keys_come_and_go_in_a_block() -> None:
    edited = edit_cameras(BLOCK, [Update(id="gate", values={"heading": None, "name": "正门", "fov": 60})])
    assert edited == BLOCK.replace("    heading: 90  # degrees\n", '    name: "正门"\n    fov: 60\n')


def test_keys_come_and_go_in_braces() -> None:
    edited = edit_cameras(
        FLOW, [Update(id="gate", values={"heading": None, "pull": None, "grid": "1", "fov": 60})]
    )
    assert edited == FLOW.replace(" heading: 90,", "").replace(", pull: always}", ", fov: 60}").replace(
        '"510117001001004"', '"1"'
    )


@pytest.mark.parametrize("text", [BLOCK, FLOW, LINE], ids=["block", "flow", "line"])
def test_a_camera_comes_and_another_goes(text: str) -> None:
    new = {
        "id": "door",
        "main": "rtsp://10.0.0.3/a",
        "community": "510117001001",
        "lat": 30.5,
        "name": 'a "b": #c',
    }
    edited = edit_cameras(text, [Put(entry=new, new=True), Remove(id="yard")])
    assert read(edited) == {"gate": read(text)["gate"], "door": new}
    assert list(read(edit_cameras(text, [Put(entry=new)]))) == ["gate", "yard", "door"]
    assert list(read(edit_cameras(text, [Remove(id="gate")]))) == ["yard"]
    kept = [line for line in text.splitlines() if "gate" in line and "yard" not in line]
    assert all(line in edited for line in kept)


def test_comments_survive_a_removal() -> None:
    edited = edit_cameras(BLOCK, [Remove(id="yard")])
    assert edited == BLOCK[: BLOCK.index("  - id: yard")] + "# end\n"


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "cameras:\n", "cameras: []\n", "cameras: # none\n", "x: 1"]
)
def test_the_first_camera(text: str) -> None:
    new = {"id": "door", "main": "rtsp://10.0.0.3/a"}
    assert read(edit_cameras(text, [Put(entry=new)])) == {"door": new}


@pytest.mark.parametrize("text", [BLOCK, FLOW], ids=["block", "flow"])
def test_the_last_camera_goes(text: str) -> None:
    edited = edit_cameras(text, [Remove(id="gate"), Remove(id="yard")])
    assert read(edited) == {}
    assert read(edit_cameras(edited, [Put(entry={"id": "a", "main": "b"})])) == {
        "a": {"id": "a", "main": "b"}
    }


def test_a_replacement_keeps_the_places_of_its_keys() -> None:
    edited = edit_cameras(
        FLOW, [Put(entry={"main": "rtsp://10.0.0.1/a", "id": "gate", "name": "大门"}, new=False)]
    )
    assert edited.splitlines()[1:3] == [
        '- {id: gate, name: "大门",',
        "   main: rtsp://10.0.0.1/a}   # first",
    ] or read(edited)["gate"] == {"id": "gate", "name": "大门", "main": "rtsp://10.0.0.1/a"}
    assert edited.splitlines()[-1] == FLOW.splitlines()[-1]


def test_what_cannot_be() -> None:
    with pytest.raises(Conflict, match="already"):
        edit_cameras(BLOCK, [Put(entry={"id": "gate", "main": "x"}, new=True)])
    with pytest.raises(NotFound):
        edit_cameras(BLOCK, [Put(entry={"id": "none", "main": "x"}, new=False)])
    with pytest.raises(NotFound):
        edit_cameras(BLOCK, [Remove(id="none")])
    with pytest.raises(NotFound):
        edit_cameras(BLOCK, [Update(id="none", values={})])
    with pytest.raises(Conflict, match="id"):
        edit_cameras(BLOCK, [Update(id="gate", values={"id": "other"})])


@pytest.mark.parametrize(
    "text",
    [
        "cameras:\n- {id: a, main: &m x}\n- {id: b, main: *m}\n",
        "cameras: {a: b}\n",
        "- a\n",
        "cameras: [",
        "cameras:\n- id: b\n- id: b\n",
        "cameras:\n- main: x\n",
    ],
)
def test_what_only_a_hand_can_change_is_refused(text: str) -> None:
    with pytest.raises(Conflict, match="by hand"):
        edit_cameras(text, [Update(id="b", values={"main": "y"}), Remove(id="b"), Put(entry={"id": "b"})][:1])


def said(text: str) -> dict[str, dict[str, object]]:
    """An empty key says as little as a missing one."""
    return {name: {k: v for k, v in one.items() if v is not None} for name, one in read(text).items()}


names = st.sampled_from(["name", "sub", "heading", "grid", "pull"])
values = st.one_of(st.none(), st.text(max_size=12), st.integers(0, 360), st.floats(0, 360), st.booleans())
changes = st.one_of(
    st.builds(
        lambda one, more: Update(id=one, values=more),
        st.sampled_from(["gate", "yard"]),
        st.dictionaries(names, values),
    ),
    st.builds(lambda more: Put(entry={"id": "new", "main": "m", **more}), st.dictionaries(names, values)),
    st.builds(lambda more: Put(entry={"id": "gate", "main": "m", **more}), st.dictionaries(names, values)),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([BLOCK, FLOW, LINE]), st.lists(changes, max_size=4))
def test_whatever_is_changed_reads_back_as_it_was_meant(text: str, wanted: list[Put | Update]) -> None:
    expected = said(text)
    for change in wanted:
        if isinstance(change, Put):
            expected[str(change.entry["id"])] = {k: v for k, v in change.entry.items() if v is not None}
        else:
            one = expected[change.id]
            for key, value in change.values.items():
                one.pop(key, None)
                if value is not None:
                    one[key] = value
    assert said(edit_cameras(text, wanted)) == expected


def test_the_example_changes_in_one_place() -> None:
    text = (Path(__file__).parents[1] / "config" / "cameras.yaml").read_text(encoding="utf-8")
    edited = edit_cameras(text, [Update(id="cam002", values={"heading": 11}), Remove(id="cam003")])
    before, after = text.splitlines(), edited.splitlines()
    assert len(after) == len(before) - 2
    assert len(set(after) - set(before)) == 1


@pytest.mark.parametrize(
    "value", ["\x97", ["\x97"], {"a": ["\u2028", {"\x85": "\ufeff"}]}, [[["x"] * 3] * 3], [1.5, None]]
)
def test_whatever_stands_for_a_value_is_written_so_that_it_is_read(value: object) -> None:
    """Found by schemathesis: a control character within a list was a server error."""
    edited = edit_cameras("cameras: []\n", [Put(entry={"id": "c1", "main": value})])
    [camera] = yaml.safe_load(edited)["cameras"]
    assert camera["main"] == value


def test_a_value_nested_without_end_is_refused_or_written_but_ends_nothing() -> None:
    value: object = "x"
    for _ in range(900):
        value = [value]
    with contextlib.suppress(ConfigError, Conflict):  # anything else would be a server error
        edit_cameras("cameras: []\n", [Put(entry={"id": "c1", "main": value})])
