"""What no reader and no run needs any more: replaced rows, files of no commit, dead runs.

Delta says which files of a table nobody reads; which of them a run still needs is judged here. A
run that was never published and that nobody has touched for the age is dead. It is marked first
and looked at once more, so that of its removal and of a process that goes on with it at this very
moment one sees the other (`Run.hold`). The plan and the records of a published run stay, since
`verify` needs them.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from igd import storage, tables
from igd.errors import ConfigError, DataError, StorageError
from igd.pipelines.run import COLLECTED

SHORTEST = timedelta(days=1)
"""No reader has a table open for longer, and no run that is alive is silent for longer."""

STAGED = re.compile(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}-g\d+-\d{8}-[0-9a-f]{12}\.parquet")
"""The name of a file that a run put inside a table; one of another name is somebody else's."""
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
"""What a writer on a local disk leaves when it is killed."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """An object that can go.

    Attributes:
        why: `replaced`, `orphan`, `dead run` or `temporary`.
    """

    uri: str
    bytes: int
    why: str


def collect(out: str, *, older_than: timedelta, dry_run: bool = False) -> dict[str, Any]:
    """Removes what has been of no use for an age, or only finds it.

    Returns:
        `files` (uri, bytes, why), their number and bytes `by_reason`, the dead `runs`, and
        `retired_files`: of tables beside `scores`, how many files left them because their runs'
        rows are gone or never came; those go an age later. `uploads` to S3 that never ended, and
        `problems` with finding them.

    Raises:
        ConfigError: an age below `SHORTEST`.
        DataError: `out` is no output of igd-ray.
    """
    if older_than < SHORTEST:
        raise ConfigError(f"--older-than: expected at least {SHORTEST // timedelta(hours=1)}h; "
                          "readers and runs may need what is younger")
    out = storage.canonical(out)
    if storage.stat(storage.join(out, tables.MARKER)) is None:
        raise DataError(f"{out} is no output of igd-ray, so nothing in it may be removed")
    with_heatmaps = {tables.staged_run(file.path) for file in tables.live_files(out, "heatmaps")}
    runs = _judge_runs(out, older_than, mark=not dry_run)
    garbage = [found for run in runs.dead for found in _state_of(out, run)]
    for table in tables.SCHEMAS:
        garbage += _unneeded(out, table, older_than, runs.alive)
    if storage.is_local(out):
        garbage += _temporary(out, older_than)
    going = {found.uri for found in garbage}
    if not dry_run:
        for uri in going:
            storage.delete(uri)
    # While score rows may be read, at an older version of the table too, so may their heatmaps.
    read = {tables.staged_run(entry.key) for entry in storage.list_objects(
        storage.join(out, "scores")) if entry.uri not in going}
    unread = {"heatmaps": with_heatmaps - read - runs.alive, "sources": runs.gone}
    retired = {table: len(tables.retire(out, table, of, dry_run=dry_run))
               for table, of in unread.items()}
    problems = []
    try:
        uploads = storage.abort_uploads(out, time.time() - older_than.total_seconds(),
                                        dry_run=dry_run)
    except StorageError as error:  # not every endpoint knows them; all else is done by now
        uploads, problems = [], [str(error)]
    return {"out": out, "dry_run": dry_run, "older_than_s": older_than.total_seconds(),
            "files": [vars(found) for found in garbage], "by_reason": _sums(garbage),
            "runs": runs.dead, "retired_files": retired, "uploads": uploads, "problems": problems}


@dataclass(kw_only=True)
class _Runs:
    """Runs that were never published.

    Attributes:
        gone: the dead ones, also those of which nothing but the mark was left.
    """

    dead: list[str] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


def _judge_runs(out: str, older_than: timedelta, *, mark: bool) -> _Runs:
    runs = _Runs()
    names = storage.list_dirs(storage.join(out, "runs"))
    live = {tables.staged_run(file.path) for file in tables.live_files(out, "scores")}
    for name in names:
        at = storage.join(out, "runs", name)
        if name in live or storage.stat(storage.join(at, "published.json")) is not None:
            continue
        touched = _touched(at)
        if touched is None:  # all of it is gone, or its first object is still being written
            if storage.exists_dir(storage.join(at, COLLECTED)):
                runs.gone.add(name)
        elif touched > time.time() - older_than.total_seconds() or (
                mark and not _marked(at, older_than)):
            runs.alive.add(name)
        else:
            runs.dead.append(name)
            runs.gone.add(name)
    return runs


def _marked(at: str, older_than: timedelta) -> bool:
    """Marks a run as dead; takes that back where somebody has touched it meanwhile.

    Every process has a mark of its own, for one that is taken back must not undo another's. Its
    age is by the clock of the storage, which a wrong clock of this machine does not move.
    """
    mark = storage.join(at, COLLECTED, uuid.uuid4().hex)
    storage.write_bytes(mark, b"{}\n")
    now = storage.stat(mark)
    touched = _touched(at)
    if now is not None and (touched or 0.0) <= now.modified_s - older_than.total_seconds():
        return True
    storage.delete(mark)
    return False


def _touched(at: str) -> float | None:
    """When a run's state was last written to; None where none is left."""
    return max((entry.modified_s for entry in _objects(at)), default=None)


def _objects(at: str) -> Iterator[storage.Entry]:
    return (entry for entry in storage.list_objects(at)
            if not entry.key.startswith(f"{COLLECTED}/"))


def _state_of(out: str, run: str) -> Iterator[Garbage]:
    for entry in _objects(storage.join(out, "runs", run)):
        yield Garbage(uri=entry.uri, bytes=entry.size, why="dead run")


def _unneeded(out: str, table: str, older_than: timedelta, alive: set[str]) -> Iterator[Garbage]:
    replaced, unnamed = tables.unneeded(out, table, math.ceil(older_than / timedelta(hours=1)))
    orphans = [path for path in unnamed if STAGED.fullmatch(path.rsplit("/", 1)[-1])
               and tables.staged_run(path) not in alive]
    why = dict.fromkeys(replaced, "replaced") | dict.fromkeys(orphans, "orphan")
    if why:
        for entry in storage.list_objects(storage.join(out, table)):
            if entry.key in why:
                yield Garbage(uri=entry.uri, bytes=entry.size, why=why[entry.key])


def _temporary(out: str, older_than: timedelta) -> Iterator[Garbage]:
    latest_s = time.time() - older_than.total_seconds()
    for entry in storage.list_objects(out):
        if TEMPORARY.fullmatch(entry.key.rsplit("/", 1)[-1]) and entry.modified_s <= latest_s:
            yield Garbage(uri=entry.uri, bytes=entry.size, why="temporary")


def _sums(garbage: Iterable[Garbage]) -> dict[str, dict[str, int]]:
    sums: dict[str, dict[str, int]] = {}
    for found in garbage:
        reason = sums.setdefault(found.why, {"files": 0, "bytes": 0})
        reason["files"] += 1
        reason["bytes"] += found.bytes
    return dict(sorted(sums.items()))
