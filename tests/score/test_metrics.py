"""AUROC against its definition: the share of pairs in the right order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from igd.score.metrics import image_auroc, pixel_auroc


def by_pairs(positive: list[float], negative: list[float]) -> float:
    pairs = list(itertools.product(positive, negative))
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def test_image_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    label, score = rng.random(40) < 0.4, rng.normal(size=40).round(1)  # with ties
    expected = by_pairs(score[label].tolist(), score[~label].tolist())
    assert image_auroc(label, score) == pytest.approx(expected)
    assert image_auroc(np.array([False, True]), np.array([1.0, 2.0])) == 1.0


def test_pixel_auroc_pools_the_pixels_of_all_images() -> None:
    mask = np.array([[[True, False]], [[False, False]]])
    heatmap = np.array([[[1.0, 0.0]], [[2.0, 0.5]]], np.float32)  # 1.0 beats 2 of 3
    assert pixel_auroc(mask, heatmap) == pytest.approx(2 / 3)


@pytest.mark.parametrize("value", [True, False])
def test_without_both_classes_there_is_no_auroc(value: bool) -> None:
    assert image_auroc(np.full(3, value), np.arange(3.0)) is None
    assert pixel_auroc(np.full((1, 2, 2), value), np.zeros((1, 2, 2), np.float32)) is None
