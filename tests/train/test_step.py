import copy

import pytest
import torch

from igd.config import TrainConfig, preset_config
from igd.errors import NotFittedError
from igd.model.igd import DATA_RANGE, IGD
from igd.model.losses import reconstruction_loss
from igd.train import step
from igd.train.inputs import Inputs
from igd.train.step import MStep, draw_alpha, e_step

TRAIN = TrainConfig(lr=1e-3)


def make_inputs(n=24):
    """32x32 pictures, each one input of a model that is the local branch alone."""
    torch.manual_seed(0)
    model = IGD(preset_config("small", ["net.width=2", "net.latent=8", "net.branches=local",
                                        "net.local_encoder=trained", "image.size=32"]))
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 4, 4, generator=generator) * 255
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").byte()
    return Inputs(model, "local", images)


def make_patches(n=24):
    inputs = make_inputs()
    return inputs.pixels(torch.arange(n))


@pytest.fixture
def inputs():
    inputs = make_inputs()
    every = torch.arange(inputs.total)
    e_step(inputs, every, TRAIN, measured=every)
    return inputs


@pytest.fixture
def branch(inputs):
    return inputs.branch


def parameters(net):
    return [p.detach().clone() for p in net.parameters()]


def test_e_step_fits_the_map_with_the_new_statistics(inputs):
    branch, every = inputs.branch, torch.arange(inputs.total)
    with torch.no_grad():
        z = branch.encoder(inputs.pixels(every)).double()
    torch.testing.assert_close(branch.gaussian.mu_D.double(), z.mean(0), rtol=1e-4, atol=1e-5)
    spread = (z - z.mean(0)).square().sum(1).mean()
    assert branch.gaussian.sigma2.item() == pytest.approx(max(1, 0.5 * spread.item()), rel=1e-4)
    before = branch.gaussian.mu_D.clone()
    e_step(inputs, every, TRAIN, measured=every)
    torch.testing.assert_close(branch.gaussian.mu_D, before)


@pytest.mark.parametrize("descriptor", ["gsvdd", "dsvdd"])
def test_e_step_takes_every_input_however_few_are_held(inputs, monkeypatch, descriptor):
    train, every = TrainConfig(lr=1e-3, descriptor=descriptor), torch.arange(inputs.total)
    e_step(inputs, every, train, measured=every)
    whole = [t.clone() for t in (inputs.branch.gaussian.mu_D, inputs.branch.gaussian.sigma2)]
    monkeypatch.setattr(step, "CHUNK", 3)
    monkeypatch.setattr(step, "PART", 7)
    inputs.branch.gaussian.sigma2.zero_()  # a sphere's centre is taken once
    e_step(inputs, every, train, measured=every)
    for now, before in zip((inputs.branch.gaussian.mu_D, inputs.branch.gaussian.sigma2), whole,
                           strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-5)


def test_e_step_leaves_fixed_batch_norm_alone():
    inputs = make_inputs()
    e_step(inputs, torch.arange(inputs.total), TRAIN, measured=None)
    norms = [value for name, value in inputs.branch.state_dict().items() if "mean_C" in name]
    assert norms
    assert not any(value.any() for value in norms)


def test_e_step_of_frozen_features_measures_the_decoder_alone():
    inputs = make_inputs()
    every = torch.arange(inputs.total)
    inputs.freeze()
    e_step(inputs, every, TRAIN, measured=every)
    measured = {name: bool(value.any()) for name, value in inputs.branch.state_dict().items()
                if "mean_C" in name}
    assert measured == {name: name.startswith("decoder") for name in measured}
    with torch.no_grad():
        z = inputs.branch.encoder.linear(inputs.branch.encoder.features(inputs.pixels(every)))
    torch.testing.assert_close(inputs.branch.gaussian.mu_D, z.mean(0), rtol=1e-4, atol=1e-5)


def test_e_step_of_deep_svdd_sets_the_radius_by_the_nu_quantile_and_keeps_the_centre(inputs):
    train = TrainConfig(descriptor="dsvdd", nu=0.25)
    fresh, every = make_inputs(), torch.arange(inputs.total)
    e_step(fresh, every, train, measured=None)
    centre = fresh.branch.gaussian.mu_D.clone()
    with torch.no_grad():
        fresh.branch.encoder.linear.weight.mul_(3)
        fresh.branch.encoder.linear.bias.add_(1)
    e_step(fresh, every, train, measured=None)
    assert torch.equal(fresh.branch.gaussian.mu_D, centre)
    with torch.no_grad():
        distance = fresh.branch.gaussian.distance(fresh.branch.describe(fresh.pixels(every)))
    assert (distance > 1).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_m_step_needs_an_e_step():
    x = make_patches(4)
    with pytest.raises(NotFittedError):
        MStep(make_inputs().branch, TRAIN)(x, x, torch.full((4,), 0.2), 1e-3)


def test_each_player_descends_its_own_loss(branch):
    """One tiny step lowers what each player minimises, with the other held still."""
    x, alpha = make_patches(), draw_alpha(24, torch.Generator().manual_seed(2))
    start = copy.deepcopy(branch.state_dict())
    terms = MStep(branch, TRAIN)(x, x, alpha, 1e-5)
    after = copy.deepcopy(branch.state_dict())

    def terms_of(critic, rest):
        branch.load_state_dict({name: (critic if name.startswith("critic") else rest)[name]
                                for name in start})
        return MStep(branch, TRAIN)(x, x, alpha, 0.0)

    assert terms_of(after, start)["critic"] < terms["critic"]
    moved = terms_of(start, after)

    def generator(terms):
        return terms["reconstruction"] + 0.1 * terms["adversarial"] + terms["gsvdd"]

    assert generator(moved) < generator(terms)


