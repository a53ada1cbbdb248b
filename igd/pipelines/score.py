"""Batch scoring: plan, score on Ray Data, audit, publish. Run again, it goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from igd import tables
from igd.errors import StorageError
from igd.pipelines.cluster import connected, own_error, quiet_data
from igd.pipelines.known import is_unsettled
from igd.pipelines.plan import (
    SHARD_MEMBERS,
    any_bad,
    load_plan,
    make_plan,
    odd_sources,
    same_arithmetic,
    unchanged,
)
from igd.pipelines.publish import audit, publish
from igd.pipelines.run import Request, Run, latest, next_run
from igd.pipelines.shards import (
    ShardScorer,
    count_rejects,
    forget_lost,
    read_records,
    read_shard,
    write_shard,
)

READ_CPUS = 0.25
RECORD = pa.schema([pa.field("shard", pa.int64()), pa.field("rows", pa.int64()),
                    pa.field("rejected", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is; handed to the caller as it goes.

    Attributes:
        stage: `plan`, `score`, `audit` or `publish`.
        done, total: members; total is 0 while unknown.
    """

    stage: str
    done: int
    total: int
    rejected: int = 0


@dataclass(kw_only=True)
class Clock:
    """Seconds by stage, and the rate of scoring once the pool was warm."""

    began: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)
    steady_images_per_s: float | None = None
    _shards: int = 0
    _rows: int = 0
    _warm: float = 0.0

    def lap(self, stage: str) -> None:
        so_far = sum(self.stages.values())
        self.stages[stage] = round(time.monotonic() - self.began - so_far, 3)

    def arrived(self, rows: int, scorers: int) -> None:
        """Counts a finished shard; the rate is that after every scorer has finished one."""
        now = time.monotonic()
        self._shards += 1
        if self._shards == scorers:
            self._warm = now
        elif self._shards > scorers:
            self._rows += rows
            self.steady_images_per_s = round(self._rows / max(now - self._warm, 1e-9), 2)


Report = Callable[[Progress], None]


def score(wanted: Request, *, ray_address: str | None = None, shard_members: int = SHARD_MEMBERS,
          max_reject_share: float = 0.01, unknown_category: str = "reject",
          report: Report = lambda progress: None) -> dict[str, Any]:
    """Runs a request to its end, from wherever an earlier attempt left it.

    Args:
        unknown_category: `reject` images of categories without a model, or `error`: plan none.

    Returns:
        The summary, also written to the run's `summary.json`; `exit_code` says what is to be
        made of it.

    Raises:
        RunHeldError: the audit found the accounting wrong.
        LostRaceError: another run published meanwhile.
        IgdError: of other kinds, before anything is written.
    """
    clock = Clock()
    tables.check_output(wanted.out)
    run, plan = _find_or_plan(wanted, shard_members, report, unknown_category)
    already = run.is_live(plan)
    earlier = run.read_json("summary.json")
    if already and earlier is not None and run.read_json("published.json") is not None:
        return {**earlier, "already_published": True, "exit_code": 0}
    clock.lap("plan")
    records = read_records(run.at())
    if not already:
        records = forget_lost(run.at(), plan, records)
    todo = [n for n in range(plan["shards"]) if n not in records]
    if todo and not already:
        _score_shards(run, plan, todo, records, ray_address, report, clock)
        records = read_records(run.at())
    clock.lap("score")
    report(Progress(stage="audit", done=0, total=plan["members"]))
    audit(run, plan, records)
    clock.lap("audit")
    report(Progress(stage="publish", done=0, total=plan["members"]))
    ours = publish(run, plan, records)
    clock.lap("publish")
    summary = _summary(run, plan, records, clock, max_reject_share, len(todo))
    summary["already_published"] = not ours
    run.write_json("summary.json", summary)
    return summary


def _find_or_plan(wanted: Request, shard_members: int, report: Report,
                  unknown_category: str = "reject") -> tuple[Run, dict[str, Any]]:
    """The run that this request continues, with its plan; a new generation where one is due."""
    def planned(members: int) -> None:
        report(Progress(stage="plan", done=members, total=0))

    while True:
        run = latest(wanted)
        plan = run.read_json("plan.json") if run else None
        if run is None or plan is None or not _stands(run, plan, unknown_category):
            run = next_run(wanted, run)
            plan = make_plan(run, shard_members=shard_members,
                             unknown_category=unknown_category, progress=planned)
        if run.read_json("published.json") is not None or run.hold():
            return run, plan


