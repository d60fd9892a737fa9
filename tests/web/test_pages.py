"""The pages without a gateway: types, build, unit tests; and a lock that names no host."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "gateway" / "web"


def run(*command: str) -> None:
    """Runs an npm script of the pages and shows its output when it fails."""
    result = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_types() -> None:
    run("npm", "run", "--silent", "check")


@pytest.fixture(scope="module")
def built() -> Path:
    run("npm", "run", "--silent", "build")
    return WEB / "dist"


def test_every_page_is_built(built: Path) -> None:
    assert {page.name for page in built.glob("*.html")} == {
        "desk.html",
        "login.html",
        "stb.html",
        "wall.html",
        "worker.html",
    }


@pytest.mark.usefixtures("built")
def test_units() -> None:
    run("npm", "run", "--silent", "unit")


def test_lock_names_no_host() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
