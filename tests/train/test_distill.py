"""Distillation: an encoder's features come to say what a frozen teacher says (Eq. 10)."""

import pytest
import torch

from igd.config import preset_config
from igd.errors import DivergedError
from igd.model.igd import IGD
from igd.train.distill import REPORTS, Distillation, teacher_targets
from igd.train.inputs import Inputs

pytestmark = pytest.mark.usefixtures("one_thread")


class Colours(torch.nn.Module):
    """A teacher of another size than 512: the mean colour, three times over."""

    channels = 9

    def pooled(self, image):
        return image.mean((2, 3)).repeat(1, 3)


class Wide(Colours):
    """One of the very size of an encoder's features."""

    channels = 512

    def pooled(self, image):
        return image.mean((2, 3)).repeat(1, 171)[:, :512]


def make_inputs(n=20):
    torch.manual_seed(0)
    config = preset_config("small", ["net.width=2", "net.latent=8"])
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 255
    images = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bilinear").byte()
    return Inputs(IGD(config, Colours()), "local", images)


def config(*overrides):
    return preset_config("small", ["distill.iterations=60", "distill.batch_size=16",
                                   "distill.max_inputs=400", "distill.lr=1e-3", *overrides])


def distill(inputs, teacher, config, generator, report):
    Distillation(inputs, teacher, config, generator).run(report, lambda: None)


@pytest.mark.parametrize("teacher", [Colours(), Wide()], ids=["another size", "512"])
def test_the_share_not_learnt_falls_from_about_one(teacher):
    inputs, losses = make_inputs(), []
    distill(inputs, teacher, config(), torch.Generator().manual_seed(0),
            lambda done, steps, metrics: losses.append((done, metrics["distillation"])))
    assert [done for done, _ in losses] == list(range(3, 61, 60 // REPORTS))
    assert losses[-1][1] < 0.4 < losses[0][1]


def test_targets_are_centred_and_scaled_by_one_number():
    inputs = make_inputs(6)
    target = teacher_targets(inputs, torch.arange(0, inputs.total, 40), Colours(), 64)
    raw = inputs.raw(torch.arange(0, inputs.total, 40)).float().mean((2, 3)).repeat(1, 3)
    centred = raw - raw.mean(0)
    assert target.square().mean().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(target, centred / centred.square().mean().sqrt(), atol=0.05,
                               rtol=0.05)  # the teacher sees patches resized


def test_equal_images_teach_nothing():
    inputs = make_inputs(1)
    inputs.images.source_NCHW.fill_(7)
    with pytest.raises(DivergedError, match="says the same of all"):
        distill(inputs, Colours(), config(), torch.Generator(), lambda *args: None)


def test_a_rate_that_diverges_is_named():
    with pytest.raises(DivergedError, match=r"local_distillation is (nan|inf) by iteration 3:"):
        distill(make_inputs(4), Colours(), config("distill.lr=1e30"),
                torch.Generator().manual_seed(0), lambda *args: None)
