import pytest
import torch

from igd.config import preset_config
from igd.errors import DivergedError, ModelError
from igd.model.igd import patches
from igd.train import loop
from igd.train.loop import train_nets
from igd.train.step import e_step

TINY = ["net.width=2", "net.latent=8", "net.global_encoder=trained", "train.batch_size=3",
        "train.patches_per_image=4", "net.batch_norm=estimated"]


def make_images(n=6):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bilinear")
    return (fine * 255).to(torch.uint8)


def train(*overrides, seed=0, report=None):
    config = preset_config("small", [*TINY, *overrides], seed=seed)
    return train_nets(make_images(), config, report=report)


@pytest.fixture(scope="module")
def history():
    return []


@pytest.fixture(scope="module")
def trained(history):
    return train("train.epochs=6", "train.lr=2e-3",
                 report=lambda epoch, metrics: history.append((epoch, metrics)))


def test_mu_and_sigma_are_those_of_the_final_map(trained):
    x = trained.normalise(make_images())
    for branch, encoder_input in ((trained.global_branch, x),
                                  (trained.local_branch, patches(x).flatten(0, 2))):
        with torch.no_grad():
            z = branch.encoder(encoder_input).double()
        torch.testing.assert_close(branch.gaussian.mu_D.double(), z.mean(0), rtol=1e-4,
                                   atol=1e-5)
        spread = 0.5 * (z - z.mean(0)).square().sum(1).mean().item()
        assert branch.gaussian.sigma2.item() == pytest.approx(max(1, spread), rel=1e-4)


@pytest.mark.parametrize(("mode", "measured"), [
    ("estimated", [True, True, False]), ("initial", [True, False, False]),
    ("fixed", [False, False, False])])
def test_the_final_map_is_the_one_that_was_trained(monkeypatch, mode, measured):
    """BatchNorm is measured before an epoch's M-steps, never after the last of them."""
    calls = []
    monkeypatch.setattr(loop, "e_step", lambda *args, measured, **kwargs: (
        calls.append(measured is not None), e_step(*args, measured=measured, **kwargs)))
    train("train.epochs=2", "train.patches_per_image=1", f"net.batch_norm={mode}")
    assert calls == [step for step in measured for _branch in range(2)]


def test_losses_fall(trained, history):
    first, last = history[0][1], history[-1][1]
    for name in ("global_reconstruction", "local_reconstruction"):
        assert last[name] < first[name], name


def test_report_names_every_term_of_both_branches(trained, history):
    assert [epoch for epoch, _ in history] == list(range(6))
    assert set(history[0][1]) == {
        f"{branch}_{term}" for branch in ("global", "local")
        for term in ("reconstruction", "adversarial", "gsvdd", "critic", "distance", "sigma2",
                     "lr")}


def test_equal_seeds_give_equal_bits_and_others_do_not():
    state = torch.random.get_rng_state()
    first, second = (train("train.epochs=1").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train("train.epochs=1", seed=1).state_dict()
    assert not torch.equal(first["local_branch.encoder.fc.weight"],
                           other["local_branch.encoder.fc.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_divergence_names_epoch_step_and_term():
    with pytest.raises(DivergedError, match=r"\w+_\w+ is nan in epoch 0, step 1"):
        train("train.epochs=1", "train.lr=1e30")


def test_equal_images_collapse():
    config = preset_config("small", [*TINY, "train.epochs=1"])
    with pytest.raises(DivergedError, match="collapsed"):
        train_nets(make_images(1).expand(4, -1, -1, -1), config)


def test_other_inputs_are_refused():
    with pytest.raises(ModelError, match="training images are"):
        train_nets(make_images(1), preset_config("small", TINY))
