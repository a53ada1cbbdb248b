"""Which image format some bytes are in, told from the bytes alone."""

from __future__ import annotations

from igd.data.png import SIGNATURE
from igd.errors import ImageError
from igd.records import Reason

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"), (SIGNATURE, "PNG"),
    (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
)
_REFUSED = (
    (b"%PDF", "PDF"), (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"8BPS", "PSD"),
    (b"SIMPLE  =", "FITS"), (b"\0\0\x01\0", "ICO"), (b"\0\0\x02\0", "CUR"), (b"DDS ", "DDS"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"qoif", "QOI"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "HDR"), (b"gimp xcf", "XCF"), (b"\xff\xfe\0", "GD"),
)
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}


def sniff(data: bytes) -> str:
    """The format, one of `ALLOWED_FORMATS`.

    Raises:
        ImageError: `empty`, `format_not_allowed` or `not_image`.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "the file has 0 bytes")
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    refused = next((kind for magic, kind in _REFUSED if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        refused = "AVIF, HEIF or video"
    if _is_svg(data):
        refused = "SVG"
    if refused:
        raise ImageError(Reason.FORMAT_NOT_ALLOWED,
                         f"{refused}; expected one of {', '.join(ALLOWED_FORMATS)}")
    raise ImageError(Reason.NOT_IMAGE, f"starts with {data[:16]!r}, which no image format does")


def declared_end(data: bytes, kind: str) -> int:
    """The least number of bytes that the header of a WEBP or TIFF promises; 0 for the others."""
    if kind == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little")
    if kind == "TIFF" and b"*" in data[2:4]:  # the first directory often stands at the end
        return 2 + int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
    return 0


def _is_svg(data: bytes) -> bool:
    head = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    is_xml = head.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg"))
    return is_xml and b"<svg" in head and b"<html" not in head
