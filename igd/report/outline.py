"""Masks as the path of an SVG drawing, sharp at any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_RUNS = 3000
"""Straight pieces of a path; a mask of more is drawn coarser, to bound the page."""


def outline(mask_HW: NDArray[np.bool_]) -> str:
    """A path along the edges of the mask's pixels, in pixels of the mask; empty for an empty one.

    >>> outline(np.array([[False, True, True]]))
    'M1 0h2M1 1h2M1 0v1M3 0v1'
    """
    step = 1
    while True:
        across, down = _runs(mask_HW), _runs(mask_HW.T)
        if len(across) + len(down) <= MOST_RUNS:
            break
        mask_HW, step = _halved(mask_HW), 2 * step
    return "".join([*(f"M{x} {y}h{length}" for y, x, length in (across * step).tolist()),
                    *(f"M{x} {y}v{length}" for x, y, length in (down * step).tolist())])


def _runs(mask_HW: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Edges between rows: row below, first column and length of each straight piece, (R, 3)."""
    edge = np.diff(np.pad(mask_HW.astype(np.int8), ((1, 1), (0, 0))), axis=0) != 0
    turn = np.diff(np.pad(edge.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, begin = np.nonzero(turn > 0)
    _, end = np.nonzero(turn < 0)
    return np.stack([row, begin, end - begin], axis=1)


def _halved(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Half the height and width; a pixel is marked where one of its four was."""
    height, width = mask_HW.shape
    even_HW = np.pad(mask_HW, ((0, height % 2), (0, width % 2)))
    return np.asarray(even_HW.reshape(-(-height // 2), 2, -(-width // 2), 2).any(axis=(1, 3)))
