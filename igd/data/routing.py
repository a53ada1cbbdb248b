"""Which category an image belongs to: one for all, or read from its path."""

from __future__ import annotations

import re
from dataclasses import dataclass

from igd.config import NAME_PATTERN, check_name
from igd.errors import ConfigError

PLACEHOLDER = "{category}"


@dataclass(frozen=True)
class Routing:
    """Either a fixed category or a path pattern.

    In a pattern, `{category}` stands for one path segment (or a part of one) and `*` for any
    run of characters, also `/`, as few as possible. It is matched against the path of a file
    below its source, or of a member in its archive.

    Raises:
        ConfigError: neither or both are given, or the pattern lacks `{category}`.
    """

    category: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if (self.category is None) == (self.pattern is None):
            raise ConfigError("give --category NAME or --category-from PATTERN, one of the two")
        if self.category is not None:
            check_name(self.category, "category")
        if self.pattern is not None and self.pattern.count(PLACEHOLDER) != 1:
            raise ConfigError(f"--category-from {self.pattern!r}: expected {PLACEHOLDER} once, "
                              "for example '{category}/*'")

    def route(self, path: str) -> str | None:
        """The category of a path, or None."""
        if self.category is not None:
            return self.category
        found = _compiled(self.pattern or "").fullmatch(path)
        if found is None or not NAME_PATTERN.fullmatch(found["category"]):
            return None
        return found["category"]

    def describe(self) -> str:
        return self.category if self.category is not None else f"from {self.pattern}"


def _compiled(pattern: str) -> re.Pattern[str]:
    head, tail = pattern.split(PLACEHOLDER)
    glob = {text: ".*?".join(re.escape(part) for part in text.split("*")) for text in (head, tail)}
    return re.compile(f"{glob[head]}(?P<category>[^/]+){glob[tail]}", re.DOTALL)
