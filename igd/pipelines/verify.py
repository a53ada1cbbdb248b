"""Whether a published date is what its runs planned, and what their inputs hold.

Twice accounted for: the rows against the plans of their runs, and against the inputs themselves,
which are listed again, read by other readers and identified anew (`igd.pipelines.recount`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date as Date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd import storage, tables
from igd.errors import DataError, IgdError
from igd.pipelines.ledger import Ids, Ledger, find, packed, unpacked
from igd.pipelines.plan import shard_rows
from igd.pipelines.recount import Account, PlannedObjects, Recount
from igd.pipelines.run import read_document
from igd.pipelines.unfound import Unfound, published_elsewhere, unfound_rows
from igd.records import Decision, Status

COLUMNS = ["image_id", "run_id", "status", "reject_reason", "score", "decision", "category"]

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
    rows = _Rows(out, date)
    plans = _published_plans(out, date)
    if not rows.ledger.runs and not rows.problems and not plans:
        raise DataError(f"nothing is published for {date} in {out}; run igd-ray score first")
    problems = [*rows.problems, *_categories_gone(plans, rows.ledger), *_twice(rows.ledger)]
    for run_id in rows.ledger.runs:
        plan = read_document(_run_at(out, run_id, "plan.json"))
        if plan is None:
            problems.append(f"run {run_id}: its plan is gone, so its rows cannot be checked")
        else:
            plans[run_id] = plan
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
    problems.extend(rows.senseless())
    problems.extend(_heatmaps_missing(out, date, rows.due))
    return {"date": date.isoformat(), "runs": sorted(rows.ledger.runs), "rows": rows.rows,
            "scored": rows.scored, "rejected": dict(sorted(rows.rejected.items())),
            "inputs": told if inputs else None, "problems": problems}


class _Rows:
    """The rows of a date, read file by file into counts and a ledger.

    Attributes:
        due: ids of rows by run that the run's policy promises a heatmap for.
    """

    def __init__(self, out: str, date: Date) -> None:
        self.ledger = Ledger()
        self.problems: list[str] = []
        self.rows = self.scored = 0
        self.rejected: Counter[str] = Counter()
        self.due: dict[str, list[Ids]] = {}
        self._wrong: Counter[str] = Counter()
        self._out = out
        self._policies: dict[str, str] = {}
        for file in tables.live_files(out, "scores", date):
            try:
                part = tables.read(out, "scores", date, columns=COLUMNS, files=[file])
            except (IgdError, pa.ArrowInvalid, OSError) as error:
                self.problems.append(f"file {file.path} cannot be read: {error}")
                continue
            if len(part) != file.rows:
                self.problems.append(
                    f"file {file.path} has {len(part)} rows, its commit says {file.rows}")
            self._add(part)
        self.ledger.close()

    def senseless(self) -> list[str]:
        return [f"{count} {what}" for what, count in self._wrong.items() if count]

    def _add(self, part: pa.Table) -> None:
        self.rows += len(part)
        scored = pc.equal(part["status"], Status.SCORED)
        self.scored += pc.sum(scored).as_py() or 0
        self.rejected.update(filter(None, part["reject_reason"].to_pylist()))
        finite = pc.fill_null(pc.is_finite(part["score"]), False)
        valid = pc.match_substring_regex(part["image_id"], "^[0-9a-f]{32}$")
        for what, mask in {
            "rows without a valid image id": pc.invert(valid),
            "scored rows without a finite score": pc.and_(scored, pc.invert(finite)),
            "scored rows without a decision": pc.and_(scored, pc.is_null(part["decision"])),
            "rejected rows without a reason": pc.and_(pc.invert(scored),
                                                      pc.is_null(part["reject_reason"])),
            "rejected rows with a score": pc.and_(pc.invert(scored), pc.is_valid(part["score"])),
        }.items():
            self._wrong[what] += pc.sum(mask).as_py() or 0
        part = part.filter(valid)
        for category in pc.unique(part["category"]).to_pylist():
            mine = part.filter(pc.equal(part["category"], category))
            self.ledger.add(category, mine["image_id"].to_pylist(), mine["run_id"].to_pylist())
        for run_id in pc.unique(part["run_id"]).to_pylist():
            self._add_due(run_id, part.filter(pc.equal(part["run_id"], run_id)))

    def _add_due(self, run_id: str, part: pa.Table) -> None:
        if run_id not in self._policies:
            plan = read_document(_run_at(self._out, run_id, "plan.json")) or {}
            self._policies[run_id] = plan.get("heatmaps", "none")
        policy = self._policies[run_id]
        due = pc.equal(part["status"], Status.SCORED)
        if policy == "flagged":
            due = pc.and_(due, pc.fill_null(pc.not_equal(part["decision"], Decision.NORMAL), True))
        if policy != "none":
            self.due.setdefault(run_id, []).append(packed(part.filter(due)["image_id"].to_pylist()))


def _run_at(out: str, run_id: str, name: str) -> str:
    return storage.join(out, "runs", run_id, name)


def _published_plans(out: str, date: Date) -> dict[str, Plan]:
    """Plans of the date's published runs, the latest generation of each request, by run id."""
    latest: dict[str, Plan] = {}
    for name in storage.list_dirs(storage.join(out, "runs")):
        if not name.startswith(date.isoformat()) or (
                storage.stat(_run_at(out, name, "published.json")) is None):
            continue
        plan = read_document(_run_at(out, name, "plan.json"))
        stem = name.rsplit("-g", 1)[0]
        if plan is not None and (
                stem not in latest or latest[stem]["generation"] < plan["generation"]):
            latest[stem] = plan
    return {plan["run_id"]: plan for plan in latest.values()}


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


