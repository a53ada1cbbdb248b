"""The baselines: what their maths promises, and that they see nothing but normals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis

from igd.data.synthetic import render
from igd.errors import DataError
from igd.model.dense import Features, extract, grid_heatmap
from igd.registry import load_teacher
from igd.score.baselines import (
    BASELINES,
    OF_THE_GRID,
    ImageSize,
    L1MeanImage,
    Mahalanobis,
    MeanBrightness,
    NearestNeighbour,
    Padim,
    PatchCore,
    Pca,
    Sample,
    baselines,
)
from igd.score.coreset import greedy_coreset, projected

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, NORMALS, FRESH = 64, 30, 6
WITH_MAPS = {"l1_mean_image", "pca", "patchcore", "padim"}


def sample(images: NDArray[np.uint8], *, features: bool = True) -> Sample:
    image_NCHW = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Sample(images, np.full((len(images), 2), images.shape[1]),
                  extract(load_teacher(), image_NCHW) if features else None)


def only(of: Sample, index: list[int]) -> Sample:
    return Sample(of.images_NHWC[index], of.source_size_N2[index],
                  None if of.features is None else of.features[torch.tensor(index)])


def pictures(count: int, first: int) -> NDArray[np.uint8]:
    return np.stack([render("weave", None, first + i, size=SIZE, seed=0)[0] for i in range(count)])


def planted(image_HWC: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A product with a green square of 20 px on it; its mask."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[10:30, 34:54] = True
    return np.where(mask[..., None], np.array([20, 200, 60], np.uint8), image_HWC), mask


def pooled_only(pooled_ND: torch.Tensor) -> Sample:
    """As of a data set of 32x32 images: a grid of 2x2, which is none."""
    count = len(pooled_ND)
    return Sample(np.zeros((count, 32, 32, 3), np.uint8), np.full((count, 2), 32),
                  Features(torch.zeros(count, 4, 152), pooled_ND))


@pytest.fixture(scope="module")
def train(one_thread: None) -> Sample:
    return sample(pictures(NORMALS, 0))


@pytest.fixture(scope="module")
def test(one_thread: None) -> Sample:
    """Fresh normals; the last image has a planted defect."""
    fresh = pictures(FRESH + 1, 500)
    fresh[-1] = planted(fresh[-1])[0]
    return sample(fresh)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"mean_brightness", "image_size"}))
def test_a_planted_defect_ranks_first_and_the_heatmap_peaks_on_it(
        name: str, train: Sample, test: Sample) -> None:
    scores = BASELINES[name](train).score(test)
    assert scores.scores_N.argmax() == FRESH
    assert (scores.heatmaps_NHW is not None) == (name in WITH_MAPS)
    if scores.heatmaps_NHW is not None:
        assert scores.heatmaps_NHW.shape == (FRESH + 1, SIZE, SIZE)
        heatmap_HW, mask = scores.heatmaps_NHW[FRESH], planted(test.images_NHWC[FRESH])[1]
        peak = np.unravel_index(heatmap_HW.argmax(), mask.shape)
        one_cell = 16 if name in OF_THE_GRID else 0
        assert np.hypot(*(np.argwhere(mask) - peak).T).min() <= one_cell
        assert heatmap_HW[mask].mean() > heatmap_HW[~mask].mean()


@pytest.mark.parametrize("name", BASELINES)
def test_a_score_does_not_depend_on_batch_mates(name: str, train: Sample, test: Sample) -> None:
    fitted = BASELINES[name](train)
    together = fitted.score(test)
    assert together.scores_N.dtype == np.float64
    for i in range(len(test)):
        alone = fitted.score(only(test, [i]))
        assert alone.scores_N[0] == together.scores_N[i]
        if together.heatmaps_NHW is not None:
            assert together.heatmaps_NHW.dtype == np.float32
            np.testing.assert_array_equal(alone.heatmaps_NHW[0], together.heatmaps_NHW[i])


@pytest.mark.parametrize("fit", [NearestNeighbour.fit, lambda s: PatchCore.fit(s, coreset=1.0)])
def test_images_in_the_memory_bank_score_exactly_zero(
        fit: Callable[[Sample], NearestNeighbour | PatchCore], train: Sample,
        test: Sample) -> None:
    fitted = fit(train)
    assert not fitted.score(train).scores_N.any()
    assert (fitted.score(test).scores_N > 0).all()


@pytest.mark.parametrize("name", ["l1_mean_image", "pca", "mahalanobis", "patchcore", "padim"])
def test_images_of_the_fit_score_below_fresh_ones(name: str, train: Sample, test: Sample) -> None:
    fitted = BASELINES[name](train)
    fresh = fitted.score(only(test, list(range(FRESH)))).scores_N
    assert fitted.score(train).scores_N.mean() < fresh.mean()


def test_a_repeated_fit_gives_equal_bits(train: Sample, test: Sample) -> None:
    for (_, one), (_, two) in zip(baselines(train, test), baselines(train, test), strict=True):
        np.testing.assert_array_equal(one.scores_N, two.scores_N)


def test_brightness_counts_both_ways_and_is_that_of_the_normals() -> None:
    grey = [np.full((1, 32, 32, 3), level, np.uint8) for level in (90, 110, 100, 70, 135)]
    fitted = MeanBrightness.fit(sample(np.concatenate(grey[:2]), features=False))
    scores = fitted.score(sample(np.concatenate(grey), features=False)).scores_N
    assert scores.tolist() == [10, 10, 0, 30, 35]


def test_image_size_is_the_distance_to_the_nearest_normal_size() -> None:
    def sized(*sizes: tuple[int, int]) -> Sample:
        return Sample(np.zeros((len(sizes), 32, 32, 3), np.uint8), np.array(sizes))

    fitted = ImageSize.fit(sized((100, 200), (300, 200), (100, 200)))
    scores = fitted.score(sized((100, 200), (103, 196), (290, 200), (200, 100))).scores_N
    assert scores[:3].tolist() == [0, 5, 10]
    assert scores[3] == pytest.approx(100 * 2**0.5)


def test_l1_is_the_distance_to_the_mean_image(train: Sample, test: Sample) -> None:
    scores = L1MeanImage.fit(train).score(test)
    apart = np.abs(test.images_NHWC - train.images_NHWC.astype(float).mean(0))
    np.testing.assert_allclose(scores.scores_N, apart.mean((1, 2, 3)))
    np.testing.assert_allclose(scores.heatmaps_NHW, apart.mean(3), rtol=1e-6)


def test_pca_of_full_rank_reconstructs_and_no_less(train: Sample, test: Sample) -> None:
    full = Pca.fit(train, explained=1.0, max_components=10**6)
    assert full.score(train).scores_N.max() < 1e-9
    assert full.score(test).scores_N.min() > 1e-5
    less = Pca.fit(train, max_components=3)
    assert less.axes_KD.shape == (3, SIZE * SIZE * 3)
    assert less.score(train).scores_N.min() > 1e-5


@pytest.mark.parametrize("explained", [0.2, 0.6, 0.95])
def test_pca_is_the_projection_on_the_fewest_components_that_explain_enough(
        explained: float, train: Sample, test: Sample) -> None:
    x_ND = train.images_NHWC.reshape(NORMALS, -1) / 255
    _, value_K, axes_KD = np.linalg.svd(x_ND - x_ND.mean(0), full_matrices=False)
    share_K = np.cumsum(value_K**2) / (value_K**2).sum()
    axes_KD = axes_KD[:np.flatnonzero(share_K >= explained)[0] + 1]
    new_ND = test.images_NHWC.reshape(len(test), -1) / 255 - x_ND.mean(0)
    error_ND = (new_ND - new_ND @ axes_KD.T @ axes_KD) ** 2

    fitted = Pca.fit(train, explained=explained)
    assert len(fitted.axes_KD) == len(axes_KD)
    scores = fitted.score(test)
    np.testing.assert_allclose(scores.scores_N, error_ND.mean(1), rtol=1e-3)
    np.testing.assert_allclose(scores.heatmaps_NHW, error_ND.reshape(-1, SIZE, SIZE, 3).mean(3),
                               atol=1e-4)


def test_pca_sees_large_images_as_thumbnails_and_the_heatmap_in_full_size(
        train: Sample, test: Sample) -> None:
    def doubled(of: Sample) -> Sample:
        return sample(of.images_NHWC.repeat(2, 1).repeat(2, 2), features=False)

    plain, large = Pca.fit(train).score(test), Pca.fit(doubled(train)).score(doubled(test))
    np.testing.assert_allclose(large.scores_N, plain.scores_N, rtol=1e-5)
    assert large.heatmaps_NHW is not None and plain.heatmaps_NHW is not None
    assert large.heatmaps_NHW.shape == (FRESH + 1, 128, 128)
    halved = large.heatmaps_NHW[FRESH].reshape(64, 2, 64, 2).mean((1, 3))
    assert np.corrcoef(halved.ravel(), plain.heatmaps_NHW[FRESH].ravel())[0, 1] > 0.95


def test_mahalanobis_is_scipys_with_the_covariance_shrunk_by_five_percent() -> None:
    pooled_ND = torch.randn(40, 5 * 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    new_ND = torch.randn(4, 5 * 4, generator=torch.Generator().manual_seed(1))
    x_NC, new_NC = (x.double().reshape(-1, 5, 4).mean(2).numpy() for x in (pooled_ND, new_ND))
    covariance = np.cov(x_NC, rowvar=False)
    inverse = np.linalg.inv(0.95 * covariance + 0.05 * np.trace(covariance) / 5 * np.eye(5))
    expected = [mahalanobis(x_C, x_NC.mean(0), inverse) for x_C in new_NC]
    scores = Mahalanobis.fit(pooled_only(pooled_ND)).score(pooled_only(new_ND)).scores_N
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


def test_knn_is_the_distance_between_globally_pooled_features() -> None:
    cells = torch.tensor([[[1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 0.0, 8.0]],
                          [[4.0, 4.0, 4.0, 4.0], [6.0, 4.0, 6.0, 4.0]],
                          [[9.0, 9.0, 9.0, 9.0], [2.0, 2.0, 2.0, 2.0]]])
    of = pooled_only(cells.reshape(3, 8))  # pooled: (4, 2), (4, 5), (9, 2)
    fitted = NearestNeighbour.fit(only(of, [0, 1]))
    assert fitted.score(of).scores_N.tolist() == [0, 0, 5]


def test_patchcore_keeps_a_tenth_of_the_averaged_patches(train: Sample) -> None:
    fitted = PatchCore.fit(train, window=3)
    assert fitted.bank_BC.shape == (round(0.1 * NORMALS * 16), 152)
    assert train.features is not None
    grid = train.features.local_NPC.reshape(NORMALS, 4, 4, 152)
    averaged = torch.stack([grid[:, max(0, y - 1):y + 2, max(0, x - 1):x + 2].mean((1, 2))
                            for y in range(4) for x in range(4)], 1)
    bank_BC = PatchCore.fit(train, coreset=1.0, window=3).bank_BC
    found = torch.cdist(averaged.flatten(0, 1).double(), bank_BC).amin(1)
    assert found.max() < 1e-4 * averaged.norm(dim=2).mean()


def test_patchcore_without_a_window_keeps_the_patches_themselves(train: Sample) -> None:
    assert train.features is not None
    x_BC = train.features.local_NPC.flatten(0, 1)
    kept = greedy_coreset(projected(x_BC), 48)  # selected in the projection, kept in full
    assert torch.equal(PatchCore.fit(train, window=1).bank_BC, x_BC[kept].double())


def test_patchcore_scores_the_patch_farthest_from_any_of_the_normals(
        train: Sample, test: Sample) -> None:
    assert train.features is not None and test.features is not None
    bank_BC = train.features.local_NPC.flatten(0, 1).double()
    nearest_NP = torch.cdist(test.features.local_NPC.double(), bank_BC).amin(2)
    scores = PatchCore.fit(train, coreset=1.0, window=1).score(test)
    np.testing.assert_allclose(scores.scores_N, nearest_NP.amax(1), rtol=1e-6)
    np.testing.assert_allclose(scores.heatmaps_NHW, grid_heatmap(nearest_NP, SIZE, 4.0), rtol=1e-5)


def test_padim_knows_each_position_apart(train: Sample, test: Sample) -> None:
    """The image score is the largest Mahalanobis distance of METHOD's formula, weight 1."""
    assert train.features is not None and test.features is not None
    x_NPC, new_NPC = (f.local_NPC.double().numpy() for f in (train.features, test.features))
    for n, score in enumerate(Padim.fit(train).score(test).scores_N):
        distances = []
        for p in range(16):
            covariance = np.cov(x_NPC[:, p], rowvar=False)
            ridged = 0.99 * covariance + 0.01 * np.trace(covariance) / 152 * np.eye(152)
            distances.append(mahalanobis(new_NPC[n, p], x_NPC[:, p].mean(0),
                                         np.linalg.inv(ridged)))
        assert score == pytest.approx(max(distances), 1e-4)


def test_what_cannot_be_had_from_a_sample_is_left_out() -> None:
    """Small one-class images: pixels always, pooled features where given, never a grid."""
    rng = np.random.default_rng(0)
    bare = Sample(rng.integers(0, 256, (700, 32, 32, 3), np.uint8), np.full((700, 2), 28))
    pixels = ["mean_brightness", "image_size", "l1_mean_image", "pca"]
    scores = dict(baselines(only(bare, list(range(400))), bare))
    assert list(scores) == pixels
    assert all(len(s.scores_N) == 700 and np.isfinite(s.scores_N).all() for s in scores.values())
    with pytest.raises(DataError, match="700 images come without teacher features"):
        NearestNeighbour.fit(bare)

    features = pooled_only(torch.randn(700, 1216)).features
    pooled = Sample(bare.images_NHWC, bare.source_size_N2, features)
    assert list(dict(baselines(pooled, pooled))) == [*pixels, "knn", "mahalanobis"]
    assert list(dict(baselines(pooled, bare))) == pixels


def test_all_baselines_run_in_their_order_where_all_is_there(train: Sample, test: Sample) -> None:
    assert list(dict(baselines(train, test))) == list(BASELINES)
