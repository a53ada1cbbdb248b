"""Which versions go in production, and what is said of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from igd import registry
from igd.config import preset_config
from igd.errors import LostRaceError
from igd.pipelines import promotion
from igd.pipelines.category import CategoryTask, train_category
from igd.score.compare import Comparison, compare

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def task(tiny_data: Path, tmp_path: Path) -> CategoryTask:
    shutil.copytree(tiny_data / "weave" / "train", tmp_path / "data" / "weave" / "train")
    return CategoryTask(data=str(tmp_path / "data"), category="weave", promote="if-better",
                        models=str(tmp_path / "models"),
                        config=preset_config("fast", ["image.size=64", "calibration.folds=3"]))


def in_use(task: CategoryTask) -> str:
    return registry.production_version(task.models, task.category)


def test_without_a_version_in_production_the_new_one_is_taken(task: CategoryTask) -> None:
    outcome = train_category(task)
    assert in_use(task) == outcome.version and outcome.why == "in production"


def test_a_worse_version_is_kept_out_and_the_reason_told(task: CategoryTask) -> None:
    good = train_category(task)
    blind = train_category(replace(task, config=preset_config("small", [  # nets hardly trained
        "net.width=1", "train.epochs=1", "train.patches_per_image=1", "distill.iterations=1",
        "distill.max_inputs=8", "net.global_encoder=trained", "calibration.fraction=0.5"])))
    assert blind.version != good.version and in_use(task) == good.version
    assert blind.why.startswith(f"kept {good.version}") and "is worse, with balanced" in blind.why
    again = train_category(replace(task, since="99990101T000000"))  # as good as the one in use
    assert in_use(task) == again.version and "not worse than" in again.why
    assert [record.why for record in registry.history(task.models, "weave")] == [
        "trained", again.why]


def test_a_better_version_replaces_one_that_was_trained_on_something_else(
        task: CategoryTask, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    folder = tmp_path / "noise" / "weave"
    folder.mkdir(parents=True)
    for i in range(20):
        Image.fromarray(noise.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
    train_category(replace(task, data=str(tmp_path / "noise")))
    good = train_category(task)
    assert in_use(task) == good.version and "better than" in good.why


def test_a_damaged_version_in_production_is_replaced(task: CategoryTask) -> None:
    damaged = train_category(task)
    weights = Path(task.models) / "weave" / str(damaged.version) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    good = train_category(replace(task, since="99990101T000000"))
    assert in_use(task) == good.version and "cannot be used" in good.why


def test_never_means_never(task: CategoryTask) -> None:
    outcome = train_category(replace(task, promote="never"))
    assert registry.list_categories(task.models) == [] and "not put in production" in outcome.why
    assert train_category(task).version == outcome.version == in_use(task)  # asked for later


def test_a_version_that_another_training_put_in_production_meanwhile_is_compared_too(
        task: CategoryTask, monkeypatch: pytest.MonkeyPatch) -> None:
    train_category(task)
    other = train_category(replace(task, promote="never", since="99990101T000000"))
    compared: list[str] = []

    def slow(candidate: registry.Bundle, production: registry.Bundle, *args: Any,
             **settings: Any) -> Comparison:
        compared.append(production.version)
        if len(compared) == 1:
            registry.promote(task.models, "weave", str(other.version))
        return compare(candidate, production, *args, **settings)

    monkeypatch.setattr(promotion, "compare", slow)
    mine = train_category(replace(task, since="99990101T000000"))
    assert compared[1:] == [other.version] and in_use(task) == mine.version
    assert other.version in mine.why


def test_comparisons_without_an_end_are_given_up(
        task: CategoryTask, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_category(task)
    monkeypatch.setattr(promotion, "_better", lambda *args: (
        registry.promote(task.models, "weave", str(first.version)) > 0, "better"))
    with pytest.raises(LostRaceError, match="is kept, and not in production"):
        train_category(replace(task, since="99990101T000000"))
    assert in_use(task) == first.version
