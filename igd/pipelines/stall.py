"""An end to waiting for what does not come any more."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from igd.errors import StorageError
from igd.pipelines.progress import duration

START_S = 300.0
ASK_EVERY_S, GONE = 5.0, 3
"""A cluster is gone when it was so many times not there, asked every few seconds."""

T = TypeVar("T")
_END = object()


def unless_stalled(items: Iterator[T], limit_s: float, what: str, *,
                   is_there: Callable[[], bool] = lambda: True) -> Iterator[T]:
    """Items as they come, taken in a thread, so that a signal or a limit ends the wait for one.

    Args:
        limit_s: of the wait for each item; for the first there are `START_S` more.
        what: comes, for people.
        is_there: whether items can come at all; asked while none does.

    Raises:
        StorageError: nothing came for so long, or can come. Whoever makes the items must be ended
            by the caller.
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
    left_s = limit_s + START_S
    while True:
        item = _next(arrived, left_s, what, is_there)
        if item is _END:
            return
        if isinstance(item, _Failed):
            raise item.error
        yield item  # type: ignore[misc]
        left_s = limit_s


def _next(arrived: queue.SimpleQueue[object], limit_s: float, what: str,
          is_there: Callable[[], bool]) -> object:
    deadline = time.monotonic() + limit_s
    missed = 0
    while (left_s := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            return arrived.get(timeout=min(left_s, ASK_EVERY_S))
        missed = 0 if is_there() else missed + 1
        if missed == GONE:
            raise StorageError("the head of the Ray cluster is gone; start the cluster again, then "
                               "run the command again, which goes on where this one was")
    raise StorageError(
        f"no {what} for {duration(limit_s)}: a worker hangs, or the cluster has no room for this "
        "run; look at it (ray status), then run the command again, which goes on where this one "
        "was")


class _Failed:
    """What ended the items."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
