"""Cameras that are encoded while they are watched, with the true clock in the picture
(simulators.timecode).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any

import cv2
import numpy as np

from simulators import clips, h264, scenes, timecode
from simulators.source import CLOCK, Picture, packed

__all__ = ["LiveSource"]

SENT_KEPT = 4096


class LiveSource:
    """One live stream: a thread that draws and encodes while somebody plays, and hands pictures to the
    loop.

    sent_ms: of the last pictures, when each was sent, by the time that stands in it (both milliseconds since 1970).
    """

    def __init__(self, recipe: clips.Recipe, stream: str, deliver: Callable[[Any, Picture], None]) -> None:
        self._recipe, self._deliver = recipe, deliver
        self._main = stream == "main"
        self._size = clips.MAIN_SIZE if self._main else clips.SUB_SIZE
        self._scene: scenes.Scene | None = None
        self._players: set[Any] = set()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._want_keyframe = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._description: tuple[str, str] | None = None
        self._at = 0  # 90 kHz, goes on over pauses
        self.sent_ms: OrderedDict[int, float] = OrderedDict()

    def description(self) -> tuple[str, str]:
        """and parameter sets; they are the same for each run of the encoder."""
        if self._description is None:
            blank = np.full((self._size[1] * 3 // 2, self._size[0]), 128, np.uint8)
            data = self._encoder().encode(blank)[0][0]
            self._description = h264.sprop(h264.access_units(data))
        return self._description

    def add(self, player: Any) -> None:
        """Plays to one more; the next picture is a keyframe, and the player waits for it."""
        player.skipping = True
        self._players.add(player)
        self._want_keyframe.set()
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="live", daemon=True)
            self._thread.start()

    def remove(self, player: Any) -> None:
        """Forgets a player; without players the encoder stops."""
        self._players.discard(player)
        if not self._players:
            self.close()

    def close(self) -> None:
        """Stops the encoder."""
        self._players.clear()
        self._stop.set()
        self._thread = None

    def _encoder(self) -> clips.Encoder:
        kbps = clips.MAIN_KBPS if self._main else clips.SUB_KBPS
        return clips.Encoder(self._size, fps=self._recipe.fps, gop=self._recipe.gop, kbps=kbps, live=True)

    def _run(self, stop: threading.Event) -> None:
        if self._scene is None:
            recipe = self._recipe
            self._scene = scenes.Scene(
                recipe.scene,
                label=recipe.label,
                camera_id=recipe.camera_id,
                variant=recipe.variant,
                period_s=recipe.seconds,
            )
        encoder, period = self._encoder(), 1 / self._recipe.fps
        started, count = time.monotonic(), 0
        while not stop.wait(max(0.0, started + count * period - time.monotonic())):
            behind = int((time.monotonic() - started) / period) - count
            if behind > 5:  # a busy machine: leave pictures out rather than fall behind the clock
                count += behind
            now_ms = time.time_ns() // 1_000_000
            picture = self._draw(count * period, now_ms)
            keyframe = self._want_keyframe.is_set()
            self._want_keyframe.clear()
            data = b"".join(chunk for chunk, _ in encoder.encode(picture, keyframe=keyframe))
            for unit in h264.access_units(data):
                at = self._at + count * CLOCK // self._recipe.fps
                with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                    self._loop.call_soon_threadsafe(self._publish, stop, packed(unit, at), now_ms)
            count += 1
        self._at += count * CLOCK // self._recipe.fps

    def _draw(self, at_s: float, now_ms: int) -> clips.Picture:
        assert self._scene is not None
        picture = self._scene.draw_main(at_s) if self._main else self._scene.draw_sub(at_s)
        width, height = self._size
        text = datetime.fromtimestamp(now_ms / 1000).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        scale = width / 1280
        luma = picture[:height]
        origin = (int(760 * scale), int(690 * scale))
        cv2.putText(luma, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 1.2 * scale, 16, int(6 * scale) or 1)
        cv2.putText(luma, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 1.2 * scale, 235, int(2 * scale) or 1)
        timecode.write(luma, now_ms)
        return picture

    def _publish(self, stop: threading.Event, picture: Picture, drawn_ms: int) -> None:
        if stop.is_set():
            return
        self.sent_ms[drawn_ms] = time.time_ns() / 1e6
        if len(self.sent_ms) > SENT_KEPT:
            self.sent_ms.popitem(last=False)
        for player in tuple(self._players):
            self._deliver(player, picture)
