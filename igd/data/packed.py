"""Tars packed by gzip or zstd: no index, so they are unpacked front to back, and never held.

What they unpack to is walked as a plain tar is, bodies unpacked and passed over; `offset` of a
member counts unpacked bytes. A process that reads members forward unpacks the archive once.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import pyarrow as pa

from igd import storage
from igd.data.members import ArchiveEnd, Member
from igd.data.stream import Stream
from igd.data.tarindex import Wants, walk_headers
from igd.errors import ImageError, ObjectChangedError, ObjectMissingError, StorageError
from igd.records import Reason, SourceStatus
from igd.storage import Entry

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
FEED_BYTES = 64 * 1024
"""So much is unpacked at a time."""
CHUNK_BYTES = 64 * 1024
"""So much comes out at a time; with zstd, as much before a damage may be lost with it."""
SALVAGE_BYTES = 512
MAX_RATIO = 1100
"""More unpacked bytes to a packed one make a bomb: deflate packs at most 1032:1, zstd 30,000:1."""
FREE_BYTES = 64 * 1024 * 1024
"""So much may come out of anything."""


class PackingError(ValueError):
    """A packed stream that goes no further."""

    def __init__(self, status: SourceStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def packing_of(first_block: bytes) -> str | None:
    """`tar.gz` or `tar.zst` where an object starts as such a stream does."""
    if first_block.startswith(GZIP_MAGIC):
        return "tar.gz"
    return "tar.zst" if first_block.startswith(ZSTD_MAGIC) else None


def walk_packed(kind: str, entry: Entry, end: ArchiveEnd, wants: Wants
                ) -> Iterator[tuple[Member, bytes]]:
    """As `walk_bodies`, of what a stream of some kind unpacks to."""
    unpacked = Unpacked(kind, entry.uri, entry.size, entry.version)
    yield from walk_headers(unpacked, entry, end, kind=kind, wants=wants)
    problem = unpacked.problem
    if problem is not None and (problem.status != SourceStatus.COMPLETE
                                or end.status == SourceStatus.COMPLETE):
        end.status, end.detail = problem.status, str(problem)


class Unpacked:
    """What a packed object unpacks to; an offset may not go back behind the last one.

    Attributes:
        problem: why it ended before its time, once it has.
    """

    def __init__(self, kind: str, uri: str, size: int, version: str) -> None:
        self.problem: PackingError | None = None
        self._feed = _Feed(Stream(uri, size, version))
        self._chunks = _gunzip(self._feed) if kind == "tar.gz" else _unzstd(self._feed)
        self._start = 0
        self._chunk = b""

    @property
    def start(self) -> int:
        """Nothing before this can be read any more."""
        return self._start

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only where the stream ends."""
        if not length or not self.reaches(offset + 1):
            return b""
        content = io.BytesIO()
        while (missing := length - content.tell()) and self.reaches(offset + content.tell() + 1):
            at = offset + content.tell() - self._start
            content.write(self._chunk[at:at + missing])
        return content.getvalue()

    def reaches(self, offset: int) -> bool:
        """Whether there are bytes up to an offset; those before are passed over."""
        while self._start + len(self._chunk) < offset:
            if not self._advance():
                return False
        return True

    def end(self) -> int:
        """Unpacks the rest, and says how much it all was."""
        while self._advance():
            pass
        return self._start + len(self._chunk)

    def _advance(self) -> bool:
        after = self._start + len(self._chunk)
        try:
            if after > FREE_BYTES + MAX_RATIO * self._feed.used:
                raise PackingError(SourceStatus.DAMAGED, f"{self._feed.used} bytes unpack to more "
                                   f"than {after}, which no images do")
            chunk = next(self._chunks, b"")
        except PackingError as error:
            self.problem = error
            self._chunks = iter(())
            chunk = b""
        if chunk:
            self._start, self._chunk = after, chunk
        return bool(chunk)


class PackedMembers:
    """The members of one packed tar, read forward; one before the last begins it again."""

    def __init__(self, uri: str, version: str, kind: str) -> None:
        self.uri, self.version, self.kind = uri, version, kind
        self._unpacked: Unpacked | None = None

    def read(self, member: Member) -> bytes:
        """The content of one member.

        Raises:
            ImageError: it cannot be had.
            StorageError: as `igd.storage.read_range`.
        """
        try:
            if self._unpacked is None or member.offset < self._unpacked.start:
                self._unpacked = self._begin()
            content = self._unpacked.read(member.offset, member.size)
        except StorageError:
            self._unpacked = None
            raise
        if len(content) < member.size:
            raise ImageError(Reason.TRUNCATED, str(self._unpacked.problem or "the archive ends"))
        return content

    def pause(self) -> None:
        """Nothing to look at again: all that is held is of the version that was listed."""

    def _begin(self) -> Unpacked:
        entry = storage.stat(self.uri)
        if entry is None:
            raise ObjectMissingError(f"{self.uri}: not found")
        if entry.version != self.version:
            raise ObjectChangedError(f"{self.uri} changed since it was listed")
        return Unpacked(self.kind, self.uri, entry.size, self.version)


class _Feed(io.RawIOBase):
    """The packed bytes in small pieces, counted as they are used."""

    def __init__(self, stream: Stream) -> None:
        self.used = 0
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(FEED_BYTES if size < 0 else min(size, FEED_BYTES))
        self.used += len(data)
        return data


def _gunzip(packed: _Feed) -> Iterator[bytes]:
    """Members of gzip, one behind the other, and what follows them is no matter, as for gzip."""
    engine = _gzip_engine()
    piece = packed.read()
    while piece:
        before = engine.copy()
        try:
            chunk = engine.decompress(piece, CHUNK_BYTES)
        except zlib.error as error:
            yield from _salvage(before, piece)
            raise PackingError(SourceStatus.DAMAGED, f"gzip: {error}") from None
        if chunk:
            yield chunk
        piece = engine.unconsumed_tail
        if engine.eof:
            piece = engine.unused_data
            if len(piece) < len(GZIP_MAGIC):
                piece += packed.read()
            if not piece.startswith(GZIP_MAGIC):
                return _say_what_follows(piece)
            engine = _gzip_engine()
        piece = piece or packed.read()
    if chunk := engine.flush():
        yield chunk
    raise PackingError(SourceStatus.TRUNCATED, f"gzip: cut at byte {packed.used}")


def _gzip_engine() -> zlib._Decompress:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _salvage(engine: zlib._Decompress, piece: bytes) -> Iterator[bytes]:
    """What can be unpacked of a piece before its damage; the engine keeps nothing of a failure."""
    while piece:
        try:
            chunk = engine.decompress(piece, SALVAGE_BYTES)
        except zlib.error:
            return
        if chunk:
            yield chunk
        piece = engine.unconsumed_tail


def _say_what_follows(piece: bytes) -> None:
    if piece.strip(b"\0"):
        raise PackingError(SourceStatus.COMPLETE, "bytes after the gzip stream are not read")


def _unzstd(packed: _Feed) -> Iterator[bytes]:
    """Frames of zstd, one behind the other."""
    stream = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")
    while True:
        try:
            chunk = stream.read(CHUNK_BYTES)
        except OSError as error:
            cut = "Truncated" in str(error)
            raise PackingError(*(
                (SourceStatus.TRUNCATED, f"zstd: cut at byte {packed.used}") if cut
                else (SourceStatus.DAMAGED, f"zstd: {error}"))) from None
        if not chunk:
            return
        yield chunk
