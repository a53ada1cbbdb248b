"""The long proofs that are committed hold what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "proofs" / "results"


@pytest.mark.parametrize(("name", "rounds"), [("train_chaos", 5), ("train_chaos_trainers", 2)])
def test_no_kill_cost_a_category_a_version_or_a_bit(name: str, rounds: int) -> None:
    document = json.loads((RESULTS / f"{name}.json").read_text())
    kinds = [found["kind"] for found in document["rounds"]]
    assert all(kinds.count(kind) >= rounds for kind in ("worker", "node", "driver"))
    assert all(found["problems"] == [] and found["exit_codes"][-1] == 0
               for found in document["rounds"])
