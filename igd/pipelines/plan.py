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
import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from igd import registry, storage, tables
from igd.config import ImageConfig, config_from_dict
from igd.data.globs import glob_of
from igd.data.members import Member, unescape_name
from igd.data.routing import Routing
from igd.data.selection import Picker
from igd.data.sources import SourceRecord, check_source, scan, select_inputs
from igd.errors import DataError, ModelError
from igd.pipelines.run import Inputs, Run
from igd.records import PLAN, UNROUTED, Reason, SourceStatus
from igd.score.scorer import score_fingerprint

SHARD_MEMBERS = 256
SHARD_SPAN_BYTES = 256 * 1024 * 1024
SHARD_PIXEL_BYTES = 96 * 1024 * 1024
"""Decoded input of a shard; one block of Ray Data stays below its 128 MiB target."""
SHARDS_PER_FILE = 64
PROGRESS_EVERY = 100

Closed = Callable[[int, str, list[Member]], None]
"""Takes a closed shard: its number, its category, its members."""


class Sharder:
    """Collects members into shards of one category and hands each on as it is full."""

    def __init__(self, closed: Closed, shard_members: int = SHARD_MEMBERS) -> None:
        self.shards = self.members = 0
        self.counts: dict[str, int] = {}
        self._closed = closed
        self._shard_members = shard_members
        self._open: dict[str, list[Member]] = {}
        self._span: dict[str, int] = {}

    def add(self, member: Member, category: str, limit: int) -> None:
        """Adds a member; `limit` bounds the members of its category's shards."""
        rows = self._open.setdefault(category, [])
        rows.append(member)
        self._span[category] = self._span.get(category, 0) + member.span
        self.members += 1
        self.counts[category] = self.counts.get(category, 0) + 1
        full = len(rows) >= min(limit, self._shard_members)
        if full or self._span[category] >= SHARD_SPAN_BYTES:
            self._close(category)

    def finish(self) -> None:
        for category in sorted(self._open):
            self._close(category)

    def _close(self, category: str) -> None:
        self._span.pop(category)
        self._closed(self.shards, category, self._open.pop(category))
        self.shards += 1


