"""The picture of a branch: where which tile stands, in which colours."""

from __future__ import annotations

import pytest
import torch

from igd.config import preset_config
from igd.model.igd import IGD, patches
from igd.registry import load_teacher
from igd.train.strip import ALPHAS, GAP, TILE, strip

pytestmark = pytest.mark.usefixtures("one_thread")

STEP = TILE + GAP


def make_images(n: int = 13, side: int = 256) -> torch.Tensor:
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(3)) * 255
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").byte()


def make_model(*overrides: str) -> IGD:
    config = preset_config("small", ["net.width=2", "net.latent=8", "net.global_encoder=trained",
                                     "net.local_encoder=trained", *overrides])
    torch.manual_seed(0)
    return IGD(config, load_teacher() if config.net.needs_teacher else None).eval()


def tile(picture: torch.Tensor, row: int, column: int) -> torch.Tensor:
    top, left = GAP + row * STEP + (4 * GAP if row > 1 else 0), GAP + column * STEP
    return picture[top:top + TILE, left:left + TILE].int()


def halved(image_CHW: torch.Tensor) -> torch.Tensor:
    return image_CHW.reshape(3, TILE, 2, TILE, 2).float().mean((2, 4)).round().permute(1, 2, 0)


@pytest.fixture(scope="module")
def picture(one_thread: None) -> torch.Tensor:
    return strip(make_model(), "global", make_images())


def test_images_come_first_in_their_own_colours(picture: torch.Tensor) -> None:
    """Normalised and back; every second of thirteen."""
    assert picture.dtype == torch.uint8
    assert picture.shape == (5 * STEP + 5 * GAP, 7 * STEP + GAP, 3)
    for column in range(7):
        expected = halved(make_images()[2 * column])
        assert (tile(picture, 0, column) - expected).abs().max() <= 1


def test_below_stand_reconstructions_and_interpolations_of_eq_5(picture: torch.Tensor) -> None:
    model = make_model()
    x = model.normalise(make_images()[::2])
    branch = model.branch("global")

    def decoded(z: torch.Tensor) -> torch.Tensor:
        y = branch.decoder(z[None])[0] * model.std_C11 + model.mean_C11
        return halved(y.clamp(0, 1) * 255)

    with torch.no_grad():
        z = branch.describe(x)
        for column in range(7):
            assert (tile(picture, 1, column) - decoded(z[column])).abs().max() <= 1
        for row, (one, two) in enumerate(((0, 6), (1, 5), (2, 4)), start=2):
            assert torch.equal(tile(picture, row, 0), tile(picture, 0, two))
            assert torch.equal(tile(picture, row, 6), tile(picture, 0, one))
            for column, alpha in enumerate(ALPHAS, start=1):
                expected = decoded(alpha * z[one] + (1 - alpha) * z[two])
                assert (tile(picture, row, column) - expected).abs().max() <= 1
    assert not torch.equal(tile(picture, 2, 1), tile(picture, 2, 5))


@pytest.mark.parametrize("kind", ["trained", "teacher"])
def test_the_local_branch_shows_patches_enlarged(kind: str) -> None:
    images = make_images(7)
    picture = strip(make_model(f"net.local_encoder={kind}"), "local", images)
    for column, image in enumerate(images):
        shown = tile(picture, 0, column)
        small = shown[::4, ::4]
        assert torch.equal(shown, small.repeat_interleave(4, 0).repeat_interleave(4, 1))
        found = patches(image[None]).flatten(0, 2).permute(0, 2, 3, 1).int()
        assert ((found - small).abs().amax((1, 2, 3)) <= 1).any()  # one of that image's


def test_equal_arguments_give_equal_pixels_and_leave_the_random_state_alone() -> None:
    model, images = make_model("net.branches=local", "image.size=32"), make_images(2, side=32)
    state = torch.random.get_rng_state()
    first, second = (strip(model, "local", images) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(tile(first, 0, 0), tile(first, 0, 1))  # seven tiles of two images
    assert not torch.equal(tile(first, 0, 0), tile(first, 0, 6))
