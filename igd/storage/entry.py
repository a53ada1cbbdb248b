"""One object of a listing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Entry:
    """One object that a listing found.

    Attributes:
        uri: canonical URI.
        key: path relative to what was listed, with `/`; bytes that are not UTF-8 as surrogates.
        size: bytes.
        version: etag, or size and mtime in ns; changes when the content does.
        problem: why it cannot be read, or None.
    """

    uri: str
    key: str
    size: int
    version: str
    problem: Literal["not_regular", "denied"] | None = None
