"""A plan in parts, each frozen as it fills, so that scoring starts while archives are indexed.

A part is a Parquet file of members, a row group per shard, and a document by put-if-absent that
makes it count. Of two processes that plan one run, each takes over the parts of the other and
leaves out what they hold, and so does one that goes on after a crash: whoever comes to the end
of the listing has planned everything once. The whole plan is put together from the parts then.
"""

from __future__ import annotations

import dataclasses
import io
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from igd import storage, tables
from igd.data.members import Member
from igd.errors import DataError
from igd.pipelines.known import Known
from igd.pipelines.listing import Listing, Models, Routed
from igd.pipelines.ownership import Ids, among, packed
from igd.pipelines.plan import part_file
from igd.pipelines.run import Run, read_document
from igd.records import PLAN

SHARD_MEMBERS = 256
SHARD_SPAN_BYTES = 256 * 1024 * 1024
PART_MEMBERS = 16_384
PART_SECONDS = 15.0
"""A part is frozen when it has so many members, or when it was so long in the making."""
LOOKED_UP_TOGETHER = 1024

Part = dict[str, Any]
Progress = Callable[[int], None]


def make_plan(run: Run, *, shard_members: int = SHARD_MEMBERS, unknown_category: str = "reject",
              progress: Progress = lambda members: None) -> dict[str, Any]:
    """Plans to the end and freezes the plan; returns the one that counts.

    Raises:
        IgdError: as `plan_parts`, which see.
    """
    for _ in plan_parts(run, shard_members=shard_members, unknown_category=unknown_category,
                        progress=progress):
        pass
    plan = run.read_json("plan.json")
    assert plan is not None
    return plan


def plan_parts(run: Run, *, shard_members: int = SHARD_MEMBERS, unknown_category: str = "reject",
               progress: Progress = lambda members: None) -> Iterator[Part]:
    """The parts of a run's plan: those frozen before, then new ones; `plan.json` at the end.

    Raises:
        ConfigError: a pattern of --include that matches nothing.
        DataError: a source is not there, or the sources that the run before found images in hold
            none any more.
        ModelError: the category asked for has no usable model, or that of an image has none.
    """
    parts = frozen_parts(run.at())
    yield from parts
    listing = Listing(run.request, unknown_category=unknown_category, bundles=_models_of(parts))
    known = Known(run.request.out) if run.request.new_only else None
    planned = PlannedIds(run.at(), parts)
    lacking = planned.without(listing.members(progress))
    for pending in chunks(unless_known(lacking, known, listing.models), PART_SECONDS):
        while pending:
            part, ours = _freeze(run, parts, pending, listing, known, shard_members)
            parts.append(part)
            yield part
            if ours:
                break
            listing.models.adopt(_models_of([part]))
            planned.add(part)
            pending = planned.lacks(pending)
    if not parts and not run.request.new_only:
        _refuse_to_empty(run)
    tables.claim_output(run.request.out)
    run.create_json("plan.json", _whole(run, parts, listing, known))


def _refuse_to_empty(run: Run) -> None:
    before = Run(request=run.request, generation=run.generation - 1)
    plan = before.read_json("plan.json") if before.generation else None
    if plan is not None and plan["members"] and before.is_live(plan):
        raise DataError(f"the sources hold no image any more, and {plan['members']} of them are "
                        f"published for {plan['date']}; nothing was replaced; check that the dump "
                        "is there")


def frozen_parts(run_at: str) -> list[Part]:
    """The parts of a plan that are frozen so far."""
    parts: list[Part] = []
    while (part := read_document(_part_at(run_at, len(parts)))) is not None:
        parts.append(part)
    return parts


def plan_so_far(run: Run, parts: Sequence[Part]) -> dict[str, Any]:
    """What is known of a plan from its first parts: enough to score their shards."""
    counts: Counter[str] = Counter()
    bundles: dict[str, Any] = {}
    for part in parts:
        counts.update(part["counts"])
        bundles.update(part["bundles"])
    return {
        **_header(run), "bundles": bundles, "counts": dict(sorted(counts.items())),
        "members": sum(counts.values()), "shards": sum(part["shards"] for part in parts),
        "parts": [{name: part[name] for name in ("file", "first_shard", "shards")}
                  for part in parts],
        "unknown_categories": sorted({name for part in parts
                                      for name in part["unknown_categories"]}),
    }


def shards_of(members: Iterable[Routed], shard_members: int = SHARD_MEMBERS
              ) -> Iterator[tuple[str, list[Member]]]:
    """Members in shards of one category, each handed on as it is full.

    One buffer per category is open at a time; it is closed at a number of members or bytes.
    """
    buffers: dict[str, list[Member]] = {}
    spans: Counter[str] = Counter()
    for routed in members:
        category = routed.category
        rows = buffers.setdefault(category, [])
        rows.append(routed.member)
        spans[category] += routed.member.span
        if len(rows) >= min(routed.limit, shard_members) or spans[category] >= SHARD_SPAN_BYTES:
            yield category, buffers.pop(category)
            del spans[category]
    for category in sorted(buffers):
        yield category, buffers[category]


def chunks(members: Iterator[Routed], seconds: float | None = None) -> Iterator[list[Routed]]:
    """The members of one part each.

    Args:
        seconds: what was listed for so long is a part; None: only the number of members counts.
    """
    began, chunk = time.monotonic(), list[Routed]()
    for routed in members:
        chunk.append(routed)
        late = seconds is not None and time.monotonic() - began >= seconds
        if late or len(chunk) >= PART_MEMBERS:
            yield chunk
            began, chunk = time.monotonic(), []
    if chunk:
        yield chunk


