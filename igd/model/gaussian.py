"""The descriptor h: an isotropic Gaussian on f(x), fitted in the E-step (Eq. 7), or a sphere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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

    def fit(self, parts: Iterable[Tensor], kappa: float, mean: Mean = lambda own: own) -> None:
        """E-step: mu = mean f(x); sigma^2 = max(1, kappa * mean ||f(x) - mu||^2), Eq. 7.

        Args:
            parts: descriptors (N, D), some at a time.
            mean: takes both means over all rows, where these are not all of them.

        Raises:
            DivergedError: a descriptor is not finite, or all of them are equal.
        """
        mu_D, spread = _moments(parts, mean)
        self.mu_D.copy_(mu_D)
        self.sigma2.copy_((kappa * spread).clamp(min=SIGMA2_MIN))

    def fit_sphere(self, parts: Iterable[Tensor], nu: float, mean: Mean = lambda own: own,
                   gather: Mean = lambda own: own) -> None:
        """Soft-boundary Deep SVDD (Ruff et al. 2018, Section 3.3).

        The centre is the mean of the first fit and stays; R^2 leaves out the share `nu`.

        Args:
            parts: as in `fit`, gone through twice.
            mean: as in `fit`.
            gather: from a value for each row at hand to those of all rows: a quantile does not
                come from moments.

        Raises:
            DivergedError: as `fit`.
        """
        centre_D, _ = _moments(parts, mean)
        if self.fitted:
            centre_D = self.mu_D
        square_N = gather(torch.cat([(z_ND.detach().double() - centre_D).square().sum(1)
                                     for z_ND in parts]))
        self.mu_D.copy_(centre_D)
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


def _moments(parts: Iterable[Tensor], mean: Mean) -> tuple[Tensor, Tensor]:
    """Mean and mean squared distance to it, in float64, of descriptors that differ.

    The moments of each part are joined about their common mean (Chan et al. 1983): no row is kept,
    and nothing cancels.
    """
    count = 0
    own_D = square = torch.zeros((), dtype=torch.float64)
    for part_ND in parts:
        z_ND = part_ND.detach().double()
        part_D, n = z_ND.mean(0), len(z_ND)
        apart_D = part_D - own_D
        square = square + (z_ND - part_D).square().sum() + (
            apart_D.square().sum() * (count * n / (count + n)))
        own_D = own_D + apart_D * (n / (count + n))
        count += n
    mu_D = mean(own_D)
    spread = mean(square / count + (own_D - mu_D).square().sum())
    if not torch.isfinite(spread):
        raise DivergedError("a descriptor is NaN or infinite in the E-step: lower train.lr")
    if spread <= COLLAPSED * mu_D.square().sum():
        raise DivergedError(
            f"the Gaussian collapsed: all {count} descriptors are equal (mean squared "
            f"distance to the centre {float(spread):.3g}); expected different training "
            "images and an encoder that tells them apart")
    return mu_D, spread
