import math

import pytest
import torch

from igd.errors import DivergedError, NotFittedError
from igd.model.gaussian import Gaussian, gsvdd


def fitted(z, kappa=0.5):
    gaussian = Gaussian(z.shape[1])
    gaussian.fit([z], kappa)
    return gaussian


def test_fit_takes_the_mean_and_half_the_total_variance():
    z = torch.tensor([[1.0, 0.0], [5.0, 0.0], [3.0, 6.0], [3.0, -6.0]])
    gaussian = fitted(z)
    assert gaussian.mu_D.tolist() == [3.0, 0.0]
    assert gaussian.sigma2.item() == pytest.approx(0.5 * (4 + 4 + 36 + 36) / 4)
    assert gaussian.distance(z).tolist() == pytest.approx([0.4, 0.4, 3.6, 3.6])


@pytest.mark.parametrize("sizes", [(1, 40), (40, 1), (7, 1, 20, 13)])
def test_moments_do_not_depend_on_the_parts_they_are_joined_from(sizes):
    z = 1e3 + torch.randn(41, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
                          ) * torch.linspace(1, 9, 41, dtype=torch.float64)[:, None]
    gaussian, ball = Gaussian(3).double(), Gaussian(3).double()
    gaussian.fit(torch.split(z, sizes), 0.5)
    ball.fit_sphere(torch.split(z, sizes), 0.25)
    mu_D = z.mean(0)
    for fitted_D in (gaussian.mu_D, ball.mu_D):
        torch.testing.assert_close(fitted_D, mu_D, rtol=1e-13, atol=0)
    square_N = (z - mu_D).square().sum(1)
    assert gaussian.sigma2.item() == pytest.approx(0.5 * square_N.mean().item(), rel=1e-12)
    assert ball.sigma2.item() == pytest.approx(square_N.quantile(0.75).item(), rel=1e-12)


def test_total_variance_is_bounded_below_by_one():
    z = torch.tensor([[0.1, 0.0], [-0.1, 0.0]])
    assert fitted(z).sigma2.item() == 1.0


def sphere(z, nu):
    gaussian = Gaussian(z.shape[1])
    gaussian.fit_sphere([z], nu)
    return gaussian


def soft_boundary(z, centre, radius2, nu):
    """Ruff et al. 2018, Eq. 3 without weight decay, term by term: R^2 + what is outside."""
    outside = [max(0.0, sum((a - c) ** 2 for a, c in zip(row, centre, strict=True)) - radius2)
               for row in z.tolist()]
    return radius2 + sum(outside) / (nu * len(outside))


def test_a_sphere_has_the_mean_as_centre_and_leaves_out_the_share_nu():
    z = torch.randn(41, 3, generator=torch.Generator().manual_seed(0)) + 5
    gaussian = sphere(z, 0.25)
    torch.testing.assert_close(gaussian.mu_D, z.mean(0))
    square = sorted((z.double() - z.double().mean(0)).square().sum(1).tolist())
    assert gaussian.sigma2.item() == pytest.approx(square[30])  # of 0 to 40, 10 are farther out
    outside = gaussian.distance(z) > 1 + 1e-5
    assert outside.sum() == 10


@pytest.mark.parametrize("nu", [0.1, 0.25, 0.5, 0.9])
def test_the_radius_minimises_the_soft_boundary_objective(nu):
    """That is what makes it the nu-quantile (Ruff et al. 2018, Section 3.3)."""
    z = torch.randn(41, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gaussian = sphere(z, nu)
    centre, radius2 = gaussian.mu_D.tolist(), gaussian.sigma2.item()
    at = soft_boundary(z, centre, radius2, nu)
    others = [soft_boundary(z, centre, radius2 * factor, nu)
              for factor in (0.0, 0.5, 0.9, 1.1, 2.0)]
    assert at < min(others)


def test_the_centre_of_a_sphere_stays_and_its_radius_follows():
    first = torch.randn(21, 3, generator=torch.Generator().manual_seed(2))
    gaussian = sphere(first, 0.1)
    centre = gaussian.mu_D.clone()
    then = 2 * first + 1
    gaussian.fit_sphere([then], 0.1)
    assert torch.equal(gaussian.mu_D, centre)
    square = sorted((then - centre).square().sum(1).tolist())
    assert gaussian.sigma2.item() == pytest.approx(square[18])


def test_a_sphere_around_nothing_is_a_collapse():
    with pytest.raises(DivergedError, match="collapsed"):
        sphere(torch.ones(10, 4), 0.1)


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
