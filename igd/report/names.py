"""Names that come out of other people's archives, made safe to look at.

Markup is escaped by the template; here it is what escaping leaves: control characters, and the
invisible ones that turn text around, so that `gpj.exe` would read `exe.jpg`.
"""

from __future__ import annotations

import unicodedata
from typing import Any

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_TAIL = 72


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
    return visible(f"{row['source_uri']} › {row['member']}" if row["member"]
                   else row["source_uri"])


def short_name(row: dict[str, Any]) -> str:
    """The end of the URI (an archive's file name, else file and folder) and the member."""
    parts = row["source_uri"].rsplit("/", 2)
    name = f"{parts[-1]} › {row['member']}" if row["member"] else "/".join(parts[-2:])
    return tail(visible(name))
