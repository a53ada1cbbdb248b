"""Conformal decisions: the formula, the guarantee, and what is done where it cannot be had."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from igd.errors import ConfigError
from igd.records import Decision
from igd.score.conformal import Calibrator, clopper_pearson, levels

scores = st.lists(st.integers(-3, 3) | st.floats(-1e6, 1e6), min_size=1, max_size=60)
simple_rates = st.tuples(st.integers(1, 61), st.integers(2, 62)).filter(
    lambda kn: kn[0] < kn[1]).map(lambda kn: kn[0] / kn[1])
rates = simple_rates | simple_rates.map(lambda a: math.nextafter(a, 0)) | st.floats(
    1e-6, 1, exclude_max=True)


@given(scores, rates)
@example([float(i) for i in range(19)], math.nextafter(0.05, 0))
@example([float(i) for i in range(99)], 0.29)
def test_a_score_is_flagged_exactly_where_p_is_at_most_alpha(normals: list[float],
                                                            alpha: float) -> None:
    calibrator = Calibrator(np.array(normals))
    rule = calibrator.rule(alpha)
    near = [math.nextafter(s, side) for s in normals for side in (-math.inf, math.inf)]
    for score in [*normals, *near, -math.inf, math.inf]:
        assert (calibrator.p_value(score) <= rule.alpha) == (score > rule.threshold)
    assert rule.exceed == sum(score > rule.threshold for score in normals)
    assert rule.interval_95[0] <= rule.exceed / len(normals) <= rule.interval_95[1]


def test_p_counts_normals_at_least_as_high_and_the_image_itself() -> None:
    calibrator = Calibrator(np.array([3.0, 1.0, 2.0, 2.0]))
    assert [calibrator.p_value(s) for s in (0, 1, 1.5, 2, 2.5, 3, 4)] == [
        5 / 5, 5 / 5, 4 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


@given(scores, rates)
def test_a_rate_too_small_for_the_normals_becomes_the_smallest_and_says_so(
        normals: list[float], alpha: float) -> None:
    rule = Calibrator(np.array(normals)).rule(alpha)
    smallest = 1 / (len(normals) + 1)
    if alpha < smallest:
        assert (rule.supported, rule.alpha, rule.exceed) == (False, smallest, 0)
        assert rule.threshold == max(normals)
    else:
        assert (rule.supported, rule.alpha) == (True, alpha)


@pytest.mark.parametrize("tied", [False, True])
def test_exchangeable_normals_are_flagged_no_oftener_than_alpha(tied: bool) -> None:
    rng = np.random.default_rng(0)
    rounds, n = 4000, 39
    for alpha in (0.05, 0.1, 0.33):
        flagged = 0
        for _ in range(rounds):
            draw = rng.normal(size=n + 1)
            if tied:
                draw = np.round(draw)
            flagged += draw[0] > Calibrator(draw[1:]).rule(alpha).threshold
        noise = 3 * math.sqrt(alpha * (1 - alpha) / rounds)
        assert flagged / rounds <= alpha + noise
        if not tied:  # exact: k / (n + 1), not merely below
            assert flagged / rounds >= math.floor(alpha * (n + 1)) / (n + 1) - noise


@pytest.mark.parametrize(("successes", "trials", "low", "high"), [
    # R: binom.test(x, n)$conf.int
    (0, 10, 0.0, 0.3084971), (1, 10, 0.002528579, 0.4450161), (5, 10, 0.187086, 0.812914),
    (10, 10, 0.6915029, 1.0), (5, 100, 0.01643188, 0.1128349), (0, 0, 0.0, 1.0)])
def test_clopper_pearson_has_the_known_values(successes: int, trials: int, low: float,
                                              high: float) -> None:
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), rel=1e-6)


@given(scores, rates, rates, st.floats(-1e6, 1e6))
def test_what_is_anomalous_was_up_for_review(normals: list[float], fpr: float, review: float,
                                             score: float) -> None:
    both = levels(Calibrator(np.array(normals)), fpr, review)
    assert both.review.alpha >= both.anomalous.alpha
    assert both.review.threshold <= both.anomalous.threshold
    expected = (Decision.ANOMALOUS if score > both.anomalous.threshold else
                Decision.REVIEW if score > both.review.threshold else Decision.NORMAL)
    assert both.decide(score) is expected


def test_the_two_levels_part_normal_review_and_anomalous() -> None:
    both = levels(Calibrator(np.arange(1.0, 100.0)), 0.01, 0.05)
    assert [both.decide(s) for s in (95, 95.5, 99, 99.5)] == [
        Decision.NORMAL, Decision.REVIEW, Decision.REVIEW, Decision.ANOMALOUS]


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan])
def test_a_rate_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"false-positive rate {alpha!r}"):
        Calibrator(np.array([1.0])).rule(alpha)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_calibration_scores_must_be_there_and_finite(bad: list[float]) -> None:
    with pytest.raises(ConfigError, match="calibration scores are missing or not finite"):
        Calibrator(np.array(bad))
