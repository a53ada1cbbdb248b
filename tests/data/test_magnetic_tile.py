"""The magnetic-tile dataset as an MVTec AD category: complete, split by cluster, masks binary."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from igd.data import datasets
from igd.data.magnetic_tile import CATEGORY, DEFECTS, arrange
from igd.errors import DataError

TILES, EXPOSURES = 10, 3


def save(array: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten tiles under three exposures, two images of each defect, one empty mask."""
    root = tmp_path / "source"
    rng = np.random.default_rng(0)
    for tile in range(TILES):
        surface = np.kron(rng.uniform(0, 180, (10, 8)), np.ones((8, 8)))
        for exposure in range(EXPOSURES):
            bright = (surface * (1 + 0.15 * exposure)).astype(np.uint8)
            save(bright, root / f"MT_Free/Imgs/exp{exposure}_num_{tile}.jpg")
    for defect in DEFECTS:
        folder = root / f"MT_{defect.capitalize()}/Imgs"
        for number in range(2):
            save(rng.integers(0, 256, (40, 32), dtype=np.uint8), folder / f"num_{number}.jpg")
            mask = np.zeros((40, 32), np.uint8)
            mask[:4, :4] = [1, 127, 128, 254]
            save(mask, folder / f"num_{number}.png")
    save(np.full((40, 32), 127, np.uint8), root / "MT_Fray/Imgs/num_1.png")
    (root / "MT_Free/Imgs/._exp0_num_0.jpg").write_bytes(b"not an image")
    (root / "README.md").write_text("not an image")
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_tree_is_a_category_with_a_mask_for_every_defect(source: Path, tmp_path: Path) -> None:
    summary = arrange(str(source), str(tmp_path / "out"))
    assert (summary.train, summary.test_good) == (24, 6)
    assert (summary.train_clusters, summary.test_clusters) == (8, 2)
    assert summary.defects == dict.fromkeys(DEFECTS, 2)
    assert summary.empty_masks == ("ground_truth/fray/num_1_mask.png",)
    assert datasets.categories(str(tmp_path / "out")) == [CATEGORY]
    assert len(datasets.normal_images(str(tmp_path / "out"), CATEGORY)) == 24
    tests = datasets.test_images(str(tmp_path / "out"), CATEGORY)
    assert sum(not t.is_anomalous for t in tests) == 6
    assert sum(t.mask is not None for t in tests if t.is_anomalous) == 2 * len(DEFECTS)
    assert len(files(tmp_path / "out")) == TILES * EXPOSURES + 4 * len(DEFECTS)


def test_images_keep_their_bytes_and_no_tile_is_on_both_sides(
        source: Path, tmp_path: Path) -> None:
    arrange(str(source), str(tmp_path / "out"))
    given, out = files(source), files(tmp_path / "out/tile")
    tiles: dict[str, set[str]] = {"train": set(), "test": set()}
    for key, data in out.items():
        side, folder, name = key.split("/")
        if side != "ground_truth":
            origin = "free" if folder == "good" else folder
            assert data == given[f"MT_{origin.capitalize()}/Imgs/{name}"]
        if folder == "good":
            tiles[side].add(name.split("_num_")[1])
    assert tiles["train"] and tiles["test"] and not tiles["train"] & tiles["test"]


def test_masks_are_white_above_127_and_black_elsewhere(source: Path, tmp_path: Path) -> None:
    arrange(str(source), str(tmp_path / "out"))
    folder = tmp_path / "out/tile/ground_truth"
    with Image.open(folder / "crack/num_0_mask.png") as image:
        assert image.format == "PNG" and image.size == (32, 40)
        mask = np.asarray(image)
    assert mask[:4, :4].tolist() == [[0, 0, 255, 255]] * 4 and mask.sum() == 8 * 255
    assert not np.asarray(Image.open(io.BytesIO(
        (folder / "fray/num_1_mask.png").read_bytes()))).any()


def test_a_call_may_be_repeated_and_another_split_never_mixes_with_it(
        source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arrange(str(source), str(out))
    before = files(out)
    (out / "tile/train/good/exp0_num_0.jpg").unlink(missing_ok=True)
    (out / "tile/test/crack/num_0.jpg").unlink()  # as if it broke off
    (out / "tile/test/crack/.5e1.tmp").touch()
    arrange(str(source), str(out))
    (out / "tile/test/crack/.5e1.tmp").unlink()
    assert files(out) == before
    with pytest.raises(DataError, match="files that this split does not write"):
        arrange(str(source), str(out), seed=1)
    assert files(out) == before
    arrange(str(source), str(tmp_path / "other"), seed=1, test_share=0.5)
    assert len(list((tmp_path / "other/tile/test/good").iterdir())) == 15


def test_an_incomplete_or_damaged_source_is_refused_before_anything_is_written(
        source: Path, tmp_path: Path) -> None:
    crack = source / "MT_Crack/Imgs"
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        arrange(str(source / "nowhere"), str(tmp_path / "out"))
    save(np.zeros((32, 40), np.uint8), crack / "num_1.png")
    with pytest.raises(DataError, match=r"num_1.png is 40x32 px, .*num_1.jpg 32x40 px"):
        arrange(str(source), str(tmp_path / "out"))
    (crack / "num_1.png").unlink()
    with pytest.raises(DataError, match=r"no mask for 1 images .*the first num_1.jpg"):
        arrange(str(source), str(tmp_path / "out"))
    (crack / "num_0.jpg").write_bytes(b"")
    (crack / "num_1.jpg").unlink()
    with pytest.raises(DataError, match=r"num_0.jpg cannot be used \(empty"):
        arrange(str(source), str(tmp_path / "out"))
    (crack / "num_0.jpg").unlink()
    with pytest.raises(DataError, match=r"no image in .*MT_Crack"):
        arrange(str(source), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
