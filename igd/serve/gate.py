"""How much an endpoint takes on at once. What is beyond is refused at once, and never queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from igd.errors import StorageError

RETRY_AFTER_S = 1


class OverloadedError(StorageError):
    """The endpoint has as much to do as it takes on."""


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
            raise OverloadedError(f"busy; try again in {RETRY_AFTER_S} s")

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
