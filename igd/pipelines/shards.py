"""A shard but for its scores: read and decoded, and written. Pure functions; Ray says where.

Loads no torch, which every process that only reads or writes would pay for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date as Date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from igd import storage, tables
from igd.config import ImageConfig
from igd.data.decoders import CarefulDecoder, Decoded, decode_here
from igd.data.fetch import fetch
from igd.data.members import Member
from igd.errors import ImageError
from igd.pipelines.attempts import attempt
from igd.pipelines.plan import members_of, shard_rows
from igd.pipelines.run import Run
from igd.pipelines.watchdog import DECODE_S, FETCH_S, Watchdog
from igd.records import DECODED, HEATMAPS, SCORES

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
