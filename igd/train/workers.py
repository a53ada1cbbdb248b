"""Several workers that train one category's nets together: who takes which rows, what is summed.

Every worker draws the same random numbers and holds the same images, weights and optimisers, so
each knows the whole batch and takes its rows of it. Means, gradients among them, are taken over
all rows before anything follows from them, so the workers stay equal, bit for bit on equal
machines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from igd.errors import ModelError

FILL_ROWS = 512
"""Rows of features exchanged at a time."""


@dataclass(frozen=True)
class Workers:
    """One of `size` workers. Each calls the same methods in the same order."""

    rank: int
    size: int

    @classmethod
    def of_process_group(cls) -> Workers:
        """Those of torch's default process group, which has been initialised."""
        return cls(dist.get_rank(), dist.get_world_size())

    def mine(self, n: int) -> Tensor:
        """Which of `n` rows are this worker's, ascending.

        Interpolation pairs row i with row n - 1 - i: both are the same worker's, so that its
        rows reversed are their partners. Of fewer pairs than workers everyone takes all rows:
        no worker is ever without.
        """
        row_N = torch.arange(n)
        if not self._split(n):
            return row_N
        return row_N[torch.minimum(row_N, n - 1 - row_N) % self.size == self.rank]

    def mean(self, own: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Means over the rows of all workers, from those over this worker's `rows`.

        All in one exchange, and of one type; detached, and laid out in memory as they came.
        """
        if self.size == 1:
            return list(own)
        flat = torch.cat([*(value.detach().flatten() for value in own), own[0].new_ones(1)])
        flat *= rows
        dist.all_reduce(flat)
        flat, count = flat[:-1], flat[-1]
        parts = torch.split(flat / count, [value.numel() for value in own])
        return [torch.empty_like(value).copy_(part.view(value.shape))
                for value, part in zip(own, parts, strict=True)]

    def gather(self, own: Tensor, n: int) -> Tensor:
        """All `n` rows in their order, from those that are `mine`."""
        if not self._split(n):
            return own
        rows = own.new_zeros((n, *own.shape[1:]))
        rows[self.mine(n).to(own.device)] = own
        dist.all_reduce(rows)
        return rows

    def fill(self, rows: Tensor, device: torch.device) -> None:
        """Gives every worker all rows, in place, from those that are `mine`; the rest hold zeros.

        Args:
            rows: in whatever memory.
            device: that the workers exchange on.
        """
        if not self._split(len(rows)):
            return
        for part in torch.split(rows, FILL_ROWS):
            moved = part.to(device)
            dist.all_reduce(moved)
            part.copy_(moved)

    def all_well(self, well: bool, device: str) -> bool:
        """Whether all workers are; each asks at the same place."""
        if self.size == 1:
            return well
        ill = torch.tensor([0.0 if well else 1.0], device=device)
        dist.all_reduce(ill)
        return bool(ill == 0)

    def check_same(self, device: torch.device, **held: Iterable[str | Tensor]) -> None:
        """Makes sure that what each worker holds under a name has the same bits on all.

        Raises:
            ModelError: on every worker, where one holds something else.
        """
        if self.size == 1:
            return
        digest_K32 = torch.stack([_digest(parts) for parts in held.values()]).to(device)
        all_RK32 = digest_K32.new_zeros((self.size, *digest_K32.shape))
        all_RK32[self.rank] = digest_K32
        dist.all_reduce(all_RK32)
        same_K = (all_RK32 == all_RK32[0]).all(2).all(0).tolist()
        if not all(same_K):
            names = [name for name, same in zip(held, same_K, strict=True) if not same]
            raise ModelError(f"the {self.size} workers of one training were given different "
                             f"{' and '.join(names)}: expected the same for each")

    def _split(self, n: int) -> bool:
        return 1 < self.size <= (n + 1) // 2


ALONE = Workers(0, 1)
"""A training in one process: nothing is exchanged."""


def _digest(parts: Iterable[str | Tensor]) -> Tensor:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str)
                      else part.detach().cpu().contiguous().numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
