"""Keyframes for tests: OpenCV pictures encoded by x264 through PyAV, cut into NAL units as ingest does."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


def encode(picture: NDArray[np.uint8], *, qp: int = 26) -> tuple[bytes, ...]:
    """One IDR picture with SPS and PPS. qp: quantiser, 0 to 51; a camera's keyframe has 24 to 34."""
    height, width = picture.shape[:2]
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "qp": str(qp)}
    frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
    stream = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    units = [unit for unit in re.split(rb"\x00\x00\x00?\x01", stream) if unit]
    return tuple(unit for unit in units if unit[0] & 31 in (5, 7, 8))
