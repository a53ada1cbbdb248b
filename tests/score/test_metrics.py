"""The exact metrics against slow definitions: all pairs, all thresholds, regions by flood fill."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from igd.score.metrics import (
    au_pro,
    balanced_accuracy,
    image_auroc,
    image_average_precision,
    mean_image_pixel_auroc,
    pixel_auroc,
)

Mask, Heatmap = NDArray[np.bool_], NDArray[np.float32]
Case = tuple[list[Mask], list[Heatmap]]
PIXEL_METRICS = [pixel_auroc, mean_image_pixel_auroc, au_pro]


def by_pairs(positive: list[float], negative: list[float]) -> float | None:
    pairs = list(itertools.product(positive, negative))
    if not pairs:
        return None
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def by_thresholds(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Average precision."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        found = score >= threshold
        gain = (found & label).sum() / label.sum() - recall
        total, recall = total + gain * (found & label).sum() / found.sum(), recall + gain
    return total


def regions_of(mask: Mask) -> list[Mask]:
    """Parts connected by edge or corner."""
    left, regions = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        region, front = np.zeros_like(mask), [left.pop()]
        while front:
            y, x = front.pop()
            region[y, x] = True
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        regions.append(region)
    return regions


def au_pro_by_thresholds(masks: list[Mask], heatmaps: list[Heatmap],
                         limit: float) -> float | None:
    normal = np.concatenate([h[~m] for m, h in zip(masks, heatmaps, strict=True)])
    regions = [h[region] for m, h in zip(masks, heatmaps, strict=True) for region in regions_of(m)]
    if not len(normal) or not regions:
        return None
    values = np.unique(np.concatenate([normal, *regions]))[::-1]
    points = [(float((normal >= t).mean()), float(np.mean([(r >= t).mean() for r in regions])))
              for t in values]
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise([(0.0, 0.0), *points]):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def small_case(seed: int, images: int, density: float, levels: int) -> Case:
    """Images of several sizes; few levels make ties, low density images without anomaly."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 7, 2)) for _ in range(images)]
    return ([rng.random(shape) < density * rng.random() for shape in shapes],
            [rng.integers(-levels, levels, shape).astype(np.float32) for shape in shapes])


small_cases = st.builds(small_case, seed=st.integers(0, 2**32), images=st.integers(1, 4),
                        density=st.sampled_from([0.0, 0.3, 0.8, 2.0]),
                        levels=st.sampled_from([1, 3, 1000]))
limits = st.sampled_from([0.01, 0.3, 0.5, 1.0])


def approximately(value: float | None) -> object:
    return None if value is None else pytest.approx(value, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3) | st.floats(-9, 9)), min_size=2))
def test_image_metrics_follow_their_definitions(images: list[tuple[bool, float]]) -> None:
    label, score = np.array([a for a, _ in images]), np.array([float(s) for _, s in images])
    expected = by_pairs(score[label].tolist(), score[~label].tolist())
    assert image_auroc(label, score) == approximately(expected)
    if expected is None:
        assert image_average_precision(label, score) is None
        assert balanced_accuracy(label, score > 0) is None
        return
    assert expected == pytest.approx(roc_auc_score(label, score))
    precision = by_thresholds(label, score)
    assert image_average_precision(label, score) == approximately(precision)
    assert precision == pytest.approx(average_precision_score(label, score))


def test_balanced_accuracy_weighs_both_classes_alike() -> None:
    label = np.array([True, True, False, False, False, False])
    flagged = np.array([True, False, True, False, False, False])
    assert balanced_accuracy(label, flagged) == (1 / 2 + 3 / 4) / 2
    assert balanced_accuracy(label, label) == 1.0
    assert balanced_accuracy(label, ~label) == 0.0


@given(small_cases)
def test_pixel_auroc_is_the_share_of_pairs_among_the_pixels_of_all_images(case: Case) -> None:
    masks, heatmaps = case
    positive = [v for m, h in zip(masks, heatmaps, strict=True) for v in h[m].tolist()]
    negative = [v for m, h in zip(masks, heatmaps, strict=True) for v in h[~m].tolist()]
    assert pixel_auroc(masks, heatmaps) == approximately(by_pairs(positive, negative))


@given(small_cases)
def test_the_papers_pixel_auroc_is_a_mean_over_anomalous_images(case: Case) -> None:
    masks, heatmaps = case
    within = [by_pairs(h[m].tolist(), h[~m].tolist())
              for m, h in zip(masks, heatmaps, strict=True)]
    known = [value for value in within if value is not None]
    expected = sum(known) / len(known) if known else None
    assert mean_image_pixel_auroc(masks, heatmaps) == approximately(expected)


@given(small_cases, limits)
def test_au_pro_is_the_area_over_all_thresholds(case: Case, limit: float) -> None:
    assert au_pro(*case, limit) == approximately(au_pro_by_thresholds(*case, limit))


def test_au_pro_by_hand() -> None:
    # at 3: overlaps 1/2 and 0, FPR 0; at 2: 1/2 and 1, FPR 1/4; from there to FPR 0.3 it is flat
    mask = np.array([[True, True, False, True, False, False, False]])
    heatmap = np.array([[3, 0, 2, 2, 1, 1, 0]], np.float32)
    area = (1 / 4 + 3 / 4) / 2 * 1 / 4
    assert au_pro(mask[None], heatmap[None], 0.25) == pytest.approx(area / 0.25)
    # the next point is (3/4, 3/4), so the curve is flat
    assert au_pro(mask[None], heatmap[None]) == pytest.approx((area + 0.05 * 3 / 4) / 0.3)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    # one region: 2 of 3 pixels found; two regions would give overlaps 1/2 and 1
    mask = np.array([[True, True, False], [False, False, True], [False, False, False]])
    heatmap = np.array([[0, 2, 1], [1, 1, 2], [1, 1, 1]], np.float32)
    assert au_pro(mask[None], heatmap[None]) == pytest.approx(2 / 3)


