"""The entries of an archive by other readers than a run's: Python's and Arrow's own, for `verify`.

Bodies are passed over. What is read is linear in the bytes of an archive and bounded where it is
packed; where a reader would spin, go back or fill memory, the archive is refused with a reason.
"""

from __future__ import annotations

import gzip
import itertools
import posixpath
import zipfile
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from igd import storage
from igd.errors import IgdError
from igd.pipelines.recount.ranged import WINDOW_BYTES, Forward, Ranged, UncountableError, window
from igd.pipelines.recount.tars import BLOCK, Named, is_tar, samples, tar_names

MAX_NAME_BYTES = 64 * 1024
"""Of a row; one with a longer name is named by its number, as one without."""
IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "data")
NAME_COLUMNS = ("path", "name", "file_name", "filename", "key")


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
    if is_tar(first):
        return _tar
    for magic, reader in ((b"PAR1", _parquet), (b"PARE", _parquet), (b"\x1f\x8b", _tar_gz),
                          (b"\x28\xb5\x2f\xfd", _tar_zst)):
        if first.startswith(magic):
            return reader
    by_name = {".zip": _zip, ".parquet": _parquet, ".tar": _tar, ".zst": _tar_zst,
               ".zstd": _tar_zst}
    return by_name.get(posixpath.splitext(name)[1], _tar_gz)


def _tar(archive: storage.Entry) -> Iterator[Named]:
    return samples(tar_names(window(archive)))


def _tar_gz(archive: storage.Entry) -> Iterator[Named]:
    unpacked = gzip.GzipFile(fileobj=window(archive))
    return samples(tar_names(Forward(unpacked, archive.size)))


def _tar_zst(archive: storage.Entry) -> Iterator[Named]:
    unpacked = pa.CompressedInputStream(pa.PythonFile(window(archive), mode="r"), "zstd")
    return samples(tar_names(Forward(unpacked, archive.size)))


def _zip(archive: storage.Entry) -> Iterator[Named]:
    with zipfile.ZipFile(window(archive)) as found:
        names = ((_zip_name(info), info.file_size) for info in found.infolist())
        yield from map(Named, itertools.count(), (
            name for name, size in names if size or not name.endswith(b"/")))


def _zip_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


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
    last = Ranged(archive)
    last.seek(max(0, archive.size - 8))
    end = last.read(8)
    footer = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or footer + 12 > archive.size:
        raise UncountableError("no footer at its end")
    last.seek(archive.size - 8 - footer)
    # the Arrow schema that a writer kept may name types whose code would run
    tail = last.read(footer + 8).replace(b"ARROW:schema", b"ARROW#schema")
    file = pq.ParquetFile(Ranged(archive, tail), pre_buffer=False, buffer_size=WINDOW_BYTES,
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
