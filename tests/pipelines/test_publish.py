"""The audit, and the one commit: driven shard by shard in process, without a cluster."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_runs import begun, do_shards
from pyarrow import dataset

from igd import storage, tables
from igd.data.selection import EVERYTHING, selection
from igd.errors import RunHeldError
from igd.pipelines import score as scoring
from igd.pipelines.plan import shard_rows
from igd.pipelines.publish import audit, publish
from igd.pipelines.run import Request, Run
from igd.pipelines.scoring import ShardScorer
from igd.pipelines.shards import read_records, read_shard, write_shard
from igd.pipelines.verify import verify


def published(run: Run) -> list[dict]:
    return tables.read(run.request.out, "scores", run.request.date).to_pylist()


def test_every_planned_image_is_published_once(finished, contents) -> None:
    run, plan, records = finished
    audit(run, plan, records)
    assert published(run) == []  # nothing is in sight before the commit
    assert publish(run, plan, records)
    rows = published(run)
    assert len({row["image_id"] for row in rows}) == len(rows) == len(contents)
    scored = [row for row in rows if row["status"] == "scored"]
    assert len(scored) == 24 and all(row["score"] is not None for row in scored)
    assert {row["preset"] for row in scored} == {"fast"}
    rejects = {row["member"]: row["reject_reason"] for row in rows if row["status"] == "rejected"}
    assert rejects == {"weave/empty.png": "empty", "weave/page.png": "not_image",
                       "nobody/part.png": "unknown_category", "loose.png": "unrouted"}
    heatmaps = tables.read(run.request.out, "heatmaps", run.request.date)
    assert set(heatmaps["image_id"].to_pylist()) == {row["image_id"] for row in scored}
    sources = tables.read(run.request.out, "sources", run.request.date).to_pylist()
    assert [(s["kind"], s["members"], s["status"]) for s in sources] == [
        ("tar", len(contents), "complete")]
    assert verify(run.request.out, run.request.date)["problems"] == []


def test_an_image_that_is_planned_twice_holds_the_run(finished, monkeypatch) -> None:
    run, plan, records = finished
    first = records[0]["rows"]
    monkeypatch.setattr("igd.pipelines.publish.shard_rows", lambda at, plan, shard: shard_rows(
        at, plan, 0 if records[shard]["rows"] == first else shard))
    monkeypatch.setattr("igd.pipelines.publish._shard_problems", lambda *_: iter(()))
    with pytest.raises(RunHeldError, match="under fewer distinct ids"):
        audit(run, plan, records)


def test_shards_that_no_plan_holds_are_not_published(asked, folder, no_cluster) -> None:
    """As of another process that went on planning while the plan was sealed."""
    wanted = asked(folder("d", weave=3))
    run, plan = begun(wanted)
    do_shards(run, plan, [0])
    other = {**read_records(run.at())[0], "shard": 7}
    run.write_json("done/00000007.json", other)
    assert scoring.score(wanted)["planned"] == 3
    assert len(published(run)) == 3


def test_independent_readers_agree(finished, contents) -> None:
    run, plan, records = finished
    publish(run, plan, records)
    root = Path(run.request.out.removeprefix("file://")) / "scores"
    ours = {row["image_id"]: row["score"] for row in published(run)}
    frame = polars.read_delta(str(root))
    assert dict(frame.select("image_id", "score").iter_rows()) == ours
    live = [str(root / file.path) for file in
            tables.live_files(run.request.out, "scores", run.request.date)]
    query = "select image_id, score, category from read_parquet(?, hive_partitioning = true)"
    found = duckdb.execute(query, [live]).fetchall()
    assert {image_id: score for image_id, score, _ in found} == ours
    assert {category for _, _, category in found} == {"weave", "washer", "_unrouted"}
    arrow = dataset.dataset(live, partitioning="hive").to_table(["image_id", "score"])
    assert dict(zip(*arrow.to_pydict().values(), strict=True)) == ours


def test_publishing_again_changes_nothing(finished) -> None:
    run, plan, records = finished
    assert publish(run, plan, records)
    before = published(run)
    assert not publish(run, plan, records)
    assert published(run) == before
    assert len(tables.read(run.request.out, "heatmaps", run.request.date)) == 24


def test_a_second_attempt_at_a_shard_loses_and_leaves_nothing(finished) -> None:
    run, plan, records = finished
    files = sorted(Path(run.request.out.removeprefix("file://")).rglob("*.parquet"))
    again = write_shard(run.at(), plan, ShardScorer(plan).score(read_shard(run.at(), plan, 0)))
    assert again == records[0]
    assert sorted(Path(run.request.out.removeprefix("file://")).rglob("*.parquet")) == files


def shard_file(run: Run, record: dict) -> Path:
    return Path(run.at(record["path"]).removeprefix("file://"))


def missing_record(run: Run, records: dict) -> None:
    del records[1]


def missing_file(run: Run, records: dict) -> None:
    shard_file(run, records[1]).unlink()


def flipped_byte(run: Run, records: dict) -> None:
    path = shard_file(run, records[1])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewritten(run: Run, records: dict, change) -> None:
    """A file that is readable, with a checksum that fits, and wrong rows."""
    import hashlib

    path = shard_file(run, records[1])
    pq.write_table(change(pq.read_table(path)), path)
    records[1]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()


def lost_row(run: Run, records: dict) -> None:
    rewritten(run, records, lambda rows: rows.slice(1))


def doubled_row(run: Run, records: dict) -> None:
    rewritten(run, records, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))


def nan_score(run: Run, records: dict) -> None:
    def spoil(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("score")
        scores = [None if score is None else float("nan") for score in rows["score"].to_pylist()]
        return rows.set_column(at, rows.schema.field(at), pa.array(scores, pa.float64()))
    rewritten(run, records, spoil)


def uncounted_reject(run: Run, records: dict) -> None:
    records[1]["rejected"] = {"empty": 1}


@pytest.mark.parametrize("harm", [missing_record, missing_file, flipped_byte, lost_row,
                                  doubled_row, nan_score, uncounted_reject])
def test_the_audit_holds_a_run_that_does_not_add_up(finished, harm) -> None:
    run, plan, records = finished
    harm(run, records)
    with pytest.raises(RunHeldError, match="held"):
        audit(run, plan, records)
    assert published(run) == []


def harmed_table(run: Run, change) -> list[str]:
    """Problems that `verify` finds after a published file was rewritten behind Delta's back."""
    file = tables.live_files(run.request.out, "scores", run.request.date)[-1]
    path = Path(run.request.out.removeprefix("file://")) / "scores" / file.path
    rows = change(pq.ParquetFile(path).read())
    path.unlink()
    if rows is not None:
        pq.write_table(rows, path)
    return verify(run.request.out, run.request.date)["problems"]


