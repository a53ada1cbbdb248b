"""Training on Ray: in parallel, each on its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from igd import registry
from igd.config import preset_config
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.progress import Event
from igd.pipelines.train_all import train_all
from igd.score.scorer import Scorer

FAST = ["image.size=64", "calibration.folds=3"]


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """Three categories: a good one, one with three images, one with a damaged file."""
    root = tmp_path / "data"
    for name in ("weave", "few", "damaged"):
        shutil.copytree(tiny_data / "weave" / "train", root / name / "train")
    for path in sorted((root / "few").rglob("*.png"))[3:]:
        path.unlink()
    for path in sorted((root / "damaged").rglob("*.png"))[:4]:
        path.write_bytes(path.read_bytes()[:100])
    return root


def tasks(data: Path, models: Path, names, preset="fast", settings=FAST) -> list[CategoryTask]:
    return [CategoryTask(data=str(data), category=name, models=str(models),
                         config=preset_config(preset, settings)) for name in names]


def test_a_category_that_fails_fails_alone(cluster, data, tmp_path) -> None:
    events: list[Event] = []
    outcomes = train_all(tasks(data, tmp_path / "models", ["weave", "few", "damaged"]), cluster,
                         report=events.append)
    said = {outcome.category: outcome for outcome in outcomes}
    assert said["weave"].version and said["weave"].error is None
    assert "3 of 3 training images" in said["few"].error
    assert "unreadable: train/good/000.png (truncated)" in said["damaged"].error
    assert registry.list_categories(str(tmp_path / "models")) == ["weave"]
    assert ("weave", "fitting") in {(event.category, event.state) for event in events}


def test_a_damaged_training_image_is_named_and_skipped(cluster, data, tmp_path) -> None:
    settings = [*FAST, "calibration.max_unreadable=0.5"]
    outcome, = train_all(tasks(data, tmp_path / "models", ["damaged"], settings=settings), cluster)
    assert outcome.images == 20
    assert outcome.skipped[0] == ("train/good/000.png", "truncated")


def test_on_the_cluster_and_in_process_the_model_is_the_same(cluster, data, tmp_path) -> None:
    task, = tasks(data, tmp_path / "here", ["weave"])
    train_category(task)
    train_all(tasks(data, tmp_path / "there", ["weave"]), cluster)
    here, there = (Scorer.load(str(tmp_path / place / "weave")) for place in ("here", "there"))
    assert here.bundle.calibration.equals(there.bundle.calibration)
    for name, tensor in here.bundle.model.state_dict().items():
        assert tensor.equal(there.bundle.model.state_dict()[name]), name


@pytest.mark.timeout(300)
def test_the_nets_are_trained_by_ray_train(cluster, tiny_data, tmp_path) -> None:
    from igd.data.synthetic import generate

    generate(str(tmp_path / "data"), categories=["weave"], train=12, test=1, defective=1)
    settings = ["train.epochs=2", "net.width=2", "train.batch_size=4", "train.patches_per_image=4",
                "distill.iterations=20", "distill.max_inputs=64"]
    outcome, = train_all(tasks(tmp_path / "data", tmp_path / "models", ["weave"], "small",
                               settings), cluster)
    assert outcome.error is None
    bundle = registry.load_bundle(str(tmp_path / "models"), "weave")
    assert bundle.training["calibration"] == "split-conformal"
    assert bundle.calibration.num_rows == 2  # a fifth of twelve
    assert bundle.preset == "small"
