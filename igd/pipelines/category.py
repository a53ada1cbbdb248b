"""One category in, one bundle out: a function of data and config, with or without a cluster."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from igd import registry, storage
from igd.config import Config, config_to_dict
from igd.data.datasets import Loaded, Read, normal_images, read_prepared
from igd.data.trees import ImageRef
from igd.data.twins import draw_groups
from igd.errors import ModelError
from igd.model.igd import IGD
from igd.pipelines import tensorboard
from igd.pipelines.checkpoints import EVERY_S, StoredCheckpoints, clear, training_folder
from igd.pipelines.fingerprint import (
    Fingerprint,
    changes,
    code_fingerprint,
    finished_version,
    listing_of,
)
from igd.pipelines.progress import Event, Meter, Report, silent
from igd.pipelines.promotion import Policy, promote
from igd.pipelines.room import Room
from igd.records import CALIBRATION
from igd.score.conformal import Calibrator
from igd.score.scorer import THREADS, pinned_threads, score_fingerprint
from igd.train.calibrate import (
    Calibration,
    fit_dense,
    score_held_out,
    set_scale,
    split_held_out,
    split_normals,
)
from igd.train.images import Images
from igd.train.loop import Progress, findings, train_nets
from igd.train.strip import COLUMNS, strip
from igd.train.workers import ALONE, Workers

DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class CategoryTask:
    """What to train.

    Attributes:
        data: folder of category folders.
        models: where bundles go.
        preset_reason: who chose the preset.
        promote: `if-better` compares with the version in production (`igd.score.compare`);
            without one the new version is taken.
        since: of versions of equal data, config and code, the name of the oldest that counts;
            what is there is found and not trained again.
        checkpoint_s: seconds between two checkpoints of the nets, at least.
        memory: bytes that a process of its training may take; what is more goes to scratch files
            and costs time, but no bit. None: a share of what is free.
        scratch: local folder of those files; None: the system's for temporary files.
    """

    data: str
    category: str
    models: str
    config: Config
    preset_reason: str = "asked for"
    promote: Policy = "always"
    since: str = ""
    checkpoint_s: float = EVERY_S
    memory: int | None = None
    scratch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a category.

    Attributes:
        version: of the new bundle, or of the finished one that was found; None where training
            failed.
        skipped: (key, reason) of each file that could not be used.
        already: whether the version was there before.
        why: what was put in production, and why.
        images, near_duplicate_groups: normals read, and groups of near-duplicates among them.
        unseen: mean share of an image's pixels that the centre crop leaves out.
        seconds: that training took; of a finished version, the looking alone.
        tensorboard: URI of the folder of loss curves and reconstructions; None for `fast`.
        error, exit_code: one line and a code of the command line, where it failed.
        attempts: that it took.
    """

    category: str
    preset: str
    version: str | None = None
    already: bool = False
    why: str = ""
    images: int = 0
    near_duplicate_groups: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    unseen: float = 0.0
    seconds: float = 0.0
    smallest_alpha: float | None = None
    tensorboard: str | None = None
    error: str | None = None
    exit_code: int = 0
    attempts: int = 1


def train_category(task: CategoryTask, report: Report = silent, *, device: str | None = None,
                   workers: Workers = ALONE, read: Read = read_prepared) -> Outcome:
    """Trains, calibrates and promotes a category; goes on where it was interrupted.

    What is finished, a version of equal data, config and code, is not trained again.

    Args:
        report: told how far it is.
        device: that the nets are trained on; by default a GPU, if torch sees one.
        workers: that train the nets together, each calling this; the first one does the rest,
            and the outcome of the others has no version.
        read: reads the images of a category that is beyond memory.

    Raises:
        DataError: too few readable normals, or too few of them held out.
        StorageError: too little space for scratch files.
        DivergedError: training met a NaN or a collapsed Gaussian.
    """
    began = time.monotonic()
    start: Outcome | _Ready | Exception
    device = device or DEFAULT_DEVICE
    try:
        start = _begin(task, report, read, leads=workers.rank == 0, gpu=device != "cpu")
    except Exception as error:  # the other workers have to hear of it before it is raised
        start = error
    # all go on, or none: one alone would wait for the others for ever
    go_on = workers.all_well(isinstance(start, _Ready), device)
    if isinstance(start, Exception):
        raise start
    if isinstance(start, Outcome):
        return replace(start, seconds=time.monotonic() - began)
    if not go_on:
        return Outcome(category=task.category, preset=task.config.preset)
    loaded, group_N, fingerprint = start.loaded, start.group_N, start.fingerprint
    for line in changes(task.models, task.category, fingerprint):
        report(Event(task.category, "new training", text=line))
    trained = _train(task, start, report, device, workers)
    if trained is None:
        return Outcome(category=task.category, preset=task.config.preset)
    report(Event(task.category, "saving"))
    smallest = Calibrator(trained.calibration.score_M.numpy()).smallest_alpha
    version = registry.save_bundle(
        task.models, task.category, trained.model, task.config,
        _rows(trained.calibration, loaded),
        _provenance(task, loaded, group_N, fingerprint, trained, smallest,
                    time.monotonic() - began),
        trained.files)
    why = _promote(task, version, start.refs, report)
    _clear(task, fingerprint.key, report)
    return Outcome(
        category=task.category, preset=task.config.preset, version=version, why=why,
        images=len(loaded.keys), near_duplicate_groups=int(group_N.max()) + 1,
        skipped=loaded.skipped, unseen=loaded.unseen, seconds=time.monotonic() - began,
        smallest_alpha=smallest,
        tensorboard=_shown(task, version) if trained.files else None)


