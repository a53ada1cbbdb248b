"""Categories in parallel on Ray: a bounded queue of plain tasks and of Ray Train's trainers.

A trainer takes half a minute to start, a task on a warm worker less than a second. So the closed
form of `fast`, and nets that see few images, run as tasks; nets that see many, or that several
workers train, get a TorchTrainer (`needs_trainer` has the rule). Both take up the same checkpoints.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from igd import storage
from igd.config import config_from_dict, config_to_dict
from igd.data.datasets import normal_images
from igd.errors import ConfigError, DataError, IgdError, StorageError
from igd.pipelines.category import CategoryTask, Outcome, look, train_category, trainer_name
from igd.pipelines.checkpoints import training_folder
from igd.pipelines.cluster import EXTRA_CPUS, Resources, own_error
from igd.pipelines.ingest import stream_prepared
from igd.pipelines.progress import Event, Report, silent
from igd.train.memory import base_bytes, data_bytes
from igd.train.workers import Workers

POLL_S = 0.5
TRAINER_IMAGES = 20_000
"""Images, times epochs, from which nets get a trainer: its start is then a few percent."""
PAUSE_S = 1.0
"""Before a second attempt; doubled with every further one."""

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
"""glibc gives freed memory back to the kernel at once and takes it again page by page; kept, a
training of the nets has less than a third of the page faults."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """How categories share a cluster.

    Attributes:
        gpus_per_model: GPUs that each worker of a category's nets gets, 0.25 packs four on one;
            0 trains on CPUs. None: a whole GPU where the cluster has any.
        cpus_per_model: the same for CPUs, which also is the number of torch's threads. None: with
            a GPU one, else the CPUs divided evenly, eight at most.
        workers_per_model: that share the batches of one category.
        at_once: categories at the same time, at most; None: as many as the cluster holds.
        retries: further attempts at a category after a crash, from its last checkpoint.
        stall_s: a category that nothing is heard of for so long is stopped and tried again.
        trainer: which nets get a TorchTrainer; `auto` goes by `TRAINER_IMAGES`.
        memory_per_model: bytes that each worker may take, and asks Ray for where it takes as
            much. None: as much as all that run at once can have.
    """

    gpus_per_model: float | None = None
    cpus_per_model: int | None = None
    workers_per_model: int = 1
    at_once: int | None = None
    retries: int = 2
    stall_s: float = 3600.0
    trainer: Literal["auto", "always", "never"] = "auto"
    memory_per_model: int | None = None

    def __post_init__(self) -> None:
        gpus = self.gpus_per_model
        if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            raise ConfigError(f"--gpus-per-model {gpus}: expected a share up to 1, or a whole "
                              "number")
        for name in ("cpus_per_model", "workers_per_model", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        if self.retries < 0:
            raise ConfigError(f"--retries {self.retries}: expected at least 0")
        if self.trainer not in ("auto", "always", "never"):
            raise ConfigError(f"--trainer {self.trainer!r}: expected auto, always or never")
        if self.trainer == "never" and self.workers_per_model > 1:
            raise ConfigError("--trainer never: several workers per model need a trainer; expected "
                              "auto or always")


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one category takes of the cluster: `workers` times so many CPUs and GPUs.

    Attributes:
        memory: bytes that a worker may take; None: as much as there is for it.
    """

    workers: int
    cpus: int
    gpus: float
    memory: int | None = None


