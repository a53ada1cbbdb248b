"""The nets at the paper's width and schedule, trained, evaluated and timed: a GPU's work.

    python benchmarks/gpu.py [--data DATA --category bottle] [--fashion-mnist DIR]
        [--classes 0,1,2] [--minutes 30] [--width 64] [--epochs N] [--iterations N]
        [--set train.patches_per_image=32] [--out benchmarks/results/gpu.json]

One process, no Ray and no S3 client, on the GPU where there is one. Of DATA/CATEGORY the nets are
trained as `igd-ray train --preset paper` does, a fifth of the normals held out, and evaluated on
its test images. Then one class of Fashion-MNIST after the other is trained in the one-class
protocol: all its training images, the local nets alone, 128 epochs. No class is begun that would
end later than `--minutes` after the start if it took as long as the slowest before it.

The results are written with every report of the training: a killed run leaves what was done. A
part that fails leaves its error, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igd import registry
from igd.config import Config, config_to_dict, preset_config
from igd.data.datasets import load_normals, load_tests, normal_images, test_images
from igd.data.oneclass import LabelledImages, load
from igd.data.twins import draw_groups
from igd.model.igd import CHUNK, IGD
from igd.score.bootstrap import Estimate, image_metrics, pixel_metrics
from igd.train.calibrate import split_normals
from igd.train.loop import Progress, train_nets

HERE = Path(__file__).parent
ONE_CLASS = ("net.branches=local", "image.size=32", "train.epochs=128")
"""The one-class protocol of the paper, over preset `paper`."""
BATCH = 20 * CHUNK
"""Images per call where the pace is not measured."""
MEASURED_S = 1.0
"""Time over which a pace of scoring is measured."""

Figures = dict[str, Any]


def main() -> int:
    options = parser().parse_args()
    if options.fp32:
        torch.backends.cudnn.allow_tf32 = False
    document = Document(options.out, {
        "commit": options.commit or commit(), "machine": machine(),
        "options": vars(options)})
    if options.data:
        figures = document.part("category")
        attempt(document, figures, lambda: category(options, figures, document.save))
    if options.fashion_mnist:
        attempt(document, document.part("fashion_mnist"),
                lambda: fashion_mnist(options, document.part("fashion_mnist"), document))
    print(f"-> {options.out}")
    return 1 if document.failed else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", help="folder of category folders (MVTec AD)")
    made.add_argument("--category", default="bottle")
    made.add_argument("--fashion-mnist", help="folder with its four files")
    made.add_argument("--classes", type=numbers, default=list(range(10)))
    made.add_argument("--minutes", type=float, default=30.0)
    made.add_argument("--width", type=int, help="net.width")
    made.add_argument("--epochs", type=int, help="train.epochs")
    made.add_argument("--iterations", type=int, help="distill.iterations")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batches", type=numbers, default=[1, 8, 64, 512],
                      help="batch sizes at which scoring is timed")
    made.add_argument("--fp32", action="store_true",
                      help="no TF32 in convolutions, which torch allows by default")
    made.add_argument("--commit", help="where the checkout is not under git")
    made.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    return made


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def config_of(options: argparse.Namespace, *protocol: str) -> Config:
    """Preset `paper`, changed by a protocol and then by the options."""
    flags = {"net.width": options.width, "train.epochs": options.epochs,
             "distill.iterations": options.iterations}
    changed = [f"{key}={value}" for key, value in flags.items() if value is not None]
    return preset_config("paper", [*protocol, *changed, *options.set], seed=options.seed)


class Document:
    """All figures, in one file that is whole at any time."""

    def __init__(self, path: Path, content: Figures) -> None:
        self.path = path
        self.content = content
        self.began = time.monotonic()
        self.failed = False

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    def part(self, name: str) -> Figures:
        """The figures of a part, to be filled in."""
        part: Figures = self.content.setdefault(name, {})
        return part

    def save(self) -> None:
        self.content["seconds"] = round(self.seconds, 2)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_name(self.path.name + ".part")
        written.write_text(json.dumps(self.content, indent=2, default=str) + "\n")
        written.replace(self.path)


def attempt(document: Document, figures: Figures, work: Callable[[], None]) -> None:
    """Does a part of the work; its error becomes one of its figures."""
    began = time.monotonic()
    try:
        work()
    except Exception as error:  # also torch's, of a GPU that is too small
        traceback.print_exc()
        figures["error"] = f"{type(error).__name__}: {error}"
        document.failed = True
    figures["seconds"] = round(time.monotonic() - began, 2)
    if torch.cuda.is_available():
        figures["peak_gpu_mb"] = torch.cuda.max_memory_allocated() >> 20
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    document.save()


def category(options: argparse.Namespace, figures: Figures, save: Callable[[], None]) -> None:
    """Trains and evaluates one category of an MVTec AD tree."""
    config = config_of(options)
    figures |= {"name": options.category, "config": config_to_dict(config)}
    normals = load_normals(normal_images(options.data, options.category), config)
    group_N = torch.from_numpy(draw_groups(normals.images_NHWC, normals.sha256, config))
    train_N, _ = split_normals(group_N, config)
    model = train(as_batch(normals.images_NHWC)[train_N], config, figures, save)
    tests = load_tests(test_images(options.data, options.category), config.image)
    score_N, heatmap_NHW = score(model, tests.images_NHWC)
    masked_N = tests.masked_N
    figures["evaluation"] = {
        "images": len(tests), "anomalous": int(tests.is_anomalous_N.sum()),
        "skipped": len(tests.skipped), "with_mask": int(masked_N.sum()),
        **plain(image_metrics(tests.is_anomalous_N, score_N)),
        **plain(pixel_metrics(tests.mask_NHW[masked_N], heatmap_NHW[masked_N]))}
    save()
    figures["scored_images_per_s"] = scoring_pace(model, tests.images_NHWC, options.batches)


def fashion_mnist(options: argparse.Namespace, figures: Figures, document: Document) -> None:
    """Trains and evaluates as many classes as the time allows."""
    config = config_of(options, *ONE_CLASS)
    classes: dict[str, Figures] = {}
    figures |= {"config": config_to_dict(config), "classes": classes, "out_of_time": []}
    data = load("fashion-mnist", options.fashion_mnist)
    for label in options.classes:
        slowest = max((known["seconds"] for known in classes.values()), default=0.0)
        if document.seconds + slowest > 60 * options.minutes:
            figures["out_of_time"].append(label)
            continue
        found = classes[str(label)] = {"name": data.class_names[label]}
        attempt(document, found, functools.partial(
            one_class, label, data, config, options.batches, found, document.save))
    aurocs = [found["evaluation"]["image_auroc"]["value"] for found in classes.values()
              if "error" not in found]
    figures["mean_image_auroc"] = float(np.mean(aurocs)) if aurocs else None


def one_class(label: int, data: LabelledImages, config: Config, batches: Sequence[int],
              figures: Figures, save: Callable[[], None]) -> None:
    """One class is normal, the nine others are anomalous."""
    model = train(as_batch(data.train_NHWC[data.train_label_N == label]), config, figures, save)
    is_anomalous_N = data.test_label_N != label
    score_N, _ = score(model, data.test_NHWC)
    figures["evaluation"] = {
        "images": len(score_N), "anomalous": int(is_anomalous_N.sum()),
        **plain(image_metrics(is_anomalous_N, score_N))}
    save()
    figures["scored_images_per_s"] = scoring_pace(model, data.test_NHWC, batches)


def train(image_NCHW: Tensor, config: Config, figures: Figures,
          save: Callable[[], None]) -> IGD:
    """Trains on the device at hand; `figures` gets terms and pace of every phase."""
    teacher = registry.training_teacher(config.net, device())
    phases = Phases({"distil": config.distill.batch_size, "em": len(image_NCHW)}, save)
    figures |= {"training_images": len(image_NCHW), "phases": phases.figures}
    model = train_nets(image_NCHW.to(device()), config, teacher=teacher, report=phases)
    em_s = sum(found["seconds"] for name, found in phases.figures.items() if name.endswith("em"))
    figures["trained_images_per_s"] = len(image_NCHW) * config.train.epochs / em_s
    return model


class Phases:
    """Terms and pace of a training, by `BRANCH distil` and `BRANCH em`.

    Attributes:
        figures: of each phase `done` of so many steps, its `seconds`, `first` and `last` terms,
            and `inputs_per_s`: images or patches (distil), images (em), from the first report on.
    """

    def __init__(self, inputs_per_step: Mapping[str, int], save: Callable[[], None]) -> None:
        self.figures: dict[str, Figures] = {}
        self._inputs_per_step = inputs_per_step
        self._save = save
        self._began = self._last = time.monotonic()
        self._from = (0.0, 0)

    def __call__(self, progress: Progress) -> None:
        name, now = f"{progress.branch} {progress.phase}", time.monotonic()
        if name not in self.figures:
            self.figures[name] = {"first": progress.metrics}
            self._began = self._last
            self._from = (now, progress.done)
        self._last = now
        found = self.figures[name]
        found |= {"done": progress.done, "of": progress.steps, "last": progress.metrics,
                  "seconds": round(now - self._began, 2)}
        if progress.done == 1:  # an epoch 0 was told with epoch 1
            self._from = (now, 1)
        since, done = self._from
        if progress.done > done:
            inputs = (progress.done - done) * self._inputs_per_step[progress.phase]
            found["inputs_per_s"] = inputs / (now - since)
        self._save()


def score(model: IGD, image_NHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float64],
                                                              NDArray[np.float32]]:
    """Scores and heatmaps from the model's own device."""
    parts = [model(batch.to(device())) for batch in torch.split(as_batch(image_NHWC), BATCH)]
    return (torch.cat([part.score_N.cpu() for part in parts]).numpy(),
            torch.cat([part.heatmap_NHW.cpu() for part in parts]).numpy())


