"""ResNet18 (He et al. 2016, Table 1), frozen, as a teacher: the one of the authors' code.

The caller hands the weights over, in the names that torchvision writes. BatchNorm is folded
into the convolutions, which is exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igd.errors import ModelError
from igd.model.teacher import (
    MEAN,
    STD,
    EfficientNetLite0,
    Layer,
    Teacher,
    freeze,
    load_folded,
)

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages, each of two blocks; all but the first halve the side."""
BN_EPS = 1e-5
NAMING = "ResNet18 as torchvision names it"
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(cin, cout, 3, stride)
        self.conv2 = _conv(cout, cout, 3)
        self.shortcut = _conv(cin, cout, 1, stride) if stride > 1 or cin != cout else None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        shortcut_NCHW = x_NCHW if self.shortcut is None else self.shortcut(x_NCHW)
        y_NCHW: Tensor = self.conv2(F.relu(self.conv1(x_NCHW)))
        return F.relu(y_NCHW + shortcut_NCHW)


class ResNet18(nn.Module):
    """The frozen teacher.

    Args:
        weights: a state dict; the classifier `fc` and `num_batches_tracked` are ignored. None
            for a net that `load_state_dict` fills, as a bundle that carries its teacher does.

    Raises:
        ModelError: as `load_folded`, or there is a tensor that ResNet18 does not have.
    """

    mean_C11: Tensor
    std_C11: Tensor
    channels: int = WIDTHS[-1]

    def __init__(self, weights: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(STD)[:, None, None], persistent=False)
        self.stem = _conv(3, WIDTHS[0], 7, 2)
        blocks: list[BasicBlock] = []
        cin = WIDTHS[0]
        for cout in WIDTHS:
            blocks += [BasicBlock(cin, cout, 1 if cout == cin else 2), BasicBlock(cout, cout, 1)]
            cin = cout
        self.blocks = nn.ModuleList(blocks)
        if weights is not None:
            self._check_names(weights)
            load_folded(weights, self._layers(), BN_EPS, NAMING)
        freeze(self)

    def pooled(self, image_NCHW: Tensor) -> Tensor:
        """Globally pooled features, (N, 512), from RGB in 0 to 255, of any side from 32.

        Raises:
            ModelError: another number of channels, which the mean would be broadcast over.
        """
        if image_NCHW.dim() != 4 or image_NCHW.shape[1] != 3:
            raise ModelError(f"images have shape {tuple(image_NCHW.shape)}: expected "
                             "(N, 3, H, W), RGB")
        x_NCHW = (image_NCHW / 255 - self.mean_C11) / self.std_C11
        x_NCHW = self.stem(x_NCHW.contiguous(memory_format=torch.channels_last))
        x_NCHW = F.max_pool2d(F.relu(x_NCHW), 3, stride=2, padding=1)
        for block in self.blocks:
            x_NCHW = block(x_NCHW)
        return x_NCHW.mean((2, 3))

    def _layers(self) -> Iterator[Layer]:
        yield self.stem, "conv1", "bn1"
        for i, block in enumerate(self.blocks):
            assert isinstance(block, BasicBlock)
            at = f"layer{i // 2 + 1}.{i % 2}."
            yield block.conv1, at + "conv1", at + "bn1"
            yield block.conv2, at + "conv2", at + "bn2"
            if block.shortcut is not None:
                yield block.shortcut, at + "downsample.0", at + "downsample.1"

    def _check_names(self, weights: Mapping[str, Tensor]) -> None:
        """A deeper net of the same blocks has every tensor of this one, and more."""
        known = {f"{conv}.weight" for _, conv, _ in self._layers()}
        known |= {f"{norm}.{part}" for _, _, norm in self._layers() for part in NORM_PARTS}
        foreign = [name for name in weights if name not in known and not name.startswith("fc.")]
        if foreign:
            raise ModelError(f"teacher weights have {foreign[0]!r}, which ResNet18 has not"
                             f"{_likeness(weights)}: expected the state dict of {NAMING}")


def _likeness(weights: Mapping[str, Tensor]) -> str:
    if "layer1.0.conv3.weight" in weights:
        return " (this looks like a ResNet of bottleneck blocks: ResNet50 or larger)"
    if "layer1.2.conv2.weight" in weights:
        return " (this looks like a deeper ResNet of basic blocks, such as ResNet34)"
    return ""


def _conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2)


if TYPE_CHECKING:  # mypy holds both to the protocol
    TEACHERS: tuple[type[Teacher], ...] = (EfficientNetLite0, ResNet18)
