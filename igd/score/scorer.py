"""A bundle and images in; scores, terms, heatmaps and decisions out: the one path that all use.

The last bits of a convolution depend on batch size and thread count, so every forward has a fixed
shape: one image on a CPU, with the thread count pinned; a batch on a GPU, filled up where there are
fewer images. Equal fingerprint and processor type: equal bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from igd import registry
from igd.config import Config
from igd.data.images import DECODE_PATH, Geometry, prepare
from igd.errors import DataError
from igd.records import Decision
from igd.registry import Bundle
from igd.registry.teachers import TEACHER_SHA256
from igd.score.conformal import Calibrator, Levels, levels
from igd.score.device import CPU, Device
from igd.score.regions import Region, find_regions

METHOD = "igd/v2"
"""The arithmetic from pixels to score; raise it with any change of its bits."""
THREADS = 1
"""Torch threads of a Scorer. Parallelism comes from more Scorers, which costs no bits."""


@dataclass(frozen=True, kw_only=True)
class ScoreBatch:
    """What a model says of N images.

    Attributes:
        scores: float64 (N,), raw; higher is more anomalous.
        terms: column name to float64 (N,).
        heatmaps: float32 (N, S, S) at the model's input size.
    """

    scores: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    heatmaps: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What is decided about one scored image."""

    p_value: float
    decision: Decision
    alpha: float
    threshold: float
    regions: list[Region]


class Judge:
    """Decisions at chosen false-positive rates for one model.

    Regions stand where the heatmap is above what the share `fpr` of calibration normals reach
    anywhere.

    Args:
        fpr: rate of normals called anomalous.
        review_fpr: rate of normals called at least `review`.
    """

    def __init__(self, bundle: Bundle, *, fpr: float, review_fpr: float) -> None:
        column = bundle.calibration.column
        self.calibrator = Calibrator(column("score").to_numpy())
        self.levels: Levels = levels(self.calibrator, fpr, review_fpr)
        peaks = Calibrator(column("heatmap_max").to_numpy())
        self.region_threshold = peaks.rule(fpr).threshold
        self._image = bundle.config.image

    def assess(self, score: float, heatmap_HW: NDArray[np.float32],
               source_size: tuple[int, int]) -> Assessment:
        """Decides about one image.

        Args:
            source_size: width and height of the source, for regions in source pixels.
        """
        geometry = Geometry.of(*source_size, self._image)
        rule = self.levels.anomalous
        return Assessment(
            p_value=self.calibrator.p_value(score), decision=self.levels.decide(score),
            alpha=rule.alpha, threshold=rule.threshold,
            regions=find_regions(heatmap_HW, self.region_threshold, geometry))


class Scorer:
    """Scores images with one bundle.

    >>> Scorer.load("s3://models/bottle").score([image_HWC])  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, device: Device = CPU) -> None:
        self.bundle = bundle
        self.device = device
        self.fingerprint = score_fingerprint(bundle.config, device)
        self._model = bundle.model.to(device.name)

    @classmethod
    def load(cls, uri: str) -> Scorer:
        """Loads `<models>/<category>` (the version in production) or `.../<version>`.

        Raises:
            ModelError: the bundle is missing or damaged.
        """
        return cls(registry.load_bundle_at(uri))

    def judge(self, *, fpr: float = 0.01, review_fpr: float = 0.05) -> Judge:
        """Decisions at the given false-positive rates."""
        return Judge(self.bundle, fpr=fpr, review_fpr=review_fpr)

    def score(self, images: Sequence[NDArray[np.uint8]]) -> ScoreBatch:
        """Scores uint8 RGB images (H, W, 3) of any size.

        Raises:
            DataError: an array of another shape or type.
        """
        size = self.bundle.config.image.size
        scores: list[float] = []
        terms: dict[str, list[float]] = {}
        heatmaps = np.empty((len(images), size, size), np.float32)
        with pinned_threads(THREADS), _full_precision():
            for at in range(0, len(images), self.device.batch):
                chunk = images[at:at + self.device.batch]
                scored = self._model(self._batch(chunk))
                scores += scored.score_N[:len(chunk)].tolist()
                heatmaps[at:at + len(chunk)] = scored.heatmap_NHW[:len(chunk)].cpu().numpy()
                for name, term_N in scored.terms.items():
                    terms.setdefault(name, []).extend(term_N[:len(chunk)].tolist())
        return ScoreBatch(scores=np.array(scores, np.float64), heatmaps=heatmaps,
                          terms={name: np.array(term) for name, term in terms.items()})

    def _batch(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Images as the model takes them, filled up with the last one."""
        inputs = [_as_input(image_HWC, self.bundle.config) for image_HWC in images]
        inputs += inputs[-1:] * (self.device.batch - len(inputs))
        return torch.cat(inputs).to(self.device.name)


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Torch on a fixed number of threads, restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions of a GPU in float32 proper, by the same algorithm every time."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def score_fingerprint(config: Config, device: Device = CPU) -> str:
    """Everything beside weights and processor type that the bits of a score depend on.

    Shape, threads, precision, decode path and the versions that matter, hashed to 16 digits.
    """
    parts = (config.preset, config.image, config.mix, config.dense, config.net,
             config.train.descriptor, METHOD, f"{device.batch}xCxSxS",
             f"threads={THREADS}", "float32", device.name, DECODE_PATH,
             f"torch-{torch.__version__}", TEACHER_SHA256)
    return hashlib.sha256("|".join(map(repr, parts)).encode()).hexdigest()[:16]


def _as_input(image_HWC: NDArray[np.uint8], config: Config) -> torch.Tensor:
    if (image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8
            or not image_HWC.size):
        raise DataError(f"an image array is {image_HWC.dtype} {image_HWC.shape}; expected uint8 "
                        "(H, W, 3)")
    pixels = prepare(image_HWC, config.image)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
