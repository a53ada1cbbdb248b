"""The index of a tar (ustar, pax, GNU): headers walked by range reads, bodies never read.

The walk knows its archive by a `Content` only: reads that hop over a plain tar, or what a packed
one (`igd.data.packed`) unpacks to.

Python's own `tarfile` is not used: its stream mode spins for as long as a header declares
(a 1.5 KB file can ask for 2^60 bytes), and an archive cut at a member boundary ends silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from igd.data.hops import Hops
from igd.data.members import MAX_MEMBER_BYTES, ArchiveEnd, Member, statable
from igd.records import Reason, SourceStatus
from igd.storage import Entry

BLOCK = 512
MAX_PADDING_BYTES = 256 * 1024
MAX_EXTENSION_BYTES = 1024 * 1024
"""Cap on a long name or a pax header."""

OLD_REGULAR = b"\0"
REGULAR = OLD_REGULAR, b"0", b"7"
DIRECTORY = b"5"
BODILESS = b"1", b"2", b"3", b"4", DIRECTORY, b"6"
"""Links, devices, directories: whatever size they state, no bytes follow (POSIX, tarfile)."""
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, GNU_SPARSE = b"L", b"K", b"x", b"g", b"S"


Wants = Callable[[bytes, int], bool]
"""Whether the body of a member of some name and size is wanted; it is held whole."""


class Content(Protocol):
    """The bytes of a tar, asked for from front to back."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only where the content ends."""

    def reaches(self, offset: int) -> bool:
        """Whether there are bytes up to an offset; those before are asked for no more."""

    def end(self) -> int:
        """Where it ends."""


class HeaderError(ValueError):
    """A block is not a tar header."""


@dataclass
class Extension:
    """What extension headers say of the next member."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


@dataclass
class Header:
    """One header block."""

    name: bytes
    size: int
    type: bytes
    sparse_blocks: bool = False
    extension: Extension = field(default_factory=Extension)


def looks_like_tar(first_block: bytes) -> bool:
    """Whether an object's first 512 bytes are a tar header."""
    try:
        parse_header(first_block)
    except HeaderError:
        return False
    return True


def walk_tar(entry: Entry, end: ArchiveEnd) -> Iterator[Member]:
    """Every member that is not a directory, in order; `end` says how the archive ended."""
    return (member for member, _ in walk_bodies(entry, end, nothing))


def walk_bodies(entry: Entry, end: ArchiveEnd, wants: Wants) -> Iterator[tuple[Member, bytes]]:
    """As `walk_tar`, with the bodies of the members that are wanted."""
    content = Hops(entry.uri, entry.size, entry.version)
    return walk_headers(content, entry, end, kind="tar", wants=wants)


def nothing(name: bytes, size: int) -> bool:
    """Wants no body."""
    return False


def walk_headers(content: Content, entry: Entry, end: ArchiveEnd, *, kind: str, wants: Wants
                 ) -> Iterator[tuple[Member, bytes]]:
    """As `walk_bodies`, over the content of a tar of some kind."""
    at = ordinal = 0
    while True:
        try:
            header, body = _next_header(content, at)
        except HeaderError as error:
            end.status, end.detail = SourceStatus.DAMAGED, f"{error} at byte {at}"
            return
        except EOFError as error:
            end.status, end.detail = SourceStatus.TRUNCATED, f"{error} at byte {at}"
            return
        if body is None:
            end.status, end.detail = SourceStatus.NO_END_MARKER, "no end marker"
            return
        if header is None:
            end.detail = _after_end(content, body + BLOCK)
            return
        size = _size(header)
        data = content.read(body, size) if wants(header.name, size) else b""
        cut = not content.reaches(body + size)
        if not _is_directory(header):
            yield _member(entry, header, kind, ordinal, body, size, cut), data
            ordinal += 1
        if cut:
            end.status = SourceStatus.TRUNCATED
            end.detail = (f"{size} bytes declared at byte {body}, the archive ends at byte "
                          f"{content.end()}")
            return
        at = _padded(body, size)


def parse_header(block: bytes) -> Header:
    """Reads one header block.

    Raises:
        HeaderError: a bad checksum, a bad number or a negative size.
    """
    if len(block) != BLOCK:
        raise HeaderError("short header")
    stated = _number(block[148:156])
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    signed = unsigned - 256 * sum(b > 127 for b in block[:148] + block[156:])
    if stated not in (unsigned, signed):
        raise HeaderError("bad header checksum")
    size = _number(block[124:136])
    if size < 0:
        raise HeaderError(f"negative size {size}")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    kind = block[156:157]
    return Header(name, size, kind, sparse_blocks=kind == GNU_SPARSE and block[482] != 0)


