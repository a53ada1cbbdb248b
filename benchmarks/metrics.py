"""What the pixel metrics cost at the size of MVTec AD: 100 heatmaps of 900x900.

    python benchmarks/metrics.py [--images 100] [--side 900] [--resamples 1000]

Smooth random heatmaps, raised a little inside random regions of every other image. Each metric
runs in a process of its own: wall and CPU seconds, the process's peak memory, and how much of that
came on top of heatmaps and masks. Results go to
benchmarks/results/metrics.json with commit and machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from igd.score.bootstrap import image_metrics, pixel_metrics
from igd.score.metrics import au_pro, mean_image_pixel_auroc, pixel_auroc

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--side", type=int, default=900)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    before = machine()
    processes = multiprocessing.get_context("spawn")
    results = {}
    for name in METRICS:
        with processes.Pool(1) as alone:
            results[name] = alone.apply(measure, (name, options))
        print(name, json.dumps(results[name]))
    document = {"commit": commit(), "machine": before, "options": vars(options),
                "metrics": results}
    target = HERE / "results" / "metrics.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(f"-> {target}")


METRICS: dict[str, Any] = {
    "pixel_auroc": lambda mask, heatmap, _: pixel_auroc(mask, heatmap),
    "mean_image_pixel_auroc": lambda mask, heatmap, _: mean_image_pixel_auroc(mask, heatmap),
    "au_pro": lambda mask, heatmap, _: au_pro(mask, heatmap),
    "pixel_metrics": lambda mask, heatmap, resamples: in_words(
        pixel_metrics(mask, heatmap, resamples=resamples)),
    "image_metrics": lambda mask, heatmap, resamples: in_words(
        image_metrics(mask.any(axis=(1, 2)), heatmap.max(axis=(1, 2)),
                      heatmap.max(axis=(1, 2)) > 5, resamples=resamples)),
}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, memory and result of one metric."""
    mask, heatmap = images(options.images, options.side)
    before = peak_mb()
    began, cpu_began = time.monotonic(), time.process_time()
    value = METRICS[name](mask, heatmap, options.resamples)
    return {"seconds": round(time.monotonic() - began, 2),
            "cpu_seconds": round(time.process_time() - cpu_began, 2),
            "peak_memory_mb": peak_mb(), "of_that_added_mb": peak_mb() - before,
            "pixels": mask.size, "anomalous_pixels": int(mask.sum()), "value": value}


def images(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks and heatmaps, made one by one so that the making sets no peak of its own."""
    rng = np.random.default_rng(0)
    mask = np.zeros((count, side, side), bool)
    heatmap = np.empty((count, side, side), np.float32)
    for index in range(count):
        coarse = rng.normal(size=(2, side // 8, side // 8))
        smooth = ndimage.gaussian_filter(coarse, (0, 4, 4))
        scale = side / smooth.shape[1]
        heat, part = (ndimage.zoom(field / field.std(), scale, order=1).astype(np.float32)
                      for field in smooth)
        if index % 2:
            mask[index] = part > 1.8
        heatmap[index] = heat + 2 * mask[index]
    return mask, heatmap


def in_words(metrics: dict[str, Any]) -> dict[str, list[float]]:
    return {name: [round(number, 5) for number in (found.value, found.low, found.high)]
            for name, found in metrics.items()}


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def machine() -> dict[str, Any]:
    model = next((line.split(":", 1)[1].strip() for line in
                  Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(),
            "numpy": np.__version__, "load_before": os.getloadavg()[0]}


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *words], check=True, capture_output=True,
                              text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


if __name__ == "__main__":
    main()
