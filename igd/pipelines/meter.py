"""How a batch run goes: rates, the pool's busy share, what waits, and where the time went."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WINDOW_S = 30.0
"""Rates are those of the last so many seconds."""
BUSY = 0.85
"""A pool that works for this share of its time is what holds the others up."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is; handed to the caller as it goes.

    Attributes:
        stage: `plan`, `start` (of the cluster and its scorers), `score`, `audit` or `publish`.
        done, total: images; total is 0 while unknown, and grows while `planning`.
        bytes: of the images done in this attempt.
        rejected: by reason.
        images_per_s, bytes_per_s: over the last half minute; None while unknown.
        busy: share of the scorers' time in which they score.
        waiting: decoded shards that wait for a scorer, on average.
        left_s: until all planned images are scored.
    """

    stage: str
    done: int = 0
    total: int = 0
    planning: bool = False
    bytes: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    images_per_s: float | None = None
    bytes_per_s: float | None = None
    busy: float | None = None
    waiting: float | None = None
    left_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Lap:
    """What one shard took, in seconds; `waited_s` is from its decoding to its scorer."""

    shard: int
    rows: int
    bytes: int
    rejected: Mapping[str, int]
    read_s: float
    waited_s: float
    score_s: float
    write_s: float


@dataclass(kw_only=True)
class Clock:
    """Seconds by stage since the run began."""

    began: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)

    def lap(self, stage: str) -> None:
        """The time since the last lap was that of a stage."""
        so_far = sum(self.stages.values())
        spent = time.monotonic() - self.began - so_far
        self.stages[stage] = round(self.stages.get(stage, 0.0) + spent, 3)


class Meter:
    """Adds up finished shards.

    The steady rate is that of the time in which every scorer was at work: of each pool, after as
    many shards as it has scorers.
    """

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self.done = self.bytes = 0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._scorers = self._to_warm_up = 0
        self._since = 0.0
        self._steady: defaultdict[str, float] = defaultdict(float)
        self._recent: deque[tuple[float, Lap]] = deque()

    def begin(self, scorers: int) -> None:
        """A pool of scorers is started."""
        self._scorers = self._to_warm_up = scorers
        self._recent.clear()

    def add(self, lap: Lap) -> None:
        now = time.monotonic()
        self.done += lap.rows
        self.bytes += lap.bytes
        self.rejected.update(lap.rejected)
        for stage in ("read", "waited", "score", "write"):
            self._sums[stage] += getattr(lap, f"{stage}_s")
        if self._to_warm_up:
            self._to_warm_up -= 1
        else:
            self._steady["rows"] += lap.rows
            self._steady["bytes"] += lap.bytes
            self._steady["score_s"] += lap.score_s
            self._steady["pool_s"] += (now - self._since) * self._scorers
            self._steady["wall_s"] += now - self._since
        self._since = now
        self._recent.append((now, lap))
        while now - self._recent[0][0] > WINDOW_S and len(self._recent) > 2:
            self._recent.popleft()

    def progress(self, done: int, total: int, rejected: Mapping[str, int],
                 planning: bool) -> Progress:
        """Where scoring is, with the rates of the last half minute."""
        known: dict[str, Any] = {}
        span = self._recent[-1][0] - self._recent[0][0] if self._recent else 0.0
        if span > 0:
            laps = [lap for _, lap in self._recent][1:]
            rate = sum(lap.rows for lap in laps) / span
            known = {
                "images_per_s": rate, "bytes_per_s": sum(lap.bytes for lap in laps) / span,
                "busy": min(1.0, sum(lap.score_s for lap in laps) / span / self._scorers),
                # Little's law: what waits is what arrives times how long it waits
                "waiting": sum(lap.waited_s for lap in laps) / span,
                "left_s": None if planning or not rate else (total - done) / rate}
        return Progress(stage="score", done=done, total=total, planning=planning,
                        bytes=self.bytes, rejected=rejected, **known)

    def summary(self) -> dict[str, Any]:
        """The steady rates, and which step of scoring held up the others; empty without any."""
        if not self.done:
            return {}
        sums = {stage: round(self._sums[stage], 3) for stage in ("read", "score", "write")}
        found: dict[str, Any] = {"step_seconds": sums, "image_bytes": self.bytes}
        if self._steady["wall_s"] > 0:
            busy = min(1.0, self._steady["score_s"] / self._steady["pool_s"])
            found |= {
                "busy": round(busy, 3),
                "steady_images_per_s": round(self._steady["rows"] / self._steady["wall_s"], 2),
                "steady_bytes_per_s": round(self._steady["bytes"] / self._steady["wall_s"]),
                "held_up_by": "score" if busy >= BUSY else max(
                    ("read", "write"), key=sums.__getitem__)}
        return found
