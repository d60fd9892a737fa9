"""The media side of a simulated gridworker's call: claim, WHIP out, WHEP in, hang up."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import aiohttp
import av
import numpy as np
from aiortc import AudioStreamTrack, RTCPeerConnection, RTCRtpSender, RTCSessionDescription, VideoStreamTrack

from simulators import scenes
from simulators.viewers import Viewer, exchange, watch

__all__ = ["Outcome", "answer"]


@dataclass(slots=True)
class Outcome:
    """What came of answering one call. taken_by: who was first, when it was not us."""

    claimed: bool = False
    taken_by: str = ""
    watched: dict[str, Viewer] = field(default_factory=dict)
    error: str = ""


class Phone(VideoStreamTrack):
    """The rear camera of a phone: a scene of its own, 640x360 at 15 pictures a second."""

    def __init__(self, worker_id: str) -> None:
        super().__init__()
        number = int("".join(filter(str.isdigit, worker_id)) or 0)
        self._scene = scenes.Scene(
            number % len(scenes.SCENES), label="现场", camera_id=worker_id, variant=number
        )
        self._count, self._started = 0, time.monotonic()

    async def recv(self) -> Any:
        """The next picture, in time."""
        at = self._count / 15
        await asyncio.sleep(max(0.0, self._started + at - time.monotonic()))
        frame: Any = av.VideoFrame.from_ndarray(self._scene.draw_sub(at), format="yuv420p")
        frame.pts, frame.time_base = self._count * 6000, Fraction(1, 90000)
        self._count += 1
        return frame


class Voice(AudioStreamTrack):
    """A hum with a beat, 48 kHz mono in 20 ms frames: to be heard and told apart."""

    def __init__(self, pitch_hz: float) -> None:
        super().__init__()
        self._pitch_hz, self._count, self._started = pitch_hz, 0, time.monotonic()

    async def recv(self) -> Any:
        """The next 20 ms, in time."""
        await asyncio.sleep(max(0.0, self._started + self._count / 48000 - time.monotonic()))
        at = (self._count + np.arange(960)) / 48000
        samples = 6000 * np.sin(2 * np.pi * self._pitch_hz * at) * (0.5 + 0.5 * np.sin(2 * np.pi * 2 * at))
        frame: Any = av.AudioFrame.from_ndarray(
            samples.astype(np.int16).reshape(1, -1), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 48000, self._count, Fraction(1, 48000)
        self._count += 960
        return frame


async def answer(
    session: aiohttp.ClientSession, url: str, call_id: str, worker_id: str, token: str, *, talk_s: float
) -> Outcome:
    """Answers one call with real media and hangs up after `talk_s` seconds, or when the call ends before.

    url: the gateway. Refusals and lost connections are told in the outcome, not raised.
    """
    outcome = Outcome()
    base = f"{url.rstrip('/')}/api/v1/calls/{call_id}"
    headers = {"Authorization": f"Bearer {token}"}
    peer = RTCPeerConnection()
    watching: dict[str, asyncio.Task[None]] = {}
    try:
        async with session.post(f"{base}/claim", json={}, headers=headers) as reply:
            body = await reply.json(content_type=None)
            if reply.status == 409:
                outcome.taken_by = str(body.get("taken_by", ""))
                return outcome
            if reply.status != 200:
                raise ValueError(f"claim: HTTP {reply.status}: {body}")
        leg = str(body["leg"])
        outcome.claimed = True
        peer.addTrack(Voice(180 + 20 * (len(worker_id) + int(worker_id[-1:], 36) % 9)))
        video = peer.addTransceiver(Phone(worker_id), direction="sendonly")
        # H.264 alone, so that the call can be recorded and shown without transcoding.
        h264 = [c for c in RTCRtpSender.getCapabilities("video").codecs if c.mimeType == "video/H264"]
        video.setCodecPreferences(h264)
        await peer.setLocalDescription(await peer.createOffer())
        sdp, _ = await exchange(session, f"{base}/legs/{leg}/whip", peer.localDescription.sdp, token)
        await peer.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="answer"))
        end = time.monotonic() + talk_s
        async with asyncio.TaskGroup() as group:
            while (left := end - time.monotonic()) > 0:
                legs = await _open_legs(session, url, call_id, headers)
                if legs is None:
                    break  # the other side hung up
                for other in legs:
                    if other != leg and other not in watching:
                        viewer = outcome.watched[other] = Viewer()
                        watching[other] = group.create_task(
                            watch(viewer, session, f"{base}/legs/{other}/whep", token, left),
                            name=f"watch {other}",
                        )
                await asyncio.sleep(min(left, 0.5))
            for task in watching.values():
                task.cancel()
        async with session.post(f"{base}/hangup", json={}, headers=headers):
            pass
    except (ValueError, KeyError, TypeError, AttributeError, OSError, aiohttp.ClientError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    finally:
        await peer.close()
    return outcome


async def _open_legs(
    session: aiohttp.ClientSession, url: str, call_id: str, headers: dict[str, str]
) -> list[str] | None:
    """Ids of the legs that publish; None when the call is over."""
    async with session.get(f"{url.rstrip('/')}/api/v1/calls", params={"open": "1"}, headers=headers) as reply:
        calls = (await reply.json(content_type=None))["calls"]
    call = next((call for call in calls if call["id"] == call_id), None)
    if call is None:
        return None
    return [str(leg["id"]) for leg in call["legs"] if leg["publishing"] and not leg["left_at"]]
