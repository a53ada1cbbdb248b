"""What Pillow leaves unchecked in a PNG: chunk checksums and whether every row is there."""

from __future__ import annotations

import struct
import zlib

from igd.errors import ImageError
from igd.records import Reason

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))
"""x0, y0, dx, dy of the passes of an interlaced image."""


def pixel_chunks(data: bytes) -> bytes:
    """The PNG with only the chunks that decide its pixels; text and profiles stay outside.

    What follows the last IDAT may be cut, so a PNG without IEND passes if its pixels are whole.

    Raises:
        ImageError: a wrong checksum, a cut chunk, an animation.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = [view[:8]]
    at, kind, depth, seen_pixels = 8, b"", 8, False
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at) if at + 8 <= len(data) else (0, b"")
        end = at + 12 + length
        if end > len(data):
            if seen_pixels and kind != b"IDAT":
                break
            raise ImageError(Reason.TRUNCATED, f"PNG ends inside a chunk at byte {at}")
        body = view[at + 8:end - 4]
        if zlib.crc32(view[at + 4:end - 4]) != int.from_bytes(view[end - 4:end], "big"):
            raise ImageError(Reason.CORRUPT, f"wrong checksum of PNG chunk {kind!r} at byte {at}")
        if kind == b"acTL" and int.from_bytes(body[:4], "big") > 1:
            raise ImageError(Reason.MULTI_FRAME, "animated PNG; expected a single image")
        if kind == b"IHDR":
            depth = body[8]
        seen_pixels |= kind == b"IDAT"
        if kind in _KEPT and not (kind == b"tRNS" and depth == 16):
            kept.append(view[at:end])
        at = end
    return b"".join(kept)


def has_all_rows(png: bytes) -> bool:
    """Whether the zlib stream holds every row; Pillow leaves black where it ends early.

    Args:
        png: what `pixel_chunks` returned.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    bits = depth * _CHANNELS[colour]
    missing: int = sum(rows * (1 + (columns * bits + 7) // 8)
                  for columns, rows in _passes(width, height, bool(interlaced)) if columns)
    stream = zlib.decompressobj()
    at = len(SIGNATURE)
    while at < len(png) and missing > 0:
        length, kind = struct.unpack_from(">I4s", png, at)
        pending = png[at + 8:at + 8 + length] if kind == b"IDAT" else b""
        while pending and missing > 0:
            missing -= len(stream.decompress(pending, 1 << 20))
            pending = stream.unconsumed_tail
        at += 12 + length
    return missing - len(stream.flush()) <= 0


def _passes(width: int, height: int, interlaced: bool) -> list[tuple[int, int]]:
    if not interlaced:
        return [(width, height)]
    return [((width - x0 + dx - 1) // dx, (height - y0 + dy - 1) // dy)
            for x0, y0, dx, dy in _ADAM7]
