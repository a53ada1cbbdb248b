"""Intervals: what a resample is, and what an interval promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from igd.score import bootstrap
from igd.score.bootstrap import (
    Estimate,
    curve_area,
    image_curves,
    image_metrics,
    pixel_metrics,
    thresholds,
    weights,
)
from igd.score.metrics import (
    MAX_FPR,
    au_pro,
    balanced_accuracy,
    image_auroc,
    image_average_precision,
    mean_image_pixel_auroc,
    pixel_auroc,
    pool,
    split,
)

Labels, Scores = NDArray[np.bool_], NDArray[np.float64]
Masks, Heatmaps = NDArray[np.bool_], NDArray[np.float32]


def scored(n: int, seed: int = 0, digits: int = 1) -> tuple[Labels, Scores]:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3 == 0
    return label, (rng.normal(size=n) + 1.5 * label).round(digits)


def mapped(n: int, side: int, seed: int = 0) -> tuple[Masks, Heatmaps]:
    """Smooth heatmaps that see the blobs of the masks, not well; every other image is normal."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, n, side, side)), (0, 0, 3, 3))
    mask = smooth[0] > np.quantile(smooth[0], 0.95, axis=(1, 2), keepdims=True)
    mask[1::2] = False
    return mask, (smooth[1] / smooth[1].std() + 1.5 * mask).astype(np.float32)


def binned(masks: Masks, heatmaps: Heatmaps) -> tuple[float, float]:
    """AUROC and AU-PRO of the curves that are resampled, with all weights 1."""
    images = list(split(masks, heatmaps))
    threshold_K = thresholds(pool(images))
    normals_K, anomalous_K, overlap_K = (
        np.sum(curves, axis=0)
        for curves in zip(*(image_curves(image, threshold_K) for image in images), strict=True))
    return (float(curve_area(normals_K, anomalous_K)),
            float(curve_area(normals_K, overlap_K, MAX_FPR)))


def percentiles(values: list[float | None]) -> tuple[float, float]:
    low, high = np.quantile(np.array(values, float), [0.025, 0.975])
    return float(low), float(high)


def test_an_image_interval_is_that_of_the_metric_on_repeated_images() -> None:
    label, score = scored(30)
    flagged = score > 0.9
    found = image_metrics(label, score, flagged, seed=3, resamples=50)
    (weight_RN,) = weights(label[np.argsort(-score)].astype(int), 3, 50, 50)
    order = np.argsort(-score)
    drawn = [np.repeat(order, weight_N.astype(int)) for weight_N in weight_RN]
    for name, value, repeated in (
            ("image_auroc", image_auroc(label, score),
             [image_auroc(label[i], score[i]) for i in drawn]),
            ("image_ap", image_average_precision(label, score),
             [image_average_precision(label[i], score[i]) for i in drawn]),
            ("balanced_accuracy", balanced_accuracy(label, flagged),
             [balanced_accuracy(label[i], flagged[i]) for i in drawn])):
        estimate = found[name]
        assert estimate is not None and estimate.value == value
        assert (estimate.low, estimate.high) == pytest.approx(percentiles(repeated))


def test_a_pixel_interval_is_that_of_the_metric_on_repeated_images() -> None:
    mask, heatmap = mapped(6, 18)  # fewer normal pixels than quantiles, so that curves are whole
    mask[4] = True  # and an image without normal pixels
    found = pixel_metrics(mask, heatmap, seed=5, resamples=40)
    stratum = np.array([1, 0, 1, 0, 3, 0])
    (weight_RN,) = weights(stratum, 5, 40, 40)
    drawn = [np.repeat(np.arange(6), weight_N.astype(int)) for weight_N in weight_RN]
    assert len({tuple(i) for i in drawn}) > 10
    for name, metric in (("pixel_auroc", pixel_auroc), ("au_pro", au_pro),
                         ("image_mean_pixel_auroc", mean_image_pixel_auroc)):
        estimate = found[name]
        assert estimate is not None and estimate.value == metric(mask, heatmap)
        expected = percentiles([metric(mask[i], heatmap[i]) for i in drawn])
        assert (estimate.low, estimate.high) == pytest.approx(expected)


@pytest.mark.parametrize("change", ["none", "half zeros", "few levels", "sharp"])
def test_curves_at_quantiles_give_nearly_the_exact_area(change: str) -> None:
    mask, heatmap = mapped(8, 120)
    assert (~mask).sum() > 10 * bootstrap.QUANTILES
    if change == "half zeros":
        heatmap = np.maximum(heatmap, 0)
    if change == "few levels":
        heatmap = heatmap.round()
    if change == "sharp":
        heatmap = heatmap + 3 * mask
    auroc, pro = binned(mask, heatmap)
    assert auroc == pytest.approx(pixel_auroc(mask, heatmap), abs=3e-4)
    assert pro == pytest.approx(au_pro(mask, heatmap), abs=9e-4)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 1000]))
