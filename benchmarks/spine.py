"""The figures of the README: the commands a user runs, on the real data, measured from outside.

    python benchmarks/spine.py DATA [--runs 3] [--only fast,small,tiles]

DATA is a folder with `mvtec_ad/` and `magnetic_tile/`. Every command runs as its own process in a
fresh directory. Wall seconds are min, median and max over the runs; peak memory is the sum of the
proportional set sizes of the command and all that it started, sampled ten times a second.
Results go to benchmarks/results/spine-PART.json with commit and machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DAY = "2026-01-02"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="fast,tiles,small")
    options = parser.parse_args()
    parts = {"fast": fast, "small": small, "tiles": tiles}
    for name in options.only.split(","):
        runs = 1 if name == "small" else options.runs
        results = [in_fresh_directory(parts[name], options.data.resolve()) for _ in range(runs)]
        write(name, results)


def fast(data: Path, at: Path) -> dict[str, Any]:
    """train-all and evaluate with preset fast on the three categories of mvtec_ad."""
    source, models = data / "mvtec_ad", at / "models"
    train = measure("train-all", source, "--models", models, "--preset", "fast")
    evaluate = measure("evaluate", source, "--models", models, "--json", at / "result.json")
    return {"train_all": train, "evaluate": evaluate, **evaluated(at / "result.json"),
            **trained(models)}


def small(data: Path, at: Path) -> dict[str, Any]:
    """The same with preset small on bottle."""
    source, models = data / "mvtec_ad", at / "models"
    train = measure("train", "bottle", source, "--models", models, "--preset", "small")
    evaluate = measure("evaluate", source, "--models", models, "--json", at / "result.json")
    return {"train": train, "evaluate": evaluate, **evaluated(at / "result.json"),
            **trained(models), "curve": curve(models)}


def curve(models: Path) -> dict[str, Any]:
    """Every term of each branch before the first update, and its mean over the last epoch."""
    bundle, = models.glob("*/*/bundle.json")
    steps = json.loads(bundle.read_text())["training"]["curve"]
    found: dict[str, Any] = {}
    for branch in ("global", "local"):
        for phase in ("distil", "em"):
            part = [step for step in steps if (step["branch"], step["phase"]) == (branch, phase)]
            if part:
                found[f"{branch} {phase}"] = {"first": part[0]["metrics"],
                                              "last": part[-1]["metrics"]}
    return found


def tiles(data: Path, at: Path) -> dict[str, Any]:
    """A model of MT_Free scores all magnetic tiles, and ten broken files, out of one tar."""
    source, models = data / "magnetic_tile", at / "models"
    archive = at / "tiles.tar"
    pack_tiles(source, archive)
    train = measure("train", "MT_Free", source, "--models", models, "--preset", "fast")
    score = measure("score", archive, "--models", models, "--out", at / "out", "--date", DAY,
                    "--category", "MT_Free", "--shard-members", 64, "--json", at / "score.json")
    summary = json.loads((at / "score.json").read_text())
    kept = ("planned", "scored", "rejected", "seconds", "stage_seconds", "images_per_s",
            "steady_images_per_s", "decisions")
    return {"train": train, "score": score, "summary": {key: summary[key] for key in kept}}


def pack_tiles(source: Path, archive: Path) -> None:
    """The 1,344 photographs in folders by kind, and ten files that cannot be scored."""
    photographs = sorted(source.glob("MT_*/Imgs/*.jpg"))
    whole = photographs[0].read_bytes()
    broken = {"empty.jpg": b"", "half.jpg": whole[:len(whole) // 2], "head.jpg": whole[:200],
              "magic.jpg": whole[:3], "page.png": b"<html>gone</html>", "notes.txt": b"hello",
              "zeros.jpg": bytes(5000), "paper.jpg": b"%PDF-1.4 ...",
              "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
              "noise.jpg": whole[:2] + bytes(range(256)) * 8}
    with tarfile.open(archive, "w") as tar:
        for path in photographs:
            tar.add(path, arcname=str(path.relative_to(source)))
        for name, content in broken.items():
            info = tarfile.TarInfo(f"broken/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def measure(*words: object) -> dict[str, Any]:
    """Runs a command; wall seconds, peak memory of it and its descendants, what it printed."""
    command = [sys.executable, "-m", "igd.cli", *map(str, words)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watch = threading.Thread(target=watch_memory, args=(process, peak), daemon=True)
    watch.start()
    stdout, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} exited {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 2), "peak_memory_mb": peak[0] // 1024,
            "stdout": stdout}


def watch_memory(process: subprocess.Popen[str], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(proportional_kb, family(process.pid))))
        time.sleep(0.1)


def family(root: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return sorted(found)


def proportional_kb(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def evaluated(file: Path) -> dict[str, Any]:
    kept = ("image_auroc", "pixel_auroc", "images_per_s", "fpr_asked", "fpr_realised",
            "fpr_interval_95")
    categories = json.loads(file.read_text())["categories"]
    return {"categories": {name: {key: numbers[key] for key in kept}
                           for name, numbers in categories.items()}}


def trained(models: Path) -> dict[str, Any]:
    """Seconds per category, from the bundles."""
    bundles = [json.loads(path.read_text()) for path in sorted(models.glob("*/*/bundle.json"))]
    return {"train_seconds": {b["category"]: b["training"]["seconds"] for b in bundles}}


def in_fresh_directory(part: Any, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as at:
        result: dict[str, Any] = part(data, Path(at))
    return result


def write(name: str, results: list[dict[str, Any]]) -> None:
    for result in results:
        for step in result.values():
            if isinstance(step, dict):
                step.pop("stdout", None)
    steps = [key for key, value in results[0].items()
             if isinstance(value, dict) and "peak_memory_mb" in value]
    spread = {step: {measure: spread_of([result[step][measure] for result in results])
                     for measure in ("seconds", "peak_memory_mb")} for step in steps}
    document = {"part": name, "commit": commit(), "machine": machine(), "runs": results,
                "spread": spread}
    target = HERE / "results" / f"spine-{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(spread, indent=2), f"-> {target}", sep="\n")


def spread_of(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def machine() -> dict[str, Any]:
    model = next((line.split(":", 1)[1].strip() for line in
                  Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(),
            "load_before": os.getloadavg()[0]}


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *words], check=True, capture_output=True,
                              text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--",
                  ":(top,exclude)benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


if __name__ == "__main__":
    main()
