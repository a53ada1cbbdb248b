"""Delta tables: one commit replaces a date's categories, for one of two writers at a time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyarrow import dataset

from igd import storage, tables
from igd.errors import ConfigError, LostRaceError, ObjectMissingError, StorageError
from igd.records import HEATMAPS, SCORES
from igd.tables import Change, StagedFile

DAY, OTHER_DAY = date(2026, 3, 1), date(2026, 3, 2)


def score_rows(run_id: str, category: str, names: Sequence[str], day: date = DAY) -> pa.Table:
    row = {"source_uri": "s", "source_version": "v", "member": "m", "ordinal": 0,
           "run_id": run_id, "generation": 0, "status": "scored", "schema_version": 1,
           "scored_at": datetime(2026, 3, 1, tzinfo=UTC), "date": day, "category": category,
           "score": 1.5}
    return pa.Table.from_pylist([{**row, "image_id": name} for name in names], schema=SCORES)


def stage(out: str, run_id: str, category: str, *names: str, day: date = DAY) -> StagedFile:
    return tables.stage(out, "scores", score_rows(run_id, category, names, day), date=day,
                        category=category, stem=f"{run_id}-00000000")


def publish(out: str, run_id: str, rows: dict[str, list[str]], *, day: date = DAY,
            categories: Sequence[str] | None = None) -> bool:
    files = [stage(out, run_id, category, *names, day=day) for category, names in rows.items()]
    return tables.replace_scores(out, files, date=day, categories=categories or list(rows),
                                 run_id=run_id, metadata={"igd.rows": "n"})


def seen(out: str, day: date = DAY) -> list[tuple[str, str]]:
    """(category, image) of all rows of a date."""
    rows = tables.read(out, "scores", day, columns=["category", "image_id"])
    return sorted((row["category"], row["image_id"]) for row in rows.to_pylist())


def runs(out: str, categories: Sequence[str]) -> set[str]:
    """Ids of the runs whose rows stand in some categories."""
    return {tables.staged_run(file.path) for file in tables.live_files(out, "scores", DAY)
            if file.category in categories}


def version(out: str, table: str = "scores") -> int:
    return DeltaTable(f"{out}/{table}").version()


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def test_a_commit_replaces_its_date_and_categories_and_nothing_else(out: str) -> None:
    assert publish(out, "a", {"x": ["1", "2"], "y": ["3"]})
    assert publish(out, "b", {"x": ["4"]}, day=OTHER_DAY)
    before = DeltaTable(f"{out}/scores")
    assert publish(out, "c", {"x": ["1", "5"]})
    assert seen(out) == [("x", "1"), ("x", "5"), ("y", "3")]
    assert seen(out, OTHER_DAY) == [("x", "4")]
    assert runs(out, ["x"]) == {"c"}
    assert runs(out, ["x", "y"]) == {"a", "c"}
    # a reader that opened the table before still reads what it saw then
    assert sorted(row["image_id"] for row in before.to_pyarrow_table().to_pylist()) == list("1234")


def test_a_category_without_rows_is_emptied(out: str) -> None:
    publish(out, "a", {"x": ["1"], "y": ["2"]})
    assert publish(out, "b", {"x": ["3"]}, categories=["x", "y"])
    assert seen(out) == [("x", "3")]


def test_rows_come_back_as_they_went_in(out: str) -> None:
    rows = score_rows("a", "x", ["1", "2"])
    publish(out, "a", {"x": ["1", "2"]})
    assert tables.read(out, "scores", DAY).equals(rows)
    assert tables.read(out, "scores", OTHER_DAY).equals(SCORES.empty_table())
    only = tables.read(out, "scores", DAY, columns=["date", "category"])
    assert only.to_pylist() == [{"date": DAY, "category": "x"}] * 2
    file, = tables.live_files(out, "scores", DAY)
    assert (file.rows, file.category, tables.staged_run(file.path)) == (2, "x", "a")
    assert tables.read(out, "scores", DAY, files=[]).num_rows == 0


def test_other_readers_see_the_same_rows(out: str) -> None:
    publish(out, "a", {"x": ["1"], "y": ["2"]})
    publish(out, "b", {"x": ["3"]})
    columns = ["category", "image_id", "score", "date"]
    files = [file["uri"] for file in tables.listing(out, "scores", DAY)["files"]]
    table = DeltaTable(f"{out}/scores")
    with duckdb.connect() as connection:
        found = {"DuckDB": connection.execute(
            f"select {', '.join(columns)} from read_parquet($1, hive_partitioning = true)",
            [files]).fetchall()}
    found["Polars"] = polars.read_delta(f"{out}/scores", columns=columns).rows()
    found["pandas"] = pandas.read_parquet(files, columns=columns).itertuples(
        index=False, name=None)
    found["deltalake"] = table.to_pyarrow_table(columns=columns).to_pandas().itertuples(
        index=False, name=None)
    told = {name: sorted((*row[:3], str(row[3])) for row in rows) for name, rows in found.items()}
    expected = [("x", "3", 1.5, "2026-03-01"), ("y", "2", 1.5, "2026-03-01")]
    assert all(rows == expected for rows in told.values()), told


@pytest.mark.parametrize("place", ["local", "s3"])
def test_the_listed_files_alone_are_what_delta_reads(place: str, tmp_path: Path,
                                                     request: pytest.FixtureRequest) -> None:
    out = str(tmp_path / "o u t") if place == "local" else request.getfixturevalue("bucket")
    publish(out, "a", {"x": ["1"], "007": ["2"]})
    publish(out, "a2", {"x": ["9"]}, day=OTHER_DAY)
    publish(out, "b", {"x": ["3", "4"]})  # a backfill; what it replaced still lies there
    listed = tables.listing(out, "scores", DAY)
    uris = [file["uri"].removeprefix("s3://") for file in listed["files"]]
    hive = dataset.partitioning(
        pa.schema([SCORES.field("date"), SCORES.field("category")]), flavor="hive")
    plain = dataset.dataset(uris, partitioning=hive,
                            filesystem=storage.train_location(out)[1]).to_table()
    where, options = storage.delta_location(f"{out}/scores")
    table = DeltaTable(where, storage_options=options)
    delta = table.to_pyarrow_table(filters=[("date", "=", DAY)])
    assert [rows.select(SCORES.names).cast(SCORES).sort_by("image_id")
            for rows in (plain, delta)] == [tables.read(out, "scores", DAY).sort_by("image_id")] * 2
    assert sorted(plain["image_id"].to_pylist()) == ["2", "3", "4"]
    assert [(f["category"], f["rows"]) for f in listed["files"]] == [("007", 1), ("x", 2)]
    assert listed["version"] == table.version() == 3
    assert len(tables.listing(out, "scores")["files"]) == len(table.file_uris()) == 3


def test_staged_rows_are_unseen_until_a_commit(out: str) -> None:
    publish(out, "a", {"x": ["1"]})
    stage(out, "b", "x", "2")
    assert seen(out) == [("x", "1")]


def test_the_same_run_again_changes_nothing(out: str) -> None:
    assert publish(out, "a", {"x": ["1"], "y": ["2"]}) is True
    at = version(out)
    assert publish(out, "a", {"x": ["1"], "y": ["2"]}) is False
    assert version(out) == at and seen(out) == [("x", "1"), ("y", "2")]


def test_no_rows_still_commit(out: str) -> None:
    publish(out, "a", {"x": ["1"]})
    at = version(out)
    assert publish(out, "b", {}, categories=["x"]) is True
    assert version(out) == at + 1 and seen(out) == []
    last = DeltaTable(f"{out}/scores").history(1)[0]
    assert last["igd.run_id"] == "b" and last["igd.rows"] == "n"
    fresh = out + "-fresh"
    assert publish(fresh, "b", {}, categories=["x"]) is True
    assert seen(fresh) == [] and version(fresh) == 1


@pytest.mark.parametrize("category", ["a.b", "x-1_2.v3", "0", "A" * 64, "a..b",
                                      "date", "null", "1e5", "007", "2026-03-01"])
def test_an_odd_category_name_is_replaced_and_read_like_any_other(out: str, category: str) -> None:
    near = category + "x"
    publish(out, "a", {category: ["1"], near: ["2"]})
    publish(out, "b", {category: ["3"]})
    assert seen(out) == sorted([(category, "3"), (near, "2")])
    assert runs(out, [category]) == {"b"}


def in_threads(*jobs: Callable[[], object]) -> list[Any]:
    results: list[Any] = [None] * len(jobs)

    def work(i: int) -> None:
        try:
            results[i] = jobs[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def same_snapshot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After the call, the next two publishers both look at the table before either commits."""
    def arm() -> None:
        barrier = threading.Barrier(2)
        first = threading.local()
        look = tables.replaced_by

        def together(*args: Any) -> list[StagedFile]:
            found = look(*args)
            if not hasattr(first, "done"):
                first.done = True
                barrier.wait(timeout=60)
            return found

        monkeypatch.setattr(tables, "replaced_by", together)
    return arm


