"""Memory that is no longer used: the collector's settings, and what it does not do by itself.

Most objects die by their reference count; ours are written without cycles where there are many (sessions, links, pulls).
What is left are the standard library's: each closed TCP transport is one. With thresholds for short pauses the collector
would come round to the old ones after days only.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

__all__ = ["keep_tidy", "settle", "tidy"]

TIDY_S = 300.0
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone


def settle(*, allocations: int, middle: int) -> None:
    """Once all that lives as long as the process is there: the collector never looks at it again, so that its pauses are
    short. allocations: new containers between two looks at the young; middle: such looks between two at the middle-aged."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(allocations, middle, 50)


def tidy() -> None:
    """Collects cycles of any age, and gives the kernel back what a crowd that has left took (5-10 ms)."""
    gc.collect()
    if _malloc_trim is not None:
        _malloc_trim(0)


async def keep_tidy(every_s: float = TIDY_S) -> None:
    while True:
        await asyncio.sleep(every_s)
        tidy()
