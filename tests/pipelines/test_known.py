"""--new-only: every image once under all dates, and tried again where nothing lasting is known."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from batch_runs import begun, do_shards
from deltalake import DeltaTable

from igd import registry, storage, tables
from igd.config import preset_config
from igd.errors import LostRaceError
from igd.pipelines import parts
from igd.pipelines import score as scoring
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.gc import collect
from igd.pipelines.known import PASSING, known_ids
from igd.pipelines.parts import make_plan, plan_parts
from igd.pipelines.publish import audit, publish
from igd.pipelines.run import Request, Run
from igd.pipelines.shards import read_records
from igd.records import SCORES, Reason

pytestmark = pytest.mark.usefixtures("no_cluster")
NIGHTS = [date(2026, 1, day) for day in (2, 3, 4)]


@pytest.fixture
def nightly(asked):
    """The nightly command over some sources: `nightly(source, night=1)`."""
    def ask(*sources: str, night: int = 0, **changes) -> Request:
        return asked(*sources, date=NIGHTS[night], new_only=True, **changes)
    return ask


def rows_of(wanted: Request) -> list[dict]:
    """Rows of every date; each (date, category, image) once."""
    found = [row for file in tables.live_files(wanted.out, "scores") for row in
             tables.read(wanted.out, "scores", file.date, files=[file]).to_pylist()]
    assert len({(row["date"], row["category"], row["image_id"]) for row in found}) == len(found)
    return found


def counts(wanted: Request) -> Counter:
    return Counter((row["date"].day, row["category"]) for row in rows_of(wanted))


def versions(wanted: Request) -> list[int]:
    return [DeltaTable(storage.local_path(storage.join(wanted.out, table))).version()
            for table in tables.SCHEMAS]


def grow(source: str, folder, **counts: int) -> None:
    """Adds images to a dump and leaves those there as they are."""
    for path in Path(folder("late", **counts)).rglob("*.png"):
        target = Path(source) / path.parent.name / path.name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            path.rename(target)


def scored_without(wanted: Request, path: Path) -> dict:
    """Runs a command while one planned file is away."""
    begun(wanted)
    away = path.rename(path.parent.parent / "away")
    summary = scoring.score(wanted)
    away.rename(path)
    return summary


@pytest.mark.parametrize("kind", ["dir", "tar", "zip", "parquet"])
def test_a_night_without_anything_new_commits_nothing(nightly, dump, contents, kind) -> None:
    source = dump(kind)
    first = scoring.score(nightly(source))
    assert first["planned"] == len(contents) and first["known"] == 0
    wanted = nightly(source, night=1)
    before, at = rows_of(wanted), versions(wanted)
    summary = scoring.score(wanted)
    assert (summary["state"], summary["planned"], summary["known"]) == (
        "nothing new", 0, len(contents))
    assert summary["exit_code"] == 0 and not summary["already_published"]
    assert scoring.score(wanted)["already_published"]  # such a night is done
    assert versions(wanted) == at and rows_of(wanted) == before


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_dump_that_grew_adds_to_what_is_there(nightly, folder, place, tmp_path,
                                                request) -> None:
    source = folder("d", weave=3, nobody=1)
    root = str(tmp_path) if place == "local" else request.getfixturevalue("bucket")
    out = storage.join(root, "out")
    wanted = nightly(source, out=out)
    scoring.score(wanted)
    assert scoring.score(wanted)["already_published"]
    grow(source, folder, weave=5, washer=1)
    again = scoring.score(wanted)
    assert (again["generation"], again["planned"], again["known"]) == (2, 3, 4)
    assert counts(wanted) == {(2, "weave"): 5, (2, "washer"): 1, (2, "_unrouted"): 1}
    grow(source, folder, weave=6)
    assert scoring.score(nightly(source, night=1, out=out))["planned"] == 1
    assert counts(wanted)[3, "weave"] == 1 and len(rows_of(wanted)) == 8
    assert collect(wanted.out, older_than=timedelta(days=7))["files"] == []


def test_a_date_without_images_is_done_without_a_table(nightly, tmp_path) -> None:
    (tmp_path / "nothing").mkdir()
    wanted = nightly(str(tmp_path / "nothing"))
    assert scoring.score(wanted)["state"] == "nothing new"
    assert scoring.score(wanted)["already_published"]
    assert not any((Path(storage.local_path(wanted.out)) / name).exists() for name in
                   tables.SCHEMAS)


def test_rejects_name_their_model_and_count_as_done(nightly, dump, tiny_models) -> None:
    wanted = nightly(dump("dir"))
    scoring.score(wanted)
    version = registry.production_version(str(tiny_models), "weave")
    rejects = [row for row in rows_of(wanted) if row["status"] == "rejected"]
    assert {(row["reject_reason"], row["preset"], row["model_version"],
             row["score_fingerprint"] is None) for row in rejects} == {
        ("empty", "fast", version, False), ("not_image", "fast", version, False),
        ("unrouted", None, None, True), ("unknown_category", None, None, True)}


def test_an_image_that_was_away_is_tried_again_until_it_is_read(nightly, folder) -> None:
    wanted = nightly(folder("d", weave=3))
    first = scored_without(wanted, Path(folder("d")) / "weave" / "001.png")
    assert first["rejected"] == {"vanished": 1}
    tomorrow = scoring.score(nightly(folder("d"), night=1))
    assert (tomorrow["planned"], tomorrow["scored"], tomorrow["known"]) == (1, 1, 2)
    assert scoring.score(wanted)["state"] == "nothing new"
    assert len(rows_of(wanted)) == 4  # the reject of the first night stays with its date


def test_the_same_night_tries_again_by_itself_and_replaces_the_reject(nightly, folder) -> None:
    wanted = nightly(folder("d", weave=3))
    scored_without(wanted, Path(folder("d")) / "weave" / "001.png")
    again = scoring.score(wanted)
    assert (again["generation"], again["planned"], again["rejected"]) == (2, 1, {})
    assert [row["status"] for row in rows_of(wanted)] == ["scored"] * 3
    assert sorted(row["generation"] for row in rows_of(wanted)) == [1, 1, 2]
    assert scoring.score(wanted)["already_published"]


def test_only_the_very_model_and_a_lasting_reason_make_an_image_known(tmp_path) -> None:
    told = [("v1", "bits", None), ("v1", "bits", "empty"), ("v1", "bits", "vanished"),
            ("v1", "other bits", None), ("v2", "bits", None), (None, None, "empty"),
            (None, None, "unrouted"), (None, None, "unknown_category"), (None, None, "denied")]
    rows = [{"image_id": f"{number:032x}", "source_uri": "s", "source_version": "v",
             "member": "m", "ordinal": 0, "run_id": "r", "generation": 1, "status": "any",
             "reject_reason": reason, "model_version": version, "score_fingerprint": bits,
             "schema_version": 1, "scored_at": datetime.now(UTC), "date": NIGHTS[0],
             "category": "weave"} for number, (version, bits, reason) in enumerate(told)]
    file = tables.stage(str(tmp_path), "scores", pa.Table.from_pylist(rows, schema=SCORES),
                        date=NIGHTS[0], category="weave", stem="r-00000000")

    def known(*about: object) -> list[int]:
        return [int(found.hex(), 16) for found in
                map(bytes, known_ids(str(tmp_path), file, *about).view("V16"))]

    assert known({"version": "v1", "score_fingerprint": "bits"}) == [0, 1]
    assert known(None, "unrouted") == [6] and known(None, "unknown_category") == [7]
    assert known(None) == [0, 1, 3, 4, 5, 6, 7]


def test_reasons_that_pass_are_reasons() -> None:
    assert {"vanished", "changed", "denied"} <= set(PASSING) & set(Reason)


def test_another_model_makes_every_image_new(nightly, folder, tiny_data, tiny_models,
                                             tmp_path) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_models / "weave", models / "weave")
    wanted = nightly(folder("d", weave=2, washer=1), models=str(models))
    scoring.score(wanted)
    old = rows_of(wanted)
    for category, setting in (("weave", "calibration.folds=3"), ("washer", "seed=0")):
        train_category(CategoryTask(
            data=str(tiny_data), category=category, models=str(models),
            config=preset_config("fast", ["image.size=64", setting])))
    version = registry.production_version(str(models), "weave")
    again = scoring.score(wanted)  # the same date: new rows take the place of older ones
    assert (again["planned"], again["known"]) == (3, 0)
    assert {row["model_version"] for row in rows_of(wanted) if row["category"] == "weave"} == {
        version} != {row["model_version"] for row in old if row["category"] == "weave"}
    assert counts(wanted)[2, "weave"] == 2 and counts(wanted)[2, "washer"] == 1


def staged(wanted: Request) -> tuple[Run, dict, dict]:
    """A run that is scored and audited, and not published."""
    run, plan = begun(wanted, 2)
    do_shards(run, plan, range(plan["shards"]))
    records = read_records(run.at())
    audit(run, plan, records)
    return run, plan, records


def test_two_nights_at_once_publish_every_image_once(nightly, folder) -> None:
    source = folder("d", weave=3, nobody=1)
    nights = [staged(nightly(source, night=night)) for night in (0, 1)]
    grow(source, folder, weave=5)
    third = staged(nightly(source, night=2))
    assert all(publish(*night) for night in (*nights, third))
    wanted = third[0].request
    assert counts(wanted) == {(2, "weave"): 3, (2, "_unrouted"): 1, (4, "weave"): 2}
    assert [run.read_json("published.json")["published_meanwhile"]
            for run, *_ in (*nights, third)] == [0, 4, 4]
    assert not any(publish(*night) for night in (nights[0], third))
    for night in range(3):
        assert scoring.score(nightly(source, night=night))["planned"] in (0, 4, 5)
    assert len(rows_of(wanted)) == 6


def test_a_plan_knows_what_was_published_when_its_first_part_was_frozen(nightly, folder,
                                                                        monkeypatch) -> None:
    monkeypatch.setattr(parts, "PART_MEMBERS", 2)
    source = folder("d", weave=6)
    late, early = nightly(source, night=1), nightly(source)
    run = Run(request=late, generation=1)
    next(plan_parts(run))
    scoring.score(early)
    plan = make_plan(run)  # of the rest nothing is new by now
    assert (plan["members"], plan["known_version"]) == (2, 0)
    assert scoring.score(late)["published_meanwhile"] == 2
    assert counts(late) == {(NIGHTS[0].day, "weave"): 6}


def test_what_a_backfill_took_away_is_found_to_be_new(asked, nightly, folder) -> None:
    source = folder("d", weave=3)
    scoring.score(asked(source, date=NIGHTS[0]))
    wanted = nightly(source, night=1)
    assert scoring.score(wanted)["known"] == 3
    scoring.score(asked(folder("other", weave=1), date=NIGHTS[0]))
    assert scoring.score(wanted)["planned"] == 3
    assert counts(wanted) == {(2, "weave"): 1, (3, "weave"): 3}


def test_a_run_of_the_whole_date_replaces_what_was_added(asked, nightly, folder) -> None:
    scoring.score(nightly(folder("d", weave=3)))
    wanted = asked(folder("d2", weave=2))
    scoring.score(wanted)
    assert counts(wanted) == {(2, "weave"): 2}
    assert scoring.score(wanted)["already_published"]


def test_an_older_generation_adds_nothing_after_a_newer_one(nightly, folder) -> None:
    wanted = nightly(folder("d", weave=2))
    old = staged(wanted)
    newer = Run(request=wanted, generation=2)
    plan = make_plan(newer)
    do_shards(newer, plan, range(plan["shards"]))
    assert publish(newer, plan, read_records(newer.at()))
    with pytest.raises(LostRaceError, match="-g2 published"):
        publish(*old)
    assert counts(wanted) == {(2, "weave"): 2}


def test_a_log_that_forgot_the_planned_version_costs_reading_and_nothing_else(
        nightly, folder) -> None:
    source = folder("d", weave=3)
    scoring.score(nightly(source))
    run, plan, records = staged(nightly(source, folder("d2", weave=1), night=1))
    publish(run, {**plan, "known_version": 99}, records)
    assert counts(run.request) == {(2, "weave"): 3, (3, "weave"): 1}
