"""The index of a zip or zip64, and the unpacking of one member.

The central directory is read by `zipfile` through range reads; member bytes are unpacked here,
from one contiguous span, with the declared size as a hard bound.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise

from igd import storage
from igd.data.members import (
    DEFLATED,
    MAX_MEMBER_BYTES,
    STORED,
    WINDOW_BYTES,
    ArchiveEnd,
    Member,
    statable,
)
from igd.errors import ImageError
from igd.records import Reason, SourceStatus
from igd.storage import Entry

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
LOCAL_MAGIC = b"PK\x03\x04"
EMPTY_MAGIC = b"PK\x05\x06"
MAX_FIELD_BYTES = 0xFFFF
"""The longest name, and the longest extra field, of a local header."""
MAX_DIRECTORY_BYTES = 256 * 1024 * 1024
"""Cap on what is read to list a zip: some two million members."""
MAX_RATIO = 1100
"""Deflate cannot pack tighter than 1032:1; a larger claim is a lie."""


class _Directory(storage.RangedFile):
    """One object, of which no more is read in all than the largest directory that is listed."""

    _taken = 0

    def check(self, size: int) -> None:
        self._taken += size
        if self._taken > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory exceeds {MAX_DIRECTORY_BYTES} bytes")


def looks_like_zip(first_block: bytes) -> bool:
    """Whether an object starts as a zip does."""
    return first_block[:4] in (LOCAL_MAGIC, EMPTY_MAGIC)


def walk_zip(entry: Entry, end: ArchiveEnd) -> Iterator[Member]:
    """Every member that is not a directory, in central-directory order."""
    try:
        with zipfile.ZipFile(io.BufferedReader(_Directory(entry), WINDOW_BYTES)) as archive:
            infos, directory = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error,
            OverflowError) as error:
        end.status, end.detail = SourceStatus.DAMAGED, f"not a readable zip: {error}"
        return
    limits = _limits(infos, directory)
    ordinal = 0
    for info in infos:
        if info.file_size == 0 and _raw_name(info).endswith(b"/"):
            continue
        yield _member(entry, info, ordinal, limits[info.header_offset], directory)
        ordinal += 1


def unpack(member: Member, data: bytes) -> bytes:
    """The content of a zip member from the span that begins at its local header.

    Raises:
        ImageError: a name that differs from the directory's, a bad CRC, corrupt data.
    """
    if len(data) < LOCAL_HEADER.size or not data.startswith(LOCAL_MAGIC):
        raise ImageError(Reason.CORRUPT, "no local header where the directory says")
    fields = LOCAL_HEADER.unpack_from(data)
    name_length, extra_length = fields[-2:]
    start = LOCAL_HEADER.size + name_length + extra_length
    if data[LOCAL_HEADER.size:LOCAL_HEADER.size + name_length] != member.raw_name:
        raise ImageError(Reason.NAME_MISMATCH, "local header and directory name it differently")
    packed = data[start:]
    content = packed[:member.size] if member.method == STORED else _inflate(packed, member.size)
    if len(content) != member.size:
        raise ImageError(Reason.TRUNCATED, f"{len(content)} bytes, {member.size} declared")
    if zlib.crc32(content) != member.crc:
        raise ImageError(Reason.CRC, f"CRC-32 is not {member.crc or 0:08x}")
    return content


def _inflate(packed: bytes, size: int) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = engine.decompress(packed, size + 1)
    except zlib.error as error:
        raise ImageError(Reason.CORRUPT, f"deflate: {error}") from error
    if len(content) > size:
        raise ImageError(Reason.CORRUPT, f"unpacks to more than the {size} bytes declared")
    return content


def _limits(infos: list[zipfile.ZipInfo], directory: int) -> dict[int, int]:
    """Where the space of each local header ends: at the next one, or at the directory.

    A header that several entries share has no space.
    """
    offsets = sorted(info.header_offset for info in infos)
    limits: dict[int, int] = {}
    for offset, following in pairwise([*offsets, directory]):
        limits.setdefault(offset, min(following, directory))
    return limits


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _member(entry: Entry, info: zipfile.ZipInfo, ordinal: int, limit: int,
            directory: int) -> Member:
    longest = LOCAL_HEADER.size + 2 * MAX_FIELD_BYTES + info.compress_size
    span = min(limit - info.header_offset, longest)
    reason, detail = _why_not(info, span, directory)
    return Member(source_uri=entry.uri, source_version=entry.version, ordinal=ordinal,
                  raw_name=_raw_name(info), kind="zip", offset=statable(info.header_offset),
                  span=0 if reason else span, size=statable(info.file_size),
                  method=info.compress_type, crc=info.CRC,
                  reject_reason=reason, reject_detail=detail)


def _why_not(info: zipfile.ZipInfo, span: int, directory: int) -> tuple[str | None, str | None]:
    if info.flag_bits & 0x1:
        return Reason.ENCRYPTED, "an encrypted member"
    if info.external_attr >> 28 not in (0, 8):
        return Reason.NOT_REGULAR, f"unix mode {info.external_attr >> 16:o}"
    if info.compress_type not in (STORED, DEFLATED):
        return Reason.METHOD, f"packing method {info.compress_type}; stored and deflate are read"
    packed = info.compress_size + LOCAL_HEADER.size
    if info.header_offset < 0 or info.header_offset + packed > directory or packed > span:
        return Reason.OVERLAP, "its bytes are another member's, the directory's or nowhere"
    if info.file_size > min(MAX_MEMBER_BYTES, MAX_RATIO * max(info.compress_size, 1)):
        return Reason.TOO_LARGE, f"{info.file_size} bytes declared from {info.compress_size} packed"
    return None, None
