"""An object read front to back in large ranges, the next ones fetched while one is used."""

from __future__ import annotations

import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from igd import storage

FIRST_BYTES = 256 * 1024
"""The first range; each is twice the one before, up to the largest."""
RANGE_BYTES = 4 * 1024 * 1024
AHEAD = 2
"""Ranges in flight: while one arrives, the round trip of the next is already under way."""


class Stream(io.RawIOBase):
    """One version of an object of known size, from some byte on; errors as `storage.read_range`.

    Held are the range in use and those in flight, 12 MiB at most.
    """

    def __init__(self, uri: str, size: int, version: str, *, start: int = 0) -> None:
        self._uri, self._size, self._version = uri, size, version
        self._pool = ThreadPoolExecutor(AHEAD)
        self._flying: deque[Future[bytes]] = deque()
        self._asked_to, self._length = start, min(FIRST_BYTES, RANGE_BYTES)
        self._range = memoryview(b"")
        self._used = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, never across the end of a range; none at the end of the object."""
        if self._used == len(self._range):
            self._range, self._used = memoryview(self.next_range()), 0
        stop = len(self._range) if size < 0 else min(len(self._range), self._used + size)
        data = bytes(self._range[self._used:stop])
        self._used = stop
        return data

    def next_range(self) -> bytes:
        """The next range whole, for who reads nothing else; empty at the end of the object."""
        self._ask()
        if not self._flying:
            return b""
        data = self._flying.popleft().result()
        self._ask()
        return data

    def _ask(self) -> None:
        while len(self._flying) < AHEAD and self._asked_to < self._size:
            at, length = self._asked_to, min(self._length, self._size - self._asked_to)
            self._flying.append(self._pool.submit(
                storage.read_range, self._uri, at, length, version=self._version))
            self._asked_to, self._length = at + length, min(2 * self._length, RANGE_BYTES)
