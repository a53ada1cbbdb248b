"""What commands print and write."""

from __future__ import annotations

import json
import sys
from datetime import date as Date
from pathlib import Path
from typing import Any

from igd.errors import ConfigError


def names_of(text: str | None) -> list[str]:
    names = (name.strip() for name in (text or "").split(","))
    return list(dict.fromkeys(name for name in names if name))


def date_of(text: str) -> Date:
    try:
        return Date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--date {text!r}: expected YYYY-MM-DD") from None


def write_json(file: Path | None, document: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def commit() -> str | None:
    """The commit of the checkout this code runs from, marked where the tree was changed."""
    import subprocess

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *words], check=True,
                              capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git(
            "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_mb() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def say_of(category: str, text: str) -> None:
    say(f"  {category}: {text}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
