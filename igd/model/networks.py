"""The six nets of the paper at any width (64 is the paper's; METHOD, "Networks").

Local nets see 32x32 patches, global nets the 256x256 image, both with normalised pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from igd.model.blocks import BatchNorm, Down, LayerNorm, Up, UpConv, conv, linear

FEATURES = 512
"""Size of an encoder's output before its linear layer, at every width; what a teacher teaches."""
LAST_LAYER_SCALE = 0.01
GRID = 4
"""Side of the smallest feature map, in all nets."""
LOCAL_SIDE = 32
GLOBAL_SIDE = 256


class Encoder(nn.Module):
    """A trunk to the 512-d features, then the linear layer to the descriptor."""

    def __init__(self, trunk: nn.Module, channels: int, latent: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.fc = linear(channels * GRID * GRID, FEATURES)
        self.linear = linear(FEATURES, latent)

    def features(self, x_NCHW: Tensor) -> Tensor:
        """The (N, 512) features."""
        features_ND: Tensor = self.fc(self.trunk(x_NCHW).flatten(1))
        return features_ND

    def forward(self, x_NCHW: Tensor) -> Tensor:
        z_ND: Tensor = self.linear(self.features(x_NCHW))
        return z_ND


class FeatureEncoder(nn.Module):
    """The linear layer on features that a frozen teacher gives: (N, F) to the descriptor."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.linear = linear(features, latent)

    def features(self, features_NF: Tensor) -> Tensor:
        """What it is given."""
        return features_NF

    def forward(self, features_NF: Tensor) -> Tensor:
        z_ND: Tensor = self.linear(features_NF)
        return z_ND


class Decoder(nn.Module):
    """From the descriptor to the image, through 8 * width channels of 4x4."""

    def __init__(self, trunk: nn.Sequential, width: int, latent: int) -> None:
        """The last layer starts near 0, so that training starts from even grey.

        MS-SSIM punishes any texture on an even patch. From a textured start the quickest way out
        is to switch the last ReLUs off for good, and the decoder says the same of everything.
        """
        super().__init__()
        self.fc = linear(latent, 8 * width * GRID * GRID)
        self.trunk = trunk
        last = trunk[-1].conv if isinstance(trunk[-1], UpConv) else trunk[-1]
        assert isinstance(last, nn.Conv2d)
        with torch.no_grad():
            last.weight.mul_(LAST_LAYER_SCALE)

    def forward(self, z_ND: Tensor) -> Tensor:
        h_NCHW = self.fc(z_ND).unflatten(1, (-1, GRID, GRID))
        x_NCHW: Tensor = self.trunk(h_NCHW.contiguous(memory_format=torch.channels_last))
        return x_NCHW


class Critic(nn.Module):
    """From the image to the interpolation coefficient, (N,) in 0 to 1."""

    def __init__(self, trunk: nn.Module, channels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.fc = linear(channels * GRID * GRID, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(self.trunk(x_NCHW).flatten(1))).squeeze(1)


def local_encoder(width: int, latent: int) -> Encoder:
    """32x32 patch to descriptor."""
    return Encoder(_local_trunk(width, BatchNorm), 8 * width, latent)


def local_decoder(width: int, latent: int) -> Decoder:
    """Descriptor to 32x32 patch."""
    trunk = nn.Sequential(Up(8 * width, 4 * width), Up(4 * width, 2 * width),
                          Up(2 * width, width), BatchNorm(width), nn.ReLU(),
                          conv(width, 3, 3))
    return Decoder(trunk, width, latent)


def local_critic(width: int) -> Critic:
    """32x32 patch to interpolation coefficient."""
    return Critic(_local_trunk(width, LayerNorm), 8 * width)


def global_encoder(width: int, latent: int) -> Encoder:
    """256x256 image to descriptor."""
    return Encoder(_global_trunk(width, BatchNorm), 8 * width, latent)


def global_decoder(width: int, latent: int) -> Decoder:
    """Descriptor to 256x256 image."""
    trunk = nn.Sequential(UpConv(8 * width, 8 * width, 3), Up(8 * width, 8 * width),
                          Up(8 * width, 4 * width), Up(4 * width, 2 * width),
                          Up(2 * width, width), BatchNorm(width), nn.ReLU(),
                          UpConv(width, 3, 5))
    return Decoder(trunk, width, latent)


def global_critic(width: int) -> Critic:
    """256x256 image to interpolation coefficient."""
    return Critic(_global_trunk(width, LayerNorm), 8 * width)


def _local_trunk(width: int, norm: type[BatchNorm] | type[LayerNorm]) -> nn.Sequential:
    return nn.Sequential(conv(3, width, 3), Down(width, 2 * width, LOCAL_SIDE, norm),
                         Down(2 * width, 4 * width, LOCAL_SIDE // 2, norm),
                         Down(4 * width, 8 * width, LOCAL_SIDE // 4, norm))


def _global_trunk(width: int, norm: type[BatchNorm] | type[LayerNorm]) -> nn.Sequential:
    return nn.Sequential(conv(3, width, 5, stride=2),
                         Down(width, 2 * width, GLOBAL_SIDE // 2, norm),
                         Down(2 * width, 4 * width, GLOBAL_SIDE // 4, norm),
                         Down(4 * width, 8 * width, GLOBAL_SIDE // 8, norm),
                         Down(8 * width, 8 * width, GLOBAL_SIDE // 16, norm),
                         conv(8 * width, 8 * width, 3, stride=2))
