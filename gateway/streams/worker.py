"""A worker process: port, plane and supervisor for its share of the cameras, told what to do by the front door.

Started as `python -m gateway.streams.worker FD PARENT_PID`; all else comes over the inherited socket, so no secret stands
in the command line or the environment. It dies with its parent: the kernel kills it (PR_SET_PDEATHSIG), and the end of the
socket ends it too. It judges nobody's rights: whoever may ask has been authorised by the front door.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import asdict
from typing import Any

import msgspec

from gateway.errors import GatewayError, Unavailable
from gateway.memory import keep_tidy, settle
from gateway.streams.cameras import CameraState
from gateway.streams.channel import Channel
from gateway.streams.hls import Container
from gateway.streams.media import StreamName
from gateway.streams.media_service import LocalMedia, MediaCallbacks
from gateway.streams.messages import (
    Answered,
    ApplyCameras,
    Beat,
    Cancel,
    Closed,
    CloseOwned,
    CloseSession,
    Done,
    Failure,
    FetchHls,
    FetchKeyframe,
    HlsAnswer,
    Keyframe,
    PictureChange,
    Publish,
    Ready,
    Record,
    Recorded,
    Refused,
    Request,
    RestartSession,
    Setup,
    States,
    Stop,
    StopRecording,
    SupervisorCounts,
    ToWorker,
    Tracks,
    Warm,
    Watch,
)

__all__ = ["main"]

log = logging.getLogger(__name__)

BEATS_A_ROUND = 16
"""In so many beats every camera and every session is reported once, and the totals too."""
BEHIND_OCTETS = 1 << 20
"""So much not taken by the front door: beats leave out the figures (the next round repeats them)."""
GC_ALLOCATIONS = 20_000
"""New containers between two looks of the collector: pictures come and go without cycles."""
LOST_OCTETS = 64 << 20
"""So much not taken: the front door is past help, and states and ends of sessions must not be dropped. The worker ends."""
PR_SET_PDEATHSIG = 1


class Worker:
    """The requests and events of one worker. Lives from Setup to the end of the process."""

    def __init__(self) -> None:
        self.channel: Channel[ToWorker] = Channel(
            msgspec.msgpack.Decoder(ToWorker), self._on_message, self._on_channel_closed
        )
        self._stopping = asyncio.Event()
        self._setup: asyncio.Future[Setup] = asyncio.get_running_loop().create_future()
        self._media: LocalMedia | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._changed: dict[str, CameraState] = {}

    async def run(self, sock: socket.socket) -> int:
        """Until Stop, the end of the channel, or SIGTERM. Returns the exit code."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopping.set)
        await self.channel.open(sock)
        setup = await self._first(self._setup)
        if setup is None:
            return 0
        _log_as(setup)
        media = LocalMedia(
            setup.spec,
            MediaCallbacks(
                state=self._on_state,
                source_change=lambda source_id, tracks: self._send(Tracks(source_id, tracks)),
                session_closed=lambda session_id, reason: self._send(Closed(session_id, reason)),
                picture=lambda camera_id: self._send_picture(media, camera_id),
                recording=lambda news: self._send(Recorded(news)),
            ),
        )
        try:
            await media.open()
        except GatewayError as error:
            self._send(Refused(0, Failure.of(error)))
            self.channel.close()
            return 1
        try:
            async with asyncio.TaskGroup() as self._tasks:
                running = [
                    self._tasks.create_task(media.run(), name="media"),
                    self._tasks.create_task(self._beat(media, setup.beat_s), name="beat"),
                    self._tasks.create_task(keep_tidy(), name="memory"),
                ]
                self._media = media
                settle(allocations=GC_ALLOCATIONS, middle=20)
                self._send(Ready(media.port_number))
                await self._stopping.wait()
                for task in (*self._under_way.values(), *reversed(running)):
                    task.cancel()
        finally:
            self._tasks = None
            await media.close()
            self.channel.close()
        return 0

    async def _first(self, setup: asyncio.Future[Setup]) -> Setup | None:
        """None: stopped before it was told anything."""
        stopped = asyncio.ensure_future(self._stopping.wait())
        stopped.add_done_callback(lambda _: setup.cancel())
        try:
            return await setup
        except asyncio.CancelledError:
            return None
        finally:
            stopped.cancel()

    # -- requests ---------------------------------------------------------------------------------------------------

    def _on_message(self, message: ToWorker) -> None:
        match message:
            case Setup():
                self._setup.set_result(message)
            case Stop():
                self._stopping.set()
            case Cancel():
                task = self._under_way.get(message.id)
                if task is not None:
                    task.cancel()
            case Request() if self._media is not None and self._tasks is not None:
                task = self._tasks.create_task(self._serve(self._media, message), name=type(message).__name__)
                self._under_way[message.id] = task
                task.add_done_callback(lambda done: self._served(message.id, done))
            case Request():
                self._send(Refused(message.id, Failure.of(Unavailable("this media worker is not up"))))

    def _served(self, number: int, task: asyncio.Task[None]) -> None:
        del self._under_way[number]
        if task.cancelled():
            self._send(Refused(number, Failure.of(Unavailable("cancelled"))))

    async def _serve(self, media: LocalMedia, request: Request) -> None:
        """The only place where one request's exceptions end."""
        try:
            self._send(await self._do(media, request))
        except GatewayError as error:
            self._send(Refused(request.id, Failure.of(error)))
        except Exception:
            log.exception("request failed unexpectedly", extra={"request": type(request).__name__})
            self._send(Refused(request.id, Failure.of(Unavailable("internal error of a media worker"))))

    async def _do(self, media: LocalMedia, request: Request) -> Answered | Done | Keyframe | HlsAnswer:
        match request:
            case Watch():
                answer = await media.watch(
                    request.source_id, request.offer, stream=request.stream, owner=request.owner
                )
            case Publish():
                answer = await media.publish(request.source_id, request.offer, owner=request.owner)
            case RestartSession():
                answer = await media.restart_session(request.session_id, request.fragment)
            case CloseSession():
                await media.close_session(request.session_id, reason=request.reason)
                return Done(request.id)
            case CloseOwned():
                return Done(request.id, await media.close_owned_by(request.owner, reason=request.reason))
            case ApplyCameras():
                await media.apply(request.cameras, request.credentials)
                self._send(States(media.states()))
                return Done(request.id)
            case Warm():
                await media.warm(request.camera_id)
                return Done(request.id)
            case Record():
                await media.record(request.order)
                return Done(request.id)
            case StopRecording():
                await media.stop_recording(request.recording_id)
                return Done(request.id)
            case FetchKeyframe():
                nal_units = media.keyframe(request.camera_id)
                digest = 0 if nal_units is None else hash(nal_units)
                return Keyframe(request.id, digest, None if digest == request.known else nal_units)
            case FetchHls():
                name, container = StreamName(request.name), Container(request.container)
                made = await media.fetch_hls(request.camera_id, name, request.file, container, request.query)
                return HlsAnswer(request.id, made.body, made.media_type)
            case _:
                raise Unavailable(f"a media worker can't {type(request).__name__}")
        # No await between here and the frame: the session's other news come after it.
        return Answered(request.id, answer, media.session(answer.session_id))

    # -- events -----------------------------------------------------------------------------------------------------

    def _send(self, message: Any) -> None:
        self.channel.send(message)
        if self.channel.waiting > LOST_OCTETS:
            log.error("the front door takes no news: this worker ends")
            self._stopping.set()

    def _on_state(self, state: CameraState) -> None:
        """What changes within one step of the loop goes in one frame."""
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._send_states)
        self._changed[state.camera_id] = state

    def _send_states(self) -> None:
        changed, self._changed = self._changed, {}
        self._send(States(list(changed.values())))

    def _send_picture(self, media: LocalMedia, camera_id: str) -> None:
        picture = media.picture(camera_id)
        if picture is not None:
            self._send(PictureChange(camera_id, picture))

    async def _beat(self, media: LocalMedia, beat_s: float) -> None:
        number = 0
        due = time.monotonic()
        while True:
            due = max(due + beat_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            lag_ms = (time.monotonic() - due) * 1000
            if self.channel.waiting > BEHIND_OCTETS:
                self._send(Beat(lag_ms, [], [], None))
                continue
            part = number % BEATS_A_ROUND
            camera_ids = media.camera_ids()[part::BEATS_A_ROUND]
            self._send(
                Beat(
                    lag_ms,
                    [media.state(camera_id) for camera_id in camera_ids],
                    [media.session(session_id) for session_id in media.session_ids()[part::BEATS_A_ROUND]],
                    _counts(media) if part == 0 else None,
                    {camera_id: media.picture(camera_id) for camera_id in camera_ids},
                    media.preroll_octets(),
                )
            )
            number += 1

    def _on_channel_closed(self) -> None:
        """The front door is gone."""
        self._stopping.set()


def _counts(media: LocalMedia) -> SupervisorCounts:
    counters, counts = media.counters(), media.counts()
    return SupervisorCounts(
        supervisor={
            name: value for name in counters.__slots__ if isinstance(value := getattr(counters, name), int)
        },
        failures=dict(counters.failures),
        faults=dict(counters.faults),
        answered=dict(counts.answered),
        closed=dict(counts.closed),
        port=dict(counts.port),
        pictures=asdict(media.picture_counters()),
    )


def _log_as(setup: Setup) -> None:
    logging.basicConfig(
        level=setup.log_level,
        format=f"%(asctime)s %(levelname)s worker {setup.number} %(name)s: %(message)s",
    )


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; if it already has, end now."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)


async def _run(sock: socket.socket) -> int:
    return await Worker().run(sock)


def main(arguments: list[str]) -> int:
    """The process: arguments are the number of the inherited socket and the parent's pid."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the front door, which stops us
    descriptor, parent = map(int, arguments)
    _die_with(parent)
    return asyncio.run(_run(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
