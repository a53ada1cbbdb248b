"""An MVTec AD tree of made-up products with planted defects and exact masks.

For demonstrations and tests where real data may not be had: the same arguments give the same
bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from igd.data.products import CATEGORIES, DEFECTS, Field, grid
from igd.errors import DataError

MARKER = ".igd-synthetic.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of `generate` writes; stands in the marker file."""

    categories: tuple[str, ...]
    train: int
    test: int
    defective: int
    size: int
    seed: int


def generate(out: str, *, categories: Sequence[str] = ("weave", "wood", "tile", "washer", "board"),
             train: int = 60, test: int = 12, defective: int = 5, size: int = 256,
             seed: int = 0) -> int:
    """Writes `out/CATEGORY/{train,test,ground_truth}/...` in the layout of MVTec AD.

    Args:
        out: a local directory: new, empty, or made by the same call before.
        categories: names out of `products.CATEGORIES`.
        train: normal training images per category.
        test: normal test images per category.
        defective: test images per kind of defect; each category has three kinds.
        size: side of the images, in pixels.

    Returns:
        The number of images written, masks not counted.

    Raises:
        DataError: an unknown category, or a directory with other content.
    """
    plan = Plan(categories=tuple(categories), train=train, test=test, defective=defective,
                size=size, seed=seed)
    unknown = [name for name in categories if name not in CATEGORIES]
    if unknown:
        raise DataError(f"unknown synthetic category {unknown[0]!r}; expected some of "
                        f"{', '.join(CATEGORIES)}")
    root = Path(out)
    _claim(root, plan)
    return sum(_write_category(root / name, name, plan) for name in categories)


def render(category: str, defect: str | None, index: int, *, size: int,
           seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One image and the mask of its defect.

    With and without the defect, the same `index` shows the same product in the same light.

    Returns:
        uint8 (size, size, 3); bool (size, size), all False without a defect.
    """
    paint, _ = CATEGORIES[category]
    key = [seed, zlib.crc32(category.encode()), index]
    scene = paint(np.random.default_rng([*key, 0]), size)
    image, mask = scene.image, np.zeros((size, size), dtype=bool)
    if defect is not None:
        rng = np.random.default_rng([*key, 1, zlib.crc32(defect.encode())])
        alpha, colour = DEFECTS[defect](rng, scene)
        image = image * (1 - alpha[..., None]) + colour * alpha[..., None]
        mask = alpha > 0.1
    return _photograph(np.random.default_rng([*key, 2]), image), mask


def _claim(root: Path, plan: Plan) -> None:
    marker, text = root / MARKER, json.dumps(asdict(plan), indent=1)
    if root.is_dir() and any(root.iterdir()):
        if not marker.is_file():
            raise DataError(f"{root} is not empty and holds no synthetic data of igd-ray; expected "
                            "a new or empty directory; choose another")
        if marker.read_text() != text:
            raise DataError(f"{root} holds synthetic data made with other settings "
                            f"(see {MARKER}); delete it or choose another directory")
    elif root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; expected a new or empty directory")
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(text)


def _write_category(folder: Path, name: str, plan: Plan) -> int:
    jobs: list[tuple[str, str | None, int]] = [("train/good", None, plan.train),
                                               ("test/good", None, plan.test)]
    jobs += [(f"test/{defect}", defect, plan.defective) for defect in CATEGORIES[name][1]]
    index = 0
    for subfolder, defect, count in jobs:
        for number in range(count):
            image, mask = render(name, defect, index, size=plan.size, seed=plan.seed)
            _save(image, folder / subfolder / f"{number:03d}.png")
            if defect is not None:
                _save(mask.astype(np.uint8) * 255,
                      folder / "ground_truth" / defect / f"{number:03d}_mask.png")
            index += 1
    return index


def _save(array: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, compress_level=3)


def _photograph(rng: Generator, image: Field) -> NDArray[np.uint8]:
    """Uneven light, a slightly soft lens, sensor noise."""
    size = len(image)
    y, x = grid(size)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.10)
    light = 1 + strength * (np.cos(angle) * x + np.sin(angle) * y) * 2
    lit = image * (light * rng.uniform(0.96, 1.04))[..., None]
    soft = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(size / 512))
    noisy = np.asarray(soft) + rng.normal(0, 2.2, (size, size, 1)) + rng.normal(
        0, 1.0, (size, size, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
