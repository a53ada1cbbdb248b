import copy

import pytest
import torch

from igd.config import preset_config
from igd.errors import ModelError, NotFittedError
from igd.model.dense import extract
from igd.model.igd import (
    CHUNK,
    DATA_RANGE,
    IGD,
    PATCHES,
    Branch,
    fold,
    patch_features,
    patches,
)
from igd.model.mix import Mix
from igd.model.msssim import GLOBAL, dissimilarity_map, ms_ssim, similarities, stretched_map
from igd.model.resnet import ResNet18
from igd.records import TERMS
from igd.registry import load_teacher

TINY = ["net.width=2", "net.latent=8"]
CONFIG = preset_config("small", [*TINY, "net.global_encoder=trained"])


def images(n):
    return torch.randint(0, 256, (n, 3, 256, 256), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = IGD(CONFIG)
    return fitted(model)


def fitted(model):
    for branch in model.branches.values():
        branch.gaussian.fit([torch.randn(20, 8)], 0.5)
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
    assert set(scored.terms) == set(TERMS[:6])
    assert all(term.shape == (3,) for term in scored.terms.values())
    assert scored.score_N.dtype == torch.float64
    assert scored.heatmap_NHW.dtype == torch.float32
    assert scored.heatmap_NHW.shape == (3, 256, 256)


def test_local_terms_are_the_mean_over_all_patches(model, scored):
    x = model.normalise(images(1))
    grid = patches(x).flatten(0, 2)
    assert grid.shape == (PATCHES, 3, 32, 32)
    branch = model.branch("local")
    with torch.no_grad():
        distance = branch.gaussian.distance(branch.encoder(grid))
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
    branch = model.branch("global")
    with torch.no_grad():
        same = perfect(branch, x).terms(x, x)
        shifted = perfect(branch, x + 1).terms(x, x)
        unlike = perfect(branch, -x).terms(x, x)
    assert same.unlike_N.item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(same.heatmap_NHW, torch.zeros(1, 256, 256), atol=1e-4, rtol=0)
    black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])[:, None, None]
    maps = similarities(x - black, x + 1 - black, GLOBAL, DATA_RANGE)
    torch.testing.assert_close(shifted.heatmap_NHW,
                               dissimilarity_map(maps, GLOBAL, 256) + 1 / DATA_RANGE)
    assert shifted.mae_N.item() == pytest.approx(1 / DATA_RANGE, rel=1e-5)
    assert shifted.difference_N.item() == pytest.approx(-1 / DATA_RANGE, rel=1e-5)
    assert unlike.unlike_N.item() > 0.5


def test_a_white_patch_seen_as_grey_has_a_gradient_and_in_the_authors_way_none(model):
    """Luminance of pixels around their mean is clamped where signs differ."""
    white = torch.full((1, 3, 32, 32), 2.2)
    for official in (False, True):
        like = model.branch("local")
        branch = Branch(like.encoder, like.decoder, like.critic, like.gaussian, like.scales,
                        official=official)
        grey = torch.full((1, 3, 32, 32), -0.5).requires_grad_()
        ms_ssim(similarities(branch.intensities(white), branch.intensities(grey),
                             branch.scales, DATA_RANGE), branch.scales).backward()
        assert (grey.grad.abs().sum() < 1e-5) == official


def test_heatmap_mixes_global_and_local_by_beta(model, scored):
    def at(beta):
        other = copy.copy(model)
        config = preset_config("small", [*TINY, f"mix.beta={beta}"])
        other._modules = {**model._modules, "mix": Mix(config)}
        return other(images(1)).heatmap_NHW

    torch.testing.assert_close(scored.heatmap_NHW[:1], 0.1 * at(1.0) + 0.9 * at(0.0))
    x = model.normalise(images(1))
    with torch.no_grad():
        torch.testing.assert_close(at(1.0), model.branch("global").terms(x, x).heatmap_NHW)


def test_folding_patches_back_gives_the_image():
    image = torch.rand(1, 1, 256, 256)
    torch.testing.assert_close(fold(patches(image).flatten(0, 2).squeeze(1)), image[0])
    summed = fold(torch.ones(PATCHES, 32, 32), mean=False)[0]
    assert summed[0, 0] == 1 and summed[0, 128] == 2 and summed[128, 128] == 4


