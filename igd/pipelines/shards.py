"""The three steps of a shard: read and decode, score, write. Pure functions; ray says where."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from datetime import date as Date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from igd import registry, storage, tables
from igd.config import ImageConfig
from igd.data.decoders import CarefulDecoder, Decoded, decode_here
from igd.data.fetch import fetch
from igd.data.images import encode_heatmap
from igd.data.members import Member
from igd.errors import ImageError, ModelError
from igd.pipelines.attempts import attempt
from igd.pipelines.plan import members_of, shard_rows
from igd.pipelines.run import Run
from igd.pipelines.watchdog import DECODE_S, FETCH_S, Watchdog
from igd.records import (
    DECODED,
    HEATMAPS,
    SCHEMA_VERSION,
    SCORES,
    TERMS,
    Decision,
    Status,
)
from igd.score.scorer import CPU, GPU, Judge, ScoreBatch, Scorer

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
READERS = 16
CAREFUL_AFTER = 2
"""Attempts at a shard that died before its images are decoded in a child."""

Decoder = Callable[[bytes], Decoded]


def read_shard(run_at: str, plan: dict[str, Any], shard: int) -> pa.Table:
    """Fetches, decodes and resizes the members of a shard: rows of `DECODED`.

    A member that cannot be used becomes a row with a reason. So does one that killed or hung its
    reader, from the third attempt on.
    """
    rows = shard_rows(run_at, plan, shard)
    category = rows["category"][0].as_py()
    bundle = plan["bundles"].get(category)
    image = ImageConfig(**bundle["image"]) if bundle else ImageConfig()
    with attempt(run_at, shard) as died:
        decoded = _decode_all(members_of(rows), image, careful=died >= CAREFUL_AFTER)
    fresh = [name for name in DECODED.names if name in decoded[0]]
    columns = {name: pa.array([row[name] for row in decoded], DECODED.field(name).type)
               for name in fresh}
    return pa.table({name: columns[name] if name in columns else rows[name]
                     for name in DECODED.names}, schema=DECODED)


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


def write_shard(run_at: str, plan: dict[str, Any], scored: pa.Table) -> dict[str, Any]:
    """Writes a shard's rows and, if no other attempt was first, the record that makes them count.

    Returns:
        The record that counts.
    """
    shard = scored["shard"][0].as_py()
    category = scored["category"][0].as_py()
    date = Date.fromisoformat(plan["date"])
    sink = io.BytesIO()
    pq.write_table(scored.select(SCORES.names), sink, compression="zstd")
    data = sink.getvalue()
    path = f"shards/{shard:08d}-{uuid.uuid4().hex}.parquet"
    storage.write_bytes(storage.join(run_at, path), data)
    heatmaps = scored.filter(scored["heatmap"].is_valid()).select(HEATMAPS.names)
    staged = tables.stage(plan["out"], "heatmaps", heatmaps, date=date, category=category,
                          stem=f"{plan['run_id']}-{shard:08d}") if len(heatmaps) else None
    record = {
        "shard": shard, "category": category, "path": path, "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "rows": len(scored),
        "rejected": _rejected(scored), "flagged": _flagged(scored),
        "heatmaps": {"path": staged.path, "size": staged.size, "rows": staged.rows}
        if staged else None,
    }
    done = storage.join(run_at, "done", f"{shard:08d}.json")
    if not storage.put_if_absent(done, json.dumps(record, sort_keys=True).encode()):
        storage.delete(storage.join(run_at, path))
        if staged:
            storage.delete(storage.join(plan["out"], "heatmaps", staged.path))
        record = json.loads(storage.read_bytes(done))
    return record


def read_scored(run_at: str, record: dict[str, Any]) -> tuple[bytes, pa.Table | None]:
    """The bytes of a finished shard and its rows; None where the bytes are not Parquet."""
    data = storage.read_bytes(storage.join(run_at, record["path"]))
    try:
        return data, pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowInvalid, OSError):
        return data, None


def read_records(run_at: str) -> dict[int, dict[str, Any]]:
    """Shard number to completion record."""
    uris = [entry.uri for entry in storage.list_objects(storage.join(run_at, "done"))
            if entry.key.endswith(".json")]
    with ThreadPoolExecutor(READERS) as pool:
        records = [json.loads(data) for data in pool.map(storage.read_bytes, uris)]
    return {record["shard"]: record for record in records}


def forget_lost(run: Run, records: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The records whose files are there in full; the others are removed, to be done again."""
    date = f"date={run.request.date.isoformat()}"
    sizes = {f"shards/{entry.key}": entry.size
             for entry in storage.list_objects(run.at("shards"))}
    sizes |= {f"{date}/{entry.key}": entry.size
              for entry in storage.list_objects(
                  storage.join(run.request.out, "heatmaps", date))}
    whole = {}
    for shard, record in records.items():
        files = {record["path"]: record["bytes"]}
        if record["heatmaps"]:
            files[record["heatmaps"]["path"]] = record["heatmaps"]["size"]
        if all(sizes.get(path) == size for path, size in files.items()):
            whole[shard] = record
        else:
            storage.delete(run.at("done", f"{shard:08d}.json"))
    return whole


def count_rejects(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Rejects by reason over many records."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record["rejected"])
    return dict(sorted(total.items()))


def _decode_all(members: Sequence[Member], image: ImageConfig, *,
                careful: bool) -> list[dict[str, Any]]:
    decoder: contextlib.AbstractContextManager[Decoder] = (
        CarefulDecoder(image) if careful
        else contextlib.nullcontext(functools.partial(decode_here, image=image)))
    rows = []
    with Watchdog() as watchdog, decoder as decode:
        watchdog.allow(FETCH_S)
        for content in fetch(members):
            if not careful:  # a child has limits of its own
                watchdog.allow(DECODE_S)
            rows.append(_decoded(content, decode))
            watchdog.allow(FETCH_S)
    return rows


def _decoded(content: bytes | ImageError, decode: Decoder) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(
        ("reject_reason", "reject_detail", "bytes", "sha256", "width", "height", "pixels"))
    try:
        if isinstance(content, ImageError):
            raise content
        row.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        found = decode(content)
        row.update(width=found.width, height=found.height, pixels=found.pixels)
    except ImageError as error:
        row.update(reject_reason=error.reason, reject_detail=error.detail[:500])
    return row


def _rejected(scored: pa.Table) -> dict[str, int]:
    reasons = Counter(scored["reject_reason"].to_pylist())
    reasons.pop(None, None)
    return dict(sorted(reasons.items()))


def _flagged(scored: pa.Table) -> dict[str, int]:
    return dict(sorted(Counter(d for d in scored["decision"].to_pylist() if d).items()))
