import pytest
import torch

from igd.model import losses
from igd.model.msssim import LOCAL


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
