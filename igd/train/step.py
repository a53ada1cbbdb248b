"""One E-step and one M-step of a branch (Eq. 4-7, Section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    soft_boundary_loss,
)
from igd.train.checkpoint import Snapshot, adam_tensors, restore_adam, within
from igd.train.inputs import Inputs
from igd.train.workers import ALONE, Workers

CHUNK = 225
"""Inputs per forward in the E-step."""
PART = 64 * CHUNK
"""Descriptors held at a time."""
ALPHA_MAX = 0.5


def e_step(inputs: Inputs, input_P: Tensor, train: TrainConfig, *,
           measured: Tensor | None) -> None:
    """BatchNorm statistics of encoder and decoder, then the centre, then sigma^2 (or the radius).

    They are those of the map with the new statistics.

    Args:
        input_P: numbers of the inputs that the descriptor is fitted on.
        measured: numbers of those that BatchNorm is measured on, in one batch; None leaves the
            statistics alone. Those of a frozen encoder always stay.
    """
    branch, workers = inputs.branch, inputs.workers
    if measured is not None:
        # All workers alike: the inputs are few, and statistics of one batch.
        seen = inputs.seen(measured)
        with torch.no_grad():
            z_ND = (measure_batch_norm(branch.encoder, seen) if inputs.features_IF is None
                    else branch.encoder.linear(seen))
        measure_batch_norm(branch.decoder, z_ND)
    mine_P = input_P[workers.mine(len(input_P))]

    def mean(own: Tensor) -> Tensor:
        return workers.mean([own], len(mine_P))[0]

    if train.descriptor == "dsvdd":
        branch.gaussian.fit_sphere(_Descriptors(inputs, mine_P), train.nu, mean,
                                   lambda own_P: workers.gather(own_P, len(input_P)))
    else:
        branch.gaussian.fit(_Descriptors(inputs, mine_P), train.kappa, mean)


class _Descriptors:
    """Descriptors of inputs, some at a time; computed anew whenever they are gone through."""

    def __init__(self, inputs: Inputs, input_P: Tensor) -> None:
        self._inputs, self._input_P = inputs, input_P

    def __iter__(self) -> Iterator[Tensor]:
        for part in torch.split(self._input_P, PART):
            with torch.no_grad():
                z_ND = torch.cat([self._inputs.branch.describe(self._inputs.seen(chunk))
                                  for chunk in torch.split(part, CHUNK)])
            yield z_ND


class MStep:
    """Simultaneous updates of a branch's critic and of its encoder and decoder (Eq. 4)."""

    def __init__(self, branch: Branch, train: TrainConfig, *, frozen: bool = False,
                 workers: Workers = ALONE) -> None:
        """`frozen`: of the encoder only the linear layer is trained."""
        self.branch = branch
        self.train = train
        self.workers = workers
        encoder = branch.encoder.linear if frozen else branch.encoder
        self._generator_parameters = [*encoder.parameters(), *branch.decoder.parameters()]
        self._critic_parameters = list(branch.critic.parameters())
        self._generator_adam = self._adam(self._generator_parameters)
        self._critic_adam = self._adam(self._critic_parameters)

    def tensors(self) -> dict[str, Tensor]:
        """The state of both optimisers."""
        return {**within("generator_adam", adam_tensors(self._generator_adam)),
                **within("critic_adam", adam_tensors(self._critic_adam))}

    def restore(self, saved: Snapshot) -> None:
        """Puts both optimisers back where `tensors` saw them."""
        for name, adam, parameters in (
                ("generator_adam", self._generator_adam, self._generator_parameters),
                ("critic_adam", self._critic_adam, self._critic_parameters)):
            restore_adam(adam, saved.part(name), parameters)

    def __call__(self, seen: Tensor, x_NCHW: Tensor, alpha_N: Tensor,
                 lr: float) -> dict[str, Tensor]:
        """One update; both gradients are taken before either weight moves.

        Of several workers each gives its own rows; losses, and so gradients, are means over all.

        Args:
            seen: what the encoder reads, one row per image or patch.
            x_NCHW: the normalised pixels of the same.
            alpha_N: interpolation coefficients, uniform in 0 to 0.5.
            lr: of both optimisers.

        Returns:
            The loss terms, and the mean d/s as `distance`; detached scalars.
        """
        terms = self._losses(seen, x_NCHW, alpha_N)
        loss = terms["reconstruction"]
        if self.train.interpolation:
            loss = generator_loss(loss, terms["adversarial"],
                                  weight=self.train.adversarial_weight)
        if self.train.descriptor != "none":
            loss = loss + terms[self.train.descriptor]
        generator_grads = self._mean(
            torch.autograd.grad(loss, self._generator_parameters,
                                retain_graph=self.train.interpolation), x_NCHW)
        if self.train.interpolation:
            critic_grads = self._mean(
                torch.autograd.grad(terms["critic"], self._critic_parameters), x_NCHW)
            _update(self._critic_adam, self._critic_parameters, critic_grads, lr)
        _update(self._generator_adam, self._generator_parameters, generator_grads, lr)
        means = self._mean([term.detach() for term in terms.values()], x_NCHW)
        return dict(zip(terms, means, strict=True))

    def _mean(self, own: Sequence[Tensor], x_NCHW: Tensor) -> list[Tensor]:
        """Over the rows of all workers, from means over these."""
        return self.workers.mean(own, len(x_NCHW))

    def _losses(self, seen: Tensor, x_NCHW: Tensor, alpha_N: Tensor) -> dict[str, Tensor]:
        branch, train = self.branch, self.train
        z_ND = branch.describe(seen)
        terms: dict[str, Tensor] = {}
        if train.interpolation:
            # x2 of a pair is the batch reversed.
            z_alpha_ND = alpha_N[:, None] * z_ND + (1 - alpha_N[:, None]) * z_ND.flip(0)
            y_NCHW, y_alpha_NCHW = branch.decoder(torch.cat([z_ND, z_alpha_ND])).chunk(2)
            d_alpha_N = branch.critic(y_alpha_NCHW)
            d_mixed_N = branch.critic(train.zeta * x_NCHW + (1 - train.zeta) * y_NCHW.detach())
            terms = {"adversarial": adversarial_loss(d_alpha_N),
                     "critic": critic_loss(d_alpha_N, alpha_N, d_mixed_N)}
        else:
            y_NCHW = branch.decoder(z_ND)
        terms["reconstruction"] = reconstruction_loss(
            branch.intensities(x_NCHW), branch.intensities(y_NCHW), branch.scales,
            data_range=DATA_RANGE, rho=train.rho)
        distance_N = branch.gaussian.distance(z_ND)
        if train.descriptor == "gsvdd":
            terms["gsvdd"] = gsvdd_loss(distance_N)
        elif train.descriptor == "dsvdd":
            terms["dsvdd"] = soft_boundary_loss(distance_N, branch.gaussian.sigma2, train.nu)
        return {**terms, "distance": distance_N.mean()}

    def _adam(self, parameters: list[nn.Parameter]) -> torch.optim.Adam:
        train = self.train
        return torch.optim.Adam(parameters, lr=train.lr, betas=(train.beta1, train.beta2),
                                weight_decay=train.weight_decay, fused=True)


def draw_alpha(n: int, generator: torch.Generator) -> Tensor:
    """Interpolation coefficients (n,), uniform in 0 to 0.5."""
    return torch.rand(n, generator=generator) * ALPHA_MAX


def _update(adam: torch.optim.Adam, parameters: list[nn.Parameter],
            grads: Sequence[Tensor], lr: float) -> None:
    for parameter, grad in zip(parameters, grads, strict=True):
        # Fused Adam on the CPU reads both in order of memory: a gradient laid out channels-last
        # would reach the wrong weights of a contiguous kernel, without a word.
        parameter.grad = torch.empty_like(parameter).copy_(grad)
    for group in adam.param_groups:
        group["lr"] = lr
    adam.step()
    adam.zero_grad()
