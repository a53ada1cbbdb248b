"""Which of a dump's images are looked at: patterns over their paths, and a limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from igd.data.routing import matches
from igd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Patterns as in `igd.data.routing.matches`, against the path an image is routed by.

    Attributes:
        include: at least one of them must match, where there are any.
        exclude: none of them may match.
        limit: so many images are taken, the first ones in source order.

    Raises:
        ConfigError: an empty pattern, or a limit below 1.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if "" in self.include or "" in self.exclude:
            raise ConfigError("--include and --exclude: expected a pattern, such as '*/good/*'")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: expected at least 1")

    def wants(self, path: str) -> bool:
        """Whether the patterns let a path through."""
        return (not self.include or any(matches(pattern, path) for pattern in self.include)) and (
            not any(matches(pattern, path) for pattern in self.exclude))

    def describe(self) -> dict[str, Any]:
        return {"include": list(self.include), "exclude": list(self.exclude), "limit": self.limit}


EVERYTHING = Selection()


def selection(include: Iterable[str] = (), exclude: Iterable[str] = (),
              limit: int | None = None) -> Selection:
    """A `Selection` that is equal for equal patterns, in whatever order they are given."""
    return Selection(include=tuple(sorted(set(include))), exclude=tuple(sorted(set(exclude))),
                     limit=limit)


class Picker:
    """Applies a selection to a listing, and keeps what became of it.

    Attributes:
        taken, left_out: images; the limit leaves out none, it ends the listing.
        first_left_out: a path that no pattern let through.
    """

    def __init__(self, selection: Selection = EVERYTHING) -> None:
        self.selection = selection
        self.taken = self.left_out = 0
        self.first_left_out: str | None = None
        self._idle = {*selection.include, *selection.exclude}

    def take(self, path: str) -> bool:
        if self._idle:
            self._idle -= {pattern for pattern in self._idle if matches(pattern, path)}
        if self.selection.wants(path):
            self.taken += 1
            return True
        self.left_out += 1
        self.first_left_out = self.first_left_out or path
        return False

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.selection.limit is not None and self.taken >= self.selection.limit

    def idle_excludes(self) -> list[str]:
        """Patterns of --exclude that matched nothing: what a clean dump looks like.

        Raises:
            ConfigError: a pattern of --include matched nothing, so that all it was meant for
                would be left out. A limit may end the listing before its turn, and where nothing
                is listed there is nothing to match.
        """
        if self.full or not self.taken + self.left_out:
            return []
        for pattern in self.selection.include:
            if pattern in self._idle:
                raise ConfigError(
                    f"--include {pattern!r} matches none of {self.taken + self.left_out} paths, "
                    f"such as {self.first_left_out!r}; expected a pattern of the whole path, "
                    "where * stands for any characters, also /")
        return [pattern for pattern in self.selection.exclude if pattern in self._idle]
