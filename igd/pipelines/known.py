"""What is published already, under any date: images that `--new-only` leaves out.

An image is known where a row has its id, its category and its model, to the last bit of the
score. A reject is a row too, as long as its reason lasts; an image that no model was chosen for is
known while that is so for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from igd import tables
from igd.data.members import Member
from igd.pipelines.ownership import Ids, IdSets, among, packed
from igd.pipelines.run import Run
from igd.records import UNROUTED
from igd.tables import StagedFile

PASSING = ("vanished", "changed", "denied", "decoder_crash")
"""Reasons that tell nothing lasting of an image: it is tried again."""

Bundle = dict[str, Any]
COLUMNS = ("image_id", "reject_reason", "model_version", "score_fingerprint")


class Known:
    """Published images, read as their categories turn up; memory does not grow with them.

    Attributes:
        version: of the table `scores` that was looked at.
        left_out: how many images were found to be known.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self.left_out = 0
        self.version, files = tables.snapshot(out, "scores")
        self._files: dict[str | None, list[StagedFile]] = {}
        for file in files:
            self._files.setdefault(file.category, []).append(file)
        self._sets = IdSets(sum(file.rows for file in files))
        self._ids: dict[tuple[str, str | None], Ids] = {}

    def has(self, member: Member, category: str, bundle: Bundle | None) -> bool:
        """Whether a routed image is published; counts those that are.

        Args:
            bundle: the frozen model of the category; None for `_unrouted`.
        """
        reason = member.reject_reason if category == UNROUTED else None
        if (category, reason) not in self._ids:
            self._ids[category, reason] = self._sets.add(self._read(category, bundle, reason))
        found = bool(among(packed([member.image_id]), self._ids[category, reason])[0])
        self.left_out += found
        return found

    def _read(self, category: str, bundle: Bundle | None, reason: str | None) -> Iterator[Ids]:
        for file in self._files.get(category, ()):
            yield known_ids(self._out, file, bundle, reason)


def known_ids(out: str, file: StagedFile, bundle: Bundle | None, reason: str | None = None) -> Ids:
    """Ids of a file's rows that make an image known.

    Args:
        bundle: the model that would score it; None for images without one.
        reason: of images without a model, why; None: whatever reason.
    """
    rows = tables.read(out, "scores", file.date, columns=COLUMNS, files=[file])
    reasons = rows["reject_reason"]
    lasting = pc.invert(pc.is_in(reasons, pa.array(PASSING)))
    if bundle is not None:
        same = pc.and_(pc.equal(rows["model_version"], bundle["version"]),
                       pc.equal(rows["score_fingerprint"], bundle["score_fingerprint"]))
        lasting = pc.and_(lasting, pc.fill_null(same, False))
    elif reason is not None:
        lasting = pc.fill_null(pc.equal(reasons, reason), False)
    return packed(rows["image_id"].filter(lasting).to_pylist())


def is_unsettled(run: Run, plan: Mapping[str, Any]) -> bool:
    """Whether a run of --new-only rejected images that are to be tried again."""
    summary = run.read_json("summary.json") or {}
    return bool(plan.get("new_only")) and not summary.get("rejected", {}).keys().isdisjoint(PASSING)
