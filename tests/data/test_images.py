"""Bytes in, arrays out: every rule of the table in igd/data/images.py."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from igd.config import ImageConfig
from igd.data.images import (
    Geometry,
    decode,
    decode_heatmap,
    encode_heatmap,
    overlay,
    prepare,
    prepare_mask,
)
from igd.errors import DataError, ImageError

CONFIG = ImageConfig(size=64)
SOURCE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True}),
    ("WEBP", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}),
]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def reason(data: bytes, max_pixels: int = 10**6) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=max_pixels)
    return caught.value.reason


def first_pixel(data: bytes) -> tuple[int, ...]:
    return tuple(decode(data, max_pixels=10**6)[0, 0].tolist())


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0,
        interlaced: int = 0, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    image = decode(encoded(SOURCE, kind), max_pixels=10**6)
    assert np.array_equal(image, np.asarray(SOURCE))
    assert image.dtype == np.uint8 and image.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("orientation", "stored_as"), [
    (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180),
    (4, Image.Transpose.FLIP_TOP_BOTTOM), (5, Image.Transpose.TRANSPOSE),
    (6, Image.Transpose.ROTATE_90), (7, Image.Transpose.TRANSVERSE),
    (8, Image.Transpose.ROTATE_270)])
def test_every_exif_orientation_decodes_to_the_same_pixels(
        kind: str, orientation: int, stored_as: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(SOURCE.transpose(stored_as), kind, exif=exif, **options)
    assert np.array_equal(decode(data, max_pixels=10**6), np.asarray(SOURCE))


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.array([0, 128, 129, 257, 32768, 65535], dtype=np.uint16)
    image = Image.fromarray(np.tile(np.repeat(levels, 2), (8, 1)))
    for kind in ("PNG", "TIFF"):
        row = decode(encoded(image, kind), max_pixels=10**6)[0, ::2, 0]
        assert row.tolist() == np.rint(levels / 65535 * 255).tolist() == [0, 0, 1, 1, 128, 255]


def test_sixteen_bit_colour_is_its_high_byte_and_its_transparency_is_ignored() -> None:
    rows = (b"\0" + b"\x12\x34" * 27) * 9
    data = png(9, 9, rows, depth=16, colour=2, extra=chunk(b"tRNS", b"\x12\x34" * 3))
    assert first_pixel(data) == (0x12, 0x12, 0x12)


def test_every_colour_model_becomes_rgb_and_alpha_lies_on_white() -> None:
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert first_pixel(encoded(palette, "PNG")) == (10, 20, 30)
    assert first_pixel(encoded(palette, "PNG", transparency=1)) == (255, 255, 255)
    assert first_pixel(encoded(palette, "GIF", transparency=1)) == (255, 255, 255)
    assert first_pixel(encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 128)), "PNG")) == (
        255, 127, 127)
    assert first_pixel(encoded(Image.new("LA", (9, 9), (0, 0)), "PNG")) == (255, 255, 255)
    assert first_pixel(encoded(Image.new("1", (9, 9), 1), "PNG")) == (255, 255, 255)
    assert first_pixel(encoded(Image.new("L", (9, 9), 7), "PNG")) == (7, 7, 7)
    assert first_pixel(encoded(Image.new("CMYK", (9, 9), (255, 0, 0, 0)), "JPEG")) == (
        0, 255, 255)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_a_known_range_are_refused(mode: str) -> None:
    assert reason(encoded(Image.new(mode, (9, 9)), "TIFF")) == "unsupported_mode"


@pytest.mark.parametrize(("data", "expected"), [
    (b"", "empty"),
    (b"<!doctype html><html><svg></svg></html>", "not_image"),
    (b'<?xml version="1.0"?><html><svg/></html>', "not_image"),
    (b"BMW are cars, this is a text", "not_image"),
    (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="x"/>', "format_not_allowed"),
    (b"%PDF-1.7", "format_not_allowed"), (b"%!PS-Adobe-3.0 EPSF", "format_not_allowed"),
    (b"SIMPLE  =                    T", "format_not_allowed"),
    (b"\0\0\0\x20ftypavif", "format_not_allowed"),
    (png(9, 9, b"")[:40], "truncated"),
])
def test_what_is_no_image_says_what_it_is(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_the_name_of_a_format_does_not_matter_only_its_content() -> None:
    assert first_pixel(encoded(Image.new("RGB", (9, 9), (1, 2, 3)), "BMP")) == (1, 2, 3)


def test_the_pixel_limit_is_inclusive_and_read_from_the_header() -> None:
    assert decode(encoded(SOURCE, "PNG"), max_pixels=240).shape == (12, 20, 3)
    for kind, options in FORMATS:
        assert reason(encoded(SOURCE, kind, **options), max_pixels=239) == "too_large"
    assert reason(png(65536, 65536, b""), max_pixels=64_000_000) == "too_large"


def test_a_side_of_seven_pixels_is_too_small_and_eight_is_not() -> None:
    assert reason(encoded(SOURCE.crop((0, 0, 20, 7)), "PNG")) == "too_small"
    assert decode(encoded(SOURCE.crop((0, 0, 20, 8)), "PNG"), max_pixels=10**6).shape[0] == 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    frames = [Image.new("L", (9, 9), 60 * i) for i in range(3)]
    assert reason(encoded(frames[0], kind, save_all=True, append_images=frames[1:])) == (
        "multi_frame")


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_a_cut_file_is_truncated_wherever_its_pixels_are_cut(
        kind: str, options: dict[str, Any]) -> None:
    data = encoded(SOURCE, kind, **options)
    for end in range(len(data) // 3, len(data) - (160 if kind == "TIFF" else 40), 7):
        assert reason(data[:end]) == "truncated"


def test_a_png_needs_all_its_pixels_but_not_its_end() -> None:
    data = encoded(SOURCE, "PNG")
    whole = decode(data, max_pixels=10**6)
    for cut in range(1, 13):  # IEND has 12 bytes
        assert np.array_equal(decode(data[:-cut], max_pixels=10**6), whole)
    assert reason(data[:-13]) == "truncated"


@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_png_whose_stream_ends_before_the_last_row_is_truncated(interlaced: int) -> None:
    rows = (b"\0" + b"\x07" * 8) * 8 if not interlaced else b"".join(
        (b"\0" + b"\x07" * columns) * height
        for columns, height in ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)))
    assert first_pixel(png(8, 8, rows, interlaced=interlaced)) == (7, 7, 7)
    assert reason(png(8, 8, rows[:-9], interlaced=interlaced)) == "truncated"


def test_a_flipped_bit_in_a_png_never_gives_a_picture() -> None:
    data = encoded(SOURCE, "PNG")
    for at in range(8, len(data) - 12):
        assert reason(data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]) in {
            "corrupt", "truncated"}


def test_text_and_profiles_are_ignored_whatever_their_size() -> None:
    bomb = b"key\0\0" + zlib.compress(bytes(10**7))
    rows = (b"\0" + bytes(8)) * 8
    for kind in (b"zTXt", b"iCCP"):
        assert first_pixel(png(8, 8, rows, extra=chunk(kind, bomb))) == (0, 0, 0)


@given(st.sampled_from(FORMATS), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_raise_nothing_but_image_error(
        how: tuple[str, dict[str, Any]], draw: st.DataObject) -> None:
    data = bytearray(encoded(SOURCE, how[0], **how[1]))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    keep = draw.draw(st.integers(0, len(data)))
    for variant in (bytes(data), bytes(data[:keep])):
        try:
            assert decode(variant, max_pixels=10**5).dtype == np.uint8
        except ImageError as error:
            assert "\n" not in error.detail


@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0+",
                        b"RIFF\x20\0\0\0WEBPVP8 ", b"BM" + bytes(12) + b"\x28\0\0\0"]),
       st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_raise_nothing_but_image_error(magic: bytes, tail: bytes) -> None:
    with pytest.raises(ImageError):
        decode(magic + tail, max_pixels=10**5)


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    data, before = encoded(SOURCE, "TIFF"), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode(data, max_pixels=10**6)
                                                for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_prepare_leaves_an_image_of_the_right_size_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(prepare(image, CONFIG), image)
    assert np.array_equal(prepare(prepare(np.tile(image, (3, 2, 1)), CONFIG), CONFIG),
                          prepare(np.tile(image, (3, 2, 1)), CONFIG))


@pytest.mark.parametrize(("fit", "seen"), [("crop", 200), ("squash", 300)])
def test_crop_sees_the_middle_and_squash_sees_everything(fit: Any, seen: int) -> None:
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    image[:, 55:] = 255  # left of the central square starts at 50
    config = ImageConfig(size=64, fit=fit)
    dark = (prepare(image, config)[32, :, 0] < 128).sum()
    assert dark == round((55 - (300 - seen) // 2) / seen * 64)
    assert Geometry.of(300, 200, config).unseen == pytest.approx(1 - seen / 300)


@given(st.integers(8, 700), st.integers(8, 700), st.sampled_from(["crop", "squash"]))
@settings(deadline=None, max_examples=60)
def test_a_box_maps_back_onto_the_source_pixels_it_covers(
        width: int, height: int, fit: Any) -> None:
    geometry = Geometry.of(width, height, ImageConfig(size=64, fit=fit))
    assert geometry.to_source(0, 0, 64, 64) == geometry.box
    x0, y0, x1, y1 = geometry.to_source(10, 20, 30, 50)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert (x1 - x0) * (y1 - y0) >= 20 * 30 * geometry.area_scale - 1e-6


def test_a_mask_follows_its_image_at_any_resolution() -> None:
    small = np.zeros((100, 150), dtype=bool)
    small[20:60, 60:90] = True
    large = np.kron(small, np.ones((4, 4), dtype=bool))
    for fit in ("crop", "squash"):
        config = ImageConfig(size=64, fit=fit)  # type: ignore[arg-type]
        image = np.repeat(large[..., None] * np.uint8(255), 3, axis=2)
        seen = prepare(image, config)[..., 0] > 127
        for mask in (small, large, large * np.uint8(200)):
            found = prepare_mask(mask, (600, 400), config)
            assert found.dtype == np.bool_ and (found != seen).mean() < 0.01


def test_a_faint_mask_value_is_normal_and_another_aspect_ratio_is_an_error() -> None:
    assert not prepare_mask(np.full((64, 64), 127, np.uint8), (64, 64), CONFIG).any()
    assert prepare_mask(np.full((64, 64), 128, np.uint8), (64, 64), CONFIG).all()
    with pytest.raises(DataError, match="aspect ratio"):
        prepare_mask(np.zeros((100, 80), dtype=bool), (100, 80), CONFIG)


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-2.0**100, 2.0**100, width=32)),
       st.sampled_from([8, 16]))
@settings(deadline=None)
def test_a_heatmap_comes_back_to_within_half_a_level(heatmap: Any, bits: Any) -> None:
    data, lo, hi = encode_heatmap(heatmap, bits=bits)
    half = (hi - lo) / (2 * (2**bits - 1))
    assert np.abs(decode_heatmap(data, lo, hi).astype(float) - heatmap).max() <= (
        half * 1.001 + 1e-6 * max(abs(lo), abs(hi)))


def test_a_constant_heatmap_is_exact_and_a_nan_is_refused() -> None:
    data, lo, hi = encode_heatmap(np.full((4, 4), 2.5, np.float32))
    assert (lo, hi) == (2.5, 2.5) and (decode_heatmap(data, lo, hi) == 2.5).all()
    with pytest.raises(DataError, match="not finite"):
        encode_heatmap(np.array([[np.nan]], np.float32))
    for damaged in (b"", data[:40], overlay(np.zeros((9, 9, 3), np.uint8),
                                            np.zeros((9, 9), np.float32), lo=0, hi=1)):
        with pytest.raises(ImageError):
            decode_heatmap(damaged, 0, 1)


def test_an_overlay_leaves_normal_pixels_uncoloured() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[:4] = 2.0
    shown = decode(overlay(image, heatmap, lo=1.0, hi=2.0), max_pixels=100)
    assert (shown[4:] == 100).all() and (shown[:4] != 100).any(axis=-1).all()
