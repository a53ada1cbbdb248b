"""Checkpoints on storage: the latest one, whole, with the loss curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from igd import registry, storage
from igd.config import preset_config
from igd.data.synthetic import generate
from igd.errors import StorageError
from igd.pipelines import checkpoints
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.checkpoints import StoredCheckpoints, training_folder
from igd.pipelines.progress import Event
from igd.train.checkpoint import Snapshot
from igd.train.loop import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = ["train.epochs=2", "net.width=2", "train.batch_size=4", "train.patches_per_image=4",
        "distill.iterations=6", "distill.batch_size=8", "distill.max_inputs=64"]
STEP = Progress(branch="local", phase="em", done=3, steps=9, metrics={"gsvdd": 0.25})
SNAPSHOT = Snapshot(branch="local", phase="em", done=3, tensors={
    "model.a.b": torch.arange(6.0).reshape(2, 3), "random.torch": torch.get_rng_state()})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nets")
    generate(str(root), categories=["weave"], train=12, test=1, defective=1)
    return root


def task(pictures: Path, models: Path | str, *settings: str) -> CategoryTask:
    return CategoryTask(data=str(pictures), category="weave", models=str(models), checkpoint_s=0,
                        config=preset_config("small", [*NETS, *settings]))


@pytest.mark.parametrize("where", ["local", "s3"])
def test_what_was_kept_is_what_is_found(where: str, tmp_path: Path,
                                        request: pytest.FixtureRequest) -> None:
    root = str(tmp_path) if where == "local" else request.getfixturevalue("bucket")
    uri = storage.join(root, "a", "checkpoint.safetensors")
    assert StoredCheckpoints(uri, []).last() is None
    StoredCheckpoints(uri, [(5.0, STEP)], every_s=0).offer(lambda: SNAPSHOT)
    curve = [(0.0, STEP)]
    said: list[str] = []
    found = StoredCheckpoints(uri, curve, say=said.append).last()
    assert found is not None and (found.branch, found.phase, found.done) == ("local", "em", 3)
    assert found.tensors.keys() == SNAPSHOT.tensors.keys()
    assert all(found.tensors[name].equal(SNAPSHOT.tensors[name]) for name in found.tensors)
    assert curve == [(5.0, STEP)] and said == ["going on after local epoch 3"]


def test_between_two_checkpoints_nothing_is_taken(tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    taken: list[float] = []
    kept = StoredCheckpoints(str(tmp_path / "x"), [], every_s=30)

    def take() -> Snapshot:
        taken.append(now[0])
        return SNAPSHOT

    for now[0] in (110.0, 129.0, 130.0, 150.0, 161.0):
        kept.offer(take)
    assert taken == [130.0, 161.0]


def test_a_slow_storage_gets_fewer_checkpoints(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoints.storage, "write_bytes",
                        lambda *args: now.__setitem__(0, now[0] + 10))  # ten seconds each
    taken: list[float] = []
    kept = StoredCheckpoints(str(tmp_path / "x"), [], every_s=5)
    for _ in range(1000):
        kept.offer(lambda: (taken.append(now[0]), SNAPSHOT)[1])
        now[0] += 1
    assert taken == pytest.approx([5, 215, 425, 635, 845], abs=6)  # a twentieth of the time


def test_a_checkpoint_that_cannot_be_written_costs_no_training(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_reach(*args: object) -> None:
        raise StorageError("bucket out of reach")

    said: list[str] = []
    kept = StoredCheckpoints(str(tmp_path / "x"), [], every_s=0, say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.storage, "write_bytes", out_of_reach)
        kept.offer(lambda: SNAPSHOT)
    assert said == ["no checkpoint could be written (bucket out of reach); training goes on"]
    kept.offer(lambda: SNAPSHOT)
    assert kept.last() is not None


def test_other_threads_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, said = str(tmp_path / "x"), list[str]()
    StoredCheckpoints(uri, [], every_s=0).offer(lambda: SNAPSHOT)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    StoredCheckpoints(uri, [], say=said.append).last()
    assert said == ["going on after local epoch 3, with 7 threads after 1: the last bits will "
                    "differ"]


def test_only_what_belongs_to_a_finished_training_is_cleared(tmp_path: Path) -> None:
    root = training_folder(str(tmp_path), "weave")
    for name in ("aa11/checkpoint.safetensors", "bb22/checkpoint.safetensors",
                 "trainer-x-1/state.json", "trainer-y-1/state.json"):
        storage.write_bytes(storage.join(root, *name.split("/")), b"")
    assert checkpoints.clear(str(tmp_path), "weave", "aa11/", "trainer-x-") is None
    assert sorted(entry.key for entry in storage.list_objects(root)) == [
        "bb22/checkpoint.safetensors", "trainer-y-1/state.json"]


@pytest.mark.parametrize("damage", [b"", b"\x08" + b"\0" * 7 + b"nonsense", None])
def test_a_damaged_checkpoint_means_starting_over_and_is_said(
        tmp_path: Path, damage: bytes | None) -> None:
    uri = str(tmp_path / "checkpoint.safetensors")
    StoredCheckpoints(uri, [], every_s=0).offer(lambda: SNAPSHOT)
    whole = Path(uri).read_bytes()
    Path(uri).write_bytes(whole[:-8] if damage is None else damage)
    said: list[str] = []
    assert StoredCheckpoints(uri, [], say=said.append).last() is None
    assert "cannot be read" in said[0] and "starting over" in said[0]


class Killed(BaseException):
    pass


def test_a_category_killed_anywhere_ends_in_the_same_weights_curve_and_calibration(
        pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_category(task(pictures, tmp_path / "undisturbed"))
    undisturbed = registry.load_bundle(str(tmp_path / "undisturbed"), "weave")
    write, written = storage.write_bytes, 0

    def dies(uri: str, data: bytes) -> None:
        """Of the third checkpoint from now on nothing is written."""
        nonlocal written
        written += uri.endswith("checkpoint.safetensors")
        if written == 3:
            raise Killed
        write(uri, data)

    models, kills, events = tmp_path / "killed", 0, list[Event]()
    for _ in range(12):
        written = 0
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.storage, "write_bytes", dies)
            try:
                train_category(task(pictures, models), events.append)
                break
            except Killed:
                kills += 1
                assert registry.list_versions(str(models), "weave") == []
    assert kills > 2
    resumed = registry.load_bundle(str(models), "weave")
    for name, tensor in undisturbed.model.state_dict().items():
        assert tensor.equal(resumed.model.state_dict()[name]), name
    assert resumed.calibration.equals(undisturbed.calibration)
    assert json.dumps(resumed.training["curve"]) == json.dumps(undisturbed.training["curve"])
    assert sum(event.text.startswith("going on after") for event in events) == kills
    assert list(storage.list_objects(training_folder(str(models), "weave"))) == []  # tidied up


def test_a_checkpoint_of_another_training_is_not_taken_up(
        pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(registry, "save_bundle", dies)
        train_category(task(pictures, tmp_path / "models"))
    assert list(storage.list_objects(training_folder(str(tmp_path / "models"), "weave")))
    events: list[Event] = []
    train_category(task(pictures, tmp_path / "models", "train.rho=0.3"), events.append)
    assert not any(event.text.startswith("going on") for event in events)
    train_category(task(pictures, tmp_path / "other", "train.rho=0.3"))
    one, other = (registry.load_bundle(str(tmp_path / name), "weave").model.state_dict()
                  for name in ("models", "other"))
    assert all(one[name].equal(other[name]) for name in one)
