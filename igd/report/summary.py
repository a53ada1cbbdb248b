"""A published date in numbers: one pass over its files, a file in memory at a time."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from datetime import date as Date
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from igd import tables
from igd.errors import DataError
from igd.records import SourceStatus, Status

Row = dict[str, Any]

CONTRAST = 3
"""Most normal images kept of a model, to compare the highest with."""
REJECTS_PER_REASON = 20
_TERMS = ("global_gsvdd_distance", "local_gsvdd_distance", "dense_distance")
_COLUMNS = ("image_id", "run_id", "generation", "source_uri", "source_version", "member",
            "category", "status", "reject_reason", "reject_detail", "sha256", "width", "height",
            "preset", "score", *_TERMS, "p_value", "decision", "alpha", "threshold", "regions",
            "model_version", "scored_at")


@dataclass(kw_only=True)
class ModelSummary:
    """What one model version said of a category; scores compare only within one.

    Attributes:
        alphas, thresholds: of its rows; more than one where runs asked for different rates.
        highest: rows with the highest scores, highest first, at most `top` of `summarize`.
        lowest: rows with the lowest scores, lowest first.
    """

    category: str
    version: str
    preset: str
    run_id: str
    decisions: Counter[str] = field(default_factory=Counter)
    alphas: set[float] = field(default_factory=set)
    thresholds: set[float] = field(default_factory=set)
    highest: list[Row] = field(default_factory=list)
    lowest: list[Row] = field(default_factory=list)
    _scores: list[NDArray[np.float64]] = field(default_factory=list)

    @property
    def scores(self) -> NDArray[np.float64]:
        """float64 (N,), every score."""
        return np.concatenate(self._scores)

    @property
    def scored(self) -> int:
        return sum(map(len, self._scores))

    def add(self, rows: pa.Table, top: int) -> None:
        """Adds rows of this model, with their `tie` (see `_tie_breaker`)."""
        self._scores.append(rows["score"].to_numpy())
        self.decisions.update(rows["decision"].to_pylist())
        self.alphas.update(pc.unique(rows["alpha"]).to_pylist())
        self.thresholds.update(pc.unique(rows["threshold"]).to_pylist())
        order = np.lexsort((rows["tie"].to_numpy(), rows["score"].to_numpy()))
        self.highest = heapq.nlargest(
            top, [*self.highest, *rows.take(order[::-1][:top]).to_pylist()], key=_rank)
        self.lowest = heapq.nsmallest(
            CONTRAST, [*self.lowest, *rows.take(order[:CONTRAST]).to_pylist()], key=_rank)


@dataclass(kw_only=True)
class DateSummary:
    """What stands in the tables for a date.

    Attributes:
        runs: run id to generation.
        rejected: by category and reason.
        first_rejects: by reason, the first `REJECTS_PER_REASON` rows.
        sources: rows of the table `sources` of these runs, the odd ones first.
    """

    runs: dict[str, int] = field(default_factory=dict)
    models: dict[tuple[str, str], ModelSummary] = field(default_factory=dict)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    first_rejects: dict[str, list[Row]] = field(default_factory=dict)
    sources: list[Row] = field(default_factory=list)
    scored_from: datetime | None = None
    scored_to: datetime | None = None

    @property
    def scored(self) -> int:
        return sum(model.scored for model in self.models.values())

    @property
    def reasons(self) -> Counter[str]:
        """Rejects of all categories by reason."""
        return sum(self.rejected.values(), Counter())

    @property
    def decisions(self) -> Counter[str]:
        return sum((model.decisions for model in self.models.values()), Counter())

    def add(self, rows: pa.Table, top: int) -> None:
        """Adds the rows of one file."""
        if not len(rows):
            return
        for run in pc.unique(rows["run_id"]).to_pylist():
            first = rows["generation"][pc.index(rows["run_id"], run).as_py()].as_py()
            self.runs[run] = first
        span = pc.min_max(rows["scored_at"]).as_py()
        self.scored_from = min(filter(None, (self.scored_from, span["min"])))
        self.scored_to = max(filter(None, (self.scored_to, span["max"])))
        is_scored = pc.equal(rows["status"], Status.SCORED)
        self._add_rejects(rows.filter(pc.invert(is_scored)))
        scored = rows.filter(is_scored)
        scored = scored.append_column("tie", _tie_breaker(scored))
        for version in pc.unique(scored["model_version"]).to_pylist():
            self._add_scored(scored.filter(pc.equal(scored["model_version"], version)), top)

    def _add_scored(self, rows: pa.Table, top: int) -> None:
        key = rows["category"][0].as_py(), rows["model_version"][0].as_py()
        if key not in self.models:
            self.models[key] = ModelSummary(
                category=key[0], version=key[1], preset=rows["preset"][0].as_py(),
                run_id=rows["run_id"][0].as_py())
        self.models[key].add(rows, top)

    def _add_rejects(self, rows: pa.Table) -> None:
        for reason in pc.unique(rows["reject_reason"]).to_pylist():
            of_reason = rows.filter(pc.equal(rows["reject_reason"], reason))
            category = of_reason["category"][0].as_py()
            self.rejected.setdefault(category, Counter())[reason] += len(of_reason)
            first = self.first_rejects.setdefault(reason, [])
            first.extend(of_reason.slice(0, REJECTS_PER_REASON - len(first)).to_pylist())


def summarize(out: str, date: Date, *, top: int) -> DateSummary:
    """Reads a date.

    Args:
        top: rows with the highest scores kept of each model.

    Raises:
        DataError: nothing is published for the date.
    """
    summary = DateSummary()
    for file in sorted(tables.live_files(out, "scores", date), key=lambda file: file.path):
        summary.add(tables.read(out, "scores", date, columns=_COLUMNS, files=[file]), top)
    sources = tables.read(out, "sources", date).to_pylist()
    if not summary.runs and not sources:
        raise DataError(f"nothing is published for {date} in {out}; run igd-ray score first")
    # Sources of replaced generations stay in their table. A date without rows has no live runs.
    mine = [row for row in sources if not summary.runs or row["run_id"] in summary.runs]
    summary.sources = sorted(mine, key=lambda row: (not is_odd(row), row["source_uri"]))
    return summary


def is_odd(source: Row) -> bool:
    """Whether a source ended in a way that an operator must see."""
    return bool(source["status"] != SourceStatus.COMPLETE or source["detail"]
                or not source["members"])


def _tie_breaker(rows: pa.Table) -> pa.ChunkedArray:
    """Ranks images whose scores are equal, as they are where 1 - exp(-d/s) has reached 1."""
    ratio = pc.add(rows["global_gsvdd_distance"], rows["local_gsvdd_distance"])
    return pc.fill_null(pc.coalesce(ratio, rows["dense_distance"]), 0.0)


def _rank(row: Row) -> tuple[float, float, str]:
    return row["score"], row["tie"], row["image_id"]
