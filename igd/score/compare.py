"""Which of two versions of a category tells planted defects from held-out normals better.

No defective image is needed: each normal image is shown as it is and with a defect planted in the
source (`igd.data.cutpaste`), the same pixels to both versions, each with its own preparation.
Two statistics per version: the balanced accuracy of its own threshold at a false-positive rate of
5%, and the AUROC of planted against clean images.

Fairness: the images are those that both versions were calibrated on. The nets have never seen
them. Preset `fast` has: it is fitted on all normals, and scores them too low. So a clean image
counts with what the version's calibration table says (of preset `fast`: from a model fitted
without it), or with what the Scorer says where that is higher, as it is where table and model do
not belong together. What is left against `fast` beside nets is that its planted images have
known surroundings.

Legend: N images, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from igd.data.cutpaste import plant
from igd.errors import ImageError
from igd.registry import Bundle
from igd.score.bootstrap import Estimate, estimates
from igd.score.conformal import Calibrator
from igd.score.scorer import Scorer

FPR = 0.05
MIN_IMAGES = 8
"""With fewer nothing is compared."""
MAX_IMAGES = 64
RESAMPLES = 1000

Read = Callable[[], NDArray[np.uint8]]
"""Reads a source image: uint8 RGB (H, W, 3), or raises ImageError."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one version makes of the images.

    Attributes:
        threshold: its own, at a false-positive rate of `FPR` (or the smallest it supports).
        caught: share of the planted images above the threshold.
        false_alarms: share of the clean images above it.
        auroc: of planted against clean images.
    """

    version: str
    preset: str
    threshold: float
    balanced_accuracy: float
    auroc: float
    caught: float
    false_alarms: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate beside the version in production.

    Attributes:
        why: one readable line.
        images: how many both were shown.
        basis: `both`: images that both were calibrated on; `candidate`: that the candidate was;
            `none`: there are too few of either, and nothing was compared.
        balanced_accuracy, auroc: the candidate's less the other's, with a 95% interval over
            resampled images; None, as both sides, where nothing was compared.
    """

    takes_candidate: bool
    why: str
    images: int
    basis: Literal["both", "candidate", "none"]
    candidate: Side | None = None
    production: Side | None = None
    balanced_accuracy: Estimate | None = None
    auroc: Estimate | None = None

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def compare(candidate: Bundle, production: Bundle, images: Mapping[str, Read], *,
            progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Compares two versions; the candidate is taken unless it is worse.

    Worse: the 95% interval of the difference in balanced accuracy lies below 0, or it contains 0
    and that of the difference in AUROC lies below 0. Intervals are over resampled images, both
    versions' scores of an image drawn together.

    Where fewer than `MIN_IMAGES` images stand in both calibration tables, the candidate's are
    used. Nets in production may have been trained on some of those, which favours production.
    Where these are fewer too, production is kept: nothing speaks for the candidate.

    Args:
        images: by SHA-256 of their file. Of those used, the `MAX_IMAGES` lowest are.
        progress: called with (images done, images in all).
    """
    basis, chosen = _choose(candidate, production, images)
    versions = _Version(candidate), _Version(production)
    score_N2K: list[list[tuple[float, float]]] = []
    for done, sha256 in enumerate(chosen, start=1):
        try:
            image_HWC = images[sha256]()
        except ImageError:  # readable in training and lost since: it says nothing of a model
            continue
        planted_HWC, _ = plant(image_HWC, sha256)
        score_N2K.append([version.look(sha256, image_HWC, planted_HWC) for version in versions])
        if progress:
            progress(done, len(chosen))
    if len(score_N2K) < MIN_IMAGES:
        return Comparison(
            takes_candidate=False, basis="none", images=len(score_N2K),
            why=f"kept {production.version}: {len(score_N2K)} held-out images are too few to "
                f"compare {candidate.version} with it, expected at least {MIN_IMAGES}; add normal "
                "images, or promote it with igd-ray models promote")
    shown = [_Shown(version.threshold, *np.array(score_N2K)[:, side].T)
             for side, version in enumerate(versions)]
    accuracy, auroc = _differences(*shown)
    one, other = (version.side(scores) for version, scores in zip(versions, shown, strict=True))
    takes, verdict = _verdict(accuracy, auroc)
    said = (f"took {_named(candidate)}, {verdict} than {_named(production)}" if takes else
            f"kept {_named(production)}: {_named(candidate)} is {verdict}")
    return Comparison(
        takes_candidate=takes, basis=basis, images=len(score_N2K), candidate=one, production=other,
        balanced_accuracy=accuracy, auroc=auroc,
        why=f"{said}, with balanced accuracy {one.balanced_accuracy:.3f} against "
            f"{other.balanced_accuracy:.3f} ({_interval(accuracy)}) and AUROC {one.auroc:.3f} "
            f"against {other.auroc:.3f} ({_interval(auroc)}) on defects planted in "
            f"{len(score_N2K)} images{_basis_note(basis, production)}")


@dataclass(frozen=True)
class _Shown:
    """A version's threshold and scores of clean and of planted images; float64 (N,)."""

    threshold: float
    clean_N: NDArray[np.float64]
    planted_N: NDArray[np.float64]

    @property
    def right_N(self) -> NDArray[np.float64]:
        """Share of an image's two verdicts that is right; the mean is the balanced accuracy."""
        return ((self.planted_N > self.threshold) + 1.0 - (self.clean_N > self.threshold)) / 2

    @property
    def above_NN(self) -> NDArray[np.float64]:
        """1 where a planted image (row) scores above a clean one, 1/2 for a tie; mean: AUROC."""
        difference_NN = self.planted_N[:, None] - self.clean_N
        return np.heaviside(difference_NN, 0.5)


class _Version:
    """A version that looks at images."""

    def __init__(self, bundle: Bundle) -> None:
        self._scorer = Scorer(bundle)
        columns = bundle.calibration.select(["sha256", "score"]).to_pydict()
        self._held_out = dict(zip(columns["sha256"], columns["score"], strict=True))
        self.threshold = Calibrator(np.array(columns["score"])).rule(FPR).threshold

    def look(self, sha256: str, image_HWC: NDArray[np.uint8],
             planted_HWC: NDArray[np.uint8]) -> tuple[float, float]:
        """Scores of the clean and of the planted image."""
        clean, planted = self._scorer.score([image_HWC, planted_HWC]).scores.tolist()
        return max(clean, self._held_out.get(sha256, clean)), planted

    def side(self, shown: _Shown) -> Side:
        bundle = self._scorer.bundle
        return Side(version=bundle.version, preset=bundle.preset, threshold=self.threshold,
                    balanced_accuracy=float(shown.right_N.mean()),
                    auroc=float(shown.above_NN.mean()),
                    caught=float((shown.planted_N > self.threshold).mean()),
                    false_alarms=float((shown.clean_N > self.threshold).mean()))


def _choose(candidate: Bundle, production: Bundle,
            images: Mapping[str, Read]) -> tuple[Literal["both", "candidate"], list[str]]:
    """Digests of the images to show, in order."""
    mine, its = (set(bundle.calibration["sha256"].to_pylist()) & set(images)
                 for bundle in (candidate, production))
    if len(mine & its) >= MIN_IMAGES:
        return "both", sorted(mine & its)[:MAX_IMAGES]
    return "candidate", sorted(mine)[:MAX_IMAGES]


def _differences(one: _Shown, other: _Shown) -> tuple[Estimate, Estimate]:
    """Balanced accuracy and AUROC of one less the other's."""
    right_N, above_NN = one.right_N - other.right_N, one.above_NN - other.above_NN

    def resampled(weight_RN: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return [weight_RN @ right_N / len(right_N),
                ((weight_RN @ above_NN) * weight_RN).sum(1) / above_NN.size]

    found = estimates({"accuracy": float(right_N.mean()), "auroc": float(above_NN.mean())},
                      resampled, np.zeros(len(right_N), np.int_), len(right_N), 0, RESAMPLES)
    accuracy, auroc = found.values()
    assert accuracy is not None and auroc is not None
    return accuracy, auroc


def _verdict(accuracy: Estimate, auroc: Estimate) -> tuple[bool, str]:
    """Whether the candidate is taken, and how it compares."""
    for difference in (accuracy, auroc):
        if difference.high < 0:
            return False, "worse"
        if difference.low > 0:
            return True, "better"
    return True, "not worse"


def _named(bundle: Bundle) -> str:
    return f"{bundle.version} ({bundle.preset})"


def _basis_note(basis: Literal["both", "candidate"], production: Bundle) -> str:
    if basis == "both":
        return " held out of both"
    # `fast` is fitted on its calibration images and no others
    maybe = "" if production.preset == "fast" else ", and the other may have been trained on them"
    return f" held out of the candidate; too few calibrated both{maybe}"


def _interval(difference: Estimate) -> str:
    return (f"{difference.value:+.3f}, 95% interval {difference.low:+.3f} to "
            f"{difference.high:+.3f}")
