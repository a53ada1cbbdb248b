"""What the batch pipeline costs beside its work, and what everything but the scoring costs.

    python benchmarks/batch.py DATA [--repeats 3] [--copies 2]

DATA holds `magnetic_tile/`. The photographs, several copies of each, are scored out of one tar by
a `fast` model of MT_Free with every heatmap kept: on Ray, and by as many bare processes as the pool
has scorers, which read, decode, score, encode and write the same shards with the same functions
and no Ray. Interleaved runs, once with the model and once with the null scorer; rates are steady
ones, from when every scorer (process) has finished a shard; start-up is reported apart. A profile
of one bare process with the null scorer says where the rest goes. Results go to
benchmarks/results/batch.json.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import pstats
import statistics
import tarfile
import tempfile
import time
from datetime import date
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from spine import commit, machine

from igd.config import preset_config
from igd.data.routing import Routing
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.cluster import connected
from igd.pipelines.parts import make_plan
from igd.pipelines.run import Request, Run, request
from igd.pipelines.score import score
from igd.pipelines.scoring import ShardScorer
from igd.pipelines.shards import read_shard, write_shard
from igd.score.scorer import pinned_threads

RESULT = Path(__file__).parent / "results" / "batch.json"
SHARD_MEMBERS = 64
PROFILED = {"read_shard": "shards.py:read_shard", "decode": "images.py:decode",
            "resize": "images.py:prepare", "score": "shards.py:score",
            "write_shard": "shards.py:write_shard"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, default=2)
    options = parser.parse_args()
    document: dict[str, Any] = {"commit": commit(), "machine": machine(), "runs": []}
    with tempfile.TemporaryDirectory() as work:
        lab = Lab(options.data.resolve() / "magnetic_tile", Path(work), options.copies)
        with connected("local") as resources:
            scorers = resources.pool(1 << 30).scorers
            document |= {"images": lab.images, "scorers": scorers}
            for repeat in range(options.repeats):
                for null in (False, True):
                    document["runs"] += [
                        {"repeat": repeat, "null": null, "on": "ray", **lab.on_ray(null)},
                        {"repeat": repeat, "null": null, "on": "bare",
                         **lab.bare(null, scorers)}]
                    print(document["runs"][-2:], flush=True)
        document["ratio"] = {name: ratios(document["runs"], null)
                             for name, null in (("scoring", False), ("null scorer", True))}
        document["profile"] = lab.profile()
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(document["ratio"], document["profile"])


def ratios(runs: list[dict[str, Any]], null: bool) -> dict[str, float]:
    """Steady images/s on Ray over those of bare processes, of neighbouring runs."""
    rates = {(run["repeat"], run["on"]): run["steady_images_per_s"]
             for run in runs if run["null"] == null}
    found = [rates[repeat, "ray"] / rates[repeat, "bare"] for repeat, on in rates if on == "ray"]
    return {"median": round(statistics.median(found), 3), "min": round(min(found), 3),
            "max": round(max(found), 3)}


class Lab:
    """A tar, a model, and a new output for each run."""

    def __init__(self, source: Path, work: Path, copies: int) -> None:
        self.work = work
        photographs = sorted(source.glob("MT_*/Imgs/*.jpg"))
        self.images = copies * len(photographs)
        self.tar = work / "tiles.tar"
        with tarfile.open(self.tar, "w") as tar:
            for copy in range(copies):
                for path in photographs:
                    tar.add(path, arcname=f"{copy}/{path.relative_to(source)}")
        with pinned_threads(2):
            train_category(CategoryTask(data=str(source), category="MT_Free",
                                        models=str(work / "models"),
                                        config=preset_config("fast")))
        self._runs = 0

    def request(self, null: bool) -> Request:
        self._runs += 1
        return request([str(self.tar)], models=str(self.work / "models"),
                       out=str(self.work / f"out{self._runs}"), date=date(2026, 1, 2),
                       routing=Routing(category="MT_Free"), heatmaps="all", null_scorer=null)

    def on_ray(self, null: bool) -> dict[str, Any]:
        summary = score(self.request(null), shard_members=SHARD_MEMBERS)
        kept = ("steady_images_per_s", "busy", "held_up_by", "step_seconds", "stage_seconds",
                "seconds")
        return {name: summary[name] for name in kept}

    def bare(self, null: bool, processes: int) -> dict[str, Any]:
        """Each process takes the next shard of the plan until none is left."""
        began = time.monotonic()
        run = Run(request=self.request(null), generation=1)
        plan = make_plan(run, shard_members=SHARD_MEMBERS)
        context = multiprocessing.get_context("spawn")
        todo: Queue[int | None] = context.Queue()
        done: Queue[tuple[int, float]] = context.Queue()
        for shard in range(plan["shards"]):
            todo.put(shard)
        for _ in range(processes):
            todo.put(None)
        workers = [context.Process(target=work_off, args=(run.at(), plan, todo, done))
                   for _ in range(processes)]
        for worker in workers:
            worker.start()
        finished = sorted((done.get() for _ in range(plan["shards"])), key=lambda item: item[1])
        for worker in workers:
            worker.join()
        warm, steady = finished[processes - 1][1], finished[processes:]
        rows = sum(count for count, _ in steady)
        return {"steady_images_per_s": round(rows / (steady[-1][1] - warm), 2),
                "seconds": round(time.monotonic() - began, 2)}

    def profile(self) -> dict[str, Any]:
        """Shares of one process's time, with the null scorer."""
        run = Run(request=self.request(True), generation=1)
        plan = make_plan(run, shard_members=SHARD_MEMBERS)
        shards = range(min(plan["shards"], 10))
        work_off_shards(run.at(), plan, shards)  # imports, and a warm page cache
        profiler = cProfile.Profile()
        began = time.monotonic()
        profiler.runcall(work_off_shards, run.at(), plan, shards)
        seconds = time.monotonic() - began
        stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
        cumulative: dict[str, float] = {}
        for (file, _, function), (_, _, _, spent, _) in stats.items():
            cumulative[f"{Path(file).name}:{function}"] = (
                cumulative.get(f"{Path(file).name}:{function}", 0.0) + spent)
        images = SHARD_MEMBERS * len(shards)
        return {"seconds": round(seconds, 2), "images_per_s": round(images / seconds, 1),
                **{name: round(cumulative.get(key, 0.0) / seconds, 3)
                   for name, key in PROFILED.items()}}


def work_off(run_at: str, plan: dict[str, Any], todo: Queue[int | None],
             done: Queue[tuple[int, float]]) -> None:
    """Shards from one queue; rows and time of each to the other."""
    scorer = ShardScorer(plan)
    while (shard := todo.get()) is not None:
        record = write_shard(run_at, plan, scorer.score(read_shard(run_at, plan, shard)))
        done.put((record["rows"], time.monotonic()))


def work_off_shards(run_at: str, plan: dict[str, Any], shards: range) -> None:
    scorer = ShardScorer(plan)
    for shard in shards:
        write_shard(run_at, plan, scorer.score(read_shard(run_at, plan, shard)))


if __name__ == "__main__":
    main()
