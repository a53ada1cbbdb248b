"""What is said of a run's pace follows from what its shards took."""

from __future__ import annotations

import pytest

from igd.pipelines import meter as metering
from igd.pipelines.meter import Clock, Lap, Meter


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time; a test turns it."""
    at = [0.0]
    monkeypatch.setattr(metering.time, "monotonic", lambda: at[0])
    return at


def lap(shard: int, **changes: float) -> Lap:
    return Lap(**{"shard": shard, "rows": 10, "bytes": 1000, "rejected": {"empty": 1},
                  "read_s": 1.0, "waited_s": 3.0, "score_s": 2.0, "write_s": 0.1, **changes})


def run(now: list[float], scorers: int, shards: int, every_s: float, **changes: float) -> Meter:
    meter = Meter()
    meter.begin(scorers)
    for shard in range(shards):
        now[0] += every_s
        meter.add(lap(shard, **changes))
    return meter


def test_rates_are_those_of_the_last_half_minute(now) -> None:
    meter = run(now, scorers=2, shards=100, every_s=1.0)
    said = meter.progress(done=1000, total=1500, rejected=meter.rejected, planning=False)
    assert (said.images_per_s, said.bytes_per_s) == (10.0, 1000.0)
    assert said.busy == 1.0 and said.waiting == 3.0  # one arrives each second, and waits for three
    assert said.left_s == 50.0 and said.rejected == {"empty": 100}
    assert meter.progress(0, 1, {}, planning=True).left_s is None
    now[0] += 600
    meter.add(lap(100))
    assert meter.progress(0, 1, {}, planning=False).images_per_s == pytest.approx(10 / 600, rel=.1)


@pytest.mark.parametrize(("changes", "held_up_by"), [
    ({"score_s": 2.0}, "score"), ({"score_s": 0.5, "read_s": 9.0}, "read"),
    ({"score_s": 0.5, "write_s": 9.0}, "write")])
def test_what_holds_up_a_run_is_named(now, changes, held_up_by) -> None:
    found = run(now, scorers=2, shards=20, every_s=1.0, **changes).summary()
    assert found["held_up_by"] == held_up_by
    assert found["busy"] == pytest.approx(changes["score_s"] / 2)


def test_the_steady_rate_leaves_out_what_every_pool_takes_to_start(now) -> None:
    meter = run(now, scorers=2, shards=6, every_s=1.0)
    now[0] += 500.0  # another pool is started
    meter.begin(2)
    for shard in range(4):
        now[0] += 1.0
        meter.add(lap(shard))
    assert meter.summary()["steady_images_per_s"] == 10.0
    assert Meter().summary() == {}


def test_a_clock_adds_up_laps_of_one_stage(now) -> None:
    clock = Clock(began=now[0])
    for stage, seconds in (("plan", 1.0), ("score", 5.0), ("plan", 2.0)):
        now[0] += seconds
        clock.lap(stage)
    assert clock.stages == {"plan": 3.0, "score": 5.0}
