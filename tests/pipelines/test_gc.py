"""What gc takes away, and what it leaves: everything published, and every run that may be alive."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import polars
import pytest
from batch_runs import begun, do_shards

from igd import storage, tables
from igd.data.selection import selection
from igd.errors import ConfigError, DataError, RunHeldError, StorageError
from igd.pipelines import gc
from igd.pipelines import score as scoring
from igd.pipelines.gc import collect
from igd.pipelines.parts import make_plan
from igd.pipelines.publish import publish
from igd.pipelines.run import Request, Run
from igd.pipelines.shards import read_records
from igd.pipelines.verify import verify
from igd.storage import s3

pytestmark = pytest.mark.usefixtures("no_cluster")
WEEK, DAY_S = timedelta(days=7), 86_400


@pytest.fixture
def at_once(monkeypatch) -> timedelta:
    """An age that everything has."""
    monkeypatch.setattr(gc, "SHORTEST", timedelta(0))
    return timedelta(0)


def objects(out: str) -> dict[str, int]:
    return {entry.key: entry.size for entry in storage.list_objects(out)}


def age(at: str, days: float = 8) -> None:
    """Everything below a local place was last written so long ago."""
    then = time.time() - days * DAY_S
    for path in Path(storage.local_path(at)).rglob("*"):
        os.utime(path, (then, then))


def published(wanted: Request) -> list:
    return [tables.read(wanted.out, table, wanted.date) for table in ("scores", "heatmaps")]


def killed(wanted: Request, shards: int | None = None) -> Run:
    """A run that went no further than some shards, or than its heatmaps' commit."""
    run, plan = begun(wanted, 2)
    do_shards(run, plan, range(plan["shards"] if shards is None else shards))
    if shards is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "replace_scores", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                publish(run, plan, read_records(run.at()))
    return run


@pytest.mark.parametrize("shards", [0, 2, None])
def test_a_killed_run_goes_after_the_age_and_its_command_begins_anew(asked, folder,
                                                                     shards) -> None:
    fine = asked(folder("d1", weave=3), heatmaps="all")
    scoring.score(fine)
    wanted = asked(folder("d2", washer=5), heatmaps="all")
    run = killed(wanted, shards)
    before, rows = objects(fine.out), published(fine)[0]
    assert collect(fine.out, older_than=WEEK)["files"] == []
    assert objects(fine.out) == before
    age(fine.out)
    would = collect(fine.out, older_than=WEEK, dry_run=True)
    assert objects(fine.out) == before
    done = collect(fine.out, older_than=WEEK)
    assert done["by_reason"] == would["by_reason"] and done["runs"] == [run.run_id]
    state = 4 + 2 * 3 if shards is None else 3 + 2 * shards  # publishing writes a lease first
    assert done["by_reason"]["dead run"]["files"] == state
    assert sum(file["bytes"] for file in done["files"]) == sum(before.values()) - sum(
        objects(fine.out)[key] for key in before if key in objects(fine.out))
    mark, = objects(run.at())
    assert mark.startswith("collected/")
    assert published(fine)[0].equals(rows)
    assert set(published(fine)[1]["run_id"].to_pylist()) == set(rows["run_id"].to_pylist())
    assert verify(fine.out, fine.date)["problems"] == []
    summary = scoring.score(wanted)
    assert (summary["generation"], summary["scored"]) == (2, 5)
    assert verify(fine.out, fine.date)["problems"] == []
    assert len(published(wanted)[1]) == 8
    sources = tables.read(fine.out, "sources", fine.date)["run_id"].to_pylist()
    assert sorted(sources) == sorted([rows["run_id"][0].as_py(), summary["run_id"]])
    assert scoring.score(wanted)["already_published"] and scoring.score(fine)["already_published"]


@pytest.mark.parametrize("shards", [2, None])
def test_a_run_that_may_be_alive_keeps_all_it_has(asked, folder, shards) -> None:
    """Also what is older than the age, once somebody has gone on with it."""
    wanted = asked(folder("d", weave=5), heatmaps="all")
    run = killed(wanted, shards)
    age(wanted.out)
    assert run.hold()
    before = objects(wanted.out)
    done = collect(wanted.out, older_than=WEEK)
    assert done["files"] == [] and not any(done["retired_files"].values())
    assert objects(wanted.out) == before
    summary = scoring.score(wanted)
    assert (summary["generation"], summary["scored"]) == (1, 5)
    assert summary["shards_scored"] == (0 if shards is None else 1)
    assert verify(wanted.out, wanted.date)["problems"] == []


