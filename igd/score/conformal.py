"""Decisions with a stated error rate (conformal p-values; Vovk et al., Bates et al. 2023).

p = (1 + number of calibration scores at least s) / (n + 1). For exchangeable normals that the
model has not seen (split-conformal: presets `small` and `paper`), P(p <= alpha) <= alpha exactly.
Preset `fast` compares with the scores that each calibration normal got from a model fitted
without its fold, while an image is scored by the model fitted on all: no distribution-free
guarantee holds for that. It errs on the safe side as far as a model fitted on more normals
scores a new normal no higher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from igd.errors import ConfigError
from igd.records import Decision


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A threshold at a false-positive rate.

    Attributes:
        alpha: the rate it holds; the asked one, or the smallest that n normals support.
        threshold: an image is flagged where its score is above it.
        supported: whether the asked rate could be had.
        exceed: calibration normals above the threshold; interval_95: Clopper-Pearson, of the
            rate, from `exceed` of n.
    """

    alpha: float
    threshold: float
    supported: bool
    exceed: int
    interval_95: tuple[float, float]


class Calibrator:
    """p-values and thresholds from the scores of n calibration normals.

    Args:
        scores: (n,), higher is more anomalous.
    """

    def __init__(self, scores: NDArray[np.float64]) -> None:
        self.scores = np.sort(np.asarray(scores, np.float64))
        if not len(self.scores) or not np.isfinite(self.scores).all():
            raise ConfigError("calibration scores are missing or not finite; train again")

    @property
    def smallest_alpha(self) -> float:
        """The smallest false-positive rate these normals support."""
        return 1 / (len(self.scores) + 1)

    def p_value(self, score: float) -> float:
        """The share of normals (counting this image as one) that score as high or higher."""
        at_least = len(self.scores) - int(np.searchsorted(self.scores, score, side="left"))
        return (1 + at_least) / (len(self.scores) + 1)

    def rule(self, alpha: float) -> Rule:
        """The threshold at a false-positive rate: score > threshold exactly where p <= alpha.

        Raises:
            ConfigError: alpha is not a rate.
        """
        if not 0 < alpha < 1:
            raise ConfigError(f"false-positive rate {alpha!r}: expected a number between 0 and 1")
        n = len(self.scores)
        supported = alpha >= self.smallest_alpha
        used = max(alpha, self.smallest_alpha)
        # p <= alpha  <=>  at most k - 1 normals score as high, for the largest k with
        # k / (n + 1) <= alpha, compared as `p_value` divides: floor(alpha (n + 1)) can be 1 off
        k = round(used * (n + 1))
        k -= k / (n + 1) > used
        threshold = float(self.scores[n - k])
        exceed = int((self.scores > threshold).sum())
        return Rule(alpha=used, threshold=threshold, supported=supported, exceed=exceed,
                    interval_95=clopper_pearson(exceed, n))


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Two rules: anomalous at the false-positive rate asked for, review at a larger one."""

    anomalous: Rule
    review: Rule

    def decide(self, score: float) -> Decision:
        if score > self.anomalous.threshold:
            return Decision.ANOMALOUS
        return Decision.REVIEW if score > self.review.threshold else Decision.NORMAL


def levels(calibrator: Calibrator, fpr: float, review_fpr: float) -> Levels:
    """Both rules; the review rate is never below the other."""
    return Levels(anomalous=calibrator.rule(fpr), review=calibrator.rule(max(fpr, review_fpr)))


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of a rate."""
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = special.betaincinv(successes, trials - successes + 1, tail) if successes else 0.0
    high = (special.betaincinv(successes + 1, trials - successes, 1 - tail)
            if successes < trials else 1.0)
    return float(low), float(high)
