"""Planted defects: of the stated size, where every model sees them, and always to be seen."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from igd.data.cutpaste import plant
from igd.data.synthetic import render


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(deadline=None)
@given(st.integers(8, 120), st.integers(8, 120), st.integers(0, 10**6),
       st.sampled_from(["noise", "black", "white", "grey"]))
@example(8, 8, 390, "noise")  # a patch thinner than a pixel
def test_a_defect_is_seen_and_changes_only_what_its_mask_says(
        height: int, width: int, number: int, kind: str) -> None:
    flat = {"black": 0, "white": 255, "grey": 128}
    image = (noise(height, width, number) if kind == "noise" else
             np.full((height, width, 3), flat[kind], np.uint8))
    before = image.copy()
    planted, mask = plant(image, digest(number))
    assert (planted.shape, planted.dtype) == (image.shape, np.uint8)
    assert np.array_equal(image, before)
    assert np.array_equal(planted[~mask], image[~mask])
    assert abs(planted[mask].astype(int) - image[mask]).mean() > 5
    side = min(height, width)
    y0, x0 = (height - side) // 2, (width - side) // 2
    assert mask.any() and mask.sum() == mask[y0:y0 + side, x0:x0 + side].sum()


def test_patches_and_scars_have_the_sizes_of_the_paper() -> None:
    image = noise(256, 320)
    areas = np.array([plant(image, digest(number))[1].sum() for number in range(200)])
    patches, scars = areas[areas > 600], areas[areas <= 600]
    assert 70 < len(patches) < 130  # one as often as the other
    share = patches / 256**2
    assert share.min() > 0.019 and share.max() < 0.151  # the pixel grid rounds
    assert share.min() < 0.03 and share.max() > 0.13  # the whole range is used
    assert scars.min() >= 2 * 10 * 0.8 and scars.max() <= 16 * 25 * 1.05


def test_a_defect_is_a_piece_of_the_image_itself_turned_and_tinted() -> None:
    y, x = np.mgrid[:128, :128]
    image = np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8)  # its own place
    planted, mask = plant(image, digest(3))
    shift = planted[mask][:, 2].astype(int) - 60
    assert len(set(shift.tolist())) == 1 and 7 <= shift[0] <= 26
    # x and y of the source, but for a constant: a rotation keeps distances
    found = planted[mask].astype(int)[:, :2]
    place = np.argwhere(mask)[:, ::-1]
    one, other = 0, len(found) - 1
    assert np.linalg.norm(found[one] - found[other]) == pytest.approx(
        np.linalg.norm(place[one] - place[other]), abs=2)


def test_the_digest_alone_decides() -> None:
    image, _ = render("weave", None, 0, size=64, seed=0)
    first, again, other = (plant(image, digest(number)) for number in (1, 1, 2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_the_place_is_the_one_where_it_shows() -> None:
    """A washer on an even ground: ground pasted on ground would be no defect."""
    changes = []
    for number in range(20):
        image, _ = render("washer", None, number, size=96, seed=0)
        planted, mask = plant(image, digest(number))
        changes.append(abs(planted[mask].astype(int) - image[mask]).mean())
    assert np.mean(changes) > 30
