"""Preset `fast`: METHOD's formula done again in numpy, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from igd.config import Config, preset_config
from igd.data.products import CATEGORIES
from igd.data.synthetic import render
from igd.errors import DivergedError, NotFittedError
from igd.model import dense
from igd.model.dense import (
    POOLED_SIZE,
    DenseGaussian,
    Features,
    extract,
    fit_standardised,
)
from igd.model.groups import alone, folds
from igd.registry import load_teacher
from igd.train.calibrate import fit_dense

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = preset_config("fast", ["image.size=64", "calibration.folds=4"])
WEIGHT, RIDGE, GLOBAL_RIDGE = 0.5, 0.01, 0.05  # as METHOD has them


def pictures(category: str, count: int, *, first: int = 0, size: int = 64) -> torch.Tensor:
    images = [render(category, None, first + i, size=size, seed=0)[0] for i in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def drawn_folds(count: int, config: Config) -> torch.Tensor:
    """The folds of images that all are on their own."""
    return folds(alone(count, config.seed), config.calibration.folds)


@pytest.fixture(scope="module")
def normals(one_thread: None) -> torch.Tensor:
    return pictures("weave", 24)


@pytest.fixture(scope="module")
def model(normals: torch.Tensor) -> DenseGaussian:
    return fit_dense(normals, CONFIG, load_teacher())[0]


def ridged(covariance: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    channels = len(covariance)
    return (1 - ridge) * covariance + ridge * np.trace(covariance) / channels * np.eye(channels)


def mahalanobis(residual: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    return float(np.sqrt(residual @ np.linalg.inv(covariance) @ residual))


@pytest.fixture(params=[1, dense.PART_BYTES], ids=["an image at a time", "all at once"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of the features a fit holds; nothing depends on it."""
    monkeypatch.setattr(dense, "PART_BYTES", request.param)


@pytest.mark.usefixtures("parts")
def test_distances_are_mahalanobis_with_the_covariance_of_method(normals: torch.Tensor) -> None:
    features = extract(load_teacher(), normals)
    new = extract(load_teacher(), pictures("weave", 2, first=100))
    model = DenseGaussian(CONFIG, load_teacher()).fit(features)
    dense_N, pooled_N, grid_NP = model.distances(new)

    x_NPC = features.local_NPC.double().numpy()
    own = [np.cov(x_NPC[:, p], rowvar=False) for p in range(16)]
    shared = sum(own) / 16
    for p in range(16):
        covariance = ridged(WEIGHT * own[p] + (1 - WEIGHT) * shared, RIDGE)
        for n in range(2):
            residual = new.local_NPC[n, p].double().numpy() - x_NPC[:, p].mean(0)
            assert grid_NP[n, p].item() == pytest.approx(mahalanobis(residual, covariance), 1e-4)
    assert torch.equal(dense_N, grid_NP.amax(1))

    x_ND = features.pooled_ND.double().numpy()
    covariance = ridged(np.cov(x_ND, rowvar=False), GLOBAL_RIDGE)
    for n in range(2):
        residual = new.pooled_ND[n].double().numpy() - x_ND.mean(0)
        assert pooled_N[n].item() == pytest.approx(mahalanobis(residual, covariance), 1e-4)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_every_rung_of_the_ladder_is_the_gaussian_it_says(
        normals: torch.Tensor, shared: bool, isotropic: bool, weight: float) -> None:
    config = preset_config("fast", [
        "image.size=64", f"dense.position_weight={weight}",
        f"dense.mean={'shared' if shared else 'position'}",
        f"dense.covariance={'isotropic' if isotropic else 'full'}"])
    features = extract(load_teacher(), normals)
    new = extract(load_teacher(), pictures("weave", 1, first=100))
    _, _, grid_NP = DenseGaussian(config, load_teacher()).fit(features).distances(new)

    x_NPC = features.local_NPC.double().numpy()
    mean_PC = np.tile(x_NPC.mean((0, 1)), (16, 1)) if shared else x_NPC.mean(0)
    # 24 images: one mean per position takes 16 degrees of freedom of 384, a shared one takes 1
    freedom = (24 * 16 - 1) / 16 if shared else 24 - 1
    own = [(x_NPC[:, p] - mean_PC[p]).T @ (x_NPC[:, p] - mean_PC[p]) / freedom for p in range(16)]
    if shared:
        np.testing.assert_allclose(sum(own) / 16, np.cov(x_NPC.reshape(-1, 152), rowvar=False),
                                   atol=1e-9)
    for p in range(16):
        covariance = weight * own[p] + (1 - weight) * sum(own) / 16
        covariance = (np.trace(covariance) / 152 * np.eye(152) if isotropic
                      else ridged(covariance, RIDGE))
        residual = new.local_NPC[0, p].double().numpy() - mean_PC[p]
        assert grid_NP[0, p].item() == pytest.approx(mahalanobis(residual, covariance), 1e-4)


