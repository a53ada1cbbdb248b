"""How good a model is on an MVTec AD category's test images."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igd.config import ImageConfig
from igd.data.datasets import TestImage, read_image, test_images
from igd.data.images import prepare, prepare_mask
from igd.errors import DataError, ImageError
from igd.score.conformal import clopper_pearson
from igd.score.metrics import image_auroc, pixel_auroc
from igd.score.scorer import Scorer


def evaluate_category(data: str, category: str, scorer: Scorer, *,
                      fpr: float = 0.05) -> dict[str, Any]:
    """Scores the test images and compares with their labels and masks.

    Masks are brought to the model's input by nearest neighbour. Test images that cannot be read
    are named in `skipped`.

    Returns:
        image_auroc and pixel_auroc (None where a class or the masks are missing), counts, the
        realised false-positive rate at `fpr` with its 95% interval, images/s.

    Raises:
        DataError: no test images, or a mask of another aspect ratio.
    """
    tests = test_images(data, category)
    judge = scorer.judge(fpr=fpr, review_fpr=fpr)
    image_config = scorer.bundle.config.image
    scores: list[float] = []
    heatmaps: list[NDArray[np.float32]] = []
    masks: list[NDArray[np.bool_]] = []
    kept: list[TestImage] = []
    skipped: list[str] = []
    unmasked = 0
    began = time.monotonic()
    for test in tests:
        try:
            image_HWC, _ = read_image(test.ref, image_config)
        except ImageError as error:
            skipped.append(f"{test.ref.key} ({error.reason})")
            continue
        batch = scorer.score([prepare(image_HWC, image_config)])
        kept.append(test)
        scores.append(float(batch.scores[0]))
        mask = _mask(test, (image_HWC.shape[1], image_HWC.shape[0]), image_config)
        if mask is None:
            unmasked += 1
        else:
            masks.append(mask)
            heatmaps.append(batch.heatmaps[0])
    seconds = time.monotonic() - began
    if not kept:
        raise DataError(f"none of the {len(tests)} test images of {category} can be read: "
                        f"{', '.join(skipped[:3])}")
    is_anomalous = np.array([test.is_anomalous for test in kept])
    flagged = np.array(scores)[~is_anomalous] > judge.levels.anomalous.threshold
    return {
        "preset": scorer.bundle.preset, "version": scorer.bundle.version,
        "image_auroc": image_auroc(is_anomalous, np.array(scores)),
        "pixel_auroc": pixel_auroc(np.stack(masks), np.stack(heatmaps)) if masks else None,
        "images": len(kept), "anomalous": int(is_anomalous.sum()), "skipped": skipped,
        "without_mask": unmasked,
        "fpr_asked": judge.levels.anomalous.alpha, "fpr_realised": _share(flagged),
        "fpr_interval_95": clopper_pearson(int(flagged.sum()), len(flagged)),
        "seconds": round(seconds, 3), "images_per_s": round(len(kept) / seconds, 2),
    }


def _share(flagged: NDArray[np.bool_]) -> float | None:
    return float(flagged.mean()) if len(flagged) else None


def _mask(test: TestImage, source_size: tuple[int, int],
          config: ImageConfig) -> NDArray[np.bool_] | None:
    """The mask in input pixels; empty for a normal image, None where an anomalous one has none."""
    if not test.is_anomalous:
        return np.zeros((config.size, config.size), bool)
    if test.mask is None:
        return None
    try:
        mask_HWC, _ = read_image(test.mask, config)
        return prepare_mask(mask_HWC[..., 0], source_size, config)
    except DataError as error:
        raise DataError(f"{test.mask.uri}: {error}") from error
