"""Planted defects where no defective image is at hand: a piece of the image itself, moved.

CutPaste and CutPaste-Scar of Li et al., CVPR 2021, Section 2.2: a rectangle of the image is cut
out, turned, its colour shifted, and pasted elsewhere. Sizes are theirs, relative to the image.
Unlike there, of a few places the one that changes the picture most is taken, since background
pasted on background is no defect, and colours shift towards grey, where they are not clipped.

Legend: S side of the image's central square, in pixels; H, W, C as in `igd.data.images`.
"""

from __future__ import annotations

from math import cos, exp, log, radians, sin, sqrt

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

PATCH_AREA = (0.02, 0.15)
"""Share of the square that a patch covers."""
PATCH_ASPECT = (0.3, 3.3)
SCAR_WIDTH, SCAR_LENGTH = (2 / 256, 16 / 256), (10 / 256, 25 / 256)
"""Shares of the square's side."""
MAX_ANGLE = 45
"""Degrees, either way."""
COLOUR_SHIFT = (0.03, 0.1)
"""Shares of the range, for each channel of its own."""
THINNEST = 1.5
"""Pixels; a thinner rectangle, turned, may hold the middle of no pixel."""
DRAWS = 4
"""Places that a defect is tried at."""


def plant(image_HWC: NDArray[np.uint8],
          sha256: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A copy of an image with one defect, a patch or a scar.

    It lies within the image's largest central square, which every model sees.

    Args:
        image_HWC: uint8 RGB, at least 8 px a side.
        sha256: hex digest that seeds all randomness: equal digests, equal defects.

    Returns:
        uint8 (H, W, C); bool (H, W), where it was pasted.
    """
    rng = np.random.default_rng(int(sha256, 16))
    side = min(image_HWC.shape[:2])
    y0, x0 = (image_HWC.shape[0] - side) // 2, (image_HWC.shape[1] - side) // 2
    square_SSC = image_HWC[y0:y0 + side, x0:x0 + side]
    width, height = (_patch_shape if rng.integers(2) else _scar_shape)(rng, side)
    drawn = [_paste(square_SSC, rng, max(THINNEST, width), max(THINNEST, height))
             for _ in range(DRAWS)]
    top, left, pasted_hwC, mask_hw, _ = max(drawn, key=lambda paste: paste[-1])
    planted_HWC, mask_HW = image_HWC.copy(), np.zeros(image_HWC.shape[:2], bool)
    box = np.s_[y0 + top:y0 + top + len(mask_hw), x0 + left:x0 + left + mask_hw.shape[1]]
    planted_HWC[box][mask_hw] = pasted_hwC[mask_hw]
    mask_HW[box] = mask_hw
    return planted_HWC, mask_HW


def _patch_shape(rng: Generator, side: int) -> tuple[float, float]:
    """Width and height in pixels."""
    area = rng.uniform(*PATCH_AREA) * side**2
    aspect = exp(rng.uniform(log(PATCH_ASPECT[0]), log(PATCH_ASPECT[1])))
    return sqrt(area * aspect), sqrt(area / aspect)


def _scar_shape(rng: Generator, side: int) -> tuple[float, float]:
    return rng.uniform(*SCAR_WIDTH) * side, rng.uniform(*SCAR_LENGTH) * side


def _paste(square_SSC: NDArray[np.uint8], rng: Generator, width: float,
           height: float) -> tuple[int, int, NDArray[np.uint8], NDArray[np.bool_], int]:
    """One draw: a box by its top and left, its new pixels, which of them count, the change."""
    side = len(square_SSC)
    angle = radians(rng.uniform(-MAX_ANGLE, MAX_ANGLE))
    box_w = min(side, round(width * cos(angle) + height * abs(sin(angle))) + 1)
    box_h = min(side, round(width * abs(sin(angle)) + height * cos(angle)) + 1)
    left, top = int(rng.integers(side - box_w + 1)), int(rng.integers(side - box_h + 1))
    # each pixel of the box, seen from its middle, in the frame of the upright rectangle
    y, x = np.mgrid[:box_h, :box_w] + 0.5
    x, y = x - box_w / 2, y - box_h / 2
    across, down = x * cos(angle) + y * sin(angle), y * cos(angle) - x * sin(angle)
    mask_hw = (abs(across) <= width / 2) & (abs(down) <= height / 2)
    cut_x = width / 2 + rng.uniform(0, max(0.0, side - width)) + across
    cut_y = height / 2 + rng.uniform(0, max(0.0, side - height)) + down
    pasted_hwC = square_SSC[cut_y.astype(int).clip(0, side - 1),
                            cut_x.astype(int).clip(0, side - 1)]
    shift_C = 255 * rng.uniform(*COLOUR_SHIFT, size=3)
    shift_C = np.where(pasted_hwC[mask_hw].mean(0) < 128, shift_C, -shift_C)
    pasted_hwC = np.clip(np.rint(pasted_hwC + shift_C), 0, 255).astype(np.uint8)
    before_hwC = square_SSC[top:top + box_h, left:left + box_w]
    change = int(abs(pasted_hwC[mask_hw].astype(int) - before_hwC[mask_hw]).sum())
    return top, left, pasted_hwC, mask_hw, change
