"""Which run a command belongs to."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from igd import storage
from igd.data.routing import Routing
from igd.data.selection import selection
from igd.errors import ConfigError
from igd.pipelines.run import Request, Run, latest, next_run, request


def ask(tmp_path, sources=("a", "b"), **changes) -> Request:
    settings = {"models": str(tmp_path / "models"), "out": str(tmp_path / "out"),
                "date": date(2026, 1, 2), "routing": Routing(category="weave"), **changes}
    return request([str(tmp_path / name) for name in sources], **settings)


def test_the_same_request_is_the_same_run_however_it_is_spelt(tmp_path) -> None:
    plain = ask(tmp_path)
    spelt = ask(tmp_path, sources=("./a/", "x/../b", "a"))
    assert plain.key == spelt.key


@pytest.mark.parametrize("change", [
    {"date": date(2026, 1, 3)}, {"fpr": 0.02}, {"review_fpr": 0.1}, {"heatmaps": "all"},
    {"routing": Routing(category="washer")}, {"routing": Routing(pattern="{category}/*")},
    {"models": "elsewhere"}, {"null_scorer": True}, {"gpu": True}, {"new_only": True},
    {"selection": selection(limit=7)}, {"selection": selection(["a"])},
    {"selection": selection(exclude=["a"])},
])
def test_what_affects_results_makes_another_run(tmp_path, change) -> None:
    assert ask(tmp_path, **change).key != ask(tmp_path).key


def test_a_run_without_a_selection_keeps_the_id_it_had_before_there_were_any() -> None:
    made = Request(sources=("file:///a", "s3://b/c"), models="file:///m", out="file:///o",
                   date=date(2026, 1, 2), routing=Routing(pattern="{category}/*"))
    assert made.key == "7d9bea2fd79c"


def test_a_source_inside_another_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="count twice"):
        ask(tmp_path, sources=("a", "a/b"))
    ask(tmp_path, sources=("a", "ab"))  # a name that only begins alike is another place


@pytest.mark.parametrize("sources", [("a", "a/*.png"), ("a/*/good", "a"), ("a/**", "a/b/c.png")])
def test_a_source_inside_a_pattern_or_a_pattern_inside_a_source_is_refused(tmp_path,
                                                                          sources) -> None:
    for given in (sources, sources[::-1]):
        with pytest.raises(ConfigError, match="count twice"):
            ask(tmp_path, sources=given)
    assert ask(tmp_path, sources=("a/*.png", "b/*.png")).sources[0].endswith("/a/%2A.png")


@pytest.mark.parametrize("option", ["models", "out"])
def test_models_and_tables_stay_where_no_pattern_may_match(tmp_path, option) -> None:
    with pytest.raises(ConfigError, match="count as images"):
        ask(tmp_path, sources=("**/*.parquet",), **{option: str(tmp_path / "x" / "y")})
    ask(tmp_path, sources=("2026-*/**",), **{option: str(tmp_path / "x" / "y")})


@pytest.mark.parametrize("change", [{"fpr": 0.0}, {"fpr": 1.0}, {"review_fpr": -1},
                                    {"heatmaps": "some"}])
def test_settings_out_of_range_are_refused(tmp_path, change) -> None:
    with pytest.raises(ConfigError, match="expected"):
        ask(tmp_path, **change)


def test_the_newest_generation_with_a_frozen_plan_is_found(tmp_path) -> None:
    wanted = ask(tmp_path)
    assert latest(wanted) is None
    for generation in (1, 2, 10):
        Run(request=wanted, generation=generation).create_json("plan.json", {})
    Run(request=wanted, generation=11).write_json("plan/half.json", {})
    found = latest(wanted)
    assert found is not None and found.generation == 10
    assert latest(replace(wanted, fpr=0.02)) is None


def test_the_number_of_a_run_that_gc_removed_stays_taken(tmp_path) -> None:
    wanted = ask(tmp_path)
    assert next_run(wanted, None).generation == 1
    first, second = (Run(request=wanted, generation=number) for number in (1, 2))
    for run in (first, second):
        run.create_json("plan.json", {})
        assert run.hold()
    storage.write_bytes(second.at("collected", "mark"), b"")  # and gc was killed right then
    assert not second.hold()
    assert latest(wanted) == first
    assert next_run(wanted, first).generation == 3


def test_a_plan_is_frozen_by_the_first_who_writes_it(tmp_path) -> None:
    run = Run(request=ask(tmp_path), generation=1)
    assert run.create_json("plan.json", {"by": "one"})
    assert not run.create_json("plan.json", {"by": "two"})
    assert run.read_json("plan.json") == {"by": "one"}


@pytest.mark.parametrize("source", ["out", "out/heatmaps", "out/*/**"])
def test_what_runs_write_is_no_source(tmp_path, source) -> None:
    with pytest.raises(ConfigError, match="lies in --out"):
        request([str(tmp_path / source)], models=str(tmp_path / "models"),
                out=str(tmp_path / "out"), date=date(2026, 1, 2), routing=Routing(category="a"))
