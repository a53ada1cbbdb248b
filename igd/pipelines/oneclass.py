"""The one-class protocols on Ray: every class, seed and row of the ablation is a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError

from igd import registry
from igd.config import Config, preset_config
from igd.data.oneclass import CLASS_NAMES, Dataset, LabelledImages, load
from igd.errors import ConfigError, IgdError
from igd.pipelines.cluster import Resources, own_error
from igd.score.bootstrap import Estimate
from igd.score.oneclass import ProtocolResult, auroc, baseline_aurocs, check_class
from igd.train.loop import Progress, findings, train_nets

SWITCHES = ("net.local_encoder", "train.descriptor", "train.interpolation")
ABLATION: Mapping[str, tuple[str, str, str]] = {
    "ms_ssim": ("trained", "none", "false"), "kd": ("distilled", "none", "false"),
    "kd_dsvdd": ("distilled", "dsvdd", "false"), "kd_gsvdd": ("distilled", "gsvdd", "false"),
    "igd": ("distilled", "gsvdd", "true")}
"""The rows of the paper's ablation as values of `SWITCHES`; the last is the whole method."""
IGD = "igd"

SETTINGS = {"paper": ("train.epochs=128",),
            "small": ("train.epochs=4", "train.batch_size=64", "train.rho=0.15")}
"""What the protocol changes in a preset; small's steps are those of its MVTec AD training."""

CHUNK = 1500
"""Test images scored at a time: a multiple of the model's own chunk."""
POLL_S = 1.0


def protocol_config(preset: str, row: str, settings: Sequence[str] = (), *,
                    seed: int = 0) -> Config:
    """The config of a row of the ablation: 32x32 nets as the only branch.

    Args:
        settings: `--set` items.

    Raises:
        ConfigError: preset `fast`, which has no nets; a switch of the ablation among the settings;
            profile `standardised`, for which no normals are held out; as `preset_config`.
    """
    if preset not in SETTINGS:
        raise ConfigError(f"preset {preset!r} cannot be used for a one-class protocol; expected "
                          f"{' or '.join(SETTINGS)} (its 32x32 nets are the only branch)")
    for item in settings:
        if item.partition("=")[0].strip() in SWITCHES:
            raise ConfigError(f"--set {item!r} cannot be used in a one-class protocol, whose rows "
                              "are made of it; expected other settings; see --ablation")
    switches = map("=".join, zip(SWITCHES, ABLATION[row], strict=True))
    config = preset_config(preset, ["net.branches=local", "image.size=32", *SETTINGS[preset],
                                    *settings, *switches], seed=seed)
    if config.mix.profile == "standardised":
        raise ConfigError("mix.profile=standardised cannot be used in a one-class protocol, which "
                          "trains on all normals; expected paper or official")
    return config


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model to train and judge.

    Attributes:
        uri: folder of the dataset's files.
        label: of the normal class.
    """

    dataset: Dataset
    uri: str
    label: int
    row: str
    config: Config


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What a case's model says of all test images.

    Attributes:
        scores_N: of the whole score.
        terms: by column.
        training: seconds, and the last terms of each phase.
    """

    case: Case
    scores_N: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    training: dict[str, Any]


def run_case(case: Case) -> CaseResult:
    """Trains on all training images of the class and scores all test images; no Ray.

    Raises:
        DataError: the dataset is missing or damaged.
        DivergedError: training met a NaN or a collapsed Gaussian.
    """
    data = load(case.dataset, case.uri)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = case.config
    teacher = registry.training_teacher(config.net, device)
    phases: dict[str, Any] = {}
    curve: list[Progress] = []

    def step_done(progress: Progress) -> None:
        curve.append(progress)
        phase = phases.setdefault(progress.phase, {"first": progress.metrics})
        phase["last"] = progress.metrics

    began = time.monotonic()
    normal_NHWC = data.train_NHWC[data.train_label_N == case.label]
    model = train_nets(_as_input(normal_NHWC).to(device), config, teacher=teacher,
                       report=step_done)
    trained = time.monotonic()
    parts = [model(chunk.to(device)) for chunk in torch.split(_as_input(data.test_NHWC), CHUNK)]
    terms = {name: torch.cat([part.terms[name] for part in parts]).cpu().numpy()
             for name in parts[0].terms}
    return CaseResult(
        case=case, scores_N=torch.cat([part.score_N for part in parts]).cpu().numpy(),
        terms=terms, training={
            "seed": config.seed, "images": len(normal_NHWC), "seconds": round(trained - began, 1),
            "scoring_seconds": round(time.monotonic() - trained, 1), "phases": phases,
            "findings": findings(curve)})


