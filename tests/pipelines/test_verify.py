"""A published date against plans and inputs: what is lost, what is made up, what went its way."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from igd import storage, tables
from igd.data import sources
from igd.data.routing import Routing
from igd.data.selection import selection
from igd.errors import ObjectDeniedError, StorageError
from igd.pipelines import recount, verify
from igd.pipelines import score as scoring
from igd.pipelines.recount import routing_of
from igd.pipelines.recount.ranged import UncountableError
from igd.pipelines.run import read_document, to_json

from .conftest import as_tar

pytestmark = pytest.mark.usefixtures("no_cluster")


def verified(wanted) -> dict:
    return verify.verify(wanted.out, wanted.date)


def only_source(wanted) -> dict:
    """What is told of the one source of a date in which nothing is wrong."""
    found = verified(wanted)
    assert found["problems"] == []
    source, = found["inputs"]
    return source


def changed_rows(wanted, change: Callable[[pa.Table], pa.Table],
                 file: tables.StagedFile | None = None) -> list[str]:
    """Problems after a live file, by default the last, was rewritten behind Delta's back."""
    file = file or tables.live_files(wanted.out, "scores", wanted.date)[-1]
    path = Path(storage.local_path(wanted.out)) / "scores" / file.path
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    return verified(wanted)["problems"]


def changed_plan(wanted, summary: dict, **changes: object) -> None:
    at = storage.join(wanted.out, "runs", summary["run_id"], "plan.json")
    storage.write_bytes(at, to_json({**(read_document(at) or {}), **changes}))


# -- the same images


@pytest.mark.parametrize("kind", ["dir", "tar", "zip", "parquet"])
def test_what_was_planned_is_found_again(asked, dump, contents, kind) -> None:
    wanted = asked(dump(kind))
    scoring.score(wanted)
    found = only_source(wanted)
    assert found["images"] == len(contents)
    assert not any(found[name] for name in ("lost", "ghosts", "new_objects", "from_plan"))


def test_odd_files_are_found_again(asked, tmp_path) -> None:
    place = tmp_path / "d"
    (place / "deep" / "er").mkdir(parents=True)
    for name in (b"\xff.png", b".hidden", b"a b.TAR.gz", b"deep/er/x.tar.bz2", b"zero.tar",
                 b"\xc3\xa9.zip"):
        (place / os.fsdecode(name)).write_bytes(b"")
    (place / "in.TAR").write_bytes(as_tar({"weave/in.zip": b"x", "weave/a": b"", "a\nb": b""}))
    os.mkfifo(place / "pipe.tar")
    (place / "loop.png").symlink_to("loop.png")
    wanted = asked(str(place))
    planned = scoring.score(wanted)["planned"]
    assert only_source(wanted)["images"] == planned > 5


def test_on_s3(asked, contents, bucket) -> None:
    data = dict(list(contents.items())[:6])
    storage.write_bytes(f"{bucket}/in/a.tar", as_tar(data))
    storage.write_bytes(f"{bucket}/in/weave/b.png", b"")
    wanted = asked(f"{bucket}/in", out=f"{bucket}/out")
    scoring.score(wanted)
    assert only_source(wanted)["images"] == 7
    storage.delete(f"{bucket}/in/weave/b.png")
    storage.write_bytes(f"{bucket}/in/a.tar", as_tar({"weave/other.png": b""}))
    found = only_source(wanted)
    assert found["gone"] == {"objects": 1, "rows": 1}
    assert found["changed"] == {"objects": 1, "rows": 6} and found["new_objects"] == 0
    for entry in list(storage.list_objects(f"{bucket}/in")):
        storage.delete(entry.uri)
    assert only_source(wanted)["gone"] == {"objects": 2, "rows": 7}


@pytest.mark.parametrize("kind", ["dir", "tar"])
@pytest.mark.parametrize("picked", [
    selection(include=["weave/*", "loose*"]), selection(exclude=["*/good/*"]),
    selection(limit=9), selection(exclude=["weave/*"], limit=5)])
