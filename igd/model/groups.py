"""Splits of normal images that keep near-duplicates on one side.

A split sees a group number for each image: images of one group stay together, and groups are
drawn in the order of their numbers. `igd.data.twins.draw_groups` finds them.

Legend: N images, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from igd.errors import DataError


def alone(count: int, seed: int) -> Tensor:
    """Every image its own group, in an order drawn with a seed; (N,)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    group_N = torch.empty(count, dtype=torch.long)
    group_N[order] = torch.arange(count)
    return group_N


def folds(group_N: Tensor, most: int) -> Tensor:
    """A fold number below `most` for each image; each group goes to the smallest fold, (N,).

    Raises:
        DataError: fewer than two groups.
    """
    size_G = _sizes(group_N)
    fold_G = torch.empty_like(size_G)
    filled_F = torch.zeros(min(most, len(size_G)), dtype=torch.long)
    for group, size in enumerate(size_G):
        fold_G[group] = filled_F.argmin()
        filled_F[fold_G[group]] += size
    return fold_G[group_N]


def hold_out(group_N: Tensor, wanted: int) -> Tensor:
    """Which images are held out, about `wanted`: bool (N,), at least one image on either side.

    Raises:
        DataError: fewer than two groups.
    """
    size_G = _sizes(group_N)
    taken_G = torch.zeros(len(size_G), dtype=torch.bool)
    held = 0
    for group, size in enumerate(size_G.tolist()):
        if abs(held + size - wanted) < abs(held - wanted) and held + size < len(group_N):
            taken_G[group] = True
            held += size
    if not held:  # every group is more than twice what is wanted
        taken_G[size_G.argmin()] = True
    return taken_G[group_N]


def _sizes(group_N: Tensor) -> Tensor:
    size_G = torch.bincount(group_N)
    if len(size_G) < 2:
        raise DataError(f"all {len(group_N)} normal images are near-duplicates of one another: "
                        "expected at least two that differ, one for each side of the calibration "
                        "split; add images of other parts, or raise calibration.twin_correlation")
    return size_G
