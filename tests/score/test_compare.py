"""A candidate beside production: taken unless it is worse, on the same images, saying why."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from igd import registry
from igd.config import preset_config
from igd.data.cutpaste import plant
from igd.data.datasets import normal_images, read_image
from igd.data.images import prepare
from igd.errors import ImageError
from igd.pipelines.category import CategoryTask, train_category
from igd.records import Reason
from igd.registry import Bundle
from igd.score import compare as module
from igd.score.bootstrap import Estimate, weights
from igd.score.compare import Read, compare
from igd.score.scorer import Scorer


@pytest.fixture(scope="module")
def good(tiny_models: Path) -> Bundle:
    return registry.load_bundle(str(tiny_models), "washer")


@pytest.fixture(scope="module")
def images(tiny_data: Path, good: Bundle) -> dict[str, Read]:
    """Half of what the model was calibrated on."""
    return read(str(tiny_data), "washer", good, 12)


def read(data: str, category: str, bundle: Bundle, count: int) -> dict[str, Read]:
    read_HWC = [read_image(ref, bundle.config.image)
                for ref in normal_images(data, category)[:count]]
    return {digest: partial(np.copy, image_HWC) for image_HWC, digest in read_HWC}


def shifted(bundle: Bundle, by: float, version: str = "spoilt") -> Bundle:
    """The same model with calibration scores that are wrong by as much."""
    table = bundle.calibration
    scores = pa.array(table["score"].to_numpy() + by)
    at = table.column_names.index("score")
    field = table.schema.field("score")
    return replace(bundle, version=version, calibration=table.set_column(at, field, scores))


def test_equal_models_are_not_worse_and_the_candidate_is_taken(
        good: Bundle, images: dict[str, Read]) -> None:
    found = compare(replace(good, version="next"), good, images)
    assert found.takes_candidate and (found.basis, found.images) == ("both", 12)
    assert found.balanced_accuracy == found.auroc == Estimate(0, 0, 0)
    assert found.candidate is not None and found.production is not None
    assert replace(found.candidate, version=good.version) == found.production
    assert 0.7 < found.production.auroc <= 1 and found.production.caught > 0.5
    assert found.production.false_alarms <= 1 / 12
    assert found.production.balanced_accuracy == pytest.approx(
        (found.production.caught + 1 - found.production.false_alarms) / 2)
    assert found.why.startswith(f"took next (fast), not worse than {good.version} (fast), with ")
    assert "12 images held out of both" in found.why and "\n" not in found.why


@pytest.mark.parametrize("by", [-1000.0, 1000.0], ids=["flags everything", "flags nothing"])
def test_a_good_candidate_beats_a_spoilt_production_and_not_the_other_way_round(
        good: Bundle, images: dict[str, Read], by: float) -> None:
    spoilt = shifted(good, by)
    found = compare(good, spoilt, images)
    assert found.takes_candidate and found.balanced_accuracy is not None
    assert found.balanced_accuracy.low > 0 and found.production is not None
    assert found.production.balanced_accuracy == 0.5
    assert f"took {good.version} (fast), better than spoilt (fast)" in found.why
    back = compare(spoilt, good, images)
    assert not back.takes_candidate and back.balanced_accuracy is not None
    assert back.balanced_accuracy.high < 0
    assert back.balanced_accuracy.value == -found.balanced_accuracy.value
    assert f"kept {good.version} (fast): spoilt (fast) is worse" in back.why
    assert json.loads(json.dumps(back.document()))["candidate"]["version"] == "spoilt"


def test_a_production_fitted_on_noise_is_replaced(good: Bundle, images: dict[str, Read],
                                                  tmp_path: Path) -> None:
    """No image calibrated both, so they are the candidate's."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "washer").mkdir(parents=True)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(
            tmp_path / "data" / "washer" / f"{number}.png")
    train_category(CategoryTask(data=str(tmp_path / "data"), category="washer",
                                models=str(tmp_path / "models"), config=good.config))
    production = registry.load_bundle(str(tmp_path / "models"), "washer")
    found = compare(good, production, images)
    assert found.takes_candidate and (found.basis, found.images) == ("candidate", 12)
    assert "12 images held out of the candidate; too few calibrated both" in found.why
    nets = replace(production, config=preset_config("small"))
    assert "may have been trained on" not in found.why
    assert module._basis_note("candidate", nets).endswith("may have been trained on them")


def test_the_same_question_has_the_same_answer(good: Bundle, images: dict[str, Read]) -> None:
    other = shifted(good, 0.5)
    first = compare(other, good, images)
    assert first == compare(other, good, dict(reversed(images.items())))
    assert first.candidate != first.production


def test_only_images_of_both_tables_count_while_they_are_enough(
        good: Bundle, images: dict[str, Read]) -> None:
    def without(count: int) -> Bundle:
        dropped = sorted(images)[:count]
        keep = [sha not in dropped for sha in good.calibration["sha256"].to_pylist()]
        return replace(good, calibration=good.calibration.filter(pa.array(keep)))

    assert [(found.basis, found.images) for found in (
        compare(good, without(4), images), compare(good, without(5), images),
        compare(without(4), without(4), images))] == [("both", 8), ("candidate", 12), ("both", 8)]


def test_too_few_images_keep_production(good: Bundle, images: dict[str, Read]) -> None:
    few = {sha256: images[sha256] for sha256 in sorted(images)[:7]}
    found = compare(good, shifted(good, -1000), few)
    assert not found.takes_candidate and (found.basis, found.images) == ("none", 7)
    assert found.candidate is found.auroc is None
    assert "kept spoilt: 7 held-out images are too few" in found.why
    assert json.dumps(found.document())


