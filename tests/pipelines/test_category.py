"""One category in process: what calibrates its score, and what sets the score's scale."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from igd import registry
from igd.config import Config, preset_config
from igd.data.datasets import load_normals, normal_images
from igd.errors import DataError, StorageError
from igd.pipelines import category
from igd.pipelines.category import CategoryTask, normal_groups, train_category
from igd.score.scorer import THREADS, pinned_threads
from igd.train.calibrate import split_normals
from igd.train.workers import Workers

CATEGORY = "weave"  # 24 normals


def config(*overrides: str) -> Config:
    return preset_config("small", [
        "net.branches=local", "image.size=32", "net.width=2", "net.latent=8", "train.epochs=2",
        "net.local_encoder=trained", "mix.profile=standardised", "calibration.fraction=0.5",
        *overrides])


def train(data: Path, models: Path, config: Config) -> registry.Bundle:
    train_category(CategoryTask(data=str(data), category=CATEGORY, models=str(models),
                                config=config))
    return registry.load_bundle(str(models), CATEGORY)


def test_the_scale_of_standardised_scores_comes_from_images_that_calibrate_nothing(
        tiny_data, tmp_path) -> None:
    bundle = train(tiny_data, tmp_path, config())
    loaded = load_normals(normal_images(str(tiny_data), CATEGORY), config())
    trained, held = ({loaded.keys[i] for i in part}
                     for part in split_normals(normal_groups(loaded, config()), config()))
    scale, calibration = bundle.training["scale_images"], bundle.calibration["image"].to_pylist()
    assert len(trained) == 12 and len(scale) == len(calibration) == 6
    assert set(scale) | set(calibration) == held and not set(scale) & set(calibration)

    def scores(keys: list[str]) -> torch.Tensor:
        chosen = torch.from_numpy(loaded.images_NHWC[[loaded.keys.index(key) for key in keys]])
        with pinned_threads(THREADS):
            return bundle.model(chosen.permute(0, 3, 1, 2).contiguous()).score_N

    # each of two terms has mean 0 and deviation 1 on them
    assert scores(scale).mean().item() == pytest.approx(0, abs=1e-9)
    assert 0 < scores(scale).std().item() <= 2
    # the bundle as it was read back scores as it was calibrated
    assert scores(calibration).tolist() == bundle.calibration["score"].to_pylist()


def test_rows_of_a_parquet_file_train_the_model_of_a_folder(tiny_data, tmp_path) -> None:
    paths = sorted((tiny_data / CATEGORY / "train" / "good").iterdir())
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [path.read_bytes() for path in paths],
                             "path": [f"train/good/{path.name}" for path in paths]}),
                   tmp_path / "data" / f"{CATEGORY}.parquet", row_group_size=7)
    fast = preset_config("fast", ["image.size=64", "calibration.folds=4"])
    one, other = (train(data, tmp_path / "models" / str(number), fast)
                  for number, data in enumerate((tiny_data, tmp_path / "data")))
    assert one.training["fingerprint"]["data"] == other.training["fingerprint"]["data"]
    assert one.calibration.equals(other.calibration)
    weights, same = one.model.state_dict(), other.model.state_dict()
    assert weights.keys() == same.keys() and all(weights[k].equal(same[k]) for k in weights)


def test_other_profiles_calibrate_on_all_that_was_held_out(tiny_data, tmp_path) -> None:
    bundle = train(tiny_data, tmp_path, config("mix.profile=paper"))
    assert bundle.training["scale_images"] == []
    assert bundle.calibration.num_rows == 12


def test_too_few_for_a_scale_are_refused_before_training(tiny_data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("igd.pipelines.category.train_nets", None)
    with pytest.raises(DataError, match=r"2 normal images are held out .* expected at least 4"):
        train(tiny_data, tmp_path, config("calibration.fraction=0.1"))
    assert not list(tmp_path.iterdir())


def test_copies_of_a_normal_do_not_calibrate_what_was_trained_on_it(tiny_data, tmp_path) -> None:
    folder = tmp_path / "data" / CATEGORY / "train" / "good"
    shutil.copytree(tiny_data / CATEGORY / "train" / "good", folder)
    for path in sorted(folder.iterdir()):  # each once more, half as bright
        pixels = np.asarray(Image.open(path), np.float64)
        Image.fromarray((pixels / 2).round().astype(np.uint8)).save(folder / f"dim-{path.name}")
    bundle = train(tmp_path / "data", tmp_path / "models", config("mix.profile=paper"))
    assert bundle.training["images"] == 48 and bundle.training["near_duplicate_groups"] == 24
    held = {PurePosixPath(key).name.removeprefix("dim-")
            for key in bundle.calibration["image"].to_pylist()}
    assert bundle.calibration.num_rows == 24 and len(held) == 12  # both of each


def test_normals_that_are_all_one_picture_are_refused(tiny_data, tmp_path) -> None:
    folder = tmp_path / "data" / CATEGORY / "train" / "good"
    folder.mkdir(parents=True)
    first = tiny_data / CATEGORY / "train" / "good" / "000.png"
    for i in range(12):
        shutil.copy(first, folder / f"{i}.png")
    with pytest.raises(DataError, match="all 12 normal images are near-duplicates"):
        train(tmp_path / "data", tmp_path / "models", config())


def test_names_that_are_not_utf_8_are_kept_escaped(tiny_data, tmp_path) -> None:
    folder = tmp_path / "data" / CATEGORY
    shutil.copytree(tiny_data / CATEGORY / "train" / "good", folder)
    os.rename(folder / "000.png", os.fsencode(folder / "Geh") + b"\xe4use.png")
    bundle = train(tmp_path / "data", tmp_path / "models", preset_config(
        "fast", ["image.size=64", "calibration.folds=3"]))
    assert "Geh\\xe4use.png" in bundle.calibration["image"].to_pylist()


class OneOfTwo(Workers):
    """The first of two workers, whose partner is well; records what is asked."""

    asked: ClassVar[list[bool]] = []

    def all_well(self, well: bool, device: str) -> bool:
        self.asked.append(well)
        return well


@pytest.mark.parametrize("breaks", ["normal_images", "Room.load", "finished_version"])
def test_a_worker_that_cannot_begin_tells_the_others_before_it_stops(
        tiny_data, tmp_path, monkeypatch, breaks) -> None:
    """Else they would wait for it until the process group gives up."""
    def broken(*args: object, **settings: object) -> None:
        raise StorageError("out of reach")

    monkeypatch.setattr(f"{category.__name__}.{breaks}", broken)
    monkeypatch.setattr(OneOfTwo, "asked", [])
    with pytest.raises(StorageError, match="out of reach"):
        train_category(CategoryTask(data=str(tiny_data), category=CATEGORY, models=str(tmp_path),
                                    config=config()), workers=OneOfTwo(0, 2))
    assert OneOfTwo.asked == [False]


def test_a_finished_version_ends_it_for_all_workers(tiny_data, tmp_path, monkeypatch) -> None:
    task = CategoryTask(data=str(tiny_data), category=CATEGORY, models=str(tmp_path),
                        config=preset_config("fast", ["image.size=64", "calibration.folds=3"]))
    version = train_category(task).version
    monkeypatch.setattr(OneOfTwo, "asked", [])
    found = train_category(task, workers=OneOfTwo(0, 2))
    assert found.already and found.version == version and found.seconds > 0
    assert OneOfTwo.asked == [False]  # so the other goes no further either


def test_a_worker_whose_leader_stops_trains_nothing(tiny_data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(OneOfTwo, "all_well", lambda *_: False)
    outcome = train_category(CategoryTask(
        data=str(tiny_data), category=CATEGORY, models=str(tmp_path), config=config()),
        workers=OneOfTwo(1, 2))
    assert outcome.version is None and outcome.error is None
    assert registry.category_folders(str(tmp_path)) == []
