"""What IGD has to beat, always printed beside it: trivial and classical anomaly scores.

All are fitted on normal images alone: no test image and no label decides anything, not even the
sign of a score. Higher is more anomalous.

Legend: N images of H x W pixels, P positions of the stride-16 grid with C channels each, B rows
of a memory bank, D features or pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from igd.config import Config, DenseConfig, ImageConfig
from igd.errors import DataError
from igd.model.dense import (
    POOLED_SIDE,
    DenseGaussian,
    Features,
    covariance,
    extract,
    grid_heatmap,
    ridged,
    whitening,
)
from igd.registry import load_teacher
from igd.score.coreset import greedy_coreset, nearest_distance, projected

TEACHER_SIDE, CHUNK = 64, 64
"""Smaller images are enlarged to this side for the teacher, so many at a time."""
THUMBNAIL = 64
"""PCA sees larger images reduced to this side, by area means."""
EXPLAINED, MAX_COMPONENTS = 0.95, 128
"""PCA keeps the fewest components that explain this share of the normals' variance."""
SHRINKAGE = 0.05
"""Mahalanobis: share of the isotropic part, as in preset `fast`'s global descriptor."""
CORESET = 0.1
"""PatchCore: share of the patches that are kept."""
WINDOW = 1
"""PatchCore: positions along x and y that a patch's features are averaged over.

The paper averages 3x3 positions 8 px apart, 24 px; on this grid, 16 px apart, one position is
nearest to that and three would span 48 px."""
SMOOTHING_PX = 4.0
"""Sigma of the Gaussian that smooths PatchCore's and PaDiM's heatmaps, as the papers have it."""


@dataclass(frozen=True)
class Sample:
    """Images, and what is known of them.

    Attributes:
        images_NHWC: uint8 RGB, square, prepared to the model's input.
        source_size_N2: width and height of each source, in pixels.
        features: the teacher's, where there are any.
    """

    images_NHWC: NDArray[np.uint8]
    source_size_N2: NDArray[np.int64]
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.images_NHWC)

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return int(self.images_NHWC.shape[1])

    @property
    def has_grid(self) -> bool:
        """Whether the features have the grid of the images, 4x4 positions or more."""
        side = self.size // 16
        return side >= 4 and self.features is not None and (
            self.features.local_NPC.shape[1] == side * side)


@dataclass(frozen=True)
class BaselineScores:
    """float64 scores; float32 heatmaps at the images' size, where the baseline has them."""

    scores_N: NDArray[np.float64]
    heatmaps_NHW: NDArray[np.float32] | None = None


class Baseline(Protocol):
    """A fitted baseline. An image's score does not depend on its batch-mates."""

    def score(self, sample: Sample) -> BaselineScores: ...


@dataclass(frozen=True)
class MeanBrightness:
    """How far an image's mean grey level is from the normals', either way; 0 to 255."""

    centre: float

    @classmethod
    def fit(cls, train: Sample) -> MeanBrightness:
        return cls(float(_brightness(train).mean()))

    def score(self, sample: Sample) -> BaselineScores:
        return BaselineScores(np.abs(_brightness(sample) - self.centre))


@dataclass(frozen=True)
class ImageSize:
    """Distance of (width, height) to the nearest normal's, in pixels."""

    known_B2: Tensor

    @classmethod
    def fit(cls, train: Sample) -> ImageSize:
        return cls(torch.from_numpy(np.unique(train.source_size_N2, axis=0)).double())

    def score(self, sample: Sample) -> BaselineScores:
        size_N2 = torch.from_numpy(sample.source_size_N2).double()
        return BaselineScores(nearest_distance(size_N2, self.known_B2).numpy())


@dataclass(frozen=True)
class L1MeanImage:
    """Mean |x - mean image|, in grey levels."""

    mean_HWC: NDArray[np.float64]

    @classmethod
    def fit(cls, train: Sample) -> L1MeanImage:
        return cls(train.images_NHWC.mean(0))

    def score(self, sample: Sample) -> BaselineScores:
        return _of_maps((np.abs(x_HWC - self.mean_HWC).mean(-1) for x_HWC in sample.images_NHWC),
                        sample.size)


