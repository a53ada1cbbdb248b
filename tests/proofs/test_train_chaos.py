"""The short form of `make proof`: a node killed in a fake cluster of three nodes.

A killed worker is in `tests/pipelines/test_train_all.py`, a killed process in
`tests/pipelines/test_checkpoints.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROOF = Path(__file__).parents[2] / "proofs" / "train_chaos.py"


@pytest.mark.timeout(900)
def test_kills_cost_no_category_and_no_bit(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    ran = subprocess.run(
        [sys.executable, str(PROOF), "--rounds", "1", "--kinds", "node", "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True, timeout=880)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    found = json.loads(out.read_text())
    assert [(each["kind"], each["exit_codes"]) for each in found["rounds"]] == [("node", [0])]
