"""`igd-ray train` and `train-all`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from igd import __version__
from igd.cli.app import app
from igd.cli.options import (
    Data,
    MemoryPerModel,
    Models,
    PresetOption,
    RayAddress,
    Retrain,
    ScratchOption,
    Seed,
    SetOption,
    StorageOption,
    bytes_of,
)
from igd.cli.output import commit, names_of
from igd.errors import ConfigError

if TYPE_CHECKING:
    from igd.config import Config
    from igd.pipelines.category import CategoryTask, Outcome
    from igd.pipelines.cluster import Resources
    from igd.pipelines.progress import Report
    from igd.pipelines.train_all import Queue
    from igd.pipelines.watch import JsonLines


@app.command()
def train(
    category: Annotated[str, typer.Argument(metavar="CATEGORY", help="A folder of DATA.")],
    data: Data, models: Models, preset: PresetOption = None, settings: SetOption = None,
    seed: Seed = 0, retrain: Retrain = False, memory_per_model: MemoryPerModel = None,
    scratch: ScratchOption = None, ray_address: RayAddress = None,
    storage_option: StorageOption = None,
) -> None:
    """Train one category's model and put it in production.

    A training that was interrupted goes on from its last checkpoint; a finished one is not done
    again.

    Example: `igd-ray train bottle mvtec_ad --models ./models --preset fast`
    """
    from igd.config import preset_config
    from igd.pipelines.train_all import Queue

    _check_enough(category, data, preset_config(preset or "fast", settings or [], seed=seed))
    queue = Queue(memory_per_model=bytes_of(memory_per_model, "--memory-per-model"))
    outcomes = _train([category], data, models, preset, settings or [], seed, queue, ray_address,
                      retrain=retrain, scratch=scratch)
    if outcomes[0].exit_code:
        raise typer.Exit(outcomes[0].exit_code)


@app.command("train-all")
def train_all(
    data: Data, models: Models,
    categories: Annotated[str | None, typer.Option(metavar="A,B", help="Default: all.")] = None,
    preset: PresetOption = None, settings: SetOption = None, seed: Seed = 0,
    min_images: Annotated[int | None, typer.Option(
        min=4, help="Categories with fewer normals fail. [default: 10]")] = None,
    calibration_fraction: Annotated[float | None, typer.Option(
        help="Share of normals that nets are not trained on. [default: 0.2]")] = None,
    at_once: Annotated[int | None, typer.Option(
        help="Categories at the same time. [default: as many as the cluster holds]")] = None,
    gpus_per_model: Annotated[float | None, typer.Option(
        help="0.25 packs four nets on a GPU; 0: CPUs. [default: 1 where there are GPUs]")] = None,
    cpus_per_model: Annotated[int | None, typer.Option(
        help="CPUs, and torch threads, of each worker. [default: 1 beside a GPU, else an even "
        "share, 8 at most]")] = None,
    workers_per_model: Annotated[int, typer.Option(
        help="Workers that share the batches of one category's nets.")] = 1,
    retries: Annotated[int, typer.Option(
        help="Further attempts after a crash, from the last checkpoint.")] = 2,
    stall_minutes: Annotated[float, typer.Option(
        min=0.1, help="A category that nothing is heard of for so long is stopped and tried "
        "again.")] = 60,
    trainer: Annotated[str, typer.Option(
        metavar="auto|always|never", help="Nets that run under Ray Train's TorchTrainer, which "
        "takes half a minute to start; auto: those that see 20,000 images or more (normals times "
        "epochs) and those of several workers. The others, and preset fast, are plain tasks on "
        "workers that are reused.")] = "auto",
    promote: Annotated[str, typer.Option(
        metavar="always|if-better|never", help="Which new versions go in production. if-better: "
        "those not worse than the version there, by defects planted in normal images that "
        "both were calibrated on.")] = "always",
    checkpoint_every: Annotated[float, typer.Option(
        min=0, metavar="SECONDS", help="Time between two checkpoints of a category's nets, at "
        "least.")] = 30.0,
    memory_per_model: MemoryPerModel = None,
    scratch: ScratchOption = None,
    retrain: Retrain = False,
    html: Annotated[str | None, typer.Option(
        "--html", metavar="FILE", help="Also write a page, also s3://: what became of each "
        "category, loss curves, reconstructions.")] = None,
    json_lines: Annotated[str | None, typer.Option(
        "--json", metavar="FILE", help="Also write events and the summary as JSON, an object per "
        "line; - is standard output, and text then goes to standard error.")] = None,
    ray_address: RayAddress = None, storage_option: StorageOption = None,
) -> None:
    """Train a model for every category, in parallel, the largest first; one that fails fails
    alone (exit 3).

    Run again, it goes on: what is finished (same images, settings and code) is skipped, what was
    interrupted is taken up from its last checkpoint, to the same weights on CPUs.

    Example: `igd-ray train-all mvtec_ad --models s3://models/igd --set image.fit=squash`

    Example: `igd-ray train-all s3://data/parts --models s3://models/igd --preset paper
    --gpus-per-model 0.25 --json events.jsonl`
    """
    from igd.data import datasets
    from igd.pipelines.train_all import Queue

    queue = Queue(gpus_per_model=gpus_per_model, cpus_per_model=cpus_per_model,
                  workers_per_model=workers_per_model, at_once=at_once, retries=retries,
                  stall_s=60 * stall_minutes,
                  memory_per_model=bytes_of(memory_per_model, "--memory-per-model"),
                  trainer=trainer)  # type: ignore[arg-type]  # Queue checks it
    settings = [*(settings or []),
                *([f"calibration.min_images={min_images}"] if min_images else []),
                *([f"calibration.fraction={calibration_fraction}"] if calibration_fraction
                  is not None else [])]
    names = names_of(categories)
    found = datasets.survey(data)
    left_out = [] if names else [
        *(f"{name!r}: its name cannot be a category's; expected letters, digits, '.', '_' or '-'"
          for name in found.misnamed), *(f"{name!r}: no normal image" for name in found.without)]
    outcomes = _train(names or found.categories, data, models, preset, settings, seed, queue,
                      ray_address, retrain=retrain, html=html, json_lines=json_lines,
                      checkpoint_s=checkpoint_every, promote=promote, scratch=scratch,
                      left_out=left_out)
    if any(outcome.error is not None for outcome in outcomes) or (not names and found.misnamed):
        raise typer.Exit(3)


def _train(names: list[str], data: str, models: str, preset: str | None, settings: list[str],
           seed: int, queue: Queue, ray_address: str | None, *, retrain: bool = False,
           html: str | None = None, json_lines: str | None = None,
           checkpoint_s: float = 30.0, promote: str = "always",
           scratch: str | None = None, left_out: Sequence[str] = ()) -> list[Outcome]:
    from igd import storage
    from igd.config import preset_config
    from igd.pipelines.category import CategoryTask
    from igd.pipelines.promotion import POLICIES
    from igd.report.names import visible

    if promote not in POLICIES:
        raise ConfigError(f"--promote {promote!r}: expected {', '.join(POLICIES)}")
    preset_config(preset or "fast", settings, seed=seed)  # refused before a cluster is started
    if storage.is_inside(models, data) or storage.canonical(models) == storage.canonical(data):
        raise ConfigError(f"--models {models} lies inside DATA {data}; its files would count as "
                          "categories; choose a place outside")
    _check_known(names, data)
    from igd.pipelines.cluster import connected

    with _text_and_json(json_lines) as (text, events), connected(ray_address) as resources:
        chosen, reason = _choose_preset(preset, resources)
        config = preset_config(chosen, settings, seed=seed)
        since = f"{datetime.now(UTC):%Y%m%dT%H%M%S}" if retrain else ""
        tasks = [CategoryTask(data=storage.canonical(data), category=name,
                              models=storage.canonical(models), config=config,
                              preset_reason=reason, since=since, checkpoint_s=checkpoint_s,
                              promote=promote,
                              scratch=scratch and str(Path(scratch).absolute()))
                 for name in names]
        print(f"preset {chosen} ({reason}); {len(tasks)} categories on {resources.cpus} Ray CPUs, "
              f"{resources.gpus} GPUs", file=text, flush=True)
        outcomes = _run_tasks(tasks, resources, queue, text, events)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        already = sum(outcome.already for outcome in outcomes)
        print(f"{len(outcomes) - len(failed)} of {len(outcomes)} categories have a model in "
              f"{models}" + (f"; {already} had it before" if already else ""), file=text,
              flush=True)
        for outcome in failed if len(outcomes) > 1 else []:
            print(f"  FAILED {visible(outcome.category)}: {visible(outcome.error or '')}",
                  file=text, flush=True)
        for line in left_out:
            print(f"  left out {line}", file=text, flush=True)
        if events is not None:
            events.write("summary", {
                "categories": [vars(outcome) for outcome in outcomes], "left_out": list(left_out),
                "commit": commit(), "data": data, "models": models, "version": __version__})
        if html is not None:
            print(_write_training_page(html, models, outcomes), file=text, flush=True)
    return outcomes


def _write_training_page(html: str, models: str, outcomes: list[Outcome]) -> str:
    from igd import storage
    from igd.pipelines.training_page import training_page

    storage.write_bytes(html, training_page(models, outcomes, commit=commit()).encode())
    return html


@contextlib.contextmanager
def _text_and_json(json_lines: str | None) -> Iterator[tuple[TextIO, JsonLines | None]]:
    """Where text goes, and where JSON goes if it is asked for."""
    from igd.pipelines.watch import JsonLines

    if json_lines is None:
        yield sys.stdout, None
    elif json_lines == "-":
        yield sys.stderr, JsonLines(sys.stdout)
    else:
        Path(json_lines).parent.mkdir(parents=True, exist_ok=True)
        with open(json_lines, "w") as stream:
            yield sys.stdout, JsonLines(stream)


def _check_known(names: list[str], data: str) -> None:
    from igd.config import check_name
    from igd.data import datasets
    from igd.errors import DataError

    found = datasets.survey(data)
    for name in names:
        if check_name(name, "category") in found.without:
            raise DataError(f"category {name!r} in {data} has no normal image; add some")
        if name not in found.categories:
            raise DataError(f"no category {name!r} in {data}; there are: "
                            f"{', '.join(found.categories)}")


def _check_enough(category: str, data: str, config: Config) -> None:
    """Refuses too few files before a cluster is started; those that cannot be read show later."""
    from igd.data import datasets
    from igd.errors import DataError

    _check_known([category], data)
    found = len(datasets.normal_images(data, category))
    if found < config.calibration.min_images:
        raise DataError(f"category {category!r} has {found} normal images in {data}; expected at "
                        f"least {config.calibration.min_images}; add normal images")


def _choose_preset(preset: str | None, resources: Resources) -> tuple[str, str]:
    if preset is not None:
        return preset, "asked for"
    if resources.gpus:
        return "paper", f"default: the cluster has {resources.gpus} GPUs"
    return "fast", "default: the cluster has no GPU"


def _run_tasks(tasks: list[CategoryTask], resources: Resources, queue: Queue, text: TextIO,
               events: JsonLines | None) -> list[Outcome]:
    from rich.console import Console

    from igd.pipelines.train_all import train_all as run
    from igd.pipelines.watch import Lines, LiveTable, to_all

    table = LiveTable(Console(file=text), len(tasks))
    live = table.console.is_terminal
    watchers: list[Report] = [table if live else Lines(text), *([events] if events else [])]
    say = table.say if live else partial(print, file=text, flush=True)
    with table.shown():
        return run(tasks, resources, queue=queue, report=to_all(watchers),
                   finished=partial(_tell_outcome, say))


def _tell_outcome(say: Callable[[str], None], outcome: Outcome) -> None:
    import shlex

    from igd import storage
    from igd.report.names import visible

    name = visible(outcome.category)
    if outcome.error is not None:
        say(f"FAILED {name}: {visible(outcome.error)}"
             + (f" (attempt {outcome.attempts})" if outcome.attempts > 1 else ""))
        return
    if outcome.already:
        say(f"finished before: {name} ({outcome.preset}), version {outcome.version}, "
            f"{outcome.why}")
        return
    say(f"trained {name} ({outcome.preset}): {outcome.images} images, "
        f"{outcome.seconds:.1f} s, smallest false-positive rate "
        f"{outcome.smallest_alpha:.4f}, version {outcome.version}, {outcome.why}")
    if outcome.tensorboard:
        at = outcome.tensorboard
        at = shlex.quote(storage.local_path(at) if storage.is_local(at) else at)
        say(f"  {name}: losses and reconstructions: tensorboard --logdir {at}")
    for key, reason in outcome.skipped:
        say(f"  {name}: skipped {visible(key)} ({reason})")
    if outcome.near_duplicate_groups < outcome.images:
        say(f"  {name}: {outcome.images - outcome.near_duplicate_groups} normals are "
            "near-duplicates of others; they are held out together")
    if outcome.unseen > 0.005:
        say(f"  {name}: the centre crop leaves out {outcome.unseen:.0%} of the pixels; "
             "--set image.fit=squash looks at the whole image")
