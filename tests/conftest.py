"""Which tests share a process, for `--dist loadgroup`: a file's tests do, with what they have started; those that drive a
browser all do, so that one browser at a time has the machine, and they begin first, being the longest."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
TOGETHER = ("e2e", "conformance")
LONG_FIRST = (*TOGETHER, "alarms", "faults", "deploy", "soak", "http", "evidence", "simulators", "web")


def folder(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).parts[0]


def place(item: pytest.Item) -> int:
    return LONG_FIRST.index(folder(item)) if folder(item) in LONG_FIRST else len(LONG_FIRST)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist writes the group into the name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)  # stable: the order within a file is kept
    for item in items:
        group = folder(item) if folder(item) in TOGETHER else str(item.path.relative_to(ROOT))
        item.add_marker(pytest.mark.xdist_group(group))
