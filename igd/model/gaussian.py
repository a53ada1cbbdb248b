"""The descriptor h: an isotropic Gaussian on f(x), fitted in the E-step (Eq. 7), or a sphere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from igd.errors import DivergedError, NotFittedError

Mean = Callable[[Tensor], Tensor]
"""From a mean over the rows at hand to that over all rows, which several workers may share."""

SIGMA2_MIN = 1.0
"""Lower bound of the total sigma^2 (Eq. 7)."""
COLLAPSED = 1e-12
"""A mean squared distance below this share of ||mu||^2 is rounding: one single point."""


class Gaussian(nn.Module):
    """Centre mu and total variance sigma^2, both part of the saved state.

    Of Deep SVDD the same two hold centre and squared radius, so that d/s is ||f(x) - c||^2 / R^2.
    """

    mu_D: Tensor
    sigma2: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("mu_D", torch.zeros(latent))
        self.register_buffer("sigma2", torch.zeros(()))

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called, or a fitted state loaded."""
        return bool(self.sigma2 > 0)

    def fit(self, z_ND: Tensor, kappa: float, mean: Mean = lambda own: own) -> None:
        """E-step: mu = mean f(x); sigma^2 = max(1, kappa * mean ||f(x) - mu||^2), Eq. 7.

        Args:
            mean: takes both means over all rows, where `z_ND` are not all of them.

        Raises:
            DivergedError: a descriptor is not finite, or all of them are equal.
        """
        mu_D, _, spread = _centred(z_ND, mean)
        self.mu_D.copy_(mu_D)
        self.sigma2.copy_((kappa * spread).clamp(min=SIGMA2_MIN))

    def fit_sphere(self, z_ND: Tensor, nu: float) -> None:
        """Soft-boundary Deep SVDD (Ruff et al. 2018, Section 3.3).

        The centre is the mean of the first fit and stays; R^2 leaves out the share `nu`.

        Raises:
            DivergedError: as `fit`.
        """
        mu_D, square_N, _ = _centred(z_ND, lambda own: own)
        if self.fitted:
            square_N = (z_ND.detach().double() - self.mu_D).square().sum(1)
        else:
            self.mu_D.copy_(mu_D)
        self.sigma2.copy_(torch.quantile(square_N, 1 - nu).clamp(min=torch.finfo().tiny))

    def distance(self, z_ND: Tensor) -> Tensor:
        """d/s = ||f(x) - mu||^2 / sigma^2, (N,), the exponent of Eq. 7.

        Raises:
            NotFittedError: before `fit`.
        """
        if not self.fitted:
            raise NotFittedError("the Gaussian descriptor has no mu and sigma yet: train the "
                                 "model or load a trained bundle")
        return (z_ND - self.mu_D).square().sum(1) / self.sigma2


def gsvdd(distance_N: Tensor) -> Tensor:
    """Eq. 7: 1 - exp(-d/s), in 0 to 1."""
    return -torch.expm1(-distance_N)


def _centred(z_ND: Tensor, mean: Mean) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, squared distances to it and their mean, in float64, of descriptors that differ."""
    z_ND = z_ND.detach().double()
    mu_D = mean(z_ND.mean(0))
    square_N = (z_ND - mu_D).square().sum(1)
    spread = mean(square_N.mean())
    if not torch.isfinite(spread):
        raise DivergedError("a descriptor is NaN or infinite in the E-step: lower train.lr")
    if spread <= COLLAPSED * mu_D.square().sum():
        raise DivergedError(
            f"the Gaussian collapsed: all {len(z_ND)} descriptors are equal (mean squared "
            f"distance to the centre {float(spread):.3g}); expected different training "
            "images and an encoder that tells them apart")
    return mu_D, square_N, spread
