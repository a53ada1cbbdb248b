"""Delta tables: files staged inside a table, one commit that puts them in sight, and reading.

A file named in a commit is never written again. The commit on `scores` is the publish point of
a run: it replaces the run's date and categories at once, or adds to them, so that a reader sees
the old rows or the new ones, never a mix.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date as Date
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from igd import storage
from igd.errors import ConfigError, DataError, LostRaceError, StorageError
from igd.records import HEATMAPS, PARTITION_BY, SCORES, SOURCES, UNROUTED

SCHEMAS = {"scores": SCORES, "heatmaps": HEATMAPS, "sources": SOURCES}
MARKER = ".igd-ray.json"
MAX_COMMIT_ATTEMPTS = 30
UNKNOWN_S = 30.0
"""How long the outcome of a commit is asked for after its reply was lost."""
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
WHOLE_BYTES = 1024 * 1024
"""A file of so many bytes is read whole; of a larger one, only the columns asked for."""


@dataclass(frozen=True, kw_only=True)
class StagedFile:
    """A Parquet file inside a table that no commit names yet.

    Attributes:
        path: relative to the table.
    """

    path: str
    size: int
    rows: int
    date: Date
    category: str | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """Files that leave and enter a table in one commit.

    Attributes:
        added: staged by now.
        rows: of those added, how many are the publishing run's own.
    """

    removed: list[StagedFile] = field(default_factory=list)
    added: list[StagedFile] = field(default_factory=list)
    rows: int = 0


Decide = Callable[[Sequence[StagedFile]], Change]
"""Live files of the snapshot that a commit is made on to what it changes among them."""


def check_output(out: str) -> None:
    """Refuses a location that holds something else than an output of igd-ray.

    Raises:
        ConfigError: it does.
    """
    if storage.stat(storage.join(out, MARKER)) is not None:
        return
    # A writer killed while it made the marker has left no more than its temporary file.
    found = next((entry for entry in storage.list_objects(out)
                  if not (entry.key.startswith(".") and entry.key.endswith(".tmp"))), None)
    if found is not None or storage.stat(out) is not None:
        what = found.key if found is not None else "a file"
        raise ConfigError(f"output {out} holds something else ({what}); expected an empty or new "
                          "location, or one that igd-ray has written before")


def claim_output(out: str) -> None:
    """Marks a location as an output of igd-ray."""
    storage.put_if_absent(storage.join(out, MARKER), b'{"made_by": "igd-ray", "layout": 1}\n')


def partition_columns(table: str) -> list[str]:
    """The partition columns of a table; they are in the log and the path, not in the files."""
    return [name for name in PARTITION_BY if name in SCHEMAS[table].names]


def stage(out: str, table: str, rows: pa.Table, *, date: Date, category: str | None,
          stem: str) -> StagedFile:
    """Writes rows as one new file inside a table, unseen until a commit names it.

    Args:
        rows: with the table's schema, all of one date and category.
        stem: beginning of the file name, for people and for `gc`.
    """
    schema = SCHEMAS[table]
    partitions = partition_columns(table)
    data = rows.select(schema.names).cast(schema).drop_columns(partitions)
    sink = io.BytesIO()
    pq.write_table(data, sink, compression="zstd")
    values = {"date": date.isoformat(), "category": category}
    folder = "/".join(f"{name}={values[name]}" for name in partitions)
    path = f"{folder}/{stem}-{uuid.uuid4().hex[:12]}.parquet"
    storage.write_bytes(storage.join(out, table, path), sink.getvalue())
    return StagedFile(path=path, size=sink.tell(), rows=len(rows), date=date, category=category)


def append_once(out: str, table: str, files: Sequence[StagedFile], *, run_id: str) -> None:
    """Adds a run's files to a table in one commit, or does nothing where that is done already."""
    app_id = f"igd/{table}/run={run_id}"

    def attempt(delta: DeltaTable) -> bool:
        if delta.transaction_version(app_id) is None and files:
            delta.create_write_transaction(
                [_action(file) for file in files], mode="append", schema=SCHEMAS[table],
                partition_by=partition_columns(table),
                commit_properties=CommitProperties(
                    custom_metadata={"igd.run_id": run_id}, max_commit_retries=0,
                    app_transactions=[Transaction(app_id, 1)]))
        return True

    _until_committed(out, table, attempt)