def test_the_images_are_the_lowest_digests_and_those_that_can_be_read(
        good: Bundle, images: dict[str, Read], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 10)
    opened: list[str] = []

    def opens(sha256: str) -> NDArray[np.uint8]:
        opened.append(sha256)
        if len(opened) == 3:
            raise ImageError(Reason.VANISHED, "gone since")
        return images[sha256]()

    told: list[tuple[int, int]] = []
    found = compare(good, good, {sha256: partial(opens, sha256) for sha256 in images},
                    progress=lambda done, total: told.append((done, total)))
    assert opened == sorted(images)[:10] and found.images == 9
    assert told == [(done, 10) for done in range(1, 11) if done != 3]


def test_both_versions_see_the_same_planted_source_in_their_own_way(
        good: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {sha256: partial(np.copy, np.random.default_rng(i).integers(
        0, 256, (80, 120, 3), np.uint8)) for i, sha256 in enumerate(
            sorted(good.calibration["sha256"].to_pylist())[:8])}
    squash = replace(good, version="squash", config=replace(
        good.config, image=replace(good.config.image, fit="squash")))
    seen: dict[str, list[NDArray[np.uint8]]] = {good.version: [], "squash": []}
    score = Scorer.score

    def watched(self: Scorer, shown: list[NDArray[np.uint8]]) -> Any:
        seen[self.bundle.version] += shown
        return score(self, shown)

    monkeypatch.setattr(Scorer, "score", watched)
    compare(squash, good, wide)
    assert len(seen["squash"]) == 16
    assert all(map(np.array_equal, seen["squash"], seen[good.version]))
    assert len(seen[good.version]) == 16
    first = sorted(wide)[0]
    assert np.array_equal(seen["squash"][1], plant(wide[first](), first)[0])
    assert not np.array_equal(prepare(wide[first](), squash.config.image),
                              prepare(wide[first](), good.config.image))


def test_a_clean_image_counts_with_its_held_out_score_unless_it_now_scores_higher(
        good: Bundle, images: dict[str, Read]) -> None:
    sha256, = sorted(images)[:1]
    image = images[sha256]()
    now, = Scorer(good).score([image]).scores.tolist()
    for by, expected in ((100.0, "table"), (-100.0, "now")):
        bundle = shifted(good, by)
        table = dict(zip(*bundle.calibration.select(["sha256", "score"]).to_pydict().values(),
                         strict=True))
        clean, planted = module._Version(bundle).look(sha256, image, image)
        assert planted == now
        assert clean == {"table": table[sha256], "now": now}[expected]
    assert module._Version(good).look("0" * 64, image, image) == (now, now)


@pytest.mark.parametrize(("accuracy", "auroc", "expected"), [
    ((-0.2, -0.1, -0.01), (0.1, 0.2, 0.3), (False, "worse")),
    ((0.01, 0.1, 0.2), (-0.3, -0.2, -0.1), (True, "better")),
    ((-0.1, 0, 0.1), (-0.3, -0.2, -0.1), (False, "worse")),
    ((-0.1, 0, 0.1), (0.1, 0.2, 0.3), (True, "better")),
    ((-0.1, 0, 0.1), (-0.1, 0, 0.1), (True, "not worse")),
    ((0, 0, 0), (0, 0, 0), (True, "not worse")),
    ((-0.2, -0.1, 0), (-0.2, -0.1, 0), (True, "not worse")),
])
def test_a_candidate_is_refused_where_an_interval_lies_below_0(
        accuracy: tuple[float, float, float], auroc: tuple[float, float, float],
        expected: tuple[bool, str]) -> None:
    one, other = (Estimate(value, low, high) for low, value, high in (accuracy, auroc))
    assert module._verdict(one, other) == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_differences_are_those_of_the_statistics_over_images_drawn_together(
        seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count, resamples = 15, 50
    monkeypatch.setattr(module, "RESAMPLES", resamples)
    rng = np.random.default_rng(seed)

    def drawn(gap: float) -> module._Shown:
        scores = rng.normal(0, 1, count), rng.normal(gap, 1, count)
        return module._Shown(1.0, *(np.round(score, 1) for score in scores))  # with ties

    def statistics(shown: module._Shown, index: NDArray[np.int_]) -> NDArray[np.float64]:
        clean, planted = shown.clean_N[index], shown.planted_N[index]
        accuracy = ((planted > shown.threshold).mean() + (clean <= shown.threshold).mean()) / 2
        labels = np.repeat([0, 1], count)
        return np.array([accuracy, roc_auc_score(labels, np.concatenate([clean, planted]))])

    one, other = drawn(2), drawn(1)
    found = module._differences(one, other)
    everything = np.arange(count)
    assert [estimate.value for estimate in found] == pytest.approx(
        statistics(one, everything) - statistics(other, everything))
    weight_RN, = weights(np.zeros(count, np.int_), 0, resamples, resamples)
    low, high = np.quantile([
        statistics(one, index) - statistics(other, index)
        for index in (np.repeat(everything, weight_N.astype(int)) for weight_N in weight_RN)
    ], [0.025, 0.975], axis=0)
    assert [estimate.low for estimate in found] == pytest.approx(low)
    assert [estimate.high for estimate in found] == pytest.approx(high)


def test_what_both_get_wrong_alike_does_not_widen_the_interval() -> None:
    """Images differ far more than the versions do: only a paired comparison sees it."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 5, 40)
    other = module._Shown(0.0, common, common + 2)
    one = module._Shown(0.0, common, common + 4)
    _, auroc = module._differences(one, other)
    assert auroc.low > 0
    assert module._differences(one, one) == (Estimate(0, 0, 0), Estimate(0, 0, 0))