def test_a_run_gone_on_with_while_gc_marks_it_is_left(asked, folder, monkeypatch) -> None:
    wanted = asked(folder("d", weave=3))
    run = killed(wanted, 1)
    age(wanted.out)
    looks = []

    def look(at: str, really=gc._touched) -> float | None:
        looks.append(at)
        if len(looks) == 2:
            assert not run.hold()  # the mark stands already, and so this process begins anew
        return really(at)

    monkeypatch.setattr(gc, "_touched", look)
    before = objects(run.at())
    assert collect(wanted.out, older_than=WEEK)["runs"] == []
    assert set(objects(run.at())) == {*before, "lease.json"}
    assert run.hold() and scoring.score(wanted)["generation"] == 1


def test_a_mark_that_was_taken_back_leaves_that_of_another(asked, folder, monkeypatch) -> None:
    run = killed(asked(folder("d", weave=3)), 1)
    storage.write_bytes(run.at("collected", "another"), b"{}")
    assert not gc._marked(run.at(), WEEK)
    assert not run.hold()


def test_a_run_that_writes_its_first_object_is_no_dead_one(asked, folder) -> None:
    wanted = asked(folder("d", weave=2))
    run = killed(wanted, None)
    for entry in list(storage.list_objects(run.at())):
        storage.delete(entry.uri)  # an empty folder stays
    assert gc._judge_runs(wanted.out, WEEK, mark=True) == gc._Runs()
    storage.write_bytes(run.at("collected", "mark"), b"")
    assert gc._judge_runs(wanted.out, WEEK, mark=True).gone == {run.run_id}


def test_a_driver_that_stood_still_does_not_publish_what_is_gone(asked, folder) -> None:
    wanted = asked(folder("d", weave=3), heatmaps="all")
    run = Run(request=wanted, generation=1)
    plan = make_plan(run)
    do_shards(run, plan, range(plan["shards"]))
    records = read_records(run.at())
    age(wanted.out)
    before = objects(wanted.out)
    assert collect(wanted.out, older_than=WEEK, dry_run=True)["runs"] == [run.run_id]
    assert objects(wanted.out) == before
    assert collect(wanted.out, older_than=WEEK)["runs"] == [run.run_id]
    assert not any(key.startswith("sources/") for key in objects(wanted.out))
    with pytest.raises(RunHeldError, match="stood still"):
        publish(run, plan, records)
    assert tables.live_files(wanted.out, "heatmaps") == []


def test_replaced_rows_go_when_no_reader_can_be_at_them(asked, folder, at_once) -> None:
    wanted = asked(folder("d", weave=3), heatmaps="all")
    scoring.score(wanted)
    other = asked(folder("d2", washer=2), heatmaps="all")
    scoring.score(other)
    folder("d", weave=4)
    scoring.score(wanted)
    age(storage.join(wanted.out, "scores", f"date={wanted.date}"))  # old, replaced just now
    now = published(wanted)[0]
    for _ in range(2):
        done = collect(wanted.out, older_than=WEEK)
        assert done["files"] == [] and not any(done["retired_files"].values())
    done = collect(wanted.out, older_than=at_once)
    assert done["by_reason"].keys() == {"replaced"} and done["runs"] == []
    assert done["by_reason"]["replaced"]["files"] == done["retired_files"]["heatmaps"] == 1
    assert len(published(wanted)[1]) == 6
    done = collect(wanted.out, older_than=at_once)  # the heatmaps of the replaced rows
    assert (len(done["files"]), done["retired_files"]["heatmaps"]) == (1, 0)
    assert "/heatmaps/" in done["files"][0]["uri"]
    assert published(wanted)[0].equals(now)
    assert len(polars.read_delta(storage.local_path(f"{wanted.out}/scores"))) == 6
    assert verify(wanted.out, wanted.date)["problems"] == []
    assert scoring.score(wanted)["already_published"] and scoring.score(other)["already_published"]
    assert collect(wanted.out, older_than=at_once)["files"] == []


