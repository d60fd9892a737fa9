"""/healthz says that the process lives, /readyz whether new work should come here. Neither minds cameras."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from running_gateway import running_gateway

from gateway.vitals import LAG_LIMIT_MS

pytestmark = pytest.mark.broker


async def test_cameras_that_are_down_make_it_neither_sick_nor_unready(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, live_url="rtsp://127.0.0.1:9/nobody", settings={}) as bench:
        assert (await bench.call("POST", "/whep/a1-community", bench.bearer("operator", "op"), data="v=0"))[
            0
        ] > 399
        assert (await bench.call("GET", "/healthz"))[0] == 200
        assert (await bench.call("GET", "/readyz"))[0] == 200


async def test_a_late_loop_and_a_drain_make_it_unready_but_not_sick(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, live_url="rtsp://127.0.0.1:9/nobody", settings={}) as bench:
        gateway = bench.gateway
        gateway._lag_ms = LAG_LIMIT_MS + 1
        late = gateway.vitals.health()  # not asked over HTTP: the next probe would have measured anew
        assert not late.ready
        assert any("late" in reason for reason in late.reasons)
        gateway._lag_ms = 0.0
        gateway.draining = True
        assert (await bench.call("GET", "/healthz"))[0] == 200
        status, said = await bench.call("GET", "/readyz")
        assert status == 503, said
        gateway.draining = False
        async with asyncio.timeout(20):  # the loop of a busy machine may really be late for a while
            while (await bench.call("GET", "/readyz"))[0] != 200:
                await asyncio.sleep(0.1)
