"""The whole media plane over loopback sockets, with aiortc as the independent peer."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from dataclasses import replace

import pytest
from netem import Relay
from webrtc_clients import Feed, WhepClient, WhipClient, encode_clip, eventually, running_plane

from gateway.errors import NotFound, Unavailable
from gateway.streams import sdp
from gateway.streams.dtls import DtlsServer
from gateway.streams.ice import IceSession
from gateway.streams.link import Link
from gateway.streams.media import AccessUnit, StreamName, Undecodable
from gateway.streams.plane import PlaneLimits
from gateway.streams.sender import RESTART_INTERVAL_S, TrackSender
from gateway.streams.session import Session
from gateway.streams.srtp import SrtpReceiver
from gateway.streams.viewer import Viewer

both_loops = pytest.mark.usefixtures("send_loop")


@both_loops
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


async def test_what_no_browser_decodes_is_replaced_by_the_sub_stream():
    """Complaints about the peers, item 6."""
    client = WhepClient()
    offer = await client.offer()
    await client.close()
    async with running_plane("cam001") as plane:
        plane.cameras.refuse[StreamName.MAIN] = Undecodable("codec H265 not supported")
        await plane.watch("camera/cam001", offer, stream="main", owner="me")
        assert plane.cameras.held == [("cam001", StreamName.SUB)]
        (session,) = plane.sessions()
        assert session.stream == StreamName.SUB
        plane.cameras.refuse[StreamName.SUB] = NotFound("no sub-stream")
        with pytest.raises(Undecodable):
            await plane.watch("camera/cam001", offer, stream="main", owner="me")
        plane.cameras.refuse[StreamName.MAIN] = Unavailable("no answer from host")
        with pytest.raises(Unavailable, match="no answer"):
            await plane.watch("camera/cam001", offer, stream="main", owner="me")


async def test_a_profile_that_nobody_offers_is_sent_under_the_nearest_and_counted():
    """H.264 High of an ordinary camera; aiortc offers Baseline only, and browsers play it all the same."""
    client = WhepClient()
    offer = await client.offer()
    await client.close()
    async with running_plane("baseline", "high") as plane:
        for camera, profile in (("baseline", "42e01f"), ("high", "640028")):
            plane.sink_of(camera, StreamName.MAIN).on_access_unit(
                AccessUnit(
                    nal_units=(b"\x67" + bytes.fromhex(profile) + bytes(8), b"\x68ps", b"\x65" + bytes(99)),
                    timestamp=0,
                    keyframe=True,
                    received_at=time.monotonic(),
                )
            )
            answer = await plane.watch(f"camera/{camera}", offer, owner="me")
            assert "profile-level-id=42" in answer.sdp
            assert plane.port.counters["h264_profile_substituted"] == (camera == "high")


async def test_a_port_knows_whether_media_is_sent():
    """Its sockets rest longer between two readings where none is (carrier.LONG_REST_S)."""
    async with running_plane("cam001") as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip())
        feed.push()
        client = WhepClient()
        playing: asyncio.Task[None] | None = None
        try:
            await client.watch(plane, "camera/cam001")
            await eventually(lambda: plane.port.media_until > 0)  # the cached keyframe
            until = plane.port.media_until
            playing = asyncio.create_task(feed.run())
            await eventually(lambda: plane.port.media_until > until)
        finally:
            if playing is not None:
                playing.cancel()
            await client.close()


def alive(*types: type) -> list[str]:
    return [type(one).__name__ for one in gc.get_objects() if isinstance(one, types)]


async def test_a_closed_session_is_gone_without_the_collector():
    """The collector comes round to old cycles after days, and a session has some 14 KB that it doesn't see."""
    parts = (Session, Link, Viewer, TrackSender, DtlsServer, IceSession, SrtpReceiver)
    async with running_plane("cam001") as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip())
        playing = asyncio.create_task(feed.run())
        gc.collect()
        gc.disable()
        try:
            assert not alive(*parts)
            client = WhepClient()
            await client.watch(plane, "camera/cam001")
            await eventually(lambda: len(client.frames) >= 3)
            assert set(alive(*parts)) == {part.__name__ for part in parts}
            plane.close_owned_by("test")
            await client.close()
            await eventually(lambda: not alive(*parts))
        finally:
            gc.enable()
            playing.cancel()


