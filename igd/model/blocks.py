"""Pre-activation residual blocks (Section 3.3) and the two norms they are built with.

A mean pool after a convolution, and a nearest x2 before one, are folded into the kernel:
exact identities up to rounding. The parameters are those of the plain form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_EPS = 1e-5


class BatchNorm(nn.Module):
    """BatchNorm that always uses its buffers, in training and in evaluation alike.

    The statistics start at 0 and 1, and change only in `measure_batch_norm`; so E-step,
    M-step and score see one and the same map, and no image depends on its batch-mates.
    """

    mean_C: Tensor
    var_C: Tensor

    def __init__(self, channels: int, side: int = 0) -> None:
        """`side` is not used; it makes the signature that of `LayerNorm`."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("var_C", torch.ones(channels))
        self.measuring = False

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.measuring:
            var_C, mean_C = torch.var_mean(x_NCHW, (0, 2, 3), correction=0)
            self.mean_C.copy_(mean_C)
            self.var_C.copy_(var_C)
        return F.batch_norm(x_NCHW, self.mean_C, self.var_C, self.weight, self.bias, eps=BN_EPS)


class LayerNorm(nn.Module):
    """LayerNorm over (C, H, W), computed on the channels-last view."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.weight_HWC = nn.Parameter(torch.ones(side, side, channels))
        self.bias_HWC = nn.Parameter(torch.zeros(side, side, channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NHWC: Tensor = F.layer_norm(x_NCHW.permute(0, 2, 3, 1), list(self.weight_HWC.shape),
                              self.weight_HWC, self.bias_HWC)
        return y_NHWC.permute(0, 3, 1, 2)


class Down(nn.Module):
    """Residual block that halves the side: norm, ReLU, conv, norm, ReLU, conv, mean pool."""

    def __init__(self, cin: int, cout: int, side: int,
                 norm: Callable[[int, int], nn.Module]) -> None:
        """`side` is that of the input."""
        super().__init__()
        self.norm1 = norm(cin, side)
        self.conv1 = conv(cin, cin, 3, bias=False)
        self.norm2 = norm(cin, side)
        self.conv2 = conv(cin, cout, 3)
        self.shortcut = conv(cin, cout, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.conv1(F.relu(self.norm1(x_NCHW)))
        y_NCHW = F.relu(self.norm2(y_NCHW))
        shortcut_NCHW: Tensor = self.shortcut(F.avg_pool2d(x_NCHW, 2))
        return shortcut_NCHW + conv_mean_pool(y_NCHW, self.conv2.weight, self.conv2.bias)


class Up(nn.Module):
    """Residual block that doubles the side: norm, ReLU, nearest x2, conv, norm, ReLU, conv."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm1 = BatchNorm(cin)
        self.conv1 = conv(cin, cout, 3, bias=False)
        self.norm2 = BatchNorm(cout)
        self.conv2 = conv(cout, cout, 3)
        self.shortcut = conv(cin, cout, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = up_conv(F.relu(self.norm1(x_NCHW)), self.conv1.weight, None)
        y_NCHW = self.conv2(F.relu(self.norm2(y_NCHW)))
        # A 1x1 convolution commutes with nearest: a quarter of the work before it.
        shortcut_NCHW: Tensor = F.interpolate(self.shortcut(x_NCHW), scale_factor=2.0)
        return y_NCHW + shortcut_NCHW


class UpConv(nn.Module):
    """Nearest x2, then a convolution."""

    def __init__(self, cin: int, cout: int, kernel: int) -> None:
        super().__init__()
        self.conv = conv(cin, cout, kernel)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return up_conv(x_NCHW, self.conv.weight, self.conv.bias)


def conv(cin: int, cout: int, kernel: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Same-padded convolution: He-uniform kernel (Glorot for 1x1), zero bias."""
    layer = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=bias)
    init = nn.init.xavier_uniform_ if kernel == 1 else nn.init.kaiming_uniform_
    init(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def linear(din: int, dout: int) -> nn.Linear:
    """Linear layer: Glorot-uniform matrix, zero bias."""
    layer = nn.Linear(din, dout)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def conv_mean_pool(x_NCHW: Tensor, kernel_OIHW: Tensor, bias_O: Tensor | None) -> Tensor:
    """Same-padded convolution and 2x2 mean, as one convolution of stride 2.

    Its kernel, one larger, is the mean of the four shifts.
    """
    pad = kernel_OIHW.shape[-1] // 2
    return F.conv2d(x_NCHW, _four_shifts(kernel_OIHW) / 4, bias_O, stride=2, padding=pad)


def up_conv(x_NCHW: Tensor, kernel_OIHW: Tensor, bias_O: Tensor | None) -> Tensor:
    """Nearest x2 and same-padded convolution, as one transposed convolution of stride 2.

    Its kernel, one larger, is the sum of the four shifts of the flipped kernel.
    """
    pad = kernel_OIHW.shape[-1] // 2
    kernel_IOHW = _four_shifts(kernel_OIHW.flip(2, 3)).transpose(0, 1)
    return F.conv_transpose2d(x_NCHW, kernel_IOHW, bias_O, stride=2, padding=pad)


def measure_batch_norm(net: nn.Module, x: Tensor) -> Tensor:
    """Sets every BatchNorm of `net` to the statistics of its own input, in one pass over `x`.

    Layer by layer, each sees what the layers before it give with their new statistics, so the
    output returned is that of the new map.
    """
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    try:
        for norm in norms:
            norm.measuring = True
        with torch.no_grad():
            y: Tensor = net(x)
    finally:
        for norm in norms:
            norm.measuring = False
    return y


def _four_shifts(kernel_OIHW: Tensor) -> Tensor:
    """Sum of the kernel and its copies one down, one right, and both."""
    columns = F.pad(kernel_OIHW, (0, 1)) + F.pad(kernel_OIHW, (1, 0))
    return F.pad(columns, (0, 0, 0, 1)) + F.pad(columns, (0, 0, 1, 0))
