"""A call whose people are gone ends by itself; who is there but says nothing stays."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiortc import RTCSessionDescription
from running_gateway import Bench, running_gateway

sys.path.append(str(Path(__file__).parents[1] / "streams"))
sys.path.append(str(Path(__file__).parents[1]))
from evidence_clients import until
from netem import Relay
from webrtc_clients import WhepClient, WhipClient

CALLS = {
    "dead_s": 2,
    "restart_s": [0.5, 1.0],
    "no_answer_s": 2,
    "ring_next_s": 1,
    "join_s": 1,
    "publish_s": 60,
}


async def connect(
    bench: Bench, client: WhipClient | WhepClient, path: str, who: dict[str, str], links: AsyncExitStack
) -> Relay:
    """Joins by a link of its own, which can be cut."""
    headers = {**who, "Content-Type": "application/sdp"}
    async with bench.client.post(path, data=await client.offer(), headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 201, text
    text = re.sub(r"a=candidate:.* (?i:tcp) .*\r\n", "", text)
    found = re.search(r"a=candidate:\S+ 1 (?i:udp) \d+ (\d+\.\d+\.\d+\.\d+) (\d+)", text)
    assert found is not None
    relay = await links.enter_async_context(await Relay.open((found[1], int(found[2]))))
    host, port = relay.address
    text = re.sub(r"(a=candidate:\S+ 1 (?i:udp) \d+) \S+ \d+", rf"\g<1> {host} {port}", text)
    await client.pc.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))
    return relay


async def test_a_listener_stays_and_a_call_that_everybody_has_left_ends(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings={"calls": CALLS}) as bench, AsyncExitStack() as stack:
        await bench.on_duty("wa", "a1")
        worker, operator = bench.bearer("worker", "wa"), bench.bearer("operator", "op")
        url = f"/api/v1/calls/{await bench.call_of((await bench.press('a1'))['alarm'])}"
        _, claimed = await bench.call("POST", f"{url}/claim", worker, json={})
        _, joined = await bench.call("POST", f"{url}/join", operator, json={})
        phone, desk = WhipClient(), WhepClient(audio=True)
        for client in (phone, desk):
            stack.push_async_callback(client.close)
        links = [
            await connect(bench, desk, f"{url}/legs/{claimed['leg']}/whep", operator, stack),
            await connect(bench, phone, f"{url}/legs/{claimed['leg']}/whip", worker, stack),
        ]
        states: list[str] = []

        async def call() -> Any:
            _, seen = await bench.call("GET", url, operator)
            states.append(seen["state"])
            return seen

        def legs(seen: Any) -> dict[str, Any]:
            return {leg["participant"]: leg for leg in seen["legs"] if leg["left_at"] is None}

        await until(call, lambda seen: seen["state"] == "ACTIVE", why="a desk that only listens is there")
        await asyncio.sleep(2 * CALLS["join_s"])  # type: ignore[operator]  # what is asserted is that nothing happens
        seen = await call()
        assert (seen["state"], legs(seen)["op"]["watching"], legs(seen)["op"]["tracks"]) == (
            "ACTIVE",
            True,
            [],
        )
        assert joined["leg"] == legs(seen)["op"]["id"]

        for link in links:  # both batteries are empty: no goodbye of any kind
            link.blackout(3_600)
        ended = await until(call, lambda seen: seen["state"] == "ENDED", timeout_s=60)
        assert ended["end_reason"] == "media_failed"
        assert legs(ended) == {}
        assert [state for n, state in enumerate(states) if states[n - 1 : n] != [state]][-4:] == [
            "ACTIVE", "RECONNECTING", "RINGING", "ENDED",
        ]  # fmt: skip
        assert [ring["outcome"] for ring in ended["rung"]] == ["claimed", "cancelled"], "it was redialled"
