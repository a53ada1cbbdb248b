"""What the results tables are put together from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MACHINE = "{cores} cores ({cpu}), no GPU"
PROOFS = ("containers", "serve_chaos")
"""Results that lie in proofs/results/."""


def load(name: str) -> dict[str, Any]:
    return dict(json.loads(results(name).read_text()))


def results(name: str) -> Path:
    folder = "proofs" if name in PROOFS else "benchmarks"
    return ROOT / folder / "results" / f"{name}.json"


def exists(name: str) -> bool:
    return results(name).exists()


def row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def over_seeds(runs: list[dict[str, Any]], metric: str) -> str:
    """Mean over seeds, and from the lowest to the highest bound of their intervals."""
    if runs[0][metric] is None:
        return "-"
    bounds = [run["intervals_95"][metric] for run in runs]
    return (f"{digits(sum(run[metric] for run in runs) / len(runs))} "
            f"({digits(min(low for low, _ in bounds))}-{digits(max(high for _, high in bounds))})")


def mean_range(values: list[float]) -> str:
    return (f"{digits(sum(values) / len(values))} "
            f"({digits(min(values))}-{digits(max(values))})")


def digits(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def where(*documents: dict[str, Any]) -> str:
    commits = ", ".join(sorted({document["commit"] for document in documents}))
    return f"commit {commits}, {MACHINE.format(**documents[0]['machine'])}"


def span(values: dict[str, float]) -> str:
    return between([values["min"], values["max"]])


def between(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low}-{high}"
