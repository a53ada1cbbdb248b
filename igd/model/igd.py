"""The IGD model: a global and a local branch, their Gaussians, and the score (Eq. 11, 12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igd.config import Config, EncoderKind
from igd.errors import ModelError, NotFittedError
from igd.model import msssim, networks
from igd.model.dense import LOCAL_CHANNELS, extract
from igd.model.gaussian import Gaussian
from igd.model.mix import BranchTerms, Mix
from igd.model.resnet import ResNet18
from igd.model.scored import Scored
from igd.model.teacher import MEAN, STD, EfficientNetLite0, Teacher

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

    black_C11: Tensor

    def __init__(self, encoder: networks.Encoder | networks.FeatureEncoder, decoder: nn.Module,
                 critic: nn.Module, gaussian: Gaussian, scales: msssim.Scales, *,
                 official: bool = False) -> None:
        """`official`: SSIM on pixels around their mean and maps as the authors stretch them.

        SSIM's luminance is made for intensities, which have no sign. Of pixels normalised to
        mean 0 it is negative wherever image and reconstruction differ in sign, where MS-SSIM
        is clamped and teaches nothing. So pixels are counted from black; contrast, structure and
        the range L are the same either way.
        """
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.critic = critic
        self.gaussian = gaussian
        self.scales = scales
        self.stretch = msssim.stretched_map if official else msssim.dissimilarity_map
        black_C = [0.0 if official else -m / s for m, s in zip(MEAN, STD, strict=True)]
        self.register_buffer("black_C11", torch.tensor(black_C)[:, None, None], persistent=False)

    def intensities(self, x_NCHW: Tensor) -> Tensor:
        """Normalised pixels as MS-SSIM takes them."""
        return x_NCHW - self.black_C11

    def describe(self, seen: Tensor) -> Tensor:
        """Descriptors (N, D) of pixels (N, C, H, W), or of the encoder's features (N, F)."""
        z_ND: Tensor = (self.encoder.linear if seen.dim() == 2 else self.encoder)(seen)
        return z_ND

    def terms(self, seen: Tensor, x_NCHW: Tensor) -> BranchTerms:
        """What the branch says of normalised pixels; Eq. 12 is 1 - SSIM plus |x - x~| / L."""
        z_ND = self.describe(seen)
        y_NCHW = self.decoder(z_ND)
        maps = msssim.similarities(self.intensities(x_NCHW), self.intensities(y_NCHW),
                                   self.scales, DATA_RANGE)
        difference_NCHW = (x_NCHW - y_NCHW) / DATA_RANGE
        error_NHW = difference_NCHW.abs().mean(1)
        return BranchTerms(
            unlike_N=1 - msssim.ms_ssim(maps, self.scales).double(),
            mae_N=error_NHW.mean((1, 2)).double(),
            difference_N=difference_NCHW.mean((1, 2, 3)).double(),
            distance_N=self.gaussian.distance(z_ND.double()),
            heatmap_NHW=self.stretch(maps, self.scales, x_NCHW.shape[-1]) + error_NHW)


