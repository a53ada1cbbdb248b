"""A date's run, after those of the dates before it that were missed: one each, oldest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import date as Date
from datetime import timedelta
from typing import Any

from igd.errors import IgdError
from igd.pipelines.cluster import connected
from igd.pipelines.run import Request, latest

Ask = Callable[[Date], Request]
"""One request for any date: all but the date, and what in the sources stands for it, is equal."""

BY_SEVERITY = (0, 3, 2, 4, 5, 1)
"""Exit codes, the worst last: complete; published, with something to look at; inputs that cannot
be used; held; storage or cluster out of reach; anything else."""


def missed(ask: Ask, date: Date, at_most: int) -> list[Date] | None:
    """The dates before a date that its request has not published, up to the last that it has.

    Returns:
        The oldest first; None where that last one is not found with at most so many missed after
        it. A date published with no image counts as published; one whose newest generation was
        begun and not published does not.
    """
    found: list[Date] = []
    for days in range(1, at_most + 2):
        before = date - timedelta(days=days)
        run = latest(ask(before))
        if run is not None and run.read_json("published.json") is not None:
            return found[::-1]
        found.append(before)
    return None


def score_each(dates: Sequence[Date], score: Callable[[Date], dict[str, Any]], *,
               ray_address: str | None = None) -> Iterator[dict[str, Any]]:
    """Scores dates one after the other; one that fails does not keep the next from it.

    Ray is started once for several. A date that lost storage or the cluster takes it along, and
    with it what may still be at work there.

    Yields:
        For each date its summary, or what `failed` makes of its error.
    """
    with ExitStack() as ray:
        for date in dates:
            try:
                if len(dates) > 1:
                    ray.enter_context(connected(ray_address))
                summary = score(date)
            except IgdError as error:
                summary = failed(date, error)
                if error.exit_code == 5:
                    ray.close()
            yield summary


def failed(date: Date, error: IgdError) -> dict[str, Any]:
    """What stands for the summary of a date that has none."""
    return {"date": date.isoformat(), "state": "held" if error.exit_code == 4 else "failed",
            "error": str(error), "exit_code": error.exit_code}


def worst(exit_codes: Iterable[int]) -> int:
    """The exit code of several dates."""
    return max(exit_codes, key=BY_SEVERITY.index)
