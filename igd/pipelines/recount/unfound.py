"""What two accounts leave over: rows without an image, and images with a row under another date."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date as Date
from typing import Any

import numpy as np
import pyarrow as pa

from igd import storage, tables
from igd.pipelines.recount import Account, object_id, place_of
from igd.pipelines.recount.ledger import Flags, Ids, Ledger, find, packed, union
from igd.records import UNROUTED


@dataclass(frozen=True, kw_only=True)
class UnfoundObject:
    """Rows of one run and object that no walk has found, and the id of the first."""

    run_id: str
    uri: str
    version: str
    rows: int
    first: str


@dataclass(kw_only=True)
class Unfound:
    """Rows of one source whose images were not found in it, by why.

    Attributes:
        ghosts: their object is there, read to its end, and has no such image.
        gone, changed: their object is not there, or in another version; rows of each object.
        from_plan: their archive could not be read to its end, or the source was not listed.
    """

    ghosts: int = 0
    first_ghost: str | None = None
    gone: list[Ids] = field(default_factory=list)
    gone_rows: int = 0
    changed: list[Ids] = field(default_factory=list)
    changed_rows: int = 0
    from_plan: int = 0

    def add_ghosts(self, found: UnfoundObject) -> None:
        self.ghosts += found.rows
        self.first_ghost = self.first_ghost or found.first


def unfound_rows(out: str, date: Date, ledger: Ledger,
                 accounts: Sequence[Account]) -> list[Unfound]:
    """What became of the rows that no walk has found, for each account."""
    results = [Unfound() for _ in accounts]
    later = [union(account.later_uris) for account in accounts]
    for found in _unfound_objects(out, date, ledger):
        mine = [number for number, account in enumerate(accounts)
                if account.run_id == found.run_id]
        at = next((number for number in mine if is_of(accounts[number].source_uri, found.uri)),
                  None)
        if at is not None:
            _explain(found, accounts[at], later[at], results[at])
        elif mine:  # of no source of its run
            results[mine[0]].add_ghosts(found)
    return results


def is_of(source: str, uri: str) -> bool:
    """Whether a source, or what its pattern may match, holds an object."""
    if uri == source or storage.is_inside(uri, source):
        return True
    fixed = re.split(r"[*?\[]", place_of(source))[0]
    return fixed != place_of(source) and place_of(uri).startswith(fixed)


def published_elsewhere(out: str, date: Date, ids: Ids,
                        models: Mapping[str, Mapping[str, Any]] | None = None) -> Flags:
    """Which of some sorted ids have a row under another date.

    Args:
        models: by category; only rows of these very models count, and unrouted ones.
    """
    found = np.zeros(len(ids), bool)
    columns = ["image_id", "category", "model_version", "score_fingerprint"]
    for file in tables.live_files(out, "scores") if len(ids) else ():
        if file.date == date:
            continue
        rows = tables.read(out, "scores", file.date, columns=columns, files=[file])
        model = (models or {}).get(str(file.category))
        if model is not None:
            same = [(row["model_version"], row["score_fingerprint"])
                    == (model["version"], model["score_fingerprint"]) for row in rows.to_pylist()]
            rows = rows.filter(pa.array(same, pa.bool_()))
        if models is None or model is not None or file.category == UNROUTED:
            at, there = find(ids, packed(rows["image_id"].to_pylist()))
            found[at[there]] = True
    return found


def _unfound_objects(out: str, date: Date, ledger: Ledger) -> Iterator[UnfoundObject]:
    columns = ["image_id", "run_id", "source_uri", "source_version"]
    for file in tables.live_files(out, "scores", date):
        category = ledger.categories.get(str(file.category))
        if category is None or category.found.all():
            continue
        rows = tables.read(out, "scores", date, columns=columns, files=[file])
        at, there = find(category.ids, packed(rows["image_id"].to_pylist()))
        left = rows.filter(pa.array(there & ~category.found[at]))
        for row in left.group_by(columns[1:]).aggregate(
                [("image_id", "count"), ("image_id", "min")]).to_pylist():
            yield UnfoundObject(
                run_id=row["run_id"], uri=row["source_uri"], version=row["source_version"],
                rows=row["image_id_count"], first=row["image_id_min"])


def _explain(found: UnfoundObject, account: Account, later: Ids, result: Unfound) -> None:
    key = object_id(found.uri, found.version)
    if account.unread is not None or key in account.uncounted:
        result.from_plan += found.rows
    elif key in account.counted:
        result.add_ghosts(found)
    elif find(later, packed([object_id(found.uri, "")]))[1][0]:
        result.changed.append(packed([key]))
        result.changed_rows += found.rows
    else:
        result.gone.append(packed([key]))
        result.gone_rows += found.rows
