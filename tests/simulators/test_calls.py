"""A simulated gridworker answers with real media; the room is a small one that aiortc makes."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from aiortc import RTCPeerConnection, RTCSessionDescription

from simulators import calls


@pytest.mark.parametrize("taken", [False, True])
async def test_answer_publishes_video_and_audio_and_hangs_up(taken: bool) -> None:
    peers: list[Any] = []
    got: dict[str, Any] = {}
    both = asyncio.Event()
    hung_up = asyncio.Event()
    readers: list[asyncio.Task[None]] = []

    async def claim(request: web.Request) -> web.Response:
        if taken:
            return web.json_response({"taken_by": "张伟"}, status=409)
        return web.json_response({"id": "c1", "leg": "l1"})

    async def read(track: Any) -> None:
        got[track.kind] = await track.recv()
        if len(got) == 2:
            both.set()

    async def whip(request: web.Request) -> web.Response:
        peer = RTCPeerConnection()
        peers.append(peer)
        peer.on("track", lambda track: readers.append(asyncio.ensure_future(read(track))))
        offer = await request.text()
        assert "H264/90000" in offer
        assert "VP8" not in offer
        await peer.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        headers = {"Location": "/whip/sessions/1"}
        return web.Response(
            status=201, text=peer.localDescription.sdp, content_type="application/sdp", headers=headers
        )

    async def open_calls(request: web.Request) -> web.Response:
        legs = [{"id": "l1", "publishing": True, "left_at": None}]
        return web.json_response({"calls": [] if both.is_set() else [{"id": "c1", "legs": legs}]})

    async def hangup(request: web.Request) -> web.Response:
        hung_up.set()
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/api/v1/calls/c1/claim", claim)
    app.router.add_post("/api/v1/calls/c1/legs/l1/whip", whip)
    app.router.add_get("/api/v1/calls", open_calls)
    app.router.add_post("/api/v1/calls/c1/hangup", hangup)
    async with TestServer(app) as server, ClientSession() as session:
        outcome = await calls.answer(session, str(server.make_url("/")), "c1", "w007", "token", talk_s=15)
    await asyncio.gather(*readers)
    for peer in peers:
        await peer.close()
    assert outcome.error == ""
    assert outcome.claimed is not taken
    if taken:
        assert outcome.taken_by == "张伟"
    else:
        assert (got["video"].width, got["video"].height) == (640, 360)
        assert got["audio"].sample_rate == 48000
        assert hung_up.is_set()
