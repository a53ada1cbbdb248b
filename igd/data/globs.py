"""Sources with wildcards: `dumps/2026-*/cam?.tar`, `s3://bucket/2026-11-2?/**`.

`*`, `?` and `[...]` match within a path segment, names that begin with a dot too; `**` is any
number of segments. A folder that matches stands for all below it. What exists literally at such a
path is no pattern.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from igd import storage

MAGIC = frozenset("*?[")
ANY_DEPTH = "**"


@dataclass(frozen=True)
class Glob:
    """A pattern of objects.

    Attributes:
        fixed: the folder or prefix before the first wildcard; keys are relative to it.
        pattern: the segments behind it.
    """

    fixed: str
    pattern: tuple[str, ...]

    def entries(self) -> Iterator[storage.Entry]:
        """The objects that match, in a stable order; only folders that may hold one are listed."""
        return self._entries((), self.pattern)

    def holds(self, uri: str) -> bool:
        """Whether it matches an object, or all below a folder."""
        return len(self.pattern) in self._states(uri)

    def may_hold(self, uri: str) -> bool:
        """Whether it matches this place, or something that may be below it."""
        return bool(self._states(uri))

    def _states(self, uri: str) -> set[int]:
        if not storage.is_inside(uri, self.fixed):
            return set()
        depth = len(_segments(self.fixed)[1])
        return _states(self.pattern, _segments(uri)[1][depth:])

    def _entries(self, at: tuple[str, ...], pattern: Sequence[str]) -> Iterator[storage.Entry]:
        place = storage.join(self.fixed, *at) if at else self.fixed
        first, rest = pattern[0], pattern[1:]
        if MAGIC.isdisjoint(first):
            yield from self._entries((*at, first), rest) if rest else _all_of(place, (*at, first))
        elif rest and first != ANY_DEPTH:
            for name in storage.list_dirs(place):
                if fnmatchcase(name, first):
                    yield from self._entries((*at, name), rest)
        else:
            for entry in storage.list_objects(place):
                if len(pattern) in _states(pattern, entry.key.split("/")):
                    yield _below(at, entry)


def glob_of(uri: str) -> Glob | None:
    """The pattern that a source is; None where it has no wildcard, or is there literally."""
    root, segments = _segments(uri)
    magic = [i for i, segment in enumerate(segments) if not MAGIC.isdisjoint(segment)]
    if not magic or storage.stat(uri) is not None or storage.exists_dir(uri):
        return None
    behind = ["*"] if segments[-1] == ANY_DEPTH else []  # `a/**` is what is below, not a file `a`
    return Glob(storage.canonical(storage.join(root, *segments[:magic[0]])),
                (*segments[magic[0]:], *behind))


def overlap(one: str, other: str) -> bool:
    """Whether it is certain, before anything is listed, that one source lies inside another.

    Of two patterns that is never known.
    """
    inner, outer = glob_of(one), glob_of(other)
    if outer is None:
        place = one if inner is None else inner.fixed
        return storage.is_inside(place, other) or (
            inner is not None and storage.canonical(place) == storage.canonical(other))
    return inner is None and outer.holds(one)


def _segments(uri: str) -> tuple[str, list[str]]:
    where = storage.local_path(storage.canonical(uri)) if storage.is_local(uri) else (
        storage.canonical(uri).removeprefix("s3://"))
    root, *segments = where.split("/")
    return ("/" if storage.is_local(uri) else f"s3://{root}"), [part for part in segments if part]


def _all_of(folder: str, at: tuple[str, ...]) -> Iterator[storage.Entry]:
    """The object named by the last segment, or all below that folder."""
    place = storage.join(folder, at[-1])
    entry = storage.stat(place)
    if entry is not None:
        yield dataclasses.replace(entry, key="/".join(at))
    else:
        yield from (_below(at, entry) for entry in storage.list_objects(place))


def _below(at: tuple[str, ...], entry: storage.Entry) -> storage.Entry:
    return dataclasses.replace(entry, key="/".join((*at, entry.key)))


def _states(pattern: Sequence[str], parts: Sequence[str]) -> set[int]:
    """How many segments of a pattern may be used up by some parts of a path.

    All of them: it matches the path, or a folder that the path is below. In time linear in the
    path, however many `**` there are.
    """
    states = _passing_any_depth({0}, pattern)
    for part in parts:
        if len(pattern) in states:
            break
        states = _passing_any_depth(
            {i if pattern[i] == ANY_DEPTH else i + 1 for i in states
             if pattern[i] == ANY_DEPTH or fnmatchcase(part, pattern[i])}, pattern)
    return states


def _passing_any_depth(states: set[int], pattern: Sequence[str]) -> set[int]:
    passed = set(states)
    for i in sorted(states):
        while i < len(pattern) and pattern[i] == ANY_DEPTH:
            i += 1
            passed.add(i)
    return passed
