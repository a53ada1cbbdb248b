"""An object read front to back in large ranges, the next one fetched while one is used."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor

from igd import storage

RANGE_BYTES = 4 * 1024 * 1024
"""At most two of them are held."""


class Stream(io.RawIOBase):
    """One version of an object of known size, from some byte on; errors as `storage.read_range`."""

    def __init__(self, uri: str, size: int, version: str, *, start: int = 0) -> None:
        self._uri, self._size, self._version = uri, size, version
        self._pool = ThreadPoolExecutor(1)
        self._range = memoryview(b"")
        self._used = 0
        self._ahead_at = start
        self._ahead: Future[bytes] | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, never across the end of a range; none at the end of the object."""
        if self._used == len(self._range):
            self._range, self._used = memoryview(self._next_range()), 0
        stop = len(self._range) if size < 0 else min(len(self._range), self._used + size)
        data = bytes(self._range[self._used:stop])
        self._used = stop
        return data

    def _next_range(self) -> bytes:
        waiting, self._ahead = self._ahead or self._ask(), None
        if waiting is None:
            return b""
        data = waiting.result()
        self._ahead = self._ask()
        return data

    def _ask(self) -> Future[bytes] | None:
        at = self._ahead_at
        length = min(RANGE_BYTES, self._size - at)
        if length <= 0:
            return None
        self._ahead_at = at + length
        return self._pool.submit(storage.read_range, self._uri, at, length, version=self._version)
