"""How well scores and heatmaps tell anomalous from normal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


def image_auroc(is_anomalous_N: NDArray[np.bool_],
                score_N: NDArray[np.floating[Any]]) -> float | None:
    """Area under the ROC curve of image scores; None where one of the classes is missing."""
    if is_anomalous_N.all() or not is_anomalous_N.any():
        return None
    return float(roc_auc_score(is_anomalous_N, score_N))


def pixel_auroc(mask_NHW: NDArray[np.bool_], heatmap_NHW: NDArray[np.float32]) -> float | None:
    """The same over all pixels of all images, pooled."""
    return image_auroc(mask_NHW.ravel(), heatmap_NHW.ravel())
