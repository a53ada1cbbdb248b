"""The long proofs that are committed hold what they promise."""

from __future__ import annotations

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
    if not (RESULTS / "score_chaos.json").exists():
        pytest.skip("no results of proofs/score_chaos.py at full length yet: make proof")
    document = json.loads((RESULTS / "score_chaos.json").read_text())
    cases = [case for case in document["cases"] if case["skipped"] is None]
    assert {case["kind"] for case in cases} == {
        "driver", "step", "worker", "stopped", "node", "head", "signal", "storage", "input",
        "schedulers", "stale", "disk"}
    assert sum(case["kills"] for case in cases if case["kind"] == "driver") >= 200
    assert {case["case"].rsplit(" ", 1)[0] for case in cases if case["kind"] == "step"
            and case["notes"]["left"] == 0} >= {"new", "replaced"}
    assert all(number == 0 for case in cases for number in case["metrics"].values())
    assert all(len(case["metrics"]) == 7 and case["problems"] == [] for case in cases)


def test_every_abuse_was_held_off_by_the_endpoint_or_a_reverse_proxy() -> None:
    document = json.loads((RESULTS / "abuse.json").read_text())
    found = {(one["abuse"], one["behind"]): one for one in document["abuses"]}
    assert len(found) == len(document["abuses"]) >= 50 and document["verdicts"]["WRONG"] == 0
    assert {attack.name for attack in (*floods.attacks(), *single.attacks())} == {
        name for name, behind in found if behind is None}
    bare = {name for (name, _), one in found.items() if one["verdict"] == "needs a reverse proxy"}
    assert all(found[name, "nginx"]["verdict"] == "ok" for name in bare)
    for one in found.values():
        assert one["verdict"] in ("ok", "needs a reverse proxy")
        assert one["verdict"] != "ok" or one["others"]["failed"] == 0
