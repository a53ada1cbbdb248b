"""The plan of a run: every member, routed, in shards of one category; a streaming pass.

One buffer per category is open at a time and is closed at a number of members or bytes, so that
memory does not grow with the dump. The plan names the model versions and is frozen: a dump that
grows, or a model that is promoted, changes the next run and not this one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from igd import registry, storage, tables
from igd.config import ImageConfig, config_from_dict
from igd.data.members import Member, unescape_name
from igd.data.routing import Routing
from igd.data.sources import SourceRecord, check_source, list_inputs, scan
from igd.errors import ModelError
from igd.pipelines.run import Request, Run
from igd.records import PLAN, UNROUTED, Reason
from igd.score.scorer import score_fingerprint

SHARD_MEMBERS = 256
SHARD_SPAN_BYTES = 256 * 1024 * 1024
SHARD_PIXEL_BYTES = 96 * 1024 * 1024
"""Decoded input of a shard; one block of Ray Data stays below its 128 MiB target."""
SHARDS_PER_FILE = 64


class PlanWriter:
    """Collects members into shards and writes them, `SHARDS_PER_FILE` to a file."""

    def __init__(self, at: str, shard_members: int) -> None:
        self.shards = self.members = self.rejected = 0
        self.files: list[str] = []
        self.counts: dict[str, int] = {}
        self._at = at
        self._shard_members = shard_members
        self._open: dict[str, list[Member]] = {}
        self._span: dict[str, int] = {}
        self._sink = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None

    def add(self, member: Member, category: str, limit: int) -> None:
        """Adds a member; `limit` bounds the members of its category's shards."""
        rows = self._open.setdefault(category, [])
        rows.append(member)
        self._span[category] = self._span.get(category, 0) + member.span
        self.members += 1
        self.counts[category] = self.counts.get(category, 0) + 1
        self.rejected += member.reject_reason is not None
        full = len(rows) >= min(limit, self._shard_members)
        if full or self._span[category] >= SHARD_SPAN_BYTES:
            self._close(category)

    def finish(self) -> None:
        for category in sorted(self._open):
            self._close(category)
        self._flush()

    def _close(self, category: str) -> None:
        rows = self._open.pop(category)
        self._span.pop(category)
        if self._writer is None:
            self._sink = io.BytesIO()
            self._writer = pq.ParquetWriter(self._sink, PLAN, compression="zstd")
        self._writer.write_table(_plan_rows(rows, self.shards, category),
                                 row_group_size=len(rows))
        self.shards += 1
        if self.shards % SHARDS_PER_FILE == 0:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        path = f"{len(self.files):06d}.parquet"
        storage.write_bytes(storage.join(self._at, path), self._sink.getvalue())
        self.files.append(path)


def make_plan(run: Run, *, shard_members: int = SHARD_MEMBERS,
              progress: Callable[[int], None] = lambda members: None) -> dict[str, Any]:
    """Lists the sources, writes the plan and freezes it; returns the plan that counts.

    Where another process froze one first, that one is returned.

    Raises:
        DataError: a source is not there.
        ModelError: the category asked for has no usable model.
    """
    wanted = run.request
    models = _Models(wanted)
    for source in wanted.sources:
        check_source(source)
    tables.claim_output(wanted.out)
    attempt = uuid.uuid4().hex[:12]
    writer = PlanWriter(run.at("plan", attempt), shard_members)
    inputs = InputsHash()
    records: list[SourceRecord] = []
    for source in wanted.sources:
        for path, member in scan(source, records.append, inputs.add,
                                 column=wanted.routing.column):
            category, member = _routed(member, path, wanted.routing, models)
            writer.add(member, category, models.shard_limit(category))
            if writer.members % 1000 == 0:
                progress(writer.members)
    writer.finish()
    run.create_json("plan.json", {
        "run_id": run.run_id, "generation": run.generation, "date": wanted.date.isoformat(),
        "sources": list(wanted.sources), "models": wanted.models, "out": wanted.out,
        "routing": wanted.routing.describe(), "fpr": wanted.fpr,
        "review_fpr": wanted.review_fpr, "heatmaps": wanted.heatmaps,
        "attempt": attempt, "files": writer.files, "shards": writer.shards,
        "members": writer.members, "inputs": inputs.value, "bundles": models.frozen(),
        "categories": sorted({*writer.counts, *models.frozen()}), "counts": writer.counts,
        "unknown_categories": models.unknown(),
        "source_records": [dataclasses.asdict(record) for record in records],
    })
    frozen = run.read_json("plan.json")
    assert frozen is not None
    return frozen


