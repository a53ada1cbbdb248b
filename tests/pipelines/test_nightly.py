"""Which dates a nightly run takes up, in which order, and what becomes of those that fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd import tables
from igd.errors import DataError, IgdError, RunHeldError, StorageError
from igd.pipelines import nightly
from igd.pipelines.dated import dated
from igd.pipelines.nightly import BY_SEVERITY, missed, score_each, worst
from igd.pipelines.run import Request, Run
from igd.pipelines.score import score

TODAY = date(2026, 3, 2)


def ago(days: int) -> date:
    return TODAY - timedelta(days=days)


@pytest.fixture
def nights(asked, tmp_path) -> Callable[[date], Request]:
    return lambda day: asked(*dated([f"{tmp_path}/dumps/{{date}}"], day), date=day)


@pytest.fixture
def connections(monkeypatch) -> list[str]:
    """What became of Ray, which is not started."""
    told: list[str] = []

    @contextmanager
    def connected(address: str | None) -> Iterator[None]:
        reused = told.count("start") > told.count("stop")
        told.append("again" if reused else "start")
        try:
            yield
        finally:
            told.extend(() if reused else ("stop",))

    monkeypatch.setattr(nightly, "connected", connected)
    return told


def publish(wanted: Request, *, finished: bool = True, generation: int = 1) -> None:
    run = Run(request=wanted, generation=generation)
    run.write_json("plan.json", {})
    if finished:
        run.write_json("published.json", {})


@given(published=st.sets(st.integers(1, 6)), at_most=st.integers(0, 6))
def test_those_after_the_last_published_are_missed(published, at_most) -> None:
    runs = {ago(days): days in published for days in range(1, 8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nightly, "latest", lambda day: Published(runs[day]))
        found = missed(lambda day: day, TODAY, at_most)  # type: ignore[arg-type, return-value]
    last = min((days for days in published if days <= at_most + 1), default=None)
    assert found == (None if last is None else [ago(days) for days in range(last - 1, 0, -1)])


class Published:
    def __init__(self, yes: bool) -> None:
        self._yes = yes

    def read_json(self, name: str) -> dict[str, Any] | None:
        assert name == "published.json"
        return {} if self._yes else None


def test_another_request_or_one_not_finished_is_not_what_was_published(nights, asked) -> None:
    publish(nights(ago(4)))
    publish(nights(ago(3)), finished=False)
    publish(asked("elsewhere", date=ago(2)))
    assert missed(nights, TODAY, 7) == [ago(3), ago(2), ago(1)]
    publish(nights(ago(2)))
    assert missed(nights, TODAY, 7) == [ago(1)]
    publish(nights(ago(2)), generation=2, finished=False)  # a backfill that was killed
    assert missed(nights, TODAY, 7) == [ago(3), ago(2), ago(1)]


def test_missed_nights_are_caught_up_and_the_next_night_finds_nothing_to_do(
        nights, folder, no_cluster, connections, tmp_path) -> None:
    """One of them has no dump, another an empty one."""
    def run(*days: date) -> list[dict[str, Any]]:
        return list(score_each(days, lambda day: score(nights(day))))

    assert missed(nights, ago(4), 7) is None
    folder(f"dumps/{ago(4)}", weave=1)
    run(ago(4))
    assert connections == []  # a single date connects when it has something to score
    folder(f"dumps/{ago(3)}", weave=2)
    (tmp_path / "dumps" / str(ago(1))).mkdir()
    folder(f"dumps/{TODAY}", weave=4)
    days = [*(missed(nights, TODAY, 7) or ()), TODAY]
    found = run(*days)
    assert [(night["date"], night["state"], night.get("planned")) for night in found] == [
        (str(ago(3)), "published", 2), (str(ago(2)), "failed", None),
        (str(ago(1)), "published", 0), (str(TODAY), "published", 4)]
    assert f"dumps/{ago(2)}' not found" in found[1]["error"] and found[1]["exit_code"] == 2
    assert connections == ["start", "again", "again", "again", "stop"]
    rows = {str(day): len(tables.read(nights(day).out, "scores", day)) for day in (ago(4), *days)}
    assert rows == {str(ago(4)): 1, str(ago(3)): 2, str(ago(2)): 0, str(ago(1)): 0, str(TODAY): 4}
    assert missed(nights, TODAY + timedelta(days=1), 7) == []
    assert missed(nights, TODAY, 7) == []
    shutil.rmtree(tmp_path / "dumps" / str(ago(1)))
    assert missed(nights, TODAY, 7) == []


def test_a_date_that_fails_is_told_and_the_next_is_scored(connections) -> None:
    def run(day: date) -> dict[str, Any]:
        fails: dict[date, IgdError] = {ago(3): RunHeldError("held back"), ago(2): DataError("gone"),
                                       ago(1): StorageError("cut off")}
        if day in fails:
            raise fails[day]
        return {"date": str(day), "exit_code": 3}

    found = list(score_each([ago(3), ago(2), ago(1), TODAY], run))
    assert found[:3] == [
        {"date": str(ago(3)), "state": "held", "error": "held back", "exit_code": 4},
        {"date": str(ago(2)), "state": "failed", "error": "gone", "exit_code": 2},
        {"date": str(ago(1)), "state": "failed", "error": "cut off", "exit_code": 5}]
    assert worst(night["exit_code"] for night in found) == 5
    assert connections == ["start", "again", "again", "stop", "start", "stop"]


def test_a_defect_or_an_interrupt_ends_all_and_ray_is_stopped(connections) -> None:
    def run(day: date) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(score_each([ago(1), TODAY], run))
    assert connections == ["start", "stop"]


@given(st.lists(st.sampled_from(BY_SEVERITY), min_size=1))
def test_one_code_stands_for_several_and_is_0_only_where_all_are(codes) -> None:
    assert worst(codes) in codes
    assert (worst(codes) == 0) == (set(codes) == {0})
    assert worst([*codes, 1]) == 1
