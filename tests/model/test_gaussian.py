import math

import pytest
import torch

from igd.errors import DivergedError, NotFittedError
from igd.model.gaussian import Gaussian, gsvdd


def fitted(z, kappa=0.5):
    gaussian = Gaussian(z.shape[1])
    gaussian.fit(z, kappa)
    return gaussian


def test_fit_takes_the_mean_and_half_the_total_variance():
    z = torch.tensor([[1.0, 0.0], [5.0, 0.0], [3.0, 6.0], [3.0, -6.0]])
    gaussian = fitted(z)
    assert gaussian.mu_D.tolist() == [3.0, 0.0]
    assert gaussian.sigma2.item() == pytest.approx(0.5 * (4 + 4 + 36 + 36) / 4)
    assert gaussian.distance(z).tolist() == pytest.approx([0.4, 0.4, 3.6, 3.6])


def test_total_variance_is_bounded_below_by_one():
    z = torch.tensor([[0.1, 0.0], [-0.1, 0.0]])
    assert fitted(z).sigma2.item() == 1.0


def test_gsvdd_grows_from_zero_to_one():
    values = gsvdd(torch.tensor([0.0, 1.0, 2.0, 1e3], dtype=torch.float64))
    assert values[0] == 0
    assert values[1].item() == pytest.approx(1 - math.exp(-1))
    assert (values.diff() > 0).all()
    assert values[-1] == 1


def test_unfitted_use_is_an_error():
    with pytest.raises(NotFittedError, match="no mu and sigma"):
        Gaussian(3).distance(torch.zeros(1, 3))


@pytest.mark.parametrize("value", [0.0, 3.3])
def test_equal_descriptors_are_a_collapse(value):
    with pytest.raises(DivergedError, match="collapsed: all 10 descriptors are equal"):
        fitted(torch.full((10, 4), value))


def test_nan_descriptors_are_an_error():
    with pytest.raises(DivergedError, match="NaN"):
        fitted(torch.tensor([[1.0], [math.nan]]))


def test_the_fitted_state_is_saved():
    gaussian = fitted(torch.randn(8, 3))
    other = Gaussian(3)
    other.load_state_dict(gaussian.state_dict())
    z = torch.randn(2, 3)
    assert torch.equal(other.distance(z), gaussian.distance(z))