def scoring_pace(model: IGD, image_NHWC: NDArray[np.uint8],
                 batches: Sequence[int]) -> dict[str, float]:
    """Images/s by batch size, from pixels to scores and heatmaps, both in main memory.

    Whole images go through the nets one at a time, whatever the batch; see `IGD.forward`.
    """
    pace = {}
    for size in batches:
        batch = image_NHWC[np.arange(size) % len(image_NHWC)]
        score(model, batch)  # warms up
        began, done = time.monotonic(), 0
        while done == 0 or time.monotonic() - began < MEASURED_S:
            score(model, batch)
            done += size
        pace[str(size)] = done / (time.monotonic() - began)
    return pace


def as_batch(image_NHWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image_NHWC).permute(0, 3, 1, 2).contiguous()


def plain(metrics: Mapping[str, Estimate | None]) -> Figures:
    return {name: found and asdict(found) for name, found in metrics.items()}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> Figures:
    model = next((line.split(":", 1)[1].strip() for line in
                  Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    found = {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(),
             "torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
                  "gpu_memory_mb": torch.cuda.get_device_properties(0).total_memory >> 20,
                  "convolutions_tf32": torch.backends.cudnn.allow_tf32,
                  "matmul_tf32": torch.backends.cuda.matmul.allow_tf32}
    return found


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *words], check=True, capture_output=True,
                              text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
