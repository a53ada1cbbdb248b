import pytest
import torch

from igd.model import losses
from igd.model.gaussian import Gaussian
from igd.model.msssim import GLOBAL, LOCAL

pytestmark = pytest.mark.usefixtures("one_thread")


def test_critic_is_taught_alpha_on_interpolations_and_zero_on_mixes():
    alpha = torch.tensor([0.1, 0.4])
    zero = torch.zeros(2)
    assert losses.critic_loss(alpha, alpha, zero) == 0
    assert losses.critic_loss(alpha + 0.5, alpha, zero).item() == pytest.approx(0.25)
    assert losses.critic_loss(alpha, alpha, zero + 0.2).item() == pytest.approx(0.04)


def test_critic_refuses_a_broadcast():
    with pytest.raises(ValueError, match="equal shapes"):
        losses.critic_loss(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3))


def test_generator_wants_the_critic_to_say_zero():
    assert losses.adversarial_loss(torch.tensor([0.0, 0.4])).item() == pytest.approx(0.08)
    total = losses.generator_loss(torch.tensor(0.3), torch.tensor(0.2), weight=0.1)
    assert total.item() == pytest.approx(0.32)


def test_gsvdd_loss_pulls_descriptors_to_the_centre():
    distance = torch.tensor([0.5, 2.0], requires_grad=True)
    loss = losses.gsvdd_loss(distance)
    loss.backward()
    assert loss.item() == pytest.approx((1 - 2.718281828 ** -0.5 + 1 - 2.718281828 ** -2) / 2)
    assert distance.grad is not None
    assert (distance.grad > 0).all()


def test_reconstruction_mixes_l1_and_ms_ssim_by_rho():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    y = x + 0.5

    def loss(y, rho):
        return losses.reconstruction_loss(x, y, LOCAL, data_range=4.7579, rho=rho).item()

    assert loss(x, 0.15) == pytest.approx(0, abs=1e-6)
    assert loss(y, 1.0) == pytest.approx(0.5 / 4.7579, rel=1e-5)
    assert 0 < loss(y, 0.0) < 1
    assert loss(y, 0.15) == pytest.approx(0.15 * loss(y, 1.0) + 0.85 * loss(y, 0.0), rel=1e-5)


def test_reconstruction_in_pieces_is_the_whole(monkeypatch):
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 3, 32, 32)
    whole = losses.reconstruction_loss(x, y, LOCAL, data_range=4.7579, rho=0.15)
    monkeypatch.setattr(losses, "PIXELS", 2 * 32 * 32)
    pieces = losses.reconstruction_loss(x, y, LOCAL, data_range=4.7579, rho=0.15)
    torch.testing.assert_close(pieces, whole)


def test_soft_boundary_is_deep_svdds_eq_3_but_for_the_radius():
    """Ruff et al. 2018: R^2 + 1/(nu n) sum of max(0, ||z - c||^2 - R^2); R rests in the M-step."""
    nu = 0.25
    z = torch.randn(41, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    gaussian = Gaussian(3)
    gaussian.fit_sphere([z], nu)
    centre, radius2 = gaussian.mu_D.double(), gaussian.sigma2.item()
    loss = losses.soft_boundary_loss(gaussian.distance(z), gaussian.sigma2, nu)
    expected = sum(max(0.0, (row - centre).square().sum().item() - radius2)
                   for row in z.detach()) / (nu * 41)
    assert expected > 0
    assert loss.item() == pytest.approx(expected)
    grad, = torch.autograd.grad(loss, z)
    outside = (z.detach() - centre).square().sum(1) > radius2 * (1 + 1e-5)
    pull = 2 * (z.detach() - centre) * outside[:, None] / (nu * 41)
    torch.testing.assert_close(grad, pull, rtol=1e-5, atol=1e-9)


def pair(side):
    """Two batches of two, nowhere equal: |x - y| has no kink between them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64)
    y = x + 0.1 + torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize(("scales", "side"), [(GLOBAL, 176), (LOCAL, 32)])
def test_gradient_of_the_reconstruction_loss(scales, side):
    """176 is the smallest side whose fifth scale still holds the window."""
    assert torch.autograd.gradcheck(
        lambda x, y: losses.reconstruction_loss(x, y, scales, data_range=4.7579, rho=0.15),
        pair(side), fast_mode=True)


DISTANCE = [0.0, 0.3, 0.9, 1.2, 4.0]  # not 1, where the soft boundary has its kink


@pytest.mark.parametrize("loss", [
    losses.gsvdd_loss,
    lambda distance: losses.soft_boundary_loss(distance, torch.tensor(2.5), 0.1),
    losses.adversarial_loss,
    lambda d: losses.critic_loss(d, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).double(), d.flip(0)),
    lambda d: losses.generator_loss(d.sum(), losses.adversarial_loss(d), weight=0.1)],
    ids=["gsvdd", "soft boundary", "adversarial", "critic", "generator"])
def test_gradients_of_the_other_losses(loss):
    value = torch.tensor(DISTANCE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, value)


def test_gradient_of_a_descriptors_distance():
    gaussian = Gaussian(3)
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gaussian.fit([z], 0.5)
    assert torch.autograd.gradcheck(lambda z: losses.gsvdd_loss(gaussian.distance(z)),
                                    z.requires_grad_())