def test_what_is_left_of_a_run_whose_rows_were_taken_over_stays(asked, folder, at_once) -> None:
    """Its rewritten file is live, the one before is replaced; with no row left, it is as well."""
    first = asked(folder("d", nobody=3))
    scoring.score(first)
    parts = [asked(*first.sources, selection=selection([f"nobody/{names}.png"]))
             for names in ("000", "001", "002")]
    for number, part in enumerate(parts):
        scoring.score(part)
        rows = published(first)[0]
        done = collect(first.out, older_than=at_once)
        assert done["by_reason"] == {"replaced": done["by_reason"]["replaced"]}
        assert done["by_reason"]["replaced"]["files"] == 1 and done["runs"] == []
        assert published(first)[0].equals(rows) and len(rows) == 3
        assert len(set(rows["run_id"].to_pylist())) == min(number + 2, 3)
    assert collect(first.out, older_than=at_once)["files"] == []


def test_what_somebody_else_put_there_stays(asked, folder) -> None:
    wanted = asked(folder("d", weave=2))
    scoring.score(wanted)
    out = Path(storage.local_path(wanted.out))
    for name in ("scores/notes.txt", "scores/date=2026-01-02/mine.parquet", "runs/readme",
                 f"runs/.{'0' * 32}.tmp", f"scores/.{'1' * 32}.tmp"):
        (out / name).write_bytes(b"x")
    age(wanted.out)
    done = collect(wanted.out, older_than=WEEK)
    assert done["by_reason"] == {"temporary": {"files": 2, "bytes": 2}}
    assert {"scores/notes.txt", "runs/readme"} <= objects(wanted.out).keys()
    assert verify(wanted.out, wanted.date)["problems"] == []


def test_two_at_once_do_what_one_does(asked, folder, at_once) -> None:
    wanted = asked(folder("d", weave=3), heatmaps="all")
    scoring.score(wanted)
    folder("d", weave=4)
    scoring.score(wanted)
    killed(asked(folder("d2", washer=4), heatmaps="all"))
    errors: list[Exception] = []

    def work() -> None:
        try:
            collect(wanted.out, older_than=at_once)
        except Exception as error:
            errors.append(error)

    for _ in range(2):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert collect(wanted.out, older_than=at_once)["files"] == []
    assert len(published(wanted)[0]) == len(published(wanted)[1]) == 4
    assert verify(wanted.out, wanted.date)["problems"] == []


def test_on_s3(asked, folder, bucket, at_once) -> None:
    wanted = asked(folder("d", weave=3), heatmaps="all", out=storage.join(bucket, "out"))
    scoring.score(wanted)
    folder("d", weave=4)
    scoring.score(wanted)
    dead = killed(asked(folder("d2", washer=4), heatmaps="all", out=wanted.out))
    name, _, key = storage.join(wanted.out, "runs", "cut.parquet").removeprefix("s3://").partition(
        "/")
    with closing(s3._session().create_client(
            "s3", endpoint_url=s3._settings()["endpoint"], region_name="us-east-1")) as client:
        client.create_multipart_upload(Bucket=name, Key=key)
    before = objects(wanted.out)
    assert collect(wanted.out, older_than=WEEK)["files"] == []
    assert objects(wanted.out) == before
    time.sleep(1)  # S3 counts whole seconds
    done = collect(wanted.out, older_than=at_once)
    assert done["runs"] == [dead.run_id] and done["problems"] == []
    assert done["uploads"] == [f"s3://{name}/{key}"]
    assert done["by_reason"].keys() == {"dead run", "orphan", "replaced"}
    collect(wanted.out, older_than=at_once)
    left = objects(wanted.out)
    assert not any(dead.run_id in key for key in left if not key.startswith("runs/"))
    assert sum(key.startswith("heatmaps/date") for key in left) == 1
    assert sum(key.startswith("sources/date") for key in left) == 2
    assert len(published(wanted)[0]) == len(published(wanted)[1]) == 4
    assert verify(wanted.out, wanted.date)["problems"] == []
    assert scoring.score(wanted)["already_published"]


def test_an_endpoint_that_tells_no_uploads_is_a_problem_that_stops_nothing(
        asked, folder, monkeypatch) -> None:
    wanted = asked(folder("d", weave=2))
    run = killed(wanted, 1)
    age(wanted.out)

    def refuse(*_, **__) -> None:
        raise StorageError("not implemented")
    monkeypatch.setattr(storage, "abort_uploads", refuse)
    done = collect(wanted.out, older_than=WEEK)
    assert done["problems"] == ["not implemented"] and done["runs"] == [run.run_id]


def test_it_refuses_a_short_age_and_a_place_that_is_not_ours(tmp_path) -> None:
    with pytest.raises(ConfigError, match="at least 24h"):
        collect(str(tmp_path), older_than=timedelta(hours=23))
    with pytest.raises(DataError, match="no output"):
        collect(str(tmp_path), older_than=WEEK)
