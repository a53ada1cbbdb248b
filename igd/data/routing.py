"""Which category an image belongs to: one for all, or read from its path or its row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from igd.config import NAME_PATTERN, check_name
from igd.errors import ConfigError

PLACEHOLDER = "{category}"


@dataclass(frozen=True)
class Routing:
    """A fixed category, a path pattern, or a column of Parquet sources (a field of WebDatasets).

    In a pattern, `{category}` stands for one path segment (or a part of one) and `*` for any
    run of characters, also `/`, as few as possible. It is matched against the path of a file
    below its source, or of a member in its archive. With a column, what has no such column, and
    no `.json` with such a field beside it in its tar, has no category.

    Raises:
        ConfigError: none or several are given, or the pattern lacks `{category}`.
    """

    category: str | None = None
    pattern: str | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if (self.category, self.pattern, self.column).count(None) != 2:
            raise ConfigError("give --category NAME or --category-from PATTERN or "
                              "--category-column NAME, one of the three")
        if self.category is not None:
            check_name(self.category, "category")
        if self.pattern is not None and self.pattern.count(PLACEHOLDER) != 1:
            raise ConfigError(f"--category-from {self.pattern!r}: expected {PLACEHOLDER} once, "
                              "for example '{category}/*'")

    def route(self, path: str) -> str | None:
        """The category of a path, or of a value of the column; None where it has none."""
        if self.category is not None:
            return self.category
        found: str | None = path
        if self.pattern is not None:
            head, tail = self.pattern.split(PLACEHOLDER)
            found = _between(head.split("*"), tail.split("*"), path)
        return found if found is not None and NAME_PATTERN.fullmatch(found) else None

    def describe(self) -> str:
        if self.category is not None:
            return self.category
        return f"from {self.pattern}" if self.pattern else f"from column {self.column}"


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern is the whole path; `*` stands for any characters, also `/`.

    Everything else stands for itself, as in `Routing`; by hand, for the same reason.
    """
    head, *parts = pattern.split("*")
    if not parts:
        return path == head
    if not path.startswith(head):
        return False
    at = len(head)
    for part in parts[:-1]:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(path) - len(parts[-1]) >= at and path.endswith(parts[-1])


def _between(head: list[str], tail: list[str], path: str) -> str | None:
    """The segment, or part of one, between what stands around the stars of a pattern.

    By hand, in time linear in the path: a regular expression with several stars backtracks for
    minutes over a hostile name of 4 KB.
    """
    stop = _tail_begins_by(tail, path)
    if stop < 0:
        return None
    barren = 0  # no category starts before this
    for start in _starts(head, path):
        if start < barren:
            continue
        slash = path.find("/", start)
        segment = len(path) if slash < 0 else slash
        if len(tail) == 1:
            end = len(path) - len(tail[0])
            end = end if start < end <= segment and path.endswith(tail[0]) else -1
        else:
            end = path.rfind(tail[0], start + 1, min(segment + len(tail[0]), stop))
        if end >= 0:
            return path[start:end]
        barren = segment
    return None


def _starts(head: list[str], path: str) -> Iterator[int]:
    """Where a category may start, the first first."""
    if not path.startswith(head[0]):
        return
    at = len(head[0])
    if len(head) == 1:
        yield at
        return
    for part in head[1:-1]:
        at = path.find(part, at) + len(part)
        if at < len(part):
            return
    while (at := path.find(head[-1], at)) >= 0:
        yield at + len(head[-1])
        at += 1


def _tail_begins_by(tail: list[str], path: str) -> int:
    """By where the tail up to its first star must have ended for the rest to fit; -1: never."""
    if not path.endswith(tail[-1]):
        return -1
    stop = len(path) - len(tail[-1])
    for part in reversed(tail[1:-1]):
        stop = path.rfind(part, 0, stop)
        if stop < 0:
            return -1
    return stop