def test_of_two_runs_that_saw_one_snapshot_one_wins_and_the_other_is_told(
        out: str, same_snapshot: Callable[[], None]) -> None:
    publish(out, "old", {"x": ["0"]})
    same_snapshot()
    results = in_threads(lambda: publish(out, "one", {"x": ["1", "2"]}),
                         lambda: publish(out, "two", {"x": ["3"]}))
    lost, = (r for r in results if r is not True)
    assert isinstance(lost, LostRaceError)
    winner = "one" if results[0] is True else "two"
    assert f"run {winner} published 2026-03-01" in str(lost)
    assert seen(out) == ([("x", "1"), ("x", "2")] if winner == "one" else [("x", "3")])


def test_the_same_run_twice_at_once_publishes_once(out: str,
                                                   same_snapshot: Callable[[], None]) -> None:
    publish(out, "old", {"x": ["0"]})
    at = version(out)
    same_snapshot()
    results = in_threads(*[lambda: publish(out, "a", {"x": ["1"]})] * 2)
    assert sorted(results) == [False, True]
    assert version(out) == at + 1 and seen(out) == [("x", "1")]


def test_runs_of_other_dates_and_categories_both_win(out: str,
                                                     same_snapshot: Callable[[], None]) -> None:
    publish(out, "old", {"x": ["0"], "y": ["9"]})
    same_snapshot()
    assert in_threads(lambda: publish(out, "one", {"x": ["1"]}),
                      lambda: publish(out, "two", {"y": ["2"]})) == [True, True]
    assert seen(out) == [("x", "1"), ("y", "2")]
    assert in_threads(lambda: publish(out, "three", {"x": ["1"]}),
                      lambda: publish(out, "four", {"x": ["2"]}, day=OTHER_DAY)) == [True, True]
    assert seen(out) == [("x", "1"), ("y", "2")] and seen(out, OTHER_DAY) == [("x", "2")]