def _padded(body: int, size: int) -> int:
    """Where the next header begins."""
    return body + -(-size // BLOCK) * BLOCK


def _next_header(content: Content, at: int) -> tuple[Header | None, int | None]:
    """The next member's header and the offset of its body.

    At the end of the archive there is no header, and the offset is that of the end marker, or
    None where it is missing.
    """
    extension = Extension()
    while True:
        block = content.read(at, BLOCK)
        if block == bytes(BLOCK):
            return None, at
        if not block:
            return None, None
        if len(block) < BLOCK:
            raise EOFError("header cut")
        header = parse_header(block)
        body = at + BLOCK
        if header.type not in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            header.extension = extension
            header.name = extension.name if extension.name is not None else header.name
            return header, _after_sparse_map(content, header, body)
        if header.size > MAX_EXTENSION_BYTES:
            raise HeaderError(f"extension header of {header.size} bytes")
        data = content.read(body, header.size)
        if len(data) < header.size:
            raise EOFError("extension header cut")
        _extend(extension, header.type, data)
        at = _padded(body, header.size)


def _after_sparse_map(content: Content, header: Header, at: int) -> int:
    """Where the body begins: GNU's long sparse maps come before it and count in no size."""
    more = header.sparse_blocks
    while more:
        block = content.read(at, BLOCK)
        if len(block) < BLOCK:
            raise EOFError("sparse map cut")
        more, at = block[504] != 0, at + BLOCK
    return at


def _after_end(content: Content, at: int) -> str | None:
    """What to say of bytes after the end marker; padding is zeros and short."""
    tail = content.read(at, MAX_PADDING_BYTES)
    stop = content.end()
    if not tail.strip(b"\0") and at + len(tail) >= stop:
        return None
    return f"{stop - at} bytes after the end marker at byte {at - BLOCK} are not read"


def _is_directory(header: Header) -> bool:
    return header.type == DIRECTORY or (
        header.type == OLD_REGULAR and header.name.endswith(b"/") and _size(header) == 0)


def _size(header: Header) -> int:
    """Bytes of the body."""
    if header.type in BODILESS:
        return 0
    return header.size if header.extension.size is None else header.extension.size


def _extend(extension: Extension, kind: bytes, data: bytes) -> None:
    if kind == LONG_NAME:
        extension.name = data.split(b"\0", 1)[0]
    elif kind == PAX:
        for key, value in _pax_records(data):
            if key == b"path":
                extension.name = value
            elif key == b"size":
                extension.size = _decimal(value)
            elif key.startswith(b"GNU.sparse."):
                extension.sparse = True


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records `LENGTH KEY=VALUE\\n`."""
    at = 0
    while at < len(data) and data[at:at + 1] != b"\0":
        space = data.find(b" ", at, at + 20)
        length = _decimal(data[at:space]) if space > at else 0
        record = data[space + 1:at + length]
        key, equals, value = record.partition(b"=")
        if length <= space - at + 1 or at + length > len(data) or not (
                equals and value.endswith(b"\n")):
            raise HeaderError("bad pax record")
        yield key, value[:-1]
        at += length


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise HeaderError(f"bad decimal number {text[:20]!r}")
    return int(text)


def _number(field_bytes: bytes) -> int:
    """An octal field, or GNU's base-256."""
    if field_bytes[0] & 0x80:
        value = int.from_bytes(field_bytes, "big")
        bits = 8 * len(field_bytes)
        return (value - (1 << bits) if field_bytes[0] & 0x40 else value & ~(1 << (bits - 1)))
    text = field_bytes.split(b"\0", 1)[0].strip()
    try:
        return int(text or b"0", 8)
    except ValueError:
        raise HeaderError(f"bad octal number {text!r}") from None


def _member(entry: Entry, header: Header, kind: str, ordinal: int, body: int, size: int,
            cut: bool) -> Member:
    reason, detail = _why_not(header, size, cut)
    return Member(source_uri=entry.uri, source_version=entry.version, ordinal=ordinal,
                  raw_name=header.name, kind=kind, offset=body, span=0 if reason else size,
                  size=statable(size), reject_reason=reason, reject_detail=detail)


def _why_not(header: Header, size: int, cut: bool) -> tuple[str | None, str | None]:
    if header.type == GNU_SPARSE or header.extension.sparse:
        return Reason.SPARSE, "a sparse member"
    if header.type not in REGULAR:
        return Reason.NOT_REGULAR, f"tar type {header.type!r}"
    if cut:
        return Reason.TRUNCATED, f"the archive ends inside this member of {size} bytes"
    if size > MAX_MEMBER_BYTES:
        return Reason.TOO_LARGE, f"{size} bytes, at most {MAX_MEMBER_BYTES}"
    return None, None
