"""Several workers train what one trains: real processes, joined by gloo.

    python tests/train/test_workers.py FOLDER RANK SIZE      is one of them
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from igd.config import preset_config
from igd.errors import IgdError
from igd.train.checkpoint import Snapshot
from igd.train.loop import train_nets
from igd.train.workers import ALONE, Workers

pytestmark = pytest.mark.usefixtures("one_thread")

TIMEOUT_S = 120
EXACT = 1e-10
"""In float64, of weights, curve, mu and sigma^2, relative or absolute. Measured: 3e-14 here, 5e-13
on whole images. Workers only add up in another order, so that what is left is rounding, and a
wrong sum stands out."""
ROUNDED = 1e-3
"""In float32, of curve, mu and sigma^2. Measured: 8e-6 here, 2.2e-4 where both encoders are
trained. Weights are not compared: Adam divides a gradient by its own size, so that where it is all
rounding its sign, and with it a step of lr, is by chance."""

TINY = ["net.width=2", "net.latent=8", "train.epochs=2", "train.lr=1e-3", "train.batch_size=5",
        "train.patches_per_image=2"]
PATCHES = ["net.branches=local", "image.size=32"]
DISTIL = ["net.local_encoder=distilled", "distill.iterations=4", "distill.batch_size=5",
          "distill.max_inputs=30"]
CASES = {  # of six images: batches of 5 and 1
    "trained, gsvdd": [*PATCHES, "net.local_encoder=trained"],
    "distilled, dsvdd": [*PATCHES, *DISTIL, "train.descriptor=dsvdd", "train.nu=0.25"],
}
BOTH = [*DISTIL, "net.global_encoder=teacher"]
"""Batches of 5 and 1 images, of 10 and 2 patches; features of a teacher and of an encoder."""
RESUMED, RESUMED_FROM = "distilled, dsvdd", [("distil", 2), ("em", 1)]


class Colours(torch.nn.Module):
    """A teacher of nine channels: the mean colour, three times over."""

    channels = 9

    def pooled(self, image):
        return image.mean((2, 3)).repeat(1, 3)


class Kept:
    """Keeps every snapshot, by phase and how much of it is done."""

    def __init__(self, last: Snapshot | None = None) -> None:
        self._last = last
        self.seen: dict[tuple[str, int], Snapshot] = {}

    def last(self):
        return self._last

    def offer(self, take):
        snapshot = take()
        self.seen[snapshot.phase, snapshot.done] = snapshot


@dataclass
class Run:
    """What a training ended in: its curve, and the model's state."""

    curve: list[dict[str, Any]]
    state: dict[str, Tensor]

    def save(self, path: Path) -> None:
        save_file(self.state, path, {"curve": json.dumps(self.curve)})

    @classmethod
    def load(cls, path: Path) -> Run:
        size = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8:8 + size])
        return cls(json.loads(header["__metadata__"]["curve"]), load_file(path))

    def numbers(self) -> list[float]:
        """The curve's."""
        return [value for step in self.curve for value in step["metrics"].values()]

    def gaussians(self) -> dict[str, Tensor]:
        """Every mu and sigma^2."""
        return {name: value for name, value in self.state.items() if "gaussian" in name}


@contextmanager
def float64() -> Iterator[None]:
    """All that is a float within is one of 64 bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def train(workers: Workers, *overrides: str, seed: int = 0, checkpoints: Kept | None = None) -> Run:
    config = preset_config("small", [*TINY, *overrides], seed=seed)
    coarse = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    side = config.image.size
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") * 255
    curve: list[dict[str, Any]] = []
    model = train_nets(images.byte(), config, teacher=Colours(), checkpoints=checkpoints,
                       report=lambda progress: curve.append(asdict(progress)), workers=workers)
    return Run(curve, model.state_dict())


def work(folder: Path, rank: int, size: int) -> None:
    """What one of several workers does, and what came of it in files."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank,
                            world_size=size, timeout=datetime.timedelta(seconds=TIMEOUT_S))
    workers = Workers.of_process_group()
    with float64():
        for name, overrides in CASES.items():
            train(workers, *overrides).save(folder / f"{name} {rank}")
    if size == 2:
        train(workers, *BOTH).save(folder / f"both {rank}")
        interrupt(workers, folder)
    dist.destroy_process_group()


def interrupt(workers: Workers, folder: Path) -> None:
    """Trainings taken up from the first worker's snapshots, and those that come to nothing."""
    rank, kept, overrides = workers.rank, Kept(), CASES[RESUMED]
    train(workers, *overrides, checkpoints=kept).save(folder / f"undisturbed {rank}")
    box = [kept.seen]
    dist.broadcast_object_list(box)
    for at in RESUMED_FROM:
        run = train(workers, *overrides, checkpoints=Kept(box[0][at]))
        run.save(folder / f"resumed from {at} {rank}")
    trainings: dict[str, Callable[[], Run]] = {
        "diverged": lambda: train(workers, *overrides, "train.lr=1e30"),
        "seeds": lambda: train(workers, *overrides, seed=rank),
        "last": lambda: train(workers, *overrides,
                              checkpoints=Kept(box[0]["em", 1] if rank == 0 else None))}
    said = {}
    for name, training in trainings.items():
        try:
            training()
        except IgdError as error:
            said[name] = f"{type(error).__name__}: {error}"
    (folder / f"said {rank}").write_text(json.dumps({"said": said, "kept": len(kept.seen)}))


