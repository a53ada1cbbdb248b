"""Whether a published date still is what its runs planned: counted again from the tables."""

from __future__ import annotations

from collections import Counter
from datetime import date as Date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from igd import storage, tables
from igd.errors import DataError, IgdError
from igd.pipelines.plan import shard_rows
from igd.pipelines.run import read_document
from igd.records import Decision, Status


def verify(out: str, date: Date) -> dict[str, Any]:
    """Checks every published row of a date against the plans of the runs that wrote it.

    Returns:
        runs, rows, scored, rejected by reason, and `problems`: empty where all adds up.

    Raises:
        DataError: nothing is published for the date.
    """
    problems: list[str] = []
    rows = _readable_rows(out, date, problems)
    runs = sorted(set(rows["run_id"].to_pylist()))
    published = _published_plans(out, date)
    if not runs and not problems and not published:
        raise DataError(f"nothing is published for {date} in {out}; run igd-ray score first")
    problems.extend(_categories_gone(published, set(rows["category"].to_pylist())))
    ids = Counter(rows["image_id"].to_pylist())
    twice = [image_id for image_id, count in ids.items() if count > 1]
    if twice:
        problems.append(f"{len(twice)} image ids stand more than once (first: {twice[0]})")
    for run_id in runs:
        mine = rows.filter(pc.equal(rows["run_id"], run_id))
        problems.extend(_against_plan(out, run_id, mine))
    problems.extend(_rows_make_sense(rows))
    problems.extend(_heatmaps_present(out, date, rows, runs))
    return {
        "date": date.isoformat(), "runs": runs, "rows": len(rows),
        "scored": rows["status"].to_pylist().count(Status.SCORED),
        "rejected": dict(sorted(Counter(
            reason for reason in rows["reject_reason"].to_pylist() if reason).items())),
        "problems": problems,
    }


def _published_plans(out: str, date: Date) -> dict[str, dict[str, Any]]:
    """Plans of the date's published runs, the latest generation of each request, by run id."""
    latest: dict[str, dict[str, Any]] = {}
    for name in storage.list_dirs(storage.join(out, "runs")):
        run_at = storage.join(out, "runs", name)
        if not name.startswith(date.isoformat()) or (
                storage.stat(storage.join(run_at, "published.json")) is None):
            continue
        plan = read_document(storage.join(run_at, "plan.json"))
        stem = name.rsplit("-g", 1)[0]
        if plan is not None and (
                stem not in latest or latest[stem]["generation"] < plan["generation"]):
            latest[stem] = plan
    return {plan["run_id"]: plan for plan in latest.values()}


def _categories_gone(published: dict[str, dict[str, Any]], live: set[str]) -> list[str]:
    """Categories that a run published and that have no row of any run now."""
    return [f"run {run_id}: category {category} has no row, {count} images were planned"
            for run_id, plan in published.items()
            for category, count in plan["counts"].items() if category not in live]


def _readable_rows(out: str, date: Date, problems: list[str]) -> pa.Table:
    columns = ["image_id", "run_id", "status", "reject_reason", "score", "p_value", "decision",
               "category"]
    parts = [tables.read(out, "scores", date, columns=columns, files=[])]
    for file in tables.live_files(out, "scores", date):
        try:
            part = tables.read(out, "scores", date, columns=columns, files=[file])
        except (IgdError, pa.ArrowInvalid, OSError) as error:
            problems.append(f"file {file.path} cannot be read: {error}")
            continue
        if len(part) != file.rows:
            problems.append(f"file {file.path} has {len(part)} rows, its commit says {file.rows}")
        parts.append(part)
    return pa.concat_tables(parts)


def _against_plan(out: str, run_id: str, rows: pa.Table) -> list[str]:
    run_at = storage.join(out, "runs", run_id)
    plan = read_document(storage.join(run_at, "plan.json"))
    if plan is None:
        return [f"run {run_id}: its plan is gone, so its {len(rows)} rows cannot be checked"]
    categories = set(rows["category"].to_pylist())
    planned: set[str] = set()
    for shard in range(plan["shards"]):
        members = shard_rows(run_at, plan, shard)
        if members["category"][0].as_py() in categories:
            planned.update(members["image_id"].to_pylist())
    written = set(rows["image_id"].to_pylist())
    problems = []
    if lost := planned - written:
        problems.append(f"run {run_id}: {len(lost)} planned images have no row "
                        f"(first: {min(lost)})")
    if ghosts := written - planned:
        problems.append(f"run {run_id}: {len(ghosts)} rows were never planned "
                        f"(first: {min(ghosts)})")
    return problems


def _rows_make_sense(rows: pa.Table) -> list[str]:
    scored = pc.equal(rows["status"], Status.SCORED)
    finite = pc.fill_null(pc.is_finite(rows["score"]), False)
    wrong = {
        "scored rows without a finite score": pc.and_(scored, pc.invert(finite)),
        "scored rows without a decision": pc.and_(scored, pc.is_null(rows["decision"])),
        "rejected rows without a reason": pc.and_(pc.invert(scored),
                                                  pc.is_null(rows["reject_reason"])),
        "rejected rows with a score": pc.and_(pc.invert(scored), pc.is_valid(rows["score"])),
    }
    counts = {what: pc.sum(mask).as_py() or 0 for what, mask in wrong.items()}
    return [f"{count} {what}" for what, count in counts.items() if count]


def _heatmaps_present(out: str, date: Date, rows: pa.Table, runs: list[str]) -> list[str]:
    """Every scored row has the heatmap that its run's policy promises."""
    have = tables.read(out, "heatmaps", date, columns=["image_id", "run_id"])
    found = set(zip(have["run_id"].to_pylist(), have["image_id"].to_pylist(), strict=True))
    policies = {run_id: (read_document(storage.join(out, "runs", run_id, "plan.json")) or {}).get(
        "heatmaps", "none") for run_id in runs}
    missing = 0
    for row in rows.to_pylist():
        policy = policies[row["run_id"]]
        due = row["status"] == Status.SCORED and (
            policy == "all" or (policy == "flagged" and row["decision"] != Decision.NORMAL))
        missing += due and (row["run_id"], row["image_id"]) not in found
    return [f"{missing} heatmaps are missing"] if missing else []