@dataclass(frozen=True)
class Pca:
    """Squared error of the reconstruction from the normals' principal components, pixels 0 to 1.

    The heatmap is the error of the thumbnail's pixels, averaged over channels, brought to the
    image's size.
    """

    mean_D: NDArray[np.float32]
    axes_KD: NDArray[np.float32]

    @classmethod
    def fit(cls, train: Sample, *, explained: float = EXPLAINED,
            max_components: int = MAX_COMPONENTS) -> Pca:
        x_ND = np.stack([_thumbnail(x_HWC) for x_HWC in train.images_NHWC])
        mean_D = x_ND.mean(0)
        x_ND -= mean_D
        _, value_K, axes_KD = randomized_svd(
            x_ND, n_components=min(max_components, *x_ND.shape), random_state=0)
        variance_K = np.cumsum(value_K.astype(np.float64) ** 2)
        enough = explained * np.square(x_ND, dtype=np.float64).sum()
        return cls(mean_D, axes_KD[:np.searchsorted(variance_K, enough) + 1])

    def score(self, sample: Sample) -> BaselineScores:
        return _of_maps((self._error(_thumbnail(x_HWC)) for x_HWC in sample.images_NHWC),
                        sample.size)

    def _error(self, x_D: NDArray[np.float32]) -> NDArray[np.float64]:
        residual_D = x_D - self.mean_D
        residual_D = residual_D - (self.axes_KD @ residual_D) @ self.axes_KD
        side = round((len(x_D) / 3) ** 0.5)
        error_HWC = residual_D.reshape(side, side, 3).astype(np.float64) ** 2
        return np.asarray(error_HWC.mean(-1))


@dataclass(frozen=True)
class NearestNeighbour:
    """Euclidean distance to the nearest normal, on globally pooled teacher features."""

    bank_BD: Tensor

    @classmethod
    def fit(cls, train: Sample) -> NearestNeighbour:
        return cls(_global(train))

    def score(self, sample: Sample) -> BaselineScores:
        return BaselineScores(nearest_distance(_global(sample), self.bank_BD).numpy())


@dataclass(frozen=True)
class Mahalanobis:
    """Mahalanobis distance on globally pooled teacher features, the covariance shrunk by 5%."""

    mean_D: Tensor
    whiten_DD: Tensor

    @classmethod
    def fit(cls, train: Sample) -> Mahalanobis:
        x_ND = _global(train)
        mean_D = x_ND.mean(0)
        return cls(mean_D, whitening(ridged(covariance(x_ND - mean_D), SHRINKAGE)))

    def score(self, sample: Sample) -> BaselineScores:
        distances = [torch.linalg.vector_norm(self.whiten_DD @ (x_D - self.mean_D))
                     for x_D in _global(sample)]
        return BaselineScores(torch.stack(distances).numpy())


@dataclass(frozen=True)
class PatchCore:
    """Distance to the nearest patch of a coreset of the normals' (after Roth et al. 2022).

    As the paper: greedy minimax coreset, selected in a random projection. Otherwise than the
    paper: its teacher is ours (152 channels at stride 16), features are averaged over `WINDOW`
    positions, and an image's score is the largest of its patches', without the paper's
    re-weighting, which depends on the unit of the features.
    """

    bank_BC: Tensor
    window: int

    @classmethod
    def fit(cls, train: Sample, *, coreset: float = CORESET, window: int = WINDOW) -> PatchCore:
        x_BC = _neighbourhoods(train, window).flatten(0, 1)
        kept = greedy_coreset(projected(x_BC), max(1, round(coreset * len(x_BC))))
        return cls(x_BC[kept].double(), window)

    def score(self, sample: Sample) -> BaselineScores:
        grid_NP = torch.stack([nearest_distance(x_PC.double(), self.bank_BC)
                               for x_PC in _neighbourhoods(sample, self.window)])
        return BaselineScores(grid_NP.amax(1).numpy(),
                              grid_heatmap(grid_NP, sample.size, SMOOTHING_PX).numpy())


@dataclass(frozen=True)
class Padim:
    """The largest Mahalanobis distance over positions (after Defard et al. 2021).

    A mean and a full covariance for each position, ridge 0.01, all 152 channels of our teacher.
    """

    model: DenseGaussian

    @classmethod
    def fit(cls, train: Sample) -> Padim:
        config = Config(preset="fast", image=ImageConfig(size=train.size),
                        dense=DenseConfig(position_weight=1.0, ridge=0.01, pooled=False,
                                          smoothing_px=SMOOTHING_PX))
        return cls(DenseGaussian(config, load_teacher()).fit(features_of(train)))

    def score(self, sample: Sample) -> BaselineScores:
        dense_N, _, grid_NP = self.model.distances(features_of(sample))
        return BaselineScores(dense_N.double().numpy(), self.model.heatmap(grid_NP).numpy())


