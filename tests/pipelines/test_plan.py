"""The plan: every member once, in shards of one category, frozen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from igd import registry, tables
from igd.data.routing import Routing
from igd.errors import DataError, ModelError
from igd.pipelines import plan as planning
from igd.pipelines.plan import make_plan, members_of, shard_rows, unchanged
from igd.pipelines.run import Run
from igd.records import UNROUTED


def all_rows(run: Run, plan: dict) -> list[list[dict]]:
    return [shard_rows(run.at(), plan, n).to_pylist() for n in range(plan["shards"])]


@pytest.mark.parametrize("kind", ["dir", "tar", "zip", "parquet"])
def test_every_member_is_planned_once_in_shards_of_one_category(asked, dump, contents,
                                                                kind) -> None:
    run = Run(request=asked(dump(kind)), generation=1)
    plan = make_plan(run, shard_members=5)
    shards = all_rows(run, plan)
    rows = [row for shard in shards for row in shard]
    assert plan["members"] == len(rows) == len(contents)
    assert len({row["image_id"] for row in rows}) == len(rows)
    assert all(len({row["category"] for row in shard}) == 1 for shard in shards)
    assert max(map(len, shards)) == 5
    assert [row["shard"] for row in rows] == sorted(row["shard"] for row in rows)
    reasons = Counter(row["reject_reason"] for row in rows if row["category"] == UNROUTED)
    assert reasons == {"unknown_category": 1, "unrouted": 1}
    assert plan["categories"] == [UNROUTED, "washer", "weave"]


def test_rows_of_parquet_are_routed_by_a_column_and_nothing_else_is(asked, dump, contents,
                                                                   tmp_path) -> None:
    routing, other = Routing(column="product"), asked(dump("parquet"))
    wanted = asked(dump("parquet"), dump("tar"), routing=routing)
    assert wanted.key != other.key
    plan = make_plan(Run(request=wanted, generation=1))
    by_path = make_plan(Run(request=other, generation=1))["counts"]
    assert plan["counts"] == {**by_path, UNROUTED: by_path[UNROUTED] + len(contents)}
    missing = asked(dump("parquet"), routing=Routing(column="nowhere"), out=str(tmp_path / "o"))
    assert make_plan(Run(request=missing, generation=1))["counts"] == {UNROUTED: len(contents)}


def test_shards_are_bounded_by_the_bytes_of_rows(asked, dump, contents, monkeypatch) -> None:
    monkeypatch.setattr(planning, "SHARD_SPAN_BYTES", 20_000)
    run = Run(request=asked(dump("parquet")), generation=1)
    shards = all_rows(run, make_plan(run))
    assert len(shards) > 4
    assert max(sum(row["span"] for row in shard) for shard in shards) < 40_000


def test_shards_span_several_plan_files(asked, dump, contents, monkeypatch) -> None:
    monkeypatch.setattr(planning, "SHARDS_PER_FILE", 4)
    run = Run(request=asked(dump("tar")), generation=1)
    plan = make_plan(run, shard_members=1)
    assert plan["shards"] == len(contents) and len(plan["files"]) == -(-len(contents) // 4)
    assert [shard[0]["shard"] for shard in all_rows(run, plan)] == list(range(plan["shards"]))


def test_members_survive_the_plan(asked, dump) -> None:
    run = Run(request=asked(dump("zip")), generation=1)
    plan = make_plan(run)
    rows = shard_rows(run.at(), plan, 0)
    assert [m.image_id for m in members_of(rows)] == rows["image_id"].to_pylist()


def test_a_frozen_plan_outlives_a_dump_that_grows(asked, dump, contents) -> None:
    source = dump("dir")
    run = Run(request=asked(source), generation=1)
    plan = make_plan(run)
    assert unchanged(run, plan)
    (Path(source) / "weave" / "new.png").write_bytes(b"late")
    assert not unchanged(run, plan)
    assert make_plan(run)["members"] == len(contents)


def test_a_promoted_model_makes_a_difference(asked, dump, tiny_models, tmp_path) -> None:
    run = Run(request=asked(dump("tar"), routing=Routing(category="weave")), generation=1)
    plan = make_plan(run)
    plan["bundles"]["weave"]["version"] = "another"
    assert not unchanged(run, plan)
    assert registry.production_version(str(tiny_models), "weave") != "another"


def test_nothing_is_written_for_a_request_that_cannot_be_met(asked, dump, tmp_path) -> None:
    for wanted, error in (
        (asked(dump("tar"), routing=Routing(category="screw")), ModelError),
        (asked(str(tmp_path / "missing.tar")), DataError),
        (asked(dump("dir"), str(tmp_path / "missing.zip")), DataError),
    ):
        with pytest.raises(error):
            make_plan(Run(request=wanted, generation=1))
        assert not (tmp_path / "out").exists()


def test_a_packed_tar_is_refused_as_a_source_and_rejected_in_a_directory(asked, dump,
                                                                         tmp_path) -> None:
    source = Path(dump("dir"))
    packed = source / "weave" / "inner.tar.gz"
    packed.write_bytes(b"\x1f\x8b...")
    with pytest.raises(DataError, match="compressed tar"):
        make_plan(Run(request=asked(str(packed)), generation=1))
    run = Run(request=asked(str(source)), generation=1)
    rows = [row for shard in all_rows(run, make_plan(run)) for row in shard]
    assert [row["reject_reason"] for row in rows
            if row["source_uri"].endswith("inner.tar.gz")] == ["format_not_allowed"]


def test_an_output_that_holds_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(tables.ConfigError, match=r"something else.*thesis.txt"):
        tables.check_output(str(tmp_path))