class PlanFiles:
    """Writes shards as row groups, `SHARDS_PER_FILE` to a file."""

    def __init__(self, out: str, at: str) -> None:
        self.names: list[str] = []
        self._out, self._at = out, at
        self._sink = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None

    def add(self, shard: int, category: str, members: list[Member]) -> None:
        if self._writer is None:
            self._sink = io.BytesIO()
            self._writer = pq.ParquetWriter(self._sink, PLAN, compression="zstd")
        self._writer.write_table(_plan_rows(members, shard, category), row_group_size=len(members))
        if (shard + 1) % SHARDS_PER_FILE == 0:
            self.flush()

    def flush(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        if not self.names:
            tables.claim_output(self._out)
        name = f"{len(self.names):06d}.parquet"
        storage.write_bytes(storage.join(self._at, name), self._sink.getvalue())
        self.names.append(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """What one pass over the sources found, members aside.

    Attributes:
        unmatched: patterns of --exclude that matched nothing.
    """

    bundles: dict[str, dict[str, Any]]
    unknown: dict[str, int]
    inputs: InputsHash
    records: list[SourceRecord]
    picker: Picker
    unmatched: list[str]


def list_members(wanted: Inputs, shards: Sharder, *, unknown_category: str = "reject",
                 progress: Callable[[int], None] = lambda members: None) -> Listing:
    """The planning pass: routes every picked member of the sources into shards.

    Nothing is written but what `shards` hands on.

    Args:
        unknown_category: `reject`, or `error`: an image of a category without a model ends it.

    Raises:
        ConfigError: a pattern of --include that matches nothing.
        DataError: a source is not there, or two patterns have an object in common.
        ModelError: the category asked for has no usable model, or that of an image has none.
    """
    models = _Models(wanted, strict=unknown_category == "error")
    for source in wanted.sources:
        check_source(source)
    inputs, picker = InputsHash(), Picker(wanted.selection)
    records: list[SourceRecord] = []
    for source in wanted.sources:
        if picker.full:
            break
        for path, member in scan(source, records.append, _noted(source, wanted, inputs), picker,
                                 column=wanted.routing.column):
            category, member = _routed(member, path, wanted.routing, models)
            shards.add(member, category, models.shard_limit(category))
            if shards.members % PROGRESS_EVERY == 0:
                progress(shards.members)
    unmatched = picker.idle_excludes()
    shards.finish()
    progress(shards.members)
    return Listing(bundles=models.frozen(), unknown=models.unknown(), inputs=inputs,
                   records=records, picker=picker, unmatched=unmatched)


def _noted(source: str, wanted: Inputs, inputs: InputsHash) -> Callable[[storage.Entry], None]:
    """Takes the objects of one source; refuses one that another source has too."""
    globs = {other: glob_of(other) for other in wanted.sources}

    def note(entry: storage.Entry) -> None:
        for other, glob in globs.items():
            if other != source and (glob or globs[source]) and (
                    glob.holds(entry.uri) if glob else _is_of(entry.uri, other)):
                raise DataError(f"{entry.uri} is of source {source} and of source {other} and "
                                "would count twice; give sources that have nothing in common")
        inputs.add(entry)
    return note


def _is_of(uri: str, place: str) -> bool:
    return uri == place or storage.is_inside(uri, place)


def make_plan(run: Run, *, shard_members: int = SHARD_MEMBERS, unknown_category: str = "reject",
              progress: Callable[[int], None] = lambda members: None) -> dict[str, Any]:
    """Lists the sources, writes the plan and freezes it; returns the plan that counts.

    Where another process froze one first, that one is returned.

    Raises:
        IgdError: as `list_members`, which see.
    """
    wanted = run.request
    attempt = uuid.uuid4().hex[:12]
    files = PlanFiles(wanted.out, run.at("plan", attempt))
    shards = Sharder(files.add, shard_members)
    found = list_members(wanted, shards, unknown_category=unknown_category, progress=progress)
    files.flush()
    tables.claim_output(wanted.out)
    run.create_json("plan.json", {
        "run_id": run.run_id, "generation": run.generation, "date": wanted.date.isoformat(),
        "sources": list(wanted.sources), "models": wanted.models, "out": wanted.out,
        "routing": wanted.routing.describe(), "fpr": wanted.fpr,
        "review_fpr": wanted.review_fpr, "heatmaps": wanted.heatmaps,
        "selection": wanted.selection.describe(), "left_out": found.picker.left_out,
        "unmatched": found.unmatched,
        "attempt": attempt, "files": files.names, "shards": shards.shards,
        "members": shards.members, "inputs": found.inputs.value,
        "limited_to": found.inputs.count if found.picker.full else None,
        "bundles": found.bundles, "categories": sorted({*shards.counts, *found.bundles}),
        "counts": shards.counts, "unknown_categories": sorted(found.unknown),
        "source_records": [dataclasses.asdict(record) for record in found.records],
    })
    frozen = run.read_json("plan.json")
    assert frozen is not None
    return frozen


def odd_sources(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sources of a plan that did not list as they should."""
    return [record for record in records if record["status"] != SourceStatus.COMPLETE]


def any_bad(records: list[dict[str, Any]]) -> bool:
    """Whether the operator must see to a source; a missing end marker is only told."""
    fine = (SourceStatus.COMPLETE, SourceStatus.NO_END_MARKER)
    return any(record["status"] not in fine for record in records)


def unchanged(run: Run, plan: dict[str, Any]) -> bool:
    """Whether the inputs and the models in production are still those of a plan.

    A plan that a limit ended is of the first so many objects, and of no others.
    """
    wanted = run.request
    inputs = InputsHash()
    listed = (entry for source in wanted.sources
              for entry in select_inputs(source, wanted.selection.wants))
    for entry in itertools.islice(listed, plan.get("limited_to")):
        inputs.add(entry)
    if inputs.value != plan["inputs"]:
        return False
    known = registry.list_categories(wanted.models)
    if set(known) & set(plan["unknown_categories"]):
        return False
    return all(registry.production_version(wanted.models, category) == bundle["version"]
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
        self._sum = self.count = 0

    def add(self, entry: storage.Entry) -> None:
        digest = hashlib.sha256(f"{entry.uri}\0{entry.version}".encode()).digest()
        self._sum = (self._sum + int.from_bytes(digest[:16], "little")) % (1 << 128)
        self.count += 1

    @property
    def value(self) -> str:
        return f"{self._sum:032x}"


class _Models:
    """The model versions of the categories that turned up."""

    def __init__(self, wanted: Inputs, *, strict: bool) -> None:
        self._wanted = wanted
        self._strict = strict
        self._bundles: dict[str, dict[str, Any] | None] = {}
        self._unknown: Counter[str] = Counter()
        if wanted.routing.category is not None:
            self._bundles[wanted.routing.category] = self._load(wanted.routing.category)

    def known(self, category: str, path: str) -> bool:
        """Whether there is a model for an image of a category; counts those without."""
        if category not in self._bundles:
            try:
                self._bundles[category] = self._load(category)
            except ModelError as error:
                if category in registry.list_categories(self._wanted.models):
                    raise  # damaged, which no image should pay for
                if self._strict:
                    raise ModelError(f"image {path!r}: {error}; train it, leave such images out "
                                     "(--exclude) or have them rejected (--unknown-category "
                                     "reject)") from error
                self._bundles[category] = None
        if self._bundles[category] is None:
            self._unknown[category] += 1
            return False
        return True

    def unknown(self) -> dict[str, int]:
        return dict(sorted(self._unknown.items()))

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
    elif not models.known(category, path):
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
