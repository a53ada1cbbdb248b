"""Near-twins: what makes one, and that no split parts them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from igd.config import preset_config
from igd.data import twins
from igd.data.images import decode
from igd.data.twins import (
    cluster_near_duplicates,
    cluster_near_twins,
    draw_groups,
    split_by_cluster,
)
from igd.errors import ConfigError, DataError

SHARED = Path(os.environ.get("IGD_SHARED", Path(__file__).parents[3] / "shared"))


def grey(image_HW: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat(np.rint(image_HW).astype(np.uint8)[..., None], 3, axis=2)


def noise(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(50, 170, (32, 32))


def turned(correlation: float) -> NDArray[np.uint8]:
    """An image that correlates so with noise(0), to within rounding."""
    first, other = (noise(seed) - noise(seed).mean() for seed in (0, 1))
    other -= first * (first * other).sum() / (first**2).sum()
    other *= np.sqrt((first**2).sum() / (other**2).sum())
    return grey(110 + correlation * first + np.sqrt(1 - correlation**2) * other)


def test_brightness_and_contrast_make_no_difference_and_neither_does_size() -> None:
    images = [grey(noise(0)), grey(noise(1)), grey(noise(0) * 0.5 + 90), grey(255 - noise(0))]
    assert cluster_near_twins(images).tolist() == [0, 1, 0, 2]
    small, large = (grey(100 + 90 * np.outer(np.sin(np.linspace(0, 9, size)),
                                             np.cos(np.linspace(0, 7, size))))
                    for size in (64, 250))
    assert cluster_near_twins([small, large, large[:, ::-1]]).tolist() == [0, 0, 1]


def test_the_correlation_must_be_above_the_threshold() -> None:
    pair = np.stack([grey(noise(0)), turned(0.95)])
    correlation = float(np.corrcoef(pair[..., 0].reshape(2, -1))[0, 1])
    assert correlation == pytest.approx(0.95, abs=1e-3)
    for threshold, twin in ((correlation - 1e-9, True), (correlation + 1e-9, False)):
        label_N = cluster_near_twins(pair, min_correlation=threshold)
        assert (label_N[0] == label_N[1]) == twin
    assert cluster_near_twins([pair[0], turned(0.982)]).tolist() == [0, 0]
    assert cluster_near_twins([pair[0], turned(0.978)]).tolist() == [0, 1]


def test_a_chain_of_near_twins_is_one_cluster_across_blocks(
        monkeypatch: pytest.MonkeyPatch) -> None:
    chain = [turned(np.cos(0.18 * step)) for step in range(4)]  # neighbours correlate by 0.984
    assert len(set(cluster_near_twins([chain[0], chain[2]]))) == 2
    images = [chain[3], grey(noise(7)), chain[0], chain[2], grey(noise(8)), chain[1]]
    for block in (1, 2, 256):
        monkeypatch.setattr(twins, "BLOCK", block)
        assert cluster_near_twins(images).tolist() == [0, 1, 0, 0, 2, 0]


def test_a_constant_image_is_a_twin_of_its_like_only() -> None:
    black, white = (np.full((40, 50, 3), level, np.uint8) for level in (0, 255))
    images = [black, grey(noise(0)), white, black[:32], np.full_like(white, 254), white]
    assert cluster_near_twins(images).tolist() == [0, 1, 2, 0, 3, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.9))
def test_clusters_are_the_components_of_the_correlation_matrix(
        seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 256, (6, 32, 32))
    which = rng.integers(0, 6, 40)
    weight = rng.uniform(0, 1, (40, 1, 1))
    grey_NHW = np.rint(bases[which] * weight + rng.integers(0, 256, (40, 32, 32)) * (1 - weight))
    expected = connected_components(np.corrcoef(grey_NHW.reshape(40, -1)) > threshold)[1]
    label_N = cluster_near_twins((grey(image) for image in grey_NHW), min_correlation=threshold)
    assert label_N.dtype == np.int64
    assert ((label_N[:, None] == label_N) == (expected[:, None] == expected)).all()
    firsts = [int(label) for i, label in enumerate(label_N) if label not in label_N[:i]]
    assert firsts == list(range(len(firsts)))


def test_what_is_no_image_and_what_is_no_correlation_is_refused() -> None:
    for wrong in (np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32)):
        with pytest.raises(DataError, match=r"image 1 is .*expected uint8 \(H, W, 3\)"):
            cluster_near_twins([grey(noise(0)), wrong])  # type: ignore[list-item]
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="min_correlation"):
            cluster_near_twins([], min_correlation=threshold)
    assert cluster_near_twins([]).tolist() == []


@given(st.lists(st.integers(0, 12), min_size=2).filter(lambda x: len(set(x)) > 1),
       st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_a_split_parts_no_cluster_and_leaves_no_side_empty(
        labels: list[int], share: float, seed: int) -> None:
    label_N = np.array(labels)
    rest, held = split_by_cluster(label_N, share, seed)
    assert sorted([*rest, *held]) == list(range(len(labels))) and len(rest) and len(held)
    assert rest.tolist() == sorted(rest) and held.tolist() == sorted(held)
    assert not set(label_N[rest]) & set(label_N[held])
    # No cluster that stayed would have brought it nearer, where one must not stay.
    off = abs(len(held) - share * len(labels))
    staying = set(label_N[rest])
    for cluster in staying if len(staying) > 1 else ():
        assert abs(len(held) + (label_N == cluster).sum() - share * len(labels)) >= off


def test_a_split_is_as_near_to_the_share_as_clusters_allow_and_hangs_on_its_seed() -> None:
    singles = np.arange(100)
    assert all(len(split_by_cluster(singles, 0.2, seed)[1]) == 20 for seed in range(5))
    first = split_by_cluster(singles, 0.2, 0)[1].tolist()
    assert split_by_cluster(singles, 0.2, 0)[1].tolist() == first
    assert split_by_cluster(singles, 0.2, 1)[1].tolist() != first
    one_large = np.array([0] * 80 + list(range(1, 21)))
    for seed in range(5):
        assert split_by_cluster(one_large, 0.2, seed)[1].tolist() == list(range(80, 100))
    assert split_by_cluster(np.array([0] * 7 + [1] * 5), 0.01, 0)[1].tolist() == [7, 8, 9, 10, 11]


def test_one_cluster_cannot_be_split() -> None:
    for label_N in (np.zeros(5, np.int64), np.zeros(0, np.int64)):
        with pytest.raises(DataError, match="at least two clusters"):
            split_by_cluster(label_N, 0.5, 0)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            split_by_cluster(np.arange(4), share, 0)


def test_the_real_magnetic_tiles_are_409_clusters() -> None:
    folder = SHARED / "data/magnetic_tile/MT_Free/Imgs"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    paths = sorted(folder.glob("*.jpg"))
    label_N = cluster_near_twins(decode(path.read_bytes(), max_pixels=10**6) for path in paths)
    assert len(paths) == 952 and len(set(label_N)) == 409
    assert np.bincount(label_N).max() == 12
    rest, held = split_by_cluster(label_N, 0.2, 0)
    assert len(held) == 190 and not set(label_N[rest]) & set(label_N[held])


def parts(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Photographs of parts in one pose: one pattern, and a little of each part's own."""
    common = np.random.default_rng(99).uniform(60, 190, (32, 32))
    return [grey(common + np.random.default_rng(100 * seed + i).normal(0, 4, (32, 32)))
            for i in range(count)]


