"""How much an endpoint takes on at once. What is beyond is refused at once, and never queued."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from igd.errors import ModelError, StorageError

RETRY_AFTER_S = 1
HALF_LIFE_S = 0.5
LEAST = 5
"""Refusals, those of long ago counted less, that are no accident."""


class UnknownCategoryError(ModelError):
    """There is no model for a category."""


class NotReadyError(StorageError):
    """A category's model is not loaded, or cannot be."""


class OverloadedError(StorageError):
    """The endpoint has as much to do as it takes on."""

    def __init__(self, message: str = f"busy; try again in {RETRY_AFTER_S} s") -> None:
        super().__init__(message)


class Admission:
    """How many images to take on: under an overload that lasts, none that would have to wait.

    A few that wait even out what comes unevenly. Where more than half are refused, somebody always
    comes when one is done: then waiting makes each answer later, and not one more of them.

    Attributes:
        at_once: images that are scored at the same time.
        places: those, and some more that wait.
    """

    def __init__(self, at_once: int = sys.maxsize, places: int = sys.maxsize) -> None:
        self.at_once, self.places = at_once, places
        self._asked = self._refused = self._at = 0.0

    def refused(self) -> None:
        """Counts one that was admitted, and refused further on."""
        self._refused += 1

    def admits(self, taken: int, now: float) -> bool:
        """Whether to take on one more beside so many; each call is counted as one that asks.

        Args:
            now: seconds on any clock.
        """
        fades = 0.5 ** ((now - self._at) / HALF_LIFE_S)
        self._asked, self._refused, self._at = self._asked * fades, self._refused * fades, now
        overloaded = self._refused > max(LEAST, self._asked / 2)
        admitted = taken < (self.at_once if overloaded else self.places)
        self._asked += 1
        self._refused += not admitted
        return admitted


class Budget:
    """Bytes of bodies that are held at a time.

    Attributes:
        held: bytes in use.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, count: int) -> None:
        """Holds so many more.

        Raises:
            OverloadedError: that would be too many.
        """
        if self.held + count > self.most:
            raise OverloadedError
        self.held += count

    def give(self, count: int) -> None:
        self.held -= count


class Gate:
    """Places for so many at a time. For one event loop; nothing waits here.

    Attributes:
        taken: places in use.
        refused: how often there was none.
    """

    def __init__(self, places: int) -> None:
        self.places, self.taken, self.refused = places, 0, 0

    def check(self) -> None:
        """Refuses where no place is free, before anything is spent on a request.

        Raises:
            OverloadedError: none is.
        """
        if self.taken >= self.places:
            self.refused += 1
            raise OverloadedError

    @contextmanager
    def enter(self, wanted: int = 1) -> Iterator[int]:
        """Takes up to so many places, and says how many.

        Raises:
            OverloadedError: none is free.
        """
        self.check()
        got = min(wanted, self.places - self.taken)
        self.taken += got
        try:
            yield got
        finally:
            self.taken -= got