def replace_scores(out: str, files: Sequence[StagedFile], *, date: Date,
                   categories: Sequence[str], run_id: str, metadata: Mapping[str, str],
                   take_over: Decide = lambda others: Change()) -> bool:
    """The publish point: one commit that replaces a date's categories by a run's rows.

    What goes is everything of earlier generations of the same request, and what other runs
    have in the categories; their unrouted images stay, for those are of other dumps.

    Args:
        take_over: given the date's files that stay, what goes of them all the same; asked anew
            on every snapshot.

    Returns:
        False where the rows of this very run are in place already.

    Raises:
        LostRaceError: another run published one of the categories while this one was at it, or
            a later generation of the same request is in place.
    """
    before: set[str] | None = None

    def attempt(delta: DeltaTable) -> bool:
        nonlocal before
        found = list(_files_of(delta, date))
        replaced = replaced_by(run_id, categories, found)
        live = {staged_run(file.path) for file in replaced}
        if live == {run_id}:
            return False
        _refuse_to_follow(live, run_id, date)
        if before is not None and live != before:
            raise _lost_to(live, run_id, date)
        before = live
        others = take_over([file for file in found if file not in replaced])
        change = Change(removed=[*replaced, *others.removed], added=[*files, *others.added])
        _publish(delta, change, date, run_id, metadata)
        return True

    return _until_committed(out, "scores", attempt)


def append_scores(out: str, decide: Decide, *, date: Date, run_id: str,
                  metadata: Mapping[str, str]) -> bool:
    """The publish point of a run that adds to a date: one commit, or none with nothing to add.

    Args:
        decide: given the live files of every date, what is to change; asked anew on every
            snapshot.

    Returns:
        False where this very run was committed before.

    Raises:
        LostRaceError: a later generation of the same request is in place.
    """
    once = Transaction(f"igd/scores/run={run_id}", 1)

    def attempt(delta: DeltaTable) -> bool:
        if delta.transaction_version(once.app_id) is not None:
            return False
        live = list(_files_of(delta, None))
        _refuse_to_follow({staged_run(file.path) for file in live}, run_id, date)
        change = decide(live)
        if change.added or change.removed:
            _publish(delta, change, date, run_id, {**metadata, "igd.rows": str(change.rows)}, once)
        return True

    return _until_committed(out, "scores", attempt)


def replaced_by(run_id: str, categories: Sequence[str],
                files: Iterable[StagedFile]) -> list[StagedFile]:
    """Those of a date's live files that a run's publication replaces, its own among them."""
    mine = set(categories) - {UNROUTED}
    return [file for file in files
            if file.category in mine or _generation(staged_run(file.path), run_id) > 0]


def live_files(out: str, table: str, date: Date | None = None) -> list[StagedFile]:
    """The files (of a date) that the table's newest version names; empty without a table."""
    delta = _open(out, table)
    return [] if delta is None else list(_files_of(delta, date))


def snapshot(out: str, table: str, version: int | None = None) -> tuple[int, list[StagedFile]]:
    """A version of a table (the newest) and its files; version 0 without files where it is not."""
    delta = _open(out, table, version)
    return (0, []) if delta is None else (delta.version(), list(_files_of(delta, None)))


def listing(out: str, table: str, date: Date | None = None) -> dict[str, Any]:
    """What a reader without Delta support has to read, from one version of a table.

    Returns:
        table, version, and `files` by path: uri, date, category, rows, bytes. On a local disk a
        uri is a plain absolute path, which every reader takes.

    Raises:
        ConfigError: there is no such kind of table.
        DataError: the table is not there.
    """
    if table not in SCHEMAS:
        raise ConfigError(f"--table {table!r}: expected one of {', '.join(SCHEMAS)}")
    delta = _open(out, table)
    if delta is None:
        raise DataError(f"no table {table} in {out}; run igd-ray score first")
    at = storage.canonical(storage.join(out, table))
    place = storage.local_path(at) if storage.is_local(at) else at
    return {"table": table, "version": delta.version(), "files": [
        {"uri": f"{place}/{file.path}", "date": file.date.isoformat(), "category": file.category,
         "rows": file.rows, "bytes": file.size}
        for file in sorted(_files_of(delta, date), key=lambda file: file.path)]}


