"""The judge with pictures that went through an encoder, day and night of every simulated scene, the shell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still_encoder import encode

from gateway.streams.media import AccessUnit
from gateway.streams.picture_health import (
    JudgeSettings,
    Measurement,
    PictureHealth,
    PictureJudge,
    PictureState,
    Verdict,
    measure,
    round_start,
)
from gateway.streams.pictures import Picture, decode_keyframe
from simulators import scenes

MINUTE_MS = 60_000
SETTINGS = JudgeSettings()


class Street:
    """A camera at a street: houses, cars that move, sensor noise, a clock burnt in."""

    def __init__(self, seed: int = 1, *, width: int = 640, height: int = 360) -> None:
        self._random = np.random.default_rng(seed)
        self._still = np.zeros((height, width, 3), np.float32)
        self._still[: height // 2] = (190, 180, 170)
        self._still[height // 2 :] = (95, 100, 105)
        for _ in range(60):
            x, y = self._random.integers(0, width), self._random.integers(height // 5, height)
            w, h = self._random.integers(10, width // 6), self._random.integers(10, height // 4)
            grey = self._random.integers(40, 220)
            colour = [float(grey + self._random.integers(-30, 30)) for _ in range(3)]
            cv2.rectangle(self._still, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)

    def sensor(self, minute: float) -> Picture:
        """What falls on the sensor, without noise and clock."""
        picture = self._still.copy()
        height, width = picture.shape[:2]
        for lane in range(4):
            x = int((minute * (0.37 + 0.11 * lane) % 1) * width)
            y = height // 2 + lane * height // 9
            cv2.rectangle(picture, (x, y), (x + width // 8, y + height // 12), (30, 40 * lane, 200), -1)
        return picture

    def show(
        self, minute: float, *, light: float = 1.0, noise: float = 2.0, sensor: Picture | None = None
    ) -> Picture:
        picture = (self.sensor(minute) if sensor is None else sensor) * light
        picture += self._random.normal(0, noise, (*picture.shape[:2], 1)) if noise else 0
        picture = np.clip(picture, 0, 255).astype(np.uint8)
        stamp = f"2026-11-24 {int(minute) // 60 % 24:02d}:{int(minute) % 60:02d}:{int(minute * 37) % 60:02d}"
        cv2.putText(picture, stamp, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1)
        return picture


def coded(picture: Picture, qp: int = 28) -> Measurement:
    return measure(decode_keyframe(encode(picture, qp=qp)))


class Camera:
    """A judge that is shown a picture a minute."""

    def __init__(self) -> None:
        self.judge = PictureJudge(SETTINGS)
        self.street = Street()
        self.minute = 0

    def see(self, picture: Picture, qp: int = 28) -> PictureState:
        self.minute += 1
        return self.judge.see(coded(picture, qp), self.minute * MINUTE_MS)

    def live(self, minutes: int = 10) -> PictureState:
        for _ in range(minutes):
            state = self.see(self.street.show(self.minute))
        return state


@pytest.fixture
def camera() -> Camera:
    """One that has seen ten good minutes."""
    camera = Camera()
    assert camera.live().verdict is Verdict.OK
    return camera


def black(camera: Camera) -> Picture:
    return camera.street.show(camera.minute, light=0.0, noise=1.0)


def covered(camera: Camera) -> Picture:
    hand = np.full((360, 640, 3), (60, 70, 110), np.float32)
    hand += np.linspace(0, 25, 640)[None, :, None]
    return camera.street.show(camera.minute, sensor=hand)


def glare(camera: Camera) -> Picture:
    return camera.street.show(camera.minute, sensor=np.full((360, 640, 3), 255, np.float32))


def blurred(camera: Camera) -> Picture:
    sensor = cv2.GaussianBlur(camera.street.sensor(camera.minute), (0, 0), 4)
    return camera.street.show(camera.minute, sensor=sensor)


def pink(camera: Camera) -> Picture:
    return camera.street.show(camera.minute, sensor=camera.street.sensor(camera.minute) * (1.0, 0.5, 1.0))


FAULTS: list[tuple[Callable[[Camera], Picture], Verdict, str]] = [
    (black, Verdict.BLACK, "全黑"),
    (covered, Verdict.COVERED, "遮挡"),
    (glare, Verdict.COVERED, "全白"),
    (blurred, Verdict.BLURRED, "模糊"),
    (pink, Verdict.COLOUR_CAST, "偏紫"),
]


@pytest.mark.parametrize(("fault", "verdict", "words"), FAULTS)
def test_a_fault_is_named_after_three_pictures_and_taken_back_after_two(
    camera: Camera, fault: Callable[[Camera], Picture], verdict: Verdict, words: str
) -> None:
    began_ms = (camera.minute + 1) * MINUTE_MS
    assert [camera.see(fault(camera)).verdict for _ in range(2)] == [Verdict.OK] * 2
    state = camera.see(fault(camera))
    assert (state.verdict, state.since_ms) == (verdict, began_ms)
    assert words in state.reason
    assert camera.see(fault(camera)).since_ms == began_ms
    ended_ms = (camera.minute + 1) * MINUTE_MS
    assert camera.live(1).verdict is verdict
    state = camera.live(1)
    assert (state.verdict, state.reason, state.since_ms) == (Verdict.OK, "", ended_ms)
    assert state.checked_at_ms == camera.minute * MINUTE_MS


@pytest.mark.parametrize(("fault", "verdict", "words"), FAULTS)
def test_one_odd_picture_changes_nothing(
    camera: Camera, fault: Callable[[Camera], Picture], verdict: Verdict, words: str
) -> None:
    before = camera.judge.state
    assert before is not None
    for _ in range(3):
        for state in (camera.see(fault(camera)), camera.see(fault(camera)), camera.live(1)):
            assert (state.verdict, state.reason, state.since_ms) == (Verdict.OK, "", before.since_ms)


def test_one_good_picture_takes_no_fault_back(camera: Camera) -> None:
    for _ in range(3):
        camera.see(black(camera))
    began_ms = camera.judge.state.since_ms  # type: ignore[union-attr]
    for _ in range(3):
        camera.live(1)
        state = camera.see(black(camera))
        assert (state.verdict, state.since_ms) == (Verdict.BLACK, began_ms)


def test_night_falls_and_everything_stays_ok(camera: Camera) -> None:
    for step in range(20):
        light = max(0.15, 1 - step / 15)
        state = camera.see(camera.street.show(camera.minute, light=light, noise=2 + step / 6), qp=32)
        assert state.verdict is Verdict.OK, (step, state)


def test_a_black_camera_from_the_start_needs_no_learning() -> None:
    camera = Camera()
    states = [camera.see(black(camera)) for _ in range(3)]
    assert [state.verdict for state in states] == [Verdict.OK, Verdict.OK, Verdict.BLACK]
    assert states[-1].since_ms == MINUTE_MS


def test_a_wall_is_not_covered_for_a_camera_that_never_saw_more() -> None:
    camera = Camera()
    assert {camera.see(covered(camera)).verdict for _ in range(15)} == {Verdict.OK}


def test_a_blur_that_lasts_is_not_learnt(camera: Camera) -> None:
    for _ in range(60):
        state = camera.see(blurred(camera))
    assert state.verdict is Verdict.BLURRED


def test_sizes_are_not_compared_with_each_other(camera: Camera) -> None:
    """A viewer takes the main stream: four times the pixels, another sharpness."""
    large = Street(width=1280, height=720)
    for minute in range(12):
        assert camera.see(large.show(minute)).verdict is Verdict.OK
    assert camera.live(5).verdict is Verdict.OK


# Frozen.


def until_frozen(camera: Camera, pictures: Iterable[tuple[Picture, int]]) -> tuple[int, PictureState]:
    """How many pictures it took."""
    for count, (picture, qp) in enumerate(pictures, 1):
        state = camera.see(picture, qp)
        if state.verdict is Verdict.FROZEN:
            return count, state
        assert state.verdict is Verdict.OK
    pytest.fail("never noticed")


def test_the_same_pixels_four_times_are_frozen(camera: Camera) -> None:
    still = camera.street.show(camera.minute)
    began_ms = (camera.minute + 1) * MINUTE_MS
    count, state = until_frozen(camera, [(still, 28)] * 6)
    assert (count, state.since_ms, state.reason) == (4, began_ms, "画面已 3 分钟完全没有变化")
    assert "5 分钟" in [camera.see(still) for _ in range(2)][-1].reason
    assert camera.live(1).verdict is Verdict.FROZEN
    assert camera.live(1).verdict is Verdict.OK


def test_the_same_pixels_within_moments_are_not_frozen() -> None:
    judge = PictureJudge(SETTINGS)
    seen = coded(Street().show(0))
    assert {judge.see(seen, second * 1000).verdict for second in range(120)} == {Verdict.OK}
    assert judge.see(seen, 120_000).verdict is Verdict.FROZEN


def test_a_frozen_sensor_behind_a_running_clock_is_frozen(camera: Camera) -> None:
    """The sensor hangs, the encoder goes on and burns the time in."""
    sensor = camera.street.sensor(camera.minute)
    pictures = ((camera.street.show(camera.minute, sensor=sensor, noise=0), 28) for _ in range(30))
    count, state = until_frozen(camera, pictures)
    assert count == SETTINGS.similar
    assert "时钟除外" in state.reason


def test_a_frozen_sensor_behind_two_quantisers_is_frozen(camera: Camera) -> None:
    still = camera.street.show(camera.minute)
    count, _ = until_frozen(camera, [(still, 27 + turn % 2) for turn in range(30)])
    assert count == SETTINGS.similar + 1  # the second quantiser is new once


@pytest.mark.parametrize(("noise", "qp"), [(0.5, 32), (1.0, 32), (2.0, 28), (2.0, 36)])
def test_an_empty_street_at_night_is_not_frozen(noise: float, qp: int) -> None:
    """Nothing moves for 40 minutes; only noise tells that the sensor lives."""
    camera = Camera()
    sensor = camera.street.sensor(0)
    for _ in range(40):
        picture = camera.street.show(camera.minute, sensor=sensor, light=0.4, noise=noise)
        assert camera.see(picture, qp).verdict is Verdict.OK


def test_a_dead_black_camera_is_black_not_frozen(camera: Camera) -> None:
    for _ in range(15):
        state = camera.see(np.zeros((360, 640, 3), np.uint8))
    assert state.verdict is Verdict.BLACK


@pytest.mark.parametrize(
    "index",
    range(len(scenes.SCENES)),
    ids=lambda i: "-".join((scenes.SCENES[i].kind, scenes.SCENES[i].light)),
)
def test_every_simulated_scene_is_ok(index: int) -> None:
    """They have no noise and repeat every ten seconds: five different keyframes, seen in turn."""
    scene = scenes.Scene(index, label="成灌路口")
    seen = [
        coded(np.asarray(cv2.cvtColor(scene.draw_sub(t), cv2.COLOR_YUV2BGR_I420), np.uint8), 30)
        for t in (0, 4, 8, 2, 6)
    ]
    judge = PictureJudge(SETTINGS)
    for minute in range(15):
        state = judge.see(seen[minute % 5], minute * MINUTE_MS)
        assert state.verdict is Verdict.OK, state


@pytest.mark.parametrize("interval_s", [5, 10, 15, 20, 30, 45, 60, 120, 300])
@pytest.mark.parametrize("phase_s", [0.0, 0.7, 1.3, 1.9])
def test_a_picture_that_repeats_every_ten_seconds_is_not_frozen(interval_s: float, phase_s: float) -> None:
    """As the simulators' clips do: five keyframes, two seconds apart, over and over for 500 rounds."""
    blank = coded(np.zeros((90, 160, 3), np.uint8))
    keyframes = [
        replace(
            blank, fingerprint=number, near_black=0.0, thumbnail=np.full((90, 160), 50 * number, np.uint8)
        )
        for number in range(5)
    ]
    judge = PictureJudge(SETTINGS)
    for number in range(500):
        at_s = round_start(number, interval_s) + phase_s
        state = judge.see(keyframes[int(at_s % 10 / 2)], int(at_s * 1000))
        assert state.verdict is Verdict.OK, (number, state)


