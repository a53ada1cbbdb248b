"""Calibration: a normal is never judged by a model, or on a scale, that has seen it."""

from __future__ import annotations

import pytest
import torch

from igd.config import Config, preset_config
from igd.errors import DataError, DivergedError
from igd.model.dense import DenseGaussian, extract
from igd.model.groups import alone, folds
from igd.model.scored import Scored
from igd.registry import load_teacher
from igd.train import calibrate
from igd.train.calibrate import (
    Calibration,
    fit_dense,
    score_held_out,
    split_held_out,
    split_normals,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Fitted = tuple[DenseGaussian, Calibration]
COUNT, ODD = 24, 7


def config(*overrides: str, seed: int = 0) -> Config:
    return preset_config("fast", ["image.size=64", "calibration.folds=4", *overrides], seed=seed)


def drawn_folds(count: int, config: Config) -> torch.Tensor:
    """The folds of images that all are on their own."""
    return folds(alone(count, config.seed), config.calibration.folds)


@pytest.fixture(scope="module")
def normals(one_thread: None) -> torch.Tensor:
    """Smooth pictures of one kind."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(1, 3, 8, 8, generator=generator) * 200
    coarse = base + torch.rand(COUNT, 3, 8, 8, generator=generator) * 40
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear").clamp(0, 255).byte()


@pytest.fixture(scope="module")
def fitted(normals: torch.Tensor) -> Fitted:
    return fit_dense(normals, config(), load_teacher())


@pytest.fixture(scope="module")
def with_garbage(normals: torch.Tensor) -> torch.Tensor:
    changed = normals.clone()
    changed[ODD] = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(9))
    return changed


def test_every_normal_is_scored_by_a_model_that_has_not_seen_it(with_garbage: torch.Tensor) -> None:
    model, calibration = fit_dense(with_garbage, config(), load_teacher())
    others = torch.arange(COUNT) != ODD
    for name in ("dense_distance", "pooled_distance"):
        held_out = calibration.terms[name]
        in_sample = model(with_garbage).terms[name]
        assert held_out[ODD] > 2 * held_out[others].max()
        # the fitted garbage looks normal to the model that has seen it
        assert in_sample[ODD] < 1.5 * in_sample[others].max()
        assert (held_out > in_sample).all()
    assert calibration.score_M.argmax() == ODD
    assert calibration.heatmap_max_M.argmax() == ODD


def test_each_fold_is_scored_by_the_model_of_the_others(normals: torch.Tensor,
                                                        fitted: Fitted) -> None:
    _, calibration = fitted
    features = extract(load_teacher(), normals)
    fold_N = drawn_folds(COUNT, config())
    for fold in range(4):
        held_out = fold_N == fold
        model = DenseGaussian(config(), load_teacher()).fit(features[~held_out])
        dense, pooled, _ = model.distances(features[held_out])
        assert torch.equal(calibration.terms["dense_distance"][held_out], dense)
        assert torch.equal(calibration.terms["pooled_distance"][held_out], pooled)


def test_the_scale_of_a_fold_comes_from_the_other_folds_alone(fitted: Fitted) -> None:
    model, calibration = fitted
    fold_N = drawn_folds(COUNT, config())
    expected = torch.zeros(COUNT, dtype=torch.float64)
    for distance_N in calibration.terms.values():
        for i in range(COUNT):
            others = distance_N[fold_N != fold_N[i]].double()
            expected[i] += (distance_N[i].double() - others.mean()) / others.std()
    torch.testing.assert_close(calibration.score_M, expected, rtol=1e-9, atol=1e-9)
    # the model in use is scaled on all of them
    for row, distance_N in zip(model.scale_22, calibration.terms.values(), strict=True):
        assert row.tolist() == pytest.approx([distance_N.double().mean().item(),
                                              distance_N.double().std().item()])


def test_folds_are_even_and_decided_by_the_seed() -> None:
    folds = drawn_folds(26, config())
    assert torch.bincount(folds).tolist() == [7, 7, 6, 6]
    assert torch.equal(folds, drawn_folds(26, config()))
    assert not torch.equal(folds, drawn_folds(26, config(seed=1)))
    assert not torch.equal(folds, folds.sort().values)
    assert sorted(drawn_folds(3, config())) == [0, 1, 2]  # fewer normals than folds


def test_a_repeated_fit_gives_equal_bits(normals: torch.Tensor, fitted: Fitted) -> None:
    (one, first), (two, second) = fitted, fit_dense(normals, config(), load_teacher())
    assert torch.equal(first.score_M, second.score_M)
    assert torch.equal(first.heatmap_max_M, second.heatmap_max_M)
    assert torch.equal(one(normals[:3]).score_N, two(normals[:3]).score_N)
    assert first.index_M.tolist() == list(range(COUNT))


def test_heatmap_peaks_are_those_of_scoring_the_image_alone(
        normals: torch.Tensor, fitted: Fitted) -> None:
    """Calibration goes the path that images go: one heatmap at a time."""
    features = extract(load_teacher(), normals)
    held_out = drawn_folds(COUNT, config()) == 2
    model = DenseGaussian(config(), load_teacher()).fit(features[~held_out])
    _, _, grid_NP = model.distances(features[held_out])
    alone = torch.stack([model.heatmap(grid_P[None]).amax() for grid_P in grid_NP])
    assert torch.equal(fitted[1].heatmap_max_M[held_out], alone)


@pytest.mark.parametrize(("count", "fraction", "held"), [
    (20, 0.2, 4), (100, 0.5, 50), (4, 0.2, 2), (5, 0.9, 3), (10, 0.01, 2)])
def test_nets_hold_out_the_share_asked_for_and_leave_two_of_each(
        count: int, fraction: float, held: int) -> None:
    settings = config(f"calibration.fraction={fraction}", seed=3)
    train_N, held_M = split_normals(alone(count, settings.seed), settings)
    assert len(held_M) == held and len(train_N) == count - held >= 2
    assert sorted([*train_N.tolist(), *held_M.tolist()]) == list(range(count))
    again = split_normals(alone(count, settings.seed), settings)
    assert all(torch.equal(a, b) for a, b in zip(again, (train_N, held_M), strict=True))
    if count == 100:
        assert not torch.equal(held_M, split_normals(alone(count, 4), config(seed=4))[1])


@pytest.mark.parametrize(("held", "scale"), [(4, 2), (9, 4), (50, 25)])
def test_one_half_of_the_held_out_sets_the_scale_and_the_other_calibrates(
        held: int, scale: int) -> None:
    held_M = torch.arange(held) * 3
    settings = config("mix.profile=standardised")
    group_N = alone(3 * held, 0)
    scale_K, rest_M = split_held_out(held_M, group_N, settings)
    assert len(scale_K) == scale and len(rest_M) == held - scale
    assert sorted([*scale_K.tolist(), *rest_M.tolist()]) == held_M.tolist()
    assert torch.equal(split_held_out(held_M, group_N, settings)[0], scale_K)
    if held == 50:
        assert scale_K.max() > rest_M.min()  # drawn, not cut
        assert not torch.equal(split_held_out(held_M, alone(150, 1), settings)[0], scale_K)


@pytest.mark.parametrize("profile", ["paper", "official"])
def test_without_a_scale_all_of_them_calibrate(profile: str) -> None:
    settings = config(f"mix.profile={profile}")
    scale_K, rest_M = split_held_out(torch.tensor([3, 7]), alone(8, 0), settings)
    assert scale_K.tolist() == [] and rest_M.tolist() == [3, 7]


def test_too_few_held_out_normals_for_a_scale_say_how_many_are_needed() -> None:
    with pytest.raises(DataError, match=r"3 normal images are held out .* at least 4 .*"
                                        r"raise calibration.fraction \(0.2\)"):
        split_held_out(torch.arange(3), alone(9, 0), config("mix.profile=standardised"))


def test_near_duplicates_stand_on_one_side_of_every_split(normals: torch.Tensor) -> None:
    group_N = torch.arange(COUNT) // 3  # threes of near-duplicates
    settings = config("mix.profile=standardised", "calibration.fraction=0.5")

    def groups(index_M: torch.Tensor) -> set[int]:
        return set(group_N[index_M].tolist())

    train_N, held_M = split_normals(group_N, settings)
    scale_K, rest_M = split_held_out(held_M, group_N, settings)
    assert not groups(train_N) & groups(held_M) and not groups(scale_K) & groups(rest_M)
    assert len(train_N) + len(held_M) == COUNT and len(scale_K) + len(rest_M) == len(held_M)
    # `fast`: the folds too
    _, calibration = fit_dense(normals, config(), load_teacher(), group_N)
    fold_N, features = folds(group_N, 4), extract(load_teacher(), normals)
    assert all(len(fold_N[group_N == group].unique()) == 1 for group in range(COUNT // 3))
    model = DenseGaussian(config(), load_teacher()).fit(features[fold_N != 1])
    assert torch.equal(calibration.terms["dense_distance"][fold_N == 1],
                       model.distances(features[fold_N == 1])[0])


class Fixed(torch.nn.Module):
    """Scores an image as its first pixel; a black one has no score."""

    def forward(self, image_NCHW: torch.Tensor) -> Scored:
        score_N = image_NCHW[:, 0, 0, 0].double()
        return Scored({"local_gsvdd": score_N}, score_N.square() / score_N,
                      image_NCHW[:, 0].float())


@pytest.mark.parametrize("chunk", [1, 2, 75])
def test_held_out_normals_keep_their_indices(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "CHUNK", chunk)
    images = torch.arange(1, 4, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    calibration = score_held_out(Fixed(), images, torch.tensor([5, 0, 9]))
    assert calibration.index_M.tolist() == [5, 0, 9]
    assert calibration.score_M.tolist() == calibration.heatmap_max_M.tolist() == [1, 2, 3]


def test_a_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(DivergedError, match=r"calibration: .* not finite"):
        score_held_out(Fixed(), torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.arange(2))
