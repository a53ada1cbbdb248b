"""The plan: every member once, in shards of one category, frozen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from igd import tables
from igd.data.routing import Routing
from igd.data.selection import selection
from igd.errors import ConfigError, DataError, ModelError
from igd.pipelines import parts as planning
from igd.pipelines.current import unchanged
from igd.pipelines.parts import make_plan
from igd.pipelines.plan import members_of, shard_rows
from igd.pipelines.run import Run
from igd.pipelines.shards import read_shard
from igd.records import UNROUTED


def all_rows(run: Run, plan: dict) -> list[list[dict]]:
    return [shard_rows(run.at(), plan, n).to_pylist() for n in range(plan["shards"])]


@pytest.mark.parametrize("kind", ["dir", "tar", "tar.gz", "tar.zst", "zip", "parquet"])
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


def test_shards_span_several_parts(asked, dump, contents, monkeypatch) -> None:
    monkeypatch.setattr(planning, "PART_MEMBERS", 4)
    run = Run(request=asked(dump("tar")), generation=1)
    plan = make_plan(run, shard_members=1)
    assert plan["shards"] == len(contents) and len(plan["parts"]) == -(-len(contents) // 4)
    assert [shard[0]["shard"] for shard in all_rows(run, plan)] == list(range(plan["shards"]))


def test_members_survive_the_plan(asked, dump) -> None:
    run = Run(request=asked(dump("zip")), generation=1)
    plan = make_plan(run)
    rows = shard_rows(run.at(), plan, 0)
    assert [m.image_id for m in members_of(rows)] == rows["image_id"].to_pylist()


def picked(run: Run, plan: dict) -> list[str]:
    """Names of the planned images below the dump, in source order."""
    rows = [row for shard in all_rows(run, plan) for row in shard]
    return sorted(row["member"] or row["source_uri"].split("/dump.dir/")[1] for row in rows)


@pytest.mark.parametrize("kind", ["dir", "tar", "zip"])
def test_a_selection_takes_the_same_images_from_every_kind_of_dump(asked, dump, contents,
                                                                   kind) -> None:
    chosen = selection(["weave/*", "washer/*"], ["*/good/*", "*.txt"])
    run = Run(request=asked(dump(kind), selection=chosen), generation=1)
    plan = make_plan(run)
    wanted = [name for name in contents if name.startswith("w") and "/good/" not in name]
    assert picked(run, plan) == sorted(wanted)
    assert plan["left_out"] == len(contents) - len(wanted)
    assert sum(record["members"] for record in plan["source_records"]) == len(wanted)
    assert plan["unmatched"] == ["*.txt"] and plan["limited_to"] is None


def test_a_limit_takes_the_first_images_and_looks_no_further(asked, dump, contents) -> None:
    source, tar = dump("dir"), dump("tar")
    run = Run(request=asked(source, tar, selection=selection(limit=6)), generation=1)
    plan = make_plan(run)
    assert picked(run, plan) == sorted(contents)[:6] and plan["limited_to"] == 6
    assert plan["source_records"][0]["detail"] == "listed no further than --limit"
    (Path(source) / "weave" / "zz.png").write_bytes(b"late")
    Path(tar).unlink()
    assert unchanged(run, plan)
    (Path(source) / "a.png").write_bytes(b"comes first")
    assert not unchanged(run, plan)


def test_a_limit_within_an_archive_keeps_the_archive_in_mind(asked, dump, contents) -> None:
    tar = dump("tar")
    run = Run(request=asked(tar, selection=selection(exclude=["weave/*"], limit=2)), generation=1)
    plan = make_plan(run)
    assert picked(run, plan) == [name for name in contents if name.startswith("washer")][:2]
    record, = plan["source_records"]
    assert (record["kind"], record["members"], record["status"]) == ("tar", 2, "complete")
    assert unchanged(run, plan)
    Path(tar).touch()
    assert not unchanged(run, plan)


def test_nothing_is_written_for_a_request_that_cannot_be_met(asked, dump, tmp_path) -> None:
    for wanted, error in (
        (asked(dump("tar"), routing=Routing(category="screw")), ModelError),
        (asked(str(tmp_path / "missing.tar")), DataError),
        (asked(dump("dir"), str(tmp_path / "missing.zip")), DataError),
        (asked(dump("dir"), selection=selection(["weave/*", "screw/*"])), ConfigError),
    ):
        with pytest.raises(error):
            make_plan(Run(request=wanted, generation=1))
        assert not (tmp_path / "out").exists()


def test_a_tar_packed_by_xz_is_refused_before_anything_is_listed(asked, dump, tmp_path) -> None:
    other = tmp_path / "day.tar.xz"
    other.write_bytes(b"\xfd7zXZ")
    with pytest.raises(DataError, match="bzip2 or xz"):
        make_plan(Run(request=asked(dump("tar"), str(other)), generation=1))
    assert not (tmp_path / "out").exists()


def test_an_object_of_two_patterns_is_refused_and_named(asked, dump, tmp_path) -> None:
    source = dump("dir")
    for sources in ((f"{source}/weave/test/*/*", f"{source}/*/test/good"),
                    (f"{source}/we*", f"{source}/w*")):
        with pytest.raises(DataError, match=r"weave/.* is of source .*count twice"):
            make_plan(Run(request=asked(*sources), generation=1))
    wanted = asked(f"{source}/weave/test/*/*", f"{source}/washer/t?st",
                   routing=Routing(category="weave"))
    plan = make_plan(Run(request=wanted, generation=1))
    assert plan["members"] == 24 and plan["sources"][0].endswith("/weave/test/%2A/%2A")


def test_an_output_that_holds_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(tables.ConfigError, match=r"something else.*thesis.txt"):
        tables.check_output(str(tmp_path))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.zst", "zip"])
def test_the_same_pixels_come_out_of_every_container(asked, dump, kind) -> None:
    def decoded(kind: str) -> dict[str, tuple[bytes | None, str | None]]:
        run = Run(request=asked(dump(kind)), generation=1)
        plan = make_plan(run, shard_members=5)
        rows = [row for n in range(plan["shards"])
                for row in read_shard(run.at(), plan, n).to_pylist()]
        names = [row["member"] or row["source_uri"].split("/dump.dir/")[1] for row in rows]
        return {name: (row["pixels"], row["reject_reason"])
                for name, row in zip(names, rows, strict=True)}

    assert decoded(kind) == decoded("dir")
