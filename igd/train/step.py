"""One E-step and one M-step of a branch (Eq. 4-7, Section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from igd.config import TrainConfig
from igd.model.blocks import measure_batch_norm
from igd.model.igd import DATA_RANGE, Branch
from igd.model.losses import (
    adversarial_loss,
    critic_loss,
    generator_loss,
    gsvdd_loss,
    reconstruction_loss,
)

CHUNK = 225
"""Inputs per forward in the E-step."""
ALPHA_MAX = 0.5


def e_step(branch: Branch, stored: Tensor, read: Callable[[Tensor], Tensor], *, kappa: float,
           measured: Tensor | None) -> None:
    """BatchNorm statistics of encoder and decoder, then mu, then sigma^2.

    mu and sigma^2 are those of the map with the new statistics.

    Args:
        stored: every input of this E-step as it is kept (uint8 pixels or features).
        read: from a piece of `stored` to what the encoder reads.
        kappa: see `Gaussian.fit`.
        measured: the part of `stored` that BatchNorm is measured on, in one batch; None leaves
            the statistics alone.
    """
    if measured is not None:
        z_ND = measure_batch_norm(branch.encoder, read(measured))
        measure_batch_norm(branch.decoder, z_ND)
    with torch.no_grad():
        z_ND = torch.cat([branch.encoder(read(chunk)) for chunk in torch.split(stored, CHUNK)])
    branch.gaussian.fit(z_ND, kappa)


class MStep:
    """Simultaneous updates of a branch's critic and of its encoder and decoder (Eq. 4)."""

    def __init__(self, branch: Branch, train: TrainConfig) -> None:
        self.branch = branch
        self.train = train
        self._generator_parameters = [*branch.encoder.parameters(), *branch.decoder.parameters()]
        self._critic_parameters = list(branch.critic.parameters())
        self._generator_adam = self._adam(self._generator_parameters)
        self._critic_adam = self._adam(self._critic_parameters)

    def __call__(self, encoder_input: Tensor, x_NCHW: Tensor, alpha_N: Tensor,
                 lr: float) -> dict[str, Tensor]:
        """One update; both gradients are taken before either weight moves.

        Args:
            encoder_input: what the encoder reads, one row per image or patch.
            x_NCHW: the normalised pixels of the same.
            alpha_N: interpolation coefficients, uniform in 0 to 0.5.
            lr: of both optimisers.

        Returns:
            The loss terms, and the mean d/s as `distance`; detached scalars.
        """
        terms = self._losses(encoder_input, x_NCHW, alpha_N)
        generator = generator_loss(terms["reconstruction"], terms["adversarial"],
                                   weight=self.train.adversarial_weight) + terms["gsvdd"]
        generator_grads = torch.autograd.grad(generator, self._generator_parameters,
                                              retain_graph=True)
        critic_grads = torch.autograd.grad(terms["critic"], self._critic_parameters)
        _update(self._generator_adam, self._generator_parameters, generator_grads, lr)
        _update(self._critic_adam, self._critic_parameters, critic_grads, lr)
        return {name: term.detach() for name, term in terms.items()}

    def _losses(self, encoder_input: Tensor, x_NCHW: Tensor,
                alpha_N: Tensor) -> dict[str, Tensor]:
        branch, train = self.branch, self.train
        z_ND = branch.encoder(encoder_input)
        # x2 of a pair is the batch reversed.
        z_alpha_ND = alpha_N[:, None] * z_ND + (1 - alpha_N[:, None]) * z_ND.flip(0)
        y_NCHW, y_alpha_NCHW = branch.decoder(torch.cat([z_ND, z_alpha_ND])).chunk(2)
        d_alpha_N = branch.critic(y_alpha_NCHW)
        d_mixed_N = branch.critic(train.zeta * x_NCHW + (1 - train.zeta) * y_NCHW.detach())
        distance_N = branch.gaussian.distance(z_ND)
        return {
            "reconstruction": reconstruction_loss(x_NCHW, y_NCHW, branch.scales,
                                                  data_range=DATA_RANGE, rho=train.rho),
            "adversarial": adversarial_loss(d_alpha_N),
            "gsvdd": gsvdd_loss(distance_N),
            "critic": critic_loss(d_alpha_N, alpha_N, d_mixed_N),
            "distance": distance_N.mean(),
        }

    def _adam(self, parameters: list[nn.Parameter]) -> torch.optim.Adam:
        train = self.train
        return torch.optim.Adam(parameters, lr=train.lr, betas=(train.beta1, train.beta2),
                                weight_decay=train.weight_decay, fused=True)


def draw_alpha(n: int, generator: torch.Generator) -> Tensor:
    """Interpolation coefficients (n,), uniform in 0 to 0.5."""
    return torch.rand(n, generator=generator) * ALPHA_MAX


def _update(adam: torch.optim.Adam, parameters: list[nn.Parameter],
            grads: tuple[Tensor, ...], lr: float) -> None:
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    for group in adam.param_groups:
        group["lr"] = lr
    adam.step()
    adam.zero_grad()
