"""The order in which files go to the test processes: those that mostly wait (browsers, kills, whole gateways) first, so that
the short ones fill up the end and no process is left alone with a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

LONG_FIRST = (
    "alarms",
    "e2e",
    "faults",
    "deploy",
    "soak",
    "http",
    "conformance",
    "evidence",
    "simulators",
    "web",
)
ROOT = Path(__file__).parent


def place(item: pytest.Item) -> int:
    folder = item.path.relative_to(ROOT).parts[0]
    return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)  # stable: the order within a file is kept
