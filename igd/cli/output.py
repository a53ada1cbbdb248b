"""What commands print and write."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from datetime import date as Date
from pathlib import Path
from typing import Any

from igd.errors import ConfigError
from igd.report.names import visible

EVERY_S = 5.0
"""Between two lines about something that goes on."""
DAYS_AGO = {"today": 0, "yesterday": 1}


def names_of(text: str | None) -> list[str]:
    names = (name.strip() for name in (text or "").split(","))
    return list(dict.fromkeys(name for name in names if name))


def date_of(text: str) -> Date:
    """A date, or today's or yesterday's in UTC, wherever the clock of the machine is."""
    if text in DAYS_AGO:
        return datetime.now(UTC).date() - timedelta(days=DAYS_AGO[text])
    try:
        return Date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--date {text!r}: expected YYYY-MM-DD, yesterday or today") from None


def age_of(option: str, text: str) -> timedelta:
    """`36h`, `7d` or `2w`."""
    number, unit = text[:-1], text[-1:]
    units = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
    if unit not in units or not (number.isascii() and number.isdigit()) or len(number) > 5:
        raise ConfigError(f"{option} {text!r}: expected a number of hours, days or weeks, such as "
                          "36h, 7d or 2w")
    return int(number) * units[unit]


def one_of(option: str, value: str, expected: Sequence[str]) -> None:
    if value not in expected:
        raise ConfigError(f"{option} {value!r}: expected one of {', '.join(expected)}")


class Counting:
    """Says how many there are so far, every few seconds.

    Args:
        text: with a place for the number.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._last = time.monotonic()

    def __call__(self, count: int) -> None:
        if time.monotonic() - self._last >= EVERY_S:
            self._last = time.monotonic()
            say(self._text.format(count))


def warn_of_listing(images: int, found: dict[str, Any]) -> None:
    """Tells of odd or empty sources and of what was left out, in a plan or a summary."""
    if not (images or found.get("known") or found.get("left_out")):
        say("  the sources hold no image; check that the dump is there")
    for source in found["odd_sources"]:
        tell(f"  source {source['source_uri']}: {source['status']} ({source['detail']})")
    if found.get("known"):
        tell(f"  {found['known']} images left out by --new-only, published before")
    if found.get("left_out"):  # which summaries of earlier versions lack
        tell(f"  {found['left_out']} images left out by --include and --exclude")
    if found.get("limit_reached"):
        tell("  listed no further than --limit")
    for pattern in found.get("unmatched", ()):
        say(f"  --exclude {pattern!r} matched nothing")


def write_json(file: Path | None, document: dict[str, Any] | list[dict[str, Any]]) -> None:
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


def tell(text: str) -> None:
    """Prints a line, with names from archives made safe to look at."""
    print(visible(text))


def say(text: str) -> None:
    """Tells people of it on standard error; work does not end where nobody can hear of it."""
    with contextlib.suppress(OSError):
        print(visible(text), file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
