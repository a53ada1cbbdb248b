"""The end of a run: the audit that everything planned is accounted for, and the one commit."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd import tables
from igd.errors import ObjectMissingError, RunHeldError, StorageError
from igd.pipelines.known import known_ids
from igd.pipelines.ownership import Addition, Ids, IdSets, Takeover, packed
from igd.pipelines.plan import shard_rows
from igd.pipelines.run import Run
from igd.pipelines.shards import read_scored
from igd.records import SCORES, SOURCES, UNROUTED, Status
from igd.tables import StagedFile

ROWS_PER_FILE = 100_000

Record = dict[str, Any]


def audit(run: Run, plan: dict[str, Any], records: dict[int, Record]) -> None:
    """Planned = scored + rejected, each id once, files readable, checksums right.

    Raises:
        RunHeldError: naming what does not add up; nothing may be published then.
    """
    missing = sorted(set(range(plan["shards"])) - set(records))
    if missing:
        raise RunHeldError(f"run {run.run_id} is held: {len(missing)} of {plan['shards']} shards "
                           f"are not finished (first: {missing[0]}); run the command again")
    problems: list[str] = []
    ids = [packed(())]
    for shard in range(plan["shards"]):
        planned = shard_rows(run.at(), plan, shard)["image_id"].to_pylist()
        ids.append(packed(planned))
        problems.extend(_shard_problems(run, records[shard], planned))
    if len(np.unique(np.concatenate(ids))) != plan["members"]:
        problems.append(f"{plan['members']} members were planned, under fewer distinct ids")
    if problems:
        raise RunHeldError(f"run {run.run_id} is held, nothing was published: "
                           + "; ".join(problems[:5]))


def publish(run: Run, plan: dict[str, Any], records: dict[int, Record]) -> bool:
    """Puts a run's rows in sight; False where another process had done it.

    Heatmaps and sources go first, each once; the commit on `scores` is the publish point. A run
    of --new-only that found nothing new commits nothing.

    Raises:
        RunHeldError: `gc` has removed the run, which stood still for too long.
        LostRaceError: another run published meanwhile.
    """
    if not run.hold():
        raise RunHeldError(f"run {run.run_id} stood still for so long that igd-ray gc removed it; "
                           "nothing was published; run the command again")
    now = datetime.now(UTC).isoformat()
    if not plan.get("new_only"):
        _append_beside(run, plan, records)
        ours = _replace(run, plan, records)
        run.write_json("published.json", {"at": now})
    elif plan["members"]:
        _append_beside(run, plan, records)
        ours, left_out = _add(run, plan, records)
        run.create_json("published.json", {"at": now, "published_meanwhile": left_out})
    else:
        ours = run.create_json("published.json", {"at": now, "published_meanwhile": 0})
    return ours


def _append_beside(run: Run, plan: dict[str, Any], records: dict[int, Record]) -> None:
    wanted = run.request
    heatmaps = [StagedFile(path=record["heatmaps"]["path"], size=record["heatmaps"]["size"],
                           rows=record["heatmaps"]["rows"], date=wanted.date,
                           category=record["category"])
                for record in records.values() if record["heatmaps"]]
    tables.append_once(wanted.out, "heatmaps", heatmaps, run_id=run.run_id)
    sources = _source_rows(run, plan)
    tables.append_once(wanted.out, "sources", [tables.stage(
        wanted.out, "sources", sources, date=wanted.date, category=None,
        stem=f"{run.run_id}-00000000")], run_id=run.run_id)


def _replace(run: Run, plan: dict[str, Any], records: dict[int, Record]) -> bool:
    wanted = run.request
    files, owned = _stage_scores(run, records, {UNROUTED})
    return tables.replace_scores(
        wanted.out, files, date=wanted.date, categories=plan["categories"], run_id=run.run_id,
        metadata={"igd.generation": str(run.generation), "igd.rows": str(plan["members"])},
        take_over=Takeover(wanted.out, owned))


def _add(run: Run, plan: dict[str, Any], records: dict[int, Record]) -> tuple[bool, int]:
    """Adds a run's rows to those of others; also says how many others have published meanwhile."""
    wanted = run.request
    files, owned = _stage_scores(run, records, set(plan["counts"]))

    def published(file: StagedFile) -> Ids:
        return known_ids(wanted.out, file, plan["bundles"].get(file.category))

    decide = Addition(wanted.out, files, owned, date=wanted.date, published=published,
                      seen=_seen(wanted.out, plan["known_version"]))
    ours = tables.append_scores(wanted.out, decide, date=wanted.date, run_id=run.run_id,
                                metadata={"igd.generation": str(run.generation)})
    return ours, decide.left_out


