"""The IGD model: a global and a local branch, their Gaussians, and the score (Eq. 11, 12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igd.config import Config, MixConfig
from igd.errors import ModelError, NotFittedError
from igd.model import msssim, networks
from igd.model.blocks import linear
from igd.model.gaussian import Gaussian, gsvdd
from igd.model.scored import Scored
from igd.model.teacher import HEAD_CHANNELS, EfficientNetLite0

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
DATA_RANGE = (max((1 - m) / s for m, s in zip(MEAN, STD, strict=True))
              - min(-m / s for m, s in zip(MEAN, STD, strict=True)))
"""L: the range of a normalised pixel, over all three channels; 4.7579."""
SIDE = networks.GLOBAL_SIDE
PATCH = networks.LOCAL_SIDE
STRIDE = 16
PATCHES = ((SIDE - PATCH) // STRIDE + 1) ** 2
CHUNK = 75
"""Patches per forward when scoring; fixed, since the last bits of a convolution depend on it."""


class Branch(nn.Module):
    """Encoder, decoder, critic and Gaussian of one scale.

    The encoder is a net on the normalised pixels, or the linear layer on a teacher's features.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, critic: nn.Module,
                 gaussian: Gaussian, scales: msssim.Scales) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.critic = critic
        self.gaussian = gaussian
        self.scales = scales

    def terms(self, encoder_input: Tensor, x_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1 - MS-SSIM (N,), d/s (N,) in float64, and the heatmap (N, H, W): Eq. 12.

        The heatmap is the map of 1 - SSIM plus |x - x~| / L.
        """
        z_ND = self.encoder(encoder_input)
        y_NCHW = self.decoder(z_ND)
        maps = msssim.similarities(x_NCHW, y_NCHW, self.scales, DATA_RANGE)
        heatmap_NHW = msssim.dissimilarity_map(maps, self.scales, x_NCHW.shape[-1])
        heatmap_NHW = heatmap_NHW + (x_NCHW - y_NCHW).abs().mean(1) / DATA_RANGE
        reconstruction_N = 1 - msssim.ms_ssim(maps, self.scales).double()
        return reconstruction_N, self.gaussian.distance(z_ND.double()), heatmap_NHW


class IGD(nn.Module):
    """Both branches and how their terms are mixed (profile `paper`).

    Attributes:
        global_branch: the 256x256 nets.
        local_branch: the 32x32 nets, on 225 patches at stride 16.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: Config, teacher: EfficientNetLite0 | None = None) -> None:
        """Weights are drawn from torch's current generator.

        Args:
            config: `net` gives the shapes, `mix` the score.
            teacher: needed where `net.global_encoder` is "efficientnet-lite0". It is shared and
                frozen, so it stays out of `state_dict()`, `parameters()` and `to()`: the caller
                puts it on this model's device.

        Raises:
            ModelError: the teacher is missing.
        """
        super().__init__()
        net = config.net
        frozen = net.global_encoder == "efficientnet-lite0"
        if frozen and teacher is None:
            raise ModelError("net.global_encoder is 'efficientnet-lite0' but no teacher was "
                             "given: pass an EfficientNetLite0 as `teacher`")
        self.mix = config.mix
        self._teacher = [teacher] if frozen else []  # in a list: not a submodule
        self.register_buffer("mean_C11", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(STD)[:, None, None], persistent=False)
        self.global_branch = Branch(
            linear(HEAD_CHANNELS, net.latent) if frozen
            else networks.global_encoder(net.width, net.latent),
            networks.global_decoder(net.width, net.latent), networks.global_critic(net.width),
            Gaussian(net.latent), msssim.GLOBAL)
        self.local_branch = Branch(
            networks.local_encoder(net.width, net.latent),
            networks.local_decoder(net.width, net.latent), networks.local_critic(net.width),
            Gaussian(net.latent), msssim.LOCAL)

    @property
    def teacher(self) -> EfficientNetLite0 | None:
        """The frozen global encoder, if there is one."""
        return self._teacher[0] if self._teacher else None

    def normalise(self, image_NCHW_uint8: Tensor) -> Tensor:
        """Pixels 0..255 to ImageNet mean 0 and deviation 1, channels last."""
        x_NCHW = (image_NCHW_uint8.float() / 255 - self.mean_C11) / self.std_C11
        return x_NCHW.contiguous(memory_format=torch.channels_last)

    def forward(self, image_NCHW_uint8: Tensor) -> Scored:
        """Terms, score and heatmap of RGB images (N, 3, 256, 256), uint8.

        One image at a time and patches in chunks of a fixed size, so that nothing depends on
        batch-mates. Terms are float64; `*_reconstruction` is 1 - MS-SSIM; local terms are the
        mean over the 225 patches.

        Raises:
            ModelError: another shape or type.
            NotFittedError: before the first E-step.
        """
        shape = tuple(image_NCHW_uint8.shape)
        if image_NCHW_uint8.dtype != torch.uint8 or shape[1:] != (3, SIDE, SIDE):
            raise ModelError(f"images are {image_NCHW_uint8.dtype} {shape}: expected uint8 "
                             f"(N, 3, {SIDE}, {SIDE})")
        for branch in (self.global_branch, self.local_branch):
            if not branch.gaussian.fitted:
                raise NotFittedError("this IGD model has no mu and sigma yet: train it or load "
                                     "a trained bundle")
        with torch.inference_mode():
            rows = [self._score_one(image_NCHW_uint8[i:i + 1]) for i in range(shape[0])]
            terms = {name: torch.stack([row[name] for row, _ in rows]) for name in rows[0][0]}
            return Scored(terms, mixed_score(terms, self.mix), torch.cat([h for _, h in rows]))

    def _score_one(self, image_1CHW_uint8: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        x_1CHW = self.normalise(image_1CHW_uint8)
        encoder_input = (x_1CHW if self.teacher is None
                         else self.teacher.pooled(image_1CHW_uint8.float()))
        g_recon_1, g_distance_1, g_heatmap_1HW = self.global_branch.terms(encoder_input, x_1CHW)
        x_PCHW = patches(x_1CHW).flatten(0, 2)
        chunks = [self.local_branch.terms(x, x) for x in
                  (chunk.contiguous(memory_format=torch.channels_last)
                   for chunk in torch.split(x_PCHW, CHUNK))]
        l_recon_P, l_distance_P, l_heatmap_PHW = (torch.cat(part) for part
                                                  in zip(*chunks, strict=True))
        terms = {"global_reconstruction": g_recon_1[0], "local_reconstruction": l_recon_P.mean(),
                 "global_gsvdd": gsvdd(g_distance_1)[0], "local_gsvdd": gsvdd(l_distance_P).mean(),
                 "global_gsvdd_distance": g_distance_1[0],
                 "local_gsvdd_distance": l_distance_P.mean()}
        beta = self.mix.beta
        return terms, beta * g_heatmap_1HW + (1 - beta) * fold(l_heatmap_PHW)


def mixed_score(terms: dict[str, Tensor], mix: MixConfig) -> Tensor:
    """Eq. 11: xi * l_m + (1 - xi) * l_h, float64 (N,).

    l_m is 1 - MS-SSIM and l_h the GSVDD, each mixed as beta * global + (1 - beta) * local.
    """
    l_m_N, l_h_N = (mix.beta * terms[f"global_{term}"].double()
                    + (1 - mix.beta) * terms[f"local_{term}"].double()
                    for term in ("reconstruction", "gsvdd"))
    return mix.xi * l_m_N + (1 - mix.xi) * l_h_N


def patches(image_NCHW: Tensor) -> Tensor:
    """The 32x32 patches at stride 16 as a view, (N, rows, columns, C, 32, 32)."""
    return (image_NCHW.unfold(2, PATCH, STRIDE).unfold(3, PATCH, STRIDE)
            .permute(0, 2, 3, 1, 4, 5))


def fold(heatmap_PHW: Tensor) -> Tensor:
    """Patch heatmaps of one image back in place, the mean where they overlap, (1, H, W)."""
    columns_1KP = heatmap_PHW.flatten(1).T[None]
    total = F.fold(columns_1KP, (SIDE, SIDE), PATCH, stride=STRIDE)
    count = F.fold(torch.ones_like(columns_1KP), (SIDE, SIDE), PATCH, stride=STRIDE)
    return (total / count).squeeze(1)
