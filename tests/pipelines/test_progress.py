"""What watchers of a training are told and show."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from igd.pipelines import progress
from igd.pipelines.progress import Event, Meter, duration
from igd.pipelines.watch import JsonLines, Lines, LiveTable, to_all

STEP = Event("bottle", "local em", 3, 12, {"gsvdd": 0.51234, "sigma2": 2.0}, 41.28, 130.0,
             at_s=100.0)


def test_a_meter_tells_pace_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = [0.0], list[Event]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = Meter("bottle", events.append, "local em", images_per_step=200)
    for now[0], done in ((0.0, 0), (4.0, 1), (12.0, 3)):
        meter(done, 10, {"gsvdd": 0.5})
    assert [event.images_per_s for event in events] == [None, 50.0, 50.0]
    assert [event.left_s for event in events] == [None, 36.0, 28.0]


def test_a_line_says_it_all() -> None:
    assert STEP.line() == ("local em 3/12: gsvdd 0.5123, sigma2 2; 41.3 images/s; 2 min left")
    assert Event("x", "saving").line() == "saving"
    assert [duration(seconds) for seconds in (5, 89, 100, 7500)] == [
        "5 s", "89 s", "2 min", "2 h 05"]


def test_a_log_has_a_line_per_state_and_few_of_the_steps_within() -> None:
    stream = io.StringIO()
    watch = to_all([Lines(stream)])
    for done in range(1, 13):
        watch(Event("bottle", "local em", done, 12, at_s=100.0 + 3 * done))
    watch(Event("cap\x1b[31m", "saving"))
    watch(Event("bottle", "done"))
    assert stream.getvalue().splitlines() == [
        "  bottle: local em 1/12", "  bottle: local em 5/12", "  bottle: local em 9/12",
        "  bottle: local em 12/12", "  cap\\u001b[31m: saving"]


def test_machines_get_an_object_per_line() -> None:
    stream = io.StringIO()
    watch = JsonLines(stream)
    watch(STEP)
    watch.write("summary", {"categories": []})
    first, last = map(json.loads, stream.getvalue().splitlines())
    assert first == {"event": "progress", "category": "bottle", "state": "local em", "done": 3,
                     "steps": 12, "metrics": {"gsvdd": 0.51234, "sigma2": 2.0}, "at_s": 100.0,
                     "images_per_s": 41.28, "left_s": 130.0}
    assert last == {"event": "summary", "categories": []}


def test_the_live_table_shows_who_runs_and_counts_the_rest() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=20)
    table = LiveTable(console, 4)
    for event in (STEP, Event("cap", "queued"), Event("nut", "done"), Event("pin", "failed"),
                  Event("bottle", "finding", text="sigma^2 is at its bound")):
        table(event)
    console.print(table.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("bottle", "3/12", "gsvdd 0.512", "41.3", "2 min", "sigma^2 is at its bound",
                 "1 of 4 done, 1 failed, 1 running, 1 waiting"):
        assert part in text
    assert "cap" not in text


def test_a_table_of_very_many_running_categories_fits_the_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=12)
    table = LiveTable(console, 100)
    for number in range(100):
        table(Event(f"part{number}", "reading"))
    console.print(table.render())
    assert len(console.file.getvalue().splitlines()) <= 12  # type: ignore[attr-defined]
