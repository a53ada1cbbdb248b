"""Histograms as SVG that takes its colours from the page, so that it reads in light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

BINS = 48
# Stand-ins that matplotlib accepts as colours, and the CSS variables that replace them.
_INK, _RUN, _NORMALS, _THRESHOLD, _GRID = "#010203", "#010204", "#010205", "#010206", "#010207"
_VARIABLES = {_INK: "var(--muted)", _RUN: "var(--run)", _NORMALS: "var(--ink)",
              _THRESHOLD: "var(--anomalous)", _GRID: "var(--line)"}


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A chart and what it leaves out.

    Attributes:
        svg: markup of ours alone; it holds numbers and no names.
        beyond: images of the run outside the axis, counted in its first or last bar.
    """

    svg: Markup
    beyond: int


def score_histogram(scores: NDArray[np.float64], normals: NDArray[np.float64] | None,
                    thresholds: Iterable[float]) -> Histogram:
    """The scores of a run as bars, those of the calibration normals as an outline.

    Args:
        scores: (N,), N at least 1.
        normals: (n,), or None where the model is out of reach.
    """
    lines = sorted(thresholds)
    low, high = _limits(scores if normals is None else np.concatenate([scores, normals]), lines)
    edges = np.linspace(low, high, BINS + 1)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "igd", "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.stairs(_share(scores, edges), edges, fill=True, color=_RUN)
        if normals is not None:
            axes.stairs(_share(normals, edges), edges, color=_NORMALS, linewidth=1.1)
        for threshold in lines:
            axes.axvline(threshold, color=_THRESHOLD, linewidth=1.3, linestyle=(0, (4, 2)))
        _style(axes)
        axes.set(xlim=(low, high), xlabel="score (higher is more anomalous)",
                 ylabel="% of images")
        beyond = int(((scores < low) | (scores > high)).sum())
        return Histogram(svg=_markup(figure), beyond=beyond)


def _limits(values: NDArray[np.float64], lines: list[float]) -> tuple[float, float]:
    """An axis that a few extreme scores cannot stretch out of use."""
    p1, p99 = np.percentile(values, [1, 99])
    room = 1.5 * (p99 - p1) or abs(p99) or 1.0
    low = min(max(values.min(), p1 - room), *lines, p99)
    high = max(min(values.max(), p99 + room), *lines, p1)
    pad = 0.02 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _share(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return counts * (100 / len(values))


def _style(axes: mpl.axes.Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.tick_params(colors=_INK, length=0, labelsize=8.5)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _markup(figure: Figure) -> Markup:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True,
                   metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = sink.getvalue()
    text = text[text.index("<svg"):]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text)
