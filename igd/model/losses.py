"""The losses of the M-step, each a mean over the batch (Eq. 5-8)."""

from __future__ import annotations

import torch
from torch import Tensor

from igd.model.gaussian import gsvdd
from igd.model.msssim import Scales, ms_ssim, similarities

PIXELS = 2**18
"""MS-SSIM is taken on pieces of a batch: its many planes are to stay near the cache."""


def reconstruction_loss(x_NCHW: Tensor, reconstructed_NCHW: Tensor, scales: Scales, *,
                        data_range: float, rho: float) -> Tensor:
    """Eq. 8: rho * MAE / L + (1 - rho) * (1 - MS-SSIM)."""
    mae = (x_NCHW - reconstructed_NCHW).abs().mean()
    piece = max(1, PIXELS // x_NCHW[0, 0].numel())
    similarity_N = torch.cat([
        ms_ssim(similarities(x, y, scales, data_range), scales)
        for x, y in zip(torch.split(x_NCHW, piece), torch.split(reconstructed_NCHW, piece),
                        strict=True)])
    return rho * mae / data_range + (1 - rho) * (1 - similarity_N).mean()


def critic_loss(d_alpha_N: Tensor, alpha_N: Tensor, d_mixed_N: Tensor) -> Tensor:
    """Eq. 5: (d(x_alpha) - alpha)^2 + d(zeta x + (1 - zeta) x~)^2.

    Args:
        d_alpha_N: the critic on decoded interpolations.
        alpha_N: their coefficients; the same shape (a broadcast would teach the batch mean).
        d_mixed_N: the critic on mixes of image and reconstruction.
    """
    if d_alpha_N.shape != alpha_N.shape:
        raise ValueError(f"d(x_alpha) has shape {tuple(d_alpha_N.shape)} and alpha "
                         f"{tuple(alpha_N.shape)}: expected equal shapes")
    return (d_alpha_N - alpha_N).square().mean() + d_mixed_N.square().mean()


def adversarial_loss(d_alpha_N: Tensor) -> Tensor:
    """The critic's term in Eq. 6: d(x_alpha)^2; its weight is `train.adversarial_weight`."""
    return d_alpha_N.square().mean()


def generator_loss(reconstruction: Tensor, adversarial: Tensor, *, weight: float) -> Tensor:
    """Eq. 6: reconstruction loss + weight * d(x_alpha)^2."""
    return reconstruction + weight * adversarial


def gsvdd_loss(distance_N: Tensor) -> Tensor:
    """Eq. 7 over a batch: the mean of 1 - exp(-d/s)."""
    return gsvdd(distance_N).mean()


def soft_boundary_loss(distance_N: Tensor, radius2: Tensor, nu: float) -> Tensor:
    """Soft-boundary Deep SVDD (Ruff et al. 2018, Eq. 3): what is outside, mean over nu.

    Its R^2 is a constant of the M-step (the radius is set by the nu-quantile).

    Args:
        distance_N: ||f(x) - c||^2 / R^2.
    """
    return (distance_N - 1).clamp(min=0).mean() * radius2 / nu