def unless_known(members: Iterator[Routed], known: Known | None, models: Models
                 ) -> Iterator[Routed]:
    """The members that are not published yet, or all where that does not matter."""
    if known is None:
        return members
    return (routed for routed in members
            if not known.has(routed.member, routed.category, models.bundle(routed.category)))


class PlannedIds:
    """The ids of members that frozen parts hold, 16 bytes each."""

    def __init__(self, run_at: str, parts: Sequence[Part]) -> None:
        self._run_at = run_at
        self._ids: list[Ids] = []
        for part in parts:
            self.add(part)

    def add(self, part: Part) -> None:
        ids = part_file(self._run_at, part["file"]).read(columns=["image_id"])["image_id"]
        self._ids.append(np.sort(packed(ids.to_pylist())))

    def lacks(self, members: Sequence[Routed]) -> list[Routed]:
        """Those of some members that no part holds, in the same order."""
        ids = packed(routed.member.image_id for routed in members)
        there = np.zeros(len(ids), bool)
        for known in self._ids:
            there |= among(ids, known)
        return [routed for routed, known in zip(members, there, strict=True) if not known]

    def without(self, members: Iterator[Routed]) -> Iterator[Routed]:
        """The members that no part holds."""
        batch: list[Routed] = []
        for routed in members:
            if not self._ids:
                yield routed
                continue
            batch.append(routed)
            if len(batch) == LOOKED_UP_TOGETHER:
                yield from self.lacks(batch)
                batch = []
        yield from self.lacks(batch)


def _freeze(run: Run, parts: Sequence[Part], members: list[Routed], listing: Listing,
            known: Known | None, shard_members: int) -> tuple[Part, bool]:
    """Writes members as the next part; the part that counts, and whether it is this one."""
    first = sum(part["shards"] for part in parts)
    shards = list(shards_of(members, shard_members))
    name = f"{len(parts):06d}-{uuid.uuid4().hex[:12]}.parquet"
    tables.claim_output(run.request.out)
    storage.write_bytes(storage.join(run.at("plan"), name), _rows_as_parquet(shards, first))
    counts = Counter(routed.category for routed in members)
    part = {
        **_header(run), "part": len(parts), "file": name, "first_shard": first,
        "shards": len(shards), "counts": dict(sorted(counts.items())),
        "bundles": listing.models.of(counts),
        "unknown_categories": sorted(listing.models.unknown()),
        "known_version": known.version if known else None,
    }
    if run.create_json(f"plan/{len(parts):06d}.json", part):
        return part, True
    storage.delete(storage.join(run.at("plan"), name))
    winner = read_document(_part_at(run.at(), len(parts)))
    assert winner is not None
    return winner, False


def _whole(run: Run, parts: Sequence[Part], listing: Listing, known: Known | None
           ) -> dict[str, Any]:
    wanted, picker = run.request, listing.picker
    so_far = plan_so_far(run, parts)
    bundles = {**listing.models.all(), **so_far["bundles"]}
    unknown = {*so_far["unknown_categories"], *listing.models.unknown()}
    return {
        **so_far, "sources": list(wanted.sources), "routing": wanted.routing.describe(),
        "selection": wanted.selection.describe(), "left_out": picker.left_out,
        "unmatched": listing.unmatched, "inputs": listing.inputs.value,
        "limited_to": listing.inputs.count if picker.full else None,
        "bundles": bundles, "categories": sorted({*so_far["counts"], *bundles}),
        "unknown_categories": sorted(unknown),
        "new_only": wanted.new_only, "known": known.left_out if known else 0,
        # what was published later is looked for once more before this run publishes
        "known_version": known and (parts[0]["known_version"] if parts else known.version),
        "source_records": [dataclasses.asdict(record) for record in listing.records],
    }


def _header(run: Run) -> dict[str, Any]:
    wanted = run.request
    return {"run_id": run.run_id, "generation": run.generation, "date": wanted.date.isoformat(),
            "models": wanted.models, "out": wanted.out, "fpr": wanted.fpr,
            "review_fpr": wanted.review_fpr, "heatmaps": wanted.heatmaps,
            "null_scorer": wanted.null_scorer, "gpu": wanted.gpu}


def _models_of(parts: Iterable[Part]) -> dict[str, dict[str, Any] | None]:
    found: dict[str, dict[str, Any] | None] = {}
    for part in parts:
        found |= dict.fromkeys(part["unknown_categories"]) | part["bundles"]
    return found


def _part_at(run_at: str, number: int) -> str:
    return storage.join(run_at, "plan", f"{number:06d}.json")


def _rows_as_parquet(shards: Iterable[tuple[str, list[Member]]], first: int) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, PLAN, compression="zstd") as writer:
        for shard, (category, members) in enumerate(shards, first):
            writer.write_table(_plan_rows(members, shard, category), row_group_size=len(members))
    return sink.getvalue()


def _plan_rows(members: list[Member], shard: int, category: str) -> pa.Table:
    def column(name: str) -> Iterator[Any]:
        return (getattr(member, name) for member in members)

    constant = {"shard": [shard] * len(members), "category": [category] * len(members)}
    renamed = {"member": "name"}
    return pa.table({name: constant.get(name) or list(column(renamed.get(name, name)))
                     for name in PLAN.names}, schema=PLAN)