def _stands(run: Run, plan: dict[str, Any], unknown_category: str) -> bool:
    """Whether a request's newest run is the one to go on with, or has nothing left to do."""
    if unknown_category == "error" and plan["unknown_categories"]:
        return False
    if run.read_json("published.json") is None:
        return same_arithmetic(plan)
    return run.is_live(plan) and unchanged(run, plan) and not is_unsettled(run, plan)


def _score_shards(run: Run, plan: dict[str, Any], todo: list[int], records: dict[int, Any],
                  ray_address: str | None, report: Report, clock: Clock) -> None:
    """Ray Data: a read task per shard, a pool of scorers, a writer; shards finish in any order."""
    done = sum(record["rows"] for record in records.values())
    rejected = sum(sum(record["rejected"].values()) for record in records.values())
    report(Progress(stage="score", done=done, total=plan["members"], rejected=rejected))
    try:
        with connected(ray_address) as resources:
            scorers = min(resources.scorers, len(todo))
            for rows, bad in _stream(run.at(), todo, scorers):
                done, rejected = done + rows, rejected + bad
                clock.arrived(rows, scorers)
                report(Progress(stage="score", done=done, total=plan["members"],
                                rejected=rejected))
    except RayError as error:
        ours = own_error(error)
        if ours is not None:
            raise ours from error
        raise StorageError(f"the cluster failed while scoring: {str(error).splitlines()[0]}; run "
                           "the command again, finished shards are kept") from error


def _stream(run_at: str, todo: list[int], scorers: int) -> Iterator[tuple[int, int]]:
    quiet_data()
    dataset = ray.data.read_datasource(
        ShardSource(run_at, todo), override_num_blocks=len(todo), num_cpus=READ_CPUS)
    scored = dataset.map_batches(
        ScoreActor, batch_size=None, batch_format="pyarrow", zero_copy_batch=True,
        compute=ActorPoolStrategy(size=scorers), num_cpus=1, fn_constructor_args=(run_at,))
    written = scored.map_batches(
        WriteTask(run_at), batch_size=None, batch_format="pyarrow", zero_copy_batch=True,
        num_cpus=READ_CPUS)
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow",
                                      prefetch_batches=0):
        for row in batch.to_pylist():
            yield row["rows"], row["rejected"]


class ShardSource(Datasource):
    """One read task per unfinished shard; it carries the shard's number, not its members."""

    def __init__(self, run_at: str, shards: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run_at, self._shards = run_at, shards

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None,
                       data_context: DataContext | None = None) -> list[ReadTask]:
        return [self._task(shard) for shard in self._shards]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def _task(self, shard: int) -> ReadTask:
        run_at = self._run_at

        def read() -> list[pa.Table]:
            return [read_shard(run_at, load_plan(run_at), shard)]

        return ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None,
                                            exec_stats=None))


class ScoreActor:
    """A pool member: keeps its models between shards."""

    def __init__(self, run_at: str) -> None:
        self._scorer = ShardScorer(load_plan(run_at))

    def __call__(self, decoded: pa.Table) -> pa.Table:
        return self._scorer.score(decoded)


class WriteTask:
    """Writes a shard and passes on its counts."""

    def __init__(self, run_at: str) -> None:
        self._run_at = run_at

    def __call__(self, scored: pa.Table) -> pa.Table:
        record = write_shard(self._run_at, load_plan(self._run_at), scored)
        return pa.Table.from_pylist([{
            "shard": record["shard"], "rows": record["rows"],
            "rejected": sum(record["rejected"].values())}], schema=RECORD)


def _summary(run: Run, plan: dict[str, Any], records: dict[int, Any], clock: Clock,
             max_reject_share: float, shards_scored: int) -> dict[str, Any]:
    rejected = count_rejects(list(records.values()))
    rejects = sum(rejected.values())
    flagged: dict[str, dict[str, int]] = {}
    for record in records.values():
        counts = flagged.setdefault(record["category"], {})
        for decision, number in record["flagged"].items():
            counts[decision] = counts.get(decision, 0) + number
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
        "decisions": flagged, "bundles": plan["bundles"],
        "fpr": plan["fpr"], "heatmaps": plan["heatmaps"],
        "seconds": round(seconds, 3), "stage_seconds": clock.stages,
        "shards_scored": shards_scored,
        "images_per_s": round(plan["members"] / seconds, 2),
        "steady_images_per_s": clock.steady_images_per_s,
        "tables": {name: f"{plan['out']}/{name}" for name in tables.SCHEMAS},
        "exit_code": 3 if any_bad(plan["source_records"]) or share > max_reject_share else 0,
    }
