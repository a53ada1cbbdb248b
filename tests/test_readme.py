"""The README's commands and code run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.mark.timeout(400)
def test_the_readme_runs(tmp_path) -> None:
    shell, = blocks("sh")
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = shell.replace("products --categories", "products --size 64 --categories")
    commands = commands.replace("models models\n", "models models --set image.size=64\n", 1)
    ran = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=here,
                         text=True, capture_output=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "every planned image has one row" in ran.stdout
    for code in blocks("python"):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)


def test_the_readme_says_what_no_command_measured_nowhere() -> None:
    assert "RESULTS" not in README
    assert len(README.split()) < 1800
