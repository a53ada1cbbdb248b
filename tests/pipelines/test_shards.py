"""Reading a shard whose readers died: the one image that does it is rejected, the rest scored."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
from PIL import Image

from igd import storage, tables
from igd.data.routing import Routing
from igd.errors import StorageError
from igd.pipelines import attempts, shards
from igd.pipelines.gc import collect
from igd.pipelines.parts import make_plan
from igd.pipelines.run import Run
from igd.pipelines.score import score
from igd.pipelines.shards import read_shard
from igd.pipelines.verify import verify

DAY = date(2026, 1, 2)
BAD_DECODER = Path(__file__).parent.parent / "bad_decoder"


def harm(path: Path, how: str) -> None:
    """An image that does harm where the decoder is `tests/bad_decoder`."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(stream, "JPEG", comment=how)
    path.write_bytes(stream.getvalue())


@pytest.fixture
def bad_decoder(monkeypatch, tmp_path) -> None:
    """Other processes than this one get a decoder that does harm on request."""
    monkeypatch.setenv("BAD_DECODER_FLAG", str(tmp_path / "flag"))
    monkeypatch.syspath_prepend(str(BAD_DECODER))


def died(run_at: str, shard: int, times: int) -> None:
    for number in range(times):
        mark = storage.join(run_at, attempts.ATTEMPTS, f"{shard:08d}-{number:032x}")
        storage.write_bytes(mark, b"{}\n")


def marks(run_at: str) -> list[str]:
    return [entry.key for entry in storage.list_objects(storage.join(run_at, attempts.ATTEMPTS))]


def said(rows: list[dict]) -> dict[str, tuple]:
    return {Path(row["source_uri"]).name: (
        row["sha256"], row["score"], row["decision"], str(row["regions"])) for row in rows}


def test_from_the_third_attempt_on_a_child_decodes(bad_decoder, asked, folder) -> None:
    source = folder("d", weave=6)
    harm(Path(source) / "weave" / "bad.jpg", "crash")
    run = Run(request=asked(source), generation=1)
    plan = make_plan(run, shard_members=7)
    died(run.at(), 1, 5)  # of another shard
    here = read_shard(run.at(), plan, 0)
    for deaths in (1, 2):
        died(run.at(), 0, deaths)
        again = read_shard(run.at(), plan, 0)
        assert len(marks(run.at())) == 5 + deaths
        if deaths < 2:
            assert again.equals(here)
    bad = [str(uri).endswith("bad.jpg") for uri in here["source_uri"]]
    good = [not is_bad for is_bad in bad]
    assert again.filter(good).equals(here.filter(good)) and sum(good) == 6
    row, = again.filter(bad).to_pylist()
    assert row["reject_reason"] == "decoder_crash" and "signal 11" in row["reject_detail"]
    assert row["pixels"] is None and row["sha256"] == here.filter(bad)["sha256"][0].as_py()


def test_a_reader_gets_time_for_every_member(asked, folder, monkeypatch) -> None:
    """A shard may take longer than the limit, as long as each of its members does not."""
    allowed: list[float] = []
    monkeypatch.setattr(shards.Watchdog, "allow", lambda self, limit_s: allowed.append(limit_s))
    run = Run(request=asked(folder("d", weave=3)), generation=1)
    plan = make_plan(run, shard_members=3)
    read_shard(run.at(), plan, 0)
    assert allowed == [shards.FETCH_S, *[shards.DECODE_S, shards.FETCH_S] * 3]
    died(run.at(), 0, 2)
    allowed.clear()
    read_shard(run.at(), plan, 0)
    assert allowed == [shards.FETCH_S] * 4


def test_an_error_that_is_no_death_is_not_counted(asked, folder, monkeypatch) -> None:
    run = Run(request=asked(folder("d", weave=2)), generation=1)
    plan = make_plan(run, shard_members=2)

    def refuse(members: object) -> None:
        raise StorageError("out of reach")
    monkeypatch.setattr(shards, "fetch", refuse)
    with pytest.raises(StorageError, match="out of reach"):
        read_shard(run.at(), plan, 0)
    assert marks(run.at()) == []


@pytest.mark.timeout(280)
def test_images_that_kill_and_hang_their_readers_do_not_stop_a_run(
        bad_decoder, no_cluster, asked, folder, tiny_models, tmp_path) -> None:
    source = folder("d", weave=6)
    wanted = asked(source, out=str(tmp_path / "undisturbed"), routing=Routing(category="weave"))
    score(wanted)
    for name, how in (("000a.jpg", "crash"), ("005a.jpg", "hang")):  # one in each shard
        harm(Path(source) / "weave" / name, how)
    out = str(tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "igd.cli", "score", source, "--models", str(tiny_models), "--out",
         out, "--date", DAY.isoformat(), "--category", "weave", "--shard-members", "4"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=240,
        capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # 2 of 8 rejected
    rows = tables.read(out, "scores", DAY).to_pylist()
    scored = [row for row in rows if row["status"] == "scored"]
    assert said(scored) == said(tables.read(wanted.out, "scores", DAY).to_pylist())
    assert len(scored) == 6
    details = {Path(row["source_uri"]).name: row["reject_detail"]
               for row in rows if row["reject_reason"] == "decoder_crash"}
    assert "signal 11" in details["000a.jpg"] and "within 5 s" in details["005a.jpg"]
    assert "decoder_crash" in done.stdout + done.stderr
    run_at, = (tmp_path / "out" / "runs").iterdir()
    assert sorted(key.split("-")[0] for key in marks(str(run_at))) == ["0" * 8] * 2 + [
        "00000001"] * 2  # two deaths each, and no more
    assert verify(out, DAY)["problems"] == []
    assert collect(out, older_than=timedelta(days=7))["files"] == []
