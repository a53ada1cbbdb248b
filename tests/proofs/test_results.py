"""The long proofs that are committed hold what they promise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from attacks import floods, single

RESULTS = Path(__file__).parents[2] / "proofs" / "results"


@pytest.mark.parametrize(("name", "rounds"), [("train_chaos", 5), ("train_chaos_trainers", 2)])
def test_no_kill_cost_a_category_a_version_or_a_bit(name: str, rounds: int) -> None:
    document = json.loads((RESULTS / f"{name}.json").read_text())
    kinds = [found["kind"] for found in document["rounds"]]
    assert all(kinds.count(kind) >= rounds for kind in ("worker", "node", "driver"))
    assert all(found["problems"] == [] and found["exit_codes"][-1] == 0
               for found in document["rounds"])


def test_no_fault_cost_scoring_an_image_or_a_bit() -> None:
    cases = [case for name in ("score_chaos", "score_chaos_signals")
             for case in json.loads((RESULTS / f"{name}.json").read_text())["cases"]
             if case["skipped"] is None]
    assert {case["kind"] for case in cases} == {
        "driver", "step", "worker", "stopped", "node", "head", "signal", "storage", "input",
        "schedulers", "stale", "disk"}
    assert sum(case["kills"] for case in cases if case["kind"] == "driver") >= 200
    assert {case["case"].rsplit(" ", 1)[0] for case in cases if case["kind"] == "step"
            and case["notes"]["left"] == 0} >= {"new", "replaced", "new only"}
    assert all(number == 0 for case in cases for number in case["metrics"].values())
    assert all(len(case["metrics"]) == 7 and case["problems"] == [] for case in cases)


def test_every_abuse_was_held_off_by_the_endpoint_or_a_reverse_proxy() -> None:
    document = json.loads((RESULTS / "abuse.json").read_text())
    found = {(one["abuse"], one["behind"]): one for one in document["abuses"]}
    assert len(found) == len(document["abuses"]) >= 50 and document["verdicts"]["WRONG"] == 0
    assert {attack.name for attack in (
        *floods.attacks(), *single.attacks(), *floods.of_strangers())} == {
            name for name, behind in found if behind is None}
    bare = {name for (name, _), one in found.items() if one["verdict"] == "needs a reverse proxy"}
    assert all(found[name, "nginx"]["verdict"] == "ok" for name in bare)
    for one in found.values():
        assert one["verdict"] in ("ok", "needs a reverse proxy")
        assert one["verdict"] != "ok" or one["others"]["failed"] == 0


def test_the_tiles_score_to_the_same_bits_whatever_holds_them() -> None:
    document = json.loads((RESULTS / "containers.json").read_text())
    runs = document["runs"]
    containers = ("directory", "tar", "tar.gz", "zip", "wds.tar", "parquet")
    assert sorted((run["container"], run["place"]) for run in runs) == sorted(
        itertools.product(containers, ("local", "s3")))
    assert len({run["shard_members"] for run in runs}) >= 3
    assert len({run["workers"] for run in runs}) >= 2
    assert document["images"] >= 1000 and len(document["decisions"]) >= 2
    assert all((run["images"], run["rejected"]) == (document["images"], 0) for run in runs)
    assert all(run["differing"] == {"first run": {"rows": 0}, "in process": {"rows": 0}}
               for run in runs)
    for name in ("scores_sha256", "said_sha256"):
        assert {run[name] for run in runs} == {document["in_process"][name]}


def test_other_libraries_see_the_tiles_and_their_heatmaps() -> None:
    document = json.loads((RESULTS / "containers.json").read_text())
    images, size = document["images"], [document["input_px"]] * 2
    assert document["readers"].keys() == {"local", "s3"}
    for place in document["readers"].values():
        seen = {name: place[name] for name in ("Polars", "DuckDB", "pandas", "deltalake")}
        assert seen == dict.fromkeys(seen, seen["Polars"])
        assert (seen["Polars"]["rows"], seen["Polars"]["heatmaps"]) == (images, images)
        assert seen["Polars"]["heatmap_sizes"] == [size]


def test_no_disturbance_cost_a_request_that_it_need_not_have() -> None:
    cases = [case for name in ("serve_chaos", "serve_chaos_stop")
             for case in json.loads((RESULTS / f"{name}.json").read_text())["cases"]]
    kinds = [case["kind"] for case in cases]
    assert all(kinds.count(kind) >= 3 for kind in (
        "replica", "scorer", "ingress", "promotion", "stop"))
    assert all(case["problems"] == [] for case in cases)
    parity, = (case for case in cases if case["kind"] == "parity")
    assert parity["images"] == 50 and set(parity["differing"].values()) == {0}
    assert set(parity["differing"]) == {
        "folder", "tar", "endpoint", "together", "inference protocol"}
    many, = (case for case in cases if case["kind"] == "many")
    assert (many["requests"], many["wrong"], many["failed"]) == (2000, 0, 0)
    assert many["categories"] == many["different_scores"] == 20 < many["evicted"]
    for case in cases:
        if case["kind"] in ("scorer", "promotion"):
            assert set(case["answers"]) == {"200"}
