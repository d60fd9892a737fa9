"""The place of a viewer by HLS, which has no connection that could end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.access import Principal, Role
from gateway.http import hls
from gateway.identity import JoinLimits
from gateway.streams.media import StreamName


async def test_who_asks_no_more_gives_its_place_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hls, "LOOK_S", 0.01)
    now = 0.0
    joins = JoinLimits(lambda principal: 2, rate=100)
    nothing: Any = SimpleNamespace()
    edge = hls.HlsEdge(nothing, nothing, joins, viewed=nothing, clock=lambda: now)
    box = Principal(sub="stb1", role=Role.STB)
    for name in (StreamName.MAIN, StreamName.SUB, StreamName.MAIN):
        edge._count(box, "cam1", name)
    assert joins.joined(box) == 2
    now = hls.GONE_S - 1
    edge._count(box, "cam1", StreamName.SUB)
    now = hls.GONE_S + 1
    async with asyncio.timeout(30):
        while joins.joined(box) != 1:
            await asyncio.sleep(0.01)
    now = 2 * hls.GONE_S
    async with asyncio.timeout(30):
        while joins.joined(box):
            await asyncio.sleep(0.01)
    assert edge._look is None
