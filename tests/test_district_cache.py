"""The kept district is what the files say, and nothing else ever counts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gateway.district import District
from gateway.district_cache import read_district

SOURCE = Path(__file__).parents[1] / "config" / "district"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The repository's district with few households, which take long to read."""
    directory = tmp_path / "district"
    directory.mkdir()
    for path in SOURCE.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.stem in ("households", "boxes", "volunteers"):
            text = f"{path.stem}: []\n"
        (directory / path.name).write_text(text, encoding="utf-8")
    home = "{id: h1, address: 一号, community: '510117001001', lat: 30.8, lon: 103.9, datum: gcj02, contacts: [{name: 李, phone: '1'}]}"
    community = next(a.code for a in District.load(directory).areas.values() if a.level == "community")
    home = home.replace("510117001001", community)
    (directory / "households.yaml").write_text(f"households: [{home}]\n", encoding="utf-8")
    (directory / "boxes.yaml").write_text("boxes: [{sid: b1, household: h1}]\n", encoding="utf-8")
    return directory


def test_what_is_kept_is_what_was_read(files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache" / "district"
    first, mistakes = read_district(files, cache)
    assert mistakes == []
    assert cache.stat().st_mode & 0o777 == 0o600
    kept, _ = read_district(files, cache)
    for name in (
        "code",
        "name",
        "center",
        "areas",
        "gridworkers",
        "volunteers",
        "households",
        "boxes",
        "users",
    ):
        assert getattr(kept, name) == getattr(first, name), name
    assert kept.home_of("b1") == first.home_of("b1")
    assert kept.locate(kept.households["h1"].position) == first.locate(first.households["h1"].position)  # type: ignore[arg-type]
    # a changed file is read, one with a mistake too and is not kept
    boxes = files / "boxes.yaml"
    boxes.write_text("boxes: [{sid: b2, household: h1}]\n")
    assert list(read_district(files, cache)[0].boxes) == ["b2"]
    before = cache.read_bytes()
    boxes.write_text("boxes: [{sid: b2, household: nowhere}]\n")
    assert read_district(files, cache)[1]
    assert read_district(files, cache)[1]
    assert cache.read_bytes() == before
    # what lies there may be anything
    boxes.write_text("boxes: [{sid: b2, household: h1}]\n")
    cache.write_bytes(before[:-40])
    with caplog.at_level(logging.WARNING):
        assert list(read_district(files, cache)[0].boxes) == ["b2"]
    assert "made anew" in caplog.text
    assert cache.read_bytes() == before


def test_without_a_place_to_keep_it_the_start_goes_on(files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    district, mistakes = read_district(files, tmp_path / "file" / "district")
    assert (list(district.boxes), mistakes) == (["b1"], [])
    assert read_district(tmp_path / "none", tmp_path / "cache")[1]