def unneeded(out: str, table: str, hours: int) -> tuple[list[str], list[str]]:
    """Files in a table's folder that its newest version does not name, relative to the table.

    Returns:
        Those that a commit removed more than `hours` ago, and those that no commit names and that
        were written more than `hours` ago, also where there was no commit yet.
    """
    delta = _open(out, table)
    if delta is None:
        latest_s = time.time() - 3600 * hours
        return [], [entry.key for entry in storage.list_objects(storage.join(out, table))
                    if entry.modified_s <= latest_s]
    try:
        removed, unnamed = ({unquote(path) for path in delta.vacuum(
            retention_hours=hours, dry_run=True, enforce_retention_duration=False, full=full)}
            for full in (False, True))
    except (DeltaError, OSError) as error:
        raise StorageError(f"table {storage.join(out, table)} cannot be listed: {error}") from error
    return sorted(removed), sorted(unnamed - removed)


def retire(out: str, table: str, runs: Collection[str], *,
           dry_run: bool = False) -> list[StagedFile]:
    """Takes the files of some runs out of a table, in one commit; they stay where they are."""
    files: list[StagedFile] = []

    def attempt(delta: DeltaTable) -> bool:
        nonlocal files
        files = [file for file in _files_of(delta, None) if staged_run(file.path) in runs]
        if files and not dry_run:
            delta.create_write_transaction(
                list(map(_removal, files)), mode="append", schema=SCHEMAS[table],
                partition_by=partition_columns(table),
                commit_properties=CommitProperties(
                    custom_metadata={"igd.retired": str(len(files))}, max_commit_retries=0))
        return True

    if runs and _open(out, table) is not None:
        _until_committed(out, table, attempt)
    return files


def read(out: str, table: str, date: Date, *, columns: Sequence[str] | None = None,
         files: Sequence[StagedFile] | None = None) -> pa.Table:
    """Rows of a date (or of some of its files) with the partition columns, in table order."""
    schema = SCHEMAS[table]
    wanted = list(columns) if columns is not None else schema.names
    parts = [_read_file(out, table, file, wanted)
             for file in (live_files(out, table, date) if files is None else files)]
    empty = schema.empty_table().select(wanted)
    return pa.concat_tables([empty, *parts])


def staged_run(path: str) -> str:
    """The run a file of a table belongs to, from its name."""
    return staged_stem(path).rsplit("-", 1)[0]


def staged_stem(path: str) -> str:
    """What `stage` was told to begin a file's name with."""
    return path.rsplit("/", 1)[-1].rsplit("-", 1)[0]


def _read_file(out: str, table: str, file: StagedFile, wanted: Sequence[str]) -> pa.Table:
    schema = SCHEMAS[table]
    inside = [name for name in wanted if name not in partition_columns(table)]
    rows = _parquet(storage.join(out, table, file.path), file.size).read(columns=inside)
    values: dict[str, Any] = {"date": file.date, "category": file.category}
    for name in partition_columns(table):
        if name in wanted:
            column = pa.repeat(pa.scalar(values[name], schema.field(name).type), len(rows))
            rows = rows.append_column(name, column)
    return rows.select(list(wanted)).cast(pa.schema([schema.field(name) for name in wanted]))


def _parquet(uri: str, size: int) -> pq.ParquetFile:
    entry = storage.stat(uri) if size > WHOLE_BYTES else None
    if entry is None:
        return pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
    return pq.ParquetFile(pa.PythonFile(storage.RangedFile(entry), mode="r"), pre_buffer=True)


def _action(file: StagedFile) -> AddAction:
    values: dict[str, str | None] = {"date": file.date.isoformat()}
    if file.category is not None:
        values["category"] = file.category
    return AddAction(path=file.path, size=file.size, partition_values=values,
                     modification_time=int(time.time() * 1000), data_change=True,
                     stats=json.dumps({"numRecords": file.rows}))