Fits = Mapping[str, Callable[[Sample], Baseline]]

OF_PIXELS: Fits = {"mean_brightness": MeanBrightness.fit, "image_size": ImageSize.fit,
                   "l1_mean_image": L1MeanImage.fit, "pca": Pca.fit}
OF_FEATURES: Fits = {"knn": NearestNeighbour.fit, "mahalanobis": Mahalanobis.fit}
OF_THE_GRID: Fits = {"patchcore": PatchCore.fit, "padim": Padim.fit}
BASELINES: Fits = {**OF_PIXELS, **OF_FEATURES, **OF_THE_GRID}


def sample_of(images_NHWC: NDArray[np.uint8], source_size_N2: NDArray[np.int64]) -> Sample:
    """Images with the teacher's features; small ones are enlarged for it, and get no grid."""
    x_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    features = [extract(load_teacher(), _for_teacher(chunk_NCHW))
                for chunk_NCHW in torch.split(x_NCHW, CHUNK)]
    return Sample(images_NHWC, source_size_N2, Features(
        torch.cat([part.local_NPC for part in features]),
        torch.cat([part.pooled_ND for part in features])))


def baselines(train: Sample, test: Sample) -> Iterator[tuple[str, BaselineScores]]:
    """Fits every baseline on normals and scores the test images, in the order of `BASELINES`.

    Those that need what the samples lack, features or their grid, are left out.
    """
    fits = dict(OF_PIXELS)
    if train.features is not None and test.features is not None:
        fits |= OF_FEATURES
    if train.has_grid and test.has_grid:
        fits |= OF_THE_GRID
    return ((name, fit(train).score(test)) for name, fit in fits.items())


def features_of(sample: Sample) -> Features:
    """The sample's features.

    Raises:
        DataError: it has none.
    """
    if sample.features is None:
        raise DataError(f"these {len(sample)} images come without teacher features; extract them "
                        "first")
    return sample.features


def _for_teacher(image_NCHW: Tensor) -> Tensor:
    if image_NCHW.shape[-1] >= TEACHER_SIDE:
        return image_NCHW
    large_NCHW = F.interpolate(image_NCHW.float(), (TEACHER_SIDE, TEACHER_SIDE), mode="bilinear",
                               align_corners=False)
    return large_NCHW.round().to(torch.uint8)


def _brightness(sample: Sample) -> NDArray[np.float64]:
    x_ND = sample.images_NHWC.reshape(len(sample), -1)
    return np.asarray(x_ND.sum(1, dtype=np.int64) / x_ND.shape[1])


def _thumbnail(image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels 0 to 1 of the image, or of its thumbnail, in one row."""
    x_CHW = torch.from_numpy(image_HWC.astype(np.float32) / 255).permute(2, 0, 1)
    if x_CHW.shape[1] > THUMBNAIL:
        x_CHW = F.adaptive_avg_pool2d(x_CHW, THUMBNAIL)
    return np.asarray(x_CHW.permute(1, 2, 0).reshape(-1).numpy())


def _of_maps(maps: Iterable[NDArray[np.float64]], size: int) -> BaselineScores:
    """Score: the map's mean. Heatmap: the map, brought to `size`."""
    scores: list[float] = []
    heatmaps: list[Tensor] = []
    for map_HW in maps:
        scores.append(float(map_HW.mean()))
        heatmap_11HW = torch.from_numpy(map_HW.astype(np.float32))[None, None]
        heatmaps.append(F.interpolate(heatmap_11HW, (size, size), mode="bilinear",
                                      align_corners=False)[0, 0])
    return BaselineScores(np.array(scores), torch.stack(heatmaps).numpy())


def _global(sample: Sample) -> Tensor:
    """Blocks 10 and 14 of the teacher, the 2x2 cells of each channel averaged, (N, 304)."""
    pooled_ND = features_of(sample).pooled_ND
    return pooled_ND.reshape(len(pooled_ND), -1, POOLED_SIDE * POOLED_SIDE).double().mean(2)


def _neighbourhoods(sample: Sample, window: int) -> Tensor:
    """Local features averaged over odd windows of positions, cut at the border; (N, P, C)."""
    side = sample.size // 16
    x_NCP = features_of(sample).local_NPC.transpose(1, 2)
    x_NCHW = F.avg_pool2d(x_NCP.reshape(*x_NCP.shape[:2], side, side), window, 1,
                          padding=window // 2, count_include_pad=False)
    return x_NCHW.flatten(2).transpose(1, 2).contiguous()
