"""What looking at pictures costs: keyframes of the simulated scenes, decoded, judged and made into JPEG.

    python -m benchmarks.pictures --cameras 768 --interval 60

Prints one JSON object. cpu_ms: of one thread for each picture, decoding and numbers apart. percent_of_a_core: of
as many cameras, each judged once in the interval. kib_per_camera: what a judge keeps.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import av
import cv2
import numpy as np

from gateway.streams.picture_health import PictureJudge, measure
from gateway.streams.pictures import decode_keyframe, snapshot_jpeg
from simulators import scenes

SIZES = {"640x360": 400, "1280x720": 2000}
"""Size and kbit/s of a sub and a main stream."""


def keyframe(scene: scenes.Scene, size: str, kbps: int) -> tuple[bytes, ...]:
    """An IDR picture of a stream of that rate: the two seconds before it teach the rate control."""
    width, height = map(int, size.split("x"))
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.framerate, encoder.gop_size, encoder.bit_rate = 25, 50, kbps * 1000
    encoder.options = {"preset": "veryfast", "tune": "zerolatency", "x264-params": "slices=1:threads=1"}
    found = b""
    for number in range(51):
        main, sub = scene.draw(number / 25)
        picture = main if height == 720 else sub
        for packet in encoder.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")):
            found = bytes(packet) if packet.is_keyframe else found
    return tuple(unit.rstrip(b"\0") for unit in found.split(b"\0\0\1") if unit.rstrip(b"\0"))


def cpu_ms(work: Callable[[], object], times: int) -> float:
    """Median of the thread's CPU time for one call."""
    spent = []
    for _ in range(times):
        before = time.thread_time_ns()
        work()
        spent.append((time.thread_time_ns() - before) / 1e6)
    return statistics.median(spent)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cameras", type=int, default=768)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between two looks at a camera")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--times", type=int, default=30, help="each picture is looked at")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    drawn = [scenes.Scene(4 * number % 23, label="成灌路口") for number in range(arguments.scenes)]
    result: dict[str, Any] = {}
    for size, kbps in SIZES.items():
        keyframes = [keyframe(scene, size, kbps) for scene in drawn]
        pictures = [decode_keyframe(units) for units in keyframes]

        def median(work: Callable[[Any], object], of: list[Any]) -> float:
            return statistics.median(cpu_ms(functools.partial(work, one), arguments.times) for one in of)

        decoding, numbers = median(decode_keyframe, keyframes), median(measure, pictures)
        judging = median(functools.partial(PictureJudge().see, now_ms=0), [measure(one) for one in pictures])
        whole = decoding + numbers + judging
        result[size] = {
            "keyframe_kib": round(statistics.median(sum(map(len, units)) for units in keyframes) / 1024, 1),
            "cpu_ms": {
                "decode": round(decoding, 2),
                "measure": round(numbers, 2),
                "judge": round(judging, 3),
                "whole": round(whole, 2),
                "snapshot_jpeg": round(median(snapshot_jpeg, keyframes), 2),
            },
            "percent_of_a_core": round(whole / 1000 * arguments.cameras / arguments.interval * 100, 2),
        }
    result["kib_per_camera"] = round(judge_octets() / 1024, 1)
    print(json.dumps(result, ensure_ascii=False))


def judge_octets() -> float:
    """Memory that a judge keeps after it has seen pictures that differ."""
    random = np.random.default_rng(1)
    pictures = [random.integers(0, 255, (360, 640, 3), dtype=np.uint8) for _ in range(4)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    judges = [PictureJudge() for _ in range(20)]
    for judge in judges:
        for now_ms, picture in enumerate(pictures):
            judge.see(measure(picture), now_ms)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / len(judges)


if __name__ == "__main__":
    main()
