"""A plan frozen part by part: killed, shared or overtaken, it holds every image once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from igd import storage
from igd.data.selection import selection
from igd.errors import ConfigError, StorageError
from igd.pipelines import parts as planning
from igd.pipelines import score as scoring
from igd.pipelines.listing import Models
from igd.pipelines.parts import frozen_parts, make_plan, plan_parts, plan_so_far
from igd.pipelines.plan import shard_rows
from igd.pipelines.planning import Planning
from igd.pipelines.run import Run, latest
from igd.pipelines.verify import verify


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(planning, "PART_MEMBERS", 5)


def ids(run: Run, plan: dict) -> list[str]:
    return [image_id for shard in range(plan["shards"])
            for image_id in shard_rows(run.at(), plan, shard)["image_id"].to_pylist()]


def take(parts: Iterator[dict], count: int) -> list[dict]:
    """The first parts; the process that makes them is gone then."""
    return [next(parts) for _ in range(count)]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", ["dir", "tar", "zip", "parquet"])
def test_a_plan_that_was_cut_off_is_finished_with_what_it_lacks(asked, dump, kind, tmp_path
                                                                ) -> None:
    source = dump(kind)
    run, whole = (Run(request=asked(source, out=str(tmp_path / name)), generation=1)
                  for name in ("cut", "whole"))
    begun = take(plan_parts(run, shard_members=3), 2)
    assert latest(run.request) == run and run.read_json("plan.json") is None
    plan, undisturbed = make_plan(run, shard_members=3), make_plan(whole)
    assert frozen_parts(run.at())[:2] == begun
    assert sorted(ids(run, plan)) == sorted(ids(whole, undisturbed))
    for key in ("counts", "members", "inputs", "source_records", "bundles", "unknown_categories"):
        assert plan[key] == undisturbed[key]
    assert make_plan(run) == plan


@pytest.mark.usefixtures("small_parts")
def test_what_came_and_went_between_two_attempts_is_planned_and_known(asked, dump,
                                                                      contents) -> None:
    source = Path(dump("dir"))
    run = Run(request=asked(str(source)), generation=1)
    first = plan_so_far(run, take(plan_parts(run), 1))
    gone = storage.local_path(shard_rows(run.at(), first, 0)["source_uri"][0].as_py())
    Path(gone).unlink()
    (source / "aaa.png").write_bytes(b"before all others")
    plan = make_plan(run)
    assert len(set(ids(run, plan))) == plan["members"] == len(contents) + 1


@pytest.mark.usefixtures("small_parts")
def test_two_who_plan_one_run_at_once_plan_every_image_once(asked, dump, contents) -> None:
    run = Run(request=asked(dump("tar")), generation=1)
    one, other = plan_parts(run, shard_members=2), plan_parts(run, shard_members=3)
    ended = 0
    seen: list[list[dict]] = [[], []]
    while ended < 2:
        ended = 0
        for parts, mine in zip((one, other), seen, strict=True):
            part = next(parts, None)
            ended += part is None
            mine += [] if part is None else [part]
    assert [part["part"] for part in seen[0]] == list(range(len(seen[0])))
    shorter = min(map(len, seen))
    assert seen[0][:shorter] == seen[1][:shorter]
    plan = run.read_json("plan.json")
    assert plan is not None
    assert len(set(ids(run, plan))) == len(ids(run, plan)) == len(contents)
    assert len(frozen_parts(run.at())) == len(plan["parts"])  # and none beside


@pytest.mark.usefixtures("small_parts")
def test_who_is_overtaken_goes_on_with_the_images_and_models_of_the_first(asked, folder,
                                                                          monkeypatch) -> None:
    run = Run(request=asked(folder("d", washer=4, weave=6)), generation=1)
    load, freeze = Models._load, Run.create_json
    planner = ["overtaken"]
    monkeypatch.setattr(Models, "_load", lambda self, category: {
        **load(self, category), "version": planner[0]})

    def overtaken(self: Run, name: str, document: dict) -> bool:
        if planner[0] == "overtaken" and name == "plan/000000.json":
            planner[0] = "first"
            take(plan_parts(run, shard_members=2), 1)
            planner[0] = "late"
        return freeze(self, name, document)
    monkeypatch.setattr(Run, "create_json", overtaken)
    plan = make_plan(run)
    assert {name: bundle["version"] for name, bundle in plan["bundles"].items()} == {
        "washer": "first", "weave": "first"}
    assert len(set(ids(run, plan))) == len(ids(run, plan)) == 10
    assert len(frozen_parts(run.at())) == len(plan["parts"])


@pytest.mark.usefixtures("small_parts")
def test_models_are_frozen_with_the_first_part_that_needs_them(asked, folder,
                                                               monkeypatch) -> None:
    run = Run(request=asked(folder("d", washer=6, weave=4)), generation=1)
    take(plan_parts(run), 1)
    frozen = frozen_parts(run.at())[0]["bundles"]["washer"]
    monkeypatch.setattr("igd.pipelines.listing.Models._load",
                        lambda self, category: {**frozen, "version": f"new-{category}"})
    plan = make_plan(run)
    assert plan["bundles"]["washer"] == frozen
    assert plan["bundles"]["weave"]["version"] == "new-weave"


@pytest.mark.usefixtures("small_parts")
def test_an_error_late_in_the_listing_leaves_a_run_that_is_not_published(asked, dump) -> None:
    wanted = asked(dump("tar"), selection=selection(["*.png", "screw/*"]))
    with pytest.raises(ConfigError, match="screw"):
        make_plan(Run(request=wanted, generation=1))
    run = latest(wanted)
    assert run is not None and run.read_json("plan.json") is None
    assert len(frozen_parts(run.at())) > 1


def test_a_part_is_frozen_when_it_takes_long(asked, dump, contents, monkeypatch) -> None:
    monkeypatch.setattr(planning, "PART_SECONDS", 0.0)
    plan = make_plan(Run(request=asked(dump("tar")), generation=1))
    assert len(plan["parts"]) == len(contents)


@pytest.mark.usefixtures("small_parts", "no_cluster")
def test_scoring_begins_before_the_plan_is_whole(asked, dump, contents, monkeypatch) -> None:
    wanted = asked(dump("tar"))
    waves: list[tuple[int, bool]] = []
    inner = scoring._score_shards

    def watched(run: Run, plan: dict, todo: list, done: list, whole: bool, *rest) -> None:
        waves.append((len(todo), whole))
        inner(run, plan, todo, done, whole, *rest)
    monkeypatch.setattr(scoring, "_score_shards", watched)

    class OneByOne(Planning):
        """Never ahead of who asks."""

        def __init__(self, run: Run, parts: Iterator[dict]) -> None:
            self._all, self._run, self._taken = parts, run, []

        def __enter__(self) -> OneByOne:
            return self

        def beyond(self, shards: int) -> tuple[dict, bool]:
            part = next(self._all, None)
            self._taken += [] if part is None else [part]
            return plan_so_far(self._run, self._taken), part is None

    monkeypatch.setattr(scoring, "Planning", OneByOne)
    summary = scoring.score(wanted, shard_members=2)
    assert len(waves) == -(-len(contents) // 5) and not any(whole for _, whole in waves)
    assert summary["planned"] == len(contents)
    assert sum(count for count, _ in waves) == summary["shards_scored"]
    assert verify(wanted.out, wanted.date)["problems"] == []


def test_planning_in_a_thread_hands_on_parts_and_errors(asked, dump) -> None:
    run = Run(request=asked(dump("tar")), generation=1)

    def parts() -> Iterator[dict]:
        yield from plan_parts(run)
        raise StorageError("the endpoint is gone")

    with Planning(run, parts()) as planning, pytest.raises(StorageError, match="is gone"):
        for seen in range(0, 1 << 30, 1 << 20):
            planning.beyond(seen)
    run.create_json("plan.json", {})
    with Planning(run, plan_parts(run)) as planning:
        plan, whole = planning.beyond(1 << 30)
    assert whole and plan["members"] > 0