def look(task: CategoryTask, report: Report = silent) -> Outcome | None:
    """The outcome of a category whose finished version is there, by the listing alone; or None.

    Raises:
        DataError: no image.
        ModelError: a teacher's weights are missing.
    """
    report(Event(task.category, "looking"))
    refs = normal_images(task.data, task.category)
    return _finished(task, refs, code_fingerprint(task.config), report, listing=listing_of(refs))


@dataclass(frozen=True)
class _Ready:
    """All that a training starts from."""

    refs: Sequence[ImageRef]
    room: Room
    loaded: Loaded
    group_N: Tensor
    fingerprint: Fingerprint


def _begin(task: CategoryTask, report: Report, read: Read, *, leads: bool,
           gpu: bool) -> Outcome | _Ready:
    """What a training starts from; or the outcome, where a finished version is there.

    Args:
        leads: whether this worker looks for one; the others are told.
    """
    report(Event(task.category, "looking"))
    refs = normal_images(task.data, task.category)
    listing, code = listing_of(refs), code_fingerprint(task.config)
    found = _finished(task, refs, code, report, listing=listing) if leads else None
    if found is not None:
        return found
    room = Room.of(len(refs), task.config, task.memory, task.scratch, gpu=gpu)
    loaded = room.load(refs, task.category, task.config, report, read)
    # the files may only have been touched
    found = _finished(task, refs, code, report, data=loaded.fingerprint) if leads else None
    if found is not None:
        return found
    return _Ready(refs, room, loaded, normal_groups(loaded, task.config), Fingerprint(
        data=loaded.fingerprint, listing=listing, images=len(loaded.keys),
        config=config_to_dict(task.config), code=code))


def normal_groups(loaded: Loaded, config: Config) -> Tensor:
    """Groups of near-duplicates among the normals, for `igd.model.groups`; (N,)."""
    return torch.from_numpy(draw_groups(loaded.images_NHWC, loaded.sha256, config))


def _finished(task: CategoryTask, refs: Sequence[ImageRef], code: str, report: Report, *,
              listing: str | None = None, data: str | None = None) -> Outcome | None:
    """The outcome of a finished version of equal listing or data, if there is one.

    It is promoted if its training was killed before it could be; where it turns out to be
    damaged, it does not count.
    """
    version = finished_version(task.models, task.category, task.config, code, listing=listing,
                               data=data, since=task.since)
    if version is None:
        return None
    known = {record.version for record in registry.history(task.models, task.category)}
    try:
        why = "as it was" if version in known else _promote(task, version, refs, report)
    except ModelError as error:
        report(Event(task.category, "new training", text=str(error)))
        return None
    training = registry.describe(task.models, task.category, version)["training"]
    _clear(task, training["fingerprint"]["key"], report)
    return Outcome(
        category=task.category, preset=task.config.preset, version=version, already=True, why=why,
        images=training["images"], smallest_alpha=training["smallest_alpha"],
        near_duplicate_groups=training["near_duplicate_groups"],
        tensorboard=None if task.config.preset == "fast" else _shown(task, version))


def _promote(task: CategoryTask, version: str, refs: Sequence[ImageRef], report: Report) -> str:
    return promote(task.models, task.category, version, task.promote, refs, task.config.image,
                   report)


def _clear(task: CategoryTask, key: str, report: Report) -> None:
    problem = clear(task.models, task.category, f"{key}/", trainer_name(task))
    if problem:
        report(Event(task.category, "finding", text=problem))


def trainer_name(task: CategoryTask) -> str:
    """The beginning of the names of this task's trainers."""
    text = json.dumps([task.data, config_to_dict(task.config)], sort_keys=True)
    return f"trainer-{hashlib.sha256(text.encode()).hexdigest()[:12]}-"


def _shown(task: CategoryTask, version: str) -> str:
    return storage.join(task.models, task.category, version, tensorboard.FOLDER)


