"""A machine-readable clock in the picture, for glass-to-glass measurements.

Along the top edge lie 60 square cells of width/64 pixels (20 at 1280, 10 at 640), from x = 0: four sync
cells white, black, white, black; 48 bits of milliseconds since 1970, most significant first, white is one;
eight bits of check sum, the sum of the six time bytes modulo 256. It tells when the picture was drawn,
before encoding. A page reads it by drawing the video on a canvas and taking the luma at the centre of each
cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "cell_size", "read", "write"]

CELLS = 60
_SYNC = (1, 0, 1, 0)
_WHITE, _BLACK = 235, 16


def cell_size(width: int) -> int:
    """Edge of a cell in pixels."""
    return width // 64


def write(luma: NDArray[np.uint8], milliseconds: int) -> None:
    """Draws the strip into the luma plane."""
    size = cell_size(luma.shape[1])
    octets = milliseconds.to_bytes(6, "big")
    check = bytes((sum(octets) & 0xFF,))
    bits = np.concatenate((np.array(_SYNC, np.uint8), np.unpackbits(np.frombuffer(octets + check, np.uint8))))
    luma[:size, : CELLS * size] = np.repeat(np.where(bits == 1, _WHITE, _BLACK).astype(np.uint8), size)


def read(luma: NDArray[np.uint8]) -> int | None:
    """Milliseconds since 1970, or None when there is no strip or its check sum is wrong."""
    size = cell_size(luma.shape[1])
    row = luma[size // 2, size // 2 : CELLS * size : size]
    bits = (row > 127).astype(np.uint8)
    if len(bits) != CELLS or tuple(bits[:4]) != _SYNC:
        return None
    octets = np.packbits(bits[4:]).tobytes()
    if sum(octets[:6]) & 0xFF != octets[6]:
        return None
    return int.from_bytes(octets[:6], "big")
