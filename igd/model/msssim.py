"""MS-SSIM (Eq. 9) and its map, with the constants of METHOD for both branches.

Luminance counts at the last scale only; C3 = C2 / 2, so that contrast and structure are one
term, `cs`. Windows are valid (no padding) and separable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

K1 = 0.01
K2 = 0.03
WINDOW_SIGMA = 1.5
CS_MIN = 1e-6
"""A scale's mean similarity is not let below this: its power has no gradient at 0."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Window side in pixels, and the exponent of each scale, finest first."""

    window: int
    weights: tuple[float, ...]


GLOBAL = Scales(window=11, weights=(0.0448, 0.2856, 0.3001, 0.2363, 0.1333))
LOCAL = Scales(window=3, weights=(0.0516, 0.3295, 0.3463, 0.2726))


@dataclass(frozen=True)
class Similarity:
    """Maps of one scale, (N, C, H', W'), over the valid positions of the window.

    Attributes:
        cs: contrast and structure.
        mean_squares: sum of the squares of both local means.
        mean_product: their product.
        c1: (K1 L)^2.
    """

    cs: Tensor
    mean_squares: Tensor
    mean_product: Tensor
    c1: float

    @property
    def ssim(self) -> Tensor:
        """Luminance times `cs`; of use only where it is asked for, so computed there."""
        return (2 * self.mean_product + self.c1) / (self.mean_squares + self.c1) * self.cs


def similarities(x_NCHW: Tensor, y_NCHW: Tensor, scales: Scales,
                 data_range: float) -> list[Similarity]:
    """The maps of every scale, finest first; each scale is the 2x2 mean of the one before.

    Args:
        data_range: largest possible difference of two pixels, L in the paper.
    """
    maps = []
    for i in range(len(scales.weights)):
        if i:
            x_NCHW, y_NCHW = F.avg_pool2d(x_NCHW, 2), F.avg_pool2d(y_NCHW, 2)
        maps.append(_similarity(x_NCHW, y_NCHW, scales.window, data_range))
    return maps


def ms_ssim(maps: list[Similarity], scales: Scales) -> Tensor:
    """Eq. 9: one value per image, (N,), the mean over channels; 1 for equal images."""
    means = [maps_j.cs.mean((2, 3)) for maps_j in maps[:-1]]
    means.append(maps[-1].ssim.mean((2, 3)))
    means_SNC = torch.stack(means).clamp(min=CS_MIN)
    weights_S11 = means_SNC.new_tensor(scales.weights)[:, None, None]
    return means_SNC.pow(weights_S11).prod(0).mean(1)


def dissimilarity_map(maps: list[Similarity], scales: Scales, side: int) -> Tensor:
    """Weighted sum over scales of 1 - SSIM, mean over channels, (N, side, side).

    Every map is brought to full size centre-aligned: the border that valid windows cut off is
    replicated, so that each value stays over the centre of its window.
    """
    total = torch.zeros((), device=maps[0].cs.device)
    for weight, maps_j in zip(scales.weights, maps, strict=True):
        ssim_N1HW = maps_j.ssim.mean(1, keepdim=True)
        margin = [scales.window // 2] * 4
        full_N1HW = F.interpolate(F.pad(1 - ssim_N1HW, margin, mode="replicate"),
                                  size=(side, side), mode="bilinear", align_corners=False)
        total = total + weight * full_N1HW.squeeze(1)
    return total


def stretched_map(maps: list[Similarity], scales: Scales, side: int) -> Tensor:
    """The same as the authors make it: every valid map stretched to the full side by nearest.

    Values stand up to 67 px from where they belong (profile `official`).
    """
    total = torch.zeros((), device=maps[0].cs.device)
    for weight, maps_j in zip(scales.weights, maps, strict=True):
        ssim_N1HW = maps_j.ssim.mean(1, keepdim=True)
        full_N1HW = F.interpolate(1 - ssim_N1HW, size=(side, side), mode="nearest")
        total = total + weight * full_N1HW.squeeze(1)
    return total


def _similarity(x_NCHW: Tensor, y_NCHW: Tensor, window: int, data_range: float) -> Similarity:
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    # Four planes, not five: only the sum of the two variances is needed.
    planes_NCHW = torch.cat([x_NCHW, y_NCHW, x_NCHW.square() + y_NCHW.square(),
                             x_NCHW * y_NCHW], 1)
    mu_x, mu_y, squares, product = _blur(planes_NCHW, window).chunk(4, 1)
    mu_squares, mu_product = mu_x.square() + mu_y.square(), mu_x * mu_y
    cs = (2 * (product - mu_product) + c2) / (squares - mu_squares + c2)
    return Similarity(cs, mu_squares, mu_product, c1)


def _blur(x_NCHW: Tensor, window: int) -> Tensor:
    """The valid Gaussian window, one axis after the other."""
    taps = torch.arange(window, dtype=torch.float64) - window // 2
    kernel = torch.exp(-taps.square() / (2 * WINDOW_SIGMA**2))
    channels = x_NCHW.shape[1]
    kernel_CK = (kernel / kernel.sum()).to(x_NCHW).expand(channels, -1)
    x_NCHW = F.conv2d(x_NCHW, kernel_CK[:, None, :, None], groups=channels)
    return F.conv2d(x_NCHW, kernel_CK[:, None, None, :], groups=channels)
