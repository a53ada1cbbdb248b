"""Categories in parallel on Ray: `fast` as plain tasks, the nets under Ray Train.

A trainer takes half a minute to start, a task on a warm worker less than a second; the closed
form of `fast` needs no trainer.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from igd import storage
from igd.config import config_from_dict, config_to_dict
from igd.errors import IgdError
from igd.pipelines.category import CategoryTask, Outcome, train_category
from igd.pipelines.cluster import EXTRA_CPUS, Resources, own_error

POLL_S = 0.5
TRAINER_STATE = "_training"
"""Folder beside the bundles that Ray Train keeps its state in."""

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
"""glibc gives freed memory back to the kernel at once and takes it again page by page; kept, a
training of the nets has less than a third of the page faults."""

Line = Callable[[str, str], None]


def train_all(tasks: Sequence[CategoryTask], resources: Resources, *,
              line: Line = lambda category, text: None,
              finished: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Trains every category, as many at a time as the cluster holds; one that fails fails alone.

    Args:
        resources: of the cluster that is connected.
        line: told a category and how far it is.
        finished: told of each outcome as it comes.
    """
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    waiting = list(tasks)
    running: dict[Any, CategoryTask] = {}
    outcomes: list[Outcome] = []
    while waiting or running:
        while waiting and len(running) < _at_once(waiting[0], resources):
            task = waiting.pop(0)
            running[_start(task, resources, board)] = task
        done, _ = ray.wait(list(running), timeout=POLL_S)
        for category, text in ray.get(board.drain.remote()):
            line(category, text)
        for reference in done:
            outcomes.append(_outcome(reference, running.pop(reference)))
            finished(outcomes[-1])
    return outcomes


class Board:
    """Progress lines on their way from the workers to the driver."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def post(self, category: str, text: str) -> None:
        self._lines.append((category, text))

    def drain(self) -> list[tuple[str, str]]:
        lines, self._lines = self._lines, []
        return lines


def _at_once(task: CategoryTask, resources: Resources) -> int:
    if task.config.preset == "fast":
        return max(1, resources.cpus - 1)
    if resources.gpus:
        return resources.gpus
    return max(1, resources.cpus // (_worker_cpus(resources) + 1))


def _worker_cpus(resources: Resources) -> int:
    """CPUs of a trainer's worker where there is no GPU: a machine's cores, eight at most."""
    return max(1, min(8, resources.cpus - EXTRA_CPUS))


def _start(task: CategoryTask, resources: Resources, board: Any) -> Any:
    if task.config.preset == "fast":
        return _train_task.remote(task, board)
    return _trainer_task.remote(task, resources, board)


@ray.remote(num_cpus=1, max_retries=0)
def _train_task(task: CategoryTask, board: Any) -> Outcome:
    return train_category(task, lambda text: board.post.remote(task.category, text))


@ray.remote(num_cpus=0, max_retries=0)
def _trainer_task(task: CategoryTask, resources: Resources, board: Any) -> Outcome:
    """Drives one TorchTrainer; its worker does the training and writes the bundle."""
    path, filesystem = storage.train_location(storage.join(task.models, TRAINER_STATE))
    cpus = 1 if resources.gpus else _worker_cpus(resources)
    board.post.remote(task.category, "starting a trainer")
    train_loop: Any = _train_loop  # its annotation allows no return value; Ray passes it on
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"task": {**vars(task), "config": config_to_dict(task.config)},
                           "board": board, "threads": cpus},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=bool(resources.gpus),
                                     resources_per_worker={"CPU": cpus}),
        # A name that was used before would silently resume that run.
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees Train V1's
            name=f"{task.category}-{uuid.uuid4().hex[:8]}", storage_path=path,
            storage_filesystem=filesystem, worker_runtime_env={"env_vars": KEEP_MEMORY}))
    result: Any = trainer.fit()
    outcome: Outcome = result.return_value
    return outcome


def _train_loop(config: dict[str, Any]) -> Outcome:
    """What runs on the trainer's worker."""
    torch.set_num_threads(config["threads"])
    plain = config["task"]
    task = CategoryTask(**{**plain, "config": config_from_dict(plain["config"], where="task")})
    return train_category(task, lambda text: config["board"].post.remote(task.category, text))


def _outcome(reference: Any, task: CategoryTask) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except (RayError, IgdError) as error:
        ours = own_error(error)
        text = str(ours or error).strip().splitlines() or [type(error).__name__]
        return Outcome(category=task.category, preset=task.config.preset,
                       error=text[0] if ours else text[-1],
                       exit_code=ours.exit_code if ours else 1)