def test_a_small_region_weighs_as_much_as_a_large_one_in_au_pro_only() -> None:
    mask, heatmap = np.zeros((1, 12, 12), bool), np.zeros((1, 12, 12), np.float32)
    mask[0, :6, :6] = mask[0, 9, 9] = True
    heatmap[0, :6, :6] = 1.0
    heatmap[0, 9, 9] = -1.0  # missed
    assert au_pro(mask, heatmap) == pytest.approx(0.5 * (1 + 0))
    assert pixel_auroc(mask, heatmap) == pytest.approx(36 / 37)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_a_heatmap_that_is_the_mask_is_perfect_and_its_negative_the_worst(
        metric: Callable[[list[Mask], list[Heatmap]], float | None]) -> None:
    mask = np.random.default_rng(0).random((3, 9, 9)) < 0.3
    heatmap = mask.astype(np.float32)
    assert metric(list(mask), list(heatmap)) == 1.0
    assert metric(list(mask), list(-heatmap)) == 0.0
    assert metric(list(mask), list(0 * heatmap)) == pytest.approx(0.15 if metric is au_pro else 0.5)


@given(small_cases, st.sampled_from(PIXEL_METRICS))
def test_only_the_order_of_values_matters(
        case: Case, metric: Callable[[list[Mask], list[Heatmap]], float | None]) -> None:
    masks, heatmaps = case
    value = metric(masks, heatmaps)
    assert metric(masks, [4 * h for h in heatmaps]) == value
    assert metric(masks, [h + 2000 for h in heatmaps]) == value
    assert metric(masks, [np.arctan(h / 100) for h in heatmaps]) == value
    assert metric(masks[::-1], heatmaps[::-1]) == approximately(value)


def test_infinities_are_values_like_others() -> None:
    label, score = np.array([True, True, False, False]), np.array([np.inf, 0, np.inf, -np.inf])
    assert image_auroc(label, score) == (0.5 + 1 + 0 + 1) / 4
    assert image_average_precision(label, score) == pytest.approx(1 / 4 + 2 / 3 / 2)
    heatmap = score.astype(np.float32)[None, None]
    assert pixel_auroc(label[None, None], heatmap) == (0.5 + 1 + 0 + 1) / 4


def test_stacked_arrays_and_lists_are_alike_and_stay_as_they_are() -> None:
    rng = np.random.default_rng(1)
    mask, heatmap = rng.random((20, 60, 60)) < 0.02, rng.random((20, 60, 60), np.float32)
    kept = mask.copy(), heatmap.copy()
    for metric in PIXEL_METRICS:
        assert metric(mask, heatmap) == metric(list(mask), list(heatmap))
    assert pixel_auroc(mask, heatmap) == pytest.approx(roc_auc_score(mask.ravel(), heatmap.ravel()))
    assert (mask == kept[0]).all() and (heatmap == kept[1]).all()


@pytest.mark.parametrize("value", [True, False])
def test_without_both_classes_there_is_no_metric(value: bool) -> None:
    assert image_auroc(np.full(3, value), np.arange(3.0)) is None
    assert image_average_precision(np.full(3, value), np.arange(3.0)) is None
    assert balanced_accuracy(np.full(3, value), np.full(3, True)) is None
    for metric in PIXEL_METRICS:
        assert metric(np.full((1, 2, 2), value), np.zeros((1, 2, 2), np.float32)) is None
        assert metric([], []) is None


def test_what_does_not_go_together_is_an_error_that_says_what_was_found() -> None:
    mask, heatmap = np.ones((2, 3, 4), bool), np.zeros((2, 3, 4), np.float32)
    broken = heatmap.copy()
    broken[1, 0, :2] = np.nan
    for metric in PIXEL_METRICS:
        with pytest.raises(ValueError, match="2 masks for 1 heatmaps"):
            metric(mask, heatmap[:1])
        with pytest.raises(ValueError, match=r"heatmap 0: shape \(4, 3\) .* \(3, 4\)"):
            metric(mask, heatmap.transpose(0, 2, 1))
        with pytest.raises(ValueError, match="heatmap 1: 2 of 12 values are NaN"):
            metric(mask, broken)
        with pytest.raises(ValueError, match="uint8, expected bool"):
            metric(list(mask.astype(np.uint8)), heatmap)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"shape \(4,\), expected 2 dimensions"):
            metric(mask[0], heatmap[0])
    for limit in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"max_fpr {limit}"):
            au_pro(mask, heatmap, limit)
    label = np.array([True, False])
    for image_metric in (image_auroc, image_average_precision):
        with pytest.raises(ValueError, match=r"scores: shape \(3,\)"):
            image_metric(label, np.zeros(3))
        with pytest.raises(ValueError, match="scores: 1 of 2 values are NaN"):
            image_metric(label, np.array([np.nan, 0]))
    with pytest.raises(ValueError, match="flags are int64"):
        balanced_accuracy(label, np.array([1, 0]))  # type: ignore[arg-type]
