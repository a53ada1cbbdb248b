"""How well scores and heatmaps tell anomalous from normal; higher is always more anomalous.

Everything here is exact: thresholds are all distinct values. AUROC and AU-PRO are areas under one
curve: as the threshold falls, x is the number of normals at or above it and y the share of the
anomalous. Each anomalous value adds one step to y, which rises from x = the count of normals
above it to x = the count at least as high (so that a tie counts half). An area is therefore a sum
over anomalous values, for which the normals alone have to be sorted together.

Letters: N images, H W pixels, P anomalous and Q normal values, K thresholds, falling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Masks = NDArray[np.bool_] | Sequence[NDArray[np.bool_]]
"""(N, H, W), or N arrays (H, W) of their own sizes; True is anomalous."""
Heatmaps = NDArray[np.float32] | Sequence[NDArray[np.float32]]
"""The same shapes."""

MAX_FPR = 0.3
"""The limit of AU-PRO that MVTec AD reports."""


def image_auroc(is_anomalous_N: NDArray[np.bool_],
                score_N: NDArray[np.floating[Any]]) -> float | None:
    """Area under the ROC curve of image scores; None where one of the classes is missing.

    Raises:
        ValueError: a NaN, a label that is no bool, or lengths that differ.
    """
    check_pair(is_anomalous_N, score_N, "scores")
    if is_anomalous_N.all() or not is_anomalous_N.any():
        return None
    return partial_auroc(score_N[is_anomalous_N], np.sort(score_N[~is_anomalous_N]))


def image_average_precision(is_anomalous_N: NDArray[np.bool_],
                            score_N: NDArray[np.floating[Any]]) -> float | None:
    """Mean precision over the steps of recall, not interpolated; None as for `image_auroc`."""
    check_pair(is_anomalous_N, score_N, "scores")
    if is_anomalous_N.all() or not is_anomalous_N.any():
        return None
    order, last_K = ranking(score_N)
    return float(average_precision(np.cumsum(~is_anomalous_N[order])[last_K],
                                   np.cumsum(is_anomalous_N[order])[last_K]))


def balanced_accuracy(is_anomalous_N: NDArray[np.bool_],
                      flagged_N: NDArray[np.bool_]) -> float | None:
    """Mean of the share of anomalous images flagged and of normal ones not flagged."""
    check_pair(is_anomalous_N, flagged_N, "flags")
    if flagged_N.dtype != bool:
        raise ValueError(f"flags are {flagged_N.dtype}, expected bool")
    if is_anomalous_N.all() or not is_anomalous_N.any():
        return None
    return float(flagged_N[is_anomalous_N].mean() + (~flagged_N[~is_anomalous_N]).mean()) / 2


def pixel_auroc(mask_NHW: Masks, heatmap_NHW: Heatmaps) -> float | None:
    """Area under the ROC curve of all pixels of all images, pooled; None as for `image_auroc`.

    Memory and errors as for `au_pro`.
    """
    images = list(split(mask_NHW, heatmap_NHW))
    return pooled_auroc(images, pool(images))


def mean_image_pixel_auroc(mask_NHW: Masks, heatmap_NHW: Heatmaps) -> float | None:
    """The paper's protocol: mean over anomalous images of the pixel AUROC within the image.

    Images with pixels of one class only are left out; None where no image is left. Errors as for
    `au_pro`; memory is that of one image.
    """
    aurocs = [image.auroc() for image in split(mask_NHW, heatmap_NHW)]
    known = [auroc for auroc in aurocs if auroc is not None]
    return float(np.mean(known)) if known else None


def au_pro(mask_NHW: Masks, heatmap_NHW: Heatmaps, max_fpr: float = MAX_FPR) -> float | None:
    """Area under the per-region overlap curve up to a false-positive rate, divided by that rate.

    Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021: the overlap of a region is the
    share of its pixels at or above the threshold; a region is a connected part of a mask, with
    8 neighbours, as in the authors' evaluation code; the curve is the mean overlap of all regions
    of all images against the share of all normal pixels of all images; trapezoids, interpolated
    at the limit.

    Memory: two copies of the heatmaps, and at most 8 float64 per pixel of the largest region.

    Returns:
        0 to 1; None where there is no region or no normal pixel.

    Raises:
        ValueError: a NaN in a heatmap, a mask that is not (H, W) of bool, shapes that differ, or
            a limit that is no rate.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr {max_fpr!r}: expected a rate above 0, at most 1")
    images = list(split(mask_NHW, heatmap_NHW))
    return pooled_pro(images, pool(images), max_fpr)


@dataclass(frozen=True)
class ImagePixels:
    """The heatmap values of one image by what the mask says.

    Attributes:
        normal_Q: ascending.
        regions: one array for each connected part of the mask.
    """

    normal_Q: NDArray[np.float32]
    regions: list[NDArray[np.float32]]

    def auroc(self) -> float | None:
        """Within the image; None where a class is missing."""
        return pooled_auroc([self], self.normal_Q)


