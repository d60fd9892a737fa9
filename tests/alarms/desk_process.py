"""A child for the kill test: a desk on a database that takes presses from stdin, one signed body a line, and
prints each ack.

Lines of rings (`ring ALARM`) stand for what reached the switchboard; they may come twice, never not at all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from conftest import SmallWorld  # noqa: E402

from gateway.alarms.desk import AlarmDesk  # noqa: E402
from gateway.alarms.policy import AlarmSettings  # noqa: E402
from gateway.alarms.roster import Roster  # noqa: E402
from gateway.store import Store  # noqa: E402


def say(*words: str) -> None:
    print(*words, flush=True)


async def main(path: str) -> None:
    store = await Store.open(path)
    settings = AlarmSettings()

    async def nowhere(messages: Sequence[Any]) -> None:
        return None

    async def ring(briefs: Sequence[dict[str, Any]]) -> None:
        for brief in briefs:
            say("ring", brief["alarm_id"])

    async def reach(payload: dict[str, Any]) -> int:
        return 1

    desk = AlarmDesk(
        store,
        SmallWorld(),
        settings,
        roster=Roster(store, settings.dispatch),
        camera_health=lambda camera_id: True,
        may_watch=lambda sid, camera_id: False,
        talked_about=frozenset,
        publish_mqtt=nowhere,
        publish_events=nowhere,
        ring=ring,
        reach=reach,
        clock=lambda: time.time_ns() // 1_000_000,
    )
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    say("ready")

    async def take(line: bytes) -> None:
        ack = await desk.press(line.strip(), "http")
        say("ack", json.dumps({"pid": ack["pid"], "alarm": ack["alarm"], "stage": ack["stage"]}))

    async with asyncio.TaskGroup() as group:
        group.create_task(desk.run())
        while line := await reader.readline():
            group.create_task(take(line))


asyncio.run(main(sys.argv[1]))
