"""What a batch run would do: the planning pass, with nothing written anywhere."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from datetime import date as Date
from typing import Any

import numpy as np

from igd import tables
from igd.data.members import Member
from igd.pipelines.known import Known
from igd.pipelines.ownership import Ids, IdSets, among, packed
from igd.pipelines.plan import SHARD_MEMBERS, Sharder, any_bad, list_members, odd_sources
from igd.pipelines.run import Inputs


def preview(wanted: Inputs, *, published: tuple[str, Date] | None = None,
            new_only: str | None = None, shard_members: int = SHARD_MEMBERS,
            unknown_category: str = "reject",
            progress: Callable[[int], None] = lambda members: None) -> dict[str, Any]:
    """Counts what the plan of a run would hold.

    Args:
        published: output and date whose published images are not new.
        new_only: output whose published images, under any date, are left out.

    Returns:
        members, bytes to read, shards, images by category with the model that would score them,
        rejects known by now (each reason with a first example), categories without a model,
        sources and the odd ones among them, what patterns left out; `published` and `new`, and
        the `known` images left out, where asked for.

    Raises:
        IgdError: as `igd.pipelines.plan.list_members`, which see.
    """
    for out in filter(None, (published and published[0], new_only)):
        tables.check_output(out)
    known = Known(new_only) if new_only is not None else None
    of_date = _published_ids(*published) if published is not None else None
    tally = _Tally(of_date)
    shards = Sharder(tally.add, shard_members)
    found = list_members(wanted, shards, unknown_category=unknown_category, known=known,
                         progress=progress)
    records = [dataclasses.asdict(record) for record in found.records]
    return {
        "sources": records, "odd_sources": odd_sources(records),
        "members": shards.members, "bytes": tally.bytes, "shards": shards.shards,
        "categories": {category: {"images": count, **_model(found.bundles.get(category))}
                       for category, count in sorted(shards.counts.items())},
        "rejected": {reason: {"images": count, "first": tally.examples[reason]}
                     for reason, count in sorted(tally.rejected.items())},
        "unknown_categories": found.unknown, "selection": wanted.selection.describe(),
        "left_out": found.picker.left_out, "unmatched": found.unmatched,
        "limit_reached": found.picker.full,
        "published": None if of_date is None else len(np.unique(of_date)), "new": tally.new,
        "known": None if known is None else known.left_out,
        "exit_code": 3 if any_bad(records) else 0,
    }


class _Tally:
    """Takes shards as they close and keeps counts."""

    def __init__(self, known: Ids | None) -> None:
        self.bytes = 0
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.new: int | None = None if known is None else 0
        self._known = known

    def add(self, shard: int, category: str, members: list[Member]) -> None:
        for member in members:
            self.bytes += member.span if member.reject_reason is None else 0
            if member.reject_reason is not None:
                self.rejected[member.reject_reason] += 1
                self.examples.setdefault(member.reject_reason, " ".join(
                    filter(None, (member.source_uri, member.name))))
        if self.new is not None and self._known is not None:
            ids = packed(member.image_id for member in members)
            self.new += len(ids) - int(among(ids, self._known).sum())


def _published_ids(out: str, date: Date) -> Ids:
    """Sorted ids of a date's published images; one that two categories hold comes twice."""
    files = tables.live_files(out, "scores", date)
    return IdSets(sum(file.rows for file in files)).add(
        packed(tables.read(out, "scores", date, columns=["image_id"], files=[file])
               ["image_id"].to_pylist()) for file in files)


def _model(bundle: dict[str, Any] | None) -> dict[str, Any]:
    return {name: bundle[name] for name in ("preset", "version")} if bundle else {}
