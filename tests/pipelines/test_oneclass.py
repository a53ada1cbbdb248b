"""The one-class protocol on a small dataset of stripes: real nets, real Ray."""

from __future__ import annotations

import gzip
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from igd.data.oneclass import load
from igd.errors import ConfigError, DataError
from igd.pipelines.cluster import Resources
from igd.pipelines.oneclass import ABLATION, Case, protocol_config, run_case, run_protocol
from igd.report.text import protocol_lines
from igd.score.bootstrap import Estimate
from igd.score.metrics import image_auroc
from igd.score.oneclass import ProtocolResult
from igd.score.scorer import pinned_threads

TINY = ("net.width=2", "net.latent=8", "distill.iterations=8", "train.epochs=1",
        "train.batch_size=8")
CLASS_NAMES = ("T-shirt/top", "Dress")
LABELS = (0, 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST's files; class k has a stripe in column 2 k."""
    folder = tmp_path_factory.mktemp("fashion")
    for seed, (part, count) in enumerate({"train": 120, "t10k": 60}.items()):
        rng = np.random.default_rng(seed)
        label_N = np.arange(count, dtype=np.uint8) % 10
        image_NHW = rng.integers(0, 40, (count, 28, 28), dtype=np.uint8)
        for image_HW, label in zip(image_NHW, label_N, strict=True):
            image_HW[:, 2 * label:2 * label + 3] += 200
        for name, array in (("images-idx3", image_NHW), ("labels-idx1", label_N)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(
                gzip.compress(header + array.tobytes()))
    return folder


@pytest.fixture(scope="module")
def result(dataset: Path, cluster: Resources) -> ProtocolResult:
    return run_protocol("fashion-mnist", str(dataset), cluster, labels=LABELS, preset="small",
                        settings=TINY, seeds=2, ensemble=2, ablation=True)


def test_every_row_of_the_ablation_is_what_it_says() -> None:
    said = {}
    for row in ABLATION:
        config = protocol_config("small", row, TINY)
        said[row] = (config.net.local_encoder, config.train.descriptor, config.train.interpolation)
        assert (config.net.branches, config.image.size) == ("local", 32)
    assert said == {"ms_ssim": ("trained", "none", False), "kd": ("distilled", "none", False),
                    "kd_dsvdd": ("distilled", "dsvdd", False),
                    "kd_gsvdd": ("distilled", "gsvdd", False),
                    "igd": ("distilled", "gsvdd", True)}
    assert protocol_config("paper", "igd").train.epochs == 128  # Section 4.1


def test_every_class_seed_and_row_is_judged(result: ProtocolResult) -> None:
    assert result.classes == CLASS_NAMES
    baselines = ["mean_brightness", "image_size", "l1_mean_image", "pca", "knn", "mahalanobis"]
    assert list(result.rows)[-len(baselines):] == baselines
    for row in ABLATION:
        assert [len(seeds) for seeds in result.rows[row].values()] == [4, 4]
        assert [t["seed"] for t in result.training[row]["Dress"]] == [0, 1, 2, 3]
    assert len(result.rows["igd, ensemble of 2"]["Dress"]) == 2
    assert result.rows["image_size"]["Dress"] == [Estimate(0.5, 0.5, 0.5)]
    assert result.rows["l1_mean_image"]["Dress"][0].value > 0.9  # the stripe is in its place
    json.dumps(result.document())


def test_a_task_on_ray_is_the_case_in_process(result: ProtocolResult, dataset: Path) -> None:
    data = load("fashion-mnist", str(dataset))
    is_anomalous_N = data.test_label_N != 3
    scores = []
    with pinned_threads(1):
        for seed in (0, 1):
            found = run_case(Case(dataset="fashion-mnist", uri=str(dataset), label=3, row="igd",
                                  config=protocol_config("small", "igd", TINY, seed=seed)))
            assert found.training["images"] == 12
            scores.append(found.scores_N)
    for seed in (0, 1):
        assert image_auroc(is_anomalous_N, scores[seed]) == pytest.approx(
            result.rows["igd"]["Dress"][seed].value, abs=1e-6)
    assert image_auroc(is_anomalous_N, (scores[0] + scores[1]) / 2) == pytest.approx(
        result.rows["igd, ensemble of 2"]["Dress"][0].value, abs=1e-6)


def test_the_table_has_a_line_per_row_and_the_papers_figure(result: ProtocolResult) -> None:
    head, columns, *rows, paper = protocol_lines(result)
    assert "fashion-mnist, preset small" in head and columns.split() == [*CLASS_NAMES, "mean"]
    assert [row.strip() for row in result.rows] == [line[:30].strip() for line in rows]
    assert ".933, ensemble of five .935" in paper or ".933, ensemble of five .936" in paper


def test_the_first_error_ends_the_protocol(dataset: Path, cluster: Resources) -> None:
    with pytest.raises(DataError, match="no train-images-idx3-ubyte"):
        run_protocol("fashion-mnist", str(dataset.parent), cluster, labels=(0,),
                     preset="small", settings=TINY)


def test_a_class_with_no_anomalous_image_is_an_error_that_names_it(
        dataset: Path, tmp_path: Path, cluster: Resources) -> None:
    for path in dataset.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 60) + bytes([3]) * 60
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(DataError, match=rf"{tmp_path}: class Dress has 12 training images and 60 "
                                        "of the 60 test images; expected"):
        run_protocol("fashion-mnist", str(tmp_path), cluster, labels=(3,), preset="small",
                     settings=TINY)


def test_a_model_that_cannot_be_trained_fails_alone(dataset: Path, tmp_path: Path,
                                                    cluster: Resources) -> None:
    """Every training image of class 0 is one and the same."""
    for path in dataset.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "train-images-idx3-ubyte.gz"
    raw = bytearray(gzip.decompress(file.read_bytes()))
    for i in range(0, 120, 10):
        raw[16 + 784 * i:16 + 784 * (i + 1)] = raw[16:16 + 784]
    file.write_bytes(gzip.compress(bytes(raw)))
    said: list[str] = []
    result = run_protocol("fashion-mnist", str(tmp_path), cluster, labels=LABELS, preset="small",
                          settings=TINY, finished=lambda done, of, text: said.append(text))
    name = "igd, T-shirt/top, seed 0"
    assert set(result.failed) == {name, "baselines, T-shirt/top"}
    assert "the teacher says the same of all 12" in result.failed[name]
    assert "singular" in result.failed["baselines, T-shirt/top"]
    assert any(f"{name} FAILED: " in text for text in said)
    assert list(result.rows["igd"]) == list(result.rows["mahalanobis"]) == ["Dress"]
    assert list(result.rows["knn"]) == list(CLASS_NAMES)
    assert re.search(r"^  igd +- +\.\d+ \(", "\n".join(protocol_lines(result)), re.M)


@pytest.mark.parametrize(("setting", "expected"), [
    ("train.descriptor=dsvdd", "whose rows are made of it"),
    (" net.local_encoder =trained", "whose rows are made of it"),
    ("mix.profile=standardised", "which trains on all normals")])
def test_a_setting_that_would_mislabel_a_row_is_refused(setting: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        protocol_config("small", "igd", [setting])


def test_preset_fast_has_no_32x32_nets() -> None:
    with pytest.raises(ConfigError, match=r"'fast' cannot be used .* small"):
        protocol_config("fast", "igd")