def _removal(file: StagedFile) -> RemoveAction:
    action = _action(file)
    return RemoveAction(path=action.path, data_change=True, size=action.size,
                        deletion_timestamp=action.modification_time,
                        partition_values=dict(action.partition_values))


def _publish(delta: DeltaTable, change: Change, date: Date, run_id: str,
             metadata: Mapping[str, str], *once: Transaction) -> None:
    """Commits on exactly this snapshot of `scores`, or fails."""
    app_id = f"igd/scores/date={date.isoformat()}"
    version = (delta.transaction_version(app_id) or 0) + 1
    delta.create_write_transaction(
        [*map(_removal, change.removed), *map(_action, change.added)], mode="append",
        schema=SCORES, partition_by=list(PARTITION_BY),
        commit_properties=CommitProperties(
            custom_metadata={"igd.run_id": run_id, **metadata}, max_commit_retries=0,
            app_transactions=[Transaction(app_id, version), *once]))


def _refuse_to_follow(live: Collection[str], run_id: str, date: Date) -> None:
    """Raises where a later generation of a run's request has published."""
    mine = _generation(run_id, run_id)
    if later := [other for other in live if _generation(other, run_id) > mine]:
        raise _lost_to(later, run_id, date)


def _lost_to(others: Collection[str], run_id: str, date: Date) -> LostRaceError:
    return LostRaceError(f"run {', '.join(sorted(others))} published {date} while this run "
                         f"({run_id}) was at work; run the command again to replace its rows")


def _generation(run_id: str, other: str) -> int:
    """The generation of a run, where it is of the same request as another; else 0."""
    stem = other.rsplit("-g", 1)[0] + "-g"
    number = run_id.removeprefix(stem)
    return int(number) if run_id.startswith(stem) and number.isdigit() else 0


def _files_of(delta: DeltaTable, date: Date | None) -> Iterator[StagedFile]:
    actions = pa.table(delta.get_add_actions(flatten=True))
    for row in actions.to_pylist():
        of = Date.fromisoformat(str(row["partition.date"]))
        if date is None or of == date:
            yield StagedFile(path=unquote(row["path"]), size=row["size_bytes"],
                             rows=row["num_records"], date=of,
                             category=row.get("partition.category"))


def _open(out: str, table: str, version: int | None = None) -> DeltaTable | None:
    location, options = storage.delta_location(storage.join(out, table))
    try:
        return DeltaTable(location, version=version, storage_options=options)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise StorageError(f"table {location} cannot be read: {_said(error)}; check that the "
                           "endpoint is reachable and the bucket exists") from error


def _open_or_create(out: str, table: str) -> DeltaTable:
    """A table; errors as of the client."""
    found = _open(out, table)
    if found is not None:
        return found
    location, options = storage.delta_location(storage.join(out, table))
    with contextlib.suppress(CommitFailedError):  # somebody else made it at the same moment
        DeltaTable.create(location, SCHEMAS[table], mode="ignore", storage_options=options,
                          partition_by=partition_columns(table))
    return DeltaTable(location, storage_options=options)


def _said(error: Exception) -> str:
    """A message of delta-rs, on one line and without colours."""
    return " ".join(ANSI_COLOUR.sub("", str(error)).split())


def _until_committed(out: str, table: str, attempt: Callable[[DeltaTable], bool]) -> bool:
    """Runs an attempt on a fresh snapshot until it commits or decides that nothing is to do.

    An error of the storage may have come after the commit: what became of it is looked up.
    """
    unknown_since: float | None = None
    for tries in range(MAX_COMMIT_ATTEMPTS):
        try:
            done = attempt(_open_or_create(out, table))
            return done or unknown_since is not None
        except CommitFailedError:
            pass
        except (DeltaError, OSError) as error:
            unknown_since = unknown_since or time.monotonic()
            if time.monotonic() - unknown_since > UNKNOWN_S:
                raise StorageError(
                    f"commit on {storage.join(out, table)} failed: {_said(error)}") from error
        time.sleep(random.uniform(0, min(2.0, 0.05 * 2**tries)))
    raise StorageError(f"commit on {storage.join(out, table)} was refused {MAX_COMMIT_ATTEMPTS} "
                       "times; another writer does not stop")
