"""The rows of a Parquet file as members: one image a row, from one column of bytes.

A listing reads the footer and the column of names, no image. Images are read forward, a page and a
row at a time, so that a row group of any size costs the memory of its pages. Nothing is unpickled:
what a writer kept of its Arrow schema may name extension types, whose code would run; it is hidden
from the reader, which sees Parquet's own types only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from igd import storage
from igd.data.members import MAX_MEMBER_BYTES, ArchiveEnd, Member
from igd.errors import ImageError, ObjectChangedError, ObjectMissingError, StorageError
from igd.records import Reason, SourceStatus
from igd.storage import Entry

IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "data")
NAME_COLUMNS = ("path", "name", "file_name", "filename", "key")

MAGIC, ENCRYPTED_MAGIC = b"PAR1", b"PARE"
SIGNATURE_BYTES = 28
"""What follows a plain footer where columns are encrypted."""
TAIL_BYTES = 64 * 1024
"""What Arrow reads first: an object's last bytes, the footer in most cases."""
MAX_FOOTER_BYTES = 64 * 1024 * 1024
MAX_NAME_BYTES = 64 * 1024
MAX_PAGE_BYTES = 1024 * 1024 * 1024
"""The largest page that is read, as it is packed; unpacked, the format allows it 2 GiB."""
READ_BYTES = 8 * 1024 * 1024
"""How much of a column is read at once; a larger page is read whole."""
NAMES_AT_ONCE = 64


