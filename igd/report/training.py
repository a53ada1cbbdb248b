"""The page of a `train-all`: what became of each category, loss curves, reconstructions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from igd.report.charts import SERIES, loss_chart
from igd.report.page import calibrated, environment
from igd.report.pictures import data_uri

STRIP_WIDTH = 900
"""Pixels that a strip of reconstructions has at most."""
NOT_LOSSES = {"lr", "distance"}
"""d/s is 2 by construction after every E-step, and the rate is a setting."""


@dataclass(frozen=True, kw_only=True)
class CategoryRow:
    """What became of one category.

    Attributes:
        state: `trained`, `finished before` or `failed`.
        facts: version, images, seconds, and so on, as the table has them.
        error: of a failed one.
        findings: what a training ended in that its scores do not show.
        curve: as a bundle's provenance has it: branch, phase, done, steps, metrics.
        strips: reconstructions and interpolations by branch.
    """

    category: str
    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    findings: Sequence[str] = ()
    curve: Sequence[Mapping[str, Any]] = ()
    strips: Mapping[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Chart:
    """Loss terms of one phase of one branch; keys are term, style, first and last value."""

    title: str
    svg: Markup
    keys: list[tuple[str, str, float, float]]


def render_training(rows: Sequence[CategoryRow], *, preset: str,
                    facts: Mapping[str, str | None]) -> str:
    """The page: no script, no outside asset.

    Args:
        rows: in the order to show.
        facts: what else to print, such as the commit, by name; None is left out.
    """
    ordered = sorted(rows, key=lambda row: (row.state != "failed", row.category))
    return environment().get_template("training.html.j2").render(
        rows=ordered, facts=facts, preset=preset, words=calibrated(preset),
        columns=list(dict.fromkeys(name for row in rows for name in row.facts)),
        counts={state: sum(row.state == state for row in rows)
                for state in ("trained", "finished before", "failed")},
        charts={row.category: _charts(row.curve) for row in rows},
        strips={row.category: {branch: _small(image) for branch, image in row.strips.items()}
                for row in rows})


def _charts(curve: Sequence[Mapping[str, Any]]) -> list[_Chart]:
    charts = []
    for (branch, phase), steps in itertools.groupby(
            curve, key=lambda step: (step["branch"], step["phase"])):
        seen = list(steps)
        names = [name for name in seen[-1]["metrics"] if name not in NOT_LOSSES]
        series = {name: np.array([step["metrics"][name] for step in seen]) for name in names}
        x = np.array([float(step["done"]) for step in seen])
        unit = {"distil": "iteration", "em": "epoch"}[phase]
        charts.append(_Chart(
            title=f"{branch}, {'distillation' if phase == 'distil' else 'EM'}",
            svg=loss_chart([(x, y) for y in series.values()], unit),
            keys=[(name, f"s{number % SERIES}", float(y[0]), float(y[-1]))
                  for number, (name, y) in enumerate(series.items())]))
    return charts


def _small(image: Image.Image) -> Markup:
    copy = image.copy()
    copy.thumbnail((STRIP_WIDTH, STRIP_WIDTH))
    return data_uri(copy)