def test_only_what_was_picked_is_looked_for(asked, dump, kind, picked) -> None:
    wanted = asked(dump(kind), selection=picked)
    planned = scoring.score(wanted)["planned"]
    found = only_source(wanted)
    assert (found["images"], found["new_objects"]) == (planned, 0)


def test_what_stands_beside_an_image_needs_no_row(asked, dump, tmp_path, contents,
                                                  monkeypatch) -> None:
    path = tmp_path / "w.tar"
    image = contents["weave/test/good/000.png"]
    path.write_bytes(as_tar({"weave/1.png": image, "weave/1.json": b"{}", "weave/2.txt": b""}))
    wanted = asked(str(path))
    misled(monkeypatch, lambda members: [
        member for member in members if not member.name.endswith(".json")])
    assert scoring.score(wanted)["planned"] == 2
    assert only_source(wanted)["images"] == 2


@pytest.mark.parametrize("kind", ["parquet", "dir"])
def test_a_column_tells_no_category_and_its_rows_are_found(asked, dump, kind) -> None:
    wanted = asked(dump(kind), routing=Routing(column="product"))
    planned = scoring.score(wanted)["planned"]
    assert only_source(wanted)["images"] == planned


@pytest.mark.parametrize("routing", [
    Routing(category="weave"), Routing(pattern="{category}/*"),
    Routing(pattern="column {category}"), Routing(column="product"), Routing(column="a column")])
def test_a_routing_is_read_as_a_plan_describes_it(routing) -> None:
    assert routing_of(routing.describe()) == routing


# -- what a planning pass did wrong


def misled(monkeypatch, change: Callable) -> None:
    """A planning pass that finds in archives what it should not."""
    walk = sources._walk
    monkeypatch.setattr(sources, "_walk", lambda *where: (
        (member, "") for member in change([member for member, _ in walk(*where)])))


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_an_image_that_no_plan_held_is_lost(asked, dump, monkeypatch, kind) -> None:
    wanted = asked(dump(kind))
    misled(monkeypatch, lambda members: members[:3] + members[4:])
    scoring.score(wanted)
    problem, = verified(wanted)["problems"]
    assert "1 images in it have no row" in problem and "washer/test" in problem


def test_a_category_that_no_plan_held_is_lost(asked, dump, monkeypatch) -> None:
    wanted = asked(dump("tar"))
    misled(monkeypatch, lambda members: [
        member for member in members if not member.name.startswith("washer")])
    scoring.score(wanted)
    assert any("12 images in it have no row" in line for line in verified(wanted)["problems"])


def test_an_image_of_no_entry_is_a_ghost(asked, dump, monkeypatch) -> None:
    wanted = asked(dump("tar"))
    misled(monkeypatch, lambda members: [
        *members, dataclasses.replace(members[0], ordinal=len(members))])
    scoring.score(wanted)
    problem, = verified(wanted)["problems"]
    assert "1 rows are of no image in it" in problem


def test_a_wrong_category_is_lost_and_found(asked, dump, monkeypatch) -> None:
    wanted = asked(dump("tar"))
    scan = sources.scan
    monkeypatch.setattr("igd.pipelines.listing.scan", lambda *args, **how: (
        (path.replace("washer", "weave") if path.endswith("good/000.png") else path, member)
        for path, member in scan(*args, **how)))
    scoring.score(wanted)
    lost, ghost = verified(wanted)["problems"]
    assert "1 images in it have no row" in lost and "washer/test/good/000.png" in lost
    assert "1 rows are of no image" in ghost


# -- what became of the table


def test_a_row_that_went_is_missed_by_plan_and_inputs(asked, dump) -> None:
    wanted = asked(dump("tar"))
    scoring.score(wanted)
    problems = changed_rows(wanted, lambda rows: rows.slice(1))
    assert [line for line in problems if "1 planned images have no row" in line]
    assert [line for line in problems if "1 images in it have no row" in line]
    assert [line for line in problems if "its commit says" in line]


