"""Batch scoring: plan, score on Ray Data, audit, publish. Run again, it goes on where it was."""

from __future__ import annotations

import functools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.exceptions import RayError

from igd import tables
from igd.errors import StorageError
from igd.pipelines.cluster import (
    SCORER_CPUS,
    SIDE_TASK_CPUS,
    Pool,
    Resources,
    connected,
    head_is_there,
    own_error,
    quiet_data,
)
from igd.pipelines.current import same_arithmetic, unchanged
from igd.pipelines.known import is_unsettled
from igd.pipelines.meter import Clock, Lap, Meter, Progress
from igd.pipelines.parts import SHARD_MEMBERS, Part, frozen_parts, plan_parts, plan_so_far
from igd.pipelines.plan import any_bad, load_part, odd_sources, part_of
from igd.pipelines.planning import Planning
from igd.pipelines.publish import audit, publish
from igd.pipelines.run import Request, Run, latest, next_run
from igd.pipelines.scoring import ScoreActor
from igd.pipelines.shards import count_rejects, forget_lost, read_records
from igd.pipelines.stages import ShardSource, WriteTask
from igd.pipelines.stall import unless_stalled

STALL_TIMEOUT_S = 1800.0
"""A shard of the paper's nets takes a quarter of an hour on one CPU."""
SCORER_DEATHS = 8
"""Scorers that may die over one shard; the next one's death ends the attempt at the run."""
Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Nobody watches."""


def score(wanted: Request, *, ray_address: str | None = None, shard_members: int = SHARD_MEMBERS,
          max_reject_share: float = 0.01, unknown_category: str = "reject",
          stall_timeout_s: float = STALL_TIMEOUT_S, gpus_per_scorer: float = 1.0,
          report: Report = silent) -> dict[str, Any]:
    """Runs a request to its end, from wherever an earlier attempt left it.

    Args:
        gpus_per_scorer: of a request for GPUs; a share lets several scorers have one.
        unknown_category: `reject` images of categories without a model, or `error`: publish none.
        stall_timeout_s: a run that finishes no shard for so long is given up.

    Returns:
        The summary, also written to the run's `summary.json`; `exit_code` says what is to be
        made of it.

    Raises:
        RunHeldError: the audit found the accounting wrong.
        LostRaceError: another run published meanwhile.
        IgdError: of other kinds, before anything is published.
    """
    clock, meter = Clock(), Meter()
    tables.check_output(wanted.out)
    run = _find_run(wanted, unknown_category)
    plan = run.read_json("plan.json")
    already = plan is not None and run.is_live(plan)
    earlier = run.read_json("summary.json")
    if already and earlier is not None and run.read_json("published.json") is not None:
        return {**earlier, "already_published": True, "exit_code": 0}
    before = read_records(run.at())
    if not already:
        before = forget_lost(run, before)
        parts = _parts(run, shard_members, unknown_category, report)
        work = _Work(ray_address=ray_address, stall_timeout_s=stall_timeout_s,
                     gpus_per_scorer=gpus_per_scorer if wanted.gpu else 0.0, report=report,
                     clock=clock, meter=meter)
        plan = _plan_and_score(run, parts, before, work)
    assert plan is not None
    records = {shard: record for shard, record in read_records(run.at()).items()
               if shard < plan["shards"]}
    clock.lap("score")
    report(Progress(stage="audit", total=plan["members"]))
    audit(run, plan, records)
    clock.lap("audit")
    report(Progress(stage="publish", total=plan["members"]))
    ours = publish(run, plan, records)
    clock.lap("publish")
    summary = _summary(run, plan, records, clock, meter, max_reject_share)
    summary["shards_scored"] = len(records.keys() - before.keys())
    summary["already_published"] = not ours
    run.write_json("summary.json", summary)
    return summary


def _find_run(wanted: Request, unknown_category: str = "reject") -> Run:
    """The run that this request goes on with, held; a new generation where one is due."""
    while True:
        run = latest(wanted)
        if run is None or not _stands(run, unknown_category):
            return next_run(wanted, run)  # of which nothing is written before it is planned
        if run.read_json("published.json") is not None or run.hold():
            return run


def _stands(run: Run, unknown_category: str) -> bool:
    """Whether a request's newest run is the one to go on with, or has nothing left to do."""
    plan = run.read_json("plan.json")
    begun = plan or plan_so_far(run, frozen_parts(run.at()))
    if unknown_category == "error" and begun["unknown_categories"]:
        return False
    if plan is None or run.read_json("published.json") is None:
        return same_arithmetic(run, begun)
    return run.is_live(plan) and unchanged(run, plan) and not is_unsettled(run, plan)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """How shards are scored, and who is told."""

    ray_address: str | None
    stall_timeout_s: float
    gpus_per_scorer: float
    report: Report
    clock: Clock
    meter: Meter


def _plan_and_score(run: Run, parts: Iterator[Part], records: dict[int, Any], work: _Work
                    ) -> dict[str, Any]:
    """Scores what is planned while the rest is being planned; returns the whole plan."""
    seen, whole = 0, False
    with ExitStack() as stack:
        connect = functools.cache(lambda: stack.enter_context(connected(work.ray_address)))
        planning = stack.enter_context(Planning(run, parts))
        while not whole:
            plan, whole = planning.beyond(seen)
            work.clock.lap("plan")
            todo = [shard for shard in range(seen, plan["shards"]) if shard not in records]
            seen = plan["shards"]
            if todo:
                done = [records[shard] for shard in range(seen) if shard in records]
                _score_shards(run, plan, todo, done, whole, connect, work)
                work.clock.lap("score")
    found = run.read_json("plan.json")
    assert found is not None
    return found