@dataclass(frozen=True)
class _Trained:
    """A model, and what there is to say of its training.

    Attributes:
        scale: which images set the scale of the score and so calibrate nothing.
        curve: as training reported it.
        files: for people to look at, by their path in the bundle.
    """

    model: nn.Module
    calibration: Calibration
    scale: Sequence[int] = ()
    curve: Sequence[Progress] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def _train(task: CategoryTask, start: _Ready, report: Report, device: str,
           workers: Workers) -> _Trained | None:
    if task.config.preset != "fast":
        return _train_nets(task, start, report, device, workers)
    report(Event(task.category, "fitting"))
    with pinned_threads(THREADS):
        return _Trained(*fit_dense(_as_view(start.loaded), task.config, registry.load_teacher(),
                                   start.group_N, start.room.zeros("cpu")))


def _as_view(loaded: Loaded) -> Tensor:
    """(N, 3, S, S), not copied."""
    return torch.from_numpy(loaded.images_NHWC).permute(0, 3, 1, 2)


def _train_nets(task: CategoryTask, start: _Ready, report: Report, device: str,
                workers: Workers) -> _Trained | None:
    """Trains on the device; scores the held-out normals as they will be scored, on the CPU.

    None of a worker that only helped.
    """
    config, group_N = task.config, start.group_N
    train_N, held = split_normals(group_N, config)
    scale_K, held_M = split_held_out(held, group_N, config)
    image_NCHW, kept_on = _as_view(start.loaded), start.room.device(device)
    teacher = registry.training_teacher(config.net, device)
    timed: list[tuple[float, Progress]] = []
    meters: dict[tuple[str, str], Meter] = {}

    def step_done(progress: Progress) -> None:
        timed.append((time.time(), progress))
        at = (progress.branch, progress.phase)
        if at not in meters:
            meters[at] = Meter(
                task.category, report, f"{progress.branch} {progress.phase}",
                images_per_step=(config.distill.batch_size if progress.phase == "distil"
                                 else len(train_N)))
        meters[at](progress.done, progress.steps, progress.metrics)

    checkpoints = StoredCheckpoints(
        storage.join(training_folder(task.models, task.category), start.fingerprint.key,
                     "checkpoint.safetensors"), timed, every_s=task.checkpoint_s,
        say=lambda text: report(Event(task.category, "taking up", text=text)))
    trained = train_nets(Images(image_NCHW.to(kept_on), train_N, device), config, teacher=teacher,
                         report=step_done, checkpoints=checkpoints, workers=workers,
                         zeros=start.room.zeros(kept_on))
    if workers.rank > 0:
        return None
    model = registry.build_model(config)
    assert isinstance(model, IGD)
    model.load_state_dict(trained.cpu().state_dict())
    model.eval()
    for line in findings([progress for _, progress in timed]):
        report(Event(task.category, "finding", text=line))
    report(Event(task.category, "calibrating"))
    with pinned_threads(THREADS):
        if len(scale_K):
            set_scale(model, Images(image_NCHW, scale_K))
        calibration = score_held_out(model, Images(image_NCHW, held_M), held_M)
        shown = image_NCHW[train_N[torch.linspace(0, len(train_N) - 1, COLUMNS).long()]]
        strips = {name: strip(model, name, shown).numpy() for name in model.encoders}
    return _Trained(model, calibration, scale_K.tolist(), [progress for _, progress in timed],
                    tensorboard.files(timed, strips))


def _rows(calibration: Calibration, loaded: Loaded) -> pa.Table:
    index = calibration.index_M.tolist()
    columns: dict[str, Any] = {
        "image": [loaded.keys[i] for i in index], "sha256": [loaded.sha256[i] for i in index],
        "score": calibration.score_M.tolist(),
        "heatmap_max": calibration.heatmap_max_M.double().tolist(),
        **{name: term.double().tolist() for name, term in calibration.terms.items()}}
    missing = [None] * len(index)
    return pa.table({name: columns.get(name, missing) for name in CALIBRATION.names},
                    schema=CALIBRATION)


def _provenance(task: CategoryTask, loaded: Loaded, group_N: Tensor, fingerprint: Fingerprint,
                trained: _Trained, smallest_alpha: float, seconds: float) -> dict[str, Any]:
    fast = task.config.preset == "fast"
    return {
        "data": task.data, "images": len(loaded.keys),
        "near_duplicate_groups": int(group_N.max()) + 1,
        "skipped": [list(entry) for entry in loaded.skipped],
        "fingerprint": fingerprint.document(), "unseen_share": loaded.unseen,
        "preset_reason": task.preset_reason, "seconds": round(seconds, 2),
        "calibration": "cross-conformal" if fast else "split-conformal",
        "smallest_alpha": smallest_alpha,
        "score_fingerprint": score_fingerprint(task.config),
        "scale_images": [loaded.keys[i] for i in trained.scale],
        "torch_threads": torch.get_num_threads(), "findings": findings(trained.curve),
        "curve": [vars(step) for step in trained.curve],
    }
