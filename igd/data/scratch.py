"""Arrays larger than memory: mapped files without a name, which the system pages in and out.

A file's name is gone before a byte is written, so that nothing is left of it however the process
ends, and nothing that another one left is ever read.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from igd.errors import StorageError

LARGE_FILES = "/var/tmp"
MOUNTS = "/proc/self/mounts"


def check_space(folder: str, needed: int) -> None:
    """Makes sure that a folder of a local disk has room for so many bytes.

    Raises:
        StorageError: it has not, cannot be written, or is in memory itself.
    """
    if is_in_memory(folder):
        raise StorageError(f"scratch folder {folder} is in memory (tmpfs); expected a folder on a "
                           "local disk; choose one with --scratch")
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(f"scratch folder {folder} cannot be used: {error}; expected a folder "
                           "on a local disk; see --scratch") from error
    if free < needed:
        raise StorageError(f"scratch folder {folder} has {in_gib(free)} free; expected "
                           f"{in_gib(needed)}; make room, or choose another with --scratch")


def default_folder() -> str:
    """The system's for temporary files, or its other one where that is in memory."""
    folder = tempfile.gettempdir()
    return LARGE_FILES if is_in_memory(folder) and os.path.isdir(LARGE_FILES) else folder


def is_in_memory(folder: str) -> bool:
    """Whether what is written there takes memory, as far as the system says."""
    if not os.path.exists(MOUNTS):
        return False
    with open(MOUNTS) as lines:
        kinds = {fields[1]: fields[2] for fields in map(str.split, lines)}
    at = os.path.realpath(folder)
    while at not in kinds and at != os.path.dirname(at):
        at = os.path.dirname(at)
    return kinds.get(at) in ("tmpfs", "ramfs")


def mapped(folder: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros in a scratch file, which goes with it.

    The disk space is taken at once: a disk that is full later would kill the process that writes.

    Raises:
        StorageError: there is not enough.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            memory = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise StorageError(f"scratch folder {folder} cannot take {in_gib(size)}: "
                           f"{error.strerror}; make room, or choose another with "
                           "--scratch") from error
    return np.frombuffer(memory, dtype).reshape(shape)


def in_gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB"