async def test_a_viewer_beyond_a_nat_plays_by_the_announced_address():
    """1:1 NAT: the viewer reaches nothing but the announced address, which the gateway has not bound. The NAT is a relay."""
    outside = "127.0.0.5"
    async with running_plane("cam001", binds=[("127.0.0.1", 0)], announce=[(outside, 0)]) as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip())
        playing = asyncio.create_task(feed.run())
        inside = plane.port.candidates()[0]
        client = WhepClient()
        try:
            async with await Relay.open((inside.host, inside.port), front=(outside, inside.port)) as nat:
                answer = await plane.watch("camera/cam001", await client.offer(), owner="me")
                lines = answer.sdp.splitlines(keepends=True)
                reachable = [line for line in lines if "a=candidate" not in line or outside in line]
                assert len(reachable) < len(lines)
                await client.accept(replace(answer, sdp="".join(reachable)))
                await eventually(lambda: len(client.frames) >= 10)
                assert nat.counters("up")["passed"] > 0
        finally:
            playing.cancel()
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


@pytest.mark.parametrize("codec", ["H264", "VP8"])
async def test_publisher_is_watched(codec: str):
    changes: list[tuple[str, tuple[str, ...]]] = []
    async with running_plane(
        on_source_change=lambda source, tracks: changes.append((source, tracks))
    ) as plane:
        publisher, viewer = WhipClient(codec=codec), WhepClient(audio=True)
        try:
            # The viewer comes first: his session is accepted, media starts when it comes.
            await viewer.watch(plane, "call/c1/alice")
            await publisher.publish(plane, "call/c1/alice")
            await eventually(lambda: len(viewer.frames) >= 10 and len(viewer.audio_frames) >= 10, 15)
            assert plane.source_tracks("call/c1/alice") == ("video", "audio")
            assert ("call/c1/alice", ("video", "audio")) in changes
            late = WhepClient()
            try:
                await late.watch(plane, "call/c1/alice")
                await eventually(lambda: len(late.frames) >= 3)
            finally:
                await late.close()
            publishing = next(one for one in plane.sessions() if one.kind == "publish")
            assert publishing.counters["video_packets"] > 10
            plane.close(publishing.session_id)
            assert changes[-1] == ("call/c1/alice", ())
        finally:
            await viewer.close()
            await publisher.close()


async def test_second_publisher_takes_over():
    closed: list[tuple[str, str]] = []
    async with running_plane(
        on_session_closed=lambda session, reason: closed.append((session, reason))
    ) as plane:
        first, second, viewer = WhipClient(audio=False), WhipClient(audio=False), WhepClient()
        try:
            await viewer.watch(plane, "call/c1/alice")
            await first.publish(plane, "call/c1/alice")
            await eventually(lambda: len(viewer.frames) >= 3)
            await second.publish(plane, "call/c1/alice")
            assert closed == [(first.answer.session_id, "superseded")]
            seen = len(viewer.frames)
            await eventually(lambda: len(viewer.frames) >= seen + 5, 15)
        finally:
            await first.close()
            await second.close()
            await viewer.close()


@pytest.mark.realtime
@both_loops
async def test_lost_packets_are_sent_again():
    """5 % of the video packets are lost; all pictures arrive, because they are asked for and sent again as
    RTX."""
    async with running_plane("cam001") as plane:
        clip = encode_clip(gop=250, frames=75, noise=60)
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), clip)
        feed.push()
        client = WhepClient()
        try:
            await client.watch(plane, "camera/cam001")
            await eventually(lambda: plane.sessions()[0].counters["video_packets"])
            ssrc = int(re.search(r"a=ssrc:(\d+)", client.answer.sdp)[1])
            client.drop_incoming(lambda packet_ssrc, number, _: packet_ssrc == ssrc and number % 20 == 0)
            playing = asyncio.create_task(feed.run())
            await eventually(lambda: len(client.frames) >= 60)
            playing.cancel()
            counters = plane.sessions()[0].counters
            assert counters["video_retransmitted"] >= 5
            assert counters["video_replays"] == 1
        finally:
            await client.close()


@both_loops
async def test_keyframe_request_is_served_from_the_cache():
    async with running_plane("cam001") as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip(gop=1_000, frames=500))
        for _ in range(5):
            feed.push()
        client = WhepClient()
        try:
            await client.watch(plane, "camera/cam001")
            playing = asyncio.create_task(feed.run())
            await eventually(lambda: len(client.frames) >= 20)
            receiver = client.pc.getTransceivers()[0].receiver
            ssrc = int(re.search(r"a=ssrc:(\d+)", client.answer.sdp)[1])
            # On a busy machine those pictures come in one burst, and a request so soon after the start is not answered by another.
            await asyncio.sleep(RESTART_INTERVAL_S)
            await receiver._send_rtcp_pli(ssrc)
            await eventually(lambda: plane.sessions()[0].counters["video_replays"] == 2)
            seen = len(client.frames)
            await eventually(lambda: len(client.frames) >= seen + 20)
            playing.cancel()
            stamps = [frame.pts for frame in client.frames]
            assert stamps == sorted(set(stamps)), "timestamps never run backwards"
        finally:
            await client.close()


