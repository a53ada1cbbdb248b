"""Accuracy on the real data, as `igd-ray evaluate` reports it: presets, baselines, the ladder.

    python benchmarks/accuracy.py DATA [--only bottle,tiles,reduced] [--presets fast,small]

DATA is a folder with `mvtec_ad/` and `magnetic_tile/`. The tiles are split by clusters of
near-twins (`igd-ray data magnetic-tile`). `fast` is fitted once, `small` once per seed. Every
command runs as its own process; results go to benchmarks/results/accuracy-PART-PRESET.json with
commit and machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from spine import commit, machine

RESULTS = Path(__file__).parent / "results"
PARTS = {"bottle": ("mvtec_ad", "bottle"), "tiles": ("tiles", "tile"),
         "reduced": ("mvtec_ad", "hazelnut_reduced,transistor_reduced")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="bottle,tiles,reduced")
    parser.add_argument("--presets", default="fast,small")
    parser.add_argument("--seeds", type=int, default=2, help="of small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--name", default="", help="added to the names of the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work) / "data"
        tree.mkdir()
        (tree / "mvtec_ad").symlink_to((options.data / "mvtec_ad").resolve())
        if "tiles" in options.only.split(","):
            igd("data", "magnetic-tile", options.data / "magnetic_tile", tree / "tiles")
        for part in options.only.split(","):
            for preset in options.presets.split(","):
                measure(part, preset, tree, Path(work), options)


def measure(part: str, preset: str, tree: Path, work: Path, options: argparse.Namespace) -> None:
    folder, categories = PARTS[part]
    runs = []
    for seed in range(options.seeds if preset == "small" else 1):
        models, file = work / f"{part}-{preset}-{seed}", work / "result.json"
        began = time.monotonic()
        igd("train-all", tree / folder, "--models", models, "--categories", categories,
            "--preset", preset, "--seed", seed,
            *(word for item in options.set for word in ("--set", item)))
        trained = time.monotonic()
        igd("evaluate", tree / folder, "--models", models, "--categories", categories,
            "--json", file, *(["--ladder"] if preset == "fast" and not options.set else []))
        runs.append({"seed": seed, "train_seconds": round(trained - began, 1),
                     "evaluate_seconds": round(time.monotonic() - trained, 1),
                     "categories": json.loads(file.read_text())["categories"]})
        write(f"accuracy-{part}-{preset}{options.name}", runs, options.set)


def igd(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "igd.cli", *map(str, words)], check=True)


def write(name: str, runs: list[dict[str, Any]], settings: list[str]) -> None:
    document = {"commit": commit(), "machine": machine(), "settings": settings, "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"-> {RESULTS / name}.json")


if __name__ == "__main__":
    main()
