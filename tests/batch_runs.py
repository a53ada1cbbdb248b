"""Steps of a batch run, one by one and without a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from igd.pipelines import score as scoring
from igd.pipelines.parts import make_plan
from igd.pipelines.run import Request, Run
from igd.pipelines.scoring import ShardScorer
from igd.pipelines.shards import read_shard, write_shard


def begun(wanted: Request, shard_members: int = 256) -> tuple[Run, dict[str, Any]]:
    """The run that a request goes on with, its plan frozen."""
    run = scoring._find_run(wanted)
    return run, make_plan(run, shard_members=shard_members)


def do_shards(run: Run, plan: dict[str, Any], todo: Iterable[int]) -> None:
    scorer = ShardScorer(plan)
    for shard in todo:
        write_shard(run.at(), plan, scorer.score(read_shard(run.at(), plan, shard)))