RACER = """
import sys
from datetime import UTC, date, datetime
import pyarrow as pa
from igd import tables
from igd.errors import LostRaceError
from igd.records import SCORES
out, run = sys.argv[1:]
day = date(2026, 3, 1)
row = dict(source_uri="s", source_version="v", member="m", ordinal=0, run_id=run, generation=0,
           status="scored", schema_version=1, scored_at=datetime(2026, 3, 1, tzinfo=UTC),
           date=day, category="x")
rows = pa.Table.from_pylist([{**row, "image_id": f"{run}{i}"} for i in range(3)], schema=SCORES)
file = tables.stage(out, "scores", rows, date=day, category="x", stem=f"{run}-00000000")
print("ready", flush=True)
sys.stdin.readline()
try:
    print(tables.replace_scores(out, [file], date=day, categories=["x"], run_id=run, metadata={}))
except LostRaceError:
    print("lost")
"""


def test_processes_that_publish_one_date_never_mix_their_rows(out: str) -> None:
    """Also the first ever commit, where the table is made by whoever comes first."""
    names = ["p", "q", "r"]
    racers = [subprocess.Popen([sys.executable, "-c", RACER, out, name], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE) for name in names]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate()[0].strip() for racer in racers]
    assert set(said) <= {"True", "lost"} and "True" in said
    found = [image for _, image in seen(out)]
    winner = found[0][0]
    assert found == [f"{winner}{i}" for i in range(3)]
    assert said[names.index(winner)] == "True"
    # version 0 made the table, and so may others have, who then changed nothing
    assert said.count("True") <= version(out) <= len(names) + said.count("True")


