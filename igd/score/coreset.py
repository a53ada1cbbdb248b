"""Memory banks: which patches are kept, and how far the nearest of them is.

Legend: N queries, B rows of a bank, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTION = 64
"""Dimensions in which a coreset is selected."""
CHUNK = 256
"""Queries per matrix product, which bounds the memory."""


def nearest_distance(query_ND: Tensor, bank_BD: Tensor) -> Tensor:
    """Euclidean distance of each query to the nearest row of the bank, (N,).

    A matrix product finds the neighbour; its distance is then that of the difference, exactly 0
    for a row of the bank.
    """
    square_B = bank_BD.square().sum(1)
    nearest = [torch.addmm(square_B, query_ND[i:i + CHUNK], bank_BD.T, alpha=-2).argmin(1)
               for i in range(0, len(query_ND), CHUNK)]
    distance_N: Tensor = torch.linalg.vector_norm(query_ND - bank_BD[torch.cat(nearest)], dim=1)
    return distance_N


def projected(x_BD: Tensor) -> Tensor:
    """A random projection to 64 dimensions, of a fixed seed, that nearly keeps distances.

    A Gaussian one (Johnson and Lindenstrauss 1984), as PatchCore's.
    """
    map_DK = torch.randn(x_BD.shape[1], PROJECTION, generator=torch.Generator().manual_seed(0))
    return torch.mm(x_BD, map_DK / PROJECTION ** 0.5)


def greedy_coreset(x_BD: Tensor, count: int) -> Tensor:
    """Indices of `count` rows, each the one farthest from all before it; (count,).

    At most twice as far from any row as the best choice (Gonzalez 1985). The first is the one
    farthest from the mean: nothing is drawn.
    """
    x_BD = x_BD - x_BD.mean(0)  # the expanded square below loses fewer digits
    square_B = x_BD.square().sum(1)
    gap_B = torch.full_like(square_B, torch.inf)
    chosen = torch.empty(count, dtype=torch.long)
    index = int(square_B.argmax())
    for i in range(count):
        chosen[i] = index
        square_to_B = torch.addmv(square_B, x_BD, x_BD[index], alpha=-2).add_(square_B[index])
        torch.minimum(gap_B, square_to_B, out=gap_B)
        gap_B[index] = -torch.inf  # rounding could leave it above another's
        index = int(gap_B.argmax())
    return chosen
