"""Rows of a run's images are taken out of other runs' files, and no others are."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd import storage, tables
from igd.pipelines.ownership import Addition, IdSets, Takeover, among, packed
from igd.records import SCORES
from igd.tables import Change, StagedFile

DAY, OTHER_DAY = date(2026, 3, 1), date(2026, 3, 2)
numbers = st.integers(0, 40).map(lambda n: n << 120 | n)  # ids that end and begin with zero bytes


def ids(*found: int) -> list[str]:
    return [f"{number:032x}" for number in found]


@given(st.lists(numbers), st.lists(numbers))
def test_ids_are_found_among_sorted_ones_whatever_their_bytes(some: list[int],
                                                              others: list[int]) -> None:
    known = IdSets(len(others)).add([packed(ids(*others[:3])), packed(ids(*others[3:]))])
    assert among(packed(ids(*some)), known).tolist() == [number in others for number in some]


def test_sets_share_their_room_and_stay_apart() -> None:
    sets = IdSets(5)
    one, none, two = (sets.add([packed(ids(*found))]) for found in ((3, 1, 2), (), (9, 8)))
    assert one.tolist() == packed(ids(1, 2, 3)).tolist()
    assert len(none) == 0 and two.tolist() == packed(ids(8, 9)).tolist()


def staged(out: str, run: str, category: str, *found: int, day: date = DAY,
           number: int = 0) -> StagedFile:
    row = {"source_uri": "s", "source_version": "v", "member": "m", "ordinal": 0, "run_id": run,
           "generation": 1, "status": "scored", "schema_version": 1, "date": day,
           "scored_at": datetime(2026, 3, 1, tzinfo=UTC), "category": category}
    rows = pa.Table.from_pylist([{**row, "image_id": name} for name in ids(*found)], schema=SCORES)
    return tables.stage(out, "scores", rows, date=day, category=category,
                        stem=f"{run}-{number:08d}")


def held(out: str, *files: StagedFile) -> list[tuple[str, int]]:
    """(run by file name, image) of every row, whose own columns say the same run."""
    found = []
    for file in files:
        rows = tables.read(out, "scores", file.date, files=[file]).to_pylist()
        assert {row["run_id"] for row in rows} == {tables.staged_run(file.path)}
        assert len(rows) == file.rows
        found += [(row["run_id"], int(row["image_id"], 16)) for row in rows]
    return found


@pytest.mark.parametrize("place", ["local", "s3"])
def test_only_files_that_overlap_are_rewritten_under_their_own_name(
        place, tmp_path, request) -> None:
    out = str(tmp_path / "o u t") if place == "local" else request.getfixturevalue("bucket")
    some, whole, none, other = (
        staged(out, "old", "x", 1, 2, 3, number=7), staged(out, "old", "x", 4),
        staged(out, "old", "x", 5), staged(out, "old", "y", 1, 2))
    take_over = Takeover(out, {"x": packed(ids(2, 4, 9))})
    change = take_over([some, whole, none, other])
    assert change.removed == [some, whole]
    left, = change.added
    assert held(out, left) == [("old", 1), ("old", 3)]
    assert left.path != some.path and tables.staged_stem(left.path) == "old-00000007"
    assert tables.read(out, "scores", DAY, files=[left]).equals(
        tables.read(out, "scores", DAY, files=[some]).take([0, 2]))
    before = list(storage.list_objects(out))
    assert take_over([some, none, whole]).added == [left]  # nothing is staged twice
    assert list(storage.list_objects(out)) == before


def addition(out: str, files: list[StagedFile], owned: tuple[int, ...], seen=()) -> Addition:
    def published(file: StagedFile) -> np.ndarray:
        asked.append(file.path)
        return packed(ids(*(number for _, number in held(out, file))))

    asked: list[str] = []
    made = Addition(out, files, {"x": packed(ids(*owned))}, date=DAY, seen=set(seen),
                    published=published)
    made.asked = asked
    return made


def test_what_others_published_since_the_plan_is_left_to_them(tmp_path) -> None:
    """Under any date; on the run's own date, rows of other models make way."""
    out = str(tmp_path)
    mine = [staged(out, "new", "x", 1, 2), staged(out, "new", "x", 3, 4, number=1)]
    seen = staged(out, "old", "x", 1, 8)  # known at planning to be of another model
    late = staged(out, "late", "x", 3, 7, day=OTHER_DAY)
    apart = staged(out, "late", "y", 4)
    decide = addition(out, mine, (1, 2, 3, 4), [seen.path])
    change = decide([seen, late, apart])
    assert decide.asked == [late.path] and decide.left_out == 1
    assert change.removed == [seen]
    assert held(out, *change.added) == [("new", 1), ("new", 2), ("new", 4), ("old", 8)]
    assert change.rows == 3 and change.added[0] == mine[0]
    again = decide([seen])  # on a snapshot where the others' rows are gone again
    assert held(out, *again.added) == [("new", 1), ("new", 2), ("new", 3), ("new", 4), ("old", 8)]
    assert (decide.left_out, again.rows) == (0, 4)


def test_a_row_left_to_another_run_of_the_date_stays_with_it(tmp_path) -> None:
    out = str(tmp_path)
    late = staged(out, "late", "x", 1, 2, 3)
    decide = addition(out, [staged(out, "new", "x", 1, 2)], (1, 2))
    assert decide([late]) == Change()
    assert decide.left_out == 2