@given(st.integers(0, 10_000), st.floats(0.01, 3600))
def test_rounds_never_overlap(number: int, interval_s: float) -> None:
    length_s = round_start(number + 1, interval_s) - round_start(number, interval_s)
    assert 0.8 * interval_s < length_s < 1.32 * interval_s


# Properties.

shares = st.floats(0, 1)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    return Measurement(
        size=draw(
            st.sampled_from([(640, 360), (1280, 720), (704, 576), (320, 180), (352, 288), (1920, 1080)])
        ),
        mean=draw(st.floats(0, 255)),
        deviation=draw(st.floats(0, 127)),
        near_black=draw(shares),
        saturated=draw(shares),
        spread=draw(st.floats(0, 255)),
        detail=draw(shares),
        sharpness=draw(st.floats(0, 10)),
        cast=draw(st.floats(0, 150)),
        uniformity=draw(st.floats(0, 50)),
        tint=draw(st.sampled_from("红绿蓝黄")),
        fingerprint=draw(st.integers(0, 3)),
        thumbnail=np.full((90, 160), draw(st.integers(0, 255)), np.uint8),
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(measurements(), min_size=1, max_size=30))
def test_whatever_comes_the_state_is_consistent(sequence: list[Measurement]) -> None:
    judge = PictureJudge(SETTINGS)
    before: PictureState | None = None
    for minute, seen in enumerate(sequence):
        now_ms = minute * MINUTE_MS
        state = judge.see(seen, now_ms)
        assert (state.verdict is Verdict.OK) == (state.reason == "")
        assert state.since_ms <= state.checked_at_ms == now_ms
        if before is not None and before.verdict is state.verdict:
            assert state.since_ms == before.since_ms
        before = state


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 1400), st.integers(2, 800), st.integers(0, 255), st.integers(0, 40))
def test_any_picture_can_be_measured(width: int, height: int, grey: int, noise: int) -> None:
    random = np.random.default_rng(1)
    picture = np.clip(grey + random.normal(0, noise + 0.01, (height, width, 3)), 0, 255).astype(np.uint8)
    seen = measure(picture)
    assert seen.size == (width, height)
    assert 0 <= seen.mean <= 255
    for share in (seen.near_black, seen.saturated, seen.detail):
        assert 0 <= share <= 1 + 1e-9
    values = (seen.deviation, seen.spread, seen.sharpness, seen.cast, seen.uniformity)
    assert all(np.isfinite(value) and value >= 0 for value in values)


