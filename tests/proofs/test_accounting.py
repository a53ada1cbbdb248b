"""The checker sees each kind of harm, and nothing else, in real Delta tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from chaos.accounting import METRICS, Expected, count, keys_in, said_of, watched
from chaos.places import Place
from chaos.steps import label
from deltalake import write_deltalake

DAY = "2026-01-02"
OLD, NEW = ("old.tar", 2), ("new.tar", 3)


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(uri=str(tmp_path / "out"), settings={})


def rows(source: tuple[str, int], score: float = 0.5) -> list[dict[str, Any]]:
    name, members = source
    return [{"source_uri": name, "member": f"{n}.png", "ordinal": n, "status": "scored",
             "reject_reason": None, "score": score, "p_value": 0.1, "decision": "normal",
             "regions": [{"x0": 1}], "category": "weave", "sha256": "00", "run_id": name,
             "image_id": f"{name}{n}", "date": date.fromisoformat(DAY)} for n in range(members)]


def publish(place: Place, found: Sequence[dict[str, Any]], mode: Any = "overwrite") -> None:
    schema = pa.Table.from_pylist(rows(OLD)).schema.set(
        4, pa.field("reject_reason", pa.string()))
    write_deltalake(f"{place.uri}/scores", pa.Table.from_pylist(list(found), schema=schema),
                    mode=mode, partition_by=["date", "category"])


def expected(place: Place, tmp_path: Path, **settings: Any) -> Expected:
    """What an undisturbed run of the new images says."""
    there = Place(uri=str(tmp_path / "undisturbed"), settings={})
    publish(there, rows(NEW))
    return Expected(rows=dict(said_of(there, DAY)), **settings)


def harm(place: Place, want: Expected, since: int = -1, seen: Sequence[Any] = ()
         ) -> dict[str, int]:
    found = count(place, DAY, want, since, seen)
    assert sorted(found) == sorted(METRICS)
    return {name: number for name, number in found.items() if number}


def wait_for_lines(file: Path, number: int) -> None:
    deadline = time.monotonic() + 30
    while file.read_text().count("\n") < number and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize(("published", "harmed"), [
    (rows(NEW), {}),
    (rows(NEW)[1:], {"lost": 1, "early": 2}),
    (rows(NEW) + rows(NEW)[:2], {"dup": 2, "early": 3}),
    (rows(NEW) + rows(("else.tar", 1)), {"ghost": 1, "early": 4}),
    (rows(NEW, score=0.6), {"drift": 3}),
    ([*rows(NEW)[:2], {**rows(NEW)[2], "status": "rejected"}], {"drift": 1}),
])
def test_each_harm_has_its_number(place, tmp_path, published, harmed) -> None:
    publish(place, published)
    assert harm(place, expected(place, tmp_path)) == harmed


def test_a_true_reject_of_what_was_hit_is_no_drift_but_another_score_is(place, tmp_path) -> None:
    reject = {**rows(NEW)[2], "status": "rejected", "reject_reason": "crc"}
    publish(place, [*rows(NEW)[:2], reject])
    key = ("new.tar", "2.png", 2)
    assert harm(place, expected(place, tmp_path, rejects={key: frozenset({"crc"})})) == {}
    assert harm(place, expected(place, tmp_path, rejects={key: frozenset({"denied"})})) == {
        "drift": 1}
    publish(place, [*rows(NEW)[:2], {**rows(NEW)[2], "score": 0.7}])
    assert harm(place, expected(place, tmp_path, rejects={key: frozenset({"crc"})})) == {
        "drift": 1}


def test_every_version_of_the_table_is_looked_at(place, tmp_path) -> None:
    publish(place, rows(OLD))
    before = frozenset(keys_in(place, DAY))
    want = expected(place, tmp_path, before=before)
    publish(place, rows(NEW))
    assert harm(place, want, since=0) == {}
    publish(place, rows(OLD))  # it comes back
    publish(place, rows(NEW)[:1])  # in part
    publish(place, rows(NEW))
    assert harm(place, want, since=0) == {"early": 2, "regress": 2}
    assert place.publications(DAY) == 5


def test_an_empty_date_before_the_backfill_is_a_regress(place, tmp_path) -> None:
    publish(place, rows(OLD))
    want = expected(place, tmp_path, before=frozenset(keys_in(place, DAY)))
    publish(place, [])
    publish(place, rows(NEW))
    assert harm(place, want, since=0) == {"regress": 2}


def test_of_two_runs_at_once_either_may_stand_but_no_mix(place, tmp_path) -> None:
    want = expected(place, tmp_path)
    there = Place(uri=str(tmp_path / "other"), settings={})
    publish(there, rows(OLD))
    either = Expected(rows=want.rows, else_rows=dict(said_of(there, DAY)))
    publish(place, rows(OLD))
    assert harm(place, either) == {}
    publish(place, rows(NEW), mode="append")
    assert harm(place, either)["ghost"] == 2


def test_a_torn_file_is_found_whether_a_commit_names_it_or_not(place, tmp_path) -> None:
    publish(place, rows(NEW))
    place.write("heatmaps/date=2026-01-02/half.parquet", b"PAR1")
    assert harm(place, expected(place, tmp_path)) == {"torn": 1}


def test_the_reader_writes_down_what_comes_in_sight(place, tmp_path) -> None:
    with watched(place, DAY, tmp_path / "seen") as seen:
        publish(place, rows(NEW)[:1])
        wait_for_lines(tmp_path / "seen", 2)
        publish(place, rows(NEW))
        wait_for_lines(tmp_path / "seen", 3)
    assert [len(view["keys"]) for view in seen] == [0, 1, 3]
    assert harm(place, expected(place, tmp_path), since=1, seen=seen) == {"early": 1}


def test_a_write_has_the_same_label_on_every_date() -> None:
    at = "out/step-7/runs/2026-01-0{}-0123456789ab-g1/shards/000003-{}.parquet"
    one, other = (label(at.format(*drawn), ()) for drawn in ((1, "a" * 12), (2, "b" * 12)))
    assert one == other == "runs/RUN-g1/shards/000003-*.parquet#1"
    assert label(at.format(1, "c" * 12), [one]).endswith("#2")
