"""The README's commands and code run as they stand."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.mark.timeout(400)
def test_the_readme_runs(cluster, tmp_path) -> None:
    shell, = blocks("sh")
    here = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = shell.replace("products --categories", "products --size 64 --categories")
    commands = commands.replace("models models\n", "models models --set image.size=64\n", 1)
    ran = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=here,
                         text=True, capture_output=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "every planned image has one row" in ran.stdout
    for code in blocks("python"):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)


def test_a_figure_stands_under_its_class() -> None:
    """In the JSON the classes are in another order than in the table."""
    found = json.loads((ROOT / "benchmarks" / "results" / "fashion-mnist.json").read_text())
    section = README.partition("**Fashion-MNIST")[2]
    head = re.search(r"^\| method \| (.*) \| mean \|$", section, re.M)
    row = re.search(r"^\| knn \| (.*) \|$", section, re.M)
    assert head and row
    for name, cell in zip(head[1].split(" | "), row[1].split(" | "), strict=False):
        value = found["rows"]["knn"]["classes"][name][0]["value"]
        assert float(cell.split()[0]) == pytest.approx(value, abs=5e-4)


def test_the_figures_are_those_of_the_committed_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert table.BEGIN + table.table() + table.END in README
