"""Dataset trees: what is found, what is skipped, what is refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from igd.config import CalibrationConfig, Config, ImageConfig
from igd.data import datasets
from igd.errors import DataError

CONFIG = Config(preset="fast", image=ImageConfig(size=64),
                calibration=CalibrationConfig(min_images=4, max_unreadable=0.2))
SHARED = Path(os.environ.get("IGD_SHARED", Path(__file__).parents[3] / "shared"))


def picture(path: Path, level: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 0)).save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for i in range(5):
        picture(tmp_path / f"nut/train/good/{i:03d}.png", i)
        picture(tmp_path / f"plain/{i}.jpg", i)
        picture(tmp_path / f"nested/good/{i}.BMP", i)
    picture(tmp_path / "nut/test/good/000.png")
    picture(tmp_path / "nut/test/bent/000.png")
    picture(tmp_path / "nut/test/bent/001.png")
    picture(tmp_path / "nut/ground_truth/bent/000_mask.png")
    picture(tmp_path / "nut/train/good/.hidden.png")
    picture(tmp_path / "nut/train/good/._001.png")
    (tmp_path / "nut/readme.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_category_is_a_folder_with_normals_in_any_of_the_layouts(tree: Path) -> None:
    assert datasets.categories(str(tree)) == ["nested", "nut", "plain"]


def test_no_folder_is_passed_over_in_silence(tree: Path) -> None:
    picture(tree / "my part ü" / "0.png")
    picture(tree / "unsorted" / "test" / "bent" / "0.png")
    picture(tree / ".cache" / "0.png")
    picture(tree / "loose.png")
    found = datasets.survey(str(tree))
    assert found.categories == ["nested", "nut", "plain"]
    assert found.misnamed == ["my part ü"] and found.without == ["empty", "unsorted"]


def test_a_damaged_archive_or_a_foreign_table_costs_its_own_category_alone(tree: Path) -> None:
    (tree / "cut.tar").write_bytes(b"no archive")
    pq.write_table(pa.table({"label": [1]}), tree / "labels.parquet")
    assert datasets.categories(str(tree)) == ["cut", "labels", "nested", "nut", "plain"]
    assert len(datasets.normal_images(str(tree), "nut")) == 5
    for name, expected in (("cut", "copy it again"), ("labels", "out of the dataset")):
        with pytest.raises(DataError, match=expected):
            datasets.normal_images(str(tree), name)


def test_a_plain_folder_may_have_sub_folders_but_no_test_image_is_trained_on(
        tree: Path) -> None:
    for key in ("deep/Imgs/a.jpg", "deep/b/c/d.jpg", "deep/test/bent/0.png",
                "deep/ground_truth/bent/0.png", "nested/bad/0.png"):
        picture(tree / key)
    keys = {c: [ref.key for ref in datasets.normal_images(str(tree), c)]
            for c in ("deep", "nested")}
    assert keys == {"deep": ["Imgs/a.jpg", "b/c/d.jpg"],
                    "nested": [f"good/{i}.BMP" for i in range(5)]}


def test_normals_are_images_by_extension_without_dotfiles(tree: Path) -> None:
    keys = {c: [ref.key for ref in datasets.normal_images(str(tree), c)]
            for c in ("nut", "nested", "plain")}
    assert keys["nut"] == [f"train/good/{i:03d}.png" for i in range(5)]
    assert keys["nested"] == [f"good/{i}.BMP" for i in range(5)]
    assert keys["plain"] == [f"{i}.jpg" for i in range(5)]


def test_test_images_carry_their_defect_and_their_mask(tree: Path) -> None:
    found = {t.ref.key: (t.defect, t.is_anomalous, t.mask and t.mask.key)
             for t in datasets.test_images(str(tree), "nut")}
    assert found == {
        "test/bent/000.png": ("bent", True, "ground_truth/bent/000_mask.png"),
        "test/bent/001.png": ("bent", True, None),
        "test/good/000.png": ("good", False, None)}


def test_a_wrong_path_says_what_was_expected(tree: Path) -> None:
    for path, expected in ((tree / "nowhere", "no folder"), (tree / "empty", "no category"),
                           (tree / "nut", "give its parent")):
        with pytest.raises(DataError, match=expected):
            datasets.categories(str(path))
    with pytest.raises(DataError, match="no folder"):
        datasets.normal_images(str(tree), "bolt")
    with pytest.raises(DataError, match="no image"):
        datasets.normal_images(str(tree), "empty")
    with pytest.raises(DataError, match="no test image"):
        datasets.test_images(str(tree), "plain")


def test_loading_keeps_order_counts_unseen_pixels_and_reports_progress(tree: Path) -> None:
    picture(tree / "nut/train/good/005.png", 5, size=(128, 64))
    seen: list[tuple[int, int]] = []
    refs = datasets.normal_images(str(tree), "nut")
    loaded = datasets.load_normals(refs, CONFIG, progress=lambda *at: seen.append(at))
    assert loaded.images_NHWC.shape == (6, 64, 64, 3) and loaded.images_NHWC.dtype == np.uint8
    assert loaded.images_NHWC[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert loaded.keys == tuple(ref.key for ref in refs) and len(set(loaded.sha256)) == 6
    assert loaded.unseen == pytest.approx(0.5 / 6)
    assert seen == [(i, 6) for i in range(1, 7)]


def test_an_unreadable_image_is_skipped_with_its_reason_up_to_the_limit(tree: Path) -> None:
    (tree / "nut/train/good/003.png").write_bytes(b"")
    refs = datasets.normal_images(str(tree), "nut")
    loaded = datasets.load_normals(refs, CONFIG)  # 1 of 5 is exactly the limit
    assert loaded.skipped == (("train/good/003.png", "empty"),) and len(loaded.keys) == 4
    strict = dataclasses.replace(CONFIG, calibration=dataclasses.replace(
        CONFIG.calibration, max_unreadable=0.19))
    with pytest.raises(DataError, match=r"4 of 5 .*003.png \(empty\).*at most 19"):
        datasets.load_normals(refs, strict)


def test_a_vanished_image_is_a_skipped_one_and_too_few_images_are_refused(tree: Path) -> None:
    refs = datasets.normal_images(str(tree), "nut")
    (tree / "nut/train/good/000.png").unlink()
    assert datasets.load_normals(refs, CONFIG).skipped == (("train/good/000.png", "vanished"),)
    (tree / "nut/train/good/001.png").unlink()
    with pytest.raises(DataError, match=r"3 of 5 .*vanished.* at least 4"):
        datasets.load_normals(refs, CONFIG)


def test_a_pipe_among_the_images_does_not_hang_the_load(tree: Path) -> None:
    os.mkfifo(tree / "nut/train/good/005.png")
    loaded = datasets.load_normals(datasets.normal_images(str(tree), "nut"), CONFIG)
    assert loaded.skipped == (("train/good/005.png", "not_regular"),)


def test_the_fingerprint_names_the_content_and_not_the_order(tree: Path) -> None:
    refs = datasets.normal_images(str(tree), "nut")
    first = datasets.load_normals(refs, CONFIG).fingerprint
    assert datasets.load_normals(refs[::-1], CONFIG).fingerprint == first
    picture(tree / "nut/train/good/000.png", 99)
    assert datasets.load_normals(refs, CONFIG).fingerprint != first


def test_real_mvtec_ad_is_read_with_its_masks() -> None:
    root = SHARED / "data/mvtec_ad"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    assert "bottle" in datasets.categories(str(root))
    assert len(datasets.normal_images(str(root), "bottle")) == 209
    tests = datasets.test_images(str(root), "bottle")
    assert len(tests) == 83 and sum(t.mask is not None for t in tests) == 63
