"""Viewers: aiortc clients that watch by WHEP and count what they decode."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import aiohttp
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from simulators.boxes import percentiles

__all__ = ["Viewer", "arguments", "exchange", "run"]


@dataclass(slots=True)
class Viewer:
    """One session and what came of it. first_ms: POST to the first decoded picture."""

    frames: int = 0
    first_ms: float | None = None
    error: str = ""


async def exchange(session: aiohttp.ClientSession, url: str, offer: str, token: str) -> tuple[str, str]:
    """Posts an SDP offer; returns the answer and the session's URL. Raises ValueError when refused."""
    headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {token}"}
    async with session.post(url, data=offer, headers=headers) as reply:
        text = await reply.text()
        if reply.status != 201:
            raise ValueError(f"HTTP {reply.status}: {text[:200]}")
        return text, urljoin(str(reply.url), reply.headers["Location"])


async def watch(viewer: Viewer, session: aiohttp.ClientSession, url: str, token: str, seconds: float) -> None:
    """Watches for some seconds and leaves in order."""
    peer = RTCPeerConnection()
    transceiver = peer.addTransceiver("video", direction="recvonly")
    peer.addTransceiver("audio", direction="recvonly")
    location = ""
    try:
        await peer.setLocalDescription(await peer.createOffer())
        started = time.monotonic()
        answer, location = await exchange(session, url, peer.localDescription.sdp, token)
        await peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
        track: Any = transceiver.receiver.track
        with contextlib.suppress(TimeoutError, MediaStreamError):
            async with asyncio.timeout(seconds):
                while True:
                    await track.recv()
                    if viewer.first_ms is None:
                        viewer.first_ms = (time.monotonic() - started) * 1000
                    viewer.frames += 1
    except (ValueError, KeyError, OSError, aiohttp.ClientError) as error:
        viewer.error = str(error)
    finally:
        if location:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.delete(location, headers={"Authorization": f"Bearer {token}"}):
                    pass
        await peer.close()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--url", required=True, help="http://.../whep/{camera}; {camera} and {n} are replaced"
    )
    parser.add_argument(
        "--cameras", default="", help="comma-separated ids for {camera}; default cam001, cam002, ..."
    )
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--token", required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints one JSON report; exit status 1 when a viewer decoded nothing."""
    viewers = [Viewer() for _ in range(options.count)]
    ids = options.cameras.split(",") if options.cameras else [f"cam{n + 1:03d}" for n in range(options.count)]

    async def all_of_them() -> None:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number, viewer in enumerate(viewers):
                url = options.url.replace("{camera}", ids[number % len(ids)]).replace("{n}", str(number))
                group.create_task(
                    watch(viewer, session, url, options.token, options.seconds), name=f"viewer {number}"
                )

    asyncio.run(all_of_them())
    report = {
        "viewers": len(viewers),
        "decoding": sum(viewer.frames > 0 for viewer in viewers),
        "frames": sum(viewer.frames for viewer in viewers),
        "first_picture_ms": percentiles([v.first_ms for v in viewers if v.first_ms is not None]),
        "errors": sorted({viewer.error for viewer in viewers if viewer.error}),
    }
    print(json.dumps(report, ensure_ascii=False), flush=True)
    if report["decoding"] != len(viewers):
        raise SystemExit(1)
