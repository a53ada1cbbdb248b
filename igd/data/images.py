"""Bytes <-> arrays: one decode and one geometry for training, batch and endpoint.

The content decides the format, never the name. One rule for each kind of image:

====================================  ====================================================
0 bytes                               `empty`
JPEG PNG WEBP BMP TIFF GIF            decoded; an MPO file is its first, JPEG picture
text, HTML, unknown bytes             `not_image`, also a file cut inside its magic bytes
SVG PDF EPS PSD AVIF ICO ...          `format_not_allowed`, never parsed
header says more than `max_pixels`    `too_large`, before pixels are allocated
a side under `MIN_SIDE` (8) px        `too_small`
animation, several pages              `multi_frame`
a file that was cut                   `truncated`; missing pixels are never filled in
no memory for it                      `decoder_crash`
anything else Pillow raises           `corrupt`
PNG                                   the checksum of every whole chunk is verified; what
                                      follows the last IDAT may be cut or missing (no IEND)
JPEG, WEBP, BMP, TIFF, GIF            have no checksum: a flipped bit may go unnoticed, and so
                                      may a stream that ends itself before its last pixel
1 bit, grey, palette                  to RGB
16-bit grey                           round(v / 65535 * 255), not clipped; tRNS ignored
16-bit RGB and grey + alpha           Pillow's: the high byte; tRNS ignored
CMYK, YCCK, YCbCr                     Pillow's conversion without a profile
alpha, palette + tRNS                 composited on white
float, 32-bit, signed, 12-bit, Lab    `unsupported_mode`
EXIF orientation 1-8                  applied; an unreadable EXIF block counts as none
ICC profile, gamma, text, XMP         ignored
====================================  ====================================================

Legend: H, W height and width, C = 3 RGB channels; *source* pixels are those of the decoded,
oriented image, *input* pixels those of the model's square input.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from igd.config import ImageConfig
from igd.data.formats import ALLOWED_FORMATS, declared_end, sniff
from igd.data.png import has_all_rows, pixel_chunks
from igd.errors import DataError, ImageError
from igd.records import Reason

__all__ = ["ALLOWED_FORMATS", "DECODE_PATH", "MIN_SIDE", "RESAMPLE", "Geometry", "check_size",
           "decode", "decode_heatmap", "encode_heatmap", "overlay", "prepare", "prepare_mask"]

MIN_SIDE = 8
RESAMPLE = Image.Resampling.BICUBIC
"""Antialiased in Pillow, integer arithmetic: the same bits on every machine."""

DECODE_PATH = (f"pillow-{PIL.__version__}/jpeg-{features.version('libjpeg_turbo')}"
               f"/webp-{features.version('webp')}/bicubic/v1")
"""Everything about decode and resize that affects pixels; part of the score fingerprint.
Raise `v1` with any change of the rules above."""

_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile,
    "BMP": BmpImageFile, "TIFF": TiffImageFile, "GIF": GifImageFile,
}
_OPAQUE = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_ORIENTATION_TAG = 274
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
_GREY16 = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # round(v / 257), 257 = 65535 / 255

_CUT_SIGNS = ("truncated", "requires a buffer", "index out of range", "cannot load this image",
              "no more images")
"""What Pillow says where a header or the pixels end too early."""

_warnings_lock = threading.Lock()


def decode(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Reads one image file, by the rules in the table above.

    Returns:
        uint8 (H, W, 3) RGB, 0 to 255, EXIF orientation applied, writable.

    Raises:
        ImageError: the only exception for any bytes whatever; `reason` says why.
    """
    try:
        return _rgb(_load(data, max_pixels))
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(Reason.DECODER_CRASH, "the decoder ran out of memory") from None
    except Exception as error:  # the border: decoders raise whatever they like on damaged bytes
        raise ImageError(_reason(error), _one_line(error)) from None


