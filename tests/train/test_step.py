import copy

import pytest
import torch

from igd.config import TrainConfig
from igd.errors import NotFittedError
from igd.model import networks
from igd.model.gaussian import Gaussian
from igd.model.igd import Branch
from igd.model.msssim import LOCAL
from igd.train.step import MStep, draw_alpha, e_step

TRAIN = TrainConfig(lr=1e-3)


def identity(x):
    return x


def make_branch():
    torch.manual_seed(0)
    return Branch(networks.local_encoder(2, 8), networks.local_decoder(2, 8),
                  networks.local_critic(2), Gaussian(8), LOCAL)


def make_patches(n=24):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(n, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


@pytest.fixture
def branch():
    branch = make_branch()
    e_step(branch, make_patches(), identity, kappa=0.5, measured=make_patches())
    return branch


def parameters(net):
    return [p.detach().clone() for p in net.parameters()]


def test_e_step_fits_the_map_with_the_new_statistics(branch):
    x = make_patches()
    with torch.no_grad():
        z = branch.encoder(x).double()
    torch.testing.assert_close(branch.gaussian.mu_D.double(), z.mean(0))
    spread = (z - z.mean(0)).square().sum(1).mean()
    assert branch.gaussian.sigma2.item() == pytest.approx(max(1, 0.5 * spread.item()), rel=1e-5)
    before = branch.gaussian.mu_D.clone()
    e_step(branch, x, identity, kappa=0.5, measured=x)
    torch.testing.assert_close(branch.gaussian.mu_D, before)


def test_e_step_leaves_fixed_batch_norm_alone():
    branch = make_branch()
    e_step(branch, make_patches(), identity, kappa=0.5, measured=None)
    norms = [value for name, value in branch.state_dict().items() if "mean_C" in name]
    assert norms
    assert not any(value.any() for value in norms)


def test_m_step_needs_an_e_step():
    x = make_patches(4)
    with pytest.raises(NotFittedError):
        MStep(make_branch(), TRAIN)(x, x, torch.full((4,), 0.2), 1e-3)


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
    # The last bias of the critic moves the generator's loss, but is not its to move.
    assert len(seen) == len(list(branch.parameters()))


def test_alpha_is_between_zero_and_a_half():
    alpha = draw_alpha(1000, torch.Generator().manual_seed(0))
    assert 0 <= alpha.min() < 0.05
    assert 0.45 < alpha.max() <= 0.5
