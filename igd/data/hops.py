"""Reads of a walk over the headers of a tar: bodies are hopped over, or streamed past.

A hop costs a round trip, a stream the bytes in between. Both are measured as the walk goes, so the
choice fits the sizes of the members and the storage at hand.
"""

from __future__ import annotations

import time

from igd import storage
from igd.data.stream import RANGE_BYTES, Stream

HOP_BYTES = 8 * 1024
"""A header, its extensions, and small neighbours."""
FIRST_BYTE_S = {True: 1 / 2e9, False: 1 / 2e8}
"""What is assumed of a local disk, and of object storage, until it is measured."""
WEIGHT = 0.25
"""That of the newest measurement in a running mean."""


class Hops:
    """The bytes of an object of known size, asked for from front to back."""

    def __init__(self, uri: str, size: int, version: str) -> None:
        self._uri, self._size, self._version = uri, size, version
        self._hop_s: float | None = None
        self._byte_s = FIRST_BYTE_S[storage.is_local(uri)]
        self._gap = 0.0
        self._asked = 0
        self._stream: Stream | None = None
        self._start, self._data = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only where the object ends, none past its end."""
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        self._note_gap(offset - self._asked)
        self._asked = offset + length
        while not self._start <= offset <= offset + length <= self._held_to:
            self._fetch(offset, length)
        at = offset - self._start
        return self._data[at:at + length]

    def reaches(self, offset: int) -> bool:
        """Whether there are bytes up to an offset."""
        return offset <= self._size

    def end(self) -> int:
        """Where it ends."""
        return self._size

    def prefers_stream(self) -> bool:
        """Whether bodies such as the last ones are passed sooner than a hop takes."""
        return self._hop_s is not None and self._gap * self._byte_s < self._hop_s

    @property
    def _held_to(self) -> int:
        return self._start + len(self._data)

    def _note_gap(self, gap: int) -> None:
        if gap > 0:  # none before an extension's data
            self._gap = _mean(self._gap or None, gap)

    def _fetch(self, offset: int, length: int) -> None:
        if not self.prefers_stream():
            self._hop(offset, length)
            return
        if self._stream is None or offset < self._start:
            self._stream = Stream(self._uri, self._size, self._version, start=offset)
            self._start, self._data = offset, b""
        self._pass(self._stream, offset)

    def _hop(self, offset: int, length: int) -> None:
        want = min(max(length, HOP_BYTES), self._size - offset)
        began = time.perf_counter()
        self._data = storage.read_range(self._uri, offset, want, version=self._version)
        self._hop_s = _mean(self._hop_s, time.perf_counter() - began)
        self._start, self._stream = offset, None

    def _pass(self, stream: Stream, offset: int) -> None:
        """Takes the stream's next range, and keeps of the last one what is still asked for."""
        began = time.perf_counter()
        data = stream.next_range()
        if len(data) == RANGE_BYTES:  # smaller ones are mostly round trip
            self._byte_s = _mean(self._byte_s, (time.perf_counter() - began) / len(data))
        kept = self._data[offset - self._start:]
        self._start, self._data = (offset, kept + data) if kept else (self._held_to, data)


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + WEIGHT * (newest - mean)
