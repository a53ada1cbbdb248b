"""Steps of a batch run, one by one and without a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from igd.pipelines import score as scoring
from igd.pipelines.run import Request, Run
from igd.pipelines.shards import ShardScorer, read_shard, write_shard


def begun(wanted: Request, shard_members: int = 256) -> tuple[Run, dict[str, Any]]:
    """The run that a request goes on with, its plan frozen."""
    return scoring._find_or_plan(wanted, shard_members, lambda progress: None)


def do_shards(run: Run, plan: dict[str, Any], todo: Iterable[int]) -> None:
    scorer = ShardScorer(plan)
    for shard in todo:
        write_shard(run.at(), plan, scorer.score(read_shard(run.at(), plan, shard)))
