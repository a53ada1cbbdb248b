"""What an image costs as dumps grow: scoring 1e2 to 1e5 members, planning 1e4 to 1e7.

    python benchmarks/growth.py [--scored 100,1000,10000,100000] [--planned 10000,...,10000000]

Scoring: a tar of small images on a local disk, `igd-ray score --null-scorer`; seconds are those
after the start of Ray. Planning: a folder of so many images that is listed and not there (the
listing is made up, all else is real), planned to the end by one process. Memory is the peak of the
driver's own resident set. Results go to benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from spine import commit, machine

from igd import storage
from igd.config import preset_config
from igd.data.routing import Routing
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.parts import plan_parts
from igd.pipelines.run import Request, Run, request
from igd.storage import Entry

RESULT = Path(__file__).parent / "results" / "growth.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scored", default="100,1000,10000,100000")
    parser.add_argument("--planned", default="10000,100000,1000000,10000000")
    options = parser.parse_args()
    document: dict[str, Any] = {"commit": commit(), "machine": machine(),
                                "scored": [], "planned": []}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        generate(f"{work}/data", categories=["weave"], train=24, test=1, defective=1, size=64)
        train_category(CategoryTask(
            data=f"{work}/data", category="weave", models=f"{work}/models",
            config=preset_config("fast", ["image.size=64", "calibration.folds=3"])))
        for kind, work_of in (("scored", scored), ("planned", planned)):
            for count in map(int, filter(None, getattr(options, kind).split(","))):
                document[kind].append(in_process_of_its_own(work_of, Path(work), count))
                print(kind, document[kind][-1], flush=True)
                RESULT.write_text(json.dumps(document, indent=1) + "\n")


def in_process_of_its_own(work_of: Any, work: Path, count: int) -> dict[str, Any]:
    """The peak of a process is that of its whole life."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return dict(pool.apply(work_of, (work, count)))


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def ask(work: Path, source: str, name: str, **changes: Any) -> Request:
    return request([source], models=f"{work}/models", out=f"{work}/out-{name}",
                   date=date(2026, 1, 2), routing=Routing(category="weave"), **changes)


def scored(work: Path, count: int) -> dict[str, Any]:
    from igd.pipelines.score import score

    tar = work / f"{count}.tar"
    write_tar(tar, count)
    before = peak_mb()
    summary = score(ask(work, str(tar), f"scored-{count}", null_scorer=True))
    tar.unlink()
    seconds = sum(spent for stage, spent in summary["stage_seconds"].items() if stage != "start")
    return {"members": count, "seconds": round(seconds, 2), "ms_per_image": round(
        1e3 * seconds / count, 3), "stage_seconds": summary["stage_seconds"],
        "driver_peak_mb": peak_mb(), "before_mb": before}


def write_tar(at: Path, count: int) -> None:
    """Images of one size; a few kinds, over and over."""
    dice = np.random.default_rng(0)
    kinds = []
    for _ in range(32):
        stream = io.BytesIO()
        Image.fromarray(dice.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, "png")
        kinds.append(stream.getvalue())
    with tarfile.open(at, "w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:08d}.png")
            info.size = len(kinds[number % len(kinds)])
            tar.addfile(info, io.BytesIO(kinds[number % len(kinds)]))


def planned(work: Path, count: int) -> dict[str, Any]:
    place = f"{work}/made-up"
    Path(place).mkdir(exist_ok=True)
    uri = storage.canonical(place)
    listed = storage.list_objects

    def made_up(at: str) -> Iterator[Entry]:
        if at != uri:
            yield from listed(at)
            return
        for number in range(count):
            yield Entry(f"{uri}/line/{number:09d}.png", f"line/{number:09d}.png", 100_000,
                        f"100000-{number}")

    storage.list_objects = made_up
    before, began = peak_mb(), time.monotonic()
    parts = members = shards = 0
    for part in plan_parts(Run(request=ask(work, place, f"planned-{count}"), generation=1)):
        parts, shards = parts + 1, shards + part["shards"]
        members += sum(part["counts"].values())
    seconds = time.monotonic() - began
    assert members == count, (members, count)
    return {"members": count, "parts": parts, "shards": shards, "seconds": round(seconds, 2),
            "us_per_member": round(1e6 * seconds / count, 1), "peak_mb": peak_mb(),
            "before_mb": before}


if __name__ == "__main__":
    sys.exit(main())