def train_all(tasks: Sequence[CategoryTask], resources: Resources, *, queue: Queue | None = None,
              report: Report = silent,
              finished: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Trains every category, the largest first; one that fails fails alone.

    Args:
        tasks: all of one preset.
        resources: of the cluster that is connected.
        report: told what each category does.
        finished: told of each outcome as it comes.

    Raises:
        ConfigError: the cluster has not what one model needs.
    """
    queue = queue or Queue()
    place = place_of(tasks, queue, resources)
    most = at_once(tasks, queue, place, resources)
    if place.memory is None:
        place = replace(place, memory=resources.memory_for(
            place.workers * min(most, max(1, len(tasks))), place.cpus, place.gpus))
    # beside the driver: a node that dies must not take it along
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Board)
    board = actor.options(num_cpus=0, scheduling_strategy=here).remote()
    waiting = [_Attempt(task, size) for task, size in largest_first(tasks)]
    running: dict[Any, _Attempt] = {}
    heard: dict[str, float] = {}
    outcomes: list[Outcome] = []
    for attempt in waiting:
        report(Event(attempt.task.category, "queued", text=f"{attempt.size} images"))
    while waiting or running:
        ready = [attempt for attempt in waiting if attempt.not_before <= time.monotonic()]
        for attempt in ready[:most - len(running)]:
            waiting.remove(attempt)
            running[_start(attempt, queue, place, board)] = attempt
            heard[attempt.task.category] = time.monotonic()
        if not running:  # all that is left waits for its next attempt
            time.sleep(POLL_S)
        done = ray.wait(list(running), timeout=POLL_S)[0] if running else []
        busy = {attempt.task.category for attempt in running.values()}
        for event in ray.get(board.drain.remote()):
            if event.category in busy:  # of others it comes after their outcome
                heard[event.category] = time.monotonic()
                report(event)
        for reference, attempt in running.items():
            if time.monotonic() - heard[attempt.task.category] > queue.stall_s:
                heard[attempt.task.category] = time.monotonic()
                ray.cancel(reference, force=True)
        for reference in done:
            attempt = running.pop(reference)
            outcome, again = _outcome(reference, attempt, queue)
            if again:
                report(Event(attempt.task.category, "retrying", text=f"{outcome.error}; attempt "
                             f"{attempt.number + 1} of {queue.retries + 1}"))
                waiting.append(attempt.next())
                continue
            outcomes.append(outcome)
            report(Event(outcome.category, "failed" if outcome.error else "done",
                         text=outcome.error or f"version {outcome.version}"))
            finished(outcome)
    return outcomes


def largest_first(tasks: Sequence[CategoryTask]) -> list[tuple[CategoryTask, int]]:
    """Categories with the number of their images; what cannot be listed fails when it runs."""
    sized = []
    for task in tasks:
        try:
            size = len(normal_images(task.data, task.category))
        except (DataError, StorageError):
            size = 0
        sized.append((task, size))
    return sorted(sized, key=lambda pair: -pair[1])


def place_of(tasks: Sequence[CategoryTask], queue: Queue, resources: Resources) -> Place:
    """What a category of these takes.

    Raises:
        ConfigError: more than the cluster has.
    """
    if not tasks or tasks[0].config.preset == "fast":
        return _allowed(queue, Place(workers=1, cpus=1, gpus=0), resources)
    gpus = queue.gpus_per_model
    if gpus is None:
        gpus = 1 if resources.gpus else 0
    usable = max(1, resources.cpus - EXTRA_CPUS)
    share = usable // (min(len(tasks), queue.at_once or usable, usable) * queue.workers_per_model)
    largest = max((cpus for cpus, _ in resources.nodes), default=usable)
    cpus = queue.cpus_per_model or (1 if gpus else max(1, min(8, share, largest)))
    place = Place(workers=queue.workers_per_model, cpus=cpus, gpus=gpus)
    if resources.places(cpus, gpus) < place.workers:
        has = ", ".join(f"{count} x ({node[0]} CPUs, {node[1]} GPUs)" for node, count in
                        Counter(resources.nodes or ((resources.cpus, resources.gpus),)).items())
        raise ConfigError(
            f"a model takes {place.workers} x ({cpus} CPUs, {gpus:g} GPUs), each on one node, and "
            f"the cluster has {has}; lower --workers-per-model, --gpus-per-model or "
            "--cpus-per-model")
    return _allowed(queue, place, resources)


def at_once(tasks: Sequence[CategoryTask], queue: Queue, place: Place,
            resources: Resources) -> int:
    """How many categories run at the same time; one CPU stays free for Ray's own."""
    fits = resources.places(place.cpus, place.gpus, place.memory or 0)
    if not place.gpus:
        fits = min(fits, max(1, resources.cpus - 1) // place.cpus)
    fits //= place.workers
    return max(1, min(fits, queue.at_once or fits))


def memory_asked(task: CategoryTask, size: int, place: Place) -> int | None:
    """Bytes that a worker of this category asks Ray for; what is more lies in scratch files."""
    if place.memory is None:
        return None
    base = base_bytes(size, task.config, gpu=place.gpus > 0)
    whole = base + data_bytes(size, task.config)
    return whole if whole <= place.memory else min(base, place.memory)


def _allowed(queue: Queue, place: Place, resources: Resources) -> Place:
    """With the memory that a worker is allowed by the queue.

    Not more than Ray can give to the workers of one category, who would wait for it for ever.
    """
    most = resources.memory_for(place.workers, place.cpus, place.gpus)
    allowed = [size for size in (queue.memory_per_model, most) if size is not None]
    return place if queue.memory_per_model is None else replace(place, memory=min(allowed))


def needs_trainer(task: CategoryTask, size: int, queue: Queue) -> bool:
    """Whether a category gets a TorchTrainer and not a plain task."""
    if task.config.preset == "fast" or queue.trainer == "never":
        return False
    return (queue.trainer == "always" or queue.workers_per_model > 1
            or size * task.config.train.epochs >= TRAINER_IMAGES)


@dataclass(frozen=True)
class _Attempt:
    task: CategoryTask
    size: int
    number: int = 1
    not_before: float = 0.0

    def next(self) -> _Attempt:
        return replace(self, number=self.number + 1,
                       not_before=time.monotonic() + PAUSE_S * 2 ** (self.number - 1))


class Board:
    """Events on their way from the workers to the driver."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def post(self, event: Event) -> None:
        self._events.append(event)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _start(attempt: _Attempt, queue: Queue, place: Place, board: Any) -> Any:
    task, asked = attempt.task, memory_asked(attempt.task, attempt.size, place)
    if place.memory is not None:
        task = replace(task, memory=place.memory)
    if needs_trainer(task, attempt.size, queue):
        return _trainer_task.remote(task, place, asked, queue.retries, board)
    run = _gpu_task if place.gpus else _train_task
    return run.options(num_cpus=place.cpus, num_gpus=place.gpus, memory=asked).remote(
        task, place, board)


@ray.remote(max_retries=0, runtime_env={"env_vars": KEEP_MEMORY})
def _train_task(task: CategoryTask, place: Place, board: Any) -> Outcome:
    torch.set_num_threads(place.cpus)
    return train_category(task, board.post.remote, device="cpu", read=stream_prepared)


# A process that has used a GPU keeps some of its memory, and would not change to another one.
@ray.remote(max_retries=0, max_calls=1)
def _gpu_task(task: CategoryTask, place: Place, board: Any) -> Outcome:
    torch.set_num_threads(place.cpus)
    return train_category(task, board.post.remote, device="cuda", read=stream_prepared)


@ray.remote(num_cpus=0, max_retries=0)
def _trainer_task(task: CategoryTask, place: Place, asked: int | None, retries: int,
                  board: Any) -> Outcome:
    """Drives one TorchTrainer; its worker does the training and writes the bundle."""
    found = look(task, board.post.remote)
    if found is not None:
        return found
    path, filesystem = storage.train_location(training_folder(task.models, task.category))
    board.post.remote(Event(task.category, "starting", text="a trainer"))
    train_loop: Any = _train_loop  # its annotation allows no return value; Ray passes it on
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"task": {**vars(task), "config": config_to_dict(task.config)},
                           "board": board, "threads": place.cpus},
        scaling_config=ScalingConfig(
            num_workers=place.workers, use_gpu=place.gpus > 0, resources_per_worker={
                "CPU": place.cpus, **({"GPU": place.gpus} if place.gpus else {}),
                **({"memory": asked} if asked else {})}),
        # A name that was used before would silently resume that run; ours are resumed by
        # fingerprint, wherever they ran.
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees Train V1's
            name=trainer_name(task) + uuid.uuid4().hex[:8], storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=retries, controller_failure_limit=retries),
            worker_runtime_env={"env_vars": KEEP_MEMORY}))
    result: Any = trainer.fit()
    returned: Outcome | IgdError = result.return_value
    if isinstance(returned, IgdError):
        raise returned
    return returned


def _train_loop(config: dict[str, Any]) -> Outcome | IgdError:
    """What runs on each of the trainer's workers; Ray Train would retry after any exception."""
    torch.set_num_threads(config["threads"])
    plain = config["task"]
    task = CategoryTask(**{**plain, "config": config_from_dict(plain["config"], where="task")})
    workers = Workers.of_process_group()
    try:
        return train_category(task, config["board"].post.remote if workers.rank == 0 else silent,
                              device=str(get_device()), workers=workers, read=stream_prepared)
    except IgdError as error:
        if isinstance(error, StorageError):
            raise
        return error


def _outcome(reference: Any, attempt: _Attempt, queue: Queue) -> tuple[Outcome, bool]:
    """What became of an attempt, and whether another one may end better.

    The same data and seed would diverge, or be too little, again; a worker that died, memory
    that ran out and a storage out of reach may have been bad luck.
    """
    task = attempt.task
    try:
        outcome: Outcome = ray.get(reference)
        return replace(outcome, attempts=attempt.number), False
    except (RayError, IgdError) as error:
        ours = own_error(error)
        text = str(ours or error).strip().splitlines() or [type(error).__name__]
        # a remote traceback ends in its reason, anything else begins with it
        reason = text[-1] if ours is None and isinstance(error, RayTaskError) else text[0]
        # a trainer has made its further attempts itself
        again = (attempt.number <= queue.retries and not isinstance(error, TrainingFailedError)
                 and (ours is None or isinstance(ours, StorageError)))
        return Outcome(category=task.category, preset=task.config.preset, error=reason,
                       attempts=attempt.number, exit_code=ours.exit_code if ours else 1), again