def test_parts_in_one_pose_are_no_near_duplicates_but_their_copies_are() -> None:
    images = parts(12)
    copies = [grey(images[i][..., 0] * 0.7 + 20) for i in (3, 3, 8)]
    assert cluster_near_twins(images).max() == 0  # taken as they are, they all correlate
    label_N = cluster_near_duplicates([*images, *copies], min_correlation=0.95)
    assert label_N[:12].tolist() == list(range(12)) and label_N[12:].tolist() == [3, 3, 8]


def test_equal_images_are_near_duplicates_whatever_the_threshold() -> None:
    images = parts(4)
    assert cluster_near_duplicates([*images, images[1]],
                                   min_correlation=1.0).tolist() == [0, 1, 2, 3, 1]
    assert cluster_near_duplicates([images[0]] * 5, min_correlation=0.95).tolist() == [0] * 5


def test_groups_are_drawn_by_what_is_in_them_and_not_by_what_is_beside() -> None:
    images, digests = parts(30), [f"{i:064d}" for i in range(30)]

    def drawn(count: int, seed: int) -> list[int]:
        group_N = draw_groups(images[:count], digests[:count], preset_config("fast", seed=seed))
        assert sorted(group_N) == list(range(count))
        return np.argsort(group_N).tolist()

    assert drawn(30, 0) != drawn(30, 1)
    assert [i for i in drawn(30, 0) if i < 20] == drawn(20, 0)  # ten images were added


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
def test_near_duplicates_of_real_parts_are_few_and_of_tiles_many() -> None:
    def clusters(folder: Path) -> tuple[int, int]:
        paths = sorted(folder.iterdir())
        images = (decode(path.read_bytes(), max_pixels=10**6) for path in paths
                  if path.suffix in (".png", ".jpg"))
        label_N = cluster_near_duplicates(images, min_correlation=0.95)
        return len(label_N), int(label_N.max()) + 1

    assert clusters(SHARED / "data/mvtec_ad/bottle/train/good") == (209, 207)
    count, found = clusters(SHARED / "data/magnetic_tile/MT_Free/Imgs")
    assert count == 952 and found < 409