def _parts(run: Run, shard_members: int, unknown_category: str, report: Report
           ) -> Iterator[Part]:
    plan = run.read_json("plan.json")
    if plan is not None:
        return (load_part(run.at(), number) for number in range(len(plan["parts"])))
    return plan_parts(run, shard_members=shard_members, unknown_category=unknown_category,
                      progress=lambda members: report(Progress(stage="plan", done=members)))


def _score_shards(run: Run, plan: dict[str, Any], todo: Sequence[int],
                  done: Sequence[dict[str, Any]], whole: bool,
                  connect: Callable[[], Resources], work: _Work) -> None:
    """Ray Data: a read task per shard, a pool of scorers, a writer; shards finish in any order.

    Args:
        done: the records of shards that were finished before.
        whole: whether nothing more will be planned.
    """
    images = sum(record["rows"] for record in done)
    rejected = Counter(count_rejects(done))
    meter = work.meter
    work.report(Progress(stage="start", done=images + meter.done, total=plan["members"]))
    try:
        pool = connect().pool(len(todo), work.gpus_per_scorer)
        meter.begin(pool.scorers)
        laps = _stream(run.at(), plan, todo, pool)
        arriving = unless_stalled(laps, work.stall_timeout_s, "shard was finished",
                                  is_there=head_is_there)
        for number, lap in enumerate(arriving):
            if number == 0:
                work.clock.lap("start")
            meter.add(lap)
            work.report(meter.progress(images + meter.done, plan["members"],
                                       rejected + meter.rejected, not whole))
    except RayError as error:
        ours = own_error(error)
        if ours is not None:
            raise ours from error
        raise StorageError(f"the cluster failed while scoring: {str(error).splitlines()[0]}; run "
                           "the command again, finished shards are kept") from error


def _stream(run_at: str, plan: dict[str, Any], todo: Sequence[int], pool: Pool
            ) -> Iterator[Lap]:
    quiet_data()
    dataset = ray.data.read_datasource(
        ShardSource(run_at, [(shard, part_of(plan, shard)) for shard in todo]),
        override_num_blocks=len(todo), num_cpus=SIDE_TASK_CPUS,
        compute=TaskPoolStrategy(size=min(pool.readers, len(todo))))
    with warnings.catch_warnings():
        # Ray is about to rename this way of saying it, and without it tries for ever
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated",
                                DeprecationWarning)
        scored = dataset.map_batches(
            ScoreActor, batch_size=None, batch_format="pyarrow", zero_copy_batch=True,
            compute=ActorPoolStrategy(size=pool.scorers), num_cpus=SCORER_CPUS,
            num_gpus=pool.gpus_each or None, fn_constructor_args=(plan,),
            max_task_retries=SCORER_DEATHS)
    written = scored.map_batches(
        WriteTask(run_at, plan), batch_size=None, batch_format="pyarrow", zero_copy_batch=True,
        compute=TaskPoolStrategy(size=pool.scorers), num_cpus=SIDE_TASK_CPUS)
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow",
                                      prefetch_batches=0):
        for row in batch.to_pylist():
            yield Lap(**{**row, "rejected": dict(row["rejected"])})


def _summary(run: Run, plan: dict[str, Any], records: dict[int, Any], clock: Clock, meter: Meter,
             max_reject_share: float) -> dict[str, Any]:
    rejected = count_rejects(list(records.values()))
    rejects = sum(rejected.values())
    share = rejects / plan["members"] if plan["members"] else 0.0
    seconds = time.monotonic() - clock.began
    nothing_new = plan.get("new_only") and not plan["members"]
    published = run.read_json("published.json") or {}
    return {
        "run_id": run.run_id, "generation": run.generation, "date": plan["date"],
        "state": "nothing new" if nothing_new else "published", "already_published": False,
        "new_only": plan.get("new_only", False), "known": plan.get("known", 0),
        "published_meanwhile": published.get("published_meanwhile", 0),
        "planned": plan["members"], "scored": plan["members"] - rejects, "rejected": rejected,
        "reject_share": share, "max_reject_share": max_reject_share,
        "left_out": plan.get("left_out", 0), "unmatched": plan.get("unmatched", []),
        "limit_reached": plan.get("limited_to") is not None,
        "odd_sources": odd_sources(plan["source_records"]),
        "decisions": _decisions(records.values()), "bundles": plan["bundles"],
        "fpr": plan["fpr"], "heatmaps": plan["heatmaps"],
        "seconds": round(seconds, 3), "stage_seconds": clock.stages,
        "images_per_s": round(plan["members"] / seconds, 2), **meter.summary(),
        "tables": {name: f"{plan['out']}/{name}" for name in tables.SCHEMAS},
        "exit_code": 3 if any_bad(plan["source_records"]) or share > max_reject_share else 0,
    }


def _decisions(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Images by category and decision."""
    found: dict[str, Counter[str]] = {}
    for record in records:
        found.setdefault(record["category"], Counter()).update(record["flagged"])
    return {category: dict(counts) for category, counts in found.items()}
