"""What is said of each photograph, to the last bit: by published tables, and without Ray."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chaos.places import Place
from PIL import Image

from igd.data.images import encode_heatmap
from igd.records import TERMS
from igd.score.scorer import Judge, Scorer

COLUMNS = ("status", "width", "height", "preset", "score", *TERMS, "p_value", "decision", "alpha",
           "threshold", "regions", "model_version", "score_fingerprint")
NAME_SEGMENTS = 3

Said = Mapping[str, str]
"""By column the JSON of a value, which has every bit of a number; the digest of a heatmap's PNG."""
Row = tuple[str, Said]
"""The sha256 of a photograph's bytes, and what is said of it."""


def in_tables(place: Place, date: str) -> list[Row]:
    """What the tables of an output say, a row each."""
    heatmaps: dict[tuple[str, str], list[Said]] = defaultdict(list)
    for row in place.rows("heatmaps", date).to_pylist():
        heatmaps[row["run_id"], row["image_id"]].append(_heatmap(
            row["heatmap"], row["heatmap_min"], row["heatmap_max"]))
    return [(row["sha256"], {"name": _name(row["member"] or row["source_uri"]),
                             **_exactly({name: row[name] for name in COLUMNS}),
                             **_only(heatmaps[row["run_id"], row["image_id"]])})
            for row in place.rows("scores", date).to_pylist()]


def in_process(model: str, files: Sequence[Path]) -> list[Row]:
    """What a model says of files that Pillow decodes, one by one in this process."""
    scorer = Scorer.load(model)
    judge = scorer.judge()
    return [(hashlib.sha256(file.read_bytes()).hexdigest(), _say(scorer, judge, file))
            for file in files]


def differing(found: Sequence[Row], want: Sequence[Row]) -> dict[str, list[str]]:
    """The photographs that something else is said of, and the columns where.

    One that is missing on either side, or stands there twice, differs in `rows`.
    """
    times, times_wanted = (Counter(key for key, _ in rows) for rows in (found, want))
    wrong = {key: ["rows"] for key in times | times_wanted
             if (times[key], times_wanted[key]) != (1, 1)}
    wanted = dict(want)
    for key, said in found:
        columns = [] if key in wrong else [name for name in said | wanted[key]
                                           if said.get(name) != wanted[key].get(name)]
        if columns:
            wrong[key] = columns
    return wrong


def digest(found: Sequence[Row], *columns: str) -> str:
    """Of some columns of all rows (of all columns), in whatever order the rows are."""
    kept = sorted((key, sorted((name, said[name]) for name in columns or said))
                  for key, said in found)
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def _say(scorer: Scorer, judge: Judge, file: Path) -> Said:
    with Image.open(file) as image:
        image_HWC = np.array(image.convert("RGB"))
    height, width, _ = image_HWC.shape
    batch = scorer.score([image_HWC])
    verdict = judge.assess(float(batch.scores[0]), batch.heatmaps[0], (width, height))
    return {"name": _name(str(file)), **_exactly({
        "status": "scored", "width": width, "height": height, "preset": scorer.bundle.preset,
        "score": float(batch.scores[0]),
        **{name: float(batch.terms[name][0]) if name in batch.terms else None for name in TERMS},
        "p_value": verdict.p_value, "decision": verdict.decision, "alpha": verdict.alpha,
        "threshold": verdict.threshold,
        "regions": [{name: getattr(region, name) for name in region.__slots__}
                    for region in verdict.regions],
        "model_version": scorer.bundle.version, "score_fingerprint": scorer.fingerprint,
    }), **_heatmap(*encode_heatmap(batch.heatmaps[0]))}


def _name(path: str) -> str:
    return "/".join(path.split("/")[-NAME_SEGMENTS:])


def _exactly(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}


def _heatmap(png: bytes, lo: float, hi: float) -> Said:
    return {"heatmap": hashlib.sha256(png).hexdigest(),
            **_exactly({"heatmap_min": lo, "heatmap_max": hi})}


def _only(heatmaps: Sequence[Said]) -> Said:
    return heatmaps[0] if len(heatmaps) == 1 else {"heatmap": f"there {len(heatmaps)} times"}
