"""What each attempt to make the trained nets earn their cost brings over preset `fast`.

    python benchmarks/nets.py DATA [--seeds 2] [--max-train 209] [--variants small,all] [--go-on]

DATA is a folder with `mvtec_ad/` and `magnetic_tile/`; bottle, and the tiles split by clusters of
near-twins. Every variant of preset `small` is trained on the same normals (of the tiles a random
`--max-train`), a fifth held out, near-duplicates on one side, and judged on the test images in
profile `paper`, in profile `standardised` (the scale from all held-out normals), by each term
alone, and by the sum of the latter and `fast`, which is fitted on the same normals. In process,
one thread. Results are written after every training to benchmarks/results/nets.json; with
`--go-on` an interrupted benchmark does what is missing.

Variants are named before any test image is scored, and none is chosen by these figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from spine import commit, machine

from igd import registry
from igd.config import Config, preset_config
from igd.data.datasets import Loaded, TestSet, load_normals, load_tests, normal_images, test_images
from igd.data.magnetic_tile import arrange
from igd.data.twins import draw_groups
from igd.model.igd import IGD
from igd.model.scored import Scored
from igd.score.bootstrap import image_metrics, pixel_metrics
from igd.score.scorer import pinned_threads
from igd.train.calibrate import fit_dense, set_scale, split_normals
from igd.train.loop import Progress, train_nets

RESULT = Path(__file__).parent / "results" / "nets.json"
VARIANTS = {
    "small": (),
    "off_bound": ("train.kappa=8",),  # sigma^2 = 8 times the mean distance, not half of it
    "dense_local": ("net.local_encoder=teacher",),  # the teacher's dense features, and a decoder
    "all": ("net.local_encoder=teacher", "train.kappa=8"),
    "converged": ("distill.iterations=10000",),  # takes as long as all others together
}
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--max-train", type=int, default=209)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--categories", default="bottle,tile")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that the results have")
    options = parser.parse_args()
    document: Figures = {"machine": machine(), "max_train": options.max_train, "runs": []}
    if options.go_on and RESULT.exists():
        document["runs"] = json.loads(RESULT.read_text())["runs"]
    names = options.categories.split(",")
    with tempfile.TemporaryDirectory() as work, pinned_threads(1):
        if "tile" in names:
            arrange(str(options.data / "magnetic_tile"), work)
        places = {"bottle": str(options.data / "mvtec_ad"), "tile": work}
        sets = {name: load(places[name], name, options.max_train) for name in names}
        for variant in ["fast", *options.variants.split(",")]:
            for seed in range(options.seeds):
                for name, (normals, tests) in sets.items():
                    add(document, variant, name, seed, normals, tests)


def add(document: Figures, variant: str, category: str, seed: int, normals: Loaded,
        tests: TestSet) -> None:
    """One run more, unless it is there."""
    about = {"category": category, "seed": seed, "variant": variant}
    if any(about.items() <= run.items() for run in document["runs"]):
        return
    fast = fit_fast(normals, tests, seed)
    if variant == "fast":
        run = {**about, **judged(tests, fast)}
    else:
        config = preset_config("small", VARIANTS[variant], seed=seed)
        run = {**about, "settings": VARIANTS[variant], **attempt(config, normals, tests, fast)}
        print(category, seed, variant, headline(run), flush=True)
    document["runs"].append({**run, "commit": commit()})
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


def load(data: str, category: str, most: int) -> tuple[Loaded, TestSet]:
    config = preset_config("small")
    loaded = load_normals(normal_images(data, category), config)
    chosen = np.sort(np.random.default_rng(0).permutation(len(loaded.keys))[:most])
    some = replace(loaded, images_NHWC=loaded.images_NHWC[chosen],
                   sha256=tuple(loaded.sha256[i] for i in chosen))
    return some, load_tests(test_images(data, category), config.image)


def groups(normals: Loaded, config: Config) -> torch.Tensor:
    return torch.from_numpy(draw_groups(normals.images_NHWC, normals.sha256, config))


def fit_fast(normals: Loaded, tests: TestSet, seed: int) -> Scored:
    config = preset_config("fast", seed=seed)
    model, _ = fit_dense(as_input(normals.images_NHWC), config, registry.load_teacher(),
                         groups(normals, config))
    scored: Scored = model(as_input(tests.images_NHWC))
    return scored


def attempt(config: Config, normals: Loaded, tests: TestSet, fast: Scored) -> Figures:
    """Trains a variant and judges it in every mix."""
    image_NCHW = as_input(normals.images_NHWC)
    train_N, held_M = split_normals(groups(normals, config), config)
    curve: list[Progress] = []
    began = time.monotonic()
    model = train_nets(image_NCHW[train_N], config, teacher=registry.load_net_teacher(config.net),
                       report=curve.append)
    seconds = time.monotonic() - began
    paper = model(as_input(tests.images_NHWC))
    scaled = with_scale(model, config, image_NCHW[held_M])
    standardised = scaled.mix.score(paper.terms)
    mixes = {"standardised": standardised, "fast + standardised": fast.score_N + standardised,
             **{f"{name} alone": term for name, term in paper.terms.items()
                if not name.endswith("_gsvdd")}}
    return {
        "seconds": round(seconds, 1), **judged(tests, paper),
        "image_auroc_of": {name: plain(image_metrics(tests.is_anomalous_N, score_N.numpy()))[
            "image_auroc"] for name, score_N in mixes.items()},
        "last": {f"{step.branch} {step.phase}": step.metrics for step in curve}}


def with_scale(model: IGD, config: Config, held_MCHW: torch.Tensor) -> IGD:
    """The same nets in profile `standardised`."""
    changed = replace(config, mix=replace(config.mix, profile="standardised"))
    scaled = registry.build_model(changed)
    assert isinstance(scaled, IGD)
    state = {name: value for name, value in model.state_dict().items() if name != "mix.scale_T2"}
    scaled.load_state_dict(state, strict=False)
    set_scale(scaled.eval(), held_MCHW)
    return scaled


def judged(tests: TestSet, scored: Scored) -> Figures:
    use_N = tests.masked_N
    return {**plain(image_metrics(tests.is_anomalous_N, scored.score_N.numpy())),
            **plain(pixel_metrics(tests.mask_NHW[use_N], scored.heatmap_NHW.numpy()[use_N]))}


def plain(metrics: Any) -> Figures:
    return {name: found and [found.value, found.low, found.high]
            for name, found in metrics.items()}


def headline(run: Figures) -> str:
    mixes = {name: round(value[0], 3) for name, value in run["image_auroc_of"].items()}
    parts = {name: round(run[name][0], 3) for name in ("image_auroc", "pixel_auroc", "au_pro")}
    return f"{run['seconds']} s {parts} {mixes}"


def as_input(image_NHWC: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image_NHWC).permute(0, 3, 1, 2).contiguous()


if __name__ == "__main__":
    main()
