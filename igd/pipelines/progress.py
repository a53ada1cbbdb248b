"""How far trainings are: events from where they run to whoever watches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

WINDOW = 8
"""Reports that a rate is taken over."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a category.

    Attributes:
        state: what is going on: `queued`, `starting`, `reading`, `local em`, ..., `done`, `failed`.
        done, steps: images, iterations or epochs of it, where they are known.
        metrics: loss terms.
        images_per_s, left_s: of this state, where they are known.
        text: a sentence for people, where there is something to say.
        at_s: seconds since 1970.
    """

    category: str
    state: str
    done: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    images_per_s: float | None = None
    left_s: float | None = None
    text: str = ""
    at_s: float = field(default_factory=time.time)

    def document(self) -> dict[str, Any]:
        """Plain data, for JSON; what is not known is left out."""
        known = {name: value for name, value in vars(self).items() if value not in (None, "", {})}
        return known if self.steps else {name: value for name, value in known.items()
                                         if name not in ("done", "steps")}

    def line(self) -> str:
        """For a log."""
        parts = [self.state + (f" {self.done}/{self.steps}" if self.steps else "")]
        if self.text:
            parts.append(self.text)
        if self.metrics:
            parts.append(", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()))
        if self.images_per_s is not None:
            parts.append(f"{self.images_per_s:.1f} images/s")
        if self.left_s is not None and self.done < self.steps:
            parts.append(f"{duration(self.left_s)} left")
        return ": ".join(parts[:2]) + "".join(f"; {part}" for part in parts[2:])


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """Nobody watches."""


class Meter:
    """Reports the steps of one state, with their pace over the last few reports."""

    def __init__(self, category: str, report: Report, state: str, *,
                 images_per_step: float) -> None:
        self.category, self.report, self.state = category, report, state
        self.images_per_step = images_per_step
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def __call__(self, done: int, steps: int, metrics: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        self._seen.append((now, done))
        began, first = self._seen[0]
        pace = (done - first) / (now - began) if now > began and done > first else None
        self.report(Event(
            self.category, self.state, done, steps, dict(metrics or {}),
            None if pace is None else pace * self.images_per_step,
            None if pace is None else (steps - done) / pace))


def duration(seconds: float) -> str:
    """`48 s`, `3 min`, `2 h 05`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d}"
