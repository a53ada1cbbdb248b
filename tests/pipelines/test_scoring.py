"""What is said of the images of a shard."""

from __future__ import annotations

import pytest

from igd import registry
from igd.pipelines import scoring
from igd.pipelines.scoring import ShardScorer
from igd.pipelines.shards import read_shard
from igd.records import Status
from igd.score.device import CPU, Device
from igd.score.scorer import score_fingerprint


def test_each_row_of_a_batch_says_what_its_own_image_gives(finished, monkeypatch) -> None:
    """A batch of several, as on a GPU."""
    run, plan, _ = finished
    device = Device("cpu", 4)
    monkeypatch.setattr(scoring, "CPU", device)
    batched = {**plan, "bundles": {}}
    for category, bundle in plan["bundles"].items():
        config = registry.load_bundle(plan["models"], category, bundle["version"]).config
        batched["bundles"][category] = {
            **bundle, "score_fingerprint": score_fingerprint(config, device)}
    together, alone = ShardScorer(batched), ShardScorer(plan)
    for shard in range(plan["shards"]):
        decoded = read_shard(run.at(), plan, shard)
        many = together.score(decoded).to_pylist()
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "CPU", CPU)
            ones = alone.score(decoded).to_pylist()
        for one, other in zip(ones, many, strict=True):
            assert (one["image_id"], one["status"]) == (other["image_id"], other["status"])
            if one["status"] == Status.SCORED:
                assert one["score"] == pytest.approx(other["score"], rel=1e-5)
