"""Tars written by `tarfile`, and headers that it would not write."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

BLOCK = 512


def tar(*members: tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_of_kinds(members: Iterable[tuple[str, bytes, bytes]], format: int
                 ) -> tuple[bytes, list[tuple[str, bytes, bytes]]]:
    """A tar of names, contents and types, and those of them that its format can hold."""
    out, written = io.BytesIO(), []
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8",
                      errors="surrogateescape") as archive:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good.png" if kind in (b"1", b"2") else ""
            info.size = len(data) if info.isreg() else 0
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:  # a name that ustar cannot hold
                continue
            written.append((name, data, kind))
    return out.getvalue(), written


def header(name: bytes = b"a.png", *, size: bytes = b"00000000005\0", kind: bytes = b"0",
           magic: bytes = b"ustar\x0000", **fields: bytes) -> bytes:
    """One header block, with a right checksum."""
    block = bytearray(BLOCK)
    at = {"name": 0, "size": 124, "kind": 156, "link": 157, "magic": 257, "prefix": 345,
          "sparse_more": 482}
    for key, value in {"name": name, "size": size, "kind": kind, "magic": magic, **fields}.items():
        block[at[key]:at[key] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def base_256(number: int) -> bytes:
    return (b"\x80" if number >= 0 else b"\xff") + number.to_bytes(11, "big", signed=True)


END = bytes(2 * BLOCK)
GOOD = header(b"good.png") + padded(b"hello")


def pax(record: bytes) -> bytes:
    length = len(record) + 2
    while len(str(length)) + len(record) + 2 != length:
        length += 1
    data = b"%d %s\n" % (length, record)
    return header(b"pax", kind=b"x", size=b"%011o\0" % len(data)) + padded(data)
