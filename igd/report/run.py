"""The report of a published date: one HTML file for people, next to the tables for queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date as Date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igd.records import Decision
from igd.report.charts import Histogram, score_histogram
from igd.report.page import calibrated, environment
from igd.report.pictures import Gallery, Pictures, Scale, Tile
from igd.report.summary import DateSummary, ModelSummary, Row, is_odd, summarize

LEAST_TILES = 4
"""Highest images shown of each model, however many models a date has."""
MOST_SOURCES = 100


@dataclass(frozen=True, kw_only=True)
class Normals:
    """Calibration normals of a model.

    Attributes:
        scores: float64 (n,).
        heatmap_peaks: float64 (n,), the highest value of each heatmap.
    """

    scores: NDArray[np.float64]
    heatmap_peaks: NDArray[np.float64]


FindNormals = Callable[[str, str, str], Normals | None]
"""Run id, category and model version to its calibration; None where that is out of reach."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """One model's part of the page.

    Attributes:
        chance: images that the rate alpha alone would call anomalous, were all normal.
    """

    model: ModelSummary
    histogram: Histogram
    normals: int | None
    chance: float | None
    scale: Scale | None
    highest: list[Tile]
    lowest: list[Tile]


def render_run_report(out: str, date: Date, *, pictures: Pictures, normals: FindNormals,
                      top: int = 24) -> str:
    """The report of a date as one self-contained HTML page: no script, no outside asset.

    Args:
        top: images with the highest scores to show, shared among the date's models.

    Raises:
        DataError: nothing is published for the date.
    """
    summary = summarize(out, date, top=top)
    models = [summary.models[key] for key in sorted(summary.models)]
    share = max(LEAST_TILES, top // max(1, len(models)))
    shown = {id(model): _chosen(model, min(share, top)) for model in models}
    gallery = Gallery(out, date, [row for highest, lowest in shown.values()
                                  for row in (*highest, *lowest)], pictures)
    sections = [_section(model, *shown[id(model)], gallery,
                         normals(model.run_id, model.category, model.version))
                for model in models]
    return environment().get_template("run.html.j2").render(
        out=out.rstrip("/"), date=date, summary=summary, sections=sections,
        rejects_only=sorted(set(summary.rejected) - {model.category for model in models}),
        presets={model.preset: calibrated(model.preset) for model in models},
        totals=_totals(summary), most_sources=MOST_SOURCES)


def _chosen(model: ModelSummary, share: int) -> tuple[list[Row], list[Row]]:
    highest = model.highest[:share]
    ids = {row["image_id"] for row in highest}
    return highest, [row for row in model.lowest if row["image_id"] not in ids]


def _section(model: ModelSummary, highest: list[Row], lowest: list[Row], gallery: Gallery,
             normals: Normals | None) -> ModelSection:
    known = normals.scores if normals is not None else None
    peak = float(np.median(normals.heatmap_peaks)) if normals is not None else None
    scale = gallery.scale([*highest, *lowest], peak)
    return ModelSection(
        model=model, scale=scale, normals=None if known is None else len(known),
        histogram=score_histogram(model.scores, known, model.thresholds),
        chance=min(model.alphas) * model.scored if len(model.alphas) == 1 else None,
        highest=[gallery.tile(row, scale) for row in highest],
        lowest=[gallery.tile(row, scale) for row in lowest])


def _totals(summary: DateSummary) -> dict[str, Any]:
    """Counts of the page's head; decisions in the order of alarm."""
    rejected = summary.reasons.total()
    decisions = {str(level): summary.decisions[level]
                 for level in (Decision.ANOMALOUS, Decision.REVIEW, Decision.NORMAL)}
    return {"planned": summary.scored + rejected, "scored": summary.scored,
            "rejected": rejected, "decisions": decisions,
            "odd_sources": sum(map(is_odd, summary.sources))}