class IGD(nn.Module):
    """The branches and how their terms are mixed.

    Attributes:
        branches: by name: `global`, the 256x256 nets, and `local`, the 32x32 nets, on 225 patches
            at stride 16. Where `net.branches` is "local" there is only the latter, and an image
            is one patch.
        mix: from terms to score.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: Config, teacher: Teacher | None = None) -> None:
        """Weights are drawn from torch's current generator.

        Args:
            config: `net` gives the shapes, `mix` the score.
            teacher: needed where an encoder is "teacher". EfficientNet-Lite0 is shared, so it
                stays out of `state_dict()`, `parameters()` and `to()`: the caller puts it on
                this model's device. A ResNet18, whose weights are the user's, is part of them.

        Raises:
            ModelError: the teacher is missing.
        """
        super().__init__()
        self.encoders = config.net.encoders
        if "teacher" in self.encoders.values() and teacher is None:
            raise ModelError("an encoder of this model is a frozen teacher but none was given: "
                             "pass it as `teacher`")
        self.side = SIDE if "global" in self.encoders else PATCH
        self._teacher = [teacher]  # in a list: not a submodule
        if "teacher" in self.encoders.values() and isinstance(teacher, ResNet18):
            self.carried_teacher = teacher
        self.mix = Mix(config)
        self.register_buffer("mean_C11", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(STD)[:, None, None], persistent=False)
        self.branches = nn.ModuleDict({name: _branch(name, kind, config, teacher)
                                       for name, kind in self.encoders.items()})

    @property
    def teacher(self) -> Teacher | None:
        """The frozen network that some encoder is, if there is one."""
        return self._teacher[0]

    def branch(self, name: str) -> Branch:
        """`global` or `local`."""
        branch = self.branches[name]
        assert isinstance(branch, Branch)
        return branch

    def normalise(self, image_NCHW_uint8: Tensor) -> Tensor:
        """Pixels 0..255 to ImageNet mean 0 and deviation 1, channels last."""
        x_NCHW = (image_NCHW_uint8.float() / 255 - self.mean_C11) / self.std_C11
        return x_NCHW.contiguous(memory_format=torch.channels_last)

    def inputs(self, name: str, image_1CHW_uint8: Tensor) -> Tensor:
        """The normalised pixels that a branch reconstructs of one image: (1 or 225, C, S, S)."""
        x_1CHW = self.normalise(image_1CHW_uint8)
        return patches(x_1CHW).flatten(0, 2) if name == "local" else x_1CHW

    def teacher_features(self, name: str, image_1CHW_uint8: Tensor) -> Tensor:
        """What a frozen teacher says of one image's inputs, (1 or 225, F)."""
        assert self.teacher is not None
        if name == "global":
            return self.teacher.pooled(image_1CHW_uint8.float())
        assert isinstance(self.teacher, EfficientNetLite0)
        return patch_features(extract(self.teacher, image_1CHW_uint8).local_NPC).flatten(0, 1)

    def forward(self, image_NCHW_uint8: Tensor) -> Scored:
        """Terms, score and heatmap of RGB images (N, 3, 256, 256), uint8 (32x32 where there is
        only the local branch).

        Patches go in chunks of a fixed size and images one at a time, so that nothing depends
        on batch-mates. Terms are float64; `igd.model.mix` says what they are.

        Raises:
            ModelError: another shape or type.
            NotFittedError: before the first E-step.
        """
        shape = tuple(image_NCHW_uint8.shape)
        if image_NCHW_uint8.dtype != torch.uint8 or shape[1:] != (3, self.side, self.side):
            raise ModelError(f"images are {image_NCHW_uint8.dtype} {shape}: expected uint8 "
                             f"(N, 3, {self.side}, {self.side})")
        for name in self.encoders:
            if not self.branch(name).gaussian.fitted:
                raise NotFittedError("this IGD model has no mu and sigma yet: train it or load "
                                     "a trained bundle")
        with torch.inference_mode():
            rows = (self._score_patches(image_NCHW_uint8) if self.side == PATCH else
                    [self._score_one(image_1CHW)
                     for image_1CHW in torch.split(image_NCHW_uint8, 1)])
            terms = {name: torch.stack([row[name] for row, _ in rows]) for name in rows[0][0]}
            return Scored(terms, self.mix.score(terms), torch.cat([h for _, h in rows]))

    def _score_one(self, image_1CHW_uint8: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        terms: dict[str, Tensor] = {}
        heatmaps: dict[str, Tensor] = {}
        for name, kind in self.encoders.items():
            x_PCHW = self.inputs(name, image_1CHW_uint8)
            seen = x_PCHW if kind != "teacher" else self.teacher_features(name, image_1CHW_uint8)
            of = _in_chunks(self.branch(name), seen, x_PCHW)
            terms |= self.mix.image_terms(name, of)
            heatmaps[name] = (of.heatmap_NHW if name == "global"
                              else fold(of.heatmap_NHW, mean=self.mix.profile != "official"))
        return terms, self.mix.heatmap(heatmaps)

    def _score_patches(self, image_NCHW_uint8: Tensor) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Images of one patch each, in chunks filled up with zeros to the fixed size."""
        n = len(image_NCHW_uint8)
        filled = F.pad(image_NCHW_uint8, (0, 0, 0, 0, 0, 0, 0, -n % CHUNK))
        x_PCHW = self.normalise(filled)
        of = _in_chunks(self.branch("local"), x_PCHW, x_PCHW)
        return [(self.mix.image_terms("local", _row(of, i)), of.heatmap_NHW[i:i + 1])
                for i in range(n)]


def patches(image_NCHW: Tensor) -> Tensor:
    """The 32x32 patches at stride 16 as a view, (N, rows, columns, C, 32, 32)."""
    return (image_NCHW.unfold(2, PATCH, STRIDE).unfold(3, PATCH, STRIDE)
            .permute(0, 2, 3, 1, 4, 5))


def patch_features(grid_NPC: Tensor) -> Tensor:
    """Dense features of the stride-16 grid, averaged over each patch's 2x2 cells: (N, 225, C)."""
    side = SIDE // STRIDE
    grid_NCHW = grid_NPC.transpose(1, 2).reshape(len(grid_NPC), -1, side, side)
    return F.avg_pool2d(grid_NCHW, 2, stride=1).flatten(2).transpose(1, 2)


def fold(heatmap_PHW: Tensor, *, mean: bool = True) -> Tensor:
    """Patch heatmaps of one image back in place, their mean or sum where they overlap, (1, H, W).
    """
    columns_1KP = heatmap_PHW.flatten(1).T[None]
    total = F.fold(columns_1KP, (SIDE, SIDE), PATCH, stride=STRIDE)
    if mean:
        total = total / F.fold(torch.ones_like(columns_1KP), (SIDE, SIDE), PATCH, stride=STRIDE)
    return total.squeeze(1)


def _branch(name: str, kind: EncoderKind, config: Config, teacher: Teacher | None) -> Branch:
    width, latent = config.net.width, config.net.latent
    encoder: networks.Encoder | networks.FeatureEncoder
    if kind == "teacher":
        assert teacher is not None
        features = teacher.channels if name == "global" else LOCAL_CHANNELS
        encoder = networks.FeatureEncoder(features, latent)
    else:
        encoder = {"global": networks.global_encoder,
                   "local": networks.local_encoder}[name](width, latent)
    if name == "global":
        decoder, critic = networks.global_decoder(width, latent), networks.global_critic(width)
    else:
        decoder, critic = networks.local_decoder(width, latent), networks.local_critic(width)
    return Branch(encoder, decoder, critic, Gaussian(latent),
                  msssim.GLOBAL if name == "global" else msssim.LOCAL,
                  official=config.mix.profile == "official")


def _in_chunks(branch: Branch, seen: Tensor, x_PCHW: Tensor) -> BranchTerms:
    parts = [branch.terms(chunk.contiguous(memory_format=torch.channels_last)
                          if chunk.dim() == 4 else chunk,
                          x.contiguous(memory_format=torch.channels_last))
             for chunk, x in zip(torch.split(seen, CHUNK), torch.split(x_PCHW, CHUNK),
                                 strict=True)]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return BranchTerms(*(torch.cat(column) for column in columns))


def _row(of: BranchTerms, i: int) -> BranchTerms:
    return BranchTerms(*(column[i:i + 1] for column in vars(of).values()))
