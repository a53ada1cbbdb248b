"""An end to waiting for what does not come any more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

from igd.errors import StorageError
from igd.pipelines.progress import duration

T = TypeVar("T")
_END = object()


def unless_stalled(items: Iterator[T], limit_s: float, what: str) -> Iterator[T]:
    """Items as they come, taken in a thread, so that a signal or a limit ends the wait for one.

    Args:
        limit_s: of the wait for each item.
        what: comes, for people.

    Raises:
        StorageError: nothing came for so long. Whoever makes the items must be ended by the caller.
    """
    arrived: queue.SimpleQueue[object] = queue.SimpleQueue()

    def take() -> None:
        try:
            for item in items:
                arrived.put(item)
        except BaseException as error:  # the border: it is raised where items are waited for
            arrived.put(_Failed(error))
        arrived.put(_END)

    threading.Thread(target=take, name="arrivals", daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=limit_s)
        except queue.Empty:
            raise StorageError(
                f"no {what} for {duration(limit_s)}: a worker hangs, or the cluster has no room "
                "for this run; look at it (ray status), then run the command again, which goes on "
                "where this one was") from None
        if item is _END:
            return
        if isinstance(item, _Failed):
            raise item.error
        yield item  # type: ignore[misc]


class _Failed:
    """What ended the items."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
