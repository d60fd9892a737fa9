"""The whole media plane over loopback sockets, with aiortc as the independent peer."""

from __future__ import annotations

import asyncio
import re

import pytest
from webrtc_clients import Feed, WhepClient, WhipClient, encode_clip, eventually, running_plane

from gateway.errors import NotFound, ProtocolError, TooMany, Unavailable
from gateway.streams import sdp
from gateway.streams.media import StreamName
from gateway.streams.plane import MediaPlane, NotAcceptable, PlaneLimits


async def test_viewer_starts_from_the_cached_keyframe():
    async with running_plane("cam001") as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip(gop=250))
        for _ in range(20):
            feed.push()
        client = WhepClient()
        try:
            await client.watch(plane, "camera/cam001")
            # Nothing is fed any more: what comes is the cache.
            await eventually(lambda: len(client.frames) >= 15)
            assert client.frames[0].width == 320
            assert plane.cameras.held == [("cam001", StreamName.MAIN)]
            (session,) = plane.sessions()
            assert session.state == "connected"
            assert session.counters["video_replays"] == 1
            plane.close(session.session_id)
            assert plane.cameras.held == []
            assert plane.sessions() == []
            assert plane.sessions(closed=True)[0].reason == "closed"
        finally:
            await client.close()


async def test_live_video_and_audio():
    async with running_plane("cam001") as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip(), audio=True)
        playing = asyncio.create_task(feed.run())
        client = WhepClient(audio=True)
        try:
            await asyncio.sleep(0.2)
            await client.watch(plane, "camera/cam001")
            await eventually(lambda: len(client.frames) >= 30 and len(client.audio_frames) >= 30)
        finally:
            playing.cancel()
            await client.close()
