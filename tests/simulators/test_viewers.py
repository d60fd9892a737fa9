"""The WHEP viewer against a small WHEP server that aiortc itself makes."""

from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import VideoStreamTrack

from simulators import viewers


@pytest.mark.parametrize("token", ["right", "wrong"])
async def test_a_viewer_decodes_and_leaves_in_order(token: str) -> None:
    peers: list[Any] = []
    deleted: list[str] = []

    async def offer(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != "Bearer right":
            return web.Response(status=401, text="no")
        peer = RTCPeerConnection()
        peers.append(peer)
        await peer.setRemoteDescription(RTCSessionDescription(sdp=await request.text(), type="offer"))
        peer.addTrack(VideoStreamTrack())
        await peer.setLocalDescription(await peer.createAnswer())
        return web.Response(
            status=201,
            text=peer.localDescription.sdp,
            content_type="application/sdp",
            headers={"Location": "/whep/sessions/1"},
        )

    async def delete(request: web.Request) -> web.Response:
        deleted.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_post("/whep/cam001", offer)
    app.router.add_delete("/whep/sessions/1", delete)
    viewer = viewers.Viewer()
    async with TestServer(app) as server, ClientSession() as session:
        await viewers.watch(viewer, session, str(server.make_url("/whep/cam001")), token, 1.5)
    for peer in peers:
        await peer.close()
    if token == "wrong":
        assert viewer.error == "HTTP 401: no"
        assert not peers
    else:
        assert viewer.error == ""
        assert viewer.frames > 3
        assert viewer.first_ms is not None
        assert deleted == ["/whep/sessions/1"]
