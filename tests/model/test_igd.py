import copy
import dataclasses

import pytest
import torch

from igd.config import MixConfig, preset_config
from igd.errors import ModelError, NotFittedError
from igd.model.igd import DATA_RANGE, IGD, PATCHES, fold, mixed_score, patches
from igd.model.msssim import GLOBAL, dissimilarity_map, similarities
from igd.records import TERMS

CONFIG = preset_config("small", ["net.width=2", "net.latent=8", "net.global_encoder=trained"])


class FlatTeacher(torch.nn.Module):
    """Stands in for the teacher where only its size and its range of pixels matter."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def pooled(self, image):
        assert image.max() > 1
        return image.mean((1, 2, 3), keepdim=False)[:, None].expand(-1, 1280) / 255 * self.scale


def images(n):
    return torch.randint(0, 256, (n, 3, 256, 256), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = IGD(CONFIG)
    for branch in (model.global_branch, model.local_branch):
        branch.gaussian.fit(torch.randn(20, 8), 0.5)
    return model


@pytest.fixture(scope="module")
def scored(model):
    return model(images(3))


def test_a_scores_bits_do_not_depend_on_batch_mates(model, scored):
    alone = model(images(3)[1:2])
    assert torch.equal(alone.score_N, scored.score_N[1:2])
    assert torch.equal(alone.heatmap_NHW, scored.heatmap_NHW[1:2])
    for name, term in scored.terms.items():
        assert torch.equal(alone.terms[name], term[1:2]), name


def test_terms_are_named_and_shaped_as_the_record_says(scored):
    assert tuple(scored.terms) == TERMS[:6]
    assert all(term.shape == (3,) for term in scored.terms.values())
    assert scored.score_N.dtype == torch.float64
    assert scored.heatmap_NHW.dtype == torch.float32
    assert scored.heatmap_NHW.shape == (3, 256, 256)


def test_score_is_eq_11():
    terms = {name: torch.tensor([value]) for name, value in zip(
        TERMS[:4], (0.1, 0.2, 0.3, 0.4), strict=True)}
    score = mixed_score(terms, MixConfig(xi=0.25, beta=0.1))
    l_m, l_h = 0.1 * 0.1 + 0.9 * 0.2, 0.1 * 0.3 + 0.9 * 0.4
    assert score.item() == pytest.approx(0.25 * l_m + 0.75 * l_h)


def test_local_terms_are_the_mean_over_all_patches(model, scored):
    x = model.normalise(images(1))
    grid = patches(x).flatten(0, 2)
    assert grid.shape == (PATCHES, 3, 32, 32)
    with torch.no_grad():
        distance = model.local_branch.gaussian.distance(model.local_branch.encoder(grid))
    assert scored.terms["local_gsvdd_distance"][0].item() == pytest.approx(
        distance.mean().item(), rel=1e-4)
    assert scored.terms["local_gsvdd"][0].item() == pytest.approx(
        (1 - torch.exp(-distance)).mean().item(), rel=1e-4)


def perfect(branch, x):
    """The branch with a decoder that gives `x` back, whatever it is told."""
    other = copy.copy(branch)
    other._modules = {**branch._modules, "decoder": Constant(x)}
    return other


class Constant(torch.nn.Module):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, z):
        return self.x


def test_a_perfect_reconstruction_is_not_anomalous_and_an_l1_error_is(model):
    x = model.normalise(images(1))
    branch = model.global_branch
    with torch.no_grad():
        reconstruction, _, heatmap = perfect(branch, x).terms(x, x)
        _, _, shifted = perfect(branch, x + 1).terms(x, x)
        unlike, _, _ = perfect(branch, -x).terms(x, x)
    assert reconstruction.item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(heatmap, torch.zeros_like(heatmap), atol=1e-4, rtol=0)
    maps = similarities(x, x + 1, GLOBAL, DATA_RANGE)
    torch.testing.assert_close(shifted, dissimilarity_map(maps, GLOBAL, 256) + 1 / DATA_RANGE)
    assert unlike > 0.5


def test_heatmap_mixes_global_and_local_by_beta(model, scored):
    def at(beta):
        other = copy.copy(model)
        other.mix = MixConfig(beta=beta)
        return other(images(1)).heatmap_NHW

    torch.testing.assert_close(scored.heatmap_NHW[:1], 0.1 * at(1.0) + 0.9 * at(0.0))
    x = model.normalise(images(1))
    with torch.no_grad():
        torch.testing.assert_close(at(1.0), model.global_branch.terms(x, x)[2])


def test_folding_patches_back_gives_the_image():
    image = torch.rand(1, 1, 256, 256)
    torch.testing.assert_close(fold(patches(image).flatten(0, 2).squeeze(1)), image[0])


def test_pixels_have_the_papers_range(model):
    assert pytest.approx(4.7579, abs=1e-4) == DATA_RANGE
    extremes = model.normalise(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2))
    assert (extremes.max() - extremes.min()).item() == pytest.approx(DATA_RANGE, rel=1e-6)


def test_an_unfitted_model_does_not_score():
    with pytest.raises(NotFittedError):
        IGD(CONFIG)(images(1))


@pytest.mark.parametrize("bad", [images(1).float(), images(1)[:, :, :128]])
def test_other_inputs_are_refused(model, bad):
    with pytest.raises(ModelError, match="expected uint8"):
        model(bad)


def test_the_teacher_is_needed_and_stays_out_of_the_state():
    config = dataclasses.replace(CONFIG, net=dataclasses.replace(
        CONFIG.net, global_encoder="efficientnet-lite0"))
    with pytest.raises(ModelError, match="no teacher"):
        IGD(config)
    teacher = FlatTeacher()
    model = IGD(config, teacher)
    assert not any("teacher" in name for name in model.state_dict())
    assert all(p is not teacher.scale for p in model.parameters())
    for branch in (model.global_branch, model.local_branch):
        branch.gaussian.fit(torch.randn(20, 8), 0.5)
    other = IGD(config, teacher)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images(1)).score_N, model(images(1)).score_N)
