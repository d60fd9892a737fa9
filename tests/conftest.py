"""Which tests share a process: a file's tests do, with what they have started; those that drive a browser all do, so that one
browser at a time has the machine. They begin first, being the longest."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("untimed")

ROOT = Path(__file__).parent
TOGETHER = ("e2e", "conformance")
LONG_FIRST = (*TOGETHER, "alarms", "faults", "deploy", "soak", "http", "evidence", "simulators", "web")


class OneBrowser(LoadFileScheduling):  # type: ignore[misc]
    """Hands out files, and what lies in the folders of TOGETHER as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = PurePosixPath(file).parts[1]
        return "browser" if folder in TOGETHER else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneBrowser:
    return OneBrowser(config, log)


def place(item: pytest.Item) -> int:
    folder = item.path.relative_to(ROOT).parts[0]
    return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)  # stable: the order within a file is kept
