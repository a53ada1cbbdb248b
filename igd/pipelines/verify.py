"""Whether a published date is what its runs planned, and what their inputs hold.

Twice accounted for: the rows against the plans of their runs, and against the inputs themselves,
which are listed again, read by other readers and identified anew (`igd.pipelines.recount`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date as Date
from typing import Any

from igd import storage
from igd.errors import DataError
from igd.pipelines.plan import shard_rows
from igd.pipelines.recount import Account, PlannedObjects, Recount
from igd.pipelines.recount.ledger import Ids, Ledger, find, packed, union, unpacked
from igd.pipelines.recount.rows import PublishedRows
from igd.pipelines.recount.unfound import Unfound, published_elsewhere, unfound_rows
from igd.pipelines.run import read_document

Plan = dict[str, Any]


def verify(out: str, date: Date, *, inputs: bool = True,
           progress: Callable[[int], None] = lambda images: None) -> dict[str, Any]:
    """Checks every published row of a date against plans and inputs of the runs that wrote it.

    Args:
        inputs: False leaves the inputs alone.
        progress: told how many images of a run were counted again.

    Returns:
        runs, rows, scored, rejected by reason; `inputs`, what each source of each run holds now;
        and `problems`: empty where all adds up.

    Raises:
        DataError: nothing is published for the date.
        StorageError: output or inputs are out of reach.
    """
    rows = PublishedRows(out, date)
    plans = _published_plans(out, date)
    if not rows.ledger.runs and not rows.problems and not plans:
        raise DataError(f"nothing is published for {date} in {out}; run igd-ray score first")
    problems = [*rows.problems, *_categories_gone(plans, rows.ledger), *_twice(rows.ledger),
                *_add_plans(out, rows.ledger.runs, plans)]
    accounts: list[Account] = []
    for plan in (plans[run_id] for run_id in sorted(plans)):
        if not _is_in_place(plan, rows.ledger):
            continue
        planned = PlannedObjects(plan)
        problems.extend(_against_plan(out, date, plan, rows.ledger, planned))
        if inputs:
            recount = Recount(plan, planned, rows.ledger, progress)
            accounts += map(recount.account, plan["sources"])
    told = [_told(out, date, account, unfound, plans[account.run_id]) for account, unfound in zip(
        accounts, unfound_rows(out, date, rows.ledger, accounts), strict=True)]
    problems.extend(line for source in told for line in source["problems"])
    problems += rows.senseless() + rows.heatmaps_missing()
    return {"date": date.isoformat(), "runs": sorted(rows.ledger.runs), "rows": rows.rows,
            "scored": rows.scored, "rejected": dict(sorted(rows.rejected.items())),
            "inputs": told if inputs else None, "problems": problems}


def _published_plans(out: str, date: Date) -> dict[str, Plan]:
    """Plans of the date's published runs, the latest generation of each request, by run id."""
    latest: dict[str, Plan] = {}
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


def _add_plans(out: str, runs: list[str], plans: dict[str, Plan]) -> Iterator[str]:
    """Adds the plans of runs that have rows; says which are gone."""
    for run_id in runs:
        plan = read_document(storage.join(out, "runs", run_id, "plan.json"))
        if plan is None:
            yield f"run {run_id}: its plan is gone, so its rows cannot be checked"
        else:
            plans[run_id] = plan


def _categories_gone(plans: dict[str, Plan], ledger: Ledger) -> Iterator[str]:
    """Categories that a run published and that have no row of any run now."""
    for run_id, plan in plans.items():
        for category, count in plan["counts"].items():
            if category not in ledger.categories and not plan.get("new_only"):
                yield f"run {run_id}: category {category} has no row, {count} images were planned"


def _twice(ledger: Ledger) -> Iterator[str]:
    for category, rows in ledger.categories.items():
        if len(rows.twice):
            yield (f"{len(rows.twice)} image ids stand more than once in category {category} "
                   f"(first: {unpacked(rows.twice, 0)})")


def _is_in_place(plan: Plan, ledger: Ledger) -> bool:
    """Whether anything of a run is to be found: not where others have replaced all of it."""
    return bool(plan["run_id"] in ledger.runs or plan.get("new_only") or not plan["members"])


def _against_plan(out: str, date: Date, plan: Plan, ledger: Ledger,
                  planned: PlannedObjects) -> Iterator[str]:
    """Planned images without a row, and rows that were never planned."""
    run_id = plan["run_id"]
    missing: list[Ids] = []
    for shard in range(plan["shards"]):
        members = shard_rows(storage.join(out, "runs", run_id), plan, shard)
        planned.add(members)
        category, ids = members["category"][0].as_py(), packed(members["image_id"].to_pylist())
        there = ledger.plan(run_id, category, ids)
        if ledger.has_rows(run_id, category) or (
                plan.get("new_only") and category not in ledger.categories):
            missing.append(ids[~there])
    planned.close()
    lost = union(missing)
    if plan.get("new_only"):
        lost = lost[~published_elsewhere(out, date, lost, plan["bundles"])]
    if len(lost):
        yield (f"run {run_id}: {len(lost)} planned images have no row "
               f"(first: {unpacked(lost, 0)})")
    ghosts = ledger.never_planned(run_id)
    if len(ghosts):
        yield (f"run {run_id}: {len(ghosts)} rows were never planned "
               f"(first: {unpacked(ghosts, 0)})")


def _told(out: str, date: Date, account: Account, unfound: Unfound, plan: Plan) -> dict[str, Any]:
    """One source, for people and for machines."""
    lost, later = union(account.lost), union(account.later)
    if plan.get("new_only"):
        lost, later = (ids[~published_elsewhere(out, date, ids)] for ids in (lost, later))
    changed, gone = len(union(unfound.changed)), len(union(unfound.gone))
    return {
        "run_id": account.run_id, "source_uri": account.source_uri, "images": account.images,
        "lost": len(lost), "ghosts": unfound.ghosts, "replaced": account.replaced,
        "new_objects": max(0, len(later) + account.later_archives - changed),
        "gone": {"objects": gone, "rows": unfound.gone_rows},
        "changed": {"objects": changed, "rows": unfound.changed_rows},
        "not_listed": account.unread, "not_recounted": dict(account.uncounted.values()),
        "from_plan": unfound.from_plan,
        "problems": list(_source_problems(account, unfound, lost)),
    }


def _source_problems(account: Account, unfound: Unfound, lost: Ids) -> Iterator[str]:
    source = f"source {account.source_uri}"
    if len(lost) and account.first_lost is not None:
        first, name = account.first_lost
        first = name if find(lost, packed([first]))[1][0] else unpacked(lost, 0)
        yield f"{source}: {len(lost)} images in it have no row (first: {first})"
    if unfound.ghosts:
        yield (f"{source}: {unfound.ghosts} rows are of no image in it "
               f"(first: {unfound.first_ghost})")
