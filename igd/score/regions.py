"""Boxes around the parts of a heatmap that stand out, in source pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from igd.data.images import Geometry

MAX_REGIONS = 20
MIN_AREA = 4
"""Input pixels; anything smaller is one bilinear peak."""


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of the heatmap above the threshold.

    Attributes:
        x0, y0, x1, y1: its box in source pixels, half-open.
        area: source pixels above the threshold.
        peak: highest heatmap value in it.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    area: int
    peak: float


def find_regions(heatmap_HW: NDArray[np.float32], threshold: float,
                 geometry: Geometry) -> list[Region]:
    """The regions above a threshold, highest peak first, at most `MAX_REGIONS`."""
    labels, count = ndimage.label(heatmap_HW > threshold)
    if not count:
        return []
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        if areas[label] < MIN_AREA:
            continue
        x0, y0, x1, y1 = geometry.to_source(columns.start, rows.start, columns.stop, rows.stop)
        peak = heatmap_HW[rows, columns][labels[rows, columns] == label].max()
        found.append(Region(x0, y0, x1, y1, round(int(areas[label]) * geometry.area_scale),
                            float(peak)))
    return sorted(found, key=lambda region: -region.peak)[:MAX_REGIONS]