@pytest.mark.parametrize(("change", "problem"), [
    (lambda rows: rows.slice(1), "planned images have no row"),
    (lambda rows: None, "cannot be read"),
])
def test_verify_finds_what_was_taken_from_a_published_table(finished, change, problem) -> None:
    run, plan, records = finished
    publish(run, plan, records)
    assert any(problem in line for line in harmed_table(run, change))


def test_verify_names_a_run_whose_plan_is_gone(finished) -> None:
    run, plan, records = finished
    publish(run, plan, records)
    Path(run.at("plan.json").removeprefix("file://")).unlink()
    assert any("plan is gone" in line
               for line in verify(run.request.out, run.request.date)["problems"])


def test_a_record_names_its_file_its_checksum_and_its_counts(finished) -> None:
    run, _, records = finished
    for shard, record in records.items():
        stored = json.loads(Path(run.at("done", f"{shard:08d}.json").removeprefix("file://"))
                            .read_text())
        assert stored == record
        assert shard_file(run, record).stat().st_size == record["bytes"]


class KilledError(Exception):
    """Stands for a process that is gone."""


def killed_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Ends what follows before its n-th write (even steps: 2n) or right after it (odd ones)."""
    steps = itertools.count()

    def ending(real):
        def write(*args: object, **settings: object) -> object:
            if next(steps) == step:
                raise KilledError
            done = real(*args, **settings)
            if next(steps) == step:
                raise KilledError
            return done
        return write

    for place, name in ((storage, "write_bytes"), (storage, "put_if_absent"),
                        (tables.DeltaTable, "create_write_transaction")):
        patch.setattr(place, name, ending(getattr(place, name)))


def owners(wanted: Request) -> dict[tuple[str, str], str]:
    """(category, image) to the run of its one row."""
    rows = tables.read(wanted.out, "scores", wanted.date).to_pylist()
    found = {(row["category"], row["image_id"]): row["run_id"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("new_only", [False, True], ids=["rewriting", "adding"])
def test_a_publish_killed_at_any_write_leaves_the_old_rows_or_the_new(
        asked, folder, new_only, tmp_path) -> None:
    """Rows of another run are rewritten in both, and the same command ends as if undisturbed."""
    first = asked(folder("d", weave=2, nobody=3), new_only=new_only)
    lost = tmp_path / "d" / "weave" / "000.png"
    begun(first)
    lost.rename(tmp_path / "away")
    scoring.score(first)
    (tmp_path / "away").rename(lost)
    wanted = asked(*first.sources, folder("d2", washer=2), heatmaps="all", new_only=new_only,
                   selection=EVERYTHING if new_only else selection(["washer/*", "nobody/*1.png"]))
    run, plan = begun(wanted)
    do_shards(run, plan, range(plan["shards"]))
    records, before = read_records(run.at()), owners(wanted)
    out, saved = storage.local_path(wanted.out), tmp_path / "saved"
    shutil.copytree(out, saved)
    assert publish(run, plan, records)
    after = owners(wanted)
    shared = {key for key, owner in after.items() if before.get(key, owner) != owner}
    assert {category for category, _ in shared} == ({"weave"} if new_only else {"_unrouted"})
    assert set(after.values()) == {*before.values(), run.run_id} and set(after) > set(before)
    for step in itertools.count():
        shutil.rmtree(out)
        shutil.copytree(saved, out)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(step, patch)
            try:
                publish(run, plan, records)
                break
            except KilledError:
                pass
        assert owners(wanted) in (before, after)
        assert scoring.score(wanted)["generation"] == 1
        assert owners(wanted) == after
        assert len(tables.read(wanted.out, "heatmaps", wanted.date)) >= 2
        assert scoring.score(wanted)["already_published"]
    assert step > 2 * 8
