"""Calibration: what models that have not seen a normal image say of it.

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
from igd.model.dense import DenseGaussian, extract, fit_standardised
from igd.model.igd import IGD
from igd.model.teacher import EfficientNetLite0

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


def fit_dense(image_NCHW: Tensor, config: Config,
              teacher: EfficientNetLite0) -> tuple[DenseGaussian, Calibration]:
    """Fits preset `fast` on all normals and calibrates it cross-conformally over all of them.

    Args:
        image_NCHW: uint8 RGB, (N, 3, S, S).
    """
    model, held = fit_standardised(extract(teacher, image_NCHW), config, teacher)
    score_N = torch.zeros(len(image_NCHW), dtype=torch.float64)
    peak_N = torch.zeros(len(image_NCHW))
    scale = DenseGaussian(config, teacher)  # unfitted: only its scale is used
    for fold in range(int(held.fold_N.max()) + 1):
        inside = held.fold_N == fold
        scale.standardise(held.dense_N[~inside], held.pooled_N[~inside])
        score_N[inside] = scale.mix(held.dense_N[inside], held.pooled_N[inside])
        peak_N[inside] = scale.heatmap(held.grid_NP[inside]).amax((1, 2))
    terms = {"dense_distance": held.dense_N, "pooled_distance": held.pooled_N}
    return model, Calibration(torch.arange(len(image_NCHW)), terms, score_N, peak_N)


def split_normals(count: int, config: Config) -> tuple[Tensor, Tensor]:
    """Indices to train on and indices held out for calibration, drawn with the config's seed."""
    held = min(max(2, round(config.calibration.fraction * count)), count - 2)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order[held:].sort().values, order[:held].sort().values


def split_held_out(held_M: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Indices that set the scale of the score, and those that calibrate it.

    Profile `standardised` takes half for the scale: an image that had a say in it looks more
    normal than a new one. The other profiles have no scale, and all indices calibrate.

    Raises:
        DataError: fewer than two of each.
    """
    if config.mix.profile != "standardised":
        return held_M[:0], held_M
    if len(held_M) < 2 * SCALE_MIN:
        raise DataError(f"{len(held_M)} normal images are held out of training: expected at least "
                        f"{2 * SCALE_MIN} for mix.profile=standardised (one half sets the scale, "
                        "the other calibrates); add normal images or raise calibration.fraction "
                        f"({config.calibration.fraction})")
    order = torch.randperm(len(held_M), generator=torch.Generator().manual_seed(config.seed))
    scale, rest = held_M[order].tensor_split([len(held_M) // 2])
    return scale.sort().values, rest.sort().values


def set_scale(model: IGD, image_KCHW: Tensor) -> None:
    """Sets the scale of profile `standardised` from normals (uint8, (K, 3, S, S)), in place.

    Raises:
        DivergedError: a term is not finite, or does not vary.
    """
    model.mix.scale_T2[:, 1] = 1  # any scale: a model without one gives no terms either
    index_K = torch.arange(len(image_KCHW))
    model.mix.standardise(score_held_out(model, image_KCHW, index_K).terms)


def score_held_out(model: nn.Module, image_NCHW: Tensor, index_M: Tensor) -> Calibration:
    """Scores held-out normals (uint8, (M, 3, S, S)) with the final model.

    Raises:
        DivergedError: a score is not finite.
    """
    scored = model(image_NCHW)
    if not bool(torch.isfinite(scored.score_N).all()):
        raise DivergedError("calibration: a held-out normal's score is not finite")
    return Calibration(index_M, scored.terms, scored.score_N, scored.heatmap_NHW.amax((1, 2)))
