"""What every model says of a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """Terms, score and heatmap; in all of them higher is more anomalous.

    Attributes:
        terms: column name (`igd.records.TERMS`) to a float tensor (N,).
        score_N: float64, the mixed image score.
        heatmap_NHW: float32 at the model's input size.
    """

    terms: dict[str, Tensor]
    score_N: Tensor
    heatmap_NHW: Tensor
