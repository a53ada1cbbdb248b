"""How good a model is on an MVTec AD category's test images, and what stands beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from igd.config import preset_config
from igd.data.datasets import TestSet, load_normals, load_tests, normal_images, test_images
from igd.data.twins import draw_groups
from igd.errors import DataError, ModelError
from igd.score import paper
from igd.score.baselines import BaselineScores, baselines, sample_of
from igd.score.bootstrap import Estimate, image_metrics, pixel_metrics
from igd.score.conformal import Rule, clopper_pearson
from igd.score.ladder import ladder
from igd.score.scorer import Scorer

Progress = Callable[[str], None]
RATES = (0.01, 0.05, 0.1)
"""False-positive rates at which the calibration is held against the normal test images."""
NO_PIXELS: dict[str, Estimate | None] = dict.fromkeys(
    ("pixel_auroc", "image_mean_pixel_auroc", "au_pro"))


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method made of the test images.

    Attributes:
        scores_N: float64; higher is more anomalous.
        metrics: of `igd.score.bootstrap`, with 95% intervals; None where a class or the masks
            are missing, or the method has no heatmaps.
    """

    scores_N: NDArray[np.float64]
    metrics: dict[str, Estimate | None]

    def document(self) -> dict[str, Any]:
        """Plain data: a number per metric, their intervals under `intervals_95`."""
        return _plain(self.metrics)


@dataclass(frozen=True, kw_only=True)
class DefectResult:
    """What the model made of one kind of defect.

    Attributes:
        images: that have it.
        caught: of them, scored above the threshold.
        pixel_share: of all anomalous pixels, those of this kind; pooled pixel metrics follow the
            kind that has most. None without masks.
        metrics: as of `MethodResult`, on its images and all normal ones.
    """

    images: int
    caught: int
    pixel_share: float | None
    metrics: dict[str, Estimate | None]

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {"images": self.images, "caught": self.caught, "pixel_share": self.pixel_share,
                **_plain(self.metrics)}


@dataclass(frozen=True, kw_only=True)
class FalsePositives:
    """How often normal test images are flagged at a calibrated false-positive rate.

    Attributes:
        asked: the rate.
        used: the smallest one that the calibration set supports, if that is larger.
        flagged, normal: test images.
    """

    asked: float
    used: float
    flagged: int
    normal: int

    @property
    def interval_95(self) -> tuple[float, float]:
        """Of the realised rate (Clopper-Pearson)."""
        return clopper_pearson(self.flagged, self.normal)

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "realised": self.flagged / self.normal,
                "interval_95": list(self.interval_95)}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One category's test images as the model, the baselines and the ladder see them.

    Attributes:
        fpr: asked for.
        rule: the calibrated decision at it, or at the smallest rate that is supported, which
            `balanced_accuracy` and `fpr_realised` are about.
        false_positives: at `RATES`; empty without normal test images.
        heatmaps_NHW: the model's.
        normal_scores_M: of the model's calibration normals.
        defects: the model's result on each kind of defect against all normal test images, where
            there are several kinds; the name is that of its folder.
        baselines, ladder: by name, in the order to print them.
        seconds: that the model took for the test images, decoding left out.
        equalised: whether brightness was equalised.
    """

    category: str
    preset: str
    version: str
    tests: TestSet
    fpr: float
    rule: Rule
    model: MethodResult
    false_positives: tuple[FalsePositives, ...]
    heatmaps_NHW: NDArray[np.float32]
    normal_scores_M: NDArray[np.float64]
    defects: dict[str, DefectResult]
    baselines: dict[str, MethodResult]
    ladder: dict[str, MethodResult]
    seconds: float
    equalised: bool

    @property
    def paper(self) -> dict[str, float]:
        """The paper's figures for the category, by metric."""
        return paper.mvtec(self.category)

    def document(self) -> dict[str, Any]:
        """Plain data, for JSON; the keys of the model's metrics stand at the top."""
        tests = self.tests
        flagged_M = self.model.scores_N[~tests.is_anomalous_N] > self.rule.threshold
        return {
            "preset": self.preset, "version": self.version, **self.model.document(),
            "images": len(tests), "anomalous": int(tests.is_anomalous_N.sum()),
            "skipped": [f"{key} ({reason})" for key, reason in tests.skipped],
            "without_mask": len(tests.without_mask), "empty_masks": list(tests.empty_masks),
            "fpr_asked": self.fpr, "fpr_used": self.rule.alpha,
            "fpr_realised": float(flagged_M.mean()) if len(flagged_M) else None,
            "fpr_interval_95": clopper_pearson(int(flagged_M.sum()), len(flagged_M)),
            "false_positives": [found.document() for found in self.false_positives],
            "brightness_equalised": self.equalised,
            "defects": {name: result.document() for name, result in self.defects.items()},
            "baselines": {name: result.document() for name, result in self.baselines.items()},
            "ladder": {name: result.document() for name, result in self.ladder.items()},
            "paper": self.paper,
            "seconds": round(self.seconds, 3),
            "images_per_s": round(len(tests) / self.seconds, 2),
        }


