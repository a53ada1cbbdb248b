"""Objects as the files that other readers than a run's want, bounded in what is read of them."""

from __future__ import annotations

import io
from typing import Any

from igd import storage

WINDOW_BYTES = 256 * 1024
"""So much of an object is read at once; the bodies of larger members are hopped over."""
MAX_READ_BYTES = 256 * 1024 * 1024
"""No directory of a zip, footer or page of names is larger."""
FILL_BYTES = 1024 * 1024
KEPT_BYTES = 2 * FILL_BYTES
FREE_BYTES = 1024 * 1024 * 1024
MAX_RATIO = 100
"""A packed tar may unpack to `FREE_BYTES`, and to this many times its size."""


class UncountableError(ValueError):
    """An archive that cannot be read to its end, and why."""


def window(archive: storage.Entry) -> io.BufferedReader:
    """A file that reads an object through a window."""
    return io.BufferedReader(Ranged(archive), WINDOW_BYTES)


class Ranged(storage.RangedFile):
    """One object, of which no more is read at once than any index takes."""

    def check(self, size: int) -> None:
        if size > MAX_READ_BYTES:
            raise UncountableError(f"{size} bytes to be read at once")


class Forward:
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
        more = self._stream.read(FILL_BYTES)
        self._held = self._held[-KEPT_BYTES:] + more
        self._end += len(more)
        if self._end > self._most:
            raise UncountableError(f"it unpacks to more than {self._most} bytes")
        return bool(more)