@both_loops
async def test_restart_keeps_media():
    """aiortc can't restart ICE; a renewed fragment must leave the running path alone until it is checked."""
    async with running_plane("cam001") as plane:
        feed = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip())
        playing = asyncio.create_task(feed.run())
        client = WhepClient()
        try:
            await asyncio.sleep(0.1)
            await client.watch(plane, "camera/cam001")
            await eventually(lambda: len(client.frames) >= 5)
            session = plane.sessions()[0]
            fragment = sdp.parse_fragment(f"a=ice-ufrag:other\r\na=ice-pwd:{'x' * 22}\r\n")
            answer = plane.restart(session.session_id, fragment)
            assert answer.etag != session.etag
            seen = len(client.frames)
            await eventually(lambda: len(client.frames) >= seen + 10)
        finally:
            playing.cancel()
            await client.close()


@both_loops
async def test_auto_changes_to_sub_at_its_keyframe():
    async with running_plane("cam001") as plane:
        main = Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip())
        sub = Feed(plane.sink_of("cam001", StreamName.SUB), encode_clip(width=160, height=120))
        tasks = [asyncio.create_task(main.run()), asyncio.create_task(sub.run())]
        client = WhepClient()
        try:
            await asyncio.sleep(0.1)
            await client.watch(plane, "camera/cam001", stream="auto")
            await eventually(lambda: len(client.frames) >= 5)
            session = next(iter(plane._sessions.values()))
            plane._choose(session, StreamName.SUB)
            await eventually(lambda: client.frames[-1].width == 160)
            assert plane.cameras.held == [("cam001", StreamName.SUB)]
            plane._choose(session, StreamName.MAIN)
            await eventually(lambda: client.frames[-1].width == 320)
            assert plane.cameras.held == [("cam001", StreamName.MAIN)]
            stamps = [frame.pts for frame in client.frames]
            assert stamps == sorted(set(stamps))
        finally:
            for task in tasks:
                task.cancel()
            await client.close()


async def test_a_cut_source_goes_on_at_its_next_keyframe():
    async with running_plane("cam001") as plane:
        stream = plane.sink_of("cam001", StreamName.MAIN)
        feed = Feed(stream, encode_clip())
        playing = asyncio.create_task(feed.run())
        client = WhepClient()
        try:
            await asyncio.sleep(0.1)
            await client.watch(plane, "camera/cam001")
            await eventually(lambda: len(client.frames) >= 5)
            stream.on_reset()
            seen = len(client.frames)
            await eventually(lambda: len(client.frames) >= seen + 10)
            assert plane.keyframe("cam001") is not None
        finally:
            playing.cancel()
            await client.close()


async def test_a_stream_that_is_pulled_no_more_is_not_shown():
    async with running_plane("cam001") as plane:
        clip = encode_clip()
        assert plane.keyframe("cam001") is None
        now = time.monotonic()
        Feed(plane.sink_of("cam001", StreamName.MAIN), clip).push(now)
        main = plane.keyframe("cam001")
        assert main is not None
        sub = plane.sink_of("cam001", StreamName.SUB)
        Feed(sub, clip).push(now + 1)
        assert plane.keyframe("cam001") is main
        assert plane.keyframe_to_judge("cam001").received_at == now + 1
        Feed(sub, [(keyframe, (*units[:-1], units[-1])) for keyframe, units in clip]).push(now + 100)
        shown = plane.keyframe("cam001")
        assert shown is not main


async def test_sessions_of_an_owner_are_closed():
    async with running_plane("cam001") as plane:
        Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip()).push()
        clients = [WhepClient() for _ in range(3)]
        try:
            for client, owner in zip(clients, ("alice", "bob", "alice"), strict=True):
                await client.watch(plane, "camera/cam001", owner=owner)
            assert plane.close_owned_by("alice") == 2
            assert [session.owner for session in plane.sessions()] == ["bob"]
            plane.forget_camera("cam001")
            assert plane.sessions() == []
            assert plane.closed_reasons == {"revoked": 2, "camera_removed": 1}
            with pytest.raises(NotFound):
                plane.close(clients[0].answer.session_id)
        finally:
            for client in clients:
                await client.close()


async def test_a_client_that_never_connects_is_ended():
    async with running_plane("cam001", limits=PlaneLimits(connect_s=0.0)) as plane:
        Feed(plane.sink_of("cam001", StreamName.MAIN), encode_clip()).push()
        client = WhepClient()
        try:
            await plane.watch("camera/cam001", await client.offer(), owner="x")
            await eventually(lambda: not plane.sessions())
            assert plane.closed_reasons == {"connect_timeout": 1}
            assert plane.cameras.held == []
        finally:
            await client.close()
