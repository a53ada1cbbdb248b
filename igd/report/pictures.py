"""The gallery: images, heatmaps over them and boxes, as data: URIs.

Pictures are shown in the model's input geometry, the part of the source that was scored. Boxes
stay in source pixels: the drawing over a picture takes the crop as its coordinate system.

Legend: H, W height and width of the model's input, C = 3 RGB channels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Date
from typing import Protocol

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from igd import tables
from igd.errors import ImageError
from igd.report.names import full_name, short_name
from igd.report.summary import Row

_BLANK = 208
"""Grey under a heatmap whose image is gone."""
_NARROWEST, _WIDEST = 0.7, 2.5
"""Limits of a picture's width / height on the page."""


class Overlay(Protocol):
    """An image with its heatmap on top, as a file that Pillow reads (`igd.data.images.overlay`)."""

    def __call__(self, image_HWC: NDArray[np.uint8], heatmap_HW: NDArray[np.float32], *,
                 lo: float, hi: float) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Original:
    """What could be had of an image from its source.

    Attributes:
        pixels_HWC: the model's input, uint8 of the heatmap's size; None where the image is gone.
        problem: why it is gone.
        box: x0, y0, x1, y1 of the source pixels that the input shows, half-open, if known.
        shard: of the run that scored it, if known; its heatmap's file is named after it.
    """

    pixels_HWC: NDArray[np.uint8] | None = None
    problem: str | None = None
    box: tuple[int, int, int, int] | None = None
    shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How to come by pictures; the report itself can neither fetch nor decode.

    Attributes:
        load: rows of `scores` to originals by image id, all of a report at once, so that a
            plan is walked once; an id may be missing.
        decode_heatmap: as `igd.data.images.decode_heatmap`; an ImageError drops the heatmap.
    """

    load: Callable[[Sequence[Row]], Mapping[str, Original]]
    overlay: Overlay
    decode_heatmap: Callable[[bytes, float, float], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One image of the gallery, ready for the template.

    Attributes:
        image, heatmap: data: URIs, or None where there is none.
        view: the drawing's coordinate system over the picture, or None.
        aspect: width / height to show it at.
        seen: share of the source's pixels that the model saw.
        problem: why the image is gone, if it is.
    """

    row: Row
    name: str
    full_name: str
    image: Markup | None
    heatmap: Markup | None
    view: str | None
    aspect: float
    seen: float
    problem: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Heatmap values where colour begins and where it is full."""

    lo: float
    hi: float


class Gallery:
    """Tiles of chosen rows; images and heatmaps are read once, for all of them."""

    def __init__(self, out: str, date: Date, rows: Sequence[Row], pictures: Pictures) -> None:
        self._pictures = pictures
        self._originals = pictures.load(rows) if rows else {}
        self._heatmaps = dict(self._read_heatmaps(out, date, rows))

    def scale(self, rows: Sequence[Row], normal_peak: float | None) -> Scale | None:
        """One scale for tiles that will be compared, or None without any heatmap.

        Args:
            normal_peak: value that the heatmaps of normal images reach.
        """
        maps = [found for row in rows
                if (found := self._heatmaps.get(row["image_id"])) is not None]
        if not maps:
            return None
        hi = max(float(heatmap_HW.max()) for heatmap_HW in maps)
        middle = min(float(heatmap_HW.min() + heatmap_HW.max()) / 2 for heatmap_HW in maps)
        return Scale(lo=middle if normal_peak is None else min(normal_peak, hi), hi=hi)

    def tile(self, row: Row, scale: Scale | None) -> Tile:
        """The tile of one of the rows."""
        original = self._originals.get(row["image_id"], Original())
        pixels_HWC, heatmap_HW = original.pixels_HWC, self._heatmaps.get(row["image_id"])
        overlaid = None
        if heatmap_HW is not None and scale is not None:
            under_HWC = pixels_HWC if pixels_HWC is not None else np.full(
                (*heatmap_HW.shape, 3), _BLANK, np.uint8)
            png = self._pictures.overlay(under_HWC, heatmap_HW, lo=scale.lo, hi=scale.hi)
            overlaid = data_uri(Image.open(io.BytesIO(png)))
        width, height = _extent(original)
        return Tile(
            row=row, name=short_name(row), full_name=full_name(row), heatmap=overlaid,
            image=None if pixels_HWC is None else data_uri(Image.fromarray(pixels_HWC)),
            view=_view(original), aspect=min(max(width / height, _NARROWEST), _WIDEST),
            seen=1.0 if original.box is None else width * height / (row["width"] * row["height"]),
            problem=original.problem or "not found")

    def _read_heatmaps(self, out: str, date: Date, rows: Sequence[Row]
                       ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        wanted = {(row["run_id"], row["image_id"]) for row in rows}
        ids = [image_id for _, image_id in wanted]
        for file in tables.live_files(out, "heatmaps", date) if rows else ():
            if not self._may_hold(file, rows):
                continue
            found = tables.read(out, "heatmaps", date, files=[file])
            for row in found.filter(pc.is_in(found["image_id"], pc.cast(ids, "string")
                                             )).to_pylist():
                if (row["run_id"], row["image_id"]) in wanted:
                    try:
                        yield row["image_id"], self._pictures.decode_heatmap(
                            row["heatmap"], row["heatmap_min"], row["heatmap_max"])
                    except ImageError:
                        continue  # one damaged heatmap costs its own picture, not the report

    def _may_hold(self, file: tables.StagedFile, rows: Sequence[Row]) -> bool:
        """Whether a file of heatmaps is worth reading: its name says of which run and shard."""
        name = file.path.rsplit("/", 1)[-1]
        for row in rows:
            shard = self._originals.get(row["image_id"], Original()).shard
            stem = f"{row['run_id']}-" if shard is None else f"{row['run_id']}-{shard:08d}-"
            if file.category == row["category"] and name.startswith(stem):
                return True
        return False


def _extent(original: Original) -> tuple[int, int]:
    """Width and height of what a picture shows, in source pixels; a square where unknown."""
    x0, y0, x1, y1 = original.box or (0, 0, 1, 1)
    return x1 - x0, y1 - y0


def _view(original: Original) -> str | None:
    if original.box is None:
        return None
    x0, y0, x1, y1 = original.box
    return f"{x0} {y0} {x1 - x0} {y1 - y0}"


def data_uri(image: Image.Image) -> Markup:
    """The image inside the page."""
    sink = io.BytesIO()
    image.convert("RGB").save(sink, "WEBP", quality=82)
    return Markup("data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode())
