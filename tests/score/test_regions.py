"""Regions: boxes in source pixels, worst first."""

from __future__ import annotations

import numpy as np
import pytest

from igd.config import ImageConfig
from igd.data.images import Geometry
from igd.score.regions import MAX_REGIONS, find_regions

CROP = ImageConfig(size=64, fit="crop")


def blank() -> np.ndarray:
    return np.zeros((64, 64), np.float32)


def test_a_box_is_in_source_pixels_of_the_crop() -> None:
    heatmap = blank()
    heatmap[10:14, 20:28] = 2.0
    heatmap[12, 25] = 5.0
    # 320x128: the crop is x 96..224, y 0..128, two source pixels per input pixel
    region, = find_regions(heatmap, 1.0, Geometry.of(320, 128, CROP))
    assert (region.x0, region.y0, region.x1, region.y1) == (96 + 40, 20, 96 + 56, 28)
    assert (region.area, region.peak) == (4 * 8 * 4, 5.0)
    region, = find_regions(heatmap, 1.0, Geometry.of(128, 320, CROP))
    assert (region.x0, region.y0, region.x1, region.y1) == (40, 96 + 20, 56, 96 + 28)


def test_a_squashed_image_has_another_scale_along_x_and_y() -> None:
    heatmap = blank()
    heatmap[10:14, 20:28] = 2.0
    region, = find_regions(heatmap, 1.0, Geometry.of(320, 128, ImageConfig(size=64, fit="squash")))
    assert (region.x0, region.y0, region.x1, region.y1) == (100, 20, 140, 28)
    assert region.area == 4 * 8 * 5 * 2


@pytest.mark.parametrize(("width", "height"), [(64, 64), (101, 77), (33, 200)])
def test_a_region_that_fills_the_heatmap_is_the_whole_crop(width: int, height: int) -> None:
    geometry = Geometry.of(width, height, CROP)
    region, = find_regions(blank() + 1, 0.5, geometry)
    assert (region.x0, region.y0, region.x1, region.y1) == geometry.box
    assert region.area == min(width, height) ** 2


def test_only_what_is_above_the_threshold_counts() -> None:
    heatmap = blank()
    heatmap[10:20, 10:20] = 1.0
    assert find_regions(heatmap, 1.0, Geometry.of(64, 64, CROP)) == []
    assert len(find_regions(heatmap, np.nextafter(1.0, 0), Geometry.of(64, 64, CROP))) == 1


def test_regions_come_by_their_peak_and_specks_are_left_out() -> None:
    heatmap = blank()
    heatmap[2:6, 2:6] = 3.0
    heatmap[20:30, 20:30] = 2.0
    heatmap[40:42, 40:42] = 9.0  # MIN_AREA pixels: stays
    heatmap[50, 50:53] = 99.0  # three pixels: a speck
    found = find_regions(heatmap, 1.0, Geometry.of(64, 64, CROP))
    assert [(r.peak, r.area) for r in found] == [(9.0, 4), (3.0, 16), (2.0, 100)]


def test_a_neighbour_in_the_same_box_does_not_lend_its_peak() -> None:
    heatmap = blank()
    heatmap[10:30, 10] = heatmap[29, 10:30] = 2.0  # an L whose box holds the other
    heatmap[15:20, 15:20] = 7.0
    found = find_regions(heatmap, 1.0, Geometry.of(64, 64, CROP))
    assert [r.peak for r in found] == [7.0, 2.0]


def test_the_list_is_bounded_and_keeps_the_worst() -> None:
    heatmap = blank()
    peaks = iter(range(10, 1000))
    for y in range(0, 60, 6):
        for x in range(0, 60, 6):
            heatmap[y:y + 2, x:x + 2] = next(peaks)
    found = find_regions(heatmap, 1.0, Geometry.of(64, 64, CROP))
    assert [r.peak for r in found] == list(range(109, 109 - MAX_REGIONS, -1))
