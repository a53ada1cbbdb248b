"""The only package that knows a storage client: a local path or s3:// behind the same functions.

A URI is `s3://bucket/key`, or a local path, or `file:///path` with percent escapes, so that a
local name that is not UTF-8 has a URI too. Exclusive creation (`put_if_absent`) is what every
protocol above is built on; it works alike on a local disk and on S3.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import posixpath
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import quote

from igd.errors import ConfigError, ObjectMissingError, StorageError
from igd.storage import local
from igd.storage.entry import Entry

__all__ = ["Entry", "RangedFile", "abort_uploads", "canonical", "delete", "delta_location",
           "exists_dir", "is_inside", "is_local", "join", "list_dirs", "list_objects",
           "local_path", "put_if_absent", "read_bytes", "read_range", "stat", "train_location",
           "write_bytes"]

CREATE_ATTEMPTS = 4
READ_ATTEMPTS = 4
"""Of a range whose body ends before its time, though the reply says that all is well."""


def is_local(uri: str) -> bool:
    """Whether the URI names a place on this machine's disk."""
    return _backend(uri) is local


def canonical(uri: str) -> str:
    """The one spelling of a location: absolute, without `.`, `..` or a trailing slash."""
    result: str = _backend(uri).canonical(uri)
    return result


def join(uri: str, *parts: str) -> str:
    """Appends path segments to a URI or a local path."""
    if uri.startswith("file://"):
        parts = tuple(quote(os.fsencode(part)) for part in parts)
    return posixpath.join(uri if uri.endswith("/") else uri + "/", *parts)


def local_path(uri: str) -> str:
    """The path of a local URI.

    Raises:
        ConfigError: the URI is not local.
    """
    if not is_local(uri):
        raise ConfigError(f"{uri!r} is not on this machine's disk")
    return local.path_of(uri)


def stat(uri: str) -> Entry | None:
    """The object at exactly this URI, or None (also for a directory or prefix)."""
    entry: Entry | None = _backend(uri).stat(uri)
    return entry


def is_inside(uri: str, folder: str) -> bool:
    """Whether a URI is below a folder or prefix, whatever there is."""
    return canonical(uri).startswith(canonical(folder) + "/")


def exists_dir(uri: str) -> bool:
    """Whether a directory, or a prefix with at least one object, is there."""
    return bool(_backend(uri).exists_dir(uri))


def list_dirs(uri: str) -> list[str]:
    """Names directly below a directory or prefix that are themselves such, sorted."""
    names: list[str] = _backend(uri).list_dirs(uri)
    return names


def list_objects(uri: str) -> Iterator[Entry]:
    """Everything below a directory or prefix, recursively, in a stable order.

    Links to directories are not followed; a link to a file is that file. What is neither a
    file nor a directory, and a directory that may not be read, is listed with a `problem`.
    """
    entries: Iterator[Entry] = _backend(uri).list_objects(uri)
    return entries


def read_bytes(uri: str, *, version: str | None = None) -> bytes:
    """The whole object.

    Raises:
        ObjectMissingError: it is not there.
        ObjectDeniedError: it may not be read.
        ObjectChangedError: `version` is given and no longer true.
        StorageError: anything else.
    """
    data: bytes = _backend(uri).read(uri, None, version)
    return data


def read_range(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
    """Exactly `length` bytes at `offset`; errors as `read_bytes`, also for a short read."""
    if length == 0:
        return b""
    for _ in range(READ_ATTEMPTS):
        data: bytes = _backend(uri).read(uri, (offset, offset + length), version)
        if len(data) == length:
            return data
    raise StorageError(f"{uri}: got {len(data)} bytes at offset {offset}, expected {length}, "
                       f"{READ_ATTEMPTS} times")


class RangedFile(io.RawIOBase):
    """One version of an object as a seekable file over `read_range`, for readers of parts.

    Args:
        tail: what is read in place of its last bytes, without a request.
    """

    def __init__(self, entry: Entry, tail: bytes = b"") -> None:
        self._entry, self._tail = entry, tail
        self._tail_at = entry.size - len(tail)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        if base + offset < 0:
            raise OSError("a seek before its start")  # what zipfile tries and expects
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._entry.size - self._at)
        size = left if size < 0 else min(size, left)
        self.check(size)
        start, stop = self._at, self._at + size
        before = max(0, min(stop, self._tail_at) - start)
        data = read_range(self._entry.uri, start, before, version=self._entry.version)
        self._at = stop
        return data + self._tail[max(0, start - self._tail_at):max(0, stop - self._tail_at)]

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def check(self, size: int) -> None:
        """Raises where so many bytes are more than may be read at once; here none are."""


def write_bytes(uri: str, data: bytes) -> None:
    """Writes an object whole or not at all, replacing what was there."""
    _backend(uri).write_bytes(uri, data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Writes an object only where there is none; False where another writer was first.

    A reply that got lost is no trap: where the object holds these very bytes it is ours.
    """
    for _ in range(CREATE_ATTEMPTS):
        if _backend(uri).create(uri, data):
            return True
        with contextlib.suppress(ObjectMissingError):  # removed meanwhile, or a 409 of S3
            return read_bytes(uri) == data
    raise StorageError(f"{uri}: can neither be created nor read; is it a directory?")


def delete(uri: str) -> None:
    """Removes an object; one that is not there is no error."""
    _backend(uri).delete(uri)


def abort_uploads(uri: str, before_s: float, *, dry_run: bool = False) -> list[str]:
    """Gives up uploads in parts below a prefix that began before a time and never ended.

    No listing of objects shows them, and they take space. A local disk has none.

    Returns:
        The URIs they were to become.

    Raises:
        StorageError: the storage lists none, or may not be asked.
    """
    found: list[str] = _backend(uri).abort_uploads(uri, before_s, dry_run)
    return found


def delta_location(uri: str) -> tuple[str, dict[str, str]]:
    """Table location and storage options as `deltalake` wants them."""
    location: tuple[str, dict[str, str]] = _backend(uri).delta_location(uri)
    return location


def train_location(uri: str) -> tuple[str, Any]:
    """Storage path and `pyarrow` filesystem (or None) as Ray Train wants them."""
    location: tuple[str, Any] = _backend(uri).train_location(uri)
    return location


def _backend(uri: str) -> ModuleType:
    if uri.startswith("s3://"):
        # only here: local work loads no S3 client, and runs where none is installed
        return importlib.import_module("igd.storage.s3")
    if "://" in uri and not uri.startswith("file://"):
        raise ConfigError(f"{uri!r}: unknown scheme; expected a local path or s3://bucket/key")
    return local
