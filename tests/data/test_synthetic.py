"""Synthetic products: reproducible, well-formed, with masks that tell the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from igd.data import datasets
from igd.data.products import CATEGORIES
from igd.data.synthetic import generate, render
from igd.errors import DataError

KINDS = [(name, defect) for name, (_, defects) in CATEGORIES.items() for defect in defects]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(str(tmp_path / folder), categories=["weave", "washer"], train=2, test=1,
                 defective=1, size=64, seed=seed)
    a, b, c = (files(tmp_path / folder) for folder in "abc")
    assert a == b and len(a) == 1 + 2 * (2 + 1 + 3 + 3)
    assert all(a[name] != c[name] for name in a if "mask" not in name)


def test_the_tree_is_a_dataset_with_a_mask_for_every_defect(tmp_path: Path) -> None:
    written = generate(str(tmp_path / "new"), train=2, test=1, defective=1, size=64)
    root = str(tmp_path / "new")
    assert datasets.categories(root) == sorted(CATEGORIES) and written == 5 * (2 + 1 + 3)
    for name in CATEGORIES:
        assert len(datasets.normal_images(root, name)) == 2
        assert all((t.mask is not None) == t.is_anomalous
                   for t in datasets.test_images(root, name))


@pytest.mark.parametrize(("name", "defect"), KINDS)
def test_the_image_differs_from_the_sound_one_in_the_mask_and_nowhere_else(
        name: str, defect: str) -> None:
    for index in range(3):
        sound, _ = render(name, None, index, size=128, seed=1)
        broken, mask = render(name, defect, index, size=128, seed=1)
        assert 20 <= mask.sum() < 128 * 128 / 5
        changed = np.abs(broken.astype(int) - sound).max(axis=-1)
        # The lens spreads a defect by a pixel or two beyond its mask.
        wide = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(7))) > 0
        assert changed[~wide].max() == 0
        assert changed[mask].mean() > 15


def test_foreign_content_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        generate(str(tmp_path), categories=["wood"], train=1)
    assert files(tmp_path) == {"mine.txt": b"keep"}
    own = tmp_path / "own"
    for _ in range(2):  # its own directory, same settings: made again
        generate(str(own), categories=["wood"], train=1, test=1, defective=1, size=64)
    with pytest.raises(DataError, match="other settings"):
        generate(str(own), categories=["wood"], train=2, test=1, defective=1, size=64)
    with pytest.raises(DataError, match="unknown synthetic category 'cheese'"):
        generate(str(tmp_path / "x"), categories=["cheese"])
