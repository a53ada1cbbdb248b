"""Kills nodes, workers and drivers under `train-all`, and checks that nothing is lost or doubled.

    python proofs/train_chaos.py [--rounds 3] [--kinds worker,node,driver] [--trainer auto]

A fake cluster of three nodes on this machine trains three categories of narrow nets, two at a
time. In each round something is killed at a random moment after the first checkpoints, and the
same command is given until it exits with 0. Then every category must have exactly one version,
in production, with the weights, calibration and loss curve of an undisturbed training in one
process (same thread count), bit for bit. Exits with 1 where that does not hold; results are
written to proofs/results/train_chaos.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from ray.cluster_utils import Cluster

from igd import registry
from igd.cli.output import commit
from igd.config import preset_config
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category

RESULT = Path(__file__).parent / "results" / "train_chaos.json"
CATEGORIES = ("board", "washer", "weave")
SETTINGS = ("net.width=2", "train.epochs=5", "train.batch_size=4", "train.patches_per_image=8",
            "distill.iterations=60", "distill.batch_size=16", "distill.max_inputs=128")
MOST_RUNS = 6
RUN_TIMEOUT_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each kind")
    parser.add_argument("--kinds", default="worker,node,driver")
    parser.add_argument("--trainer", default="auto", help="auto: plain tasks; always: TorchTrainer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    tree = commit()
    torch.set_num_threads(1)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="igd") as work:
        generate(f"{work}/data", categories=list(CATEGORIES), train=14, test=1, defective=1)
        began = time.monotonic()
        for category in CATEGORIES:
            train_category(CategoryTask(data=f"{work}/data", category=category,
                                        models=f"{work}/undisturbed",
                                        config=preset_config("small", SETTINGS)))
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        dice = random.Random(options.seed)
        for number in range(options.rounds):
            for kind in options.kinds.split(","):
                models = f"{work}/{kind}-{number}"
                found = one_round(kind, f"{work}/data", models, options.trainer, dice)
                found["problems"] += problems(f"{work}/undisturbed", models)
                rounds.append({"round": number, "kind": kind, **found})
                print(rounds[-1], flush=True)
    document = {"commit": tree, "trainer": options.trainer, "rounds": rounds,
                "problems": sum(len(found["problems"]) for found in rounds)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(1 if document["problems"] else 0)


def one_round(kind: str, data: str, models: str, trainer: str,
              dice: random.Random) -> dict[str, Any]:
    """Trains with one kill in the first run; runs again until all is done."""
    cluster = Cluster(initialize_head=True, head_node_args={
        "num_cpus": 1, "include_dashboard": False, "object_store_memory": 1 << 28})
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=1 << 28) for _ in range(2)]
    codes: list[int] = []
    wait_s, killed = dice.uniform(0, 6), ""
    try:
        for run in range(MOST_RUNS):
            process = start(data, models, cluster.address, trainer)
            if run == 0 and wait_for_checkpoint(process, models):
                time.sleep(wait_s)
                if kind == "driver":
                    process.kill()
                    killed = "the driver"
                elif kind == "worker":
                    killed = kill_a_worker(dice)
                else:
                    node = dice.choice(nodes)
                    cluster.remove_node(node, allow_graceful=False)
                    cluster.add_node(num_cpus=2, object_store_memory=1 << 28)
                    killed = "a node of two CPUs"
            try:
                codes.append(process.wait(timeout=RUN_TIMEOUT_S))
            finally:
                process.kill()
            if codes[-1] == 0:
                break
    finally:
        cluster.shutdown()
    # a dead worker or node is the queue's to deal with; a dead driver's work is taken up
    expected = [-signal.SIGKILL, 0] if kind == "driver" else [0]
    lacking = [] if codes == expected else [f"exit codes {codes}"]
    return {"killed": killed, "after_s": round(wait_s, 2), "exit_codes": codes,
            "problems": lacking + ([] if killed else ["nothing was killed"])}


def start(data: str, models: str, address: str, trainer: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "igd.cli", "train-all", data, "--models", models, "--preset",
         "small", "--at-once", "2", "--cpus-per-model", "1", "--checkpoint-every", "0",
         "--trainer", trainer, "--ray-address", address,
         *(word for item in SETTINGS for word in ("--set", item))],
        stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for_checkpoint(process: subprocess.Popen[bytes], models: str) -> bool:
    """Until some training has written one; False where the run ended before."""
    while process.poll() is None:
        if next(Path(models).glob("_training/*/*/checkpoint.safetensors"), None):
            return True
        time.sleep(0.05)
    return False


def kill_a_worker(dice: random.Random) -> str:
    """SIGKILL to a process that trains; below this one in the tree, so it is ours."""
    training = [process for process in psutil.Process().children(recursive=True)
                if any(name in " ".join(command_line(process)) for name in
                       ("ray::_train_task", "ray::RayTrainWorker", "ray::_trainer_task"))]
    if not training:
        return ""
    victim = dice.choice(training)
    name = " ".join(command_line(victim)).split("(")[0].strip()
    victim.send_signal(signal.SIGKILL)
    return name


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def problems(undisturbed: str, models: str) -> Iterator[str]:
    """What is not as in the undisturbed training."""
    for category in CATEGORIES:
        versions = registry.list_versions(models, category)
        if len(versions) != 1:
            yield f"{category} has versions {versions}"
            continue
        if [record.version for record in registry.history(models, category)] != versions:
            yield f"{category}: {versions[0]} is not in production, once"
        one, other = (registry.load_bundle(at, category, None if at == undisturbed
                                           else versions[0]) for at in (undisturbed, models))
        state = other.model.state_dict()
        different = [name for name, tensor in one.model.state_dict().items()
                     if not tensor.equal(state[name])]
        if different:
            yield f"{category}: other bits in {len(different)} tensors, such as {different[0]}"
        if not one.calibration.equals(other.calibration):
            yield f"{category}: another calibration"
        if one.training["curve"] != other.training["curve"]:
            yield f"{category}: another loss curve"
    if any(path.is_file() for path in Path(models).glob("_training/**/*")):
        yield "state of trainings is left behind"


if __name__ == "__main__":
    main()
