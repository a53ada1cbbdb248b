"""One category in, one bundle out: a function of data and config, with or without a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from igd import registry, storage
from igd.config import Config
from igd.data.datasets import Loaded, load_normals, normal_images
from igd.data.twins import draw_groups
from igd.model.igd import IGD
from igd.pipelines import tensorboard
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
from igd.train.loop import Progress, findings, train_nets
from igd.train.strip import strip

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CategoryTask:
    """What to train.

    Attributes:
        data: folder of category folders.
        models: where bundles go.
        preset_reason: who chose the preset.
    """

    data: str
    category: str
    models: str
    config: Config
    preset_reason: str = "asked for"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a category.

    Attributes:
        version: of the new bundle, in production; None where training failed.
        error, exit_code: one line and a code of the command line, where it failed.
        unseen: mean share of an image's pixels that the centre crop leaves out.
        tensorboard: URI of the folder of loss curves and reconstructions; None for `fast`.
    """

    category: str
    preset: str
    version: str | None = None
    images: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    unseen: float = 0.0
    seconds: float = 0.0
    smallest_alpha: float | None = None
    tensorboard: str | None = None
    error: str | None = None
    exit_code: int = 0


def train_category(task: CategoryTask, report: Report = lambda line: None) -> Outcome:
    """Trains, calibrates and promotes a category.

    Args:
        report: told in a few words how far it is.

    Raises:
        DataError: too few readable normals, or too few of them held out.
        DivergedError: training met a NaN or a collapsed Gaussian.
    """
    began = time.monotonic()
    loaded = load_normals(
        normal_images(task.data, task.category), task.config,
        progress=lambda done, total: report(f"reading {done}/{total}") if done % 50 == 0 else None)
    image_NCHW = torch.from_numpy(loaded.images_NHWC).permute(0, 3, 1, 2).contiguous()
    group_N = normal_groups(loaded, task.config)
    if task.config.preset == "fast":
        report("fitting")
        with pinned_threads(THREADS):
            trained = _Trained(*fit_dense(image_NCHW, task.config, registry.load_teacher(),
                                          group_N))
    else:
        trained = _train_nets(image_NCHW, group_N, task.config, report)
    report("saving")
    smallest = Calibrator(trained.calibration.score_M.numpy()).smallest_alpha
    version = registry.save_bundle(
        task.models, task.category, trained.model, task.config,
        _rows(trained.calibration, loaded),
        _provenance(task, loaded, group_N, smallest, trained, time.monotonic() - began),
        trained.files)
    registry.promote(task.models, task.category, version)
    shown = storage.join(task.models, task.category, version, tensorboard.FOLDER)
    return Outcome(category=task.category, preset=task.config.preset, version=version,
                   images=len(loaded.keys), skipped=loaded.skipped, unseen=loaded.unseen,
                   seconds=time.monotonic() - began, smallest_alpha=smallest,
                   tensorboard=shown if trained.files else None)


def normal_groups(loaded: Loaded, config: Config) -> Tensor:
    """Groups of near-duplicates among the normals, for `igd.model.groups`; (N,)."""
    return torch.from_numpy(draw_groups(
        loaded.images_NHWC, loaded.sha256, seed=config.seed,
        min_correlation=config.calibration.twin_correlation))


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


def _train_nets(image_NCHW: Tensor, group_N: Tensor, config: Config,
                report: Report) -> _Trained:
    """Trains on the device at hand; scores the held-out normals as they will be scored."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_N, held = split_normals(group_N, config)
    scale_K, held_M = split_held_out(held, group_N, config)
    teacher = registry.training_teacher(config.net, device)
    timed: list[tuple[float, Progress]] = []

    def step_done(progress: Progress) -> None:
        timed.append((time.time(), progress))
        terms = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        unit = {"distil": "iteration", "em": "epoch"}[progress.phase]
        report(f"{progress.branch} {unit} {progress.done}/{progress.steps}: {terms}")

    trained = train_nets(image_NCHW[train_N].to(device), config, teacher=teacher,
                         report=step_done)
    model = registry.build_model(config)
    assert isinstance(model, IGD)
    model.load_state_dict(trained.cpu().state_dict())
    model.eval()
    for line in findings([progress for _, progress in timed]):
        report(line)
    report("calibrating")
    with pinned_threads(THREADS):
        if len(scale_K):
            set_scale(model, image_NCHW[scale_K])
        calibration = score_held_out(model, image_NCHW[held_M], held_M)
        strips = {name: strip(model, name, image_NCHW[train_N]).numpy() for name in model.encoders}
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


def _provenance(task: CategoryTask, loaded: Loaded, group_N: Tensor, smallest_alpha: float,
                trained: _Trained, seconds: float) -> dict[str, Any]:
    fast = task.config.preset == "fast"
    return {
        "data": task.data, "images": len(loaded.keys),
        "skipped": [list(entry) for entry in loaded.skipped],
        "near_duplicate_groups": int(group_N.max()) + 1,
        "data_fingerprint": loaded.fingerprint, "unseen_share": loaded.unseen,
        "preset_reason": task.preset_reason, "seconds": round(seconds, 2),
        "calibration": "cross-conformal" if fast else "split-conformal",
        "smallest_alpha": smallest_alpha, "score_fingerprint": score_fingerprint(task.config),
        "scale_images": [loaded.keys[i] for i in trained.scale],
        "torch_threads": torch.get_num_threads(), "findings": findings(trained.curve),
        "curve": [vars(step) for step in trained.curve],
    }
