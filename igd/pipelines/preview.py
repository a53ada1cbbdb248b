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
from igd.pipelines.listing import Listing
from igd.pipelines.ownership import Ids, IdSets, among, packed
from igd.pipelines.parts import SHARD_MEMBERS, chunks, shards_of, unless_known
from igd.pipelines.plan import any_bad, odd_sources
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
        IgdError: as `igd.pipelines.listing.Listing`, which see.
    """
    for out in filter(None, (published and published[0], new_only)):
        tables.check_output(out)
    known = Known(new_only) if new_only is not None else None
    of_date = _published_ids(*published) if published is not None else None
    tally = _Tally(of_date)
    found = Listing(wanted, unknown_category=unknown_category)
    for chunk in chunks(unless_known(found.members(progress), known, found.models)):
        for category, members in shards_of(chunk, shard_members):
            tally.add(category, members)
    records = [dataclasses.asdict(record) for record in found.records]
    models = found.models.all()
    return {
        "sources": records, "odd_sources": odd_sources(records),
        "members": sum(tally.counts.values()), "bytes": tally.bytes, "shards": tally.shards,
        "categories": {category: {"images": count, **_model(models.get(category))}
                       for category, count in sorted(tally.counts.items())},
        "rejected": {reason: {"images": count, "first": tally.examples[reason]}
                     for reason, count in sorted(tally.rejected.items())},
        "unknown_categories": found.models.unknown(), "selection": wanted.selection.describe(),
        "left_out": found.picker.left_out, "unmatched": found.unmatched,
        "limit_reached": found.picker.full,
        "published": None if of_date is None else len(np.unique(of_date)), "new": tally.new,
        "known": None if known is None else known.left_out,
        "exit_code": 3 if any_bad(records) else 0,
    }


class _Tally:
    """Takes shards as they close and keeps counts."""

    def __init__(self, known: Ids | None) -> None:
        self.bytes = self.shards = 0
        self.counts: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.new: int | None = None if known is None else 0
        self._known = known

    def add(self, category: str, members: list[Member]) -> None:
        self.shards += 1
        self.counts[category] += len(members)
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
