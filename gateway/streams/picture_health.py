"""Does a camera show what it should? A keyframe a minute tells frozen, black, covered, blurred and tinted.

`measure` turns a picture into numbers, `PictureJudge` turns the numbers of one camera into a verdict: both
are pure. `PictureHealth` feeds them all day long from one thread, within a budget of CPU, and never touches
the path of a packet.

What is judged, and what it can't tell:

- black: nearly every pixel is dark and nothing has structure. A dark street with one lamp is not black.
- covered: structure and contrast are gone after the camera had both (a hand, paint, a bag; also a lens that
  looks into the sun and shows nothing but white).
- frozen: pictures of several minutes are the same pixel by pixel, or the same but for a clock. Noise keeps a
  living sensor from that: two keyframes of an empty street at night differ in nearly every block once its
  noise survives the encoder. A frozen sensor whose encoder alternates between two quantisers is still found;
  one whose quantiser wanders over many values is not.
- blurred: the sharpness is far under what this camera had at this size. It is measured relative to contrast,
  so that dusk is not taken for a blur. A camera that was never sharp is not found.
- colour_cast: by day every colour is shifted the same way (an infrared filter that is stuck, a lost chroma
  plane). In the dark, street lamps may colour everything.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.errors import ProtocolError
from gateway.streams.media import AccessUnit
from gateway.streams.pictures import NalUnits, Picture, decode_keyframe
from gateway.streams.verdict import HealthCounters, PictureState, Verdict

__all__ = [
    "HealthCounters",
    "JudgeSettings",
    "Measurement",
    "PictureHealth",
    "PictureJudge",
    "PictureState",
    "Verdict",
    "measure",
    "round_start",
]

logger = logging.getLogger(__name__)

_WORK_WIDTH = 640
_THUMB = (160, 90)
_COLOURS = (80, 45)
_GRID = (16, 9)
"""Blocks of 10x10 pixels of the thumbnail: the digits of a clock in the picture fill 2 to 4 of the 144."""
_DARK, _BRIGHT = 24, 250
_TEXTURE = 3.0
"""Standard deviation within a block of the thumbnail that noise of a night picture does not reach."""
_SIZES_KEPT = 4
_GOLDEN = 0.618034
_BUSY_PART = 0.8
"""Of the interval; the shortest time between two rounds is a little longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One picture in numbers. Luma is 0 to 255.

    size: width and height in pixels. mean, deviation: of the luma. near_black, saturated: share of pixels.
    spread: luma between the darkest and brightest tenth of the blocks. detail: share of blocks with
    structure. sharpness: variance of the Laplacian relative to the variance of the luma. cast: how far the
    mean colour is from grey, in units of CIE Lab; tint: which way. uniformity: cast relative to how much
    colours differ. fingerprint: equal if the luma is, pixel by pixel. thumbnail: luma, 160x90.
    """

    size: tuple[int, int]
    mean: float
    deviation: float
    near_black: float
    saturated: float
    spread: float
    detail: float
    sharpness: float
    cast: float
    uniformity: float
    tint: str
    fingerprint: int
    thumbnail: NDArray[np.uint8] = field(repr=False, compare=False)


def measure(picture: Picture) -> Measurement:
    """Everything a judge wants to know of a picture (blue, green, red). Pure, a few milliseconds of CPU."""
    height, width = picture.shape[:2]
    if width > _WORK_WIDTH:
        work_size = (_WORK_WIDTH, max(2, round(height * _WORK_WIDTH / width)))
        work: Any = cv2.resize(picture, work_size, interpolation=cv2.INTER_AREA)
    else:
        work = picture
    luma: Any = cv2.cvtColor(work, cv2.COLOR_BGR2GRAY)
    # Not numpy's: this one lets go of the interpreter. Its shape differs between OpenCV 4 and 5.
    counts: Any = cv2.calcHist([luma], [0], None, [256], [0, 256])
    histogram = counts.ravel().astype(np.float64) / luma.size
    levels = np.arange(256)
    mean = float(histogram @ levels)
    variance = float(histogram @ (levels - mean) ** 2)
    # Smoothed first, or the noise of a dark picture counts as sharpness.
    laplacian = cv2.Laplacian(cv2.GaussianBlur(luma, (5, 5), 0), cv2.CV_16S)
    sharpness = cv2.meanStdDev(laplacian)[1].item() ** 2 / (variance + 25)
    thumbnail: Any = cv2.resize(luma, _THUMB, interpolation=cv2.INTER_AREA)
    floats = thumbnail.astype(np.float32)
    means: Any = cv2.resize(floats, _GRID, interpolation=cv2.INTER_AREA)
    squares: Any = cv2.resize(floats * floats, _GRID, interpolation=cv2.INTER_AREA)
    detail = float((squares - means * means > _TEXTURE**2).mean())
    darkest, brightest = np.percentile(means, (10, 90))
    cast, uniformity, tint = _cast(cv2.resize(work, _COLOURS, interpolation=cv2.INTER_AREA))
    return Measurement(
        size=(width, height),
        mean=mean,
        deviation=variance**0.5,
        near_black=float(histogram[: _DARK + 1].sum()),
        saturated=float(histogram[_BRIGHT:].sum()),
        spread=float(brightest - darkest),
        detail=detail,
        sharpness=sharpness,
        cast=cast,
        uniformity=uniformity,
        tint=tint,
        fingerprint=zlib.crc32(luma),
        thumbnail=thumbnail,
    )


def _cast(small: Any) -> tuple[float, float, str]:
    """Distance of the mean colour from grey, that distance relative to the scatter of colours, and its name.
    Pixels too dark or too bright to have a colour are left out."""
    lab: Any = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2Lab)
    light = lab[..., 0]
    coloured = lab[(light > 15) & (light < 97)]
    if len(coloured) < light.size // 5:
        return 0.0, 0.0, ""
    a, b = coloured[:, 1], coloured[:, 2]
    mean_a, mean_b = float(a.mean()), float(b.mean())
    scatter = float(np.hypot(a - mean_a, b - mean_b).mean())
    distance = float(np.hypot(mean_a, mean_b))
    if abs(mean_a) > 2 * abs(mean_b):
        tint = "红" if mean_a > 0 else "绿"
    elif abs(mean_b) > 2 * abs(mean_a):
        tint = "黄" if mean_b > 0 else "蓝"
    elif mean_a > 0:
        tint = "橙" if mean_b > 0 else "紫"
    else:
        tint = "黄绿" if mean_b > 0 else "青"
    return distance, distance / (scatter + 1), tint


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """Thresholds. Shares are 0 to 1, luma 0 to 255, times in seconds, the rest counts pictures.

    raise_after, clear_after: pictures in a row before a fault is shown, and before it is taken back.
    identical: pictures in a row, the same pixel by pixel, that make a camera frozen; similar: the same but
    for a clock; both not before frozen_s. same_block: mean difference of luma up to which a block is the
    same; clock_share: of blocks that may change all the while.
    black_share: of near-black pixels; black_detail: blocks with structure at most (a caption has some).
    covered_detail, covered_spread: at most; had_detail: what the camera must usually have had.
    white_share: saturated pixels of a picture that shows nothing.
    blur_ratio: of its own usual sharpness at most. learn: good pictures before a camera has a usual.
    cast, cast_uniformity: at least, in a picture whose luma has a mean of at least cast_mean.
    """

    raise_after: int = 3
    clear_after: int = 2
    identical: int = 4
    similar: int = 10
    frozen_s: float = 120.0
    same_block: float = 0.25
    clock_share: float = 0.05
    black_share: float = 0.95
    black_detail: float = 0.12
    covered_detail: float = 0.15
    covered_spread: float = 60.0
    had_detail: float = 0.35
    white_share: float = 0.9
    blur_ratio: float = 0.3
    learn: int = 8
    cast: float = 25.0
    cast_uniformity: float = 1.0
    cast_mean: float = 70.0


class _Usual:
    """What good pictures of one size have: the first ones averaged, then followed slowly."""

    __slots__ = ("count", "detail", "sharpness")

    def __init__(self) -> None:
        self.count = 0
        self.detail = 0.0
        self.sharpness = 0.0

    def learn(self, seen: Measurement) -> None:
        self.count += 1
        share = max(1 / self.count, 0.02)
        self.detail += share * (seen.detail - self.detail)
        self.sharpness += share * (seen.sharpness - self.sharpness)


class _Stillness:
    """How long pictures have been repeating themselves. Keeps the two newest different thumbnails: an encoder
    between two quantisers makes two pictures out of one."""

    __slots__ = ("_fingerprint", "_moved", "_settings", "_thumbnails", "identical", "similar", "since_ms")

    def __init__(self, settings: JudgeSettings) -> None:
        self.identical = 1
        self.similar = 1
        self.since_ms = 0
        self._settings = settings
        self._fingerprint: int | None = None
        self._moved: NDArray[np.bool_] = np.zeros((_GRID[1], _GRID[0]), np.bool_)
        self._thumbnails: deque[NDArray[np.uint8]] = deque(maxlen=2)

    def see(self, seen: Measurement, now_ms: int) -> None:
        same = seen.fingerprint == self._fingerprint
        self._fingerprint = seen.fingerprint
        self.identical = self.identical + 1 if same else 1
        if self._repeats(seen.thumbnail):
            self.similar += 1
            return
        self._thumbnails.append(seen.thumbnail)
        self._moved[:] = False
        self.similar = 1
        self.since_ms = now_ms

    def _repeats(self, thumbnail: NDArray[np.uint8]) -> bool:
        allowed = self._settings.clock_share * self._moved.size
        for known in self._thumbnails:
            difference: Any = cv2.absdiff(thumbnail, known).astype(np.float32)
            blocks: Any = cv2.resize(difference, _GRID, interpolation=cv2.INTER_AREA)
            # A clock changes in one place; people change the picture here and there.
            moved = self._moved | (blocks > self._settings.same_block)
            if moved.sum() <= allowed:
                self._moved = moved
                return True
        return False


class PictureJudge:
    """The judge of one camera. Holds under 40 kB."""

    def __init__(self, settings: JudgeSettings | None = None) -> None:
        self.state: PictureState | None = None
        self._settings = settings or JudgeSettings()
        self._usual: dict[tuple[int, int], _Usual] = {}
        self._still = _Stillness(self._settings)
        self._candidate = Verdict.OK
        self._candidate_since_ms = 0
        self._row = 0

    def see(self, seen: Measurement, now_ms: int) -> PictureState:
        """Takes the next picture. now_ms: UTC."""
        settings = self._settings
        usual = self._usual.get(seen.size)
        if usual is None:
            while len(self._usual) >= _SIZES_KEPT:
                del self._usual[next(iter(self._usual))]
            usual = self._usual[seen.size] = _Usual()
        self._still.see(seen, now_ms)
        verdict, reason = self._look(seen, usual, now_ms)
        if verdict is Verdict.OK:
            usual.learn(seen)
        if verdict is self._candidate:
            self._row += 1
        else:
            self._candidate, self._row, self._candidate_since_ms = verdict, 1, now_ms
        shown = self.state
        if verdict is Verdict.FROZEN:  # has been counting by itself
            needed, since_ms = 1, self._still.since_ms
        else:
            needed = settings.clear_after if verdict is Verdict.OK else settings.raise_after
            since_ms = self._candidate_since_ms
        if shown is None and verdict is Verdict.OK:
            needed = 1
        if shown is not None and verdict is shown.verdict:
            since_ms = shown.since_ms
        elif self._row < needed:
            if shown is None:  # nothing is known yet: ok until the row is long enough
                shown = PictureState(verdict=Verdict.OK, reason="", since_ms=now_ms, checked_at_ms=now_ms)
            verdict, reason, since_ms = shown.verdict, shown.reason, shown.since_ms
        self.state = PictureState(verdict=verdict, reason=reason, since_ms=since_ms, checked_at_ms=now_ms)
        return self.state

    def _look(self, seen: Measurement, usual: _Usual, now_ms: int) -> tuple[Verdict, str]:
        """What this one picture says, the gravest first. Frozen comes after black and covered: a covered
        lens gives pictures that repeat themselves, too."""
        settings, still = self._settings, self._still
        known = usual.count >= settings.learn
        if seen.near_black >= settings.black_share and seen.detail <= settings.black_detail:
            return Verdict.BLACK, f"画面全黑（{seen.near_black:.0%} 的像素接近黑色）"
        had_detail = known and usual.detail >= settings.had_detail
        if had_detail and seen.detail <= settings.covered_detail and seen.spread <= settings.covered_spread:
            if seen.saturated >= settings.white_share:
                return Verdict.COVERED, "画面全白，看不到内容，可能被强光照射或遮挡"
            return Verdict.COVERED, "画面失去细节，镜头可能被遮挡"
        if now_ms - still.since_ms >= settings.frozen_s * 1000:
            minutes = max(1, round((now_ms - still.since_ms) / 60_000))
            if still.identical >= settings.identical:
                return Verdict.FROZEN, f"画面已 {minutes} 分钟完全没有变化"
            if still.similar >= settings.similar:
                return Verdict.FROZEN, f"画面已 {minutes} 分钟几乎没有变化（时钟除外）"
        if known and seen.sharpness < settings.blur_ratio * usual.sharpness:
            share = seen.sharpness / usual.sharpness
            return Verdict.BLURRED, f"画面模糊，清晰度只有平时的 {share:.0%}，可能失焦或镜头脏污"
        if (
            seen.mean >= settings.cast_mean
            and seen.cast >= settings.cast
            and seen.uniformity >= settings.cast_uniformity
        ):
            return Verdict.COLOUR_CAST, f"画面偏{seen.tint}"
        return Verdict.OK, ""


def round_start(number: int, interval_s: float) -> float:
    """When a round begins, in seconds after the first. On average rounds are interval_s apart, but their
    offsets follow the golden ratio over half of it: whatever repeats in a picture (an advertisement, a signal, a
    simulator's clip) is met at ever other points and not taken for frozen."""
    return (number + number * _GOLDEN % 1 / 2) * interval_s


class PictureHealth:
    """Visits each camera once in interval_s, evenly spread, one picture at a time on one thread.

    cameras: the ids to visit, asked for each round. keyframe: the newest one of a camera, best of its sub
    stream, which costs a quarter. on_change(camera_id, state): called from the loop when the verdict changes;
    must not block. cpu_share: of one core at most; when pictures cost more, rounds take longer.
    """

    def __init__(
        self,
        cameras: Callable[[], Sequence[str]],
        keyframe: Callable[[str], AccessUnit | None],
        *,
        interval_s: float = 60.0,
        on_change: Callable[[str, PictureState], None] | None = None,
        settings: JudgeSettings | None = None,
        cpu_share: float = 0.15,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._cameras = cameras
        self._keyframe = keyframe
        self._interval_s = interval_s
        self._on_change = on_change
        self._settings = settings or JudgeSettings()
        self._cpu_share = cpu_share
        self._clock_ms = clock_ms
        self._judges: dict[str, PictureJudge] = {}
        self._arrived: dict[str, float] = {}
        self._counters = HealthCounters()
        self.changes: Counter[Verdict] = Counter()

    def states(self) -> dict[str, PictureState]:
        """Of the cameras judged at least once."""
        return {
            camera_id: judge.state for camera_id, judge in self._judges.items() if judge.state is not None
        }

    def state(self, camera_id: str) -> PictureState | None:
        judge = self._judges.get(camera_id)
        return None if judge is None else judge.state

    def relearn(self, camera_id: str) -> None:
        """The camera was turned, moved or cleaned: what was usual counts no more."""
        self._judges.pop(camera_id, None)
        self._arrived.pop(camera_id, None)

    def counters(self) -> HealthCounters:
        return replace(self._counters)

    async def run(self) -> None:
        """Until cancelled."""
        cv2.setNumThreads(1)  # OpenCV would spread a picture over all cores, past the budget
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="picture-health") as thread:
            origin, number = loop.time(), 0
            while True:
                begin = origin + round_start(number, self._interval_s)
                number += 1
                if (late := loop.time() - begin) > 0:  # never hurries to catch up
                    origin, begin = origin + late, begin + late
                await asyncio.sleep(begin - loop.time())
                camera_ids = self._begin_round()
                step = self._interval_s * _BUSY_PART / max(1, len(camera_ids))
                due = begin
                for camera_id in camera_ids:
                    await asyncio.sleep(max(0.0, due - loop.time()))
                    cpu_s = await self._visit(thread, camera_id)
                    due += step
                    # The next picture waits until this one is paid for by the share of the core.
                    earliest = loop.time() + cpu_s * (1 / self._cpu_share - 1)
                    if earliest > due:
                        self._counters.late += 1
                        due = earliest

    def _begin_round(self) -> list[str]:
        camera_ids = list(dict.fromkeys(self._cameras()))
        for camera_id in self._judges.keys() - set(camera_ids):
            del self._judges[camera_id]
            self._arrived.pop(camera_id, None)
        return camera_ids

    async def _visit(self, thread: ThreadPoolExecutor, camera_id: str) -> float:
        """Looks at one camera. Returns the CPU seconds it took."""
        keyframe = self._keyframe(camera_id)
        if keyframe is None:
            self._counters.absent += 1
            return 0.0
        if (
            self._arrived.get(camera_id) == keyframe.received_at
        ):  # says that the stream stands, not what it shows
            self._counters.unchanged += 1
            return 0.0
        self._arrived[camera_id] = keyframe.received_at
        judge = self._judges.setdefault(camera_id, PictureJudge(self._settings))
        before = judge.state
        loop = asyncio.get_running_loop()
        try:
            seen, cpu_s = await loop.run_in_executor(thread, _measure, keyframe.nal_units)
        except Exception:
            # Whatever OpenCV makes of one camera's picture, the other cameras are looked at.
            logger.exception("picture not judged", extra={"camera_id": camera_id})
            seen, cpu_s = None, 0.0
        self._counters.cpu_s += cpu_s
        if seen is None:
            self._counters.undecodable += 1
            return cpu_s
        self._counters.judged += 1
        state = judge.see(seen, self._clock_ms())
        if state.verdict is not (Verdict.OK if before is None else before.verdict):
            self.changes[state.verdict] += 1
            logger.info(
                "picture %s",
                state.verdict,
                extra={"camera_id": camera_id, "verdict": str(state.verdict), "reason": state.reason},
            )
            if self._on_change is not None:
                self._on_change(camera_id, state)
        return cpu_s


def _measure(nal_units: NalUnits) -> tuple[Measurement | None, float]:
    """On the thread: the numbers of a picture, None of a damaged one, and the CPU seconds that it took."""
    before = time.thread_time()
    try:
        measurement = measure(decode_keyframe(nal_units))
    except ProtocolError:
        measurement = None
    return measurement, time.thread_time() - before