def test_files_that_others_keep_change_in_the_same_commit(out: str) -> None:
    publish(out, "a", {"x": ["1"], "_unrouted": ["2", "3"]})
    at = version(out)
    kept, = (file for file in tables.live_files(out, "scores") if file.category == "_unrouted")

    def take_over(others: Sequence[StagedFile]) -> Change:
        asked.append(list(others))
        return Change(removed=[kept], added=[stage(out, "a", "_unrouted", "3")])

    asked: list[list[StagedFile]] = []
    files = [stage(out, "b", "x", "4"), stage(out, "b", "_unrouted", "2")]
    assert tables.replace_scores(out, files, date=DAY, categories=["x", "_unrouted"], run_id="b",
                                 metadata={}, take_over=take_over)
    assert asked == [[kept]] and version(out) == at + 1
    assert seen(out) == [("_unrouted", "2"), ("_unrouted", "3"), ("x", "4")]


def append(out: str, run_id: str, *names: str, look: Callable[[], object] = lambda: None) -> bool:
    """Adds images that no live file has, as a run would."""
    def decide(live: Sequence[StagedFile]) -> Change:
        there = {row["image_id"] for file in live for row in
                 tables.read(out, "scores", file.date, files=[file]).to_pylist()}
        look()
        new = [name for name in names if name not in there]
        return Change(added=[stage(out, run_id, "x", *new)] if new else [], rows=len(new))

    return tables.append_scores(out, decide, date=DAY, run_id=run_id, metadata={"igd.m": "n"})


def test_rows_are_added_beside_those_of_every_run_and_once(out: str) -> None:
    assert publish(out, "a", {"x": ["1"]}) and append(out, "b", "1", "2", "3")
    last = DeltaTable(f"{out}/scores").history(1)[0]
    assert (last["igd.run_id"], last["igd.rows"], last["igd.m"]) == ("b", "2", "n")
    at = version(out)
    assert append(out, "b", "9") is False
    assert append(out, "c", "1", "2") is True  # nothing to add, no commit
    assert version(out) == at and seen(out) == [("x", "1"), ("x", "2"), ("x", "3")]
    assert publish(out, "d", {"x": ["4"]}) and append(out, "b", "1") is False


def test_two_that_add_at_once_see_each_other(out: str) -> None:
    publish(out, "old", {"x": ["0"]})
    barrier = threading.Barrier(2)
    looked: list[str] = []

    def meet() -> None:
        looked.append("")
        if len(looked) <= 2:
            barrier.wait(timeout=60)

    assert in_threads(*[lambda run=run: append(out, run, "1", "2", look=meet)
                        for run in ("a", "b")]) == [True, True]
    assert seen(out) == [("x", "0"), ("x", "1"), ("x", "2")] and len(looked) == 3


def test_a_snapshot_is_of_one_version(out: str) -> None:
    assert tables.snapshot(out, "scores") == (0, []) and not Path(out).exists()
    publish(out, "a", {"x": ["1"]})
    first = tables.snapshot(out, "scores")
    publish(out, "b", {"x": ["2"]})
    assert tables.snapshot(out, "scores", first[0]) == first != tables.snapshot(out, "scores")
    with pytest.raises(StorageError, match="cannot be read"):
        tables.snapshot(out, "scores", 99)


def heatmap(out: str, run_id: str, image: str) -> StagedFile:
    rows = pa.Table.from_pylist([{
        "run_id": run_id, "image_id": image, "heatmap": b"png", "heatmap_min": 0.0,
        "heatmap_max": 1.0, "date": DAY, "category": "x"}], schema=HEATMAPS)
    return tables.stage(out, "heatmaps", rows, date=DAY, category="x", stem=run_id)


def test_a_run_is_appended_once_and_beside_other_runs(out: str) -> None:
    for run_id in ("a", "a", "b", "a"):
        tables.append_once(out, "heatmaps", [heatmap(out, run_id, f"of {run_id}")], run_id=run_id)
    assert version(out, "heatmaps") == 2
    rows = tables.read(out, "heatmaps", DAY, columns=["image_id"])
    assert sorted(rows["image_id"].to_pylist()) == ["of a", "of b"]
    tables.append_once(out, "heatmaps", [], run_id="c")
    assert version(out, "heatmaps") == 2