# The shell.


def unit(nal_units: tuple[bytes, ...], at: float) -> AccessUnit:
    return AccessUnit(nal_units=nal_units, timestamp=0, keyframe=True, received_at=at)


class District:
    """Cameras whose keyframes are renewed at each look; stops the health once `enough` says so."""

    def __init__(self, keyframes: dict[str, tuple[bytes, ...] | None], *, interval_s: float = 0.02) -> None:
        self.keyframes = keyframes
        self.renewed = True
        self.looks: list[str] = []
        self.changes: list[tuple[str, Verdict]] = []
        self.now_ms = 0
        self._looked = asyncio.Event()
        self.health = PictureHealth(
            self._cameras,
            self._keyframe,
            interval_s=interval_s,
            on_change=lambda camera_id, state: self.changes.append((camera_id, state.verdict)),
            cpu_share=1.0,
            clock_ms=self._clock_ms,
        )

    def _cameras(self) -> list[str]:
        asyncio.get_running_loop().call_soon(self._looked.set)
        return list(self.keyframes)

    def _keyframe(self, camera_id: str) -> AccessUnit | None:
        self.looks.append(camera_id)
        self._looked.set()
        nal_units = self.keyframes[camera_id]
        return None if nal_units is None else unit(nal_units, len(self.looks) if self.renewed else 1.0)

    def _clock_ms(self) -> int:
        self.now_ms += MINUTE_MS
        return self.now_ms

    async def run_until(self, enough: Callable[[], bool]) -> None:
        running = asyncio.create_task(self.health.run())
        try:
            async with asyncio.timeout(20):
                while not enough():
                    self._looked.clear()
                    await self._looked.wait()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


