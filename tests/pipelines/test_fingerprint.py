"""What makes two trainings the same."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from igd import registry
from igd.config import preset_config
from igd.errors import ModelError
from igd.pipelines import fingerprint
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.progress import Event

CONFIG = preset_config("fast", ["image.size=64", "calibration.folds=3"])


@pytest.fixture
def task(tiny_data: Path, tmp_path: Path) -> CategoryTask:
    shutil.copytree(tiny_data / "weave" / "train", tmp_path / "data" / "weave" / "train")
    return CategoryTask(data=str(tmp_path / "data"), category="weave",
                        models=str(tmp_path / "models"), config=CONFIG)


def first_image(task: CategoryTask) -> Path:
    return Path(task.data) / "weave" / "train" / "good" / "000.png"


def versions(task: CategoryTask) -> list[str]:
    return registry.list_versions(task.models, "weave")


def news(task: CategoryTask) -> list[str]:
    """What a training says is new."""
    events: list[Event] = []
    assert not train_category(task, events.append).already
    return [event.text for event in events if event.state == "new training"]


def test_what_is_finished_is_not_trained_again(task: CategoryTask) -> None:
    first = train_category(task)
    events: list[Event] = []
    again = train_category(task, events.append)
    assert again.already and again.version == first.version and versions(task) == [first.version]
    assert (again.images, again.smallest_alpha) == (24, first.smallest_alpha)
    assert {event.state for event in events} == {"looking"}  # no image was read
    forced = train_category(replace(task, since="99990101T000000"))
    assert not forced.already
    assert registry.production_version(task.models, "weave") == forced.version


def test_trained_again_on_request_a_version_counts_from_then_on(task: CategoryTask) -> None:
    """What was killed after it had saved its version does not train a third time."""
    old = train_category(task)
    task = replace(task, since=old.version[:-1] + "~")  # younger than the old one
    new = train_category(task)
    assert not new.already and train_category(task).version == new.version
    assert versions(task) == [old.version, new.version]


def test_a_damaged_version_is_not_a_finished_one(task: CategoryTask) -> None:
    first = train_category(replace(task, promote="never"))
    weights = Path(task.models) / "weave" / str(first.version) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    second = train_category(task)
    assert not second.already
    assert registry.production_version(task.models, "weave") == second.version
    (Path(task.models) / "weave" / str(second.version) / "weights.safetensors").unlink()
    assert not train_category(task).already


def test_another_file_of_the_teacher_is_another_training(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.safetensors"
    config = preset_config("small", ["net.teacher=resnet18", f"net.teacher_weights={file}"])
    file.write_bytes(b"one")
    one = fingerprint.code_fingerprint(config)
    file.write_bytes(b"two")
    assert one != fingerprint.code_fingerprint(config)
    file.unlink()
    with pytest.raises(ModelError, match=r"weights .* are missing"):
        fingerprint.code_fingerprint(config)


def test_files_that_were_only_touched_are_read_and_found_equal(task: CategoryTask) -> None:
    first = train_category(task)
    os.utime(first_image(task), ns=(1, 1))
    events: list[Event] = []
    assert train_category(task, events.append).version == first.version
    assert "reading" in {event.state for event in events}


def test_a_new_training_says_what_has_changed(task: CategoryTask,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    assert news(task) == []  # the first
    before, = versions(task)
    first_image(task).unlink()
    assert news(task) == [f"other than in version {before}: the images (24 then, 23 now)"]
    task = replace(task, config=preset_config("fast", ["image.size=64", "calibration.folds=4"]))
    said, = news(task)
    assert said.endswith(": calibration.folds 4, was 3")
    monkeypatch.setattr("igd.pipelines.category.code_fingerprint", lambda config: "another")
    said, = news(task)
    assert said.endswith(": the code or its libraries")
    assert len(versions(task)) == 4


def test_a_version_that_was_saved_but_never_promoted_is_promoted(
        task: CategoryTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            train_category(task)
    assert registry.list_categories(task.models) == []
    outcome = train_category(task)
    assert outcome.already and outcome.why == "in production"
    assert registry.production_version(task.models, "weave") == outcome.version


def test_a_finished_version_that_was_replaced_stays_replaced(task: CategoryTask) -> None:
    first = train_category(task)
    other = train_category(replace(task, config=replace(CONFIG, seed=1)))
    assert train_category(task).version == first.version
    assert registry.production_version(task.models, "weave") == other.version


def test_a_file_of_the_code_that_trains_changes_its_fingerprint(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(fingerprint.igd.__file__).parent, tmp_path / "igd")
    monkeypatch.setattr(fingerprint.igd, "__file__", str(tmp_path / "igd" / "__init__.py"))
    of = fingerprint._sources.__wrapped__
    before = of()
    for untouched in ("cli/train.py", "report/text.py"):
        (tmp_path / "igd" / untouched).write_text("")
    assert of() == before
    for touched in ("config.py", "model/losses.py", "train/step.py", "data/images.py"):
        (tmp_path / "igd" / touched).write_text("")
        assert of() != before
        before = of()