def evaluate_category(data: str, category: str, scorer: Scorer, *, fpr: float = 0.05,
                      with_ladder: bool = False, equalise: bool = False, resamples: int = 1000,
                      progress: Progress = lambda text: None) -> Evaluation:
    """Scores the test images with the model and the baselines, against labels and masks.

    The baselines are fitted on all of the category's normal training images in `data`; nets were
    trained without those held out for calibration.

    Args:
        fpr: false-positive rate of the decision that is judged.
        with_ladder: also fits and judges the descriptors of `igd.score.ladder`.
        equalise: brings every image to the mean grey level of the training normals first, so
            that a difference in brightness alone is worth nothing; the baselines are fitted on
            such images, the model and its threshold stay.
        resamples: of the test images, for the intervals.
        progress: told in a few words what is going on.

    Raises:
        ConfigError: a rate out of range.
        DataError: no readable test images or normals, none of them anomalous, or a mask of
            another aspect ratio.
        ModelError: a score or heatmap that is not finite.
    """
    config = scorer.bundle.config
    rule = scorer.judge(fpr=fpr, review_fpr=fpr).levels.anomalous

    def counted(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(f"{what} {done}/{total}") if done % 50 == 0 else None

    tests = load_tests(test_images(data, category), config.image,
                       progress=counted("reading test images"))
    if not tests.is_anomalous_N.any():
        raise DataError(f"none of the {len(tests)} readable test images of {category} in {data} is "
                        "anomalous; expected some in test/DEFECT/ beside those in test/good/")
    normals = load_normals(normal_images(data, category), config,
                           progress=counted("reading normals"))
    test_NHWC, normal_NHWC = tests.images_NHWC, normals.images_NHWC
    if equalise:
        level = float(normal_NHWC.mean())
        test_NHWC, normal_NHWC = (equalise_brightness(images, level)
                                  for images in (test_NHWC, normal_NHWC))
    progress(f"scoring {len(tests)} images")
    began = time.monotonic()
    batch = scorer.score(list(test_NHWC))
    seconds = time.monotonic() - began
    if not (np.isfinite(batch.scores).all() and np.isfinite(batch.heatmaps).all()):
        raise ModelError(f"the model of {category} gives scores or heatmaps that are not finite; "
                         "train it again")
    progress("fitting the baselines")
    train, test = sample_of(normal_NHWC, normals.size_N2), sample_of(test_NHWC, tests.size_N2)
    beside = {name: _judged(tests, scores, resamples)
              for name, scores in baselines(train, test)}
    rungs: dict[str, MethodResult] = {}
    if with_ladder:
        group_N = torch.from_numpy(draw_groups(normal_NHWC, normals.sha256, config))
        of_fast = preset_config("fast", [f"image.size={config.image.size}"])
        for name, scores in ladder(train, test, of_fast, group_N):
            progress(f"ladder {name}")
            rungs[name] = _judged(tests, scores, resamples)
    return Evaluation(
        category=category, preset=config.preset, version=scorer.bundle.version, tests=tests,
        fpr=fpr, rule=rule, heatmaps_NHW=batch.heatmaps,
        model=_judged(tests, BaselineScores(batch.scores, batch.heatmaps), resamples,
                      batch.scores > rule.threshold),
        normal_scores_M=scorer.bundle.calibration["score"].to_numpy(),
        false_positives=_false_positives(scorer, batch.scores[~tests.is_anomalous_N]),
        defects=_by_defect(tests, BaselineScores(batch.scores, batch.heatmaps),
                           batch.scores > rule.threshold, resamples),
        baselines=beside, ladder=rungs, seconds=seconds, equalised=equalise)


def equalise_brightness(images_NHWC: NDArray[np.uint8], level: float) -> NDArray[np.uint8]:
    """Each image exposed anew: times one factor, so that its mean is `level` (0 to 255).

    White stays white, so that a bright image may end a little below; a black one stays black.
    """
    mean_N111 = images_NHWC.mean((1, 2, 3), keepdims=True, dtype=np.float64)
    gain_N111 = level / np.where(mean_N111 > 0, mean_N111, 1)
    return np.stack([(image_HWC * gain).round().clip(0, 255).astype(np.uint8)
                     for image_HWC, gain in zip(images_NHWC, gain_N111, strict=True)])


def _false_positives(scorer: Scorer, normal_N: NDArray[np.float64]) -> tuple[FalsePositives, ...]:
    def at(rate: float) -> FalsePositives:
        rule = scorer.judge(fpr=rate, review_fpr=rate).levels.anomalous
        return FalsePositives(asked=rate, used=rule.alpha, normal=len(normal_N),
                              flagged=int((normal_N > rule.threshold).sum()))

    return tuple(map(at, RATES)) if len(normal_N) else ()


def _by_defect(tests: TestSet, found: BaselineScores, flagged_N: NDArray[np.bool_],
               resamples: int) -> dict[str, DefectResult]:
    kind_N = np.array(tests.defects)
    kinds = sorted(set(kind_N[tests.is_anomalous_N]))
    if len(kinds) < 2:
        return {}
    pixels = int(tests.mask_NHW.sum())
    return {kind: DefectResult(
        images=int((kind_N == kind).sum()), caught=int(flagged_N[kind_N == kind].sum()),
        pixel_share=int(tests.mask_NHW[kind_N == kind].sum()) / pixels if pixels else None,
        metrics=_judged(tests, found, resamples, flagged_N,
                        (kind_N == kind) | ~tests.is_anomalous_N).metrics) for kind in kinds}


def _judged(tests: TestSet, found: BaselineScores, resamples: int,
            flagged_N: NDArray[np.bool_] | None = None,
            only_N: NDArray[np.bool_] | None = None) -> MethodResult:
    """The metrics of all test images, or of some."""
    some_N = np.ones(len(tests), bool) if only_N is None else only_N
    metrics = image_metrics(tests.is_anomalous_N[some_N], found.scores_N[some_N],
                            None if flagged_N is None else flagged_N[some_N], resamples=resamples)
    use_N = tests.masked_N & some_N
    if found.heatmaps_NHW is None or not (use_N & tests.is_anomalous_N).any():
        return MethodResult(scores_N=found.scores_N, metrics={**metrics, **NO_PIXELS})
    pixels = pixel_metrics(tests.mask_NHW[use_N], found.heatmaps_NHW[use_N], resamples=resamples)
    return MethodResult(scores_N=found.scores_N, metrics={**metrics, **pixels})


def _plain(metrics: Mapping[str, Estimate | None]) -> dict[str, Any]:
    known = {name: found for name, found in metrics.items() if found is not None}
    return {**{name: found and found.value for name, found in metrics.items()},
            "intervals_95": {name: [found.low, found.high] for name, found in known.items()}}
