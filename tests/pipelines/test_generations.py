"""Which rows a publication replaces: its own request's, and its categories', and no others."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from batch_runs import begun, do_shards

from igd import storage, tables
from igd.config import preset_config
from igd.data.routing import Routing
from igd.data.selection import selection
from igd.errors import DataError, LostRaceError, ModelError
from igd.pipelines import score as scoring
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.publish import publish
from igd.pipelines.run import Run
from igd.pipelines.shards import read_records
from igd.pipelines.verify import verify

pytestmark = pytest.mark.usefixtures("no_cluster")


def counts(wanted) -> Counter:
    rows = tables.read(wanted.out, "scores", wanted.date, columns=["category", "image_id"])
    assert len(set(rows["image_id"].to_pylist())) == len(rows)
    return Counter(rows["category"].to_pylist())


def runs_of(wanted, category: str) -> Counter:
    """How many runs have how many rows in a category."""
    rows = tables.read(wanted.out, "scores", wanted.date, columns=["category", "run_id"])
    return Counter(Counter(row["run_id"] for row in rows.to_pylist()
                           if row["category"] == category).values())


def test_rejects_of_one_dump_outlive_another_dump_of_the_date(asked, folder) -> None:
    first, second = (asked(folder(name, **images)) for name, images in (
        ("d1", {"weave": 3, "nobody": 2}), ("d2", {"washer": 3, "nobody": 1})))
    scoring.score(first)
    scoring.score(second)
    assert counts(first) == {"weave": 3, "washer": 3, "_unrouted": 3}
    assert scoring.score(first)["already_published"]
    assert scoring.score(second)["already_published"]


def test_two_requests_over_one_dump_leave_a_row_for_each_image(asked, folder) -> None:
    whole = asked(folder("d", weave=3, nobody=3))
    part = asked(*whole.sources, selection=selection(["nobody/*"], limit=2))
    scoring.score(whole)
    assert scoring.score(part)["planned"] == 2
    assert counts(whole) == {"weave": 3, "_unrouted": 3}
    assert runs_of(whole, "_unrouted") == {1: 1, 2: 1}
    assert scoring.score(whole)["already_published"] and scoring.score(part)["already_published"]


def test_a_run_all_of_whose_rows_were_taken_over_is_replaced(asked, folder) -> None:
    part = asked(folder("d", weave=1, nobody=2), selection=selection(["nobody/*"]))
    whole = asked(*part.sources)
    scoring.score(part)
    scoring.score(whole)
    assert runs_of(whole, "_unrouted") == {2: 1}
    again = scoring.score(part)  # which takes them back
    assert again["generation"] == 2 and counts(whole) == {"weave": 1, "_unrouted": 2}
    assert set(tables.read(whole.out, "scores", whole.date)["run_id"].to_pylist()) > {
        again["run_id"]}


def test_categories_scored_one_after_the_other_stand_side_by_side(asked, folder) -> None:
    """Also where both look at the very same images."""
    one, two = (asked(folder("d", weave=3), routing=Routing(category=category))
                for category in ("weave", "washer"))
    scoring.score(one)
    scoring.score(two)
    rows = tables.read(one.out, "scores", one.date)
    assert Counter(rows["category"].to_pylist()) == {"weave": 3, "washer": 3}
    assert scoring.score(one)["already_published"]


def test_a_category_that_left_the_dump_leaves_the_table(asked, folder) -> None:
    wanted = asked(folder("d", weave=3, washer=2))
    scoring.score(wanted)
    shutil.rmtree(Path(folder("d")) / "weave")
    assert scoring.score(wanted)["generation"] == 2
    assert counts(wanted) == {"washer": 2}
    assert verify(wanted.out, wanted.date)["problems"] == []


def test_a_model_that_came_later_scores_what_was_rejected(asked, folder, tiny_data, tiny_models,
                                                          tmp_path) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_models / "weave", models / "weave")
    wanted = asked(folder("d", weave=2, washer=2), models=str(models))
    assert scoring.score(wanted)["rejected"] == {"unknown_category": 2}
    train_category(CategoryTask(
        data=str(tiny_data), category="washer", models=str(models),
        config=preset_config("fast", ["image.size=64", "calibration.folds=3"])))
    assert scoring.score(wanted)["rejected"] == {}
    assert counts(wanted) == {"weave": 2, "washer": 2}


def test_with_error_no_plan_with_an_unknown_category_is_scored_or_passes_for_done(
        asked, folder) -> None:
    wanted = asked(folder("d", weave=2, nobody=1))
    begun(wanted)  # frozen, with a reject in it
    for _ in range(2):
        with pytest.raises(ModelError, match=r"'nobody/000\.png'"):
            scoring.score(wanted, unknown_category="error")
        scoring.score(wanted)
    shutil.rmtree(Path(folder("d")) / "nobody")
    assert scoring.score(wanted, unknown_category="error")["generation"] == 2
    assert counts(wanted) == {"weave": 2}


def test_a_limited_run_is_done_when_its_images_are(asked, folder) -> None:
    wanted = asked(folder("d", weave=4), selection=selection(limit=3))
    assert scoring.score(wanted)["limit_reached"]
    assert counts(wanted) == {"weave": 3}
    (Path(folder("d")) / "weave" / "z.png").write_bytes(b"late")
    assert scoring.score(wanted)["already_published"]
    assert verify(wanted.out, wanted.date)["problems"] == []


@pytest.mark.parametrize("place", ["shards", "heatmaps"])
def test_a_shard_whose_file_was_lost_is_done_again(asked, folder, place) -> None:
    wanted = asked(folder("d", weave=4), heatmaps="all")
    run, plan = begun(wanted, 2)
    do_shards(run, plan, range(plan["shards"]))
    out = Path(wanted.out.removeprefix("file://"))
    lost = next((out if place == "heatmaps" else Path(run.at().removeprefix("file://")))
                .joinpath(place).rglob("*.parquet"))
    lost.unlink()
    assert scoring.score(wanted)["scored"] == 4
    assert verify(wanted.out, wanted.date)["problems"] == []


def test_an_older_generation_never_replaces_a_newer_one(asked, folder) -> None:
    wanted = asked(folder("d", weave=2))
    scoring.score(wanted)
    old = Run(request=wanted, generation=1)
    plan, records = old.read_json("plan.json"), read_records(old.at())
    folder("d", weave=4)
    assert scoring.score(wanted)["generation"] == 2
    with pytest.raises(LostRaceError, match="-g2 published"):
        publish(old, plan, records)
    assert counts(wanted) == {"weave": 4}


def test_a_run_begun_with_other_arithmetic_is_begun_again(asked, folder) -> None:
    wanted = asked(folder("d", weave=2))
    run, plan = begun(wanted)
    plan["bundles"]["weave"]["score_fingerprint"] = "of another version"
    run.write_json("plan.json", plan)
    assert scoring.score(wanted)["generation"] == 2
    fingerprints = tables.read(wanted.out, "scores", wanted.date)["score_fingerprint"]
    assert len(set(fingerprints.to_pylist())) == 1


def test_verify_misses_a_category_that_was_deleted_whole(asked, folder) -> None:
    from deltalake import DeltaTable

    wanted = asked(folder("d", weave=2, washer=2))
    scoring.score(wanted)
    DeltaTable(storage.local_path(storage.join(wanted.out, "scores"))).delete("category='weave'")
    assert any("weave has no row" in line for line in verify(wanted.out, wanted.date)["problems"])


def test_an_emptied_dump_takes_no_published_row_away(asked, folder) -> None:
    wanted = asked(folder("d", weave=2))
    scoring.score(wanted)
    (Path(folder("d")) / "weave").rename(Path(folder("d")).parent / "elsewhere")
    for _ in range(2):
        with pytest.raises(DataError, match="2 of them are published"):
            scoring.score(wanted)
    assert counts(wanted) == {"weave": 2}
    (Path(folder("d")).parent / "elsewhere").rename(Path(folder("d")) / "weave")
    assert scoring.score(wanted)["already_published"]


def test_a_dump_that_was_empty_is_scored_when_it_comes(asked, folder) -> None:
    Path(folder("d", weave=1), "weave").rename(Path(folder("d")).parent / "elsewhere")
    wanted = asked(folder("d"))
    assert scoring.score(wanted)["planned"] == 0
    assert verify(wanted.out, wanted.date)["rows"] == 0
    assert scoring.score(wanted)["already_published"]
    folder("d", weave=2)
    assert scoring.score(wanted)["planned"] == 2 and counts(wanted) == {"weave": 2}


def test_the_null_scorer_does_all_but_score(asked, folder) -> None:
    wanted = asked(folder("d", weave=3, nobody=1), null_scorer=True, heatmaps="all")
    assert scoring.score(wanted)["scored"] == 3
    rows = tables.read(wanted.out, "scores", wanted.date).to_pylist()
    assert {row["preset"] for row in rows} == {"null", None}
    assert {row["sha256"] is None for row in rows if row["status"] == "scored"} == {False}
    assert [row["score"] for row in rows if row["status"] == "scored"] == [0.0] * 3