def test_features_are_blocks_4_10_and_14_pooled_to_the_grid(normals: torch.Tensor) -> None:
    features = extract(load_teacher(), normals[:1])
    fine, middle, coarse = load_teacher().features(normals[:1].float(), (4, 10, 14))
    assert features.local_NPC.shape == (1, 16, 152)
    assert features.pooled_ND.shape == (1, POOLED_SIZE) == (1, 1216)
    position = features.local_NPC[0, 1 * 4 + 2]  # row 1, column 2
    torch.testing.assert_close(position[:40], fine[0, :, 2:4, 4:6].mean((1, 2)))
    torch.testing.assert_close(position[40:], middle[0, :, 1, 2])
    quarter = features.pooled_ND[0].reshape(304, 2, 2)[:, 0, 1]
    torch.testing.assert_close(quarter[:112], middle[0, :, :2, 2:].mean((1, 2)))
    torch.testing.assert_close(quarter[112:], coarse[0, :, 0, 1])


def test_the_score_is_the_sum_of_both_distances_standardised(model: DenseGaussian) -> None:
    dense, pooled = torch.tensor([3.0, 5.0, 10.0]), torch.tensor([40.0, 60.0, 50.0])
    model = DenseGaussian(CONFIG, load_teacher()).standardise(dense, pooled)
    z = sum((d.numpy() - d.numpy().mean()) / d.numpy().std(ddof=1) for d in (dense, pooled))
    np.testing.assert_allclose(model.mix(dense, pooled).numpy(), z, rtol=1e-6)
    assert model.mix(dense, pooled).dtype == torch.float64


def test_without_the_pooled_descriptor_the_score_is_the_local_distance_standardised() -> None:
    config = preset_config("fast", ["image.size=64", "dense.pooled=false"])
    dense, pooled = torch.tensor([3.0, 5.0, 10.0]), torch.tensor([40.0, 60.0, 50.0])
    model = DenseGaussian(config, load_teacher()).standardise(dense, pooled)
    z = (dense.numpy() - dense.numpy().mean()) / dense.numpy().std(ddof=1)
    np.testing.assert_allclose(model.mix(dense, pooled).numpy(), z, rtol=1e-6)
    np.testing.assert_array_equal(model.mix(dense, pooled * 9), model.mix(dense, pooled))


def test_the_pooled_distance_is_a_term_even_where_the_score_does_not_count_it(
        normals: torch.Tensor, model: DenseGaussian) -> None:
    config = preset_config("fast", ["image.size=64", "calibration.folds=4", "dense.pooled=false"])
    without, _ = fit_dense(normals, config, load_teacher())
    counted, left_out = model(normals[:2]), without(normals[:2])
    for name in ("dense_distance", "pooled_distance"):
        assert torch.equal(counted.terms[name], left_out.terms[name])
    assert not torch.equal(counted.score_N, left_out.score_N)


