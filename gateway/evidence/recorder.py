"""The thread that writes recordings: samples go in from the loop, files and news come out.

The loop never waits: `Intake.put` appends to a queue that this thread empties four times a second. Drop rule: when a
recording's queue is full (`QUEUE_OCTETS`, `QUEUE_SAMPLES`: the disk is slower than the media), everything is dropped until
half of it is free again and a keyframe comes; that becomes a gap of the file, with the reason `slow_disk`.

The disk is looked at before it is full: below `stop_octets` of free space every recording ends, its file closed properly.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ProtocolError
from gateway.evidence.order import DISK_FULL, NO_MEDIA, Finished, News, RecordingOrder
from gateway.evidence.recording import Begun, Gap, Sample, Segment, SegmentWriter

__all__ = ["Intake", "Recorder"]

logger = logging.getLogger(__name__)

BATCH_S = 0.25
DISK_LOOK_S = 1.0
QUEUE_OCTETS = 4_000_000
QUEUE_SAMPLES = 3_000
SLOW_DISK = "slow_disk"


@dataclass(frozen=True, slots=True)
class _Sound:
    """The codec that is expected from here on."""

    codec: str | None


_Entry = Sample | Gap | Finished | _Sound


class Intake:
    """The loop's end of one recording. After `close` it takes nothing more."""

    def __init__(self, order: RecordingOrder) -> None:
        self.order = order
        self.queue: deque[_Entry] = deque()
        self.octets = 0  # put, less taken: each side changes its own number
        self.taken = 0
        self.dropped = 0
        self.closed = False
        self._skipping_since: int | None = None

    @property
    def skipping(self) -> bool:
        return self._skipping_since is not None

    def put(self, sample: Sample, *, has_video: bool = True) -> None:
        """Takes a sample or drops it. has_video: false while the source has no picture that could begin anew."""
        if self.closed:
            return
        waiting = self.octets - self.taken
        if self._skipping_since is not None:
            begins = sample.keyframe or not has_video
            if not begins or waiting > QUEUE_OCTETS // 2 or len(self.queue) > QUEUE_SAMPLES // 2:
                self.dropped += 1
                return
            since, self._skipping_since = self._skipping_since, None
            self.queue.append(Gap(from_at=since, to_at=sample.received_ms, reason=SLOW_DISK))
        elif waiting > QUEUE_OCTETS or len(self.queue) > QUEUE_SAMPLES:
            self._skipping_since = sample.received_ms
            self.dropped += 1
            return
        self.octets += sample.size
        self.queue.append(sample)

    def expect(self, sound: str | None) -> None:
        """The codec of the sound that may join the pictures from here on; None: there is none."""
        if not self.closed:
            self.queue.append(_Sound(sound))

    def gap(self, from_at: int, to_at: int, reason: str) -> None:
        """Media is missing between these moments."""
        if not self.closed and not self.skipping:
            self.queue.append(Gap(from_at=from_at, to_at=to_at, reason=reason))

    def close(self, reason: str = "") -> None:
        """Nothing more comes. The news of its end follows when the file is finished."""
        if not self.closed:
            self.closed = True
            self.queue.append(Finished(reason=reason))


class _Writing:
    """One recording on the thread."""

    def __init__(self, intake: Intake, writer: SegmentWriter) -> None:
        self.intake = intake
        self.writer = writer
        self.segments = 0


class Recorder:
    """All recordings of one process. `tell` is called on the thread: hand over to the loop there."""

    def __init__(self, directory: Path, *, stop_octets: int, tell: Callable[[News], None]) -> None:
        self._directory = directory
        self._stop_octets = stop_octets
        self._tell = tell
        self._new: deque[_Writing] = deque()
        self._running: list[_Writing] = []
        self._stopping = threading.Event()
        self._looked_at = float("-inf")
        self._full = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def record(self, order: RecordingOrder) -> Intake:
        """A new recording."""
        intake = Intake(order)

        def begun(news: Begun) -> None:
            self._tell(News(recording_id=order.id, begun=news))

        def ended(segment: Segment) -> None:
            writing.segments += 1
            self._tell(News(recording_id=order.id, segment=segment))

        writer = SegmentWriter(
            self._directory,
            order.file,
            first_number=order.first_number,
            on_begin=begun,
            on_end=ended,
        )
        writing = _Writing(intake, writer)
        self._new.append(writing)
        return intake

    def stop(self) -> None:
        """Finish every file and end the thread. Blocking: for a thread, or where nobody waits any more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- on the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            stopping = self._stopping.wait(BATCH_S)
            while self._new:
                self._running.append(self._new.popleft())
            self._look_at_disk()
            if stopping:
                for writing in self._running:
                    writing.intake.close("stopped")
            self._running = [writing for writing in self._running if self._drain(writing)]
            if stopping:
                return

    def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < DISK_LOOK_S:
            return
        self._looked_at = now
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._full = shutil.disk_usage(self._directory).free < self._stop_octets
        except OSError as error:
            logger.error("the evidence directory can't be looked at: %s", error)
            self._full = True
        if self._full and self._running:
            logger.error("recording stops before the disk is full", extra={"recordings": len(self._running)})

    def _drain(self, writing: _Writing) -> bool:
        """Writes what waits. False when the recording has ended. The only place where one recording's exceptions end."""
        if self._full:
            self._end(writing, DISK_FULL)
            return False
        queue = writing.intake.queue
        try:
            while queue:
                entry = queue.popleft()
                match entry:
                    case Sample():
                        writing.intake.taken += entry.size
                        self._write(writing, entry)
                    case _Sound():
                        writing.writer.expect(entry.codec)
                    case Gap():
                        writing.writer.gap(entry)
                    case Finished():
                        self._end(writing, entry.reason)
                        return False
        except OSError as error:  # PyAV's errors of the operating system are of this class, too
            self._end(writing, f"disk: {error.strerror or error}")
            return False
        except Exception as error:
            logger.exception("recording %s failed", writing.intake.order.id)
            self._end(writing, f"failed: {error}")
            return False
        return True

    def _write(self, writing: _Writing, sample: Sample) -> None:
        try:
            writing.writer.write(sample)
        except ProtocolError as error:
            writing.intake.dropped += 1
            if writing.intake.dropped == 1:
                logger.warning("recording %s leaves out a sample: %s", writing.intake.order.id, error)

    def _end(self, writing: _Writing, reason: str) -> None:
        writing.intake.closed = True
        writing.intake.queue.clear()
        try:
            writing.writer.close()
        except Exception as error:
            logger.exception("the file of recording %s can't be finished", writing.intake.order.id)
            reason = reason or f"failed: {error}"
        if not writing.segments and not reason:
            reason = NO_MEDIA
        self._tell(News(recording_id=writing.intake.order.id, finished=Finished(reason=reason)))
