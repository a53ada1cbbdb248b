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
        modified_s: when it was last written by the storage's clock, seconds since 1970; 0 where
            that is not known.
    """

    uri: str
    key: str
    size: int
    version: str
    problem: Literal["not_regular", "denied"] | None = None
    modified_s: float = 0.0
