"""Clips that the camera farm loops: encoded once with PyAV, kept in a cache folder, loaded on first use.

A clip is an Annex B file (`ffplay` plays it) and a small JSON beside it. Its pictures loop without a seam,
each GOP is closed, and one slice makes a picture.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from simulators import h264, scenes

__all__ = ["Clip", "Encoder", "Recipe", "derive", "ensure", "load", "tone"]

Picture = NDArray[np.uint8]  # planar YUV 4:2:0 as OpenCV lays it out: (height * 3 / 2, width)

MAIN_SIZE, SUB_SIZE = (1280, 720), (640, 360)
MAIN_KBPS, SUB_KBPS = 2000, 400
FPS, GOP_S = 25, 2
# Part of a recipe's name: raise it when drawing or encoding changes, so that old caches are not used.
VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to draw and encode: a scene (index into scenes.SCENES) with a label, as main and sub clip."""

    scene: int
    label: str
    camera_id: str = ""  # burnt in large when given
    variant: int = 0
    seconds: float = 10
    fps: int = FPS
    gop: int = FPS * GOP_S
    profile: str = "baseline"

    def name(self, stream: str) -> str:
        """The stem of the files of its main or sub clip."""
        text = json.dumps([VERSION, asdict(self), stream], ensure_ascii=False, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.camera_id or 'scene'}-{self.scene:02d}-{stream}-{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Access units in decoding order. shown: for each, the index of the frame period in which it is
    displayed.
    """

    width: int
    height: int
    fps: int
    units: tuple[h264.AccessUnit, ...]
    shown: tuple[int, ...]


class Encoder:
    """libx264 as cameras use it: fixed GOP, parameter sets before each IDR, one slice, constant bit rate."""

    def __init__(
        self,
        size: tuple[int, int],
        *,
        fps: int = 25,
        gop: int = 50,
        kbps: int = MAIN_KBPS,
        profile: str = "baseline",
        bframes: int = 0,
        live: bool = False,
    ) -> None:
        self.size = size
        context: Any = av.CodecContext.create("libx264", "w")
        context.width, context.height = size
        context.pix_fmt = "yuv420p"
        context.framerate = Fraction(fps)
        context.time_base = Fraction(1, fps)
        context.bit_rate = kbps * 1000
        context.gop_size = gop
        context.thread_count = 1
        parameters = (
            f"keyint={gop}:min-keyint={gop}:scenecut=0:repeat-headers=1:aud=0:slices=1:sliced-threads=0:open-gop=0:"
            f"vbv-maxrate={kbps * 6 // 5}:vbv-bufsize={kbps}:bframes={bframes}:b-adapt=0:"
            "forced-idr=1:sync-lookahead=0"
        )
        context.options = {
            "preset": "ultrafast" if live or profile == "baseline" else "superfast",
            "profile": profile,
            "x264-params": parameters + (":rc-lookahead=0" if not bframes else ""),
        }
        if live or not bframes:
            context.options = context.options | {"tune": "zerolatency"}
        self._context = context
        self._count = 0

    def encode(self, picture: Picture, *, keyframe: bool = False) -> list[tuple[bytes, int]]:
        """Annex B access units that came out, each with the index of the picture it shows."""
        frame: Any = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = self._count
        if keyframe:
            frame.pict_type = av.video.frame.PictureType.I
        self._count += 1
        return [(bytes(packet), int(packet.pts)) for packet in self._context.encode(frame)]

    def flush(self) -> list[tuple[bytes, int]]:
        """What B-frames held back."""
        return [(bytes(packet), int(packet.pts)) for packet in self._context.encode(None)]


def encode_clip(pictures: Iterable[Picture], encoder: Encoder, fps: int) -> Clip:
    """Encodes all pictures into one clip."""
    out: list[tuple[bytes, int]] = []
    for picture in pictures:
        out += encoder.encode(picture)
    out += encoder.flush()
    units = h264.access_units(b"".join(data for data, _ in out))
    width, height = encoder.size
    return Clip(width=width, height=height, fps=fps, units=tuple(units), shown=tuple(pts for _, pts in out))


def save(clip: Clip, path: Path) -> None:
    """Writes `path`.json and then, by rename, `path`.h264: who sees the latter sees a whole clip."""
    meta = {"width": clip.width, "height": clip.height, "fps": clip.fps, "shown": clip.shown}
    path.with_suffix(".json").write_text(json.dumps(meta), encoding="utf-8")
    temporary = path.with_suffix(f".{os.getpid()}.part")
    start = b"\x00\x00\x00\x01"
    temporary.write_bytes(b"".join(start + nal for unit in clip.units for nal in unit.nal_units))
    temporary.replace(path.with_suffix(".h264"))


def load(path: Path) -> Clip:
    """Reads what `save` wrote."""
    meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Clip(
        width=meta["width"],
        height=meta["height"],
        fps=meta["fps"],
        units=tuple(h264.access_units(path.with_suffix(".h264").read_bytes())),
        shown=tuple(meta["shown"]),
    )


def make(recipe: Recipe, cache: Path) -> None:
    """Draws a scene once and encodes it at both sizes."""
    cv2.setNumThreads(1)  # the processes share the cores already
    main = Encoder(MAIN_SIZE, fps=recipe.fps, gop=recipe.gop, kbps=MAIN_KBPS, profile=recipe.profile)
    sub = Encoder(SUB_SIZE, fps=recipe.fps, gop=recipe.gop, kbps=SUB_KBPS)
    large: list[tuple[bytes, int]] = []
    small: list[tuple[bytes, int]] = []
    for big, little in _pictures(recipe):
        large += main.encode(big)
        small += sub.encode(little)
    for stream, size, out in (
        ("main", MAIN_SIZE, large + main.flush()),
        ("sub", SUB_SIZE, small + sub.flush()),
    ):
        units = h264.access_units(b"".join(data for data, _ in out))
        clip = Clip(
            width=size[0],
            height=size[1],
            fps=recipe.fps,
            units=tuple(units),
            shown=tuple(pts for _, pts in out),
        )
        save(clip, cache / recipe.name(stream))


def _pictures(recipe: Recipe) -> Iterator[tuple[Picture, Picture]]:
    count = round(recipe.seconds * recipe.fps)
    scene = scenes.Scene(
        recipe.scene, label=recipe.label, camera_id=recipe.camera_id, period_s=recipe.seconds
    )
    for index in range(count):
        yield scene.draw(index / recipe.fps)


def ensure(recipes: Sequence[Recipe], cache: Path, *, processes: int | None = None) -> int:
    """Makes the clips that the cache lacks, on all cores. Returns how many recipes had to be cooked."""
    cache.mkdir(parents=True, exist_ok=True)
    missing = [
        recipe
        for recipe in dict.fromkeys(recipes)
        if not all((cache / recipe.name(stream)).with_suffix(".h264").exists() for stream in ("main", "sub"))
    ]
    if not missing:
        return 0
    workers = min(processes or os.cpu_count() or 1, len(missing))
    if workers == 1:
        for recipe in missing:
            make(recipe, cache)
    else:
        import multiprocessing

        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for done in [pool.submit(make, recipe, cache) for recipe in missing]:
                done.result()
    return len(missing)


# -- clips made out of clips, for faults --


def derive(clip: Clip, fault: str) -> Clip:
    """A clip of one or two GOPs that shows the fault: `freeze`, `black`, `resolution` or `bframes`."""
    pictures = _decode(clip, count=1 if fault in ("freeze", "black") else 2 * clip.fps)
    size = (clip.width, clip.height)
    kbps = MAIN_KBPS if clip.height >= 720 else SUB_KBPS
    if fault == "freeze":
        pictures = pictures[:1] * (2 * clip.fps)
    elif fault == "black":
        black = np.full_like(pictures[0], 128)
        black[: clip.height] = 16
        pictures = [black] * (2 * clip.fps)
    elif fault == "resolution":
        size = (clip.width * 3 // 4 // 16 * 16, clip.height * 3 // 4 // 16 * 16)
        pictures = [
            np.asarray(
                cv2.cvtColor(
                    cv2.resize(cv2.cvtColor(p, cv2.COLOR_YUV2BGR_I420), size), cv2.COLOR_BGR2YUV_I420
                ),
                np.uint8,
            )
            for p in pictures
        ]
    elif fault != "bframes":
        raise ValueError(f"no clip can show {fault}")
    bframes = 2 if fault == "bframes" else 0
    encoder = Encoder(
        size,
        fps=clip.fps,
        gop=len(pictures),
        kbps=kbps,
        profile="main" if bframes else "baseline",
        bframes=bframes,
    )
    return encode_clip(pictures, encoder, clip.fps)


def _decode(clip: Clip, count: int) -> list[Picture]:
    context: Any = av.CodecContext.create("h264", "r")
    context.thread_count = 1
    pictures: list[Picture] = []
    for unit in clip.units:
        packet: Any = av.Packet(b"".join(b"\x00\x00\x00\x01" + nal for nal in unit.nal_units))
        for frame in context.decode(packet):
            pictures.append(frame.to_ndarray(format="yuv420p"))
            if len(pictures) == count:
                return pictures
    return (
        pictures
        + [frame.to_ndarray(format="yuv420p") for frame in context.decode(None)][: count - len(pictures)]
    )


def tone(seconds: int, seed: int) -> bytes:
    """A-law street noise with a distant chime, 8 kHz mono, for cameras with a microphone."""
    random = np.random.default_rng(seed)
    count = seconds * 8000
    noise = np.convolve(random.normal(0, 900, count + 40), np.ones(40) / 12, "valid")[:count]
    at = np.arange(count) / 8000
    envelope = np.exp(-3 * (at % 2.5))
    chime = 3500 * envelope * np.sin(2 * np.pi * (440 + 60 * (seed % 7)) * at)
    samples = np.clip(noise + chime, -32768, 32767).astype(np.int16)
    context: Any = av.CodecContext.create("pcm_alaw", "w")
    context.sample_rate, context.layout, context.format = 8000, "mono", "s16"
    frame: Any = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for packet in context.encode(frame))