def split(mask_NHW: Masks, heatmap_NHW: Heatmaps) -> Iterator[ImagePixels]:
    """Image by image; raises ValueError as `au_pro` does."""
    if len(mask_NHW) != len(heatmap_NHW):
        raise ValueError(f"{len(mask_NHW)} masks for {len(heatmap_NHW)} heatmaps")
    for index, (mask_HW, heatmap_HW) in enumerate(zip(mask_NHW, heatmap_NHW, strict=True)):
        check_pair(mask_HW, heatmap_HW, f"heatmap {index}", ndim=2)
        yield ImagePixels(np.sort(heatmap_HW[~mask_HW]), _regions(mask_HW, heatmap_HW))


def _regions(mask_HW: NDArray[np.bool_],
             heatmap_HW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    if not mask_HW.any():
        return []
    labels_HW, _ = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    return [heatmap_HW[box][labels_HW[box] == label]
            for label, box in enumerate(ndimage.find_objects(labels_HW), start=1)]


def pool(images: Sequence[ImagePixels]) -> NDArray[np.float32]:
    """The normal pixels of all images, ascending."""
    normal_Q = np.concatenate([image.normal_Q for image in images] or [np.empty(0, np.float32)])
    normal_Q.sort()
    return normal_Q


def pooled_auroc(images: Sequence[ImagePixels], normal_Q: NDArray[np.float32]) -> float | None:
    """The AUROC of all anomalous pixels of the images against these normal ones."""
    regions = [region for image in images for region in image.regions]
    if not regions or not len(normal_Q):
        return None
    return float(np.average([partial_auroc(region, normal_Q) for region in regions],
                            weights=[len(region) for region in regions]))


def pooled_pro(images: Sequence[ImagePixels], normal_Q: NDArray[np.float32],
               max_fpr: float = MAX_FPR) -> float | None:
    """The AU-PRO of all regions of the images, alike in weight, against these normal pixels."""
    regions = [region for image in images for region in image.regions]
    if not regions or not len(normal_Q):
        return None
    return float(np.mean([partial_auroc(region, normal_Q, max_fpr) for region in regions]))


def partial_auroc(anomalous_P: NDArray[np.floating[Any]], normal_Q: NDArray[np.floating[Any]],
                  max_fpr: float = 1.0) -> float:
    """Area under the ROC curve up to a false-positive rate, divided by that rate.

    Args:
        anomalous_P: in any order, at least one.
        normal_Q: ascending, at least one.
    """
    anomalous_P = np.sort(anomalous_P)  # sorted queries search seven times faster
    above_P = len(normal_Q) - np.searchsorted(normal_Q, anomalous_P, side="right")
    at_least_P = len(normal_Q) - np.searchsorted(normal_Q, anomalous_P, side="left")
    limit = max_fpr * len(normal_Q)
    return float(step_area(above_P, at_least_P, limit).mean()) / limit


def step_area(above: NDArray[Any], at_least: NDArray[Any],
              limit: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Area up to x = limit under a line that rises from 0 at `above` to 1 at `at_least`."""
    risen = np.maximum(np.minimum(at_least, limit) - above, 0.0)
    area: NDArray[np.float64] = (risen ** 2 / np.maximum(at_least - above, 1) / 2
                                 + np.maximum(limit - at_least, 0))
    return area


def ranking(score_N: NDArray[np.floating[Any]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order of falling scores, and the last place of each distinct one in it."""
    order = np.argsort(-score_N)
    falling_N = score_N[order]
    return order, np.flatnonzero(np.append(falling_N[1:] != falling_N[:-1], True))


def average_precision(normals_K: NDArray[Any], anomalous_K: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over thresholds of precision times the gain in recall.

    Args:
        normals_K, anomalous_K: how many stand at or above each threshold; the last counts all.
            Axes before the last are kept.
    """
    # before the first image of a resample there is neither gain nor precision: 0 * 0 / 1
    precision_K = anomalous_K / np.maximum(normals_K + anomalous_K, 1)
    gain_K = np.diff(anomalous_K, axis=-1, prepend=0)
    mean: NDArray[np.float64] = (precision_K * gain_K).sum(axis=-1) / anomalous_K[..., -1]
    return mean


def check_pair(truth: NDArray[np.bool_], value: NDArray[Any], name: str, ndim: int = 1) -> None:
    """Raises ValueError where two arrays do not go together."""
    if truth.shape != value.shape:
        raise ValueError(f"{name}: shape {value.shape} for a truth of shape {truth.shape}")
    if truth.ndim != ndim:
        raise ValueError(f"{name}: shape {value.shape}, expected {ndim} dimensions")
    if truth.dtype != bool:
        raise ValueError(f"{name}: truth is {truth.dtype}, expected bool")
    if bad := int(np.isnan(value).sum()):
        raise ValueError(f"{name}: {bad} of {value.size} values are NaN")
