"""Street scenes drawn with OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["SCENES", "Scene", "scene_for", "shared"]

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    kind: str
    light: str
    title: str


SCENES: tuple[Setting, ...] = tuple(
    Setting(kind=kind, light=light, title=title)
    for kind, title in (
        ("junction", "路口"),
        ("gate", "大门"),
        ("market", "市场"),
        ("park", "公园"),
        ("plaza", "广场"),
        ("street", "街道"),
    )
    for light in ("day", "dusk", "night", "rain")
)


def scene_for(name: str, number: int) -> int:
    return number % len(SCENES)


def shared(scene: int, count: int) -> int:
    return scene % count


class Scene:
    def __init__(self, index: int, *, label: str, camera_id: str = "", period_s: float = 10) -> None:
        self.index, self.label, self.camera_id, self.period_s = index, label, camera_id, period_s
        random = np.random.default_rng(index)
        self._ground = np.full((720, 1280, 3), random.integers(40, 200, 3), np.uint8)
        self._noise = [random.normal(0, 3, (1080, 1280)).astype(np.int8) for _ in range(4)]
        font = cv2.FontFace("sans")
        cv2.putText(self._ground, f"{label}  {camera_id}", (40, 70), (255, 255, 255), font, 40, 700)

    def draw(self, t: float) -> tuple[Picture, Picture]:
        picture = self._compose(t)
        return _planar(picture), _planar(cv2.resize(picture, (640, 360), interpolation=cv2.INTER_AREA))

    def draw_main(self, t: float) -> Picture:
        return _planar(self._compose(t))

    def draw_sub(self, t: float) -> Picture:
        return _planar(cv2.resize(self._compose(t), (640, 360), interpolation=cv2.INTER_LINEAR))

    def _compose(self, t: float) -> Picture:
        picture = self._ground.copy()
        x = int(1480 * ((t / self.period_s) % 1)) - 200
        cv2.rectangle(picture, (x, 420), (x + 200, 500), (30, 30, 200), -1)
        return picture


def _planar(picture: NDArray[Any]) -> Picture:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
