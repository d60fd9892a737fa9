"""Street scenes drawn with OpenCV: six kinds of place in four kinds of light, varied by a seed.

A scene is a still background, drawn once, and actors that move on it. Every motion repeats after
`period_s`, so that a clip of that length loops without a seam. Nothing is photographed: nobody's face is in
these pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["SCENES", "Scene", "scene_for", "shared"]

Picture = NDArray[np.uint8]
Color = tuple[float, float, float]  # blue, green, red
Actor = Callable[[Picture, float], None]  # draws itself at a share 0..1 of the period

WIDTH, HEIGHT = 1280, 720
LIGHTS = ("day", "dusk", "night", "rain")
KINDS = (
    ("junction", "路口"),
    ("gate", "大门"),
    ("market", "市场"),
    ("park", "公园"),
    ("plaza", "广场"),
    ("street", "街道"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A kind of place in one light."""

    kind: str
    light: str
    title: str


SCENES: tuple[Setting, ...] = tuple(
    Setting(kind=kind, light=light, title=title) for kind, title in KINDS for light in LIGHTS
)

_KEYWORDS = (
    ("junction", ("路口",)),
    ("market", ("市场", "卸货", "货运")),
    ("park", ("公园", "步道", "湖边", "健身")),
    ("plaza", ("广场", "运动场", "操场", "停车场")),
    ("street", ("商业街", "步行街", "公交站")),
    ("gate", ("门", "中心", "入口", "站口", "厂房")),
)

# sky above, sky below, and how much of a surface's own colour is left
_SKY: dict[str, tuple[Color, Color, Color]] = {
    "day": ((214, 158, 96), (240, 220, 190), (1.0, 1.0, 1.0)),
    "dusk": ((110, 66, 84), (110, 160, 246), (0.72, 0.74, 0.92)),
    "night": ((44, 24, 16), (88, 58, 40), (0.50, 0.40, 0.36)),
    "rain": ((140, 130, 122), (178, 172, 166), (0.72, 0.70, 0.66)),
}
_CARS: tuple[Color, ...] = (
    (40, 40, 200), (200, 120, 40), (235, 235, 235), (60, 60, 60), (60, 180, 235), (150, 150, 150),
    (90, 140, 60),
)  # fmt: skip
_CLOTHES: tuple[Color, ...] = (
    (60, 60, 210), (190, 90, 50), (70, 160, 70), (50, 170, 230), (170, 70, 150), (220, 220, 220),
    (80, 80, 80),
)  # fmt: skip
_SKIN: Color = (150, 185, 225)


def scene_for(name: str, number: int) -> int:
    """Index of the scene that suits a camera's name; the light goes round with the number."""
    kinds = [kind for kind, _ in KINDS]
    kind = next((kind for kind, words in _KEYWORDS if any(word in name for word in words)), None)
    index = kinds.index(kind) if kind is not None else number % len(kinds)
    return index * len(LIGHTS) + number % len(LIGHTS)


def shared(scene: int) -> int:
    """The scene of the same kind that cameras without a clip of their own share: by day or by night only."""
    return scene // len(LIGHTS) * len(LIGHTS) + (0 if scene % len(LIGHTS) in (0, 3) else 2)


def _planar(picture: NDArray[Any]) -> Picture:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)