def run_protocol(dataset: Dataset, uri: str, resources: Resources, *, labels: Sequence[int],
                 preset: str, settings: Sequence[str] = (), seeds: int = 1, ensemble: int = 1,
                 ablation: bool = False, seed: int = 0, data: LabelledImages | None = None,
                 finished: Callable[[int, int, str], None] = lambda done, of, text: None,
                 ) -> ProtocolResult:
    """Trains and judges every class, `seeds` times an ensemble of so many models.

    The score of an ensemble is the mean of its models' scores; every single model is judged too.
    A model that cannot be trained fails alone, and its ensemble with it.

    Args:
        resources: of the cluster that is connected.
        ablation: all rows of `ABLATION`, and not only the whole method.
        seed: of the first model; those of the others follow.
        data: the dataset, where the caller has read it already.
        finished: told how many of how many tasks are done, and of the last in a few words.

    Raises:
        DataError: a damaged dataset, or a class of it that cannot be trained or judged.
    """
    began = time.monotonic()
    data = data or load(dataset, uri)  # here: a damaged file is found before anything starts
    for label in labels:
        check_class(data, label, uri)
    rows = list(ABLATION) if ablation else [IGD]
    cases = [Case(dataset=dataset, uri=uri, label=label, row=row,
                  config=protocol_config(preset, row, settings, seed=seed + i))
             for row in reversed(rows) for label in labels for i in range(seeds * ensemble)]
    done, beside, failed = _run(cases, resources, dataset, uri, labels, finished)
    groups = [range(seed + i * ensemble, seed + (i + 1) * ensemble) for i in range(seeds)]
    training = {row: {CLASS_NAMES[dataset][label]: [one.training for one in _of(done, row, label)]
                      for label in labels} for row in rows}
    return ProtocolResult(
        dataset=dataset, preset=preset, training=training, failed=failed,
        rows=_judged(data, done, rows, labels, groups) | {
            name: {CLASS_NAMES[dataset][label]: [by_label[label]] for label in labels
                   if label in by_label}
            for name, by_label in beside.items()},
        classes=tuple(CLASS_NAMES[dataset][label] for label in labels),
        seconds=time.monotonic() - began)


def _of(done: Sequence[CaseResult], row: str, label: int) -> list[CaseResult]:
    """The models of a row and a class, by seed."""
    return sorted((one for one in done if (one.case.row, one.case.label) == (row, label)),
                  key=lambda one: one.case.config.seed)


def _judged(data: LabelledImages, done: Sequence[CaseResult], rows: Sequence[str],
            labels: Sequence[int], groups: Sequence[range]) -> dict[str, dict[str, list[Estimate]]]:
    """The AUROC of every single model and every whole ensemble, by row and class name.

    Args:
        groups: the seeds of each ensemble.
    """
    found: dict[str, dict[str, list[Estimate]]] = {}

    def judge(name: str, label: int, scores_N: NDArray[np.float64]) -> None:
        of_class = found.setdefault(name, {}).setdefault(data.class_names[label], [])
        of_class.append(auroc(data, label, scores_N))

    for row in rows:
        for label in labels:
            models = _of(done, row, label)
            for one in models:
                judge(row, label, one.scores_N)
                if row == IGD:
                    judge(f"{row}: reconstruction alone", label, one.terms["local_reconstruction"])
                    if "local_gsvdd_distance" in one.terms:
                        judge(f"{row}: descriptor alone", label, one.terms["local_gsvdd_distance"])
            for seeds in groups if len(groups[0]) > 1 else ():
                scores_KN = [one.scores_N for one in models if one.case.config.seed in seeds]
                if len(scores_KN) == len(seeds):
                    judge(f"{row}, ensemble of {len(seeds)}", label, np.mean(scores_KN, 0))
    return found


@ray.remote(max_retries=1)
def _case_task(case: Case) -> CaseResult:
    return run_case(case)


@ray.remote(num_cpus=1, max_retries=1)
def _baseline_task(dataset: Dataset, uri: str,
                   labels: Sequence[int]) -> tuple[dict[str, dict[int, Estimate]], dict[int, str]]:
    return baseline_aurocs(load(dataset, uri), labels)


def _run(cases: Sequence[Case], resources: Resources, dataset: Dataset, uri: str,
         labels: Sequence[int], finished: Callable[[int, int, str], None],
         ) -> tuple[list[CaseResult], dict[str, dict[int, Estimate]], dict[str, str]]:
    task = _case_task.options(num_cpus=1, num_gpus=1 if resources.gpus else 0)
    baseline = _baseline_task.remote(dataset, uri, labels)
    names: dict[Any, str] = {baseline: "baselines"}
    for case in cases:
        names[task.remote(case)] = (
            f"{case.row}, {CLASS_NAMES[dataset][case.label]}, seed {case.config.seed}")
    waiting, done = list(names), []
    beside: dict[str, dict[int, Estimate]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=POLL_S)
            for reference in ready:
                text = names[reference]
                try:
                    if reference == baseline:
                        beside, lacking = ray.get(reference)
                        failed |= {f"baselines, {CLASS_NAMES[dataset][label]}": reason
                                   for label, reason in lacking.items()}
                    else:
                        done.append(ray.get(reference))
                except (RayError, IgdError) as error:
                    ours = own_error(error)
                    failed[text] = str(ours or error).strip().splitlines()[0 if ours else -1]
                    text += f" FAILED: {failed[text]}"
                finished(len(names) - len(waiting), len(names), text)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
    return done, beside, failed


def _as_input(images_NHWC: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()
