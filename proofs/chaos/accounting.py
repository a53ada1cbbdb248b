"""Counts what is in sight against the list of inputs; knows nothing of a run's own manifest."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.dump import Key
from chaos.places import Place

METRICS = ("lost", "dup", "ghost", "torn", "early", "drift", "regress")
IDENTITY = ["source_uri", "member", "ordinal"]
SAID = ["status", "reject_reason", "score", "p_value", "decision", "regions", "category", "sha256"]
READER_START_S = 60

Said = Mapping[str, Any]
"""What a row says of an image, with its heatmap's digest; none of it depends on the run."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a date must come to.

    Attributes:
        rows: what an undisturbed run says of each input.
        before: the keys that were published for the date before.
        rejects: inputs that may be rejected instead, and the reasons that are true.
        else_rows: what another run at the same time may have put in their place.
    """

    rows: Mapping[Key, Said]
    before: frozenset[Key] = frozenset()
    rejects: Mapping[Key, frozenset[str]] = field(default_factory=dict)
    else_rows: Mapping[Key, Said] | None = None


def keys_in(place: Place, date: str, version: int | None = None) -> list[Key]:
    """What is in sight for a date, in order, with repetitions."""
    rows = place.rows("scores", date, version, IDENTITY)
    return sorted((row["source_uri"], row["member"], row["ordinal"]) for row in rows.to_pylist())


def said_of(place: Place, date: str) -> list[tuple[Key, Said]]:
    """Every row of a date; a heatmap that stands twice in the table is in nobody's favour."""
    heatmaps: dict[tuple[str, str], str] = {}
    for row in place.rows("heatmaps", date).to_pylist():
        of = row["run_id"], row["image_id"]
        heatmaps[of] = "twice" if of in heatmaps else _digest(row)
    return [(tuple(row[name] for name in IDENTITY),
             {**{name: row[name] for name in SAID},
              "heatmap": heatmaps.get((row["run_id"], row["image_id"]))})
            for row in place.rows("scores", date).to_pylist()]


def count(place: Place, date: str, expected: Expected, since: int,
          seen: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The metrics of a date, all of which must be 0.

    Args:
        since: the newest version of the table before the case.
        seen: what the polling reader wrote down.
    """
    found = said_of(place, date)
    want = expected.rows
    if expected.else_rows is not None and {key for key, _ in found} == set(expected.else_rows):
        want = expected.else_rows
    times = Counter(key for key, _ in found)
    sights = [view["keys"] for view in seen if "keys" in view] + [
        keys_in(place, date, version)
        for version in range(since + 1, place.version("scores") + 1)]
    wholes = [sorted(rows) for rows in (expected.rows, expected.else_rows) if rows is not None]
    return {
        "lost": len(want.keys() - times.keys()),
        "dup": sum(times.values()) - len(times),
        "ghost": len(times.keys() - want.keys()),
        "torn": len(place.unreadable()) + sum("error" in view for view in seen),
        "drift": sum(key in want and not _same(said, want[key], expected.rejects.get(key))
                     for key, said in found),
        **_in_sight(sights, sorted(expected.before), wholes),
    }


@contextmanager
def watched(place: Place, date: str, file: Path) -> Iterator[list[dict[str, Any]]]:
    """A polling reader in another process; at the end, the list holds what it saw."""
    seen: list[dict[str, Any]] = []
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    reader = subprocess.Popen(
        [sys.executable, "-m", "chaos.reader", place.uri, date, str(file)],
        env={**os.environ, **place.settings, "PYTHONPATH": path})
    try:
        deadline = time.monotonic() + READER_START_S
        while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield seen
    finally:
        alive = reader.poll() is None
        reader.kill()
        reader.wait()
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        seen.extend(map(json.loads, lines))
        if not alive or not lines:
            seen.append({"error": "the reader ended"})


def _in_sight(sights: Sequence[list[Any]], before: list[Key], wholes: list[list[Key]]
              ) -> dict[str, int]:
    """Rows in sight in a mix, and rows of before that were missing while nothing was whole.

    Once something new is whole in sight, what was there before must not come back.
    """
    early = regress = 0
    published = False
    for sight in sights:
        keys = [(source, member, ordinal) for source, member, ordinal in sight]
        if keys in wholes and (keys != before or published):
            published = True
        elif keys != before or published:
            early = max(early, len(set(keys) - set(before)) or len(keys))
            regress = max(regress, len(set(before) - set(keys)))
    return {"early": early, "regress": regress}


def _same(said: Said, want: Said, rejects: frozenset[str] | None) -> bool:
    if rejects is not None and said["status"] == "rejected":
        return said["reject_reason"] in rejects
    return said == want


def _digest(row: Mapping[str, Any]) -> str:
    ranged = (row["heatmap_min"], row["heatmap_max"])
    return hashlib.sha256(row["heatmap"] + repr(ranged).encode()).hexdigest()[:16]
