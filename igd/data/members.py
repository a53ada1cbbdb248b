"""What a dump is made of: members, their identity, and how an archive's index ended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from igd.records import SourceStatus

MAX_MEMBER_BYTES = 512 * 1024 * 1024
"""A member that unpacks to more is rejected unread."""
WINDOW_BYTES = 256 * 1024
"""How much of a zip is read at once while its directory is."""

STORED, DEFLATED = 0, 8
"""Packing methods, numbered as zip numbers them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One image to be, and where its bytes are.

    Attributes:
        source_uri: the object itself for a file, the archive for a member.
        ordinal: position among the archive's non-directory entries, the row number in a Parquet
            file; 0 for a file.
        raw_name: the name as the archive has it; empty for a file.
        kind: `file`, `tar`, `tar.gz`, `tar.zst`, `zip` or `parquet`.
        offset, span: the bytes to fetch; a zip member's span begins at its local header, those of
            a packed tar count what it unpacks to, and of a Parquet row only the span is known, on
            average (`igd.data.parquet`).
        size: unpacked bytes; -1 where more are declared than any row can state.
        crc: CRC-32 of the unpacked bytes where the archive states one.
    """

    source_uri: str
    source_version: str
    ordinal: int = 0
    raw_name: bytes = b""
    kind: str = "file"
    offset: int = 0
    span: int
    size: int
    method: int = STORED
    crc: int | None = None
    reject_reason: str | None = None
    reject_detail: str | None = None

    @property
    def name(self) -> str:
        return escape_name(self.raw_name)

    @property
    def image_id(self) -> str:
        """Identity: source, version, ordinal, raw name; never the content, never the name alone."""
        digest = hashlib.sha256()
        for part in (self.source_uri.encode(), self.source_version.encode(),
                     str(self.ordinal).encode(), self.raw_name):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()[:32]


@dataclass(kw_only=True)
class ArchiveEnd:
    """How the walk over an archive ended; filled while it is walked.

    Attributes:
        sidecars: members that stand beside an image and are none, by extension.
    """

    status: SourceStatus = SourceStatus.COMPLETE
    detail: str | None = None
    sidecars: dict[str, int] = field(default_factory=dict)


def statable(number: int) -> int:
    """A number that an archive declares, as a row can hold it: -1 past 64 bits."""
    return number if number < 1 << 63 else -1


def escape_name(raw: bytes) -> str:
    r"""A raw member name as text, reversibly: bytes that are not UTF-8 as \xNN, `\` as `\\`."""
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def unescape_name(name: str) -> bytes:
    """The inverse of `escape_name`."""
    out = bytearray()
    raw = name.encode("utf-8")
    i = 0
    while i < len(raw):
        if raw[i:i + 2] == b"\\x":
            out.append(int(raw[i + 2:i + 4], 16))
            i += 4
        elif raw[i:i + 2] == b"\\\\":
            out += b"\\"
            i += 2
        else:
            out.append(raw[i])
            i += 1
    return bytes(out)
