"""Same image, same score: whatever the batch, the threads, the size it comes in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from igd.config import preset_config
from igd.data.images import decode, prepare
from igd.errors import ConfigError, DataError
from igd.records import Decision
from igd.score.device import Device
from igd.score.scorer import ScoreBatch, Scorer, pinned_threads, score_fingerprint


@pytest.fixture(scope="module")
def scorer(tiny_models: Path) -> Scorer:
    return Scorer.load(str(tiny_models / "washer"))


@pytest.fixture(scope="module")
def images(tiny_data: Path) -> list[NDArray[np.uint8]]:
    paths = sorted((tiny_data / "washer" / "test").rglob("*.png"))
    return [decode(path.read_bytes(), max_pixels=10**6) for path in paths]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(batch: ScoreBatch) -> list[bytes]:
    return [batch.scores.tobytes(), batch.heatmaps.tobytes(),
            *(batch.terms[name].tobytes() for name in sorted(batch.terms))]


def test_a_batch_scores_as_its_images_one_by_one(scorer: Scorer,
                                                 images: list[NDArray[np.uint8]]) -> None:
    together = scorer.score(images)
    assert len(together) == 12 and len(set(together.scores.tolist())) == 12
    assert set(together.terms) == {"dense_distance", "pooled_distance"}
    for i, image in enumerate(images):
        alone = scorer.score([image])
        assert alone.scores[0] == together.scores[i]
        assert alone.heatmaps[0].tobytes() == together.heatmaps[i].tobytes()
        assert all(alone.terms[name][0] == together.terms[name][i] for name in alone.terms)
    assert len(scorer.score([])) == 0


def test_the_thread_count_of_the_process_changes_no_bit_and_is_kept(
        scorer: Scorer, images: list[NDArray[np.uint8]]) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(bits(scorer.score(images[:3])))
        assert torch.get_num_threads() == threads
    assert results[0] == results[1] == results[2]


def test_the_thread_count_is_restored_after_an_error(scorer: Scorer) -> None:
    torch.set_num_threads(2)
    with pytest.raises(DataError):
        scorer.score([np.zeros((64, 64), np.uint8)])
    assert torch.get_num_threads() == 2
    with pinned_threads(1):
        assert torch.get_num_threads() == 1


def test_threads_that_score_at_once_get_the_same_bits(scorer: Scorer,
                                                      images: list[NDArray[np.uint8]]) -> None:
    expected = bits(scorer.score(images[:4]))
    results: list[list[bytes]] = []
    barrier = threading.Barrier(3)

    def work() -> None:
        torch.set_num_threads(2)
        barrier.wait()
        for _ in range(3):
            results.append(bits(scorer.score(images[:4])))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 9 and all(result == expected for result in results)


def test_a_larger_image_scores_as_its_prepared_version(scorer: Scorer) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 90, 3), np.uint8)
    small = prepare(image, scorer.bundle.config.image)
    assert bits(scorer.score([image])) == bits(scorer.score([small]))
    # a view with other strides holds the same pixels
    mirrored = image[::-1, ::-1]
    assert bits(scorer.score([mirrored])) == bits(scorer.score([mirrored.copy()]))


def test_a_batch_of_fixed_shape_says_the_same_of_an_image_whatever_fills_it(
        scorer: Scorer, images: list[NDArray[np.uint8]]) -> None:
    """As on a GPU; here on the CPU, where the last bits differ from those of single images."""
    batched = Scorer(scorer.bundle, Device("cpu", 4))
    shapes: set[int] = set()
    model = batched._model
    batched._model = lambda x_NCHW: shapes.add(len(x_NCHW)) or model(x_NCHW)
    whole, single = batched.score(images[:6]), scorer.score(images[:6])
    np.testing.assert_allclose(whole.scores, single.scores, rtol=1e-5)
    np.testing.assert_allclose(whole.heatmaps, single.heatmaps, rtol=1e-4, atol=1e-5)
    for i in range(6):
        alone = batched.score([images[i]])
        assert alone.scores.tobytes() == whole.scores[i:i + 1].tobytes()
        assert alone.heatmaps.tobytes() == whole.heatmaps[i:i + 1].tobytes()
    assert shapes == {4}
    assert batched.fingerprint != scorer.fingerprint


@pytest.mark.parametrize("image", [
    np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8),
    np.zeros((3, 64, 64), np.uint8), np.zeros((1, 64, 64, 3), np.uint8),
    np.zeros((64, 64, 4), np.uint8), np.zeros((0, 64, 3), np.uint8)],
    ids=["float", "grey", "CHW", "batch", "RGBA", "empty"])
def test_another_shape_or_type_is_refused(scorer: Scorer, image: NDArray[np.generic]) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\)"):
        scorer.score([image])  # type: ignore[list-item]


def test_the_fingerprint_is_of_what_changes_bits(scorer: Scorer) -> None:
    config = scorer.bundle.config
    assert scorer.fingerprint == score_fingerprint(config)
    assert scorer.fingerprint == scorer.bundle.training["score_fingerprint"]
    assert score_fingerprint(replace(config, seed=5)) == scorer.fingerprint
    others = {score_fingerprint(replace(config, image=replace(config.image, **change)))
              for change in ({"size": 96}, {"fit": "squash"}, {})}
    assert len(others | {score_fingerprint(preset_config("small"))}) == 4


def test_a_judge_decides_by_the_calibration_of_the_bundle(
        scorer: Scorer, images: list[NDArray[np.uint8]]) -> None:
    judge = scorer.judge(fpr=0.04, review_fpr=0.2)  # 24 normals: 1 / 25 is the smallest rate
    normals = np.sort(scorer.bundle.calibration.column("score").to_numpy())
    heatmap = np.zeros((64, 64), np.float32)
    high = judge.assess(normals[-1] + 1, heatmap, (64, 64))
    assert (high.decision, high.p_value) == (Decision.ANOMALOUS, 1 / 25)
    assert (high.alpha, high.threshold, high.regions) == (0.04, normals[-1], [])
    assert judge.assess(normals[-1], heatmap, (64, 64)).decision is Decision.REVIEW
    assert judge.assess(normals[0], heatmap, (64, 64)).decision is Decision.NORMAL
    # regions: what no calibration normal reached anywhere, in source pixels
    peak = scorer.bundle.calibration.column("heatmap_max").to_numpy().max()
    heatmap[0:8, 0:8] = peak
    assert judge.assess(0.0, heatmap, (256, 128)).regions == []
    heatmap[0:8, 0:8] = peak + 1
    region, = judge.assess(0.0, heatmap, (256, 128)).regions
    assert (region.x0, region.y0, region.x1, region.y1) == (64, 0, 80, 16)
    with pytest.raises(ConfigError, match=r"false-positive rate 1\.0"):
        scorer.judge(fpr=1.0)
