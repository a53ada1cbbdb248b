"""The page of a one-class protocol: methods by classes, and what their trainings said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igd.report.charts import Dot, dot_chart
from igd.report.page import PRESETS, environment
from igd.score import paper
from igd.score.bootstrap import Estimate
from igd.score.oneclass import ProtocolResult, pooled

_ABLATION = {"ms_ssim": "ms_ssim", "kd": "kd", "kd_dsvdd": "dsvdd", "kd_gsvdd": "gsvdd"}
"""Our rows, and their names among the paper's figures."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method.

    Attributes:
        classes: the seeds pooled, in the order of the classes; None where no model is left.
        spread: lowest and highest of the seeds' means.
        paper: its figure for the same, a mean over all ten classes.
    """

    name: str
    classes: list[Estimate | None]
    mean: float
    spread: tuple[float, float]
    paper: float | None
    trained: bool


@dataclass(frozen=True, kw_only=True)
class Training:
    """The trainings of one method.

    Attributes:
        terms: phase and loss term, the columns.
        runs: class and what a training said, one for each seed.
    """

    name: str
    terms: list[tuple[str, str]]
    runs: list[tuple[str, Mapping[str, Any]]]


def render_protocol(result: ProtocolResult, *, facts: Mapping[str, str | None]) -> str:
    """The protocol as one self-contained HTML page: no script, no outside asset.

    Args:
        facts: what else to print, such as settings and commit, by name; None is left out.
    """
    figures = _paper(result)
    rows = [Row(name=name, classes=[pooled(by_class[label]) if label in by_class else None
                                    for label in result.classes],
                mean=result.mean(name), spread=result.spread(name), paper=figures.get(name),
                trained=name.partition(":")[0].partition(",")[0] in result.training)
            for name, by_class in result.rows.items()]
    dots = [Dot(name=row.name, value=row.mean, low=row.spread[0], high=row.spread[1],
                ours=row.trained) for row in rows]
    return environment().get_template("protocol.html.j2").render(
        result=result, rows=rows, facts=facts, preset=PRESETS.get(result.preset, ""),
        chart=dot_chart(dots, [result.paper["single"]], "mean image AUROC"),
        training=[_training(name, by_class) for name, by_class in result.training.items()])


def _paper(result: ProtocolResult) -> dict[str, float]:
    """The paper's figures by row."""
    found = {"igd": result.paper["single"], "igd, ensemble of 5": result.paper["ensemble"]}
    if result.dataset == "cifar-10":
        found |= {row: paper.CIFAR_ABLATION[name] for row, name in _ABLATION.items()}
    return found


def _training(name: str, by_class: Mapping[str, Sequence[Mapping[str, Any]]]) -> Training:
    runs = [(label, run) for label, of_class in by_class.items() for run in of_class]
    return Training(name=name, runs=runs, terms=list(dict.fromkeys(
        (phase, term) for _, run in runs for phase, ends in run["phases"].items()
        for term in ends["last"])))
