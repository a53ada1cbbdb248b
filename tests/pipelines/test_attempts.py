"""Attempts at a shard: those that end leave nothing, those that die are counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from igd import storage
from igd.errors import StorageError
from igd.pipelines import attempts
from igd.pipelines.attempts import attempt


def die(run_at: str, shard: int) -> None:
    code = ("import os, sys; from igd.pipelines.attempts import attempt\n"
            "with attempt(sys.argv[1], int(sys.argv[2])): os._exit(9)")
    subprocess.run([sys.executable, "-c", code, run_at, str(shard)], timeout=60,
                   env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.mark.parametrize("where", ["local", "s3"])
def test_attempts_that_died_are_counted_for_their_shard(where, tmp_path, request) -> None:
    run_at = str(tmp_path) if where == "local" else request.getfixturevalue("bucket")
    for shard in (1, 1, 12):
        die(run_at, shard)
    died = {}
    for shard in (0, 1, 2, 12):
        with attempt(run_at, shard) as died[shard]:
            pass
    assert died == {0: 0, 1: 2, 2: 0, 12: 1}


def test_an_attempt_that_ends_leaves_no_mark(tmp_path) -> None:
    with pytest.raises(StorageError, match="gone"), attempt(str(tmp_path), 3):
        assert len(list(storage.list_objects(str(tmp_path)))) == 1
        raise StorageError("gone")
    assert list(storage.list_objects(str(tmp_path))) == []


def test_a_shard_that_kills_every_worker_ends_its_run_and_is_tried_again_by_the_next(
        tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(attempts, "HOPELESS", 2)
    for shard in (3, 3, 4):
        die(str(tmp_path), shard)
    with pytest.raises(StorageError, match=r"shard 3 of .* has cost 2 workers"), attempt(
            str(tmp_path), 3):
        pytest.fail("went on")
    died = {}
    for shard in (3, 4):
        with attempt(str(tmp_path), shard) as died[shard]:
            pass
    assert died == {3: 0, 4: 1}


def test_a_mark_that_cannot_be_taken_away_costs_no_work(tmp_path, monkeypatch) -> None:
    def refuse(uri: str) -> None:
        raise StorageError("out of reach")
    monkeypatch.setattr(storage, "delete", refuse)
    with attempt(str(tmp_path), 3) as died:
        assert died == 0