def test_a_row_that_was_added_is_found_out(asked, dump) -> None:
    wanted = asked(dump("tar"))
    scoring.score(wanted)

    def add(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("image_id")
        return pa.concat_tables([rows, rows.slice(0, 1).set_column(
            at, rows.schema.field(at), pa.array(["f" * 32]))])

    problems = changed_rows(wanted, add)
    assert [line for line in problems if "1 rows were never planned" in line and "f" * 32 in line]
    assert [line for line in problems if "1 rows are of no image in it" in line]


def test_a_row_that_stands_twice_is_found_out(asked, dump) -> None:
    wanted = asked(dump("tar"))
    scoring.score(wanted)
    problems = changed_rows(wanted, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))
    assert [line for line in problems if "1 image ids stand more than once in category" in line]


def test_a_row_of_no_source_is_found_out(asked, folder) -> None:
    wanted = asked(folder("d", weave=2))
    scoring.score(wanted)

    def move(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("source_uri")
        texts = pc.replace_substring(rows["source_uri"], "/d/weave/000", "/e/weave/000")
        ids = rows["image_id"].to_pylist()
        moved = rows.set_column(at, rows.schema.field(at), texts)
        ids[next(i for i, text in enumerate(texts.to_pylist()) if "/e/" in text)] = "e" * 32
        return moved.set_column(0, rows.schema.field(0), pa.array(ids))

    assert [line for line in changed_rows(wanted, move) if "1 rows are of no image in it" in line]


def test_a_heatmap_that_went_is_missed(asked, folder) -> None:
    wanted = asked(folder("d", weave=2), heatmaps="all")
    scoring.score(wanted)
    DeltaTable(storage.local_path(storage.join(wanted.out, "heatmaps"))).delete()
    assert verified(wanted)["problems"] == ["2 heatmaps are missing"]


@pytest.mark.parametrize(("column", "value", "problem"), [
    ("score", None, "scored rows without a finite score"),
    ("decision", None, "scored rows without a decision"),
    ("image_id", "no id", "rows without a valid image id"),
])
def test_a_row_without_sense_is_found_out(asked, folder, column, value, problem) -> None:
    wanted = asked(folder("d", weave=2))
    scoring.score(wanted)

    def spoil(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index(column)
        kind = rows.schema.field(at).type
        return rows.set_column(at, rows.schema.field(at), pa.array([value] * len(rows), kind))

    assert f"2 {problem}" in changed_rows(wanted, spoil)


def test_a_row_that_passes_for_another_runs_is_found_out(asked, folder) -> None:
    wanted = asked(folder("d", weave=2))
    scoring.score(wanted)
    other = scoring.score(asked(folder("e", washer=2)))

    def claim(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("run_id")
        runs = rows["run_id"].to_pylist()
        assert runs[0] != other["run_id"]
        return rows.set_column(at, rows.schema.field(at), pa.array([other["run_id"], *runs[1:]]))

    file = next(file for file in tables.live_files(wanted.out, "scores", wanted.date)
                if file.category == "weave")
    problems = changed_rows(wanted, claim, file)
    assert [line for line in problems if "1 rows were never planned" in line]


# -- what became of the inputs


def test_what_left_changed_or_came_is_told_and_no_mismatch(asked, folder) -> None:
    place = Path(folder("d", weave=4, washer=1))
    (place / "a.tar").write_bytes(as_tar({"weave/1": b"", "weave/2": b""}))
    (place / "b.tar").write_bytes(as_tar({"weave/1": b"", "weave/2": b"", "weave/3": b""}))
    wanted = asked(str(place))
    scoring.score(wanted)
    (place / "weave" / "000.png").unlink()
    (place / "b.tar").unlink()
    (place / "weave" / "001.png").write_bytes(b"another")
    (place / "a.tar").write_bytes(as_tar({"weave/1": b"another"}))
    (place / "weave" / "z.png").write_bytes(b"late")
    (place / "late.tar").write_bytes(as_tar({"weave/1": b""}))
    found = only_source(wanted)
    assert found["images"] == 3
    assert found["gone"] == {"objects": 2, "rows": 1 + 3}
    assert found["changed"] == {"objects": 2, "rows": 1 + 2}
    assert found["new_objects"] == 2
    shutil.rmtree(place)
    assert only_source(wanted)["gone"] == {"objects": 7, "rows": 10}


def test_an_archive_that_ends_too_early_is_told_and_counted_as_planned(asked, dump,
                                                                       contents) -> None:
    path = Path(dump("tar"))
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2 + 700])
    wanted = asked(str(path))
    planned = scoring.score(wanted)["planned"]
    assert 0 < planned < len(contents)
    found = only_source(wanted)
    assert "unexpected end of data" in found["not_recounted"][wanted.sources[0]]
    assert found["images"] + found["from_plan"] == planned
    assert changed_rows(wanted, lambda rows: rows.slice(1))


def test_an_archive_without_an_index_is_counted_as_planned(asked, dump, monkeypatch) -> None:
    wanted = asked(dump("zip"))
    planned = scoring.score(wanted)["planned"]

    def refuse(entry: storage.Entry):
        raise UncountableError("hostile")

    monkeypatch.setattr(recount, "entries", refuse)
    found = only_source(wanted)
    assert found["not_recounted"] == {wanted.sources[0]: "hostile"}
    assert (found["images"], found["from_plan"]) == (0, planned)


def test_a_source_that_may_not_be_listed_is_told(asked, folder, monkeypatch) -> None:
    wanted = asked(folder("d", weave=2), folder("e", washer=1))
    scoring.score(wanted)
    objects = recount.objects

    def refuse(source: str):
        if source.endswith("/d"):
            raise ObjectDeniedError("access denied")
        return objects(source)

    monkeypatch.setattr(recount, "objects", refuse)
    found = verified(wanted)
    assert found["problems"] == []
    assert [(source["images"], source["not_listed"], source["from_plan"])
            for source in found["inputs"]] == [(0, "access denied", 2), (1, None, 0)]


def test_storage_out_of_reach_is_no_answer(asked, dump, monkeypatch) -> None:
    wanted = asked(dump("tar"))
    scoring.score(wanted)

    def down(*_, **__):
        raise StorageError("endpoint down")

    monkeypatch.setattr(recount, "entries", down)
    with pytest.raises(StorageError, match="down"):
        verified(wanted)


def test_what_matches_a_pattern_is_counted_again(asked, folder) -> None:
    pattern = Path(folder("d1", weave=2)).parent / "d?"
    folder("d2", washer=1)
    wanted = asked(str(pattern), routing=Routing(pattern="*/{category}/*"))
    scoring.score(wanted)
    assert verified(wanted)["problems"] == []
    next(Path(folder("d1")).rglob("*.png")).unlink()
    folder("d3", weave=1)
    source, = verified(wanted)["inputs"]
    assert (source["images"], source["gone"]["rows"], source["new_objects"]) == (2, 1, 1)


def test_without_inputs_they_are_left_alone(asked, dump, monkeypatch) -> None:
    wanted = asked(dump("tar"))
    scoring.score(wanted)
    monkeypatch.setattr(recount, "objects", None)
    found = verify.verify(wanted.out, wanted.date, inputs=False)
    assert found["problems"] == [] and found["inputs"] is None


def test_progress_counts_what_is_counted_again(asked, dump, contents) -> None:
    wanted = asked(dump("tar"))
    scoring.score(wanted)
    told: list[int] = []
    verify.verify(wanted.out, wanted.date, progress=told.append)
    assert told[-1] == len(contents)


# -- several runs of a date


def test_a_category_that_another_run_replaced_is_nobodys_loss(asked, folder) -> None:
    first = asked(folder("d", weave=3, washer=1))
    scoring.score(first)
    scoring.score(asked(folder("e", weave=2)))
    found = verified(first)
    assert found["problems"] == []
    assert sorted((source["images"], source["replaced"]) for source in found["inputs"]) == [
        (1, 3), (2, 0)]


def test_a_run_that_others_replaced_whole_is_not_looked_for(asked, folder) -> None:
    wanted = asked(folder("d", weave=3))
    scoring.score(wanted)
    other = asked(folder("e", weave=2))
    scoring.score(other)
    assert only_source(wanted)["source_uri"] == other.sources[0]


@pytest.fixture
def new_only(asked, contents, tmp_path):
    """A date with three images of a tar, and the next date's run that added the fourth alone."""
    names = [name for name in contents if name.startswith("weave/test/good")][:4]
    path = tmp_path / "w.tar"
    path.write_bytes(as_tar({name: contents[name] for name in names}))
    before = asked(str(path), selection=selection(include=names[:3]))
    scoring.score(before)
    wanted = asked(str(path), date=date(2026, 1, 3), selection=selection(include=names[3:]))
    changed_plan(wanted, scoring.score(wanted), new_only=True, selection={})
    return before, wanted


def scores_table(wanted) -> DeltaTable:
    return DeltaTable(storage.local_path(storage.join(wanted.out, "scores")))


def test_what_is_published_under_another_date_is_not_lost(new_only) -> None:
    before, wanted = new_only
    assert only_source(wanted)["images"] == 1
    scores_table(wanted).delete("date='2026-01-02' and member like '%001.png'")
    problem, = verified(wanted)["problems"]
    assert "1 images in it have no row" in problem
    assert before.date != wanted.date


@pytest.mark.parametrize("fingerprint", ["same", "other"])
@pytest.mark.parametrize("files", ["%000.png", "%"])
def test_a_new_image_that_another_date_has_published_with_the_model_is_not_lost(
        asked, folder, fingerprint, files) -> None:
    source = folder("d", weave=2)
    scoring.score(asked(source))
    wanted = asked(source, date=date(2026, 1, 3))
    summary = scoring.score(wanted)
    plan = read_document(storage.join(wanted.out, "runs", summary["run_id"], "plan.json"))
    if fingerprint == "other":
        plan["bundles"]["weave"]["score_fingerprint"] = "of another version"
    changed_plan(wanted, summary, new_only=True, bundles=plan["bundles"])
    scores_table(wanted).delete(f"date='2026-01-03' and source_uri like '{files}'")
    problems = verified(wanted)["problems"]
    assert [line for line in problems if "no row" in line] == (
        [] if fingerprint == "same" else problems[:1])
    assert bool(problems) == (fingerprint == "other")


def test_a_file_that_no_date_has_is_new_to_a_run_that_only_adds(new_only, tmp_path) -> None:
    _, wanted = new_only
    place = tmp_path / "d"
    place.mkdir()
    (place / "late.png").write_bytes(b"late")
    plan, = (read_document(storage.join(wanted.out, "runs", name, "plan.json"))
             for name in storage.list_dirs(storage.join(wanted.out, "runs"))
             if name.startswith("2026-01-03"))
    changed_plan(wanted, plan, sources=[*plan["sources"], storage.canonical(str(place))])
    found = verified(wanted)
    assert found["problems"] == [] and found["inputs"][1]["new_objects"] == 1


def test_the_bytes_of_an_archive_are_not_held(asked, tmp_path) -> None:
    """A tar with a large member costs headers alone: it is hopped over."""
    path = tmp_path / "w.tar"
    with tarfile.open(path, "w") as archive:
        for name, size in (("weave/a", 1), ("weave/b", 40 << 20), ("weave/c", 1)):
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    wanted = asked(str(path), routing=Routing(category="weave"))
    assert scoring.score(wanted)["planned"] == 3
    read: list[int] = []
    really = storage.read_range

    def count(uri: str, offset: int, length: int, **how: object) -> bytes:
        read.append(length if uri.endswith("w.tar") else 0)
        return really(uri, offset, length, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_range", count)
        assert only_source(wanted)["images"] == 3
    assert sum(read) < 2 << 20
