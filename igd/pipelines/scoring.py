"""The scoring of shards: a pool member of a batch run, with models kept between them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from datetime import date as Date
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igd import registry
from igd.data.images import encode_heatmap
from igd.errors import ModelError
from igd.pipelines.stages import with_columns
from igd.records import SCHEMA_VERSION, SCORES, TERMS, Decision, Status
from igd.score.device import CPU, GPU
from igd.score.scorer import Judge, ScoreBatch, Scorer

SCORED = pa.schema([
    *SCORES,
    pa.field("shard", pa.int64(), nullable=False),
    pa.field("heatmap", pa.binary()),
    pa.field("heatmap_min", pa.float32()),
    pa.field("heatmap_max", pa.float32()),
])
"""A scored shard on its way to the writer."""

NULL_SCORE = {"status": Status.SCORED, "preset": "null", "score": 0.0, "p_value": 1.0,
              "decision": Decision.NORMAL, "score_fingerprint": "null"}
"""What the null scorer says of every image."""

SCORER_CACHE_BYTES = 1 << 30


class ShardScorer:
    """Scores decoded shards, with the bundles of a plan in a cache bounded by bytes."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self._cache: OrderedDict[str, tuple[Scorer, Judge, int]] = OrderedDict()

    def score(self, decoded: pa.Table) -> pa.Table:
        """Rows of `DECODED` to rows of `SCORED`, in the same order."""
        category = decoded["category"][0].as_py()
        common = {
            "run_id": self.plan["run_id"], "generation": self.plan["generation"],
            "date": Date.fromisoformat(self.plan["date"]), "schema_version": SCHEMA_VERSION,
            "scored_at": datetime.now(UTC),
        }
        identity = decoded.drop_columns(["pixels"]).to_pylist()
        said = self._say(category, identity, decoded["pixels"])
        rows = [{**common, **{name: row[name] for name in SCORED.names if name in row}, **found}
                for row, found in zip(identity, said, strict=True)]
        return pa.Table.from_pylist(rows, schema=SCORED)

    def _say(self, category: str, rows: Sequence[dict[str, Any]], pixels: pa.ChunkedArray
             ) -> list[dict[str, Any]]:
        """What is said of each row of one category."""
        said: list[dict[str, Any]] = [{"status": Status.REJECTED, **self._model(category)}
                                      for _ in rows]
        usable = [i for i in range(len(rows)) if pixels[i].is_valid]
        if self.plan["null_scorer"]:
            for i in usable:
                said[i] = NULL_SCORE
        elif usable:
            scorer, judge = self._scorer(category)
            for at in range(0, len(usable), scorer.device.batch):
                chunk = usable[at:at + scorer.device.batch]
                batch = scorer.score([self._image(pixels[i], scorer) for i in chunk])
                for place, i in enumerate(chunk):
                    said[i] = self._verdict(scorer, judge, batch, place, rows[i])
        return said

    def _image(self, pixels: pa.Scalar, scorer: Scorer) -> NDArray[np.uint8]:
        size = scorer.bundle.config.image.size
        return np.frombuffer(pixels.as_buffer(), np.uint8).reshape(size, size, 3)

    def _verdict(self, scorer: Scorer, judge: Judge, batch: ScoreBatch, at: int,
                 row: dict[str, Any]) -> dict[str, Any]:
        score, heatmap_HW = float(batch.scores[at]), batch.heatmaps[at]
        verdict = judge.assess(score, heatmap_HW, (row["width"], row["height"]))
        return {
            "status": Status.SCORED, "preset": scorer.bundle.preset, "score": score,
            **{name: float(batch.terms[name][at]) for name in TERMS if name in batch.terms},
            "p_value": verdict.p_value, "decision": verdict.decision, "alpha": verdict.alpha,
            "threshold": verdict.threshold,
            "regions": [{name: getattr(region, name) for name in region.__slots__}
                        for region in verdict.regions],
            "model_version": scorer.bundle.version, "score_fingerprint": scorer.fingerprint,
            **self._heatmap(heatmap_HW, verdict.decision),
        }

    def _model(self, category: str) -> dict[str, Any]:
        """The model that an image was rejected for, as its row names it."""
        frozen = self.plan["bundles"].get(category)
        return {} if frozen is None else {
            "preset": frozen["preset"], "model_version": frozen["version"],
            "score_fingerprint": frozen["score_fingerprint"]}

    def _heatmap(self, heatmap_HW: NDArray[np.float32], decision: Decision) -> dict[str, Any]:
        policy = self.plan["heatmaps"]
        if policy == "none" or (policy == "flagged" and decision == Decision.NORMAL):
            return {}
        png, low, high = encode_heatmap(heatmap_HW)
        return {"heatmap": png, "heatmap_min": low, "heatmap_max": high}

    def _scorer(self, category: str) -> tuple[Scorer, Judge]:
        if category not in self._cache:
            frozen = self.plan["bundles"][category]
            bundle = registry.load_bundle(self.plan["models"], category, frozen["version"])
            if bundle.sha256 != frozen["sha256"]:
                raise ModelError(f"model {category}/{bundle.version} changed since this run was "
                                 "planned; restore it, versions are never rewritten")
            scorer = Scorer(bundle, GPU if self.plan["gpu"] else CPU)
            if scorer.fingerprint != frozen["score_fingerprint"]:
                raise ModelError(f"this worker would score {category} with other bits than the "
                                 "driver that planned the run; install the same versions of "
                                 "igd-ray, torch and pillow on every node")
            judge = Judge(bundle, fpr=self.plan["fpr"], review_fpr=self.plan["review_fpr"])
            size = sum(t.nbytes for t in bundle.model.state_dict().values())
            self._cache[category] = (scorer, judge, size)
            while len(self._cache) > 1 and (
                    sum(entry[2] for entry in self._cache.values()) > SCORER_CACHE_BYTES):
                self._cache.popitem(last=False)
        self._cache.move_to_end(category)
        scorer, judge, _ = self._cache[category]
        return scorer, judge


class ScoreActor:
    """A pool member: keeps its models between shards."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._scorer = ShardScorer(plan)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        began = time.time()
        read_s, read_at = (decoded[name][0].as_py() for name in ("read_s", "read_at"))
        scored = self._scorer.score(decoded.drop_columns(["read_s", "read_at"]))
        return with_columns(scored, read_s=read_s, waited_s=max(0.0, began - read_at),
                            score_s=time.time() - began)
