"""Gaussian descriptors on dense features of a frozen teacher (preset `fast`).

Not the paper's model: the descriptor h of Eq. 7 gets a mean and a covariance per position, in
closed form. METHOD "Beyond the paper" has the ladder that leads from one to the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igd.config import Config, DenseConfig
from igd.errors import DivergedError, NotFittedError
from igd.model.groups import alone, folds
from igd.model.scored import Scored
from igd.model.teacher import EfficientNetLite0

BLOCKS = (4, 10, 14)
"""Teacher blocks: 40 channels at stride 8, 112 at stride 16, 192 at stride 32."""
LOCAL_CHANNELS = 40 + 112
POOLED_SIDE = 2
POOLED_SIZE = (112 + 192) * POOLED_SIDE * POOLED_SIDE
PART_BYTES = 1 << 26
"""Features that a fit holds in float64 at a time."""

Zeros = Callable[[tuple[int, ...]], Tensor]
"""Makes a float32 tensor of a shape, in memory or elsewhere."""


@dataclass(frozen=True)
class Features:
    """What the teacher says of N images.

    Attributes:
        local_NPC: at each of P positions of a stride-16 grid, (N, P, 152).
        pooled_ND: blocks 10 and 14 pooled to 2x2, (N, 1216).
    """

    local_NPC: Tensor
    pooled_ND: Tensor

    def __getitem__(self, index: Tensor) -> Features:
        return Features(self.local_NPC[index], self.pooled_ND[index])

    def __len__(self) -> int:
        return len(self.local_NPC)


def extract(teacher: EfficientNetLite0, image_NCHW: Tensor,
            zeros: Zeros | None = None) -> Features:
    """Dense and pooled features of uint8 RGB images (N, 3, S, S), one image per forward.

    Args:
        zeros: makes what the features are written to; by default it lies beside the images.
    """
    zeros = zeros or functools.partial(torch.zeros, device=image_NCHW.device)
    n, side = len(image_NCHW), image_NCHW.shape[-1] // 16
    features = Features(zeros((n, side * side, LOCAL_CHANNELS)), zeros((n, POOLED_SIZE)))
    with torch.inference_mode():
        for i, image_CHW in enumerate(image_NCHW):
            fine, middle, coarse = teacher.features(image_CHW[None].float(), BLOCKS)
            grid = torch.cat([F.avg_pool2d(fine, 2), middle], 1)
            features.local_NPC[i] = grid.flatten(2).transpose(1, 2)[0]
            features.pooled_ND[i] = torch.cat([F.adaptive_avg_pool2d(x, POOLED_SIDE).flatten()
                                               for x in (middle, coarse)])
    return features


class DenseGaussian(nn.Module):
    """A Gaussian per grid position and one for the whole image.

    The distances are Mahalanobis distances, computed as the norm of whitened residuals (the
    inverse Cholesky factor of the covariance), which stays positive in float32.

    Args:
        config: of preset `fast`.
        teacher: shared, frozen, not part of the state.
    """

    mean_PC: Tensor
    whiten_PCC: Tensor
    pooled_mean_D: Tensor
    pooled_whiten_DD: Tensor
    scale_22: Tensor

    def __init__(self, config: Config, teacher: EfficientNetLite0) -> None:
        super().__init__()
        self.config = config
        self._teacher = [teacher]  # in a list: not a submodule, so not in the state dict
        side = config.image.size // 16
        self.register_buffer("mean_PC", torch.zeros(side * side, LOCAL_CHANNELS))
        self.register_buffer("whiten_PCC",
                             torch.zeros(side * side, LOCAL_CHANNELS, LOCAL_CHANNELS))
        self.register_buffer("pooled_mean_D", torch.zeros(POOLED_SIZE))
        self.register_buffer("pooled_whiten_DD", torch.zeros(POOLED_SIZE, POOLED_SIZE))
        # rows: dense, pooled; columns: mean and deviation of held-out normals' distances
        self.register_buffer("scale_22", torch.tensor([[0.0, 0.0], [0.0, 0.0]]).double())

    @property
    def teacher(self) -> EfficientNetLite0:
        return self._teacher[0]

    def fit(self, features: Features, row_M: Tensor | None = None) -> DenseGaussian:
        """Means and covariances of normal images' features, in float64.

        Args:
            row_M: of the images to fit on; all by default.

        Raises:
            DivergedError: the features do not vary at all.
        """
        dense = self.config.dense
        row_M = torch.arange(len(features)) if row_M is None else row_M
        with torch.inference_mode():
            mean_PC, own_PCC = _local_moments(features.local_NPC, row_M, dense)
            self.mean_PC.copy_(mean_PC)
            self.whiten_PCC.copy_(whitening(_shrunk(own_PCC, dense)))
            mean_D, covariance_DD = _moments(features.pooled_ND, row_M)
            self.pooled_mean_D.copy_(mean_D)
            self.pooled_whiten_DD.copy_(whitening(ridged(covariance_DD, dense.global_ridge)))
        return self

    def standardise(self, dense_N: Tensor, pooled_N: Tensor) -> DenseGaussian:
        """Sets the scale on which the two distances are summed, from held-out normals' ones."""
        rows = [torch.stack([d.double().mean(), d.double().std()]) for d in (dense_N, pooled_N)]
        self.scale_22.copy_(torch.stack(rows))
        if not bool((self.scale_22[:, 1] > 0).all()):
            raise DivergedError("held-out normals all have one distance: the images do not vary")
        return self

    def distances(self, features: Features,
                  row_M: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Per image: the largest local distance (M,), the pooled one (M,), the grid (M, P).

        Args:
            row_M: of the images; all by default.
        """
        if not bool(self.whiten_PCC.any()):
            raise NotFittedError("this DenseGaussian was not fitted")
        rows = range(len(features)) if row_M is None else row_M.tolist()
        with torch.inference_mode():
            grids = [torch.linalg.vector_norm(
                torch.bmm(self.whiten_PCC, (x_PC - self.mean_PC)[:, :, None])[:, :, 0], dim=1)
                for x_PC in (features.local_NPC[row] for row in rows)]
            pooled = [torch.linalg.vector_norm(self.pooled_whiten_DD @ (x_D - self.pooled_mean_D))
                      for x_D in (features.pooled_ND[row] for row in rows)]
        grid_NP = torch.stack(grids)
        return grid_NP.amax(1), torch.stack(pooled), grid_NP

    def mix(self, dense_N: Tensor, pooled_N: Tensor) -> Tensor:
        """The image score: the sum of both distances, standardised by held-out normals.

        Without `dense.pooled`, the local one alone.
        """
        if not bool((self.scale_22[:, 1] > 0).all()):
            raise NotFittedError("this DenseGaussian has no scale: call standardise first")
        (dense_mean, dense_std), (pooled_mean, pooled_std) = self.scale_22
        mixed: Tensor = (dense_N.double() - dense_mean) / dense_std
        if self.config.dense.pooled:
            mixed = mixed + (pooled_N.double() - pooled_mean) / pooled_std
        return mixed

    def heatmap(self, grid_NP: Tensor) -> Tensor:
        """The grid of distances brought to the input's size and smoothed, (N, S, S)."""
        return grid_heatmap(grid_NP, self.config.image.size, self.config.dense.smoothing_px)

    def forward(self, image_NCHW: Tensor) -> Scored:
        """Scores uint8 RGB images (N, 3, S, S), each on its own."""
        dense_N, pooled_N, grid_NP = self.distances(extract(self.teacher, image_NCHW))
        return Scored({"dense_distance": dense_N, "pooled_distance": pooled_N},
                      self.mix(dense_N, pooled_N), self.heatmap(grid_NP))


@dataclass(frozen=True)
class HeldOut:
    """What models that were fitted without an image's fold say of it, for N normals.

    Attributes:
        fold_N: each image's fold.
        dense_N, pooled_N, grid_NP: as `DenseGaussian.distances` has them.
    """

    fold_N: Tensor
    dense_N: Tensor
    pooled_N: Tensor
    grid_NP: Tensor


def fit_standardised(features: Features, config: Config, teacher: EfficientNetLite0,
                     group_N: Tensor | None = None) -> tuple[DenseGaussian, HeldOut]:
    """Fits on all normals, on the scale of their held-out distances.

    Args:
        group_N: of `igd.model.groups`, for the folds; by default every image is on its own.
    """
    fold_N = folds(alone(len(features), config.seed) if group_N is None else group_N,
                   config.calibration.folds)
    dense_N, pooled_N = torch.zeros(len(features)), torch.zeros(len(features))
    grid_NP = torch.zeros(features.local_NPC.shape[:2])
    model = DenseGaussian(config, teacher)
    for fold in range(int(fold_N.max()) + 1):
        held_out = fold_N == fold
        model.fit(features, (~held_out).nonzero().flatten())
        dense_N[held_out], pooled_N[held_out], grid_NP[held_out] = model.distances(
            features, held_out.nonzero().flatten())
    model.fit(features).standardise(dense_N, pooled_N)
    return model, HeldOut(fold_N, dense_N, pooled_N, grid_NP)


def grid_heatmap(grid_NP: Tensor, size: int, smoothing_px: float) -> Tensor:
    """A value per position of the stride-16 grid, brought to the input's size and smoothed.

    One image at a time, so that nothing depends on batch-mates.

    Returns:
        float32 (N, size, size).
    """
    side = size // 16
    maps = [_smooth(F.interpolate(grid_1HW[None], (size, size), mode="bilinear",
                                  align_corners=False), smoothing_px)[0]
            for grid_1HW in grid_NP.reshape(-1, 1, side, side).float()]
    return torch.cat(maps)


def covariance(residual_ND: Tensor) -> Tensor:
    """Of N residuals about their mean, (D, D)."""
    return residual_ND.T @ residual_ND / max(len(residual_ND) - 1, 1)


def ridged(covariance_CC: Tensor, ridge: float) -> Tensor:
    """(1 - ridge) S + ridge (tr/C) I."""
    channels = covariance_CC.shape[-1]
    trace = covariance_CC.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(channels, dtype=covariance_CC.dtype)
    return (1 - ridge) * covariance_CC + ridge * trace * eye


def _parts(x_N: Tensor, row_M: Tensor) -> Iterator[Tensor]:
    """Rows in float64, as many at a time as `PART_BYTES` hold."""
    for part in torch.split(row_M, max(1, PART_BYTES // (8 * x_N[0].numel()))):
        yield x_N[part].double()


def _moments(x_ND: Tensor, row_M: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of rows."""
    mean_D = _total(x.sum(0) for x in _parts(x_ND, row_M)) / len(row_M)
    residuals = (x - mean_D for x in _parts(x_ND, row_M))
    return mean_D, _total(r_MD.T @ r_MD for r_MD in residuals) / max(len(row_M) - 1, 1)


def _local_moments(x_NPC: Tensor, row_M: Tensor, dense: DenseConfig) -> tuple[Tensor, Tensor]:
    """Mean, of each position (P, C) or of all (C,), and each position's covariance (P, C, C)."""
    images, positions = len(row_M), x_NPC.shape[1]
    if dense.mean == "position":
        mean_PC = _total(x.sum(0) for x in _parts(x_NPC, row_M)) / images
    else:
        mean_PC = _total(x.sum((0, 1)) for x in _parts(x_NPC, row_M)) / (images * positions)
    residuals = ((x_MPC - mean_PC).transpose(0, 1) for x_MPC in _parts(x_NPC, row_M))
    # each mean costs one degree of freedom; a shared one costs it to all positions together
    freedom = images - (1 if dense.mean == "position" else 1 / positions)
    return mean_PC, _total(r_PMC.transpose(1, 2) @ r_PMC for r_PMC in residuals) / max(freedom, 1)


def _total(parts: Iterable[Tensor]) -> Tensor:
    """Their sum, in the first of them."""
    return functools.reduce(Tensor.add_, parts)


def _shrunk(own_PCC: Tensor, dense: DenseConfig) -> Tensor:
    """Covariances shrunk to the one shared by all positions, then ridged."""
    weight = dense.position_weight
    mixed_PCC = weight * own_PCC + (1 - weight) * own_PCC.mean(0)
    return ridged(mixed_PCC, 1.0 if dense.covariance == "isotropic" else dense.ridge)


def whitening(covariance_CC: Tensor) -> Tensor:
    """The inverse of the Cholesky factor, so that |W r| is the Mahalanobis distance.

    Raises:
        DivergedError: the covariance is singular.
    """
    try:
        factor = torch.linalg.cholesky(covariance_CC)
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        raise DivergedError("fit: a covariance is singular; the normal images' features do not "
                            "vary (are they all the same picture?)") from error
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype).expand_as(factor)
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse


def _smooth(x_N1HW: Tensor, sigma_px: float) -> Tensor:
    if sigma_px <= 0:
        return x_N1HW
    radius = max(1, round(3 * sigma_px))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-offsets**2 / (2 * sigma_px**2))
    kernel = kernel / kernel.sum()
    x_N1HW = F.pad(x_N1HW, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x_N1HW, kernel[None, None, :, None]), kernel[None, None, None, :])
