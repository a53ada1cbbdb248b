"""Calibration: what models that have not seen a normal image say of it.

Near-duplicates of an image never stand on the other side of a split: `igd.model.groups`.

`fast` (cross-conformal): the normals are split into K folds; each fold is scored by a model
fitted on the others, whose standardisation comes from the other folds' held-out distances. The
final model is fitted on all normals. Nets (split-conformal): the held-out normals are scored by
the final model; where the score has a scale, one part of them sets it and the rest calibrates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from igd.config import Config
from igd.errors import DataError, DivergedError
from igd.model.dense import DenseGaussian, Zeros, extract, fit_standardised
from igd.model.groups import hold_out
from igd.model.igd import CHUNK, IGD
from igd.model.teacher import EfficientNetLite0
from igd.train.images import Images

SCALE_MIN = 2
"""Images that a mean and a deviation take at least, and a calibration."""


@dataclass(frozen=True)
class Calibration:
    """Raw terms and scores of M calibration normals.

    Attributes:
        index_M: which of the given images each row is about.
        terms: column name to (M,) tensor.
        score_M: float64.
        heatmap_max_M: the highest value of each image's heatmap.
    """

    index_M: Tensor
    terms: dict[str, Tensor]
    score_M: Tensor
    heatmap_max_M: Tensor


def fit_dense(image_NCHW: Tensor, config: Config, teacher: EfficientNetLite0,
              group_N: Tensor | None = None,
              zeros: Zeros | None = None) -> tuple[DenseGaussian, Calibration]:
    """Fits preset `fast` on all normals and calibrates it cross-conformally over all of them.

    Args:
        image_NCHW: uint8 RGB, (N, 3, S, S).
        group_N: of `igd.model.groups`; by default every image is on its own.
        zeros: as in `extract`.

    Raises:
        DataError: all images are one group.
    """
    model, held = fit_standardised(extract(teacher, image_NCHW, zeros), config, teacher, group_N)
    score_N = torch.zeros(len(image_NCHW), dtype=torch.float64)
    peak_N = torch.zeros(len(image_NCHW))
    scale = DenseGaussian(config, teacher)  # unfitted: only its scale is used
    for fold in range(int(held.fold_N.max()) + 1):
        inside = held.fold_N == fold
        scale.standardise(held.dense_N[~inside], held.pooled_N[~inside])
        score_N[inside] = scale.mix(held.dense_N[inside], held.pooled_N[inside])
        peak_N[inside] = torch.stack([scale.heatmap(grid_1P).max()
                                      for grid_1P in torch.split(held.grid_NP[inside], 1)])
    terms = {"dense_distance": held.dense_N, "pooled_distance": held.pooled_N}
    return model, Calibration(torch.arange(len(image_NCHW)), terms, score_N, peak_N)


def split_normals(group_N: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Indices to train on and indices held out for calibration, whole groups each.

    Args:
        group_N: of `igd.model.groups`.

    Raises:
        DataError: all images are one group, or one side would get fewer than two images.
    """
    wanted = min(max(2, round(config.calibration.fraction * len(group_N))), len(group_N) - 2)
    held_N = hold_out(group_N, wanted)
    sides = (~held_N).nonzero().flatten(), held_N.nonzero().flatten()
    if min(map(len, sides)) < 2:
        raise DataError(f"{len(group_N)} normal images in {int(group_N.max()) + 1} groups of "
                        f"near-duplicates leave {len(sides[0])} to train on and {len(sides[1])} "
                        "to calibrate: expected at least two of each; add normal images")
    return sides


def split_held_out(held_M: Tensor, group_N: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Indices that set the scale of the score, and those that calibrate it.

    Profile `standardised` takes half for the scale: an image that had a say in it looks more
    normal than a new one. The other profiles have no scale, and all indices calibrate.

    Args:
        group_N: of all normals.

    Raises:
        DataError: fewer than two of each.
    """
    if config.mix.profile != "standardised":
        return held_M[:0], held_M
    _, group_M = torch.unique(group_N[held_M], return_inverse=True)
    if len(held_M) >= 2 * SCALE_MIN and bool(group_M.any()):
        sets_scale_M = hold_out(group_M, len(held_M) // 2)
        scale, rest = held_M[sets_scale_M], held_M[~sets_scale_M]
        if min(len(scale), len(rest)) >= SCALE_MIN:
            return scale, rest
    raise DataError(f"{len(held_M)} normal images are held out of training: expected at least "
                    f"{2 * SCALE_MIN} for mix.profile=standardised (one half sets the scale, "
                    "the other calibrates, near-duplicates on one side); add normal images or "
                    f"raise calibration.fraction ({config.calibration.fraction})")


def set_scale(model: IGD, image_KCHW: Tensor | Images) -> None:
    """Sets the scale of profile `standardised` from normals (uint8, (K, 3, S, S)), in place.

    Raises:
        DivergedError: a term is not finite, or does not vary.
    """
    model.mix.scale_T2[:, 1] = 1  # any scale: a model without one gives no terms either
    index_K = torch.arange(len(image_KCHW))
    model.mix.standardise(score_held_out(model, image_KCHW, index_K).terms)


def score_held_out(model: nn.Module, image_MCHW: Tensor | Images,
                   index_M: Tensor) -> Calibration:
    """Scores held-out normals (uint8, (M, 3, S, S)) with the final model.

    Raises:
        DivergedError: a score is not finite.
    """
    parts = []
    for chunk in torch.split(torch.arange(len(index_M)), CHUNK):  # the model's own: same bits
        scored = model(image_MCHW[chunk])
        parts.append((scored.score_N, scored.heatmap_NHW.amax((1, 2)), scored.terms))
    score_M, peak_M = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    if not bool(torch.isfinite(score_M).all()):
        raise DivergedError("calibration: a held-out normal's score is not finite")
    terms = {name: torch.cat([part[2][name] for part in parts]) for name in parts[0][2]}
    return Calibration(index_M, terms, score_M, peak_M)
