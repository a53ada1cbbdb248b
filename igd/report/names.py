"""Names that come out of other people's archives, made safe to look at.

Markup is escaped by the template; here it is what escaping leaves: control characters, and the
invisible ones that turn text around, so that `gpj.exe` would read `exe.jpg`.
"""

from __future__ import annotations

import unicodedata
from typing import Any

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_TAIL = 56
_INSIDE = " \N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} "


def visible(text: str) -> str:
    r"""Text with every invisible or unassigned character written as \uXXXX."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _HIDDEN else c for c in text)


def tail(text: str, length: int = _TAIL) -> str:
    """The end of a long name, which tells more than its beginning."""
    return text if len(text) <= length else "…" + text[1 - length:]


def full_name(row: dict[str, Any]) -> str:
    """Where an image is: its URI, and its name inside an archive."""
    inside = _INSIDE + row["member"] if row["member"] else ""
    return visible(row["source_uri"] + inside)


def short_name(row: dict[str, Any]) -> str:
    """The end of the URI: an archive and the end of the member's name, or folder and file."""
    parts = row["source_uri"].rsplit("/", 2)
    if not row["member"]:
        return tail(visible("/".join(parts[-2:])))
    return tail(visible(parts[-1]), _TAIL // 3) + _INSIDE + tail(visible(row["member"]))