def test_the_scale_is_that_of_models_that_have_not_seen_the_image(normals: torch.Tensor) -> None:
    features = extract(load_teacher(), normals)
    model, held_out = fit_standardised(features, CONFIG, load_teacher())
    assert torch.equal(held_out.fold_N, drawn_folds(24, CONFIG))
    for fold in range(4):
        inside = held_out.fold_N == fold
        other = DenseGaussian(CONFIG, load_teacher()).fit(features[~inside])
        dense_N, pooled_N, grid_NP = other.distances(features[inside])
        assert torch.equal(held_out.dense_N[inside], dense_N)
        assert torch.equal(held_out.pooled_N[inside], pooled_N)
        assert torch.equal(held_out.grid_NP[inside], grid_NP)
    final = DenseGaussian(CONFIG, load_teacher()).fit(features)
    final.standardise(held_out.dense_N, held_out.pooled_N)
    for name, tensor in final.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("category", ["weave", "washer"])
def test_planted_defects_score_above_all_normals(category: str) -> None:
    """At 128 px and 40 normals; defects of 64 px are smaller than a grid cell."""
    config = preset_config("fast", ["image.size=128", "calibration.folds=4"])
    model, _ = fit_dense(pictures(category, 40, size=128), config, load_teacher())
    normal_N = model(pictures(category, 12, first=500, size=128)).score_N
    for defect in CATEGORIES[category][1]:
        for index in (600, 601):
            image, mask = render(category, defect, index, size=128, seed=0)
            scored = model(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
            assert scored.score_N[0] > normal_N.max(), defect
            heatmap = scored.heatmap_NHW[0].numpy()
            peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
            distance = np.hypot(*(np.argwhere(mask) - peak).T).min()
            assert distance <= 16, (defect, index)  # one grid cell


def test_a_score_does_not_depend_on_batch_mates(model: DenseGaussian,
                                                normals: torch.Tensor) -> None:
    together = model(normals[:5])
    for i in range(5):
        alone = model(normals[i:i + 1])
        assert torch.equal(alone.score_N[0], together.score_N[i])
        for name, term_N in together.terms.items():
            assert torch.equal(alone.terms[name][0], term_N[i])
        assert torch.equal(alone.heatmap_NHW[0], together.heatmap_NHW[i])
    assert len(set(together.score_N.tolist())) == 5


def test_the_heatmap_lies_where_the_grid_does(model: DenseGaussian) -> None:
    grid_NP = torch.zeros(1, 16)
    grid_NP[0, 1 * 4 + 3] = 8.0  # row 1, column 3: its centre is at (24, 56)
    heatmap_HW = model.heatmap(grid_NP)[0]
    assert heatmap_HW.shape == (64, 64) and 0 < heatmap_HW.max() <= 8
    y, x = np.unravel_index(int(heatmap_HW.argmax()), (64, 64))
    assert abs(y - 23.5) <= 1 and x >= 55
    assert torch.allclose(model.heatmap(torch.full((1, 16), 3.0)), torch.tensor(3.0))


def test_unfitted_use_is_an_error(normals: torch.Tensor) -> None:
    model = DenseGaussian(CONFIG, load_teacher())
    with pytest.raises(NotFittedError, match="not fitted"):
        model(normals[:1])
    model.fit(extract(load_teacher(), normals))
    with pytest.raises(NotFittedError, match="no scale"):
        model(normals[:1])


def test_pictures_that_do_not_vary_are_an_error(normals: torch.Tensor) -> None:
    same = normals[:1].expand(12, -1, -1, -1)
    with pytest.raises(DivergedError, match=r"singular; .*are they all the same picture"):
        fit_dense(same, CONFIG, load_teacher())
    with pytest.raises(DivergedError, match="all have one distance"):
        DenseGaussian(CONFIG, load_teacher()).standardise(torch.ones(4), torch.arange(4))


def test_a_nan_feature_is_an_error() -> None:
    features = Features(torch.randn(6, 16, 152), torch.randn(6, POOLED_SIZE))
    features.local_NPC[2, 3, 4] = torch.nan
    with pytest.raises(DivergedError):
        DenseGaussian(CONFIG, load_teacher()).fit(features)
