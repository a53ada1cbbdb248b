"""What seeded models say, to the digit: a refactor changes none of it.

    python tests/model/test_goldens.py       writes goldens.json anew, with where it was made

All of it begins with integers of seeded generators, so that no machine begins with other bits.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from igd.config import preset_config
from igd.model.igd import IGD
from igd.model.scored import Scored
from igd.registry import load_teacher
from igd.score.scorer import pinned_threads
from igd.train.calibrate import fit_dense, set_scale
from igd.train.inputs import Inputs
from igd.train.loop import Progress, train_nets
from igd.train.step import e_step

FILE = Path(__file__).with_name("goldens.json")
SEED = 7
REL, ABS = 2e-4, 4e-5
"""Tolerances. Measured with torch 2.13.0, as a share of the larger of a value and 0.2: at most 4e-5
from one thread to two, 5e-5 from AVX-512 to SSE4.1."""
TINY = ("net.latent=8", "net.global_encoder=trained")

Values = dict[str, float]

ABLATION = {
    "ms-ssim": ("net.local_encoder=trained", "train.interpolation=false", "train.descriptor=none"),
    "distilled": ("train.interpolation=false", "train.descriptor=none"),
    "distilled, dsvdd": ("train.interpolation=false", "train.descriptor=dsvdd",
                         "train.nu=0.25"),
    "distilled, gsvdd": ("train.interpolation=false",),
    "distilled, gsvdd, interpolation": (),
}
"""The rows of the paper's ablation."""


def pictures(count: int, side: int) -> Tensor:
    """Blocks of colour under noise, uint8 (N, 3, S, S); the last has a black square."""
    generator = torch.Generator().manual_seed(SEED)
    coarse = 64 + 32 * torch.randint(0, 4, (count, 3, 4, 4), generator=generator)
    blocks = coarse.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
    image_NCHW = blocks + torch.randint(-8, 9, blocks.shape, generator=generator)
    image_NCHW[-1, :, side // 4:side // 2, side // 4:side // 2] = 0
    return image_NCHW.to(torch.uint8)


def said(scored: Scored) -> Values:
    """Terms, score and heatmap of every image."""
    columns = {**scored.terms, "score": scored.score_N,
               "heatmap_mean": scored.heatmap_NHW.double().mean((1, 2)),
               "heatmap_max": scored.heatmap_NHW.amax((1, 2))}
    return {f"image {i} {name}": value for name, column_N in columns.items()
            for i, value in enumerate(column_N.tolist())}


def profile(name: str) -> Values:
    """Nets of width 2 as drawn, descriptors fitted on four pictures; two others are scored."""
    config = preset_config("small", [*TINY, "net.width=2", "net.local_encoder=trained",
                                     f"mix.profile={name}"])
    image_NCHW = pictures(6, 256)
    model = IGD(config)
    for branch in config.net.encoders:
        inputs = Inputs(model, branch, image_NCHW[:4])
        every = torch.arange(inputs.total)
        e_step(inputs, every, config.train, measured=every)
    if name == "standardised":
        set_scale(model, image_NCHW[:4])
    return said(model(image_NCHW[4:]))


def ablation(row: str) -> Values:
    """Local nets of width 4 after three epochs of two steps; every term on the way."""
    config = preset_config("small", [
        *TINY, "net.width=4", "net.branches=local", "image.size=32", "train.epochs=3",
        "train.batch_size=4", "train.lr=1e-4", "distill.iterations=6", "distill.batch_size=4",
        "distill.lr=1e-4", *ABLATION[row]],
        seed=SEED)
    image_NCHW = pictures(10, 32)
    terms: Values = {}

    def report(progress: Progress) -> None:
        terms.update({f"{progress.phase} {progress.done} {name}": value
                      for name, value in progress.metrics.items() if name != "lr"})

    teacher = load_teacher() if config.net.needs_teacher else None
    model = train_nets(image_NCHW[:8], config, teacher=teacher, report=report)
    return {**terms, **said(model(image_NCHW[8:]))}


def fast() -> Values:
    """Preset fast on twelve pictures of 64 px: calibration scores, then two others."""
    config = preset_config("fast", ["image.size=64", "calibration.folds=4"])
    image_NCHW = pictures(14, 64)
    model, calibration = fit_dense(image_NCHW[:12], config, load_teacher())
    held_out = {f"held out {i} score": score for i, score in
                enumerate(calibration.score_M.tolist())}
    return {**held_out, **said(model(image_NCHW[12:]))}


MAKERS: dict[str, Callable[[], Values]] = {
    **{f"profile {name}": functools.partial(profile, name)
       for name in ("paper", "official", "standardised")},
    **{f"ablation {row}": functools.partial(ablation, row) for row in ABLATION},
    "preset fast": fast,
}


def make(name: str, threads: int = 1) -> Values:
    with pinned_threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return MAKERS[name]()


@pytest.mark.parametrize("name", MAKERS)
def test_the_goldens_stand(name: str) -> None:
    goldens = json.loads(FILE.read_text())["values"]
    assert list(goldens) == list(MAKERS)
    assert make(name) == pytest.approx(goldens[name], rel=REL, abs=ABS)


def spread(values: dict[str, Values], others: dict[str, Values]) -> float:
    """The largest difference, relative where a value is not next to nothing."""
    return max(abs(others[name][key] - value) / max(abs(value), ABS / REL)
               for name, of in values.items() for key, value in of.items())


def write() -> None:
    values, on_two = ({name: make(name, threads) for name in MAKERS} for threads in (1, 2))
    cpu = next((line.split(":", 1)[1].strip() for line in
                Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    document: dict[str, Any] = {
        "command": "python tests/model/test_goldens.py", "torch": torch.__version__, "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version(),
        "seed": SEED, "threads": 1, "relative_tolerance": REL, "absolute_tolerance": ABS,
        "relative_spread_to_2_threads": float(f"{spread(values, on_two):.1e}"),
        "values": {name: {key: float(f"{value:.9g}") for key, value in of.items()}
                   for name, of in values.items()}}
    FILE.write_text(json.dumps(document, indent=1) + "\n")
    print(f"-> {FILE.name}: {document['relative_spread_to_2_threads']} from 1 to 2 threads")


if __name__ == "__main__":
    write()
