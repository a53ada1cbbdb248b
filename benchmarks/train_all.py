"""What the queue of `train-all` costs beside the trainings, and whether that grows with them.

    python benchmarks/train_all.py [--counts 3,20,200] [--repeats 3]

Tiny categories (12 images of 64 px, preset `fast`; 12 images of 256 px and a few steps of narrow
nets), so that what is measured is nearly all overhead. Interleaved runs of the same function in
one process, in the queue one at a time, in the queue as many as the CPUs, and, of the nets, under
TorchTrainers; one torch thread each. Ray is started once, before the clock. Results go to
benchmarks/results/train-all.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from spine import commit, machine

from igd.config import Config, preset_config
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.cluster import Resources, connected
from igd.pipelines.progress import Event
from igd.pipelines.train_all import Queue, train_all
from igd.score.scorer import pinned_threads

RESULT = Path(__file__).parent / "results" / "train-all.json"
FAST = preset_config("fast", ["image.size=64", "calibration.folds=3"])
NETS = preset_config("small", ["net.width=2", "train.epochs=2", "train.batch_size=4",
                               "train.patches_per_image=4", "distill.iterations=20",
                               "distill.max_inputs=64"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="3,20")
    parser.add_argument("--many", type=int, default=200, help="categories, preset fast, once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trainers", type=int, default=3, help="categories under TorchTrainers")
    options = parser.parse_args()
    document: dict[str, Any] = {"commit": commit(), "machine": machine(), "runs": []}

    def add(**found: Any) -> None:
        document["runs"].append(found)
        RESULT.write_text(json.dumps(document, indent=1) + "\n")
        print(found, flush=True)

    with tempfile.TemporaryDirectory() as work, connected("local") as resources:
        lab = Lab(Path(work), resources)
        lab.queue(FAST, lab.data(1, 64))  # workers start and import torch
        for repeat in range(options.repeats):
            for count in map(int, options.counts.split(",")):
                for name, config, size in (("fast", FAST, 64), ("nets", NETS, 256)):
                    data = lab.data(count, size)
                    add(preset=name, count=count, repeat=repeat,
                        in_process_s=lab.in_process(config, data),
                        one_at_a_time_s=lab.queue(config, data, at_once=1),
                        all_cpus_s=lab.queue(config, data))
            if options.trainers:
                data = lab.data(options.trainers, 256)
                add(preset="nets", count=options.trainers, repeat=repeat,
                    in_process_s=lab.in_process(NETS, data),
                    trainers_s=lab.queue(NETS, data, at_once=1, trainer="always"))
        if options.many:
            data = lab.data(options.many, 64)
            add(preset="fast", count=options.many, in_process_s=lab.in_process(FAST, data),
                **lab.watched(FAST, data))


class Lab:
    """Times trainings into registries that nothing else uses."""

    def __init__(self, work: Path, resources: Resources) -> None:
        self.work, self.resources, self.used = work, resources, 0

    def data(self, count: int, size: int) -> list[str]:
        """Names of so many categories, made by copying one."""
        root = self.work / str(size)
        if not (root / "c0").exists():
            generate(str(root), categories=["weave"], train=12, test=1, defective=1, size=size)
            (root / "weave").rename(root / "c0")
        for number in range(count):
            if not (root / f"c{number}").exists():
                shutil.copytree(root / "c0", root / f"c{number}")
        return [f"c{number}" for number in range(count)]

    def tasks(self, config: Config, names: list[str]) -> list[CategoryTask]:
        self.used += 1
        return [CategoryTask(data=str(self.work / str(config.image.size)), category=name,
                             models=str(self.work / f"models-{self.used}"), config=config)
                for name in names]

    def in_process(self, config: Config, names: list[str]) -> float:
        tasks = self.tasks(config, names)
        with pinned_threads(1):
            return timed(lambda: [train_category(task) for task in tasks])

    def queue(self, config: Config, names: list[str], **settings: Any) -> float:
        tasks = self.tasks(config, names)
        return timed(lambda: check(train_all(tasks, self.resources,
                                             queue=Queue(cpus_per_model=1, **settings))))

    def watched(self, config: Config, names: list[str]) -> dict[str, Any]:
        """The pace and the driver's memory by quarters of the categories."""
        tasks, process = self.tasks(config, names), psutil.Process()
        seen: list[tuple[float, float]] = []

        def finished(event: Event) -> None:
            if event.state == "done":
                seen.append((time.monotonic(), process.memory_info().rss / 2**20))

        began = time.monotonic()
        check(train_all(tasks, self.resources, queue=Queue(at_once=1), report=finished))
        ends = [began, *(seen[len(names) * part // 4 - 1][0] for part in range(1, 5))]
        return {"one_at_a_time_s": round(time.monotonic() - began, 2),
                "seconds_by_quarter": [round(b - a, 2) for a, b in itertools.pairwise(ends)],
                "driver_mb_by_quarter": [round(statistics.median(
                    mb for _, mb in seen[len(names) * part // 4:len(names) * (part + 1) // 4]), 1)
                    for part in range(4)]}


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return round(time.monotonic() - began, 2)


def check(outcomes: list[Any]) -> None:
    assert all(outcome.error is None for outcome in outcomes), outcomes


if __name__ == "__main__":
    main()
