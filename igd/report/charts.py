"""Charts as SVG that takes its colours from the page, so that it reads in light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
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
SERIES = 8
"""Colours for what stands beside the model, `--s0` and on; every second one is dashed."""
_SERIES = {f"#0102{number:02x}": f"var(--s{number - 16})" for number in range(16, 16 + SERIES)}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x and y, ascending."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A chart and what it leaves out.

    Attributes:
        svg: markup of ours alone.
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
    return _histogram([(scores, _RUN)], normals, thresholds)


def labelled_histogram(normal: NDArray[np.float64], anomalous: NDArray[np.float64],
                       calibration: NDArray[np.float64], threshold: float) -> Histogram:
    """The scores of normal and of anomalous test images as bars, one before the other.

    Args:
        normal, anomalous: (N,), one of which may be empty.
        calibration: (M,) of the calibration normals, as an outline.
    """
    bars = [(values, colour) for values, colour in ((normal, _RUN), (anomalous, _THRESHOLD))
            if len(values)]
    return _histogram(bars, calibration, [threshold])


def roc_chart(model: Curve, beside: Sequence[Curve]) -> Markup:
    """ROC curves, rates as shares; those beside the model are thin, in the colours of `SERIES`."""
    with _drawing():
        figure = Figure(figsize=(3.6, 3.1), layout="constrained")
        axes = figure.add_subplot()
        axes.plot((0, 1), (0, 1), color=_GRID, linewidth=1)
        for number, curve in enumerate(beside):
            axes.plot(*curve, color=list(_SERIES)[number % SERIES], linewidth=1.1,
                      linestyle=(0, (4, 2)) if number % 2 else "-")
        axes.plot(*model, color=_NORMALS, linewidth=2.6, solid_joinstyle="round")
        _style(axes)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal",
                 xlabel="normal images flagged", ylabel="anomalous images flagged")
        return _markup(figure)


def loss_chart(curves: Sequence[Curve], unit: str) -> Markup:
    """Loss terms over a training, each divided by its largest value, so that all are in sight.

    Args:
        curves: x in `unit`, in the colours of `SERIES`.
        unit: `epoch` or `iteration`.
    """
    with _drawing():
        figure = Figure(figsize=(3.6, 1.9), layout="constrained")
        axes = figure.add_subplot()
        for number, (x, y) in enumerate(curves):
            axes.plot(x, y / max(float(np.abs(y).max()), 1e-30), linewidth=1.8,
                      color=list(_SERIES)[number % SERIES],
                      linestyle=(0, (4, 2)) if number % 2 else "-")
        _style(axes)
        axes.set(ylim=(-0.03, 1.05), xlabel=unit, ylabel="share of largest")
        return _markup(figure)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A value with a line from `low` to `high` through it; `ours` is drawn strong."""

    name: str
    value: float
    low: float
    high: float
    ours: bool


def dot_chart(dots: Sequence[Dot], marks: Iterable[float], label: str) -> Markup:
    """Values below one another, the first at the top.

    Args:
        marks: where dashed lines stand.
        label: of the axis.
    """
    with _drawing():
        figure = Figure(figsize=(4.6, 0.6 + 0.22 * len(dots)), layout="constrained")
        axes = figure.add_subplot()
        for mark in marks:
            axes.axvline(mark, color=_THRESHOLD, linewidth=1.3, linestyle=(0, (4, 2)))
        for y, dot in enumerate(dots):
            colour = _NORMALS if dot.ours else _RUN
            axes.plot((dot.low, dot.high), (y, y), color=colour, linewidth=1.6)
            axes.plot(dot.value, y, marker="o", markersize=6, color=colour)
        _style(axes)
        axes.grid(axis="x", color=_GRID, linewidth=0.8)
        axes.set(ylim=(len(dots) - 0.4, -0.6), xlabel=label, yticks=range(len(dots)),
                 yticklabels=[dot.name for dot in dots])
        return _markup(figure)


def _histogram(bars: Sequence[tuple[NDArray[np.float64], str]],
               outline: NDArray[np.float64] | None, thresholds: Iterable[float]) -> Histogram:
    lines = sorted(thresholds)
    scores = np.concatenate([values for values, _ in bars])
    low, high = _limits(scores if outline is None else np.concatenate([scores, outline]), lines)
    edges = np.linspace(low, high, BINS + 1)
    with _drawing():
        figure = Figure(figsize=(4.6, 2.2), layout="constrained")
        axes = figure.add_subplot()
        for number, (values, colour) in enumerate(bars):
            axes.stairs(_share(values, edges), edges, fill=True, color=colour,
                        alpha=0.6 if number else 1)
        if outline is not None:
            axes.stairs(_share(outline, edges), edges, color=_NORMALS, linewidth=1.1)
        for threshold in lines:
            axes.axvline(threshold, color=_THRESHOLD, linewidth=1.3, linestyle=(0, (4, 2)))
        _style(axes)
        axes.set(xlim=(low, high), xlabel="score (higher is more anomalous)",
                 ylabel="% of images")
        beyond = int(((scores < low) | (scores > high)).sum())
        return Histogram(svg=_markup(figure), beyond=beyond)


def _drawing() -> AbstractContextManager[None]:
    return mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "igd", "font.size": 9,
                           "text.parse_math": False})


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
    for colour, variable in (_VARIABLES | _SERIES).items():
        text = text.replace(colour, variable)
    return Markup(text)
