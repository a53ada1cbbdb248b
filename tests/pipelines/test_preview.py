"""What a run would do, said without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from igd import storage
from igd.data.selection import selection
from igd.errors import ConfigError, ModelError
from igd.pipelines.parts import make_plan
from igd.pipelines.preview import preview
from igd.pipelines.run import Run, inputs


@pytest.fixture
def nothing_is_written(monkeypatch) -> None:
    def refuse(*_) -> None:
        raise AssertionError("written")
    for name in ("write_bytes", "put_if_absent", "delete"):
        monkeypatch.setattr(storage, name, refuse)


def test_it_counts_what_the_plan_holds(asked, dump, nothing_is_written, monkeypatch) -> None:
    wanted = asked(dump("zip"), selection=selection(exclude=["washer/*/000.png"]))
    told: list[int] = []
    found = preview(wanted, shard_members=5, progress=told.append)
    assert found["new"] is found["published"] is None and found["exit_code"] == 0
    assert found["rejected"]["unrouted"] == {
        "images": 1, "first": f"{wanted.sources[0]} loose.png"}
    assert found["rejected"]["unknown_category"]["images"] == 1
    assert found["unknown_categories"] == {"nobody": 1}
    assert found["categories"]["weave"]["preset"] == "fast"
    assert told[-1] == found["members"]
    monkeypatch.undo()
    plan = make_plan(Run(request=wanted, generation=1), shard_members=5)
    assert (plan["members"], plan["shards"]) == (found["members"], found["shards"])
    assert plan["counts"] == {name: c["images"] for name, c in found["categories"].items()}
    assert plan["source_records"] == found["sources"]
    assert plan["left_out"] == found["left_out"] > 0


@pytest.mark.parametrize("place", ["local", "s3"])
def test_it_tells_what_is_new_and_leaves_no_trace(place, asked, published_run, request,
                                                  tmp_path) -> None:
    done = published_run.request
    source = storage.local_path(done.sources[0])
    late = tmp_path / "late"
    (late / "weave").mkdir(parents=True)
    (late / "weave" / "new.png").write_bytes(b"new")
    root = str(tmp_path) if place == "local" else request.getfixturevalue("bucket")
    out = done.out if place == "local" else storage.join(root, "out")
    if place == "s3":
        storage.write_bytes(storage.join(root, "weave", "a.png"), b"x")
    before = list(storage.list_objects(root))
    sources = [source, str(late)] + ([storage.join(root, "weave")] if place == "s3" else [])
    wanted = inputs(sources, models=done.models, routing=done.routing)
    found = preview(wanted, published=(out, done.date))
    published = 28 if place == "local" else 0
    assert (found["published"], found["new"]) == (published, found["members"] - published)
    assert list(storage.list_objects(root)) == before
    assert preview(wanted, published=(out, done.date.replace(day=9)))["published"] == 0


def test_it_tells_what_new_only_would_leave(asked, published_run, tmp_path) -> None:
    done = published_run.request
    late = tmp_path / "late" / "weave" / "new.png"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"new")
    wanted = inputs([*done.sources, str(late.parents[1])], models=done.models,
                    routing=done.routing)
    found = preview(wanted, new_only=done.out)
    assert (found["known"], found["members"], found["new"]) == (28, 1, None)
    assert found["categories"]["weave"]["images"] == 1
    both = preview(wanted, new_only=done.out, published=(done.out, done.date))
    assert (both["known"], both["published"], both["new"]) == (28, 28, 1)
    plan = make_plan(Run(request=asked(*wanted.sources, new_only=True), generation=1))
    assert (plan["known"], plan["members"]) == (28, 1)


def test_a_damaged_source_is_told_with_exit_code_3(asked, dump) -> None:
    tar = Path(dump("tar"))
    tar.write_bytes(tar.read_bytes()[:9000])
    found = preview(asked(str(tar)))
    assert found["exit_code"] == 3 and found["odd_sources"][0]["status"] == "truncated"


def test_what_would_stop_the_plan_stops_the_preview(asked, dump) -> None:
    with pytest.raises(ModelError, match=r"'nobody/part.png': .*no .*'nobody'"):
        preview(asked(dump("tar")), unknown_category="error")
    with pytest.raises(ConfigError, match="'screw/\\*' matches none of 28 paths"):
        preview(asked(dump("tar"), selection=selection(["screw/*"])))
