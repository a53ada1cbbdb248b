"""The gallery of an evaluation: the test images that the model got most wrong, and a few others.

Legend: N test images; H, W height and width of the model's input.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from igd.records import Decision
from igd.report.names import tail, visible
from igd.report.outline import outline
from igd.report.pictures import Overlay, Scale, data_uri
from igd.score.evaluate import Evaluation

PICTURE_SIDE = 320
"""Pixels that a picture has at most."""
_REDDEST_NORMAL = 1 / 3
"""Of the colour scale: how far nine in ten normal images stay below."""


@dataclass(frozen=True, kw_only=True)
class MissTile:
    """One test image, ready for the template.

    Attributes:
        wrong: `missed` or `false alarm`; empty where the decision is right.
        width, height: of the source, in pixels.
        image, heatmap: data: URIs.
        outline: SVG path around what the mask marks, in a square of side `side`.
    """

    key: str
    name: str
    defect: str
    score: float
    decision: Decision
    wrong: str
    width: int
    height: int
    image: Markup
    heatmap: Markup
    outline: str
    side: int


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Tiles in order, of `total` images, of which `wrong` got the wrong decision."""

    tiles: list[MissTile]
    total: int
    wrong: int


@dataclass(frozen=True, kw_only=True)
class Misses:
    """What is shown of a category; no image stands in it twice.

    Attributes:
        anomalous: lowest scores first.
        normal: highest scores first.
        good: the highest scores of anomalous images, then the lowest of normal ones.
    """

    scale: Scale
    anomalous: Strip
    normal: Strip
    good: list[MissTile]


def find_misses(found: Evaluation, overlay: Overlay, size: int) -> Misses:
    """The worst misses and some good examples.

    Args:
        size: images at most: half anomalous, a quarter normal, a quarter good examples.
    """
    scores_N, is_anomalous_N = found.model.scores_N, found.tests.is_anomalous_N
    is_wrong_N = (scores_N > found.rule.threshold) != is_anomalous_N
    rising = np.argsort(scores_N, kind="stable")
    anomalous, normal = rising[is_anomalous_N[rising]], rising[~is_anomalous_N[rising]][::-1]
    half, quarter, eighth = size // 2, size // 4, size // 8
    scale = heatmap_scale(found)

    def tiles(numbers: Iterable[int]) -> list[MissTile]:
        return [_tile(found, number, bool(is_wrong_N[number]), scale, overlay)
                for number in numbers]

    return Misses(
        scale=scale, good=tiles([*anomalous[half:][::-1][:eighth],
                                 *normal[quarter:][::-1][:eighth]]),
        anomalous=Strip(tiles=tiles(anomalous[:half]), total=len(anomalous),
                        wrong=int(is_wrong_N[anomalous].sum())),
        normal=Strip(tiles=tiles(normal[:quarter]), total=len(normal),
                     wrong=int(is_wrong_N[normal].sum())))


def heatmap_scale(found: Evaluation) -> Scale:
    """One scale for a category: every second normal image stays without colour.

    Full colour is what one in ten anomalous images reaches, or more where normals would be red.
    """
    peaks_N, is_anomalous_N = found.heatmaps_NHW.max((1, 2)), found.tests.is_anomalous_N
    top = float(np.percentile(peaks_N[is_anomalous_N], 90))
    if is_anomalous_N.all():
        return Scale(lo=float(np.median(found.heatmaps_NHW.min((1, 2))) + top) / 2, hi=top)
    lo, most = np.percentile(peaks_N[~is_anomalous_N], (50, 90)).tolist()
    return Scale(lo=lo, hi=max(top, lo + (most - lo) / _REDDEST_NORMAL))


def _tile(found: Evaluation, number: int, is_wrong: bool, scale: Scale,
          overlay: Overlay) -> MissTile:
    tests, image_HWC = found.tests, found.tests.images_NHWC[number]
    score = float(found.model.scores_N[number])
    is_anomalous = bool(tests.is_anomalous_N[number])
    key, (width, height) = visible(tests.keys[number]), tests.size_N2[number].tolist()
    png = overlay(image_HWC, found.heatmaps_NHW[number], lo=scale.lo, hi=scale.hi)
    return MissTile(
        key=key, name=tail(key), defect=visible(tests.defects[number]), score=score,
        decision=Decision.ANOMALOUS if is_anomalous != is_wrong else Decision.NORMAL,
        wrong=("missed" if is_anomalous else "false alarm") if is_wrong else "",
        width=width, height=height, image=_small(Image.fromarray(image_HWC)),
        heatmap=_small(Image.open(io.BytesIO(png))), outline=outline(tests.mask_NHW[number]),
        side=image_HWC.shape[0])


def _small(image: Image.Image) -> Markup:
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return data_uri(image)
