"""Evaluation on an MVTec AD tree, whole and damaged."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from igd.errors import DataError, ModelError
from igd.report.text import evaluation_lines, evaluation_notes
from igd.score import evaluate
from igd.score.ladder import LADDER
from igd.score.metrics import pixel_auroc
from igd.score.scorer import ScoreBatch, Scorer

pytestmark = pytest.mark.usefixtures("one_thread")

evaluate_category = partial(evaluate.evaluate_category, resamples=50)


@pytest.fixture(scope="module")
def scorer(tiny_models: Path) -> Scorer:
    return Scorer.load(str(tiny_models / "weave"))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """Test images of `weave` that may be damaged."""
    for part in ("train", "test", "ground_truth"):
        shutil.copytree(tiny_data / "weave" / part, tmp_path / "weave" / part)
    return tmp_path


def test_what_is_reported_follows_from_scores_and_labels(scorer: Scorer, data: Path) -> None:
    result = evaluate_category(str(data), "weave", scorer, fpr=0.2).document()
    metrics = {"image_auroc", "image_ap", "pixel_auroc", "image_mean_pixel_auroc", "au_pro"}
    assert set(result) == metrics | {
        "balanced_accuracy", "intervals_95", "preset", "version", "images", "anomalous", "skipped",
        "without_mask", "empty_masks", "fpr_asked", "fpr_used", "fpr_realised", "fpr_interval_95",
        "brightness_equalised", "false_positives", "defects", "baselines", "ladder", "paper",
        "seconds", "images_per_s"}
    assert set(result["intervals_95"]) == metrics | {"balanced_accuracy"}
    assert all(low <= result[name] <= high for name, (low, high) in result["intervals_95"].items())
    assert (result["preset"], result["version"]) == ("fast", scorer.bundle.version)
    assert (result["images"], result["anomalous"], result["skipped"]) == (12, 6, [])
    assert (result["without_mask"], result["fpr_asked"]) == (0, 0.2)
    assert result["fpr_used"] == scorer.judge(fpr=0.2).levels.anomalous.alpha

    def scores(pattern: str) -> list[float]:
        paths = sorted((data / "weave" / "test").glob(pattern))
        return [float(scorer.score([np.asarray(Image.open(path))]).scores[0]) for path in paths]

    normal = scores("good/*.png")
    defective = [score for score in scores("*/*.png") if score not in normal]
    assert len(normal) == len(defective) == 6
    threshold = scorer.judge(fpr=0.2).levels.anomalous.threshold
    assert result["fpr_realised"] == sum(score > threshold for score in normal) / 6
    for found in result["false_positives"]:
        at = scorer.judge(fpr=found["asked"], review_fpr=0.5).levels.anomalous
        assert found["used"] == at.alpha and found["normal"] == 6
        assert found["flagged"] == sum(score > at.threshold for score in normal)
    assert [found["asked"] for found in result["false_positives"]] == [0.01, 0.05, 0.1]
    in_order = sum(d > n for d in defective for n in normal)
    assert result["image_auroc"] == pytest.approx(in_order / 36)
    caught = sum(score > threshold for score in defective) / 6
    assert result["balanced_accuracy"] == pytest.approx((caught + 1 - result["fpr_realised"]) / 2)
    assert 0.5 < result["pixel_auroc"] <= 1  # sees planted defects, upright and in place
    low, high = result["fpr_interval_95"]
    assert low <= result["fpr_realised"] <= high


def test_each_kind_of_defect_is_judged_against_all_normal_images(
        scorer: Scorer, data: Path) -> None:
    whole = evaluate_category(str(data), "weave", scorer)
    kinds = {name: path for path in sorted((data / "weave" / "test").iterdir())
             if (name := path.name) != "good"}
    assert sorted(whole.defects) == sorted(kinds) and len(kinds) > 1
    for name, found in whole.defects.items():
        for other in kinds.keys() - {name}:
            (data / "weave" / "test" / other).rename(data / other)
        alone = evaluate_category(str(data), "weave", scorer)
        assert alone.defects == {}  # one kind: the table has it already
        assert found.metrics == alone.model.metrics
        assert found.images == len(list(kinds[name].iterdir()))
        assert found.caught == int((alone.model.scores_N[alone.tests.is_anomalous_N]
                                    > alone.rule.threshold).sum())
        for other in kinds.keys() - {name}:
            (data / other).rename(data / "weave" / "test" / other)
    shares = [found.pixel_share for found in whole.defects.values()]
    assert sum(share or 0 for share in shares) == pytest.approx(1) and min(shares) > 0  # type: ignore[type-var]


def test_without_masks_there_is_no_pixel_auroc(scorer: Scorer, data: Path) -> None:
    shutil.rmtree(data / "weave" / "ground_truth")
    result = evaluate_category(str(data), "weave", scorer).document()
    assert result["pixel_auroc"] is None and result["without_mask"] == 6
    assert result["image_auroc"] is not None


def test_an_empty_mask_is_named_and_its_image_left_out_of_the_pixel_metrics(
        scorer: Scorer, data: Path) -> None:
    before = evaluate_category(str(data), "weave", scorer)
    mask = min((data / "weave" / "ground_truth").rglob("*.png"))
    Image.new("L", (64, 64)).save(mask)
    after = evaluate_category(str(data), "weave", scorer)
    key = f"test/{mask.parent.name}/{mask.stem.removesuffix('_mask')}.png"
    assert after.tests.empty_masks == (key,) and not after.tests.without_mask
    assert after.model.metrics["image_auroc"] == before.model.metrics["image_auroc"]
    others = ~np.isin(before.tests.keys, [key])
    expected = pixel_auroc(before.tests.mask_NHW[others], before.heatmaps_NHW[others])
    assert after.document()["pixel_auroc"] == expected
    assert evaluation_notes(after) == [
        f"the mask of {key} marks nothing; left out of the pixel metrics"]


def test_a_mask_of_another_size_and_the_same_shape_is_used(scorer: Scorer, data: Path) -> None:
    before = evaluate_category(str(data), "weave", scorer)
    for mask in (data / "weave" / "ground_truth").rglob("*.png"):
        Image.open(mask).resize((192, 192), Image.Resampling.NEAREST).save(mask)
    after = evaluate_category(str(data), "weave", scorer)
    np.testing.assert_array_equal(after.tests.mask_NHW, before.tests.mask_NHW)


def test_brightness_alone_is_worth_nothing_once_equalised(scorer: Scorer, data: Path) -> None:
    for path in (data / "weave" / "test").glob("*/*.png"):
        if path.parent.name != "good":
            Image.open(path).point(lambda level: level * 0.6).save(path)
    plain, equalised = (evaluate_category(str(data), "weave", scorer, equalise=equalise)
                        .document()["baselines"]["mean_brightness"]["image_auroc"]
                        for equalise in (False, True))
    assert plain == 1.0 and equalised < 0.9


def test_the_ladder_stands_beside_where_it_is_asked_for(scorer: Scorer, data: Path) -> None:
    found = evaluate_category(str(data), "weave", scorer, with_ladder=True)
    assert list(found.ladder) == list(LADDER)
    last = found.ladder["half_shrunk_pooled"]  # preset fast, fitted again on the same normals
    for name in ("pixel_auroc", "au_pro"):
        assert last.document()[name] == pytest.approx(found.document()[name], rel=1e-5)
    lines = [line.split()[:2] for line in evaluation_lines(found)]
    assert [line for line in lines if line[0] == "ladder"] == [["ladder", name] for name in LADDER]


def test_without_one_class_there_is_no_auroc(scorer: Scorer, data: Path) -> None:
    shutil.rmtree(data / "weave" / "test" / "good")
    result = evaluate_category(str(data), "weave", scorer).document()
    assert (result["image_auroc"], result["fpr_realised"]) == (None, None)
    assert result["fpr_interval_95"] == (0.0, 1.0)


def test_a_category_without_anomalous_images_is_an_error_that_names_it(scorer: Scorer,
                                                                       data: Path) -> None:
    for folder in (data / "weave" / "test").iterdir():
        if folder.name != "good":
            shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"none of the 6 readable test images of weave in "
                                        rf"{data} is anomalous; expected some in test/DEFECT/"):
        evaluate_category(str(data), "weave", scorer)


def test_a_model_whose_heatmaps_are_not_finite_is_an_error_that_names_it(
        scorer: Scorer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = scorer.score

    def damaged(images: list[NDArray[np.uint8]]) -> ScoreBatch:
        batch = score(images)
        batch.heatmaps[0, 0, 0] = np.nan
        return batch

    monkeypatch.setattr(scorer, "score", damaged)
    with pytest.raises(ModelError, match="model of weave gives scores or heatmaps that are not"):
        evaluate_category(str(data), "weave", scorer)


def test_an_unreadable_test_image_is_skipped_and_named(scorer: Scorer, data: Path) -> None:
    path = data / "weave" / "test" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:200])
    result = evaluate_category(str(data), "weave", scorer).document()
    assert result["skipped"] == ["test/good/001.png (truncated)"]
    assert (result["images"], result["anomalous"]) == (11, 6)


def test_with_no_readable_test_image_there_is_nothing_to_report(scorer: Scorer,
                                                                data: Path) -> None:
    for path in (data / "weave" / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 12 test images .*000.png \(empty\)"):
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
