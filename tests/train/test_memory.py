"""What a training takes is what it says, and beyond memory it takes no more for more images.

    python tests/train/test_memory.py PRESET FOLDER [LIMIT]

trains small categories in a process of its own, then a larger one that may take LIMIT bytes more
than they did; prints how many it took.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from igd.config import preset_config
from igd.model import dense
from igd.model.teacher import HEAD_CHANNELS, EfficientNetLite0
from igd.pipelines.category import CategoryTask, train_category
from igd.score.scorer import pinned_threads
from igd.train import inputs, loop
from igd.train.memory import base_bytes, data_bytes
from igd.train.step import MStep

CONFIGS = {
    "fast": preset_config("fast", ["image.size=128", "calibration.folds=2"]),
    "small": preset_config("small", [
        "net.width=1", "net.local_encoder=teacher", "train.epochs=1", "train.batch_size=2",
        "train.patches_per_image=1"]),
}
IMAGES = {"fast": 1200, "small": 300}
FEW = {"fast": 60, "small": 30}
LIMIT = 30 << 20
KEEP_NOTHING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "1"}
"""Large arrays are given back when they are freed."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth noise in folders `PRESET/COUNT`."""
    root, rng = tmp_path_factory.mktemp("memory"), np.random.default_rng(0)
    for preset, config in CONFIGS.items():
        side = config.image.size
        for count in (FEW[preset], IMAGES[preset]):
            folder = root / preset / str(count)
            folder.mkdir(parents=True)
            for number in range(count):
                small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                small.resize((side, side)).save(folder / f"{number}.bmp")
    return root


def train(preset: str, pictures: Path, *limit: int) -> int:
    """Bytes that the peak grew by; a training that is refused memory fails."""
    ran = subprocess.run([sys.executable, __file__, preset, str(pictures), *map(str, limit)],
                         capture_output=True, text=True, timeout=200,
                         env={**os.environ, **KEEP_NOTHING})
    if ran.returncode:
        raise MemoryError(ran.stderr[-2000:])
    return int(ran.stdout.split()[-1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("preset", CONFIGS)
def test_the_peak_grows_by_what_is_estimated(preset: str, pictures: Path) -> None:
    grown = train(preset, pictures)
    expected = data_bytes(IMAGES[preset] - FEW[preset], CONFIGS[preset])
    # a second copy of the pixels, or of the features, would add .4 at the least
    assert 0.85 * expected < grown < 1.3 * expected


@pytest.mark.timeout(300)
@pytest.mark.parametrize("preset", CONFIGS)
def test_beyond_memory_a_training_takes_a_fraction_of_its_images(preset: str,
                                                                 pictures: Path) -> None:
    assert data_bytes(IMAGES[preset], CONFIGS[preset]) > 3 * LIMIT
    train(preset, pictures, LIMIT)


def test_a_category_of_files_that_cannot_be_listed_takes_what_every_training_takes() -> None:
    for config in CONFIGS.values():
        assert data_bytes(0, config) == 0 < base_bytes(0, config)


def memory(field: str) -> int:
    """Of this process: `VmHWM`, its peak; `RssFile`, the libraries' share of it, which is as
    large as the kernel likes; `VmData`, what RLIMIT_DATA counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def quick_features(teacher: object, image: torch.Tensor, blocks: object) -> list[torch.Tensor]:
    """In place of the teacher's, which take nine tenths of the time."""
    side = image.shape[-1]
    return [torch.rand(1, channels, side // stride, side // stride)
            for channels, stride in ((40, 8), (112, 16), (192, 32))]


class FewSteps(MStep):
    """Takes the first ones alone: all take the same memory, together half of the time."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._metrics: list[dict[str, torch.Tensor]] = []

    def __call__(self, *given: Any) -> dict[str, torch.Tensor]:
        if len(self._metrics) < 8:
            self._metrics.append(super().__call__(*given))
        return self._metrics[-1]


def main(preset: str, folder: str, limit: int | None = None) -> None:
    threading.stack_size(1 << 18)  # stacks of readers count as data
    dense.PART_BYTES, inputs.MEASURED_IMAGES = 1 << 19, 8  # few images fill them
    loop.MStep = FewSteps
    EfficientNetLite0.features = quick_features
    EfficientNetLite0.pooled = lambda teacher, image: torch.rand(len(image), HEAD_CHANNELS)

    def run(count: int) -> None:
        train_category(CategoryTask(
            data=f"{folder}/{preset}", category=str(count), models=f"{folder}/models",
            config=CONFIGS[preset], memory=None if limit is None else 1, since="3"))

    run(FEW[preset])
    run(FEW[preset])  # what the first one has left in memory counts as taken before
    before, libraries = memory("VmHWM"), memory("RssFile")
    if limit is not None:
        most = memory("VmData") + before - memory("VmRSS") + limit
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    run(IMAGES[preset])
    print(memory("VmHWM") - before - (memory("RssFile") - libraries))


if __name__ == "__main__":
    with pinned_threads(1):
        main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