def test_a_run_appended_from_two_threads_stands_there_once(out: str) -> None:
    jobs = [lambda run=run: tables.append_once(out, "heatmaps", [heatmap(out, run, run)],
                                               run_id=run) for run in ("a", "a", "b", "b")]
    assert in_threads(*jobs) == [None] * 4
    rows = tables.read(out, "heatmaps", DAY, columns=["image_id"])
    assert sorted(rows["image_id"].to_pylist()) == ["a", "b"]


def test_output_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    new, empty, foreign = tmp_path / "new", tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    (foreign / "sub").mkdir(parents=True)
    (foreign / "sub" / "thesis.tex").write_text("years of work")
    for fine in (new, empty):
        tables.check_output(str(fine))
        tables.claim_output(str(fine))
        publish(str(fine), "a", {"x": ["1"]})
        tables.check_output(str(fine))
    for bad in (foreign, foreign / "sub" / "thesis.tex"):
        with pytest.raises(ConfigError, match=r"holds something else \((sub/thesis\.tex|a file)\)"):
            tables.check_output(str(bad))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_of_a_large_file_no_more_than_the_columns_asked_for_is_read(
        place: str, tmp_path: Path, request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path) if place == "local" else request.getfixturevalue("bucket")
    digests = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(20_000)]
    rows = score_rows("a", "x", [digest[:32] for digest in digests])
    rows = rows.set_column(rows.schema.get_field_index("sha256"), "sha256", pa.array(digests))
    file = tables.stage(out, "scores", rows, date=DAY, category="x", stem="a-00000000")
    tables.replace_scores(out, [file], date=DAY, categories=["x"], run_id="a", metadata={})
    whole = tables.read(out, "scores", DAY, files=[replace(file, size=1)])
    assert whole.equals(rows)
    read: list[int] = []

    def ranged(uri: str, offset: int, length: int, real: Any = storage.read_range,
               **version: str) -> bytes:
        read.append(length)
        return bytes(real(uri, offset, length, **version))

    monkeypatch.setattr(storage, "read_range", ranged)
    columns = ["image_id", "category"]
    assert tables.read(out, "scores", DAY, columns=columns).equals(whole.select(columns))
    assert 0 < sum(read) < file.size / 2
    assert tables.read(out, "scores", DAY).equals(whole)
    where = storage.join(out, "scores", file.path)
    storage.delete(where)
    with pytest.raises(ObjectMissingError):
        tables.read(out, "scores", DAY, columns=columns)


def test_without_a_table_there_is_nothing_to_read(out: str) -> None:
    assert tables.live_files(out, "scores", DAY) == [] and seen(out) == []
    assert runs(out, ["x"]) == set()
    assert not Path(out).exists()


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("carried_out", [True, False])
def test_a_commit_whose_reply_was_lost_is_looked_up_and_made_once(
        place: str, carried_out: bool, out: str, request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch) -> None:
    out = out if place == "local" else storage.join(request.getfixturevalue("bucket"), "out")
    publish(out, "a", {"x": ["1"]})
    commit = DeltaTable.create_write_transaction
    lost: list[str] = []

    def loses_its_first_reply(self: DeltaTable, *how: Any, **more: Any) -> None:
        if carried_out or lost:
            commit(self, *how, **more)
        if not lost:
            lost.append("reply")
            raise OSError("connection closed before a reply came")
    monkeypatch.setattr(DeltaTable, "create_write_transaction", loses_its_first_reply)
    assert publish(out, "b", {"x": ["2"]})
    assert lost and seen(out) == [("x", "2")]
    delta = tables._open(out, "scores")
    assert delta is not None and delta.version() == 2


def test_a_commit_that_fails_for_good_is_given_up(
        out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("\x1b[31mno route\nto host\x1b[0m")
    monkeypatch.setattr(DeltaTable, "create_write_transaction", fails)
    monkeypatch.setattr(tables, "UNKNOWN_S", 0.2)
    with pytest.raises(StorageError, match=r"scores failed: no route to host$"):
        publish(out, "a", {"x": ["1"]})
