"""Whether a plan is still of what is there."""

from __future__ import annotations

from pathlib import Path

from igd import registry
from igd.data.routing import Routing
from igd.data.selection import selection
from igd.pipelines.current import unchanged
from igd.pipelines.parts import make_plan
from igd.pipelines.run import Run


def test_a_frozen_plan_outlives_a_dump_that_grows(asked, dump, contents) -> None:
    source = dump("dir")
    run = Run(request=asked(source), generation=1)
    plan = make_plan(run)
    assert unchanged(run, plan)
    (Path(source) / "weave" / "new.png").write_bytes(b"late")
    assert not unchanged(run, plan)
    assert make_plan(run)["members"] == len(contents)


def test_what_a_selection_leaves_out_may_change(asked, dump) -> None:
    source = dump("dir")
    run = Run(request=asked(source, selection=selection(["weave/*"])), generation=1)
    plan = make_plan(run)
    (Path(source) / "washer" / "late.png").write_bytes(b"late")
    assert unchanged(run, plan)
    (Path(source) / "weave" / "late.png").write_bytes(b"late")
    assert not unchanged(run, plan)


def test_a_plan_of_an_earlier_version_is_still_compared(asked, dump) -> None:
    run = Run(request=asked(dump("dir")), generation=1)
    plan = make_plan(run)
    for name in ("selection", "left_out", "unmatched", "limited_to"):
        del plan[name]
    assert unchanged(run, plan)


def test_a_promoted_model_makes_a_difference(asked, dump, tiny_models, tmp_path) -> None:
    run = Run(request=asked(dump("tar"), routing=Routing(category="weave")), generation=1)
    plan = make_plan(run)
    plan["bundles"]["weave"]["version"] = "another"
    assert not unchanged(run, plan)
    assert registry.production_version(str(tiny_models), "weave") != "another"