def unchanged(run: Run, plan: dict[str, Any]) -> bool:
    """Whether the inputs and the models in production are still those of a plan."""
    inputs = InputsHash()
    for source in run.request.sources:
        for entry in list_inputs(source):
            inputs.add(entry)
    if inputs.value != plan["inputs"]:
        return False
    known = registry.list_categories(run.request.models)
    if set(known) & set(plan["unknown_categories"]):
        return False
    return all(registry.production_version(run.request.models, category) == bundle["version"]
               for category, bundle in plan["bundles"].items())


def same_arithmetic(plan: dict[str, Any]) -> bool:
    """Whether this installation would score with the bits that a plan's first shards have."""
    for category, bundle in plan["bundles"].items():
        document = registry.describe(plan["models"], category, bundle["version"])
        config = config_from_dict(document["config"], where=f"model {category}")
        if score_fingerprint(config) != bundle["score_fingerprint"]:
            return False
    return True


@functools.lru_cache(maxsize=2)
def load_plan(run_at: str) -> dict[str, Any]:
    """The frozen plan of a run; it never changes, so a process reads it once."""
    return dict(json.loads(storage.read_bytes(storage.join(run_at, "plan.json"))))


def shard_rows(run_at: str, plan: dict[str, Any], shard: int) -> pa.Table:
    """The planned rows of one shard."""
    path = storage.join(run_at, "plan", plan["attempt"], plan["files"][shard // SHARDS_PER_FILE])
    return _plan_file(path).read_row_group(shard % SHARDS_PER_FILE)


def members_of(rows: pa.Table) -> list[Member]:
    """Planned rows as members again."""
    names = [field.name for field in dataclasses.fields(Member) if field.name != "raw_name"]
    return [Member(raw_name=unescape_name(row["member"]), **{name: row[name] for name in names})
            for row in rows.to_pylist()]


class InputsHash:
    """A hash of what was listed: URIs and versions, in any order."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, entry: storage.Entry) -> None:
        digest = hashlib.sha256(f"{entry.uri}\0{entry.version}".encode()).digest()
        self._sum = (self._sum + int.from_bytes(digest[:16], "little")) % (1 << 128)

    @property
    def value(self) -> str:
        return f"{self._sum:032x}"


class _Models:
    """The model versions of the categories that turned up."""

    def __init__(self, wanted: Request) -> None:
        self._wanted = wanted
        self._bundles: dict[str, dict[str, Any] | None] = {}
        if wanted.routing.category is not None:
            self._bundles[wanted.routing.category] = self._load(wanted.routing.category)

    def known(self, category: str) -> bool:
        if category not in self._bundles:
            try:
                self._bundles[category] = self._load(category)
            except ModelError:
                if category in registry.list_categories(self._wanted.models):
                    raise  # damaged, which no image should pay for
                self._bundles[category] = None
        return self._bundles[category] is not None

    def unknown(self) -> list[str]:
        return sorted(name for name, bundle in self._bundles.items() if bundle is None)

    def shard_limit(self, category: str) -> int:
        bundle = self._bundles.get(category)
        size = bundle["image"]["size"] if bundle else ImageConfig().size
        return max(1, SHARD_PIXEL_BYTES // (3 * size * size))

    def frozen(self) -> dict[str, dict[str, Any]]:
        return {name: bundle for name, bundle in self._bundles.items() if bundle is not None}

    def _load(self, category: str) -> dict[str, Any]:
        bundle = registry.load_bundle(self._wanted.models, category)
        count = bundle.calibration.num_rows
        return {"version": bundle.version, "sha256": bundle.sha256, "preset": bundle.preset,
                "image": dataclasses.asdict(bundle.config.image), "calibration_images": count,
                "score_fingerprint": score_fingerprint(bundle.config),
                "smallest_alpha": 1 / (count + 1)}


def _routed(member: Member, path: str, routing: Routing, models: _Models) -> tuple[str, Member]:
    category = routing.route(path)
    if category is None:
        reason, detail = Reason.UNROUTED, f"no category {routing.describe()}"
    elif not models.known(category):
        reason, detail = Reason.UNKNOWN_CATEGORY, f"no model for category {category!r}"
    else:
        return category, member
    return UNROUTED, dataclasses.replace(member, reject_reason=reason, reject_detail=detail)


def _plan_rows(members: list[Member], shard: int, category: str) -> pa.Table:
    def column(name: str) -> Iterator[Any]:
        return (getattr(member, name) for member in members)

    constant = {"shard": [shard] * len(members), "category": [category] * len(members)}
    renamed = {"member": "name"}
    return pa.table({name: constant.get(name) or list(column(renamed.get(name, name)))
                     for name in PLAN.names}, schema=PLAN)


@functools.lru_cache(maxsize=4)
def _plan_file(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
