"""The page of an evaluation: each category's table, curves, and its worst misses in pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from igd.report.charts import SERIES, Curve, Histogram, labelled_histogram, roc_chart
from igd.report.misses import Misses, find_misses
from igd.report.page import calibrated, environment
from igd.report.pictures import Overlay
from igd.report.text import COLUMNS, Figure, evaluation_notes, table_rows
from igd.score import paper
from igd.score.conformal import clopper_pearson
from igd.score.evaluate import Evaluation, MethodResult
from igd.score.metrics import ranking

MOST_IMAGES, MOST_OF_A_CATEGORY, LEAST_OF_A_CATEGORY = 240, 24, 8
"""Images of the page, and of a category where it is alone and where there are many."""
MOST_NOTES = 20
SUMMARY = ("image_auroc", "pixel_auroc", "au_pro")
"""Metrics of the table over categories."""
MVTEC_CATEGORIES = 15


@dataclass(frozen=True, kw_only=True)
class Roc:
    """ROC curves and their legend, the model's first.

    Attributes:
        keys: name, style and AUROC of each curve.
    """

    svg: Markup
    keys: list[tuple[str, str, Figure]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One category's part of the page.

    Attributes:
        notes: at most `MOST_NOTES`; `more_notes` are left out.
        roc: None where no test image is normal.
        alarms_interval_95: of the share of normal images flagged.
    """

    found: Evaluation
    rows: list[tuple[str, Mapping[str, Figure]]]
    notes: list[str]
    more_notes: int
    roc: Roc | None
    histogram: Histogram
    misses: Misses
    alarms_interval_95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One metric of a category, or its mean over categories; None where there is no figure.

    Attributes:
        best, name: of the best baseline.
    """

    ours: float | None
    best: float | None
    name: str = ""
    paper: float | None = None


def render_evaluation(evaluations: Sequence[Evaluation], *, overlay: Overlay,
                      facts: Mapping[str, str | None]) -> str:
    """The evaluation as one self-contained HTML page: no script, no outside asset.

    Args:
        evaluations: of one category each, at least one.
        overlay: draws heatmaps (`igd.data.images.overlay`).
        facts: what else to print, such as the commit, by name; None is left out.
    """
    size = max(LEAST_OF_A_CATEGORY, min(MOST_OF_A_CATEGORY, MOST_IMAGES // len(evaluations)))
    standings = {found.category: {metric: _standing(found, metric) for metric in SUMMARY}
                 for found in evaluations}
    return environment().get_template("evaluation.html.j2").render(
        sections=[_section(found, overlay, size) for found in evaluations], columns=COLUMNS,
        summary=SUMMARY, standings=standings, facts=facts,
        mean={metric: _mean([row[metric] for row in standings.values()], metric)
              for metric in SUMMARY},
        with_paper={metric for found in evaluations for metric in found.paper},
        paper_mean=paper.MVTEC_MEAN,
        presets={found.preset: calibrated(found.preset) for found in evaluations})


def _section(found: Evaluation, overlay: Overlay, size: int) -> Section:
    scores_N, is_anomalous_N = found.model.scores_N, found.tests.is_anomalous_N
    notes, misses = evaluation_notes(found), find_misses(found, overlay, size)
    return Section(
        found=found, rows=list(table_rows(found)), notes=notes[:MOST_NOTES],
        more_notes=len(notes[MOST_NOTES:]), misses=misses,
        roc=None if is_anomalous_N.all() else _roc(found),
        histogram=labelled_histogram(scores_N[~is_anomalous_N], scores_N[is_anomalous_N],
                                     found.normal_scores_M, found.rule.threshold),
        alarms_interval_95=clopper_pearson(misses.normal.wrong, misses.normal.total))


def _roc(found: Evaluation) -> Roc:
    def curve(result: MethodResult) -> Curve:
        return roc_curve(found.tests.is_anomalous_N, result.scores_N)

    return Roc(
        svg=roc_chart(curve(found.model), [curve(one) for one in found.baselines.values()]),
        keys=[(f"igd-ray {found.preset}", "ours", found.model.metrics["image_auroc"]),
              *((name, f"s{number % SERIES}", result.metrics["image_auroc"])
                for number, (name, result) in enumerate(found.baselines.items()))])


def roc_curve(is_anomalous_N: NDArray[np.bool_], scores_N: NDArray[np.float64]) -> Curve:
    """Shares of the normal and of the anomalous at or above each threshold, from (0, 0)."""
    order, last_K = ranking(scores_N)
    normal_K, anomalous_K = (np.append(0, np.cumsum(kind_N[order])[last_K]) / kind_N.sum()
                             for kind_N in (~is_anomalous_N, is_anomalous_N))
    return normal_K, anomalous_K


def _standing(found: Evaluation, metric: str) -> Standing:
    ours = found.model.metrics[metric]
    beside = {name: value.value for name, result in found.baselines.items()
              if (value := result.metrics[metric]) is not None}
    name = max(beside, key=beside.__getitem__, default="")
    return Standing(ours=None if ours is None else ours.value, best=beside.get(name), name=name,
                    paper=found.paper.get(metric))


def _mean(rows: Sequence[Standing], metric: str) -> Standing:
    """Over the categories that have a figure; the paper's own mean where all of its are here."""
    is_mvtec = len(rows) == MVTEC_CATEGORIES and any(row.paper for row in rows)
    return Standing(ours=_known_mean(row.ours for row in rows),
                    best=_known_mean(row.best for row in rows),
                    paper=paper.MVTEC_MEAN.get(metric) if is_mvtec else None)


def _known_mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