def _seen(out: str, version: int) -> set[str]:
    """Files of an earlier version of `scores`; none where its log is gone."""
    try:
        return {file.path for file in tables.snapshot(out, "scores", version)[1]}
    except StorageError:
        return set()


def _stage_scores(run: Run, records: dict[int, Record],
                  shared: set[str]) -> tuple[list[StagedFile], dict[str, Ids]]:
    """The run's files, and its sorted ids of categories where rows of others stay."""
    wanted = run.request
    files: list[StagedFile] = []
    sets = IdSets(sum(record["rows"] for record in records.values()
                      if record["category"] in shared))

    def staged(category: str, parts: Iterable[pa.Table]) -> Iterator[Ids]:
        for rows in parts:
            files.append(tables.stage(wanted.out, "scores", rows, date=wanted.date,
                                      category=category, stem=f"{run.run_id}-{len(files):08d}"))
            if category in shared:
                yield packed(rows["image_id"].to_pylist())

    by_category = itertools.groupby(_large_files(run, records), key=lambda part: part[0])
    owned = {category: sets.add(staged(category, (rows for _, rows in parts)))
             for category, parts in by_category}
    return files, {category: owned[category] for category in owned if category in shared}


def _shard_problems(run: Run, record: Record, planned: list[str]) -> Iterator[str]:
    name = f"shard {record['shard']}"
    try:
        data, rows = read_scored(run.at(), record)
    except ObjectMissingError:
        yield f"{name}: its file {record['path']} is missing"
        return
    if rows is None or hashlib.sha256(data).hexdigest() != record["sha256"]:
        yield f"{name}: its file {record['path']} is damaged"
        return
    if rows["image_id"].to_pylist() != planned:
        yield f"{name}: {len(planned)} members planned, {len(rows)} rows of other ids written"
    rejected = sum(record["rejected"].values())
    scored = rows["status"].to_pylist().count(Status.SCORED)
    if scored + rejected != len(planned):
        yield f"{name}: {scored} scored and {rejected} rejected of {len(planned)}"
    finite = pc.sum(pc.is_finite(rows["score"])).as_py() or 0
    if finite != scored:
        yield f"{name}: {scored} scored rows, {finite} finite scores"


def _large_files(run: Run, records: dict[int, Record]) -> Iterator[tuple[str, pa.Table]]:
    """Score rows by category, up to `ROWS_PER_FILE` at a time, in plan order."""
    pending: list[pa.Table] = []
    current: str | None = None
    for record in sorted(records.values(), key=lambda r: (r["category"], r["shard"])):
        full = sum(map(len, pending)) + record["rows"] > ROWS_PER_FILE
        if pending and current is not None and (record["category"] != current or full):
            yield current, pa.concat_tables(pending)
            pending = []
        current = record["category"]
        _, rows = read_scored(run.at(), record)
        assert rows is not None  # the audit has read it
        pending.append(rows.cast(SCORES))
    if pending and current is not None:
        yield current, pa.concat_tables(pending)


def _source_rows(run: Run, plan: dict[str, Any]) -> pa.Table:
    common = {"run_id": run.run_id, "date": run.request.date}
    return pa.Table.from_pylist([{**common, **record} for record in plan["source_records"]],
                                schema=SOURCES)