class UnusableError(ValueError):
    """A Parquet file that holds no image that can be read."""

    def __init__(self, status: SourceStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Column:
    """A column, or a field of a column of structs."""

    name: str
    field: str | None = None

    @property
    def path(self) -> str:
        return self.name if self.field is None else f"{self.name}.{self.field}"

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        cells = batch.column(self.name)
        return cells if self.field is None else pc.struct_field(cells, self.field)


def looks_like_parquet(first_block: bytes) -> bool:
    """Whether an object starts as a Parquet file does."""
    return first_block[:4] in (MAGIC, ENCRYPTED_MAGIC)


def walk_parquet(entry: Entry, end: ArchiveEnd) -> Iterator[Member]:
    """Every row, in order; `end` says how the file ended.

    A row without a name is named by its number, zeros in front, so that names sort as rows do.

    How large an image is shows when it is read and not before. Until then `size` and `span` are a
    row's equal share of its row group, unpacked and at most as large as the object, so that a
    shard's bytes are bounded on average. Rows are found by `ordinal`; `offset` is 0.
    """
    try:
        file = _open(entry)
        _, names = find_columns(file.schema_arrow)
        counts = _row_counts(file, entry)
    except UnusableError as error:
        end.status, end.detail = error.status, str(error)
        return
    except StorageError:
        raise
    except Exception as error:  # the border: a footer may hold anything
        end.status, end.detail = SourceStatus.DAMAGED, f"not a readable Parquet: {error}"
        return
    digits = len(str(max(0, sum(counts) - 1)))
    ordinal = 0
    for group, count in enumerate(counts):
        unpacked = max(0, file.metadata.row_group(group).total_byte_size)
        size = -(-unpacked // max(count, 1))
        span = -(-min(unpacked, entry.size) // max(count, 1))
        for name, reason, detail in _names(file, names, group, count):
            if reason == Reason.CORRUPT:
                end.status, end.detail = SourceStatus.DAMAGED, detail
            yield Member(
                source_uri=entry.uri, source_version=entry.version, ordinal=ordinal,
                raw_name=name or f"{ordinal:0{digits}d}".encode(), kind="parquet",
                span=0 if reason else span, size=size, reject_reason=reason, reject_detail=detail)
            ordinal += 1


def column_cells(entry: Entry, name: str) -> Iterator[bytes]:
    """A column of text or numbers, a cell for each row of a file that `walk_parquet` can walk.

    A cell that is null or cannot be read is empty, and so are all where there is no such column.
    """
    file = _open(entry)
    fields = [field for field in file.schema_arrow if field.name == name and _is_text(field.type)]
    column = Column(name) if len(fields) == 1 else None
    for group, count in enumerate(_row_counts(file, entry)):
        for cell, _, _ in _names(file, column, group, count):
            yield cell or b""


def find_columns(schema: pa.Schema) -> tuple[Column, Column | None]:
    """The column of images, and that of names where there is one.

    Images are in the only column of bytes, or in the only one of a usual name; a struct with a
    field `bytes`, as HuggingFace writes it, is a column of bytes, and its `path` may be the name.

    Raises:
        UnusableError: there is no such column, or there are several.
    """
    unique = [field for field in schema if schema.names.count(field.name) == 1]
    names = [field for name in NAME_COLUMNS for field in unique
             if field.name.lower() == name and _is_text(field.type)]
    found = [field for field in unique if _holds_bytes(field.type) and field not in names]
    chosen = [field for field in found if field.name.lower() in IMAGE_COLUMNS or len(found) == 1]
    if len(chosen) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:50])
        raise UnusableError(SourceStatus.SCHEMA, (
            f"{len(chosen) or len(found)} columns of images among {columns[:300]}; expected one "
            f"column of bytes, or one of them named {', '.join(IMAGE_COLUMNS)}"))
    image, = chosen
    name = Column(names[0].name) if names else None
    if not pa.types.is_struct(image.type):
        return Column(image.name), name
    inside = Column(image.name, "path") if image.type.get_field_index("path") >= 0 else None
    return Column(image.name, "bytes"), name or inside


class Rows:
    """The images of one Parquet file, read forward.

    Held at a time: a page, packed and unpacked, its row group's dictionary, and one row. A row
    before the last one read begins its row group again. What follows a damaged page in its row
    group is lost with it.
    """

    def __init__(self, uri: str, version: str) -> None:
        self.uri, self.version = uri, version
        self._file: pq.ParquetFile | None = None
        self._is_current = False
        self._starts = [0]
        self._group, self._next = -1, 0
        self._cells: Iterator[pa.Scalar] = iter(())
        self._end = ImageError(Reason.TRUNCATED, "")

    def read(self, member: Member) -> bytes:
        """The image of one row.

        Raises:
            ImageError: it cannot be had.
            StorageError: as `igd.storage.read_range`.
        """
        ordinal = member.ordinal
        try:
            file = self._opened()
        except StorageError:
            raise
        except Exception as error:  # the border, as below: damaged bytes raise anything
            raise ImageError(Reason.CORRUPT, f"not a readable Parquet: {error}") from None
        group = bisect_right(self._starts, ordinal) - 1
        if group != self._group or ordinal < self._next:
            self._begin(file, group)
        cell = None
        try:
            while self._next <= ordinal:
                cell = next(self._cells)
                self._next += 1
        except StorageError:
            self._group = -1
            raise
        except Exception as error:
            self._fail(error)
        if self._next <= ordinal:
            raise ImageError(self._end.reason, self._end.detail)
        if self._next == self._starts[group + 1]:
            self._cells = iter(())  # lets go of the last page
        return _content(cell)

    def pause(self) -> None:
        """The next read looks again whether the object is still this version."""
        self._is_current = False

    def _opened(self) -> pq.ParquetFile:
        if self._file is not None and self._is_current:
            return self._file
        entry = storage.stat(self.uri)
        if entry is None:
            raise ObjectMissingError(f"{self.uri}: not found")
        if entry.version != self.version:
            raise ObjectChangedError(f"{self.uri} changed since it was listed")
        if self._file is None:
            file = _open(entry)
            self._image, _ = find_columns(file.schema_arrow)
            self._starts = list(accumulate(_row_counts(file, entry), initial=0))
            self._file = file
        self._is_current = True
        return self._file

    def _begin(self, file: pq.ParquetFile, group: int) -> None:
        self._group, self._next = group, self._starts[group]
        self._cells = _cells(file, self._image, group)
        self._end = ImageError(Reason.TRUNCATED, f"row group {group} has fewer rows than declared")

    def _fail(self, error: Exception) -> None:
        self._cells = iter(())
        if isinstance(error, ImageError):
            self._end = error
        elif not isinstance(error, StopIteration):
            self._end = ImageError(Reason.CORRUPT, f"row group {self._group}: {error}")


def _cells(file: pq.ParquetFile, column: Column, group: int) -> Iterator[pa.Scalar]:
    # one row at a time: a page with a dictionary may stand for any number of copies of itself
    for batch in file.iter_batches(1, row_groups=[group], columns=[column.path],
                                   use_threads=False):
        yield from column.of(batch)


def _content(cell: pa.Scalar) -> bytes:
    if not cell.is_valid:
        raise ImageError(Reason.EMPTY, "null")
    size = cell.as_buffer().size
    if size > MAX_MEMBER_BYTES:
        raise ImageError(Reason.TOO_LARGE, f"{size} bytes, at most {MAX_MEMBER_BYTES}")
    content: bytes = cell.as_py()
    return content


def _names(file: pq.ParquetFile, column: Column | None, group: int, count: int
           ) -> Iterator[tuple[bytes | None, Reason | None, str | None]]:
    """Name, reject reason and detail of each row of a row group."""
    given = 0
    problem = "the column of names has fewer rows"
    try:
        for name in islice(_texts(file, column, group), count):
            given += 1
            if name is not None and len(name) > MAX_NAME_BYTES:
                yield None, Reason.TOO_LARGE, f"a name of {len(name)} bytes"
            else:
                yield name, None, None
    except StorageError:
        raise
    except Exception as error:  # the border: damaged pages raise anything
        problem = str(error)
    for _ in range(count - given):
        if column is None:
            yield None, None, None
        else:
            yield None, Reason.CORRUPT, f"the names of row group {group}: {problem}"


def _texts(file: pq.ParquetFile, column: Column | None, group: int) -> Iterator[bytes | None]:
    """The cells of a column of text, bytes or numbers; nothing where there is no column."""
    if column is None:
        return
    for batch in file.iter_batches(NAMES_AT_ONCE, row_groups=[group], columns=[column.path],
                                   use_threads=False):
        cells = column.of(batch)
        if pa.types.is_integer(cells.type):
            cells = cells.cast(pa.string())
        yield from cells.cast(pa.binary()).to_pylist()  # text need not be UTF-8


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_integer(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and bool(pa.types.is_binary(kind.field(at).type))
    return bool(pa.types.is_binary(kind))


def _open(entry: Entry) -> pq.ParquetFile:
    """A reader that holds little: one row group, column and page at a time.

    Raises:
        UnusableError: no footer, an encrypted or an oversized one.
    """
    start = max(0, entry.size - TAIL_BYTES)
    tail = storage.read_range(entry.uri, start, entry.size - start, version=entry.version)
    if tail.endswith(ENCRYPTED_MAGIC):
        raise UnusableError(SourceStatus.ENCRYPTED, "its footer is encrypted")
    if not tail.endswith(MAGIC):
        first = storage.read_range(entry.uri, 0, min(entry.size, 4), version=entry.version)
        raise UnusableError(*(
            (SourceStatus.TRUNCATED, "its end, with the footer, is missing") if first == MAGIC
            else (SourceStatus.DAMAGED, "not Parquet: neither its start nor its end is")))
    length = int.from_bytes(tail[-8:-4], "little")
    footer_at = entry.size - 8 - length
    if footer_at < len(MAGIC) or length > MAX_FOOTER_BYTES:
        raise UnusableError(SourceStatus.DAMAGED, f"a footer of {length} bytes, at most "
                            f"{MAX_FOOTER_BYTES} are read, in an object of {entry.size}")
    if footer_at < start:
        tail = storage.read_range(entry.uri, footer_at, start - footer_at,
                                  version=entry.version) + tail
    file = pq.ParquetFile(_File(entry, tail, length), pre_buffer=False, buffer_size=READ_BYTES,
                          page_checksum_verification=True, arrow_extensions_enabled=False)
    if length - file.metadata.serialized_size == SIGNATURE_BYTES:
        # not a question of which: Arrow aborts the process when asked about such a column
        raise UnusableError(SourceStatus.ENCRYPTED, "some of its columns are encrypted")
    return file


def _row_counts(file: pq.ParquetFile, entry: Entry) -> list[int]:
    """Rows of each row group."""
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) > entry.size:
        raise UnusableError(SourceStatus.DAMAGED,
                            f"{sum(counts)} rows declared in {entry.size} bytes")
    return counts


class _File(storage.RangedFile):
    """One object whose end is kept in memory, and whose pages are bounded."""

    def __init__(self, entry: Entry, tail: bytes, footer: int) -> None:
        at = len(tail) - 8 - footer
        super().__init__(entry, tail[:at] + tail[at:].replace(b"ARROW:schema", b"ARROW-hidden"))

    def check(self, size: int) -> None:
        if size > MAX_PAGE_BYTES:
            raise ImageError(Reason.TOO_LARGE, f"in a page of {size} bytes, at most "
                             f"{MAX_PAGE_BYTES}; write smaller pages (write_batch_size)")
