"""What a training goes on from after it was interrupted, to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Phase = Literal["distil", "em"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The whole state of a training between two iterations or epochs.

    Attributes:
        branch, phase: what is being trained.
        done: iterations or epochs of the phase.
        tensors: weights, optimisers and random generators, by names with dots.
    """

    branch: str
    phase: Phase
    done: int
    tensors: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below a name, that name taken off."""
        return {key.removeprefix(f"{name}."): tensor for key, tensor in self.tensors.items()
                if key.startswith(f"{name}.")}


class Checkpoints(Protocol):
    """Where snapshots are kept; which of those offered is up to it."""

    def last(self) -> Snapshot | None:
        """The latest one kept, or None."""

    def offer(self, take: Callable[[], Snapshot]) -> None:
        """Keeps what `take` returns, if it is time for it."""


class NoCheckpoints:
    """Keeps nothing: a training in one go."""

    def last(self) -> None:
        return None

    def offer(self, take: Callable[[], Snapshot]) -> None:
        pass


def within(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors put below a name."""
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which training does not change any more."""
    return {name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()}


def adam_tensors(adam: torch.optim.Adam) -> dict[str, Tensor]:
    """Moments and step counts, by number of the parameter."""
    return {f"{number}.{name}": value
            for number, state in adam.state_dict()["state"].items()
            for name, value in state.items()}


def restore_adam(adam: torch.optim.Adam, tensors: Mapping[str, Tensor],
                 parameters: Iterable[Tensor]) -> None:
    """Puts moments back, laid out in memory as their parameters are."""
    for number, parameter in enumerate(parameters):
        adam.state[parameter] = {
            name: (torch.empty_like(parameter).copy_(tensors[f"{number}.{name}"])
                   if name != "step" else tensors[f"{number}.step"].clone().to(parameter.device))
            for name in ("step", "exp_avg", "exp_avg_sq") if f"{number}.{name}" in tensors}
