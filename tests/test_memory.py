"""What the collector leaves, and what is done about it."""

from __future__ import annotations

import asyncio
import gc
import weakref

from gateway import memory


class Node:
    def __init__(self) -> None:
        self.itself = self


def old_cycle() -> weakref.ref[Node]:
    """Garbage that has seen collections of the young and middle-aged, as a session of some minutes."""
    node = Node()
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(node)


async def test_old_cycles_go_by_and_by() -> None:
    before = gc.get_threshold()
    gc.disable()
    try:
        seen = old_cycle()
        gc.collect(1)
        assert seen() is not None
        task = asyncio.create_task(memory.keep_tidy(0.01))
        async with asyncio.timeout(30):
            while seen() is not None:
                await asyncio.sleep(0.01)
        task.cancel()
    finally:
        gc.enable()
        gc.set_threshold(*before)


def test_what_stays_is_never_looked_at_again() -> None:
    before, node = gc.get_threshold(), Node()
    try:
        memory.settle(allocations=5_000, middle=80)
        assert gc.get_threshold() == (5_000, 80, 50)
        assert all(one is not node for one in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