def test_with_fewer_normal_pixels_than_quantiles_the_curves_are_exact(seed: int,
                                                                     levels: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 5, 5)) < 0.3
    mask[0, 0, :2] = True, False
    heatmap = rng.integers(-levels, levels, mask.shape).astype(np.float32)
    auroc, pro = binned(mask, heatmap)
    assert auroc == pytest.approx(pixel_auroc(mask, heatmap))
    assert pro == pytest.approx(au_pro(mask, heatmap))


def width(estimate: Estimate | None) -> float:
    assert estimate is not None and math.isfinite(estimate.low + estimate.high)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    return estimate.high - estimate.low


def test_intervals_hold_the_value_and_shrink_with_more_images() -> None:
    few, many = ({**image_metrics(*scored(n), scored(n)[1] > 0.7, resamples=300),
                  **pixel_metrics(*mapped(n, 24), resamples=300)} for n in (24, 384))
    assert list(few) == list(many) == ["image_auroc", "image_ap", "balanced_accuracy",
                                       "pixel_auroc", "image_mean_pixel_auroc", "au_pro"]
    for name in few:
        assert 0 < 2 * width(many[name]) < width(few[name]), name


def test_the_interval_covers_the_true_auroc_about_as_often_as_it_says() -> None:
    true = 0.8556  # P(N(1.5, 1) > N(0, 1)) = Phi(1.5 / sqrt 2)
    found = [image_metrics(*scored(150, seed, 9), resamples=200)["image_auroc"]
             for seed in range(200)]
    covered = sum(e is not None and e.low <= true <= e.high for e in found)
    assert 175 <= covered <= 199  # percentiles are a little narrow


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    for metrics, data in ((image_metrics, scored(90, digits=9)), (pixel_metrics, mapped(8, 16))):
        first, same, other = (metrics(*data, seed=seed, resamples=99) for seed in (1, 1, 2))
        assert first == same and None not in first.values()
        for name, estimate in first.items():
            assert other[name] is not None and other[name].value == estimate.value
            assert estimate != other[name], name


def test_one_image_of_a_kind_gives_an_interval_without_width() -> None:
    mask, heatmap = mapped(2, 40)
    for estimate in pixel_metrics(mask, heatmap, resamples=20).values():
        assert width(estimate) < 1e-3
    for estimate in image_metrics(np.array([True, False]), np.array([1.0, 2.0])).values():
        assert width(estimate) == 0


def test_a_resample_has_as_many_images_of_each_kind_as_the_test_set() -> None:
    stratum = np.array([0, 1, 1, 0, 3, 1])
    chunks = list(weights(stratum, 0, 1000, 300))
    assert [len(chunk) for chunk in chunks] == [300, 300, 300, 100]
    weight_RN = np.concatenate(chunks)
    for kind, size in ((0, 2), (1, 3), (3, 1)):
        assert (weight_RN[:, stratum == kind].sum(axis=1) == size).all()
    assert weight_RN.mean(axis=0) == pytest.approx(np.ones(6), abs=0.1)
    assert len(np.unique(weight_RN, axis=0)) == 3 * 10  # multisets of 2 of 2, of 3 of 3


def test_resamples_in_chunks_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    label, score = scored(40)
    whole = image_metrics(label, score)["image_auroc"]
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * 40)
    chunked = image_metrics(label, score)["image_auroc"]
    assert whole is not None and chunked is not None and whole != chunked
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high), abs=0.02)


def test_without_a_class_there_is_no_estimate() -> None:
    label = np.zeros(3, bool)
    assert image_metrics(label, np.arange(3.0)) == {"image_auroc": None, "image_ap": None}
    assert image_metrics(~label, np.arange(3.0), label)["balanced_accuracy"] is None
    mask, heatmap = np.zeros((2, 3, 3), bool), np.zeros((2, 3, 3), np.float32)
    nothing = dict.fromkeys(("pixel_auroc", "image_mean_pixel_auroc", "au_pro"))
    assert pixel_metrics(mask, heatmap) == pixel_metrics(~mask, heatmap) == nothing
    assert pixel_metrics([], []) == nothing
    mask[0] = True  # all normal pixels are in the other image
    found = pixel_metrics(mask, heatmap)
    assert found["image_mean_pixel_auroc"] is None
    assert width(found["pixel_auroc"]) == width(found["au_pro"]) == 0


def test_what_does_not_go_together_is_an_error() -> None:
    label, score = scored(6)
    with pytest.raises(ValueError, match="flags: shape"):
        image_metrics(label, score, np.ones(5, bool))
    with pytest.raises(ValueError, match="flags are float64"):
        image_metrics(label, score, score)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 resamples"):
        image_metrics(label, score, resamples=0)
    mask, heatmap = mapped(2, 8)
    heatmap[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="heatmap 1: 1 of 64 values are NaN"):
        pixel_metrics(mask, heatmap)