def test_gradients_are_those_of_the_two_losses_taken_apart(branch):
    x, alpha = make_patches(), torch.full((24,), 0.3)
    seen = {}

    def spy(adam, grads_of):
        def step(*args, **kwargs):
            for p in grads_of:
                seen[p] = p.grad.clone()
        adam.step = step

    m_step = MStep(branch, TRAIN)
    spy(m_step._generator_adam, m_step._generator_parameters)
    spy(m_step._critic_adam, m_step._critic_parameters)
    m_step(x, x, alpha, 1e-3)

    z = branch.encoder(x)
    y_alpha = branch.decoder(0.3 * z + 0.7 * z.flip(0))
    y = branch.decoder(z)
    mixed = 0.2 * x + 0.8 * y
    critic = ((branch.critic(y_alpha) - alpha) ** 2).mean() + (branch.critic(mixed) ** 2).mean()
    expected = torch.autograd.grad(critic, list(branch.critic.parameters()))
    for p, grad in zip(branch.critic.parameters(), expected, strict=True):
        torch.testing.assert_close(seen[p], grad, rtol=1e-3, atol=1e-6)
    generator = reconstruction_loss(branch.intensities(x), branch.intensities(y), branch.scales,
                                    data_range=DATA_RANGE, rho=TRAIN.rho)
    generator = generator + 0.1 * (branch.critic(y_alpha) ** 2).mean()  # Eq. 6
    distance = (z - branch.gaussian.mu_D).square().sum(1) / branch.gaussian.sigma2
    generator = generator + (1 - torch.exp(-distance)).mean()  # Eq. 7
    players = [*branch.encoder.parameters(), *branch.decoder.parameters()]
    for p, grad in zip(players, torch.autograd.grad(generator, players), strict=True):
        torch.testing.assert_close(seen[p], grad, rtol=1e-3, atol=1e-6)


def test_every_weight_moves_by_its_own_gradient(branch):
    """Adam's first step is lr against the sign of the gradient, wherever that is not tiny."""
    x, alpha = make_patches(), torch.full((24,), 0.3)
    m_step = MStep(branch, TrainConfig(lr=1e-3, weight_decay=0.0))
    grads = {}
    for adam in (m_step._generator_adam, m_step._critic_adam):
        adam.register_step_pre_hook(lambda adam, *_: grads.update(
            {p: p.grad.clone() for p in adam.param_groups[0]["params"]}))
    before = {name: p.detach().clone() for name, p in branch.named_parameters()}
    m_step(x, x, alpha, 1e-3)
    for name, p in branch.named_parameters():
        large = grads[p].abs() > 1e-5
        moved = (p.detach() - before[name])[large]
        torch.testing.assert_close(moved, -1e-3 * grads[p][large].sign(), rtol=0.01, atol=1e-6,
                                   msg=name)


def test_alpha_is_between_zero_and_a_half():
    alpha = draw_alpha(1000, torch.Generator().manual_seed(0))
    assert 0 <= alpha.min() < 0.05
    assert 0.45 < alpha.max() <= 0.5


@pytest.mark.parametrize(("overrides", "terms"), [
    ({"interpolation": False}, {"reconstruction", "gsvdd", "distance"}),
    ({"interpolation": False, "descriptor": "none"}, {"reconstruction", "distance"}),
    ({"descriptor": "dsvdd"}, {"reconstruction", "adversarial", "critic", "dsvdd", "distance"})])
def test_what_is_switched_off_has_no_term_and_moves_nothing(inputs, overrides, terms):
    branch, x = inputs.branch, make_patches()
    before = copy.deepcopy(branch.state_dict())
    found = MStep(branch, TrainConfig(lr=1e-3, **overrides))(x, x, torch.full((24,), 0.3), 1e-3)
    assert set(found) == terms
    moved = {name.split(".")[0] for name, value in branch.state_dict().items()
             if not torch.equal(value, before[name])}
    expected = {"encoder", "decoder"}
    assert moved == (expected if "critic" not in terms else {*expected, "critic"})


def test_of_a_frozen_encoder_the_linear_layer_alone_is_trained(inputs):
    inputs.freeze()
    every = torch.arange(inputs.total)
    before = copy.deepcopy(inputs.branch.encoder.state_dict())
    MStep(inputs.branch, TRAIN, frozen=True)(inputs.seen(every), inputs.pixels(every),
                                             torch.full((24,), 0.3), 1e-3)
    moved = {name for name, value in inputs.branch.encoder.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("descriptor", ["gsvdd", "dsvdd"])
def test_the_descriptors_loss_pulls_towards_the_centre(inputs, descriptor):
    train = TrainConfig(descriptor=descriptor, interpolation=False)
    every = torch.arange(inputs.total)
    inputs.freeze()
    e_step(inputs, every, train, measured=None)
    m_step = MStep(inputs.branch, train, frozen=True)
    distances = [float(m_step(inputs.seen(every), inputs.pixels(every), torch.zeros(24),
                              1e-4)["distance"]) for _ in range(8)]
    assert distances[-1] < distances[0]
