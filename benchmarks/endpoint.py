"""What the endpoint costs under load: throughput, latency, refusals, CPU, and what grows.

    python benchmarks/endpoint.py DATA [--repeats 3] [--seconds 20] [--soak 600]

DATA holds `mvtec_ad/`. A `fast` model of bottle answers for the 83 test images. Every repeat runs,
on the same cores: as many bare processes as there are scorers, which decode, score and encode with
the same functions and no HTTP, before and after; and between them an endpoint of
`igd-ray serve`, under the loads of benchmarks/load.py:

- `unloaded`: one request at a time;
- `closed`: so many at a time; the best of them is the knee;
- `sweep`: open loops at fractions of the knee;
- `half`: an open loop at half the knee, for longer;
- `overload`: an open loop at ten times the knee.

The generator has the same cores, and its share is reported with those of the proxy, the ingress
and the scorers. `ratio_to_bare` is the knee over the rate of the bare processes; `cpu_of_bare` is
the CPU that an image takes there over all that it takes at the knee, which other work on the
machine hardly touches. At the end an endpoint stands under half the knee for `--soak` seconds.
Results go to benchmarks/results/endpoint.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from load import Answers, Load, sent
from processes import Processes, Soak
from spine import commit, machine, spread_of

from igd import registry
from igd.config import preset_config
from igd.data.decoders import decode_here
from igd.pipelines.category import CategoryTask, train_category
from igd.serve.config import EndpointConfig
from igd.serve.endpoint import Scored
from igd.serve.models import Ask, Models
from igd.serve.v1 import _reply

RESULT = Path(__file__).parent / "results" / "endpoint.json"
CATEGORY = "bottle"
FRACTIONS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1)
OVERLOAD = 10
START_S = 120
SAMPLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak", type=float, default=600)
    parser.add_argument("--scorers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        lab = Lab(options.data.resolve() / "mvtec_ad", Path(work), options.scorers)
        document: dict[str, Any] = {"commit": commit(), "machine": machine(),
                                    "images": len(lab.files), "scorers": lab.scorers, "runs": []}
        for seed in range(options.repeats):
            document["runs"].append(lab.run(options.seconds, seed))
            print(json.dumps(document["runs"][-1]), flush=True)
        document["spread"] = spread(document["runs"])
        if options.soak:
            knee = statistics.median(run["knee_per_s"] for run in document["runs"])
            document["soak"] = lab.soak(knee / 2, options.soak)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["spread"], indent=1), f"-> {options.out}", sep="\n")


class Lab:
    """Images, a model, and endpoints over it."""

    def __init__(self, source: Path, work: Path, scorers: int) -> None:
        self.scorers, self.models = scorers, str(work / "models")
        self.files = tuple(sorted(map(str, (source / CATEGORY / "test").glob("*/*.png"))))
        train_category(CategoryTask(data=str(source), category=CATEGORY, models=self.models,
                                    config=preset_config("fast")))

    def run(self, seconds: float, seed: int) -> dict[str, Any]:
        """Every measurement once."""
        bare = [self.bare(seconds)]
        with self.endpoint() as (load, processes):
            found = Measured(replace(load, seconds=seconds, seed=seed), processes).all(self.scorers)
        bare.append(self.bare(seconds))
        rate = statistics.mean(each["images_per_s"] for each in bare)
        cpu_ms = statistics.mean(each["cpu_ms"] for each in bare)
        return {"bare": bare, "ratio_to_bare": round(found["knee_per_s"] / rate, 3),
                "cpu_of_bare": round(cpu_ms / found["knee_cpu_ms"], 3), **found}

    def soak(self, rate: float, seconds: float) -> dict[str, Any]:
        """A steady load, and what every process holds meanwhile."""
        with self.endpoint() as (load, processes):
            soak, answers = Soak(processes), list[Answers]()
            steady = replace(load, rate=rate, seconds=seconds)
            thread = threading.Thread(target=lambda: answers.append(sent(steady)))
            thread.start()
            while thread.is_alive():
                soak.sample()
                thread.join(SAMPLE_S)
        return {"rate_per_s": round(rate, 2), **answers[0].figures(), **soak.figures()}

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[tuple[Load, Processes]]:
        """Starts an endpoint as a user does, and stops it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "igd.cli", "serve", "--models", self.models, "--port",
             str(port), "--scorers", str(self.scorers)], stdout=subprocess.DEVNULL)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
            yield (Load(host="127.0.0.1", port=port, path=f"/v1/categories/{CATEGORY}/score",
                        files=self.files, seconds=0), Processes(process.pid))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(START_S)

    def bare(self, seconds: float) -> dict[str, Any]:
        """Images per second of bare processes, and what an image takes: CPU, and each step."""
        context = multiprocessing.get_context("spawn")
        start, done = context.Barrier(self.scorers), context.Queue()
        workers = [context.Process(target=score_for, args=(
            seconds, self.models, self.files[i::self.scorers], start, done))
            for i in range(self.scorers)]
        for worker in workers:
            worker.start()
        found = [done.get(timeout=START_S + seconds) for _ in workers]
        for worker in workers:
            worker.join()
        images = sum(each["images"] for each in found)
        return {"images_per_s": round(sum(each["images"] / each["seconds"] for each in found), 2),
                "cpu_ms": round(1000 * sum(each["cpu"] for each in found) / images, 2),
                "ms": {step: round(1000 * sum(each[step] for each in found) / images, 2)
                       for step in ("decode", "score", "encode")}}


