"""`benchmarks/gpu.py` on a CPU, with tiny nets and data, where no Ray and no S3 client is."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from igd.config import config_to_dict, preset_config
from igd.data.synthetic import generate

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
ABSENT = ("ray", "obstore", "botocore", "deltalake", "fastapi", "matplotlib")
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))  # an import of any of them fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TINY = ("net.latent=8", "train.patches_per_image=4", "distill.max_inputs=48",
        "distill.batch_size=4", "train.lr=1e-3")
FLAGS = ("--width", "8", "--epochs", "3", "--iterations", "40",
         *(word for item in TINY for word in ("--set", item)))
OVERRIDES = ("net.width=8", "train.epochs=3", "distill.iterations=40", *TINY)
ONE_CLASS = ("net.branches=local", "image.size=32")


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WITHOUT, str(SCRIPT), *map(str, words)],
                            stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class 0 is a soft spot in the middle, class 1 noise; the others have no images."""
    folder = tmp_path_factory.mktemp("fashion")
    for seed, (part, each) in enumerate((("train", 12), ("t10k", 6))):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:28, :28] - 13.5
        spots = [200 * np.exp(-(x**2 + y**2) / rng.uniform(50, 90)) for _ in range(each)]
        images = np.concatenate([np.array(spots), rng.integers(0, 256, (each, 28, 28))])
        write_idx(folder / f"{part}-images-idx3-ubyte", images.astype(np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.repeat([0, 1], each).astype(np.uint8))
    return folder


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(scope="module")
def found(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run writes of a category and of classes 0, 1 and 7, which has no images."""
    root = tmp_path_factory.mktemp("gpu")
    generate(str(root / "data"), categories=["washer"], train=12, test=3, defective=1, size=64)
    run = start("--data", root / "data", "--category", "washer", "--fashion-mnist", fashion,
                "--classes", "0,7,1", "--batches", "1,3", "--out", root / "gpu.json", *FLAGS)
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 1, errors
    document: dict[str, Any] = json.loads((root / "gpu.json").read_text())
    return document


def parts(found: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int, tuple[str, ...]]]:
    """The figures of each training, its images, its branches."""
    yield found["category"], 10, ("global", "local")  # 12 less two that stay held out
    classes = found["fashion_mnist"]["classes"]
    yield from ((classes[label], 12, ("local",)) for label in "01")


def test_it_says_where_and_of_what_it_speaks(found: dict[str, Any]) -> None:
    assert found["commit"] and found["machine"]["torch"] and found["machine"]["device"]
    of = found["category"], found["fashion_mnist"]
    for figures, protocol in zip(of, ((), ONE_CLASS), strict=True):
        assert figures["config"] == config_to_dict(
            preset_config("paper", [*OVERRIDES, *protocol]))
    assert found["seconds"] >= sum(figures["seconds"] for figures in of) - 0.05  # rounded


def test_every_phase_ran_to_its_end_and_learnt(found: dict[str, Any]) -> None:
    for figures, images, branches in parts(found):
        assert figures["training_images"] == images
        assert list(figures["phases"]) == [f"{branch} {phase}" for branch in branches
                                           for phase in ("distil", "em")]
        for name, phase in figures["phases"].items():
            assert phase["done"] == phase["of"] == (40 if "distil" in name else 3)
            assert phase["inputs_per_s"] > 0
            term = "distillation" if "distil" in name else "reconstruction"
            assert 0 < phase["last"][term] < phase["first"][term]
        em_s = sum(figures["phases"][f"{branch} em"]["seconds"] for branch in branches)
        assert figures["trained_images_per_s"] == pytest.approx(3 * images / em_s)
        assert em_s < figures["seconds"]


def test_metrics_lie_in_their_intervals(found: dict[str, Any]) -> None:
    for figures, _, _ in parts(found):
        metrics = {name: metric for name, metric in figures["evaluation"].items()
                   if isinstance(metric, dict)}
        assert {"image_auroc", "image_ap"} <= set(metrics)
        for metric in metrics.values():
            assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
    evaluation = found["category"]["evaluation"]
    assert {"pixel_auroc", "au_pro"} <= set(evaluation)
    assert (evaluation["images"], evaluation["anomalous"], evaluation["with_mask"]) == (6, 3, 6)


def test_noise_is_told_from_a_spot_and_the_mean_is_that_of_the_classes(
        found: dict[str, Any]) -> None:
    figures = found["fashion_mnist"]
    evaluations = [figures["classes"][label]["evaluation"] for label in "01"]
    assert [(of["images"], of["anomalous"]) for of in evaluations] == [(12, 6)] * 2
    aurocs = [of["image_auroc"]["value"] for of in evaluations]
    assert aurocs[0] > 0.9
    assert figures["mean_image_auroc"] == pytest.approx(np.mean(aurocs))


def test_a_pace_for_every_batch(found: dict[str, Any]) -> None:
    for figures, _, _ in parts(found):
        pace = figures["scored_images_per_s"]
        assert list(pace) == ["1", "3"]
        assert all(math.isfinite(rate) and rate > 0 for rate in pace.values())


def test_a_part_that_fails_says_so_and_the_others_go_on(found: dict[str, Any]) -> None:
    classes = found["fashion_mnist"]["classes"]
    assert list(classes) == ["0", "7", "1"]
    assert classes["7"]["error"].startswith("ModelError: training images are")
    assert not any("error" in figures for figures, _, _ in parts(found))


def test_no_class_is_begun_after_the_time(fashion: Path, tmp_path: Path) -> None:
    run = start("--fashion-mnist", fashion, "--classes", "0,1", "--minutes", "0",
                "--out", tmp_path / "gpu.json")
    _, errors = run.communicate(timeout=100)
    assert run.returncode == 0, errors
    figures = json.loads((tmp_path / "gpu.json").read_text())["fashion_mnist"]
    assert (figures["classes"], figures["out_of_time"]) == ({}, [0, 1])
    assert figures["mean_image_auroc"] is None


def test_a_killed_run_leaves_what_was_done(fashion: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    run = start("--fashion-mnist", fashion, "--classes", "0", "--out", out, *FLAGS,
                "--epochs", "1000000", "--set", "net.local_encoder=trained")
    deadline = time.monotonic() + 100
    while not out.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    run.kill()
    _, errors = run.communicate()
    assert out.exists(), errors
    phase = json.loads(out.read_text())["fashion_mnist"]["classes"]["0"]["phases"]["local em"]
    assert 0 <= phase["done"] < phase["of"] and phase["last"]["reconstruction"] > 0
