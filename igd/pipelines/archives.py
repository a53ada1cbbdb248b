"""The entries of an archive by other readers than a run's: Python's and Arrow's own, for `verify`.

Bodies are passed over. What is read is linear in the bytes of an archive and bounded where it is
packed; where a reader would spin, go back or fill memory, the archive is refused with a reason.
"""

from __future__ import annotations

import gzip
import io
import itertools
import posixpath
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from igd import storage
from igd.errors import IgdError

BLOCK = 512
WINDOW_BYTES = 256 * 1024
"""So much of an object is read at once; the bodies of larger members are hopped over."""
MAX_READ_BYTES = 256 * 1024 * 1024
"""No directory of a zip, footer or page of names is larger."""
MAX_EXTENSION_BYTES = 1024 * 1024
"""No long name, pax header or sparse map of a tar is larger."""
MAX_DIGITS = 255
"""In a row: `tarfile` takes time quadratic in them. A file name has no more."""
KEPT_BYTES = 2 * MAX_EXTENSION_BYTES
FREE_BYTES = 1024 * 1024 * 1024
MAX_RATIO = 100
"""A packed tar may unpack to `FREE_BYTES`, and to this many times its size."""
MAX_SAMPLE = 1024
MAX_NAME_BYTES = 64 * 1024
"""Of a row; one with a longer name is named by its number, as one without."""

IMAGE_EXTENSIONS = frozenset(b"jpg jpeg png bmp tif tiff webp gif ppm pgm pbm pnm".split())
IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "data")
NAME_COLUMNS = ("path", "name", "file_name", "filename", "key")


class UncountableError(ValueError):
    """An archive that cannot be read to its end, and why."""


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


def entries(archive: storage.Entry) -> Iterator[Named]:
    """What an archive holds, in order; its content says of which kind it is, else its name.

    Raises:
        UncountableError: it cannot be read to its end; what was given until then is in it.
        StorageError: as `igd.storage.read_range`.
    """
    first = storage.read_range(archive.uri, 0, min(BLOCK, archive.size), version=archive.version)
    try:
        yield from _reader(archive.key.lower(), first)(archive)
    except (UncountableError, IgdError):
        raise
    except Exception as error:  # the border: on damaged bytes readers raise anything
        raise UncountableError(f"{type(error).__name__}: {error}"[:300]) from error


def _reader(name: str, first: bytes) -> Callable[[storage.Entry], Iterator[Named]]:
    if not first:
        return lambda archive: iter(())
    if first.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip
    if _is_tar(first):
        return _tar
    for magic, reader in ((b"PAR1", _parquet), (b"PARE", _parquet), (b"\x1f\x8b", _tar_gz),
                          (b"\x28\xb5\x2f\xfd", _tar_zst)):
        if first.startswith(magic):
            return reader
    by_name = {".zip": _zip, ".parquet": _parquet, ".tar": _tar, ".zst": _tar_zst,
               ".zstd": _tar_zst}
    return by_name.get(posixpath.splitext(name)[1], _tar_gz)


# -- tar


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


def _tar(archive: storage.Entry) -> Iterator[Named]:
    return _samples(_tar_names(io.BufferedReader(_Ranged(archive), WINDOW_BYTES)))


def _tar_gz(archive: storage.Entry) -> Iterator[Named]:
    packed = io.BufferedReader(_Ranged(archive), WINDOW_BYTES)
    return _samples(_tar_names(_Forward(gzip.GzipFile(fileobj=packed), archive.size)))


def _tar_zst(archive: storage.Entry) -> Iterator[Named]:
    packed = pa.PythonFile(io.BufferedReader(_Ranged(archive), WINDOW_BYTES), mode="r")
    return _samples(_tar_names(_Forward(pa.CompressedInputStream(packed, "zstd"), archive.size)))


def _tar_names(file: Any) -> Iterator[bytes]:
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


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


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


def _samples(names: Iterable[bytes]) -> Iterator[Named]:
    """Entries; consecutive ones of a key are a sample, in which images may have sidecars.

    Those of a sample that begins with very many others than images are not asked for.
    """
    for _, sample in itertools.groupby(enumerate(names), lambda entry: _sample_key(entry[1])):
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


def _sample_key(name: bytes) -> bytes:
    folder, base = posixpath.split(name)
    return folder + b"/" + base.partition(b".")[0]


# -- zip


def _zip(archive: storage.Entry) -> Iterator[Named]:
    with zipfile.ZipFile(io.BufferedReader(_Ranged(archive), WINDOW_BYTES)) as found:
        names = ((_zip_name(info), info.file_size) for info in found.infolist())
        yield from map(Named, itertools.count(), (
            name for name, size in names if size or not name.endswith(b"/")))


def _zip_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


# -- Parquet


