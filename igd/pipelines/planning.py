"""Planning in a thread, while what is planned so far is scored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from igd.pipelines.parts import Part, plan_so_far
from igd.pipelines.run import Run

LAST_PART_S = 0.5
"""After a part, so long is waited for the end, which makes one pool of what is listed quickly."""


class Planning(AbstractContextManager["Planning"]):
    """The plan of a run as it grows.

    Args:
        parts: of the plan; taken in a thread of its own, which ends with this context.
    """

    def __init__(self, run: Run, parts: Iterator[Part]) -> None:
        self._run = run
        self._source = parts
        self._parts: list[Part] = []
        self._done = self._left = False
        self._error: BaseException | None = None
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="planning", daemon=True)

    def __enter__(self) -> Planning:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._left = True

    def beyond(self, shards: int) -> tuple[dict[str, Any], bool]:
        """Waits until more shards than so many are planned, or all there are.

        Returns:
            The plan so far, and whether it is the whole one.

        Raises:
            IgdError: what ended the planning.
        """
        with self._news:
            while not (self._done or self._error or self._shards() > shards):
                self._news.wait(1.0)  # and lets a signal through
            if not self._done:
                self._news.wait(LAST_PART_S)
            if self._error is not None:
                raise self._error
            return plan_so_far(self._run, self._parts), self._done

    def _shards(self) -> int:
        return sum(part["shards"] for part in self._parts)

    def _work(self) -> None:
        try:
            for part in self._source:
                if self._left:
                    return
                with self._news:
                    self._parts.append(part)
                    self._news.notify()
        except BaseException as error:  # the border: it is raised where the plan is waited for
            self._error = error
        with self._news:
            self._done = self._error is None
            self._news.notify()