def join(folder: Path, size: int) -> Path:
    """`size` processes that work together, to their end; the folder of what they wrote."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [subprocess.Popen([sys.executable, __file__, str(folder), str(rank), str(size)],
                                  env=env) for rank in range(size)]
    try:
        assert [process.wait(TIMEOUT_S) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return join(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    return join(tmp_path_factory.mktemp("three"), 3)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_workers_train_what_one_trains(request, name, size):
    folder = request.getfixturevalue({2: "of_two", 3: "of_three"}[size])
    with float64():
        one = train(ALONE, *CASES[name])
    for run in (Run.load(folder / f"{name} {rank}") for rank in range(size)):
        assert run.numbers() == pytest.approx(one.numbers(), rel=EXACT, abs=EXACT)
        torch.testing.assert_close(run.state, dict(one.state), rtol=EXACT, atol=EXACT)


def test_mu_sigma_and_curve_are_those_of_one_worker_in_single_precision(of_two):
    one, run = train(ALONE, *BOTH), Run.load(of_two / "both 0")
    assert [{**step, "metrics": set(step["metrics"])} for step in run.curve] == [
        {**step, "metrics": set(step["metrics"])} for step in one.curve]
    assert run.numbers() == pytest.approx(one.numbers(), rel=ROUNDED, abs=ROUNDED)
    torch.testing.assert_close(run.gaussians(), one.gaussians(), rtol=ROUNDED, atol=ROUNDED)
    assert min(one.gaussians()[f"branches.{name}.gaussian.sigma2"]
               for name in ("global", "local")) > 1.01  # not the lower bound, which hides all


@pytest.mark.parametrize(("size", "name"), [*((2, name) for name in [*CASES, "both"]),
                                            *((3, name) for name in CASES)])
def test_all_workers_end_in_the_same_bits(request, name, size):
    folder = request.getfixturevalue({2: "of_two", 3: "of_three"}[size])
    first, *others = (Run.load(folder / f"{name} {rank}") for rank in range(size))
    for other in others:
        assert_equal(first, other)


@pytest.mark.parametrize("at", RESUMED_FROM)
def test_taken_up_from_the_first_workers_checkpoint_they_end_in_the_same_bits(of_two, at):
    undisturbed = Run.load(of_two / "undisturbed 0")
    for rank in (0, 1):
        resumed = Run.load(of_two / f"resumed from {at} {rank}")
        resumed.curve = undisturbed.curve[:-len(resumed.curve)] + resumed.curve
        assert_equal(undisturbed, resumed)


def assert_equal(run: Run, other: Run) -> None:
    assert run.curve == other.curve
    for name, value in run.state.items():
        assert torch.equal(value, other.state[name]), name


def test_the_first_worker_alone_keeps_checkpoints(of_two):
    assert [json.loads((of_two / f"said {rank}").read_text())["kept"] for rank in (0, 1)] == [6, 0]


@pytest.mark.parametrize(("training", "expected"), [
    ("diverged", "DivergedError: local_adversarial is nan in epoch 0, step 1"),
    ("seeds", "ModelError: the 2 workers of one training were given different config and weights"),
    ("last", "ModelError: the 2 workers of one training were given different weights and "
             "checkpoint")])
def test_what_stops_a_training_stops_every_worker(of_two, training, expected):
    for rank in (0, 1):
        said = json.loads((of_two / f"said {rank}").read_text())["said"]
        assert said[training].startswith(expected)


@given(n=st.integers(1, 70), size=st.integers(1, 9))
def test_a_row_and_its_partner_are_the_same_workers(n, size):
    shares = [Workers(rank, size).mine(n).tolist() for rank in range(size)]
    for share in shares:
        assert share == sorted(share)
        assert [n - 1 - row for row in reversed(share)] == share
        assert share
    assert sorted({row for share in shares for row in share}) == list(range(n))
    if size <= (n + 1) // 2:
        assert sum(map(len, shares)) == n
        assert max(map(len, shares)) - min(map(len, shares)) <= 2


def test_one_worker_exchanges_nothing():
    row = torch.rand(3, 2)
    assert ALONE.mean([row], 3)[0] is row
    assert ALONE.gather(row, 3) is row
    ALONE.check_same(row.device, rows=[row])


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)  # a thread of gloo that is late to end aborts the process otherwise
