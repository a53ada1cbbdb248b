"""Categories beyond memory: scratch files cost no bit, bound what is held, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from igd import registry, storage
from igd.config import preset_config
from igd.data.synthetic import generate
from igd.errors import DivergedError, StorageError
from igd.pipelines import checkpoints, room
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.progress import Event

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = ["train.epochs=2", "net.width=2", "train.batch_size=4", "train.patches_per_image=4",
        "distill.iterations=6", "distill.batch_size=8", "distill.max_inputs=64"]
CASES = {
    "fast": ("fast", ["image.size=64", "calibration.folds=3"]),
    "teacher, distilled": ("small", NETS),
    "teachers, standardised": ("small", [*NETS, "net.local_encoder=teacher",
                                         "mix.profile=standardised", "calibration.fraction=0.4"]),
    "trained, dsvdd": ("small", [*NETS, "net.global_encoder=trained", "net.local_encoder=trained",
                                 "train.descriptor=dsvdd"]),
}
NOTHING = 1
"""A byte: whatever grows with the images goes to scratch files."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    generate(str(root), categories=["weave"], train=14, test=1, defective=1)
    damaged = root / "weave" / "train" / "good" / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    return root


def task(pictures: Path, models: Path, case: str, **changes: object) -> CategoryTask:
    preset, settings = CASES[case]
    return replace(CategoryTask(
        data=str(pictures), category="weave", models=str(models), checkpoint_s=0,
        config=preset_config(preset, [*settings, "calibration.max_unreadable=0.2"])), **changes)


def assert_equal(models: Path, others: Path) -> None:
    one, other = (registry.load_bundle(str(at), "weave") for at in (models, others))
    for name, tensor in one.model.state_dict().items():
        assert tensor.equal(other.model.state_dict()[name]), name
    assert one.calibration.equals(other.calibration)
    assert json.dumps(one.training["curve"]) == json.dumps(other.training["curve"])
    assert one.training["fingerprint"] == other.training["fingerprint"]


@pytest.mark.parametrize("case", CASES)
def test_beyond_memory_a_training_ends_in_the_same_bits(case: str, pictures: Path, tmp_path: Path,
                                                        scratch: Path) -> None:
    events: list[Event] = []
    train_category(task(pictures, tmp_path / "memory", case))
    train_category(task(pictures, tmp_path / "scratched", case, memory=NOTHING,
                        scratch=str(scratch)), events.append)
    assert_equal(tmp_path / "memory", tmp_path / "scratched")
    said, = (event.text for event in events if event.state == "beyond memory")
    assert said.startswith("14 images take") and said.endswith(f"go to {scratch}")
    assert any(event.state == "reading" and event.done == 14 for event in events)
    found = train_category(task(pictures, tmp_path / "scratched", case))
    assert found.already  # memory is no part of what a model follows from


class Killed(BaseException):
    pass


def test_a_training_in_memory_is_taken_up_beyond_it_in_the_same_bits(
        pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = "teacher, distilled"
    write, written = storage.write_bytes, 0

    def dies(uri: str, data: bytes) -> None:
        """In the local branch: 2 epochs, 6 iterations and an epoch have been kept."""
        nonlocal written
        written += uri.endswith("checkpoint.safetensors")
        if written == 10:
            raise Killed
        write(uri, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints.storage, "write_bytes", dies)
        train_category(task(pictures, tmp_path / "killed", case))
    events: list[Event] = []
    train_category(task(pictures, tmp_path / "killed", case, memory=NOTHING), events.append)
    assert "going on after local epoch 1" in [event.text for event in events]
    train_category(task(pictures, tmp_path / "undisturbed", case))
    assert_equal(tmp_path / "killed", tmp_path / "undisturbed")


def test_too_little_disk_is_refused_before_an_image_is_read(
        pictures: Path, tmp_path: Path, scratch: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "data_bytes", lambda *_: 1 << 50)
    monkeypatch.setattr(room, "load_normals", None)
    with pytest.raises(StorageError, match=r"GiB free; expected 1048576.00 GiB; .* --scratch"):
        train_category(task(pictures, tmp_path / "models", "fast", scratch=str(scratch)))


def test_nothing_is_left_of_a_training_that_fails(pictures: Path, tmp_path: Path,
                                                  scratch: Path) -> None:
    diverges = task(pictures, tmp_path / "models", "trained, dsvdd", memory=NOTHING,
                    scratch=str(scratch))
    with pytest.raises(DivergedError):
        train_category(replace(diverges, config=preset_config(
            "small", [*CASES["trained, dsvdd"][1], "train.lr=1e30",
                      "calibration.max_unreadable=0.2"])))
    assert list(scratch.iterdir()) == [] and open_files(scratch) == []


def test_nothing_is_left_of_a_training_that_is_killed(pictures: Path, tmp_path: Path,
                                                      scratch: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, __file__, str(pictures), str(tmp_path / "models"), str(scratch)],
        stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert any(line == "fitting\n" for line in said)
        process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert list(scratch.iterdir()) == []


def open_files(folder: Path) -> list[str]:
    """Those of this process in a folder, nameless ones too."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in maps if str(folder) in line]


if __name__ == "__main__":
    def wait_at_fitting(event: Event) -> None:
        print(event.state, flush=True)
        if event.state == "fitting":
            time.sleep(600)

    train_category(task(Path(sys.argv[1]), Path(sys.argv[2]), "fast", memory=NOTHING,
                        scratch=sys.argv[3]), wait_at_fitting)
    os._exit(0)
