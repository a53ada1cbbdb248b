"""How much preset `fast` and the baselines on its features vary over the normals they saw.

    python benchmarks/refits.py DATA [--refits 5] [--share 0.8] [--only bottle,tiles,squashed]

`fast` is closed form: no seed changes it, so its spread is that over refits on random subsets of
the normals. DATA is a folder with `mvtec_ad/` and `magnetic_tile/`; the tiles (split by clusters
of near-twins) cropped as by default, and whole. In process, one thread; results go to
benchmarks/results/refits.json after every refit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nets import plain
from spine import commit, machine

from igd import registry
from igd.config import preset_config
from igd.data.datasets import TestSet, load_normals, load_tests, normal_images, test_images
from igd.data.magnetic_tile import arrange
from igd.data.twins import draw_groups
from igd.model.dense import fit_standardised
from igd.score.baselines import OF_FEATURES, OF_THE_GRID, BaselineScores, Sample, sample_of
from igd.score.bootstrap import image_metrics, pixel_metrics
from igd.score.scorer import pinned_threads

RESULT = Path(__file__).parent / "results" / "refits.json"
PARTS = {"bottle": ("mvtec_ad", "bottle", ()), "tiles": ("tiles", "tile", ()),
         "squashed": ("tiles", "tile", ("image.fit=squash",))}
RESAMPLES = 2  # the intervals stand in the accuracy tables; here the values count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--refits", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    document: dict[str, Any] = {"commit": commit(), "machine": machine(), "share": options.share,
                                "runs": []}
    with tempfile.TemporaryDirectory() as work, pinned_threads(1):
        if set(options.only.split(",")) & {"tiles", "squashed"}:
            arrange(str(options.data / "magnetic_tile"), f"{work}/tiles")
        for part in options.only.split(","):
            folder, category, settings = PARTS[part]
            data = f"{work}/tiles" if folder == "tiles" else str(options.data / folder)
            config = preset_config("fast", settings)
            normals = load_normals(normal_images(data, category), config)
            tests = load_tests(test_images(data, category), config.image)
            train = sample_of(normals.images_NHWC, normals.size_N2)
            test = sample_of(tests.images_NHWC, tests.size_N2)
            for refit in range(options.refits):
                chosen = np.random.default_rng(refit).permutation(len(train))
                chosen = np.sort(chosen[:round(options.share * len(train))])
                subset = part_of(train, chosen)
                group_N = torch.from_numpy(draw_groups(
                    subset.images_NHWC, [normals.sha256[i] for i in chosen],
                    replace(config, seed=refit)))
                found = {name: judged(tests, scores) for name, scores in methods(
                    subset, test, settings, refit, group_N).items()}
                document["runs"].append({"part": part, "refit": refit, "normals": len(subset),
                                         "methods": found})
                RESULT.write_text(json.dumps(document, indent=1) + "\n")
                print(part, refit, found, flush=True)


def part_of(sample: Sample, index: np.ndarray[Any, Any]) -> Sample:
    assert sample.features is not None
    return replace(sample, images_NHWC=sample.images_NHWC[index],
                   source_size_N2=sample.source_size_N2[index],
                   features=sample.features[torch.from_numpy(index)])


def methods(train: Sample, test: Sample, settings: tuple[str, ...], seed: int,
            group_N: torch.Tensor) -> dict[str, BaselineScores]:
    assert train.features is not None and test.features is not None
    model, _ = fit_standardised(train.features, preset_config("fast", settings, seed=seed),
                                registry.load_teacher(), group_N)
    dense_N, pooled_N, grid_NP = model.distances(test.features)
    fast = BaselineScores(model.mix(dense_N, pooled_N).numpy(), model.heatmap(grid_NP).numpy())
    return {"fast": fast, **{name: fit(train).score(test)
                             for name, fit in (OF_FEATURES | OF_THE_GRID).items()}}


def judged(tests: TestSet, found: BaselineScores) -> dict[str, float]:
    metrics = image_metrics(tests.is_anomalous_N, found.scores_N, resamples=RESAMPLES)
    if found.heatmaps_NHW is not None:
        use_N = tests.masked_N
        metrics |= pixel_metrics(tests.mask_NHW[use_N], found.heatmaps_NHW[use_N],
                                 resamples=RESAMPLES)
    return {name: round(value[0], 5) for name, value in plain(metrics).items()}


if __name__ == "__main__":
    main()
