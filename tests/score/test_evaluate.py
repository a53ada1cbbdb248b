"""Evaluation on an MVTec AD tree, whole and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igd.errors import DataError
from igd.score.evaluate import evaluate_category
from igd.score.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(tiny_models: Path) -> Scorer:
    return Scorer.load(str(tiny_models / "weave"))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """Test images of `weave` that may be damaged."""
    for part in ("test", "ground_truth"):
        shutil.copytree(tiny_data / "weave" / part, tmp_path / "weave" / part)
    return tmp_path


def test_what_is_reported_follows_from_scores_and_labels(scorer: Scorer, data: Path) -> None:
    result = evaluate_category(str(data), "weave", scorer, fpr=0.2)
    assert set(result) == {
        "preset", "version", "image_auroc", "pixel_auroc", "images", "anomalous", "skipped",
        "without_mask", "fpr_asked", "fpr_realised", "fpr_interval_95", "seconds", "images_per_s"}
    assert (result["preset"], result["version"]) == ("fast", scorer.bundle.version)
    assert (result["images"], result["anomalous"], result["skipped"]) == (12, 6, [])
    assert result["without_mask"] == 0 and result["fpr_asked"] == 0.2

    def scores(pattern: str) -> list[float]:
        paths = sorted((data / "weave" / "test").glob(pattern))
        return [float(scorer.score([np.asarray(Image.open(path))]).scores[0]) for path in paths]

    normal = scores("good/*.png")
    defective = [score for score in scores("*/*.png") if score not in normal]
    assert len(normal) == len(defective) == 6
    threshold = scorer.judge(fpr=0.2).levels.anomalous.threshold
    assert result["fpr_realised"] == sum(score > threshold for score in normal) / 6
    in_order = sum(d > n for d in defective for n in normal)
    assert result["image_auroc"] == pytest.approx(in_order / 36)
    assert 0.5 < result["pixel_auroc"] <= 1  # sees planted defects, upright and in place
    low, high = result["fpr_interval_95"]
    assert low <= result["fpr_realised"] <= high


def test_without_masks_there_is_no_pixel_auroc(scorer: Scorer, data: Path) -> None:
    shutil.rmtree(data / "weave" / "ground_truth")
    result = evaluate_category(str(data), "weave", scorer)
    assert result["pixel_auroc"] is None and result["without_mask"] == 6
    assert result["image_auroc"] is not None


def test_without_one_class_there_is_no_auroc(scorer: Scorer, data: Path) -> None:
    shutil.rmtree(data / "weave" / "test" / "good")
    result = evaluate_category(str(data), "weave", scorer)
    assert (result["image_auroc"], result["fpr_realised"]) == (None, None)
    assert result["fpr_interval_95"] == (0.0, 1.0)


def test_an_unreadable_test_image_is_skipped_and_named(scorer: Scorer, data: Path) -> None:
    path = data / "weave" / "test" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:200])
    result = evaluate_category(str(data), "weave", scorer)
    assert result["skipped"] == ["test/good/001.png (truncated)"]
    assert (result["images"], result["anomalous"]) == (11, 6)


def test_with_no_readable_test_image_there_is_nothing_to_report(scorer: Scorer,
                                                                data: Path) -> None:
    for path in (data / "weave" / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 12 test images of weave .*png \(empty\)"):
        evaluate_category(str(data), "weave", scorer)


@pytest.mark.parametrize("damage", ["ratio", "cut"])
def test_a_mask_that_cannot_be_used_is_an_error_that_names_it(scorer: Scorer, data: Path,
                                                              damage: str) -> None:
    mask = min((data / "weave" / "ground_truth").rglob("*.png"))
    if damage == "ratio":
        Image.new("L", (64, 32)).save(mask)
    else:
        mask.write_bytes(mask.read_bytes()[:60])
    relative = mask.relative_to(data)
    expected = "64x32 px for an image of 64x64" if damage == "ratio" else "truncated"
    with pytest.raises(DataError, match=rf"{relative}: .*{expected}"):
        evaluate_category(str(data), "weave", scorer)
