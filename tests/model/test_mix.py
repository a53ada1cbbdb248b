"""Profiles of the score: Eq. 11, the authors' code, and terms on the scale of normals."""

import pytest
import torch

from igd.config import preset_config
from igd.errors import DivergedError, NotFittedError
from igd.model.mix import BranchTerms, Mix


def mix(*overrides):
    return Mix(preset_config("small", ["train.rho=0.15", *overrides]))


def patch_terms(unlike, distance):
    unlike, distance = torch.tensor(unlike).double(), torch.tensor(distance).double()
    return BranchTerms(unlike, mae_N=unlike * 0 + 0.5, difference_N=unlike * 0 - 0.5,
                       distance_N=distance, heatmap_NHW=torch.zeros(len(unlike), 1, 1))


TERMS = {name: torch.tensor([value]) for name, value in {
    "global_reconstruction": 0.1, "local_reconstruction": 0.2, "global_gsvdd": 0.3,
    "local_gsvdd": 0.4}.items()}


def test_paper_is_eq_11():
    l_m, l_h = 0.1 * 0.1 + 0.9 * 0.2, 0.1 * 0.3 + 0.9 * 0.4
    assert mix("mix.xi=0.25").score(TERMS).item() == pytest.approx(0.25 * l_m + 0.75 * l_h)


def test_official_weighs_each_branch_its_own_way():
    score = mix("mix.profile=official").score(TERMS)
    expected = ((0.1 * 0.1 + 0.9 * 0.3) + (0.9 * 0.2 + 0.1 * 0.4)) / 2
    assert score.item() == pytest.approx(expected)


def test_without_a_descriptor_the_score_is_reconstruction_alone():
    for profile, expected in (("paper", 0.1 * 0.1 + 0.9 * 0.2), ("official", (0.1 + 0.2) / 2)):
        score = mix("train.descriptor=none", f"mix.profile={profile}").score(TERMS)
        assert score.item() == pytest.approx(expected)


def test_paper_takes_the_mean_of_the_patches():
    terms = mix().image_terms("local", patch_terms([0.1, 0.3], [0.0, 2.0]))
    assert terms["local_reconstruction"].item() == pytest.approx(0.2)
    assert terms["local_gsvdd_distance"].item() == 1.0
    assert terms["local_gsvdd"].item() == pytest.approx((1 - torch.exp(torch.tensor(-2.0))) / 2)


def test_official_takes_the_worst_patch_and_a_signed_difference_in_the_local_branch():
    """Of two patches the one that 0.9 reconstruction + 0.1 GSVDD puts first."""
    of = patch_terms([0.1, 0.3], [50.0, 0.0])
    local = mix("mix.profile=official").image_terms("local", of)
    assert local["local_reconstruction"].item() == pytest.approx(0.15 * -0.5 + 0.85 * 0.3)
    assert local["local_gsvdd"].item() == 0.0  # of the same patch
    whole = mix("mix.profile=official").image_terms("global", of)
    assert whole["global_reconstruction"].item() == pytest.approx(0.15 * 0.5 + 0.85 * 0.1)
    assert whole["global_gsvdd"].item() == pytest.approx(1.0)  # 0.9 GSVDD decides here


def test_standardised_counts_each_term_in_deviations_of_normals():
    model = mix("mix.profile=standardised")
    names = ("global_reconstruction", "global_gsvdd_distance", "local_reconstruction",
             "local_gsvdd_distance")
    normals = {name: torch.tensor([0.0, 2.0]) + i for i, name in enumerate(names)}
    with pytest.raises(NotFittedError, match="standardise first"):
        model.score(normals)
    model.standardise(normals)
    deviation = 2 ** 0.5
    image = {name: torch.tensor([1.0 + i + deviation]) for i, name in enumerate(names)}
    assert model.score(image).item() == pytest.approx(4.0)
    worst = model.image_terms("local", patch_terms([0.1, 0.3], [5.0, 0.0]))
    assert (worst["local_reconstruction"].item(), worst["local_gsvdd_distance"].item()) == (
        pytest.approx(0.3), 5.0)
    with pytest.raises(DivergedError, match="local_reconstruction does not vary"):
        model.standardise({**normals, "local_reconstruction": torch.ones(2)})