class Measured:
    """One endpoint under one load after another."""

    def __init__(self, load: Load, processes: Processes) -> None:
        self._load, self._processes = load, processes

    def all(self, scorers: int) -> dict[str, Any]:
        self._under(workers=2 * scorers, seconds=5)  # until models and connections are warm
        unloaded = self._under(workers=1)
        closed = {str(n): self._under(workers=n) for n in (scorers, 2 * scorers, 3 * scorers)}
        best = max(closed.values(), key=lambda found: found["goodput_per_s"])
        knee, kinds = best["goodput_per_s"], best["cpu"].values()
        return {"knee_per_s": knee,
                "knee_cpu_ms": round(sum(kind["ms_per_image"] for kind in kinds), 2),
                "unloaded": unloaded, "closed": closed,
                "sweep": {str(part): self._under(rate=part * knee) for part in FRACTIONS},
                "half": self._under(rate=knee / 2, seconds=3 * self._load.seconds),
                "overload": against(self._under(rate=OVERLOAD * knee), unloaded, knee)}

    def _under(self, **settings: Any) -> dict[str, Any]:
        """What came of a load, and who had the CPUs meanwhile."""
        before = self._processes.cpu_s()
        answers = sent(replace(self._load, **settings))
        figures = answers.figures()
        cpu = self._processes.cpu_s().since(before, images := len(answers.latencies()))
        cpu["generator"] = {"cores": round(answers.cpu_s / answers.seconds, 3),
                            "ms_per_image": round(1000 * answers.cpu_s / max(images, 1), 2)}
        return {"rate_per_s": round(settings.get("rate", 0), 2), **figures, "cpu": cpu}


def against(overload: dict[str, Any], unloaded: dict[str, Any], knee: float) -> dict[str, Any]:
    """What too much load does to those who are answered."""
    accepted, alone = overload["accepted_ms"], unloaded["accepted_ms"]
    return {**overload, "goodput_to_knee": round(overload["goodput_per_s"] / knee, 3),
            "accepted_p99_to_unloaded": round(accepted["p99"] / alone["p99"], 2) if accepted
            else None}


def score_for(seconds: float, models_uri: str, files: Sequence[str], start: Barrier,
              done: Queue[dict[str, float]]) -> None:
    """What an endpoint does for an image, without one."""
    config = EndpointConfig(models=models_uri)
    models = Models(models_uri, fpr=config.fpr, review_fpr=config.review_fpr,
                    max_bytes=config.model_bytes)
    card = models.open(CATEGORY, registry.production_version(models_uri, CATEGORY))
    bodies = [Path(file).read_bytes() for file in files]
    spent = {"decode": 0.0, "score": 0.0, "encode": 0.0}

    def one(data: bytes) -> None:
        began = time.perf_counter()
        decoded = decode_here(data, card.image)
        decode_ended = time.perf_counter()
        answer, = models.score([Ask(category=CATEGORY, version=card.version, width=decoded.width,
                                    height=decoded.height, pixels=decoded.pixels)])
        score_ended = time.perf_counter()
        reply = _reply(Scored(card=card, decoded=decoded, answer=answer, sha256="", decode_s=0,
                              total_s=0), None)
        json.dumps(reply.model_dump()).encode()
        for step, took in (("decode", decode_ended - began), ("score", score_ended - decode_ended),
                           ("encode", time.perf_counter() - score_ended)):
            spent[step] += took

    one(bodies[0])
    spent.update(dict.fromkeys(spent, 0.0))
    start.wait(START_S)
    began, cpu, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        one(bodies[images % len(bodies)])
        images += 1
    done.put({"images": images, "seconds": time.perf_counter() - began,
              "cpu": time.process_time() - cpu, **spent})


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit(f"no endpoint at {url}")


def spread(runs: Sequence[Any]) -> Any:
    """Lowest, median and highest over the repeats, for every figure that all of them have."""
    first = runs[0]
    if isinstance(first, dict):
        return {key: spread([run[key] for run in runs]) for key in first
                if all(isinstance(run, dict) and key in run for run in runs)}
    if isinstance(first, list):
        return spread([each for run in runs for each in run])
    return spread_of(runs) if all(isinstance(run, int | float) for run in runs) else None


if __name__ == "__main__":
    main()