def test_the_official_heatmap_is_stretched_and_summed():
    torch.manual_seed(0)
    config = preset_config("small", [*TINY, "net.global_encoder=trained", "mix.profile=official"])
    model = fitted(IGD(config))
    x = model.normalise(images(1))
    with torch.no_grad():
        whole = model.branch("global").terms(x, x).heatmap_NHW
        branch = model.branch("global")
        y = branch.decoder(branch.encoder(x))
        maps = similarities(x, y, GLOBAL, DATA_RANGE)
        grid = patches(x).flatten(0, 2)
        local = fold(model.branch("local").terms(grid, grid).heatmap_NHW, mean=False)
    expected = stretched_map(maps, GLOBAL, 256) + (x - y).abs().mean(1) / DATA_RANGE
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(model(images(1)).heatmap_NHW, 0.1 * whole + 0.9 * local,
                               rtol=1e-4, atol=1e-4)


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


def teacher_config(name):
    weights = ["net.teacher=resnet18", "net.teacher_weights=x.safetensors"]
    return preset_config("small", [*TINY, "net.global_encoder=teacher",
                                   *(weights if name == "resnet18" else [])])


@pytest.mark.parametrize("name", ["efficientnet-lite0", "resnet18"])
def test_a_teacher_is_needed_and_travels_only_where_the_package_does_not_have_it(name):
    config = teacher_config(name)
    with pytest.raises(ModelError, match="none was given"):
        IGD(config)
    teacher = load_teacher() if name == "efficientnet-lite0" else ResNet18(None)
    model = fitted(IGD(config, teacher))
    carried = any("teacher" in name for name in model.state_dict())
    assert carried == (name == "resnet18")
    other = IGD(config, load_teacher() if name == "efficientnet-lite0" else ResNet18(None))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images(1)).score_N, model(images(1)).score_N)


def test_a_patch_reads_the_dense_features_of_its_own_place():
    config = preset_config("small", [*TINY, "net.local_encoder=teacher"])
    model = fitted(IGD(config, load_teacher()))
    image = images(1)
    seen = model.teacher_features("local", image)
    assert seen.shape == (PATCHES, 152)
    grid = extract(load_teacher(), image).local_NPC.reshape(16, 16, 152)
    # patch 17 stands in row 1, column 2: cells of rows 1 and 2, columns 2 and 3
    torch.testing.assert_close(seen[17], grid[1:3, 2:4].mean((0, 1)))
    assert patch_features(torch.zeros(2, 256, 7)).shape == (2, PATCHES, 7)
    scored = model(image)
    with torch.no_grad():
        branch = model.branch("local")
        distance = branch.gaussian.distance(branch.encoder(seen).double()).mean()
    assert scored.terms["local_gsvdd_distance"].item() == pytest.approx(distance.item(), rel=1e-4)


def small_images(n):
    return images(1)[0, :, :, :32 * n].unfold(2, 32, 32)[:, :32].permute(2, 0, 1, 3).contiguous()


def test_the_local_branch_alone_scores_32_pixel_images_each_on_its_own():
    config = preset_config("small", [*TINY, "net.branches=local", "net.local_encoder=trained",
                                     "image.size=32"])
    model = fitted(IGD(config))
    three = small_images(3)
    many = three.repeat(30, 1, 1, 1)  # more than one chunk
    assert len(many) > CHUNK
    scored = model(many)
    assert set(scored.terms) == {name for name in TERMS if name.startswith("local_")}
    assert scored.heatmap_NHW.shape == (90, 32, 32)
    assert torch.equal(scored.score_N[88:89], model(three[1:2]).score_N)
    with torch.no_grad():
        x = model.normalise(three)
        of = model.branch("local").terms(x, x)
    expected = 0.5 * of.unlike_N + 0.5 * (1 - torch.exp(-of.distance_N))
    torch.testing.assert_close(scored.score_N[:3], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="expected uint8"):
        model(images(1))