BLACK = encode(np.zeros((90, 160, 3), np.uint8))
GOOD = encode(Street(width=160, height=90).show(0))


async def test_judges_each_camera_in_turn_and_tells_what_changed() -> None:
    district = District({"good": GOOD, "dark": BLACK, "absent": None, "damaged": (b"\x65" + bytes(40),)})
    await district.run_until(lambda: bool(district.changes))
    assert district.changes == [("dark", Verdict.BLACK)]
    assert district.looks[:8] == ["good", "dark", "absent", "damaged"] * 2
    states = district.health.states()
    assert states["dark"].verdict is Verdict.BLACK
    assert states["good"].verdict is Verdict.OK
    assert "absent" not in states
    assert "damaged" not in states
    counters = district.health.counters()
    assert counters.judged >= 5
    assert counters.absent >= 2
    assert counters.undecodable >= 2
    assert counters.cpu_s > 0
    assert district.health.changes == {Verdict.BLACK: 1}


async def test_a_keyframe_that_stands_says_nothing() -> None:
    district = District({"cam": BLACK})
    district.renewed = False
    await district.run_until(lambda: len(district.looks) > 8)
    counters = district.health.counters()
    assert (counters.judged, counters.unchanged >= 7) == (1, True)
    assert district.changes == []


async def test_cameras_come_and_go_between_rounds() -> None:
    district = District({"a": GOOD})
    await district.run_until(lambda: len(district.looks) > 2)
    district.keyframes = {}
    await district.run_until(lambda: not district.health.states())
    district.keyframes = {"b": GOOD}
    await district.run_until(lambda: bool(district.health.states()))
    assert list(district.health.states()) == ["b"]
    assert district.health.state("a") is None


async def test_a_camera_that_was_turned_learns_anew() -> None:
    district = District({"cam": BLACK})
    await district.run_until(lambda: bool(district.changes))
    district.health.relearn("cam")
    assert district.health.states() == {}
    district.keyframes["cam"] = GOOD
    await district.run_until(lambda: bool(district.health.states()))
    state = district.health.state("cam")
    assert state is not None
    assert state.verdict is Verdict.OK


async def test_too_many_cameras_take_longer_and_are_counted() -> None:
    district = District({f"cam{i}": GOOD for i in range(20)}, interval_s=0.001)
    await district.run_until(lambda: len(district.looks) > 60)
    assert district.health.counters().late > 0
    assert district.looks[:40] == [f"cam{i}" for i in range(20)] * 2
