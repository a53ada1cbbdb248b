"""The ladder from the paper's descriptor to preset `fast`'s, on the same features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from igd.config import Config
from igd.model.dense import fit_standardised
from igd.registry import load_teacher
from igd.score.baselines import BaselineScores, Sample, features_of

LADDER: Mapping[str, Mapping[str, Any]] = {
    "shared_isotropic": {  # the paper's h, on frozen features
        "mean": "shared", "covariance": "isotropic", "position_weight": 0.0, "pooled": False},
    "position_isotropic": {
        "mean": "position", "covariance": "isotropic", "position_weight": 1.0, "pooled": False},
    "shared_full": {
        "mean": "shared", "covariance": "full", "position_weight": 0.0, "pooled": False},
    "position_full": {  # PaDiM-like
        "mean": "position", "covariance": "full", "position_weight": 1.0, "pooled": False},
    "half_shrunk": {
        "mean": "position", "covariance": "full", "position_weight": 0.5, "pooled": False},
    "half_shrunk_pooled": {  # preset `fast`
        "mean": "position", "covariance": "full", "position_weight": 0.5, "pooled": True},
}
"""METHOD "Beyond the paper", row by row: fields of `DenseConfig`."""


def ladder(train: Sample, test: Sample, config: Config,
           group_N: Tensor | None = None) -> Iterator[tuple[str, BaselineScores]]:
    """Fits every row of `LADDER` on normals and scores the test images, one row at a time.

    Scores are on the scale of held-out normals, as in preset `fast`.

    Args:
        config: of preset `fast`; gives what the rows leave open.
        group_N: of the normals, as `igd.train.calibrate.fit_dense` has them.

    Raises:
        DataError: a sample has no features.
    """
    return ((name, _rung(train, test, replace(config, dense=replace(config.dense, **fields)),
                         group_N))
            for name, fields in LADDER.items())


def _rung(train: Sample, test: Sample, config: Config,
          group_N: Tensor | None) -> BaselineScores:
    model, _ = fit_standardised(features_of(train), config, load_teacher(), group_N)
    dense_N, pooled_N, grid_NP = model.distances(features_of(test))
    return BaselineScores(model.mix(dense_N, pooled_N).numpy(), model.heatmap(grid_NP).numpy())