def _parquet(archive: storage.Entry) -> Iterator[Named]:
    file = _open_parquet(archive)
    rows = file.metadata.num_rows
    if not 0 <= rows <= archive.size:
        raise UncountableError(f"{rows} rows in {archive.size} bytes")
    column = _name_column(file.schema_arrow)
    if column is None:
        return
    ordinal, digits = -1, len(str(max(0, rows - 1)))
    names = _cells(file, column) if column else itertools.repeat(None, rows)
    for ordinal, name in enumerate(names):
        named = name if name and len(name) <= MAX_NAME_BYTES else f"{ordinal:0{digits}d}".encode()
        yield Named(ordinal, named)
    if ordinal + 1 != rows:
        raise UncountableError(f"{ordinal + 1} names for {rows} rows")


def _open_parquet(archive: storage.Entry) -> pq.ParquetFile:
    last = _Ranged(archive)
    last.seek(max(0, archive.size - 8))
    end = last.read(8)
    footer = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or footer + 12 > archive.size:
        raise UncountableError("no footer at its end")
    last.seek(archive.size - 8 - footer)
    # the Arrow schema that a writer kept may name types whose code would run
    tail = last.read(footer + 8).replace(b"ARROW:schema", b"ARROW#schema")
    file = pq.ParquetFile(_Ranged(archive, tail), pre_buffer=False, buffer_size=WINDOW_BYTES,
                          arrow_extensions_enabled=False)
    if file.metadata.serialized_size != footer:
        raise UncountableError("columns are encrypted")  # Arrow aborts when asked about them
    return file


def _name_column(schema: pa.Schema) -> str | None:
    """The column that names the rows: "" for none, None where there are no images to name."""
    single = [field for field in schema if schema.names.count(field.name) == 1]
    names = sorted((field for field in single if field.name.lower() in NAME_COLUMNS and (
        pa.types.is_string(field.type) or pa.types.is_binary(field.type)
        or pa.types.is_integer(field.type))),
        key=lambda field: NAME_COLUMNS.index(field.name.lower()))
    images = [field for field in single if field not in names and _may_be_images(field.type)]
    if len(images) > 1:
        images = [field for field in images if field.name.lower() in IMAGE_COLUMNS]
    if len(images) != 1:
        return None
    if names:
        return str(names[0].name)
    image, = images
    has_path = pa.types.is_struct(image.type) and image.type.get_field_index("path") >= 0
    return f"{image.name}.path" if has_path else ""


def _may_be_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind))


def _cells(file: pq.ParquetFile, column: str) -> Iterator[bytes | None]:
    for batch in file.iter_batches(64, columns=[column], use_threads=False):
        cells = batch.column(0)
        if pa.types.is_struct(cells.type):
            cells = pc.struct_field(cells, "path")
        if pa.types.is_integer(cells.type):
            cells = cells.cast(pa.string())
        yield from cells.cast(pa.binary()).to_pylist()


# -- files


class _Ranged(io.RawIOBase):
    """A seekable file over range reads of one version of an object.

    Args:
        tail: what is read in place of its last bytes.
    """

    def __init__(self, archive: storage.Entry, tail: bytes = b"") -> None:
        self._archive, self._tail = archive, tail
        self._tail_at = archive.size - len(tail)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._archive.size}[whence]
        if base + offset < 0:
            raise OSError("a seek before its start")  # what zipfile tries and expects
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._at + len(buffer), self._archive.size)
        if stop - self._at > MAX_READ_BYTES:
            raise UncountableError(f"{stop - self._at} bytes to be read at once")
        before = max(0, min(stop, self._tail_at) - self._at)
        data = storage.read_range(self._archive.uri, self._at, before,
                                  version=self._archive.version)
        data += self._tail[max(0, self._at - self._tail_at):max(0, stop - self._tail_at)]
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)


class _Forward:
    """A packed stream that seeks forward, and back by what was read last; `tarfile` asks no more.

    Args:
        packed_bytes: the size of the object; what it unpacks to is bounded by it.
    """

    def __init__(self, stream: Any, packed_bytes: int) -> None:
        self._stream = stream
        self._most = FREE_BYTES + MAX_RATIO * packed_bytes
        self._held = b""
        self._end = self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> int:
        while self._end < offset and self._fill():
            pass
        if offset < self._end - len(self._held):
            raise UncountableError(f"byte {offset} is asked for after byte {self._end}")
        self._at = offset
        return offset

    def read(self, size: int) -> bytes:
        while self._end < self._at + size and self._fill():
            pass
        start = max(0, len(self._held) - (self._end - self._at))
        data = self._held[start:start + size] if self._at < self._end else b""
        self._at += len(data)
        return data

    def _fill(self) -> bool:
        more = self._stream.read(MAX_EXTENSION_BYTES)
        self._held = self._held[-KEPT_BYTES:] + more
        self._end += len(more)
        if self._end > self._most:
            raise UncountableError(f"it unpacks to more than {self._most} bytes")
        return bool(more)