@dataclass(frozen=True)
class Geometry:
    """Which source pixels become the model's input, and back.

    Attributes:
        width, height: the source, in pixels.
        size: side of the input.
        box: x0, y0, x1, y1 of the part of the source that is seen, half-open.
    """

    width: int
    height: int
    size: int
    box: tuple[int, int, int, int]

    @classmethod
    def of(cls, width: int, height: int, config: ImageConfig) -> Geometry:
        """The geometry of a source: its largest central square (`crop`) or all of it (`squash`)."""
        if config.fit == "squash":
            return cls(width, height, config.size, (0, 0, width, height))
        side = min(width, height)
        x0, y0 = (width - side) // 2, (height - side) // 2
        return cls(width, height, config.size, (x0, y0, x0 + side, y0 + side))

    @property
    def scale(self) -> tuple[float, float]:
        """Source pixels per input pixel, along x and y."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) / self.size, (y1 - y0) / self.size

    @property
    def area_scale(self) -> float:
        """Source pixels per input pixel, as an area."""
        return self.scale[0] * self.scale[1]

    @property
    def unseen(self) -> float:
        """Share of the source's pixels that the model never sees, 0 to below 1."""
        x0, y0, x1, y1 = self.box
        return 1 - (x1 - x0) * (y1 - y0) / (self.width * self.height)

    def to_source(self, x0: float, y0: float, x1: float, y1: float) -> tuple[int, int, int, int]:
        """The smallest box of source pixels around a half-open box of input pixels, clipped."""
        sx, sy = self.scale
        left, top, right, bottom = self.box
        return (max(left, floor(left + x0 * sx)), max(top, floor(top + y0 * sy)),
                min(right, ceil(left + x1 * sx)), min(bottom, ceil(top + y1 * sy)))


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuses what no model is to see.

    Raises:
        ImageError: more than `max_pixels` pixels, or a side under `MIN_SIDE`.
    """
    if width * height > max_pixels:
        raise ImageError(Reason.TOO_LARGE, f"{width}x{height} px; at most {max_pixels} pixels")
    if min(width, height) < MIN_SIDE:
        raise ImageError(Reason.TOO_SMALL, f"{width}x{height} px; each side at least {MIN_SIDE}")


def prepare(image_HWC: NDArray[np.uint8], config: ImageConfig) -> NDArray[np.uint8]:
    """Resizes and crops to the model's input in one step.

    Args:
        image_HWC: uint8 RGB of any size.

    Returns:
        uint8 (size, size, 3), contiguous; the same bits if it has that size already.
    """
    height, width, _ = image_HWC.shape
    if (height, width) == (config.size, config.size):
        return np.ascontiguousarray(image_HWC)
    # Pillow's filter reads beyond the box, so this equals "resize all, then crop".
    box = Geometry.of(width, height, config).box
    image = Image.fromarray(image_HWC).resize((config.size, config.size), RESAMPLE, box=box)
    return np.array(image)


def prepare_mask(mask_HW: NDArray[np.bool_] | NDArray[np.uint8], source_size: tuple[int, int],
                 config: ImageConfig) -> NDArray[np.bool_]:
    """The mask of an image in input pixels, by nearest neighbour and the image's geometry.

    Args:
        mask_HW: bool, or uint8 where more than 127 is anomalous (masks are not strictly binary).
            It may have another size than the image, with the same aspect ratio.
        source_size: width and height of the image it belongs to.

    Returns:
        bool (size, size).

    Raises:
        DataError: another aspect ratio.
    """
    mask_h, mask_w = mask_HW.shape
    width, height = source_size
    if abs(mask_w * height - mask_h * width) > max(mask_w, mask_h, width, height):
        raise DataError(f"mask of {mask_w}x{mask_h} px for an image of {width}x{height} px: "
                        "expected the same aspect ratio; check that the mask belongs to the image")
    geometry = Geometry.of(width, height, config)
    sx, sy = geometry.scale
    centre = np.arange(config.size) + 0.5
    x = ((geometry.box[0] + centre * sx) * mask_w / width).astype(np.intp).clip(0, mask_w - 1)
    y = ((geometry.box[1] + centre * sy) * mask_h / height).astype(np.intp).clip(0, mask_h - 1)
    return np.asarray(mask_HW[np.ix_(y, x)] > (0 if mask_HW.dtype == np.bool_ else 127))


def encode_heatmap(heatmap_HW: NDArray[np.float32], *,
                   bits: Literal[8, 16] = 8) -> tuple[bytes, float, float]:
    """A heatmap as a grey PNG whose black is `lo` and whose white is `hi`.

    Returns:
        PNG bytes, lo, hi: the smallest and largest value, equal for a constant map.

    Raises:
        DataError: a value that is not finite.
    """
    if not np.isfinite(heatmap_HW).all():
        raise DataError("heatmap has values that are not finite; the model is damaged")
    lo, hi = float(heatmap_HW.min()), float(heatmap_HW.max())
    unit = (heatmap_HW.astype(np.float64) - lo) / ((hi - lo) or 1.0)
    levels = np.rint(unit * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    return _png(levels), lo, hi


def decode_heatmap(png: bytes, lo: float, hi: float) -> NDArray[np.float32]:
    """Reads back `encode_heatmap`, to within (hi - lo) / (2 * (2**bits - 1)).

    Returns:
        float32 (H, W), from lo to hi.

    Raises:
        ImageError: not a PNG that `encode_heatmap` wrote.
    """
    try:
        levels = np.asarray(PngImageFile(io.BytesIO(pixel_chunks(png))))
        top = {"uint8": 255, "uint16": 65535}[levels.dtype.name]
        if levels.ndim != 2:
            raise ImageError(Reason.UNSUPPORTED_MODE, "expected a grey PNG")
    except ImageError:
        raise
    except Exception as error:  # as in `decode`
        raise ImageError(_reason(error), _one_line(error)) from None
    return (lo + levels.astype(np.float64) / top * (hi - lo)).astype(np.float32)


_COLOURS = np.array([[255, 214, 10], [255, 132, 0], [224, 16, 16], [122, 0, 60]], float)


def overlay(image_HWC: NDArray[np.uint8], heatmap_HW: NDArray[np.float32], *,
            lo: float, hi: float) -> bytes:
    """The image with its heatmap on top, for people.

    Args:
        image_HWC: uint8 RGB of the heatmap's height and width.
        lo: values up to here stay uncoloured (say, the threshold or the normal level).
        hi: values from here on get the full colour.

    Returns:
        PNG bytes, RGB.
    """
    unit = np.clip((heatmap_HW.astype(np.float64) - lo) / max(hi - lo, 1e-12), 0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(unit, stops, _COLOURS[:, c]) for c in range(3)], axis=-1)
    alpha = 0.55 * np.minimum(1, 3 * unit)[..., None]
    return _png(np.rint(image_HWC * (1 - alpha) + colour * alpha).astype(np.uint8))


def _load(data: bytes, max_pixels: int) -> Image.Image:
    kind = sniff(data)
    if declared_end(data, kind) > len(data):
        raise ImageError(Reason.TRUNCATED, f"{kind} of {len(data)} bytes declares more")
    if kind == "PNG":
        data = pixel_chunks(data)
    with _quiet():
        # Not Image.open: its pixel limit is a process-wide global, and ours is a setting.
        image = _READERS[kind](io.BytesIO(data))
        _check(image, max_pixels)
        if kind == "TIFF":  # applies its orientation itself, and may warn while it loads
            image.load()
            return image
    image.load()
    if kind == "PNG" and _may_lack_rows(image) and not has_all_rows(data):
        raise ImageError(Reason.TRUNCATED, "the PNG's pixels end before its last row")
    with _quiet():
        orientation = _orientation(image)
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _check(image: ImageFile, max_pixels: int) -> None:
    check_size(*image.size, max_pixels)
    if getattr(image, "is_animated", False):
        raise ImageError(Reason.MULTI_FRAME,
                         f"{image.format} with several frames or pages; expected a single image")
    odd_16 = isinstance(image, TiffImageFile) and image.mode.startswith("I;16") and (
        image.tag_v2.get(258) != (16,) or image.tag_v2.get(262) != 1)
    if odd_16 or (image.mode not in _OPAQUE | _ALPHA and not image.mode.startswith("I;16")):
        raise ImageError(Reason.UNSUPPORTED_MODE,
                         f"{image.format} of mode {image.mode}; expected 8-bit or 16-bit pixels")


def _may_lack_rows(image: ImageFile) -> bool:
    width, height = image.size
    last = np.asarray(image.crop((0, height - 1, width, height)))
    return bool(image.info.get("interlace")) or not last.any()


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block counts as none; the pixels are not concerned
        return 1


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return np.repeat(_GREY16[np.asarray(image)][..., None], 3, axis=2)
    if image.mode in _ALPHA or image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        image = white
    return _array(image if image.mode == "RGB" else image.convert("RGB"))


def _array(image: Image.Image) -> NDArray[np.uint8]:
    """A writable copy, in strips: Pillow's own way holds the pixels three times."""
    width, height = image.size
    array = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, (1 << 22) // width)
    for y in range(0, height, rows):
        array[y:y + rows] = np.asarray(image.crop((0, y, width, min(height, y + rows))))
    return array


def _png(array: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def _reason(error: Exception) -> Reason:
    if isinstance(error, Image.DecompressionBombError):
        return Reason.TOO_LARGE
    text = str(error).lower()
    cut = isinstance(error, EOFError) or any(sign in text for sign in _CUT_SIGNS)
    return Reason.TRUNCATED if cut else Reason.CORRUPT


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings off. Filters belong to the process, hence the lock."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
