"""Images of a training: some of a tensor's, none of them copied before it is needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

DIGEST_ROWS = 64


class Images:
    """Rows of a tensor of images that may be larger than memory.

    Attributes:
        source_NCHW: uint8 RGB; in whatever memory, and laid out in whatever way.
        row_N: which of them these are, in order; on the CPU.
        device: where they are handed out.
    """

    def __init__(self, source_NCHW: Tensor, row_N: Tensor | None = None,
                 device: torch.device | str | None = None) -> None:
        """By default all rows, on the device they are on."""
        self.source_NCHW = source_NCHW
        self.row_N = torch.arange(len(source_NCHW)) if row_N is None else row_N
        self.device = torch.device(device or source_NCHW.device)

    @classmethod
    def of(cls, images: Tensor | Images) -> Images:
        """A tensor's own; itself otherwise."""
        return images if isinstance(images, Images) else cls(images)

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.source_NCHW.shape[1:])

    def __getitem__(self, index_B: Tensor) -> Tensor:
        """Those of some numbers, (B, 3, S, S)."""
        return self.taken_from(self.source_NCHW, index_B)

    def taken_from(self, view: Tensor, index_B: Tensor, *at: Tensor) -> Tensor:
        """Likewise of a view of the source, with further indices beside each image's.

        Contiguous, whatever the source: the bits of what follows depend on it.
        """
        index = (self.row_N[index_B.cpu()], *at)
        taken = view[tuple(part.to(view.device) for part in index)]
        return taken.contiguous().to(self.device)

    def in_parts(self) -> Iterator[Tensor]:
        """All of them, some at a time."""
        return (self[part] for part in torch.split(torch.arange(len(self)), DIGEST_ROWS))
