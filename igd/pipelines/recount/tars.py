"""The entries of a tar by Python's `tarfile`, which is kept from what it would spin over."""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from igd.data.webdataset import IMAGE_EXTENSIONS
from igd.pipelines.recount.ranged import UncountableError

BLOCK = 512
MAX_EXTENSION_BYTES = 1024 * 1024
"""No long name, pax header or sparse map is larger."""
MAX_DIGITS = 255
"""In a row: `tarfile` takes time quadratic in them. A file name has no more."""
MAX_SAMPLE = 1024


@dataclass(frozen=True, slots=True)
class Named:
    """An entry that is no directory.

    Attributes:
        ordinal: position among such entries.
        name: raw, as the archive has it.
        is_sidecar: it stands beside the image of a WebDataset sample and need not have a row.
    """

    ordinal: int
    name: bytes
    is_sidecar: bool = False


def is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


class _Header(tarfile.TarInfo):
    """A header by `tarfile`, which is kept from those that it would spin over.

    Attributes:
        raw: the name as the archive has it, without what `tarfile` makes of it.
    """

    raw: str

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.isdir() and buf[156:157] == tarfile.AREGTYPE:
            # a folder by the slash at its end, which may be that of a name cut at 100 bytes
            found.type, found.name = tarfile.AREGTYPE, found.name + "/"
        return found

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        file: Any = archive.fileobj
        at = file.tell()
        kind = _checked_kind(file)
        file.seek(at)
        found = super().fromtarfile(archive)
        if found.size < 0:
            raise UncountableError(f"a size of {found.size} at byte {at}")
        if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            found.raw = found.pax_headers.get("path", found.raw)
        elif kind not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            found.raw = found.name
        return found


def tar_names(file: Any) -> Iterator[bytes]:
    """Raw names of the entries that are no directories.

    Args:
        file: reads and seeks forward, and back by `MAX_EXTENSION_BYTES` and a bit.

    Raises:
        UncountableError: it does not end as a tar does; `tarfile` and `file` raise more.
    """
    archive: Any = tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8",
                                   errors="surrogateescape")
    at = -1
    while (found := archive.next()) is not None:
        if archive.offset <= at:
            raise UncountableError(f"what follows byte {at} lies before it")
        at = archive.offset
        archive.members.clear()  # it would hold them all
        archive.pax_headers.clear()  # it would go through them for each member
        old_folder = found.type == tarfile.AREGTYPE and not found.size and found.raw.endswith("/")
        if not (found.isdir() or old_folder):
            yield found.raw.encode("utf-8", "surrogateescape")
    file.seek(archive.offset)  # it takes a bad header for the end of the archive
    block = file.read(BLOCK)
    if block not in (b"", bytes(BLOCK)):
        raise UncountableError(f"no header at byte {archive.offset}")


def _checked_kind(file: Any) -> bytes:
    """The type of the header at hand.

    Raises:
        UncountableError: what it says of the next member is too large, or no pax header.
    """
    block = file.read(BLOCK)
    kind = bytes(block[156:157])
    if kind == tarfile.GNUTYPE_SPARSE and block[482]:
        left = MAX_EXTENSION_BYTES // BLOCK
        while left and len(more := file.read(BLOCK)) == BLOCK and more[504]:
            left -= 1
        if not left:
            raise UncountableError(f"a sparse map of more than {MAX_EXTENSION_BYTES} bytes")
    pax = kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
    if pax or kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
        if not 0 <= size <= MAX_EXTENSION_BYTES:
            raise UncountableError(f"a name or pax header of {size} bytes")
        if pax:
            _check_pax(file.read(size))
    return kind


def _check_pax(data: bytes) -> None:
    """Refuses what is no list of records `LENGTH KEY=VALUE\\n`, and what is slow to read."""
    at = 0
    while at < len(data) and data[at]:
        length = re.compile(rb"[0-9]{1,7} ").match(data, at)
        end = at + int(length[0]) if length else 0
        record = data[length.end():end] if length else b""
        if end > len(data) or not record.endswith(b"\n") or b"=" not in record:
            raise UncountableError("a bad pax header")
        at = end
    if re.search(rb"[0-9]{%d}" % (MAX_DIGITS + 1), data):
        raise UncountableError(f"more than {MAX_DIGITS} digits in a row in a pax header")
    if b"GNU.sparse.major=" in data:
        raise UncountableError("a sparse member with its map in its body")


def samples(names: Iterable[bytes]) -> Iterator[Named]:
    """Entries; consecutive ones of a key are a sample, in which images may have sidecars.

    Those of a sample that begins with very many others than images are not asked for.
    """
    for _, sample in itertools.groupby(enumerate(names), _sample_key):
        held: list[tuple[int, bytes]] = []
        has_image = False
        for ordinal, name in sample:
            is_image = name.lower().rpartition(b".")[2] in IMAGE_EXTENSIONS
            has_image |= is_image or len(held) >= MAX_SAMPLE
            if not has_image:
                held.append((ordinal, name))
                continue
            yield from (Named(*entry, is_sidecar=True) for entry in held)
            held.clear()
            yield Named(ordinal, name, is_sidecar=not is_image)
        yield from (Named(*entry) for entry in held)


def _sample_key(entry: tuple[int, bytes]) -> object:
    """The name up to the first dot of its last segment; an entry without either stands alone."""
    ordinal, name = entry
    folder, slash, base = name.rpartition(b"/")
    stem, dot, _ = base.partition(b".")
    return folder + slash + stem if stem and dot else ordinal
