"""A local disk behind the functions of `igd.storage`."""

from __future__ import annotations

import contextlib
import os
import stat as stat_module
import uuid
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote, unquote_to_bytes

from igd.errors import (
    ObjectChangedError,
    ObjectDeniedError,
    ObjectMissingError,
    StorageError,
)
from igd.storage.entry import Entry


def path_of(uri: str) -> str:
    """The path of a `file://` URI, or the path itself."""
    if uri.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(uri[len("file://"):]))
    return os.path.expanduser(uri)


def canonical(uri: str) -> str:
    return "file://" + quote(os.fsencode(os.path.abspath(path_of(uri))))


def stat(uri: str) -> Entry | None:
    path = path_of(uri)
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _error(error, uri) from error
    return None if stat_module.S_ISDIR(info.st_mode) else _entry(path, "", info)


def exists_dir(uri: str) -> bool:
    return os.path.isdir(path_of(uri))


def list_dirs(uri: str) -> list[str]:
    try:
        with os.scandir(path_of(uri)) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _error(error, uri) from error


def list_objects(uri: str) -> Iterator[Entry]:
    if not os.path.isdir(path_of(uri)):
        return iter(())
    return _walk(path_of(uri))


def read(uri: str, span: tuple[int, int] | None, version: str | None) -> bytes:
    try:
        with open(path_of(uri), "rb", opener=_open_at_once) as file:
            _check_version(file.fileno(), version, uri)
            file.seek(span[0] if span else 0)
            data = file.read(span[1] - span[0] if span else -1)
            _check_version(file.fileno(), version, uri)  # it may be rewritten while it is read
            return data
    except OSError as error:
        raise _error(error, uri) from error


def write_bytes(uri: str, data: bytes) -> None:
    path = path_of(uri)
    temporary = _write_temporary(path, data)
    try:
        os.replace(temporary, path)
        _sync_directory(path)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise _error(error, uri) from error


def create(uri: str, data: bytes) -> bool:
    path = path_of(uri)
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
        _sync_directory(path)
    except FileExistsError:
        return False
    except OSError as error:
        raise _error(error, uri) from error
    finally:
        os.unlink(temporary)
    return True


def delete(uri: str) -> None:
    try:
        os.unlink(path_of(uri))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _error(error, uri) from error


def abort_uploads(uri: str, before_s: float, dry_run: bool) -> list[str]:
    return []


def delta_location(uri: str) -> tuple[str, dict[str, str]]:
    return os.path.abspath(path_of(uri)), {}


def train_location(uri: str) -> tuple[str, Any]:
    return os.path.abspath(path_of(uri)), None


def _version(info: os.stat_result) -> str:
    return f"{info.st_size}-{info.st_mtime_ns}"


def _check_version(fileno: int, version: str | None, uri: str) -> None:
    if version is not None and version != _version(os.fstat(fileno)):
        raise ObjectChangedError(f"{uri} changed since it was listed")


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting for the writer of a FIFO that took a file's place."""
    return os.open(path, flags | os.O_NONBLOCK)


def _entry(path: str, key: str, info: os.stat_result) -> Entry:
    problem: Literal["not_regular", "denied"] | None = None
    if not stat_module.S_ISREG(info.st_mode):
        problem = "not_regular"
    elif not os.access(path, os.R_OK):
        problem = "denied"
    return Entry(canonical(path), key, info.st_size, _version(info), problem,
                 info.st_mtime)


def _walk(top: str) -> Iterator[Entry]:
    """Depth first, on a stack of its own: a dump may nest deeper than Python recurses."""
    try:
        pending = _children(top, "")
    except OSError as error:
        raise _error(error, top) from error
    while pending:
        found, key = pending.pop()
        try:
            if found.is_dir(follow_symlinks=False):
                pending += _children(found.path, key + "/")
                continue
            entry = _entry(found.path, key, _info(found))
        except FileNotFoundError:  # removed since its directory was read
            continue
        except PermissionError:
            entry = Entry(canonical(found.path), key, 0, "", "denied")
        except OSError as error:
            raise _error(error, found.path) from error
        yield entry


def _children(path: str, prefix: str) -> list[tuple[os.DirEntry[str], str]]:
    """What a directory holds, each with its key, the first one last."""
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: os.fsencode(entry.name), reverse=True)
    return [(entry, prefix + entry.name) for entry in entries]


def _info(found: os.DirEntry[str]) -> os.stat_result:
    """Of a file, or of what a link to a file leads to; else of the link itself."""
    try:
        info = found.stat()
    except PermissionError:
        raise
    except OSError:  # a dangling link, or a loop
        return found.stat(follow_symlinks=False)
    return found.stat(follow_symlinks=False) if stat_module.S_ISDIR(info.st_mode) else info


def _write_temporary(path: str, data: bytes) -> str:
    """A synced file beside `path`, to be renamed or linked into place."""
    directory = os.path.dirname(os.path.abspath(path))
    temporary = os.path.join(directory, f".{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(directory, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise _error(error, path) from error
    return temporary


def _sync_directory(path: str) -> None:
    """Makes a new name outlive a power cut."""
    handle = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _error(error: OSError, uri: str) -> StorageError:
    message = f"{path_of(uri)}: {error.strerror or error}"
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return ObjectMissingError(message)
    if isinstance(error, PermissionError):
        return ObjectDeniedError(message)
    return StorageError(message)
