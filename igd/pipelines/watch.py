"""Watching trainings: a live table in a terminal, plain lines in a log, JSON lines for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from igd.pipelines.progress import Event, Report, duration
from igd.report.names import visible

LINE_EVERY_S = 10.0
"""Steps of one category in a log, at most."""
FINAL = ("done", "failed")
SHOWN_TERMS = ("distillation", "reconstruction", "gsvdd", "dsvdd", "critic", "adversarial",
               "sigma2")


def to_all(reports: Iterable[Report]) -> Report:
    """Tells each of several."""
    listeners = list(reports)

    def report(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return report


class Lines:
    """One line per event; of the steps within a state, one per category and some seconds."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._last: dict[str, tuple[str, float]] = {}

    def __call__(self, event: Event) -> None:
        state, at_s = self._last.get(event.category, ("", 0.0))
        within = event.steps > 0 and event.state == state and event.done < event.steps
        if event.state in (*FINAL, "looking") or (within and event.at_s - at_s < LINE_EVERY_S):
            return  # the outcome has a line of its own
        self._last[event.category] = (event.state, event.at_s)
        print(f"  {visible(event.category)}: {visible(event.line())}", file=self.stream, flush=True)


class JsonLines:
    """An object per line, flushed at once: `{"event": "progress", "category": ...}`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        self.write("progress", event.document())

    def write(self, kind: str, document: dict[str, Any]) -> None:
        print(json.dumps({"event": kind, **document}, sort_keys=True, default=str),
              file=self.stream, flush=True)


class LiveTable:
    """What every category does, redrawn in place; finished ones are counted."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self._began = time.monotonic()
        self._latest: dict[str, Event] = {}
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4)

    def shown(self) -> AbstractContextManager[Any]:
        """The table stands at the bottom of the terminal for as long as this is open."""
        return self._live if self.console.is_terminal else nullcontext()

    def __call__(self, event: Event) -> None:
        if event.state in ("beyond memory", "finding", "new training", "taking up", "retrying"):
            self.say(f"  {visible(event.category)}: {visible(event.line())}")
            return
        self._latest[event.category] = event

    def say(self, line: str) -> None:
        """Prints a line above the table."""
        self.console.print(Text(line), soft_wrap=True)

    def render(self) -> Group:
        running = [event for event in self._latest.values()
                   if event.state not in (*FINAL, "queued")]
        states = [event.state for event in self._latest.values()]
        waiting, done, failed = (states.count(state) for state in ("queued", *FINAL))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("category", overflow="ellipsis", no_wrap=True, max_width=28)
        for heading in ("state", "step"):
            table.add_column(heading, no_wrap=True)
        table.add_column("loss terms", overflow="ellipsis", no_wrap=True, ratio=1)  # what is left
        for heading in ("images/s", "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        for event in running[:max(1, self.console.height - 6)]:
            terms = "  ".join(f"{name} {event.metrics[name]:.3g}" for name in SHOWN_TERMS
                              if name in event.metrics)
            table.add_row(
                Text(visible(event.category)), Text(visible(event.state)),
                Text(f"{event.done}/{event.steps}" if event.steps else ""),
                Text(terms or visible(event.text)),
                "" if event.images_per_s is None else f"{event.images_per_s:.1f}",
                "" if event.left_s is None else duration(event.left_s))
        counts = (f"{done} of {self.total} done, {failed} failed, {len(running)} running, "
                  f"{waiting} waiting; {duration(time.monotonic() - self._began)}")
        return Group(table, Text(counts, style="bold"))
