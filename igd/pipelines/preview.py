"""What a batch run would do: the planning pass, with nothing written anywhere."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from datetime import date as Date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igd import tables
from igd.data.members import Member
from igd.pipelines.listing import Listing
from igd.pipelines.parts import SHARD_MEMBERS, chunks, packed, shards_of
from igd.pipelines.plan import any_bad, odd_sources
from igd.pipelines.run import Inputs


def preview(wanted: Inputs, *, published: tuple[str, Date] | None = None,
            shard_members: int = SHARD_MEMBERS, unknown_category: str = "reject",
            progress: Callable[[int], None] = lambda members: None) -> dict[str, Any]:
    """Counts what the plan of a run would hold.

    Args:
        published: output and date whose published images are not new.

    Returns:
        members, bytes to read, shards, images by category with the model that would score them,
        rejects known by now (each reason with a first example), categories without a model,
        sources and the odd ones among them, what patterns left out; `published` and `new` where
        asked for.

    Raises:
        IgdError: as `igd.pipelines.listing.Listing`, which see.
    """
    known = None
    if published is not None:
        tables.check_output(published[0])
        known = _published_ids(*published)
    tally = _Tally(known)
    found = Listing(wanted, unknown_category=unknown_category)
    for chunk in chunks(found.members(progress)):
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
        "published": None if known is None else len(known), "new": tally.new,
        "exit_code": 3 if any_bad(records) else 0,
    }


class _Tally:
    """Takes shards as they close and keeps counts."""

    def __init__(self, known: NDArray[np.bytes_] | None) -> None:
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
            at = np.searchsorted(self._known, ids)
            there = at < len(self._known)
            self.new += len(ids) - int((self._known[at[there]] == ids[there]).sum())


def _published_ids(out: str, date: Date) -> NDArray[np.bytes_]:
    """Sorted ids of a date's published images, 16 bytes each."""
    parts = [packed(tables.read(out, "scores", date, columns=["image_id"], files=[file])
                     ["image_id"].to_pylist())
             for file in tables.live_files(out, "scores", date)]
    return np.unique(np.concatenate([packed([]), *parts]))


def _model(bundle: dict[str, Any] | None) -> dict[str, Any]:
    return {name: bundle[name] for name in ("preset", "version")} if bundle else {}