class Scene:
    """One scene. label and camera_id are burnt in; variant changes layout and colours."""

    def __init__(
        self, index: int, *, label: str, camera_id: str = "", variant: int = 0, period_s: float = 10
    ) -> None:
        self.setting = SCENES[index]
        self.period_s = period_s
        self._random = Random(f"{index}|{variant}")
        self._tint = _SKY[self.setting.light][2]
        self._lit = self.setting.light in ("night", "dusk")
        self._actors: list[tuple[float, Actor]] = []
        self._back = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        self._paint_sky()
        getattr(self, f"_{self.setting.kind}")()
        if self.setting.light == "rain":
            self._rain()
        self._actors.sort(key=lambda pair: pair[0])  # far to near
        noise = np.random.default_rng(variant)
        self._noise = [noise.integers(0, 7, (HEIGHT + 64, WIDTH), dtype=np.uint8) for _ in range(3)]
        self._caption(label, camera_id)

    # -- drawing --

    def draw(self, t: float) -> tuple[Picture, Picture]:
        """Main (1280x720) and sub (640x360) picture at t seconds, as planar YUV 4:2:0."""
        picture = self._compose(t)
        small = cv2.resize(picture, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        return self._grain(_planar(picture), t), _planar(small)

    def draw_main(self, t: float) -> Picture:
        """The main picture alone, without grain."""
        return _planar(self._compose(t))

    def draw_sub(self, t: float) -> Picture:
        """The sub picture alone."""
        return _planar(cv2.resize(self._compose(t), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA))

    def _compose(self, t: float) -> Picture:
        share = t / self.period_s % 1.0
        picture = self._back.copy()
        for _, actor in self._actors:
            actor(picture, share)
        picture[14 : 14 + self._strip.shape[0], 16 : 16 + self._strip.shape[1]] = self._strip
        if self._badge is not None:
            height, width = self._badge.shape[:2]
            picture[HEIGHT - 16 - height : HEIGHT - 16, 16 : 16 + width] = self._badge
        return picture

    def _grain(self, planar: Picture, t: float) -> Picture:
        """Sensor noise on the luma: a camera's stream never goes down to nothing."""
        step = round(t * 25)
        noise = self._noise[step % 3][step * 13 % 64 :][:HEIGHT]
        cv2.add(planar[:HEIGHT], noise, planar[:HEIGHT])
        return planar

    def _caption(self, label: str, camera_id: str) -> None:
        font: Any = cv2.FontFace("sans")

        def plate(text: str, size: int, weight: int, back: Color, fore: Color) -> Picture:
            canvas = np.zeros((size * 3 // 2 + 6, size * len(text) + 80, 3), np.uint8)
            end, _ = cv2.putText(canvas, text, (14, size + 6), (255, 255, 255), font, size, weight)
            width = min(canvas.shape[1], int(end[0]) + 14) // 2 * 2
            mask = canvas[:, :width, :1].astype(np.float32) / 255
            return np.asarray(np.array(back) * (1 - mask) + np.array(fore) * mask, np.uint8)

        self._strip = plate(label, 30, 600, (40, 34, 28), (255, 255, 255))
        self._badge = plate(camera_id.upper(), 58, 800, (30, 26, 20), (110, 230, 255)) if camera_id else None

    def _c(self, color: Color) -> Color:
        """A surface's colour in this light."""
        tint = self._tint
        return (color[0] * tint[0], color[1] * tint[1], color[2] * tint[2])

    def _box(self, x1: float, y1: float, x2: float, y2: float, color: Color) -> None:
        cv2.rectangle(self._back, (int(x1), int(y1)), (int(x2), int(y2)), color, -1)

    def _poly(self, points: list[tuple[float, float]], color: Color) -> None:
        cv2.fillPoly(self._back, [np.array(points, np.int32)], color, cv2.LINE_AA)

    # -- backgrounds --

    def _paint_sky(self) -> None:
        top, bottom, _ = _SKY[self.setting.light]
        ramp = np.linspace(0, 1, 340)[:, None, None]
        self._back[:340] = (np.array(top) * (1 - ramp) + np.array(bottom) * ramp).astype(np.uint8)
        if self.setting.light == "dusk":
            cv2.circle(
                self._back, (self._random.randint(200, 1080), 215), 46, (140, 214, 255), -1, cv2.LINE_AA
            )
        if self.setting.light == "night":
            for _ in range(70):
                x, y = self._random.randrange(WIDTH), self._random.randrange(200)
                cv2.circle(self._back, (x, y), 1, (200, 200, 200), -1)
        if self.setting.light == "day":
            for _ in range(4):
                x, y = self._random.randint(60, 1220), self._random.randint(70, 150)
                for dx, r in ((-46, 22), (0, 34), (44, 24), (80, 15)):
                    cv2.circle(self._back, (x + dx, y), r, (250, 246, 242), -1, cv2.LINE_AA)

    def _skyline(self, foot: int, low: int, high: int) -> None:
        """Houses side by side from edge to edge, some windows lit in the evening."""
        random, x = self._random, -20
        walls: tuple[Color, ...] = (
            (170, 190, 205), (150, 165, 200), (190, 190, 190), (140, 175, 190), (205, 205, 225),
            (165, 150, 140),
        )  # fmt: skip
        while x < WIDTH:
            width, top = random.randint(80, 180), foot - random.randint(low, high)
            self._box(x, top, x + width - 6, foot, self._c(random.choice(walls)))
            self._box(x, top - 8, x + width - 6, top, self._c((90, 90, 120)))
            for wy in range(top + 16, foot - 26, 34):
                for wx in range(x + 14, x + width - 30, 32):
                    lit = self._lit and random.random() < 0.55
                    self._box(wx, wy, wx + 16, wy + 20, (120, 210, 250) if lit else self._c((150, 130, 100)))
            x += width

    def _tree(self, x: int, foot: int, size: float) -> None:
        self._box(x - 5 * size, foot - 60 * size, x + 5 * size, foot, self._c((50, 75, 105)))
        greens: tuple[Color, ...] = ((60, 130, 60), (70, 150, 80), (50, 110, 60), (80, 165, 100))
        for _ in range(9):
            dx, dy = self._random.uniform(-34, 34) * size, self._random.uniform(-125, -62) * size
            color = self._c(self._random.choice(greens))
            cv2.circle(self._back, (int(x + dx), int(foot + dy)), int(28 * size), color, -1, cv2.LINE_AA)

    def _lamp(self, x: int, foot: int, height: int) -> None:
        self._box(x - 3, foot - height, x + 3, foot, self._c((80, 80, 80)))
        self._box(x - 26, foot - height, x + 3, foot - height + 5, self._c((80, 80, 80)))
        if self._lit:
            glow = self._back.copy()
            pool = [(x - 22, foot - height + 6), (x - 120, foot + 40), (x + 76, foot + 40)]
            cv2.fillPoly(glow, [np.array(pool, np.int32)], (150, 220, 255), cv2.LINE_AA)
            cv2.addWeighted(glow, 0.16, self._back, 0.84, 0, self._back)
            cv2.circle(self._back, (x - 22, foot - height + 6), 8, (210, 245, 255), -1, cv2.LINE_AA)

    def _text(self, text: str, x: int, y: int, size: int, color: Color) -> None:
        font: Any = cv2.FontFace("sans")
        cv2.putText(self._back, text, (x, y), color, font, size, 700)

    # -- actors --

    def _add(self, depth: float, actor: Actor) -> None:
        self._actors.append((depth, actor))

    def _passing(self, laps: int) -> Callable[[float], float]:
        """Where something is that crosses the picture `laps` times a period, in pixels from -200 to WIDTH +
        200.
        """
        start = self._random.random()
        return lambda share: (start + laps * share) % 1.0 * (WIDTH + 400) - 200

    def _car(self, y: int, scale: float, laps: int, *, bus: bool = False) -> None:
        paint = self._c((60, 150, 60) if bus else self._random.choice(_CARS))
        glass, tyre, lit = self._c((130, 100, 70)), (25, 25, 25), self._lit
        where = self._passing(laps)
        long, tall = (270, 96) if bus else (150, 34)
        ahead = 1 if laps > 0 else -1

        def actor(picture: Picture, share: float) -> None:
            x = where(share)

            def at(dx: float, dy: float) -> tuple[int, int]:
                return int(x + dx * scale * ahead), int(y - dy * scale)

            cv2.ellipse(
                picture, at(0, 2), (int(long * 0.52 * scale), int(9 * scale)), 0, 0, 360, (30, 30, 30), -1
            )
            cv2.rectangle(picture, at(-long / 2, 14), at(long / 2, 14 + tall), paint, -1)
            if bus:
                for k in range(6):
                    cv2.rectangle(picture, at(-122 + k * 41, 62), at(-90 + k * 41, 98), glass, -1)
            else:
                roof = np.array([at(-52, 48), at(-30, 76), at(26, 76), at(50, 48)], np.int32)
                cv2.fillPoly(picture, [roof], paint, cv2.LINE_AA)
                window = np.array([at(-40, 50), at(-25, 70), at(20, 70), at(38, 50)], np.int32)
                cv2.fillPoly(picture, [window], glass, cv2.LINE_AA)
            for dx in (-long * 0.31, long * 0.31):
                cv2.circle(picture, at(dx, 14), int(15 * scale), tyre, -1, cv2.LINE_AA)
                cv2.circle(picture, at(dx, 14), int(7 * scale), (150, 150, 150), -1, cv2.LINE_AA)
            if lit:
                cv2.circle(picture, at(long / 2, 32), int(8 * scale), (220, 250, 255), -1, cv2.LINE_AA)
                cv2.circle(picture, at(-long / 2, 34), int(6 * scale), (40, 40, 250), -1, cv2.LINE_AA)

        self._add(y, actor)

    def _person(
        self,
        y: int,
        scale: float,
        laps: int,
        *,
        x: float | None = None,
        sway: float = 0.0,
        bike: bool = False,
    ) -> None:
        """Somebody who walks (or rides) through, or stands at x and sways: waits, works or dances."""
        random = self._random
        shirt, trousers = self._c(random.choice(_CLOTHES)), self._c((70, 55, 45))
        skin, hair = self._c(_SKIN), (25, 25, 30)
        where = self._passing(laps)
        phase, steps = random.random(), 9 * abs(laps) + 8
        umbrella = self._c(random.choice(_CLOTHES)) if self.setting.light == "rain" else None

        def actor(picture: Picture, share: float) -> None:
            swing = math.sin(2 * math.pi * (steps * share + phase))
            px = where(share) if x is None else x + sway * swing
            legs = 10 * swing if x is None or sway else 0.0

            def at(dx: float, dy: float) -> tuple[int, int]:
                return int(px + dx * scale), int(y - dy * scale)

            thick = max(2, int(8 * scale))
            if bike:
                for dx in (-26, 26):
                    cv2.circle(
                        picture,
                        at(dx, 16),
                        int(16 * scale),
                        (40, 40, 40),
                        max(1, int(3 * scale)),
                        cv2.LINE_AA,
                    )
                cv2.line(picture, at(-26, 16), at(26, 16), shirt, thick, cv2.LINE_AA)
            cv2.line(picture, at(0, 44), at(legs, 0), trousers, thick, cv2.LINE_AA)
            cv2.line(picture, at(0, 44), at(-legs, 0), trousers, thick, cv2.LINE_AA)
            cv2.rectangle(picture, at(-12, 86), at(12, 42), shirt, -1)
            arms = 16 * swing
            cv2.line(picture, at(-12, 82), at(-16 - arms / 3, 54 + abs(arms)), shirt, thick, cv2.LINE_AA)
            cv2.line(picture, at(12, 82), at(16 + arms / 3, 54 + abs(arms)), shirt, thick, cv2.LINE_AA)
            cv2.circle(picture, at(0, 99), int(11 * scale), skin, -1, cv2.LINE_AA)
            cv2.ellipse(
                picture, at(0, 102), (int(11 * scale), int(10 * scale)), 0, 180, 360, hair, -1, cv2.LINE_AA
            )
            if umbrella is not None:
                size = (int(36 * scale), int(24 * scale))
                cv2.ellipse(picture, at(0, 112), size, 0, 180, 360, umbrella, -1, cv2.LINE_AA)

        self._add(y, actor)

    def _rain(self) -> None:
        random = self._random
        drops = [(random.randrange(WIDTH), random.random(), random.randint(10, 24)) for _ in range(110)]

        def actor(picture: Picture, share: float) -> None:
            for x, start, length in drops:
                y = int((start + 14 * share) % 1.0 * (HEIGHT + 40)) - 20
                cv2.line(picture, (x, y), (x - 4, y + length), (205, 200, 195), 1)

        self._add(9999, actor)

    # -- kinds of place --

    def _junction(self) -> None:
        self._skyline(350, 90, 250)
        self._box(0, 350, WIDTH, HEIGHT, self._c((150, 160, 165)))
        asphalt, white = self._c((88, 86, 84)), self._c((235, 235, 235))
        self._poly([(590, 350), (690, 350), (1180, HEIGHT), (100, HEIGHT)], asphalt)
        self._box(0, 430, WIDTH, 600, asphalt)
        for x in range(0, WIDTH, 110):
            self._box(x, 512, x + 56, 517, self._c((60, 200, 240)))
        for k in range(11):
            x = 200 + k * 84
            self._poly([(x, 618), (x + 42, 618), (x + 36, 672), (x - 12, 672)], white)
        for x in (230, 1060):
            self._tree(x, 426, 0.9)
        self._lamp(140, 430, 240)
        self._lamp(1180, 430, 240)
        self._box(402, 250, 408, 428, self._c((60, 60, 60)))
        self._box(392, 236, 418, 316, (20, 20, 20))
        self._add(0, self._signal)
        for y, scale, laps in (
            (478, 0.85, -2),
            (478, 0.85, -2),
            (572, 1.15, 2),
            (572, 1.15, 3),
            (490, 0.9, -3),
        ):
            self._car(y, scale, laps)
        self._person(664, 1.0, 1)
        self._person(650, 1.0, -1)
        self._person(670, 1.0, 1)
        self._person(596, 0.85, 2, bike=True)

    def _signal(self, picture: Picture, share: float) -> None:
        on = 0 if share < 0.45 else 1 if share < 0.5 else 2
        for k, color in enumerate(((50, 50, 240), (40, 200, 250), (90, 230, 60))):
            shown = color if k == on else (45, 45, 45)
            cv2.circle(picture, (405, 250 + 26 * k), 10, shown, -1, cv2.LINE_AA)

    def _gate(self) -> None:
        self._skyline(330, 110, 240)
        self._box(0, 330, WIDTH, 470, self._c((150, 175, 195)))
        for x in range(0, WIDTH, 40):
            self._box(x, 352, x + 4, 462, self._c((60, 60, 70)))
        self._box(0, 470, WIDTH, HEIGHT, self._c((165, 172, 176)))
        self._poly([(430, 470), (850, 470), (1150, HEIGHT), (130, HEIGHT)], self._c((98, 96, 94)))
        for x in (400, 840):
            self._box(x, 210, x + 44, 476, self._c((70, 90, 160)))
        self._box(384, 176, 900, 226, self._c((40, 50, 170)))
        self._text("欢迎回家" if self._random.random() < 0.5 else "平安校园", 560, 214, 36, (190, 240, 255))
        self._box(900, 380, 1010, 500, self._c((210, 215, 220)))
        self._box(915, 400, 995, 450, (130, 220, 250) if self._lit else self._c((160, 140, 110)))
        self._tree(140, 500, 1.25)
        self._tree(1150, 500, 1.3)
        self._lamp(300, 520, 270)
        laps = self._random.choice((1, 2))

        def barrier(picture: Picture, share: float) -> None:
            lift = max(0.0, math.sin(2 * math.pi * laps * share)) * 1.2
            for k in range(8):
                near = (880 - 52 * k * math.cos(lift), 520 - 52 * k * math.sin(lift))
                far = (880 - 52 * (k + 1) * math.cos(lift), 520 - 52 * (k + 1) * math.sin(lift))
                color = (50, 50, 230) if k % 2 else (240, 240, 240)
                cv2.line(
                    picture, (int(near[0]), int(near[1])), (int(far[0]), int(far[1])), color, 9, cv2.LINE_AA
                )
            cv2.rectangle(picture, (866, 500), (896, 590), (60, 170, 240), -1)

        self._add(520, barrier)
        self._car(700, 1.3, -1)
        for y, scale, speed in (
            (560, 0.95, 1),
            (600, 1.05, -1),
            (640, 1.15, 1),
            (575, 1.0, -2),
            (650, 1.2, 1),
        ):
            self._person(y, scale, speed)
        self._person(590, 1.05, 1, x=985, sway=2)

    def _market(self) -> None:
        self._box(0, 0, WIDTH, 150, self._c((95, 105, 115)))
        for x in range(40, WIDTH, 180):
            self._box(x, 44, x + 110, 56, (235, 250, 255))
        self._box(0, 150, WIDTH, HEIGHT, self._c((140, 150, 158)))
        awnings: tuple[Color, ...] = ((50, 60, 210), (70, 150, 50), (200, 120, 40), (40, 160, 235))
        goods: tuple[Color, ...] = (
            (50, 60, 220),
            (60, 190, 90),
            (40, 160, 250),
            (60, 220, 240),
            (150, 70, 140),
        )
        names = ("蔬菜", "水果", "豆瓣", "鲜肉", "水产", "干货", "粮油", "熟食")
        for row, (top, high, step) in enumerate(((150, 110, 215), (330, 130, 260))):
            for k in range(-1, 7):
                x = k * step + row * 60
                color = self._c(self._random.choice(awnings))
                for s in range(6):
                    part = self._c((240, 240, 240)) if s % 2 else color
                    w = (step - 24) / 6
                    self._poly(
                        [
                            (x + s * w + 10, top),
                            (x + (s + 1) * w + 10, top),
                            (x + (s + 1) * w, top + 44),
                            (x + s * w, top + 44),
                        ],
                        part,
                    )
                self._box(x + 4, top + high - 34, x + step - 30, top + high + 26, self._c((70, 110, 150)))
                for _ in range(46):
                    gx = int(x + 12 + self._random.random() * (step - 52))
                    gy = int(top + high - 30 + self._random.random() * 30)
                    cv2.circle(self._back, (gx, gy), 7, self._c(self._random.choice(goods)), -1, cv2.LINE_AA)
                self._text(
                    self._random.choice(names), int(x + step / 2 - 44), top + 78, 28, self._c((255, 255, 255))
                )
        for y, scale in (
            (318, 0.7),
            (322, 0.72),
            (520, 0.95),
            (540, 1.0),
            (560, 1.05),
            (610, 1.2),
            (650, 1.3),
            (690, 1.4),
        ):
            self._person(y, scale, self._random.choice((1, -1, 1, -1, 2)))
            self._person(y + 8, scale, self._random.choice((1, -1)))
        for x in (180, 520, 800, 1120):
            self._person(430, 0.8, 1, x=x, sway=3)
        self._person(600, 1.15, 1, bike=True)

    def _park(self) -> None:
        self._skyline(300, 40, 130)
        self._box(0, 300, WIDTH, HEIGHT, self._c((80, 165, 110)))
        for _ in range(500):
            x, y = self._random.randrange(WIDTH), self._random.randint(310, HEIGHT)
            self._box(x, y, x + 2, y + 5, self._c((60, 140, 90)))
        cv2.ellipse(self._back, (450, 420), (400, 80), 0, 0, 360, self._c((200, 160, 95)), -1, cv2.LINE_AA)
        cv2.ellipse(self._back, (450, 420), (400, 80), 0, 0, 360, self._c((150, 170, 180)), 8, cv2.LINE_AA)
        self._poly([(0, 560), (WIDTH, 520), (WIDTH, 600), (0, 660)], self._c((150, 185, 205)))
        for x, size in ((70, 1.0), (230, 0.8), (950, 1.1), (1090, 1.5), (1220, 1.0), (820, 0.8)):
            self._tree(x, 400 + int(30 * size), size)
        self._lamp(700, 530, 220)
        self._box(840, 500, 960, 512, self._c((50, 80, 130)))
        self._box(850, 512, 858, 540, self._c((60, 60, 60)))
        self._box(942, 512, 950, 540, self._c((60, 60, 60)))
        glints = [(self._random.randint(120, 780), self._random.randint(370, 470)) for _ in range(26)]
        bright = self._c((245, 225, 190))

        def water(picture: Picture, share: float) -> None:
            for k, (x, y) in enumerate(glints):
                shift = int(14 * math.sin(2 * math.pi * (2 * share + k / 9)))
                cv2.line(picture, (x + shift, y), (x + shift + 26, y), bright, 2)
            for k in range(3):
                angle = 2 * math.pi * (share + k / 12)
                x, y = int(450 + 230 * math.cos(angle)), int(420 + 40 * math.sin(angle))
                cv2.ellipse(picture, (x, y), (20, 9), 0, 0, 360, (240, 245, 250), -1, cv2.LINE_AA)
                cv2.circle(picture, (x + 18, y - 12), 7, (240, 245, 250), -1, cv2.LINE_AA)

        self._add(1, water)
        for y, scale, laps in (
            (585, 0.95, 2),
            (600, 1.0, -1),
            (612, 1.0, 1),
            (626, 1.05, -2),
            (590, 0.95, 1),
        ):
            self._person(y, scale, laps)
        self._person(630, 1.1, 2, bike=True)
        for x in (620, 700, 780):
            self._person(700, 1.2, 1, x=x, sway=12)

    def _plaza(self) -> None:
        self._skyline(310, 80, 230)
        horizon = 310
        self._box(0, horizon, WIDTH, HEIGHT, self._c((175, 185, 192)))
        dark = self._c((135, 150, 165))
        rows = [horizon + (HEIGHT - horizon) * (k / 10) ** 1.7 for k in range(11)]
        for k in range(10):
            top, bottom = rows[k], rows[k + 1]
            for c in range(-14, 14):
                if (k + c) % 2:
                    continue

                def x(column: int, y: float) -> float:
                    return 640 + column * 110 * ((y - horizon) / (HEIGHT - horizon) * 1.6 + 0.25)

                self._poly(
                    [
                        (x(c, top), top),
                        (x(c + 1, top), top),
                        (x(c + 1, bottom), bottom),
                        (x(c, bottom), bottom),
                    ],
                    dark,
                )
        cv2.ellipse(self._back, (640, 420), (190, 46), 0, 0, 360, self._c((150, 150, 150)), -1, cv2.LINE_AA)
        cv2.ellipse(self._back, (640, 416), (172, 38), 0, 0, 360, self._c((215, 175, 110)), -1, cv2.LINE_AA)
        for x_ in (120, 1170):
            self._tree(x_, 420, 1.1)
        self._lamp(330, 430, 230)
        self._lamp(1010, 430, 230)
        spray = self._c((250, 240, 225))

        def fountain(picture: Picture, share: float) -> None:
            height = 120 + 40 * math.sin(2 * math.pi * 3 * share)
            for k in range(-5, 6):
                points = []
                for s in range(7):
                    u = s / 6
                    points.append((640 + k * 26 * u, 416 - height * 4 * u * (1 - u) * (1 - abs(k) * 0.06)))
                cv2.polylines(picture, [np.array(points, np.int32)], False, spray, 2, cv2.LINE_AA)

        self._add(420, fountain)
        for row in range(3):
            for k in range(5):
                self._person(530 + row * 70, 0.9 + 0.2 * row, 1, x=330 + 150 * k + 25 * row, sway=16)
        self._person(470, 0.8, 1)
        self._person(480, 0.8, -1)
        self._person(705, 1.4, -2, bike=True)

    def _street(self) -> None:
        self._box(0, 60, WIDTH, 430, self._c((150, 165, 180)))
        names = ("郫县豆瓣", "川菜馆", "便利店", "药房", "茶楼", "理发", "书店", "水果店", "面馆", "五金")
        picks = self._random.sample(names, 5)
        signs: tuple[Color, ...] = (
            (40, 40, 200),
            (160, 60, 40),
            (50, 130, 40),
            (30, 120, 220),
            (130, 40, 120),
        )
        for k in range(5):
            x = k * 256
            self._box(
                x + 4,
                60,
                x + 250,
                430,
                self._c(self._random.choice(((175, 195, 215), (190, 190, 200), (160, 185, 190)))),
            )
            for wx in (x + 34, x + 150):
                lit = self._lit and self._random.random() < 0.7
                self._box(wx, 96, wx + 66, 176, (120, 205, 250) if lit else self._c((160, 140, 110)))
            sign = self._random.choice(signs)
            self._box(x + 14, 210, x + 240, 268, sign if self._lit else self._c(sign))
            self._text(picks[k], x + 127 - 18 * len(picks[k]), 252, 38, (235, 250, 255))
            self._box(x + 24, 282, x + 232, 430, (150, 220, 250) if self._lit else self._c((190, 180, 160)))
            self._box(x + 104, 300, x + 154, 430, self._c((80, 90, 110)))
        self._box(0, 430, WIDTH, 520, self._c((165, 175, 180)))
        for x in range(0, WIDTH, 64):
            self._box(x, 430, x + 2, 520, self._c((140, 150, 155)))
        self._box(0, 520, WIDTH, HEIGHT, self._c((90, 88, 86)))
        for x in range(0, WIDTH, 130):
            self._box(x, 612, x + 70, 618, self._c((235, 235, 235)))
        for x in (70, 560, 1010):
            self._tree(x, 516, 0.85)
        self._lamp(320, 520, 300)
        self._lamp(840, 520, 300)
        for y, scale, laps in (
            (470, 0.85, 1),
            (480, 0.88, -1),
            (496, 0.92, 1),
            (506, 0.95, -1),
            (488, 0.9, 2),
        ):
            self._person(y, scale, laps)
        self._car(592, 1.0, -2)
        self._car(592, 1.0, -1, bus=True)
        self._car(692, 1.35, 2)
        self._car(692, 1.35, 3)
        self._person(560, 1.0, -2, bike=True)
