"""Batch runs on Ray Data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import polars
import psutil
import pytest
import ray

from igd import registry, storage, tables
from igd.data.routing import Routing
from igd.errors import ModelError
from igd.pipelines.score import score
from igd.pipelines.verify import verify

DAY = date(2026, 1, 2)


def rows_of(out: str) -> list[dict]:
    return tables.read(out, "scores", DAY).to_pylist()


def by_content(out: str, source: str = "") -> dict[str, tuple]:
    """What is said of each image, of a source or of all, by the hash of its bytes."""
    def held(uri: str) -> bool:
        return not source or f"{uri.removeprefix('file://')}/".startswith(f"{source}/")
    return {row["sha256"]: (row["score"], row["p_value"], row["decision"],
                            row["score_fingerprint"], str(row["regions"]))
            for row in rows_of(out)
            if row["status"] == "scored" and held(row["source_uri"])}


def test_the_same_images_score_the_same_bits_whatever_holds_them(
        cluster, asked, dump, contents, tmp_path, bucket) -> None:
    sources = [dump(kind) for kind in ("dir", "tar", "zip", "parquet", "tar.gz", "wds.tar")]
    for kind in ("tar", "zip", "parquet", "wds.tar", "tar.zst"):
        sources.append(storage.join(bucket, f"dump.{kind}"))
        storage.write_bytes(sources[-1], Path(dump(kind)).read_bytes())
    said = []
    for out, shard_members in ((str(tmp_path / "out"), 7), (storage.join(bucket, "out"), 256)):
        summary = score(asked(*sources, out=out), shard_members=shard_members)
        assert summary["state"] == "published" and summary["exit_code"] == 3  # 4 of 28 rejected
        assert summary["planned"] == len(sources) * len(contents)
        assert verify(out, DAY)["problems"] == []
        said += [by_content(out, source) for source in sources]
    assert len(said[0]) == 24
    assert all(other == said[0] for other in said[1:])


def test_a_finished_run_is_not_run_again_until_something_changed(cluster, asked, dump,
                                                                 contents) -> None:
    source = dump("dir")
    first = score(asked(source))
    assert score(asked(source))["already_published"]
    (Path(source) / "weave" / "late.png").write_bytes(contents["weave/test/good/000.png"])
    second = score(asked(source))
    assert (second["generation"], second["planned"]) == (2, first["planned"] + 1)
    rows = rows_of(asked(source).out)
    assert {row["run_id"] for row in rows} == {second["run_id"]}
    assert len(rows) == second["planned"]


def test_categories_and_dates_are_published_side_by_side(cluster, asked, dump) -> None:
    source = dump("dir")
    for category in ("weave", "washer"):
        score(asked(str(Path(source) / category), routing=Routing(category=category)))
    other = asked(str(Path(source) / "weave"), routing=Routing(category="weave"),
                  date=date(2026, 1, 3))
    score(other)
    table = polars.read_delta(str(Path(source).parent / "out" / "scores"))
    counts = table.group_by("date", "category").len().rows()
    assert sorted(counts) == [(DAY, "washer", 12), (DAY, "weave", 14),
                              (date(2026, 1, 3), "weave", 14)]


def test_a_date_without_images_is_published_as_such(cluster, asked, tmp_path) -> None:
    (tmp_path / "nothing").mkdir()
    wanted = asked(str(tmp_path / "nothing"))
    assert score(wanted)["planned"] == 0
    assert score(wanted)["already_published"]


def test_a_model_that_changed_after_planning_is_never_mixed_in(cluster, asked, dump, tiny_models,
                                                               tmp_path) -> None:
    import shutil

    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    version = registry.production_version(str(models), "weave")
    wanted = asked(dump("tar"), models=str(models))
    from igd.pipelines.parts import make_plan
    from igd.pipelines.run import Run

    make_plan(Run(request=wanted, generation=1))
    file = models / "weave" / version / "bundle.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ModelError, match="changed since"):
        score(wanted)
    assert rows_of(wanted.out) == []


@pytest.mark.parametrize(("sign", "code", "starting"), [
    (signal.SIGTERM, 143, True), (signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)])
def test_a_run_told_to_stop_stops_with_its_code(dump, tiny_models, tmp_path, sign, code,
                                                starting) -> None:
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "igd.cli", "score", dump("tar"), "--models", str(tiny_models),
         "--out", str(out), "--date", DAY.isoformat(), "--category", "weave",
         "--shard-members", "1"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    if starting:
        assert process.stderr is not None and "starting Ray" in process.stderr.readline()
        ray_starts = psutil.Process(process.pid).children
        while not ray_starts() and time.monotonic() < deadline:
            time.sleep(0.01)
        children = ray_starts(recursive=True)
    else:
        while not list(out.glob("runs/*/done/*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sign)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert "run the same command again" in said and "Traceback" not in said and "***" not in said
    assert psutil.wait_procs(children, timeout=30)[1] == []


@pytest.mark.timeout(240)
def test_a_killed_driver_goes_on_where_it_was(cluster, asked, dump, contents, tiny_models,
                                              tmp_path) -> None:
    undisturbed = asked(dump("tar"), out=str(tmp_path / "undisturbed"))
    command = [sys.executable, "-m", "igd.cli", "score", dump("tar"), "--models", str(tiny_models),
               "--date", DAY.isoformat(), "--category-from", "{category}/*",
               "--shard-members", "1", "--max-reject-share", "1",
               "--ray-address", ray.get_runtime_context().gcs_address]
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/*/done/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = set(out.glob("runs/*/done/*.json"))
    assert 0 < len(finished) < len(contents)
    assert not (out / "scores").exists()  # nothing is in sight before publication
    kept = {path: path.read_bytes() for path in finished}
    subprocess.run([*command, "--out", str(out)], check=True, timeout=120,
                   stderr=subprocess.DEVNULL)
    assert {path: path.read_bytes() for path in finished} == kept  # not scored again
    rows = rows_of(str(out))
    assert len({row["image_id"] for row in rows}) == len(rows) == len(contents)
    assert verify(str(out), DAY)["problems"] == []
    score(undisturbed)
    assert by_content(str(out)) == by_content(undisturbed.out)
