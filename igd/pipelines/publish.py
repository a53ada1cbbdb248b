"""The end of a run: the audit that everything planned is accounted for, and the one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd import tables
from igd.errors import ObjectMissingError, RunHeldError
from igd.pipelines.parts import packed
from igd.pipelines.plan import shard_rows
from igd.pipelines.run import Run
from igd.pipelines.shards import read_scored
from igd.records import SCORES, SOURCES, Status
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

    Heatmaps and sources go first, each once; the commit on `scores` is the publish point.

    Raises:
        RunHeldError: `gc` has removed the run, which stood still for too long.
        LostRaceError: another run published meanwhile.
    """
    wanted = run.request
    if not run.hold():
        raise RunHeldError(f"run {run.run_id} stood still for so long that igd-ray gc removed it; "
                           "nothing was published; run the command again")
    heatmaps = [StagedFile(path=record["heatmaps"]["path"], size=record["heatmaps"]["size"],
                           rows=record["heatmaps"]["rows"], date=wanted.date,
                           category=record["category"])
                for record in records.values() if record["heatmaps"]]
    tables.append_once(wanted.out, "heatmaps", heatmaps, run_id=run.run_id)
    sources = _source_rows(run, plan)
    tables.append_once(wanted.out, "sources", [tables.stage(
        wanted.out, "sources", sources, date=wanted.date, category=None,
        stem=f"{run.run_id}-00000000")], run_id=run.run_id)
    files = [tables.stage(wanted.out, "scores", rows, date=wanted.date, category=category,
                          stem=f"{run.run_id}-{number:08d}")
             for number, (category, rows) in enumerate(_large_files(run, records))]
    replaced = tables.replace_scores(
        wanted.out, files, date=wanted.date, categories=plan["categories"], run_id=run.run_id,
        metadata={"igd.generation": str(run.generation), "igd.rows": str(plan["members"])})
    run.write_json("published.json", {"at": datetime.now(UTC).isoformat()})
    return replaced


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
