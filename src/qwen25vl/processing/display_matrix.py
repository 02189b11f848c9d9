"""Decoded frames as a player shows them:
rotated and mirrored by the display matrix that comes with each frame."""

from __future__ import annotations

from typing import Any

import numpy as np


def upright_rgb(frame: Any) -> np.ndarray:
    """The pixels of a PyAV frame as they are to be shown, uint8 [H, W, 3]."""
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    return np.ascontiguousarray(transform(pixels, np.frombuffer(bytes(matrix), np.int32)))


def transform(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply the nearest of the eight rotations and mirrorings to pixels [H, W, 3].

    matrix: nine numbers a b u c d v x y w in rows. A pixel at column p and row q is shown at column
    a·p + c·q and row b·p + d·q; translation and scale are left out. A matrix of zeros changes
    nothing.
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        column, row = a, d
    else:
        pixels = pixels.swapaxes(0, 1)
        column, row = c, b
    if column < 0:
        pixels = pixels[:, ::-1]
    if row < 0:
        pixels = pixels[::-1]
    return pixels