def _against_plan(out: str, date: Date, plan: Plan, ledger: Ledger,
                  planned: PlannedObjects) -> Iterator[str]:
    """Planned images without a row, and rows that were never planned."""
    run_id = plan["run_id"]
    missing: dict[str, list[Ids]] = {}
    for shard in range(plan["shards"]):
        members = shard_rows(storage.join(out, "runs", run_id), plan, shard)
        planned.add(members)
        category, ids = members["category"][0].as_py(), packed(members["image_id"].to_pylist())
        there = ledger.plan(run_id, category, ids)
        if ledger.has_rows(run_id, category) or (
                plan.get("new_only") and category not in ledger.categories):
            missing.setdefault(category, []).append(ids[~there])
    planned.close()
    lost = np.unique(np.concatenate([packed([]), *(ids for parts in missing.values()
                                                   for ids in parts)]))
    if plan.get("new_only"):
        lost = lost[~published_elsewhere(out, date, lost, plan["bundles"])]
    if len(lost):
        yield (f"run {run_id}: {len(lost)} planned images have no row "
               f"(first: {unpacked(lost, 0)})")
    ghosts = ledger.never_planned(run_id) if run_id in ledger.runs else packed([])
    if len(ghosts):
        yield (f"run {run_id}: {len(ghosts)} rows were never planned "
               f"(first: {unpacked(ghosts, 0)})")


def _is_in_place(plan: Plan, ledger: Ledger) -> bool:
    """Whether anything of a run is to be found: not where others have replaced all of it."""
    return bool(plan["run_id"] in ledger.runs or plan.get("new_only") or not plan["members"])


def _told(out: str, date: Date, account: Account, unfound: Unfound, plan: Plan) -> dict[str, Any]:
    """One source, for people and for machines."""
    lost, later = (np.unique(np.concatenate([packed([]), *ids]))
                   for ids in (account.lost, account.later))
    if plan.get("new_only"):
        lost, later = (ids[~published_elsewhere(out, date, ids)] for ids in (lost, later))
    changed, gone = (len(np.unique(np.concatenate([packed([]), *objects])))
                     for objects in (unfound.changed, unfound.gone))
    problems = []
    if len(lost):
        first, name = account.first_lost or ("", "")
        first = name if find(lost, packed([first]))[1][0] else unpacked(lost, 0)
        problems.append(f"source {account.source_uri}: {len(lost)} images in it have no row "
                        f"(first: {first})")
    if unfound.ghosts:
        problems.append(f"source {account.source_uri}: {unfound.ghosts} rows are of no image in "
                        f"it (first: {unfound.first_ghost})")
    return {
        "run_id": account.run_id, "source_uri": account.source_uri, "images": account.images,
        "lost": len(lost), "ghosts": unfound.ghosts, "replaced": account.replaced,
        "new_objects": max(0, len(later) + account.later_archives - changed),
        "gone": {"objects": gone, "rows": unfound.gone_rows},
        "changed": {"objects": changed, "rows": unfound.changed_rows},
        "not_listed": account.unread, "not_recounted": dict(account.uncounted.values()),
        "from_plan": unfound.from_plan, "problems": problems,
    }


def _heatmaps_missing(out: str, date: Date, due: dict[str, list[Ids]]) -> list[str]:
    """Every scored row has the heatmap that its run's policy promises."""
    have: dict[str, list[Ids]] = {}
    for file in tables.live_files(out, "heatmaps", date):
        rows = tables.read(out, "heatmaps", date, columns=["image_id", "run_id"], files=[file])
        for run_id in pc.unique(rows["run_id"]).to_pylist():
            have.setdefault(run_id, []).append(packed(
                rows.filter(pc.equal(rows["run_id"], run_id))["image_id"].to_pylist()))
    missing = 0
    for run_id, parts in due.items():
        there = np.unique(np.concatenate([packed([]), *have.get(run_id, ())]))
        missing += sum(int((~find(there, ids)[1]).sum()) for ids in parts)
    return [f"{missing} heatmaps are missing"] if missing else []
